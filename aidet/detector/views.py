"""Views of an image: the crops, scales and flips that a detector scores, each drawn from the image's own seed."""

import functools
from typing import Callable, Iterable, List, Optional, Set, Tuple

import numpy as np
from PIL import Image

from .. import images
from ..errors import UserError, nearest
from ..images import operations

GRIDS = ("grid", "pyramid", "five")
WEIGHTS = ("equal", "detail")
# Bounds of the second scale of a pyramid, relative to the image: half its size, or the scale at which one crop just
# fits, at most twice its size. Enlarging helps: mirrored edges and enlarged pixels mislead a detector in different
# ways, and their mean misleads it less than either alone. On validation crops halved to 128 pixels, balanced accuracy
# is .906, against .839 with mirrored and .899 with enlarged views only. Shrinking to one crop helps, too: on 256-pixel
# validation crops that were enlarged 1.5 times, it is .924 instead of .897 (LOG.md).
SCALES = (0.5, 2.0)
# Added to the detail of a view before it is squared to give the weight: one step of 8-bit pixels in [-1, 1]. The views
# of a plain picture then count almost equally, instead of in proportion to their noise.
FLAT = 1 / 127.5
# What stability mode does to an image before the model's own preprocessing: everyday re-saving and resizing.
STABILITY = (
    "jpeg(quality=(90, 90))",
    "jpeg(quality=(75, 75))",
    "jpeg(quality=(50, 50))",
    "webp(quality=(80, 80))",
    "rescale(factor=(0.75, 0.75), interpolation=bicubic)",
    "rescale(factor=(1.25, 1.25), interpolation=bicubic)",
)


def _in_two_sizes(line):
    return any(name == "two_sizes" for name, _ in line.steps)


