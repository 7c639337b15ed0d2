"""MindSpore's checkpoint format: read without trusting the file, written byte for byte as MindSpore does."""

import binascii
import math
import mmap
import os
from pathlib import Path
from typing import Any, Dict, Mapping, Union

import numpy as np

from ..errors import UserError

META = "__meta__"  # the array that tells the state of a training run from a checkpoint of weights


def load_arrays(path: Union[str, Path]) -> Dict[str, np.ndarray]:
    """Read a MindSpore checkpoint as NumPy arrays.

    Returns
    -------
    dict of str to numpy.ndarray
        In the order and with the data types of the file (bfloat16 becomes float32).

    Raises
    ------
    UserError
        The file is missing or is not a checkpoint.
    """
    if not Path(path).is_file():
        raise UserError(f"checkpoint {str(path)!r} does not exist")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            return _arrays(buffer, file)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}") from None
    except (ValueError, IndexError) as error:
        raise UserError(f"{str(path)!r} cannot be read as a MindSpore checkpoint: {error}") from None


# --- the file format -------------------------------------------------------------------------------------------------
# mindspore.load_checkpoint copies as many bytes as a tensor's shape asks for without checking how many the file holds:
# a damaged file overwrites the heap (seen in 2.8.0: "free(): invalid next size"). So the file is read here: the
# protobuf wire format of mindspore/train/checkpoint.proto (Apache-2.0), only the fields that are needed.
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
    """Yield (field number, value) of one message; a bytes value is given as (start, end) in the buffer."""
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
            raise ValueError(f"a field of the unknown kind {kind}: damaged file, or not a checkpoint")
        yield key >> 3, value


def _text(buffer, place):
    if not isinstance(place, tuple) or place[1] - place[0] > 4096:
        raise ValueError("the name of a tensor is not text: damaged file")
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


def _arrays(buffer, file):
    """All tensors of a mapped file; the pieces of a large tensor follow each other under the same name.

    The values are read from ``file``: touched pages of the map would use memory in addition to the copy.
    """
    end = len(buffer)
    if buffer[-17:-10] == b"crc_num":
        end -= 17
        with memoryview(buffer) as whole, whole[:end] as part:
            checksum = binascii.crc32(part)
        if checksum != int.from_bytes(buffer[-10:], "big"):
            raise ValueError("its checksum differs: damaged file")
    found, complete = {}, {}
    for number, place in _fields(buffer, 0, end):
        if number != 1 or not isinstance(place, tuple):
            raise ValueError("no list of tensors: damaged file, or not a checkpoint")
        fields = dict(_fields(buffer, *place))
        name = _text(buffer, fields.get(1))
        if not isinstance(fields.get(2), tuple):
            continue  # a hash table of parameters, which none of the networks has
        shape, kind, content = _tensor(buffer, *fields[2])
        if kind == "str":
            continue
        if kind not in _TYPES:
            raise ValueError(f"{name!r} is of the type {kind!r}, which is not supported")
        if complete.get(name, False):
            raise ValueError(f"{name!r} appears twice: damaged file")
        pieces = found.setdefault(name, (shape, kind, []))[2]
        if found[name][:2] != (shape, kind):
            raise ValueError(f"the pieces of {name!r} do not fit together: damaged file")
        pieces.append(content)
        # MindSpore writes the shape () as (0,).
        wanted = math.prod(shape if shape != (0,) else ()) * np.dtype(_TYPES[kind]).itemsize
        complete[name] = sum(stop - start for start, stop in pieces) >= wanted
    if not found:
        raise ValueError("it holds no tensor")
    return {name: _joined(file, name, *parts) for name, parts in found.items()}


def _joined(file, name, shape, kind, pieces):
    dtype = np.dtype(_TYPES[kind])
    size, rest = divmod(sum(stop - start for start, stop in pieces), dtype.itemsize)
    shape = () if shape == (0,) and size == 1 else shape
    if rest or size != math.prod(shape):
        raise ValueError(f"{name!r} of shape {shape} has {size} values: truncated or damaged file")
    values = np.empty(size, dtype)
    into = memoryview(values.view(np.uint8))
    for start, stop in pieces:
        file.seek(start)
        if file.readinto(into[: stop - start]) != stop - start:
            raise ValueError(f"{name!r} ends early: the file changed while it was read")
        into = into[stop - start :]
    if kind == "BFloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(shape)


_PIECE = 1 << 29  # bytes of values in one record: protobuf readers take no message of 2 GiB


def write_arrays(arrays: Mapping[str, Any], path: Union[str, Path]) -> None:
    """Write arrays as MindSpore's ``save_checkpoint`` does, byte for byte, and flush them to the disk.

    Unlike MindSpore it logs nothing on a full disk and does not copy every tensor.

    Parameters
    ----------
    arrays : dict of str to numpy.ndarray or mindspore.Tensor
    path : str or Path
        Written in place; see :func:`aidet.ckpt.save` for a file that is complete or absent.
    """
    types = {np.dtype(code): name for name, code in reversed(_TYPES.items())}
    types[np.dtype("<u2")] = "UInt16"
    with open(path, "wb") as file:
        for name, array in arrays.items():
            kind, array = _plain(array)
            kind = kind or types.get(array.dtype.newbyteorder("<"))
            if kind is None:
                raise UserError(f"{name!r} is of the type {array.dtype}, which a checkpoint cannot hold")
            dims = b"".join(b"\x08" + _number(n) for n in array.shape)
            flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
            data = flat.view(np.uint8).data
            for start in range(0, max(1, len(data)), _PIECE):
                piece = data[start : start + _PIECE]
                inner = dims + _bytes_field(2, kind.encode()) + b"\x1a" + _number(len(piece))
                tensor = b"\x12" + _number(len(inner) + len(piece)) + inner
                tag = _bytes_field(1, name.encode())
                file.write(b"\x0a" + _number(len(tag) + len(tensor) + len(piece)) + tag + tensor)
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _plain(array):
    """(type or None, array) of an array or tensor; one at a time, because a copy of all may not fit into memory."""
    if not hasattr(array, "asnumpy"):
        return None, np.asarray(array)
    if str(array.dtype) == "BFloat16":  # which NumPy does not have
        return "BFloat16", (array.float().asnumpy().view(np.uint32) >> 16).astype("<u2")
    return None, array.asnumpy()


def _number(value):
    """A varint."""
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _bytes_field(number, data):
    return bytes([number << 3 | _BYTES]) + _number(len(data)) + data
