"""Tables of images: CSV in any dialect, JSON Lines, a bare column of 0 and 1, ArtiFact's ``metadata.csv``.

Column names are defined here and nowhere else. Every reader of a table goes through :func:`read_columns` or
:func:`stream_csv`, so that all commands take the same tables.
"""

import csv
import json
import re
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from .. import dialect, labels, records
from ..errors import UserError
from .folders import SPLIT_WORDS
from .locate import SAMPLE, Locator
from .table import Place, Table, examples, has_extension, normal_path

# Path, label and generator columns; the first one present is used (ArtiFact has a filename and a full image_path).
# Capitals, blanks and underscores do not matter: ImageId is image_id.
PATH_COLUMNS = (
    "path", "image_path", "img_path", "file_path", "filename", "file_name", "file", "image", "image_name", "image_file",
    "image_filename", "img", "img_name", "ImageId", "name", "id",
)  # fmt: skip
# Of these the first one is used whose cells all say a class. In is_real and real, 1 means real.
LABEL_COLUMNS = (
    "label", "target", "class", "answer", "labels", "class_name", "label_name", "y", "gt", "ground_truth",
    "is_fake", "fake", "is_ai", "ai", "is_generated", "generated", "is_ai_generated", "ai_generated", "is_synthetic",
    "synthetic", "is_deepfake", "is_real", "real",
)  # fmt: skip
GENERATOR_COLUMNS = ("generator", "category", "source", "generator_name", "model")
# Tables that a folder of training data may contain.
TABLE_NAMES = ("labels.csv", "metadata.csv", "metadata.jsonl")
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".psv", ".jsonl", ".ndjson", ".json")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
# Suffixes that are neither a table this project reads nor an image.
FOREIGN_SUFFIXES = (".xlsx", ".xls", ".ods", ".feather", ".pkl", ".pickle", ".npy", ".npz")


# --- columns ------------------------------------------------------------------------------------------------------
def column_of(header: Iterable[str], names: Sequence[str]) -> Optional[str]:
    """The column of a table that has the first of ``names``, written as in the table; None if it has none of them.

    Capitals, blanks, ``-`` and ``_`` do not count, unless two columns differ in nothing else.
    """
    present = list(header)
    plain: Dict[str, str] = {}
    for column in present:
        plain.setdefault(_plain(column), column)
    for name in names:
        if name in present:
            return name
        if _plain(name) in plain:
            return plain[_plain(name)]
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name).lower()


def require_column(header: Sequence[str], names: Sequence[str], what: str, path: Place) -> str:
    """As :func:`column_of`, but raise a :class:`UserError` that lists both sides if the table has none of them."""
    name = column_of(header, names)
    if name is None:
        there, wanted = ", ".join(header), ", ".join(names)
        raise UserError(f"{str(path)!r} has no {what} column; it has {there}; wanted one of {wanted}")
    return name


def label_column(columns: Dict[str, List[str]], path: Place) -> str:
    """The column of a table that holds the classes.

    Parameters
    ----------
    columns : dict of str to list of str
    path : str or Path
        The table, for messages.

    Returns
    -------
    str
        The first of :data:`LABEL_COLUMNS` in which every cell says real or generated; if there is none, the first one
        that the table has.

    Raises
    ------
    UserError
        The table has none of these columns, or two that say different things.
    """
    first = require_column(list(columns), LABEL_COLUMNS, "label", path)
    present = list(dict.fromkeys(filter(None, (column_of(columns, [name]) for name in LABEL_COLUMNS))))
    said = {}
    for name in present:
        known = {cell: labels.of_cell(cell, name) for cell in set(columns[name])}
        if None not in known.values():
            said[name] = [known[cell] for cell in columns[name]]
    if not said:
        return first
    chosen, *others = said
    for other in others:
        apart = [i for i, (one, two) in enumerate(zip(said[chosen], said[other])) if one != two]
        if apart:
            shown = [f"row {i + 1}: {columns[chosen][i]} and {columns[other][i]}" for i in apart]
            raise UserError(
                f"{str(path)!r}: the columns {chosen!r} and {other!r} say different classes ({examples(shown)}); "
                "0 is real and 1 is generated, in is_real 1 is real; take one of the columns out, or rename it"
            )
    return chosen


