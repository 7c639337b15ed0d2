"""Shortcuts: file properties that reveal the class without any pixel being decoded.

A detector trained on 512-pixel generated images and camera photographs of every size learns "512"; one trained on PNG
fakes and JPEG reals learns "JPEG" (Grommelt et al., "Fake or JPEG?", 2024). The audit measures how well each property
alone predicts the label on held-out images.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import ArrayLike
from PIL import JpegImagePlugin

from .. import archives, images, metrics
from ..errors import UserError

NUMBERS = ("width", "height", "pixels", "aspect", "bytes_per_pixel", "jpeg_quality")
WORDS = ("format", "extension", "mode", "jpeg_tables", "subsampling", "progressive", "exif", "icc")
FEATURES = NUMBERS + WORDS
FOLDS = 5
FEWEST = 20  # images of each class that an audit needs
# ITU-T T.81 annex K.1: the luminance table that the Independent JPEG Group scales by its quality setting.
LUMINANCE = np.array(
    [
        16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
        14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
        18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
        49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
    ]
)  # fmt: skip
SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}


def _scaled_sums():
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((LUMINANCE[None] * scale[:, None] + 50) // 100, 1, 255).sum(axis=1)


_SUMS = _scaled_sums()


def jpeg_quality(table: Sequence[int]) -> int:
    """The Independent JPEG Group quality (1..100) whose luminance table has the sum nearest to this table's."""
    return int(np.argmin(np.abs(_SUMS - sum(table)))) + 1


def file_features(path: Union[str, Path]) -> Dict[str, Any]:
    """Properties of one image file's container; the pixels are not decoded.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    dict
        One value for each of :data:`FEATURES`: numbers for :data:`NUMBERS` (``jpeg_quality`` is -1 unless the file
        is a JPEG), text for :data:`WORDS`.

    Raises
    ------
    OSError, ValueError
        The file is not an image.
    """
    size = archives.size(path)
    with images.opened(path) as image:
        tables = getattr(image, "quantization", {}) if isinstance(image, JpegImagePlugin.JpegImageFile) else {}
        jpeg = bool(tables)
        text = repr(sorted((k, list(v)) for k, v in tables.items())).encode()
        return {
            "width": image.width,
            "height": image.height,
            "pixels": image.width * image.height,
            "aspect": image.width / image.height,
            "bytes_per_pixel": size / (image.width * image.height),
            "jpeg_quality": jpeg_quality(tables[min(tables)]) if jpeg else -1,
            "format": str(image.format),
            # Of the member; a row of Parquet has a number for a name, which would tell the classes of a sorted set.
            "extension": os.path.splitext((archives.parted(path) or ("", str(path)))[1])[1].lower(),
            "mode": image.mode,
            "jpeg_tables": hashlib.sha256(text).hexdigest()[:8] if jpeg else "none",
            "subsampling": SUBSAMPLING.get(JpegImagePlugin.get_sampling(image), "other") if jpeg else "none",
            "progressive": "yes" if image.info.get("progressive") else "no",
            "exif": "yes" if _has_exif(image) else "no",
            "icc": "yes" if image.info.get("icc_profile") else "no",
        }


def _has_exif(image):
    # Not getexif(): it also reports an orientation from XMP, and loads a PNG's pixels to look for EXIF after them.
    return bool(image.info.get("exif")) or "Raw profile type exif" in image.info


class Folds:
    """Cross-validation that keeps all rows of a group in one fold and has both classes in every fold.

    Parameters
    ----------
    y : array of int, shape (n,)
    groups : sequence, shape (n,), optional
    seed : int

    Raises
    ------
    UserError
        Fewer than :data:`FEWEST` images of a class, or fewer than two groups of a class.
    """

    def __init__(self, y: ArrayLike, groups: Optional[Sequence] = None, seed: int = 42) -> None:
        from sklearn.model_selection import StratifiedGroupKFold

        y = np.asarray(y)
        metrics.check(y, what="audit")
        smallest = min((y == 0).sum(), (y == 1).sum())
        if smallest < FEWEST:
            raise UserError(f"audit: only {smallest} images of one class; at least {FEWEST} are needed")
        names = metrics.group_numbers(groups, len(y))
        parts = min(FOLDS, *(len(set(names[y == side])) for side in (0, 1)))
        if parts < 2:
            raise UserError("audit: all images of one class have the same group; at least two source images are needed")
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        self.y, self.parts = y, list(splitter.split(y, y, names))

    def predict(self, fit: Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]) -> np.ndarray:
        """Out-of-fold probabilities (n,); ``fit(rows, y)`` returns a function from rows to probabilities."""
        out = np.full(len(self.y), 0.5)
        for train, test in self.parts:
            if len(set(self.y[train])) == 2 and len(test):
                out[test] = fit(train, self.y[train])(test)
        return out


