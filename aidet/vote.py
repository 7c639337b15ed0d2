"""Views of an image, votes over views, fusion over models. NumPy only; scores as :mod:`aidet.labels` defines them.

Probabilities are handled as logarithms, so that confident scores keep their size: with one view and one model the
result is the network's own score, bit for bit.
"""

import functools
import math
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple, Union

import numpy as np
from PIL import Image

from . import transforms
from .errors import UserError, nearest
from .labels import decide, sigmoid

VOTE_RULES = ("soft", "hard")
GRIDS = ("grid", "pyramid")
WEIGHTS = ("equal", "detail")
# Bounds of the second scale of a pyramid, relative to the image: half its size, or the scale at which one crop just
# fits, at most twice. Enlarging pays, because mirrored edges and enlarged pixels mislead a detector in different ways,
# and the mean of both misleads it less than either: balanced accuracy on halved validation crops of 128 pixels .906,
# against .839 mirrored and .899 enlarged. Shrinking to one crop pays, too: on 256-pixel validation crops that were
# enlarged 1.5 times .924 instead of .897 (LOG.md).
SCALES = (0.5, 2.0)
# Added to the detail of a view before squaring it to a weight: one step of 8-bit pixels in [-1, 1]. The views of a
# plain picture then count nearly alike, instead of by their noise.
FLAT = 1 / 127.5
FUSIONS = ("soft", "hard", "soft-or", "score")
# A unanimous hard vote means probability 0 or 1, whose score is infinite; it is moved this far away from 0 or 1.
UNANIMOUS = 1e-6
# What stability mode does to an image before the model's own preprocessing: everyday re-saving and resizing.
STABILITY = (
    "jpeg(quality=(90, 90))",
    "jpeg(quality=(75, 75))",
    "jpeg(quality=(50, 50))",
    "webp(quality=(80, 80))",
    "rescale(factor=(0.75, 0.75), interpolation=bicubic)",
    "rescale(factor=(1.25, 1.25), interpolation=bicubic)",
)


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
    scores: Sequence[float], how: str = "soft", threshold: float = 0.5, weights: Optional[Sequence[float]] = None
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
        How much each view counts, above 0; see :meth:`Views.weigh`. Default: equal weights.

    Returns
    -------
    float
        The log-odds. A unanimous hard vote gives a probability of ``1e-6`` or ``1 - 1e-6``, a tied one exactly 0.5,
        which decides for real.

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
    """How the scores of several models become one.

    Parameters
    ----------
    how : {"soft", "hard", "soft-or", "score"}
        ``soft``: (weighted) mean of probabilities. ``hard``: (weighted) share of models that say generated.
        ``soft-or``: ``1 - prod(1 - p)``, generated if any model is sure. ``score``: (weighted) mean of scores.
    names : sequence of str
        The models.
    weights : dict of str to float, optional
        Not negative, not all 0; default: equal. Not for ``soft-or``.
    thresholds : dict of str to float, optional
        Each model's own threshold on its probability, default 0.5. Before fusion the threshold's log-odds are
        subtracted from the model's score, so that its threshold is 0.5.

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
    ) -> None:
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
        """Fuse ``{model: score}`` into one score; the score of a single model is not changed."""
        if len(self.names) == 1:
            return float(scores[self.names[0]])
        moved = np.array([scores[n] - _log_odds_of(self.thresholds[n]) for n in self.names])
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
    """``"LOW,HIGH"`` or a pair -> (low, high) with ``0 <= low <= high <= 1``; None stays None.

    Raises
    ------
    UserError
        Not two such numbers.
    """
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else list(value)
    try:
        low, high = (float(p) for p in parts)
    except (TypeError, ValueError):
        raise UserError(f"unsure (={value!r}) must be two numbers, LOW,HIGH, for example 0.4,0.6") from None
    if not 0 <= low <= high <= 1:
        raise UserError(f"unsure (={value!r}) must be LOW,HIGH with 0 <= LOW <= HIGH <= 1")
    return low, high


def read_fusion(path: Union[str, Path]) -> Dict[str, Any]:
    """Read a fusion file, a YAML mapping.

    Returns
    -------
    dict
        The keys that the file has, of ``fuse``, ``weights``, ``thresholds``, ``threshold``, ``unsure``.

    Raises
    ------
    UserError
        Missing file, no YAML mapping, unknown key.
    """
    from .config import read_mapping

    if not Path(path).is_file():
        known = ", ".join(FUSIONS)
        raise UserError(f"fuse (={str(path)!r}) is neither one of {known} nor a file that exists")
    value = read_mapping(Path(path), "fusion file")
    keys = ("fuse", "weights", "thresholds", "threshold", "unsure")
    for key in value:
        if key not in keys:
            raise UserError(f"fusion file {str(path)!r}: {nearest(key, keys, 'key')}")
    for key in ("weights", "thresholds"):
        if not isinstance(value.get(key, {}), dict):
            raise UserError(f"fusion file {str(path)!r}: {key} must be a mapping of model to number")
    return value


def verdict(
    score: float, threshold: float = 0.5, unsure: Optional[Tuple[float, float]] = None
) -> Tuple[float, int, str]:
    """``(prob, label, decision)`` of a fused score; see :func:`aidet.labels.decide`."""
    prob = float(sigmoid(score))
    return (prob, *decide(prob, threshold, unsure))


# --- views -----------------------------------------------------------------------------------------------------------
class Views:
    """The views of one image that a model votes over.

    Parameters
    ----------
    transform : str
        The model's evaluation pipeline: view 0, and the only view where ``votes`` is 1.
    votes : int
        Number of views.
    kind : str
        ``random``: the sidecar's ``views`` line, with new random numbers for each view; ``native``: random crops at
        native resolution; ``grid``: a regular grid of native crops, without random numbers (fewer views if the image
        has no room for ``votes``); ``pyramid``: half of the views on a grid of native crops, the others on a grid of
        the image at half its size or, if that is smaller than a crop, shrunk or enlarged (at most twice) until one
        crop just fits; or a pipeline line. Images smaller than a crop are mirrored at their edges.
    line : str, optional
        The sidecar's ``views``. Without it random views are made as in Kahsolt/AIGC-clf: a random crop of 80-100% of
        the area, resized to the input size, with horizontal and vertical flips.
    flips : bool
        Every view is scored a second time, mirrored left to right.
    seed : int
        Of the random views.
    weights : str
        ``equal``: all views count alike; ``detail``: views with more texture count more, see :func:`detail`.

    Attributes
    ----------
    first : aidet.transforms.Pipeline
        The evaluation pipeline.
    size : (int, int) or None
        Height and width of a view; None if the network takes images of any size.
    count : int
        Number of views, mirrored ones included.

    Raises
    ------
    UserError
        ``votes`` below 1, unknown kind or weights, a line whose output has another size than the model's input.
    """

    def __init__(
        self,
        transform: str,
        votes: int = 1,
        kind: str = "random",
        line: Optional[str] = None,
        flips: bool = False,
        seed: int = 42,
        weights: str = "equal",
    ) -> None:
        if isinstance(votes, bool) or not isinstance(votes, int) or votes < 1:
            raise UserError(f"votes (={votes!r}) must be a whole number >= 1")
        if weights not in WEIGHTS:
            raise UserError(nearest(weights, WEIGHTS, "weights of views"))
        self.weights = weights
        self.first = transforms.Pipeline(transform)
        self.size = self.first.size()
        self.votes, self.flips, self.seed, self.kind = votes, flips, seed, kind
        self.count = votes * (2 if flips else 1)
        self.others = None
        if kind in GRIDS:
            self._need_size()
            self.tail = self.first.numbers
        elif votes > 1 or kind != "random":
            self.others = transforms.Pipeline(self._line(kind, line))
            if self.others.size() != self.size:
                raise UserError(
                    f"views {self.others.text!r} give {self.others.size()} pixels, the model's input has {self.size}"
                )
            if votes > 1 and not self.others.random:
                raise UserError(f"views {self.others.text!r} are not random: {votes} votes would all be the same")

    def _need_size(self):
        if self.size is None:
            line = self.first.text
            raise UserError(f"views {self.kind!r} need a model with a fixed input size; its line is {line!r}")

    def _line(self, kind, line):
        if kind == "random" and line:
            return line
        numbers = self.first.numbers.parts
        if kind == "random":
            part = [f"random_resized_crop({self.size}, scale=(0.8, 1.0))"] if self.size else []
            return " | ".join([*part, "hflip", "vflip", *numbers])
        if kind == "native":
            self._need_size()
            return " | ".join([f"random_crop({self.size})", *numbers])
        if "(" not in kind and "|" not in kind:
            raise UserError(nearest(kind, ("random", "native", *GRIDS), "views"))
        return kind

    def __call__(self, image: Image.Image, key: str) -> List[np.ndarray]:
        """Make the views.

        Parameters
        ----------
        image : PIL.Image.Image, mode RGB
        key : str
            The file's relative path. Key, seed and view number determine every random draw.

        Returns
        -------
        list of numpy.ndarray, float32, each (3, h, w)
        """
        return [make() for make in self.later(image, key)]

    def weigh(self, views: Iterable[np.ndarray]) -> Optional[np.ndarray]:
        """How much each of these views counts: float64 (V,), or None if all count alike."""
        return np.array([(FLAT + detail(view)) ** 2 for view in views]) if self.weights == "detail" else None

    def lines(self) -> Set[str]:
        """The pipeline lines that make the views, or the name of the grid."""
        if self.kind in GRIDS:
            return {self.kind}
        made = [self.first] * (self.kind == "random") + [self.others] * (self.others is not None)
        return {line.text for line in made}

    def later(self, image: Image.Image, key: str) -> List[Callable[[], np.ndarray]]:
        """The views, unmade: each callable makes its view when it is first called, and keeps it."""
        if self.kind in GRIDS:
            made = [functools.partial(self.tail, tile) for tile in self._tiles(image)]
        else:
            lines = [self.others] * self.votes
            if self.kind == "random":
                lines[0] = self.first
            made = [functools.partial(self._drawn, line, image, key, k) for k, line in enumerate(lines)]
        made = [functools.cache(make) for make in made]
        if self.flips:
            made += [functools.cache(functools.partial(_mirrored, make)) for make in made]
        return made

    def _drawn(self, line, image, key, number):
        return line(image, transforms.generator(self.seed, key, number) if line.random else None)

    def _tiles(self, image):
        """Crops of the image and, for ``pyramid``, of the image at its second scale."""
        least, most = SCALES
        scale = min(max(self.size[0] / image.height, self.size[1] / image.width, least), most)
        if self.kind == "grid" or self.votes < 2 or scale == 1:
            return _grid(image, self.size, self.votes)
        size = [int(n * least) if scale == least else round(n * scale) for n in image.size]
        other = image.resize(size, Image.Resampling.BICUBIC)
        count = self.votes // 2
        return _grid(image, self.size, self.votes - count) + _grid(other, self.size, count)


def detail(view: np.ndarray) -> float:
    """Amount of texture in a view: mean absolute difference of neighbouring pixels.

    Plain skies, backdrops and blurred areas hold little evidence of how they were made, and detectors err on them.
    Weighted by detail, the views with texture decide. That texture-rich patches tell more is known from PatchCraft
    (Zhong et al. 2023), which selects them; here every view still counts.

    Parameters
    ----------
    view : numpy.ndarray, float32, shape (3, h, w)
        What the network sees, [-1, 1] for ``normalize(half)``. The mean of the channels is measured.

    Returns
    -------
    float
        Horizontal plus vertical difference, in units of the network's input; 0 for a plain colour.
    """
    grey = view.mean(0, dtype=np.float64)
    return float(sum(np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1) if grey.shape[axis] > 1))


def _mirrored(make):
    return np.ascontiguousarray(make()[:, :, ::-1])


def _grid(image, size, most):
    """Up to ``most`` native crops that cover the image evenly, edges included, in reading order."""
    h, w = size
    image = transforms._grow(image, h, w)
    rows, columns = -(-image.height // h), -(-image.width // w)
    corners = [
        (round(c * (image.width - w) / max(1, columns - 1)), round(r * (image.height - h) / max(1, rows - 1)))
        for r in range(rows)
        for c in range(columns)
    ]
    if len(corners) > most:
        corners = [corners[int((i + 0.5) * len(corners) / most)] for i in range(most)]
    return [image.crop((x, y, x + w, y + h)) for x, y in corners]


def changed_images(image: Image.Image) -> List[Image.Image]:
    """The re-saved and resized versions of an RGB image: one for each line of :data:`STABILITY`."""
    result = []
    for line, pipeline in _stability():
        changed = image
        for _, step in pipeline.steps:
            changed = step(changed, transforms.generator(0, line))
        result.append(changed)
    return result


@functools.cache
def _stability():
    return [(line, transforms.Pipeline(line)) for line in STABILITY]
