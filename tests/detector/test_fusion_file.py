"""A fusion file in place of a checkpoint: models of its own, a calibrated fused score, named thresholds."""

import csv
import pickle

import numpy as np
import pytest
from infer_tools import make_model

import infer
from aidet import Detector
from aidet.errors import UserError

TEXT = """# two models
models: [a.ckpt, sub/b.ckpt]
fuse: score
weights: {a: 0.75, b: 0.25}
thresholds: {a: 0.5, b: 0.5}
calibration: {scale: 0.5, offset: 0.4, prior: 0.5}
operating_points:
  few-false-alarms: {threshold: 0.8}
  balanced: {threshold: 0.45}
operating_point: balanced
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fusion")
    (path / "sub").mkdir()
    make_model(path / "a.ckpt", threshold=0.7)
    make_model(path / "sub" / "b.ckpt", seed=2)
    (path / "large.yaml").write_text(TEXT)
    return path


def test_the_file_alone_is_a_detector(folder, photo):
    one = Detector(folder / "large.yaml")
    assert one.names == ["a", "b"]
    assert (one.threshold, one.operating_point, one.prior) == (0.45, "balanced", 0.5)
    assert one.points == {"few-false-alarms": 0.8, "balanced": 0.45}
    for seed in range(4):
        found = one.score(photo(seed))
        alone = [Detector(folder / p).score(photo(seed)).score for p in ("a.ckpt", "sub/b.ckpt")]
        # Each model's own threshold (.7 of a) moves nothing, because the file states .5 for both.
        assert found.score == pytest.approx(0.5 * (0.75 * alone[0] + 0.25 * alone[1] - 0.4), abs=1e-9)
        assert found.prob == pytest.approx(1 / (1 + np.exp(-found.score)))
        assert found.label == int(found.prob > 0.45) and found.statement is not None


def test_a_file_with_one_model_says_what_its_score_means(folder, photo):
    """The large detector is such a file."""
    text = TEXT.replace("a.ckpt, sub/b.ckpt", "a.ckpt").replace("weights: {a: 0.75, b: 0.25}\n", "")
    (folder / "one.yaml").write_text(text.replace("thresholds: {a: 0.5, b: 0.5}", "thresholds: {a: 0.5}"))
    one = Detector(folder / "one.yaml")
    assert (one.threshold, one.operating_point, one.prior) == (0.45, "balanced", 0.5)
    assert one.points == {"few-false-alarms": 0.8, "balanced": 0.45} and one.calibrated == (0.5, 0.4)
    assert Detector(folder / "one.yaml", operating_point="few-false-alarms").threshold == 0.8
    plain = Detector(folder / "a.ckpt")
    assert plain.threshold == 0.7
    for seed in range(4):
        found, raw = one.score(photo(seed)), plain.score(photo(seed)).score
        assert found.score == pytest.approx(0.5 * (raw - 0.4), abs=1e-9)
        assert found.label == int(found.prob > 0.45) and found.statement is not None


def test_two_copies_of_a_model_vote_as_one_does(tmp_path, photo):
    make_model(tmp_path / "a.ckpt", threshold=0.2)
    make_model(tmp_path / "b.ckpt", threshold=0.2)
    one, two = (
        Detector(tmp_path / "a.ckpt", votes=5, vote="hard"),
        Detector(tmp_path / "a.ckpt", tmp_path / "b.ckpt", votes=5, vote="hard"),
    )
    found = [(one.score(photo(seed)).prob, two.score(photo(seed)).prob) for seed in range(12)]
    assert {round(a, 1) for a, _ in found} - {0.0, 1.0}
    for alone, both in found:
        assert both == pytest.approx(alone, abs=1e-5)


def test_a_file_may_name_a_rule(folder, photo):
    (folder / "ruled.yaml").write_text("models: [a.ckpt, 'rule:size']\n")
    assert Detector(folder / "ruled.yaml").names == ["a", "rule-size"]
    assert Detector(folder / "ruled.yaml").score(photo(1)).ok


def test_named_and_given_thresholds_win_over_the_file_s(folder):
    assert Detector(folder / "large.yaml", operating_point="few-false-alarms").threshold == 0.8
    given = Detector(folder / "large.yaml", threshold=0.3)
    assert (given.threshold, given.operating_point) == (0.3, None)
    again = pickle.loads(pickle.dumps(Detector(folder / "large.yaml", operating_point="few-false-alarms")))
    assert again.threshold == 0.8 and again.names == ["a", "b"]


def test_a_probability_is_stated_for_the_views_it_was_fitted_with_only(folder):
    for options in ({"votes": 3}, {"vote": "hard"}, {"flips": True}):
        assert Detector(folder / "large.yaml", **options).prior is None


def test_infer_writes_what_the_detector_says(folder, tmp_path, photo):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(3):
        photo(seed).save(pictures / f"{seed}.png")
    out = tmp_path / "out"
    assert infer.run(["--images", str(pictures), "--ckpt", str(folder / "large.yaml"), "--out", str(out)]) == 0
    with open(out / "scores.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    detector = Detector(folder / "large.yaml")
    for row in rows:
        verdict = detector.score(pictures / row["path"], root=pictures)
        assert float(row["score"]) == pytest.approx(verdict.score, abs=1e-6)
        assert float(row["score:a"]) == pytest.approx(verdict.scores["a"], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[a.ckpt, sub/b.ckpt]", "[a.ckpt, c.ckpt]"), "c.ckpt' does not exist"),
        (("[a.ckpt, sub/b.ckpt]", "a.ckpt"), "must be a list of paths"),
        (("scale: 0.5", "scale: -1"), "scale above 0"),
        (("prior: 0.5", "prior: 2"), "prior"),
        (("operating_point: balanced", "operating_point: few-misses"), "must be one of its operating_points"),
        (("weights: {a: 0.75, b: 0.25}", "weights: {a: 0.75, c: 0.25}"), "'c'"),
        (("models: [a.ckpt, sub/b.ckpt]\n", ""), "names no models"),
        (("operating_point: balanced", "operating_point: balanced\nthreshold: 0.5"), "exclude each other"),
    ],
)
def test_a_wrong_file_is_one_clear_line(folder, change, said):
    assert change[0] in TEXT
    path = folder / "wrong.yaml"
    path.write_text(TEXT.replace(*change))
    with pytest.raises(UserError, match=said) as raised:
        Detector(path)
    assert "\n" not in str(raised.value)


def test_it_stands_alone(folder):
    with pytest.raises(UserError, match="give it alone"):
        Detector(folder / "large.yaml", folder / "a.ckpt")
    with pytest.raises(UserError, match="give it alone"):
        Detector(folder / "large.yaml", fuse="score")
    with pytest.raises(UserError, match="large.yaml has no|did you mean|few-misses"):
        Detector(folder / "large.yaml", operating_point="few-misses")


def test_a_point_of_the_models_moves_the_score_so_that_no_prior_holds(tmp_path):
    make_model(tmp_path / "a.ckpt", operating_points={"balanced": {"threshold": 0.7}}, operating_point="balanced")
    path = tmp_path / "one.yaml"
    path.write_text("models: [a.ckpt]\ncalibration: {scale: 0.5, offset: 1.0, prior: 0.5}\n")
    assert Detector(path).prior == 0.5
    assert Detector(path, operating_point="balanced").prior is None
    path.write_text(path.read_text() + "fuse: hard\n")
    assert Detector(path).prior is None


def test_a_detector_of_relative_paths_is_opened_again_elsewhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    for made in (Detector("large.yaml"), Detector("a.ckpt")):
        kept = pickle.dumps(made)
        monkeypatch.chdir(tmp_path)
        assert pickle.loads(kept).names == made.names
        monkeypatch.chdir(folder)


def test_a_file_of_other_models_is_no_way_to_fuse_these(folder):
    both = [folder / "a.ckpt", folder / "sub" / "b.ckpt"]
    assert Detector(*both, fuse=folder / "large.yaml").names == ["a", "b"]
    with pytest.raises(
        UserError, match=r"large.yaml' names the models .*b.ckpt, not .*a.ckpt; give it alone, --ckpt .*large"
    ):
        Detector(both[0], fuse=folder / "large.yaml")


def test_a_prior_alone_is_a_statement_of_the_file(tmp_path):
    make_model(tmp_path / "a.ckpt")
    (tmp_path / "one.yaml").write_text("models: [a.ckpt]\ncalibration: {scale: 1, offset: 0, prior: 0.5}\n")
    assert Detector(tmp_path / "one.yaml").prior == 0.5
