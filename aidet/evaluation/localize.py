"""``evaluate.py localize``: maps of generated pixels against true masks."""

import argparse
import csv
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import numpy as np

from .. import files, metrics, report
from ..cli import OK, PARTIAL, by_reason, printable
from ..datasets import sources
from ..datasets.truth import Truth, read_labels
from ..errors import UserError
from ..labels import sigmoid
from . import localize_page
from .maps import Localized, Maps, aucs, best_f1, measure, overlap, pixel_auc
from .scores import join, read_scores

# Classes by the share of generated pixels: name, from, below.
AREAS = (
    ("under 2 %", 0.0, 0.02), ("2-5 %", 0.02, 0.05), ("5-10 %", 0.05, 0.1), ("10-30 %", 0.1, 0.3),
    ("30-60 %", 0.3, 0.6), ("60 % and more", 0.6, 2.0), ("10 % and more", 0.1, 2.0),
)  # fmt: skip
ALARM = 0.02  # share of an untouched photograph that may be found by mistake before it counts as a false alarm
CHUNK = 50  # bootstrap draws that are computed at once
HEADER = ("path", "label", "group", "area", "kind", "builder", "status", "found", "pixel_auc", "f1", "iou")


def main(options: argparse.Namespace) -> int:
    """Run ``evaluate.py localize``.

    Parameters
    ----------
    options : argparse.Namespace
        ``maps, labels, scores, where, by, threshold, out, bootstrap, seed, thumbnails``.

    Returns
    -------
    int
        Exit code: 3 if some maps could not be used.

    Raises
    ------
    UserError
        Labels without masks, no usable map, or scores that do not match.
    """
    true = labelled(options.labels, options.where)
    found = Maps(options.maps, true.paths or ())
    threshold = 0.5 if options.threshold is None else options.threshold
    scores, decisions = image_scores(true, options.scores)
    rows = measure(true, found, threshold)
    if not any(row.ok for row in rows):
        raise UserError(f"--maps {options.maps!r}: none of {len(rows)} could be used, first {rows[0].status}")
    evaluation = Localized(true, rows, scores, threshold, decisions)
    result = summary(evaluation, options.by or (), options.bootstrap, options.seed)
    inputs = {"labels": options.labels, "maps": options.maps}
    if options.scores:
        inputs["scores"] = options.scores
    facts, where_from = report.provenance(inputs)
    result.update(facts)
    out = Path(options.out)
    write_table(out / "localize.csv", evaluation)
    page = localize_page.write(out / "report.html", evaluation, result, found, where_from, options.thumbnails)
    files.write_json(out / "metrics.json", result)
    localize_page.say(result, page)
    return PARTIAL if result["errors"]["n"] else OK


def labelled(labels: Union[str, Path], where: Optional[Sequence[str]] = None) -> Truth:
    """Labels with masks.

    Raises
    ------
    UserError
        As :func:`aidet.datasets.truth.read_labels`; and no column ``mask``, or no paths.
    """
    true = read_labels(labels, where)
    if true.paths is None or "mask" not in true.columns:
        raise UserError(
            f"{true.source} has no column mask; python -m aidet.align --partial writes such a table (docs/localize.md)"
        )
    return true


def image_scores(true: Truth, path: Optional[Union[str, Path]]) -> Tuple[Dict[str, np.ndarray], Optional[np.ndarray]]:
    """The image scores of a scores file, ``local_score`` (of ``infer.py --localize``) and ``score``, and its labels.

    Parameters
    ----------
    true : Truth
    path : str or Path, optional
        May hold more pictures than ``true``, as if ``--where`` took a part.

    Returns
    -------
    (dict of str to ndarray (n,), ndarray of int (n,) or None)
        Log-odds in the order of ``true``, NaN where a row has none, and the detector's decisions at its own threshold,
        -1 where a row has none. Empty and None without a file.
    """
    if path is None:
        return {}, None
    scores = read_scores(path)
    try:
        joined, _ = join(true, scores)
    except UserError:
        whole = read_labels(true.source)
        if len(whole) == len(true):
            raise
        joined, _ = join(whole, scores)
    columns = {"score": scores.score}
    header, cells = sources.read_columns(path, "scores")
    if header is not None and "local_score" in header:
        columns = {"local_score": np.array([_number(cell) for cell in cells["local_score"]]), **columns}
    place = {name: i for i, name in enumerate(joined.paths or ())}
    order = [place.get(name, -1) for name in true.paths or ()]
    found = {
        name: np.array([values[i] if i >= 0 else np.nan for i in order], np.float64)
        for name, values in columns.items()
        if np.isfinite(values).any()
    }
    return found, np.array([scores.label[i] if i >= 0 else -1 for i in order])


