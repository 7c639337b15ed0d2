"""Preprocessing as one readable line, the same for training, inference, evaluation, export and the application.

``decode | resize(256, bicubic) | center_crop(224) | normalize(imagenet)``

The idea of a one-line pipeline is big_vision's (``pp/builder.py``). Everything is PIL and NumPy: MindSpore's own Resize
and CenterCrop give different pixels for PIL and array input, and such differences matter to a detector.

Operations before ``normalize``, ``to_float`` or ``high_pass`` take and return a PIL image in mode RGB; those three turn
it into float32 (3, h, w). Random operations draw from the ``numpy.random.Generator`` that is passed in, never from
global state.
"""

import ast
import functools
import hashlib
import inspect
from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple, TypeVar

import numpy as np
from PIL import Image

from ..errors import UserError, nearest, signature_text

# What a factory makes: a function of an image and a generator. Image and result are a PIL image or an array.
Step = Callable[[Any, Any], Any]
Factory = TypeVar("Factory", bound=Callable[..., Step])

OPERATIONS: Dict[str, Tuple[Callable[..., Step], bool]] = {}  # name -> (factory, whether it is random)
NUMERIC: Set[str] = set()  # names of the operations that turn an image into numbers


def operation(random: bool = False, numeric: bool = False) -> Callable[[Factory], Factory]:
    """Register a factory, which takes the arguments written in the line and returns ``f(image, rng)``.

    Parameters
    ----------
    random : bool
        The operation draws from ``rng``.
    numeric : bool
        It takes a PIL image and gives float32 (3, h, w): a member of :attr:`Pipeline.numbers`.
    """

    def add(factory: Factory) -> Factory:
        OPERATIONS[factory.__name__] = (factory, random)
        if numeric:
            NUMERIC.add(factory.__name__)
        return factory

    return add


class Pipeline:
    """A parsed one-line pipeline.

    Parameters
    ----------
    text : str
        Operations joined by ``|``; see :data:`OPERATIONS` for the names. A first ``decode`` is optional.

    Attributes
    ----------
    text : str
        The line in normalised form.
    parts : list of str
        Its operations as written, without ``decode``; joined by ``|`` they form a line again.
    steps : list of (str, callable)
        Name and function of each operation.
    random : bool
        Whether any operation draws random numbers. If False, more than one view of an image is pointless.

    Raises
    ------
    UserError
        Unknown operation or argument, with the nearest valid name; or an operation on pictures after one that makes
        numbers.

    Examples
    --------
    >>> p = Pipeline("resize(256, bicubic) | center_crop(224) | normalize(imagenet)")
    >>> p(Image.new("RGB", (300, 400))).shape
    (3, 224, 224)
    """

    def __init__(self, text: str) -> None:
        self.parts = [part.strip() for part in _split(text)]
        calls = [_parse(part, text) for part in self.parts]
        if calls and calls[0][0] == "decode":
            self.parts, calls = self.parts[1:], calls[1:]
        self.steps: List[Tuple[str, Step]] = []
        self.random = False
        for name, args, kwargs in calls:
            if name not in OPERATIONS:
                raise UserError(f"transform {text!r}: {nearest(name, OPERATIONS, 'operation')}")
            before = next((done for done, _ in self.steps if done in NUMERIC), None)
            if before is not None and name != "random_erasing":
                raise UserError(f"transform {text!r}: {name} takes a picture, but {before} before it gives numbers")
            factory, random = OPERATIONS[name]
            try:
                inspect.signature(factory).bind(*args, **kwargs)
                step = factory(*args, **kwargs)
            except TypeError as error:
                raise UserError(f"transform {text!r}: {name}: {error}; it takes {signature_text(factory)}") from None
            self.steps.append((name, step))
            self.random = self.random or random
        self.text = " | ".join(["decode"] + [_show(*call) for call in calls])

    def __repr__(self) -> str:
        return f"Pipeline({self.text!r})"

    def __call__(self, image: Image.Image, rng: Optional[np.random.Generator] = None) -> np.ndarray:
        """Run on one image.

        Parameters
        ----------
        image : PIL.Image.Image, mode RGB
        rng : numpy.random.Generator, optional
            Required if the pipeline is random.

        Returns
        -------
        numpy.ndarray, float32, shape (3, h, w)
            A pipeline without a final ``normalize``, ``to_float`` or ``high_pass`` gives values in [0, 1].
        """
        if self.random and rng is None:
            raise ValueError(f"{self.text!r} is random and needs a generator")
        result = applied(self.steps, image, rng)
        return to_array(result) if isinstance(result, Image.Image) else result

    def size(self) -> Optional[Tuple[int, int]]:
        """(height, width) of the output, found by running on a grey image; None if it depends on the input."""
        shapes = {
            self(Image.new("RGB", wh, (90, 120, 150)), np.random.default_rng(0)).shape[1:]
            for wh in ((331, 467), (512, 389))
        }
        height, width = shapes.pop()
        return (height, width) if not shapes else None

    @functools.cached_property
    def geometry(self) -> "Pipeline":
        """The operations before :attr:`numbers`, which take and return a PIL image: resize, crop, flips, JPEG.

        Its ``text`` is ``decode`` if there are none.
        """
        numeric = [name in NUMERIC for name, _ in self.steps]
        first = numeric.index(True) if any(numeric) else len(numeric)
        return Pipeline("|".join(self.parts[:first]) or "decode")

    @functools.cached_property
    def numbers(self) -> "Pipeline":
        """The operation that turns the image into numbers: ``normalize``, ``to_float`` or ``high_pass``.

        ``to_float`` if the line names none. ``random_erasing``, which changes existing numbers, is part of neither
        this nor :attr:`geometry`.
        """
        made = [part for part, (name, _) in zip(self.parts, self.steps) if name in NUMERIC]
        return Pipeline("|".join(made) or "to_float")

    def affine(self, white: float = 1.0) -> Optional[Tuple[np.ndarray, np.ndarray]]:
        """Scale and offset per channel such that :attr:`numbers` gives ``scale * pixel + offset``.

        Parameters
        ----------
        white : float
            Value of a white pixel: 1 if pixels are in [0, 1], 255 for grey levels.

        Returns
        -------
        (ndarray, ndarray) of float64, each of shape (3,), or None
            Measured. None if a number depends on more than its own pixel (``high_pass``), or not on it at all.
        """
        ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2))
        values = self.numbers(ramp).reshape(3, 256).astype(np.float64)
        offset, span = values[:, 0], values[:, 255] - values[:, 0]
        straight = np.linspace(0, 1, 256) * span[:, None] + offset[:, None]
        if not span.all() or np.abs(values - straight).max() > 1e-5 * max(1.0, np.abs(values).max()):
            return None
        return span / white, offset


