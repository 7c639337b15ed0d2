"""From scores to a probability at equal odds, and to thresholds for three purposes.

The probability is Platt's (1999): a scale and an offset of the score that minimise the log loss, here with weights
under which both classes count equally, and within a class each source or generator in proportion to the square root of
its number of pictures; a picture as it is counts as much as all its versions from the web together.
"""

from typing import Any, Dict, Iterator, List, Tuple

import numpy as np

from aidet import labels, metrics
from aidet.errors import UserError

from .scored import Scored

FALSE_ALARMS = 0.05  # at few-false-alarms, over all real pictures
OF_A_SOURCE = 0.10  # and of every source
ENOUGH = 9  # real pictures of a source, to be held to this
RECALL = 0.95  # at few-misses
SMOOTH = 0.3  # width of the smoothing for the balanced threshold, in calibrated log-odds
STEP = 0.001  # thresholds are multiples of it
FOLDS = 5
RULES = {
    "few-false-alarms": f"lowest threshold with at most {FALSE_ALARMS:.0%} false alarms, and at most "
    f"{OF_A_SOURCE:.0%} of any source with {ENOUGH} pictures or more, as they are and from the web; "
    "not below balanced",
    "balanced": "highest balanced accuracy, both error rates smoothed, sources and generators weighted by the square "
    "root of their number",
    "few-misses": f"highest threshold with a recall of {RECALL:.0%}, as they are and from the web; not above balanced",
}


def weights(rows: Scored) -> np.ndarray:
    """Weight of each row, float64 (n,), with sum 1: see this module's text."""
    out = np.zeros(len(rows.score))
    for side in (0, 1):
        own = rows.label == side
        for source in set(rows.source[own]):
            here = own & (rows.source == source)
            count = len(set(rows.picture[here]))
            parts = [part for part in (here & rows.clean, here & ~rows.clean) if part.any()]
            for part in parts:
                out[part] = np.sqrt(count) / len(parts) / part.sum()
        out[own] *= 0.5 / out[own].sum()
    return out


def fit(rows: Scored) -> Tuple[float, float]:
    """Scale and offset such that ``sigmoid(scale * (score - offset))`` is the probability of *generated* at equal odds.

    Raises
    ------
    UserError
        Higher scores do not mean generated, so that there is no such scale above 0.
    """
    from scipy.optimize import minimize

    weight, signed = weights(rows), np.where(rows.label == 1, 1.0, -1.0)
    columns = np.stack([rows.score, np.ones(len(rows.score))])

    def loss(line):
        margin = signed * (line @ columns)
        return weight @ np.logaddexp(0, -margin), -columns @ (weight * signed * labels.sigmoid(-margin))

    def curvature(line):
        prob = labels.sigmoid(line @ columns)
        return (columns * (weight * prob * (1 - prob))) @ columns.T

    # The loss is convex; a search without derivatives may stop where there is no minimum.
    slope, shift = minimize(loss, (1.0, 0.0), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9}).x
    if not slope > 1e-3:
        raise UserError("the scores do not rank generated pictures above real ones; there is nothing to calibrate")
    return float(slope), float(-shift / slope)


def draws(rows: Scored) -> int:
    """The largest number of versions from the web of one picture."""
    return int(np.unique(rows.picture[~rows.clean].astype(str), return_counts=True)[1].max(initial=0))


def calibrated(rows: Scored, scale: float, offset: float) -> Scored:
    """The rows with calibrated scores."""
    return rows._replace(score=scale * (rows.score - offset))


def left_out(rows: Scored, seed: int = 42) -> Scored:
    """The rows with scores calibrated on the other pictures: five folds, none of which shares a source picture."""
    names = np.unique(rows.group.astype(str))
    fold = dict(zip(np.random.default_rng(seed).permutation(names), np.arange(len(names)) % FOLDS))
    of_row, score = np.array([fold[g] for g in rows.group]), np.zeros(len(rows.score))
    for k in range(FOLDS):
        own, others = of_row == k, rows.take(of_row != k)
        if len(set(others.label.tolist())) < 2:
            raise UserError("too few source pictures for a cross-validation; give more labels")
        score[own] = calibrated(rows.take(own), *fit(others)).score
    return rows._replace(score=score)


# --- how good the probability is -------------------------------------------------------------------------------------
def ece(rows: Scored) -> float:
    """Expected calibration error at equal odds, in [0, 1]: every picture of a class counts equally."""
    return float(metrics.ranking_metrics(rows.label, rows.score)["balanced_ece"])


def ece_by_chance(rows: Scored, draws: int = 200, seed: int = 42) -> float:
    """The mean ECE of as many pictures if their probabilities were exact: what a finite set cannot go below."""
    rng, prob = np.random.default_rng(seed), labels.sigmoid(rows.score)
    weight = np.where(rows.label == 1, 0.5 / (rows.label == 1).sum(), 0.5 / (rows.label == 0).sum())
    found = []
    for _ in range(draws):
        drawn = rng.choice(prob, len(prob), p=weight)
        found.append(metrics.ece(rng.random(len(drawn)) < drawn, drawn))
    return float(np.mean(found))


