"""Report sections shared by several commands, and the order of the headline metrics."""

from typing import Any, Dict, List

from .. import metrics, report
from ..records import natural_key

HEADLINE = (
    ("balanced_accuracy", "balanced accuracy"), ("auc", "AUC"), ("macro_f1", "macro-F1"), ("accuracy", "accuracy"),
    ("ap", "average precision"), ("eer", "equal error rate"), ("ece", "ECE"), ("balanced_ece", "ECE at equal odds"),
    ("nll", "negative log-likelihood"), ("tpr_at_fpr_0.01", "TPR at 1% FPR"), ("tpr_at_fpr_0.05", "TPR at 5% FPR"),
    ("tpr_at_fpr_0.1", "TPR at 10% FPR"), ("real_recall", "recall of real"),
    ("generated_recall", "recall of generated"),
)  # fmt: skip
LOWEST = 40  # at most this many values in the chart of a column
TURNED_ROUND = "the scores may be inverted (a score above 0 must mean generated), or the labels are"
INVERTED = 0.2  # an AUC below this does not come by chance
ENOUGH = 10  # images of each class
EMPTY = "not said"  # the name of an empty cell of the labels


def inverted(result: Dict[str, Any]) -> str:
    """What to say of an AUC so far below chance that a sign is wrong; ``""`` if it is not, or of too few images.

    Parameters
    ----------
    result : dict
        With ``auc`` and ``confusion``, rows real and generated.
    """
    auc = result.get("auc")
    if auc is None or not auc < INVERTED or min(map(sum, result["confusion"])) < ENOUGH:
        return ""
    return f"AUC {auc:.3f} is far below chance, 1 - AUC would be {1 - auc:.3f}: {TURNED_ROUND}."


def by_section(column: str, table: Dict[str, Dict[str, Any]]) -> report.Section:
    """Chart and table of one column of the labels.

    Parameters
    ----------
    column : str
    table : dict
        From :func:`aidet.metrics.by_value`.

    Returns
    -------
    Section
    """
    number, interval = report.number, report.interval
    rows = [
        [name or EMPTY, r["classes"], r["n"], number(r["accuracy"]), interval(r["ci"].get("accuracy"), 3),
         number(r["auc"]), interval(r["ci"].get("auc"), 3)]
        for name, r in sorted(table.items(), key=lambda item: (item[1]["classes"], natural_key(item[0])))
    ]  # fmt: skip
    texts = [
        "A value whose images are all of one class is ranked against all images of the other class; its accuracy is "
        "the recall of its class."
    ]
    for side in ("generated", "real"):
        for key in ("accuracy", "auc"):
            found = metrics.spread(table, side, key)
            if found and found["values"] > 1:
                texts.append(
                    f"{key.replace('auc', 'AUC')} over the {found['values']} values with {side} images: average "
                    f"{found['average']:.4f}, minimum {found['minimum']:.4f} ({found['worst'] or EMPTY})."
                )
    header = [column, "class", "images", "accuracy", "95% interval", "AUC", "95% interval"]
    bars = [
        (f"{name or EMPTY} ({r['n']})", r["accuracy"], *(r["ci"].get("accuracy") or (None, None)))
        for name, r in table.items()
        if r["accuracy"] is not None
    ]
    chart = report.Chart(
        report.bars(sorted(bars, key=lambda b: b[1])[:LOWEST], "accuracy"),
        f"Accuracy by {column}, with 95% intervals (at most the {LOWEST} lowest).",
        True,
    )
    tables = [report.Table(f"By {column}", header, rows)]
    return report.Section(f"By {column}", texts, [chart] if len(bars) > 1 else [], tables)


def threshold_section(rows: List[Dict[str, float]]) -> report.Section:
    """Table and plot of :func:`aidet.metrics.threshold_table`."""
    number = report.number
    names = ("threshold", *metrics.DECISIONS)
    lines = {n.replace("_", " "): [(r["threshold"], r[n], None, None) for r in rows] for n in names[2:]}
    chart = report.curves(lines, "threshold on the probability", "value", (0, 1.02))
    header = ["threshold", "accuracy", "balanced accuracy", "macro-F1", "recall of real", "recall of generated"]
    cells = [[number(row[n], 1 if n == "threshold" else 4) for n in names] for row in rows]
    return report.Section(
        "Thresholds",
        charts=[report.Chart(chart, "How the metrics change with the threshold.")],
        tables=[report.Table("Metrics at fixed thresholds on the probability", header, cells)],
    )