@functools.lru_cache(maxsize=64)
def parsed(text: str) -> Pipeline:
    """The pipeline of a line, parsed once per process."""
    return Pipeline(text)


def applied(steps: Iterable[Tuple[str, Step]], image: Image.Image, rng: Optional[np.random.Generator]) -> Any:
    """Apply ``steps``, some or all of :attr:`Pipeline.steps`, to an image in their order.

    Parameters
    ----------
    steps : iterable of (str, callable)
    image : PIL.Image.Image
    rng : numpy.random.Generator or None

    Returns
    -------
    PIL.Image.Image or numpy.ndarray
        The result of the last step.
    """
    for _, step in steps:
        image = step(image, rng)
    return image


def generator(seed: int, key: str, view: int = 0) -> np.random.Generator:
    """The random generator of one view of one file.

    It depends only on the seed, the key (a relative path, or the pair an image belongs to) and the view, so that the
    order of files, batch size, workers and shards do not change a result.

    Parameters
    ----------
    seed : int
    key : str
    view : int

    Returns
    -------
    numpy.random.Generator
    """
    digest = hashlib.blake2b(f"{seed}\0{key}\0{view}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


# --- reading the line ------------------------------------------------------------------------------------------------
def _split(text):
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            f"transform {text!r} is empty; write for example 'resize(256) | center_crop(224) | normalize(imagenet)'"
        )
    if len(text) > 4000:
        raise UserError(f"transform of {len(text)} characters is longer than 4000")
    return text.split("|")


def _parse(part, text):
    """``name(1, word, key=2)`` -> (name, [1, 'word'], {'key': 2}); literals and bare words; nothing is evaluated."""

    def value(node):
        if isinstance(node, ast.Name):
            return node.id
        result = ast.literal_eval(node)
        return tuple(result) if isinstance(result, list) else result

    try:
        node = ast.parse(part, mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
            return node.func.id, [value(a) for a in node.args], {k.arg: value(k.value) for k in node.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        pass
    raise UserError(f"transform {text!r}: cannot read {part!r}; write name or name(value, key=value)")


def _show(name, args, kwargs):
    def word(value):
        if isinstance(value, (tuple, list)):
            return "(" + ", ".join(word(v) for v in value) + ("," if len(value) == 1 else "") + ")"
        return value if isinstance(value, str) and value.isidentifier() else repr(value)

    inside = [word(a) for a in args] + [f"{k}={word(v)}" for k, v in kwargs.items()]
    return f"{name}({', '.join(inside)})" if inside else name


def to_array(image: Image.Image) -> np.ndarray:
    """An RGB image as float32 (3, h, w) in [0, 1]."""
    # One pass over the pixels with in-place arithmetic takes a fifth of the time of plain NumPy expressions.
    pixels = np.asarray(image).transpose(2, 0, 1)
    return np.divide(pixels, np.float32(255), out=np.empty(pixels.shape, np.float32), dtype=np.float32)
