"""Robustness sweep and transfer matrix: what each point does, one decode an image, resuming, and the real commands."""

import csv
import json
import re
from argparse import Namespace

import numpy as np
import pytest
from PIL import Image

from aidet import files, images
from aidet.datasets import truth
from aidet.detector import default, detector, vote
from aidet.errors import UserError
from aidet.evaluation import degrade, included, sweep, transfer


@pytest.fixture
def pictures(tmp_path, photo):
    """Twelve bright (generated) and twelve dark (real) images, and their labels."""
    rows = []
    for i in range(24):
        y = i % 2
        pixels = np.asarray(photo(i, (64, 48)), int) // 3 + 90 * y
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "set" / f"{i}.png")
        rows.append([f"{i}.png", y])
    with open(tmp_path / "set" / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *rows])
    return tmp_path / "set"


class Bright:
    """Stands in for a detector: the brighter an image, the higher its score; view k adds k / 10."""

    calls, sidecar = [], "one"

    def __init__(self, *checkpoints, votes=1, **_):
        self.threshold, self.vote, self.votes, self.names = 0.5, "soft", votes, ["m"]
        self.made = [files.sha256(checkpoints[0]), Bright.sidecar, votes]

    def stated(self):
        return self.made

    def score_of_first(self, verdict, votes):
        return vote.combine_views(verdict.view_scores["m"][:votes])

    def stream(self, items):
        for key, image in items:
            Bright.calls.append(key)
            views = [float(np.asarray(image).mean() - 85) / 10 + k / 10 for k in range(self.votes)]
            yield detector.Verdict(key, vote.combine_views(views), None, None, "", "ok", {}, view_scores={"m": views})


@pytest.fixture
def stub(monkeypatch, tmp_path):
    for command in (sweep, transfer):
        monkeypatch.setattr(command, "Detector", Bright)
    Bright.calls = []
    (tmp_path / "m.ckpt").write_bytes(b"weights")
    return tmp_path / "m.ckpt"


def options(stub, pictures, **given):
    base = {
        "ckpt": [stub], "labels": pictures / "labels.csv", "where": None, "out": stub.parent / "out", "points": None,
        "votes": 1, "limit": 0, "backend": "auto", "device": "auto", "workers": 1, "bootstrap": 20, "seed": 42,
    }  # fmt: skip
    return Namespace(**{**base, **given})


def result(stub):
    return json.loads((stub.parent / "out" / "metrics.json").read_text())


def test_all_points_are_measured_and_each_image_is_decoded_once(stub, pictures, monkeypatch):
    decoded, decode = [], images.decode
    monkeypatch.setattr(images, "decode", lambda source, **k: decoded.append(source) or decode(source, **k))
    assert sweep.main(options(stub, pictures)) == 0
    found = result(stub)
    assert {r["family"] for r in found["points"]} == {"clean", *degrade.FAMILIES}
    assert [r["x"] for r in found["points"] if r["family"] == "votes"] == list(range(1, 16))
    assert all(r["auc"] == 1.0 for r in found["points"] if r["family"] in ("jpeg", "resize", "votes"))
    assert len(decoded) == 24  # once for all degradations and the votes
    assert len(found["thresholds"]) == 9 and found["auc"] == 1.0 and found["confusion"] == [[12, 0], [0, 12]]
    page = (stub.parent / "out/report.html").read_text(encoding="utf-8")
    assert "5,000 in an hour" in page and "JPEG" not in page.split("<section>")[0]


