"""What a sidecar says of decisions: thresholds for several purposes, and how little evidence is too little."""

import math
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional

from ..errors import UserError, nearest

# The purposes for which a detector may state a threshold, from the strictest to the most sensitive.
POINTS = ("few-false-alarms", "balanced", "few-misses")
_KEYS = ("threshold", "rule", "recall", "false_alarms", "sources", "generators", "data")


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold for one purpose, and what it was measured to give.

    Attributes
    ----------
    threshold : float
        On the probability of *generated*, above 0 and below 1.
    rule : str
        How it was chosen.
    recall : float or None
        Share of the generated images that are called generated, in [0, 1].
    false_alarms : float or None
        Share of the real images that are called generated, in [0, 1].
    sources, generators : mapping of str to mapping of str to number
        Counts and rates of each source of real images, and of each generator.
    data : list of str
        The sets of images on which it was chosen and measured.
    """

    threshold: float
    rule: str = ""
    recall: Optional[float] = None
    false_alarms: Optional[float] = None
    sources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    generators: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    data: Any = ()


@dataclass(frozen=True)
class Evidence:
    """What an image must have for a decision other than *unsure*.

    Attributes
    ----------
    min_side : int
        Pixels of its shorter side; 0: any.
    min_detail : float
        Fine detail of the view that has most of it, in grey levels of 8 bits
        (:func:`aidet.detector.views.fine_detail`); 0: any.
    """

    min_side: int = 0
    min_detail: float = 0.0


def read_points(value: Any, what: str) -> Dict[str, OperatingPoint]:
    """The operating points of a sidecar, in the order of :data:`POINTS`; none for None.

    Parameters
    ----------
    value : dict or None
        From names among :data:`POINTS` to the fields of :class:`OperatingPoint`.
    what : str
        The sidecar, for messages.

    Raises
    ------
    UserError
        Another form, an unknown name or key, or a number out of range; the message names it.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or not value:
        raise UserError(f"{what}: operating_points (={value!r}) must be a mapping with keys among {', '.join(POINTS)}")
    for name in value:
        if name not in POINTS:
            raise UserError(f"{what}: {nearest(str(name), POINTS, 'operating point')}")
    return {name: _point(value[name], f"{what}: operating point {name!r}") for name in POINTS if name in value}


def _point(value, what):
    if not isinstance(value, dict) or "threshold" not in value:
        raise UserError(f"{what} (={value!r}) must be a mapping with a threshold")
    for key in value:
        if key not in _KEYS:
            raise UserError(f"{what}: {nearest(str(key), _KEYS, 'key')}")
    threshold = value["threshold"]
    if not _number(threshold) or not 0 < threshold < 1:
        raise UserError(f"{what}: threshold (={threshold!r}) must be between 0 and 1")
    for key in ("recall", "false_alarms"):
        if value.get(key) is not None and not (_number(value[key]) and 0 <= value[key] <= 1):
            raise UserError(f"{what}: {key} (={value[key]!r}) must be a share from 0 to 1")
    for key in ("sources", "generators"):
        table = value.get(key) or {}
        good = isinstance(table, dict) and all(isinstance(row, dict) for row in table.values())
        if not good or not all(_number(n) and n >= 0 for row in table.values() for n in row.values()):
            raise UserError(f"{what}: {key} must map each name to its counts and shares, numbers from 0")
    return OperatingPoint(**{**value, "threshold": float(threshold)})


def default_point(value: Any, points: Mapping[str, OperatingPoint], what: str) -> Optional[str]:
    """The name of the operating point that a detector uses by itself; None if it states no points.

    Raises
    ------
    UserError
        ``value`` is not one of ``points``, or is given without any.
    """
    if value is None and not points:
        return None
    if value not in points:
        known = ", ".join(points) or "none, because there are no operating_points"
        raise UserError(f"{what}: operating_point (={value!r}) must be one of its operating_points: {known}")
    return value


def read_evidence(value: Any, what: str) -> Optional[Evidence]:
    """The rule of a sidecar on too little evidence; None for None.

    Raises
    ------
    UserError
        It is not a mapping, or has an unknown key or a number out of range.
    """
    if value is None:
        return None
    keys = ("min_side", "min_detail")
    if not isinstance(value, dict):
        raise UserError(f"{what}: evidence (={value!r}) must be a mapping with the keys {', '.join(keys)}")
    for key in value:
        if key not in keys:
            raise UserError(f"{what}: evidence: {nearest(str(key), keys, 'key')}")
    side, detail = value.get("min_side", 0), value.get("min_detail", 0.0)
    if isinstance(side, bool) or not isinstance(side, int) or side < 0:
        raise UserError(f"{what}: evidence: min_side (={side!r}) must be a whole number of pixels from 0")
    if not _number(detail) or not 0 <= detail < 256:
        raise UserError(f"{what}: evidence: min_detail (={detail!r}) must be grey levels, from 0 to below 256")
    return Evidence(side, float(detail))


def read_prior(value: Any, what: str) -> Optional[float]:
    """The share of generated images for which a calibrated probability holds, above 0 and below 1; None for None.

    Raises
    ------
    UserError
        It is not such a number.
    """
    if value is None:
        return None
    if not _number(value) or not 0 < value < 1:
        raise UserError(f"{what}: calibration: prior (={value!r}) must be between 0 and 1; 0.5 means equal odds")
    return float(value)


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
