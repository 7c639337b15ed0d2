"""``evaluate.py transfer``: evaluate several models on several data sets, as a matrix."""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np

from .. import files, images, metrics, report
from ..cli import OK, PARTIAL, by_reason, to_stderr
from ..datasets import sources, truth
from ..detector import Detector, default
from ..detector.detector import model_names
from ..errors import UserError
from ..labels import NAMES
from . import degrade
from .evaluation import label_column, of_one_class, unranked
from .points import Log, Value, decided, evaluate, measure, require_some
from .sections import by_section, inverted

KEYS = (("auc", "AUC"), ("balanced_accuracy", "balanced accuracy"))


def named(texts: Sequence[str], what: str) -> Dict[str, str]:
    """Parse the names of models or data sets.

    Parameters
    ----------
    texts : sequence of str
        ``NAME=VALUE`` or ``VALUE``. A value without a name is named by its stem, with its folder if stems repeat.
    what : str
        The option, for the error message.

    Returns
    -------
    dict of str to str
        From name to value, in the order given.

    Raises
    ------
    UserError
        An empty name or value, or a name that appears twice.
    """
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        pairs.append((name, value) if equals and "/" not in name and "@" not in name else (None, text))
    unnamed = iter(model_names([sources.split_source(value)[0] for name, value in pairs if name is None]))
    out = {}
    for text, (given, value) in zip(texts, pairs):
        name = next(unnamed) if given is None else given
        if not name or not value:
            raise UserError(f"{what} {text!r} must be NAME=PATH")
        if name in out:
            raise UserError(f"{what} {text!r}: the name {name!r} appears twice")
        out[name] = value
    return out


def main(options: argparse.Namespace) -> int:
    """Run ``evaluate.py transfer``.

    Parameters
    ----------
    options : argparse.Namespace
        ``ckpt, sets, out, by, votes, backend, device, workers, bootstrap, seed, max_pixels, truncated``; ``positive,
        real`` if a sidecar does not say which class means what; ``operating_point``. ``ckpt`` None: the default
        detector.

    Returns
    -------
    int
        Exit code: 3 if some images could not be scored.

    Raises
    ------
    UserError
        Names that appear twice, sets without image files, or the log of a different transfer.
    """
    votes, times, seed, out = options.votes, options.bootstrap, options.seed, Path(options.out)
    models, sets = named(default.checkpoints(options.ckpt), "--ckpt"), named(options.sets, "--sets")
    truths = {name: _labelled_images(name, source) for name, source in sets.items()}
    columns = {name: _columns(true, options.by) for name, true in truths.items()}
    lone = [c for c in options.by or () if not any(c in found for found in columns.values())]
    if lone:
        raise UserError(f"--by {lone[0]!r}: no set has such a column")
    settings = {
        "votes": votes, "backend": options.backend, "device": options.device, "workers": options.workers, "seed": seed,
        "say": to_stderr,
    }  # fmt: skip
    sides = {name: getattr(options, name) for name in ("positive", "real") if getattr(options, name, None) is not None}
    more = {**settings, **sides, "operating_point": getattr(options, "operating_point", None)}
    detectors = {name: Detector(path, **more, own_order=len(models) > 1) for name, path in models.items()}
    stated = {name: detector.stated() for name, detector in detectors.items()}
    header = {"transfer": 2, "detectors": stated, "sets": sets, "seed": seed, **sides}
    reading = images.Reading.of(options)
    if reading != images.Reading():
        header["reading"] = vars(reading)
    log = Log(out / "transfer.jsonl", header)
    try:
        _score(detectors, truths, log, seed, reading)
    finally:
        log.close()
    cells = []
    for model, detector in detectors.items():
        for name, true in truths.items():
            values = [log.scores[p, _point(model, name)] for p in true.paths]
            got = judge(true, values, detector.threshold, times, seed)
            got["by"] = _by(true, values, detector.threshold, columns[name], times, seed)
            got["reasons"] = by_reason(v for v in values if isinstance(v, str))
            cells.append({"model": model, "set": name, **got})
    inputs = {f"set {n}": sources.split_source(s)[0] for n, s in sets.items()}
    inputs.update({f"model {n}": p for n, p in models.items()})
    facts, where_from = report.provenance(inputs)
    result = {
        "command": "transfer",
        "n": sum(map(len, truths.values())),
        "cells": cells,
        "models": _summary(cells),
        **facts,
    }
    lead = f"{len(models)} models on {len(sets)} sets, votes {votes or 'as in the sidecars'}"
    page = _page(out / "report.html", lead, result, where_from)
    files.write_json(out / "metrics.json", result)
    _say(result, page)
    return PARTIAL if any(cell["errors"] for cell in cells) else OK


def _labelled_images(name, source):
    path, conditions = sources.split_source(source)
    true = truth.read_labels(path, conditions)
    if true.paths is None:
        raise UserError(f"set {name}: {path} is a bare column of labels; images are needed")
    return true


def _point(model, name):
    """The log's key for the score of a model on a set."""
    return f"{model} on {name}"


def _score(detectors, truths, log, seed, reading):
    """Score every set with every model; the models share the decoded images of a set."""
    clean = degrade.points(["votes"])[0][3]
    for name, true in truths.items():
        jobs = [(d, [(_point(model, name), "transfer", 0.0, clean)]) for model, d in detectors.items()]
        measure(jobs, true, log, seed, name, reading)


