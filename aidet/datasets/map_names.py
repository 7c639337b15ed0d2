"""Names of the map files of a localizer: ``a/b.jpg`` -> ``a/b.png``, so that maps are found again by their picture."""

import collections
import hashlib
import os
import re
from typing import Dict, Iterable, List, Set, Tuple

from .table import has_extension

LONGEST = 200  # bytes of one part of a path; file systems take 255, and a temporary file has a longer name


def map_name(path: str, keep: bool = False) -> str:
    """File of the map of a picture, relative to the folder of the maps.

    Parameters
    ----------
    path : str
        The picture as a row names it, also ``FILE#ROW`` and ``FILE#MEMBER`` of an archive, an absolute path or an
        address.
    keep : bool
        Keep the picture's extension: ``a/b.jpg.png``.

    Returns
    -------
    str
        With ``/`` between folders, and never outside of the folder: ``..`` becomes ``_``, a leading ``/`` is dropped. A
        part that is too long for a file system is cut and gets the start of its SHA-256.
    """
    stem = path if keep or not has_extension(path) else os.path.splitext(path)[0]
    parts = [_plain(part) for part in re.sub(r"^[A-Za-z]:(?=[/\\])", "", stem).split("/")]
    parts = [part for part in parts if part] or ["image"]
    return "/".join(parts) + ".png"


def _plain(part: str) -> str:
    if part in ("", "."):
        return ""
    if part == "..":
        return "_"
    part = re.sub(r"[\x00-\x1f\x7f\\]", "_", part)
    raw = part.encode("utf-8", "surrogatepass")
    if len(raw) <= LONGEST:
        return part
    return f"{raw[: LONGEST - 60].decode('utf-8', 'ignore')}-{hashlib.sha256(raw).hexdigest()[:16]}"


def possible_names(path: str) -> Tuple[str, str, str]:
    """The files that the map of a picture may have in a run, the most particular first.

    With a hash of its path, with the picture's extension, and plain.
    """
    kept = map_name(path, keep=True)
    mark = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{kept[: -len('.png')]}-{mark}.png", kept, map_name(path)


class MapNames:
    """The files of the maps of all rows of a run, no two the same, whatever their order and whoever asks.

    Parameters
    ----------
    paths : iterable of str
        The pictures of all rows.

    Examples
    --------
    >>> names = MapNames(["a.jpg", "b.jpg", "b.png"])
    >>> [names(path) for path in ("a.jpg", "b.jpg", "b.png")]
    ['a.png', 'b.jpg.png', 'b.png.png']
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._count: Dict[str, int] = collections.Counter()
        self._kept: Dict[str, int] = collections.Counter()
        for path in paths:
            self._count[map_name(path)] += 1
            self._kept[map_name(path, keep=True)] += 1
        self._folders: Set[str] = {folder for name in self._count for folder in _above(name)}

    def __call__(self, path: str) -> str:
        """The file of one row's map, relative to the folder of the maps."""
        marked, kept, name = possible_names(path)
        if self._count[name] < 2 and name not in self._folders:
            return name
        if self._kept[kept] < 2 and kept not in self._count and kept not in self._folders:
            return kept
        return marked


def _above(name: str) -> List[str]:
    """The folders that a file lies in."""
    return [name[: match.start()] for match in re.finditer("/", name)]
