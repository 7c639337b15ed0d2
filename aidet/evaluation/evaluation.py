"""Labels joined with their scores, and the metrics that can be computed from one scores file."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np

from .. import images, metrics
from ..cli import by_reason
from ..datasets import cifar100
from ..datasets.truth import Truth, read_labels
from ..errors import UserError
from ..labels import NAMES, sigmoid
from .scores import Scores, join, read_scores

DERIVED = ("size", "format")
SIZES = 20  # a table by size lists at most this many sizes individually
# Metrics that need scores of both classes; None for a file of decisions and for a set of one class.
RANKED = ("auc", "ap", "eer", "ece", "balanced_ece", "nll", "brier")


class Evaluation:
    """Labels joined with their scores, and the decisions derived from them.

    Parameters
    ----------
    true : Truth
    scores : Scores
        Joined with ``true``, in the same order.
    threshold : float, optional
        On the probability, in (0, 1). None keeps each row's own decision (a threshold of 0.5 if the row has none).

    Attributes
    ----------
    y : ndarray of int, shape (n,)
        True labels, 0 real, 1 generated.
    label : ndarray of int, shape (n,)
        Decisions; -1 if there is none.
    scored : ndarray of bool, shape (n,)
        Rows that have a score.
    threshold : float or None
        The threshold of the decisions; None if there is no single threshold.
    threshold_source : str
        Where the threshold comes from.

    Raises
    ------
    UserError
        A threshold was given for a file of decisions without scores.

    Notes
    -----
    A row whose image could not be read has no score and is left out of AUC, AP, EER, ECE, NLL and TPR at FPR. If it
    has a label (``infer.py --on-error real`` or ``generated``), it counts in accuracy, recall, F1 and the confusion
    matrix, because contests count it as well; without a label it is left out of every metric. The report states the
    number of rows in each case.
    """

    def __init__(self, true: Truth, scores: Scores, threshold: Optional[float] = None) -> None:
        self.true, self.scores, self._given = true, scores, threshold
        self._headers: Optional[List[Dict[str, Any]]] = None
        self.y = true.labels
        self.scored = np.isfinite(scores.score)
        fixed = np.where(self.scored, scores.prob > (0.5 if threshold is None else threshold), -1).astype(int)
        own = scores.label
        self.label = fixed if threshold is not None else np.where(own >= 0, own, fixed)
        if threshold is not None:
            self.label = np.where(self.scored, self.label, own)
        self.threshold, self.threshold_source = self._threshold(threshold)

    def _threshold(self, given):
        if self.scores.decisions_only:
            if given is not None:
                raise UserError(
                    f"{self.scores.source} has decisions but no scores; leave --threshold and --operating-point out"
                )
            return None, "the decisions in the file, which has no scores"
        if given is not None:
            return float(given), "--threshold"
        if not ((self.scores.label >= 0) & self.scored).any():
            return 0.5, "default"
        prob, label = self.scores.prob[self.scored], self.label[self.scored]
        if ((prob > 0.5) == (label == 1)).all():
            return 0.5, "the labels of the scores file"
        low = prob[label == 0].max(initial=0.0)
        high = prob[label == 1].min(initial=1.0)
        if low < high:
            return float((low + high) / 2), f"the labels of the scores file (between {low:.6f} and {high:.6f})"
        return None, "the labels of the scores file, which follow no single threshold of prob"

    def believe(self, run: Optional[Dict[str, Any]]) -> None:
        """Take the threshold that a run.json states, if every label of the scores follows from it."""
        stated = (run or {}).get("options", {}).get("threshold")
        if isinstance(stated, bool) or not isinstance(stated, (int, float)) or not (self.scores.label >= 0).any():
            return
        prob, label = self.scores.prob[self.scored], self.label[self.scored]
        if self.threshold_source.startswith("the labels") and ((prob > stated) == (label == 1)).all():
            self.threshold, self.threshold_source = float(stated), "the run that made the scores"

    @property
    def paths(self) -> List[str]:
        """Path of each row, as in the scores; ``line 1``, ``line 2``, ... if neither file names the images."""
        assert self.scores.paths is not None  # join fills them in
        return self.scores.paths

    def take(self, index: Union[Sequence[int], np.ndarray]) -> "Evaluation":
        """The rows of ``index`` (integers), in that order, with decisions made by the same rule."""
        return Evaluation(self.true.take(index), self.scores.take(index), self._given)

    @property
    def errors(self) -> Dict[str, Any]:
        """How rows that could not be scored were handled: counts and the first paths."""
        bad = np.flatnonzero(self.scores.errors)
        decided = bad[self.label[bad] >= 0]
        return {
            "n": int(len(bad)),
            "counted_by_their_label": int(len(decided)),
            "left_out": int(len(bad) - len(decided)),
            "first": [{"path": self.paths[i], "status": self.scores.status[i]} for i in bad[:10]],
            "reasons": by_reason(self.scores.status[i] for i in bad),
        }

    @property
    def unsure(self) -> int:
        """Number of images whose decision in the scores file is *unsure*; 0 at a threshold that was given.

        They count by their label, the side of the threshold.
        """
        return 0 if self.scores.unsure is None or self._given is not None else int(self.scores.unsure.sum())

    @property
    def ranked(self) -> bool:
        """Whether there are scores of both classes, as needed by AUC, AP, EER, ECE, NLL and TPR at FPR."""
        return len(set(self.y[self.scored].tolist())) == 2

    @property
    def independent(self) -> int:
        """Number of source images in the smaller class; all crops of one photograph count as one."""
        groups = metrics.group_numbers(self.true.groups(), len(self.y))
        return min(len(set(groups[self.y == side].tolist())) for side in set(self.y.tolist()))

    def groups(self, rows: np.ndarray) -> Optional[np.ndarray]:
        """Source images of the rows selected by a mask (n,); None if the labels have no column ``group``."""
        groups = self.true.groups()
        return None if groups is None else np.array(groups, object)[rows]

    def measure(self, times: int = 0, seed: int = 42, one_class: bool = False) -> Dict[str, Any]:
        """The metrics for ``metrics.json`` and the report.

        Parameters
        ----------
        times, seed : int
            Bootstrap draws for the intervals, and their random seed; 0 draws give no intervals.
        one_class : bool
            Allow a set of one class; macro-F1 and the other class's recall are then None.

        Returns
        -------
        dict
            Keys of ``metrics.json``. Metrics that need scores of both classes are None if those are missing.

        Raises
        ------
        UserError
            No row has a score or a decision, or only one class occurs.
        """
        y, label, score, prob = self.y, self.label, self.scores.score, self.scores.prob
        decided = label >= 0
        if not decided.any() and not self.scored.any():
            raise UserError(f"{self.scores.source}: no row has a score")
        if self.scores.errors.all():
            first = f"{self.paths[0]}: {self.scores.status[0]}"
            raise UserError(f"{self.scores.source}: none of its {len(y)} images could be scored, first {first}")
        sides = set(y[decided].tolist())
        if not (one_class and len(sides) == 1) or len(set(y.tolist())) == 2:
            self._check_both(y[decided])
        out = metrics.decision_metrics(y[decided], label[decided])
        if self.ranked:
            out.update(metrics.ranking_metrics(y[self.scored], score[self.scored], prob[self.scored]))
        else:
            out.update(unranked())
        out["threshold"], out["threshold_source"] = self.threshold, self.threshold_source
        out["ci"] = metrics.intervals(y, label, score, prob, self.true.groups(), times, seed=seed)
        return of_one_class(out, sides.pop()) if len(sides) == 1 else out

    def _check_both(self, y):
        what = f"{self.scores.source} with {self.true.source}"
        try:
            metrics.check(y, what=what)
        except UserError as error:
            hint = ""
            if len(set(y.tolist())) == 1:
                both = len(set(self.y.tolist())) == 2
                hint = "; the others could not be scored" if both else "; for a set of one class add --one-class"
            raise UserError(f"{error}{hint}") from None

    def tables(self, columns: Sequence[str], times: int, seed: int) -> Dict[str, Dict[str, Any]]:
        """:func:`aidet.metrics.by_value` for each of the named columns."""
        return {
            c: metrics.by_value(self.y, self.label, self.scores.score, self.column(c), self.true.groups(), times, seed)
            for c in columns
        }

    def column(self, name: str) -> List[str]:
        """A column of the labels; ``size`` and ``format`` come from the images; CIFAR-100's two levels of classes."""
        if name in DERIVED and name not in self.true.columns:
            if self._headers is None:
                self._headers = [_header(path) for path in self.true.files()]
            values = [one[name] for one in self._headers]
            return _coarse_sizes(values) if name == "size" and len(set(values)) > SIZES else values
        return label_column(self.true, name)


