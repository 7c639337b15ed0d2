"""infer.py --cascade: eight bits first, the checkpoint if the score is close, and the checkpoint's decisions."""

import contextlib
import json
import pickle

import numpy as np
import pytest
from infer_tools import make_model
from PIL import Image

import export
import infer
from aidet import Detector, runtime
from aidet.detector import cascade, default
from aidet.detector.network import Network
from aidet.detector.scorer import Scorer
from aidet.errors import UserError
from aidet.inference import run
from data import make_sample

SETTINGS = [
    {},
    {"unsure": "none"},
    {"votes": 5},
    {"votes": 5, "vote": "hard"},
    {"votes": 5, "unsure": (0.4, 0.6), "early_exit": True},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A checkpoint, its eight-bit model, and images that were not used for calibration."""
    folder = tmp_path_factory.mktemp("cascade")
    path = make_model(folder / "a.ckpt", calibration={"scale": 0.5, "offset": 0.4})
    rng = np.random.default_rng(0)
    for name, count in (("calibration", 40), ("images", 60)):
        (folder / name).mkdir()
        for i in range(count):
            small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            small.resize((50, 60), Image.Resampling.BICUBIC).save(folder / name / f"{i}.png")
    flags = ["--ckpt", path, "--format", "onnx", "--out", folder, "--int8", folder / "calibration"]
    assert not export.run([str(f) for f in flags])
    return path, folder / "a_int8.onnx", sorted((folder / "images").iterdir())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_cascade_decides_as_the_checkpoint_does(pair, settings):
    path, small, files = pair
    exact, eight = (Detector(p, **settings).score(files, root=files[0].parent) for p in (path, small))
    detector = Detector(path, cascade=small, **settings)
    found, twice = detector.score(files, root=files[0].parent), detector.cascade.twice
    assert [(r.label, r.decision) for r in found] == [(r.label, r.decision) for r in exact]
    assert 0 < twice < len(files)
    if settings.get("early_exit"):
        return  # because of its margin, the first network scores more views than it would alone
    # Each row comes from one network only, and from the checkpoint as often as was counted.
    views = [[r.views["a" if some is not eight else "a_int8"] for r in some] for some in (found, exact, eight)]
    slow = sum(f == e for f, e, _ in zip(*views))
    quick = sum(f == q for f, _, q in zip(*views))
    assert (slow, quick) == (twice, len(files) - twice)


def test_a_cascade_trusts_the_first_network_no_further_than_its_margin(pair, monkeypatch):
    path, small, files = pair
    exact = Detector(path, votes=3).score(files, root=files[0].parent)
    # One worker, so that the errors below are drawn in the order of the files.
    detector = Detector(path, votes=3, cascade=small, workers=1)
    own, network = detector.cascade, detector.models[0]
    margin, plain = own.margin, own.first.run
    assert network.scale * margin == pytest.approx(cascade.margin_of(own.first.backend, small, network.views))
    errors = np.random.default_rng(0)
    changed = []

    def worse(views):  # as far off as the margin allows, in either direction
        changed.append(network.run(views) + margin * errors.choice([-1, 1], len(views)))
        return changed[-1]

    monkeypatch.setattr(own.first, "run", worse)
    assert [r.label for r in detector.score(files, root=files[0].parent)] == [r.label for r in exact]
    assert changed and 0 < own.twice < len(files)
    # A score that is not a number settles nothing: the checkpoint decides.
    monkeypatch.setattr(own.first, "run", lambda views: np.full(len(views), np.nan))
    before = own.twice
    assert [r.score for r in detector.score(files, root=files[0].parent)] == [r.score for r in exact]
    assert own.twice == before + len(files) and plain is not worse


def test_the_margin_of_an_images_score_counts_for_the_vote_that_it_was_measured_with(tmp_path):
    path = make_model(tmp_path / "a.ckpt", voting={"votes": 5}, calibration={"scale": 0.5, "offset": 0.4})
    rng = np.random.default_rng(1)
    (tmp_path / "images").mkdir()
    for i in range(48):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((50, 60), Image.Resampling.BICUBIC).save(tmp_path / "images" / f"{i}.png")
    files = sorted((tmp_path / "images").iterdir())
    flags = ["--ckpt", path, "--format", "onnx", "--out", tmp_path, "--int8", tmp_path / "images"]
    assert not export.run([str(f) for f in flags])
    small = tmp_path / "a_int8.onnx"
    # A threshold so close to one image's score that the margin has to settle it.
    settings = {"threshold": Detector(path).score(files[0]).prob + 1e-4, "unsure": "none"}
    detector = Detector(path, cascade=small, **settings)
    own, network = detector.cascade, detector.models[0]
    apart = cascade.score_margin_of(own.first.backend, network.views)
    assert 0 < apart <= cascade.margin_of(own.first.backend, small, network.views)
    exact = Detector(path, **settings).score(files)
    # As far off as it allows, every view alike: calibrated scores are half the views' differences.
    for sign in (-1, 1):
        off = sign * apart / network.scale * 0.999
        own.first.run, own.twice = (lambda views, off=off: network.run(views) + off), 0
        assert [(v.label, v.decision) for v in detector.score(files)] == [(v.label, v.decision) for v in exact]
        assert 0 < own.twice < len(files)
    own.first.run = lambda views: np.full(len(views), np.nan)
    assert [v.score for v in detector.score(files)] == [v.score for v in exact]
    # Another vote, or early exit: the margin of a view decides.
    assert cascade.score_margin_of(own.first.backend, Detector(path, votes=3).models[0].views) is None
    for settings in ({"votes": 3}, {"vote": "hard"}, {"early_exit": True}):
        assert Detector(path, cascade=small, **settings).cascade.score_margin is None
    assert own.score_margin == apart


def test_the_margin_holds_after_another_calibration(pair, tmp_path):
    path, small, files = pair
    make_model(tmp_path / "a.ckpt", calibration={"scale": 5.0, "offset": 0.4})  # the same weights
    old, new = (Detector(p, cascade=small).cascade for p in (path, tmp_path / "a.ckpt"))
    assert new.margin == old.margin, "of raw scores"
    assert new.score_margin == pytest.approx(10 * old.score_margin), "of calibrated ones"


def test_a_hard_fusion_of_one_model_is_settled_by_the_margin_of_its_views(pair, tmp_path):
    path, small, files = pair
    line = Detector(path).score(files[0], root=files[0].parent).prob + 1e-4
    head = f"models: [{path}]\nfuse: hard\ncalibration: {{scale: 1.0, offset: 0.1}}\n"
    (tmp_path / "hard.yaml").write_text(head + f"thresholds: {{a: {line}}}\n")
    exact, detector = (Detector(tmp_path / "hard.yaml", cascade=c, unsure="none") for c in (None, small))
    own, network = detector.cascade, detector.models[0]
    for sign in (-1, 1):
        own.first.run = lambda views, off=sign * 0.999 * own.margin: network.run(views) + off
        assert [v.label for v in detector.score(files)] == [v.label for v in exact.score(files)]


def test_the_default_detectors_margin_holds_on_photographs_that_it_was_not_measured_on(tmp_path):
    for scene, split, path in make_sample.packaged():
        folder = tmp_path / ("others" if split == "test" else "calibration")
        folder.mkdir(exist_ok=True)
        for row, column, tile in make_sample.tiles(path, most=16 if split == "test" else 4):
            Image.fromarray(tile).save(folder / f"{scene}_{row}_{column}.png")
    files = sorted((tmp_path / "others").iterdir())
    flags = ["--format", "onnx", "--out", tmp_path, "--int8", tmp_path / "calibration"]
    assert not export.run([str(f) for f in ("--ckpt", default.path(), *flags)])
    exact, small = Detector(default.path()).score(files), tmp_path / "aidet_default_int8.onnx"
    detector = Detector(default.path(), cascade=small)
    assert [(v.label, v.decision) for v in detector.score(files)] == [(v.label, v.decision) for v in exact]
    assert len(files) >= 40 and len({v.decision for v in exact}) == 3 and 0 < detector.cascade.twice < len(files)


@pytest.mark.skipif(runtime.version_of("openvino") is None, reason="pip install 'aidet[openvino]'")
def test_the_first_stage_runs_on_the_engine_that_its_margin_was_measured_with(pair):
    path, small, files = pair
    detector = Detector(path, votes=3, cascade=small, backend="openvino")
    first = detector.cascade.first
    assert [m.backend_name for m in (detector.models[0], first)] == ["openvino", "onnxruntime"]
    exact = Detector(path, votes=3).score(files)
    assert [(v.label, v.decision) for v in detector.score(files)] == [(v.label, v.decision) for v in exact]
    assert 0 < detector.cascade.twice < len(files)
    by_hand = Detector(small, backend="openvino").models[0].backend  # rounds in its own way, so without the margin
    assert (by_hand.name, by_hand.precision) == ("openvino", "int8")
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    assert np.isfinite(by_hand(x)).all() and by_hand(x).shape == first.backend(x).shape
    with pytest.raises(UserError, match="is an eight-bit model; leave --precision out"):
        Detector(small, precision="float32")


def test_a_cascade_from_the_command_line(pair, tmp_path, capsys):
    path, small, files = pair
    flags = ["--ckpt", path, "--images", files[0].parent, "--votes", 3, "--unsure", "0.3,0.7"]
    assert infer.run([str(f) for f in (*flags, "--out", tmp_path / "full")]) == 0
    capsys.readouterr()
    assert infer.run([str(f) for f in (*flags, "--out", tmp_path / "fast", "--cascade", small)]) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "fast/result.txt").read_bytes() == (tmp_path / "full/result.txt").read_bytes()
    found = json.loads((tmp_path / "fast/run.json").read_text())
    twice = found["processes"][0]["scored_twice"]
    assert 0 < twice < 60 and f"{twice} of 60 images were close" in said
    assert (
        found["options"]["cascade"]
        and json.loads((tmp_path / "full/run.json").read_text())["options"]["cascade"] is None
    )


def test_what_a_cluster_scored_twice_is_not_counted_here(pair, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    path, small, files = pair

    def stream(items, total, detector, **_):  # in processes of its own, each with a copy of the detector
        return pickle.loads(pickle.dumps(detector)).stream(items)

    monkeypatch.setattr(run.distributed, "ray", lambda: None)
    monkeypatch.setattr(run.distributed, "connected", lambda *_: contextlib.nullcontext(1))
    monkeypatch.setattr(run.distributed, "stream", stream)
    flags = ["--ckpt", path, "--images", files[0].parent, "--out", tmp_path, "--cascade", small, "--engine", "ray"]
    assert infer.run([str(f) for f in flags]) == 0
    assert "close" not in capsys.readouterr().out
    assert "scored_twice" not in json.loads((tmp_path / "run.json").read_text())["processes"][0]


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"cascade": "{folder}/a.onnx"}, "states no margin"),
        ({"cascade": "{folder}/a.ckpt"}, "must be an .onnx"),
        ({"cascade": "{folder}/a_int8.onnx", "views": "native", "votes": 3}, "measured with views"),
        ({"cascade": "{folder}/nowhere.onnx"}, "does not exist|nowhere.onnx"),
        ({"cascade": "{folder}/a_int8.onnx", "stability": True}, "no stability mode"),
        ({"cascade": "{folder}/a_int8.onnx", "backend": "mindspore"}, "runs on mindspore"),
    ],
    ids=str,
)
def test_what_is_no_cascade_is_one_line(pair, settings, text):
    path, _, _ = pair
    settings = {k: v.format(folder=path.parent) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(UserError, match=text):
        Detector(path, **settings)


@pytest.mark.parametrize("value", ["", "[]", "{}", '{"margin": NaN, "views": []}', '{"margin": -1, "views": []}'])
def test_a_damaged_margin_is_none(pair, value):
    class Session:
        def metadata(self):
            return {cascade.STAMP: value}

    with pytest.raises(UserError, match="states no margin"):
        cascade.margin_of(Session(), "a_int8.onnx", Detector(pair[0]).models[0].views)


def test_a_cascade_of_other_weights_is_refused(pair, tmp_path):
    with pytest.raises(UserError, match="was not made from"):
        Detector(make_model(tmp_path / "b.ckpt", seed=2), cascade=pair[1])


def test_a_cascade_with_a_model_without_a_sidecar_is_refused(pair):
    rule = Scorer()  # as a rule fitted on reconstruction errors, which runs on ONNX Runtime
    rule.name, rule.backend_name, rule.identity = "r", "onnxruntime", "0" * 64
    with pytest.raises(UserError, match="was not made from"):
        cascade.open_first(pair[1], rule, lambda path: Network(path, "r"))
