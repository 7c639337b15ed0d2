"""Exports: loaded again and equal, batch dimension free, served without MindSpore, refusals that name the layer."""

import collections
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import nn, ops
from mindspore.train.mind_ir_pb2 import ModelProto
from onnx import TensorProto, helper, numpy_helper

import export
from aidet import Detector, ckpt, models, runtime
from aidet.datasets.sources import Inputs
from aidet.detector import int8
from aidet.errors import UserError
from aidet.export import exporter, onnx_graph
from aidet.images import Pipeline

LINES = {"size": 32, "channels": 3, "transform": "decode | resize(40) | center_crop(32) | normalize(imagenet)"}


def make_model(path, architecture="testing", order=("real", "generated"), **facts):
    runtime.setup(seed=3)
    arguments = {"num_classes": len(order)}
    net = models.create(architecture, **arguments)
    arrays = {p.name: p.asnumpy() for p in net.get_parameters()}
    rng = np.random.default_rng(0)
    arrays["classifier.weight"] = rng.normal(0, 3, arrays["classifier.weight"].shape).astype(np.float32)
    sidecar = {"architecture": architecture, "arguments": arguments, "num_outputs": len(order), "classes": list(order)}
    ckpt.save(arrays, path, {**sidecar, "class_order": list(order), "input": LINES, **facts})
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("export") / "a.ckpt")


def call(*argv):
    return export.run([str(a) for a in argv]) or 0


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_onnx_takes_any_batch_and_carries_its_facts(model, tmp_path, capsys):
    assert call("--ckpt", model, "--format", "onnx", "--out", tmp_path) == 0
    assert "loaded again" in capsys.readouterr().out
    net, run = ckpt.load_model(model), session(tmp_path / "a.onnx")
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 16):
        x = rng.standard_normal((n, 3, 32, 32)).astype(np.float32)
        assert np.abs(run.run(None, {"image": x})[0] - net(ms.Tensor(x)).asnumpy()).max() <= 1e-5
    metadata = run.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["aidet.class_order"]) == ["real", "generated"]
    assert metadata["aidet.transform"] == LINES["transform"] and metadata["aidet.opset"] == "11"
    verdict = json.loads((tmp_path / "a.onnx.json").read_text())
    assert verdict["difference"] <= verdict["tolerance"] == 1e-5 and verdict["batches"] == [1, 5]
    assert verdict["checkpoint_sha256"] == ckpt.read_sidecar(model)["output"]["sha256"]


def test_fixed_batch(model, tmp_path):
    assert call("--ckpt", model, "--format", "onnx", "--out", tmp_path, "--batch", 3) == 0
    run = session(tmp_path / "a.onnx")
    assert run.get_inputs()[0].shape == [3, 3, 32, 32]
    with pytest.raises(Exception, match="Got: 2 Expected: 3"):
        run.run(None, {"image": np.zeros((2, 3, 32, 32), np.float32)})


@pytest.mark.parametrize("batch", ["dynamic", 2])
def test_mindir_reloads_without_any_difference(model, tmp_path, batch):
    assert call("--ckpt", model, "--format", "mindir", "--out", tmp_path, "--batch", batch) == 0
    graph, net = nn.GraphCell(ms.load(str(tmp_path / "a.mindir"))), ckpt.load_model(model)
    x = ms.Tensor(np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32))
    assert np.array_equal(graph(x).asnumpy(), net(x).asnumpy())
    assert json.loads((tmp_path / "a.mindir.json").read_text())["difference"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mindir", "a.mindir.json"]


def test_a_network_whose_weights_mindspore_writes_apart_is_one_file_and_one_folder(model, tmp_path, monkeypatch):
    """MindSpore does so above 1 GB (CLIP's ViT-L/14 has 1.2); here, above nothing."""
    monkeypatch.setattr("mindspore.train.serialization.TOTAL_SAVE", 0)
    assert call("--ckpt", model, "--format", "mindir", "--out", tmp_path / "one") == 0
    (tmp_path / "one").rename(tmp_path / "two")  # to be found beside the file, wherever that is
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["a.mindir", "a.mindir.json", "a_variables"]
    verdict = json.loads((tmp_path / "two" / "a.mindir.json").read_text())
    assert verdict["variables"] == "a_variables" and verdict["difference"] == 0
    graph, net = nn.GraphCell(ms.load(str(tmp_path / "two" / "a.mindir"))), ckpt.load_model(model)
    x = ms.Tensor(np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32))
    assert np.array_equal(graph(x).asnumpy(), net(x).asnumpy())
    monkeypatch.undo()
    assert call("--ckpt", model, "--format", "mindir", "--out", tmp_path / "two") == 0
    assert not (tmp_path / "two" / "a_variables").exists(), "of the file that was replaced"