def test_a_killed_run_goes_on_and_new_points_are_added(stub, pictures):
    sweep.main(options(stub, pictures, points=["jpeg"]))
    log = stub.parent / "out" / "sweep.jsonl"
    whole, first = log.read_bytes(), result(stub)
    log.write_bytes(whole[: len(whole) // 2])  # ends inside a line
    Bright.calls = []
    sweep.main(options(stub, pictures, points=["jpeg"]))
    assert 0 < len(Bright.calls) < 24 * 8
    second = result(stub)
    assert first["points"] == second["points"]
    Bright.calls = []
    sweep.main(options(stub, pictures, points=["jpeg", "crop"]))
    assert len(Bright.calls) == 24 * 4


def test_without_a_checkpoint_the_default_detector_is_measured(stub, pictures, monkeypatch):
    monkeypatch.setattr(default, "CKPT", stub)
    assert sweep.main(options(stub, pictures, ckpt=None, points=["crop"])) == 0
    assert result(stub)["inputs"]["checkpoint 1"]["path"].endswith("m.ckpt")


def test_a_damaged_line_of_the_log_is_named(stub, pictures):
    sweep.main(options(stub, pictures, points=["crop"]))
    log = stub.parent / "out/sweep.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:4], lines[4][:9], *lines[5:]]) + "\n")
    with pytest.raises(UserError, match="sweep.jsonl line 5 is damaged; remove that line"):
        sweep.main(options(stub, pictures, points=["crop"]))


def test_a_log_of_something_else_is_refused(stub, pictures):
    sweep.main(options(stub, pictures, points=["crop"]))
    stub.write_bytes(b"other weights")
    with pytest.raises(UserError, match="other checkpoints, labels or options; give another --out"):
        sweep.main(options(stub, pictures, points=["crop"]))


def test_votes_are_those_of_a_detector_with_that_many(stub, pictures):
    sweep.main(options(stub, pictures, points=["votes"]))
    lines = [json.loads(line) for line in open(stub.parent / "out/sweep.jsonl").read().splitlines()[1:]]
    got = {path: value for path, point, value in lines if point == "votes"}
    for k in (1, 4, 15):
        verdicts = Bright(stub, votes=k).stream((p, images.decode(pictures / p)) for p in got)
        assert [v.score for v in verdicts] == [got[p][k - 1] for p in got]


def test_unreadable_images_are_counted_and_left_out(stub, pictures):
    (pictures / "3.png").write_bytes(b"no image")
    assert sweep.main(options(stub, pictures, points=["jpeg"])) == 3
    found = result(stub)
    assert found["errors"] == 1 and found["n"] == 23
    assert "1 images could not be scored" in (stub.parent / "out/report.html").read_text(encoding="utf-8")


def test_a_set_of_which_nothing_can_be_scored_names_its_first_image(stub, pictures):
    for path in pictures.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="no image could be scored, first 0.png: error: not an image"):
        sweep.main(options(stub, pictures, points=["jpeg"]))


def test_limit_takes_as_many_of_each_class():
    y = np.array([0] * 90 + [1] * 10)
    rows = degrade.even_sample(y, 40)
    assert len(rows) == 40 and y[rows].sum() == 10 and (np.diff(rows) > 0).all()
    assert y[degrade.even_sample(y, 10)].sum() == 5
    assert len(degrade.even_sample(y, 0)) == len(degrade.even_sample(y, 500)) == 100


def test_unknown_family_names_the_nearest(stub, pictures):
    with pytest.raises(UserError, match="did you mean 'jpeg'"):
        sweep.main(options(stub, pictures, points=["jpg"]))
    assert not (stub.parent / "out").exists()


# --- the points ------------------------------------------------------------------------------------------------------
def named(name):
    return next(p for p in degrade.points() if p[0] == name)


def test_points_are_named_by_family_or_one_by_one():
    assert [p[0] for p in degrade.points(["resize 0.5", "crop", "jpeg 70"])] == [
        "clean", "jpeg 70", "resize 0.5", "crop 0.9", "crop 0.75", "crop 0.5", "crop 0.25",
    ]  # fmt: skip
    with pytest.raises(UserError, match="did you mean 'jpeg 70'"):
        degrade.points(["jpeg 71"])


def test_points_do_what_they_say(photo):
    image = photo(0, (400, 300))
    pixels = np.asarray(image, int)

    def at(name):
        return degrade.apply(named(name), image, 1, "a.png")

    assert at("clean") is image
    assert at("resize 0.5").size == (200, 150) and at("crop 0.5").size == (200, 150)
    assert (np.asarray(at("crop 0.5"), int) == pixels[75:225, 100:300]).all()
    families = {"jpeg": (95, 70, 30), "webp": (90, 70, 30), "blur": (0.5, 1, 3), "noise": (2, 8, 16)}
    strengths = [[np.abs(np.asarray(at(f"{f} {x}"), int) - pixels).mean() for x in xs] for f, xs in families.items()]
    for one in strengths:
        assert 0 < one[0] < one[1] < one[2]
    assert at("noise 8").tobytes() == at("noise 8").tobytes()
    assert degrade.apply(named("noise 8"), image, 1, "b.png").tobytes() != at("noise 8").tobytes()


def test_tiers(photo):
    big = photo(1, (1600, 1200))
    assert degrade.apply(named("tier web"), big, 1, "a").size == (768, 576)
    assert degrade.apply(named("tier hard"), big, 1, "a").size == (512, 384)
    assert degrade.apply(named("tier web"), photo(1, (300, 200)), 1, "a").size == (300, 200)  # never enlarged
    for size in ((1600, 1200), (210, 165), (40, 30)):
        assert degrade.apply(named("tier vip"), photo(2, size), 1, "a").size == (200, 200)


# --- transfer --------------------------------------------------------------------------------------------------------
def transfer_options(stub, sets, **given):
    base = {"ckpt": [f"bright={stub}"], "sets": sets, "out": stub.parent / "out", "votes": 1, "backend": "auto",
            "device": "auto", "workers": 1, "bootstrap": 20, "seed": 42, "by": None}  # fmt: skip
    return Namespace(**{**base, **given})


def test_matrix_with_average_and_minimum(stub, pictures):
    lines = (pictures / "labels.csv").read_text().splitlines()
    turned = [lines[0]] + [f"{p},{1 - int(y)}" for p, y in (line.split(",") for line in lines[1:])]
    (pictures / "turned.csv").write_text("\n".join(turned) + "\n")
    (pictures / "reals.csv").write_text("\n".join(line for line in lines if not line.endswith(",1")) + "\n")
    sets = [f"good={pictures}/labels.csv", f"turned={pictures}/turned.csv", f"reals={pictures}/reals.csv"]
    assert transfer.main(transfer_options(stub, sets)) == 0
    found = result(stub)
    cells = {c["set"]: c for c in found["cells"]}
    assert (cells["good"]["auc"], cells["turned"]["auc"], cells["reals"]["auc"]) == (1.0, 0.0, None)
    assert cells["reals"]["accuracy"] == 1.0 and cells["reals"]["one_class"] == "real"
    assert set(cells["good"]) <= set(cells["reals"]), "the usual keys; of one class without a value"
    assert [cells["reals"][k] for k in ("macro_f1", "generated_recall", "nll")] == [None] * 3
    assert "macro_f1" not in cells["reals"]["ci"] and cells["good"]["macro_f1"] == 1.0
    assert found["models"]["bright"] == {"average": pytest.approx(2 / 3), "minimum": 0.0, "worst": "turned"}
    Bright.calls = []
    transfer.main(transfer_options(stub, sets))
    assert Bright.calls == []  # nothing is scored twice
    assert "Only one class in reals" in (stub.parent / "out/report.html").read_text(encoding="utf-8")


def test_scores_of_another_sidecar_are_not_taken_over(stub, pictures, monkeypatch):
    sets = [f"good={pictures}/labels.csv"]
    transfer.main(transfer_options(stub, sets))
    sweep.main(options(stub, pictures, points=["resize 0.5"], out=stub.parent / "swept"))
    monkeypatch.setattr(Bright, "sidecar", "calibrated again")
    with pytest.raises(UserError, match="other checkpoints"):
        transfer.main(transfer_options(stub, sets))
    with pytest.raises(UserError, match="other checkpoints"):
        sweep.main(options(stub, pictures, points=["resize 0.5"], out=stub.parent / "swept"))


def test_models_share_the_decoded_images_of_a_set(stub, pictures, monkeypatch):
    decoded, decode = [], images.decode
    monkeypatch.setattr(images, "decode", lambda path: decoded.append(path) or decode(path))
    other = stub.with_name("other.ckpt")
    other.write_bytes(b"others")
    models = {"ckpt": [f"first={stub}", f"second={other}"]}
    transfer.main(transfer_options(stub, [f"A={pictures}/labels.csv"], **models))
    assert len(decoded) == 24 and len(Bright.calls) == 48
    assert [(c["model"], c["n"]) for c in result(stub)["cells"]] == [("first", 24), ("second", 24)]


def test_sets_may_be_parts_of_a_csv(stub, pictures):
    lines = (pictures / "labels.csv").read_text().splitlines()
    with_split = ["path,label,split"] + [f"{line},{'a' if i < 12 else 'b'}" for i, line in enumerate(lines[1:])]
    (pictures / "l.csv").write_text("\n".join(with_split) + "\n")
    transfer.main(transfer_options(stub, [f"A={pictures}/l.csv@split=a", f"B={pictures}/l.csv@split=b"]))
    assert [c["n"] for c in result(stub)["cells"]] == [12, 12]


def test_cells_have_tables_of_columns(stub, pictures):
    lines = (pictures / "labels.csv").read_text().splitlines()
    some = [
        f"{line},{('apple', 'wolf')[i % 2]}" for i, line in enumerate(line for line in lines[1:] if line[-1] == "0")
    ]
    (pictures / "reals.csv").write_text("\n".join(["path,label,fine", *some]) + "\n")
    sets = [f"all={pictures}/labels.csv", f"cifar={pictures}/reals.csv"]
    transfer.main(transfer_options(stub, sets, by=["superclass"]))
    cells = {c["set"]: c["by"] for c in result(stub)["cells"]}
    assert cells["all"] == {} and set(cells["cifar"]["superclass"]) == {"fruit_and_vegetables", "large_carnivores"}
    assert cells["cifar"]["superclass"]["large_carnivores"]["accuracy"] == 1
    assert "bright on cifar: by superclass" in (stub.parent / "out/report.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="no set has such a column"):
        transfer.main(transfer_options(stub, sets, by=["colour"]))


@pytest.mark.parametrize(
    ("texts", "text"), [(["a=x", "a=y"], "the name 'a' appears twice"), (["=x"], "must be NAME=PATH")]
)
def test_names_of_models_and_sets(texts, text):
    with pytest.raises(UserError, match=text):
        transfer.named(texts, "--sets")


def test_names_default_to_the_stem():
    given = ["x/best.ckpt", "own=z.ckpt", "y/best.ckpt"]
    want = {"x/best": "x/best.ckpt", "own": "z.ckpt", "y/best": "y/best.ckpt"}
    assert transfer.named(given, "--ckpt") == want and list(want) == list(transfer.named(given, "--ckpt"))
    assert list(transfer.named(["d/l.csv@split=a"], "--sets")) == ["l"]


# --- in the report of score -------------------------------------------------------------------------------------------
def test_curves_and_matrix_stand_in_the_report_of_score(run, stub, pictures, tmp_path):
    assert sweep.main(options(stub, pictures, points=["jpeg"], out=tmp_path / "sw")) == 0
    assert transfer.main(transfer_options(stub, [f"good={pictures}/labels.csv"], out=tmp_path / "tr")) == 0
    (tmp_path / "run").mkdir()
    lines = [f"{i}.png,{i % 2 * 2 - 1}" for i in range(24)]
    (tmp_path / "run" / "scores.csv").write_text("\n".join(["path,score", *lines]) + "\n")
    flags = ["--scores", tmp_path / "run" / "scores.csv", "--labels", pictures / "labels.csv", "--bootstrap", 10]
    flags += ["--explain", "none", "--out", tmp_path / "score"]
    done = run("evaluate.py", "score", *flags, "--include", tmp_path / "sw", tmp_path / "tr" / "metrics.json")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "score" / "report.html").read_text(encoding="utf-8")
    for title in ("All numbers", "Robustness: jpeg", "Transfer: AUC", "Transfer: balanced accuracy"):
        assert f"<h2>{title}</h2>" in page, title
    plain = (tmp_path / "sw" / "report.html").read_text(encoding="utf-8")
    assert "24 images, 1 vote<" in plain and page.count("Decisions: generated above a probability of 0.5000") == 2
    assert "0.5000 (bright)" in (tmp_path / "tr" / "report.html").read_text(encoding="utf-8")
    curve = re.search(r'<h2>jpeg</h2>.*?src="(data:image/[^"]+)"', plain, re.S).group(1)
    assert curve in page and f"{stub} on {pictures}/labels.csv, 24 images" in page
    used = json.loads((tmp_path / "score" / "metrics.json").read_text())["inputs"]
    assert used["included 1"]["sha256"] == files.sha256(tmp_path / "sw" / "metrics.json")

    done = run("evaluate.py", "score", *flags, "--include", tmp_path / "score")
    assert done.returncode == 2 and "is not a metrics.json of localize, sweep or transfer" in done.stderr
    done = run("evaluate.py", "score", *flags, "--include", tmp_path / "none")
    assert done.returncode == 2 and "does not exist" in done.stderr


def test_curves_of_other_weights_are_warned_of(stub, pictures, tmp_path):
    sweep.main(options(stub, pictures, points=["jpeg"], out=tmp_path / "sw"))
    for sha, warned in ((files.sha256(stub), 0), ("0" * 64, 1)):
        _, warnings, _ = included.read([tmp_path / "sw"], {"models": [{"sha256": sha}]})
        assert len(warnings) == warned and all("not with the weights that made these scores" in w for w in warnings)


# --- the commands with a real network --------------------------------------------------------------------------------
def test_commands_with_a_checkpoint(run, pictures, tmp_path):
    from aidet import ckpt, models

    sidecar = {
        "architecture": "testing", "arguments": {"num_classes": 2}, "num_outputs": 2, "classes": ["real", "fake"],
        "class_order": ["real", "generated"],
        "input": {"size": 32, "transform": "decode | resize(40) | center_crop(32) | normalize(imagenet)"},
    }  # fmt: skip
    ckpt.save(models.create("testing", num_classes=2), tmp_path / "t.ckpt", sidecar)
    done = run("evaluate.py", "sweep", "--ckpt", tmp_path / "t.ckpt", "--labels", pictures / "labels.csv", "--out",
               tmp_path / "s", "--points", "crop", "votes", "--bootstrap", 10)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {r["point"]: r for r in json.loads((tmp_path / "s/metrics.json").read_text())["points"]}
    assert found["clean"]["auc"] == pytest.approx(found["votes 1"]["auc"])
    done = run("evaluate.py", "transfer", "--ckpt", tmp_path / "t.ckpt", "--sets", f"P={pictures}/labels.csv", "--out",
               tmp_path / "t", "--bootstrap", 10)  # fmt: skip
    assert done.returncode == 0, done.stderr
    cell = json.loads((tmp_path / "t/metrics.json").read_text())["cells"][0]
    assert cell["auc"] == pytest.approx(found["clean"]["auc"])
    assert files.sha256(tmp_path / "t.ckpt") in (tmp_path / "t/report.html").read_text(encoding="utf-8")
    assert truth.read_labels(pictures / "labels.csv").labels.sum() == 12
