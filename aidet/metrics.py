"""Metrics of a detector, their bootstrap intervals, and paired tests between two detectors.

One implementation, :class:`Weighted`: in a point estimate every row has the weight 1. The bootstrap draws whole source
images (a group of rows), because crops of one photograph are no independent observations; a draw is a set of weights,
so that one sort serves all of them. The tests compare every metric with scikit-learn's.
"""

from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from .errors import UserError
from .labels import GENERATED, NAMES, REAL, sigmoid

FPRS = (0.01, 0.05, 0.10)
BINS = 15
# Metrics with an interval; the first group needs decisions, the second scores of both classes.
DECISIONS = ("accuracy", "balanced_accuracy", "macro_f1", "real_recall", "generated_recall")
RANKING = ("auc", "ap", "eer", "ece", "balanced_ece", "nll")
CI_NAMES = DECISIONS + RANKING + tuple(f"tpr_at_fpr_{f:g}" for f in FPRS)


def check(y: Sequence[int], score: Optional[Sequence[float]] = None, what: str = "the data") -> None:
    """Raise :class:`UserError` unless the labels are 0 and 1, both occur, and the scores are finite and as many."""
    y = np.asarray(y)
    if len(y) == 0:
        raise UserError(f"{what}: no rows")
    if not np.isin(y, (REAL, GENERATED)).all():
        raise UserError(f"{what}: labels must be 0 or 1, got {sorted(set(y[~np.isin(y, (0, 1))].tolist()))[:5]}")
    if len(set(y.tolist())) < 2:
        raise UserError(f"{what}: all {len(y)} labels are {NAMES[int(y[0])]}; both classes are needed")
    if score is not None:
        score = np.asarray(score, np.float64)
        if score.shape != y.shape:
            raise UserError(f"{what}: {len(score)} scores for {len(y)} labels")
        bad = np.flatnonzero(~np.isfinite(score))
        if len(bad):
            raise UserError(f"{what}: {len(bad)} scores are not finite, first in rows {bad[:5].tolist()}")


def decision_metrics(y: Sequence[int], label: Sequence[int]) -> Dict[str, Any]:
    """Metrics of hard decisions.

    Parameters
    ----------
    y, label : array of int, shape (n,)
        True label and decision, 0 real, 1 generated.

    Returns
    -------
    dict
        ``n, accuracy, balanced_accuracy, macro_f1, real_recall, generated_recall``, ``classes`` (precision, recall,
        f1, n for ``real`` and ``generated``) and ``confusion`` ``[[real as real, real as generated], [generated as
        real, generated as generated]]``. The recall of an absent class and the precision of a decision that was never
        taken are 0; balanced accuracy is over the classes that occur.
    """
    y, label = np.asarray(y), np.asarray(label)
    if not len(y):
        raise UserError("metrics of decisions need at least one row")
    none = np.full(len(y), np.nan)
    measured, ones = Weighted(y, label, none, none), np.ones(len(y))
    table = measured.confusion(ones)
    there, said, hits = table.sum(axis=1), table.sum(axis=0), np.diag(table)
    classes = {
        name: {
            "precision": float(hits[c] / said[c]) if said[c] else 0.0,
            "recall": float(hits[c] / there[c]) if there[c] else 0.0,
            "f1": float(2 * hits[c] / (there[c] + said[c])) if there[c] + said[c] else 0.0,
            "n": int(there[c]),
        }
        for c, name in enumerate(NAMES)
    }
    found = measured(ones)
    return {
        "n": int(len(y)),
        **{name: float(found.get(name, 0.0)) for name in DECISIONS},
        "classes": classes,
        "confusion": table.astype(int).tolist(),
    }


