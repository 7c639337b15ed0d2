"""What a user names on the command line: files, folders, archives, addresses, the standard input."""

import glob
import io
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO, Iterable, Iterator, Optional, Tuple, Union

from .. import __version__, archives, images
from ..datasets import archived
from ..datasets.lists import LIST_SUFFIXES
from ..datasets.sources import Inputs
from ..datasets.tables import TABLE_SUFFIXES
from ..errors import UserError
from ..records import natural_order

MAX_BYTES = 256 << 20  # of one image at an address or on the standard input
SECONDS = 30  # without an answer from an address
VIDEOS = frozenset(".mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .wmv .flv .3gp .ts".split())


class Unreadable(io.RawIOBase):
    """A file that gives no bytes but the reason, so that its row says it."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def readable(self) -> bool:
        """Reading is what fails."""
        return True

    def seekable(self) -> bool:
        """Pillow goes to the start of a file before it reads."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Do nothing."""
        return 0

    def read(self, size: int = -1) -> bytes:
        """Raise :class:`aidet.images.ImageError` with the reason."""
        raise images.ImageError(self.reason)


Source = Union[str, BinaryIO, Unreadable]


def items(names: Iterable[str], left: Optional[images.LeftOut] = None) -> Iterator[Tuple[str, Source]]:
    """The images that the words of a command line mean.

    Parameters
    ----------
    names : iterable of str
        A file; a folder, with everything below it (without images, its archives); a pattern with ``*``, ``?`` or
        ``[]``; a table or list (``.csv``, ``.tsv``, ``.jsonl``, ``.txt``); an archive (:mod:`aidet.archives`); an
        address ``http://`` or ``https://``; or ``-``, an image on the standard input. Addresses are fetched only if
        they are named here.
    left : aidet.images.LeftOut, optional
        Counts the files of folders that are no images.

    Yields
    ------
    (str, source)
        Name, and what :func:`aidet.images.decode` takes. What cannot be read, be it a whole list or folder, is a source
        whose decoding fails with the reason.
    """
    for name in names:
        try:
            yield from _of_one(name, left)
        except UserError as error:  # a list or folder that cannot be read costs its own row, not those of the others
            yield name, Unreadable(str(error))


def _of_one(name: str, left: Optional[images.LeftOut]) -> Iterator[Tuple[str, Source]]:
    extension = os.path.splitext(name)[1].lower()
    if name == "-":
        yield "-", _limited(sys.stdin.buffer, "the standard input")
    elif name.startswith(("http://", "https://")):
        yield name, fetched(name)
    elif archives.is_address(name):
        yield from Inputs(name)
    elif os.path.isdir(name):
        for relative in archived.walk(name, left):
            yield Path(name, relative).as_posix(), os.path.join(name, relative)
    elif not os.path.exists(name) and glob.has_magic(name):
        found = natural_order(glob.glob(name, recursive=True))
        for path in found:
            yield from _of_one(path, left)
        if not found:
            yield name, Unreadable("the pattern fits no file")
    elif extension in (*TABLE_SUFFIXES, *LIST_SUFFIXES) or archives.is_archive(name):
        yield from Inputs(name)
    elif extension in VIDEOS:
        yield name, Unreadable("a video; take its frames out first, for example: ffmpeg -i VIDEO -vf fps=1 f%04d.png")
    else:
        yield name, name


def _limited(file, what):
    """The file's bytes, or the reason why they are too many."""
    data = file.read(MAX_BYTES + 1)
    return io.BytesIO(data) if len(data) <= MAX_BYTES else Unreadable(f"{what} gives more than {MAX_BYTES >> 20} MB")


def fetched(address: str) -> Union[BinaryIO, Unreadable]:
    """The bytes at an ``http`` or ``https`` address: at most :data:`MAX_BYTES`, and no wait over :data:`SECONDS`.

    Returns
    -------
    binary file
        An :class:`Unreadable` with the reason if they cannot be had.
    """
    opener = urllib.request.OpenerDirector()  # the usual opener would also open ftp:// and file:// after a redirection
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor, urllib.request.HTTPDefaultErrorHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    request = urllib.request.Request(address, headers={"User-Agent": f"aidet/{__version__}", "Accept": "image/*"})
    try:
        with opener.open(request, timeout=SECONDS) as answer:
            return _limited(answer, "the address")
    except urllib.error.HTTPError as error:
        return Unreadable(f"the address answers {error.code} {error.reason}")
    except (OSError, ValueError, AttributeError) as error:  # AttributeError: a redirection to another kind of address
        return Unreadable(f"the address cannot be read ({getattr(error, 'reason', None) or error})")
