"""Pairs: a real image and the generated one that shows the same thing.

A column says so, or the pixels do. Equal names alone say nothing: most data sets number their files anew in every
folder.
"""

import collections
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np

from .. import images, labels

PROBED = 8  # pairs that are looked at
THUMB = 16
ALIKE = 0.9  # least correlation of the thumbnails of a pair


def of_names(names: Sequence[Optional[str]], files: Sequence[Path], groups: Optional[Sequence[str]]) -> List[str]:
    """The pairs among images, if their names suggest some and their groups or pixels confirm it.

    Parameters
    ----------
    names : sequence of str or None, length n
        What the two images of a pair have in common; None if there is nothing.
    files : sequence of Path, length n
    groups : sequence of str, length n, optional
        The column ``group``: images of one source image.

    Returns
    -------
    list of str
        For each image the name of its pair; ``""`` for all unless every image has exactly one partner, and either all
        partners share their group or those of up to :data:`PROBED` pairs look alike.
    """
    none = [""] * len(names)
    if None in names or set(collections.Counter(names).values()) != {2}:
        return none
    rows: Dict[str, List[int]] = {}
    for i, name in enumerate(names):
        rows.setdefault(name or "", []).append(i)
    pairs = list(rows.values())
    if groups is not None and any(groups):
        confirmed = all(groups[i] == groups[j] for i, j in pairs)
    else:
        confirmed = all(_alike(files[i], files[j]) for i, j in pairs[:: max(1, len(pairs) // PROBED)][:PROBED])
    return [name or "" for name in names] if confirmed else none


def twins(paths: Sequence[str]) -> List[Optional[str]]:
    """The path without the one folder that says real or generated, for each path; None if no or several folders do."""
    found: List[Optional[str]] = []
    for path in paths:
        parts = path.split("/")
        sides = [k for k, part in enumerate(parts[:-1]) if labels.side(part, numbers=False) is not None]
        found.append("/".join(parts[: sides[0]] + parts[sides[0] + 1 :]) if len(sides) == 1 else None)
    return found


def units(groups: Sequence[str], pairs: Sequence[str], paths: Sequence[str]) -> List[str]:
    """What must stay on one side of a split: the group, else the pair, else the path.

    Parameters
    ----------
    groups, pairs, paths : sequence of str, length n
        ``""`` where an image has no group, or no pair.

    Returns
    -------
    list of str, length n
        Groups that a pair connects are one unit, with the name that comes first.
    """
    own = [group or pair or path for group, pair, path in zip(groups, pairs, paths)]
    parent = {unit: unit for unit in own}

    def top(unit):
        while parent[unit] != unit:
            parent[unit] = unit = parent[parent[unit]]
        return unit

    first: Dict[str, str] = {}
    for unit, pair in zip(own, pairs):
        if pair:
            low, high = sorted((top(unit), top(first.setdefault(pair, unit))))
            parent[high] = low
    return [top(unit) for unit in own]


def _alike(first: Path, second: Path) -> bool:
    """Whether two images have one size and correlate as thumbnails."""
    try:
        one, two = images.decode(first), images.decode(second)
    except images.ImageError:
        return False
    if one.size != two.size:
        return False
    a, b = (np.asarray(i.convert("L").resize((THUMB, THUMB), 2), np.float64).reshape(-1) for i in (one, two))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return norm > 0 and float((a * b).sum()) / norm >= ALIKE
