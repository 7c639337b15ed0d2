"""The interface that each model of a detector implements, whether a network or a rule."""

from pathlib import Path
from typing import Any, Iterable, List, Optional, Sequence

import numpy as np
from PIL import Image

from .. import ckpt
from . import views
from .views import Views


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
    scale, offset : float
        Calibration, see :meth:`calibrate`.
    path : Path or None
        The file that it was opened from.
    views : aidet.vote.Views or None
        How the views of an image are made; None for a rule that needs no views.
    order : sequence of str or None
        ``real`` or ``generated`` for each output of a network; None if the model has no such outputs.
    sidecar : aidet.ckpt.Sidecar or None
        Sidecar of a network; None for a rule.
    backend : aidet.detector.backends.OnnxRuntime or MindSpore, or None
        What runs the network; None for a rule without one.
    explainer : aidet.explain.Explainer or None
        Made on the first explanation and kept here.
    """

    name: str
    identity: str
    threadsafe: bool
    device: str
    backend_name: str
    threshold: float = 0.5
    scale: float = 1.0
    offset: float = 0.0
    path: Optional[Path] = None
    views: Optional[Views] = None
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

    def calibrate(self, score: Any) -> Any:
        """``scale * (s - offset)`` of a raw score ``s``, from the sidecar's ``calibration``; a float or an array."""
        return self.scale * (score - self.offset)

    def uncalibrate(self, score: Any) -> Any:
        """Undo :meth:`calibrate`."""
        return score / self.scale + self.offset