ORDERS = [("real", "generated"), ("generated", "real"), ("real", "generated", "generated"), ("generated",), ("real",)]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_preprocessing_in_the_graph_gives_the_detectors_score(tmp_path, photo, order):
    path = make_model(tmp_path / "m.ckpt", order=order, calibration={"scale": 0.5, "offset": 0.25})
    assert call("--ckpt", path, "--format", "onnx", "--out", tmp_path, "--preprocess-in-graph") == 0
    run = session(tmp_path / "m_uint8.onnx")
    detector = Detector(path)
    images = [photo(i, (70, 60)) for i in range(3)]
    geometry = json.loads((tmp_path / "m_uint8.onnx.json").read_text())["geometry"]
    assert geometry == "decode | resize(40) | center_crop(32)"
    pipeline = Pipeline(geometry)
    pixels = np.stack([np.rint(pipeline(i) * 255).astype(np.uint8).transpose(1, 2, 0) for i in images])
    scores = run.run(None, {"image": pixels})[0]
    assert scores == pytest.approx([r.score for r in detector.score(images)], abs=1e-4)
    with pytest.raises(UserError, match="has its preprocessing inside"):
        Detector(tmp_path / "m_uint8.onnx")


def test_served_without_mindspore(model, tmp_path, photo, run):
    """The ONNX file alone, in a process where importing MindSpore is an error, gives the checkpoint's result."""
    assert call("--ckpt", model, "--format", "onnx", "--out", tmp_path) == 0
    (tmp_path / "in").mkdir()
    for i in range(3):
        photo(i).save(tmp_path / "in" / f"{i}.png")
    code = (
        "import sys, runpy; sys.modules['mindspore'] = sys.modules['mindcv'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script = Path(export.__file__).with_name("infer.py")
    flags = ["--images", tmp_path / "in", "--out", tmp_path / "o", "--votes", 3]
    done = run("-c", code, script, "--ckpt", tmp_path / "a.onnx", *flags)
    assert done.returncode == 0, done.stderr
    expected = Detector(model, votes=3).score([tmp_path / "in" / f"{i}.png" for i in range(3)], root=tmp_path / "in")
    rows = (tmp_path / "o" / "scores.csv").read_text().splitlines()[1:]
    assert [float(r.split(",")[1]) for r in rows] == pytest.approx([r.score for r in expected], abs=1e-6)


# Stands for mindspore_lite: gives the golden output back, moved by a part of the largest value.
LITE = """
import numpy as np, os, sys
MOVED = float(os.environ["MOVED"])
class ModelType: MINDIR = 0
class Context: target = None
class Tensor:
    def __init__(self, shape, name="", data=None): self.shape, self.name, self.data = shape, name, data
    def set_data_from_numpy(self, x):
        assert list(x.shape) == list(self.shape), (x.shape, self.shape)
        self.data = x
    def get_data_to_numpy(self): return self.data
class Model:
    def build_from_file(self, path, kind, context):
        assert path == "a_ascend.mindir" and context.target == ["ascend"]
        self.inputs = [Tensor([-1, 3, 32, 32])]
    def get_inputs(self): return self.inputs
    def resize(self, inputs, shapes): self.inputs = [Tensor(shapes[0])]
    def predict(self, inputs):
        end = "_aipp" if inputs[0].data.dtype == np.uint8 else ""
        assert inputs[0].data.tobytes() == open("input" + end + ".bin", "rb").read()
        y = np.fromfile("output" + end + ".bin", np.float32).reshape(-1, 2)
        return [Tensor(y.shape, "out:0", y + np.float32(MOVED * abs(y).max()))]
"""


@pytest.mark.parametrize("batch", ["dynamic", 2])
def test_lite_files(model, tmp_path, batch):
    flags = ["--ckpt", model, "--format", "mindir", "--out", tmp_path, "--emit-lite"]
    assert call(*flags, "--batch", batch) == 0
    folder, n = tmp_path / "a.lite", 1 if batch == "dynamic" else batch
    net = ckpt.load_model(model)
    x = np.fromfile(folder / "input.bin", np.float32).reshape(n, 3, 32, 32)
    y = np.fromfile(folder / "output.bin", np.float32).reshape(n, 2)
    assert np.array_equal(net(ms.Tensor(x)).asnumpy(), y)
    # The converter finds the input by its name in the MindIR, which is the parameter's of construct.
    name = json.loads((tmp_path / "a.mindir.json").read_text())["input"]["name"]
    graph = ModelProto()
    graph.ParseFromString((tmp_path / "a.mindir").read_bytes())
    assert name and [i.name.split(":")[1] for i in graph.graph.input] == [name]
    first = -1 if batch == "dynamic" else batch
    assert f"input_shape={name}:[{first},3,32,32]" in (folder / "converter.ini").read_text()
    assert f"--inputShapes={name}:{n},3,32,32 " in (folder / "commands.sh").read_text()
    # AIPP computes (x - min) * var_reci; at grey 0 and 255 that is what normalize gives.
    values = dict(line.strip().split(": ") for line in (folder / "aipp.cfg").read_text().splitlines() if ": " in line)
    low, factor = (np.array([float(values[f"{k}_chn_{i}"]) for i in range(3)]) for k in ("min", "var_reci"))
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    assert (0 - low) * factor == pytest.approx(-mean / std, abs=1e-5)
    assert (255 - low) * factor == pytest.approx((1 - mean) / std, abs=1e-5)
    pixels = np.fromfile(folder / "input_aipp.bin", np.uint8).reshape(n, 32, 32, 3)
    made = ((pixels - low) * factor).astype(np.float32).transpose(0, 3, 1, 2)
    wanted = np.fromfile(folder / "output_aipp.bin", np.float32).reshape(n, 2)
    assert net(ms.Tensor(np.ascontiguousarray(made))).asnumpy() == pytest.approx(wanted, abs=1e-4)

    (tmp_path / "mindspore_lite.py").write_text(LITE)
    for end, moved, code in (("", 0.001, 0), ("", 0.1, 1), ("_aipp", 0.001, 0)):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MOVED": str(moved)}
        command = [sys.executable, "check.py", *([end] if end else [])]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        head, numbers = (folder / "golden.txt").read_text().split("\n")  # no line after the last: the tool reads on
        assert head == f"out:0 2 {n} 2"
        assert np.array(numbers.split(), np.float32) == pytest.approx(np.fromfile(folder / f"output{end}.bin", "f4"))


def test_lite_files_of_a_graph_with_its_preprocessing(model, tmp_path):
    flags = ["--ckpt", model, "--format", "mindir", "--out", tmp_path, "--emit-lite", "--preprocess-in-graph"]
    assert call(*flags, "--batch", 2) == 0
    folder = tmp_path / "a_uint8.lite"
    assert sorted(p.name for p in folder.iterdir()) == [
        "check.py", "commands.sh", "converter.ini", "input.bin", "output.bin"
    ]  # fmt: skip
    assert (folder / "input.bin").stat().st_size == 2 * 32 * 32 * 3 and (folder / "output.bin").stat().st_size == 8
    assert "KIND = {'': 'uint8'" in (folder / "check.py").read_text()
    assert "aipp" not in (folder / "commands.sh").read_text(), "there is no aipp.cfg"


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--format", "onx"], "did you mean 'onnx'"),
        (["--format", "air"], "use converter_lite"),
        (["--format", "onnx", "--batch", "0"], r"batch \(=0\)"),
        (["--format", "onnx", "--batch", "some"], r"batch \(='some'\)"),
        (["--format", "onnx", "--emit-lite"], "goes with --format mindir"),
        (["--format", "onnx", "--bacth", "3"], "did you mean '--batch'"),
        (["--format", "onnx", "--batch", "\u00b2"], "must be a whole number"),
        (["--format", "onnx", "--labels", "l.csv"], "goes with --int8"),
        (["--format", "onnx", "--ckpt", "b.ckpt"], "'b.ckpt': one checkpoint is exported at a time"),
    ],
)
def test_wrong_options(model, tmp_path, flags, text):
    with pytest.raises(UserError, match=text):
        call("--ckpt", model, "--out", tmp_path / "o", *flags)
    assert not (tmp_path / "o").exists()


