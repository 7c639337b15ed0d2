"""``evaluate.py score --vip``: the IEEE VIP Cup 2022 score, computed from two files."""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from .. import files, metrics, report
from ..cli import OK, PARTIAL
from ..datasets.truth import Truth, read_labels
from ..errors import UserError
from ..labels import NAMES
from .evaluation import Evaluation
from .scores import Scores, join, read_scores

# Options that --vip excludes.
ALONE = ("by", "valid_scores", "valid_labels", "valid_where", "against", "leaks", "explain", "include", "one_class")


def main(options: argparse.Namespace) -> int:
    """Run ``evaluate.py score --vip``.

    Parameters
    ----------
    options : argparse.Namespace
        ``vip, labels, where, out, threshold, bootstrap, seed``; ``scores`` and :data:`ALONE` must be empty.

    Returns
    -------
    int
        Exit code: 3 if some rows could not be scored.

    Raises
    ------
    UserError
        Arguments that cannot be combined with ``--vip``, or files that do not match.
    """
    if options.scores:
        raise UserError("--vip names the two scores files; leave --scores out")
    beside = [name for name in ALONE if getattr(options, name)]
    if beside:
        raise UserError(f"--vip cannot be combined with --{beside[0].replace('_', '-')}; leave it out")
    if len(options.labels) > 2:
        raise UserError(f"--vip takes one or two sources of --labels, not {len(options.labels)}")
    times, seed = options.bootstrap, options.seed
    evaluations = load_pair(options.vip, options.labels, options.where, options.threshold)
    both = together(*evaluations)
    result = summary(evaluations, both, times, seed)
    inputs = {"P1": options.vip[0], "P2": options.vip[1]}
    inputs.update({f"labels {i + 1}": path for i, path in enumerate(options.labels)})
    facts, where_from = report.provenance(inputs)
    result.update(facts)
    page = Path(options.out) / "report.html"
    lead, score = f"{options.vip[0]} and {options.vip[1]}", result["contest"]["vip"]
    cards = [("VIP Cup score", report.number(score), "at most 1")]
    report.write(page, "VIP Cup score", lead, [_section(evaluations, result), where_from], cards)
    files.write_json(Path(options.out) / "metrics.json", result)
    first, second = result["contest"]["vip_balanced_accuracy"]
    print(f"VIP Cup score      {score:.4f} = 0.7 * {first:.4f} + 0.3 * {second:.4f}")
    print(f"report             {page}")
    if both.errors["n"]:
        print(f"not scored, by reason: {both.errors['reasons']}")
    return PARTIAL if both.errors["n"] else OK


def load_pair(
    scores: Sequence[str],
    labels: Sequence[str],
    where: Optional[Sequence[str]] = None,
    threshold: Optional[float] = None,
) -> List[Evaluation]:
    """Both files of the contest with their labels.

    Parameters
    ----------
    scores : sequence of str
        The two files.
    labels : sequence of str
        One source for each file, or one for both; in that case each file uses the rows that its scores name.
    where : list of str, optional
        ``column=value`` conditions on the labels.
    threshold : float, optional
        On the probability, see :class:`aidet.evaluation.evaluation.Evaluation`.

    Returns
    -------
    list of Evaluation

    Raises
    ------
    UserError
        A file of decisions without scores, or rows without a counterpart.
    """
    shared = len(labels) == 1
    sources = [*labels, *labels] if shared else labels
    return [_part(path, source, shared, where, threshold) for path, source in zip(scores, sources)]


def _part(path, labels, shared, where, threshold):
    true, given = read_labels(labels, where), read_scores(path)
    if given.decisions_only:
        raise UserError(f"--vip {path} has decisions but no scores; the VIP Cup's format is filename,logit")
    if shared and true.paths is not None:
        known = set(given.paths)  # which may be relative to a folder below that of the labels
        mine = [i for i, p in enumerate(true.paths) if not known.isdisjoint(_ends(p))]
        if not mine:
            raise UserError(f"--vip {path}: none of its {len(given)} names is in {labels}, as {given.paths[0]!r}")
        true = true.take(mine)
    return Evaluation(*join(true, given), threshold)


def _ends(path):
    """A path, and what is left of it without its first folders."""
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


def summary(evaluations: Sequence[Evaluation], both: Evaluation, times: int = 0, seed: int = 42) -> Dict[str, Any]:
    """The contest's score (0.7 * balanced accuracy of the first file + 0.3 * of the second) and all other numbers.

    Parameters
    ----------
    evaluations : sequence of two Evaluation
    both : Evaluation
        From :func:`together`.
    times, seed : int
        Bootstrap draws of the intervals.

    Returns
    -------
    dict
        Keys of ``metrics.json``.

    Raises
    ------
    UserError
        No row of a file has a decision, or only one class occurs in it.
    """
    for one in evaluations:
        sides = set(one.y[one.label >= 0].tolist())
        if len(sides) == 1:
            raise UserError(
                f"--vip {one.scores.source}: all its images are {NAMES[sides.pop()]}; both classes are needed"
            )
    parts = [e.measure(times, seed) for e in evaluations]
    balanced = [part["balanced_accuracy"] for part in parts]
    return {
        "command": "score",
        **both.measure(times, seed),
        "errors": both.errors,
        "by": {"vip_file": {f"P{i + 1}": part for i, part in enumerate(parts)}},
        "contest": {"vip": metrics.vip(*balanced), "vip_balanced_accuracy": balanced},
    }


def together(first: Evaluation, second: Evaluation) -> Evaluation:
    """Merge two evaluations for the metrics over all images; paths are prefixed with ``P1/`` and ``P2/``."""
    both = (first, second)
    paths = [f"P{i + 1}/{path}" for i, one in enumerate(both) for path in one.true.paths or ()]
    columns = {name: np.concatenate([getattr(e.scores, name) for e in both]) for name in ("score", "prob", "label")}
    status = [text for one in both for text in one.scores.status]
    y, true = np.concatenate([first.y, second.y]), first.true
    groups = [one.true.groups() or [] for one in both]
    own = {"group": [*groups[0], *groups[1]]} if all(groups) else {}
    out = Evaluation(
        Truth(paths=paths, labels=y, columns=own, root=true.root, source=true.source),
        Scores(paths, **columns, status=status, models={}, source=first.scores.source),
    )
    out.label = np.concatenate([first.label, second.label])
    told = [one.threshold_source for one in both]
    out.threshold = first.threshold if first.threshold == second.threshold else None
    out.threshold_source = told[0] if told[0] == told[1] else f"P1: {told[0]}; P2: {told[1]}"
    return out


def _section(evaluations, result):
    rows = [
        [name, r["n"], report.number(r["balanced_accuracy"]), report.interval(r["ci"].get("balanced_accuracy"), 3),
         report.number(r["auc"])]
        for name, r in result["by"]["vip_file"].items()
    ]  # fmt: skip
    table = report.Table("Both files", ["file", "images", "balanced accuracy", "95% interval", "AUC"], rows)
    charts = [
        report.Chart(report.roc(e.y[e.scored], {f"P{i + 1}": e.scores.score[e.scored]}), f"ROC of P{i + 1}")
        for i, e in enumerate(evaluations)
    ]
    return report.Section("Score", ["0.7 x balanced accuracy of P1 + 0.3 x that of P2."], charts, [table])
