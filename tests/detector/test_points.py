"""A probability at a stated prior, thresholds for several purposes, and images with too little evidence."""

import csv
import json
import pickle
import re

import numpy as np
import pytest
from infer_tools import make_model
from PIL import Image, ImageFilter

import evaluate
import infer
from aidet import Detector, ckpt
from aidet.app import cards, service
from aidet.detector import default, views, wording
from aidet.errors import UserError

POINTS = {
    "few-false-alarms": {"threshold": 0.8, "recall": 0.5, "false_alarms": 0.04},
    "balanced": {"threshold": 0.45, "recall": 0.8, "false_alarms": 0.2, "sources": {"a": {"images": 9, "clean": 0.1}}},
    "few-misses": {"threshold": 0.2},
}
FACTS = {
    "calibration": {"scale": 0.5, "offset": 0.1, "prior": 0.5},
    "operating_points": POINTS,
    "operating_point": "balanced",
    "evidence": {"min_side": 48, "min_detail": 1.0},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("points") / "a.ckpt", **FACTS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same network without any of the keys."""
    return make_model(tmp_path_factory.mktemp("plain") / "b.ckpt", calibration={"scale": 0.5, "offset": 0.1})


# --- the sidecar -----------------------------------------------------------------------------------------------------
def test_the_sidecar_states_points_prior_and_evidence(model):
    sidecar = ckpt.Sidecar.read(model)
    assert (sidecar.threshold, sidecar.operating_point, sidecar.prior) == (0.45, "balanced", 0.5)
    assert list(sidecar.operating_points) == list(ckpt.POINTS) and sidecar.operating_points["balanced"].recall == 0.8
    assert sidecar.evidence == ckpt.Evidence(48, 1.0) and sidecar.calibration == (0.5, 0.1)


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("operating_points", {}, "must be a mapping with keys among few-false-alarms, balanced, few-misses"),
        ("operating_points", {"balance": {}}, "did you mean 'balanced'"),
        ("operating_points", {"balanced": 0.5}, r"point 'balanced' \(=0.5\) must be a mapping with a threshold"),
        ("operating_points", {"balanced": {"threshold": 1}}, r"'balanced': threshold \(=1\) must be between 0 and 1"),
        ("operating_points", {"balanced": {"threshold": True}}, r"threshold \(=True\) must be"),
        ("operating_points", {"balanced": {"threshold": 0.5, "recal": 1}}, "did you mean 'recall'"),
        ("operating_points", {"balanced": {"threshold": 0.5, "recall": 1.5}}, r"recall \(=1.5\) must be a share"),
        ("operating_points", {"balanced": {"threshold": 0.5, "sources": {"a": 1}}}, "sources must map each name"),
        ("operating_point", "few-misses", r"operating_point \(='few-misses'\) must be one of its operating_points"),
        ("operating_point", None, r"operating_point \(=None\) must be one of"),
        ("threshold", 0.6, r"threshold \(=0.6\) is not that of its operating_point 'balanced' \(0.5\); leave it out"),
        ("calibration", {"scale": 1, "prior": 1.0}, r"calibration: prior \(=1.0\) must be between 0 and 1"),
        ("evidence", [128], "must be a mapping with the keys min_side, min_detail"),
        ("evidence", {"min_size": 128}, "did you mean 'min_side'"),
        ("evidence", {"min_side": -1}, r"min_side \(=-1\) must be a whole number of pixels from 0"),
        ("evidence", {"min_detail": "1"}, r"min_detail \(='1'\) must be grey levels"),
    ],
)
def test_a_wrong_value_is_one_clear_error(key, value, said):
    good = {"operating_points": {"balanced": {"threshold": 0.5}}, "operating_point": "balanced"}
    sidecar = ckpt.Sidecar({**good, key: value}, "m.ckpt")
    with pytest.raises(UserError, match=f"sidecar of 'm.ckpt': .*{said}"):
        _ = (sidecar.threshold, sidecar.prior, sidecar.evidence)


def test_an_operating_point_without_points_is_an_error():
    with pytest.raises(UserError, match="there are no operating_points"):
        _ = ckpt.Sidecar({"operating_point": "balanced"}, "m.ckpt").threshold


# --- the detector ----------------------------------------------------------------------------------------------------
def test_a_named_threshold_decides_and_the_probability_stays(model, photo):
    images = [photo(i) for i in range(6)]
    base = Detector(model)
    assert (base.threshold, base.operating_point, base.prior) == (0.45, "balanced", 0.5)
    assert base.points == {name: point["threshold"] for name, point in POINTS.items()}
    for name, point in POINTS.items():
        detector = Detector(model, operating_point=name)
        assert (detector.threshold, detector.operating_point) == (point["threshold"], name)
        for one, other in zip(base.score(images), detector.score(images)):
            assert one.score == other.score and other.label == int(other.prob > point["threshold"])
            assert (other.threshold, other.prior, other.reason) == (point["threshold"], 0.5, "")
    own = Detector(model, threshold=0.3)
    assert (own.threshold, own.operating_point) == (0.3, None)
    assert pickle.loads(pickle.dumps(Detector(model, operating_point="few-misses"))).threshold == 0.2


def test_a_point_that_is_not_there_or_not_alone_is_one_clear_error(model, plain, tmp_path):
    one = {"operating_points": {"balanced": {"threshold": 0.5}}, "operating_point": "balanced"}
    few = make_model(tmp_path / "few.ckpt", **one)
    (tmp_path / "f.yaml").write_text("threshold: 0.4\n")
    for arguments, options, said in (
        ([model], {"operating_point": "balance"}, "did you mean 'balanced'"),
        ([model], {"operating_point": "balanced", "threshold": 0.5}, "exclude each other"),
        ([model], {"operating_point": "balanced", "fuse": tmp_path / "f.yaml"}, "fusion file states thresholds"),
        ([plain], {"operating_point": "balanced"}, "'b' has no operating point 'balanced': its sidecar states none"),
        ([few], {"operating_point": "few-misses"}, "'few' has no operating point 'few-misses': it has balanced"),
    ):
        with pytest.raises(UserError, match=said):
            Detector(*arguments, **options)


def test_each_model_of_an_ensemble_uses_its_own_point(model, tmp_path, photo):
    other = make_model(tmp_path / "c.ckpt", seed=2, **{**FACTS, "operating_points": {"balanced": {"threshold": 0.6}}})
    both = Detector(model, other, operating_point="balanced")
    assert both.fusion.thresholds == {"a": 0.45, "c": 0.6} and both.threshold == 0.5
    assert both.prior is None and both.points == {}, "a mean of moved scores holds for no stated prior"
    assert both.score(photo(1)).statement is None
    with pytest.raises(UserError, match="'c' has no operating point 'few-misses': it has balanced"):
        Detector(model, other, operating_point="few-misses")


def test_a_detector_without_the_keys_says_what_it_said(plain, photo):
    cifake = ckpt.Sidecar.read(default.CKPT.with_name("aidet_cifake.ckpt"), check_hash=False)
    assert (cifake.evidence, cifake.prior, cifake.operating_points) == (None, None, {}), "its pictures have 32 pixels"
    verdict = Detector(plain).score(photo(3, (20, 20)))
    assert (verdict.statement, verdict.reason, verdict.prior) == (None, None, None)
    keys = "path score prob label decision status scores stability note weights views".split()
    assert sorted(verdict.to_dict()) == sorted(keys)


# --- words -----------------------------------------------------------------------------------------------------------
def test_the_statement_of_a_verdict():
    assert wording.statement(0.7101, 0.8, 0.5) == "71% likely generated (at equal odds); called generated above 80%"
    assert wording.statement(0.7996, 0.8, 0.5).startswith("79.96% likely"), "on its own side of the threshold"
    assert "(if 1% of images are generated)" in wording.statement(0.5, 0.8, 0.01)


def test_the_screen_python_and_the_application_say_the_same(model, tmp_path, photo, capsys):
    photo(1).save(tmp_path / "1.png")
    verdict = Detector(model).score(tmp_path / "1.png", root=tmp_path)
    assert re.fullmatch(r"[\d.]+% likely generated \(at equal odds\); called generated above 45%", verdict.statement)
    found = verdict.to_dict()
    assert (found["statement"], found["threshold"], found["prior"]) == (verdict.statement, 0.45, 0.5)
    assert infer.run(["--ckpt", str(model), str(tmp_path / "1.png")]) == 0
    name = (tmp_path / "1.png").as_posix()
    line, meaning = capsys.readouterr().out.splitlines()
    assert line.split(maxsplit=2) == [verdict.decision, verdict.statement.split()[0], name]
    assert (
        meaning == wording.meaning(0.45, 0.5, Detector(model).unsure)
        and "at equal odds; called generated above 45%" in meaning
    )
    served = service.Service([model])
    answer = service.as_json(served.verdict(tmp_path / "1.png", "1.png", stability=False), 0.45, served.unsure)
    assert (answer["statement"], answer["reason"]) == (verdict.statement, "")
    card = cards.verdict("en", verdict, 0.45, served.unsure)
    assert f"{verdict.statement}.</p>" in re.sub("</?b>", "", card)
    assert "高于 45% 判为生成" in cards.verdict("zh", verdict, 0.45, served.unsure)
    moved = served.decided(verdict, 0.9)
    assert moved.statement.endswith("above 90%") and moved.prob == verdict.prob
    about = served.about()
    assert (about["operating_point"], about["prior"]) == ("balanced", 0.5)
    assert about["operating_points"]["few-misses"] == 0.2


# --- too little evidence ---------------------------------------------------------------------------------------------
def test_fine_detail_tells_plain_and_blurred_from_sharp(photo):
    pictures = {"plain": Image.new("RGB", (200, 200), (9, 90, 200)), "sharp": photo(1, (200, 200))}
    pictures["blurred"] = pictures["sharp"].filter(ImageFilter.GaussianBlur(8))
    found = {}
    for line in ("normalize(half)", "normalize(imagenet)", "to_float"):
        made = views.Views(f"center_crop(96) | {line}")
        found[line] = {name: made.fine_detail(made(image, "x")[0]) for name, image in pictures.items()}
        assert found[line]["plain"] == 0 and found[line]["blurred"] < 1 < 5 < found[line]["sharp"]
    for one in found.values():
        assert one == pytest.approx(found["to_float"], rel=0.1), "in grey levels, whatever the normalisation"
    assert views.Views("center_crop(32) | high_pass").fine_detail(np.zeros((3, 8, 8), np.float32)) == np.inf


@pytest.mark.parametrize("options", [{}, {"votes": 3}, {"votes": 3, "early_exit": True}, {"batch_size": 4}])
def test_too_little_evidence_is_unsure_with_its_reason(model, photo, options):
    detector = Detector(model, **options)
    small, flat, fine = photo(1, (47, 90)), Image.new("RGB", (90, 90), (128, 90, 60)), photo(2, (48, 90))
    reasons = [v.reason for v in detector.score([small, flat, fine])]
    assert reasons == ["shorter side under 48 pixels", "plain colour or out of focus", ""]
    for verdict in detector.score([small, flat]):
        assert verdict.decision == "unsure" and verdict.label == int(verdict.prob > 0.45), "the label stays"
        assert verdict.statement == f"too little evidence: {verdict.reason}" and verdict.to_dict()["reason"]
    assert detector.score(b"no image").to_dict()["reason"] == ""


def test_batches_on_other_devices_have_the_reasons_too(model, photo):
    detector = Detector(model)
    prepared = [detector._prepare(False, item) for item in (("a", photo(1, (40, 40))), ("b", photo(2)), ("c", b""))]
    assert [v.reason for v in detector._score_group(prepared)] == ["shorter side under 48 pixels", "", ""]


def test_one_model_with_enough_evidence_is_enough(model, plain, tmp_path, photo):
    small = photo(1, (40, 40))
    assert Detector(model, plain).score(small).reason is None
    wide = make_model(tmp_path / "w.ckpt", seed=2, evidence={"min_side": 32})
    assert Detector(model, wide).score(small).reason == ""
    assert Detector(model, wide).score(photo(1, (20, 20))).reason == "shorter side under 48 pixels"


def test_result_files_have_the_reason_in_a_last_column(model, plain, tmp_path, photo, capsys):
    (tmp_path / "in").mkdir()
    photo(1, (40, 40)).save(tmp_path / "in" / "1.png")
    photo(2).save(tmp_path / "in" / "2.png")
    for name, path in (("ruled", model), ("plain", plain)):
        flags = ["--ckpt", str(path), "--images", str(tmp_path / "in"), "--out", str(tmp_path / name)]
        assert infer.run(flags) == 0
    with open(tmp_path / "ruled" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-1] == "reason" and [r["reason"] for r in rows] == ["shorter side under 48 pixels", ""]
    assert rows[0]["decision"] == "unsure"
    labels = [int(float(r["prob"]) > 0.45) for r in rows]
    assert [int(n) for n in (tmp_path / "ruled" / "result.txt").read_text().split()] == labels
    header = (tmp_path / "plain" / "scores.csv").read_text().splitlines()[0]
    assert header == "path,score,prob,label,decision,status,score:b"
    options = [json.loads((tmp_path / n / "run.json").read_text())["options"] for n in ("ruled", "plain")]
    assert options[0]["operating_point"] == "balanced" and options[0]["thresholds"]["few-misses"] == 0.2
    assert not {"operating_point", "thresholds", "prior"} & set(options[1])
    capsys.readouterr()
    assert infer.run(["--ckpt", str(model), "--format", "csv", str(tmp_path / "in")]) == 0
    first, second, *_ = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (first["reason"], second["reason"]) == ("shorter side under 48 pixels", "")


def test_the_application_shows_the_reason(model, tmp_path, photo):
    photo(1, (40, 40)).save(tmp_path / "1.png")
    served = service.Service([model])
    verdict = served.verdict(tmp_path / "1.png", "1.png")
    assert verdict.decision == "unsure" and len(verdict.stability) == 7
    for threshold in (0.01, 0.99):
        assert served.decided(verdict, threshold).decision == "unsure", "no threshold gives evidence"
    english, chinese = (cards.verdict(language, verdict, 0.45, served.unsure) for language in ("en", "zh"))
    assert "Too little evidence: shorter side under 48 pixels." in english and "短边不足 48 像素" in chinese
    assert "likely generated" not in english and "Stable" not in english and "Weak" not in english
    assert cards.row(verdict)[3] == "ok: too little evidence: shorter side under 48 pixels"
    assert cards.score_columns([verdict])[-1] == "reason" and len(cards.score_rows([verdict])[0]) == 7
    flat = Detector(model).score(Image.new("RGB", (90, 90)))
    assert "plain colour or out of focus." in cards.verdict("en", flat, 0.45, served.unsure)
    assert "纯色或失焦" in cards.verdict("zh", flat, 0.45, served.unsure)


# --- evaluate.py -----------------------------------------------------------------------------------------------------
@pytest.fixture
def scored(model, tmp_path, photo):
    (tmp_path / "in").mkdir()
    lines = ["path,label"]
    for i in range(8):
        photo(i).save(tmp_path / "in" / f"{i}.png")
        lines.append(f"{i}.png,{i % 2}")
    (tmp_path / "in" / "labels.csv").write_text("\n".join(lines) + "\n")
    assert infer.run(["--ckpt", str(model), "--images", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    return tmp_path


def measured(folder, *flags):
    labels = ["--labels", str(folder / "in" / "labels.csv"), "--bootstrap", "0", "--out", str(folder / "e")]
    assert evaluate.main([*map(str, flags), *labels]) == 0
    return json.loads((folder / "e" / "metrics.json").read_text())


def test_evaluate_takes_the_named_threshold(model, plain, scored):
    at = ["score", "--scores", scored / "out" / "scores.csv"]
    found = measured(scored, *at, "--operating-point", "few-misses")
    assert (found["threshold"], found["threshold_source"]) == (0.2, "operating point few-misses")
    with pytest.raises(UserError, match="and --threshold exclude each other"):
        measured(scored, *at, "--operating-point", "balanced", "--threshold", "0.5")
    with pytest.raises(UserError, match="has no such point; it has few-false-alarms, balanced, few-misses"):
        measured(scored, *at, "--operating-point", "strict")
    sweep = measured(scored, "sweep", "--ckpt", model, "--points", "crop", "--operating-point", "few-false-alarms")
    assert sweep["threshold"] == 0.8
    (scored / "out" / "run.json").unlink()
    with pytest.raises(UserError, match="there is no run.json of infer.py beside .*; give --threshold instead"):
        measured(scored, *at, "--operating-point", "balanced")


@pytest.mark.parametrize("other", [{"votes": 3}, {"views": "native"}, {"flips": True}, {"vote": "hard"}])
def test_a_prior_is_stated_for_the_views_of_the_sidecar_only(model, other):
    assert Detector(model).prior == Detector(model, votes=1, views="random").prior == 0.5
    assert Detector(model, **other).prior is None


def test_what_the_screen_says_of_the_unsure_zone():
    said = "percentages: how likely generated, at equal odds; called generated above 45%"
    assert wording.meaning(0.45, 0.5, (0.4, 0.6)) == said + ", unsure near it"
    assert wording.meaning(0.45, 0.5, None) == said
    assert wording.meaning(0.45, 0.5, (0.9, 0.95)) == said + ", unsure from 90% to 95%"
