"""Views of an image, votes over views, fusion over models. NumPy only; scores as :mod:`aidet.labels` defines them.

Probabilities are handled as logarithms, so that confident scores do not saturate: with one view and one model the
result is the network's own score, bit for bit.
"""

import math
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import ArrayLike

from ..ckpt import Sidecar
from ..errors import UserError, nearest
from ..labels import decide, sigmoid

RULE = "rule:"  # before the name of a rule of :mod:`aidet.rules`, in the place of a file
VOTE_RULES = ("soft", "hard")
FUSIONS = ("soft", "hard", "soft-or", "score")
# What a fusion file may say of the fused score, as the sidecar of a single model says it of its own.
_DECISIONS = ("calibration", "operating_points", "operating_point", "threshold")
FUSION_KEYS = ("models", "fuse", "weights", "thresholds", "unsure", *_DECISIONS)
# A unanimous hard vote means probability 0 or 1, whose score is infinite; so the probability is moved this far inwards.
UNANIMOUS = 1e-6


# --- votes -----------------------------------------------------------------------------------------------------------
def _log_sigmoid(x):
    return -np.logaddexp(0.0, -np.asarray(x, np.float64))


def _mean_probability(scores, weights=None):
    """Score of the (weighted) mean of the probabilities."""
    scores = np.asarray(scores, np.float64)
    if scores.size == 1:
        return float(scores[0])
    weights = np.full(scores.size, 1.0 / scores.size) if weights is None else np.asarray(weights, np.float64)
    used = weights > 0
    scores, log_w = scores[used], np.log(weights[used] / weights.sum())
    up = np.logaddexp.reduce(log_w + _log_sigmoid(scores))
    down = np.logaddexp.reduce(log_w + _log_sigmoid(-scores))
    return float(up - down)


def _share(votes, weights=None):
    """Score of the (weighted) share of votes for *generated*."""
    share = float(np.average(np.asarray(votes, np.float64), weights=weights))
    # Weights such as 0.1 and 0.2 do not add up exactly; a tie must stay a tie.
    share = min(max(round(share, 12), UNANIMOUS), 1 - UNANIMOUS)
    return math.log(share) - math.log1p(-share) if share != 0.5 else 0.0


def combine_views(
    scores: ArrayLike, how: str = "soft", threshold: float = 0.5, weights: Optional[ArrayLike] = None
) -> float:
    """One score of a model from the scores of its views.

    Parameters
    ----------
    scores : array_like, shape (V,)
    how : {"soft", "hard"}
        ``soft``: mean of the views' probabilities. ``hard``: share of views whose probability is above ``threshold``;
        a view exactly on the threshold votes real (Kahsolt/AIGC-clf).
    threshold : float
        The model's own threshold, for ``hard``.
    weights : array_like, shape (V,), optional
        Weight of each view, above 0; see :meth:`Views.weigh`. Default: equal weights.

    Returns
    -------
    float
        The log-odds. A unanimous hard vote gives a probability of ``1e-6`` or ``1 - 1e-6``; a tie gives exactly 0.5,
        which means real.

    Raises
    ------
    UserError
        Unknown ``how``.
    """
    if how not in VOTE_RULES:
        raise UserError(nearest(how, VOTE_RULES, "vote"))
    scores = np.asarray(scores, np.float64)
    if how == "soft":
        return _mean_probability(scores, weights)
    return _share(sigmoid(scores) > threshold, weights)


class Fusion:
    """How the scores of several models are combined into one.

    Parameters
    ----------
    how : {"soft", "hard", "soft-or", "score"}
        ``soft``: (weighted) mean of probabilities. ``hard``: (weighted) share of models that say generated.
        ``soft-or``: ``1 - prod(1 - p)``, generated if any model is confident. ``score``: (weighted) mean of scores.
    names : sequence of str
        The models.
    weights : dict of str to float, optional
        Not negative, not all 0; default: equal. Not for ``soft-or``.
    thresholds : dict of str to float, optional
        Each model's own threshold on its probability, default 0.5. Before fusion the threshold's log-odds are
        subtracted from the model's score, so that its threshold becomes 0.5.
    calibration : (float, float), optional
        Scale and offset: a fused score ``s`` is read as ``scale * (s - offset)``. Default: (1, 0), and the score of a
        single model is not changed at all.
    voted : bool
        The scores are those of hard votes, for which each view was compared with the threshold: 0 is the boundary of
        every model, and nothing is subtracted.

    Raises
    ------
    UserError
        Unknown ``how`` or model, a value out of range.
    """

    def __init__(
        self,
        how: str,
        names: Sequence[str],
        weights: Optional[Dict[str, float]] = None,
        thresholds: Optional[Dict[str, float]] = None,
        calibration: Optional[Tuple[float, float]] = None,
        voted: bool = False,
    ) -> None:
        self.scale, self.offset = calibration or (1.0, 0.0)
        self.voted = voted
        self.plain = calibration is None and len(names) == 1  # nothing to fuse, nothing to read otherwise
        if how not in FUSIONS:
            raise UserError(nearest(how, FUSIONS, "fuse"))
        self.how, self.names = how, list(names)
        self.thresholds = dict.fromkeys(self.names, 0.5)
        for name, value in (thresholds or {}).items():
            self.thresholds[self._known(name)] = _probability(f"threshold of {name}", value)
        if weights is not None and how == "soft-or":
            raise UserError("fuse 'soft-or' takes no weights; use soft, hard or score")
        self.weights = None
        if weights is not None:
            table = {self._known(n): _weight(n, w) for n, w in weights.items()}
            missing = [n for n in self.names if n not in table]
            if missing:
                raise UserError(f"weights name no value for {missing[0]!r}; it is one of {', '.join(self.names)}")
            self.weights = np.array([table[n] for n in self.names])
            if self.weights.sum() <= 0:
                raise UserError("weights are all 0; give at least one model a weight")

    def _known(self, name):
        if name not in self.names:
            raise UserError(nearest(name, self.names, "model"))
        return name

    def __call__(self, scores: Dict[str, float]) -> float:
        """Fuse ``{model: score}`` into one score."""
        if self.plain:
            return float(scores[self.names[0]])
        return self.scale * (self._fused(scores) - self.offset)

    @property
    def follows(self) -> bool:
        """Whether the fused score of a single model moves as its own; a share, which hard fusion gives, jumps."""
        return self.plain or self.how != "hard"

    def stated(self) -> List[Any]:
        """What a fused score depends on beside the models' own, as JSON."""
        weights = None if self.weights is None else self.weights.tolist()
        return [self.how, weights, self.thresholds, [self.scale, self.offset]]

    def _fused(self, scores):
        moved = np.array([scores[n] - (0 if self.voted else _log_odds_of(self.thresholds[n])) for n in self.names])
        if self.how == "hard":
            return _share(moved > 0, self.weights)
        if self.how == "soft":
            return _mean_probability(moved, self.weights)
        if self.how == "score":
            return float(np.average(moved, weights=self.weights))
        log_none = float(_log_sigmoid(-moved).sum())
        return float(np.log(-np.expm1(log_none))) - log_none


