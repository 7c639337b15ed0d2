"""From wide pixel types to 8 bits: by what the type and the tags of the file say, never by how bright the content is.

Sources: TIFF 6.0, sections "Data Sample Format" and "SMaxSampleValue"; PNG (W3C, third edition), 16-bit samples; Netpbm
``maxval``.
"""

from typing import Any, Callable, List, NamedTuple, Optional, Tuple

import numpy as np
from PIL import Image

GREY16 = frozenset(("I;16", "I;16B", "I;16L", "I;16N"))
WIDE = GREY16 | {"I", "F"}
BAND = 1 << 20  # pixels that are converted at a time
# TIFF tags
BITS, PHOTOMETRIC, MAX_SAMPLE, SAMPLE_FORMAT, S_MIN, S_MAX = 258, 262, 281, 339, 340, 341
SIGNED, FLOAT = 2, 3  # values of SampleFormat
# Ranges that programs write where nothing says what white is.
RANGES = (65535.0, 2.0**31 - 1, 2.0**32 - 1)
FLOAT_RANGES = (255.0, 65535.0, 2.0**32 - 1)
OVERSHOOT = 2.0  # floats of 0..1 go a little above 1 where an image was sharpened or enlarged


class Range(NamedTuple):
    """What black and white are in the values of an image.

    Attributes
    ----------
    black, white : float
    note : str
        What the user should know about it; empty if the file says what white is.
    """

    black: float
    white: float
    note: str = ""


def to_eight_bits(image: Image.Image) -> Tuple[Image.Image, str]:
    """Scale an image of a wide pixel type to 8 bits.

    Parameters
    ----------
    image : PIL.Image.Image
        Loaded, of a mode in :data:`WIDE`.

    Returns
    -------
    (PIL.Image.Image, str)
        Mode ``L``, and a note for the user: what was assumed where the file does not say what white is; else ``""``.
    """
    values = np.asarray(image)
    if image.mode == "I" and _tag(image, SAMPLE_FORMAT, 1) == 1 and _tag(image, BITS) == 32:
        values = values.view(np.uint32)  # Pillow keeps the bits and takes the first for a sign
    low, high = _extremes(values)
    limits = _range(image, values.dtype, low, high)
    scaled = _scaled(values, _rule(image, limits))
    transparent = image.info.get("transparency")
    if image.mode in GREY16 and isinstance(transparent, int):
        scaled[values == transparent] = 255  # over white, as transparency always is
    if _tag(image, PHOTOMETRIC, 1) == 0:
        np.subtract(255, scaled, out=scaled)  # WhiteIsZero, which Pillow applies to 8 bits alone
    return Image.fromarray(scaled), limits.note


def colour_note(image: Image.Image) -> str:
    """What to say of colours of 16 bits, of which Pillow keeps the upper eight; ``""`` if nothing."""
    if image.mode not in ("RGB", "RGBA") or _tag(image, BITS) != 16:
        return ""
    high = max(most for _, most in image.getextrema()[:3])  # type: ignore[misc, index, union-attr]
    if high >= 32:
        return ""
    bits = 8 + int(high).bit_length()
    return f"16-bit colours that use only their lowest {bits} bits, scaled as 16 bits, so that the picture is dark"


def _tag(image: Image.Image, number: int, default: Any = None) -> Any:
    """First value of a TIFF tag."""
    found = getattr(image, "tag_v2", None)
    try:
        value = None if found is None else found.get(number)
    except Exception:  # noqa: BLE001 - Pillow parses a tag when it is asked for, and raises nearly anything
        value = None
    if isinstance(value, tuple):
        value = value[0] if value else None
    return default if value is None else value


def _range(image: Image.Image, dtype: np.dtype, low: float, high: float) -> Range:
    stated = _stated(image)
    if stated is not None:
        return stated
    if image.format is None and image.mode != "F" and high <= 255:
        # An image made in memory: ``convert("I;16")`` and ``convert("I")`` keep the values 0 to 255 of 8 bits.
        return Range(0, 255, f"{image.mode} without a file (values {_span(low, high)}): {_as(255)}")
    if image.mode == "F":
        return _float_range(low, high)
    if image.mode in GREY16 or image.format in ("PNG", "PPM"):
        return Range(0, 65535, _narrow(image, high))
    if _tag(image, BITS) == 16:
        return Range(0, 32767, _negative(low))
    white = next((r for r in RANGES if high <= r), RANGES[-1])
    return Range(0, white, f"32-bit integers that do not say what white is (values {_span(low, high)}): {_as(white)}")


def _stated(image: Image.Image) -> Optional[Range]:
    """The range that a TIFF's own tags name."""
    black, white = _number(_tag(image, S_MIN)), _number(_tag(image, S_MAX))
    if white is not None and white > (black or 0.0):
        return Range(black or 0.0, white)
    bits, most = _tag(image, BITS), _tag(image, MAX_SAMPLE)
    if image.mode in GREY16 and bits == 12:
        return Range(0, 4095)
    # MaxSampleValue is the largest value found in the image; only a whole number of bits says what its depth is.
    if image.mode in GREY16 and most in [2**n - 1 for n in range(9, 16)]:
        return Range(0, float(most))
    return None


def _number(value):
    try:
        value = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return value if np.isfinite(value) else None


def _narrow(image, high):
    """Scanners and microscopes store 10, 12 or 14 bits in 16, and often nothing in the file says so."""
    if image.format == "PPM" or high >= 1 << 13:
        return ""
    bits = int(high).bit_length()
    return f"16-bit values that use only their lowest {bits} bits, scaled as 16 bits, so that the picture is dark"


def _float_range(low, high):
    if high <= 1:
        return Range(0, 1, _negative(low))
    white = 1.0 if high <= OVERSHOOT else next((r for r in FLOAT_RANGES if high <= r), FLOAT_RANGES[-1])
    return Range(0, white, f"floats that do not say what white is (values {_span(low, high)}): {_as(white)}")


def _negative(low):
    return f"values below 0 (down to {low:.6g}) are black" if low < 0 else ""


def _span(low, high):
    return f"{low:.6g} to {high:.6g}"


def _as(white):
    return f"taken as 0 to {white:.10g}; save it with 8 or 16 bits if that is wrong"


def _rule(image: Image.Image, limits: Range) -> Callable[[np.ndarray], np.ndarray]:
    """From values to grey levels, for a band of rows."""
    if limits[:2] == (0, 65535) and image.mode != "F":
        return lambda v: np.clip(v, 0, 65535) >> 8
    factor = 255.0 if limits.white - limits.black == 1 else 255.0 / (limits.white - limits.black)
    if image.mode == "F":
        return lambda v: (np.nan_to_num(v.astype(np.float64)) - limits.black) * factor
    return lambda v: (v.astype(np.float64) - limits.black) * factor


def _bands(values: np.ndarray) -> List[slice]:
    step = max(1, BAND // max(1, values.shape[1]))
    return [slice(i, i + step) for i in range(0, len(values), step)]


def _extremes(values: np.ndarray) -> Tuple[float, float]:
    """Least and largest finite value; (0, 0) if there is none."""
    low, high = np.inf, -np.inf
    for band in _bands(values):
        part = values[band]
        if part.dtype.kind == "f":
            part = part[np.isfinite(part)]
        if part.size:
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _scaled(values: np.ndarray, rule: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    made = np.empty(values.shape, np.uint8)
    for band in _bands(values):
        made[band] = np.clip(rule(values[band]), 0, 255).astype(np.uint8)
    return made
