"""Checkpoints that cannot lie: strict loading, atomic saving, a JSON sidecar with the facts, SHA-256 of the file.

A checkpoint ``x.ckpt`` is MindSpore's own format, so ``mindspore.load_checkpoint`` reads it. ``x.json`` beside it is
the sidecar: architecture and arguments, class order, preprocessing, source, parity, hash. Everything that uses a model
takes these facts from there, never from flags alone.
"""

import binascii
import functools
import math
import mmap
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np

from . import files, labels
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
    check_facts(facts, f"sidecar {str(sidecar_path(path))!r}")
    if check_hash:
        Sidecar(facts, path).verify()
    return facts


_KINDS = {"output": dict, "arguments": dict, "input": dict, "class_order": list, "classes": list}


def check_facts(facts, what):
    """Hold what a sidecar, or a model's metadata, says to its form; :class:`UserError` names the wrong entry."""
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or not isinstance(facts.get("architecture"), str):
        raise UserError(f"{what} is not of format {FORMAT}: it needs 'format' and 'architecture'")
    for name, kind in _KINDS.items():
        if not isinstance(facts.get(name), (kind, type(None))):
            raise UserError(f"{what}: {name!r} is a {type(facts[name]).__name__}, wanted a {kind.__name__}")
    for name in ("class_order", "classes"):
        if any(not isinstance(value, str) for value in facts.get(name) or ()):
            raise UserError(f"{what}: {name!r} must be texts")


@dataclass(frozen=True)
class Voting:
    """How a detector's views are made and counted; see :class:`aidet.vote.Views`, which checks the values.

    Attributes
    ----------
    votes : int
        Views of each image.
    views : str
        ``random``, ``native``, ``grid``, ``pyramid`` or a pipeline line.
    weights : str
        ``equal`` or ``detail``.
    """

    votes: int = 1
    views: str = "random"
    weights: str = "equal"

    def settings(self, votes: Optional[int] = None, kind: Optional[str] = None, **others: Any) -> Dict[str, Any]:
        """Arguments of :class:`aidet.vote.Views`; what the caller leaves open (None) is as stated here.

        A detector is to be used with the views that it was measured with, and its threshold chosen for.
        """
        votes = self.votes if votes is None else votes
        kind = self.views if kind is None else kind
        return {"votes": votes, "kind": kind, "weights": self.weights, **others}


