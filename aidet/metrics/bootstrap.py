"""Bootstrap intervals over source images (Efron 1979), and paired comparison of two detectors."""

from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import ArrayLike

from ..labels import GENERATED, REAL, sigmoid
from .points import CI_NAMES, Weighted, auc


def group_numbers(groups: Optional[Union[Sequence, np.ndarray]], count: int) -> np.ndarray:
    """Number of each row's source image, from 0; without groups, or with an empty one, a row is its own group."""
    if groups is None:
        return np.arange(count)
    names = [str(g) if g not in (None, "") else f"\0{i}" for i, g in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1]


class Resampler:
    """Draws of source images with replacement, within strata, as weights of rows.

    Parameters
    ----------
    y : array of int, shape (n,)
    groups : sequence of hashable, shape (n,), optional
        Rows with the same value are drawn together. With None, or an empty value, a row is drawn by itself.
    seed : int

    Notes
    -----
    The strata are groups of real images only, of generated images only, and of both, so that no draw loses a class
    (Davison & Hinkley 1997, section 3.2: resample within the known strata).
    """

    def __init__(self, y: ArrayLike, groups: Optional[Union[Sequence, np.ndarray]] = None, seed: int = 42) -> None:
        y = np.asarray(y)
        self.of_row = group_numbers(groups, len(y))
        self.count = int(self.of_row.max()) + 1 if len(y) else 0
        has = np.stack([np.bincount(self.of_row[y == side], minlength=self.count) > 0 for side in (REAL, GENERATED)])
        kinds = has[0] + 2 * has[1]
        self.strata = [np.flatnonzero(kinds == k) for k in (1, 2, 3) if (kinds == k).any()]
        self.seed = seed

    def weights(self, times: int) -> Iterator[np.ndarray]:
        """Yield ``times`` arrays (n,): how often each row was drawn."""
        rng = np.random.default_rng(self.seed)
        for _ in range(times):
            drawn = np.zeros(self.count)
            for stratum in self.strata:
                drawn[stratum] = np.bincount(rng.integers(0, len(stratum), len(stratum)), minlength=len(stratum))
            yield drawn[self.of_row]


def intervals(
    y: ArrayLike,
    label: ArrayLike,
    score: ArrayLike,
    prob: Optional[ArrayLike] = None,
    groups: Optional[Union[Sequence, np.ndarray]] = None,
    times: int = 1000,
    level: float = 0.95,
    seed: int = 42,
) -> Dict[str, List[float]]:
    """Percentile bootstrap intervals over source images.

    Parameters
    ----------
    y, label : array of int, shape (n,)
    score : array of float, shape (n,)
    prob : array of float, shape (n,), optional
    groups : sequence, shape (n,), optional
        Source image of each row.
    times : int
        Number of draws; 0 gives no intervals.
    level : float
        Coverage.
    seed : int

    Returns
    -------
    dict of str to [low, high]

    Notes
    -----
    A resampled set is systematically worse calibrated than the original, because bins lose images by chance; the
    intervals of both ECEs are therefore shifted so that their median is the measured value. A proportion of exactly 0
    or 1 never changes under resampling; accuracy and recalls then get Wilson's interval, with one trial per source
    image.
    """
    if times < 1:
        return {}
    y, label, score = np.asarray(y), np.asarray(label), np.asarray(score, np.float64)
    prob = sigmoid(score) if prob is None else np.asarray(prob, np.float64)
    measure = Weighted(y, label, score, prob)
    resampler = Resampler(y, groups, seed)
    point = measure(np.ones(len(y)))
    out = _percentiles([measure(w) for w in resampler.weights(times)], level, point)
    for name, rows in (("accuracy", y >= 0), ("real_recall", y == REAL), ("generated_recall", y == GENERATED)):
        if point.get(name) in (0.0, 1.0):
            trials = len(set(resampler.of_row[rows & (label >= 0)].tolist()))
            out[name] = list(wilson(point[name] * trials, trials, level))
    return out


def _percentiles(draws, level, point):
    tail = 50 * (1 - level)
    out = {}
    for name in CI_NAMES:
        values = [d[name] for d in draws if name in d]
        if values:
            low, middle, high = np.percentile(values, [tail, 50, 100 - tail])
            if name in ("ece", "balanced_ece"):
                low, high = max(0.0, low + point[name] - middle), max(0.0, high + point[name] - middle)
            out[name] = [float(low), float(high)]
    return out


