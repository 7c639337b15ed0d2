"""The reverse conversion: a checkpoint with the names of a PyTorch library, as safetensors."""

import json
import re
import struct
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Union

import numpy as np

from aidet import ckpt
from aidet.errors import UserError
from aidet.files import atomic

from . import rules
from .families import Family, Layout, Shape, family_of

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
    wrong = {k: (arguments[k], v) for k, v in chosen.arguments.items() if k in arguments and arguments[k] != v}
    if wrong:
        shown = ", ".join(f"{k} {ours!r} (there {theirs!r})" for k, (ours, theirs) in wrong.items())
        raise UserError(
            f"--layout {layout}: that library's {sidecar.architecture} differs in {shown}; "
            "it would compute something else"
        )
    tensors = to_layout(ckpt.load_arrays(src), family, chosen, sidecar.architecture, arguments)
    write_safetensors(dst, tensors, {"format": "pt", "architecture": sidecar.architecture, "layout": chosen.name})
    say(f"wrote   {dst}: {len(tensors)} tensors in layout {chosen.name}")
    return 0


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
        dims = next((d for regex, d in layout.reshaped if re.fullmatch(regex, entry.source)), len(want))
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
