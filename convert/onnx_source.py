"""Weights in an ONNX file, under the names that the library which trained them uses.

An exporter keeps the names of most parameters, but not of all: weights of dense layers are transposed and called
``onnx::MatMul_123`` or ``val_31``, quantised ones are split into integers, scales and zero points, a BatchNorm disappears
in the convolution before it, and tables of positions are computed in advance. What the graph still says (the scopes of
its nodes, the named bias beside a weight) gives the names back, and :func:`read` returns what the library itself would
have saved. Nothing is executed.

Naming by PyTorch's exporters, as files of PyTorch 2.13 show it: a node of the older one is called
``/encoder/layers.0/attn/q/MatMul``; the newer one puts the modules into the node's metadata
(``pkg.torch.onnx.name_scopes``). The quantiser of ONNX Runtime writes ``*_quantized``, ``*_scale``, ``*_zero_point``.
"""

import ast
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from aidet.errors import UserError, first_line

if TYPE_CHECKING:
    import onnx

SCOPES = "pkg.torch.onnx.name_scopes"
# A folded BatchNorm returns with this variance, so large that its epsilon (1e-3 at most) does not matter in float32, and
# small enough for float16. Its weight is the square root: the layer does nothing but add its bias.
VARIANCE = 16384.0
# How an operator takes its weight: (index of the weight, of the bias or None). A dense weight is (in, out) there.
DENSE: Dict[str, Tuple[int, Optional[int]]] = {
    "MatMul": (1, None),
    "FusedMatMul": (1, None),
    "Gemm": (1, 2),
    "FusedGemm": (1, 2),
    "MatMulInteger": (1, None),
    "MatMulIntegerToFloat": (1, 6),
    "DynamicQuantizeMatMul": (1, 4),
    "QLinearMatMul": (3, None),
    "QGemm": (3, 6),
}
CONVOLUTIONS: Dict[str, Tuple[int, Optional[int]]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "FusedConv": (1, 2),
    "ConvInteger": (1, None),
    "QLinearConv": (3, 8),
}
NORMS: Dict[str, Tuple[str, ...]] = {
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
    "LayerNormalization": ("weight", "bias"),
    "InstanceNormalization": ("weight", "bias"),
    "GroupNormalization": ("weight", "bias"),
}
# Operators into which an optimiser melts several layers; the weights inside have no names of their own any more.
MELTED = {"Attention", "QAttention", "MultiHeadAttention", "EmbedLayerNormalization", "PackedAttention"}
PACKED = {"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"}
# Where a quantised operator keeps (weight, its scale, its zero point); None: beside the integers' product.
QUANTISED: Dict[str, Tuple[int, Optional[int], Optional[int]]] = {
    "MatMulInteger": (1, None, 3),
    "ConvInteger": (1, None, 3),
    "MatMulIntegerToFloat": (1, 3, 5),
    "DynamicQuantizeMatMul": (1, 2, 3),
    "QLinearMatMul": (3, 4, 5),
    "QGemm": (3, 4, 5),
    "QLinearConv": (3, 4, 5),
}
# Names of a convolution and of the BatchNorm behind it, in the libraries whose layouts the converter knows.
BATCH_NORMS = (
    (r"(.*\.)?convolution", r"\g<1>normalization"),
    (r"(.*\.)?conv(\d)", r"\g<1>bn\g<2>"),
    (r"(.*\.)?conv_stem", r"\g<1>bn1"),
    (r"(.*\.)?conv_head", r"\g<1>bn2"),
    (r"(.*\.)?_conv_stem", r"\g<1>_bn0"),
    (r"(.*\.)?_conv_head", r"\g<1>_bn1"),
    (r"(.*\.)?_expand_conv", r"\g<1>_bn0"),
    (r"(.*\.)?_depthwise_conv", r"\g<1>_bn1"),
    (r"(.*\.)?_project_conv", r"\g<1>_bn2"),
    (r"(.*\.)?(\d+)\.0", r"\g<1>\g<2>.1"),
    (r"(.*\.)?([A-Za-z]\w*)\.0", r"\g<1>\g<2>.1"),
)