def paired(
    y: ArrayLike,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    groups: Optional[Union[Sequence, np.ndarray]] = None,
    times: int = 1000,
    seed: int = 42,
) -> Dict[str, Any]:
    """Compare two detectors on the same images.

    Parameters
    ----------
    y : array of int, shape (n,)
    first, second : (label, score, prob) arrays of shape (n,)
    groups : sequence, shape (n,), optional
    times, seed : int
        As in :func:`intervals`.

    Returns
    -------
    dict
        ``differences``: per metric ``first - second``, its 95% interval and a two-sided bootstrap p value (both
        detectors are measured on the same draws); ``mcnemar``: images that only one of the two gets right, and the
        exact binomial p value (McNemar 1947), which assumes independent images.
    """
    from scipy.stats import binomtest

    y = np.asarray(y)
    measures = [Weighted(y, *(np.asarray(part) for part in one)) for one in (first, second)]
    ones = np.ones(len(y))
    point = [m(ones) for m in measures]
    draws = [[m(w) for m in measures] for w in Resampler(y, groups, seed).weights(times)]
    differences = {}
    for name in CI_NAMES:
        if name not in point[0] or name not in point[1]:
            continue
        values = np.array([a[name] - b[name] for a, b in draws if name in a and name in b])
        row: Dict[str, Any] = {"first": float(point[0][name]), "second": float(point[1][name])}
        row["difference"] = row["first"] - row["second"]
        if len(values):
            row["ci"] = [float(v) for v in np.percentile(values, [2.5, 97.5])]
            # Half of the draws at exactly 0 count for each side; one is added so that p is never 0.
            below = (values < 0).sum() + 0.5 * (values == 0).sum()
            row["p"] = float(min(1.0, 2 * (min(below, len(values) - below) + 1) / (len(values) + 1)))
        differences[name] = row
    right = [np.asarray(one[0]) == y for one in (first, second)]
    only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    p = float(binomtest(only[0], sum(only), 0.5).pvalue) if sum(only) else 1.0
    return {"differences": differences, "mcnemar": {"only_first": only[0], "only_second": only[1], "p": p}}


def by_value(
    y: ArrayLike,
    label: ArrayLike,
    score: ArrayLike,
    values: ArrayLike,
    groups: Optional[Union[Sequence, np.ndarray]] = None,
    times: int = 1000,
    seed: int = 42,
) -> Dict[str, Dict[str, Any]]:
    """Metrics of the detector for each value of one column.

    A value with images of one class only (a generator, a camera) is ranked against all images of the other class.

    Parameters
    ----------
    y, label : array of int, shape (n,)
    score : array of float, shape (n,)
        NaN if a row has no score.
    values : sequence of str, shape (n,)
    groups, times, seed
        As in :func:`intervals`; intervals of the AUC are omitted above 30 values.

    Returns
    -------
    dict of str to dict
        ``n, decided`` (rows with a decision), ``classes`` (``real``, ``generated`` or ``both``), ``accuracy`` (over the
        rows with a decision), ``auc`` (None if undefined), ``mean_score`` and ``ci`` of accuracy and AUC.
    """
    y, label, score, values = (np.asarray(v) for v in (y, label, score, values))
    groups = None if groups is None else np.asarray(groups, object)
    names = sorted(set(values.tolist()))
    table = {}
    for name in names:
        own = values == name
        sides = set(y[own].tolist())
        other = own if len(sides) == 2 else own | (y != y[own][0])
        ranked = other & np.isfinite(score)
        decided, scored = own & (label >= 0), own & np.isfinite(score)
        row: Dict[str, Any] = {
            "n": int(own.sum()),
            "decided": int(decided.sum()),
            "classes": "both" if len(sides) == 2 else ("real", "generated")[sides.pop()],
            "accuracy": float((label[decided] == y[decided]).mean()) if decided.any() else None,
            "auc": auc(y[ranked], score[ranked]) if scored.any() else None,
            "mean_score": float(score[scored].mean()) if scored.any() else None,
            "ci": {},
        }
        if times > 0 and decided.any():
            own_groups = None if groups is None else groups[decided]
            row["ci"]["accuracy"] = _accuracy_interval(y[decided], label[decided], own_groups, times, seed)
        if times > 0 and row["auc"] is not None and len(names) <= 30:
            own_groups = None if groups is None else groups[ranked]
            row["ci"]["auc"] = intervals(y[ranked], label[ranked], score[ranked], None, own_groups, times, seed=seed)[
                "auc"
            ]
        table[name] = row
    return table


def _accuracy_interval(y, label, groups, times, seed):
    """Bootstrap over groups; Wilson's interval if resampling only a few groups would be overconfident."""
    right = (y == label).astype(float)
    resampler = Resampler(y, groups, seed)
    if resampler.count < 10 or right.min() == right.max():
        return list(wilson(right.mean() * resampler.count, resampler.count))
    draws = [(w * right).sum() / w.sum() for w in resampler.weights(times)]
    return [float(v) for v in np.percentile(draws, [2.5, 97.5])]


def spread(
    table: Dict[str, Dict[str, Any]], classes: str = "generated", key: str = "accuracy"
) -> Optional[Dict[str, Any]]:
    """Average and minimum of a :func:`by_value` table over the values of one class.

    Returns
    -------
    dict or None
        ``values, average, minimum, worst``; None if no value is of that class.
    """
    rows = [(row[key], name) for name, row in table.items() if row["classes"] == classes and row[key] is not None]
    if not rows:
        return None
    low, name = min(rows)
    return {"values": len(rows), "average": float(np.mean([r[0] for r in rows])), "minimum": low, "worst": name}


def wilson(good: float, n: float, level: float = 0.95) -> Tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); (0, 1) if ``n`` is 0."""
    from scipy.stats import norm

    if n == 0:
        return 0.0, 1.0
    z = norm.ppf(0.5 + level / 2)
    middle, width = (good + z * z / 2) / (n + z * z), z * np.sqrt(good * (n - good) / n + z * z / 4) / (n + z * z)
    return float(max(0.0, middle - width)), float(min(1.0, middle + width))
