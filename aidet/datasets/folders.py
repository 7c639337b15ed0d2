"""Folders of images, and what the names of folders mean: the class, the generator, the split.

Training and evaluation read a folder by the same rules: the innermost folder whose name says real or generated decides.
"""

import re
import sys
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from .. import dialect, images, labels
from ..errors import UserError
from ..records import natural_key
from .table import Place, Table, examples

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# Folders that name neither a class nor a generator.
SPLIT_WORDS = frozenset(("images", *(word for words in SPLIT_NAMES.values() for word in words)))
# Words that make a folder a class folder, and nothing but that, if it has no others. `deepfake`, `gan`, `human` and
# `original` are not among them: data sets and generators are called so, too.
CLASS_WORDS = frozenset(
    "ai aigc authentic fake fakes generated genuine image images img nature natural not non photos pictures real reals "
    "synthetic".split()
)
Folders = Tuple[str, ...]


class Layout(NamedTuple):
    """What the folders of images say, one value per image.

    Attributes
    ----------
    sides : list of int or None
        0 real, 1 generated; None if no folder says either.
    classes : list of str
        The folder that decides; ``""`` where there is none.
    generators : list of str
        The other folders without splits and class folders, joined with ``/``; the deciding folder if there are none.
    names : list of str
        The path without the folder that decides.
    """

    sides: List[Optional[int]]
    classes: List[str]
    generators: List[str]
    names: List[str]


def is_without_splits(folder: Path) -> bool:
    """Whether a folder holds class folders, real ones and generated ones, and no folder below is named as a split."""
    keys = list(images.walk(folder))
    named = {part.lower() for key in keys for part in key.split("/")[:-1]}
    tops = {key.partition("/")[0] if "/" in key else "" for key in keys}
    return not any(named & set(words) for words in SPLIT_NAMES.values()) and {labels.side(t) for t in tops} == {0, 1}


def read_folder(folder: Place, what: str = "image list") -> Table:
    """The images below a folder; raise a :class:`UserError` if there are none."""
    left = images.LeftOut()
    keys = list(images.walk(folder, left))
    if not keys:
        raise UserError("; ".join((f"{what} {str(folder)!r}: no images in this folder", *left.lines())))
    for line in left.lines():
        print(f"{line} ({folder})", file=sys.stderr)
    return Table(keys, {}, Path(folder), str(folder))


def layout(paths: Sequence[str], what: str) -> Layout:
    """Read the classes and generators of images from the names of their folders.

    The innermost folder whose name is a class decides: ``deepfake/0_real`` is real, ``fake/human`` generated. Without
    such a folder, one that has a word for a class among others does (``celeb_real``); bare ``0`` and ``1`` count where
    no folder has such a word.

    Parameters
    ----------
    paths : sequence of str
        With ``/`` between folders.
    what : str
        The source, for messages.

    Returns
    -------
    Layout

    Raises
    ------
    UserError
        Two folders of one path contradict each other (``real/fake``); both are named.
    """
    parts = [path.split("/") for path in paths]
    known: Dict[Folders, Optional[int]] = {tuple(p[:-1]): None for p in parts}
    for folders in known:
        known[folders] = _deciding(folders, what)
    sides: Dict[Folders, Optional[int]] = {
        folders: None if level is None else labels.side(folders[level], numbers=False)
        for folders, level in known.items()
    }
    if set(known.values()) == {None}:
        depth = labels.class_depth(known)
        if depth is not None:
            known = dict.fromkeys(known, depth)
            sides = {folders: labels.side(folders[depth]) for folders in known}
    result = Layout([], [], [], [])
    for part in parts:
        folders = tuple(part[:-1])
        level = known[folders]
        result.sides.append(sides[folders])
        result.classes.append("" if level is None else folders[level])
        result.generators.append(_generator(folders, level))
        result.names.append("/".join(p for k, p in enumerate(part) if k != level))
    return result


def _deciding(folders: Folders, what: str) -> Optional[int]:
    """The level of the folder that decides, None if none does."""
    sides = [labels.side(name, numbers=False) for name in folders]
    said = [(k, side) for k, side in enumerate(sides) if side is not None]
    # A generator, a data set or what is shown may be called deepfake, gan or human: a folder called real or fake is
    # worth more than those.
    said = [(k, side) for k, side in said if is_class_folder(folders[k])] or said
    if not said:
        return None
    level, side = said[-1]
    outer = next((k for k, other in said if other != side), None)
    if outer is not None:
        raise UserError(
            f"{what}: {'/'.join(folders)!r} lies in {folders[outer]!r} ({labels.NAMES[1 - side]}) and in "
            f"{folders[level]!r} ({labels.NAMES[side]}), which contradict each other; rename the one that is not the "
            "class, or give a table path,label"
        )
    return level


def is_class_folder(name: str) -> bool:
    """Whether a folder's name has words for a class and no others: ``0_real``, ``AI images``; not ``imagenet_ai``."""
    if labels.side(name, numbers=False) is None:
        return False
    text = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", text) if word and not word.isdigit()]
    return all(word in CLASS_WORDS or word in SPLIT_WORDS for word in words)


def _generator(folders: Folders, level: Optional[int]) -> str:
    rest = [
        name
        for k, name in enumerate(folders)
        if k != level and name.lower() not in SPLIT_WORDS and not is_class_folder(name)
    ]
    if rest or not folders:
        return "/".join(rest)
    return folders[-1 if level is None else level]


def first_folders(paths: Iterable[str]) -> List[str]:
    """The outermost folder of each path that is no split, for data whose folders name neither real nor generated."""
    found = []
    for path in paths:
        folders = path.split("/")[:-1]
        found.append(next((name for name in folders if name.lower() not in SPLIT_WORDS), folders[0] if folders else ""))
    return found


def refuse_silent(paths: Sequence[str], sides: Sequence[Optional[int]], what: str) -> None:
    """Raise a :class:`UserError` that names the folders of the images whose class no folder says."""
    lost = sorted({path.rpartition("/")[0] or "." for path, side in zip(paths, sides) if side is None})
    if lost:
        raise UserError(
            f"{what}: no folder name says real or generated for {sum(side is None for side in sides)} of {len(paths)} "
            f"images, in {examples(lost)}; put a folder real or fake into the path of each, or give a table path,label"
        )


def read_numbered(place: Path, split: str, keys: Sequence[str]) -> Table:
    """Numbered files and a bare column of 0 and 1 in the order of their numbers (MindCon).

    Parameters
    ----------
    place : Path
    split : str
        The folder of ``place`` that holds the files; the column is a text file in it, or ``<split>.txt`` beside it.
    keys : sequence of str
        The files.

    Returns
    -------
    Table
        With the column ``label``.
    """
    folder = place / split
    files = [folder / f"{n}.txt" for n in ("labels", "truth", "label", "result")] + [place / f"{split}.txt"]
    truth = next((f for f in files if f.is_file()), None)
    if truth is None:
        raise UserError(f"{str(folder)!r} has images but no class folders, no labels.csv and no {split}.txt beside it")
    with dialect.opened(truth, "labels") as file:
        column = file.read().split()
    if len(column) != len(keys) or set(column) - {"0", "1"}:
        raise UserError(
            f"{str(truth)!r} must hold {len(keys)} lines of 0 or 1, one an image; it has {len(column)} words"
        )
    return Table(sorted(keys, key=natural_key), {"label": column}, folder, str(truth))
