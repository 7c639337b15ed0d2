"""An ONNX graph as the converter sees it: constants as lazy tensors, dequantised, and the modules of its nodes.

Naming by PyTorch's exporters, as files of PyTorch 2.13 show it: a node of the older one is called
``/encoder/layers.0/attn/q/MatMul``; the newer one puts the modules into the node's metadata
(``pkg.torch.onnx.name_scopes``). The quantiser of ONNX Runtime writes ``*_quantized``, ``*_scale``, ``*_zero_point``.
"""

import ast
import math
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Set, Tuple

import numpy as np

from aidet.errors import UserError, first_line

if TYPE_CHECKING:
    import onnx

SCOPES = "pkg.torch.onnx.name_scopes"
# TensorProto.DataType -> how the numbers are stored; bfloat16 as its 16 bits.
TYPES = {
    1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8", 12: "<u4",
    13: "<u8", 16: "<u2",
}  # fmt: skip
# The newer exporter names what it computed in advance by the operation ("expand", "view_3").
OPERATIONS = set(
    "_to_copy add addmm arange cat clamp clone contiguous div embedding exp expand flatten full getitem index linear "
    "matmul mm mul permute pow repeat reshape rsqrt select slice sqrt squeeze stack sub sum transpose unsqueeze "
    "view".split()
)
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
# Where a quantised operator keeps a bias of integers.
INTEGER_BIAS = {"QLinearConv": 8, "QGemm": 6}


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
        return Weight(tuple(self.shape[i] for i in perm), self.dtype, lambda: self.array().transpose(perm))

    def shaped(self, *shape: int) -> "Weight":
        """The same in another shape."""
        return Weight(tuple(shape), self.dtype, lambda: self.array().reshape(shape))


def filled(count: int, value: float) -> Weight:
    """A float32 vector of one value."""
    return Weight((count,), "float32", lambda: np.full(count, value, np.float32))


def is_onnx(path: Path, head: bytes) -> bool:
    """Whether a file is an ONNX model, by its name or its first bytes (``ir_version``, then another field)."""
    starts = head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in b"\x12\x1a\x22\x2a\x32\x3a\x42"
    return path.suffix == ".onnx" or starts


def load(path: Path) -> "onnx.ModelProto":
    """The model of a file, without its external data.

    Raises
    ------
    UserError
        The package onnx is missing, or the file is damaged.
    """
    # MindSpore's generated classes need this form of protobuf, which is chosen at the first import, perhaps ours.
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
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
        self.spent: Set[str] = set()
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
                    f"{self.path}: its graph was optimised ({node.op_type} holds several layers in one), so its "
                    "weights have no names; convert the file from before the optimisation"
                )
            if node.domain and node.op_type in PACKED:
                raise UserError(
                    f"{self.path}: its weights are packed in fewer than 8 bits ({node.op_type}); convert the file from "
                    "before the quantisation, or one with 8 bits"
                )

    def _dequantise(self):
        for node in self.nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                self.spent.update(n for n in node.input[1:] if n)
            elif node.op_type.startswith("Q"):  # scales and zero points of activations are single numbers
                kept = (
                    operand(node, INTEGER_BIAS.get(node.op_type)),
                    operand(node, QUANTISED.get(node.op_type, (0,))[0]),
                )
                single = [n for n in node.input if n in self.values and math.prod(self.values[n].shape) == 1]
                self.spent.update(n for n in single if n not in kept)
            if node.op_type in QUANTISED:
                where, scale, zero = QUANTISED[node.op_type]
                name = operand(node, where)
                if name in self.values:
                    scale = operand(node, scale) if scale is not None else self.scale_of(node)
                    axis = 0 if node.op_type in CONVOLUTIONS else -1
                    if node.op_type == "QGemm" and attribute(node, "transB"):
                        axis = 0
                    self._quantised(node, name, scale, operand(node, zero), axis)
                if operand(node, INTEGER_BIAS.get(node.op_type)) in self.values:
                    self._integer_bias(node)
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
                f"{self.path}: the scale of the quantised weight {name!r} (node {node.name!r}) is not a constant; "
                "convert the file from before the quantisation"
            )
        self.spent.update({scale, zero} - {""})
        self.quantised[name] = re.sub(r"_(quantized|q)$", "", name)
        factor, shift = self.values[scale], self.values.get(zero) if zero else None
        where = f"{self.path}: quantised weight {name!r}"
        self.values[name] = Weight(
            weight.shape, "float32", lambda: dequantise(weight.array(), factor, shift, axis, block or 0, where)
        )

    def _integer_bias(self, node):
        """An int32 bias: its scale is the input's times the weight's."""
        name = operand(node, INTEGER_BIAS[node.op_type])
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
    factor: np.ndarray = scale.array().astype(np.float32)
    shift: np.ndarray = np.zeros((), np.int32) if zero is None else zero.array().astype(np.int32)
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
        Fewer bytes than the shape needs, or data outside the file's folder.
    """
    import onnx
    from onnx import numpy_helper

    where = f"{path}: tensor {tensor.name[:100]!r}"
    shape = tuple(tensor.dims)
    if any(n < 0 for n in shape):
        raise UserError(f"{where} has the shape {shape}: damaged file")
    if tensor.data_type not in TYPES:
        return Weight(shape, f"type {tensor.data_type}", lambda: _unknown(tensor, where))
    stored = np.dtype(TYPES[tensor.data_type])
    bfloat = tensor.data_type == onnx.TensorProto.BFLOAT16
    dtype = "float32" if bfloat else stored.newbyteorder("=").name
    size = math.prod(shape) * stored.itemsize
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        file, offset, length = _external(tensor, path, where)
        if length not in (None, size) or offset < 0 or offset + size > file.stat().st_size:
            raise UserError(f"{where} needs {size} bytes at {offset} of {file.name}: truncated or damaged file")
        if file not in external:
            external.append(file)

        def mapped():
            if not size:
                return np.zeros(shape, dtype)
            return _widened(np.memmap(file, stored, "r", offset, (math.prod(shape),)), bfloat)

        return Weight(shape, dtype, mapped)
    raw = tensor.HasField("raw_data")
    if raw and len(tensor.raw_data) != size:
        raise UserError(f"{where} of shape {shape} has {len(tensor.raw_data)} bytes, not {size}: damaged file")

    def make():
        if raw:
            return _widened(np.frombuffer(tensor.raw_data, stored), bfloat)
        try:
            return numpy_helper.to_array(tensor).astype(dtype)
        except (ValueError, TypeError) as error:
            raise UserError(f"{where} cannot be read ({first_line(error, 120)}): damaged file") from None

    if not raw and size <= 1 << 16:
        make()  # a wrong number of values is noticed at once
    return Weight(shape, dtype, make)


def _widened(values, bfloat):
    """Numbers as they are; bfloat16, stored as 16 bits, as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32) if bfloat else values


def _unknown(tensor, where):
    raise UserError(
        f"{where} has the type {tensor.data_type}, which is not read; convert a file with float32, float16 or 8 bits"
    )


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


def is_parameter(name: str) -> bool:
    """Whether a name is one of a module's parameter (``a.0.weight``), not one that an exporter made up."""
    if re.search(r"[:/\s]", name) or name.endswith("weight_bias"):
        return False
    if "." in name:
        return bool(re.fullmatch(r"\w+(\.\w+)+", name)) and not re.fullmatch(r"(onnx|input|val|node)\.\d+", name)
    return (
        bool(re.fullmatch(r"[A-Za-z]\w*", name))
        and not re.search(r"_\d+$|^const|^onnx_", name)
        and name not in OPERATIONS
    )


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
