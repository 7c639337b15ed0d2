"""The one convention for labels and scores.

``0 = real, 1 = generated``; ``score = logit(generated) - logit(real)``, so a score above 0 means generated and
``prob = sigmoid(score)``. Every imported model is mapped onto this convention once, here; nothing else flips a label.
"""

import math
import re
from functools import lru_cache
from typing import Iterable, List, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import ArrayLike

from .errors import UserError

REAL, GENERATED = 0, 1
NAMES = ("real", "generated")
# Half the width of the default unsure zone, in log-odds: 0.378 to 0.622 around a threshold of 0.5.
UNSURE = 0.5

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
# Chinese and Japanese words stand without spaces; the longest that fits counts.
_CJK_GENERATED = "人工智能 虚假 虛假 伪造 偽造 偽物 伪 偽 假 合成 生成 仿真".split()
_CJK_REAL = "真实 真實 真人 本物 实拍 實拍 原图 原圖 自然 人类 人類 真".split()
_CJK_NOT = "不是 非 不 未".split()
_WORDS = re.compile("|".join(sorted((*_CJK_GENERATED, *_CJK_REAL, *_CJK_NOT), key=len, reverse=True)) + "|[a-z0-9]+")
_SIDES = {
    **dict.fromkeys((*_GENERATED, *_CJK_GENERATED), GENERATED),
    **dict.fromkeys((*_REAL, *_CJK_REAL), REAL),
}
_NOT = {"not", "non", "no", *_CJK_NOT}
# Words that count among the classes of a model only: a folder of that name may hold anything (`realism` is a style of
# painting, `biggan` holds a generator's real and fake images).
_CLASS_SIDES = {
    **_SIDES,
    **dict.fromkeys(
        "adm biggan craiyon cyclegan dall dalle ddpm deepfakes deepfloyd diffusion faceswap firefly flux forged gaugan "
        "glide ideogram imagen kandinsky ldm manipulated midjourney mj pixart progan sdxl stargan stylegan synthesised "
        "synthesized vqdm wukong".split(),
        GENERATED,
    ),
    **dict.fromkeys("camera photograph photographs photos realism".split(), REAL),
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
    words = _words(name)
    if numbers and words in (["0"], ["1"]):
        return int(words[0])
    return _side_of(words, _SIDES)


def _words(name):
    return _WORDS.findall(re.sub(r"([a-z])([A-Z])", r"\1_\2", str(name)).lower())


def _side_of(words, known):
    """The side that all known words agree on; None if there is none, or they do not agree."""
    found = set()
    negated: Optional[int] = None  # the side that a negation turns round: "NonFake", "not_ai_generated"
    waiting = False
    for word in words:
        if word in _NOT:
            waiting = True
        elif not word.isdigit():
            value = known.get(word)
            if value is None and known is _CLASS_SIDES:
                value = known.get(word.rstrip("0123456789"))  # dalle3, sd15
            negated = value if waiting or value == negated else None
            waiting = False
            if value is not None:
                found.add(1 - value if value == negated else value)
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


Names = Union[str, int, Sequence[Union[str, int]]]


def class_order(names: Sequence[str], positive: Optional[Names] = None, real: Optional[Names] = None) -> List[str]:
    """Map the class names of a source model onto ``real`` and ``generated``.

    Parameters
    ----------
    names : sequence of str
        The source model's classes in the order of its outputs (``id2label``). A single name means one sigmoid output
        and is the class that a high value indicates.
    positive : str, int or sequence of them, optional
        Names or indices of the classes that mean *generated*; a text may hold several, separated by commas.
    real : str, int or sequence of them, optional
        The same for *real*. Required, or ``positive``, if the names are not informative.

        A class that neither option names is on the side that its name says; with two classes it is on the other side.
        If nothing is known about it, it is generated if only ``real`` is given; a class is never real by default.

    Returns
    -------
    list of str
        ``"real"`` or ``"generated"`` for each output.

    Raises
    ------
    UserError
        If the names are not informative and both options are missing, or an option names no class, or a class is named
        twice or by neither, or all classes are on one side.
    """
    names = [str(n) for n in names]
    chosen: dict = {}
    for option, value, side_ in (("--positive", positive, GENERATED), ("--real", real, REAL)):
        for index in [] if value is None else _indices(option, value, names):
            if chosen.setdefault(index, side_) != side_:
                raise UserError(f"class {names[index]!r} is in --positive and in --real")
    if chosen:
        sides = _completed(names, chosen, unknown=GENERATED if positive is None else None)
    else:
        sides = [_side_of(_words(n), _CLASS_SIDES) for n in names]
        if None in sides or (len(names) > 1 and len(set(sides)) != 2):
            raise UserError(f"the classes {names} do not say which one means generated; {remedy(names)}")
    if len(names) > 1 and len(set(sides)) != 2:
        raise UserError(f"all classes {names} are {NAMES[sides[0]]}; a detector needs both sides: {remedy(names)}")
    return [NAMES[s] for s in sides]


def _indices(option, value, names):
    """The classes that an option names."""
    if isinstance(value, str) and value not in names and "," in value:
        value = [part.strip() for part in value.split(",") if part.strip()]
    found = []
    for item in [value] if isinstance(value, (str, int)) else value:
        text = str(item)
        same = [i for i, n in enumerate(names) if n == text] or [
            i for i, n in enumerate(names) if n.casefold() == text.casefold()
        ]
        if len(same) != 1 and text.isdigit() and int(text) < len(names):
            same = [int(text)]
        if len(same) != 1:
            one = f"; {remedy(names)}" if len(names) == 1 else ""
            raise UserError(
                f"{option} {item!r} is neither one of the classes {names} nor an index below {len(names)}{one}"
            )
        found += same
    return found


def _completed(names, chosen, unknown):
    """The side of every class, from those that were named."""
    sides = []
    for index, name in enumerate(names):
        side_ = chosen.get(index)
        if side_ is None and len(names) == 2:
            side_ = 1 - chosen[1 - index]
        if side_ is None:
            side_ = _side_of(_words(name), _CLASS_SIDES)
        side_ = unknown if side_ is None else side_
        if side_ is None:
            raise UserError(
                f"class {name!r} is neither in --positive nor in --real; name every class of {names}: "
                "--positive NAME[,NAME...], --real NAME[,NAME...]"
            )
        sides.append(side_)
    return sides


def remedy(names: Optional[Sequence[str]], outputs: Optional[int] = None) -> str:
    """What makes a detector of a model whose classes do not say which side they mean, as the end of a sentence.

    Parameters
    ----------
    names : sequence of str or None
        Its classes, if known.
    outputs : int, optional
        Number of its outputs, if the classes are not known.
    """
    count = len(names) if names else outputs
    if count == 1:
        return "its one output is number 0: --positive 0 if a high value means generated, --real 0 if it means real"
    return "name them with --positive NAME[,NAME...] or --real NAME[,NAME...] (names or numbers from 0)"


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


def above(score: float, threshold: float = 0.5) -> float:
    """How far a score lies above the threshold of the probability, in log-odds.

    Contests call an image generated if its logit is above 0, whatever threshold the detector was told.

    Parameters
    ----------
    score : float
    threshold : float
        In [0, 1].

    Returns
    -------
    float
        Above 0 if :func:`decide` says generated; the score itself at a threshold of 0.5.
    """
    return score if threshold == 0.5 else score - float(logit(threshold))


def decide(prob: float, threshold: float = 0.5, unsure: Optional[Tuple[float, float]] = None) -> Tuple[int, str]:
    """Turn a probability into a word.

    Parameters
    ----------
    prob : float
        Probability of *generated*.
    threshold : float
        Generated if ``prob > threshold``; a tie is real (as in AIGC-clf's votes).
    unsure : (float, float), optional
        If ``low <= prob <= high`` the decision is ``"unsure"``; the label still follows the threshold. A zone whose
        ends are equal is none.

    Returns
    -------
    (int, str)
        The label (0 or 1) and the decision (``real``, ``generated`` or ``unsure``).
    """
    label = int(prob > threshold)
    if unsure is not None and unsure[0] < unsure[1] and unsure[0] <= prob <= unsure[1]:
        return label, "unsure"
    return label, NAMES[label]


def zone_around(threshold: float) -> Tuple[float, float]:
    """The unsure zone of every command that is given none: :data:`UNSURE` in log-odds on both sides of the threshold.

    Parameters
    ----------
    threshold : float
        In [0, 1].

    Returns
    -------
    (float, float)
        Ends of the zone, to three digits where those tell them from the threshold. A threshold of 0 or 1 has no zone:
        both ends equal it.
    """
    if not 0 < threshold < 1:
        return threshold, threshold
    middle = math.log(threshold) - math.log1p(-threshold)
    low, high = (float(sigmoid(middle + distance)) for distance in (-UNSURE, UNSURE))
    return round(low, 3) if round(low, 3) < threshold else low, round(high, 3) if round(high, 3) > threshold else high