class Weight:
    """A lazy tensor: computed from the file's bytes on request.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
    """

    def __init__(self, shape: Tuple[int, ...], dtype: str, make: Callable[[], np.ndarray]) -> None:
        self.shape, self.dtype, self._make = shape, dtype, make

    def array(self) -> np.ndarray:
        """The values, C order."""
        return np.ascontiguousarray(self._make()).reshape(self.shape)

    def moved(self, perm: Tuple[int, ...]) -> "Weight":
        """The same with its axes in another order."""
        return Weight(tuple(self.shape[i] for i in perm), self.dtype, lambda: self._make().transpose(perm))

    def shaped(self, *shape: int) -> "Weight":
        """The same in another shape."""
        return Weight(tuple(shape), self.dtype, lambda: self._make().reshape(shape))


def filled(count: int, value: float) -> Weight:
    """A float32 vector of one value."""
    return Weight((count,), "float32", lambda: np.full(count, value, np.float32))


class Found(NamedTuple):
    """What :func:`read` returns.

    Attributes
    ----------
    tensors : dict of str to Weight
        Under the library's own names.
    files : list of Path
        The ``.onnx`` and the files of its external data.
    notes : list of str
        What was recovered, and what has no name.
    """

    tensors: Dict[str, Weight]
    files: List[Path]
    notes: List[str]


