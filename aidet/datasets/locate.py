"""Where the files of a table lie, when its paths were written on another machine.

A path that a table holds may begin with a drive or a folder that is not here, may lack the folder that the images were
unpacked into, may lack the extension, or may spell an accented letter as one character where the disk has two.
"""

import os
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

from .. import labels
from .folders import SPLIT_WORDS
from .table import Place, has_extension

SAMPLE = 200  # rows that decide about a leading folder
PROBED = 32  # of them, evenly spaced, are looked up for each guess
FOLDERS = 64  # subfolders tried for a missing leading folder
FOLDERS_KEPT = 64  # listings of folders in memory


class Move(NamedTuple):
    """What is taken off the front of every path, and what is put there."""

    off: str = ""
    on: str = ""

    def __call__(self, path: str) -> str:
        """The path as it is below the root; a path without that front is left as it is."""
        return self.on + path[len(self.off) :] if path.startswith(self.off) else path


class Locator:
    """From the path that a table holds to the file on disk.

    The first :data:`SAMPLE` paths decide whether a leading folder is taken off or put before all of them. Nothing is
    moved if any of them is a file as it stands, or if two places fit equally well. A missing extension and another form
    of Unicode are then looked up path by path.

    Parameters
    ----------
    root : str or Path
        Folder of the table.
    sample : sequence of str
        Its first paths, in the form of :func:`aidet.datasets.table.normal_path`.
    stem : str
        Name of the table without its extension: of ``train/`` and ``test/`` the one named like it is preferred.
    encoding : str, optional
        The table's encoding. On Linux a name may have been written in it, too.
    """

    def __init__(self, root: Place, sample: Sequence[str], stem: str = "", encoding: Optional[str] = None) -> None:
        self.root, self.encoding = os.fspath(root), encoding
        self._listing = lru_cache(FOLDERS_KEPT)(self._list)
        probed = list(sample[:SAMPLE])
        self.move = self._find_move(probed[:: max(1, len(probed) // PROBED)], stem) if probed else Move()
        there = [self._there(self.move(path)) for path in probed]
        # If not one file is there, the images are elsewhere, and a search for each of a million rows would find none.
        self.careful = any(there) and not all(there)

    def __call__(self, path: str) -> str:
        """The path of the file, relative to the root; as it is if there is no such file."""
        moved = self.move(path)
        if not self.careful and moved.isascii() and has_extension(moved):
            return moved
        return moved if self._there(moved) else self._look_up(moved) or moved

    def file(self, path: str) -> Path:
        """The file of a path, below the root."""
        return Path(os.path.join(self.root, self(path)))

    def _there(self, path: str) -> bool:
        try:
            return os.path.isfile(os.path.join(self.root, path))
        except ValueError:  # a NUL character
            return False

    # --- one path --------------------------------------------------------------------------------------------------
    def _look_up(self, path: str) -> Optional[str]:
        """The file whose name differs in its form of Unicode, its bytes, the case of letters, or lacks an extension."""
        if self.encoding not in (None, "utf-8-sig"):
            raw = os.fsdecode(path.encode(self.encoding or "", "replace"))
            if self._there(raw):
                return raw
        here = ""
        *folders, name = path.split("/")
        for folder in folders:
            here = self._entry(here, folder) if folder not in ("", ".", "..") else f"{here}{folder}/"
            here = here if here.endswith("/") else here + "/"
        found = self._entry(here, name)
        return found if self._there(found) else None

    def _entry(self, folder: str, name: str) -> str:
        """``folder`` + the entry that a name means; the name itself if there is none, or more than one."""
        if os.path.lexists(os.path.join(self.root, folder + name)):
            return folder + name
        known = self._listing(folder)
        for key in (_plain(name), _plain(name).casefold(), "" if has_extension(name) else _plain(name) + "."):
            found = known.get(key, ()) if key else ()
            if len(found) == 1:
                return folder + found[0]
        return folder + name

    def _list(self, folder: str) -> Dict[str, List[str]]:
        """The entries of a folder by normal form, without regard to case, and (with a dot behind it) by stem."""
        known: Dict[str, List[str]] = {}
        try:
            names = os.listdir(os.path.join(self.root, folder) or ".")
        except (OSError, ValueError):
            return known
        for name in names:
            plain = _plain(name)
            keys = {plain, plain.casefold()}
            if has_extension(name):
                keys.add(os.path.splitext(plain)[0] + ".")
            for key in keys:
                known.setdefault(key, []).append(name)
        return known

    # --- all paths -------------------------------------------------------------------------------------------------
    def _find_move(self, probed: List[str], stem: str) -> Move:
        def hits(move: Move) -> int:
            moved = [move(path) for path in probed]
            return sum(self._there(path) or self._look_up(path) is not None for path in moved)

        if hits(Move()):
            return Move()
        fronts = _fronts(probed)
        for off in fronts:
            if off and hits(Move(off)):
                return Move(off)
        # A table in a folder of its own, beside the images: annotations/train.csv.
        if all("/" in path for path in probed) and hits(Move("", "../")):
            return Move("", "../")
        # Neither may a folder that tells classes or splits apart be exchanged for another, nor one be made up.
        folders = [on for on in self._folders() if not any(labels.side(part) is not None for part in on.split("/"))]
        for off in [f for f in fronts if not any(map(_tells, f.split("/")))]:
            count = {on: hits(Move(off, on)) for on in folders}
            best = [on for on, n in count.items() if n == max(count.values()) and 2 * n >= len(probed)]
            named = [on for on in best if _is_named_like(on, stem)]
            best = named if len(best) > 1 and len(named) == 1 else best
            if len(best) == 1:
                return Move(off, best[0])
            if best:
                return Move()
        return Move()

    def _folders(self) -> List[str]:
        """The folders below the root, two levels deep, each with its ``/``; at most :data:`FOLDERS`."""
        found: List[str] = []
        level = [""]
        for _ in range(2):
            deeper: List[str] = []
            for above in level:
                try:
                    with os.scandir(os.path.join(self.root, above) or ".") as entries:
                        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
                except OSError:
                    continue
                deeper += [f"{above}{name}/" for name in names]
            found += deeper
            level = deeper[:FOLDERS]
        return found[:FOLDERS]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _tells(folder: str) -> bool:
    return folder.lower() in SPLIT_WORDS or labels.side(folder) is not None


def _fronts(paths: Sequence[str]) -> List[str]:
    """The leading folders that all paths share, from none to all: ``["", "D:/", "D:/sets/"]``."""
    shared = os.path.commonprefix(list(paths))
    return [shared[:i] for i in range(len(shared) + 1) if not i or shared[i - 1] == "/"]


def _is_named_like(folder: str, stem: str) -> bool:
    """Whether a table belongs to a folder by its name: ``train.csv``, ``train_labels.csv`` to ``train/``."""
    first, words = folder.split("/")[0].lower(), stem.lower()
    return bool(words) and (words.startswith(first) or first.startswith(words))