@dataclass(frozen=True, eq=False)
class Sidecar:
    """The facts of one model: what the JSON file beside a checkpoint, or the metadata of an exported ``.onnx``, says.

    Made by :meth:`read` or :meth:`from_facts`, which check the form. What only some models have, and only some users
    need (the class order of a detector, its threshold), is checked when it is asked for, so that a backbone or an
    autoencoder can be read like any other model.

    Parameters
    ----------
    raw : dict
        The facts as they are in the file. Not to be changed.
    path : str or Path
        The model that they describe; errors name it.
    """

    raw: Dict[str, Any]
    path: Union[str, Path]

    @classmethod
    def read(cls, path: Union[str, Path], check_hash: bool = True) -> "Sidecar":
        """The sidecar of a checkpoint; parameters and errors as of :func:`read_sidecar`."""
        return cls(read_sidecar(path, check_hash), path)

    @classmethod
    def from_facts(cls, facts: Dict[str, Any], path: Union[str, Path], what: str) -> "Sidecar":
        """Facts that came from elsewhere, such as the metadata of an ONNX file.

        Parameters
        ----------
        facts : dict
        path : str or Path
            The model that they describe.
        what : str
            Where the facts come from, for the error.

        Raises
        ------
        UserError
            They are not of the form of a sidecar.
        """
        check_facts(facts, what)
        return cls(facts, path)

    def verify(self) -> None:
        """Compare the checkpoint with the hash that its sidecar states, if any; :class:`UserError` if they differ."""
        if self.sha256 and files.sha256(self.path) != self.sha256:
            raise UserError(
                f"{str(self.path)!r} is not the file its sidecar describes (sha256 differs); copy both again"
            )

    # --- the network -------------------------------------------------------------------------------------------------
    @property
    def architecture(self) -> str:
        """Name that :func:`aidet.models.create` knows."""
        return self.raw["architecture"]

    @property
    def arguments(self) -> Dict[str, Any]:
        """Arguments of :func:`aidet.models.create`."""
        return self.raw.get("arguments") or {}

    @property
    def sha256(self) -> Optional[str]:
        """Hash of the checkpoint as stated, in hex; an exported file states that of the checkpoint it was made from."""
        return (self.raw.get("output") or {}).get("sha256")

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the checkpoint, in hex: as stated, else that of the file."""
        return self.sha256 or files.sha256(self.path)

    # --- its output --------------------------------------------------------------------------------------------------
    @property
    def classes(self) -> Optional[List[str]]:
        """Name of each output, if known."""
        return self.raw.get("classes")

    @property
    def class_order(self) -> Optional[List[str]]:
        """``real`` or ``generated`` for each output, as stated; None if the model is no detector."""
        return self.raw.get("class_order")

    @property
    def detector_order(self) -> List[str]:
        """The class order of a detector; :class:`UserError` if the model is none."""
        order = self.class_order
        if not order or any(o not in labels.NAMES for o in order):
            classes = self.classes or []
            shown = ", ".join(map(str, classes[:4])) + (", ..." if len(classes) > 4 else "")
            raise UserError(
                f"{str(self.path)!r} is no detector: its classes ({shown or 'unknown'}) do not mean real and generated"
            )
        return order

    @property
    def threshold(self) -> float:
        """Threshold on the probability of *generated*, above 0 and below 1; 0.5 if none is stated.

        :class:`UserError` if it is no such number.
        """
        value = self.raw.get("threshold")
        if value is None:
            return 0.5
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise UserError(f"sidecar of {str(self.path)!r}: threshold (={value!r}) must be between 0 and 1")
        return float(value)

    @property
    def calibration(self) -> Tuple[float, float]:
        """Scale and offset of Platt's calibration: a score ``s`` is read as ``scale * (s - offset)``.

        It is monotone, so that no order and no AUC changes; it puts the decision boundary at 0 and the probability
        where the validation images say (Platt 1999). (1, 0) if none is stated; :class:`UserError` if the scale is not
        a number above 0 or the offset not a number.
        """
        own = self.raw.get("calibration") or {}
        pair = (own.get("scale", 1.0), own.get("offset", 0.0)) if isinstance(own, dict) else (None, None)
        good = all(isinstance(v, (int, float)) and not isinstance(v, bool) and np.isfinite(v) for v in pair)
        if not good or pair[0] <= 0:
            raise UserError(
                f"sidecar of {str(self.path)!r}: calibration (={own!r}) must have a scale above 0 and an offset"
            )
        return float(pair[0]), float(pair[1])

    @property
    def voting(self) -> Voting:
        """The views that the detector was measured with; if none are stated one, or random ones if more are asked for.

        :class:`UserError` if they are no mapping of the known keys.
        """
        own = self.raw.get("voting") or {}
        if not isinstance(own, dict) or set(own) - {"votes", "views", "weights"}:
            keys = "votes, views, weights"
            raise UserError(f"sidecar of {str(self.path)!r}: voting (={own!r}) must be a mapping with the keys {keys}")
        return Voting(**own)

    # --- its input ---------------------------------------------------------------------------------------------------
    @property
    def transform(self) -> Optional[str]:
        """The evaluation pipeline as a line; None for a network that takes no image."""
        return self._input.get("transform")

    @property
    def detector_transform(self) -> str:
        """The evaluation pipeline of a detector as a line; :class:`UserError` if none is stated."""
        if not self.transform:
            raise UserError(f"the sidecar of {str(self.path)!r} names no input.transform; convert or train it again")
        return self.transform

    @property
    def views_line(self) -> Optional[str]:
        """The pipeline of random views as a line, if stated."""
        return self._input.get("views")

    @property
    def size(self) -> Optional[Tuple[int, int]]:
        """Height and width of the input in pixels; None if it is not fixed."""
        size = self._input.get("size")
        return tuple(size) if size else None

    @property
    def channels(self) -> int:
        """Channels of the input; 3 if none are stated."""
        stated = self._input.get("channels")
        return stated if isinstance(stated, int) else 3

    @property
    def value_range(self) -> Tuple[float, float]:
        """Values of a black and a white pixel in the input of an autoencoder; (0, 1) if none are stated."""
        low, high = self._input.get("range") or (0, 1)
        return low, high

    @property
    def multiple(self) -> Optional[int]:
        """What both sides of the input have to be a multiple of, in pixels, if stated."""
        stated = self._input.get("multiple")
        return int(stated) if stated else None

    @property
    def _input(self) -> Dict[str, Any]:
        return self.raw.get("input") or {}

    # --- where it came from ------------------------------------------------------------------------------------------
    @property
    def source_sha256(self) -> Optional[str]:
        """Hash of the file that the checkpoint was converted from, in hex, if stated."""
        return (self.raw.get("source") or {}).get("sha256")

    @property
    def source_layout(self) -> Optional[str]:
        """Layout of the file that the checkpoint was converted from (a name of the converter), if stated."""
        return (self.raw.get("source") or {}).get("layout")


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
            return _arrays(buffer, file)
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


def _arrays(buffer, file):
    """All tensors of a mapped file; pieces of a large one follow one another under the same name.

    The values are read from ``file``: what is touched of the map would count as memory beside their copy.
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


