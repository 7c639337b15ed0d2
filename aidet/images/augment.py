"""Operations that only training uses, registered alongside those of :mod:`aidet.images.operations`."""

import io
import os
import re
import warnings
from typing import Any, Tuple, Union

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ..errors import UserError, nearest
from .operations import _number, _pair
from .pipeline import Step, operation


@operation(random=True)
def random_erasing(
    p: float = 0.5,
    scale: Union[float, Tuple[float, float]] = (0.02, 0.33),
    ratio: Union[float, Tuple[float, float]] = (0.3, 3.3),
    value: Union[float, Tuple[float, ...], str] = 0,
    max_attempts: int = 10,
) -> Step:
    """Replace a random box by ``value`` (after normalisation) or by ``random`` noise (Zhong et al. 2020).

    Comes after ``normalize``; ``value`` is a number, one per channel, or ``random``.
    """
    _number("p", p, 0, 1)
    low, high = _pair("scale", scale, 0, 1)
    small, large = np.log(_pair("ratio", ratio, 0.001, 1000))
    filling: Any = value
    if value != "random":
        filling = np.array(value if isinstance(value, tuple) else (value,) * 3, np.float32).reshape(-1, 1, 1)

    def run(array, rng):
        if not isinstance(array, np.ndarray):
            raise UserError("random_erasing comes after normalize, to_float or high_pass")
        if rng.random() >= p:
            return array
        _, height, width = array.shape
        for _ in range(max_attempts):
            area, aspect = height * width * rng.uniform(low, high), np.exp(rng.uniform(small, large))
            h, w = int(round(np.sqrt(area * aspect))), int(round(np.sqrt(area / aspect)))
            if 0 < h < height and 0 < w < width:
                top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
                array = array.copy()
                noise = isinstance(filling, str)
                fill = rng.standard_normal((array.shape[0], h, w), dtype=np.float32) if noise else filling
                array[:, top : top + h, left : left + w] = fill
                return array
        return array

    return run


# --- the automatic policies of MindCV's `auto_augment` ----------------------------------------------------------
def _affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)


def _enhance(kind):
    return lambda image, m, sign: kind(image).enhance(1 + sign * 0.9 * m)


GREY = (124, 116, 104)  # ImageNet's mean colour
# operation(image, magnitude in [0, 1], sign); ranges as in Cubuk et al. 2019.
POLICY_OPERATIONS = {
    "ShearX": lambda image, m, sign: _affine(image, (1, sign * 0.3 * m, 0, 0, 1, 0)),
    "ShearY": lambda image, m, sign: _affine(image, (1, 0, 0, sign * 0.3 * m, 1, 0)),
    "TranslateX": lambda image, m, sign: _affine(image, (1, 0, sign * 0.45 * m * image.width, 0, 1, 0)),
    "TranslateY": lambda image, m, sign: _affine(image, (1, 0, 0, 0, 1, sign * 0.45 * m * image.height)),
    "Rotate": lambda image, m, sign: image.rotate(sign * 30 * m, Image.Resampling.BILINEAR, fillcolor=GREY),
    "AutoContrast": lambda image, m, sign: ImageOps.autocontrast(image),
    "Equalize": lambda image, m, sign: ImageOps.equalize(image),
    "Invert": lambda image, m, sign: ImageOps.invert(image),
    "Posterize": lambda image, m, sign: ImageOps.posterize(image, 8 - int(round(4 * m))),
    "Solarize": lambda image, m, sign: ImageOps.solarize(image, 256 - int(round(256 * m))),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
}
# ImageNet policy of AutoAugment (Cubuk et al. 2019, table 9): twice (operation, probability, magnitude out of 10).
AUTO_POLICY = """Posterize .4 8 Rotate .6 9; Solarize .6 5 AutoContrast .6 5; Equalize .8 8 Equalize .6 3;
Posterize .6 7 Posterize .6 6; Equalize .4 7 Solarize .2 4; Equalize .4 4 Rotate .8 8; Solarize .6 3 Equalize .6 7;
Posterize .8 5 Equalize 1 2; Rotate .2 3 Solarize .6 8; Equalize .6 8 Posterize .4 6; Rotate .8 8 Color .4 0;
Rotate .4 9 Equalize .6 2; Equalize 0 7 Equalize .8 8; Invert .6 4 Equalize 1 8; Color .6 4 Contrast 1 8;
Rotate .8 8 Color 1 2; Color .8 8 Solarize .8 7; Sharpness .4 7 Invert .6 8; ShearX .6 5 Equalize 1 9;
Color .4 0 Equalize .6 3; Equalize .4 7 Solarize .2 4; Solarize .6 5 AutoContrast .6 5; Invert .6 4 Equalize 1 8;
Color .6 4 Contrast 1 8; Equalize .8 8 Equalize .6 3"""
POLICIES = ("randaug", "autoaug", "autoaugr", "3a", "augmix", "trivialaugwide")


