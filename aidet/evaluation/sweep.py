"""``evaluate.py sweep``: a detector's robustness to degradations, and the effect of votes and thresholds.

Each image is decoded once; all its degraded versions and voting views are made from those pixels. Each score is written
to ``sweep.jsonl`` as soon as it is known, so a killed run resumes where it stopped, and a later run with more points
computes only the new ones.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np

from .. import files, images, metrics, report, runinfo
from ..cli import OK, PARTIAL, by_reason, to_stderr
from ..datasets import truth
from ..detector import Detector, default
from ..errors import UserError
from ..labels import sigmoid
from . import degrade
from .points import MOST_VOTES, VOTES, Log, evaluate, measure
from .sections import HEADLINE, inverted, threshold_section


def main(options: argparse.Namespace) -> int:
    """Run ``evaluate.py sweep``.

    Parameters
    ----------
    options : argparse.Namespace
        ``ckpt, labels, where, out, points, votes, limit, backend, device, workers, bootstrap, seed, max_pixels,
        truncated``; ``positive, real`` if the sidecar does not say which class means what; ``operating_point``.
        ``ckpt`` None: the default detector.

    Returns
    -------
    int
        Exit code: 3 if some images could not be scored.

    Raises
    ------
    UserError
        Unknown points, labels without image files, or the log of a sweep with other settings.
    """
    labels, families, seed = options.labels, options.points, options.seed
    checkpoints = default.checkpoints(options.ckpt)
    out = Path(options.out)
    wanted = degrade.points(families)
    true = labelled_images(labels, options.where, options.limit, seed)
    given = ("positive", "real", "operating_point")
    sides = {name: getattr(options, name) for name in given if getattr(options, name, None) is not None}
    settings = {
        "backend": options.backend, "device": options.device, "workers": options.workers, "seed": seed,
        "say": to_stderr, **sides,
    }  # fmt: skip
    reading = images.Reading.of(options)
    detector = Detector(*checkpoints, votes=options.votes, **settings)
    header = {"sweep": 2, "detector": detector.stated(), "seed": seed, "labels": str(labels), **sides}
    if reading != images.Reading():
        header["reading"] = vars(reading)
    log = Log(out / "sweep.jsonl", header)
    try:
        jobs = [(detector, wanted)]
        if not families or VOTES in families:
            # Random views: the first k of many are the views of k votes. This does not hold for a grid of views.
            voter = Detector(*checkpoints, votes=MOST_VOTES, views="random", **settings)
            jobs.append((voter, [(VOTES, VOTES, 0.0, wanted[0][3])]))
        done, seconds = measure(jobs, true, log, seed, "sweep", reading)[0]
    finally:
        log.close()
    result = {
        "command": "sweep",
        "votes": detector.votes,
        **summary(true, wanted, log, detector.threshold, options.bootstrap, seed),
        "speed": {"images": done, "seconds": round(seconds, 2), "per_second": done / seconds if done else None},
    }
    inputs = {"labels": labels, **{f"checkpoint {i + 1}": c for i, c in enumerate(checkpoints)}}
    facts, where_from = report.provenance(inputs)
    result.update(facts)
    votes = f"{result['votes']} vote{'s' * (result['votes'] != 1)}"
    lead = f"{', '.join(map(str, checkpoints))} on {labels}: {result['n']} images, {votes}"
    page = _page(out / "report.html", lead, result, where_from)
    files.write_json(out / "metrics.json", result)
    _say(result, page)
    return PARTIAL if result["errors"] else OK


def labelled_images(
    labels: Union[str, Path], where: Optional[Sequence[str]] = None, limit: int = 0, seed: int = 42
) -> truth.Truth:
    """Labels of both classes with their image files.

    Parameters
    ----------
    labels : str or Path
        See :func:`aidet.datasets.truth.read_labels`.
    where : list of str, optional
        ``column=value`` conditions.
    limit : int
        Maximum number of images, drawn evenly from both classes; 0 means all.
    seed : int

    Returns
    -------
    Truth

    Raises
    ------
    UserError
        The labels name no files, or contain only one class.
    """
    true = truth.read_labels(labels, where)
    if true.paths is None:
        raise UserError(f"sweep needs the image files; {labels} is a bare column of labels without paths")
    true = true.take(degrade.even_sample(true.labels, limit, seed))
    metrics.check(true.labels, what=str(labels))
    return true


def summary(
    true: truth.Truth, wanted: Sequence[degrade.Point], log: Log, threshold: float, times: int = 0, seed: int = 42
) -> Dict[str, Any]:
    """Metrics of every point that was measured.

    Parameters
    ----------
    true : Truth
    wanted : list of points
        From :func:`aidet.evaluation.degrade.points`, ``clean`` first.
    log : Log
        Must contain a score of every image at every point. If it also has scores by vote, the votes curve is made.
    threshold : float
        On the probability.
    times, seed : int
        Bootstrap draws of the intervals.

    Returns
    -------
    dict
        The metrics of ``clean``, ``thresholds``, and ``points`` with one dict per point.
    """
    assert true.paths is not None  # labelled_images refuses labels without files
    scores = {point[0]: [log.scores[p, point[0]] for p in true.paths] for point in wanted}
    curve = [(name, family, x, scores[name]) for name, family, x, _ in wanted]
    if (true.paths[0], VOTES) in log.scores:
        votes = [log.scores[p, VOTES] for p in true.paths]
        for k in range(1, MOST_VOTES + 1):
            first = [v[k - 1] if isinstance(v, list) else v for v in votes]
            curve.append((f"votes {k}", VOTES, float(k), first))
    rows = [
        {"point": name, "family": family, "x": x, **evaluate(true, values, threshold, times, seed)}
        for name, family, x, values in curve
    ]
    clean = scores["clean"]
    scored = np.array([isinstance(v, float) for v in clean])
    score = np.array([v for v in clean if isinstance(v, float)])
    return {
        "reasons": by_reason(v for v in clean if isinstance(v, str)),
        **{k: v for k, v in rows[0].items() if k not in ("point", "family", "x")},
        "thresholds": metrics.threshold_table(true.labels[scored], sigmoid(score)),
        "points": rows,
    }


def sections(result: Dict[str, Any]) -> List[report.Section]:
    """A section with chart and table for each family of points of a result, in the form of ``metrics.json``."""
    families = list(dict.fromkeys(r["family"] for r in result["points"] if r["family"] != "clean"))
    made = [_family(family, result["points"]) for family in families]
    for first in made[:1]:
        first.texts.append(f"Decisions: generated above a probability of {report.number(result['threshold'])}.")
    return made


def _family(family, points):
    number, interval = report.number, report.interval
    clean, rows = points[0], [r for r in points if r["family"] == family]
    place = degrade.clean_x(family)
    drawn = ([{**clean, "x": place}] if place is not None else []) + rows
    if not isinstance(drawn[0]["x"], str):
        drawn = sorted(drawn, key=lambda r: r["x"])
    lines = {
        label: [(r["x"], r[key], *(r["ci"].get(key) or (None, None))) for r in drawn]
        for key, label in (("auc", "AUC"), ("balanced_accuracy", "balanced accuracy"))
    }
    low = min(0.4, min(p[1] for line in lines.values() for p in line) - 0.05)
    chart = report.Chart(
        report.curves(lines, degrade.axis(family), "value", (low, 1.02), 0.5),
        f"{family}, with 95% intervals; the dotted line is chance.",
    )
    table = [
        [r["point"], *sum(([number(r[k]), interval(r["ci"].get(k), 3)] for k in ("balanced_accuracy", "auc")), []),
         number(r["real_recall"]), number(r["generated_recall"]), number(r["ece"])]
        for r in [clean, *rows]
    ]  # fmt: skip
    header = ["point", "balanced accuracy", "95% interval", "AUC", "95% interval", "recall of real"]
    header += ["recall of generated", "ECE"]
    return report.Section(family, charts=[chart], tables=[report.Table(family, header, table)])


def _page(path, lead, result, where_from):
    number, interval = report.number, report.interval
    parts = [*sections(result), threshold_section(result["thresholds"]), where_from]
    cards = [(label, number(result[key]), interval(result["ci"].get(key), 3)) for key, label in HEADLINE[:3]]
    lowest = min(result["points"], key=lambda r: r["auc"])
    cards.append(("lowest AUC", number(lowest["auc"]), f"at {lowest['point']}"))
    if result["speed"]["per_second"]:
        rate = result["speed"]["per_second"]
        cards.append(("images per second", f"{rate:.1f}", f"with degradation; 5,000 in an hour: {runinfo.hour(rate)}"))
    warnings = [f"{result['errors']} images could not be scored and are left out."] if result["errors"] else []
    warnings += [inverted(result)] if inverted(result) else []
    return report.write(path, "Robustness sweep", lead, parts, cards, warnings)


def _say(result, page):
    for row in result["points"]:
        cells = [f"{row[k]:.4f} {report.interval(row['ci'].get(k), 3)}" for k in ("balanced_accuracy", "auc")]
        print(f"{row['point']:<12} balanced accuracy {cells[0]}  AUC {cells[1]}")
    if result["speed"]["per_second"]:
        print(f"{result['speed']['per_second']:.1f} images per second, degradation included")
    if result["errors"]:
        print(f"{result['errors']} images could not be scored and are left out")
    if inverted(result):
        print(f"warning: {inverted(result)}")
    print(f"report: {page}")
    if result["errors"]:
        print(f"not scored, by reason: {result['reasons']}")
