"""True labels, read from tables, folders and bare columns.

Label sources: a CSV ``path,label[,generator,group,...]``, an ArtiFact ``metadata.csv``
(``image_path,target,category``; Rahman et al., ICIP 2023), an ImageFolder whose folder names say the class, an
archive, or a bare column of 0 and 1 in file order. Scores: ``scores.csv`` of ``infer.py`` or the VIP Cup form
``filename,logit``.
Decisions without scores: a contest's ``result.txt`` (a bare column) or ``submission.csv`` (identifier and answer).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, List, Optional, Union

import numpy as np

from .. import labels
from ..errors import UserError, nearest
from . import sources
from .archived import add_splits, layout_of
from .folders import layout, refuse_silent


@dataclass
class Truth(sources.Table):
    """True labels: a table in which every row has a side.

    Attributes
    ----------
    paths, columns, root, source
        As in :class:`aidet.datasets.sources.Table`; ``columns`` is whatever else the source says about each row
        (generator, group, source, ...).
    labels : ndarray of int, shape (n,)
        0 real, 1 generated.
    """

    labels: np.ndarray = None  # type: ignore[assignment]  # always given; the base class has defaults

    def __len__(self) -> int:
        return len(self.labels)

    def column(self, name: str) -> List[str]:
        """Values of a column as text; ``label`` counts as one. Raise a :class:`UserError` for an unknown name."""
        if name == "label":
            return [labels.NAMES[v] for v in self.labels]
        if name not in self.columns:
            raise UserError(f"{self.source}: {nearest(name, [*self.columns, 'label'], 'column')}")
        return self.columns[name]


def read_labels(path: Union[str, Path], where: Optional[Iterable[str]] = None) -> Truth:
    """Read labels from any of the sources.

    Parameters
    ----------
    path : str or Path
        A CSV, a bare column of 0/1, a folder, or an archive or a folder of archives (:mod:`.archived`).
    where : list of str, optional
        ``column=value`` conditions, see :meth:`aidet.datasets.sources.Table.where`.

    Returns
    -------
    Truth

    Raises
    ------
    UserError
        Names the file and the first offending rows.
    """
    sources.refuse_address(path, "labels")
    if sources.is_archived(path):
        truth = _from_archive(sources.read(path, "labels"))
    elif Path(path).is_dir():
        truth = _from_folder(Path(path))
    else:
        truth = _from_table(sources.read_csv(path, "labels", labelled=True))
    return truth.where(where)


def _from_archive(table: sources.Table) -> Truth:
    if sources.column_of(table.columns, sources.LABEL_COLUMNS) is not None:
        return _from_table(table)
    found = layout_of(table, f"labels {table.source!r}")
    columns = {"generator": found.generators, **table.columns}
    return Truth(table.paths, columns, table.root, table.source, labels=np.array(found.sides))


def _from_table(table: sources.Table) -> Truth:
    path = table.source
    if table.paths is None:
        return _from_bare_column(table)
    column = sources.label_column(table.columns, path)
    cells = table.columns.pop(column)
    known = {cell: labels.of_cell(cell, column) for cell in set(cells)}
    values = [known[cell] for cell in cells]
    wrong = [f"{k} ({v!r})" for k, v, side in zip(table.paths, cells, values) if side is None]
    if wrong:
        raise UserError(f"labels {path!r}: neither 0/1 nor real/generated: {sources.examples(wrong)}")
    sources.refuse_doubles(table.paths, f"labels {path!r}")
    return Truth(table.paths, table.columns, table.root, table.source, table.locate, np.array(values))


def _from_bare_column(table: sources.Table) -> Truth:
    cells = table.columns["label"]
    wrong = [f"row {i + 1} is {cell!r}" for i, cell in enumerate(cells) if cell not in ("0", "1")]
    if wrong:
        raise UserError(f"labels {table.source!r} is a bare column of 0 and 1, but {sources.examples(wrong)}")
    return Truth(None, {}, table.root, table.source, labels=np.array([int(cell) for cell in cells]))


def _from_folder(root: Path) -> Truth:
    tables = [_from_table(table) for table in sources.tables_in(root, "labels")]
    if tables:
        whole = sources.joined(tables)
        whole.source = whole.source if len(tables) == 1 else str(root)
        return whole
    table = sources.read_folder(root, "labels")
    assert table.paths is not None
    found = layout(table.paths, f"labels {str(root)!r}")
    refuse_silent(table.paths, found.sides, f"labels {str(root)!r}")
    columns = {"generator": found.generators}
    truth = Truth(table.paths, columns, table.root, table.source, labels=np.array(found.sides))
    add_splits(truth)
    return truth