def parts(rows: Scored) -> Iterator[Tuple[str, Scored]]:
    """(name, rows) of what a calibration error is stated for: each set and all, as they are and from the web."""
    names = sorted(set(rows.set))
    for name in (*names, *(["all"] if len(names) > 1 else [])):
        own = rows.set == name if name != "all" else np.ones(len(rows.set), bool)
        for kind, some in (("clean", rows.clean), ("web", ~rows.clean)):
            if len(set(rows.label[own & some].tolist())) == 2:
                yield f"{name} {kind}", rows.take(own & some)


# --- thresholds ------------------------------------------------------------------------------------------------------
def _kinds(rows):
    return [some for some in (rows.take(rows.clean), rows.take(~rows.clean)) if len(some.score)]


def few_false_alarms(rows: Scored) -> float:
    """The lowest threshold on the probability that keeps the two rates of false alarms, see :data:`RULES`."""
    found = []
    for some in _kinds(rows.take(rows.label == 0)):
        found.append(_lowest(some.score, FALSE_ALARMS))
        for source in set(some.source):
            own = some.take(some.source == source)
            if len(set(own.picture)) >= ENOUGH:
                found.append(_lowest(own.score, OF_A_SOURCE))
    return _rounded(np.ceil, max(found))


def _lowest(real, rate):
    return metrics.threshold_at_fpr(real, rate)[0]


def few_misses(rows: Scored) -> float:
    """The highest threshold on the probability at which :data:`RECALL` of the generated pictures lie above it."""
    found = []
    for some in _kinds(rows.take(rows.label == 1)):
        ordered = np.sort(some.score)
        found.append(ordered[int(np.floor((1 - RECALL) * len(ordered) + 1e-9))])
    at = _rounded(np.floor, min(found))
    # A picture exactly on the threshold counts as real.
    return at if labels.logit(at) < min(found) else max(STEP, round(at - STEP, 3))


def balanced(rows: Scored) -> float:
    """The threshold at which the sum of both error rates, smoothed over :data:`SMOOTH`, is lowest."""
    weight = weights(rows)
    cuts = np.arange(STEP, 1 - STEP / 2, STEP)
    at = labels.logit(cuts)
    wrong = np.zeros(len(cuts))
    for side, sign in ((0, 1), (1, -1)):
        own = rows.label == side
        errors = labels.sigmoid(sign * (rows.score[own][:, None] - at[None]) / SMOOTH)
        wrong += weight[own] @ errors / weight[own].sum()
    plateau = np.flatnonzero(wrong <= wrong.min() + 1e-9)
    return round(float(cuts[plateau[len(plateau) // 2]]), 3)


def _rounded(how, score):
    at = round(float(how(float(labels.sigmoid(score)) / STEP) * STEP), 3)
    return min(max(at, STEP), round(1 - STEP, 3))


def thresholds(rows: Scored) -> Dict[str, float]:
    """The thresholds on the probability by name, in the order of :data:`aidet.ckpt.POINTS`, from calibrated rows."""
    middle = balanced(rows)
    return {
        "few-false-alarms": max(few_false_alarms(rows), middle),
        "balanced": middle,
        "few-misses": min(few_misses(rows), middle),
    }


def measured(rows: Scored, threshold: float) -> Dict[str, Any]:
    """Recall and false alarms at a threshold: all rows together, and by source and generator.

    Returns
    -------
    dict
        ``recall, false_alarms, sources, generators``: fields of :class:`aidet.ckpt.OperatingPoint`. ``images`` of a
        source counts pictures; ``clean`` and ``web`` are the shares of its versions called generated.
    """
    called = labels.sigmoid(rows.score) > threshold
    out: Dict[str, Any] = {}
    for side, share, table in ((1, "recall", "generators"), (0, "false_alarms", "sources")):
        own = rows.label == side
        out[share] = round(float(called[own].mean()), 6)  # shown with three digits, which four would round twice
        out[table] = {s: _of_source(rows, called, own & (rows.source == s)) for s in sorted(set(rows.source[own]))}
    return out


def _of_source(rows, called, own):
    found: Dict[str, float] = {"images": len(set(rows.picture[own]))}
    for kind, some in (("clean", own & rows.clean), ("web", own & ~rows.clean)):
        if some.any():
            found[kind] = round(float(called[some].mean()), 4)
    return found


def lines(name: str, point: Dict[str, Any], every: bool = True) -> List[str]:
    """An operating point for the screen: its two rates, and with ``every`` those of each source and generator."""
    said = [
        f"{name}: above {point['threshold']:g}, recall {point['recall']:.3f}, false alarms {point['false_alarms']:.3f}"
    ]
    for table in ("sources", "generators") if every else ():
        for source, row in point[table].items():
            rates = ", ".join(f"{kind} {100 * row[kind]:.0f}%" for kind in ("clean", "web") if kind in row)
            said.append(f"  {source} ({table[:-1]}, {row['images']}): {rates}")
    return said
