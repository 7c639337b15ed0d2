"""From a file to pixels: finding and decoding images, in the same way for every part of the project."""

import os
import threading
import warnings
from pathlib import Path
from typing import BinaryIO, Iterator, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError
from ..records import natural_order

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .tif .tiff .gif .ppm .pgm .pbm .heic .heif .avif .jp2 .ico .tga".split()
)
# Pillow's own guard against decompression bombs warns at 89 million pixels and raises at twice that; ours is explicit,
# so that a decoder's memory has a known bound (3 bytes a pixel, a few copies).
MAX_PIXELS = 120_000_000
# Formats that Pillow passes to another program.
PROGRAMS = frozenset(("EPS",))
# First brand of a HEIF file whose pixels are HEVC, as phones write it (ISO/IEC 23008-12, annex B), and the two general
# brands. Not supported: the decoder that was tried crashed the process on a damaged file (LOG.md).
HEIC = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))

# What decode takes.
Source = Union[str, "os.PathLike[str]", BinaryIO, Image.Image, np.ndarray]
ORIENTATION, TURNED = 0x0112, (2, 3, 4, 5, 6, 7, 8)  # EXIF: tag, and values other than upright


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


_quiet = _Quiet()


class ImageError(Exception):
    """An input that cannot be used. The message is the reason shown in its result row."""


def decode(source: Source, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image to RGB.

    Parameters
    ----------
    source : str, Path, binary file, PIL.Image.Image or numpy.ndarray
        A file in any format that Pillow reads (the content decides, not the extension; first frame of an animation),
        an open image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8.
    max_pixels : int
        Larger images are refused before they are decoded.

    Returns
    -------
    PIL.Image.Image
        Mode ``RGB``, upright (EXIF orientation applied); transparency is composited over white, 16-bit values are
        scaled to 8 bits, CMYK and palettes are converted.

    Raises
    ------
    ImageError
        With the reason: empty, truncated, not an image, too large, ...
    """
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
        return _rgb(Image.fromarray(source[..., 0] if source.ndim == 3 and source.shape[2] == 1 else source))
    if isinstance(source, Image.Image):
        made = _rgb(_upright(source))
        return source.copy() if made is source else made  # never the caller's own object
    if isinstance(source, (str, os.PathLike)):
        try:
            if os.path.isdir(source):
                raise ImageError("is a folder")
            if os.path.getsize(source) == 0:
                raise ImageError("empty file")
        except FileNotFoundError:
            raise ImageError("no such file") from None
        except (OSError, ValueError) as error:
            raise ImageError(_reason(error)) from None
    try:
        # Pillow warns of damaged EXIF and of large images; the first does not matter, the second is checked below.
        with _quiet, Image.open(source) as image:
            if image.format in PROGRAMS:
                raise ImageError(f"{image.format} is a program that Ghostscript would run, not an image")
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(f"{width}x{height} pixels, more than the limit of {max_pixels}")
            # JPEGs are decoded in full: draft mode would change the high frequencies that detectors use.
            image.load()
            return _rgb(_upright(image))
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"more pixels than the limit of {max_pixels}") from None
    except MemoryError:
        raise ImageError("not enough memory to decode it") from None
    except UnidentifiedImageError:
        if _is_heic(source):
            raise ImageError("HEIC, which Pillow does not read; save it as PNG, or as JPEG of high quality") from None
        raise ImageError("not an image that Pillow can read") from None
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise nearly every type of error on damaged files
        raise ImageError(_reason(error)) from None


def _reason(error):
    name = type(error).__name__
    text = " ".join(str(getattr(error, "strerror", None) or error or name).split())
    if "truncated" in text.lower():
        return f"truncated file ({text})"
    return f"{name}: {text}"[:200]


def _is_heic(source):
    try:
        if isinstance(source, (str, os.PathLike)):
            with open(source, "rb") as file:
                head = file.read(12)
        else:
            source.seek(0)
            head = source.read(12)
    except (OSError, ValueError):
        return False
    return head[4:8] == b"ftyp" and head[8:] in HEIC


def _upright(image: Image.Image) -> Image.Image:
    try:
        # exif_transpose copies all pixels even if an image is already upright, as nearly all are.
        return ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION) in TURNED else image
    except Exception:  # noqa: BLE001 - a damaged EXIF block says nothing about the pixels
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        values = np.asarray(image)
        if image.mode == "F":
            values = np.nan_to_num(values.astype(np.float64))
            values = values * 255 if values.max(initial=0) <= 1 else values
        elif values.max(initial=0) > 255:
            values = values >> 8
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def walk(folder: Union[str, Path]) -> Iterator[str]:
    """Yield the image files below a folder, in natural order of their path relative to it.

    Hidden files and folders are left out; a symbolic link to a folder is followed once (loops end). Memory
    is bounded by the file names of one folder and those above it, not of the whole tree.

    Parameters
    ----------
    folder : str or Path

    Yields
    ------
    str
        Path relative to ``folder``, with ``/``.

    Raises
    ------
    UserError
        A folder that cannot be read: its images would be missing silently.
    """
    folder = os.fspath(folder)
    seen = set()

    def visit(relative):
        where = os.path.join(folder, relative) if relative else folder
        names, folders = [], set()
        try:
            here = os.stat(where)
            with os.scandir(where) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        names.append(entry.name)
                        if _is_dir(entry):
                            folders.add(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return  # deleted since it was listed
        except OSError as error:
            raise UserError(
                f"folder {where!r} cannot be read ({error.strerror or error}); allow it, or move that folder away"
            ) from None
        if (here.st_dev, here.st_ino) in seen:
            return
        seen.add((here.st_dev, here.st_ino))
        names = natural_order(names)
        for name in names:
            path = f"{relative}/{name}" if relative else name
            if name in folders:
                yield from visit(path)
            elif os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield path

    yield from visit("")


def _is_dir(entry):
    """A link that points to itself is not a folder; it gets a result row that says so."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def require_folder(path: Union[str, Path], what: str = "folder") -> Path:
    """Return ``Path(path)``, or raise :class:`UserError` if it is not a folder."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{what} {str(path)!r} " + ("is not a folder" if path.exists() else "does not exist"))
    return path
