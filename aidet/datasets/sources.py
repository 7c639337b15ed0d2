"""One reader for every source of images: folders, archives, CSVs, ArtiFact's ``metadata.csv``, lists of paths.

Inference, evaluation, audit and training read the same files from the same source. Each kind of source has a file of
its own: :mod:`~aidet.datasets.folders`, :mod:`~aidet.datasets.archived`, :mod:`~aidet.datasets.tables`,
:mod:`~aidet.datasets.lists`.
"""

import csv
import hashlib
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Iterator, List, Tuple

from .. import archives, images
from ..errors import UserError
from . import archived
from .folders import SPLIT_NAMES, SPLIT_WORDS, is_without_splits, read_folder
from .lists import LIST_SUFFIXES, is_list, read_list, stream_list
from .locate import SAMPLE
from .table import Place, Table, examples, joined, normal_path, refuse_doubles
from .tables import (
    FOREIGN_SUFFIXES,
    GENERATOR_COLUMNS,
    LABEL_COLUMNS,
    PATH_COLUMNS,
    TABLE_SUFFIXES,
    column_of,
    label_column,
    locator_of,
    read_columns,
    read_csv,
    require_column,
    stream_csv,
    table_of,
    tables_in,
)

__all__ = [
    "GENERATOR_COLUMNS", "Inputs", "LABEL_COLUMNS", "Names", "PATH_COLUMNS", "Place", "SPLIT_NAMES", "SPLIT_WORDS",
    "Table", "column_of", "examples", "image_tables", "is_archived", "is_without_splits", "joined", "label_column",
    "normal_path", "read", "read_columns", "read_csv", "read_folder", "read_images", "read_list", "refuse_address",
    "refuse_doubles", "require_column", "split_source", "stream_csv", "stream_list", "table_of", "tables_in",
]  # fmt: skip


def split_source(text: Place) -> Tuple[str, List[str]]:
    """``PATH@column=value`` -> (path, [conditions]); without ``@`` no condition."""
    path, at, condition = str(text).rpartition("@")
    return (path, [condition]) if at and "=" in condition else (str(text), [])


def read(source: Place, what: str = "image list") -> Table:
    """Read the images of a folder, a CSV, or a list of paths.

    Parameters
    ----------
    source : str or Path
        A folder (searched with its subfolders; without images, its archives), an archive (:mod:`.archived`), a table
        with a column of :data:`PATH_COLUMNS`, or a ``.txt`` with one path per line; paths are relative to the file that
        contains them.
    what : str
        What the source is, for messages.

    Returns
    -------
    Table

    Raises
    ------
    UserError
        A missing source, no images, or a file that cannot be read.
    """
    refuse_address(source, what)
    path = Path(source)
    if is_archived(path):
        return archived.read(path, what)
    if path.is_dir():
        return read_folder(path, what)
    return read_list(path, what) if is_list(path) else read_csv(path, what)


def refuse_address(source: object, what: str) -> None:
    """Raise a :class:`UserError` for an address: ``infer.py`` alone takes one, see :class:`Inputs`."""
    if archives.is_address(source):
        raise UserError(f"{what} {source!r}: addresses are read by infer.py only; copy it to a disk")


def is_archived(path: Place) -> bool:
    """Whether a source is an archive, or a folder of archives."""
    return archives.is_archive(path) or (os.path.isdir(path) and archived.holds_shards(path))


def image_tables(place: Place, what: str = "data") -> List[Table]:
    """The tables inside a folder, as training reads them; of any other source its images as one table.

    Parameters
    ----------
    place : str or Path
        May end in ``@column=value``; the tables inside a folder are then given as one.
    what : str
        What the source is, for messages.

    Raises
    ------
    UserError
        As :func:`read_images`; or a bare column of labels.
    """
    folder, conditions = split_source(place)
    inside = tables_in(folder, what) if os.path.isdir(folder) and not is_archived(folder) else []
    if inside and conditions:
        inside = [joined(inside).where(conditions)]
    found = inside or [read_images(place)]
    for table in found:
        if table.paths is None:
            raise UserError(f"{table.source!r} is a bare column of labels; images are needed")
    return found


def read_images(text: Place, what: str = "image list") -> Table:
    """The images of any source of :func:`read`; no labels needed.

    Parameters
    ----------
    text : str
        The source; a table may end in ``@column=value``.
    what : str
        What the source is, for messages.

    Returns
    -------
    Table

    Raises
    ------
    UserError
        As :func:`read`; and a source without paths, or with a path that stands there twice.
    """
    place, conditions = split_source(text)
    table = read(place, what)
    if table.paths is None:
        raise UserError(f"{place!r} is a bare column of labels; images are needed")
    if conditions:
        archived.add_splits(table)
    table = replace(table, source=place).where(conditions)
    assert table.paths is not None
    refuse_doubles(table.paths, repr(place))
    return table


