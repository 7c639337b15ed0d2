"""Checkpoints that cannot lie: strict loading, atomic saving, a JSON sidecar with the facts, SHA-256 of the file.

A checkpoint ``x.ckpt`` is MindSpore's own format, so ``mindspore.load_checkpoint`` reads it. ``x.json`` beside it is
the sidecar: architecture and arguments, class order, preprocessing, source, parity, hash. Everything that uses a model
takes these facts from there, never from flags alone.
"""

import binascii
import math
import mmap
import os
import tempfile
from pathlib import Path

import numpy as np

from . import files, runtime
from .errors import UserError

FORMAT = 1


def sidecar_path(path):
    """``x.ckpt`` -> ``x.json``."""
    return Path(path).with_suffix(".json")


def read_sidecar(path, check_hash=True):
    """Read and check the sidecar of a checkpoint.

    Parameters
    ----------
    path : str or Path
        The checkpoint.
    check_hash : bool
        Compare the file's SHA-256 with the one the sidecar states.

    Returns
    -------
    dict

    Raises
    ------
    UserError
        Missing checkpoint or sidecar, unknown format, or a file that is not the one described.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.ckpt"))[:5] if path.parent.is_dir() else []
        raise UserError(f"checkpoint {str(path)!r} does not exist" + (f"; there is {', '.join(near)}" if near else ""))
    if not sidecar_path(path).is_file():
        raise UserError(
            f"{str(path)!r} has no sidecar {sidecar_path(path).name!r}; "
            "convert or train it with this project to get one"
        )
    facts = files.read_json(sidecar_path(path), "sidecar")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or not isinstance(facts.get("architecture"), str):
        raise UserError(
            f"sidecar {str(sidecar_path(path))!r} is not of format {FORMAT}: it needs 'format' and 'architecture'"
        )
    stated = (facts.get("output") or {}).get("sha256")
    if check_hash and stated and files.sha256(path) != stated:
        raise UserError(f"{str(path)!r} is not the file its sidecar describes (sha256 differs); copy both again")
    return facts


def load_arrays(path):
    """Read a MindSpore checkpoint as NumPy arrays.

    Returns
    -------
    dict of str to numpy.ndarray
        In the file's order and data types (bfloat16 comes as float32).

    Raises
    ------
    UserError
        The file is missing or no checkpoint.
    """
    if not Path(path).is_file():
        raise UserError(f"checkpoint {str(path)!r} does not exist")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            return _arrays(buffer)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}") from None
    except (ValueError, IndexError) as error:
        raise UserError(f"{str(path)!r} cannot be read as a MindSpore checkpoint: {error}") from None


# --- the file format -------------------------------------------------------------------------------------------------
# mindspore.load_checkpoint copies as many bytes as a tensor's shape asks for out of what the file holds, without
# comparing the two: a damaged file writes over the heap (seen in 2.8.0: "free(): invalid next size"). So the file is
# read here: protobuf's wire format of mindspore/train/checkpoint.proto (Apache-2.0), a few fields deep.
_TYPES = {
    "Int8": "<i1", "UInt8": "<u1", "Int16": "<i2", "UInt16": "<u2", "Int32": "<i4", "UInt32": "<u4", "Int64": "<i8",
    "UInt64": "<u8", "Float16": "<f2", "Float32": "<f4", "Float64": "<f8", "Bool": "?", "BFloat16": "<u2",
}  # fmt: skip
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _varint(buffer, at, end):
    value = shift = 0
    while at < end and shift < 70:
        byte = buffer[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value & (1 << 64) - 1, at
    raise ValueError("a number runs past its end: truncated or damaged file")


def _fields(buffer, at, end):
    """Yield (field number, value) of one message; a value of bytes comes as (start, end) in the buffer."""
    while at < end:
        key, at = _varint(buffer, at, end)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(buffer, at, end)
        elif kind in (_BYTES, _FIXED64, _FIXED32):
            size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
            if size is None:
                size, at = _varint(buffer, at, end)
            value, at = (at, at + size), at + size
            if at > end:
                raise ValueError("a field runs past its end: truncated or damaged file")
        else:
            raise ValueError(f"a field of the unknown kind {kind}: damaged file, or no checkpoint")
        yield key >> 3, value


def _text(buffer, place):
    if not isinstance(place, tuple) or place[1] - place[0] > 4096:
        raise ValueError("a name of a tensor is no text: damaged file")
    return buffer[place[0] : place[1]].decode("utf-8")


def _tensor(buffer, at, end):
    """(shape, type, (start, end) of the values) of one TensorProto."""
    shape, kind, content = [], None, None
    for number, value in _fields(buffer, at, end):
        if number == 1 and isinstance(value, tuple):  # packed
            inside = value[0]
            while inside < value[1]:
                n, inside = _varint(buffer, inside, value[1])
                shape.append(n)
        elif number == 1:
            shape.append(value)
        elif number == 2:
            kind = _text(buffer, value)
        elif number == 3 and isinstance(value, tuple):
            content = value
    if kind is None or content is None or len(shape) > 32:
        raise ValueError("a tensor lacks its type, its shape or its values: damaged file")
    return tuple(shape), kind, content


def _arrays(buffer):
    """All tensors of a file that is in memory; pieces of a large one follow one another under the same name."""
    end = len(buffer)
    if buffer[-17:-10] == b"crc_num":
        end -= 17
        if binascii.crc32(buffer[:end]) != int.from_bytes(buffer[-10:], "big"):
            raise ValueError("its checksum differs: damaged file")
    found, complete = {}, {}
    for number, place in _fields(buffer, 0, end):
        if number != 1 or not isinstance(place, tuple):
            raise ValueError("no list of tensors: damaged file, or no checkpoint")
        fields = dict(_fields(buffer, *place))
        name = _text(buffer, fields.get(1))
        if not isinstance(fields.get(2), tuple):
            continue  # a hash table of parameters, which no network here has
        shape, kind, content = _tensor(buffer, *fields[2])
        if kind == "str":
            continue
        if kind not in _TYPES:
            raise ValueError(f"{name!r} is of the type {kind!r}, which is not known here")
        if complete.get(name, False):
            raise ValueError(f"{name!r} stands there twice: damaged file")
        pieces = found.setdefault(name, (shape, kind, []))[2]
        if found[name][:2] != (shape, kind):
            raise ValueError(f"the pieces of {name!r} do not fit together: damaged file")
        pieces.append(buffer[content[0] : content[1]])
        # MindSpore writes the shape () as (0,).
        wanted = math.prod(shape if shape != (0,) else ()) * np.dtype(_TYPES[kind]).itemsize
        complete[name] = sum(map(len, pieces)) >= wanted
    if not found:
        raise ValueError("it holds no tensor")
    return {name: _joined(name, *parts) for name, parts in found.items()}


def _joined(name, shape, kind, pieces):
    values = np.frombuffer(b"".join(pieces), _TYPES[kind])
    shape = () if shape == (0,) and values.size == 1 else shape
    if values.size != math.prod(shape):
        raise ValueError(f"{name!r} of shape {shape} has {values.size} values: truncated or damaged file")
    if kind == "BFloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(shape).copy()


def compare_names(wanted, given, what="file"):
    """List every difference between a network's parameters and a file's, or return None.

    Parameters
    ----------
    wanted, given : dict of str to tuple
        Shapes by name, of the model and of the file.
    what : str

    Returns
    -------
    str or None
        One line each: ``- in model, not in file``, ``+ in file, not in model``, ``! shape``; at most 20 of each kind.
    """
    kinds = (
        [f"- in model, not in {what}: {n}" for n in wanted if n not in given],
        [f"+ in {what}, not in model: {n}" for n in given if n not in wanted],
        [
            f"! shape of {n}: model {tuple(wanted[n])}, {what} {tuple(given[n])}"
            for n in wanted
            if n in given and tuple(wanted[n]) != tuple(given[n])
        ],
    )
    lines = []
    for kind in kinds:
        lines += kind[:20] + ([f"  ... and {len(kind) - 20} more"] if len(kind) > 20 else [])
    return "; ".join(lines) or None


def load_strict(net, arrays, what="file"):
    """Put arrays into a network; every name and shape must match, or nothing is loaded.

    ``mindspore.load_param_into_net`` is silent about missing names and strips common prefixes, so the comparison is
    made here. Half precision is widened to the parameter's own type.

    Parameters
    ----------
    net : mindspore.nn.Cell
    arrays : dict of str to numpy.ndarray
    what : str
        What the arrays come from, for the message.

    Raises
    ------
    UserError
        Lists both directions of the mismatch.
    """
    import mindspore as ms

    parameters = {p.name: p for p in net.get_parameters()}
    difference = compare_names(
        {n: p.shape for n, p in parameters.items()}, {n: a.shape for n, a in arrays.items()}, what
    )
    if difference:
        raise UserError(f"weights do not fit the model, nothing was loaded: {difference}")
    for name, parameter in parameters.items():
        array = np.ascontiguousarray(arrays[name])
        parameter.set_data(ms.Tensor(array).astype(parameter.dtype))


def save(net, path, sidecar, dtype=None):
    """Write a checkpoint and its sidecar, each whole or not at all.

    Parameters
    ----------
    net : mindspore.nn.Cell or dict of str to numpy.ndarray
    path : str or Path
        Must end in ``.ckpt``.
    sidecar : dict
        The facts; ``format`` and ``output`` (sha256, parameter count) are filled in here.
    dtype : {"fp32", "fp16"}, optional
        Type of floating-point values in the file; default: as they are.

    Returns
    -------
    dict
        The sidecar as written.
    """
    path = Path(path)
    if path.suffix != ".ckpt":
        raise UserError(f"checkpoint name {str(path)!r} must end in .ckpt")
    runtime.prepare()
    import mindspore as ms

    arrays = net if isinstance(net, dict) else {p.name: p.asnumpy() for p in net.get_parameters()}
    if dtype is not None:
        kind = {"fp32": np.float32, "fp16": np.float16}[dtype]
        arrays = {n: a.astype(kind) if np.issubdtype(a.dtype, np.floating) else a for n, a in arrays.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            temporary = os.path.join(folder, path.name)
            # Parameters of shape () become (1,) in some MindSpore versions: write them as they are, check on loading.
            ms.save_checkpoint(
                [{"name": n, "data": ms.Tensor(np.ascontiguousarray(a))} for n, a in arrays.items()], temporary
            )
            os.chmod(temporary, 0o644)
            facts = {"format": FORMAT, **sidecar}
            facts["output"] = {
                "file": path.name,
                "sha256": files.sha256(temporary),
                "parameters": int(sum(a.size for a in arrays.values())),
                "tensors": len(arrays),
            }
            # The old sidecar goes first: a kill between the two renames leaves a checkpoint without facts, which is
            # refused, never one with the facts of another.
            if sidecar_path(path).exists():
                sidecar_path(path).unlink()
            os.replace(temporary, path)
            files.write_json(sidecar_path(path), facts)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from None
    return facts


def load_model(path, train=False):
    """Build the network that a checkpoint's sidecar describes and load the weights strictly.

    Parameters
    ----------
    path : str or Path
    train : bool
        Leave the cell in training mode.

    Returns
    -------
    mindspore.nn.Cell
        Takes float32 (N, 3, h, w) and gives raw logits as the source model gives them; the sidecar is its attribute
        ``sidecar``.
    """
    facts = read_sidecar(path)
    from . import models

    net = models.create(facts["architecture"], **facts.get("arguments", {}))
    load_strict(net, load_arrays(path), what=f"checkpoint {str(path)!r}")
    net.set_train(train)
    net.sidecar = facts
    return net
