"""Calibration: pictures as the web has them, a probability at equal odds, thresholds by stated rules, one sidecar."""

import csv
import json

import numpy as np
import pytest
from infer_tools import make_model
from PIL import Image

from aidet import Detector, ckpt, metrics
from aidet.errors import UserError
from aidet.labels import sigmoid
from convert.training import calibrate, points, scored, web


def textured(seed, size=(60, 50)):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize(size, Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8))


def rows(score, label, source=None, clean=None, group=None):
    """Scored rows of one set; each row is a picture of its own if no group is given."""
    n = len(score)
    names = np.array([f"p{i}" for i in range(n)] if group is None else group, object)
    sources = np.where(np.asarray(label) == 1, "g", "r").astype(object) if source is None else np.array(source, object)
    clean = np.ones(n, bool) if clean is None else np.asarray(clean)
    sets = np.full(n, "s", object)
    return scored.Scored(np.array(score, float), np.array(label), sources, sets, names, names, clean, np.zeros(n, bool))


def made(n, seed=0, scale=0.5, offset=1.0, real=0.5):
    """Scores whose probability at equal odds is ``sigmoid(scale * (score - offset))``; ``real`` is a share."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, 2, 8 * n)
    label = (rng.random(8 * n) < sigmoid(margin)).astype(int)
    keep = np.concatenate([np.flatnonzero(label == k)[: int(n * p)] for k, p in ((0, real), (1, 1 - real))])
    return rows(margin[keep] / scale + offset, label[keep])


# --- the web ---------------------------------------------------------------------------------------------------------
def test_a_picture_from_the_web_is_smaller_and_always_the_same():
    image = textured(1, (448, 400))
    some = [web.through(image, "a", version) for version in range(1, 13)]
    assert [np.asarray(i).tobytes() for i in some[:3]] == [
        np.asarray(web.through(image, "a", version)).tobytes() for version in (1, 2, 3)
    ]
    sides = [min(one.size) for one in some]
    assert min(sides) >= 128 and max(sides) < 400 and len(set(sides)) > 8
    assert np.asarray(web.through(image, "b", 1)).tobytes() != np.asarray(some[0]).tobytes()
    assert web.through(textured(2, (100, 90)), "c", 1).size == (100, 90), "too small to be shrunk or cropped"


def test_both_saves_leave_their_blocks_at_offsets_of_their_own(monkeypatch):
    seen = []

    def save(image, lines, rng):
        seen.append((image.size, lines is web.FIRST))
        return image

    monkeypatch.setattr(web, "_saved", save)
    monkeypatch.setattr(web, "SCALE", (1.0, 1.0))
    for version in range(1, 30):
        web.through(Image.new("RGB", (448, 448)), "a", version)
    first = {size for size, which in seen if which}
    assert [which for _, which in seen] == [True, False] * 29
    assert len({448 - side for size in first for side in size}) == 8, "each offset of the 8 x 8 grid"


# --- the probability -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("real", [0.5, 0.2, 0.9])
def test_the_probability_is_at_equal_odds_whatever_the_sample_holds(real):
    some = made(6000, real=real)
    scale, offset = points.fit(some)
    assert scale == pytest.approx(0.5, rel=0.08) and offset == pytest.approx(1.0, abs=0.12)
    fitted = points.calibrated(some, scale, offset)
    assert points.ece(fitted) < 0.03 and points.ece(fitted) < points.ece(some) / 2
    balanced = metrics.ranking_metrics(fitted.label, fitted.score)["balanced_ece"]
    assert points.ece(fitted) == balanced, "the number of evaluate.py"


def test_a_source_counts_by_the_root_of_its_pictures_and_clean_as_much_as_the_web():
    label = [0] * 16 + [1] * 8
    source = ["a"] * 4 + ["b"] * 12 + ["g"] * 8
    group = [*"wxyz", *(f"b{i}" for i in range(4)), *(f"b{i // 2}" for i in range(8)), *(f"g{i}" for i in range(8))]
    clean = [True] * 8 + [False] * 8 + [True] * 8  # a: 4 pictures; b: 4 pictures and two versions of each from the web
    some = rows(np.zeros(24), label, source, clean, group)
    weight = points.weights(some)
    assert weight.sum() == pytest.approx(1) and weight[16:].sum() == pytest.approx(0.5)
    assert weight[:4].sum() == pytest.approx(weight[4:16].sum()) == pytest.approx(0.25)
    assert weight[4:8].sum() == pytest.approx(weight[8:16].sum())
    nine = points.weights(rows(np.zeros(12), [0] * 10 + [1] * 2, ["a"] + ["b"] * 9 + ["g"] * 2))
    assert nine[1:10].sum() / nine[0] == pytest.approx(3)


@pytest.mark.parametrize("seed", [0, 1, 128, 162, 195, 285])
def test_scale_and_offset_have_the_lowest_loss(seed):
    """The solution of scikit-learn's logistic regression under the same weights."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    label = (rng.random(100) < 0.5).astype(int)
    some = rows(rng.normal(2 * label - 1 + rng.normal(), 1.7), label)
    weight = points.weights(some) * len(label)
    line = LogisticRegression(C=1e10, tol=1e-10, solver="newton-cholesky").fit(some.score[:, None], label, weight)
    slope = line.coef_[0, 0]
    assert points.fit(some) == pytest.approx((slope, -line.intercept_[0] / slope), abs=1e-5)