@operation(random=True)
def auto_augment(policy: str = "randaug-m9-mstd0.5") -> Step:
    """An automatic policy under MindCV's name: ``randaug-m9-n2-mstd0.5``, ``autoaug``, ``3a``, ``augmix-m3-w3``,
    ``trivialaugwide``.

    The options are ``m``, magnitude out of 10; ``mstd``, its deviation; ``n``, number of operations; ``p``, probability
    of an operation; ``w`` and ``d``, width and depth of AugMix. Other options of timm's strings (``inc``, ``w`` of
    RandAugment, ``a``, ``b``) change details that are fixed here.
    """
    name, options = _policy(policy)
    names = list(POLICY_OPERATIONS)
    m, deviation = options.get("m", 10.0 if name == "randaug" else 3.0) / 10, options.get("mstd", 0.0) / 10

    def one(image, rng, which, magnitude, spread=True):
        if spread and deviation:
            magnitude += rng.normal(0, deviation)
        sign = 1 if rng.random() < 0.5 else -1
        return POLICY_OPERATIONS[which](image, float(np.clip(magnitude, 0, 1)), sign)

    def pick(rng):
        return names[int(rng.integers(len(names)))]

    def randaug(image, rng):
        for _ in range(int(options.get("n", 2))):
            which, skip = pick(rng), rng.random() >= options.get("p", 0.5)
            image = image if skip else one(image, rng, which, m)
        return image

    def trivial(image, rng):
        return one(image, rng, pick(rng), rng.random())

    def auto(image, rng):
        pairs = [part.split() for part in AUTO_POLICY.split(";")]
        words = pairs[int(rng.integers(len(pairs)))]
        for which, p, magnitude in (words[:3], words[3:]):
            if rng.random() < float(p):
                image = one(image, rng, which, float(magnitude) / 10)
        return image

    def three(image, rng):
        kind = int(rng.integers(3))  # DeiT III's 3-Augment: grey, solarize or blur
        if kind == 0:
            return image.convert("L").convert("RGB")
        if kind == 1:
            return ImageOps.solarize(image, 128)
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2)))

    def augmix(image, rng):
        width, depth = int(options.get("w", 3)), int(options.get("d", -1))
        weights, part = rng.dirichlet([1.0] * width), rng.beta(1.0, 1.0)
        mixed = np.zeros((image.height, image.width, 3), np.float32)
        for weight in weights:
            chain = image
            for _ in range(depth if depth > 0 else int(rng.integers(1, 4))):
                chain = one(chain, rng, pick(rng), m)
            mixed += np.float32(weight) * np.asarray(chain, np.float32)
        mixed = (1 - part) * np.asarray(image, np.float32) + part * mixed
        return Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))

    return {
        "randaug": randaug,
        "trivialaugwide": trivial,
        "autoaug": auto,
        "autoaugr": auto,
        "3a": three,
        "augmix": augmix,
    }[name]


def _policy(text):
    """``randaug-m9-mstd0.5`` -> ("randaug", {"m": 9.0, "mstd": 0.5})."""
    name, *words = str(text).split("-")
    if name not in POLICIES:
        raise UserError(nearest(name, POLICIES, "auto_augment policy"))
    options = {}
    for word in words:
        found = re.fullmatch(r"([a-z]+)(\d*\.?\d*)", word)
        if not found:
            raise UserError(f"auto_augment {text!r}: cannot read {word!r}")
        options[found.group(1)] = float(found.group(2) or 0)
    return name, options


def jpeg_420(image: Image.Image, quality: int) -> Image.Image:
    """Re-save as JPEG of that quality, always with 4:2:0 chroma subsampling."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=2)
    buffer.seek(0)
    with Image.open(buffer) as again:
        return again.convert("RGB")


def vip_impairment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The impairment of the IEEE VIP Cup 2022: a random square resized to 200 x 200, then JPEG of quality 65 to 100.

    Its side is drawn from max(5/8 m, 160) to m, m = min(sides, 2048). Smaller squares are enlarged bicubically, larger
    ones reduced with Lanczos; an image below 160 pixels is used whole.
    """
    most = min(*image.size, 2048)
    least = min(max(int(most * 5 / 8), 160), most)
    side = int(rng.integers(least, most + 1))
    left, top = int(rng.integers(0, image.width - side + 1)), int(rng.integers(0, image.height - side + 1))
    how = Image.Resampling.LANCZOS if side > 200 else Image.Resampling.BICUBIC
    image = image.crop((left, top, left + side, top + side)).resize((200, 200), how)
    return jpeg_420(image, int(rng.integers(65, 101)))


@operation(random=True)
def vip_cup() -> Step:
    """:func:`vip_impairment`: what the organisers of the cup did to every test image."""
    return vip_impairment


@operation(random=True)
def albumentations(name: str, **arguments: Any) -> Step:
    """One transform of the Albumentations library: ``albumentations(GaussNoise, p=0.2)``.

    It is seeded from the sample's generator, so both images of a pair get the same draws. Needs the ``train`` extra.
    """
    # On import the library looks for a newer version online unless told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import albumentations as library
            import cv2
    except ImportError:
        raise UserError("albumentations is not installed; run: pip install 'aidet[train]'") from None
    cv2.setNumThreads(0)
    kinds = [n for n in dir(library) if n[0].isupper() and isinstance(getattr(library, n), type)]
    if name not in kinds:
        raise UserError(nearest(name, kinds, "Albumentations transform"))
    try:
        with warnings.catch_warnings():
            # The library only warns about an argument that it does not know.
            warnings.simplefilter("error", UserWarning)
            transform = getattr(library, name)(**arguments)
    except (TypeError, ValueError, UserWarning) as error:
        raise UserError(f"albumentations({name}): {' '.join(str(error).split())[:300]}") from None

    def run(image, rng):
        transform.set_random_seed(int(rng.integers(2**31)))
        return Image.fromarray(transform(image=np.asarray(image))["image"])

    return run
