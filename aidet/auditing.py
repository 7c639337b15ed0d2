"""``evaluate.py audit``: the shortcuts of a data set, with and without a detector's scores."""

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import audit, files, metrics, plots, report, scoring, truth
from .cli import OK, PARTIAL, printable
from .errors import UserError
from .labels import NAMES, logit


def read_features(paths):
    """:func:`aidet.audit.file_features` of many files.

    Returns
    -------
    (dict of str to list, list of int, list of (int, str))
        Columns, the rows they belong to, and (row, reason) of the files that could not be read.
    """
    columns, rows, lost = {name: [] for name in audit.FEATURES}, [], []
    for i, path in enumerate(
        tqdm(paths, desc="reading headers", unit="file", disable=len(paths) < 2000, file=sys.stderr)
    ):
        try:
            one = audit.file_features(path)
        except Exception as error:  # noqa: BLE001 - Pillow raises nearly every type on damaged files
            lost.append((i, "no such file" if isinstance(error, FileNotFoundError) else "not a readable image"))
            continue
        rows.append(i)
        for name in audit.FEATURES:
            columns[name].append(one[name])
    return columns, rows, lost


def run(options):
    """Run ``evaluate.py audit``.

    Parameters
    ----------
    options : argparse.Namespace
        ``labels, where, out, scores, warn, bootstrap, seed``.

    Returns
    -------
    int
        Exit code: 3 where some files could not be read. A shortcut is a finding, not an error.
    """
    true = truth.read_labels(options.labels, options.where)
    if true.paths is None:
        raise UserError(f"audit needs the image files; {options.labels} is a bare column of labels")
    evaluation = None
    if options.scores:
        evaluation = scoring.Evaluation(*truth.join(true, truth.read_scores(options.scores)))
        true = evaluation.true
    features, rows, lost = read_features(true.files())
    if not rows:
        raise UserError(
            f"audit: none of the {len(true)} images of {options.labels} can be read, first {true.files()[0]}"
        )
    y = true.labels[rows]
    groups = None if true.groups() is None else [true.groups()[i] for i in rows]
    draws = max(options.bootstrap, 100)
    found, prob = audit.audit(features, y, groups, options.warn, draws, options.seed)
    result = _combined(y, prob, groups, draws, options.seed)
    shortcuts = [name for name in audit.FEATURES if found[name]["shortcut"]]
    kept = audit.aligned(features, y, shortcuts, options.seed)
    result["features"] = found
    result["aligned"] = _aligned(features, y, groups, kept, shortcuts, options)
    if evaluation:
        result["detector"] = _detector(evaluation, np.array(rows)[kept], options)
    result["errors"] = {"n": len(lost), "first": [{"path": true.paths[i], "status": why} for i, why in lost[:10]]}
    inputs = {"labels": options.labels, **({"scores": options.scores} if options.scores else {})}
    facts, where_from = report.provenance(inputs)
    page = _page(options, result, features, y, shortcuts, where_from)
    files.write_json(Path(options.out) / "metrics.json", {"command": "audit", **result, **facts})
    _say(result, options, page)
    return PARTIAL if lost else OK


def _combined(y, prob, groups, draws, seed):
    """The contract's metrics, of the classifier that sees the properties and nothing else."""
    label = (prob > y.mean()).astype(int)
    return {
        **metrics.decision_metrics(y, label),
        **metrics.ranking_metrics(y, logit(prob), prob),
        "threshold": float(y.mean()),
        "threshold_source": "share of generated images",
        "by": {},
        "ci": metrics.intervals(y, label, prob, prob, groups, draws, seed=seed),
    }


def _aligned(features, y, groups, kept, shortcuts, options):
    """What is left of the shortcuts once the classes are matched on them."""
    out = {"n": len(kept), "of": len(y), "matched_on": shortcuts, "features": None}
    if shortcuts and len(kept) >= 2 * audit.FEWEST:
        part = {name: [values[i] for i in kept] for name, values in features.items()}
        rows = None if groups is None else [groups[i] for i in kept]
        try:
            out["features"] = audit.audit(part, y[kept], rows, options.warn, 100, options.seed)[0]
        except UserError:
            out["features"] = None  # too few source images are left for a cross-validation
    return out


def _detector(evaluation, kept, options):
    """A detector's accuracy on all images and on the aligned ones."""

    def measure(part):
        return {k: v for k, v in part.measure(max(options.bootstrap, 100), options.seed).items() if k in wanted}

    wanted = ("n", "accuracy", "balanced_accuracy", "auc", "ci")
    out = {"raw": measure(evaluation), "aligned": None}
    part = scoring.Evaluation(evaluation.true.take(kept), evaluation.scores.take(kept)) if len(kept) else None
    if part and len(set(part.y[part.label >= 0].tolist())) == 2:
        out["aligned"] = measure(part)
    return out


def _example(name, values, y):
    """In words, how the classes differ in one property."""
    said = []
    for side in (0, 1):
        own = [v for v, label in zip(values, y) if label == side]
        if name in audit.NUMBERS:
            low, middle, high = np.percentile(own, [5, 50, 95])
            said.append(f"{NAMES[side]}: median {middle:.4g}, 90% in {low:.4g} to {high:.4g}")
        else:
            words, counts = np.unique([str(v) for v in own], return_counts=True)
            top = np.argsort(-counts, kind="stable")[:3]
            said.append(f"{NAMES[side]}: " + ", ".join(f"{words[i]} {counts[i] / len(own):.0%}" for i in top))
    return "; ".join(said)


