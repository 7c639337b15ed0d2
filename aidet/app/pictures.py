"""Pictures of what a detector may use: spectrum, noise residual, heat map over the image; thumbnails."""

import base64
import io
from typing import Any, Optional

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .. import images
from ..detector import Localization, explain
from ..detector.localization import enlarged

SIDE = 512
GAIN = 8.0  # grey levels shown for one grey level of noise
THUMBNAIL = 112  # pixels, twice the side that is shown


def luminance(image: Image.Image, side: int = SIDE) -> np.ndarray:
    """Grey values of the middle ``side`` x ``side`` pixels (fewer if the image is smaller), not resized.

    Returns
    -------
    numpy.ndarray, float64, shape (h, w), in [0, 255]
    """
    left, top = max(0, (image.width - side) // 2), max(0, (image.height - side) // 2)
    box = (left, top, min(image.width, left + side), min(image.height, top + side))
    return np.asarray(image.crop(box).convert("L"), np.float64)


def spectrum(image: Image.Image, side: int = SIDE) -> Image.Image:
    """Log-magnitude spectrum of the noise residual, low frequencies in the middle.

    Periodic upsampling causes regular bright points away from the middle (Zhang et al., "Detecting and simulating
    artifacts in GAN fake images", 2019); the 8 x 8 blocks of JPEG cause some, too.

    Parameters
    ----------
    image : PIL.Image.Image, mode RGB
    side : int
        Side of the square in the middle of the image that is used, in pixels.

    Returns
    -------
    PIL.Image.Image, mode L
    """
    grey = luminance(image, side)
    smooth = np.asarray(Image.fromarray(grey.astype(np.uint8)).filter(ImageFilter.GaussianBlur(1)), np.float64)
    window = np.outer(np.hanning(grey.shape[0] + 2)[1:-1], np.hanning(grey.shape[1] + 2)[1:-1])
    power = np.log1p(np.abs(np.fft.fftshift(np.fft.fft2((grey - smooth) * window))))
    low, high = np.percentile(power, (1, 99.8))
    return Image.fromarray((np.clip((power - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8))


def residual(image: Image.Image, side: int = SIDE) -> Image.Image:
    """What a 3 x 3 median filter removes from the middle of the image, amplified 8 times around middle grey; RGB."""
    left, top = max(0, (image.width - side) // 2), max(0, (image.height - side) // 2)
    part = image.crop((left, top, min(image.width, left + side), min(image.height, top + side)))
    noise = np.asarray(part, np.float64) - np.asarray(part.filter(ImageFilter.MedianFilter(3)), np.float64)
    return Image.fromarray(np.clip(128 + GAIN * noise, 0, 255).astype(np.uint8))


def overlay(heat: np.ndarray, image: Image.Image, side: int = 768) -> Image.Image:
    """A heat map over the image: orange is evidence for generated, blue for real; other parts stay as they are, paler.

    Parameters
    ----------
    heat : numpy.ndarray, shape (rows, columns)
        From :func:`aidet.detector.explain.occlusion` or :func:`aidet.detector.explain.lay`.
    image : PIL.Image.Image, mode RGB
    side : int
        Longest side of the result.

    Returns
    -------
    PIL.Image.Image, mode RGB
    """
    return explain.overlay(heat, image, side)


def layer(found: Localization, side: int = 768) -> Image.Image:
    """The map of a localizer, to be laid over the image: orange where it is likely generated, else clear.

    Parameters
    ----------
    found : aidet.detector.Localization
    side : int
        Longest side of the result, as :func:`preview` has it.

    Returns
    -------
    PIL.Image.Image, mode RGBA
        With a frame around the largest region.
    """
    width, height = small = _within(found.size, side)
    scale = found.size[0] / width, found.size[1] / height
    across, down = ((np.arange(n) + 0.5) * s - 0.5 for n, s in zip(small, scale))
    made = np.empty((height, width, 4), np.uint8)
    made[..., :3] = explain.ORANGE
    made[..., 3] = np.rint(255 * enlarged(found.cells, found.grid, down, across))
    image = Image.fromarray(made)
    if found.where is not None:
        box = [n / s for n, s in zip(found.where, scale * 2)]
        frame = [int(box[0]), int(box[1]), min(round(box[2]), width) - 1, min(round(box[3]), height) - 1]
        ImageDraw.Draw(image).rectangle(frame, outline=(*explain.ORANGE, 255), width=max(2, max(small) // 250))
    return image


def preview(image: Image.Image, side: int = 768) -> Image.Image:
    """An RGB image, made smaller if its longest side is over ``side``."""
    return image if max(image.size) <= side else image.resize(_within(image.size, side), reducing_gap=2.0)


def _within(size, side):
    share = min(1.0, side / max(size))
    return tuple(max(1, round(n * share)) for n in size)


def png_uri(image: Image.Image) -> str:
    """An image as a data URI, PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def uri(image: Image.Image, quality: int = 88) -> str:
    """An RGB image as a data URI, JPEG."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def thumbnail(source: Any, reading: Optional[images.Reading] = None) -> str:
    """A thumbnail of an uploaded file as a data URI; "" if it cannot be decoded.

    Parameters
    ----------
    source : str, Path, binary file or aidet.app.uploads.Unusable
        A file is rewound.
    reading : aidet.images.Reading, optional
        How it is read when it is scored.
    """
    try:
        shown = _decoded(source, reading or images.Reading())
        shown.thumbnail((THUMBNAIL, THUMBNAIL))
        return uri(shown, quality=80)
    except Exception:  # noqa: BLE001 - the row of the image says what is wrong with it
        return ""
    finally:
        source.seek(0) if hasattr(source, "seek") else None


def _decoded(source, reading):
    """An image upright, over white and in eight bits, as it is scored, but a JPEG at about the size that is needed."""
    try:
        with images.opened(source) as image:
            image.draft("RGB", (THUMBNAIL, THUMBNAIL))
            return reading.decode(image)
    except images.ImageError:
        if reading.truncated == "error":
            raise
        source.seek(0) if hasattr(source, "seek") else None
        return reading.decode(source)  # only from the file itself is what lacks its end read