def is_onnx(path: Path, head: bytes) -> bool:
    """Whether a file is an ONNX model, by its name or its first bytes (the field ``ir_version``, then the producer)."""
    return path.suffix == ".onnx" or (head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x1a"))


def load(path: Path) -> "onnx.ModelProto":
    """The model of a file, without its external data.

    Raises
    ------
    UserError
        The package onnx is missing, or the file is damaged.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise UserError(f"{path}: reading ONNX needs the package onnx; run: pip install onnx") from None
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as ONNX ({first_line(error, 160)}): truncated or damaged") from None
    if not model.graph.node:
        raise UserError(f"{path}: an ONNX file without a graph: truncated or damaged file")
    return model


def read(path: Path) -> Found:
    """Read the weights of an ONNX file.

    Parameters
    ----------
    path : Path
        ``.onnx``; float32, float16, bfloat16 or quantised to 8 bits (QDQ, QLinear and dynamic).

    Returns
    -------
    Found

    Raises
    ------
    UserError
        The file is damaged, external data lie outside its folder, or weights cannot be named.
    """
    path = Path(path)
    graph = Graph(load(path), path)
    names = Names(graph)
    names.parameters()
    names.weights()
    names.batch_norms()
    names.norms()
    names.shared()
    tables = names.tables()
    names.refuse_unnamed()
    notes = []
    if graph.quantised:
        notes.append(f"dequantised {len(graph.quantised)} weights to float32")
    if names.recovered:
        notes.append(f"named {names.recovered} weights by the graph")
    if names.folded:
        notes.append(f"gave {names.folded} convolutions their BatchNorm back, which the exporter had folded into them")
    if tables:
        notes.append(f"recovered {tables} tables that the exporter had computed in advance")
    left = names.left()
    if left:
        notes.append(f"left out {len(left)} constants without a name: {', '.join(left[:4])}")
    if not names.found:
        raise UserError(f"{path}: an ONNX graph without weights")
    return Found(names.found, [path, *graph.external], notes)


# ---- the graph -----------------------------------------------------------------------------------------------------


class Graph:
    """An ONNX graph whose constants are lazy tensors.

    Attributes
    ----------
    values : dict of str to Weight
        Constants by the name of the value in the graph; quantised ones dequantised.
    roots : dict of str to str
        From a value to the initialiser that it is a copy, cast, transposition or dequantisation of.
    quantised : dict of str to str
        From a quantised initialiser to its name before quantisation.
    spent : set of str
        Scales, zero points: no parameters.
    external : list of Path
    """

    def __init__(self, model: "onnx.ModelProto", path: Path) -> None:
        self.path, self.nodes = path, list(model.graph.node)
        self.external: List[Path] = []
        self.values: Dict[str, Weight] = {}
        self.roots: Dict[str, str] = {}
        self.quantised: Dict[str, str] = {}
        self.spent: set = set()
        self.users: Dict[str, List[Any]] = defaultdict(list)
        self.makers: Dict[str, Any] = {}
        for node in self.nodes:
            for name in node.input:
                self.users[name].append(node)
            for name in node.output:
                self.makers[name] = node
        for tensor in model.graph.initializer:
            self._add(tensor.name, tensor)
        for node in self.nodes:
            value = attribute(node, "value") if node.op_type == "Constant" else None
            if value is not None and hasattr(value, "data_type") and math.prod(value.dims) > 1:
                self._add(node.output[0], value)
        self._refuse_melted()
        self._dequantise()
        self._follow()

    def _add(self, name, tensor):
        self.values[name] = constant(tensor, self.path, self.external)
        self.roots[name] = name

    def _refuse_melted(self):
        for node in self.nodes:
            if node.domain and node.op_type in MELTED and any(n in self.values for n in node.input):
                raise UserError(
                    f"{self.path}: its graph was optimised ({node.op_type} holds several layers in one), so its weights "
                    "have no names; convert the file from before the optimisation"
                )
            if node.domain and node.op_type in PACKED:
                raise UserError(
                    f"{self.path}: its weights are packed in fewer than 8 bits ({node.op_type}); convert the file from "
                    "before the quantisation, or one with 8 bits"
                )

    def _dequantise(self):
        for node in self.nodes:
            if node.op_type in QUANTISED:
                where, scale, zero = QUANTISED[node.op_type]
                name = operand(node, where)
                if name in self.values:
                    scale = operand(node, scale) if scale is not None else self.scale_of(node)
                    axis = 0 if node.op_type in CONVOLUTIONS else -1
                    if node.op_type == "QGemm" and attribute(node, "transB"):
                        axis = 0
                    self._quantised(node, name, scale, operand(node, zero), axis)
                if node.op_type == "QLinearConv" and operand(node, 8) in self.values:
                    self._bias_of_convolution(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantise_linear(node)

    def _dequantise_linear(self, node):
        name, scale, zero = (operand(node, i) for i in range(3))
        axis, block = attribute(node, "axis"), attribute(node, "block_size")
        axis = 1 if axis is None else axis
        if name in self.values:
            self._quantised(node, name, scale, zero, axis, block)
            self.values[node.output[0]], self.roots[node.output[0]] = self.values[name], name
            return
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "Gather" and operand(maker, 0) in self.values:
            self._quantised(node, maker.input[0], scale, zero, axis, block)  # a quantised table of embeddings

    def scale_of(self, node: Any) -> str:
        """Name of the weight's scale behind an integer product (MatMulInteger, ConvInteger).

        It is a constant factor of what multiplies the product; else the constant that the quantiser names so.
        """
        for cast in self.users[node.output[0]]:
            for product in self.users[cast.output[0]] if cast.op_type == "Cast" else [cast]:
                for other in product.input if product.op_type == "Mul" else ():
                    maker = self.makers.get(other)
                    inputs = maker.input if maker is not None and maker.op_type == "Mul" else [other]
                    for candidate in inputs:
                        if candidate in self.values:
                            return candidate
        return re.sub(r"_quantized$", "", operand(node, 1)) + "_scale"

    def _quantised(self, node, name, scale, zero, axis, block=None):
        if name in self.quantised:
            return
        weight = self.values[name]
        if scale not in self.values:
            raise UserError(
                f"{self.path}: the scale of the quantised weight {name!r} (node {node.name!r}) is not a constant; convert "
                "the file from before the quantisation"
            )
        self.spent.update({scale, zero} - {""})
        self.quantised[name] = re.sub(r"_(quantized|q)$", "", name)
        factor, shift = self.values[scale], self.values.get(zero) if zero else None
        where = f"{self.path}: quantised weight {name!r}"
        self.values[name] = Weight(
            weight.shape, "float32", lambda: dequantise(weight.array(), factor, shift, axis, block or 0, where)
        )

    def _bias_of_convolution(self, node):
        """The int32 bias of QLinearConv: its scale is the input's times the weight's."""
        name = operand(node, 8)
        factors = [self.values.get(operand(node, i)) for i in (1, 4)]
        if name in self.quantised or None in factors:
            return
        bias = self.values[name]
        self.spent.update((operand(node, 1), operand(node, 2)))
        self.quantised[name] = re.sub(r"_(quantized|q)$", "", name)

        def make():
            scale = factors[0].array().astype(np.float64) * factors[1].array()
            return (bias.array() * scale).astype(np.float32)

        self.values[name] = Weight(bias.shape, "float32", make)

    def _follow(self):
        """Copies, casts and transpositions of constants are constants too."""
        for node in self.nodes:
            source = operand(node, 0)
            if source not in self.values or not node.output:
                continue
            value = self.values[source]
            if node.op_type == "Transpose":
                perm = attribute(node, "perm") or range(len(value.shape))[::-1]
                if sorted(perm) != list(range(len(value.shape))):
                    raise UserError(f"{self.path}: node {node.name!r} transposes axes it does not have: damaged file")
                value = value.moved(tuple(perm))
            elif node.op_type not in ("Identity", "Cast"):
                continue
            self.values[node.output[0]], self.roots[node.output[0]] = value, self.roots[source]

    def name_of(self, value: str) -> str:
        """The initialiser's name as it was before quantisation."""
        root = self.roots[value]
        return self.quantised.get(root, root)


def operand(node: Any, index: Optional[int]) -> str:
    """Name of an input; "" if the node has none there."""
    return node.input[index] if index is not None and index < len(node.input) else ""


def attribute(node: Any, name: str) -> Any:
    """Value of an attribute; None if the node has none of that name."""
    for item in node.attribute:
        if item.name == name:
            kinds = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints"}
            value = getattr(item, kinds.get(item.type, "i"))
            return list(value) if item.type in (6, 7) else value
    return None


def dequantise(
    values: np.ndarray, scale: Weight, zero: Optional[Weight], axis: int, block: int, where: str
) -> np.ndarray:
    """``(values - zero) * scale`` in float32, as ONNX defines it.

    Parameters
    ----------
    values : numpy.ndarray, integer
    scale : Weight
        One number, one per channel of ``axis``, or one per ``block`` of that axis.
    zero : Weight or None
    axis, block : int
    where : str
        Start of an error message.

    Returns
    -------
    numpy.ndarray, float32
    """
    factor = scale.array().astype(np.float32)
    shift = np.zeros(1, np.int32) if zero is None else zero.array().astype(np.int32)
    try:
        if block:
            factor, shift = (np.repeat(a, block, axis) if a.ndim else a for a in (factor, shift))
            cut = tuple(slice(n) for n in values.shape)
            factor, shift = factor[cut], (shift[cut] if shift.ndim == values.ndim else shift)
        elif values.ndim and max(factor.size, shift.size) > 1:
            shape = [1] * values.ndim
            shape[axis] = -1
            factor, shift = factor.reshape(shape), shift.reshape(shape)
        result = (values.astype(np.int32) - shift).astype(np.float32) * factor
        if result.size != values.size:
            raise ValueError(f"{scale.shape} scales for shape {values.shape}")
    except (ValueError, IndexError) as error:
        raise UserError(f"{where}: scales do not fit it ({first_line(error, 120)}): damaged file") from None
    return result.reshape(values.shape)


# ---- constants -----------------------------------------------------------------------------------------------------


def constant(tensor: "onnx.TensorProto", path: Path, external: List[Path]) -> Weight:
    """A lazy tensor over a constant of the file; files of external data are added to ``external``.

    Raises
    ------
    UserError
        Unknown type, fewer bytes than the shape needs, or data outside the file's folder.
    """
    import onnx
    from onnx import numpy_helper

    where = f"{path}: tensor {tensor.name[:100]!r}"
    shape = tuple(tensor.dims)
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{where} has the unknown type {tensor.data_type}: damaged file") from None
    if any(n < 0 for n in shape):
        raise UserError(f"{where} has the shape {shape}: damaged file")
    size = math.prod(shape) * dtype.itemsize
    wide = "float32" if str(dtype) == "bfloat16" else str(dtype)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        file, offset, length = _external(tensor, path, where)
        if length not in (None, size) or offset < 0 or offset + size > file.stat().st_size:
            raise UserError(f"{where} needs {size} bytes at {offset} of {file.name}: truncated or damaged file")
        if file not in external:
            external.append(file)

        def mapped():
            if not size:
                return np.zeros(shape, wide)
            return np.memmap(file, dtype, "r", offset, shape or (1,)).astype(wide).reshape(shape)

        return Weight(shape, wide, mapped)
    packed = str(dtype) in ("int4", "uint4", "int2", "uint2", "float4_e2m1fn")
    if tensor.HasField("raw_data") and not packed and len(tensor.raw_data) != size:
        raise UserError(f"{where} of shape {shape} has {len(tensor.raw_data)} bytes, not {size}: damaged file")

    def make():
        try:
            return numpy_helper.to_array(tensor).astype(wide)
        except (ValueError, TypeError) as error:
            raise UserError(f"{where} cannot be read ({first_line(error, 120)}): damaged file") from None

    if not tensor.HasField("raw_data") and size <= 1 << 16:
        make()  # a wrong number of values is noticed at once
    return Weight(shape, wide, make)


def _external(tensor, path, where):
    """Where the bytes are: (file, offset, length). Only files in the model's own folder are read."""
    facts = {entry.key: entry.value for entry in tensor.external_data}
    location = facts.get("location", "")
    relative = Path(location)
    if not location or relative.is_absolute() or ".." in relative.parts or "\\" in location or ":" in location:
        raise UserError(f"{where} has its data in {location[:200]!r}, outside the folder of the model: refused")
    file = path.parent / relative
    if not file.is_file():
        raise UserError(f"{where} has its data in {location!r}, which is missing; put it beside {path.name}")
    homes = (path.parent.resolve(), path.resolve().parent)  # a cache of downloads keeps its files behind links
    if not any(home in file.resolve().parents for home in homes):
        raise UserError(f"{where} has its data in {location!r}, a link that leaves the folder of the model: refused")
    try:
        return file, int(facts.get("offset") or 0), int(facts["length"]) if facts.get("length") else None
    except ValueError:
        raise UserError(f"{where}: place of its external data {facts} is no number: damaged file") from None


# ---- names ---------------------------------------------------------------------------------------------------------


def is_parameter(name: str) -> bool:
    """Whether a name is one of a module's parameter (``a.0.weight``), not one that an exporter counted."""
    if re.search(r"[:/\s]", name):
        return False
    if "." in name:
        return bool(re.fullmatch(r"\w+(\.\w+)+", name)) and not re.fullmatch(r"(onnx|input|val|node)\.\d+", name)
    return bool(re.fullmatch(r"[A-Za-z]\w*", name)) and not re.search(r"_\d+$|^_|^const|^onnx_", name)


def module_of(node: Any) -> str:
    """The module in which a node was recorded ("layers.0.attn.q"); "" if the file does not say."""
    for item in node.metadata_props:
        if item.key == SCOPES:
            try:
                scopes = ast.literal_eval(item.value)
                return str(scopes[-2]) if len(scopes) > 1 else ""
            except (ValueError, SyntaxError, TypeError, IndexError, MemoryError, RecursionError):
                return ""
    if not node.name.startswith("/"):
        return ""
    parts: List[str] = []
    for part in node.name.strip("/").split("/")[:-1]:
        # A module list that is called itself appears twice: /layer1/layer1.0/conv1.
        if parts and part.startswith(parts[-1] + "."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)


class Names:
    """Finds the name of every weight of a graph.

    Attributes
    ----------
    found : dict of str to Weight
    recovered, folded : int
        Weights named by the graph, and BatchNorms that had been folded into a convolution.
    unnamed : list of str
        Weights for which there is no name.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.found: Dict[str, Weight] = {}
        self.recovered = self.folded = 0
        self.unnamed: List[str] = []
        self.used: set = set(graph.spent)  # roots that are accounted for
        self.keys: Dict[str, str] = {}  # name of a node's output -> key of the node's weight

    def parameters(self) -> None:
        """Everything that has its name already, and copies under another one."""
        graph = self.graph
        for name, value in list(graph.values.items()):
            shown = graph.quantised.get(name, name)
            if graph.roots[name] != name or name in graph.spent or not is_parameter(shown):
                continue
            if value.dtype.startswith(("int", "uint", "bool")):
                continue
            self.used.add(name)
            turned = len(value.shape) == 2 and any(self._turned(node, name) for node in graph.users[name])
            self.found[shown] = value.moved((1, 0)) if turned else value
        for node in graph.nodes:
            # Equal tensors are stored once; the others are copies of it by name.
            if node.op_type == "Identity" and node.output[0] in graph.values and is_parameter(node.output[0]):
                self.found.setdefault(node.output[0], graph.values[node.output[0]])

    @staticmethod
    def _turned(node, name):
        """Whether the quantiser turned this weight, when it made a MatMul out of a Gemm with ``transB``."""
        where = DENSE.get(node.op_type, (None, None))[0]
        return (
            node.op_type != "Gemm" and operand(node, where) == name and bool(re.search(r"Gemm(_\d+)?_MatMul", node.name))
        )

    def weights(self) -> None:
        """Weights and biases of dense layers, convolutions and embeddings that have no name yet."""
        for node, where, bias in self._layers():
            graph, name = self.graph, operand(node, where)
            value, root = graph.values[name], graph.roots[name]
            known = graph.name_of(name)
            added = self._bias(node, bias, value)
            if known in self.found:
                key = known
            else:
                key = self._key(node, added)
                if not key:
                    self.unnamed.append(f"{root!r} {value.shape} at node {node.name!r} ({node.op_type})")
                    continue
                if not self._put(key, self._turn(node, value), root):
                    continue
                self.recovered += 1
            self.keys[node.output[0]] = key
            if added and not is_parameter(graph.name_of(added)) and key.endswith("weight"):
                self._put(key[: -len("weight")] + "bias", graph.values[added], graph.roots[added])

    def _layers(self) -> Iterator[Tuple[Any, int, Optional[int]]]:
        """(node, index of its weight, index of its bias) for every operator with a constant weight."""
        for node in self.graph.nodes:
            where, bias = DENSE.get(node.op_type) or CONVOLUTIONS.get(node.op_type) or (None, None)
            if node.op_type == "Gather" and module_of(node):
                where = 0
            value = self.graph.values.get(operand(node, where))
            if where is None or value is None or value.dtype.startswith(("int", "uint", "bool")):
                continue
            if len(value.shape) == 2 or (node.op_type in CONVOLUTIONS and len(value.shape) > 2):
                yield node, where, bias

    def _turn(self, node, value):
        """A dense weight as a module keeps it: (out, in)."""
        if node.op_type not in DENSE or attribute(node, "transB"):
            return value
        return value.moved((1, 0))

    def _bias(self, node, index, weight) -> str:
        """Name of the constant that a layer adds: its own input, or the Add behind it; "" if there is none."""
        if operand(node, index) in self.graph.values:
            return operand(node, index)
        if node.op_type not in DENSE and node.op_type != "ConvInteger":
            return ""
        output = node.output[0]
        for _ in range(3):  # an integer product is cast and scaled first
            users = self.graph.users[output]
            if len(users) == 1 and users[0].op_type in ("Cast", "Mul", "Reshape") and node.op_type.endswith("Integer"):
                output = users[0].output[0]
        for user in self.graph.users[output]:
            for name in user.input if user.op_type == "Add" else ():
                shape = self.graph.values[name].shape if name in self.graph.values else ()
                size = shape[0] if len(shape) == 1 else 0
                if size and size in weight.shape:
                    return name
        return ""

    def _key(self, node, added) -> str:
        """Key of a weight by the named bias beside it, or by the module of its node."""
        named = self.graph.name_of(added) if added else ""
        if is_parameter(named) and named.endswith("bias") and named in self.found:
            return named[: -len("bias")] + "weight"
        module = module_of(node)
        return f"{module}.weight" if module else ""

    def _put(self, key, value, root) -> bool:
        """Store a recovered tensor. A module that is called twice (``fc``, ``fc_1``) is stored once."""
        again = re.sub(r"_\d+(?=\.\w+$)", "", key)
        if again != key and again in self.found and self.found[again].shape == value.shape and root in self.used:
            return False
        if key in self.found and self.found[key].shape != value.shape:
            self.unnamed.append(f"{root!r} {value.shape}: {key!r} is the name of another tensor {self.found[key].shape}")
            return False
        self.used.add(root)
        self.found[key] = value
        return True

    def batch_norms(self) -> None:
        """Give a convolution back the BatchNorm that was folded into it: one that only adds the bias."""
        for node, where, bias in self._layers():
            key = self.keys.get(node.output[0], "")
            if node.op_type not in CONVOLUTIONS or not key.endswith(".weight") and key != "weight":
                continue
            module, graph = key[: -len(".weight")], self.graph
            added = operand(node, bias) if operand(node, bias) in graph.values else ""
            counted = not is_parameter(graph.name_of(operand(node, where)))
            norm = ""
            if counted and added and not is_parameter(graph.name_of(added)):
                norm = self._norm_behind(module)
            elif any(item.key == SCOPES for item in node.metadata_props) and module_of(node) != module:
                norm = module_of(node)  # the newer exporter keeps the convolution's name and the BatchNorm's module
            if not norm or f"{norm}.running_var" in self.found:
                continue
            channels = self.found[key].shape[1 if node.op_type == "ConvTranspose" else 0]
            shift = self.found.pop(f"{module}.bias", None) or filled(channels, 0.0)
            self.found[f"{norm}.weight"] = filled(channels, math.sqrt(VARIANCE))
            self.found[f"{norm}.bias"] = shift
            self.found[f"{norm}.running_mean"] = filled(channels, 0.0)
            self.found[f"{norm}.running_var"] = filled(channels, VARIANCE)
            self.folded += 1

    def _norm_behind(self, module) -> str:
        block, _, leaf = module.rpartition(".")
        if leaf in ("conv_pw", "conv_dw", "conv_pwl"):  # timm's EfficientNet, with and without an expansion
            expanded = f"{block}.conv_pwl.weight" in self.keys.values()
            order = ("conv_pw", "conv_dw", "conv_pwl") if expanded else ("conv_dw", "conv_pw")
            return f"{block}.bn{order.index(leaf) + 1}"
        for pattern, replacement in BATCH_NORMS:
            match = re.fullmatch(pattern, module)
            if match:
                return match.expand(replacement)
        return ""

    def norms(self) -> None:
        """Parameters of norms that lost their names."""
        for node in self.graph.nodes:
            for index, leaf in enumerate(NORMS.get(node.op_type, ()), 1):
                name = operand(node, index)
                if name in self.graph.values and not is_parameter(self.graph.name_of(name)) and module_of(node):
                    self._put(f"{module_of(node)}.{leaf}", self.graph.values[name], self.graph.roots[name])

    def shared(self) -> None:
        """One stored tensor that several modules of the same depth use: equal parameters are stored once."""
        for name, users in self.graph.users.items():
            if name not in self.found or len(users) < 2:
                continue
            module, _, leaf = name.rpartition(".")
            for node in users:
                other = module_of(node)
                known = f"{other}.{leaf}" in self.found
                if other and not known and other.count(".") == module.count(".") and not re.search(r"_\d+$", other):
                    self.found[f"{other}.{leaf}"] = self.found[name]

    def tables(self) -> int:
        """Tables that the exporter computed in advance; returns how many were recovered."""
        count = 0
        for node in self.graph.nodes:
            if node.op_type == "Add":
                for name in node.input:
                    if name in self.graph.values and self.graph.roots[name] not in self.used:
                        count += self._relative_bias(node, name) or self._positions(node, name)
            elif node.op_type == "Resize":
                count += self._resized_positions(node)
        return count

    def _relative_bias(self, node, name) -> int:
        """Swin's and BEiT's bias of every pair of tokens (heads, n, n), back to the table of offsets."""
        value, module = self.graph.values[name], module_of(node)
        if not module or len(value.shape) not in (3, 4) or value.shape[-1] != value.shape[-2] or value.shape[-1] < 4:
            return 0
        if len(value.shape) == 4 and value.shape[0] != 1:
            return 0
        table = offsets_table(value.array().reshape(value.shape[-3:]))
        if table is None:
            return 0
        inner = math.isqrt(value.shape[-1]) ** 2 != value.shape[-1] or f"{module}.q_proj.weight" in self.found
        leaf = "relative_position_bias." if inner else ""  # BEiT, and Swin since transformers 5
        key = f"{module}.{leaf}relative_position_bias_table"
        return int(self._put(key, Weight(table.shape, str(table.dtype), lambda: table), self.graph.roots[name]))

    def _positions(self, node, name) -> int:
        """An embedding of positions that was looked up in advance: (1, n, width) added to the tokens."""
        value, module = self.graph.values[name], module_of(node)
        if not module.endswith("embeddings") or len(value.shape) not in (2, 3) or value.shape[-2] < 2:
            return 0
        if len(value.shape) == 3 and value.shape[0] != 1:
            return 0
        table = value.shaped(*value.shape[-2:])
        return int(self._put(f"{module}.position_embedding.weight", table, self.graph.roots[name]))

    def _resized_positions(self, node) -> int:
        """Positions that the graph interpolates: split into the class token's and the grid's, and perhaps transposed."""
        grid = self._before(operand(node, 0))
        start = self._after(node.output[0])
        if not grid or not start:
            return 0
        first, rest = self.graph.values[start], self.graph.values[grid]
        width = first.shape[-1]
        if len(first.shape) != 3 or first.shape[0] != 1 or math.prod(rest.shape) % width:
            return 0
        if len(rest.shape) == 4 and rest.shape[1] == width != rest.shape[-1]:
            rest = rest.moved((0, 2, 3, 1))
        elif rest.shape[-1] != width:
            return 0
        tokens = first.shape[1] + math.prod(rest.shape) // width
        module = module_of(node)
        leaf = "position_embeddings" if module.endswith("embeddings") else "pos_embed"
        both = Weight(
            (1, tokens, width),
            "float32",
            lambda: np.concatenate([first.array(), rest.array().reshape(1, -1, width)], 1).astype(np.float32),
        )
        self.used.add(self.graph.roots[start])
        return int(self._put(f"{module}.{leaf}".lstrip("."), both, self.graph.roots[grid]))

    def _before(self, name) -> str:
        """The unnamed constant that a value was reshaped from; "" if it comes from elsewhere."""
        for _ in range(6):
            if name in self.graph.values:
                return "" if self.graph.roots[name] in self.used else name
            maker = self.graph.makers.get(name)
            if maker is None or maker.op_type not in ("Reshape", "Transpose", "Cast", "Unsqueeze", "Squeeze"):
                return ""
            name = operand(maker, 0)
        return ""

    def _after(self, name) -> str:
        """The unnamed constant that a value is joined to after being reshaped; "" if there is none."""
        for _ in range(6):
            users = self.graph.users[name]
            join = next((u for u in users if u.op_type == "Concat"), None)
            if join is not None:
                others = [n for n in join.input if n in self.graph.values and self.graph.roots[n] not in self.used]
                return others[0] if len(others) == 1 else ""
            moved = [u for u in users if u.op_type in ("Reshape", "Transpose", "Cast", "Unsqueeze", "Squeeze")]
            if len(moved) != 1:
                return ""
            name = moved[0].output[0]
        return ""

    def refuse_unnamed(self) -> None:
        """Refuse a graph whose weights have no names.

        Raises
        ------
        UserError
            With the first of them and the remedy.
        """
        if self.unnamed:
            raise UserError(
                f"{self.graph.path}: {len(self.unnamed)} weights have no module's name, the first is "
                f"{self.unnamed[0]}; export the model again with PyTorch 1.13 or newer, whose nodes carry the names of their "
                "modules, or convert the PyTorch weights instead"
            )

    def left(self) -> List[str]:
        """Float constants that are no parameters, for the report."""
        return [
            f"{name} {value.shape}"
            for name, value in self.graph.values.items()
            if self.graph.roots[name] == name
            and name not in self.used
            and value.dtype.startswith("float")
            and math.prod(value.shape) > 1
        ]


def offsets_table(bias: np.ndarray) -> Optional[np.ndarray]:
    """The table of relative offsets from the bias of every pair of tokens.

    Parameters
    ----------
    bias : numpy.ndarray, (heads, n, n)
        n is a square w*w (Swin: Liu et al. 2021), or one more (BEiT: Bao et al. 2021, its class token is first).

    Returns
    -------
    numpy.ndarray or None
        ((2w-1)^2, heads), for BEiT with three more rows; None if equal offsets have different values.
    """
    heads, n = bias.shape[0], bias.shape[-1]
    side = math.isqrt(n)
    token = side * side != n
    side = math.isqrt(n - token)
    if side * side != n - token or side < 2:
        return None
    y, x = np.divmod(np.arange(side * side), side)
    index = (y[:, None] - y + side - 1) * (2 * side - 1) + x[:, None] - x + side - 1
    rows = (2 * side - 1) ** 2
    if token:
        full = np.full((n, n), rows, index.dtype)
        full[:, 0], full[0, 0], full[1:, 1:] = rows + 1, rows + 2, index
        index, rows = full, rows + 3
    table = np.zeros((rows, heads), bias.dtype)
    table[index.reshape(-1)] = bias.reshape(heads, -1).T
    return table if np.array_equal(table[index].transpose(2, 0, 1), bias) else None
