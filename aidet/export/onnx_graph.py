"""From a MindSpore network to a verified ONNX model that takes any batch size.

MindSpore writes ONNX graphs with the batch size of the example input fixed; its ``dynamic_axes`` fails for nearly every
network (2.7.2 to 2.10). So the network is written twice, with two batch sizes. The constants that differ between the
two graphs depend on the batch size; they are replaced by expressions of the input's batch size. The result is then
compared with the network at batch sizes that were not used to make it.
"""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

import numpy as np

from .. import ckpt, files
from ..errors import UserError, first_line
from . import substitutes

if TYPE_CHECKING:
    import mindspore as ms
    import onnx
    import onnxruntime

INPUT, OUTPUT = "image", "logits"
MAP = "map"  # second output of a net that also says where (sidecar: localization)
# Part of a cached file's name: increase it if graphs that were made before must be made again.
FORMAT = 2
TRACED = (2, 3)
VERIFIED = (1, 5)
TOLERANCE = 1e-5


def export(
    net: "ms.nn.Cell",
    sidecar: ckpt.Sidecar,
    sample: Callable[[int], np.ndarray],
    check: Sequence[int] = VERIFIED,
    output: str = OUTPUT,
    opset: Optional[int] = None,
) -> Tuple["onnx.ModelProto", Dict[str, Any]]:
    """Make a verified ONNX model of a network.

    Parameters
    ----------
    net : mindspore.nn.Cell
        One input, and one output or two (logits and map), each with the batch as first dimension.
    sidecar : aidet.ckpt.Sidecar
        Written into the model's metadata, with class order and preprocessing.
    sample : callable
        Number of images -> an input array of that batch size; see :func:`pixels`.
    check : tuple of int
        Batch sizes at which ONNX Runtime is compared with MindSpore.
    output : str
        Name of the graph's output; a second one is called :data:`MAP`.
    opset : int, optional
        Version of ONNX's operators to convert to.

    Returns
    -------
    (onnx.ModelProto, dict)
        The model and the verdict: ``difference`` (largest, of all outputs), ``relative`` (over the largest value of
        that output, at least 1), ``largest`` (logit), ``tolerance``, ``batches``, ``opset``.

    Raises
    ------
    ExportError
        MindSpore cannot write the network as ONNX, its batch size cannot be freed, or the result differs.
    """
    net.set_train(False)
    expected = reference(net, sample, check)
    if not all(np.isfinite(values).all() for outputs in expected.values() for values in outputs):
        raise ExportError("the network itself gives values that are not finite; are its weights damaged?")
    with tempfile.TemporaryDirectory() as folder, standing_in(folder), substitutes.exportable(net, folder) as finish:
        names = [output, MAP][: len(expected[check[0]])]
        graphs = [trace(net, sample(n), Path(folder) / f"{n}.onnx") for n in TRACED]
        for graph in graphs:
            finish(graph)
    model = free_batch(graphs[0], graphs[1], TRACED, *names)
    if opset is not None:
        model = of_version(model, opset)
    describe(model, sidecar)
    verdict = compare(expected, model, sample)
    stamp(model, "aidet.verified", json.dumps(verdict))
    return model, verdict


def of_version(model: "onnx.ModelProto", opset: int) -> "onnx.ModelProto":
    """The same graph with another version of ONNX's operators; :class:`ExportError` if an operator has none in it."""
    from onnx import checker, version_converter

    if model.opset_import[0].version == opset:
        return model
    try:
        made = version_converter.convert_version(model, opset)
        checker.check_model(made)
    except Exception as error:  # noqa: BLE001 - the converter raises RuntimeError, ValidationError and others
        raise ExportError(f"cannot be written with opset {opset}: {first_line(error, 200)}") from None
    return made


class ExportError(Exception):
    """A network cannot be written as ONNX, or not as the same function; the message says why in one line."""


@contextlib.contextmanager
def standing_in(folder: Union[str, Path]) -> Iterator[None]:
    """Work in ``folder``: on errors MindSpore writes dumps (``rank_0``) into the current folder.

    This changes the current folder of the whole process, so other threads must not use relative paths meanwhile.
    """
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def pixels(size: Tuple[int, int], channels: int = 3) -> Callable[[int], np.ndarray]:
    """A function that makes reproducible normalised input: number of images -> float32 (N, C, h, w)."""
    shape = (channels, *size)
    return lambda n: np.random.default_rng(n).standard_normal((n, *shape)).astype(np.float32)


