"""Operations of a pipeline: resizing, cropping, re-compression, noise and normalisation."""

import io
import math
from typing import Tuple, Union

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from ..errors import UserError, nearest
from .pipeline import Step, operation, to_array

INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
# Mean and standard deviation per channel, of values in [0, 1].
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


# --- checks of arguments ---------------------------------------------------------------------------------------------
def _number(name, value, low=None, high=None, whole=False):
    kinds = (int,) if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise UserError(f"{name} (={value!r}) must be {'a whole number' if whole else 'a number'}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise UserError(
            f"{name} (={value!r}) must be " + (f">= {low}" if high is None else f"between {low} and {high}")
        )
    return value


def _pair(name, value, low=None, high=None, whole=False):
    value = value if isinstance(value, tuple) else (value, value)
    if len(value) != 2:
        raise UserError(f"{name} (={value!r}) must be one value or two")
    a, b = (_number(name, v, low, high, whole) for v in value)
    if a > b:
        raise UserError(f"{name} (={value!r}) must be in ascending order")
    return a, b


def _size(name, value):
    """An int (square) or (height, width)."""
    value = value if isinstance(value, tuple) else (value, value)
    if len(value) != 2:
        raise UserError(f"{name} (={value!r}) must be one number or (height, width)")
    return tuple(_number(name, v, 1, 16384, whole=True) for v in value)


def _interpolation(value):
    if value not in INTERPOLATION:
        raise UserError(nearest(value, INTERPOLATION, "interpolation"))
    return INTERPOLATION[value]


def _chance(p):
    _number("p", p, 0, 1)
    # Drawn even if p is 0 or 1, so that changing p of one operation does not change the draws of the next.
    return lambda rng: rng.random() < p


# --- geometry --------------------------------------------------------------------------------------------------------
@operation()
def resize(size: Union[int, Tuple[int, int]], interpolation: str = "bilinear") -> Step:
    """Resize the shorter side to ``size``, keeping the aspect, or to ``(height, width)``; antialiased by PIL."""
    how = _interpolation(interpolation)
    if isinstance(size, tuple):
        h, w = _size("size", size)
        return lambda image, rng: image if image.size == (w, h) else image.resize((w, h), how)
    _number("size", size, 1, 16384, whole=True)

    def run(image, rng):
        w, h = image.size
        if min(w, h) == size:
            return image
        # As in torchvision the longer side is truncated, not rounded. At least 1 pixel, and at most 16 times the size.
        longer = max(1, min(int(size * max(w, h) / min(w, h)), 16 * size))
        return image.resize((size, longer) if w <= h else (longer, size), how)

    return run


@operation()
def two_sizes(
    first: int, first_interpolation: str = "bicubic", second: int = 384, second_interpolation: str = "bilinear"
) -> Step:
    """The whole image as a square of ``first`` pixels, and below it as one of ``second``, on black.

    For a network of two towers, each with an input and an interpolation of its own. The aspect is not kept.
    """
    sizes = [_number(name, value, 1, 8192, whole=True) for name, value in (("first", first), ("second", second))]
    kinds = [_interpolation(value) for value in (first_interpolation, second_interpolation)]

    def run(image, rng):
        both = Image.new("RGB", (max(sizes), sum(sizes)))
        for size, kind, top in zip(sizes, kinds, (0, sizes[0])):
            both.paste(image.resize((size, size), kind), (0, top))
        return both

    return run


@operation()
def center_crop(size: Union[int, Tuple[int, int]], margin: str = "round", edges: str = "mirror") -> Step:
    """Crop the middle ``size`` pixels; a smaller image is first mirrored at its edges up to that size.

    Half a pixel of margin is rounded to the even number, as in torchvision, or with ``floor`` dropped, as in the image
    processors of transformers. With ``edges=black`` a smaller image lies on black, as in torchvision.
    """
    h, w = _size("size", size)
    for name, value, choices in (("margin", margin, ("round", "floor")), ("edges", edges, tuple(_EDGES))):
        if value not in choices:
            raise UserError(f"center_crop: {nearest(str(value), choices, name)}")
    whole = round if margin == "round" else int

    def run(image, rng):
        image = _grow(image, h, w, edges)
        left, top = int(whole((image.width - w) / 2.0)), int(whole((image.height - h) / 2.0))
        return image.crop((left, top, left + w, top + h))

    return run


@operation(random=True)
def random_crop(size: Union[int, Tuple[int, int]]) -> Step:
    """Crop ``size`` pixels at a random position, never resized; a smaller image is mirrored at its edges."""
    h, w = _size("size", size)

    def run(image, rng):
        image = _grow(image, h, w)
        top, left = int(rng.integers(0, image.height - h + 1)), int(rng.integers(0, image.width - w + 1))
        return image.crop((left, top, left + w, top + h))

    return run