def judge(
    true: truth.Truth, values: Sequence[Value], threshold: float, times: int = 0, seed: int = 42
) -> Dict[str, Any]:
    """Metrics of one cell. A set of one class (CIFAR-100: all real) has a recall but no AUC.

    Parameters and errors as in :func:`aidet.evaluation.points.evaluate`, except that one class is allowed.
    """
    if len(set(true.labels.tolist())) == 2:
        return evaluate(true, values, threshold, times, seed)
    require_some(true, values)
    score, label = decided(values, threshold)
    scored = np.isfinite(score)
    y, score, label, groups = true.labels[scored], score[scored], label[scored], true.groups()
    groups = None if groups is None else np.array(groups, object)[scored]
    ci = metrics.intervals(y, label, score, None, groups, times, seed=seed)
    found = {
        **metrics.decision_metrics(y, label), **unranked(), "threshold": threshold, "ci": ci, "by": {},
        "one_class": NAMES[int(y[0])], "errors": int((~scored).sum()),
    }  # fmt: skip
    return of_one_class(found, int(y[0]))


def _columns(true, names):
    """The named columns that the set has, with their values."""
    found = {}
    for name in names or ():
        try:
            found[name] = label_column(true, name)
        except UserError:
            continue
    return found


def _by(true, values, threshold, columns, times, seed):
    score, label = decided(values, threshold)
    return {
        name: metrics.by_value(true.labels, label, score, cells, true.groups(), times, seed)
        for name, cells in columns.items()
    }


def _summary(cells):
    """Mean and minimum of each model's balanced accuracy over the sets."""
    out = {}
    for model in dict.fromkeys(c["model"] for c in cells):
        own = [(c["balanced_accuracy"], c["set"]) for c in cells if c["model"] == model]
        low, worst = min(own)
        out[model] = {"average": float(np.mean([v for v, _ in own])), "minimum": low, "worst": worst}
    return out


def sections(result: Dict[str, Any]) -> List[report.Section]:
    """Heat maps and tables of a result, in the form of ``metrics.json``."""
    out = [_matrix(result["cells"], key, label) for key, label in KEYS]
    for cell in result["cells"]:
        for column, table in cell["by"].items():
            section = by_section(column, table)
            section.title = f"{cell['model']} on {cell['set']}: by {column}"
            out.append(section)
    return out


def _matrix(cells, key, label):
    models, sets = (list(dict.fromkeys(c[name] for c in cells)) for name in ("model", "set"))
    place = {(c["model"], c["set"]): c for c in cells}
    full = []
    for model in models:
        row = [_value(place[model, name], key) for name in sets]
        known = np.isfinite(row).any()
        full.append([*row, np.nanmean(row) if known else np.nan, np.nanmin(row) if known else np.nan])
    chart = report.Chart(
        report.heat(full, models, [*sets, "average", "minimum"], label),
        f"{label}: rows are models, columns are sets.",
        True,
    )
    rows = [
        [c["model"], c["set"], c["n"], report.number(c.get(key)), report.interval(c["ci"].get(key)),
         c.get("one_class", "both")]
        for c in cells
    ]  # fmt: skip
    header = ["model", "set", "images", label, "95% interval", "classes"]
    texts = []
    if key == "balanced_accuracy":
        lines = ", ".join(dict.fromkeys(f"{report.number(c['threshold'])} ({c['model']})" for c in cells))
        texts.append(f"Decisions: generated above a probability of {lines}.")
    return report.Section(label, texts, charts=[chart], tables=[report.Table(label, header, rows)])


def _value(cell, key):
    return np.nan if cell.get(key) is None else cell[key]


def _page(path, lead, result, where_from):
    lost = sum(c["errors"] for c in result["cells"])
    warnings = [f"{lost} images could not be scored and are left out."] if lost else []
    warnings += _inverted(result)
    warnings += _single(result)
    cards = [
        (name, report.number(row["minimum"]), f"lowest balanced accuracy, on {row['worst']}")
        for name, row in result["models"].items()
    ]
    return report.write(path, "Transfer between data sets", lead, [*sections(result), where_from], cards, warnings)


def _single(result):
    single = sorted({c["set"] for c in result["cells"] if c.get("one_class")})
    said = f"Only one class in {', '.join(single)}: accuracy there is a recall, and there is no AUC."
    return [said] if single else []


def _inverted(result):
    return [f"{c['model']} on {c['set']}: {inverted(c)}" for c in result["cells"] if inverted(c)]


def _say(result, page):
    for cell in result["cells"]:
        shown = [f"{label} {report.number(cell.get(k))} {report.interval(cell['ci'].get(k), 3)}" for k, label in KEYS]
        print(f"{cell['model']} on {cell['set']}: {', '.join(shown)}")
    for name, row in result["models"].items():
        print(f"{name}: balanced accuracy average {row['average']:.4f}, minimum {row['minimum']:.4f} ({row['worst']})")
    for line in [*_single(result), *_inverted(result)]:
        print(f"warning: {line}")
    print(f"report: {page}")
    for name, cell in {cell["set"]: cell for cell in result["cells"]}.items():
        if cell["errors"]:
            print(f"not scored of {name}: {cell['errors']} images, by reason: {cell['reasons']}")