def test_refusals(model, tmp_path):
    path = make_model(tmp_path / "hp.ckpt", input={**LINES, "transform": "center_crop(32) | high_pass(3)"})
    with pytest.raises(UserError, match="no map of single pixels"):
        call("--ckpt", path, "--format", "onnx", "--out", tmp_path / "o", "--preprocess-in-graph")
    path = make_model(tmp_path / "free.ckpt", input={**LINES, "transform": "normalize(half)"})
    with pytest.raises(UserError, match="images of any size"):
        call("--ckpt", path, "--format", "onnx", "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


class Inner(nn.Cell):
    """A layer with an operator that MindSpore's ONNX exporter does not know."""

    def construct(self, x):
        return ops.erfinv(ops.tanh(x)) if x.ndim == 4 else x


def facts_of(architecture):
    """A minimal sidecar."""
    return ckpt.Sidecar({"architecture": architecture}, "x.ckpt")


class Outer(nn.Cell):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.block = nn.SequentialCell(nn.ReLU(), Inner())

    def construct(self, x):
        return self.block(self.first(x)).mean((2, 3))


def test_an_operator_that_cannot_be_exported_is_named_with_its_layer():
    runtime.setup()
    net = Outer()
    sample = onnx_graph.pixels((8, 8))
    with pytest.raises(onnx_graph.ExportError, match="Erfinv"):
        onnx_graph.export(net, facts_of("x"), sample)
    assert exporter.find_layer(net, sample(2)) == "block.1 (Inner)"


class Residual(nn.Cell):
    """Parts of published networks that the exporter does not support: exact GELU, h-swish, ``+=``, padded pooling."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.acts = nn.SequentialCell(nn.GELU(approximate=False), nn.HSwish())
        self.gate = nn.HSigmoid()
        self.pool = nn.MaxPool2d(3, 2, pad_mode="pad", padding=1)

    def construct(self, x):
        out = self.acts(self.conv(x))
        out += x
        return self.pool(out * self.gate(out)).mean((2, 3))


class FirstToken(nn.Cell):
    """Ends in an indexing, as a tower without a head does."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Dense(12, 5)

    def construct(self, x):
        return self.fc(x.reshape((-1, 3, 12)))[:, 0]


def test_a_network_may_end_in_an_indexing():
    runtime.setup(seed=1)
    model, verdict = onnx_graph.export(FirstToken(), facts_of("x"), onnx_graph.pixels((3, 4)))
    assert verdict["difference"] <= 1e-5 and [o.name for o in model.graph.output] == [onnx_graph.OUTPUT]


class Attends(nn.Cell):
    """LayerNorm, exact GELU, and a sum of squares that is no variance."""

    def __init__(self):
        super().__init__()
        self.norm, self.act, self.fc = nn.LayerNorm((12,), epsilon=1e-5), nn.GELU(approximate=False), nn.Dense(12, 3)

    def construct(self, x):
        x = self.act(self.norm(x.reshape((-1, 3, 12))))
        size = (x * x).sum(-1, keepdims=True)
        return self.fc(x / (size / 7.0 + 1.0)).mean(1)


def test_onnx_runtime_recognises_layernorm_and_gelu(tmp_path):
    """In their one-pass form they take a fraction of the time; a sum over another count than the axis stays a sum."""
    runtime.setup(seed=1)
    model, verdict = onnx_graph.export(Attends(), facts_of("x"), onnx_graph.pixels((3, 4)))
    assert verdict["difference"] <= 1e-5
    options = onnx_graph.session_options()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, onnx_graph.PROVIDERS)
    kinds = [n.op_type for n in onnx.load(tmp_path / "run.onnx").graph.node]
    assert {"LayerNormalization", "Gelu"} <= set(kinds)
    assert not {"Sqrt", "Erf"} & set(kinds)


