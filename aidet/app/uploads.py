"""Uploads: images and zip archives, read within limits and never unpacked to disk."""

import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence, Tuple, Union

from .. import dialect, images
from ..errors import UserError
from ..images import walking

MB = 1 << 20
Source = Union[str, Path, io.BytesIO]


@dataclass(frozen=True)
class Limits:
    """Limits of one request.

    Attributes
    ----------
    images : int
        Number of images in a batch.
    megabytes : int
        Size of one image, as uploaded or unpacked.
    upload_megabytes : int
        Size of one uploaded file: an archive may be larger than an image.
    total_megabytes : int
        Size of all files of a batch together, unpacked.
    pixels : int
        Width times height of one image.
    """

    images: int = 200
    megabytes: int = 32
    upload_megabytes: int = 128
    total_megabytes: int = 512
    pixels: int = 50_000_000

    @classmethod
    def of(cls, images: int, megabytes: int, pixels: int) -> "Limits":
        """With these limits of single images; those of uploads are the default ones, or higher if an image needs it."""
        upload, total = max(cls.upload_megabytes, megabytes), max(cls.total_megabytes, megabytes)
        return cls(images, megabytes, upload, total, pixels)


class Unusable:
    """Stands in for a file that cannot be used; decoding it reports the reason in that file's row."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def read(self, *_: Any) -> bytes:
        """Raise :class:`aidet.images.ImageError` with the reason."""
        raise images.ImageError(self.reason)

    def seek(self, *_: Any) -> None:
        """Do nothing; Pillow rewinds before it reads."""


def safe_name(name: str) -> str:
    """The last part of a path, without control characters; it is shown, and it seeds the views."""
    last = str(name).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable())[:200] or "image"


def checked(source: Source, limits: Limits) -> Union[Source, Unusable]:
    """``source`` itself, or an :class:`Unusable` if the file or its image exceeds a limit.

    Parameters
    ----------
    source : str, Path or io.BytesIO
    limits : Limits
    """
    size = source.getbuffer().nbytes if isinstance(source, io.BytesIO) else os.path.getsize(source)
    if size > limits.megabytes * MB:
        return Unusable(f"{size / MB:.1f} MB, more than the limit of {limits.megabytes} MB")
    try:
        with images.opened(source) as image:
            width, height = image.size
    except Exception:  # noqa: BLE001 - decoding will report what is wrong
        width = height = 0
    if isinstance(source, io.BytesIO):
        source.seek(0)
    if width * height > limits.pixels:
        return Unusable(
            f"{width}x{height} pixels, more than the limit of {limits.pixels}; the application's --max-pixels raises it"
        )
    return source


class Batch:
    """The images of a request: files and the contents of zip archives, in the given order.

    Iterating reads one image at a time into memory. So nothing from an archive is ever written to disk, and no name in
    it is ever used as a path.

    Parameters
    ----------
    files : list of str or Path
        The uploaded files.
    names : list of str, optional
        Their original names; default: the names of the files.
    limits : Limits, optional

    Attributes
    ----------
    left_out : list of (str, str)
        What the archives contain beside images: name, and ``kind`` (not an image), ``hidden`` or ``link``.

    Raises
    ------
    UserError
        No image, too many, or a broken or encrypted archive.
    """

    def __init__(
        self,
        files: Sequence[Union[str, Path]],
        names: Optional[Sequence[str]] = None,
        limits: Optional[Limits] = None,
    ) -> None:
        self.limits = limits or Limits()
        # Shown name, path, and the member if the file is an archive.
        self.entries: List[Tuple[str, Union[str, Path], Optional[zipfile.ZipInfo]]] = []
        self.left_out: List[Tuple[str, str]] = []
        for path, name in zip(files, names or [Path(f).name for f in files]):
            if Path(name).suffix.lower() == ".zip" or (Path(name).suffix == "" and zipfile.is_zipfile(path)):
                self.entries += [(info.filename, path, info) for info in members(path, name, self.left_out)]
            else:
                self.entries.append((safe_name(name), path, None))
            if len(self.entries) > self.limits.images:
                raise UserError(f"{len(self.entries)} images, more than the limit of {self.limits.images}; send fewer")
        if not self.entries:
            raise UserError("no image in it; send images, or a zip archive that holds some")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Tuple[str, Union[Source, Unusable]]]:
        """Yield (name, source for :func:`aidet.images.decode`)."""
        left = self.limits.total_megabytes * MB
        source: Union[Source, Unusable]
        for name, path, info in self.entries:
            if info is None:
                left -= os.path.getsize(path)
                source = path
            else:
                source, size = self._unpacked(path, info, left)
                left -= size
            if left < 0 and not isinstance(source, Unusable):
                source = Unusable(f"over the limit of {self.limits.total_megabytes} MB of one batch")
            yield name, source if isinstance(source, Unusable) else checked(source, self.limits)

    def _unpacked(self, path, info, left):
        """(BytesIO or Unusable, number of bytes read). The size stated in the archive is not trusted."""
        most = min(self.limits.megabytes * MB, max(left, 0))
        try:
            with zipfile.ZipFile(path) as archive, archive.open(info) as file:
                data = file.read(most + 1)
        except Exception as error:  # noqa: BLE001 - zlib, lzma and zipfile raise their own types on damaged members
            return Unusable(f"cannot be unpacked ({type(error).__name__})"), 0
        if len(data) > self.limits.megabytes * MB:
            return Unusable(f"unpacks to more than the limit of {self.limits.megabytes} MB"), len(data)
        return io.BytesIO(data), len(data)


def _by_content(path, info, kind):
    """Whether a member without the extension of an image begins like one."""
    if kind in walking.OTHER or info.flag_bits & 1:
        return False
    try:
        with zipfile.ZipFile(path) as archive, archive.open(info) as file:
            return walking.looks_like_image(io.BytesIO(file.read(walking.HEAD)), kind in walking.RAW)
    except Exception:  # noqa: BLE001 - as in Batch._unpacked
        return False


def _shown(info):
    """The name of a member without control characters.

    Names that are not marked as UTF-8 are read as CP437. Windows in China writes GBK, and some programs UTF-8.
    """
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():
        raw = name.encode("cp437", "replace")
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            name = raw.decode("gb18030") if dialect.code_page(raw) == "gb18030" else name
    return "".join(c for c in name if c.isprintable())


def members(path: Union[str, Path], name: str, left: Optional[List[Tuple[str, str]]] = None) -> List[zipfile.ZipInfo]:
    """The images of a zip archive in natural order; folders, links, hidden and other files are left out.

    Parameters
    ----------
    path : str or Path
    name : str
        Original name of the archive, for the error message.
    left : list, optional
        Gets the name of every file that is left out, and why: ``kind``, ``hidden`` or ``link``.

    Returns
    -------
    list of zipfile.ZipInfo

    Raises
    ------
    UserError
        The file is not a zip archive, or it is encrypted.
    """
    from ..records import natural_key

    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{safe_name(name)!r} is not a zip archive that can be read: {error}") from None
    kept = []
    for info in infos:
        parts = info.filename.replace("\\", "/").split("/")
        is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
        hidden = any(p.startswith(".") and p not in (".", "..") or p.lower() in walking.LITTER for p in parts)
        kind = os.path.splitext(info.filename)[1].lower()
        if info.is_dir():
            continue
        if is_link or hidden or not (kind in images.EXTENSIONS or _by_content(path, info, kind)):
            if left is not None:
                left.append((_shown(info), "link" if is_link else "hidden" if hidden else "kind"))
            continue
        if info.flag_bits & 1:
            raise UserError(f"{safe_name(name)!r} is encrypted; send it without a password")
        info.filename = _shown(info)
        kept.append(info)
    return sorted(kept, key=lambda i: natural_key(i.filename))
