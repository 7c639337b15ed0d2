"""The reverse conversion: a checkpoint with the names of a PyTorch library, as safetensors."""

import hashlib
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np

from aidet import ckpt
from aidet.errors import UserError
from aidet.files import atomic

from . import rules
from .families import Family, Layout, Shape, family_of
from .plan import build

if TYPE_CHECKING:
    from mindspore import nn

_TYPES = {
    "float32": "F32",
    "float16": "F16",
    "float64": "F64",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "bool": "BOOL",
}


def reverse(src: str, dst: str, layout: str, say: Callable[[str], None] = print) -> int:
    """Write ``src`` (a checkpoint with a sidecar) as ``dst`` in a layout of its family.

    Raises
    ------
    UserError
        The family has no such layout, or that library's net would give different results with these weights (because
        its padding or epsilon differs).
    """
    if Path(dst).suffix != ".safetensors":
        raise UserError(f"the output {str(dst)!r} must end in .safetensors")
    sidecar = ckpt.Sidecar.read(src)
    family = family_of(sidecar.architecture)
    chosen = family.layout(layout)
    arguments = sidecar.arguments
    own = next((x for x in family.layouts if x.only == sidecar.architecture), None)
    if chosen.only not in ("", sidecar.architecture) or own not in (None, chosen):
        raise UserError(f"--layout {layout}: its net is not {sidecar.architecture}, it would compute something else")
    wrong = [f"{k} {arguments[k]!r} (there {v!r})" for k, v in chosen.arguments.items() if arguments.get(k, v) != v]
    left_out = {k: v for k, v in chosen.arguments.items() if k not in arguments}
    wrong += [f"{k} (there {left_out[k]!r})" for k in _that_matter(sidecar.architecture, arguments, left_out)]
    if wrong:
        raise UserError(
            f"--layout {layout}: that library's {sidecar.architecture} differs in {', '.join(wrong)}; "
            "it would compute something else"
        )
    try:
        tensors = to_layout(ckpt.load_arrays(src), family, chosen, sidecar.architecture, arguments)
    except AssertionError as error:  # a parameter that this library's net does not have
        others = ", ".join(sorted({x.name for x in family.layouts} - {layout}))
        raise UserError(f"--layout {layout}: {error}; choose another: {others}") from None
    write_safetensors(dst, tensors, {"format": "pt", "architecture": sidecar.architecture, "layout": chosen.name})
    say(f"wrote   {dst}: {len(tensors)} tensors in layout {chosen.name}")
    return 0


def _that_matter(architecture: str, arguments: Mapping[str, Any], added: Mapping[str, Any]) -> List[str]:
    """Names in ``added`` whose value alone makes another net than the one without it."""
    plain = {k: v for k, v in arguments.items() if k != "num_classes"}

    def settings(more: Mapping[str, Any]) -> Optional[Dict[Tuple[str, str], str]]:
        try:
            return _settings(build(architecture, {**plain, **more}, arguments.get("num_classes")))
        except UserError:
            return None  # no argument of this architecture, which is made with it

    if not added:
        return []
    own, again = settings({}), settings({})
    if own is None or again is None:
        return []
    # What differs from one object to the next, such as the time of its creation, is no setting.
    kept = [key for key in own if own[key] == again.get(key)]
    found = []
    for name, value in added.items():
        other = settings({name: value})
        if other is not None and (own.keys() != other.keys() or any(own[key] != other[key] for key in kept)):
            found.append(name)
    return found


def _settings(net: "nn.Cell") -> Dict[Tuple[str, str], str]:
    """Numbers, texts and tables of every cell of a net, and its type, but no parameters."""
    import mindspore as ms

    found = {}
    for name, cell in net.cells_and_names():
        found[name, ""] = type(cell).__name__
        for key, value in vars(cell).items():
            if isinstance(value, (bool, int, float, str, tuple)):
                found[name, key] = repr(value)
            elif isinstance(value, ms.Tensor) and not isinstance(value, ms.Parameter):
                value = value.asnumpy()
            if isinstance(value, np.ndarray):
                found[name, key] = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return found


def to_layout(
    arrays: Mapping[str, np.ndarray], family: Family, layout: Layout, architecture: str, arguments: Dict[str, Any]
) -> Dict[str, np.ndarray]:
    """Rename arrays from our names to those of a layout.

    Returns
    -------
    dict of str to numpy.ndarray
        Bit-equal to what was converted; constants that the net computes itself are left out.
    """
    shapes = {name: a.shape for name, a in arrays.items()}
    entries, _ = rules.assign(layout, shapes, family.lookups(architecture, arguments))

    def shape(entry: rules.Entry) -> Shape:
        want = arrays[entry.target].shape
        found = layout.dimensions(entry.source, architecture)
        dims = len(want) if found is None else found
        if dims < 0:
            return (1,) * (-dims - len(want)) + want
        # Fewer dimensions than ours: the leading ones go.
        return want[max(0, len(want) - dims) :] + (1,) * (dims - len(want))

    result = rules.ungather(entries, arrays, shape)
    for key, target, dims in layout.zeros:
        result[key] = np.zeros(arrays[target].shape[-dims:], arrays[target].dtype)
    return {layout.prefix + name: array for name, array in result.items()}


def write_safetensors(path: Union[str, Path], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file (8 bytes of header length, JSON, raw little-endian data), whole or not at all.

    Written by hand because the format is that simple, and the package ``safetensors`` is not a dependency.
    """
    header: Dict[str, Any] = {"__metadata__": metadata}
    start = 0
    arrays = {name: np.ascontiguousarray(a) for name, a in tensors.items()}
    for name, array in arrays.items():
        header[name] = {
            "dtype": _TYPES[str(array.dtype)],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, start + array.nbytes],
        }
        start += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(array.tobytes())
