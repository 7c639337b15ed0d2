"""Where a detector draws its line, and for which share of generated images its probability holds."""

from typing import Dict, NamedTuple, Optional

from ..ckpt import Sidecar
from ..errors import UserError, nearest
from .scorer import Scorer


class Decision(NamedTuple):
    """A threshold, and where it comes from.

    Attributes
    ----------
    threshold : float
        Of the probability, in [0, 1].
    operating_point : str or None
        Name of the operating point that it is; None if it is none.
    points : dict of str to float
        The thresholds that could be named instead.
    """

    threshold: float = 0.5
    operating_point: Optional[str] = None
    points: Dict[str, float] = {}


def as_stated(stated: Sidecar, threshold: Optional[float], name: Optional[str]) -> Decision:
    """The decision of a fusion file that states operating points of the fused score.

    Parameters
    ----------
    stated : aidet.ckpt.Sidecar
        What the file states, see :func:`aidet.detector.vote.check_fusion`.
    threshold : float or None
        Takes the place of all points.
    name : str or None
        Of the point; default: the file's own.

    Raises
    ------
    UserError
        The file has no point of this name.
    """
    points = {point: own.threshold for point, own in stated.operating_points.items()}
    if threshold is not None:
        return Decision(threshold, None, points)
    name = name or stated.operating_point
    if name is None:
        return Decision(points=points)
    if name not in points:
        raise UserError(f"{stated.path}: {nearest(name, list(points), 'operating point')}")
    return Decision(points[name], name, points)


def of_model(model: Scorer, own: float, threshold: Optional[float], name: Optional[str], chosen: bool) -> Decision:
    """The decision of a single model with soft votes.

    Parameters
    ----------
    model : Scorer
    own : float
        Its threshold, at the operating point ``name`` if there is one.
    threshold : float or None
        Takes the place of ``own``.
    name : str or None
        The operating point asked for.
    chosen : bool
        Whether the caller chose ``own`` and not the model, so that it is no point of the model.
    """
    plain = threshold is None and not chosen
    return Decision(own if threshold is None else threshold, name or (model.point if plain else None), model.points)