def _page(options, result, features, y, shortcuts, where_from):
    number, interval = report.number, report.interval
    found, matched = result["features"], result["aligned"]
    ordered = sorted(found, key=lambda n: -found[n]["auc"])
    after = matched["features"] or {}
    header = ["property", "AUC", "95% interval", "balanced accuracy", "verdict"] + (["AUC, aligned"] if after else [])
    rows = []
    for name in ordered:
        row = found[name]
        verdict = "SHORTCUT" if row["shortcut"] else "same everywhere" if row["distinct"] == 1 else "no alarm"
        cells = [name, number(row["auc"], 3), interval(row["ci"], 3), number(row["balanced_accuracy"], 3), verdict]
        rows.append(cells + ([number(after[name]["auc"], 3)] if after else []))
    bars = [(n, found[n]["auc"], *(found[n]["ci"] or (None, None))) for n in ordered]
    sections = [
        report.Section(
            "How well each property alone predicts the label",
            ["Cross-validated by source image, on images that the rule was not fitted on. 0.5 is chance. A property "
             f"above {options.warn:g} whose interval lies above 0.5 is a shortcut: a detector can learn it instead "
             "of the "
             "image."],
            [report.Chart(plots.bars(bars, "AUC", options.warn), f"AUC by property; dashed: {options.warn:g}.", True)],
            [report.Table("Properties of the files", header, rows)],
        ),
    ]  # fmt: skip
    if shortcuts:
        texts = [f"{name}. {_example(name, features[name], y)}." for name in shortcuts]
        sections.append(report.Section("What differs", texts))
    sections.append(_aligned_section(result))
    warnings = [f"{n} tells the classes apart: AUC {found[n]['auc']:.3f}." for n in shortcuts]
    if result["errors"]["n"]:
        warnings.append(f"{result['errors']['n']} files could not be read.")
    page = Path(options.out) / "report.html"
    cards = [
        ("shortcuts", len(shortcuts), f"of {len(audit.FEATURES)} properties"),
        ("AUC, all together", number(found["all together"]["auc"], 3), interval(found["all together"]["ci"], 3)),
        ("images", len(y), f"{int((y == 0).sum())} real, {int((y == 1).sum())} generated"),
        ("aligned images", matched["n"], "same in every shortcut"),
    ]
    lead = f"{options.labels}: what file properties alone give away"
    return report.write(page, "Shortcut audit", lead, [*sections, where_from], cards, warnings)


def _aligned_section(result):
    matched, detector = result["aligned"], result.get("detector")
    if not matched["matched_on"]:
        text = "No shortcut was found, so nothing has to be matched."
    else:
        text = (
            f"{matched['n']} of {matched['of']} images are left when both classes have the same number of images in "
            "every "
            f"combination of {', '.join(matched['matched_on'])} (numbers in ten bins)."
        )
    section = report.Section("The aligned subset", [text])
    rows = []
    if detector:
        for name, part in (("all images", detector["raw"]), ("aligned subset", detector["aligned"])):
            if part:
                cells = [
                    [report.number(part[k]), report.interval(part["ci"].get(k), 3)]
                    for k in ("balanced_accuracy", "auc")
                ]
                rows.append([name, part["n"], *cells[0], *cells[1]])
        header = ["", "images", "balanced accuracy", "95% interval", "AUC", "95% interval"]
        section.tables.append(report.Table("The detector", header, rows))
        if not detector["aligned"]:
            section.texts.append("The aligned subset is too small for a number.")
    return section


def _say(result, options, page):
    found = result["features"]
    for name in sorted(found, key=lambda n: -found[n]["auc"]):
        row = found[name]
        if name in audit.FEATURES and row["shortcut"]:
            print(f"shortcut: {name} AUC {row['auc']:.3f} {report.interval(row['ci'], 3)}")
    quiet = [name for name in audit.FEATURES if not found[name]["shortcut"]]
    if quiet:
        top = max(quiet, key=lambda n: found[n]["auc"])
        print(f"no alarm: {len(quiet)} other properties, highest {top} AUC {found[top]['auc']:.3f}")
    print(f"all together: AUC {found['all together']['auc']:.3f}, balanced accuracy {result['balanced_accuracy']:.3f}")
    matched, detector = result["aligned"], result.get("detector")
    if matched["matched_on"]:
        after = matched["features"]
        left = f", all together AUC {after['all together']['auc']:.3f}" if after else ""
        print(f"aligned subset: {matched['n']} of {matched['of']} images{left}")
    if detector:
        for name in ("raw", "aligned"):
            part = detector[name]
            text = (
                f"balanced accuracy {part['balanced_accuracy']:.4f}, AUC {report.number(part['auc'])}"
                if part
                else "too few images"
            )
            print(f"detector, {name}: {text}")
    if result["errors"]["n"]:
        print(printable(f"not read: {result['errors']['n']} files, first {result['errors']['first'][0]['path']}"))
    print(f"report: {page}")
