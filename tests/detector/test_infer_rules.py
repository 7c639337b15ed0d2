"""The rule detectors: the size shortcut, and logistic regression on an autoencoder's reconstruction error."""

import csv
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

import infer
from aidet import Detector, ckpt, files, models, runtime
from aidet.detector import rules
from aidet.errors import UserError
from aidet.images import Pipeline
from aidet.rules import fit


def test_size_rule(tmp_path):
    sizes = [(512, 300), (300, 512), (511, 513), (1024, 768)]
    for i, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    assert infer.run(["--ckpt", "rule:size", "--images", str(tmp_path), "--out", str(tmp_path / "o")]) == 0
    assert (tmp_path / "o" / "result.txt").read_text() == "1\n1\n0\n0\n"
    with open(tmp_path / "o" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["score:rule-size"]) > 0 for r in rows] == [True, True, False, False]
    assert Detector("rule:size:1024").score([tmp_path / "3.png"])[0].label == 1
    for name, text in (("rule:sise", "did you mean 'size'"), ("rule:size:big", "'big' is not a number of pixels")):
        with pytest.raises(UserError, match=text):
            Detector(name)


def test_features_are_the_plain_means():
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 3, 8, 8), np.float32), rng.normal(0.5, 1, (2, 3, 8, 8)).astype(np.float32)
    found = rules.features(x, y)
    assert found[:, 0] == pytest.approx(np.abs(x - y).reshape(2, -1).mean(1), rel=1e-6)
    assert found[:, 1] == pytest.approx(np.abs(x - y.clip(0, 1)).reshape(2, -1).mean(1), rel=1e-6)
    assert (found[:, 1] <= found[:, 0]).all()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Smooth images against grainy ones: any autoencoder reconstructs one kind better than the other."""
    folder = tmp_path_factory.mktemp("rule")
    runtime.setup(seed=0)
    net = models.create("aidet_tae", widths=(4, 4, 4), latent_channels=4)
    facts = {"architecture": "aidet_tae", "arguments": {"widths": [4, 4, 4], "latent_channels": 4}}
    ckpt.save(net, folder / "ae.ckpt", {**facts, "input": {"size": None, "channels": "RGB", "range": [0, 1]}})
    rng = np.random.default_rng(0)
    for side in ("real", "fake"):
        (folder / "set" / side).mkdir(parents=True)
        for i in range(12):
            base = np.full((33, 41, 3), 128.0) + (rng.normal(0, 60, (33, 41, 3)) if side == "real" else i)
            Image.fromarray(base.clip(0, 255).astype(np.uint8)).save(folder / "set" / side / f"{i}.png")
    (folder / "set" / "real" / "bad.png").write_bytes(b"x")
    line = "center_crop(32) | to_float"
    rule = fit(folder / "ae.ckpt", folder / "set", folder / "r.rule.json", line, folds=3)
    return folder, rule


def test_reconstruction_rule_is_fitted_saved_and_applied(fitted):
    folder, rule = fitted
    assert rule["training"]["images"] == 24 and rule["training"]["unusable"] == 1
    files = sorted((folder / "set").glob("*/[0-9]*.png"))
    found = Detector(folder / "r.rule.json").score(files)
    truth = np.array([Path(f).parent.name == "fake" for f in files])
    assert np.mean([r.label for r in found] == truth) >= 0.9
    # The saved numbers, applied by hand to MindSpore's own reconstruction, give the same score.
    net = ckpt.load_model(folder / "ae.ckpt")
    for path, record in list(zip(files, found))[::7]:
        pixels = Pipeline(rule["transform"])(Image.open(path))[None]
        values = rules.features(pixels, net(ms.Tensor(pixels)).asnumpy())[0]
        scaled = (values - np.array(rule["mean"])) / np.array(rule["scale"])
        assert record.score == pytest.approx(scaled @ rule["coefficients"] + rule["intercept"], abs=1e-3)
    onward = Detector(folder / "r.rule.json", backend="mindspore").score(files)
    assert max(abs(a.score - b.score) for a, b in zip(found, onward)) < 1e-3
    mixed = Detector(folder / "r.rule.json", "rule:size", fuse="soft-or").score(files[:1])[0]
    assert set(mixed.scores) == {"r.rule", "rule-size"}


def test_rule_refuses_another_autoencoder_and_a_broken_file(fitted, tmp_path):
    folder, _ = fitted
    runtime.setup(seed=9)
    facts = ckpt.read_sidecar(folder / "ae.ckpt")
    ckpt.save(models.create("aidet_tae", **facts["arguments"]), tmp_path / "ae.ckpt", facts)
    (tmp_path / "r.rule.json").write_bytes((folder / "r.rule.json").read_bytes())
    with pytest.raises(UserError, match="fitted with another autoencoder"):
        Detector(tmp_path / "r.rule.json")
    (tmp_path / "x.rule.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match="not of format 1"):
        Detector(tmp_path / "x.rule.json")
    with pytest.raises(UserError, match="does not exist"):
        Detector(tmp_path / "none.rule.json")
    with pytest.raises(UserError, match="need 10 usable images"):
        fit(folder / "ae.ckpt", folder / "set", tmp_path / "y.rule.json", "center_crop(32) | to_float", limit=8)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.1]},
        {"scale": [1.0, 0]},
        {"coefficients": "ab"},
        {"intercept": None},
        {"transform": 3},
        {"mean": [1, "x"]},
    ],
    ids=str,
)
def test_a_rule_file_with_wrong_values_is_one_line(tmp_path, change):
    whole = {
        "format": 1, "rule": "reconstruction", "autoencoder": "a.ckpt", "autoencoder_sha256": "0", "intercept": 0.5,
        "transform": "pad(8) | to_float", "mean": [0.1, 0.1], "scale": [1.0, 1.0], "coefficients": [1.0, 2.0],
    }  # fmt: skip
    path = tmp_path / "x.rule.json"
    files.write_json(path, whole)
    assert rules.read(path) == whole
    files.write_json(path, {**whole, **change})
    with pytest.raises(UserError, match="must be 2 numbers each"):
        rules.read(path)


@pytest.mark.parametrize("option", [{"positive": 0}, {"real": "a"}])
def test_a_rule_has_no_classes_to_name(option):
    (name,) = option
    with pytest.raises(UserError, match=f"^{name} .* names classes of a network; 'rule-size' is a rule"):
        Detector("rule:size", **option)
    assert Detector("rule:size", own_order=True, **option).names == ["rule-size"], "one of several, as in transfer"
