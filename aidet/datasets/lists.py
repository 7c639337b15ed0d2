"""Lists of images: a text file with one path per line."""

from pathlib import Path
from typing import Iterator

from ..errors import UserError
from .table import Place, Table, normal_path
from .tables import PATH_COLUMNS, column_of


def read_list(path: Place, what: str = "image list") -> Table:
    """Read a text file with one path per line."""
    path = Path(path)
    try:
        paths = list(stream_list(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read as UTF-8 text: {error}") from None
    return Table(paths, {}, path.parent, str(path))


def is_list(path: Path) -> bool:
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