def _log_odds_of(p):
    return math.log(p) - math.log1p(-p)


def _probability(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise UserError(f"{name} (={value!r}) must be between 0 and 1")
    return float(value)


def _weight(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UserError(f"weight of {name} (={value!r}) must be a number >= 0")
    return float(value)


def unsure_zone(value: Union[None, str, Iterable[float]]) -> Optional[Tuple[float, float]]:
    """``"LOW,HIGH"`` or a pair -> (low, high) with ``0 <= low <= high <= 1``; None and ``"none"``: no zone, None.

    Raises
    ------
    UserError
        Not two such numbers.
    """
    if value is None or value == "none":
        return None
    try:
        low, high = map(float, value.split(",") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise UserError(f"unsure (={value!r}) must be none or two numbers, LOW,HIGH, for example 0.4,0.6") from None
    if not 0 <= low <= high <= 1:
        raise UserError(f"unsure (={value!r}) must be LOW,HIGH with 0 <= LOW <= HIGH <= 1")
    return low, high


def is_fusion_file(path: Union[str, Path]) -> bool:
    """Whether a path in place of a checkpoint is one of a fusion file, by its ending."""
    return str(path).endswith((".yaml", ".yml"))


def read_fusion(path: Union[str, Path]) -> Dict[str, Any]:
    """Read a fusion file, a YAML mapping.

    Returns
    -------
    dict
        See :func:`check_fusion`.

    Raises
    ------
    UserError
        Missing file, no YAML mapping, or as :func:`check_fusion`.
    """
    from ..files import read_mapping

    path = Path(path)
    if not path.is_file():
        known = ", ".join(FUSIONS)
        raise UserError(f"fuse (={str(path)!r}) is neither one of {known} nor a file that exists")
    return check_fusion(read_mapping(path, "fusion file"), path)


def check_fusion(value: Dict[str, Any], path: Path) -> Dict[str, Any]:
    """The content of a fusion file, checked.

    Parameters
    ----------
    value : dict
        The mapping that the file holds, or will hold.
    path : Path

    Returns
    -------
    dict
        Those of :data:`FUSION_KEYS` that it contains; ``models`` as paths, of which a relative one starts from the
        file's folder, and ``decisions``, an :class:`aidet.ckpt.Sidecar` of what it says of the fused score.

    Raises
    ------
    UserError
        Unknown key, or a value of another form.
    """
    what = f"fusion file {str(path)!r}"
    for key in value:
        if key not in FUSION_KEYS:
            raise UserError(f"{what}: {nearest(key, FUSION_KEYS, 'key')}")
    for key in ("weights", "thresholds"):
        if not isinstance(value.get(key, {}), dict):
            raise UserError(f"{what}: {key} must be a mapping of model to number")
    models = value.get("models", [])
    if not isinstance(models, list) or not all(isinstance(m, str) and m for m in models):
        raise UserError(f"{what}: models (={models!r}) must be a list of paths")
    if "operating_points" in value and "threshold" in value:
        raise UserError(f"{what}: threshold and operating_points exclude each other; leave one out")
    decisions = Sidecar({key: value[key] for key in _DECISIONS if key in value}, path)
    decisions.calibration, decisions.prior, decisions.threshold  # noqa: B018  (reading them checks them)
    places = [m if m.startswith(RULE) else str(path.parent / m) for m in models]
    return {**value, "models": places, "decisions": decisions}


def verdict(
    score: float, threshold: float = 0.5, unsure: Optional[Tuple[float, float]] = None
) -> Tuple[float, int, str]:
    """``(prob, label, decision)`` of a fused score; see :func:`aidet.labels.decide`."""
    prob = float(sigmoid(score))
    return (prob, *decide(prob, threshold, unsure))
