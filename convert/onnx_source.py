"""Weights in an ONNX file, under the names that the library which trained them uses.

An exporter keeps the names of most parameters, but not of all: weights of dense layers are transposed and called
``onnx::MatMul_123`` or ``val_31``, quantised ones are split into integers, scales and zero points, a BatchNorm
disappears in the convolution before it, and tables of positions are computed in advance. What the graph still says (the
scopes of its nodes, the named bias beside a weight) gives the names back, and :func:`read` returns what the library
itself would have saved. Nothing is executed.
"""

import math
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import numpy as np

from aidet.errors import UserError

from .onnx_graph import (
    CONVOLUTIONS,
    DENSE,
    SCOPES,
    Graph,
    Weight,
    attribute,
    filled,
    is_parameter,
    load,
    module_of,
    operand,
)

NORMS: Dict[str, Tuple[str, ...]] = {
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
    "LayerNormalization": ("weight", "bias"),
    "InstanceNormalization": ("weight", "bias"),
    "GroupNormalization": ("weight", "bias"),
}
# A folded BatchNorm returns with this variance, so large that its epsilon (1e-3 at most) does not matter in float32,
# and small enough for float16. Its weight is the square root: the layer does nothing but add its bias.
VARIANCE = 16384.0
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
    model = load(path)
    own = {entry.key: entry.value for entry in model.metadata_props}.get("aidet.architecture")
    if own is not None:
        raise UserError(
            f"{path} was exported by this project ({own}): it needs no conversion; its checkpoint is the source for "
            "everything else"
        )
    graph = Graph(model, path)
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
        notes.append(f"left out {len(left)} constants without a name: {', '.join(left[:2])}")
    if not names.found:
        raise UserError(f"{path}: an ONNX graph without weights")
    return Found(names.found, [path, *graph.external], notes)


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
        self.used: Set[str] = set(graph.spent)  # roots that are accounted for
        self.keys: Dict[str, str] = {}  # name of a node's output -> key of the node's weight

    def parameters(self) -> None:
        """Everything that has its name already, and copies under another one."""
        graph = self.graph
        for name, value in list(graph.values.items()):
            shown = graph.quantised.get(name, name)
            if graph.roots[name] != name or name in graph.spent or not is_parameter(shown):
                continue
            if not value.dtype.startswith("float"):
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
        made = re.search(r"Gemm(_\d+)?_MatMul", node.name) and node.op_type != "Gemm"
        return bool(made) and operand(node, where) == name

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
            if where is None or value is None or not value.dtype.startswith("float"):
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
            other = self.found[key].shape
            self.unnamed.append(f"{root!r} {value.shape}: {key!r} is the name of another tensor {other}")
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
                        found = self._relative_bias(node, name) or self._positions(node, name)
                        count += found or self._of_channels(node, name, ".grn", "bias")
            elif node.op_type == "Concat":
                count += sum(self._token(node, name) for name in node.input)
            elif node.op_type == "Mul":
                for name in node.input:
                    count += self._layer_scale(node, name) or self._of_channels(node, name, ".grn", "weight")
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

    def _layer_scale(self, node, name) -> int:
        """timm's ConvNeXt: a scale of channels behind the block."""
        known = f"{module_of(node)}.conv_dw.weight" in self.found
        return self._of_channels(node, name, "", "gamma") if known else 0

    def _of_channels(self, node, name, ending, leaf) -> int:
        """A vector over the channels that was reshaped in advance, (1, channels, 1, 1) or (1, 1, 1, channels).

        ``leaf`` of the node's module, whose name has that ending: ConvNeXt V2's response norm is ``.grn`` in timm.
        """
        value, module = self.graph.values.get(name), module_of(node)
        if value is None or self.graph.roots[name] in self.used or not module.endswith(ending):
            return 0
        if len(value.shape) != 4 or not 1 < max(value.shape) == math.prod(value.shape):
            return 0
        return int(self._put(f"{module}.{leaf}", value.shaped(max(value.shape)), self.graph.roots[name]))

    def _positions(self, node, name) -> int:
        """Positions that were looked up or interpolated in advance: (1, n, width) added to the tokens."""
        value, module = self.graph.values[name], module_of(node)
        if len(value.shape) not in (2, 3) or value.shape[-2] < 2 or (len(value.shape) == 3 and value.shape[0] != 1):
            return 0
        if f"{module}.patch_embedding.weight" in self.found:  # CLIP and SigLIP
            key, value = f"{module}.position_embedding.weight", value.shaped(*value.shape[-2:])
        elif f"{module}.patch_embeddings.projection.weight" in self.found:
            key = f"{module}.position_embeddings"
        else:
            return 0
        return int(self._put(key, value, self.graph.roots[name]))

    def _token(self, node, name) -> int:
        """Class and register tokens that were repeated for the batch in advance: (1, k, width) before the patches."""
        value, module = self.graph.values.get(name), module_of(node)
        if value is None or self.graph.roots[name] in self.used or len(value.shape) != 3 or value.shape[0] != 1:
            return 0
        several = value.shape[1] > 1
        if f"{module}.patch_embedding.weight" in self.found and not several:
            key, value = f"{module}.class_embedding", value.shaped(value.shape[-1])
        elif f"{module}.patch_embeddings.projection.weight" in self.found:
            key = f"{module}.register_tokens" if several else f"{module}.cls_token"
        elif "patch_embed.proj.weight" in self.found and not module:
            key = "reg_token" if several else "cls_token"
        else:
            return 0
        return int(self._put(key, value, self.graph.roots[name]))

    def _resized_positions(self, node) -> int:
        """Positions that the graph interpolates: the class token's and the grid's apart, the latter perhaps turned."""
        grid = self._before(operand(node, 0))
        start = self._after(node.output[0])
        if not grid or not start:
            return 0
        first, rest = self.graph.values[start], self.graph.values[grid]
        width = first.shape[-1]
        if len(first.shape) == 2 and first.shape[0] == 3 and rest.shape[:2] == (1, width) and module_of(node):
            key = f"{module_of(node)}.relative_position_bias_table"  # BEiT's table of offsets and its three rows
            rows = math.prod(rest.shape) // width
            table = Weight(
                (rows + 3, width),
                first.dtype,
                lambda: np.concatenate([rest.array().reshape(width, rows).T, first.array()]),
            )
            self.used.add(self.graph.roots[start])
            return int(self._put(key, table, self.graph.roots[grid]))
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
                f"{self.unnamed[0]}; export the model again with PyTorch 1.13 or newer, whose nodes carry the names of "
                "their modules, or convert the PyTorch weights instead"
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
    return table if np.array_equal(table[index].transpose(2, 0, 1), bias) and np.ptp(table) > 0 else None
