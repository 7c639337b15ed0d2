"""Lists of images: a text file with one path per line."""

from pathlib import Path
from typing import Iterator

from .. import dialect
from ..errors import UserError
from .table import Place, Table, normal_path
from .tables import is_table, locator_of

LIST_SUFFIXES = (".txt", ".lst", ".list")


def read_list(path: Place, what: str = "image list") -> Table:
    """Read a text file with one path per line."""
    path = Path(path)
    try:
        paths = list(stream_list(path))
    except (OSError, UnicodeError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read as UTF-8 text: {error}") from None
    return Table(paths, {}, path.parent, str(path), locator_of(path, paths))


def is_list(path: Path) -> bool:
    """Whether a file is a list of paths: a ``.txt`` that is neither a table nor a column of labels."""
    if path.suffix.lower() not in LIST_SUFFIXES or not path.is_file():
        return False
    try:
        with dialect.opened(path) as file:
            first = next((line.strip() for line in file if line.strip()), "0")
    except (OSError, UnicodeError, UserError):
        return False  # the reader of tables reports the reason
    return first not in ("0", "1") and not is_table(path)


def stream_list(path: Place) -> Iterator[str]:
    """Yield the paths of a text file with one per line; empty lines are skipped."""
    with dialect.opened(path, "list") as file:
        for line in file:
            if line.strip():
                yield normal_path(line.rstrip("\r\n"))
