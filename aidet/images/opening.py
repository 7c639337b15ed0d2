"""Opening image files with Pillow, their pixels not yet decoded."""

import io
import os
import struct
import threading
import warnings
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, Iterator, Optional, Tuple

from PIL import Image, UnidentifiedImageError

from .. import archives
from . import containers, extras, tiff, walking

PLUGINS = {"HEIF", "JXL"}  # names under which others register formats of aidet.images.extras
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

# Pillow's own guard against decompression bombs warns at 89 million pixels and raises at twice that; ours is explicit,
# so that a decoder's memory has a known bound (3 bytes a pixel, a few copies).
MAX_PIXELS = 120_000_000


class _Quiet:
    """Ignores warnings while any thread is inside.

    ``warnings.catch_warnings`` affects the whole process: of two threads the first to leave would restore the other's
    warnings, which would be printed or, if warnings are errors, make an image unusable.
    """

    def __init__(self):
        self._lock, self._inside, self._before = threading.Lock(), 0, None

    def __enter__(self):
        with self._lock:
            if not self._inside:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *error):
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.__exit__(*error)


quiet = _Quiet()


@contextmanager
def opened(source: Any) -> Iterator[Image.Image]:
    """An image file opened by Pillow, its pixels not decoded; its size is not checked.

    Parameters
    ----------
    source : str, Path or binary file
        A file, or an image in an archive (:mod:`aidet.archives`).

    Yields
    ------
    PIL.Image.Image
        Without metadata that keep Pillow from opening the file.

    Raises
    ------
    Exception
        Pillow's own, nearly any type, if the file cannot be opened.
    """
    if isinstance(source, (str, os.PathLike)) and archives.apart(source):
        source = io.BytesIO(archives.read(source))
    first: Optional[Exception] = None
    for level in (None, *containers.LEVELS):
        picture = None if level is None else beside(source, level)
        if level is not None and picture is None:
            continue
        with ExitStack() as stack:
            try:
                file = source
                if picture is not None:
                    file = picture.open(stack.enter_context(binary(source)))
                with quiet:
                    image = stack.enter_context(pillow(file))
            except Exception as error:  # noqa: BLE001 - see decode
                first = first or error
                continue
            yield image
            return
    assert first is not None
    decoded = _by_extra(source) if isinstance(first, UnidentifiedImageError) else None
    if decoded is None:
        raise first
    yield decoded


def kind(source: Any) -> Optional[str]:
    """:func:`aidet.images.extras.kind` of a file; None if it cannot be read."""
    try:
        with binary(source) as file:
            return extras.kind(file.read(walking.HEAD))
    except (OSError, ValueError):
        return None


def _by_extra(source: Any) -> Optional[Image.Image]:
    """A HEIC or JPEG XL file, decoded; None if it is none or there is nothing to decode it."""
    key = kind(source)
    if key is None or not extras.installed(key):
        return None
    image = extras.decode(key, source, MAX_PIXELS).image
    if image is not None:
        image.format = {"heif": "HEIF", "jxl": "JXL"}[key]
    return image


def beside(source: Any, level: int) -> Optional[containers.Picture]:
    """What :func:`aidet.images.containers.picture` says of a file or an open one."""
    try:
        with quiet, binary(source) as file:
            return containers.picture(file, level)
    except (OSError, ValueError, AttributeError):
        return None  # Pillow reports the reason


@contextmanager
def binary(source: Any) -> Iterator[BinaryIO]:
    """A file opened, an image in an archive, or an open file, which stays open and is rewound."""
    if isinstance(source, (str, os.PathLike)):
        if archives.apart(source):
            yield io.BytesIO(archives.read(source))
            return
        with open(source, "rb") as file:
            yield file
        return
    source.seek(0)
    try:
        yield source
    finally:
        source.seek(0)


def pillow(source: Any) -> Image.Image:
    """``Image.open`` without Pillow's limit of 179 million pixels, which is one for the whole process.

    HEIC and JPEG XL stay with :mod:`.extras`, in a process of their own, even where another library has given Pillow a
    plugin that decodes them in this one, as imageio does.
    """
    if not PLUGINS.isdisjoint(Image.OPEN) and kind(source) is not None:
        raise UnidentifiedImageError("left to aidet.images.extras")
    try:
        return Image.open(source)
    except Image.DecompressionBombError:
        return _plugin(source)


def _plugin(source: Any) -> Image.Image:
    """Open a file with the plugin for its format; the pixels are not decoded, and the size is checked by the caller."""
    named = isinstance(source, (str, os.PathLike))
    with binary(source) as file:
        prefix = file.read(16)
    for name in Image.ID:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(prefix) is not True:
            continue
        try:
            return factory(source, os.fspath(source) if named else "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    raise Image.DecompressionBombError


def unidentified(source: Any) -> str:
    """Why a file is no image that Pillow reads, with what to do where that is known."""
    try:
        with binary(source) as file:
            head = file.read(walking.HEAD)
            kind = tiff.tags(file, (258, 277, 339)) if head[:2] in (b"II", b"MM") else {}
    except (OSError, ValueError):
        head, kind = b"", {}
    key = extras.kind(head)
    if key is not None:
        return extras.remedy(key)
    if head[4:8] == b"ftyp" and head[8:12] in walking.AVIF:
        return "AVIF, damaged, or this Pillow does not read it: pip install 'pillow>=11.3'"
    if head[12:16] == b"CgBI":
        return "a PNG in Apple's own form (CgBI), which Pillow does not read; save it as an ordinary PNG"
    if kind.get(258, (8,))[0] not in (1, 2, 4, 8) or kind.get(339, (1,))[0] != 1:
        form = {2: "signed integer", 3: "float"}.get(kind.get(339, (1,))[0], "integer")
        samples = kind.get(277, (1,))[0]
        return (
            f"TIFF with {samples} samples of {kind.get(258, (1,))[0]} bits ({form}), a kind which Pillow "
            "does not read; save it with 8 or 16 bits"
        )
    return "not an image that Pillow can read"


def upright_size(source: Any) -> Tuple[int, int]:
    """Width and height of an upright image, from its header; errors are Pillow's own, of nearly every type."""
    with opened(source) as image:
        return image.size[::-1] if image.getexif().get(0x0112, 1) in SIDEWAYS else image.size