class Inputs:
    """The images of a run: a folder, one file, or a list; read as a stream, as often as needed.

    Parameters
    ----------
    where : str or Path
        A folder (searched with its subfolders, natural order; without images, its archives), an archive
        (:mod:`aidet.archives`), an image, each of these also at an address (``s3://BUCKET/FOLDER``); a table (a column
        of :data:`PATH_COLUMNS`) or a ``.txt`` (one path per line); paths are relative to the file that contains them,
        see :mod:`aidet.datasets.locate`.

    Raises
    ------
    UserError
        It does not exist; on reading, a list that is no text or no table, or a folder that may not be read.
    """

    def __init__(self, where: Place) -> None:
        self.where: Place
        self.root: Place
        if archives.is_address(where):
            self.where = archives.trimmed(str(where))
            self.kind = _kind_at(self.where)
            self.root = self.where if self.kind == "folder" else os.path.dirname(self.where)
            return
        self.where = Path(where)
        if not self.where.exists():
            raise UserError(f"images {str(where)!r} does not exist")
        self.kind = _kind(self.where)
        self.root = self.where if self.kind == "folder" else self.where.parent

    def __iter__(self) -> Iterator[Tuple[str, str]]:
        """Yield (key, path): the name that appears in the result, and the file."""
        names = self._names()
        if self.kind in ("folder", "file", "archive"):
            for name in names:
                yield name, os.path.join(self.root, name)
            return
        first = list(itertools.islice(names, SAMPLE))
        locate = locator_of(self.where, first)
        for name in itertools.chain(first, names):
            yield name, os.path.join(self.root, locate(name))

    def _names(self) -> Iterator[str]:
        self.left = images.LeftOut()
        readers = {"folder": self._walk, "archive": self._archive, "table": stream_csv, "list": stream_list}
        stream = readers.get(self.kind)
        try:
            yield from [os.path.basename(self.where)] if stream is None else stream(self.where)
        except (UnicodeError, csv.Error, OSError) as error:
            raise UserError(f"list {str(self.where)!r} cannot be read as UTF-8 text: {error}") from None

    def _walk(self, folder):
        return archived.walk(folder, self.left)

    def _archive(self, path):
        return archived.stream(path, self.left)

    def count(self) -> int:
        """Number of inputs; reads them once, which also finds errors in a list before any work is done.

        Raises
        ------
        UserError
            No images, or a list that cannot be read.
        """
        return self.survey()[0]

    def survey(self) -> Tuple[int, str]:
        """``(number, SHA-256 of the names in their order)`` of the inputs; raises as :meth:`count` does."""
        names = Names()
        for name in self._names():
            names.add(name)
        if not names.number:
            raise UserError("; ".join((f"images {str(self.where)!r} holds no image file", *self.left.lines())))
        return names.number, names.digest()


def _kind_at(address: str) -> str:
    """``folder``, ``archive`` or ``file`` for an address; tables and lists are read from disks."""
    try:
        found = archives.kind(address)
    except OSError as error:
        raise UserError(f"images {address!r} cannot be reached: {' '.join(str(error).split())[:300]}") from None
    if not found:
        raise UserError(f"images {address!r} does not exist")
    if found == "file" and archives.is_archive(address):
        return "archive"
    if os.path.splitext(address)[1].lower() in (*TABLE_SUFFIXES, *FOREIGN_SUFFIXES, *LIST_SUFFIXES):
        raise UserError(f"images {address!r}: tables and lists are read from disks only; copy it")
    return found


def _kind(where: Path) -> str:
    """``folder``, ``archive``, ``table``, ``list``, or ``file`` (one image)."""
    suffix = where.suffix.lower()
    if where.is_dir():
        return "folder"
    if archives.is_archive(where):
        return "archive"
    if suffix in FOREIGN_SUFFIXES:
        raise UserError(f"images {str(where)!r}: {suffix} is neither an image nor a list; save a list as CSV in UTF-8")
    if suffix in LIST_SUFFIXES:
        return "list" if is_list(where) else "table"
    return "table" if suffix in TABLE_SUFFIXES else "file"


class Names:
    """Hash of a run's input names: two runs with equal hashes have the same inputs in the same order."""

    def __init__(self) -> None:
        self.number, self._hash = 0, hashlib.sha256()

    def add(self, name: str) -> None:
        """Add the next name."""
        self.number += 1
        # File names cannot contain NUL, so it separates them.
        self._hash.update(name.encode("utf-8", "surrogatepass") + b"\0")

    def digest(self) -> str:
        """SHA-256 of all names so far, in hex."""
        return self._hash.hexdigest()