# --- views -----------------------------------------------------------------------------------------------------------
class Views:
    """The views of one image that a model votes over.

    Parameters
    ----------
    transform : str
        The model's evaluation pipeline: view 0, and the only view if ``votes`` is 1.
    votes : int
        Number of views.
    kind : str
        ``random``: the sidecar's ``views`` line, with new random numbers for each view; ``native``: random crops at
        native resolution; ``grid``: a regular grid of native crops, without random numbers (fewer views if the image
        has no room for ``votes``); ``pyramid``: half of the views on a grid of native crops, the others on a grid of
        the image at half its size or, if that is smaller than a crop, shrunk or enlarged (at most twice) until one
        crop just fits; ``five``: the native crops at the centre and in the corners, whatever ``votes`` is; or a
        pipeline line. Images smaller than a crop are mirrored at their edges.
    line : str, optional
        The sidecar's ``views``. Without it random views are made as in Kahsolt/AIGC-clf: a random crop of 80-100% of
        the area, resized to the input size, with horizontal and vertical flips.
    flips : bool
        Score every view a second time, mirrored left to right.
    seed : int
        Seed of the random views.
    weights : str
        ``equal``: all views count equally; ``detail``: views with more texture count more, see :func:`detail`.

    Attributes
    ----------
    first : aidet.images.Pipeline
        The evaluation pipeline.
    size : (int, int) or None
        Height and width of a view; None if the network takes images of any size.
    count : int
        Number of views, mirrored ones included.

    Raises
    ------
    UserError
        ``votes`` below 1, unknown kind or weights, a line whose output size is not the model's input size, or crops and
        mirrored views for a model that sees two sizes of the picture.
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
        if not isinstance(kind, str):
            raise UserError(f"views (={kind!r}) must be a name, such as grid, or a pipeline line")
        self.weights = weights
        self.first = images.Pipeline(transform)
        self.size = self.first.size()
        votes = 5 if kind == "five" else votes
        self.votes, self.flips, self.seed, self.kind = votes, flips, seed, kind
        self.count = votes * (2 if flips else 1)
        self.others = None
        if kind in GRIDS:
            self._need_size()
            self.tail = self.first.numbers
        elif votes > 1 or kind != "random":
            self.others = images.Pipeline(self._line(kind, line))
            if self.others.size() != self.size:
                raise UserError(
                    f"views {self.others.text!r} give {self.others.size()} pixels, the model's input has {self.size}"
                )
            if votes > 1 and not self.others.random:
                raise UserError(f"views {self.others.text!r} are not random: {votes} votes would all be the same")
        if _in_two_sizes(self.first) and (flips or kind in GRIDS or not _in_two_sizes(self.others or self.first)):
            raise UserError(
                f"the model's line {self.first.text!r} puts two sizes of the picture into one input, which crops and "
                "mirrored views do not do: score one view (votes 1, no flips), or write views that end with this line"
            )

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
        """Weight of each of these views: float64 (V,), or None if all views count equally."""
        return np.array([(FLAT + detail(view)) ** 2 for view in views]) if self.weights == "detail" else None

    def fine_detail(self, view: np.ndarray) -> float:
        """:func:`fine_detail` of a view in grey levels of 8 bits, whatever the model's normalisation.

        Infinite for a model whose input is no scaled image (``high_pass``), which has no such measure.
        """
        return np.inf if self._contrast is None else fine_detail(view / self._contrast)

    @functools.cached_property
    def _contrast(self):
        """Input units per grey level, (3, 1, 1)."""
        affine = self.first.affine(255)
        return None if affine is None else affine[0].astype(np.float32)[:, None, None]

    def lines(self) -> Set[str]:
        """The pipeline lines that make the views, or the name of the grid."""
        if self.kind in GRIDS:
            return {self.kind}
        made = [self.first] if self.kind == "random" else []
        return {line.text for line in (*made, *([] if self.others is None else [self.others]))}

    def later(self, image: Image.Image, key: str) -> List[Callable[[], np.ndarray]]:
        """The views, made on demand: each callable makes its view when it is first called, and caches it."""
        made: List[Callable[[], np.ndarray]]
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
        return line(image, images.generator(self.seed, key, number) if line.random else None)

    def _tiles(self, image):
        h, w = self.size
        return [source.crop((x, y, x + w, y + h)) for source, x, y in self.places(image)]

    def places(self, image: Image.Image) -> List[Tuple[Image.Image, int, int]]:
        """Where the views of a grid are cut from.

        Parameters
        ----------
        image : PIL.Image.Image
            At least as large as a view; else the sources are mirrored at their edges.

        Returns
        -------
        list of (PIL.Image.Image, int, int)
            For each view its source, which is the image or, for ``pyramid``, the image at its second scale, and the
            left and top pixel of the view in it.
        """
        assert self.size is not None  # _need_size
        if self.kind == "five":
            return _five(image, self.size)
        least, most = SCALES
        scale = min(max(self.size[0] / image.height, self.size[1] / image.width, least), most)
        if self.kind == "grid" or self.votes < 2 or scale == 1:
            return _grid(image, self.size, self.votes)
        width, height = (int(n * least) if scale == least else round(n * scale) for n in image.size)
        other = image.resize((width, height), Image.Resampling.BICUBIC)
        count = self.votes // 2
        return _grid(image, self.size, self.votes - count) + _grid(other, self.size, count)


def detail(view: np.ndarray) -> float:
    """Amount of texture in a view: mean absolute difference of neighbouring pixels.

    Plain skies, backdrops and blurred areas contain little evidence of how they were made, and detectors make errors on
    them. With weights by detail, the views with texture decide. PatchCraft (Zhong et al. 2023) showed that texture-rich
    patches are more informative; it selects them, whereas here every view still counts.

    Parameters
    ----------
    view : numpy.ndarray, float32, shape (3, h, w)
        The network's input, in [-1, 1] for ``normalize(half)``. The mean of the channels is measured.

    Returns
    -------
    float
        Horizontal plus vertical difference, in units of the network's input; 0 for a plain colour.
    """
    grey = view.mean(0, dtype=np.float64)
    return float(sum(np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1) if grey.shape[axis] > 1))


def fine_detail(view: np.ndarray) -> float:
    """Amount of fine texture in a view: mean absolute second difference of neighbouring pixels.

    Unlike :func:`detail` it does not grow with the contrast of soft shapes, so that it tells a picture that is plain or
    out of focus from a sharp one.

    Parameters
    ----------
    view : numpy.ndarray, float32, shape (3, h, w)
        The mean of the channels is measured.

    Returns
    -------
    float
        Horizontal plus vertical difference, in units of ``view``; 0 for a plain colour and for an even slope.
    """
    grey = view.mean(0, dtype=np.float64)
    return float(sum(np.abs(np.diff(grey, 2, axis=axis)).mean() for axis in (0, 1) if grey.shape[axis] > 2))


def _mirrored(make):
    return np.ascontiguousarray(make()[:, :, ::-1])


def _grid(image, size, most):
    """Places of up to ``most`` native crops that cover the image evenly, edges included, in reading order."""
    h, w = size
    image = operations._grow(image, h, w)
    rows, columns = -(-image.height // h), -(-image.width // w)
    corners = [
        (round(c * (image.width - w) / max(1, columns - 1)), round(r * (image.height - h) / max(1, rows - 1)))
        for r in range(rows)
        for c in range(columns)
    ]
    if len(corners) > most:
        corners = [corners[int((i + 0.5) * len(corners) / most)] for i in range(most)]
    return [(image, x, y) for x, y in corners]


def _five(image, size):
    """Places of the native crops at the centre and in the corners."""
    h, w = size
    image = operations._grow(image, h, w)
    right, low = image.width - w, image.height - h
    return [(image, x, y) for x, y in ((right // 2, low // 2), (0, 0), (0, low), (right, low), (right, 0))]


def changed_images(image: Image.Image) -> List[Image.Image]:
    """The re-saved and resized versions of an RGB image: one for each line of :data:`STABILITY`."""
    result = []
    for line, pipeline in _stability():
        changed = image
        for _, step in pipeline.steps:
            changed = step(changed, images.generator(0, line))
        result.append(changed)
    return result


@functools.cache
def _stability():
    return [(line, images.Pipeline(line)) for line in STABILITY]
