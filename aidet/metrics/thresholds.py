"""Thresholds: chosen on validation scores, and the metrics at fixed ones."""

from typing import Dict, List, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError
from ..labels import GENERATED, REAL, sigmoid
from .points import DECISIONS, check, decision_metrics


def threshold_at_fpr(real_scores: ArrayLike, target: float) -> Tuple[float, float]:
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
        The threshold (an image is generated if its score is above it) and the false-positive rate on these images.
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
    """The ROC curve as numbers of images.

    Parameters
    ----------
    y : ndarray of int, shape (n,)
    score : ndarray of float, shape (n,)

    Returns
    -------
    (ndarray of float, ndarray of int, ndarray of int), each of shape (k,)
        The distinct scores in descending order, and the number of real and of generated images with that score or a
        higher one.
    """
    values, place = np.unique(score, return_inverse=True)
    real, generated = (np.bincount(place[y == side], minlength=len(values)) for side in (REAL, GENERATED))
    return values[::-1], np.cumsum(real[::-1]), np.cumsum(generated[::-1])


def oracle(y: ArrayLike, score: ArrayLike) -> Tuple[float, float]:
    """Threshold with the best balanced accuracy on the same images it is evaluated on: an upper bound, never a result.

    Parameters
    ----------
    y : array of int, shape (n,)
        Both classes must occur.
    score : array of float, shape (n,)

    Returns
    -------
    (float, float)
        Threshold (generated if the score is above it) and balanced accuracy. The highest of several best thresholds;
        midway between two neighbouring scores.
    """
    check(y, score)
    cut, real, generated = roc_counts(np.asarray(y), np.asarray(score))
    # Whole numbers, so that equally good thresholds are equal: (tpr - fpr) * real images * generated images.
    gain = np.append(0, generated * int(real[-1]) - real * int(generated[-1]))
    best = int(np.argmax(gain))  # number of distinct scores above the threshold
    if best == 0:
        threshold = cut[0]
    elif best == len(cut):
        threshold = cut[-1] - 1
    else:
        threshold = (cut[best] + cut[best - 1]) / 2
    return float(threshold), float((1 + gain[best] / (int(real[-1]) * int(generated[-1]))) / 2)


def threshold_table(
    y: ArrayLike,
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


def best_threshold(truth: np.ndarray, score: np.ndarray) -> float:
    """Probability with the highest balanced accuracy, midway between two neighbouring scores.

    Unlike :func:`oracle`, which may call everything real, it is always between two scores; of several equally good ones
    it is the lowest. It is 0.5 if there are not two distinct scores of both classes.
    """
    cut, real, made = roc_counts(truth, score)
    if len(cut) < 2 or not real[-1] or not made[-1]:
        return 0.5
    value = (made * int(real[-1]) - real * int(made[-1]))[:-1]  # whole numbers, see oracle
    at = len(value) - 1 - int(np.argmax(value[::-1]))
    return float(sigmoid((cut[at + 1] + cut[at]) / 2))
