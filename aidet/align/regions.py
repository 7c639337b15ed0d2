"""Regions of a picture: rectangles, ellipses, free-form strokes, and segments of like colour and texture.

Ellipses and strokes are first a field of numbers, one per pixel, which grows away from the region's middle; the region
is the part below the quantile that gives the wanted area. Free-form strokes as regions follow Yu et al., "Free-Form
Image Inpainting with Gated Convolution", ICCV 2019; segments are those of Felzenszwalb and Huttenlocher, "Efficient
Graph-Based Image Segmentation", IJCV 2004, as in scikit-image.
"""

from typing import Any, Callable, Dict, Optional, Tuple

import numpy as np
from PIL import Image

from ..errors import UserError

COARSE = 192  # longest side in pixels of the picture in which strokes are drawn and segments are found
STEPS = 160  # points of a stroke


def rectangle(pixels: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    """A rectangle parallel to the edges, its sides in a ratio of up to 2.5, wholly inside the picture.

    Parameters
    ----------
    pixels : ndarray (H, W, 3) of uint8
        The picture; of most kinds only its size matters.
    area : float
        Wanted share of the picture, in (0, 1).
    rng : numpy.random.Generator

    Returns
    -------
    ndarray (H, W) of bool
        True in the region.
    """
    height, width = pixels.shape[:2]
    wanted = area * height * width
    across = min(width, max(wanted / height, np.sqrt(wanted * np.exp(rng.uniform(-0.92, 0.92)))))
    across = max(1, round(across))
    down = min(height, max(1, round(wanted / across)))
    top, left = int(rng.integers(height - down + 1)), int(rng.integers(width - across + 1))
    region = np.zeros((height, width), bool)
    region[top : top + down, left : left + across] = True
    return region


def ellipse(pixels: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    """A turned ellipse, its axes in a ratio of up to 2.5; the picture's edge may cut it. See :func:`rectangle`."""
    height, width = pixels.shape[:2]
    y, x = np.ogrid[:height, :width]
    y = y - rng.uniform(0.2, 0.8) * height
    x = x - rng.uniform(0.2, 0.8) * width
    turn, ratio = rng.uniform(0, np.pi), np.exp(rng.uniform(0, 0.92))
    along, apart = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return _below((along**2 + (apart * ratio) ** 2).astype(np.float32), area)


def stroke(pixels: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    """A free-form stroke: a winding line of a brush of changing width. See :func:`rectangle`."""
    height, width = pixels.shape[:2]
    rows, columns = _coarse(height, width)
    side = min(rows, columns)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.16, STEPS) + rng.normal(0, 0.025))
    step = side * rng.uniform(0.5, 2.0) / STEPS
    line = np.stack([np.cumsum(np.sin(heading)), np.cumsum(np.cos(heading))]) * step
    middle = np.array([rows, columns]) * rng.uniform(0.3, 0.7, 2)
    line += (middle - line.mean(1))[:, None]
    brush = np.exp(np.interp(np.arange(STEPS), np.linspace(0, STEPS, 6), rng.uniform(-0.5, 0.5, 6)))
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    field = np.full((rows, columns), np.inf, np.float32)
    for top, left, broad in zip(*line, brush):
        np.minimum(field, np.hypot(y - np.float32(top), x - np.float32(left)) / np.float32(broad), out=field)
    return _below(_as_large(field, width, height), area)


def segment(pixels: np.ndarray, area: float, rng: np.random.Generator) -> Optional[np.ndarray]:
    """A segment of like colour and texture, grown by its most similar neighbours until it is large enough.

    See :func:`rectangle`; None if the picture has no such segment, for example because it is of one colour.

    Raises
    ------
    UserError
        scikit-image is not installed.
    """
    rgb2lab, felzenszwalb = segmentation()
    height, width = pixels.shape[:2]
    rows, columns = _coarse(height, width)
    small = np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BOX))
    count = rows * columns
    labels = felzenszwalb(small, scale=60, sigma=0.6, min_size=max(12, count // 400))
    lab = rgb2lab(small)
    rough = np.abs(lab[..., 0] - _blurred(lab[..., 0]))
    sizes = np.bincount(labels.ravel())
    about = np.stack(
        [np.bincount(labels.ravel(), v.ravel()) / sizes for v in (lab[..., 0], lab[..., 1], lab[..., 2], 3 * rough)], 1
    )
    known = np.flatnonzero(sizes <= area * count)
    if not len(known):
        return None
    chosen = _grown(labels, sizes, about, int(rng.choice(known, p=sizes[known] / sizes[known].sum())), area * count)
    soft = _as_large(np.isin(labels, chosen).astype(np.float32), width, height)
    return soft > 0.5


def segmentation() -> Tuple[Any, Any]:
    """scikit-image's ``rgb2lab`` and ``felzenszwalb``; a :class:`UserError` if it is not installed."""
    try:
        from skimage.color import rgb2lab
        from skimage.segmentation import felzenszwalb
    except ImportError:
        raise UserError(
            "segments need scikit-image: pip install 'aidet[partial]', or leave segment out of --kinds"
        ) from None
    return rgb2lab, felzenszwalb


def _grown(labels, sizes, about, first, wanted):
    """Segments around the first one, the most similar neighbours first, of at most ``wanted`` pixels in all."""
    pairs = np.concatenate(
        [
            np.stack([labels[:-1].ravel(), labels[1:].ravel()], 1),
            np.stack([labels[:, :-1].ravel(), labels[:, 1:].ravel()], 1),
        ]
    )
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    chosen, total = [first], sizes[first]
    refused: set = set()
    while True:
        beside = set(pairs[np.isin(pairs[:, 0], chosen), 1].tolist()) - set(chosen) - refused
        if not beside:
            return chosen
        nearest = min(sorted(beside), key=lambda i: float(np.abs(about[i] - about[first]).sum()))
        if total + sizes[nearest] > wanted:
            refused.add(nearest)
            continue
        chosen.append(nearest)
        total += sizes[nearest]


def _coarse(height, width):
    """Rows and columns of the picture at no more than COARSE pixels a side."""
    scale = min(1.0, COARSE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _as_large(field, width, height):
    """A field of floats, enlarged bilinearly."""
    return np.asarray(Image.fromarray(field).resize((width, height), Image.Resampling.BILINEAR))


def _blurred(values):
    """The mean of 3x3 pixels."""
    padded = np.pad(values, 1, mode="edge")
    height, width = values.shape
    return sum(padded[i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9


def _below(field, area):
    """The part of a field below the quantile ``area``."""
    rank = min(field.size - 1, max(0, round(area * field.size) - 1))
    return field <= np.partition(field.ravel(), rank)[rank]


KINDS: Dict[str, Callable[[np.ndarray, float, np.random.Generator], Optional[np.ndarray]]] = {
    "rectangle": rectangle, "ellipse": ellipse, "stroke": stroke, "segment": segment,
}  # fmt: skip