def ranking_metrics(y: Sequence[int], score: Sequence[float], prob: Optional[Sequence[float]] = None) -> Dict[str, Any]:
    """Metrics of scores: how well they rank the classes and how honest their probabilities are.

    Parameters
    ----------
    y : array of int, shape (n,)
        Both classes must occur.
    score : array of float, shape (n,)
        Finite.
    prob : array of float, shape (n,), optional
        In [0, 1]. Defaults to ``sigmoid(score)``.

    Returns
    -------
    dict
        ``auc, ap, eer, ece, balanced_ece, nll, brier, tpr_at_fpr`` (keys ``"0.01"``, ``"0.05"``, ``"0.1"``).

    Raises
    ------
    UserError
        One class only, scores that are not finite, or a probability outside [0, 1].

    Notes
    -----
    ECE bins the probability of *generated* in 15 equal steps and compares its mean with the share of generated images
    (Naeini et al. 2015); the balanced one gives both classes the same total weight. EER is where the two error rates
    cross, interpolated. TPR at FPR is the best point of the ROC whose FPR does not exceed the value.
    """
    check(y, score)
    y, score = np.asarray(y), np.asarray(score, np.float64)
    prob = sigmoid(score) if prob is None else np.asarray(prob, np.float64)
    outside = np.flatnonzero(~((prob >= 0) & (prob <= 1)))
    if len(outside):
        raise UserError(f"probability (={prob[outside[0]]:g}) of row {outside[0]} must be between 0 and 1")
    found = Weighted(y, np.full(len(y), -1), score, prob)(np.ones(len(y)))
    return {
        # Exact, where a sum over the steps of the ROC gives 0.9999999999999999 for a perfect ranking.
        "auc": auc(y, score),
        **{name: float(found[name]) for name in ("ap", "eer", "ece", "balanced_ece", "nll", "brier")},
        "tpr_at_fpr": {f"{f:g}": found[f"tpr_at_fpr_{f:g}"] for f in FPRS},
    }


def auc(y: Sequence[int], score: Sequence[float]) -> Optional[float]:
    """Area under the ROC curve: the chance that a generated image scores above a real one, ties counting half.

    Parameters
    ----------
    y : array of int, shape (n,)
    score : array of float, shape (n,)

    Returns
    -------
    float or None
        In [0, 1]; None where only one class occurs.
    """
    y = np.asarray(y)
    generated, real = int((y == GENERATED).sum()), int((y == REAL).sum())
    if not generated or not real:
        return None
    _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2.0
    return float((rank[inverse][y == GENERATED].sum() - generated * (generated + 1) / 2) / (generated * real))


class Weighted:
    """All metrics of decisions and of scores under weights, one sort for many weights.

    Parameters
    ----------
    y : array of int, shape (n,)
        True label, 0 real, 1 generated.
    label : array of int, shape (n,)
        -1 where a row has no decision.
    score, prob : array of float, shape (n,)
        NaN where a row has no score.
    """

    def __init__(self, y: np.ndarray, label: np.ndarray, score: np.ndarray, prob: np.ndarray) -> None:
        self.cell = np.where(label >= 0, 2 * y + label, 4)
        self.scored = np.flatnonzero(np.isfinite(score))
        y, score, prob = y[self.scored], score[self.scored], prob[self.scored]
        self.order = np.argsort(-score, kind="stable")
        self.y = y[self.order].astype(float)
        ordered = score[self.order]
        self.ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else np.array([], int)
        self.prob = prob[self.order]
        self.bin = _bin(self.prob)
        clipped = np.clip(self.prob, np.finfo(float).eps, 1 - np.finfo(float).eps)
        self.loss = -np.where(self.y == 1, np.log(clipped), np.log1p(-clipped))

    def __call__(self, weight: np.ndarray) -> Dict[str, float]:
        """Metrics under weights.

        Parameters
        ----------
        weight : ndarray of float, shape (n,)
            Not negative; how often each row counts.

        Returns
        -------
        dict of str to float
            :data:`CI_NAMES` and ``brier``; what is undefined (one class, no decision, no score) is absent.
        """
        return {**self._decisions(weight), **self._ranking(weight[self.scored][self.order])}

    def confusion(self, weight: np.ndarray) -> np.ndarray:
        """Weights (2, 2) of the rows with a decision: true label down, decision across."""
        return np.bincount(self.cell, weight, 5)[:4].reshape(2, 2)

    def _decisions(self, weight):
        (tn, fp), (fn, tp) = self.confusion(weight)
        if tn + fp + fn + tp == 0:
            return {}
        recalls = [good / (good + bad) for good, bad in ((tn, fp), (tp, fn)) if good + bad > 0]
        f1 = [2 * good / (2 * good + fp + fn) if 2 * good + fp + fn else 0.0 for good in (tn, tp)]
        out = {
            "accuracy": (tn + tp) / (tn + fp + fn + tp),
            "balanced_accuracy": np.mean(recalls),
            "macro_f1": np.mean(f1),
        }
        if tn + fp:
            out["real_recall"] = tn / (tn + fp)
        if tp + fn:
            out["generated_recall"] = tp / (tp + fn)
        return out

    def _ranking(self, weight):
        generated, real = weight * self.y, weight * (1 - self.y)
        positives, negatives = generated.sum(), real.sum()
        if not positives or not negatives:
            return {}
        tps, fps = np.cumsum(generated)[self.ends], np.cumsum(real)[self.ends]
        tpr, fpr = np.append(0, tps / positives), np.append(0, fps / negatives)
        precision = tps / np.maximum(tps + fps, 1e-300)
        balanced = np.where(self.y == 1, weight / positives, weight / negatives) / 2
        total = positives + negatives
        out = {
            "auc": float(((fpr[1:] - fpr[:-1]) * (tpr[1:] + tpr[:-1])).sum() / 2),
            "ap": float(((tpr[1:] - tpr[:-1]) * precision).sum()),
            "eer": eer(fpr, tpr),
            "ece": float(_gaps(self.bin, weight * (self.prob - self.y)) / total),
            "balanced_ece": float(_gaps(self.bin, balanced * (self.prob - self.y))),
            "nll": float((weight * self.loss).sum() / total),
            "brier": float((weight * (self.prob - self.y) ** 2).sum() / total),
        }
        for f in FPRS:
            out[f"tpr_at_fpr_{f:g}"] = float(tpr[fpr <= f + 1e-12].max())
        return out


