"""Tables of images: CSV with a header, a bare column of 0 and 1, ArtiFact's ``metadata.csv``.

Column names are defined here and nowhere else.
"""

from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from .. import records
from ..errors import UserError
from .table import Place, Table, normal_path

# Path, label and generator columns; the first one present is used (ArtiFact has a filename and a full image_path).
PATH_COLUMNS = ("path", "image_path", "filename", "file", "image", "ImageId", "name")
LABEL_COLUMNS = ("label", "target", "class", "answer")
GENERATOR_COLUMNS = ("generator", "category", "source")
# Tables that a folder of training data may contain.
TABLE_NAMES = ("labels.csv", "metadata.csv")


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
