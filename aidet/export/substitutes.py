"""Substitutes for operators that MindSpore's ONNX exporter does not know, made of operators that it knows.

From 2.8 on, ``out += identity`` in ``construct`` is an in-place operator that cannot be exported; no version exports
``Erf`` (exact GELU), ``HSwish`` or ``HSigmoid``, although ONNX can express all of them. While a network is written, its
cells are replaced by equivalents; afterwards the result is compared with the original network.
"""

import ast
import contextlib
import importlib.util
import inspect
import math
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Tuple, Union

if TYPE_CHECKING:
    import mindspore as ms
    import onnx

# Exact GELU needs Erf. It is written as Acos, which the exporter knows and no network here uses, and renamed in the
# graph; a network that does use Acos would fail the comparison.
MARKER, MEANING = "Acos", "Erf"


@contextlib.contextmanager
def exportable(net: "ms.nn.Cell", folder: Union[str, Path]) -> Iterator[Callable[["onnx.ModelProto"], None]]:
    """Inside the block, replace cells of ``net`` and in-place statements of its classes by exportable ones.

    Parameters
    ----------
    net : mindspore.nn.Cell
    folder : str or Path
        For rewritten sources: MindSpore reads the source of ``construct`` from a file.

    Yields
    ------
    callable
        Finishes a written ``onnx.ModelProto`` in place: replaces the markers by the operators that they stand for.
    """
    from ..models.layers import native_sigmoid

    restore: List[Tuple[Any, ...]] = []
    padded: List[Any] = []
    uneven = _uneven_paddings(net)
    try:
        for cell in [c for _, c in net.cells_and_names()]:
            for name, child in list(cell.name_cells().items()):
                other = _substitute(child)
                if other is not None:
                    _put(cell, name, other)
                    restore.append((_put, cell, name, child))
                    padded += [child] if type(child).__name__ == "MaxPool2d" else []
        for cls in {type(c) for _, c in net.cells_and_names()}:
            construct = _without_in_place(cls, Path(folder))
            if construct is not None:
                restore.append((setattr, cls, "construct", cls.construct))
                cls.construct = construct
        with native_sigmoid(net):
            yield lambda model: _finish(model, bool(padded), uneven)
    finally:
        for action, *arguments in reversed(restore):
            action(*arguments)


def _uneven_paddings(net):
    """Paddings of convolutions that differ from side to side: (top, bottom, left, right)."""
    from mindspore import nn

    found = [getattr(c, "padding", 0) for _, c in net.cells_and_names() if isinstance(c, nn.Conv2d)]
    return {tuple(p) for p in found if isinstance(p, tuple) and len(set(p)) > 1}


def _finish(model, padded, uneven):
    from onnx import helper

    _plain_variance(model)
    for node in model.graph.node:
        if node.op_type == MARKER:
            node.op_type = MEANING
        for attribute in node.attribute:
            # MindSpore writes top, bottom, left, right; ONNX expects top, left, bottom, right.
            if node.op_type == "Conv" and attribute.name == "pads" and tuple(attribute.ints) in uneven:
                top, bottom, left, right = attribute.ints
                attribute.ints[:] = [top, left, bottom, right]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if padded and node.op_type == "MaxPool" and attributes.get("auto_pad") == b"SAME_UPPER":
            del node.attribute[:]
            attributes.pop("auto_pad")
            attributes["pads"] = [(k - 1) // 2 for k in attributes["kernel_shape"]] * 2
            node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())