@pytest.mark.parametrize("size", [(8, 8), (9, 12)], ids=str)
def test_gelu_h_swish_in_place_sums_and_padded_pools_are_exported_and_the_network_stays_as_it_was(size):
    runtime.setup(seed=1)
    net = Residual()
    construct, cells = Residual.construct, list(net.acts.cell_list)
    model, verdict = onnx_graph.export(net, facts_of("x"), onnx_graph.pixels(size))
    assert verdict["difference"] <= 1e-5
    kinds = [n.op_type for n in model.graph.node]
    assert "Erf" in kinds and "Acos" not in kinds
    assert Residual.construct is construct and list(net.acts.cell_list) == cells
    assert isinstance(net.acts[0], nn.GELU) and isinstance(net.gate, nn.HSigmoid)


def test_int8_is_calibrated_compared_and_served(model, tmp_path, photo, capsys, monkeypatch):
    listed = []
    monkeypatch.setattr(int8, "Inputs", lambda where: listed.append(where) or Inputs(where))
    for side in ("real", "fake"):
        (tmp_path / "set" / side).mkdir(parents=True)
        for i in range(12):
            photo(i + 50 * (side == "fake"), (60, 50)).save(tmp_path / "set" / side / f"{side}{i}.png")
    flags = ["--ckpt", model, "--format", "onnx", "--out", tmp_path]
    assert call(*flags, "--int8", tmp_path / "set", "--labels", tmp_path / "set") == 0
    said = capsys.readouterr().out
    assert listed == [str(tmp_path / "set")], "the images are listed once"
    assert "on 12 images kept out of calibration" in said and "balanced accuracy" in said
    assert "for infer.py --cascade: margin of a view's score" in said
    files = sorted((tmp_path / "set").glob("*/*.png"))
    exact, small = (Detector(tmp_path / f"a{end}.onnx").score(files) for end in ("", "_int8"))
    change = np.array([a.score - b.score for a, b in zip(exact, small)])
    assert 0 < np.abs(change).max() < 0.2 * np.ptp([r.score for r in exact]) + 0.2
    kinds = {n.op_type for n in onnx.load(tmp_path / "a_int8.onnx").graph.node}
    assert "QuantizeLinear" in kinds
    with pytest.raises(UserError, match="--int8 goes with --format onnx"):
        call(*flags, "--int8", tmp_path / "set", "--batch", "2")
    with pytest.raises(UserError, match="at least 16"):
        call(*flags, "--int8", files[0])
    (tmp_path / "l.csv").write_text("path,label\nreal/real0.png,0\nfake/fake0.png,1\n")
    made = (tmp_path / "a_int8.onnx").read_bytes()
    with pytest.raises(UserError, match="no label for"):
        call(*flags, "--int8", tmp_path / "set", "--labels", tmp_path / "l.csv")
    assert (tmp_path / "a_int8.onnx").read_bytes() == made and not list(tmp_path.glob("*.partial*"))
    elsewhere = [*flags[:-1], tmp_path / "new"]
    for wrong in (["--int8", tmp_path / "none"], ["--int8", tmp_path / "set", "--labels", tmp_path / "none.csv"]):
        with pytest.raises(UserError, match="does not exist"):
            call(*elsewhere, *wrong)
    with pytest.raises(UserError, match="at least 8"):
        call(*elsewhere, "--bf16", files[0])
    assert not (tmp_path / "new").exists(), "what is wrong is said before anything is written"
    assert call(*elsewhere, "--int8", tmp_path / "set", "--opset", "17") == 0
    assert [onnx.load(tmp_path / "new" / f"a{end}.onnx").opset_import[0].version for end in ("", "_int8")] == [17, 17]


