"""Early exit and the cascade: score only as many views, and use only as large a network, as the decision needs."""

import json
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import numpy as np

from ..errors import UserError
from .scorer import Scorer
from .views import Views

# Metadata key under which the ONNX model of a first stage states its margin, how it was made, and if not in eight bits
# its precision.
STAMP = "aidet.quantized"
# The score of a view that was not scored is assumed to lie within these bounds, far beyond what a network gives: scores
# of some hundreds may still lie on either side of a threshold after a calibration with a small scale.
BOUND = 1e9


class Cascade:
    """Scores the views of one image until the decision is certain.

    Every vote is monotone in the score of each view. So if the decision is the same whether all remaining views have
    the lowest or the highest possible score, it is the decision that all views together would give (Teerapittayanon et
    al. 2016 leave a network early in this way).

    Parameters
    ----------
    exact : Scorer
        The network whose decision counts.
    decide : callable
        Takes the views' scores and their weights (or None), float64 (V,), and returns the decision; a third argument
        moves the image's score by so much. Decisions are only compared for equality.
    early_exit : bool
        Stop as soon as the remaining views cannot change the decision; otherwise all views are scored.
    first : Scorer, optional
        A faster approximation of ``exact`` that is run first; ``exact`` is run if it cannot settle the decision.
    margin : float
        Largest expected difference between a view's score by ``first`` and its exact score.
    score_margin : float, optional
        Largest expected difference of an image's score, if all views are scored; without it ``margin`` counts.

    Attributes
    ----------
    twice : int
        Number of images that both networks had to score.
    """

    def __init__(
        self,
        exact: Scorer,
        decide: Callable[..., Any],
        early_exit: bool = False,
        first: Optional[Scorer] = None,
        margin: float = 0.0,
        score_margin: Optional[float] = None,
    ) -> None:
        self.exact, self.decide, self.early_exit = exact, decide, early_exit
        self.first, self.margin, self.score_margin = first, margin, score_margin
        self.twice = 0
        self._lock = threading.Lock()

    def scores(self, views: List[Callable[[], np.ndarray]], weights: Optional[np.ndarray] = None) -> np.ndarray:
        """Score as many views of one image as the decision needs; any thread may call this.

        Parameters
        ----------
        views : list of callable
            Each makes one view.
        weights : ndarray of float64, shape (V,), optional
            How much each view counts.

        Returns
        -------
        ndarray of float64, shape (at most V,)
            Scores of the first views, all by the same network.
        """
        if self.first is not None:
            seen = self._enough(self.first, views, weights, self.margin)
            if self._settled(seen, len(views) - len(seen), weights, self.margin):
                return seen
            with self._lock:
                self.twice += 1
        return self._enough(self.exact, views, weights)

    def _enough(self, model, views, weights, margin=0.0):
        """Scores of as many of the first views as settle the decision."""
        seen = np.zeros(0)
        while len(seen) < len(views) and np.isfinite(seen).all():
            left = len(views) - len(seen)
            more = self._needed(seen, left, weights, margin) if self.early_exit else left
            if not more:
                break
            seen = np.append(seen, model.run([make() for make in views[len(seen) : len(seen) + more]]))
        return seen

    def _needed(self, seen, left, weights, margin):
        """Smallest number of the remaining views that could settle the decision; 0 if it is settled."""
        for more in range(0 if len(seen) else 1, left):
            ends = (np.append(seen, np.full(more, bound)) for bound in (-BOUND, BOUND))
            if any(self._settled(end, left - more, weights, margin) for end in ends):
                return more
        return left

    def _settled(self, seen, left, weights, margin=0.0):
        """Whether the decision is certain, whatever the remaining views score and for any error within ``margin``."""
        if not np.isfinite(seen).all():
            return False
        if margin and self.score_margin is not None and not left:
            low, high = (self.decide(seen, weights, sign * self.score_margin) for sign in (-1, 1))
            return low == high
        low, high = (np.append(seen + sign * margin, np.full(left, sign * BOUND)) for sign in (-1, 1))
        return self.decide(low, weights) == self.decide(high, weights)


