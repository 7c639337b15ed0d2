"""Maps of generated pixels beside true masks: one picture at a time, so that memory does not grow with the pixels.

What is kept of a picture are counts: the pixels on either side of the threshold, and two histograms of :data:`BINS`
bins that are even in log-odds, one of the generated pixels and one of the untouched ones (8 KB). A pixel AUC from them
treats the pixels of one bin as equal; the bins are 0.02 wide in log-odds.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from .. import images
from ..datasets.map_names import map_name, possible_names
from ..datasets.masks import mask_of
from ..datasets.truth import Truth
from ..detector.localization import WHITE
from ..errors import UserError, first_line
from ..labels import GENERATED, REAL, logit

BINS = 1024
REACH = 11.1  # log-odds at the outer bins; 1 / 65535 is -11.09
TOP = 0.01  # share of the pixels, the highest ones, whose mean is the image score of a map without other scores
MAP_SCORE = "map"  # name of the image score that is made of the map
_BIN = np.digitize(logit(np.arange(WHITE + 1) / WHITE), np.linspace(-REACH, REACH, BINS - 1)).astype(np.int16)


def bin_edges() -> np.ndarray:
    """Probabilities (BINS,) below which a value is in a lower bin; NaN for a bin that no value falls into."""
    first = np.full(BINS, np.nan)
    values, at = np.unique(_BIN, return_index=True)
    first[values] = np.maximum(at - 0.5, 0) / WHITE
    return first


@dataclass
class Measured:
    """What is kept of one picture.

    Attributes
    ----------
    path : str
    label : int
    status : str
        ``ok`` or ``error: reason``; nothing below is set then.
    area : float
        Share of generated pixels in the mask, 0-1.
    found : float
        Share of pixels whose probability is above the threshold.
    counts : (int, int, int, int)
        Pixels: generated and found, untouched and found, generated and missed, untouched and left alone.
    histogram : ndarray (2, BINS) of uint32
        Untouched and generated pixels by probability.
    top : float
        Mean probability of the highest :data:`TOP` of the pixels.
    """

    path: str
    label: int
    status: str = "ok"
    area: float = float("nan")
    found: float = float("nan")
    counts: Tuple[int, int, int, int] = (0, 0, 0, 0)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros((2, BINS), np.uint32))
    top: float = float("nan")

    @property
    def ok(self) -> bool:
        """Whether mask and map could be used."""
        return self.status == "ok"


class Maps:
    """The map files of a folder, found by the names of their pictures.

    ``a/b.jpg`` belongs to ``a/b.png`` or, where that name is another picture's as well, to ``a/b.jpg.png``. If the maps
    were made from a subfolder of the labels, the leading folders that their names lack are left out for all of them.

    Parameters
    ----------
    folder : str or Path
    paths : sequence of str
        The pictures, as the labels name them.

    Raises
    ------
    UserError
        No such folder, or not one of its maps belongs to a picture.
    """

    def __init__(self, folder: Union[str, Path], paths: Sequence[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"--maps {str(folder)!r} is not a folder; infer.py --localize --out OUT writes OUT/maps")
        probed = paths[:: max(1, len(paths) // 64)]
        depth = min(4, max((path.count("/") for path in probed), default=0))
        hits = [sum(self._file(path, off) is not None for path in probed) for off in range(depth + 1)]
        self.off = int(np.argmax(hits))
        if not max(hits) and all(self._file(path, off) is None for path in paths for off in range(depth + 1)):
            example = f"{self.folder.name}/{map_name(paths[0])}"
            raise UserError(f"--maps {str(folder)!r} has no map of any picture of the labels; wanted such as {example}")
        times = Counter(map_name(_without(path, self.off)) for path in paths)
        self._shared = {name for name, count in times.items() if count > 1}

    def _file(self, path, off):
        names = (name for shown in (path, _without(path, off)) for name in possible_names(shown)[:2])
        files = (self.folder / name for name in (*names, map_name(_without(path, off))))
        return next((file for file in files if file.is_file()), None)

    def read(self, path: str, size: Tuple[int, int]) -> np.ndarray:
        """The map of one picture.

        Parameters
        ----------
        path : str
            As the labels name it.
        size : (int, int)
            Width and height of the picture.

        Returns
        -------
        ndarray (height, width) of uint16
            Probability of *generated*, 0 to 65535; an 8-bit map is spread over that range.

        Raises
        ------
        UserError
            Missing, damaged, of another size, or not grey.
        """
        found = self._file(path, self.off)
        plain = map_name(_without(path, self.off))
        if found is None:
            raise UserError("no map")
        if plain in self._shared and found == self.folder / plain:
            raise UserError(f"map {found.name!r} could be that of several pictures; keep their extensions in the names")
        try:
            with images.opened(found) as image:
                mode, there = image.mode, image.size
                values = np.asarray(image) if mode in ("L", "I", "I;16", "I;16B") and there == tuple(size) else None
        except Exception as error:  # noqa: BLE001 - Pillow raises nearly every type of error on damaged files
            raise UserError(f"map cannot be read: {first_line(error, 200)}") from None
        if there != tuple(size):
            raise UserError(
                f"map of {there[0]}x{there[1]} pixels for a picture of {size[0]}x{size[1]}; enlarge it first"
            )
        if values is None:
            raise UserError(f"map of mode {mode}; wanted 8- or 16-bit grey")
        return values.astype(np.uint16) * np.uint16(257) if mode == "L" else values.clip(0, WHITE).astype(np.uint16)


def _without(path, off):
    """A path without its first ``off`` folders, as far as it has them."""
    parts = path.lstrip("/").split("/")
    return "/".join(parts[min(off, len(parts) - 1) :])


def measure(true: Truth, maps: Maps, threshold: float = 0.5) -> List[Measured]:
    """Compare the map of every picture with its mask.

    Parameters
    ----------
    true : Truth
        Labels with the column ``mask``, and ``area`` for wholly generated pictures.
    maps : Maps
    threshold : float
        A pixel counts as found if its probability is above it.

    Returns
    -------
    list of Measured
        One per row of the labels, in their order; a row whose picture, mask or map cannot be used says why.
    """
    from tqdm import tqdm

    paths, masks = true.paths or [], true.column("mask")
    areas = true.columns.get("area", [""] * len(paths))
    rows = zip(paths, true.files(), true.labels.tolist(), masks, areas)
    out = []
    for path, file, label, cell, area in tqdm(rows, desc="maps", unit="map", total=len(paths), disable=None):
        try:
            size = picture_size(file)
            mask = mask_of(true.root, cell, label, area, size, path)
            out.append(compared(path, label, mask, maps.read(path, size), threshold))
        except UserError as error:
            out.append(Measured(path, label, f"error: {error}"))
    return out


def picture_size(file: Union[str, Path]) -> Tuple[int, int]:
    """Width and height of a picture when it is upright; :class:`UserError` with the reason if it cannot be opened."""
    try:
        return images.upright_size(file)
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly every type of error on damaged files
        why = "no such file" if isinstance(error, FileNotFoundError) else first_line(error, 200)
        raise UserError(f"picture cannot be read: {why}") from None


def compared(path: str, label: int, mask: np.ndarray, values: np.ndarray, threshold: float = 0.5) -> Measured:
    """What is kept of one picture.

    Parameters
    ----------
    path : str
    label : int
    mask : ndarray (H, W) of uint8
        1 generated, 0 untouched.
    values : ndarray (H, W) of uint16
        From :meth:`Maps.read`.
    threshold : float
    """
    generated = mask.astype(bool)
    above = values > threshold * WHITE
    hit, false = int((above & generated).sum()), int((above & ~generated).sum())
    inside = int(generated.sum())
    counts = (hit, false, inside - hit, mask.size - inside - false)
    bins = _BIN[values]
    histogram = np.stack([np.bincount(bins[side], minlength=BINS) for side in (~generated, generated)])
    least = max(1, round(TOP * mask.size))
    top = np.partition(values.ravel(), mask.size - least)[mask.size - least :].mean() / WHITE
    found = (hit + false) / mask.size
    return Measured(path, label, "ok", inside / mask.size, found, counts, histogram.astype(np.uint32), float(top))


@dataclass
class Localized:
    """Labels, what was measured of each map, and the image scores.

    Attributes
    ----------
    true : Truth
    rows : list of Measured
        In the order of ``true``.
    scores : dict of str to ndarray (n,)
        Image scores, above 0 generated; the first one is used for the tables.
    threshold : float
        Of the map's probability.
    decisions : ndarray of int (n,), optional
        Of the detector whose image score is ``score``, at its own threshold; -1, and None, where there is none.
    """

    true: Truth
    rows: List[Measured]
    scores: Dict[str, np.ndarray]
    threshold: float
    decisions: Optional[np.ndarray] = None

    def __post_init__(self) -> None:
        tops = np.array([row.top for row in self.rows])
        self.scores = {**self.scores, MAP_SCORE: logit(tops) - float(logit(self.threshold))}
        self.ok = np.array([row.ok for row in self.rows])
        self.area = np.array([row.area for row in self.rows])
        self.generated = self.ok & (self.true.labels == GENERATED)
        self.untouched = self.ok & (self.true.labels == REAL)

    def column(self, name: str) -> List[str]:
        """A column of the labels; empty cells if they have none of that name."""
        return self.true.columns.get(name, [""] * len(self.rows))

    def groups(self, rows: np.ndarray) -> Optional[np.ndarray]:
        """Source images of the rows selected by a mask (n,), or None."""
        groups = self.true.groups()
        return None if groups is None else np.array(groups, object)[rows]


# --- numbers of pixels ------------------------------------------------------------------------------------------------
def pixel_auc(histogram: np.ndarray) -> Optional[float]:
    """Area under the ROC curve of pixels (scikit-learn's); None if all are on one side.

    Parameters
    ----------
    histogram : ndarray (2, BINS)
        Weights of untouched and generated pixels.
    """
    from sklearn.metrics import roc_auc_score

    if not histogram.sum(1).all():
        return None
    sides, bins = np.nonzero(histogram)
    return float(roc_auc_score(sides, bins, sample_weight=histogram[sides, bins].astype(np.float64)))


def aucs(histograms: np.ndarray) -> np.ndarray:
    """:func:`pixel_auc` of many histograms (..., 2, BINS) at once, for the bootstrap; NaN where it has none."""
    untouched, generated = histograms[..., 0, :], histograms[..., 1, :]
    below = np.cumsum(untouched, -1) - untouched / 2
    pairs = untouched.sum(-1) * generated.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (generated * below).sum(-1) / pairs, np.nan)


def overlap(counts: np.ndarray) -> Dict[str, np.ndarray]:
    """F1 and IoU of found pixels.

    Parameters
    ----------
    counts : ndarray (..., 4)
        As :attr:`Measured.counts`, possibly weighted sums of them.

    Returns
    -------
    dict
        ``f1`` and ``iou``, (...); NaN where nothing is generated and nothing found.
    """
    hit, false, missed = counts[..., 0], counts[..., 1], counts[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"f1": 2 * hit / (2 * hit + false + missed), "iou": hit / (hit + false + missed)}


def best_f1(histogram: np.ndarray) -> Tuple[float, float]:
    """The threshold with the highest F1 of pooled pixels, and that F1: ``(threshold, f1)``.

    It is chosen on the pixels that it is tested on: an upper bound, not a result.
    """
    untouched, generated = histogram.astype(np.float64)
    hit, false = np.cumsum(generated[::-1])[::-1], np.cumsum(untouched[::-1])[::-1]
    edges = bin_edges()
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.where(np.isnan(edges), -1, 2 * hit / (hit + false + generated.sum()))
    at = int(np.nanargmax(value))
    return float(edges[at]), float(value[at])