def _number(cell):
    try:
        return float(cell)
    except ValueError:
        return np.nan


def summary(evaluation: Localized, by: Sequence[str] = (), times: int = 0, seed: int = 42) -> Dict[str, Any]:
    """All numbers, as for ``metrics.json``.

    Parameters
    ----------
    evaluation : Localized
    by : sequence of str
        Further columns of the labels to make tables by; area, kind and builder always have one.
    times, seed : int
        Bootstrap draws of the intervals, by source image, and their seed.

    Returns
    -------
    dict
        ``n, n_groups, threshold, errors, pixels, untouched, images, image_score, by``.

    Raises
    ------
    UserError
        A column that the labels do not have.
    """
    true, rows = evaluation.true, evaluation.rows
    bad = [row for row in rows if not row.ok]
    draws = _Draws(evaluation, times, seed)
    tables = {"area": {name: (evaluation.area >= low) & (evaluation.area < high) for name, low, high in AREAS}}
    for name in ("kind", "builder", *by):
        cells = np.array(true.column(name) if name in by else evaluation.column(name), object)
        tables[name] = {value: cells == value for value in sorted(set(cells[evaluation.generated].tolist()))}
    return {
        "command": "localize",
        "n": len(rows),
        "n_groups": len(set(metrics.group_numbers(true.groups(), len(rows)).tolist())),
        "threshold": evaluation.threshold,
        "errors": {
            "n": len(bad),
            "reasons": by_reason(row.status for row in bad),
            "first": [{"path": row.path, "status": row.status} for row in bad[:10]],
        },
        "pixels": {**draws.pixels(evaluation.generated), **_each(evaluation, evaluation.generated)},
        "untouched": draws.untouched(),
        "image_score": next(iter(evaluation.scores)),
        "images": {name: _images(evaluation, evaluation.generated, name, times, seed) for name in evaluation.scores},
        "by": {
            name: {
                value: _row(evaluation, draws, own & evaluation.generated, times, seed)
                for value, own in values.items()
                if (own & evaluation.generated).any()
            }
            for name, values in tables.items()
        },
    }


def _row(evaluation, draws, own, times, seed):
    """One row of a table: pixels of these pictures, and their image scores against those of all untouched ones."""
    found = {name: _images(evaluation, own, name, times, seed) for name in evaluation.scores}
    return {**draws.pixels(own), **_each(evaluation, own), "image": next(iter(found.values())), "images": found}


def _each(evaluation, own):
    """Means over single pictures."""
    rows = [row for row, use in zip(evaluation.rows, own) if use]
    if not rows:
        return {"mean_auc": None, "mean_f1": None, "mean_iou": None}
    single = overlap(np.array([row.counts for row in rows], np.float64))
    auc = aucs(np.array([row.histogram for row in rows], np.float64))
    return {
        "mean_auc": float(np.nanmean(auc)) if np.isfinite(auc).any() else None,
        "mean_f1": float(single["f1"].mean()),
        "mean_iou": float(single["iou"].mean()),
    }


def _images(evaluation, own, name, times, seed):
    """Metrics of whole pictures: these generated ones against all untouched ones."""
    score = evaluation.scores[name]
    use = (own | evaluation.untouched) & np.isfinite(score)
    y, used = evaluation.true.labels[use], score[use]
    out: Dict[str, Any] = {"n": int(len(y)), "auc": None, "balanced_accuracy": None, "ci": {}}
    if len(set(y.tolist())) < 2:
        return out
    decided = (used > 0).astype(int)
    if name == "score" and evaluation.decisions is not None:
        own_decision = evaluation.decisions[use]
        decided = np.where(own_decision >= 0, own_decision, decided)
    found = metrics.decision_metrics(y, decided)
    ci = metrics.intervals(y, decided, used, sigmoid(used), evaluation.groups(use), times, seed=seed)
    keys = ("balanced_accuracy", "real_recall", "generated_recall")
    out.update({"auc": metrics.auc(y, used), **{key: found[key] for key in keys}})
    out["ci"] = {key: ci[key] for key in ("auc", *keys) if key in ci}
    return out