def unranked() -> Dict[str, Any]:
    """The metrics that need scores of both classes, each None."""
    return {**dict.fromkeys(RANKED), "tpr_at_fpr": {f"{f:g}": None for f in metrics.FPRS}}


def of_one_class(out: Dict[str, Any], side: int) -> Dict[str, Any]:
    """Metrics with macro-F1 and the recall of the class that does not occur set to None, and without their intervals.

    Parameters
    ----------
    out : dict
        From :func:`aidet.metrics.decision_metrics`, with ``ci``.
    side : int
        The class that occurs.
    """
    absent = ("macro_f1", f"{NAMES[1 - side]}_recall")
    ci = {name: value for name, value in out["ci"].items() if name not in absent}
    return {**out, **dict.fromkeys(absent), "ci": ci}


def label_column(true: Truth, name: str) -> List[str]:
    """A column of the labels, or ``fine`` or ``superclass`` of CIFAR-100 derived from one."""
    if name in cifar100.COLUMNS and name not in true.columns:
        return cifar100.column(true.columns, name, true.source)
    return true.column(name)


def _header(path):
    """Size and format of an image file without decoding it; ``unreadable`` if that fails."""
    try:
        with images.opened(path) as image:
            return {"size": f"{image.width}x{image.height}", "format": image.format}
    except Exception:  # noqa: BLE001 - Pillow raises nearly every type on damaged files
        return {"size": "unreadable", "format": "unreadable"}


