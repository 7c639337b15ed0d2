"""Families of image degradations for the robustness sweep: what may happen to an image before it reaches a detector."""

from functools import partial
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from .. import images
from ..errors import UserError, nearest
from ..images.augment import jpeg_420, vip_impairment

# Name, family, x, and f(image, rng) -> image.
Point = Tuple[str, str, Union[float, str], Callable[[Image.Image, np.random.Generator], Image.Image]]

# family -> (meaning of x, [(x, one-line pipeline)]). A range of a single value makes a random operation deterministic.
_LINES: Dict[str, Tuple[str, List[Tuple[float, str]]]] = {
    "jpeg": ("JPEG quality", [(q, f"jpeg(quality=({q}, {q}))") for q in (95, 90, 80, 70, 60, 50, 30)]),
    "webp": ("WebP quality", [(q, f"webp(quality=({q}, {q}))") for q in (90, 80, 70, 50, 30)]),
    "blur": ("blur, standard deviation in pixels", [(s, f"blur(radius=({s}, {s}))") for s in (0.5, 1.0, 2.0, 3.0)]),
    "noise": (
        "noise, standard deviation in grey levels",
        [(s, f"noise(sigma=({s}, {s}))") for s in (2.0, 4.0, 8.0, 16.0)],
    ),
    "resize": (
        "resize factor",
        [(f, f"rescale(factor=({f}, {f}), interpolation=bicubic)") for f in (0.25, 0.5, 0.75, 1.25, 1.5, 2.0)],
    ),
}
_CROPS = (0.9, 0.75, 0.5, 0.25)
TIERS = ("web", "hard", "vip")
FAMILIES = (*_LINES, "crop", "tiers", "votes")


def _run_line(text):
    return partial(images.applied, images.Pipeline(text).steps)


def _crop(part):
    """A centre crop of the fraction ``part`` of each side, without resizing."""

    def middle(image, rng):
        w, h = (max(1, int(round(side * part))) for side in image.size)
        left, top = (image.width - w) // 2, (image.height - h) // 2
        return image.crop((left, top, left + w, top + h))

    return middle


def _tier(longest, quality):
    """Shrink the longer side to at most ``longest`` (Lanczos), then compress as JPEG 4:2:0."""

    def shrunk(image, rng):
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        return jpeg_420(image, quality)

    return shrunk


def points(names: Optional[Sequence[str]] = None) -> List[Point]:
    """The points that are named, one by one or by their family, ``clean`` first.

    Parameters
    ----------
    names : list of str, optional
        Names from :data:`FAMILIES` (``votes`` has no points of its own) or of points, such as ``jpeg 70``. Default:
        all.

    Returns
    -------
    list of (str, str, float or str, callable)
        Name, family, x, and ``f(image, rng) -> image``; sizes may change, the mode stays RGB.

    Raises
    ------
    UserError
        Unknown name; the message suggests the nearest.
    """
    every = list(_all())
    chosen = names or FAMILIES
    known = (*FAMILIES, *(name for name, *_ in every))
    for name in chosen:
        if name not in known:
            raise UserError(nearest(name, known, "family of points, or point"))
    return [every[0], *(point for point in every[1:] if point[0] in chosen or point[1] in chosen)]


def _all() -> Iterator[Point]:
    yield "clean", "clean", 0.0, lambda image, rng: image
    for family, (_, lines) in _LINES.items():
        yield from ((f"{family} {x:g}", family, float(x), _run_line(line)) for x, line in lines)
    yield from ((f"crop {part:g}", "crop", part, _crop(part)) for part in _CROPS)
    made = {"web": _tier(768, 60), "hard": _tier(512, 40), "vip": vip_impairment}
    yield from ((f"tier {name}", "tiers", name, made[name]) for name in TIERS)


def axis(family: str) -> str:
    """The meaning of a family's x values, as the axis label of a chart."""
    named = {"crop": "fraction of each side that is kept", "tiers": "tier", "votes": "votes"}
    return named[family] if family in named else _LINES[family][0]


def clean_x(family: str) -> Union[float, str, None]:
    """The x value of the clean image on a family's axis; None if it has none."""
    known: Dict[str, Union[float, str]] = {"blur": 0.0, "noise": 0.0, "resize": 1.0, "crop": 1.0, "tiers": "clean"}
    return known.get(family)


def apply(point: Point, image: Image.Image, seed: int, key: str) -> Image.Image:
    """Apply one point to an image, with random numbers that depend only on the seed, the image's key and the point."""
    return point[3](image, images.generator(seed, f"{point[0]}\0{key}"))


def even_sample(y: ArrayLike, count: int, seed: int = 42) -> np.ndarray:
    """Rows of ``count`` images in ascending order, as evenly from both classes as possible; all if ``count`` is 0."""
    y = np.asarray(y)
    if not count or count >= len(y):
        return np.arange(len(y))
    rng = np.random.default_rng(seed)
    sides = [rng.permutation(np.flatnonzero(y == side)) for side in (0, 1)]
    few = min(count // 2, *map(len, sides))
    first = 0 if len(sides[0]) >= len(sides[1]) else 1
    return np.sort(np.concatenate([sides[first][: count - few], sides[1 - first][:few]]))