def test_a_model_without_other_views_is_calibrated_on_its_own(tmp_path, photo):
    line = "decode | two_sizes(32, bicubic, 24, bilinear) | normalize(half)"
    path = make_model(tmp_path / "z.ckpt", input={"transform": line, "channels": 3})
    (tmp_path / "set").mkdir()
    for i in range(16):
        photo(i, (60, 50)).save(tmp_path / "set" / f"{i}.png")
    assert call("--ckpt", path, "--format", "onnx", "--out", tmp_path, "--int8", tmp_path / "set") == 0
    assert Detector(path, cascade=tmp_path / "z_int8.onnx").score(photo(99)).ok


# --- freeing the batch dimension, on graphs made by hand -------------------------------------------------------------
def graph(nodes, constants, n, out):
    value = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [value("x", TensorProto.FLOAT, [n, 4])],
            [value("y", TensorProto.FLOAT, out)],
            [numpy_helper.from_array(a, name) for name, a in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 11)],
        ir_version=6,
    )


def freed(build):
    free = onnx_graph.free_batch(build(2), build(3), (2, 3))
    run = onnxruntime.InferenceSession(free.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda x: run.run(None, {"image": x})[0]


def test_a_shape_with_the_batch_in_it():
    """(N, 4) -> (2N, 2): a window partition bakes a multiple of the batch size into a Reshape."""

    def build(n):
        node = helper.make_node("Reshape", ["x", "s"], ["y"])
        return graph([node], {"s": np.array([2 * n, 2], np.int64)}, n, [2 * n, 2])

    run = freed(build)
    for n in (1, 5):
        x = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
        assert np.array_equal(run(x), x.reshape(2 * n, 2))


def test_a_shape_for_expand_and_a_repeated_tensor():
    def build(n):
        nodes = [
            helper.make_node("Expand", ["row", "s"], ["e"]),
            helper.make_node("Add", ["x", "e"], ["a"]),
            helper.make_node("Concat", ["a", "token"], ["y"], axis=1),
        ]
        token = np.tile(np.array([[7.0]], np.float32), (n, 1))
        constants = {"row": np.ones((1, 4), np.float32), "s": np.array([n, 4], np.int64), "token": token}
        return graph(nodes, constants, n, [n, 5])

    run = freed(build)
    for n in (1, 4):
        out = run(np.zeros((n, 4), np.float32))
        assert out.tolist() == [[1, 1, 1, 1, 7]] * n


def test_what_cannot_be_freed_is_refused():
    def build(n):
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        return graph([node], {"w": np.full((4, 2), n, np.float32)}, n, [n, 2])

    with pytest.raises(onnx_graph.ExportError, match="constant w of shape"):
        freed(build)

    def grows(n):
        nodes = [helper.make_node("Relu", ["x" if i == 0 else f"r{i}"], [f"r{i + 1}"]) for i in range(n)]
        return graph([*nodes, helper.make_node("Relu", [f"r{n}"], ["y"])], {}, n, [n, 4])

    with pytest.raises(onnx_graph.ExportError, match="graph itself depends"):
        freed(grows)


@pytest.mark.parametrize("padding", [(0, 1, 0, 1), (1, 1, 2, 2), (0, 1, 2, 3)])
def test_paddings_that_differ_from_side_to_side(padding):
    net = nn.SequentialCell([nn.Conv2d(3, 2, 3, 2, pad_mode="pad", padding=padding), nn.Flatten()])
    sample = onnx_graph.pixels((9, 12))
    _, verdict = onnx_graph.export(net, facts_of("padded"), sample)
    assert verdict["difference"] <= 1e-5


def test_a_network_that_gives_no_numbers_is_refused(model):
    """A NaN compared with a NaN would be a difference of 0, and a weight that depends on the batch size."""
    net, sidecar = ckpt.load_model(model), ckpt.Sidecar.read(model)
    net.classifier.bias.set_data(ms.Tensor(np.array([np.nan, 0], np.float32)))
    with pytest.raises(onnx_graph.ExportError, match="not finite"):
        onnx_graph.export(net, sidecar, onnx_graph.pixels((32, 32)))


def test_a_wrong_graph_is_not_called_verified(model):
    net = ckpt.load_model(model)
    sample = onnx_graph.pixels((32, 32))
    good, verdict = onnx_graph.export(net, facts_of("testing"), sample)
    assert 0 <= verdict["difference"] <= 1e-5
    for tensor in good.graph.initializer:
        if tensor.name == "classifier.bias":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(1e-3), tensor.name))
    with pytest.raises(onnx_graph.ExportError, match="differs from MindSpore by 0.001"):
        onnx_graph.compare(onnx_graph.reference(net, sample, (2,)), good, sample)
    onnx.checker.check_model(good)