@operation(random=True)
def random_resized_crop(
    size: Union[int, Tuple[int, int]],
    scale: Union[float, Tuple[float, float]] = (0.08, 1.0),
    ratio: Union[float, Tuple[float, float]] = (0.75, 1.3333333333333333),
    interpolation: str = "bilinear",
) -> Step:
    """A random crop with area ``scale`` and aspect ``ratio``, resized to ``size`` (Szegedy et al. 2015)."""
    h, w = _size("size", size)
    scale, ratio = _pair("scale", scale, 0.0001, 1), _pair("ratio", ratio, 0.01, 100)
    how = _interpolation(interpolation)
    wide = np.log(ratio)

    def run(image, rng):
        area = image.width * image.height
        for _ in range(10):
            part = area * rng.uniform(*scale)
            aspect = np.exp(rng.uniform(*wide))
            cw, ch = round(math.sqrt(part * aspect)), round(math.sqrt(part / aspect))
            if 0 < cw <= image.width and 0 < ch <= image.height:
                break
        else:
            cw = ch = min(image.width, image.height)
        top, left = int(rng.integers(0, image.height - ch + 1)), int(rng.integers(0, image.width - cw + 1))
        return image.resize((w, h), how, box=(left, top, left + cw, top + ch))

    return run


@operation()
def pad(multiple: int) -> Step:
    """Pad by mirroring at the right and bottom edges to a multiple of ``multiple`` pixels."""
    _number("multiple", multiple, 1, 1024, whole=True)

    def run(image, rng):
        right, bottom = -image.width % multiple, -image.height % multiple
        if not right and not bottom:
            return image
        return Image.fromarray(np.pad(np.asarray(image), ((0, bottom), (0, right), (0, 0)), mode="symmetric"))

    return run


@operation(random=True)
def hflip(p: float = 0.5) -> Step:
    """Mirror left and right with probability ``p``."""
    chance = _chance(p)
    return lambda image, rng: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if chance(rng) else image


@operation(random=True)
def vflip(p: float = 0.5) -> Step:
    """Mirror top and bottom with probability ``p``."""
    chance = _chance(p)
    return lambda image, rng: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if chance(rng) else image


@operation(random=True)
def rotate90() -> Step:
    """Rotate by 0, 90, 180 or 270 degrees, equally likely."""
    turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)

    def run(image, rng):
        turn = turns[int(rng.integers(4))]
        return image if turn is None else image.transpose(turn)

    return run


_EDGES = {"mirror": "symmetric", "black": "constant"}  # what lies outside of an image -> numpy.pad's name


def _grow(image, h, w, edges="mirror"):
    """Extend an image smaller than (h, w), evenly on both sides."""
    down, across = max(0, h - image.height), max(0, w - image.width)
    if not down and not across:
        return image
    widths = ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0))
    return Image.fromarray(np.pad(np.asarray(image), widths, mode=_EDGES[edges]))


# --- degradations: what happens to images on the way to a detector ---------------------------------------------------
def _recode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    with Image.open(buffer) as again:
        return again.convert("RGB")


@operation(random=True)
def jpeg(quality: Union[int, Tuple[int, int]] = (65, 100), p: float = 1.0) -> Step:
    """Re-save as JPEG (4:2:0) with a quality from the range, with probability ``p``."""
    low, high = _pair("quality", quality, 1, 100, whole=True)
    chance = _chance(p)

    def run(image, rng):
        q = int(rng.integers(low, high + 1))
        return _recode(image, "JPEG", quality=q, subsampling=2) if chance(rng) else image

    return run


@operation(random=True)
def webp(quality: Union[int, Tuple[int, int]] = (65, 100), p: float = 1.0) -> Step:
    """Re-save as lossy WebP with a quality from the range, with probability ``p``."""
    low, high = _pair("quality", quality, 1, 100, whole=True)
    chance = _chance(p)

    def run(image, rng):
        q = int(rng.integers(low, high + 1))
        return _recode(image, "WEBP", quality=q, method=2) if chance(rng) else image

    return run


@operation(random=True)
def blur(radius: Union[float, Tuple[float, float]] = (0.1, 2.0), p: float = 1.0) -> Step:
    """Gaussian blur with a standard deviation (pixels) from the range, with probability ``p``."""
    low, high = _pair("radius", radius, 0, 100)
    chance = _chance(p)

    def run(image, rng):
        r = rng.uniform(low, high)
        return image.filter(ImageFilter.GaussianBlur(r)) if chance(rng) else image

    return run


@operation(random=True)
def noise(sigma: Union[float, Tuple[float, float]] = (0.0, 8.0), p: float = 1.0) -> Step:
    """Gaussian noise with a standard deviation (grey levels of 255) from the range, with probability ``p``."""
    low, high = _pair("sigma", sigma, 0, 255)
    chance = _chance(p)

    def run(image, rng):
        s = rng.uniform(low, high)
        if not chance(rng):
            return image
        values = np.asarray(image, np.float32)
        values = values + rng.standard_normal(values.shape, dtype=np.float32) * np.float32(s)
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))

    return run