def test_scores_that_rank_the_wrong_way_are_refused():
    some = made(400)
    with pytest.raises(UserError, match="do not rank generated pictures above real ones"):
        points.fit(some._replace(label=1 - some.label))


def test_versions_of_a_picture_are_left_out_together():
    some = made(300)
    group = np.array([f"p{i // 3}" for i in range(len(some.score))], object)
    some = some._replace(group=group)
    apart, together = points.left_out(some), points.calibrated(some, *points.fit(some))
    assert np.corrcoef(apart.score, together.score)[0, 1] > 0.99 and not np.array_equal(apart.score, together.score)
    # Two numbers per fold explain all scores: every picture is calibrated by one line, that of its fold.
    ratio = {g: {round(float(v), 6) for v in np.diff(apart.score[group == g]) / np.diff(some.score[group == g])}
             for g in set(group)}  # fmt: skip
    assert all(len(values) == 1 for values in ratio.values()) and len(set.union(*ratio.values())) == points.FOLDS


def test_a_finite_set_cannot_have_less_than_the_error_of_chance():
    few, many = points.ece_by_chance(made(150)), points.ece_by_chance(made(6000))
    assert 0.05 < few < 0.2 and many < few / 4


# --- thresholds ------------------------------------------------------------------------------------------------------
def at(prob):
    return np.log(prob) - np.log1p(-np.asarray(prob))


def test_few_false_alarms_holds_over_all_and_for_every_source_in_both_kinds():
    rng = np.random.default_rng(0)
    prob = np.concatenate([rng.uniform(0, 0.3, 190), np.linspace(0.5, 0.59, 10), [0.95] * 8])
    source = ["large"] * 190 + ["hard"] * 10 + ["few"] * 8
    real = rows(at(prob), np.zeros(208, int), source)
    # 5 % of 208 are 10 pictures: the eight of a source too small for a rate of its own, and two of "hard". But of
    # "hard" one of ten may lie above, so that its second highest decides.
    assert points.few_false_alarms(real) == pytest.approx(0.58, abs=0.0011)
    called = sigmoid(real.score) > points.few_false_alarms(real)
    assert called.mean() <= 0.05 and called[190:200].mean() <= 0.1
    lower = points.few_false_alarms(real) - 0.002
    assert (sigmoid(real.score) > lower)[190:200].mean() > 0.1, "the lowest such threshold"
    web_only = real._replace(clean=np.arange(208) < 190)
    assert points.few_false_alarms(web_only) >= 0.95, "8 of 18 rows from the web are above anything less"


def test_few_misses_finds_its_share_and_not_one_step_more():
    prob = np.linspace(0.2, 0.9, 100)
    found = points.few_misses(rows(at(prob), np.ones(100, int)))
    assert (prob > found).mean() == 0.95 and (prob > found + 0.008).mean() < 0.95
    tied = points.few_misses(rows(at([0.4] * 100), np.ones(100, int)))
    assert tied == 0.399, "a picture on the threshold is real"