class _Draws:
    """Numbers of pixels with their intervals; the same draws of source images for every table."""

    def __init__(self, evaluation, times, seed):
        self.rows = evaluation.rows
        self.histograms = np.array([row.histogram for row in self.rows], np.float32)
        self.counts = np.array([row.counts for row in self.rows], np.float64)
        self.found = np.array([row.found for row in self.rows])
        self.alone = evaluation.untouched
        ok = np.flatnonzero(evaluation.ok)
        resampler = metrics.Resampler(evaluation.true.labels[ok], evaluation.groups(evaluation.ok), seed)
        self.weights = np.zeros((times, len(self.rows)), np.float32)
        for i, drawn in enumerate(resampler.weights(times)):
            self.weights[i, ok] = drawn

    def pixels(self, own):
        """AUC, F1 and IoU of the pooled pixels of some pictures."""
        use = np.flatnonzero(own)
        pooled = self.histograms[use].sum(0, dtype=np.float64)
        out = {"n": len(use), "auc": pixel_auc(pooled), "f1": None, "iou": None, "ci": {}}
        if not len(use):
            return out
        at, best = best_f1(pooled)
        out.update({k: float(v) for k, v in overlap(self.counts[use].sum(0)).items()})
        out.update(best_threshold=at, best_f1=best)
        drawn: Dict[str, list] = {"auc": [], "f1": [], "iou": []}
        flat = self.histograms[use].reshape(len(use), -1)
        for start in range(0, len(self.weights), CHUNK):
            weights = self.weights[start : start + CHUNK, use]
            drawn["auc"].append(aucs((weights @ flat).reshape(len(weights), *self.histograms.shape[1:]).astype(float)))
            for name, values in overlap(weights @ self.counts[use]).items():
                drawn[name].append(values)
        out["ci"] = {name: ci for name, ci in ((n, _interval(v)) for n, v in drawn.items()) if ci}
        return out

    def untouched(self):
        """How much of untouched photographs is found by mistake."""
        found = self.found[self.alone]
        out = {"n": len(found), "false_area": None, "alarms": None, "limit": ALARM, "ci": {}}
        if not len(found):
            return out
        out.update(false_area=float(found.mean()), alarms=float((found > ALARM).mean()))
        weights = self.weights[:, self.alone]
        total = weights.sum(1)
        for name, values in (("false_area", found), ("alarms", (found > ALARM).astype(float))):
            ci = _interval([weights @ values / np.where(total > 0, total, np.nan)])
            if ci:
                out["ci"][name] = ci
        return out


def _interval(parts):
    """The 95% percentile interval of draws; None without any."""
    values = np.concatenate(parts) if parts else np.zeros(0)
    values = values[np.isfinite(values)]
    return [float(v) for v in np.percentile(values, [2.5, 97.5])] if len(values) else None


def write_table(path: Union[str, Path], evaluation: Localized) -> None:
    """Write ``localize.csv``: a row for each picture, also for one whose map could not be used."""
    names = list(evaluation.scores)
    groups, kinds, builders = (evaluation.column(name) for name in ("group", "kind", "builder"))
    with files.atomic(path, errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*HEADER, *(f"image_{name}" for name in names)])
        for i, row in enumerate(evaluation.rows):
            shown = ["", "", "", "", ""]
            if row.ok:
                single = overlap(np.array(row.counts, np.float64))
                auc = aucs(row.histogram.astype(np.float64))
                shown = [_text(v) for v in (row.area, row.found, auc, single["f1"], single["iou"])]
            scores = [_text(evaluation.scores[name][i]) for name in names]
            about = [row.path, row.label, groups[i], shown[0], kinds[i], builders[i], printable(row.status)]
            writer.writerow([*about, *shown[1:], *scores])


def _text(value):
    return f"{float(value):.6g}" if np.isfinite(value) else ""