def test_the_table_has_a_row_for_every_family_of_the_project():
    """results/export.csv is made by bench/export.py; a new family needs a row, each row its verdict.

    A size without a row is named on the page.
    """
    table = Path(export.__file__).with_name("results") / "export.csv"
    with open(table, encoding="utf-8", newline="") as file:
        rows = {row["architecture"]: row for row in csv.DictReader(file)}
    sizes = collections.defaultdict(set)
    for name in models.names(own_only=True):
        sizes[models._REGISTRY[name].__module__].add(name)
    assert [family for family, names in sizes.items() if not names & set(rows)] == []
    page = (table.parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    named = re.search(r"Not exported yet, but of families with a row above: (.*)\.", page)
    without = set(models.names(own_only=True)) - set(rows)
    assert without <= set(named.group(1).split(", ") if named else ())
    # The largest one needs more memory than the machine that measured had.
    lost = {name for name, row in rows.items() if row["onnx"].startswith("not measured: the process was ended")}
    assert lost <= {"dinov2_vit_g_14"}
    rows = {name: row for name, row in rows.items() if name not in lost}
    # Three of MindCV's networks use operators that MindSpore's ONNX exporter does not have; ours of that kind do not.
    refused = {n: r.pop("onnx") for n, r in rows.items() if r["onnx"] != "free batch"}
    assert set(refused) == {"swinv2_tiny_window8", "convnextv2_tiny", "vit_b_32_224"} - set(models.names(own_only=True))
    assert all(reason.endswith("operator is not yet supported.") for reason in refused.values())
    assert {n: r["mindir_difference"] for n, r in rows.items() if r["mindir_difference"] != "0"} == {}
    assert max(float(r["onnx_difference"]) for n, r in rows.items() if n not in refused) <= 1e-5


COMMON = "resnet18 resnext50_32x4d efficientnet_b0 mobilenet_v2_100 densenet121 swin_tiny convnext_tiny vit_b_16_224"


@pytest.mark.matrix
@pytest.mark.parametrize("name", COMMON.split())
def test_common_architectures_export(name):
    runtime.setup()
    net = models.create(name, num_classes=2)
    _, verdict = onnx_graph.export(net, facts_of(name), onnx_graph.pixels((224, 224)))
    assert verdict["relative"] <= 1e-5
