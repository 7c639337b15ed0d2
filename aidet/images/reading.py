"""From a file to pixels: decoding images, in the same way for every part of the project."""

import contextlib
import io
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Optional, Tuple, Union

import numpy as np
from PIL import Image, UnidentifiedImageError

from .. import archives
from ..errors import UserError, nearest
from . import containers, depth, extras, opening, walking

MAX_PIXELS = opening.MAX_PIXELS
MOST_MILLIONS = 2000  # megapixels that are worth raising the limit for; larger ones are damaged headers, or bombs
TRUNCATED = ("error", "score")
# Formats that Pillow passes to another program.
PROGRAMS = frozenset(("EPS",))

# What decode takes.
Source = Union[str, "os.PathLike[str]", BinaryIO, Image.Image, np.ndarray]
ORIENTATION = 0x0112  # EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class ImageError(Exception):
    """An input that cannot be used. The message is the reason shown in its result row."""


@dataclass(frozen=True)
class Reading:
    """How images are read; the same options in every command and in Python.

    Attributes
    ----------
    max_pixels : int
        Larger images are refused before they are decoded. Decoding takes 3 bytes a pixel and a few copies.
    truncated : {"error", "score"}
        A file whose end is missing: refuse it, or read what is there.

    Raises
    ------
    UserError
        A value out of range.
    """

    max_pixels: int = MAX_PIXELS
    truncated: str = "error"

    def __post_init__(self) -> None:
        if isinstance(self.max_pixels, bool) or not isinstance(self.max_pixels, int) or self.max_pixels < 1:
            raise UserError(f"max_pixels (={self.max_pixels!r}) must be a whole number >= 1")
        if self.truncated not in TRUNCATED:
            raise UserError(nearest(self.truncated, TRUNCATED, "truncated"))

    @classmethod
    def of(cls, options: Any) -> "Reading":
        """From the options of a command line (attributes of the same names), as far as it has them."""
        return cls(**{f.name: getattr(options, f.name) for f in fields(cls) if hasattr(options, f.name)})

    def read(self, source: Source) -> Tuple[Image.Image, str]:
        """Decode one image to RGB, see :func:`decode`; returns it with a note for its row, ``""`` if there is none."""
        return _read(source, self)

    def check_size(self, width: int, height: int) -> None:
        """Raise :class:`ImageError` if an image of this size is larger than the limit."""
        _check_size(width, height, self)

    def decode(self, source: Source) -> Image.Image:
        """As :func:`decode`, with these options."""
        return _read(source, self)[0]


def decode(source: Source, max_pixels: int = MAX_PIXELS, truncated: str = "error") -> Image.Image:
    """Decode one image to RGB.

    Parameters
    ----------
    source : str, Path, binary file, PIL.Image.Image or numpy.ndarray
        A file in any format that Pillow reads (the content decides, not the extension; first frame of an animation),
        an open image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8.
    max_pixels, truncated :
        See :class:`Reading`.

    Returns
    -------
    PIL.Image.Image
        Mode ``RGB``, upright (EXIF orientation applied); transparency is composited over white, wider pixel types are
        scaled to 8 bits by type and tags (:mod:`aidet.images.depth`), CMYK and palettes are converted. Colour profiles
        are not applied. Metadata that are damaged or too large are left out.

    Raises
    ------
    ImageError
        With the reason: empty, truncated, not an image, too large, ...
    """
    return Reading(max_pixels, truncated).decode(source)


def _read(source: Source, how: Reading) -> Tuple[Image.Image, str]:
    if isinstance(source, np.ndarray):
        if (
            source.dtype != np.uint8
            or source.ndim not in (2, 3)
            or (source.ndim == 3 and source.shape[2] not in (1, 3, 4))
        ):
            raise ImageError(
                f"array of {source.dtype} with shape {source.shape}; wanted uint8 (H, W), (H, W, 3) or (H, W, 4)"
            )
        if source.size == 0:
            raise ImageError(f"empty array of shape {source.shape}")
        _check_size(source.shape[1], source.shape[0], how)
        return _rgb(Image.fromarray(source[..., 0] if source.ndim == 3 and source.shape[2] == 1 else source))
    if isinstance(source, Image.Image):
        _check_size(*source.size, how)
        with _reasons(how):  # it may be a file that was opened and not read, or closed since
            made, note = _upright(source)
            return (source.copy() if made is source else made), note  # never the caller's own object
    if isinstance(source, (str, os.PathLike)) and archives.apart(source):
        try:
            source = io.BytesIO(archives.read(source))
        except archives.ArchiveError as error:
            raise ImageError(str(error)) from None
        if not source.getbuffer().nbytes:
            raise ImageError("empty file")
    elif isinstance(source, (str, os.PathLike)):
        try:
            if os.path.isdir(source):
                raise ImageError("is a folder")
            if os.path.getsize(source) == 0:
                raise ImageError("empty file")
        except FileNotFoundError:
            raise ImageError("no such file") from None
        except (OSError, ValueError) as error:
            raise ImageError(_reason(error, how)) from None
    with _reasons(how):
        try:
            return _attempts(source, how)
        except UnidentifiedImageError:
            key = opening.kind(source)
            if key is None or not extras.installed(key):
                raise ImageError(opening.unidentified(source)) from None
            return _by_extra(key, source, how)


