"""The shipped detectors: their files, their golden scores on both back ends, and that `infer.py` uses the default."""

import csv
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aidet import Detector, ckpt, files, runtime
from aidet.detector import backends, localizer

ROOT = Path(__file__).resolve().parents[2]
CKPT = ROOT / "ckpt" / "aidet_default.ckpt"
GOLDEN = ROOT / "tests" / "data" / "golden_default.json"
SHIPPED = {"default": (CKPT, GOLDEN)}
SHIPPED["cifake"] = (CKPT.with_name("aidet_cifake.ckpt"), GOLDEN.with_name("golden_cifake.json"))
PARTIAL = CKPT.with_name("aidet_partial.ckpt")
# The checkpoints whose graphs come with them, and the sizes of the inputs.
GRAPHS = (
    (CKPT, ckpt.Sidecar.read(CKPT).size),
    (PARTIAL, (localizer.Settings.read(ckpt.Sidecar.read(PARTIAL)).tile,) * 2),
)


def pictures():
    """Photographs from scikit-image and scikit-learn, and computed pictures; name -> PIL image."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    result = {name: getattr(data, name)() for name in ("astronaut", "camera", "chelsea", "coffee", "rocket")}
    for name, array in zip(("china", "flower"), load_sample_images().images):
        result[name] = array
    y, x = np.mgrid[0:300, 0:400].astype(np.float64)
    waves = np.stack([np.sin(x / 17 + k) * np.cos(y / (11 + k)) for k in range(3)], -1)
    result["waves"] = np.rint(127.5 + 127.5 * waves).astype(np.uint8)
    result["noise"] = np.random.RandomState(0).randint(0, 256, (260, 250, 3)).astype(np.uint8)
    return {name: Image.fromarray(a).convert("RGB") for name, a in result.items()}


def check_golden(detector, weights, place, tolerance):
    """A detector's scores of :func:`pictures` are those of a golden file, which belongs to ``weights``."""
    golden = json.loads(place.read_text())
    assert golden["sha256"] == files.sha256(weights), "the file changed: run bench/golden.py and read the difference"
    shown = pictures()
    assert set(shown) == set(golden["scores"])
    found = detector.score(list(shown.values()))
    assert {n: r.score for n, r in zip(shown, found)} == pytest.approx(golden["scores"], abs=tolerance)


def test_file_is_small_whole_and_says_where_it_comes_from():
    assert CKPT.stat().st_size <= 15_000_000
    facts = ckpt.read_sidecar(CKPT)
    assert facts["output"]["sha256"] == files.sha256(CKPT)
    assert set(facts["class_order"]) == {"real", "generated"} and facts["source"]["licence"] and facts["training"]
    assert facts["calibration"]["prior"] == 0.5 and set(facts["operating_points"]) == set(ckpt.POINTS)
    strict, balanced, lenient = (facts["operating_points"][name] for name in ckpt.POINTS)
    assert strict["threshold"] > balanced["threshold"] > lenient["threshold"]
    assert strict["false_alarms"] <= 0.05 and lenient["recall"] >= 0.95
    assert facts["operating_point"] == "balanced" and facts["threshold"] == balanced["threshold"]
    assert facts["evidence"] == {"min_side": 128, "min_detail": 1.0}
    assert facts["voting"] == {"votes": 10, "views": "pyramid", "weights": "detail"}


@pytest.mark.parametrize(
    "path, opened",
    [(CKPT, "Detector(sys.argv[1], say=print).models[0]"), (PARTIAL, "Localizer(sys.argv[1], say=print)")],
)
def test_the_graph_beside_it_is_of_these_weights_and_needs_no_mindspore(path, opened, tmp_path):
    """Copied to another folder, as a wheel does: nothing is made, nothing else is read."""
    for kind in ("ckpt", "json", "onnx"):
        shutil.copy(path.with_suffix(f".{kind}"), tmp_path)
    code = (
        f"import sys; from aidet import Detector, Localizer; model = {opened}\n"
        "print(model.backend_name, 'mindspore' in sys.modules, 'onnx' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / path.name], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "onnxruntime False False\n", (done.stdout, done.stderr)
    assert len(list(tmp_path.iterdir())) == 3, "no other graph was made"


def test_a_graph_of_other_weights_beside_it_is_not_used(tmp_path):
    for kind in ("json", "onnx"):
        shutil.copy(CKPT.with_suffix(f".{kind}"), tmp_path / f"x.{kind}")
    weights = ckpt.load_arrays(CKPT)
    ckpt.write_arrays({n: a * np.float16(0.5) for n, a in weights.items()}, tmp_path / "x.ckpt")
    facts = json.loads((tmp_path / "x.json").read_text())
    facts["output"]["sha256"] = files.sha256(tmp_path / "x.ckpt")
    (tmp_path / "x.json").write_text(json.dumps(facts))
    sidecar = ckpt.Sidecar.read(tmp_path / "x.ckpt")
    assert backends._intact(tmp_path / "x.onnx", backends.cache_key(sidecar, sidecar.size)) is None


@pytest.mark.parametrize("path, size", GRAPHS)
def test_the_graphs_that_come_along_are_of_their_checkpoints(path, size):
    key = backends.cache_key(ckpt.Sidecar.read(path), size)
    assert backends._intact(path.with_suffix(".onnx"), key), "run bench/golden.py"


def test_cifake_detector_says_what_it_is():
    path, _ = SHIPPED["cifake"]
    facts = ckpt.read_sidecar(path)
    assert facts["output"]["sha256"] == files.sha256(path)
    assert facts["output"]["parameters"] == 270578 and facts["input"]["size"] == [32, 32]
    assert facts["source"]["licence"] and facts["training"]["images"] == 100_000


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "mindspore"])
@pytest.mark.parametrize("name", SHIPPED)
def test_golden_scores(name, backend):
    if backend == "openvino" and runtime.version_of("openvino") is None:
        pytest.skip("pip install 'aidet[openvino]'; it has no build for Python 3.9")
    path, place = SHIPPED[name]
    check_golden(Detector(*([] if name == "default" else [path]), backend=backend), path, place, 1e-4)


def test_infer_uses_it_and_says_so(tmp_path, capsys):
    infer = importlib.import_module("infer")
    (tmp_path / "in").mkdir()
    for name in ("astronaut", "waves"):
        pictures()[name].save(tmp_path / "in" / f"{name}.png")
    assert infer.run(["--images", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    assert "aidet_default" in capsys.readouterr().err
    golden = json.loads(GOLDEN.read_text())["scores"]
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        rows = {Path(r["path"]).stem: float(r["score"]) for r in csv.DictReader(file)}
    assert rows == pytest.approx({n: golden[n] for n in rows}, abs=1e-4) and set(rows) == {"astronaut", "waves"}