def open_first(
    path: Union[str, Path], exact: Scorer, open_network: Callable[[Union[str, Path]], Scorer]
) -> Tuple[Scorer, float]:
    """Open the first network of a cascade and check that it was made from the same weights as the exact one.

    Parameters
    ----------
    path : str or Path
        An ``.onnx`` file of ``export.py --int8`` or ``--bf16``.
    exact : aidet.detector.Network
    open_network : callable
        Opens a network from its path.

    Returns
    -------
    (aidet.detector.Network, float)
        The network, and the margin of its raw scores.

    Raises
    ------
    UserError
        ``exact`` does not run on ONNX Runtime or OpenVINO in float32, or the file is not a first stage of it or was
        measured with other views.
    """
    if exact.backend_name not in ("onnxruntime", "openvino"):
        raise UserError(f"cascade is for ONNX Runtime and OpenVINO; {exact.name} runs on {exact.backend_name}")
    if getattr(exact.backend, "precision", "float32") != "float32":
        raise UserError("cascade needs --precision float32: the close images are decided in it")
    if Path(path).suffix != ".onnx":
        raise UserError(f"cascade (={str(path)!r}) must be an .onnx of export.py --int8 or --bf16")
    first = open_network(path)
    # Both state which checkpoint they were made from; a file that does not is identified by its own hash.
    made_from = None if first.sidecar is None else first.sidecar.sha256
    wanted = None if exact.sidecar is None else exact.sidecar.sha256
    if made_from != (wanted or exact.identity):
        raise UserError(
            f"cascade (={str(path)!r}) was not made from {str(exact.path)!r}; export that with --int8 or --bf16"
        )
    assert exact.views is not None  # Detector refuses a cascade of rules without views
    # In the units of the file's own calibration: the checkpoint may have been calibrated again since.
    return first, margin_of(first.backend, path, exact.views) / first.scale


def voting(views: Views) -> Dict[str, Any]:
    """What an image's score depends on beside the scores of its views, for a soft vote."""
    return {"votes": views.votes, "views": views.kind, "flips": views.flips, "weights": views.weights}


def score_margin_of(session: Any, views: Views, rescaled: float = 1.0) -> Optional[float]:
    """How far an image's score by soft vote may be from the exact one; None if the file states it for no such vote.

    Parameters
    ----------
    session : aidet.detector.backends.OnnxRuntime
    views : aidet.detector.Views
    rescaled : float
        The checkpoint's scale of calibration over that of the file.

    Returns
    -------
    float or None
        In units of the checkpoint's calibrated scores.
    """
    about = stated(session)
    margin = about.get("score_margin")
    if not isinstance(margin, (int, float)) or not 0 <= margin < np.inf or about.get("score_voting") != voting(views):
        return None
    return margin * rescaled


def stated(session: Any) -> Dict[str, Any]:
    """What the file of a first stage states about itself; empty for other files, and if it cannot be read."""
    try:
        about = json.loads(session.metadata()[STAMP])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def margin_of(session: Any, path: Union[str, Path], views: Views) -> float:
    """The margin that an eight-bit model states: how far a view's score may be from the exact one.

    It was measured on a set of images; on other images a score may, rarely, be further off.

    Parameters
    ----------
    session : aidet.detector.backends.OnnxRuntime
    path : str or Path
        For the error message.
    views : aidet.detector.Views
        The views that the margin has to hold for.

    Returns
    -------
    float
        In units of the file's calibrated scores.

    Raises
    ------
    UserError
        The model states no margin, or one that was measured with other views.
    """
    try:
        about = json.loads(session.metadata()[STAMP])
        margin, measured = float(about["margin"]), about["views"]
        if not 0 <= margin < np.inf:
            raise ValueError(margin)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{str(path)!r} states no margin; make it with: export.py --format onnx --int8 DIR, or --bf16 DIR"
        ) from None
    other = sorted(views.lines() - set(measured))
    if other:
        raise UserError(f"the margin of {str(path)!r} was measured with views {measured}, not with {other[0]!r}")
    return margin
