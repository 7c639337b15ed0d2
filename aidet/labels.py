"""The one convention for labels and scores.

``0 = real, 1 = generated``; ``score = logit(generated) - logit(real)``, so a score above 0 means generated and
``prob = sigmoid(score)``. Every imported model is mapped onto this convention once, here; nothing else flips a label.
"""

import re
from functools import lru_cache
from typing import Iterable, List, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import ArrayLike

from .errors import UserError

REAL, GENERATED = 0, 1
NAMES = ("real", "generated")

# Words seen in the id2label of published detectors and in the folder names of public data sets.
_GENERATED = {
    "1",
    "ai",
    "aiart",
    "aigc",
    "artificial",
    "deepfake",
    "fake",
    "fakes",
    "gan",
    "generated",
    "machine",
    "sd",
    "spoof",
    "synth",
    "synthetic",
}
_REAL = {
    "0",
    "authentic",
    "genuine",
    "hum",
    "human",
    "natural",
    "nature",
    "original",
    "photo",
    "pristine",
    "real",
    "reals",
}


_YES_NO = {"true": True, "t": True, "yes": True, "y": True, "false": False, "f": False, "no": False, "n": False}


def side(name: object, numbers: bool = True) -> Optional[int]:
    """Whether a class or folder name means real or generated.

    Parameters
    ----------
    name : str
        For example ``"FAKE"``, ``"0_real"``, ``"Ai_generated"``, ``"not-fake"``.
    numbers : bool
        Whether a bare ``0`` or ``1`` counts (this project's convention), as in a column of a CSV.

    Returns
    -------
    int or None
        ``REAL``, ``GENERATED``, or None if the name means neither or both.
    """
    # "NonFake", "not_ai": a preceding negation inverts the word.
    text = re.sub(r"([a-z])([A-Z])", r"\1_\2", str(name)).lower()
    words = [w for w in re.split(r"[^a-z0-9]+", text) if w]
    if numbers and words in (["0"], ["1"]):
        return int(words[0])
    found = set()
    negated = False
    for word in words:
        if word in ("not", "non", "no"):
            negated = True
            continue
        if word.isdigit():
            continue
        for word_set, value in ((_GENERATED, GENERATED), (_REAL, REAL)):
            if word in word_set:
                found.add(1 - value if negated else value)
        negated = False
    return found.pop() if len(found) == 1 else None


def of_cell(text: str, column: str = "label") -> Optional[int]:
    """The label in a cell of a CSV.

    Parameters
    ----------
    text : str
        ``0``, ``1``, ``1.0`` (as pandas writes a column with missing values), or a word for :func:`side`.
    column : str
        In its column ``target`` ArtiFact numbers the generators from 1 upwards; 0 is real. In a column whose name
        means one side, such as ``is_fake`` or ``is_real``, 1 and ``True`` are that side, 0 and ``False`` the other.

    Returns
    -------
    int or None
    """
    text = text.strip()
    meant = _side_of_column(column)
    if meant is not None and text.lower() in _YES_NO:
        return meant if _YES_NO[text.lower()] else 1 - meant
    try:
        number = float(text)
    except ValueError:
        return side(text)
    if number in (0, 1):
        return int(number) if meant is None else meant if number else 1 - meant
    return GENERATED if column == "target" and number > 1 and number.is_integer() else None


@lru_cache(64)
def _side_of_column(column: str) -> Optional[int]:
    return side(column, numbers=False)


def class_depth(folders: Iterable[Sequence[str]]) -> Optional[int]:
    """The level of a folder tree at which every name means real or generated, and both occur.

    Parameters
    ----------
    folders : iterable of sequence of str
        For each image its folders, outermost first.

    Returns
    -------
    int or None
    """
    known = set(map(tuple, folders))
    for depth in range(min(map(len, known), default=0)):
        if {side(f[depth]) for f in known} == {REAL, GENERATED}:
            return depth
    return None


