"""``evaluate.py transfer``: several models on several data sets, as a matrix."""

from pathlib import Path

import numpy as np

from . import degrade, engine, files, metrics, plots, report, scoring, sweep, truth
from .cli import OK, PARTIAL, to_stderr
from .datasets import sources
from .errors import UserError
from .labels import sigmoid

KEYS = (("auc", "AUC"), ("balanced_accuracy", "balanced accuracy"))


def named(texts, what):
    """``NAME=VALUE`` or ``VALUE`` -> dict; a value without a name is called by its stem, with its folder if need be."""
    out = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or "/" in name or "@" in name:
            path = Path(sources.split_source(text)[0])
            name, value = path.stem if path.stem not in out else f"{path.resolve().parent.name}/{path.stem}", text
        if not name or not value or name in out:
            raise UserError(f"{what} {text!r} " + ("stands twice" if name in out else "must be NAME=PATH"))
        out[name] = value
    return out


def run(options):
    """Run ``evaluate.py transfer``.

    Parameters
    ----------
    options : argparse.Namespace
        ``ckpt, sets, out, by, votes, backend, workers, bootstrap, seed``.

    Returns
    -------
    int
        Exit code: 3 where some images could not be scored.
    """
    models, sets = named(options.ckpt, "--ckpt"), named(options.sets, "--sets")
    truths = {}
    for name, source in sets.items():
        path, conditions = sources.split_source(source)
        truths[name] = truth.read_labels(path, conditions)
        if truths[name].paths is None:
            raise UserError(f"set {name}: {path} is a bare column of labels; images are needed")
    columns = {name: _columns(true, options.by) for name, true in truths.items()}
    lone = [c for c in options.by or () if not any(c in found for found in columns.values())]
    if lone:
        raise UserError(f"--by {lone[0]!r}: no set has such a column")
    settings = {"votes": options.votes, "backend": options.backend, "workers": options.workers, "seed": options.seed}
    settings["say"] = to_stderr
    detectors = {name: engine.Detector(path, **settings) for name, path in models.items()}
    hashes = {name: files.sha256(path) for name, path in models.items()}
    header = {"transfer": 1, "checkpoints": hashes, "sets": sets, "votes": options.votes, "seed": options.seed}
    log = sweep.Log(Path(options.out) / "transfer.jsonl", header)
    clean = degrade.points(["votes"])[0][3]
    try:
        for name, true in truths.items():
            jobs = [(d, [(f"{model} on {name}", "transfer", 0.0, clean)]) for model, d in detectors.items()]
            sweep.measure(jobs, true, log, options.seed, name)
    finally:
        log.close()
    cells = []
    for model, detector in detectors.items():
        for name, true in truths.items():
            values = [log.scores[p, f"{model} on {name}"] for p in true.paths]
            got = judge(true, values, detector.threshold, options.bootstrap, options.seed)
            got["by"] = _by(true, values, detector.threshold, columns[name], options)
            cells.append({"model": model, "set": name, **got})
    inputs = {
        **{f"set {n}": sources.split_source(s)[0] for n, s in sets.items()},
        **{f"model {n}": p for n, p in models.items()},
    }
    facts, where_from = report.provenance(inputs)
    result = {
        "command": "transfer",
        "n": sum(map(len, truths.values())),
        "cells": cells,
        "models": _summary(cells),
        **facts,
    }
    page = _page(result, list(models), list(sets), options, where_from)
    files.write_json(Path(options.out) / "metrics.json", result)
    for cell in cells:
        shown = [f"{label} {report.number(cell.get(k))} {report.interval(cell['ci'].get(k), 3)}" for k, label in KEYS]
        print(f"{cell['model']} on {cell['set']}: {', '.join(shown)}")
    for name, row in result["models"].items():
        print(f"{name}: balanced accuracy average {row['average']:.4f}, minimum {row['minimum']:.4f} ({row['worst']})")
    print(f"report: {page}")
    return PARTIAL if any(cell["errors"] for cell in cells) else OK