@operation(random=True)
def rescale(
    factor: Union[float, Tuple[float, float]] = (0.5, 1.5), interpolation: str = "random", p: float = 1.0
) -> Step:
    """Resize by a factor from the range, aspect kept, with probability ``p``; never below 8 pixels a side."""
    low, high = _pair("factor", factor, 0.01, 16)
    choices = [INTERPOLATION[n] for n in ("bilinear", "bicubic", "lanczos")]
    fixed = None if interpolation == "random" else _interpolation(interpolation)
    chance = _chance(p)

    def run(image, rng):
        f, pick = rng.uniform(low, high), choices[int(rng.integers(3))]
        if not chance(rng):
            return image
        new = tuple(max(8, int(round(side * f))) for side in image.size)
        return image.resize(new, fixed or pick)

    return run


@operation(random=True)
def down_up(factor: Union[float, Tuple[float, float]] = (0.5, 1.0), p: float = 1.0) -> Step:
    """Shrink by a factor from the range and enlarge back to the original size, with probability ``p``."""
    low, high = _pair("factor", factor, 0.01, 1)
    choices = [INTERPOLATION[n] for n in ("bilinear", "bicubic", "lanczos")]
    chance = _chance(p)

    def run(image, rng):
        f, first, second = rng.uniform(low, high), choices[int(rng.integers(3))], choices[int(rng.integers(3))]
        if not chance(rng):
            return image
        small = image.resize(tuple(max(1, int(round(side * f))) for side in image.size), first)
        return small.resize(image.size, second)

    return run


@operation(random=True)
def cutout(size: Union[float, Tuple[float, float]] = (0.1, 0.4), p: float = 0.5) -> Step:
    """Cover a square, sized as a part of the shorter side, with the image's mean colour (DeVries & Taylor 2017)."""
    low, high = _pair("size", size, 0, 1)
    chance = _chance(p)

    def run(image, rng):
        side = max(1, int(round(rng.uniform(low, high) * min(image.size))))
        left, top = int(rng.integers(0, image.width - side + 1)), int(rng.integers(0, image.height - side + 1))
        if not chance(rng):
            return image
        image = image.copy()
        mean = np.asarray(image).reshape(-1, 3).mean(axis=0)
        image.paste(tuple(int(round(c)) for c in mean), (left, top, left + side, top + side))
        return image

    return run


@operation(random=True)
def color_jitter(brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2, p: float = 1.0) -> Step:
    """Multiply brightness, contrast and saturation by factors in ``1 - x .. 1 + x``, with probability ``p``."""
    named = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    amounts = [_number(name, value, 0, 1) for name, value in named.items()]
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    chance = _chance(p)

    def run(image, rng):
        factors = [rng.uniform(1 - a, 1 + a) for a in amounts]
        if chance(rng):
            for enhancer, factor in zip(enhancers, factors):
                image = enhancer(image).enhance(factor)
        return image

    return run


@operation(random=True)
def grayscale(p: float = 0.1) -> Step:
    """Remove the colour with probability ``p`` (keeps three channels)."""
    chance = _chance(p)
    return lambda image, rng: image.convert("L").convert("RGB") if chance(rng) else image


@operation(numeric=True)
def to_float(low: float = 0.0, high: float = 1.0) -> Step:
    """Map grey levels 0..255 to the range ``low..high``."""
    start, stop = np.float32(_number("low", low)), np.float32(_number("high", high))
    return lambda image, rng: to_array(image) * (stop - start) + start


@operation(numeric=True)
def normalize(
    mean: Union[str, float, Tuple[float, ...]] = "imagenet", std: Union[None, float, Tuple[float, ...]] = None
) -> Step:
    """Scale to [0, 1], subtract the mean and divide by the standard deviation, per channel.

    ``normalize(imagenet)``, ``normalize(half)``, ``normalize(0.5, 0.5)`` or ``normalize((r, g, b), (r, g, b))``.
    """
    if isinstance(mean, str):
        if mean not in STATISTICS or std is not None:
            raise UserError(nearest(mean, STATISTICS, "statistics"))
        mean, std = STATISTICS[mean]
    elif std is None:
        raise UserError(f"normalize: mean (={mean!r}) needs a std as well")
    columns = []
    for name, value in (("mean", mean), ("std", std)):
        value = value if isinstance(value, tuple) else (value,) * 3
        if len(value) != 3:
            raise UserError(f"{name} (={value!r}) must be one number or three")
        columns.append(np.array([_number(name, v) for v in value], np.float32).reshape(3, 1, 1))
    if (np.abs(columns[1]) < 1e-6).any():
        raise UserError(f"std (={std!r}) must not be 0")
    if max(columns[0].max(), columns[1].max()) > 3:
        raise UserError(f"mean {mean!r} and std {std!r} look like 0-255 units; divide them by 255")

    def run(image, rng):
        array = to_array(image)
        array -= columns[0]
        array /= columns[1]
        return array

    return run


@operation(numeric=True)
def high_pass(radius: float = 3.0) -> Step:
    """The image minus its Gaussian blur, over 255, in [-1, 1] (resnet_hf of Kahsolt/AIGC-clf)."""
    _number("radius", radius, 0, 100)

    def run(image, rng):
        low = image.filter(ImageFilter.GaussianBlur(radius))
        difference = np.asarray(image, np.int16) - np.asarray(low, np.int16)
        return np.ascontiguousarray(difference.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)

    return run
