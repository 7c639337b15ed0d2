"""The result of an evaluation in a few sentences, for readers who know none of the metrics."""

from typing import Any, Dict, List, Optional, Tuple

from ..labels import GENERATED, REAL
from .evaluation import Evaluation

ENOUGH = 10  # images of a generator or source, to be named as the weakest
SIDES = ((GENERATED, "generated"), (REAL, "real"))


def summary(evaluation: Evaluation, result: Dict[str, Any]) -> List[str]:
    """What was measured on how many images, how good the detector is, and what it misses.

    Parameters
    ----------
    evaluation : Evaluation
    result : dict
        From :func:`aidet.evaluation.evaluation.summary`.

    Returns
    -------
    list of str
        Three to six sentences.
    """
    (called_real, false_alarms), (missed, found) = result["confusion"]
    real, generated = called_real + false_alarms, missed + found
    said = [_measured(evaluation, result, real, generated), _decisions(result, real, generated, false_alarms, found)]
    if result.get("unsure"):
        said.append(f"The run calls {_count(result['unsure'], 'image')} unsure; here the side of the threshold counts.")
    if result.get("auc") is not None:
        said.append(
            f"Shown one image of each kind, it gives the generated one the higher score {share(result['auc'])} of the "
            "time; guessing would do so 50% of the time."
        )
    return said + [text for text in (_weakest(result, side, name) for side, name in SIDES) if text]


def _measured(evaluation, result, real, generated):
    kinds = " and ".join(_count(n, f"{name} image") for n, name in ((real, "real"), (generated, "generated")) if n)
    text = f"The detector decided on {kinds}"
    if evaluation.true.groups() and result["n_groups"] < real + generated:
        text += f" from {_count(result['n_groups'], 'source')}"
    left = result["errors"]["left_out"]
    return f"{text}; {_count(left, 'more image')} could not be scored." if left else f"{text}."


def _decisions(result, real, generated, false_alarms, found):
    parts = []
    if generated:
        parts.append(f"found {found} of the {generated} generated ones ({share(found / generated)})")
    if real:
        parts.append(f"called {false_alarms} of the {real} real ones generated ({share(false_alarms / real)})")
    text = f"It {' and '.join(parts)}"
    ci = result["ci"].get("balanced_accuracy")
    if real and generated:
        text += f", which makes it right {share(result['balanced_accuracy'])} of the time if both are equally frequent"
        # Draws from images without an error have none either; the warning on intervals of width 0 says what that means.
        text += f" (between {share(ci[0])} and {share(ci[1])} with 95% confidence)" if ci and ci[0] < ci[1] else ""
    return f"{text}."


def _weakest(result: Dict[str, Any], side: int, name: str) -> Optional[str]:
    """The group of one class in which most decisions are wrong, from the first column that has several."""
    for column, table in result["by"].items():
        groups: List[Tuple[float, str, int]] = [
            (row["accuracy"], value, row["decided"])
            for value, row in table.items()
            if row["classes"] == name and row["accuracy"] is not None and row["decided"] >= ENOUGH
        ]
        if len(groups) < 2:
            continue
        worst, value, n = min(groups)
        if worst in (1, max(groups)[0]):  # no errors, or all alike
            return None
        which = f"Of the {n} {name} images {f'with {column} {value}' if value else f'without {column}'}, it"
        if side == GENERATED:
            return f"{which} found only {share(worst)}, the least of all."
        return f"{which} called {share(1 - worst)} generated, the most of all."
    return None


def _count(n, what):
    return f"{n} {what}{'s' * (n != 1)}"


def share(value: float) -> str:
    """A share in percent, never rounded to all or none of them: ``93%``, ``99.7%``."""
    text = f"{100 * value:.0f}%"
    if text not in ("0%", "100%") or value in (0, 1):
        return text
    return "<0.1%" if value < 0.001 else ">99.9%" if value > 0.999 else f"{100 * value:.1f}%"
