"""ONNX files that this project did not export, as detectors."""

import numpy as np
import pytest
from infer_tools import make_model
from PIL import Image

from aidet import Detector
from aidet.errors import UserError

LINE = "resize((8, 8)) | to_float"
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(3, 2)).astype(np.float32)
IMAGES = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(3)]


def made(folder, outputs=2, tail=None, shape=("N", 3, 8, 8), last=False, name="x", weights=None):
    import mindspore  # noqa: F401 - before onnx, or it cannot be imported any more in this process
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, x = [], "input"
    if last:
        nodes, x = [helper.make_node("Transpose", ["input"], ["t"], perm=[0, 3, 1, 2])], "t"
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y" if tail else "out"]),
    ]
    if tail:
        nodes.append(helper.make_node(tail, ["y"], ["out"]))
    weights = WEIGHTS[:, :outputs] if weights is None else weights
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, (shape[0], outputs))],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    path = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def scores(path, **options):
    return [r.score for r in Detector(path, transform=LINE, **options).score(IMAGES)]


def wanted():
    means = np.stack([np.asarray(i, np.float64).mean((0, 1)) / 255 for i in IMAGES])
    return means @ WEIGHTS


def test_every_form_gives_the_score_of_the_formula(tmp_path):
    y = wanted()
    for options in ({}, {"tail": "Softmax"}, {"shape": ("N", 8, 8, 3), "last": True}, {"shape": (2, 3, 8, 8)}):
        path = made(tmp_path, **options)
        np.testing.assert_allclose(scores(path, positive=1), y[:, 1] - y[:, 0], atol=1e-5, err_msg=str(options))
        np.testing.assert_allclose(scores(path, positive="0"), y[:, 0] - y[:, 1], atol=1e-5)
    for tail in (None, "Sigmoid"):
        path = made(tmp_path, outputs=1, tail=tail)
        np.testing.assert_allclose(scores(path, positive=0), y[:, 0], atol=1e-5)
        np.testing.assert_allclose(scores(path, real=0), -y[:, 0], atol=1e-5)


def test_what_is_missing_is_said(tmp_path):
    path = made(tmp_path)
    with pytest.raises(
        UserError, match=r"not exported by this project.*input tensor\(float\).*--transform LINE and --pos"
    ):
        Detector(path)
    with pytest.raises(UserError, match="needs --positive INDEX or --real INDEX"):
        Detector(path, transform=LINE)
    with pytest.raises(UserError, match="not exported by this project"):
        Detector(path, positive=1)
    with pytest.raises(UserError, match="--positive 2 is neither one of the classes .* nor an index below 2"):
        Detector(path, transform=LINE, positive=2)
    with pytest.raises(UserError, match="--positive 1 is neither one of the classes .* nor an index below 1"):
        Detector(made(tmp_path, outputs=1, name="one"), transform=LINE, positive=1)
    for other in ({"backend": "mindspore"}, {"backend": "openvino"}, {"device": "Ascend"}, {"precision": "float32"}):
        with pytest.raises(UserError, match="runs on ONNX Runtime on the CPU, as it is; leave out --backend, --device"):
            Detector(path, transform=LINE, positive=1, **other)
    with pytest.raises(UserError, match="wanted one input of floats"):
        Detector(made(tmp_path, shape=("N", 4, 8, 8), weights=np.ones((4, 2), np.float32)), transform=LINE, positive=1)
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="cannot be run by ONNX Runtime"):
        Detector(damaged, transform=LINE, positive=1)
    with pytest.raises(UserError, match="--transform is for ONNX files from elsewhere"):
        Detector(tmp_path / "a.ckpt", transform=LINE)


def test_a_file_of_this_project_keeps_what_it_states_beside_one_from_elsewhere(tmp_path):
    """--transform, --positive and --real are for the other."""
    from aidet.export import exporter

    make_model(tmp_path / "a.ckpt", calibration={"scale": 0.5, "offset": 0.3})
    exporter.export(tmp_path / "a.ckpt", "onnx", tmp_path)
    import onnx  # after MindSpore: the other way round their versions of protobuf clash

    plain = onnx.load(tmp_path / "a.onnx")
    del plain.metadata_props[:]
    onnx.save(plain, tmp_path / "elsewhere.onnx")
    line = Detector(tmp_path / "a.onnx").models[0].views.first.text
    both = Detector(tmp_path / "a.onnx", tmp_path / "elsewhere.onnx", transform=line, positive="0")
    own, other = both.models
    assert (own.order, own.calibrate(1.3)) == (["real", "generated"], pytest.approx(0.5))
    assert other.order == ["generated", "real"]
    with pytest.raises(UserError, match="a checkpoint's sidecar has its own"):
        Detector(tmp_path / "a.onnx", transform=line)


def test_what_the_graph_cannot_take_is_one_line(tmp_path):
    path = made(tmp_path)
    for line, said in (("resize((16, 16)) | to_float", "gives 16 x 16"), ("to_float", "images of any size")):
        with pytest.raises(UserError, match=f"takes 8 x 8 pixels, --transform .* {said}|{said}"):
            Detector(path, transform=line, positive=1)
    for option, said in (
        ({"backend": "mindspore"}, "runs on ONNX Runtime on the CPU, as it is"),
        ({"backend": "banana"}, "unknown backend 'banana'"),
        ({"device": "banana"}, "unknown device 'banana'"),
    ):
        with pytest.raises(UserError, match=said):
            Detector(path, transform=LINE, positive=1, **option)
