"""The source's own ONNX graph under ONNX Runtime, as the reference of a conversion from ``.onnx``.

A quantised graph rounds its activations at every layer, so it is no measure of whether the weights arrived. It is
therefore rewritten first: the same graph in float32, with dequantised weights and without any rounding of activations.
How far the graph as it was differs from that is reported beside it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from aidet import runtime
from aidet.ckpt import Sidecar
from aidet.errors import UserError, first_line

from .. import onnx_graph
from ..plan import Plan
from ..reading import Source
from . import compare, torch_reference

if TYPE_CHECKING:
    import onnx

# Quantised operator -> (operator in float32, its inputs by index; the weight and the bias are dequantised).
_FLOAT: Dict[str, Tuple[str, Tuple[int, ...]]] = {
    "MatMulInteger": ("MatMul", (0, 1)),
    "ConvInteger": ("Conv", (0, 1)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "QLinearMatMul": ("MatMul", (0, 3)),
    "QLinearConv": ("Conv", (0, 3, 8)),
    "QGemm": ("Gemm", (0, 3, 6)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
}
_BIAS = {"MatMulIntegerToFloat": 6, "DynamicQuantizeMatMul": 4}
# Where an operator keeps the zero point of its result.
_RESULT_ZERO = {
    "QuantizeLinear": 2,
    "QLinearMatMul": 7,
    "QLinearConv": 7,
    "QGemm": 8,
    "QLinearAdd": 7,
    "QLinearMul": 7,
}
_HALF, _SINGLE = 10, 1  # TensorProto.FLOAT16, FLOAT


def float_model(path: Path) -> "onnx.ModelProto":
    """The graph of an ONNX file in float32, with dequantised weights and no rounding of activations.

    Parameters
    ----------
    path : Path

    Returns
    -------
    onnx.ModelProto
        Without external data. A rounding to unsigned integers that starts at zero is kept as a ReLU, because the
        quantiser removes the ReLU before it.

    Raises
    ------
    UserError
        The file is damaged, or has a quantised operator that is not known here.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx_graph.load(path)
    graph = onnx_graph.Graph(model, path)
    nodes: List[Any] = []
    constants: Dict[str, np.ndarray] = {}
    for node in model.graph.node:
        nodes.extend(_float_nodes(node, graph, constants))
    kept = []
    for tensor in model.graph.initializer:
        if tensor.name in constants:
            continue
        value = graph.values[tensor.name]
        if value.dtype == "float16" or tensor.data_location == onnx.TensorProto.EXTERNAL or _is_bfloat(tensor):
            array = value.array()
            constants[tensor.name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        else:
            kept.append(tensor)
    kept += [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in constants.items()]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == _HALF:
            value.type.tensor_type.elem_type = _SINGLE
    return model


def _is_bfloat(tensor):
    return tensor.data_type == 16


def _float_nodes(node, graph, constants):
    """The nodes in float32 that replace one node; dequantised weights go into ``constants``."""
    from onnx import helper, numpy_helper

    operand = onnx_graph.operand
    if node.op_type == "DynamicQuantizeLinear":
        constants[node.output[1]] = np.ones((), np.float32)  # integers' scale: there are no integers any more
        return [helper.make_node("Identity", [node.input[0]], [node.output[0]])]
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        if node.input[0] in graph.values:
            constants[node.output[0]] = graph.values[node.input[0]].array().astype(np.float32)
            return []
        return [helper.make_node(_clip(node, graph), [node.input[0]], [node.output[0]])]
    if node.op_type in _FLOAT:
        kind, inputs = _FLOAT[node.op_type]
        names = []
        for name in (operand(node, i) for i in inputs):
            if name in graph.quantised:
                constants[name + "_float"] = graph.values[name].array().astype(np.float32)
                name += "_float"
            names += [name] if name else []
        if node.op_type.endswith("Integer"):
            scale = graph.scale_of(node)
            constants[scale] = np.ones_like(graph.values[scale].array(), np.float32)
        return _renamed(node, kind, names, _clip(node, graph), operand(node, _BIAS.get(node.op_type)))
    if node.domain == "com.microsoft" and node.op_type.startswith(("Q", "Dyn", "MatMulI")):
        raise UserError(f"{graph.path}: its operator {node.op_type} cannot be run in float32")
    if node.op_type == "Cast" and onnx_graph.attribute(node, "to") == _HALF:
        return [helper.make_node("Cast", list(node.input), list(node.output), to=_SINGLE)]
    for item in node.attribute:
        if item.name == "value" and item.t.data_type == _HALF:
            item.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item.t).astype(np.float32)))
    return [node]


def _renamed(node, kind, names, after, bias):
    from onnx import helper

    keep = {a.name: onnx_graph.attribute(node, a.name) for a in node.attribute} if kind in ("Conv", "Gemm") else {}
    steps = [kind] + (["Add"] if bias else []) + ([after] if after != "Identity" else [])
    result, made = names, []
    for i, step in enumerate(steps):
        output = node.output[0] if i == len(steps) - 1 else f"{node.output[0]}_{step}_{i}"
        inputs = result if step != "Add" or not i else [*result, bias]
        made.append(helper.make_node(step, inputs, [output], **(keep if not i else {})))
        result = [output]
    return made


