"""Detectors without a trained network: rules on the file's size, and reconstruction by an autoencoder."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image

from .. import ckpt, files
from ..errors import UserError, nearest
from . import backends, vote
from .network import Network
from .scorer import Scorer
from .views import Views

RULE_FORMAT = 1
FEATURES = ("l1", "l1_clipped")
SIDE = 512
# The size rule gives no probability, so its score is that of a unanimous hard vote.
UNANIMOUS_SCORE = float(np.log1p(-vote.UNANIMOUS) - np.log(vote.UNANIMOUS))


def is_rule(path: Union[str, Path]) -> bool:
    """Whether a name given as a checkpoint means a rule."""
    return str(path).startswith(vote.RULE) or str(path).endswith(".rule.json")


def open_rule(path: Union[str, Path], name: str, **options: Any) -> Scorer:
    """Open ``rule:size``, ``rule:size:PIXELS`` or a ``.rule.json``.

    The options are those of :class:`aidet.detector.network.Network`.

    Raises
    ------
    UserError
        Unknown rule, a size that is not a number, or a file that is not a rule.
    """
    text = str(path)
    if text.endswith(".rule.json"):
        return Reconstruction(path, name, **options)
    kind, _, value = text[len(vote.RULE) :].partition(":")
    if kind != "size":
        raise UserError(nearest(kind, ["size"], "rule"))
    if value and not value.isdigit():
        raise UserError(f"rule {text!r}: {value!r} is not a number of pixels; write rule:size or rule:size:512")
    return SizeRule(name, int(value or SIDE))


class SizeRule(Scorer):
    """Generated if width or height is ``side`` pixels: a shortcut, not a detector.

    Parameters
    ----------
    name : str
    side : int
    """

    threadsafe, device, backend_name = True, "CPU", "rule"

    def __init__(self, name: str, side: int = SIDE) -> None:
        self.name, self.side, self.identity = name, side, f"size:{side}"

    def views_of(self, image: Image.Image, key: str) -> List[Tuple[int, int]]:
        """The image's size, in place of views."""
        return [image.size]

    def run(self, views: Sequence[Tuple[int, int]], piece: Optional[int] = None) -> np.ndarray:
        """Sizes -> scores, float64 (V,), which differ only in sign."""
        return np.array([UNANIMOUS_SCORE if self.side in size else -UNANIMOUS_SCORE for size in views])


def features(images_: np.ndarray, reconstructed: np.ndarray) -> np.ndarray:
    """Reconstruction errors of Kahsolt/AIGC-clf.

    Parameters
    ----------
    images_, reconstructed : numpy.ndarray, shape (N, 3, h, w), values in [0, 1]

    Returns
    -------
    numpy.ndarray, float64, shape (N, 2)
        Mean absolute difference from the reconstruction, and from the reconstruction clipped to [0, 1].
    """
    axes = (1, 2, 3)
    raw = np.abs(images_ - reconstructed).mean(axes, dtype=np.float64)
    clipped = np.abs(images_ - np.clip(reconstructed, 0, 1)).mean(axes, dtype=np.float64)
    return np.stack([raw, clipped], 1)


class Autoencoder:
    """An autoencoder whose input and output are images in [0, 1], whatever the range of its network.

    Parameters
    ----------
    path : str or Path
        Checkpoint of an autoencoder whose ``construct`` returns the reconstruction.
    size : (int, int) or None
        Input height and width, see :func:`aidet.detector.backends.open_model`.
    backend, device, say :
        See :func:`aidet.detector.backends.open_model`.
    """

    def __init__(
        self,
        path: Union[str, Path],
        size: Optional[Tuple[int, int]],
        backend: str = "auto",
        device: str = "auto",
        say: backends.Say = None,
    ) -> None:
        sidecar = ckpt.Sidecar.read(path)
        low, high = sidecar.value_range
        self.low, self.width = np.float32(low), np.float32(high - low)
        self.sha256 = sidecar.identity
        self.backend = backends.open_model(sidecar, backend, size, device, say)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Reconstruct float32 (N, 3, h, w).

        Raises
        ------
        UserError
            The network's output has another shape than its input.
        """
        made = self.backend(batch * self.width + self.low)
        if made.shape != batch.shape:
            raise UserError(
                f"the autoencoder gives shape {made.shape} for {batch.shape}; it does not reconstruct images"
            )
        return (made - self.low) / self.width


class Reconstruction(Network):
    """Logistic regression on reconstruction errors, as ``python -m aidet.rules fit`` saves it.

    Parameters are those of :class:`aidet.detector.network.Network`; ``path`` is a ``.rule.json``.

    Raises
    ------
    UserError
        The file is not a rule, or it was fitted with a different autoencoder than the one found.
    """

    def __init__(
        self,
        path: Union[str, Path],
        name: str,
        backend: str = "auto",
        device: str = "auto",
        say: backends.Say = None,
        **views: Any,
    ) -> None:
        self.path, self.name, self.facts = Path(path), name, read(path)
        voting = ckpt.Voting().settings(**views)
        self.views = Views(self.facts["transform"], line=self.facts.get("views"), **voting)
        where = self.path.parent / self.facts["autoencoder"]
        self.autoencoder = Autoencoder(where, self.views.size, backend, device, say)
        if self.autoencoder.sha256 != self.facts["autoencoder_sha256"]:
            raise UserError(f"rule {str(path)!r} was fitted with another autoencoder than {str(where)!r}; fit it again")
        self.backend = self.autoencoder.backend
        self.threadsafe, self.device = self.backend.threadsafe, self.backend.device
        self.backend_name = self.backend.name
        self.identity = files.sha256(path)

    def scores_of(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, 3, h, w) in [0, 1] -> scores (N,)."""
        values = features(batch, self.autoencoder(batch))
        scaled = (values - self.facts["mean"]) / self.facts["scale"]
        return scaled @ np.array(self.facts["coefficients"]) + self.facts["intercept"]


def read(path: Union[str, Path]) -> Dict[str, Any]:
    """Read a ``.rule.json``.

    Raises
    ------
    UserError
        The file is missing or not a rule: a key or a number is missing or has the wrong type.
    """
    facts = files.read_json(path, "rule")
    wanted = set("format rule autoencoder autoencoder_sha256 transform mean scale coefficients intercept".split())
    if not isinstance(facts, dict) or facts.get("format") != RULE_FORMAT or wanted - set(facts):
        raise UserError(f"rule {str(path)!r} is not of format {RULE_FORMAT}; make it with python -m aidet.rules fit")
    numbers = [facts[n] if isinstance(facts[n], list) else [] for n in ("mean", "scale", "coefficients")]
    lists = all(len(n) == len(FEATURES) for n in numbers)
    kinds = [isinstance(n, (int, float)) and np.isfinite(n) for n in [*sum(numbers, []), facts["intercept"]]]
    texts = [isinstance(facts[n], str) for n in ("autoencoder", "autoencoder_sha256", "transform")]
    if not lists or not all(kinds) or not all(texts) or 0 in numbers[1]:
        raise UserError(
            f"rule {str(path)!r}: mean, scale (not 0) and coefficients must be {len(FEATURES)} numbers each, intercept "
            "one number, autoencoder and transform strings; make it again with python -m aidet.rules fit"
        )
    return facts