def predict_from_number(values: Sequence[float], folds: Folds) -> np.ndarray:
    """Out-of-fold probability of *generated* from one number: a small tree can find steps, bands and single values."""
    from sklearn.tree import DecisionTreeClassifier

    column = np.asarray(values, float).reshape(-1, 1)
    leaf = max(5, len(column) // 200)

    def fit(rows, y):
        tree = DecisionTreeClassifier(max_depth=5, min_samples_leaf=leaf, random_state=0).fit(column[rows], y)
        return lambda test: tree.predict_proba(column[test])[:, 1]

    return folds.predict(fit)


def predict_from_word(values: Sequence[str], folds: Folds) -> np.ndarray:
    """Out-of-fold probability of *generated* from one word: its share in the other folds plus a prior of ten images."""
    codes = np.unique([str(v) for v in values], return_inverse=True)[1]

    def fit(rows, y):
        prior = y.mean()
        total, good = np.bincount(codes[rows], minlength=codes.max() + 1), np.bincount(codes[rows], y, codes.max() + 1)
        share = (good + 10 * prior) / (total + 10)
        return lambda test: share[codes[test]]

    return folds.predict(fit)


def predict_from_all(features: Mapping[str, Sequence], folds: Folds) -> np.ndarray:
    """Out-of-fold probability of *generated* from all properties combined, by a random forest."""
    from sklearn.ensemble import RandomForestClassifier

    columns = [np.asarray(features[n], float) for n in NUMBERS]
    columns += [np.unique([str(v) for v in features[n]], return_inverse=True)[1] for n in WORDS]
    table = np.stack(columns, axis=1)

    def fit(rows, y):
        forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=0).fit(table[rows], y)
        return lambda test: forest.predict_proba(table[test])[:, 1]

    return folds.predict(fit)


def audit(
    features: Mapping[str, Sequence],
    y: ArrayLike,
    groups: Optional[Sequence] = None,
    warn: float = 0.6,
    times: int = 200,
    seed: int = 42,
) -> Tuple[Dict[str, Dict[str, Any]], np.ndarray]:
    """Measure how well each property, and all properties combined, predict the label.

    Parameters
    ----------
    features : dict of str to sequence, each of shape (n,)
        Columns of :func:`file_features`.
    y : array of int, shape (n,)
    groups : sequence, shape (n,), optional
        Source images; cross-validation and intervals keep the rows of each source image together.
    warn : float
        A property is a shortcut if its AUC is above this value and its 95% interval lies above 0.5.
    times, seed : int
        Bootstrap draws of the intervals.

    Returns
    -------
    (dict of str to dict, ndarray)
        For each property and for ``"all together"``: ``auc``, ``ci``, ``balanced_accuracy``, ``distinct`` values and
        ``shortcut`` (bool); and the out-of-fold probabilities of all properties combined.

    Raises
    ------
    UserError
        See :class:`Folds`.
    """
    folds = Folds(y, groups, seed)
    y = folds.y
    found = {}
    for name in (*FEATURES, "all together"):
        distinct = len(set(map(str, features[name]))) if name in features else None
        if distinct == 1:
            found[name] = {"auc": 0.5, "ci": [0.5, 0.5], "balanced_accuracy": 0.5, "distinct": 1, "shortcut": False}
            continue
        if name == "all together":
            prob = everything = predict_from_all(features, folds)
        else:
            prob = (predict_from_number if name in NUMBERS else predict_from_word)(features[name], folds)
        found[name] = {**judge(y, prob, groups, warn, times, seed), "distinct": distinct}
    return found, everything


def judge(
    y: np.ndarray, prob: np.ndarray, groups: Optional[Sequence], warn: float, times: int, seed: int
) -> Dict[str, Any]:
    """AUC with interval, balanced accuracy (threshold: the share of generated images), and whether it is a shortcut."""
    label = (prob > y.mean()).astype(int)
    auc = metrics.ranking_metrics(y, prob, prob)["auc"]
    ci = metrics.intervals(y, label, prob, prob, groups, times, seed=seed).get("auc")
    return {
        "auc": auc,
        "ci": ci,
        "balanced_accuracy": metrics.decision_metrics(y, label)["balanced_accuracy"],
        "shortcut": bool(auc > warn and (ci is None or ci[0] > 0.5)),
    }


def aligned(features: Mapping[str, Sequence], y: ArrayLike, names: Sequence[str], seed: int = 42) -> np.ndarray:
    """The largest subset of a data set in which the named properties are distributed equally in both classes.

    Coarsened exact matching (Iacus, King & Porro 2012): rows are grouped into cells with equal words and with numbers
    in the same of ten bins (or equal numbers if there are at most ten values). In every cell, both classes keep as
    many images as the smaller class has.

    Parameters
    ----------
    features : dict of str to sequence
    y : array of int, shape (n,)
    names : sequence of str
        Properties to match on. If empty, all rows are kept.
    seed : int
        Random seed that selects which images of the larger class are kept.

    Returns
    -------
    ndarray of int
        Rows that are kept, in ascending order.
    """
    y = np.asarray(y)
    if not names:
        return np.arange(len(y))
    coded = [_coarse(features[n], n in NUMBERS) for n in names]
    cells = np.unique(np.stack(coded, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    rng = np.random.default_rng(seed)
    kept = []
    for cell in range(cells.max() + 1):
        sides = [np.flatnonzero((cells == cell) & (y == side)) for side in (0, 1)]
        few = min(map(len, sides))
        kept += [rng.choice(rows, few, replace=False) for rows in sides if few]
    return np.sort(np.concatenate(kept)) if kept else np.array([], int)


def _coarse(values, number):
    if not number:
        return np.unique([str(v) for v in values], return_inverse=True)[1]
    values = np.asarray(values, float)
    if len(np.unique(values)) <= 10:
        return np.unique(values, return_inverse=True)[1]
    return np.searchsorted(np.quantile(values, np.arange(0.1, 1, 0.1)), values, side="right")
