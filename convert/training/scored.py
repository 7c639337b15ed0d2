"""Scores of labelled pictures, as they are and as the web would have them: what a detector is calibrated on."""

import csv
import itertools
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image

from aidet import files, images, records
from aidet.detector import Detector
from aidet.errors import UserError

from . import web

CLEAN = "clean"
COLUMNS = ("set", "path", "source", "label", "group", "version", "score", "reason", "weights", "views", "evidence")
KEPT_EVERY = 200  # scores, after which a file of scores is written


class Picture(NamedTuple):
    """A labelled picture.

    Attributes
    ----------
    set : str
        Name of the folder of its labels.
    name : str
        Path as in the labels.
    file : Path
    source : str
        Set, and generator or source of photographs.
    label : int
    group : str
        Set and source picture: what shares it is never on both sides of a cross-validation.
    """

    set: str
    name: str
    file: Path
    source: str
    label: int
    group: str


class Scored(NamedTuple):
    """Scores of pictures in several versions, one row each.

    Attributes
    ----------
    score : ndarray of float, shape (n,)
        Log-odds of *generated*: the mean of the views, not calibrated.
    label : ndarray of int, shape (n,)
    source, set, group, picture : ndarray of str, shape (n,)
    clean : ndarray of bool, shape (n,)
        The picture as it is; the others went :func:`through the web <convert.training.web.through>`.
    lacking : ndarray of bool, shape (n,)
        The detector found too little evidence.
    """

    score: np.ndarray
    label: np.ndarray
    source: np.ndarray
    set: np.ndarray
    group: np.ndarray
    picture: np.ndarray
    clean: np.ndarray
    lacking: np.ndarray

    def take(self, rows: np.ndarray) -> "Scored":
        """The rows of a mask or of numbers."""
        return Scored(*(column[rows] for column in self))


def pictures(labels: Sequence[str], photos: Sequence[str] = (), split: str = "val") -> List[Picture]:
    """The pictures of one split of some ``labels.csv``, and those of folders of photographs.

    Raises
    ------
    UserError
        One class is missing, or two sets have the same name.
    """
    from .detector import read

    found: List[Picture] = []
    for label in map(Path, labels):
        name = label.resolve().parent.name
        if any(p.set == name for p in found):
            raise UserError(f"two labels are in folders called {name!r}, by which sets are told apart; rename one")
        for r in read([label]):
            if r.get("split", split) != split:
                continue
            path = r["path"].relative_to(label.parent).as_posix()
            group = f"{name}/{r.get('group') or path}"
            found.append(Picture(name, path, r["path"], f"{name}/{r['generator']}", r["label"], group))
    for photo in photos:
        folder = images.require_folder(photo)
        found += [
            Picture(folder.name, n, folder / n, folder.name, 0, f"{folder.name}/{n}") for n in images.walk(folder)
        ]
    require_both([p.label for p in found], f"split {split} of {', '.join(labels)}")
    return found


def require_both(labels: Sequence[int], what: str) -> None:
    """Raise :class:`UserError` unless both classes occur."""
    for side, name in enumerate(("real", "generated")):
        if side not in labels:
            raise UserError(f"no {name} picture in {what}; a calibration needs both classes")