def write_arrays(arrays, path):
    """Write arrays as MindSpore's ``save_checkpoint`` does, byte for byte, and see them on the disk.

    Without its log lines on a full disk, and without its copy of every tensor.

    Parameters
    ----------
    arrays : dict of str to numpy.ndarray or mindspore.Tensor
    path : str or Path
        Written in place; see :func:`save` for a file that is whole or absent.
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
            data = memoryview(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8))
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
    """(type or None, array) of an array or tensor; one at a time, as a copy of all may be memory that is not there."""
    if not hasattr(array, "asnumpy"):
        return None, np.asarray(array)
    if str(array.dtype) == "BFloat16":  # which NumPy does not know
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
    arrays = net if isinstance(net, dict) else {p.name: p.asnumpy() for p in net.get_parameters()}
    if dtype is not None:
        kind = {"fp32": np.float32, "fp16": np.float16}[dtype]
        arrays = {n: a.astype(kind) if np.issubdtype(a.dtype, np.floating) else a for n, a in arrays.items()}
    try:
        with files.atomic_path(path) as temporary:
            write_arrays(arrays, temporary)
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
    return load_network(Sidecar.read(path), train)


def load_network(sidecar: Sidecar, train: bool = False) -> Any:
    """:func:`load_model` for a checkpoint whose sidecar has been read, and its hash compared, before."""
    net = _build(sidecar)
    load_strict(net, load_arrays(sidecar.path), what=f"checkpoint {str(sidecar.path)!r}")
    net.set_train(train)
    net.sidecar = sidecar.raw
    return net


def _build(sidecar):
    """The network that a sidecar describes. No size in it can be larger than the file, or the memory would be."""
    from . import models

    path, arguments = sidecar.path, sidecar.arguments
    size = Path(path).stat().st_size
    flat = [n for v in arguments.values() for n in (v if isinstance(v, (list, tuple)) else [v])]
    large = [n for n in flat if isinstance(n, (int, float)) and not abs(n) <= max(size, 1024)]
    if large:
        raise UserError(f"sidecar of {str(path)!r}: arguments hold {large[0]}, the file has {size} bytes")
    try:
        return models.create(sidecar.architecture, **arguments)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise UserError(
            f"sidecar of {str(path)!r}: {sidecar.architecture!r} cannot be built with {arguments}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def save_arrays(arrays: Dict[str, Any], path: Union[str, Path]) -> None:
    """Arrays or parameters as one MindSpore checkpoint without a sidecar, whole or not at all."""
    with files.atomic_path(path) as temporary:
        write_arrays(arrays, temporary)


def copy_checkpoint(source: Path, target: Path) -> None:
    """A checkpoint with its sidecar under another name, each file whole or not at all."""
    facts = read_sidecar(source, check_hash=False)
    facts["output"]["file"] = target.name
    # As in save(): never weights beside the facts of others.
    sidecar_path(target).unlink(missing_ok=True)
    # A second name for the same bytes where the file system has links: writing replaces a checkpoint, never changes it.
    temporary = target.with_name(f".{target.name}.link")
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # still there where target was a name of these bytes already
    except OSError:
        temporary.unlink(missing_ok=True)
        with files.atomic(target, "wb") as file, open(source, "rb") as original:
            shutil.copyfileobj(original, file, 1 << 20)
    files.write_json(sidecar_path(target), facts)