def _header_for(first: List[str]) -> Optional[List[str]]:
    """Column names for a table without a header; None if its first row is a header.

    A row is no header if it has the name of one image, and beside it nothing but cells that can be labels: the only one
    is the label, of several nobody knows what they are.
    """
    spots = [i for i, cell in enumerate(first) if has_extension(cell)]
    others = [cell for i, cell in enumerate(first) if i not in spots]
    if len(spots) != 1 or column_of(first, PATH_COLUMNS) is not None:
        return None
    if any(labels.of_cell(cell) is None and not re.fullmatch("-?[0-9]{1,6}", cell) for cell in others):
        return None
    names = ["label"] if len(others) == 1 else [f"column {i + 1}" for i in range(len(first))]
    return ["path" if i in spots else names.pop(0) if len(others) == 1 else names[i] for i in range(len(first))]


def is_table(path: Place) -> bool:
    """Whether the first line of a text file is a table's header, or a row of a path and a label."""
    try:
        with dialect.csv_reader(path) as reader:
            first = next(([cell.strip() for cell in row] for row in reader if row), [])
    except (OSError, UnicodeError, csv.Error):
        return False
    return column_of(first, PATH_COLUMNS) is not None or len(_header_for(first) or ()) > 1


# --- reading ------------------------------------------------------------------------------------------------------
def read_csv(path: Place, what: str = "table", labelled: bool = False) -> Table:
    """The rows of a table, or of a bare column of 0 and 1.

    Parameters
    ----------
    path : str or Path
        CSV (separator and encoding are found, see :mod:`aidet.dialect`) or JSON Lines.
    what : str
        What the file is, for messages.
    labelled : bool
        Also require one of :data:`LABEL_COLUMNS`.

    Raises
    ------
    UserError
        No such file, no text, ragged rows, no rows, or a missing column.
    """
    path = Path(path)
    header, columns = read_columns(path, what)
    if header is None:
        return Table(None, columns, path.parent, str(path))
    name = require_column(header, PATH_COLUMNS, "path", path)
    if labelled:
        require_column(header, LABEL_COLUMNS, "label", path)
    paths = [normal_path(cell) for cell in columns.pop(name)]
    return Table(paths, columns, path.parent, str(path), locator_of(path, paths))


def locator_of(path: Place, paths: Sequence[str]) -> Locator:
    """Where the files of a table or list lie; ``paths`` are its rows, or the first of them."""
    path = Path(path)
    return Locator(path.parent, paths[:SAMPLE], path.stem, dialect.encoding_of(path))