class Sheet:
    """Rows of :data:`COLUMNS` in a file that is whole at every moment, so that a killed run goes on where it was.

    Parameters
    ----------
    path : str or Path, optional
        None: nothing is kept.
    stamp : dict of str to str
        ``weights``, ``views`` and ``evidence`` of the detector; rows made with others are an error.
    """

    def __init__(self, path: Union[None, str, Path], stamp: Dict[str, str]) -> None:
        self.path, self.stamp = path, stamp
        self.rows: Dict[Tuple[str, str, str], Dict[str, Any]] = {}
        if path is None or not Path(path).is_file():
            return
        rows, header = records.read_table(path, "scores")
        missing = [c for c in COLUMNS if c not in header]
        if missing:
            raise UserError(f"scores {str(path)!r} have no column {missing[0]!r}; let this tool make them")
        for row in rows:
            for key, value in stamp.items():
                if row[key] != value:
                    raise UserError(
                        f"scores {str(path)!r} were made with other {key} ({row[key]!r}, now {value!r}); "
                        "name another file to score anew"
                    )
            self.rows[row["set"], row["path"], row["version"]] = row

    def add(self, picture: Picture, version: str, score: float, reason: str) -> None:
        """Note a score, and write the file now and then."""
        values = (picture.set, picture.name, picture.source, picture.label, picture.group, version,
                  f"{score:.9g}", reason)  # fmt: skip
        self.rows[picture.set, picture.name, version] = {**dict(zip(COLUMNS, map(str, values))), **self.stamp}
        if len(self.rows) % KEPT_EVERY == 0:
            self.write()

    def write(self) -> None:
        """Write all rows."""
        if self.path is None:
            return
        with files.atomic(self.path, errors="backslashreplace") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows.values())

    def scored(self, wanted: Optional[Sequence[Tuple[Picture, str]]] = None) -> Scored:
        """The rows as arrays: those of ``wanted``, in that order, or all."""
        rows = [self.rows[p.set, p.name, v] for p, v in wanted] if wanted is not None else list(self.rows.values())
        try:
            score = np.array([float(r["score"]) for r in rows])
            label = np.array([int(r["label"]) for r in rows])
        except ValueError as error:
            raise UserError(f"scores {str(self.path)!r}: {error}") from None
        return Scored(
            score,
            label,
            source=np.array([r["source"] for r in rows], object),
            set=np.array([r["set"] for r in rows], object),
            group=np.array([r["group"] for r in rows], object),
            picture=np.array([f"{r['set']}/{r['path']}" for r in rows], object),
            clean=np.array([r["version"] == CLEAN for r in rows], bool),
            lacking=np.array([r["reason"] != "" for r in rows], bool),
        )


def versions(some: Sequence[Picture], draws: int) -> List[Tuple[Picture, str]]:
    """Each picture as it is, and ``draws`` times as the web would have it."""
    names = [CLEAN, *(f"web {i}" for i in range(1, draws + 1))]
    return list(itertools.product(some, names))


def score(opened: Detector, wanted: Sequence[Tuple[Picture, str]], sheet: Sheet, least: int, seed: int) -> None:
    """Score what the sheet does not hold yet.

    Parameters
    ----------
    opened : aidet.Detector
        With soft votes.
    wanted : sequence of (Picture, str)
        See :func:`versions`.
    sheet : Sheet
    least : int
        See :func:`convert.training.web.through`.
    seed : int

    Raises
    ------
    UserError
        A picture that cannot be used; the scores made so far are kept.
    """
    from tqdm import tqdm

    todo = [(p, v) for p, v in wanted if (p.set, p.name, v) not in sheet.rows]
    if not todo:
        return
    scale, offset = opened.calibrated
    bar = tqdm(opened.stream(_items(todo, least, seed)), total=len(todo), unit="img", file=sys.stderr)
    try:
        for (picture, version), verdict in zip(todo, bar):
            if verdict.score is None:
                raise UserError(f"{picture.file}: {verdict.status}; the detector cannot be calibrated on it")
            sheet.add(picture, version, float(verdict.score / scale + offset), verdict.reason or "")
    finally:
        sheet.write()


def _items(todo, least, seed) -> Iterator[Tuple[str, Any]]:
    """(name, image) of each version; of a file that is no image its path, so that its verdict says why."""
    image: Optional[Image.Image] = None
    last = None
    for picture, version in todo:
        name = f"{picture.set}/{picture.name}"
        if last != name:
            try:
                image, last = images.decode(picture.file), name
            except images.ImageError:
                image, last = None, name
        if image is None:
            yield name, picture.file
        elif version == CLEAN:
            yield name, image
        else:
            yield name, web.through(image, name, int(version.split()[1]), least, seed)
