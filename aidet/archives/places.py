"""The path of an image in an archive, ``ARCHIVE#NAME``, and the bytes behind it.

``shard-0003.tar#00012.jpg`` is the member ``00012.jpg`` of a tar file, ``train.parquet#17`` row 17 (from 0) of a
Parquet file. All commands pass such paths around as they do those of files, so that an archive needs no code of its own
anywhere else. Nothing is unpacked to the disk.
"""

import importlib
import os
import re
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import BinaryIO, Dict, Iterator, List, Optional, Tuple, Union

from ..errors import UserError
from . import remote

Place = Union[str, "os.PathLike[str]"]
# Extension -> the file of this room that reads it, and its class.
FORMATS = {
    ".parquet": ("parquet", "Parquet"),
    ".arrow": ("parquet", "Arrow"),
    ".tar": ("tars", "Tar"),
    ".zip": ("zips", "Zip"),
    ".mindrecord": ("mindrecord", "MindRecord"),
}
SUFFIXES = tuple(FORMATS)
ON_DISK = (".arrow", ".mindrecord")  # mapped into memory, or opened by MindSpore
# MindSpore numbers the parts of one data set behind the extension: x.mindrecord0, x.mindrecord1.
_PATH = re.compile(r"(.*?(?:\.parquet|\.arrow|\.tar|\.zip|\.mindrecord[0-9]*))#(.*)", re.IGNORECASE | re.DOTALL)
MAX_BYTES = 256 << 20  # of one image; more is a bomb
OPEN = 16  # archives that a process keeps open


class ArchiveError(OSError):
    """An archive, or an image in it, that cannot be read. The message is the reason shown in the row of the image."""


class Archive(ABC):
    """An archive that is open.

    Parameters
    ----------
    path : str
        A file.

    Attributes
    ----------
    path : str
    chunks : list of int or None
        Numbers of consecutive images that can only be read together; None if each is read on its own.
    by_number : bool
        Its names are the numbers of rows, all of them images; else they are those of files, of which some are.

    Raises
    ------
    ArchiveError
        It cannot be read.
    UserError
        A package that reads it is missing, or it has no images by its schema.
    """

    chunks: Optional[List[int]] = None
    by_number = False

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def names(self) -> Iterator[str]:
        """What it holds, in its own order: names of members, or numbers of rows.

        An archive that ends before it should has an empty name at its end: reading that one raises the reason.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one of :meth:`names`; raise :class:`ArchiveError` with the reason if they cannot be had."""

    def columns(self) -> Dict[str, List[str]]:
        """What it says of its images beside their bytes: one cell for each of :meth:`names`."""
        return {}

    def close(self) -> None:  # noqa: B027 - not all formats hold a file open
        """Close the file."""


def suffix(path: Place) -> str:
    """The extension of an archive, without the number of MindRecord's parts; ``""`` if it is no archive's."""
    found = re.sub(r"(\.mindrecord)[0-9]+$", r"\1", os.path.splitext(os.fspath(path))[1].lower())
    return found if found in FORMATS else ""


def is_archive(path: Place) -> bool:
    """Whether a path is that of an archive, by its extension; not that of an image in one."""
    return bool(suffix(path)) and (remote.is_address(path) or os.path.isfile(path))


def joined(archive: Place, name: str) -> str:
    """The path of an image in an archive."""
    return f"{os.fspath(archive)}#{name}"


def parted(path: Place) -> Optional[Tuple[str, str]]:
    """``(archive, name)`` of a path in an archive; None for any other path, and for a file that has such a name."""
    text = os.fspath(path)
    found = _PATH.fullmatch(text) if "#" in text else None
    if found is not None and remote.is_address(text):
        return found[1], found[2]  # asking the store for each image would take longer than reading it
    if found is None or not os.path.isfile(found[1]) or os.path.lexists(text):
        return None
    return found[1], found[2]


def apart(path: Place) -> bool:
    """Whether an image is to be read with :func:`read`: in an archive, or at an address (:mod:`.remote`)."""
    return remote.is_address(path) or parted(path) is not None


def read(path: Place) -> bytes:
    """The bytes of an image in an archive or at an address.

    Parameters
    ----------
    path : str or Path
        As :func:`joined` makes it, or an address.

    Raises
    ------
    ArchiveError
        No such archive, no such image, or damage; with the reason.
    """
    found = parted(path)
    if found is None and remote.is_address(path):
        return _at(os.fspath(path))
    if found is None:
        raise ArchiveError("no such archive")
    try:
        return open_archive(found[0]).read(found[1])
    except UserError as error:  # among many files one that cannot be read is a row, not the end
        raise ArchiveError(str(error)) from None


def _at(address: str) -> bytes:
    try:
        data = remote.read(address, MAX_BYTES + 1)
    except FileNotFoundError:
        raise ArchiveError("no such file") from None
    except OSError as error:
        raise ArchiveError(_line(error)) from None
    if len(data) > MAX_BYTES:
        raise ArchiveError(f"larger than {MAX_BYTES >> 20} MB")
    return data


def _line(error: OSError) -> str:
    return " ".join(str(error.strerror or error).split())[:200]


def opened(path: str) -> BinaryIO:
    """Open the file of an archive, on a disk or at an address; raise :class:`ArchiveError` with the reason."""
    try:
        return remote.opened(path) if remote.is_address(path) else open(path, "rb", buffering=0)
    except OSError as error:
        raise ArchiveError(_line(error)) from None


def exists(path: Place) -> bool:
    """Whether a file is there, or the archive of an image."""
    return os.path.isfile(path) or parted(path) is not None


def size(path: Place) -> int:
    """Bytes of a file, or of an image in an archive; raise ``OSError`` if it cannot be read."""
    return os.path.getsize(path) if parted(path) is None else len(read(path))


_open: "OrderedDict[Tuple[str, int, int], Archive]" = OrderedDict()
_lock = threading.Lock()


def _key(path: str) -> Tuple[str, int, int]:
    """What tells an archive from others, and from itself after a change; a store is not asked."""
    if remote.is_address(path):
        if suffix(path) in ON_DISK:
            raise ArchiveError(f"{suffix(path)} files are read from disks only; pack the set as Parquet or tar")
        return path, 0, 0
    try:
        about = os.stat(path)
    except OSError as error:
        raise ArchiveError(error.strerror or str(error)) from None
    return os.path.abspath(path), about.st_mtime_ns, about.st_size


def open_archive(path: Place) -> Archive:
    """Open an archive; the last :data:`OPEN` stay open.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Archive

    Raises
    ------
    ArchiveError, UserError
        See :class:`Archive`.
    """
    key = _key(os.fspath(path))
    with _lock:
        known = _open.get(key)
        if known is None:
            file, name = FORMATS[suffix(path)]
            known = getattr(importlib.import_module("." + file, __package__), name)(os.fspath(path))
            _open[key] = known
        _open.move_to_end(key)
        # One that another thread is still reading is closed when nothing refers to it.
        while len(_open) > OPEN:
            _open.popitem(last=False)
    return known
