"""One reader for every source of images: folders, CSVs, ArtiFact's ``metadata.csv``, lists of paths, numbered files.

Column names, split folder names and the normal form of a path are defined here and nowhere else, so that inference,
evaluation, audit and training read the same files from the same source.
"""

import collections
import csv
import hashlib
import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, TypeVar, Union

import numpy as np

from .. import images, records
from ..errors import UserError, nearest

# Path, label and generator columns; the first one present is used (ArtiFact has a filename and a full image_path).
PATH_COLUMNS = ("path", "image_path", "filename", "file", "image", "ImageId", "name")
LABEL_COLUMNS = ("label", "target", "class", "answer")
GENERATOR_COLUMNS = ("generator", "category", "source")
# Tables that a folder of training data may contain.
TABLE_NAMES = ("labels.csv", "metadata.csv")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# Folders that name neither a class nor a generator.
SPLIT_WORDS = frozenset(("images", *(word for words in SPLIT_NAMES.values() for word in words)))
SHOWN = 5  # examples listed in an error

Place = Union[str, Path]
AnyTable = TypeVar("AnyTable", bound="Table")


def normal_path(text: str) -> str:
    """The normal form of a path in a table or list: ``/`` between folders, no repeated ``/``, no leading ``./``.

    ``./img\\0.png`` and ``img/0.png`` are the same file. Names found in a folder are left as they are: on Linux a file
    name may hold a backslash.
    """
    if "\\" in text:
        text = text.replace("\\", "/")
    if "//" in text:
        text = re.sub("/+", "/", text)
    while text.startswith("./"):
        text = text[2:]
    return text


def examples(items: Iterable[Any]) -> str:
    """The first :data:`SHOWN` items, and how many more there are, for an error message."""
    all_items = list(items)
    more = f" and {len(all_items) - SHOWN} more" if len(all_items) > SHOWN else ""
    return ", ".join(str(i) for i in all_items[:SHOWN]) + more


def column_of(header: Iterable[str], names: Sequence[str]) -> Optional[str]:
    """The first of ``names`` that a table has, or None."""
    present = set(header)
    return next((name for name in names if name in present), None)


def require_column(header: Sequence[str], names: Sequence[str], what: str, path: Place) -> str:
    """As :func:`column_of`, but raise a :class:`UserError` that lists both sides if the table has none of them."""
    name = column_of(header, names)
    if name is None:
        there, wanted = ", ".join(header), ", ".join(names)
        raise UserError(f"{str(path)!r} has no {what} column; it has {there}; wanted one of {wanted}")
    return name


def refuse_doubles(keys: Sequence[str], what: str) -> None:
    """Raise a :class:`UserError` if a path appears twice; ``what`` names the source."""
    if len(set(keys)) == len(keys):
        return
    doubled = [key for key, n in collections.Counter(keys).items() if n > 1][:SHOWN]
    raise UserError(f"{what}: {len(keys) - len(set(keys))} paths stand there more than once: {examples(doubled)}")


def split_source(text: Place) -> Tuple[str, List[str]]:
    """``PATH@column=value`` -> (path, [conditions]); without ``@`` no condition."""
    path, at, condition = str(text).rpartition("@")
    return (path, [condition]) if at and "=" in condition else (str(text), [])


