"""The table of images that every source is read into, and the normal form of the paths in it."""

import collections
import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, TypeVar, Union

import numpy as np

from .. import images
from ..errors import UserError, nearest

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


def has_extension(name: str) -> bool:
    """Whether a file name ends in an image's extension; capitals count as small letters."""
    return os.path.splitext(name)[1].lower() in images.EXTENSIONS


def examples(items: Iterable[Any]) -> str:
    """The first :data:`SHOWN` items, and how many more there are, for an error message."""
    all_items = list(items)
    more = f" and {len(all_items) - SHOWN} more" if len(all_items) > SHOWN else ""
    return ", ".join(str(i) for i in all_items[:SHOWN]) + more


def refuse_doubles(keys: Sequence[str], what: str) -> None:
    """Raise a :class:`UserError` if a path appears twice; ``what`` names the source."""
    if len(set(keys)) == len(keys):
        return
    doubled = [key for key, n in collections.Counter(keys).items() if n > 1][:SHOWN]
    raise UserError(f"{what}: {len(keys) - len(set(keys))} paths occur more than once: {examples(doubled)}")


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
    locate : callable, optional
        From a path as the source writes it to the file below ``root``, see :mod:`aidet.datasets.locate`; None if the
        paths are those of the files.
    """

    paths: Optional[List[str]]
    columns: Dict[str, List[str]] = field(default_factory=dict)
    root: Path = Path()
    source: str = ""
    locate: Optional[Callable[[str], str]] = None

    def __len__(self) -> int:
        rows = next(iter(self.columns.values()), ()) if self.paths is None else self.paths
        return len(rows)

    def take(self: AnyTable, index: Iterable[int]) -> AnyTable:
        """The rows of ``index`` (integers), in that order, as a table of the same kind."""
        rows = np.asarray(index, np.intp)
        return replace(self, **{name: _taken(values, rows) for name, values in self._by_row().items()})

    def _by_row(self) -> Dict[str, Any]:
        """The attributes that have one value per row."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("root", "source", "locate")}

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
        return [self.root / path for path in self.located() or ()]

    def file(self, path: str) -> Path:
        """The file of one path of the table."""
        return self.root / (path if self.locate is None else self.locate(path))

    def located(self) -> Optional[List[str]]:
        """The paths of the files relative to ``root``, one per row; None if the source names none."""
        return self.paths if self.paths is None or self.locate is None else [self.locate(p) for p in self.paths]

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