def eer(fpr: np.ndarray, tpr: np.ndarray) -> float:
    """Equal error rate of an ROC curve that starts at (0, 0) and ends at (1, 1)."""
    gap = np.asarray(fpr) - (1 - np.asarray(tpr))  # rises from -1 to 1
    right = int(np.argmax(gap >= 0))
    if right == 0:
        return float(fpr[0])
    left = right - 1
    part = -gap[left] / (gap[right] - gap[left])
    return float(fpr[left] + part * (fpr[right] - fpr[left]))


def _bin(prob):
    return np.minimum((np.asarray(prob) * BINS).astype(int), BINS - 1)


def ece(y: Sequence[int], prob: Sequence[float], weight: Optional[np.ndarray] = None) -> float:
    """Expected calibration error over 15 equal bins of the probability of *generated*; in [0, 1]."""
    weight = np.ones(len(y)) if weight is None else weight
    return float(_gaps(_bin(prob), weight * (np.asarray(prob) - np.asarray(y))) / weight.sum())


def _gaps(bins, gap):
    """Sum over the bins of the absolute gap between probability and truth; ``gap`` (n,) is weighted."""
    return np.abs(np.bincount(bins, gap, BINS)).sum()


def reliability(y: Sequence[int], prob: Sequence[float]) -> List[Tuple[float, float, int]]:
    """Per bin that holds images: mean probability, share of generated images, count.

    Returns
    -------
    list of (float, float, int)
    """
    where = _bin(prob)
    count = np.bincount(where, minlength=BINS)
    mean, share = np.bincount(where, prob, BINS), np.bincount(where, y, BINS)
    return [(float(mean[i] / count[i]), float(share[i] / count[i]), int(count[i])) for i in range(BINS) if count[i]]


