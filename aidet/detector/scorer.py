"""What a detector asks of each of its models, be it a network or a rule."""

from pathlib import Path
from typing import Any, Iterable, List, Optional, Sequence

import numpy as np
from PIL import Image

from . import views
from .views import Views


class Scorer:
    """Base class of everything that scores images for a :class:`aidet.Detector`.

    A subclass sets ``name``, ``identity``, ``threadsafe``, ``device`` and ``backend_name`` and defines :meth:`views_of`
    and :meth:`run`.

    Attributes
    ----------
    name : str
        What result files call it.
    identity : str
        Equal for two runs of the same model: the SHA-256 of its file, or a rule's name and value.
    threadsafe : bool
        Whether :meth:`run` may be called from any thread.
    device, backend_name : str
    threshold : float
        On the probability of *generated*, in (0, 1).
    scale, offset : float
        Calibration, see :meth:`calibrate`.
    path : Path or None
        The file that it was opened from.
    views : aidet.vote.Views or None
        How views are made of an image; None for a rule that needs none.
    order : sequence of str or None
        ``real`` or ``generated`` for each output of a network; None for whatever has no such outputs.
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
    explainer: Optional[Any] = None

    def prepare(self, image: Image.Image, key: str, stability: bool = False) -> List[list]:
        """Make the views of an image.

        Parameters
        ----------
        image : PIL.Image.Image, mode RGB
        key : str
            Seeds the random views.
        stability : bool
            Prepare the re-saved and resized versions of :func:`aidet.detector.views.changed_images`, too.

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
            Of :meth:`prepare`, from one or several images.
        piece : int, optional
            Largest batch; default: the model's own.

        Returns
        -------
        numpy.ndarray, float64, shape (V,)
            Not calibrated.
        """
        raise NotImplementedError

    def weigh(self, views: Iterable[np.ndarray]) -> Optional[np.ndarray]:
        """How much each view of one image counts, float64 (V,); None if all count alike."""
        return None if self.views is None else self.views.weigh(views)

    def calibrate(self, score: Any) -> Any:
        """Read a raw score ``s`` as ``scale * (s - offset)``, as the sidecar's ``calibration`` says; float or array."""
        return self.scale * (score - self.offset)

    def uncalibrate(self, score: Any) -> Any:
        """Undo :meth:`calibrate`."""
        return score / self.scale + self.offset