# --- the table ----------------------------------------------------------------------------------------------------
@dataclass
class Table:
    """Images and what their source says about each.

    Attributes
    ----------
    paths : list of str or None
        One per row, in the normal form of :func:`normal_path`; None if the source names no files (a bare column).
    columns : dict of str to list of str
        Every other column of the source; the cells of a bare column are ``label``.
    root : Path
        Folder that the paths are relative to.
    source : str
        Name of the source, for messages.
    """

    paths: Optional[List[str]]
    columns: Dict[str, List[str]] = field(default_factory=dict)
    root: Path = Path()
    source: str = ""

    def __len__(self) -> int:
        rows = next(iter(self.columns.values()), ()) if self.paths is None else self.paths
        return len(rows)

    def take(self: AnyTable, index: Iterable[int]) -> AnyTable:
        """The rows of ``index`` (integers), in that order, as a table of the same kind."""
        rows = np.asarray(index, np.intp)
        return replace(self, **{name: _taken(values, rows) for name, values in self._by_row().items()})

    def _by_row(self) -> Dict[str, Any]:
        """The attributes that have one value per row."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("root", "source")}

    def where(self: AnyTable, conditions: Optional[Iterable[str]]) -> AnyTable:
        """Keep the rows that satisfy every ``column=value`` (several values: ``column=a,b``).

        Raises
        ------
        UserError
            A column that does not exist, a malformed condition, or no rows left.
        """
        kept = np.ones(len(self), bool)
        for condition in conditions or ():
            name, equals, value = condition.partition("=")
            if not equals:
                raise UserError(f"--where {condition!r} must be COLUMN=VALUE")
            wanted = set(value.split(","))
            kept &= np.array([v in wanted for v in self.column(name)], bool)
            if not kept.any():
                have = ", ".join(sorted(set(self.column(name)))[:10])
                raise UserError(f"--where {condition!r} leaves no row of {self.source}; the column has: {have}")
        return self if kept.all() else self.take(np.flatnonzero(kept))

    def column(self, name: str) -> List[str]:
        """Values of a column as text; raise a :class:`UserError` for an unknown name."""
        if name not in self.columns:
            raise UserError(f"{self.source}: {nearest(name, self.columns, 'column')}")
        return self.columns[name]

    def files(self) -> List[Path]:
        """Paths on disk, one per row; an empty list if the source names none."""
        return [] if self.paths is None else [self.root / p for p in self.paths]

    def groups(self) -> Optional[List[str]]:
        """The ``group`` column (same source image = same group), or None."""
        return self.columns.get("group")


def _taken(values: Any, index: np.ndarray) -> Any:
    if values is None:
        return None
    if isinstance(values, dict):
        return {name: _taken(column, index) for name, column in values.items()}
    return values[index] if isinstance(values, np.ndarray) else [values[i] for i in index.tolist()]


def joined(tables: Sequence[AnyTable]) -> AnyTable:
    """Concatenate tables of one kind and root; a column that a table lacks gets empty cells."""
    first, parts = tables[0], [table._by_row() for table in tables]
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    made = {}
    for attribute, values in parts[0].items():
        if isinstance(values, np.ndarray):
            made[attribute] = np.concatenate([part[attribute] for part in parts])
        elif isinstance(values, list):
            made[attribute] = [value for part in parts for value in part[attribute]]
    made["columns"] = {
        name: [value for table in tables for value in table.columns.get(name) or [""] * len(table)] for name in names
    }
    return replace(first, **made)


# --- reading ------------------------------------------------------------------------------------------------------
def read(source: Place, what: str = "image list") -> Table:
    """Read the images of a folder, a CSV, or a list of paths.

    Parameters
    ----------
    source : str or Path
        A folder (searched with its subfolders), a CSV with a column of :data:`PATH_COLUMNS`, or a ``.txt`` with one
        path per line; paths are relative to the file that contains them.
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
    path = Path(source)
    if path.is_dir():
        return read_folder(path, what)
    return read_list(path, what) if _is_list(path) else read_csv(path, what)


def read_folder(folder: Place, what: str = "image list") -> Table:
    """The images below a folder; raise a :class:`UserError` if there are none."""
    keys = list(images.walk(folder))
    if not keys:
        raise UserError(f"{what} {str(folder)!r}: no images in this folder")
    return Table(keys, {}, Path(folder), str(folder))


def read_csv(path: Place, what: str = "table", labelled: bool = False) -> Table:
    """The rows of a CSV, or of a bare column of 0 and 1.

    Parameters
    ----------
    path : str or Path
    what : str
        What the file is, for messages.
    labelled : bool
        Also require one of :data:`LABEL_COLUMNS`.

    Raises
    ------
    UserError
        No such file, not UTF-8, ragged rows, no rows, or a missing column.
    """
    path = Path(path)
    header, columns = read_columns(path, what)
    if header is None:
        return Table(None, columns, path.parent, str(path))
    name = require_column(header, PATH_COLUMNS, "path", path)
    if labelled:
        require_column(header, LABEL_COLUMNS, "label", path)
    paths = [normal_path(cell) for cell in columns.pop(name)]
    return Table(paths, columns, path.parent, str(path))


def read_columns(path: Place, what: str) -> Tuple[Optional[List[str]], Dict[str, List[str]]]:
    """Header and columns of a CSV, with surrounding blanks stripped from the cells.

    For a bare column of 0 and 1 the header is None and the cells are returned as ``label``.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what} {str(path)!r} " + ("is not a file" if path.exists() else "does not exist"))
    try:
        with open(path, encoding="utf-8-sig") as file:
            first = next((line.strip() for line in file if line.strip()), "")
            if first in ("0", "1"):
                return None, {"label": [first] + [line.strip() for line in file if line.strip()]}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read as UTF-8 CSV: {error}") from None
    stream = records.stream_table(path, what)
    header = next(stream)
    rows = list(stream)
    if not rows:
        raise UserError(f"{what} {str(path)!r} has a header and no rows")
    return header, {name: [row[i].strip() for row in rows] for i, name in enumerate(header)}


def read_list(path: Place, what: str = "image list") -> Table:
    """Read a text file with one path per line."""
    path = Path(path)
    try:
        paths = list(stream_list(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read as UTF-8 text: {error}") from None
    return Table(paths, {}, path.parent, str(path))


def _is_list(path: Path) -> bool:
    """Whether a file is a list of paths: a ``.txt`` that starts neither with a table's header nor with a label."""
    if path.suffix.lower() != ".txt" or not path.is_file():
        return False
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            first = next((line.strip() for line in file if line.strip()), "0")
    except OSError:
        return False  # read_csv reports the reason
    return first not in ("0", "1") and column_of((cell.strip() for cell in first.split(",")), PATH_COLUMNS) is None