def group_numbers(groups: Optional[Sequence], count: int) -> np.ndarray:
    """A number for each row's source image, from 0 on; without groups, or with an empty one, a row stands by itself."""
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
        Rows with the same value are drawn together. None: each row by itself. An empty value counts as a row by itself.
    seed : int

    Notes
    -----
    Strata are groups of reals only, of generated only, and of both, so that no draw loses a class
    (Davison & Hinkley 1997, section 3.2: resample within the known strata).
    """

    def __init__(self, y: Sequence[int], groups: Optional[Sequence] = None, seed: int = 42) -> None:
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
    y: Sequence[int],
    label: Sequence[int],
    score: Sequence[float],
    prob: Optional[Sequence[float]] = None,
    groups: Optional[Sequence] = None,
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
    A resampled set is always worse calibrated than the set it was drawn from, because bins lose images by chance; the
    intervals of both ECEs are therefore shifted so that their median is the measured value. A share of exactly 0 or 1
    never changes under resampling; accuracy and recalls then get Wilson's interval with one trial a source image.
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
    y: Sequence[int],
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    groups: Optional[Sequence] = None,
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
        detectors are measured on the same draws); ``mcnemar``: images only one of the two gets right, and the exact
        binomial p value (McNemar 1947), which takes images as independent.
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
        row = {"first": float(point[0][name]), "second": float(point[1][name])}
        row["difference"] = row["first"] - row["second"]
        if len(values):
            row["ci"] = [float(v) for v in np.percentile(values, [2.5, 97.5])]
            # Half of the draws at exactly 0 counts for each side; one is added so that p is never 0.
            below = (values < 0).sum() + 0.5 * (values == 0).sum()
            row["p"] = float(min(1.0, 2 * (min(below, len(values) - below) + 1) / (len(values) + 1)))
        differences[name] = row
    right = [np.asarray(one[0]) == y for one in (first, second)]
    only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    p = float(binomtest(only[0], sum(only), 0.5).pvalue) if sum(only) else 1.0
    return {"differences": differences, "mcnemar": {"only_first": only[0], "only_second": only[1], "p": p}}


def threshold_at_fpr(real_scores: Sequence[float], target: float) -> Tuple[float, float]:
    """The lowest threshold whose false-positive rate on these real images does not exceed the target.

    Parameters
    ----------
    real_scores : array of float, shape (n,)
        Scores of real images only, of a validation set.
    target : float
        In (0, 1).

    Returns
    -------
    (float, float)
        The threshold (an image is generated where its score is above it) and the rate it gives on these images.
    """
    if not 0 < target < 1:
        raise UserError(f"target FPR (={target}) must lie between 0 and 1")
    scores = np.sort(np.asarray(real_scores, np.float64))
    if len(scores) == 0 or not np.isfinite(scores).all():
        raise UserError("a threshold from real images needs finite scores of real images")
    allowed = int(np.floor(target * len(scores) + 1e-9))
    threshold = float(scores[len(scores) - allowed - 1])
    return threshold, float((scores > threshold).mean())


def roc_counts(y: np.ndarray, score: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ROC curve in whole images.

    Parameters
    ----------
    y : ndarray of int, shape (n,)
    score : ndarray of float, shape (n,)

    Returns
    -------
    (ndarray of float, ndarray of int, ndarray of int), each of shape (k,)
        The distinct scores from the highest down, and how many real and how many generated images have that score or a
        higher one.
    """
    values, place = np.unique(score, return_inverse=True)
    real, generated = (np.bincount(place[y == side], minlength=len(values)) for side in (REAL, GENERATED))
    return values[::-1], np.cumsum(real[::-1]), np.cumsum(generated[::-1])


def oracle(y: Sequence[int], score: Sequence[float]) -> Tuple[float, float]:
    """Threshold with the best balanced accuracy on the very images it is judged on: an upper bound, never a result.

    Parameters
    ----------
    y : array of int, shape (n,)
        Both classes must occur.
    score : array of float, shape (n,)

    Returns
    -------
    (float, float)
        Threshold (generated where the score is above it) and balanced accuracy. Of several best thresholds the highest;
        half way between two neighbouring scores.
    """
    check(y, score)
    cut, real, generated = roc_counts(np.asarray(y), np.asarray(score))
    fpr, tpr = np.append(0, real / real[-1]), np.append(0, generated / generated[-1])
    best = int(np.argmax(tpr - fpr))  # so many of the distinct scores lie above the threshold
    if best == 0:
        threshold = cut[0]
    elif best == len(cut):
        threshold = cut[-1] - 1
    else:
        threshold = (cut[best] + cut[best - 1]) / 2
    return float(threshold), float((1 + tpr[best] - fpr[best]) / 2)


