"""A picture and its mask through the same pipeline: what moves pixels moves the mask, with the same random draws."""

import copy
from typing import Any, Optional, Tuple

import numpy as np
from PIL import Image

from ..errors import UserError
from .pipeline import NUMERIC, Pipeline

# Applied to both. A resize mixes neighbouring pixels of the mask as it mixes those of the picture.
MOVING = {
    "center_crop", "hflip", "pad", "random_crop", "random_resized_crop", "rescale", "resize", "rotate90", "two_sizes",
    "vflip",
}  # fmt: skip
# Every pixel stays where it is, so the mask stays as it is.
STILL = {"blur", "color_jitter", "down_up", "grayscale", "jpeg", "noise", "webp", *NUMERIC}


def refuse_unmasked(line: Pipeline) -> None:
    """Refuse a pipeline with an operation that a mask cannot follow.

    Raises
    ------
    UserError
        It has one that hides pixels (``cutout``, ``random_erasing``), moves them in a way that only it knows
        (``auto_augment``, ``albumentations``), or does both and compresses (``vip_cup``).
    """
    for name, _ in line.steps:
        if name not in MOVING and name not in STILL:
            raise UserError(
                f"transform {line.text!r}: the masks of the data cannot follow {name!r}; leave it out, or use "
                f"{', '.join(sorted(MOVING))}"
            )


def together(
    line: Pipeline, image: Image.Image, mask: np.ndarray, rng: Optional[np.random.Generator]
) -> Tuple[Any, np.ndarray]:
    """Run a pipeline on a picture and its mask.

    Parameters
    ----------
    line : Pipeline
    image : PIL.Image.Image
    mask : ndarray (height, width) of uint8
        1 generated, 0 untouched; of the picture's size.
    rng : numpy.random.Generator or None
        Left as it would be without the mask, so that the picture is the same.

    Returns
    -------
    (PIL.Image.Image or ndarray, ndarray)
        What the last step made of the picture, and the mask, float32 (h, w) in [0, 1]: a share where a resize mixed
        pixels.
    """
    # Three equal channels, because operations take RGB; 255 so that a resize keeps shares.
    moved = Image.fromarray(np.repeat((mask * np.uint8(255))[..., None], 3, axis=2))
    result: Any = image
    for name, step in line.steps:
        # The draws of an operation depend on the generator and the size alone, so a copy gives the same ones.
        twin = copy.deepcopy(rng) if name in MOVING else None
        result = step(result, rng)
        if name in MOVING:
            moved = step(moved, twin)
    return result, np.asarray(moved)[..., 0].astype(np.float32) / np.float32(255)


def shares(mask: np.ndarray, grid: int) -> np.ndarray:
    """Generated share of every cell.

    Parameters
    ----------
    mask : ndarray (h, w) of float32
        In [0, 1]; both sides are multiples of ``grid``.
    grid : int
        Side of a cell in pixels.

    Returns
    -------
    ndarray (h / grid, w / grid) of float32
    """
    h, w = mask.shape
    return mask.reshape(h // grid, grid, w // grid, grid).mean((1, 3), dtype=np.float32)
