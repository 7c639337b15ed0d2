"""Metrics of a detector.

The one implementation is :class:`Weighted`: in a point estimate every row has the weight 1. The bootstrap draws whole
source images (groups of rows), because crops of one photograph are not independent observations; a draw is a set of
weights, so that one sort serves all draws. The tests compare every metric with scikit-learn's.
"""

from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError
from ..labels import GENERATED, NAMES, REAL, sigmoid

FPRS = (0.01, 0.05, 0.10)
BINS = 15
# Metrics with an interval; the first group needs decisions, the second scores of both classes.
DECISIONS = ("accuracy", "balanced_accuracy", "macro_f1", "real_recall", "generated_recall")
RANKING = ("auc", "ap", "eer", "ece", "balanced_ece", "nll")
CI_NAMES = DECISIONS + RANKING + tuple(f"tpr_at_fpr_{f:g}" for f in FPRS)


def check(y: ArrayLike, score: Optional[ArrayLike] = None, what: str = "the data") -> None:
    """Raise :class:`UserError` unless the labels are 0 and 1, both occur, and there is one finite score per label."""
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


def decision_metrics(y: ArrayLike, label: ArrayLike) -> Dict[str, Any]:
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
        real, generated as generated]]``. The recall of an absent class and the precision of a decision that was
        never made are 0; balanced accuracy is over the classes that occur.
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


def ranking_metrics(y: ArrayLike, score: ArrayLike, prob: Optional[ArrayLike] = None) -> Dict[str, Any]:
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
    ECE bins the probability of *generated* into 15 equal bins and compares its mean with the proportion of generated
    images (Naeini et al. 2015); the balanced ECE gives both classes the same total weight. EER is the interpolated
    point at which the two error rates are equal. TPR at FPR is the best point of the ROC whose FPR does not exceed
    the value.
    """
    check(y, score)
    y, score = np.asarray(y), np.asarray(score, np.float64)
    prob = sigmoid(score) if prob is None else np.asarray(prob, np.float64)
    outside = np.flatnonzero(~((prob >= 0) & (prob <= 1)))
    if len(outside):
        raise UserError(f"probability (={prob[outside[0]]:g}) of row {outside[0]} must be between 0 and 1")
    found = Weighted(y, np.full(len(y), -1), score, prob)(np.ones(len(y)))
    return {
        # Exact; a sum over the steps of the ROC gives 0.9999999999999999 for a perfect ranking.
        "auc": auc(y, score),
        **{name: float(found[name]) for name in ("ap", "eer", "ece", "balanced_ece", "nll", "brier")},
        "tpr_at_fpr": {f"{f:g}": found[f"tpr_at_fpr_{f:g}"] for f in FPRS},
    }


def auc(y: ArrayLike, score: ArrayLike) -> Optional[float]:
    """Area under the ROC curve: the chance that a generated image scores above a real one, ties counting half.

    Parameters
    ----------
    y : array of int, shape (n,)
    score : array of float, shape (n,)

    Returns
    -------
    float or None
        In [0, 1]; None if only one class occurs.
    """
    y = np.asarray(y)
    generated, real = int((y == GENERATED).sum()), int((y == REAL).sum())
    if not generated or not real:
        return None
    _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2.0
    return float((rank[inverse][y == GENERATED].sum() - generated * (generated + 1) / 2) / (generated * real))


class Weighted:
    """All metrics of decisions and of scores under row weights; sorts once for any number of weights.

    Parameters
    ----------
    y : array of int, shape (n,)
        True label, 0 real, 1 generated.
    label : array of int, shape (n,)
        -1 if a row has no decision.
    score, prob : array of float, shape (n,)
        NaN if a row has no score.
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
            Not negative; how many times each row counts.

        Returns
        -------
        dict of str to float
            :data:`CI_NAMES` and ``brier``; what is undefined (one class, no decision, no score) is absent.
        """
        return {**self._decisions(weight), **self._ranking(weight[self.scored][self.order])}

    def confusion(self, weight: np.ndarray) -> np.ndarray:
        """Weights (2, 2) of the rows with a decision: the true label gives the row, the decision the column."""
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


def ece(y: ArrayLike, prob: ArrayLike, weight: Optional[np.ndarray] = None) -> float:
    """Expected calibration error over 15 equal bins of the probability of *generated*, in [0, 1]."""
    y, prob = np.asarray(y), np.asarray(prob)
    weight = np.ones(len(y)) if weight is None else weight
    return float(_gaps(_bin(prob), weight * (prob - y)) / weight.sum())


def _gaps(bins, gap):
    """Sum over the bins of the absolute difference between probability and truth; ``gap`` (n,) is weighted."""
    return np.abs(np.bincount(bins, gap, BINS)).sum()


def reliability(y: ArrayLike, prob: ArrayLike) -> List[Tuple[float, float, int]]:
    """For each bin that is not empty: mean probability, proportion of generated images, count.

    Returns
    -------
    list of (float, float, int)
    """
    where = _bin(prob)
    count = np.bincount(where, minlength=BINS)
    mean, share = np.bincount(where, prob, BINS), np.bincount(where, y, BINS)
    return [(float(mean[i] / count[i]), float(share[i] / count[i]), int(count[i])) for i in range(BINS) if count[i]]


def vip(first: float, second: float) -> float:
    """IEEE VIP Cup 2022 score: ``0.7 * balanced accuracy 1 + 0.3 * balanced accuracy 2``."""
    return 0.7 * first + 0.3 * second


METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "val_loss", "precision", "recall")


def class_metrics(
    truth: np.ndarray, decided: np.ndarray, score: Optional[np.ndarray], classes: int
) -> Dict[str, float]:
    """Metrics of decisions, and the AUC if there are scores.

    Parameters
    ----------
    truth, decided : ndarray of int, shape (n,)
    score : ndarray of float, shape (n,), or None
    classes : int

    Returns
    -------
    dict of str to float
        ``precision`` and ``recall`` are those of class 1 (generated) if there are two classes.
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
        area = auc(truth, score)
        if area is not None:
            result["auc"] = area
    return result
