"""``evaluate.py audit``: the shortcuts of a data set, with and without a detector's scores."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from tqdm import tqdm

from .. import files, images, metrics, report
from ..cli import OK, PARTIAL, by_reason, printable
from ..datasets.truth import read_labels
from ..errors import UserError
from ..evaluation.evaluation import Evaluation
from ..evaluation.scores import join, read_scores
from ..labels import NAMES, logit
from . import shortcuts
from .shortcuts import FEATURES, FEWEST, aligned

FEWEST_DRAWS = 100  # at least this many, because an interval decides whether a property is a shortcut


@dataclass(frozen=True)
class Properties:
    """The files that could be read: their properties, labels and source images.

    Attributes
    ----------
    features : dict of str to list, each of length n
        Columns of :func:`aidet.audit.shortcuts.file_features`.
    y : ndarray of int, shape (n,)
        0 real, 1 generated.
    groups : list of length n, or None
    """

    features: Dict[str, list]
    y: np.ndarray
    groups: Optional[list]

    def take(self, rows: Union[Sequence[int], np.ndarray]) -> "Properties":
        """The files of the given rows."""
        features = {name: [values[i] for i in rows] for name, values in self.features.items()}
        return Properties(features, self.y[rows], None if self.groups is None else [self.groups[i] for i in rows])

    def measure(self, warn: float, times: int, seed: int) -> Tuple[Dict[str, Dict[str, Any]], np.ndarray]:
        """Run :func:`aidet.audit.shortcuts.audit` on these files."""
        return shortcuts.audit(self.features, self.y, self.groups, warn, times, seed)


def read_features(
    paths: Sequence[Union[str, Path]],
    reading: Optional[images.Reading] = None,
) -> Tuple[Dict[str, list], List[int], List[Tuple[int, str]]]:
    """Run :func:`aidet.audit.shortcuts.file_features` on many files.

    Parameters
    ----------
    paths : sequence of str or Path
    reading : aidet.images.Reading, optional
        Images larger than its limit are not used, as in scoring. The pixels are not decoded, so that a file whose end
        is missing is not noticed.

    Returns
    -------
    (dict of str to list, list of int, list of (int, str))
        Columns, the row numbers of their values, and (row, reason) of the files that could not be read.
    """
    columns: Dict[str, list] = {name: [] for name in shortcuts.FEATURES}
    rows, lost = [], []
    bar = {"desc": "reading headers", "unit": "file", "disable": len(paths) < 2000, "file": sys.stderr}
    for i, path in enumerate(tqdm(paths, **bar)):
        try:
            one = shortcuts.file_features(path)
            (reading or images.Reading()).check_size(one["width"], one["height"])
        except images.ImageError as error:
            lost.append((i, str(error)))
            continue
        except Exception as error:  # noqa: BLE001 - Pillow raises nearly every type on damaged files
            lost.append((i, "no such file" if isinstance(error, FileNotFoundError) else "not a readable image"))
            continue
        rows.append(i)
        for name in shortcuts.FEATURES:
            columns[name].append(one[name])
    return columns, rows, lost


def main(options: argparse.Namespace) -> int:
    """Run ``evaluate.py audit``.

    Parameters
    ----------
    options : argparse.Namespace
        ``labels, where, out, scores, warn, bootstrap, seed, max_pixels, truncated``.

    Returns
    -------
    int
        Exit code: 3 if some files could not be read. A shortcut is a finding, not an error.

    Raises
    ------
    UserError
        Labels without image files, no readable file, or too few images.
    """
    labels, warn, seed, out = options.labels, options.warn, options.seed, Path(options.out)
    true = read_labels(labels, options.where)
    if true.paths is None:
        raise UserError(f"audit needs the image files; {labels} is a bare column of labels")
    evaluation = None
    if options.scores:
        evaluation = Evaluation(*join(true, read_scores(options.scores)))
        true = evaluation.true
    assert true.paths is not None
    features, rows, lost = read_features(true.files(), images.Reading.of(options))
    if not rows:
        raise UserError(f"audit: none of the {len(true)} images of {labels} can be read, first {true.files()[0]}")
    groups = true.groups()
    found = Properties(features, true.labels[rows], None if groups is None else [groups[i] for i in rows])
    times = max(options.bootstrap, FEWEST_DRAWS)
    result, kept = summary(found, warn, times, seed)
    if evaluation:
        result["detector"] = detector(evaluation, np.array(rows)[kept], times, seed)
    first = [{"path": true.paths[i], "status": why} for i, why in lost[:10]]
    result["errors"] = {"n": len(lost), "first": first, "reasons": by_reason(why for _, why in lost)}
    facts, where_from = report.provenance({"labels": labels, **({"scores": options.scores} if options.scores else {})})
    lead = f"{labels}: how well file properties alone predict the class"
    page = _page(out / "report.html", lead, result, found, warn, where_from)
    files.write_json(out / "metrics.json", {"command": "audit", **result, **facts})
    _say(result, page)
    return PARTIAL if lost else OK


def summary(found: Properties, warn: float, times: int, seed: int) -> Tuple[Dict[str, Any], np.ndarray]:
    """How well the properties predict the label, before and after the classes are matched on the shortcuts.

    Parameters
    ----------
    found : Properties
    warn, times, seed
        As in :func:`aidet.audit.shortcuts.audit`.

    Returns
    -------
    (dict, ndarray of int)
        Keys of ``metrics.json`` (the metrics of all properties combined, ``features``, ``aligned``), and the rows of
        the aligned subset.

    Raises
    ------
    UserError
        Too few images, see :class:`aidet.audit.shortcuts.Folds`.
    """
    features, prob = found.measure(warn, times, seed)
    shortcuts = _shortcuts(features)
    kept = aligned(found.features, found.y, shortcuts, seed)
    result = _combined(found, prob, times, seed)
    result["features"] = features
    result["aligned"] = _aligned(found, kept, shortcuts, warn, seed)
    return result, kept


def _shortcuts(features):
    return [name for name in shortcuts.FEATURES if features[name]["shortcut"]]


def _combined(found, prob, times, seed):
    """The standard metrics of the classifier that uses only the file properties."""
    y = found.y
    label = (prob > y.mean()).astype(int)
    return {
        **metrics.decision_metrics(y, label),
        **metrics.ranking_metrics(y, logit(prob), prob),
        "threshold": float(y.mean()),
        "threshold_source": "share of generated images",
        "by": {},
        "ci": metrics.intervals(y, label, prob, prob, found.groups, times, seed=seed),
    }


def _aligned(found, kept, shortcuts, warn, seed):
    """The shortcuts that remain after the classes are matched on the shortcuts found."""
    out = {"n": len(kept), "of": len(found.y), "matched_on": shortcuts, "features": None}
    if shortcuts and len(kept) >= 2 * FEWEST:
        try:
            out["features"] = found.take(kept).measure(warn, FEWEST_DRAWS, seed)[0]
        except UserError:
            out["features"] = None  # too few source images are left for cross-validation
    return out


def detector(evaluation: Evaluation, kept: np.ndarray, times: int = 0, seed: int = 42) -> Dict[str, Any]:
    """A detector's accuracy on all images and on the aligned subset.

    Parameters
    ----------
    evaluation : Evaluation
        Must cover all images.
    kept : ndarray of int
        Rows of the aligned subset.
    times, seed : int
        Bootstrap draws of the intervals.

    Returns
    -------
    dict
        ``raw`` and ``aligned``: ``n, accuracy, balanced_accuracy, auc, ci``; ``aligned`` is None if the subset
        does not contain both classes.
    """
    wanted = ("n", "accuracy", "balanced_accuracy", "auc", "ci")

    def measure(part):
        return {k: v for k, v in part.measure(times, seed).items() if k in wanted}

    out = {"raw": measure(evaluation), "aligned": None}
    part = evaluation.take(kept) if len(kept) else None
    if part and len(set(part.y[part.label >= 0].tolist())) == 2:
        out["aligned"] = measure(part)
    return out


def _example(name, values, y):
    """Describe in words how the classes differ in one property."""
    said = []
    for side in (0, 1):
        own = [v for v, label in zip(values, y) if label == side]
        if name in shortcuts.NUMBERS:
            low, middle, high = np.percentile(own, [5, 50, 95])
            said.append(f"{NAMES[side]}: median {middle:.4g}, 90% between {low:.4g} and {high:.4g}")
        else:
            words, counts = np.unique([str(v) for v in own], return_counts=True)
            top = np.argsort(-counts, kind="stable")[:3]
            said.append(f"{NAMES[side]}: " + ", ".join(f"{words[i]} {counts[i] / len(own):.0%}" for i in top))
    return "; ".join(said)


def _page(path, lead, result, found, warn, where_from):
    features, shortcuts = result["features"], _shortcuts(result["features"])
    together = features["all together"]
    sections = [_properties_section(features, result["aligned"]["features"] or {}, warn)]
    if shortcuts:
        texts = [f"{name}. {_example(name, found.features[name], found.y)}." for name in shortcuts]
        sections.append(report.Section("What differs", texts))
    sections.append(_aligned_section(result))
    warnings = [f"{n} tells the classes apart: AUC {features[n]['auc']:.3f}." for n in shortcuts]
    if result["errors"]["n"]:
        warnings.append(f"{result['errors']['n']} files could not be read.")
    cards = [
        ("shortcuts", len(shortcuts), f"of {len(FEATURES)} properties"),
        ("AUC, all together", report.number(together["auc"], 3), report.interval(together["ci"], 3)),
        ("images", len(found.y), f"{int((found.y == 0).sum())} real, {int((found.y == 1).sum())} generated"),
        ("aligned images", result["aligned"]["n"], "matched on every shortcut"),
    ]
    return report.write(path, "Shortcut audit", lead, [*sections, where_from], cards, warnings)


def _properties_section(features, after, warn):
    """Chart and table of the properties; ``after``: the same results on the aligned subset, or empty."""
    number, interval = report.number, report.interval
    header = ["property", "AUC", "95% interval", "balanced accuracy", "verdict"] + (["AUC, aligned"] if after else [])
    ordered = sorted(features, key=lambda n: -features[n]["auc"])
    rows = []
    for name in ordered:
        row = features[name]
        verdict = "SHORTCUT" if row["shortcut"] else "constant" if row["distinct"] == 1 else "no shortcut"
        cells = [name, number(row["auc"], 3), interval(row["ci"], 3), number(row["balanced_accuracy"], 3), verdict]
        rows.append(cells + ([number(after[name]["auc"], 3)] if after else []))
    bars = [(n, features[n]["auc"], *(features[n]["ci"] or (None, None))) for n in ordered]
    text = (
        "Each property is tested on images that its rule was not fitted on (cross-validation by source image). 0.5 "
        f"is chance. A property with an AUC above {warn:g} and an interval above 0.5 is a shortcut: a detector can "
        "learn it instead of the image."
    )
    return report.Section(
        "How well each property alone predicts the label",
        [text],
        [report.Chart(report.bars(bars, "AUC", warn), f"AUC by property; dashed: {warn:g}.", True)],
        [report.Table("Properties of the files", header, rows)],
    )


def _aligned_section(result):
    matched, found = result["aligned"], result.get("detector")
    if not matched["matched_on"]:
        text = "No shortcut was found, so there is nothing to match."
    else:
        text = (
            f"{matched['n']} of {matched['of']} images are left when both classes have the same number of images in "
            f"every combination of {', '.join(matched['matched_on'])} (numbers in ten bins)."
        )
    section = report.Section("The aligned subset", [text])
    rows = []
    if found:
        for name, part in (("all images", found["raw"]), ("aligned subset", found["aligned"])):
            if part:
                cells = [
                    [report.number(part[k]), report.interval(part["ci"].get(k), 3)]
                    for k in ("balanced_accuracy", "auc")
                ]
                rows.append([name, part["n"], *cells[0], *cells[1]])
        header = ["", "images", "balanced accuracy", "95% interval", "AUC", "95% interval"]
        section.tables.append(report.Table("The detector", header, rows))
        if not found["aligned"]:
            section.texts.append("The aligned subset is too small to test the detector on.")
    return section


def _say(result, page):
    features = result["features"]
    for name in sorted(features, key=lambda n: -features[n]["auc"]):
        row = features[name]
        if name in shortcuts.FEATURES and row["shortcut"]:
            print(f"shortcut: {name} AUC {row['auc']:.3f} {report.interval(row['ci'], 3)}")
    quiet = [name for name in shortcuts.FEATURES if not features[name]["shortcut"]]
    if quiet:
        top = max(quiet, key=lambda n: features[n]["auc"])
        print(f"no shortcut: {len(quiet)} other properties, highest {top} AUC {features[top]['auc']:.3f}")
    together = features["all together"]["auc"]
    print(f"all together: AUC {together:.3f}, balanced accuracy {result['balanced_accuracy']:.3f}")
    matched = result["aligned"]
    if matched["matched_on"]:
        after = matched["features"]
        left = f", all together AUC {after['all together']['auc']:.3f}" if after else ""
        print(f"aligned subset: {matched['n']} of {matched['of']} images{left}")
    for name, part in result.get("detector", {}).items():
        text = "too few images"
        if part:
            text = f"balanced accuracy {part['balanced_accuracy']:.4f}, AUC {report.number(part['auc'])}"
        print(f"detector, {name}: {text}")
    if result["errors"]["n"]:
        print(printable(f"not read: {result['errors']['n']} files, first {result['errors']['first'][0]['path']}"))
    print(f"report: {page}")
    if result["errors"]["n"]:
        print(f"not read, by reason: {result['errors']['reasons']}")
