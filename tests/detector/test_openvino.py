"""OpenVINO: the scores of ONNX Runtime whatever the batch and the workers, its precisions, and when `auto` takes it."""

import json
import sys

import numpy as np
import pytest
from infer_tools import make_model
from PIL import Image

import export
import infer
from aidet import Detector, ckpt, runtime
from aidet.detector import backends, openvino_session
from aidet.errors import UserError

pytestmark = pytest.mark.skipif(
    runtime.version_of("openvino") is None, reason="pip install 'aidet[openvino]'; it has no build for Python 3.9"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A detector, and a folder of images beside it."""
    folder = tmp_path_factory.mktemp("openvino")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(24):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((50, 60), Image.Resampling.BICUBIC).save(folder / "images" / f"{i}.png")
    return make_model(folder / "a.ckpt")


@pytest.fixture
def files(model):
    return sorted((model.parent / "images").iterdir())


def with_bfloat16(monkeypatch):
    """As on a processor that has it, but OpenVINO computes in float32: a test adds an error of its own."""
    monkeypatch.setattr(openvino_session, "abilities", lambda: ["FP32", "BF16"])
    monkeypatch.setitem(openvino_session.HINTS, "bfloat16", "f32")


def scores(found):
    return [v.score for v in found]


def test_scores_are_those_of_onnx_runtime_and_of_no_other_image(model, files):
    settings = {"votes": 3, "backend": "openvino"}
    detector = Detector(model, workers=3, **settings)
    assert (detector.models[0].backend_name, detector.models[0].backend.precision) == ("openvino", "float32")
    found = scores(detector.score(files))
    plain = scores(Detector(model, votes=3, backend="onnxruntime").score(files))
    assert found == pytest.approx(plain, abs=1e-4) and len(set(found)) == len(files)
    # Equal to the bit: with one worker, in another order, and each image alone.
    one = Detector(model, workers=1, **settings)
    assert found == scores(one.score(files[::-1]))[::-1]
    assert found[:3] == [one.score(f).score for f in files[:3]]


def test_the_result_of_a_call_outlives_the_next_one(model):
    session = Detector(model, backend="openvino").models[0].backend
    x = np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32)
    first = session(x)
    kept = first.copy()
    session(-x)
    assert (first == kept).all() and first.dtype == np.float32
    assert (session(x[:, :, ::-1]) == session(np.ascontiguousarray(x[:, :, ::-1]))).all()


def test_its_telemetry_is_never_loaded():
    """openvino reports its import if it finds openvino_telemetry; its own substitute does nothing."""
    openvino_session.library()
    assert openvino_session.TELEMETRY not in sys.modules
    used = sys.modules["openvino.tools.ovc.telemetry_utils"].tm
    assert used.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_run_json_says_what_was_used(model, tmp_path):
    flags = ["--ckpt", model, "--images", model.parent / "images", "--out", tmp_path / "o", "--backend", "openvino"]
    assert infer.run([str(f) for f in (*flags, "--precision", "float32")]) == 0
    (about,) = json.loads((tmp_path / "o/run.json").read_text())["models"]
    assert (about["backend"], about["precision"]) == ("openvino", "float32")


@pytest.mark.parametrize(
    "settings, text",
    [
        (
            {"backend": "openvino", "precision": "bfloat16"},
            "needs a processor with bfloat16 .*finds FP32, INT8",
        ),
        ({"precision": "bfloat16"}, "needs a processor with bfloat16 .*; use --precision float32"),
        ({"backend": "onnxruntime", "precision": "bfloat16"}, "is for --backend openvino, not 'onnxruntime'"),
        ({"backend": "openvino", "precision": "int8"}, "is not an eight-bit model; make one with export.py"),
        ({"backend": "mindspore", "precision": "int8"}, "is not an eight-bit model"),
        ({"precision": "bf16"}, "unknown precision 'bf16'; .*bfloat16"),
    ],
    ids=str,
)
def test_a_precision_that_is_not_there_is_one_line(model, monkeypatch, settings, text):
    monkeypatch.setattr(openvino_session, "abilities", lambda: ["FP32", "INT8"])
    with pytest.raises(UserError, match=text):
        Detector(model, **settings)


def test_without_the_package_it_says_what_to_install(model, monkeypatch):
    version = runtime.version_of
    monkeypatch.setattr(runtime, "version_of", lambda name: None if name == "openvino" else version(name))
    with pytest.raises(UserError, match=r"pip install 'aidet\[openvino\]'"):
        Detector(model, backend="openvino")


def test_a_rule_and_a_file_from_elsewhere_do_not_take_it(model, tmp_path):
    with pytest.raises(UserError, match="precision .='bfloat16'. is for networks"):
        Detector("rule:size", precision="bfloat16")
    assert not export.run(["--ckpt", str(model), "--format", "onnx", "--out", str(tmp_path)])
    import onnx  # after MindSpore: the other way round their versions of protobuf clash

    plain = onnx.load(tmp_path / "a.onnx")
    del plain.metadata_props[:]
    onnx.save(plain, tmp_path / "elsewhere.onnx")
    with pytest.raises(UserError, match="from elsewhere runs on ONNX Runtime"):
        Detector(tmp_path / "elsewhere.onnx", transform="resize((32, 32))", positive=1, backend="openvino")


def test_auto_takes_it_only_where_it_was_measured_to_be_faster(model, monkeypatch):
    assert Detector(model).models[0].backend_name == "onnxruntime"
    monkeypatch.setattr(openvino_session, "_flags", lambda: ["avx2", "avx512f"])
    assert [openvino_session.is_faster(n) for n in ("clip_vit_b_16", "vit_b_16_224")] == [True, True]
    assert [openvino_session.is_faster(n) for n in ("resnet18", "efficientnet_lite0", "testing")] == [False] * 3
    monkeypatch.setattr(openvino_session, "_flags", lambda: ["avx2"])
    assert not openvino_session.is_faster("clip_vit_b_16")
    monkeypatch.setattr(openvino_session, "is_faster", lambda architecture: True)
    assert Detector(model).models[0].backend_name == "openvino"
    assert Detector(model, backend="onnxruntime").models[0].backend_name == "onnxruntime"


def test_outputs_that_differ_are_never_used(model, monkeypatch):
    every = openvino_session.OpenVino.every
    moved = lambda self, batch: {name: value + 1e-3 for name, value in every(self, batch).items()}  # noqa: E731
    monkeypatch.setattr(openvino_session.OpenVino, "every", moved)
    with pytest.raises(UserError, match="differ from ONNX Runtime's by .*; use --backend onnxruntime"):
        Detector(model, backend="openvino")
    monkeypatch.setattr(openvino_session, "is_faster", lambda architecture: True)
    said = []
    detector = Detector(model, say=said.append)
    assert detector.models[0].backend_name == "onnxruntime"
    assert len(said) == 1 and "because: OpenVINO's outputs" in said[0]


def test_a_graph_that_it_cannot_read_is_one_line():
    with pytest.raises(UserError, match="OpenVINO cannot run the graph"):
        openvino_session.OpenVino(b"no graph", {})


def test_bfloat16_is_a_first_stage_whose_margin_was_measured(model, files, tmp_path, monkeypatch):
    """Here in float32 with an error drawn for each view, because the processor of a test may not have bfloat16."""
    flags = ["--ckpt", model, "--format", "onnx", "--out", tmp_path, "--bf16", model.parent / "images"]
    monkeypatch.setattr(openvino_session, "abilities", lambda: ["FP32"])
    with pytest.raises(UserError, match="needs a processor with bfloat16"):
        export.run([str(f) for f in flags])
    assert not (tmp_path / "a_bf16.onnx").exists()
    with_bfloat16(monkeypatch)
    call = openvino_session.OpenVino.__call__

    def rough(self, batch):
        wave = np.sin(1e3 * batch.mean((1, 2, 3), dtype=np.float64))[:, None]  # of the view alone
        return call(self, batch) + (0.2 * wave * [1, -1] if self.precision == "bfloat16" else 0)

    monkeypatch.setattr(openvino_session.OpenVino, "__call__", rough)
    assert not export.run([str(f) for f in flags])
    small = tmp_path / "a_bf16.onnx"
    by_hand = Detector(small, votes=4)
    session = by_hand.models[0].backend
    assert (session.name, session.precision) == ("openvino", "bfloat16")
    about = backends.stated(session)
    assert about["precision"] == "bfloat16" and 0.3 < about["margin"] <= 1.5 * 0.4 + 1e-3
    for backend in ("onnxruntime", "openvino"):
        exact = Detector(model, votes=4, backend=backend).score(files)
        detector = Detector(model, votes=4, backend=backend, cascade=small)
        found = detector.score(files)
        assert [(v.label, v.decision) for v in found] == [(v.label, v.decision) for v in exact]
        assert 0 < detector.cascade.twice < len(files)
    # Without the mark, the file is the float32 graph that it is.
    assert Detector(small, precision="float32", backend="onnxruntime").models[0].backend.precision == "float32"
    with pytest.raises(UserError, match="is for bfloat16; use --backend openvino, or --precision float32"):
        Detector(small, backend="onnxruntime")
    with pytest.raises(UserError, match="cascade needs --precision float32"):
        Detector(model, votes=4, precision="bfloat16", cascade=small)


def test_bfloat16_of_the_processor_settles_the_decisions_of_float32(model, files, tmp_path):
    if "BF16" not in openvino_session.abilities():
        pytest.skip("this processor has no bfloat16")
    flags = ["--ckpt", model, "--format", "onnx", "--out", tmp_path, "--bf16", model.parent / "images"]
    assert not export.run([str(f) for f in flags])
    small = tmp_path / "a_bf16.onnx"
    exact = Detector(model, votes=4).score(files)
    rough = Detector(small, votes=4).score(files)
    apart = max(abs(a.score - b.score) for a, b in zip(exact, rough))
    assert 0 < apart < backends.stated(Detector(small).models[0].backend)["margin"] < 0.2
    found = Detector(model, votes=4, cascade=small).score(files)
    assert [(v.label, v.decision) for v in found] == [(v.label, v.decision) for v in exact]


def test_cached_graphs_are_shared_with_onnx_runtime(model):
    """Built from the same file: no graph of its own, nothing made anew."""
    before = sorted(model.parent.glob("a.*.onnx"))
    session = backends.open_model(ckpt.Sidecar.read(model), "openvino", (32, 32), say=print)
    assert sorted(model.parent.glob("a.*.onnx")) == before and len(before) == 1
    assert session.metadata()["aidet.key"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_file_with_a_fixed_batch_takes_any_number_of_views(model, tmp_path, photo, backend):
    assert not export.run(["--ckpt", str(model), "--format", "onnx", "--out", str(tmp_path), "--batch", "3"])
    fixed, free = (Detector(p, votes=4, backend=backend, workers=1) for p in (tmp_path / f"{model.stem}.onnx", model))
    assert fixed.models[0].backend.rows == 3 and free.models[0].backend.rows is None
    for views in ({"votes": 1}, {"votes": 4}, {"votes": 9}):
        fixed, free = (Detector(p, backend=backend, **views) for p in (tmp_path / f"{model.stem}.onnx", model))
        assert fixed.score(photo(1)).score == pytest.approx(free.score(photo(1)).score, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"device": "cuda"}, "unknown device 'cuda'"),
        (
            {"device": "GPU", "backend": "onnxruntime"},
            "device 'GPU' runs a .ckpt on MindSpore, but onnxruntime runs on the CPU",
        ),
        ({"device": "Ascend", "precision": "bfloat16"}, "openvino runs on the CPU"),
    ],
    ids=str,
)
def test_a_device_without_effect_is_refused(model, settings, text):
    for path in (model, "rule:size") if "precision" not in settings else (model,):
        with pytest.raises(UserError, match=text):
            Detector(path, **settings)