def _plain_variance(model):
    """Rewrite the variance inside LayerNorm as a mean of squares instead of MindSpore's sum of squares over a count.

    ONNX Runtime computes a LayerNorm in one pass if it recognises it, and it recognises only the first form: Swin-T
    takes an eighth less time with it (and with GELU written as a division by the root of 2).
    """
    import numpy as np
    from onnx import helper, numpy_helper, shape_inference

    sums = {n.output[0]: n for n in model.graph.node if n.op_type == "ReduceSumSquare"}
    if not sums:
        return
    graph = model.graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in shape_inference.infer_shapes(model).graph.value_info
    }
    counts = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    used = [name for n in graph.node for name in n.input]
    graph.initializer.append(numpy_helper.from_array(np.array(2, np.float32), "aidet_two"))
    for division in [n for n in graph.node if n.op_type == "Div" and n.input[0] in sums]:
        total = sums[division.input[0]]
        axes = {a.name: helper.get_attribute_value(a) for a in total.attribute}
        shape, count = shapes.get(total.input[0]), counts.get(division.input[1])
        if shape is None or count is None or used.count(total.output[0]) > 1:
            continue
        if count.size == 1 and count.item() == np.prod([shape[i] for i in axes["axes"]]):
            out = total.output[0]
            total.CopyFrom(helper.make_node("Pow", [total.input[0], "aidet_two"], [out]))
            division.CopyFrom(helper.make_node("ReduceMean", [out], [division.output[0]], **axes))
    used = {name for n in graph.node for name in n.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


def _put(cell, name, child):
    if name in getattr(cell, "_cells", {}):
        cell._cells[name] = child
    if hasattr(cell, "cell_list"):  # SequentialCell iterates over its own list
        cell.cell_list = list(cell._cells.values())


def _substitute(child):
    """An equivalent of a cell that cannot be exported, else None."""
    from mindspore import nn, ops

    class Gelu(nn.Cell):
        """``x / 2 * (1 + erf(x / sqrt(2)))`` with the marker for erf."""

        def construct(self, x):
            return x * 0.5 * (1.0 + ops.acos(x / math.sqrt(2.0)))

    class HardSigmoid(nn.Cell):
        """``relu6(x + 3) / 6``."""

        def construct(self, x):
            return ops.relu6(x + 3.0) / 6.0

    class HardSwish(nn.Cell):
        """``x * relu6(x + 3) / 6``."""

        def construct(self, x):
            return x * (ops.relu6(x + 3.0) / 6.0)

    if isinstance(child, nn.MaxPool2d):
        return _padded_pool(child)
    # "none" in later versions of MindSpore 2, False in earlier ones.
    if isinstance(child, nn.GELU) and getattr(child, "approximate", True) in ("none", False):
        return Gelu()
    return {"HSigmoid": HardSigmoid, "HSwish": HardSwish}.get(type(child).__name__, lambda: None)()


def _padded_pool(child):
    """A symmetrically padded pool as one with "same" padding, which has the same output size.

    :func:`_finish` puts the symmetric padding into the graph. If a network has pools of both kinds, the comparison
    fails.
    """
    from mindspore import nn

    kernel, pads = child.kernel_size, tuple(getattr(child, "padding", ()) or ())[-2:]
    if not getattr(child, "use_pad", False) or not isinstance(kernel, int) or kernel % 2 == 0:
        return None
    if pads != (kernel // 2, kernel // 2) or getattr(child, "return_indices", False):
        return None
    return nn.MaxPool2d(kernel, child.stride, pad_mode="same")


class _PlainAssign(ast.NodeTransformer):
    """``a += b`` to ``a = a + b``, for plain names."""

    def __init__(self):
        self.changed = False

    def visit_AugAssign(self, node):
        if not isinstance(node.target, ast.Name):
            return node
        self.changed = True
        value = ast.BinOp(ast.Name(node.target.id, ast.Load()), node.op, node.value)
        return ast.copy_location(ast.Assign([node.target], value), node)


def _without_in_place(cls, folder):
    """``construct`` of a class with augmented assignments rewritten, or None if it has none."""
    if cls.__module__.startswith("mindspore."):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls.construct)))
    except (OSError, TypeError, SyntaxError):
        return None
    plain = _PlainAssign()
    tree = ast.fix_missing_locations(plain.visit(tree))
    if not plain.changed or cls.construct.__closure__:
        return None
    tree.body[0].decorator_list = []
    name = f"aidet_exportable_{cls.__name__}_{abs(hash(cls))}"
    path = folder / f"{name}.py"
    path.write_text(ast.unparse(tree) + "\n", encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    # The function still needs the names of its own module.
    vars(module).update({k: v for k, v in vars(sys.modules[cls.__module__]).items() if not k.startswith("__")})
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.construct
