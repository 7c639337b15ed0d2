"""The report of ``evaluate.py score`` (sections, headline cards and warnings) and its terminal output."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from .. import metrics, report, runinfo
from ..cli import printable
from ..labels import NAMES, logit
from . import worst
from .evaluation import Evaluation
from .sections import HEADLINE, TURNED_ROUND, by_section, inverted, threshold_section

Card = Tuple[str, str, str]
FEW, VERY_FEW = 100, 10  # the report warns if there are fewer independent source images
DOUBTED = 0.4  # below this AUC the report asks whether the scores are inverted


def pages(
    evaluation: Evaluation,
    result: Dict[str, Any],
    maps: Optional[worst.Maps] = None,
    times: int = 0,
    thumbnails: int = 12,
) -> Tuple[List[report.Section], List[Card], List[str]]:
    """The contents of the report of one evaluation.

    Parameters
    ----------
    evaluation : Evaluation
    result : dict
        From :func:`aidet.evaluation.evaluation.summary`, with ``run`` (see :func:`aidet.runinfo.read`) and, if a
        second file was given, ``from_validation``, ``paired`` or ``deduplicated``.
    maps : Maps, optional
        Explanation maps of the worst errors.
    times : int
        Bootstrap draws of the intervals.
    thumbnails : int
        Number of worst errors shown for each class; 0 leaves the section out.

    Returns
    -------
    (list of Section, list of (name, value, note), list of str)
        Sections, headline cards and warnings.
    """
    sections = [worst.section(evaluation, thumbnails, maps, result["run"])]
    if evaluation.ranked:
        sections.append(_curves(evaluation, result))
    sections.append(_numbers(evaluation, result, times))
    if result.get("deduplicated"):
        sections.append(_deduplicated(result))
    sections += [by_section(column, table) for column, table in result["by"].items()]
    if evaluation.ranked:
        sections.append(_thresholds(result))
    if result.get("paired"):
        sections.append(_paired(result["paired"], evaluation.scores.source))
    if result["models"]:
        sections.append(_models(result["models"]))
    sections.append(_run(result["run"]))
    return [s for s in sections if s], _cards(result), _warnings(evaluation, result)


def _flat(result):
    """The result with TPR at FPR under the names of the headline metrics."""
    return {**result, **{f"tpr_at_fpr_{k}": v for k, v in result["tpr_at_fpr"].items()}}


def _headline(result):
    """The headline metrics; of one class without balanced accuracy, which would be the recall of that class."""
    return [(key, label) for key, label in HEADLINE if key != "balanced_accuracy" or not _one_class(result)]


def _one_class(result):
    return 0 in (row["n"] for row in result["classes"].values())


def _cards(result):
    flat = _flat(result)
    cards = [
        (label, report.number(flat[key]), report.interval(result["ci"].get(key), 3))
        for key, label in _headline(result)[: 4 - _one_class(result)]
        if flat[key] is not None
    ]
    run = result["run"]
    if run and run["images_per_second"]:  # infer.py left its run.json
        rate = run["images_per_second"]
        load = max(p.get("load_seconds") or 0 for p in run["processes"])
        cards.append(("images per second", f"{rate:.1f}", f"5,000 in an hour: {runinfo.hour(rate, load)}"))
    return cards


def _numbers(evaluation, result, times):
    number, interval = report.number, report.interval
    flat = _flat(result)
    metric_rows = [[label, number(flat[key]), interval(result["ci"].get(key))] for key, label in _headline(result)]
    # Precision and F1 need both classes.
    known = {"recall"} if _one_class(result) else {"precision", "recall", "f1"}
    class_rows = [
        [name, row["n"], *(number(row[k] if k in known and row["n"] else None) for k in ("precision", "recall", "f1"))]
        for name, row in result["classes"].items()
    ]
    line = "" if result["threshold"] is None else f" at threshold {number(result['threshold'])}"
    return report.Section(
        "All numbers",
        texts=[_explain(evaluation, result, times)],
        tables=[
            report.Table(
                "Metrics; in brackets the 95% bootstrap interval over source images",
                ["metric", "value", "95% interval"],
                metric_rows,
            ),
            report.Table(
                f"Confusion matrix{line}",
                ["true class", "called real", "called generated"],
                [[name, *row] for name, row in zip(NAMES, result["confusion"])],
            ),
            report.Table("Per class", ["class", "images", "precision", "recall", "F1"], class_rows),
        ],
    )


def _explain(evaluation, result, times):
    what = "single images; the labels have no group column"
    if evaluation.true.groups():
        what = f"{result['n_groups']} source images (column group)"
    source = result["threshold_source"]
    rule = source if result["threshold"] is None else f"threshold {report.number(result['threshold'])} ({source})"
    draws = f"Intervals: {times} bootstrap draws of {what}."
    if evaluation.scores.decisions_only:
        return f"Decisions: {rule}. {draws}"
    return f"A score above 0 is a probability above 0.5. Decisions: {rule}. {draws}"


def _warnings(evaluation, result):
    out = []
    errors = result["errors"]
    if errors["n"]:
        out.append(
            f"{errors['n']} images could not be scored. {errors['counted_by_their_label']} of them have a label and "
            f"count in accuracy, recall and F1; the other {errors['left_out']} are left out. None of them counts in "
            "AUC, AP, EER, ECE or NLL. First: " + "; ".join(f"{e['path']} ({e['status']})" for e in errors["first"][:3])
        )
    fewest = evaluation.independent
    if not evaluation.ranked:
        why = "All images with a score are of one class"
        if evaluation.scores.decisions_only:
            why = "The file has no scores"
        elif len(set(evaluation.y.tolist())) == 1:
            why = "All images are of one class"
        out.append(f"{why}, so there is no AUC, AP, EER, ECE, NLL or TPR at FPR.")
    if fewest < FEW:
        few = " With fewer than ten, the intervals are too narrow as well."
        out.append(
            f"Only {fewest} independent source images of the rarer class: trust the intervals, not the values."
            + (few if fewest < VERY_FEW and result["ci"] else "")
        )
    flat = [name for name, (low, high) in result["ci"].items() if high == low]
    if flat:
        out.append(
            f"The interval of {', '.join(flat)} has width 0. This means that these images show no error of that kind, "
            f"not that there is none: with {fewest} independent source images of the rarer class, an error rate below "
            f"{min(1, 3 / fewest):.1%} can go unnoticed (rule of three)."
        )
    if result["auc"] is not None and result["auc"] < DOUBTED:
        out.append(inverted(result) or f"AUC {result['auc']:.3f} is below chance: {TURNED_ROUND}.")
    return out


def _run(run):
    """Weights, back end, options and speed of the run that produced the scores; None without a run.json."""
    if not run:
        return None
    models = [[m["name"], m["sha256"], m["backend"]] for m in run["models"]]
    options = [[k, "–" if v is None else str(v)] for k, v in run["options"].items()]
    speed = [
        [p.get("device", "–"), p["rows"], p.get("scored", "–"), report.number(p.get("seconds"), 1),
         report.number(p["scored"] / p["seconds"] if p.get("scored") and p.get("seconds") else None, 1),
         report.number(p.get("load_seconds"), 1)]
        for p in run["processes"]
    ]  # fmt: skip
    header = ["device", "images", "scored by this process", "seconds", "images per second", "seconds to load"]
    rows = [[k, v] for k, v in run["versions"].items()]
    return report.Section(
        "How the scores were made",
        ["From run.json beside the scores. If the run was resumed, its last process scored only the remaining images."],
        tables=[
            report.Table("Weights", ["model", "sha256", "back end"], models),
            report.Table("Speed", header, speed),
            report.Table("Options", ["option", "value"], options),
            report.Table("Versions used", ["package", "version"], rows),
        ],
    )


def _deduplicated(result):
    found = result["deduplicated"]
    gone = ", ".join(f"{n} by {level}" for level, n in found["left_out"].items())
    rows = [
        [label, report.number(result[key]), report.interval(result["ci"].get(key)), report.number(found[key]),
         report.interval(found["ci"].get(key))]
        for key, label in HEADLINE if key in found
    ]  # fmt: skip
    header = ["metric", f"all ({result['n']})", "95% interval", f"without leaks ({found['n']})", "95% interval"]
    text = f"Left out, because the same image is also in another split: {gone}."
    if found["kept_though_alike"]:
        text += f" {found['kept_though_alike']} images that are similar but not identical were kept."
    return report.Section("Without leaked images", [text], tables=[report.Table("Raw and deduplicated", header, rows)])


def _curves(evaluation, result):
    y, score, prob = (v[evaluation.scored] for v in (evaluation.y, evaluation.scores.score, evaluation.scores.prob))
    models = {n: evaluation.scores.models[n][evaluation.scored] for n in list(result["models"])[:5]}
    lines = {
        "detector" if not models else "all together": score,
        **{n: s for n, s in models.items() if np.isfinite(s).all()},
    }
    threshold = None if result["threshold"] is None else float(logit(result["threshold"]))
    return report.Section(
        "Curves",
        charts=[
            report.Chart(
                report.roc(y, lines),
                "ROC: share of generated images found, against the share of real images called generated.",
            ),
            report.Chart(report.precision_recall(y, lines), "Precision and recall of generated images."),
            report.Chart(
                report.reliability(metrics.reliability(y, prob)),
                "Reliability: on the diagonal, 80% of the images with probability 80% are generated. "
                f"ECE {result['ece']:.3f}, "
                f"at equal odds (both classes weighted equally) {result['balanced_ece']:.3f}.",
            ),
            report.Chart(report.histogram(y, score, threshold), "Distribution of the scores of both classes."),
        ],
    )


def _thresholds(result):
    section = threshold_section(result["thresholds"])
    chosen = result.get("from_validation")
    if chosen:
        ci = {name: report.interval(chosen["ci"][name], 3) for name in ("fpr", "tpr", "balanced_accuracy")}
        section.texts.append(
            f"Chosen on validation: threshold {chosen['threshold']:.4f} gives {chosen['validation_fpr']:.2%} false "
            f"positives on {chosen['validation_reals']} real validation images (target {chosen['target_fpr']:.1%}). "
            f"Here it gives FPR {chosen['fpr']:.4f} {ci['fpr']}, TPR {chosen['tpr']:.4f} {ci['tpr']}, balanced "
            f"accuracy {chosen['balanced_accuracy']:.4f} {ci['balanced_accuracy']}."
        )
    best = result["oracle"]
    section.texts.append(
        f"Oracle, not a result: threshold {best['threshold']:.4f}, chosen on these same images, would reach balanced "
        f"accuracy {best['balanced_accuracy']:.4f}. TPR at a given FPR also uses a threshold chosen on these images."
    )
    return section


def _paired(found, first):
    number = report.number
    rows = [
        [name.replace("_", " "), number(r["first"]), number(r["second"]), f"{r['difference']:+.4f}",
         report.interval(r.get("ci")), number(r.get("p"))]
        for name, r in found["differences"].items()
    ]  # fmt: skip
    test = found["mcnemar"]
    text = (
        f"First: {first}; second: {found['second']}; {found['n']} images. Only the first is right on "
        f"{test['only_first']}, only the second on {test['only_second']}; McNemar's exact p = {test['p']:.4g} (assumes "
        "independent images). The intervals and p values below resample source images."
    )
    header = ["metric", "first", "second", "difference", "95% interval", "p"]
    return report.Section("Paired comparison", [text], tables=[report.Table("First minus second", header, rows)])


def _models(found):
    rows = [
        [name, *(report.number(row[k]) for k in ("auc", "balanced_accuracy", "macro_f1"))]
        for name, row in found.items()
    ]
    table = report.Table("At threshold 0.5", ["model", "AUC", "balanced accuracy", "macro-F1"], rows)
    return report.Section("Single models", tables=[table])


def say(result: Dict[str, Any], maps: worst.Maps, page: Path) -> None:
    """Print the summary in the terminal."""
    for key, label in HEADLINE[:3] if result["macro_f1"] is not None else HEADLINE[3:4]:
        if result[key] is None:
            continue
        print(f"{label:<18} {result[key]:.4f} {report.interval(result['ci'].get(key))}".rstrip())
    if result.get("from_validation"):
        chosen = result["from_validation"]
        print(
            f"threshold {chosen['threshold']:.4f} from real validation images: FPR {chosen['fpr']:.4f}, "
            f"TPR {chosen['tpr']:.4f}"
        )
    if result.get("deduplicated"):
        row = result["deduplicated"]
        print(
            f"without leaks      {row['n']} images: accuracy {row['accuracy']:.4f} "
            f"{report.interval(row['ci'].get('accuracy'))}, all {result['n']}: {result['accuracy']:.4f}"
        )
    if result.get("paired"):
        name = "auc" if "auc" in result["paired"]["differences"] else "accuracy"
        row, label = result["paired"]["differences"][name], {"auc": "AUC"}.get(name, name) + " difference"
        print(f"{label:<18} {row['difference']:+.4f} {report.interval(row.get('ci'))} p={row['p']:.4g}")
    if result["errors"]["n"]:
        errors = result["errors"]
        print(
            f"not scored         {errors['n']} images, {errors['counted_by_their_label']} counted with their label, "
            f"{errors['left_out']} left out"
        )
        for row in errors["first"]:
            print(printable(f"  {row['path']}: {row['status']}"))
    if inverted(result):
        print(f"warning            {inverted(result)}")
    if maps.shown and not maps.asked:
        names = ", ".join(Path(path).name for path in maps.files)
        print(f"maps               {maps.shown} errors with maps of {names} (run.json); --explain none leaves them out")
    print(f"report             {page}")
    if result["errors"]["n"]:
        print(f"not scored, by reason: {result['errors']['reasons']}")