def class_order(names: Sequence[str], positive: Union[str, int, None] = None) -> List[str]:
    """Map the class names of a source model onto ``real`` and ``generated``.

    Parameters
    ----------
    names : sequence of str
        The source model's classes in the order of its outputs (``id2label``). A single name means one sigmoid output
        and is the class that a high value indicates.
    positive : str or int, optional
        Name or index of the class that means *generated*; everything else is real. Required if the names are not
        informative.

    Returns
    -------
    list of str
        ``"real"`` or ``"generated"`` for each output.

    Raises
    ------
    UserError
        If the names are not informative and ``positive`` is missing, or ``positive`` is not one of the classes.
    """
    names = [str(n) for n in names]
    if positive is not None:
        if str(positive) in names:
            index = names.index(str(positive))
        elif str(positive).lstrip("-").isdigit() and 0 <= int(positive) < len(names):
            index = int(positive)
        else:
            raise UserError(
                f"--positive {positive!r} is neither one of the classes {names} nor an index below {len(names)}"
            )
        return [NAMES[i == index] for i in range(len(names))]
    sides = [s for s in (side(n, numbers=False) for n in names) if s is not None]
    if len(sides) < len(names) or (len(names) > 1 and len(set(sides)) != 2):
        raise UserError(
            f"the classes {names} do not say which one means generated; "
            "name it with --positive NAME or --positive INDEX"
        )
    return [NAMES[s] for s in sides]


def score_from_logits(logits: ArrayLike, order: Sequence[str]) -> np.ndarray:
    """Turn raw network outputs into scores.

    Parameters
    ----------
    logits : array_like, shape (..., C)
        Raw outputs (before softmax or sigmoid).
    order : sequence of str, length C
        ``"real"`` or ``"generated"`` for each output, from the sidecar. With C = 1 the output is a sigmoid logit of
        that class. With C > 2 (one class per generator) the two sides are summed as probabilities:
        ``logsumexp(generated) - logsumexp(real)``, which is the log-odds of ``1 - p(real)``.

    Returns
    -------
    numpy.ndarray, shape (...,), float64
        Above 0 means generated.
    """
    logits = np.asarray(logits, np.float64)
    if logits.shape[-1] != len(order):
        raise UserError(
            f"the network gives {logits.shape[-1]} outputs, its class order names {len(order)}: {list(order)}"
        )
    if len(order) == 1:
        return logits[..., 0] if order[0] == NAMES[GENERATED] else -logits[..., 0]
    is_generated = np.array([o == NAMES[GENERATED] for o in order])
    if is_generated.all() or not is_generated.any():
        raise UserError(f"a class order needs both sides, got {list(order)}")
    return _logsumexp(logits[..., is_generated]) - _logsumexp(logits[..., ~is_generated])


def _logsumexp(x: np.ndarray) -> np.ndarray:
    if x.shape[-1] == 1:
        return x[..., 0]
    top = x.max(axis=-1, keepdims=True)
    return top[..., 0] + np.log(np.exp(x - top).sum(axis=-1))


def sigmoid(score: ArrayLike) -> np.ndarray:
    """``1 / (1 + exp(-score))`` without overflow; array in, float64 array out."""
    score = np.asarray(score, np.float64)
    small = np.exp(-np.abs(score))
    return np.where(score >= 0, 1.0, small) / (1.0 + small)


def logit(prob: ArrayLike, eps: float = 1e-12) -> np.ndarray:
    """The inverse of :func:`sigmoid`; probabilities are kept ``eps`` away from 0 and 1."""
    prob = np.clip(np.asarray(prob, np.float64), eps, 1 - eps)
    return np.log(prob) - np.log1p(-prob)


def decide(prob: float, threshold: float = 0.5, unsure: Optional[Tuple[float, float]] = None) -> Tuple[int, str]:
    """Turn a probability into a word.

    Parameters
    ----------
    prob : float
        Probability of *generated*.
    threshold : float
        Generated if ``prob > threshold``; a tie is real (as in AIGC-clf's votes).
    unsure : (float, float), optional
        If ``low <= prob <= high`` the decision is ``"unsure"``; the label still follows the threshold.

    Returns
    -------
    (int, str)
        The label (0 or 1) and the decision (``real``, ``generated`` or ``unsure``).
    """
    label = int(prob > threshold)
    if unsure is not None and unsure[0] <= prob <= unsure[1]:
        return label, "unsure"
    return label, NAMES[label]