@contextlib.contextmanager
def _reasons(how: Reading) -> Iterator[None]:
    """Whatever stops the decoding of a picture, as an :class:`ImageError` with the reason."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"more pixels than the limit of {how.max_pixels}") from None
    except MemoryError:
        raise ImageError("not enough memory to decode it") from None
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise nearly every type of error on damaged files
        raise ImageError(_reason(error, how)) from None


def _by_extra(key: str, source: Any, how: Reading) -> Tuple[Image.Image, str]:
    """Decode a HEIC or JPEG XL file."""
    try:
        found = extras.decode(key, source, how.max_pixels)
    except (extras.Undecodable, OSError) as error:
        raise ImageError(str(error)) from None
    _check_size(*found.size, how)
    assert found.image is not None
    made, note = _rgb(found.image)
    turn = TURNS.get(found.turn)
    return (made if turn is None else made.transpose(turn)), note


def _attempts(source: Any, how: Reading) -> Tuple[Image.Image, str]:
    """Decode a file; if Pillow refuses it, again without what lies beside the picture, which may be the reason."""
    first: Optional[Exception] = None
    tried = None
    for level in containers.LEVELS:
        picture = opening.beside(source, level)
        if first is not None and (picture is None or picture == tried):
            continue
        try:
            return _opened(source, picture, how)
        except (ImageError, MemoryError, Image.DecompressionBombError):
            raise
        except Exception as error:  # noqa: BLE001 - see decode
            first, tried = first or error, picture
    assert first is not None
    if how.truncated == "score":
        made = _padded(source, how)
        if made is not None:
            return made
    raise first


def _opened(source: Any, picture: Optional[containers.Picture], how: Reading) -> Tuple[Image.Image, str]:
    if picture is None:
        # Pillow warns of damaged EXIF and of large images; the first does not matter, the second is checked below.
        with opening.quiet, opening.pillow(source) as image:
            return _loaded(image, source, how)
    with opening.binary(source) as file, opening.quiet, opening.pillow(picture.open(file)) as image:
        made, note = _loaded(image, source, how)
        if picture.canvas is not None:
            width, height, left, top = picture.canvas
            _check_size(width, height, how)
            whole = Image.new("RGB", (width, height), (255, 255, 255))  # the rest of the first frame is transparent
            whole.paste(made, (left, top))
            made = whole
        return made, note


def _check_size(width: int, height: int, how: Reading) -> None:
    if width * height > how.max_pixels:
        millions = math.ceil(width * height / 1e6)
        remedy = f"; --max-pixels {millions}M (max_pixels in Python) takes it" if millions <= MOST_MILLIONS else ""
        raise ImageError(f"{width}x{height} pixels, more than the limit of {how.max_pixels}{remedy}")


def _loaded(image: Image.Image, source: Any, how: Reading) -> Tuple[Image.Image, str]:
    """An image that Pillow has opened: checked, decoded, turned and converted."""
    if image.format in PROGRAMS:
        raise ImageError(f"{image.format} is a program that Ghostscript would run, not an image")
    if image.format == "TIFF":
        _full_page(image, source)
    _check_size(*image.size, how)
    if image.format == "TIFF" and 2 * (Image.MAX_IMAGE_PIXELS or math.inf) < image.width * image.height:
        # This plugin checks Pillow's limit once more, unless the memory for the pixels is there.
        image.im = Image.core.new(image.mode, getattr(image, "_tile_size", image.size))  # type: ignore[attr-defined]
    # JPEGs are decoded in full: draft mode would change the high frequencies that detectors use.
    try:
        image.load()
        cut = ""
    except OSError as error:
        if how.truncated != "score" or image.format in _WHOLE or not _partly(image):
            raise
        cut = _cut_note(image, error)
    made, note = _upright(image)
    return made, "; ".join(filter(None, (cut, note)))


# --- files whose end is missing -----------------------------------------------------------------------------------
_WHOLE = frozenset(("JPEG", "MPO", "WEBP", "AVIF"))  # Pillow's decoder leaves nothing, or not all that there is
_END = b"\xff\xd9" * (1 << 15)  # end markers of JPEG: more than the longest segment that could swallow them


def _padded(source: Any, how: Reading) -> Optional[Tuple[Image.Image, str]]:
    """A JPEG with the end marker that it lacks; libjpeg then fills what is missing. None: it is none, or still bad."""
    with opening.binary(source) as file:
        if file.read(3) != b"\xff\xd8\xff":
            return None
        size = file.seek(0, os.SEEK_END)
        for level in (None, *containers.LEVELS[1:]):
            picture = None if level is None else containers.picture(file, level)
            pieces = [(0, size)] if picture is None else picture.pieces
            try:
                with opening.quiet, opening.pillow(containers.Picture([*pieces, _END]).open(file)) as image:
                    made, note = _loaded(image, source, how)
                    return made, "; ".join(filter(None, (_cut_note(image, None), note)))
            except ImageError:
                raise
            except Exception:  # noqa: BLE001 - the first reason is reported
                continue
    return None


def _partly(image: Image.Image) -> bool:
    """Keep what a decoder that stopped has written; False if it has written nothing."""
    if image.__dict__.get("_im", image.__dict__.get("im")) is None:
        return False
    image.tile = []  # type: ignore[attr-defined]  # nothing is left to decode
    return any(extreme != (0, 0) for extreme in _extrema(image))


def _extrema(image):
    found = image.getextrema()
    return found if isinstance(found[0], tuple) else (found,)


def _cut_note(image: Image.Image, error: Optional[OSError]) -> str:
    """Say how much of a picture is there.

    Raises
    ------
    ImageError
        Nothing is.
    """
    missing, height = _missing_rows(image, error is None), image.height
    if missing >= max(1, height - 1):
        raise ImageError("truncated file; no row of its picture is there")
    if missing < 8:
        return "truncated file: scored, its last bytes are missing"
    return f"truncated file: scored, {missing} of {height} rows are missing"


def _missing_rows(image: Image.Image, filled: bool) -> int:
    """Rows at the edge that no data stood for: zeros or, where the decoder ``filled`` them, all alike."""
    values = np.asarray(image)

    def run(rows):
        blank, count = rows[0] if filled else np.zeros_like(rows[0]), 0
        while count < len(rows) and (rows[count] == blank).all():
            count += 1
        return count

    # BMP and others begin with the lowest row.
    return run(values[::-1]) if filled else max(run(values), run(values[::-1]))


# --- TIFF ---------------------------------------------------------------------------------------------------------
_SUBFILE, _DNG = 254, 50706  # NewSubfileType, of which bit 0 says "reduced resolution"; DNGVersion
PAGES = 8  # that are looked at for the first of full size


def _full_page(image: Image.Image, source: Any) -> None:
    """Go to the first page that is no thumbnail.

    Raises
    ------
    ImageError
        A raw photograph, of which Pillow reads a preview.
    """
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else ""
    if image.tag_v2.get(_DNG) or (walking.extension(str(name)) in walking.RAW):  # type: ignore[attr-defined]
        raise ImageError("a raw photograph, of which only the preview could be read; develop it to JPEG or PNG")
    page = 0
    try:
        while int(image.tag_v2.get(_SUBFILE) or 0) & 1 and page < PAGES:  # type: ignore[attr-defined]
            page += 1
            image.seek(page)
        if page == PAGES:
            image.seek(0)
    except (EOFError, TypeError, ValueError):
        image.seek(0)


# --- reasons ------------------------------------------------------------------------------------------------------
def _reason(error: Exception, how: Reading) -> str:
    if isinstance(error, PermissionError):
        return "no permission to read it"
    name = type(error).__name__
    text = " ".join(str(getattr(error, "strerror", None) or error or name).split())
    if "truncated" in text.lower():
        more = "; --truncated score scores what is there" if how.truncated == "error" else ""
        return f"truncated file ({text}){more}"
    return f"{name}: {text}"[:200]


_EXIF = frozenset(("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"))  # where Pillow finds an orientation


def _upright(image: Image.Image) -> Tuple[Image.Image, str]:
    """:func:`_rgb`, turned as the EXIF orientation says."""
    try:
        turn = TURNS.get(int(image.getexif().get(ORIENTATION) or 1))
    except Exception:  # noqa: BLE001 - a damaged EXIF block says nothing about the pixels
        turn = None
    made, note = _rgb(image)
    if turn is not None:
        made = made.transpose(turn)
        made.info = {key: value for key, value in made.info.items() if key not in _EXIF}  # or it would be turned again
    return made, note


def _rgb(image: Image.Image) -> Tuple[Image.Image, str]:
    """An image as RGB, with a note for the user."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, depth.colour_note(image)
    if image.mode in depth.WIDE:
        image, note = depth.to_eight_bits(image)
        return image.convert("RGB"), note
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        note = depth.colour_note(image)
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB"), note
    return image.convert("RGB"), ""


def require_folder(path: Union[str, Path], what: str = "folder") -> Path:
    """Return ``Path(path)``, or raise :class:`UserError` if it is not a folder."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{what} {str(path)!r} " + ("is not a folder" if path.exists() else "does not exist"))
    return path