def by_value(
    y: Sequence[int],
    label: Sequence[int],
    score: Sequence[float],
    values: Sequence[str],
    groups: Optional[Sequence] = None,
    times: int = 1000,
    seed: int = 42,
) -> Dict[str, Dict[str, Any]]:
    """A table of one column: how the detector does on each of its values.

    A value with images of one class only (a generator, a camera) is ranked against all images of the other class.

    Parameters
    ----------
    y, label : array of int, shape (n,)
    score : array of float, shape (n,)
        NaN where a row has no score.
    values : sequence of str, shape (n,)
    groups, times, seed
        As in :func:`intervals`; intervals of the AUC are left out above 30 values.

    Returns
    -------
    dict of str to dict
        ``n, classes`` (``real``, ``generated`` or ``both``), ``accuracy`` (over the rows with a decision), ``auc``
        (None where undefined), ``mean_score`` and ``ci`` of accuracy and AUC.
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
        row = {
            "n": int(own.sum()),
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
    """Bootstrap over groups; Wilson's interval where resampling a few groups would feign certainty."""
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
        ``values, average, minimum, worst``; None where no value is of that class.
    """
    rows = [(row[key], name) for name, row in table.items() if row["classes"] == classes and row[key] is not None]
    if not rows:
        return None
    low, name = min(rows)
    return {"values": len(rows), "average": float(np.mean([r[0] for r in rows])), "minimum": low, "worst": name}


def vip(first: float, second: float) -> float:
    """IEEE VIP Cup 2022 score: ``0.7 * balanced accuracy 1 + 0.3 * balanced accuracy 2``."""
    return 0.7 * first + 0.3 * second


def threshold_table(
    y: Sequence[int],
    prob: np.ndarray,
    thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
) -> List[Dict[str, float]]:
    """Decision metrics at fixed probability thresholds (0.1 to 0.9, as CIFAKE's authors print them).

    Parameters
    ----------
    y : array of int, shape (n,)
    prob : array of float, shape (n,)
        Of *generated*.
    thresholds : sequence of float

    Returns
    -------
    list of dict
        ``threshold, accuracy, balanced_accuracy, macro_f1, real_recall, generated_recall``.
    """
    rows = []
    for t in thresholds:
        got = decision_metrics(y, (prob > t).astype(int))
        rows.append({"threshold": float(t), **{k: got[k] for k in DECISIONS}})
    return rows


def wilson(good: float, n: float, level: float = 0.95) -> Tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927); (0, 1) where ``n`` is 0."""
    from scipy.stats import norm

    if n == 0:
        return 0.0, 1.0
    z = norm.ppf(0.5 + level / 2)
    middle, width = (good + z * z / 2) / (n + z * z), z * np.sqrt(good * (n - good) / n + z * z / 4) / (n + z * z)
    return float(max(0.0, middle - width)), float(min(1.0, middle + width))


METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "val_loss", "precision", "recall")


def class_metrics(truth, decided, score, classes):
    """Metrics of decisions, and AUC where there is a score.

    Parameters
    ----------
    truth, decided : ndarray of int, shape (n,)
    score : ndarray of float, shape (n,), or None
    classes : int

    Returns
    -------
    dict of str to float
        ``precision`` and ``recall`` are those of class 1 (generated) where there are two classes.
    """
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (truth, decided), 1)
    hits, there, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    present = there > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = hits / there, np.where(said > 0, hits / said, 0.0)
        f1 = np.where(hits > 0, 2 * hits / (there + said), 0.0)
    result = {
        "accuracy": float(hits.sum() / max(1, confusion.sum())),
        "balanced_accuracy": float(recall[present].mean()) if present.any() else float("nan"),
        "macro_f1": float(f1[present].mean()) if present.any() else float("nan"),
    }
    if classes == 2:
        result["precision"], result["recall"] = float(precision[1]), float(np.nan_to_num(recall[1]))
    if score is not None and 0 < truth.sum() < len(truth):
        result["auc"] = auc(truth, score)
    return result


def best_threshold(truth: np.ndarray, score: np.ndarray) -> float:
    """Probability at which balanced accuracy is highest: the middle between two neighbouring scores.

    Unlike :func:`oracle`, which may call everything real, it lies between two scores, and of equally good ones it is
    the lowest.
    """
    cut, real, made = roc_counts(truth, score)
    if len(cut) < 2 or not real[-1] or not made[-1]:
        return 0.5
    value = (((real[-1] - real) / real[-1] + 1 - (made[-1] - made) / made[-1]) / 2)[:-1]
    at = len(value) - 1 - int(np.argmax(value[::-1]))
    return float(sigmoid((cut[at + 1] + cut[at]) / 2))