def judge(true, values, threshold, times, seed):
    """Metrics of one cell. A set of one class (CIFAR-100: all real) has a recall and no AUC."""
    if len(set(true.labels.tolist())) == 2:
        return sweep.evaluate(true, values, threshold, times, seed)
    scored = np.array([isinstance(v, float) for v in values])
    if not scored.any():
        raise UserError(f"{true.source}: no image could be scored, first {true.paths[0]}: {values[0]}")
    score = np.array([v for v in values if isinstance(v, float)])
    label, y = (sigmoid(score) > threshold).astype(int), true.labels[scored]
    groups = true.groups()
    groups = None if groups is None else np.array(groups, object)[scored]
    ci = metrics.intervals(y, label, score, None, groups, times, seed=seed)
    return {
        **metrics.decision_metrics(y, label), "auc": None, "threshold": threshold, "ci": ci, "by": {},
        "one_class": ("real", "generated")[int(y[0])], "errors": int((~scored).sum()),
    }  # fmt: skip


def _columns(true, names):
    """Those of the named columns that a set has, with their values."""
    found = {}
    for name in names or ():
        try:
            found[name] = scoring.label_column(true, name)
        except UserError:
            continue
    return found


def _by(true, values, threshold, columns, options):
    score = np.array([v if isinstance(v, float) else np.nan for v in values])
    label = np.where(np.isfinite(score), sigmoid(score) > threshold, -1).astype(int)
    return {
        name: metrics.by_value(true.labels, label, score, cells, true.groups(), options.bootstrap, options.seed)
        for name, cells in columns.items()
    }


def _summary(cells):
    """Average and minimum of each model's balanced accuracy over the sets."""
    out = {}
    for model in dict.fromkeys(c["model"] for c in cells):
        own = [(c["balanced_accuracy"], c["set"]) for c in cells if c["model"] == model]
        low, worst = min(own)
        out[model] = {"average": float(np.mean([v for v, _ in own])), "minimum": low, "worst": worst}
    return out


def sections(result):
    """Heat maps and tables of a result, as it stands in ``metrics.json``."""
    models, sets = (list(dict.fromkeys(c[key] for c in result["cells"])) for key in ("model", "set"))
    out = []
    place = {(c["model"], c["set"]): c for c in result["cells"]}
    for key, label in KEYS:
        matrix = [[_value(place[m, s], key) for s in sets] for m in models]
        full = [
            [
                *row,
                np.nanmean(row) if np.isfinite(row).any() else np.nan,
                np.nanmin(row) if np.isfinite(row).any() else np.nan,
            ]
            for row in matrix
        ]
        chart = report.Chart(
            plots.heat(full, models, [*sets, "average", "minimum"], label),
            f"{label}: rows are models, columns are sets.",
            True,
        )
        rows = [
            [
                c["model"],
                c["set"],
                c["n"],
                report.number(c.get(key)),
                report.interval(c["ci"].get(key)),
                c.get("one_class", "both"),
            ]
            for c in result["cells"]
        ]
        header = ["model", "set", "images", label, "95% interval", "classes"]
        out.append(report.Section(label, charts=[chart], tables=[report.Table(label, header, rows)]))
    for cell in result["cells"]:
        for column, table in cell["by"].items():
            section = scoring.by_section(column, table)
            section.title = f"{cell['model']} on {cell['set']}: by {column}"
            out.append(section)
    return out


def _page(result, models, sets, options, where_from):
    lost = sum(c["errors"] for c in result["cells"])
    warnings = [f"{lost} images could not be scored and are left out."] if lost else []
    single = sorted({c["set"] for c in result["cells"] if c.get("one_class")})
    if single:
        warnings.append(f"One class only in {', '.join(single)}: its number is a recall, and it has no AUC.")
    cards = [
        (name, report.number(row["minimum"]), f"lowest balanced accuracy, on {row['worst']}")
        for name, row in result["models"].items()
    ]
    page = Path(options.out) / "report.html"
    lead = f"{len(models)} models on {len(sets)} sets, {options.votes or 'their own'} votes"
    return report.write(page, "Transfer between data sets", lead, [*sections(result), where_from], cards, warnings)


def _value(cell, key):
    return np.nan if cell.get(key) is None else cell[key]