def stream_list(path: Place) -> Iterator[str]:
    """Yield the paths of a text file with one per line; empty lines are skipped."""
    with open(path, encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                yield normal_path(line.rstrip("\r\n"))


def stream_csv(path: Place) -> Iterator[str]:
    """Yield the paths of a CSV row by row, without loading the whole table.

    Rows may have more or fewer fields than the header, as long as they have a path.

    Raises
    ------
    UserError
        No column of :data:`PATH_COLUMNS`, or a row without a path.
    """
    with records.csv_reader(path) as reader:
        header = [h.strip() for h in next(reader, [])]
        column = column_of(header, PATH_COLUMNS)
        if column is None:
            wanted, there = ", ".join(PATH_COLUMNS), ", ".join(header)
            raise UserError(f"list {str(path)!r} has none of the columns {wanted}; it has {there}")
        place = header.index(column)
        for row in reader:
            if not row:
                continue
            cell = row[place].strip() if len(row) > place else ""
            if not cell:
                raise UserError(f"list {str(path)!r} line {reader.line_num}: no value for {column!r}")
            yield normal_path(cell)


def read_paths(text: Place) -> Tuple[List[str], Path]:
    """Image paths of any source of :func:`read`; no labels needed.

    Parameters
    ----------
    text : str
        The source; a CSV may end in ``@column=value``.

    Returns
    -------
    (list of str, Path)
        Paths, and the folder that they are relative to.
    """
    place, conditions = split_source(text)
    table = read(place)
    if table.paths is None:
        raise UserError(f"{place!r} is a bare column of labels; images are needed")
    table = replace(table, source=place).where(conditions)
    assert table.paths is not None
    refuse_doubles(table.paths, repr(place))
    return table.paths, table.root


# --- folders of training data -------------------------------------------------------------------------------------
def tables_in(folder: Place, what: str = "data") -> List[Table]:
    """The tables of a folder: its ``labels.csv`` or ``metadata.csv``, else the ``metadata.csv`` of its subfolders.

    The second form is ArtiFact (Rahman et al., ICIP 2023): each subfolder is one generator, and paths begin with it.

    Returns
    -------
    list of Table
        Empty if there are none.
    """
    folder = Path(folder)
    own = table_of(folder, what)
    if own is not None:
        return [own]
    tables = []
    for path in sorted(folder.glob("*/metadata.csv"), key=lambda p: records.natural_key(p.parent.name)):
        table, name = read_csv(path, what, labelled=True), path.parent.name
        if table.paths is None:
            raise UserError(f"{what} {str(path)!r} is a bare column of labels; images are needed")
        columns = {**table.columns, "generator": [name] * len(table)}
        tables.append(Table([f"{name}/{p}" for p in table.paths], columns, folder, str(path)))
    return tables


def table_of(folder: Place, what: str = "data") -> Optional[Table]:
    """The first of :data:`TABLE_NAMES` found in a folder, or None."""
    found = next((Path(folder) / name for name in TABLE_NAMES if (Path(folder) / name).is_file()), None)
    return None if found is None else read_csv(found, what, labelled=True)


# --- inputs of a run ----------------------------------------------------------------------------------------------
class Inputs:
    """The images of a run: a folder, one file, or a list; read as a stream, as often as needed.

    Parameters
    ----------
    where : str or Path
        A folder (searched with its subfolders, natural order), an image, or a ``.csv`` (a column of
        :data:`PATH_COLUMNS`, relative to the CSV) or ``.txt`` (one path per line, relative to the file).

    Raises
    ------
    UserError
        It does not exist; on reading, a list that is no UTF-8 text or CSV, or a folder that may not be read.
    """

    def __init__(self, where: Place) -> None:
        self.where = Path(where)
        suffix = self.where.suffix.lower()
        if not self.where.exists():
            raise UserError(f"images {str(where)!r} does not exist")
        self.kind = "folder" if self.where.is_dir() else {".csv": "csv", ".txt": "txt"}.get(suffix, "file")
        self.root = self.where if self.kind == "folder" else self.where.parent

    def __iter__(self) -> Iterator[Tuple[str, str]]:
        """Yield (key, path): the name that appears in the result, and the file."""
        for name in self._names():
            yield name, os.path.join(self.root, name)

    def _names(self) -> Iterator[str]:
        stream = {"folder": images.walk, "csv": stream_csv, "txt": stream_list}.get(self.kind)
        try:
            yield from [self.where.name] if stream is None else stream(self.where)
        except (UnicodeDecodeError, csv.Error, OSError) as error:
            raise UserError(f"list {str(self.where)!r} cannot be read as UTF-8 text: {error}") from None

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
            raise UserError(f"images {str(self.where)!r} holds no image file")
        return names.number, names.digest()


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
