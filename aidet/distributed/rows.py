"""Verdicts as Arrow tables: how they pass between processes, and what the Parquet parts hold."""

from typing import Any, List, Mapping, Optional, Sequence

from ..archives.parquet import pyarrow
from ..detector.views import STABILITY
from ..records import Record

SCORE, CHANGED = "score:", "stability:"  # before the name of a model, and of a version of the image


def schema(models: Sequence[str], stability: bool = False, raw: bool = False) -> Any:
    """The columns of scored rows: those of ``scores.csv`` with ``note`` and ``reason``, and those of
    ``stability.csv``.

    Parameters
    ----------
    models : sequence of str
        Names of the detector's models; each has a column ``score:NAME``.
    stability : bool
        Columns ``stability:VERSION`` for the image and its changed versions.
    raw : bool
        ``path`` is binary: UTF-8 in which a file name that is no Unicode survives.

    Returns
    -------
    pyarrow.Schema
    """
    arrow = pyarrow()
    text, real = arrow.string(), arrow.float64()
    columns = [("path", arrow.binary() if raw else text), ("score", real), ("prob", real), ("label", arrow.int8())]
    columns += [("decision", text), ("status", text), *((SCORE + name, real) for name in models)]
    columns += [("note", text), ("reason", text)]
    versions = ("original", *STABILITY) if stability else ()
    return arrow.schema([*columns, *((CHANGED + name, real) for name in versions)])


def to_table(records: Sequence[Record], form: Any, paths: Any = None) -> Any:
    """Rows as a table.

    Parameters
    ----------
    records : sequence of Record
    form : pyarrow.Schema
        See :func:`schema`.
    paths : pyarrow.Array, optional
        The column ``path``; default: the records' own.

    Returns
    -------
    pyarrow.Table
    """
    arrow = pyarrow()
    columns = []
    for field in form:
        if field.name == "path":
            made = arrow.array([plain(r.path) for r in records], field.type) if paths is None else paths
        elif field.name.startswith(SCORE):
            made = arrow.array([r.scores.get(field.name[len(SCORE) :]) for r in records], field.type)
        elif field.name.startswith(CHANGED):
            made = arrow.array([r.stability.get(field.name[len(CHANGED) :]) for r in records], field.type)
        else:
            cells = [getattr(r, field.name) for r in records]
            made = arrow.array([plain(c) if isinstance(c, str) else c for c in cells], field.type)
        columns.append(made)
    return arrow.table(columns, schema=form)


def from_table(table: Any) -> List[Record]:
    """The rows of a table that :func:`to_table` made."""
    found = []
    for row in table.to_pylist():
        own = {name: value for name, value in row.items() if not name.startswith((SCORE, CHANGED))}
        own["path"] = text(row["path"])
        found.append(Record(**own, scores=_named(row, SCORE), stability=_named(row, CHANGED)))
    return found


def _named(row: Mapping[str, Optional[float]], front: str) -> Any:
    return {name[len(front) :]: v for name, v in row.items() if name.startswith(front) and v is not None}


def plain(value: str) -> str:
    """A text as Unicode, with ``\\udcXX`` for what is none in a file name, as the result files have it."""
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")


def packed(value: str) -> bytes:
    """A text as bytes that :func:`text` turns back, whatever is in it."""
    return value.encode("utf-8", "surrogatepass")


def text(value: Any) -> str:
    """A cell as text, from the bytes of :func:`packed` or from text."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value
