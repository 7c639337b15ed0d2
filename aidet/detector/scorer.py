"""The interface that each model of a detector implements, whether a network or a rule."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence

import numpy as np
from PIL import Image

from .. import ckpt
from ..errors import UserError
from . import views
from .views import Views

PLAIN = "plain colour or out of focus"  # the reason of an image without detail


class Scorer:
    """Base class of everything that scores images for a :class:`aidet.Detector`.

    A subclass sets ``name``, ``identity``, ``threadsafe``, ``device`` and ``backend_name`` and defines :meth:`views_of`
    and :meth:`run`.

    Attributes
    ----------
    name : str
        Its name in result files.
    identity : str
        The same for every run of the same model: the SHA-256 of its file, or a rule's name and value.
    threadsafe : bool
        Whether :meth:`run` may be called from any thread.
    device, backend_name : str
    threshold : float
        Threshold on the probability of *generated*, in (0, 1).
    points : dict of str to float
        Thresholds for several purposes, by name; see :data:`aidet.ckpt.POINTS`.
    point : str or None
        The one of ``points`` that ``threshold`` is.
    prior : float or None
        Share of generated images for which the calibrated probability holds.
    evidence : aidet.ckpt.Evidence or None
        What an image must have for a decision.
    scale, offset : float
        Calibration, see :meth:`calibrate`.
    path : Path or None
        The file that it was opened from.
    views : aidet.detector.Views or None
        How the views of an image are made; None for a rule that needs no views.
    as_measured : bool
        Whether the views are those of the sidecar, with which the probability was calibrated; True without views.
    order : sequence of str or None
        ``real`` or ``generated`` for each output of a network; None if the model has no such outputs.
    sidecar : aidet.ckpt.Sidecar or None
        Sidecar of a network; None for a rule.
    backend : aidet.detector.backends.OnnxRuntime, OpenVino or MindSpore, or None
        What runs the network; None for a rule without one.
    explainer : aidet.detector.explain.Explainer or None
        Made on the first explanation and kept here.
    """

    name: str
    identity: str
    threadsafe: bool
    device: str
    backend_name: str
    threshold: float = 0.5
    points: Dict[str, float] = {}
    point: Optional[str] = None
    prior: Optional[float] = None
    evidence: Optional[ckpt.Evidence] = None
    scale: float = 1.0
    offset: float = 0.0
    path: Optional[Path] = None
    views: Optional[Views] = None
    as_measured: bool = True
    order: Optional[Sequence[str]] = None
    sidecar: Optional[ckpt.Sidecar] = None
    backend: Optional[Any] = None
    explainer: Optional[Any] = None

    def prepare(self, image: Image.Image, key: str, stability: bool = False) -> List[list]:
        """Make the views of an image.

        Parameters
        ----------
        image : PIL.Image.Image, mode RGB
        key : str
            Seeds the random views.
        stability : bool
            Also prepare the re-saved and resized versions made by :func:`aidet.detector.views.changed_images`.

        Returns
        -------
        list of list
            The views of each version; the image itself comes first.
        """
        versions = [image, *(views.changed_images(image) if stability else [])]
        return [self.views_of(version, key) for version in versions]

    def views_of(self, image: Image.Image, key: str) -> list:
        """The views of one image, in the form that :meth:`run` takes."""
        raise NotImplementedError

    def run(self, views: Sequence, piece: Optional[int] = None) -> np.ndarray:
        """Score views.

        Parameters
        ----------
        views : sequence
            Views made by :meth:`prepare`, from one or more images.
        piece : int, optional
            Largest batch; default: the model's own.

        Returns
        -------
        numpy.ndarray, float64, shape (V,)
            Not calibrated.
        """
        raise NotImplementedError

    def weigh(self, views: Iterable[np.ndarray]) -> Optional[np.ndarray]:
        """Weight of each view of one image, float64 (V,); None if all views count equally."""
        return None if self.views is None else self.views.weigh(views)

    def lacking(self, image: Image.Image, views: Iterable[np.ndarray]) -> Optional[str]:
        """Why an image holds too little evidence for this model.

        Parameters
        ----------
        image : PIL.Image.Image
        views : iterable of ndarray
            Its views; only as many are taken as the answer needs.

        Returns
        -------
        str or None
            Empty if it holds enough; None if the model has no rule for it.
        """
        rule, made = self.evidence, self.views
        if rule is None or made is None:
            return None
        if min(image.size) < rule.min_side:
            return f"shorter side under {rule.min_side} pixels"
        return "" if any(made.fine_detail(view) >= rule.min_detail for view in views) else PLAIN

    def threshold_at(self, point: Optional[str]) -> float:
        """The threshold at a named operating point; the model's own for None.

        Raises
        ------
        UserError
            The model states no such point; the message says which it states.
        """
        if point is None:
            return self.threshold
        if point not in self.points:
            has = f"it has {', '.join(self.points)}" if self.points else "its sidecar states none; give a threshold"
            raise UserError(f"{self.name!r} has no operating point {point!r}: {has}")
        return self.points[point]

    def stated(self) -> Dict[str, Any]:
        """What its score of an image depends on beside weights and seed, as JSON: for logs that a run may continue."""
        made = self.views
        return {
            "calibration": [self.scale, self.offset],
            "order": self.order and list(self.order),
            "evidence": self.evidence and asdict(self.evidence),
            "views": made and [made.kind, made.votes, made.flips, made.weights],
            "lines": made and [made.first.text, made.others and made.others.text],
        }

    def calibrate(self, score: Any) -> Any:
        """``scale * (s - offset)`` of a raw score ``s``, from the sidecar's ``calibration``; a float or an array."""
        return self.scale * (score - self.offset)

    def uncalibrate(self, score: Any) -> Any:
        """Undo :meth:`calibrate`."""
        return score / self.scale + self.offset