def read_columns(path: Place, what: str) -> Tuple[Optional[List[str]], Dict[str, List[str]]]:
    """Header and columns of a table, with surrounding blanks stripped from the cells.

    For a bare column of 0 and 1 the header is None and the cells are returned as ``label``.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what} {str(path)!r} " + ("is not a file" if path.exists() else "does not exist"))
    if path.suffix.lower() in JSON_SUFFIXES:
        return _read_json(path, what)
    try:
        with dialect.opened(path, what) as file:
            first = next((line.strip() for line in file if line.strip()), "")
            if first in ("0", "1"):
                return None, {"label": [first] + [line.strip() for line in file if line.strip()]}
    except (OSError, UnicodeError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read as UTF-8 CSV: {error}") from None
    stream = records.stream_table(path, what, _header_for)
    header = next(stream)
    rows = list(stream)
    if not rows:
        raise UserError(f"{what} {str(path)!r} has a header and no rows")
    return header, {name: [row[i].strip() for row in rows] for i, name in enumerate(header)}


def stream_csv(path: Place) -> Iterator[str]:
    """Yield the paths of a table row by row, without loading the whole table.

    Rows may have more or fewer fields than the header, as long as they have a path.

    Raises
    ------
    UserError
        No column of :data:`PATH_COLUMNS`, or a row without a path.
    """
    path = Path(path)
    if path.suffix.lower() in JSON_SUFFIXES:
        yield from _stream_json(path)
        return
    with dialect.csv_reader(path, "list") as reader:
        first: List[str] = next((row for row in reader if any(cell.strip() for cell in row)), [])
        if not first:
            raise UserError(f"list {str(path)!r} is empty")
        header = [h.strip() for h in first]
        made = _header_for(header)
        column = _path_column(made or header, path)
        place = (made or header).index(column)
        if made is not None:
            yield normal_path(first[place].strip())
        for row in reader:
            cell = row[place].strip() if len(row) > place else ""
            if not cell:
                if not row or (len(row) > 1 and not any(map(str.strip, row))):
                    continue
                raise UserError(f"list {str(path)!r} line {reader.line_num}: no value for {column!r}")
            yield normal_path(cell)


def _path_column(header: Sequence[str], path: Path) -> str:
    column = column_of(header, PATH_COLUMNS)
    if column is None:
        wanted, there = ", ".join(PATH_COLUMNS), ", ".join(header)
        raise UserError(f"list {str(path)!r} has none of the columns {wanted}; it has {there}")
    return column


# --- JSON Lines ---------------------------------------------------------------------------------------------------
def _objects(path: Path, what: str) -> Iterator[Tuple[int, Dict[str, Any]]]:
    """(line, object) of a file with one JSON object per line, or of one list of objects."""
    try:
        with dialect.opened(path, what) as file:
            if path.suffix.lower() == ".json":
                lines: Iterable[Any] = enumerate(_listed(file.read()), 1)
            else:
                lines = ((n, json.loads(line)) for n, line in enumerate(file, 1) if line.strip())
            for number, item in lines:
                if not isinstance(item, dict):
                    raise UserError(f"{what} {str(path)!r} line {number}: {str(item)[:40]!r} is no JSON object")
                yield number, {str(key).strip(): value for key, value in item.items()}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read as JSON: {error}") from None


def _listed(text: str) -> List[Any]:
    """The objects of a JSON text: a list of them, or one per line."""
    try:
        value = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return value if isinstance(value, list) else [value]


def _cell(value: Any) -> str:
    """A JSON value as the cell of a table."""
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value)


def _read_json(path: Path, what: str) -> Tuple[List[str], Dict[str, List[str]]]:
    rows = [item for _, item in _objects(path, what)]
    if not rows:
        raise UserError(f"{what} {str(path)!r} has no rows")
    header = list(dict.fromkeys(key for row in rows for key in row))
    return header, {name: [_cell(row.get(name)) for row in rows] for name in header}


def _stream_json(path: Path) -> Iterator[str]:
    column = None
    for number, row in _objects(path, "list"):
        if column is None:
            column = _path_column(list(row), path)
        cell = _cell(row.get(column))
        if not cell:
            raise UserError(f"list {str(path)!r} line {number}: no value for {column!r}")
        yield normal_path(cell)


# --- folders of training data -------------------------------------------------------------------------------------
def tables_in(folder: Place, what: str = "data") -> List[Table]:
    """The tables of a folder: its own, one of :data:`TABLE_NAMES`, else the ``metadata`` tables of its subfolders.

    The second form is ArtiFact (Rahman et al., ICIP 2023), where each subfolder is one generator, or an image folder of
    Hugging Face, where each is a split; paths begin with the subfolder.

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
    below = {path.parent for name in TABLE_NAMES[1:] for path in folder.glob(f"*/{name}")}
    for path in sorted(below, key=lambda p: records.natural_key(p.name)):
        table, name = _metadata(path, what), path.name
        if table is None:
            continue
        located = table.located()
        if located is None:
            raise UserError(f"{what} {table.source!r} is a bare column of labels; images are needed")
        # A folder per split, as image folders of Hugging Face have it, or a folder per generator.
        kind = "split" if name.lower() in SPLIT_WORDS else "generator"
        columns = {**table.columns, kind: [name] * len(table)}
        if "mask" in columns:  # masks are named from the table's own folder, too
            columns["mask"] = [cell and f"{name}/{normal_path(cell)}" for cell in columns["mask"]]
        tables.append(Table([f"{name}/{p}" for p in located], columns, folder, str(path)))
    return tables


def table_of(folder: Place, what: str = "data") -> Optional[Table]:
    """The first of :data:`TABLE_NAMES` found in a folder, or None.

    A ``metadata`` table without classes, as image folders of Hugging Face have one for captions, is passed over.
    """
    own = Path(folder) / TABLE_NAMES[0]
    return read_csv(own, what, labelled=True) if own.is_file() else _metadata(Path(folder), what)


def _metadata(folder: Path, what: str) -> Optional[Table]:
    """The ``metadata`` table of a folder, if there is one and it has labels."""
    for place in (folder / name for name in TABLE_NAMES[1:]):
        if place.is_file():
            header, _ = read_columns(place, what)
            if header is None or column_of(header, LABEL_COLUMNS) is not None:
                return read_csv(place, what, labelled=True)
    return None