def _clip(node, graph):
    """ReLU where unsigned integers start at zero, or signed ones start there; else nothing."""
    zero = graph.values.get(onnx_graph.operand(node, _RESULT_ZERO.get(node.op_type)))
    if zero is None or node.op_type == "DequantizeLinear" or not zero.dtype.endswith("int8"):
        return "Identity"
    return "Relu" if (zero.array() == np.iinfo(zero.dtype).min).all() else "Identity"


def give_logits(model: "onnx.ModelProto") -> List[str]:
    """Let a graph that ends in probabilities give what is in front of its Softmax or Sigmoid, as our nets do.

    Returns
    -------
    list of str
        The operators that were taken off.
    """
    from onnx import helper

    makers = {name: node for node in model.graph.node for name in node.output}
    taken = []
    outputs = list(model.graph.output)
    for i, output in enumerate(outputs):
        maker = makers.get(output.name)
        if maker is not None and maker.op_type in ("Softmax", "Sigmoid", "LogSoftmax"):
            taken.append(maker.op_type)
            outputs[i] = helper.make_empty_tensor_value_info(maker.input[0])
    if taken:
        del model.graph.output[:]
        model.graph.output.extend(outputs)
    return taken


def run(model: "onnx.ModelProto", x: np.ndarray, outputs: Optional[Sequence[str]] = None) -> List[np.ndarray]:
    """Run a model on one input after the other.

    Parameters
    ----------
    model : onnx.ModelProto
    x : numpy.ndarray, float32 (N, C, H, W)
    outputs : sequence of str, optional
        Values of the graph; default all its outputs.

    Returns
    -------
    list of numpy.ndarray
        One array per output, with the N results one below the other.

    Raises
    ------
    UserError
        onnxruntime is missing, or cannot run the graph on this input.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("running an ONNX file needs onnxruntime; run: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0]
        kind = np.float16 if "float16" in feed.type else np.float32
        rows = [session.run(outputs, {feed.name: x[i : i + 1].astype(kind)}) for i in range(len(x))]
    except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own that share no base class
        raise UserError(f"ONNX Runtime cannot run the source's graph: {first_line(error, 200)}") from None
    return [np.concatenate(parts).astype(np.float32) for parts in zip(*rows)]


def reference(
    plan: Plan, source: Source, sidecar: Sidecar, shape_of: Callable[[np.ndarray], Tuple[int, ...]]
) -> Optional[compare.Reference]:
    """Run the source's graph and keep its output.

    Parameters
    ----------
    plan : Plan
    source : Source
    sidecar : aidet.ckpt.Sidecar
        Of the converted model.
    shape_of : callable
        From the input to the shape of the converted model's output for one image: the graph's output of this shape is
        the one that is compared.

    Returns
    -------
    Reference or None
        None if onnxruntime is missing, the graph cannot run in float32 on the checkpoint's input, or none of its
        outputs has the shape of the checkpoint's. ``meta["integer_graph"]`` then also compares the quantised graph as
        it was.
    """
    facts, pixels, x = _photos(plan, source, sidecar.transform)
    path = source.files[0]
    try:
        model = float_model(path)
        taken = give_logits(model)
        results = run(model, x)
    except UserError as error:
        source.notes.append(f"not run by ONNX Runtime ({error})")
        return None
    shape = (len(x), *shape_of(x))
    index = next((i for i, array in enumerate(results) if array.shape == shape), None)
    if index is None:
        source.notes.append(f"not compared with ONNX Runtime (no output of the graph has the shape {shape})")
        return None
    if taken:
        source.notes.append(f"compared in front of the graph's {', '.join(taken)}")
    integers = any("dequantised" in note for note in source.notes)
    version = runtime.version_of("onnxruntime")
    meta: Dict[str, Any] = {
        "compared_with": f"ONNX Runtime {version} on the file's own graph" + (", dequantised" if integers else ""),
        "architecture": plan.architecture,
        "arguments": plan.model_arguments(),
        "layout": plan.layout.name,
        "source_sha256": sidecar.source_sha256,
        "transform": sidecar.transform,
        "made_by": "onnxruntime: the graph of the source, its weights in float32",
        "versions": {**torch_reference.versions(), **_versions()},
        **facts,
    }
    if integers:
        meta["integer_graph"] = _as_it_was(path, x, results[index], index)
    return compare.Reference(meta, x, results[index], {}, pixels)


def _photos(plan, source, transform):
    """:func:`.torch_reference.photos`; without the libraries for PyTorch, photos after our own preprocessing."""
    try:
        return torch_reference.photos(plan, source, transform)
    except ImportError:
        from aidet.images import Pipeline, decode

        paths = [p for p in map(compare.photo_path, torch_reference.PHOTOS) if p is not None]
        x = np.stack([Pipeline(transform)(decode(p)) for p in paths])
        return {"photos": list(torch_reference.PHOTOS)}, None, x


def _as_it_was(path, x, logits, index):
    """How far the quantised graph, as it was published, is from its own weights in float32."""
    import onnx

    try:
        model = onnx.load(str(path))
        give_logits(model)
        row = compare.compare(run(model, x)[index], logits)
    except (UserError, OSError, ValueError) as error:
        return {"largest": None, "error": str(error)}
    return {name: row[name] for name in ("largest", "mean", "scale", "relative", "cosine")}


def _versions():
    from aidet.runtime import version_of

    return {n: version_of(n) for n in ("onnx", "onnxruntime") if version_of(n)}