def _coarse_sizes(values):
    """Group sizes by their longer side in steps of a factor of two, because photographs come in hundreds of sizes."""

    def step(value):
        if "x" not in value:
            return value  # unreadable
        top = 1 << (max(map(int, value.split("x"))) - 1).bit_length()
        return f"longer side {top // 2 + 1} to {top}"

    return [step(value) for value in values]


def load(
    scores_path: Union[str, Path],
    labels_path: Union[str, Path],
    where: Optional[Sequence[str]] = None,
    threshold: Optional[float] = None,
) -> Evaluation:
    """Read scores and labels, and join them strictly.

    Parameters
    ----------
    scores_path, labels_path : str or Path
        See :func:`aidet.evaluation.scores.read_scores` and :func:`aidet.datasets.truth.read_labels`.
    where : list of str, optional
        ``column=value`` conditions on the labels.
    threshold : float, optional
        See :class:`Evaluation`.

    Returns
    -------
    Evaluation

    Raises
    ------
    UserError
        A file cannot be read, or a row has no counterpart in the other file.
    """
    return Evaluation(*join(read_labels(labels_path, where), read_scores(scores_path)), threshold)


def columns_to_show(true: Truth, asked: Optional[Sequence[str]]) -> List[str]:
    """The columns of ``--by``, checked; without ``--by``, ``generator`` and ``source`` if the labels have them."""
    if asked:
        for name in asked:
            if name not in DERIVED:
                label_column(true, name)
        return list(dict.fromkeys(asked))
    return [c for c in ("generator", "source") if len(set(true.columns.get(c, ()))) > 1]


def summary(
    evaluation: Evaluation, columns: Sequence[str] = (), times: int = 0, seed: int = 42, one_class: bool = False
) -> Dict[str, Any]:
    """All metrics that need only one scores file.

    Parameters
    ----------
    evaluation : Evaluation
    columns : sequence of str
        Columns to make tables for, see :meth:`Evaluation.column`.
    times, seed, one_class
        As in :meth:`Evaluation.measure`.

    Returns
    -------
    dict
        Keys of ``metrics.json``.
    """
    result = {
        "command": "score",
        **evaluation.measure(times, seed, one_class),
        "n_groups": len(set(metrics.group_numbers(evaluation.true.groups(), len(evaluation.y)).tolist())),
        "errors": evaluation.errors,
        "unsure": evaluation.unsure,
        "by": evaluation.tables(columns, times, seed),
        "thresholds": [],
        "oracle": None,
        "models": {},
    }
    result["contest"] = {"pacc": result["accuracy"], "fake_or_real_macro_f1": result["macro_f1"]}
    if evaluation.ranked:
        kept = evaluation.scored
        result["thresholds"] = metrics.threshold_table(evaluation.y[kept], evaluation.scores.prob[kept])
        result["oracle"], result["models"] = _oracle(evaluation), _models(evaluation)
    return result


def _oracle(evaluation):
    threshold, balanced = metrics.oracle(evaluation.y[evaluation.scored], evaluation.scores.score[evaluation.scored])
    return {
        "threshold": float(sigmoid(threshold)),
        "balanced_accuracy": balanced,
        "note": "chosen on the same images that it is tested on: an upper bound, not a result",
    }


def _models(evaluation):
    """AUC and balanced accuracy of each single model of an ensemble."""
    out = {}
    for name, score in evaluation.scores.models.items():
        own = np.isfinite(score) & evaluation.scored
        y = evaluation.y[own]
        if len(evaluation.scores.models) > 1 and len(set(y.tolist())) == 2:
            label = (score[own] > 0).astype(int)
            decided = metrics.decision_metrics(y, label)
            out[name] = {
                "auc": metrics.ranking_metrics(y, score[own])["auc"],
                "balanced_accuracy": decided["balanced_accuracy"],
                "macro_f1": decided["macro_f1"],
            }
    return out
