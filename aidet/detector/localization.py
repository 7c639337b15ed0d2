"""Where a picture was generated: its map of cells, enlarged to its size, its regions, and words for them."""

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

import numpy as np
from PIL import Image

HALF = 0.5  # of the picture: below it is partly generated, from it on mostly or wholly
WHITE = 65535  # of a 16-bit grey picture
BAND = 256  # rows of a map that are made at a time
Box = Tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Localization:
    """What a :class:`aidet.Localizer` says about one picture.

    The map has one value for each cell, a few hundred kilobytes for 48 megapixels, and enlarged when it is asked for.

    Attributes
    ----------
    cells : numpy.ndarray, float32, shape (rows, columns)
        Probability in [0, 1] that the pixels of a cell are generated.
    grid : int
        Pixels along each side of a cell; those at the right and lower edge may be cut.
    size : (int, int)
        Width and height of the picture in pixels.
    score : float
        Log-odds that the picture is generated, at least in part.
    threshold : float
        Cells with a probability above it count as generated.
    min_area : float
        Share of the picture under which no region is reported.
    reason : str
        Why the picture holds too little evidence; empty if it holds enough.
    """

    cells: np.ndarray
    grid: int
    size: Tuple[int, int]
    score: float
    threshold: float = 0.5
    min_area: float = 0.005
    reason: str = ""

    def __post_init__(self) -> None:
        area, where = measured(self.cells > self.threshold, self.grid, self.size)
        object.__setattr__(self, "_area", area)
        object.__setattr__(self, "_where", where if area >= self.min_area else None)

    @property
    def area(self) -> float:
        """Share of the picture's pixels in cells that count as generated, in [0, 1]."""
        return self._area  # type: ignore[attr-defined, no-any-return]

    @property
    def where(self) -> Optional[Box]:
        """Box of the largest connected region, ``(x0, y0, x1, y1)`` in pixels, the right and lower end excluded.

        None if :attr:`area` is under :attr:`min_area`.
        """
        return self._where  # type: ignore[attr-defined, no-any-return]

    @property
    def prob(self) -> float:
        """sigmoid(:attr:`score`), in [0, 1]."""
        return float(1 / (1 + np.exp(-np.clip(self.score, -500, 500))))

    @property
    def found(self) -> str:
        """``none``, ``partly`` or ``mostly``; ``unsure`` if the picture holds too little evidence."""
        if self.reason:
            return "unsure"
        return "none" if self.where is None else "partly" if self.area < HALF else "mostly"

    @property
    def words(self) -> str:
        """The finding as text, such as ``no generated region found``."""
        if self.reason:
            return f"too little evidence: {self.reason}"
        if self.where is None:
            return "no generated region found"
        if self.found == "mostly":
            return f"mostly or wholly generated: {share(self.area)} of the picture"
        x0, y0, x1, y1 = self.where
        region = f"the largest region {x1 - x0} x {y1 - y0} pixels at ({x0}, {y0})"
        return f"partly generated: {share(self.area)} of the picture, {region}"

    @property
    def map(self) -> np.ndarray:
        """The probabilities of all pixels: float32 (height, width), in [0, 1]; 4 bytes a pixel."""
        return self.rows(0, self.size[1])

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of :attr:`map`, without making the others."""
        width, height = self.size
        return enlarged(self.cells, self.grid, np.arange(start, min(stop, height)), np.arange(width))

    def picture(self) -> Image.Image:
        """The map as a 16-bit grey picture (mode ``I;16``): 0 is probability 0, 65535 probability 1."""
        width, height = self.size
        made = np.empty((height, width), np.uint16)
        for start in range(0, height, BAND):
            made[start : start + BAND] = sixteen_bits(self.rows(start, start + BAND))
        return Image.fromarray(made)

    def to_dict(self) -> Dict[str, Any]:
        """Everything but the map; only numbers, strings and lists, so that ``json`` can write it."""
        return {
            "area": self.area,
            "where": None if self.where is None else list(self.where),
            "score": self.score,
            "prob": self.prob,
            "found": self.found,
            "words": self.words,
        }


def share(area: float) -> str:
    """A share of the picture as text: ``12%``, ``1.4%``."""
    return f"{100 * area:.0f}%" if area >= 0.0995 else f"{100 * area:.1f}%"


def sixteen_bits(values: np.ndarray) -> np.ndarray:
    """Probabilities in [0, 1] as uint16, 65535 for 1."""
    return np.rint(values * np.float32(WHITE)).astype(np.uint16)


def enlarged(cells: np.ndarray, grid: int, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Values of pixels, bilinear between the centres of cells and constant outside of them.

    Parameters
    ----------
    cells : numpy.ndarray, float32, shape (rows, columns)
    grid : int
        Pixels along each side of a cell.
    down, across : numpy.ndarray of int
        Numbers of the rows and of the columns that are wanted.

    Returns
    -------
    numpy.ndarray, float32, shape (len(down), len(across))
    """
    top, low, part = _between(down, grid, cells.shape[0])
    made = cells[top] + part[:, None] * (cells[low] - cells[top])
    left, right, part = _between(across, grid, cells.shape[1])
    first = made[:, left]
    return np.clip(first + part * (made[:, right] - first), 0, 1)


def _between(pixels, grid, count):
    """The cells on either side of each pixel's centre, and how far it is from the first to the second."""
    place = np.clip((pixels + 0.5) / grid - 0.5, 0, count - 1)
    first = np.minimum(place.astype(int), max(count - 2, 0))
    return first, np.minimum(first + 1, count - 1), (place - first).astype(np.float32)


def measured(inside: np.ndarray, grid: int, size: Tuple[int, int]) -> Tuple[float, Optional[Box]]:
    """Share of the picture that is inside, and the box of its largest connected region.

    Parameters
    ----------
    inside : numpy.ndarray of bool, shape (rows, columns)
        One value a cell. Cells that touch at a corner belong together.
    grid : int
        Pixels along each side of a cell.
    size : (int, int)
        Width and height of the picture in pixels.

    Returns
    -------
    (float, (int, int, int, int) or None)
        Cells that the edge of the picture cuts count with the pixels that they have. None: nothing is inside.
    """
    from scipy import ndimage

    labels, count = ndimage.label(inside, np.ones((3, 3), int))
    if not count:
        return 0.0, None
    heights, widths = (np.minimum(grid, side - grid * np.arange(n)) for side, n in zip(size[::-1], inside.shape))
    pixels = np.bincount(labels.ravel(), np.outer(heights, widths).ravel(), count + 1)[1:]
    rows, columns = ndimage.find_objects(labels)[int(pixels.argmax())]
    box = (
        grid * columns.start, grid * rows.start, min(grid * columns.stop, size[0]), min(grid * rows.stop, size[1]),
    )  # fmt: skip
    return float(pixels.sum() / (size[0] * size[1])), box