def trace(net: "ms.nn.Cell", example: np.ndarray, path: Path) -> "onnx.ModelProto":
    """Write a network as ONNX with the batch size of the example; :class:`ExportError` if MindSpore cannot.

    Its outputs keep MindSpore's names: others it gives to the wrong node where the last operator becomes two, as
    ``x[:, 0]`` does (MindSpore 2.8)."""
    import mindspore as ms
    import onnx

    tensor = ms.Tensor(example)
    try:
        if hasattr(ms, "onnx"):
            ms.onnx.export(net, tensor, file_name=str(path), input_names=[INPUT])
        else:  # before 2.7.2
            ms.export(net, tensor, file_name=str(path), file_format="ONNX")
    except Exception as error:  # noqa: BLE001 - the exporter raises RuntimeError, TypeError, ValueError alike
        raise ExportError(f"MindSpore's ONNX exporter: {first_line(error, 300)}") from None
    return onnx.load(str(path))


# --- freeing the batch dimension -------------------------------------------------------------------------------------
def free_batch(
    first: "onnx.ModelProto", second: "onnx.ModelProto", batches: Tuple[int, int], *outputs: str
) -> "onnx.ModelProto":
    """Turn two graphs of one network, traced with two batch sizes, into one graph for any batch size.

    Parameters
    ----------
    first, second : onnx.ModelProto
    batches : (int, int)
    *outputs : str
        Their names; default: :data:`OUTPUT`.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ExportError
        The graphs differ in more than constants, or a constant depends on the batch size in an unknown way.
    """
    import onnx
    from onnx import numpy_helper

    if [n.op_type for n in first.graph.node] != [n.op_type for n in second.graph.node]:
        raise ExportError("the graph itself depends on the batch size")
    model = onnx.ModelProto()
    model.CopyFrom(first)
    _rename(model, outputs or (OUTPUT,))
    if len(model.graph.initializer) != len(second.graph.initializer):
        raise ExportError("the number of constants depends on the batch size")
    maker = _Maker(model)
    kept = []
    for ours, theirs in zip(model.graph.initializer, second.graph.initializer):
        a, b = numpy_helper.to_array(ours), numpy_helper.to_array(theirs)
        if a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b):
            kept.append(ours)
        else:
            maker.replace(ours.name, a, b, batches)
    for node_a, node_b in zip(model.graph.node, second.graph.node):
        for x, y in zip(node_a.attribute, node_b.attribute):
            if x.type == onnx.AttributeProto.TENSOR:
                a, b = numpy_helper.to_array(x.t), numpy_helper.to_array(y.t)
                if a.shape != b.shape or not np.array_equal(a, b):
                    maker.replace(node_a.output[0], a, b, batches, node=node_a)
            elif x.SerializeToString() != y.SerializeToString():
                raise ExportError(f"attribute {x.name} of {node_a.op_type} depends on the batch size")
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    nodes = maker.nodes + [n for n in model.graph.node if not maker.gone(n)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    for value in (model.graph.input[0], *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.name = "aidet"
    onnx.checker.check_model(model)
    return model


def _rename(model, outputs):
    """Name input and outputs, which :func:`trace` does not; inputs that are weights are dropped."""
    weights = {t.name for t in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != len(outputs):
        found = f"{len(inputs)} inputs and {len(model.graph.output)} outputs"
        raise ExportError(f"the network has {found}, expected one of each")
    del model.graph.input[1:]
    model.graph.input[0].CopyFrom(inputs[0])
    found = [value.name for value in model.graph.output]
    for old, new in ((inputs[0].name, INPUT), *zip(found, outputs)):
        for node in model.graph.node:
            for field in (node.input, node.output):
                for i, name in enumerate(field):
                    if name == old:
                        field[i] = new
        for value in (*model.graph.input, *model.graph.output):
            if value.name == old:
                value.name = new


class _Maker:
    """Makes nodes that compute from the input's batch size what was a constant."""

    def __init__(self, model):
        self.model = model
        self.nodes: List[Any] = []
        self.replaced: Set[str] = set()

    def gone(self, node):
        return node.op_type == "Constant" and node.output[0] in self.replaced

    def add(self, kind, inputs, output, **attributes):
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name, array):
        from onnx import helper, numpy_helper

        self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        return name

    def batch(self):
        """Name of the batch size, int64 of shape (1,)."""
        if not any(n.output[0] == "aidet_batch" for n in self.nodes):
            shape = self.add("Shape", [INPUT], "aidet_shape")
            self.constant("aidet_zero", np.zeros(1, np.int64))
            self.add("Gather", [shape, "aidet_zero"], "aidet_batch", axis=0)
        return "aidet_batch"

    def replace(self, name, a, b, batches, node=None):
        """Replace the constant ``name``, which is ``a`` at the first batch size and ``b`` at the second, by nodes."""
        if node is not None and node.op_type != "Constant":
            raise ExportError(f"a tensor inside {node.op_type} depends on the batch size")
        self.replaced.add(name)
        first, second = batches
        if a.shape == b.shape and a.dtype == np.int64 and a.ndim <= 1:
            slope = (b - a) // (second - first)
            base = a - slope * first
            if not np.array_equal(base + slope * second, b):
                raise ExportError(f"constant {name} does not grow linearly with the batch size")
            moved = np.atleast_1d(slope) != 0
            if a.ndim == 1 and moved.sum() == 1 and base[moved][0] == 0 and self._only_reshapes(name):
                # A shape with one unknown, which Reshape computes itself: the graph stays simple.
                self.constant(name, np.where(moved, -1, a).astype(np.int64))
                return
            self.constant(f"{name}_slope", np.atleast_1d(slope))
            self.constant(f"{name}_base", np.atleast_1d(base))
            grown = self.add("Mul", [self.batch(), f"{name}_slope"], f"{name}_grown")
            out = self.add("Add", [grown, f"{name}_base"], name if a.ndim else f"{name}_sum")
            if not a.ndim:
                self.constant(f"{name}_scalar", np.zeros(0, np.int64))
                self.add("Reshape", [out, f"{name}_scalar"], name)
            return
        if a.ndim == b.ndim and a.ndim and a.shape[1:] == b.shape[1:] and a.shape[0] % first == 0:
            rows = a.shape[0] // first
            if a.shape[0] == rows * first and b.shape[0] == rows * second and _repeats(a, rows) and _repeats(b, rows):
                self.constant(f"{name}_one", a[:rows])
                self.constant(f"{name}_ones", np.ones(a.ndim - 1, np.int64))
                inputs = [self.batch()] + ([f"{name}_ones"] if a.ndim > 1 else [])
                times = self.add("Concat", inputs, f"{name}_times", axis=0)
                self.add("Tile", [f"{name}_one", times], name)
                return
        raise ExportError(f"constant {name} of shape {a.shape} depends on the batch size in an unknown way")

    def _only_reshapes(self, name):
        users = [n for n in self.model.graph.node if name in n.input]
        return all(n.op_type == "Reshape" and list(n.input).index(name) == 1 for n in users)


def _repeats(array, rows):
    pieces = array.reshape(-1, rows, *array.shape[1:])
    return bool((pieces == pieces[:1]).all())


# --- facts and verdict -----------------------------------------------------------------------------------------------
def stamp(model: "onnx.ModelProto", key: str, value: str) -> None:
    """Set one entry of the model's metadata."""
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = value
            return
    entry = model.metadata_props.add()
    entry.key, entry.value = key, value


def describe(model: Any, sidecar: ckpt.Sidecar) -> None:
    """Write class order, preprocessing and the whole sidecar into the metadata of an ``onnx.ModelProto``."""
    stamp(model, "aidet.sidecar", json.dumps(sidecar.raw, ensure_ascii=False))
    stamp(model, "aidet.architecture", sidecar.architecture)
    stamp(model, "aidet.classes", json.dumps(sidecar.classes))
    stamp(model, "aidet.class_order", json.dumps(sidecar.class_order))
    stamp(model, "aidet.transform", str(sidecar.transform))
    stamp(model, "aidet.opset", str(model.opset_import[0].version))
    model.producer_name = "AIDet"


def sidecar_of(path: Union[str, Path]) -> ckpt.Sidecar:
    """The sidecar in the metadata of an exported file.

    Raises
    ------
    UserError
        The file is missing, is not an ONNX model, or was not exported by this project.
    """
    if not Path(path).is_file():
        raise UserError(f"model {str(path)!r} does not exist")
    try:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), session_options(), PROVIDERS)
    except ImportError:
        raise UserError("onnxruntime is not installed; run: pip install 'aidet[onnx]'") from None
    except Exception as error:  # noqa: BLE001 - onnxruntime raises its own types, one for each status code
        raise UserError(f"{str(path)!r} cannot be read as an ONNX model: {first_line(error, 300)}") from None
    metadata = session.get_modelmeta().custom_metadata_map
    if "aidet.sidecar" not in metadata:
        raise UserError(foreign(session, path))
    if metadata.get("aidet.output", OUTPUT) != OUTPUT:
        raise UserError(f"{str(path)!r} has its preprocessing inside; export it without --preprocess-in-graph for this")
    try:
        facts = json.loads(metadata["aidet.sidecar"])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r}: its metadata cannot be read ({error}): damaged file") from None
    return ckpt.Sidecar.from_facts(facts, path, f"the metadata of {str(path)!r}")