def test_balanced_is_in_the_middle_of_a_gap_and_near_one_half_for_exact_probabilities():
    apart = rows(at([0.1] * 20 + [0.9] * 20), [0] * 20 + [1] * 20)
    assert points.balanced(apart) == pytest.approx(0.5, abs=0.01)
    some = made(6000)
    assert points.balanced(points.calibrated(some, 0.5, 1.0)) == pytest.approx(0.5, abs=0.06)


def test_the_thresholds_are_in_order_even_for_a_perfect_detector():
    perfect = points.thresholds(rows(at([0.01] * 30 + [0.99] * 30), [0] * 30 + [1] * 30))
    assert list(perfect) == list(ckpt.POINTS) and perfect["few-misses"] <= perfect["balanced"]
    assert perfect["balanced"] <= perfect["few-false-alarms"]


def test_a_share_is_rounded_once():
    some = rows(at([0.9] * 22 + [0.1] * 159 + [0.9] * 2), [0] * 181 + [1] * 2)  # 22 of 181 are 0.12155
    assert "false alarms 0.122" in points.lines("balanced", {"threshold": 0.5, **points.measured(some, 0.5)})[0]


# --- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "m.ckpt", note="kept", threshold=0.6)


@pytest.fixture(scope="module")
def labels(model, tmp_path_factory):
    """48 pictures in two sets; those that the network scores higher are the generated ones, but for some."""
    folder = tmp_path_factory.mktemp("data")
    pictures = [textured(i) for i in range(48)]
    scores = np.array([v.score for v in Detector(model).score(pictures)])
    generated = (scores > np.median(scores)) ^ (np.random.default_rng(0).random(48) < 0.15)
    for k, name in enumerate(("one", "two")):
        (folder / name).mkdir()
        lines = ["path,label,generator,split,group"]
        for i in range(k, 48, 2):
            pictures[i].save(folder / name / f"{i}.png")
            kind = f"maker{i % 3}" if generated[i] else f"camera{i % 3}"
            lines.append(f"{i}.png,{int(generated[i])},{kind},{'test' if i == k else 'val'},{i // 4}")
        (folder / name / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(model, *flags):
    calibrate.main(["--ckpt", str(model), "--draws", "1", *map(str, flags)])


def test_one_run_writes_a_sidecar_that_a_detector_opens(model, labels, tmp_path, capsys, monkeypatch):
    before = json.loads(ckpt.sidecar_path(model).read_text())
    kept = tmp_path / "scores.csv"
    flags = ["--labels", labels / "one" / "labels.csv", "--labels", labels / "two" / "labels.csv", "--scores", kept]
    run(model, *flags, "--min-side", "40", "--operating-point", "few-misses")
    facts = json.loads(ckpt.sidecar_path(model).read_text())
    new = {"calibration", "operating_points", "operating_point", "threshold", "voting", "evidence"}
    assert {k: v for k, v in facts.items() if k not in new} == {k: v for k, v in before.items() if k not in new}
    assert facts["calibration"]["prior"] == 0.5 and set(facts["operating_points"]) == set(ckpt.POINTS)
    assert facts["evidence"] == {"min_side": 40, "min_detail": 0.0}, "views of 32 pixels: no rule but the one asked for"
    assert facts["calibration"]["images"].keys() == {"one", "two"}
    assert sum(sum(c.values()) for c in facts["calibration"]["images"].values()) == 46
    point = facts["operating_points"]["balanced"]
    assert point["recall"] > 0.6 and "one/maker0" in point["generators"] and point["data"] == ["one val", "two val"]
    detector = Detector(model)
    assert (detector.prior, detector.operating_point) == (0.5, "few-misses")
    assert detector.threshold == facts["operating_points"]["few-misses"]["threshold"]
    with open(kept, newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 92 and {r["version"] for r in table} == {"clean", "web 1"}
    row = next(r for r in table if r["version"] == "clean")
    raw = detector.models[0].uncalibrate(detector.score(labels / row["set"] / row["path"], root=labels).score)
    assert float(row["score"]) == pytest.approx(raw, abs=1e-6), "the score before any calibration"
    said = capsys.readouterr().out
    assert "ECE of pictures left out of the fit" in said and "exact probabilities would have" in said

    # Again: the scores are there, so nothing is scored, and the calibrated detector gives the same calibration.
    monkeypatch.setattr(Detector, "stream", None)
    # It says how many versions from the web there are, whatever --draws would make.
    run(model, "--scores", kept, "--min-side", "40", "--operating-point", "few-misses", "--draws", "3")
    assert json.loads(ckpt.sidecar_path(model).read_text()) == facts
    capsys.readouterr()
    run(model, *flags, "--min-side", "40", "--check")
    said = capsys.readouterr().out
    assert f"balanced: above {point['threshold']:g}, recall {point['recall']:.3f}" in said
    assert json.loads(ckpt.sidecar_path(model).read_text()) == facts, "a check writes no sidecar"
    with pytest.raises(UserError, match="were made with other views .*name another file"):
        run(model, *flags, "--min-side", "40", "--votes", "2")


def test_a_run_that_stops_keeps_its_scores_and_the_old_sidecar(labels, tmp_path, monkeypatch):
    path = make_model(tmp_path / "n.ckpt", seed=1)
    before = ckpt.sidecar_path(path).read_bytes()
    folder = tmp_path / "bad"
    folder.mkdir()
    textured(1).save(folder / "1.png")
    (folder / "2.png").write_bytes(b"no image")
    (folder / "labels.csv").write_text("path,label,generator,split\n1.png,0,a,val\n2.png,1,b,val\n")
    with pytest.raises(UserError, match=r"2\.png: error: not an image .*cannot be calibrated on it"):
        run(path, "--labels", folder / "labels.csv", "--scores", tmp_path / "s.csv")
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 3 and ckpt.sidecar_path(path).read_bytes() == before


def test_what_cannot_be_calibrated_is_one_clear_error(model, labels, tmp_path):
    for flags, said in (
        ([], "name the pictures with --labels"),
        (["--photos", labels, "--scores", labels / "one" / "labels.csv"], "--photos .* goes with --labels; without"),
        (["--labels", labels / "one" / "labels.csv", "--split", "train"], "no real picture in split train"),
        (["--labels", labels / "one" / "labels.csv", "--labels", labels / "one" / "labels.csv"], "two labels are in"),
        (["--labels", labels / "one" / "labels.csv", "--draws", "-1"], r"--draws \(=-1\) must be 0 or more"),
        (["--labels", labels / "one" / "labels.csv", "--min-side", "-1"], r"min_side \(=-1\) must be a whole number"),
    ):
        with pytest.raises(UserError, match=said):
            run(model, *flags)
    with pytest.raises(UserError, match="an exported file has no sidecar; calibrate its .ckpt"):
        run("x.onnx", "--labels", labels / "one" / "labels.csv")
    (tmp_path / "s.csv").write_text("path,score\na.png,1\n")
    with pytest.raises(UserError, match="have no column 'set'"):
        run(model, "--scores", tmp_path / "s.csv")


def test_a_fusion_file_is_calibrated_as_one_detector(labels, tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 3)):
        make_model(tmp_path / f"{name}.ckpt", seed=seed)
    path = tmp_path / "large.yaml"
    path.write_text("# mine\nmodels: [a.ckpt, b.ckpt]\nfuse: score\nthresholds: {a: 0.5, b: 0.5}\n")
    flags = ["--labels", labels / "one" / "labels.csv", "--scores", tmp_path / "s.csv"]
    picture = sorted((labels / "one").glob("*.png"))[0]
    plain = Detector(path).score(picture, root=labels / "one").score
    run(path, *flags)
    assert path.read_text().startswith("# mine\n")
    detector = Detector(path)
    facts = detector.fusion
    assert detector.prior == 0.5 and detector.operating_point == "balanced" and set(detector.points) == set(ckpt.POINTS)
    assert detector.score(picture, root=labels / "one").score == pytest.approx(facts.scale * (plain - facts.offset))
    text = path.read_text()
    run(path, *flags)  # the scores are those before any calibration
    assert path.read_text() == text
    capsys.readouterr()
    run(path, *flags, "--check")
    assert f"balanced: above {detector.points['balanced']:g}" in capsys.readouterr().out and path.read_text() == text
    with pytest.raises(UserError, match="--min-side is for one model"):
        run(path, *flags, "--min-side", "40")
