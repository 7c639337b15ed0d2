"""Evaluations that need a second file: a table of leaks, a validation set or another detector's scores."""

import os
from typing import Any, Dict

import numpy as np

from .. import archives, metrics
from ..errors import UserError
from ..labels import NAMES, REAL, sigmoid
from .evaluation import Evaluation
from .scores import EXACT, read_leaks
from .sections import HEADLINE

FEWEST_DRAWS = 100  # a paired test takes at least this many bootstrap draws, even if no intervals are requested


def deduplicated(
    evaluation: Evaluation, leaks: str, times: int = 0, seed: int = 42, one_class: bool = False
) -> Dict[str, Any]:
    """The headline metrics without the images that also occur in another split.

    Parameters
    ----------
    evaluation : Evaluation
    leaks : str
        ``leaks.csv`` of ``evaluate.py leaks``, see :func:`aidet.evaluation.scores.read_leaks`.
    times, seed, one_class
        As in :meth:`Evaluation.measure`.

    Returns
    -------
    dict
        ``n``, ``left_out`` (count by level), ``kept_though_alike`` (similar images that were kept), the headline
        metrics and their ``ci``.

    Raises
    ------
    UserError
        Every image of a class is also in another split, or the table does not match the labels.
    """
    levels = read_leaks(leaks, evaluation.true)
    exact = np.array([level in EXACT for level in levels], bool)
    kept = np.flatnonzero(~exact)
    gone = set(evaluation.y.tolist()) - set(evaluation.y[kept].tolist())
    if gone:
        raise UserError(f"--leaks {leaks}: every {NAMES[gone.pop()]} image is also in another split; none is left")
    got = evaluation.take(kept).measure(times, seed, one_class)
    names = [name for name, _ in HEADLINE if name in got]
    return {
        "n": int(len(kept)),
        "left_out": {level: int(sum(v == level for v in levels)) for level in EXACT},
        "kept_though_alike": int(sum(bool(v) for v in levels) - exact.sum()),
        **{name: got[name] for name in names},
        "ci": {name: v for name, v in got["ci"].items() if name in names},
    }


def from_validation(
    evaluation: Evaluation, valid: Evaluation, target_fpr: float, times: int = 0, seed: int = 42
) -> Dict[str, Any]:
    """Choose the threshold for a false-positive rate on a validation set's real images, and apply it to this set.

    Parameters
    ----------
    evaluation : Evaluation
        The set that is evaluated.
    valid : Evaluation
        The set on which the threshold is chosen.
    target_fpr : float
        In (0, 1).
    times, seed : int
        Bootstrap draws of the intervals.

    Returns
    -------
    dict
        ``threshold`` (on the probability), ``score_threshold``, ``validation_reals``, ``validation_fpr``, and the
        results on this set: ``fpr, tpr, balanced_accuracy, ci``.

    Raises
    ------
    UserError
        This set does not have scores of both classes, or the two sets share images.
    """
    if not evaluation.ranked:
        raise UserError(f"--valid-scores needs scores of both classes; {evaluation.scores.source} does not have them")
    _refuse_shared(valid, evaluation)
    real = valid.scored & (valid.y == REAL)
    threshold, reached = metrics.threshold_at_fpr(valid.scores.score[real], target_fpr)
    scored = evaluation.scored
    y, score = evaluation.y[scored], evaluation.scores.score[scored]
    label = (score > threshold).astype(int)
    decided = metrics.decision_metrics(y, label)
    ci = metrics.intervals(y, label, score, None, evaluation.groups(scored), times, seed=seed)
    return {
        "target_fpr": target_fpr,
        "threshold": float(sigmoid(threshold)),
        "score_threshold": threshold,
        "validation_reals": int(real.sum()),
        "validation_fpr": reached,
        "fpr": 1 - decided["real_recall"],
        "tpr": decided["generated_recall"],
        "balanced_accuracy": decided["balanced_accuracy"],
        "ci": {
            "fpr": [1 - v for v in reversed(ci["real_recall"])] if ci else [],
            "tpr": ci.get("generated_recall", []),
            "balanced_accuracy": ci.get("balanced_accuracy", []),
        },
    }


def _refuse_shared(valid, evaluation):
    """Refuse sets that share images: a threshold must not be evaluated on the images it was chosen on."""
    here = {os.path.realpath(path) for path in evaluation.true.files()}
    shared = [str(path) for path in valid.true.files() if os.path.realpath(path) in here and archives.exists(path)]
    if os.path.realpath(valid.scores.source) == os.path.realpath(evaluation.scores.source):
        shared = [valid.scores.source]
    if shared:
        raise UserError(
            f"--valid-scores: the threshold would be chosen on the images that it is tested on, first {shared[0]}; "
            "give the scores of other images"
        )


def compared(evaluation: Evaluation, other: Evaluation, times: int = 0, seed: int = 42) -> Dict[str, Any]:
    """Paired comparison with a second scores file for the same labels.

    Parameters
    ----------
    evaluation, other : Evaluation
        ``other`` may have more images and a different order.
    times, seed : int
        Bootstrap draws; at least 100 are taken.

    Returns
    -------
    dict
        ``n`` (images with a score in both files), ``second`` (the other file), and the results of
        :func:`aidet.metrics.paired`.

    Raises
    ------
    UserError
        The second file lacks an image, or no image has a score in both files.
    """
    assert evaluation.true.paths is not None and other.true.paths is not None  # every row has one once joined
    place = {p: i for i, p in enumerate(other.true.paths)}
    lone = [p for p in evaluation.true.paths if p not in place]
    if lone:
        raise UserError(f"{other.scores.source} has no row for {', '.join(lone[:5])}; both must have the same images")
    other = other.take([place[p] for p in evaluation.true.paths])
    both = (evaluation.label >= 0) & (other.label >= 0)
    for part in (evaluation, other):
        both &= part.scored | part.scores.decisions_only
    if not both.any():
        first, second = evaluation.scores.source, other.scores.source
        raise UserError(f"no image has a score in both {first} and {second}")
    one, two = ((e.label[both], e.scores.score[both], e.scores.prob[both]) for e in (evaluation, other))
    times = max(times, FEWEST_DRAWS)
    found = metrics.paired(evaluation.y[both], one, two, evaluation.groups(both), times, seed)
    if len(set(evaluation.y[both].tolist())) == 1:
        del found["differences"]["macro_f1"]  # the F1 of a class without images is undefined
    return {"n": int(both.sum()), "second": other.scores.source, **found}