def foreign(session: Any, path: Union[str, Path]) -> str:
    """What is missing in an ONNX file from elsewhere, and which of its inputs and outputs could be used."""

    def shown(values):
        return ", ".join(f"{v.name} {v.type} {v.shape}" for v in values)

    return (
        f"{str(path)!r} was not exported by this project, so nothing says how an image becomes its input "
        f"({shown(session.get_inputs())}) and which output means generated ({shown(session.get_outputs())}); say both "
        "with --transform LINE and --positive or --real INDEX (docs/infer.md), or convert its weights and export them"
    )


def outputs_of(net: "ms.nn.Cell", x: np.ndarray) -> List[np.ndarray]:
    """MindSpore's outputs for one batch."""
    import mindspore as ms

    found = net(ms.Tensor(x))
    return [one.asnumpy() for one in (found if isinstance(found, tuple) else (found,))]


def reference(
    net: "ms.nn.Cell", sample: Callable[[int], np.ndarray], batches: Sequence[int]
) -> Dict[int, List[np.ndarray]]:
    """MindSpore's results: ``{batch size: outputs}``."""
    return {n: outputs_of(net, sample(n)) for n in batches}


def compare(
    expected: Dict[int, List[np.ndarray]], model: "onnx.ModelProto", sample: Callable[[int], np.ndarray]
) -> Dict[str, Any]:
    """Compare the ONNX model with ``expected``, the result of :func:`reference` for the same ``sample``.

    Returns
    -------
    dict

    Raises
    ------
    ExportError
        ONNX Runtime refuses the model, or an output differs by more than :data:`TOLERANCE` (times its largest value if
        that is above 1, because a float32 has no more digits).
    """
    import mindspore as ms
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), session_options(), PROVIDERS)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises its own types, one for each status code
        raise ExportError(f"ONNX Runtime refuses the graph: {first_line(error, 300)}") from None
    worst = relative = 0.0
    largest = max(float(np.abs(ours[0]).max()) for ours in expected.values())
    for n, outputs in expected.items():
        try:
            found = session.run(None, {INPUT: sample(n)})
        except Exception as error:  # noqa: BLE001 - as above
            raise ExportError(f"ONNX Runtime fails at batch {n}: {first_line(error, 300)}") from None
        for ours, theirs in zip(outputs, found):
            if theirs.shape != ours.shape or not np.isfinite(theirs).all():
                raise ExportError(f"ONNX Runtime gives shape {theirs.shape} at batch {n}, MindSpore {ours.shape}")
            difference = float(np.abs(ours - theirs).max())
            worst = max(worst, difference)
            relative = max(relative, difference / max(1.0, float(np.abs(ours).max())))
    if relative > TOLERANCE:
        raise ExportError(f"ONNX Runtime differs from MindSpore by {worst:.2g}, more than {TOLERANCE:g}")
    return {
        "difference": worst, "relative": relative,
        "largest": largest, "tolerance": TOLERANCE,
        "batches": list(expected), "opset": model.opset_import[0].version,
        "onnxruntime": onnxruntime.__version__, "mindspore": ms.__version__,
    }  # fmt: skip


PROVIDERS = ["CPUExecutionProvider"]


def session_options(threads: int = 1) -> "onnxruntime.SessionOptions":
    """Options with one thread per session: spreading images over threads scales better and keeps rounding fixed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # On x86 without VNNI, sums of 8-bit products saturate at 16 bits, and the margin of a cascade would not hold.
    # This asks for exact sums there (ONNX Runtime's documentation, "Quantize ONNX models").
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def save(model: "onnx.ModelProto", path: Union[str, Path]) -> None:
    """Write an ONNX model, whole or not at all."""
    with files.atomic(path, "wb") as file:
        file.write(model.SerializeToString())
