"""Result rows, exactly one per input, and the CSV files they are written to and read from."""

import csv
import itertools
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, TextIO, Tuple, Union

from . import dialect
from .errors import UserError

COLUMNS = ("path", "score", "prob", "label", "decision", "status")


@dataclass
class Record:
    """The verdict on one input.

    Attributes
    ----------
    path : str
        As in the output file.
    score : float or None
        logit(generated) - logit(real), fused over views and models; None if the input could not be used.
    prob : float or None
        sigmoid(score), in [0, 1].
    label : int or None
        0 real, 1 generated. An unusable input gets what ``--on-error`` says.
    decision : str
        ``real``, ``generated`` or ``unsure``; empty if there is none.
    status : str
        ``ok`` or ``error: reason``.
    scores : dict of str to float
        Score per model.
    stability : dict of str to float
        In stability mode, the fused probability of the image ("original", first) and of each re-saved or resized
        version, by the operation that made it; otherwise empty.
    note : str
        What the user should know about how the file was read; the column ``note`` of result files if any row has one.
    reason : str or None
        Why the decision is ``unsure`` whatever the score: the image holds too little evidence. Empty if it holds
        enough, None if the detector has no rule for it; else the last column ``reason`` of result files.
    local : dict or None
        What a localizer found, as :meth:`aidet.detector.Localization.to_dict` gives it; None without a localizer and if
        the input could not be used.
    """

    path: str
    score: Optional[float] = None
    prob: Optional[float] = None
    label: Optional[int] = None
    decision: str = ""
    status: str = "ok"
    scores: Dict[str, float] = field(default_factory=dict)
    stability: Dict[str, float] = field(default_factory=dict)
    note: str = ""
    reason: Optional[str] = None
    local: Optional[Dict[str, Any]] = None

    @property
    def ok(self) -> bool:
        """Whether the input could be used."""
        return self.status == "ok"


def number(value: Optional[float]) -> str:
    """A float as text: nine significant digits without rounding noise; empty for None."""
    return "" if value is None else f"{value:.9g}"


def columns(ruled: bool = False) -> List[str]:
    """:data:`COLUMNS`, and ``reason`` if the detector has a rule on too little evidence (``ruled``)."""
    return [*COLUMNS, *(["reason"] if ruled else [])]


def cells(record: Record, ruled: bool = False) -> List[Any]:
    """The cells of :func:`columns` of a record; a value that there is none of is empty."""
    label = "" if record.label is None else record.label
    more = [record.reason or ""] if ruled else []
    return [record.path, number(record.score), number(record.prob), label, record.decision, record.status, *more]


class _Lines:
    """Takes rows that end in CR LF and writes them with LF."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, row: str) -> int:
        return self.file.write(row[:-2] + "\n")


def csv_writer(file: TextIO, separator: str = ",") -> Any:
    """``csv.writer`` with LF line endings that also quotes a carriage return in a field.

    Before Python 3.13 ``csv.writer`` quotes only the characters of its own line ending, but a file name may contain a
    bare CR, which readers take for the end of the row.
    """
    return csv.writer(_Lines(file), lineterminator="\r\n", delimiter=separator)


def stem_of(path: str) -> str:
    """Name of a file without its folder and its last extension; ``/`` separates folders."""
    return os.path.splitext(path.rsplit("/", 1)[-1])[0]


def read_scores(path: Union[str, Path]) -> List[Record]:
    """Read a ``scores.csv`` back.

    Returns
    -------
    list of Record

    Raises
    ------
    UserError
        Missing file or column, a value that is not a number, or a duplicate path; the message names the line.
    """
    rows, header = read_table(path, "scores")
    missing = [c for c in ("path", "score") if c not in header]
    if missing:
        raise UserError(f"scores {str(path)!r} has no column {missing[0]!r}; it has {', '.join(header)}")
    records: List[Record] = []
    seen: Dict[str, int] = {}
    for line, row in enumerate(rows, 2):
        if row["path"] in seen:
            raise UserError(f"scores {str(path)!r} line {line}: {row['path']!r} is already in line {seen[row['path']]}")
        seen[row["path"]] = line
        values: Dict[str, Optional[float]] = {}
        for name in ("score", "prob"):
            text = row.get(name) or ""
            try:
                value = float(text) if text else None
            except ValueError:
                raise UserError(f"scores {str(path)!r} line {line}: {name} {text!r} is not a number") from None
            if value is not None and math.isnan(value):
                raise UserError(f"scores {str(path)!r} line {line}: {name} is NaN")
            values[name] = value
        label = row.get("label") or ""
        if label not in ("", "0", "1"):
            raise UserError(f"scores {str(path)!r} line {line}: label {label!r} is neither 0 nor 1")
        try:
            per_model = {k[6:]: float(v) for k, v in row.items() if k.startswith("score:") and v}
        except ValueError as error:
            raise UserError(
                f"scores {str(path)!r} line {line}: the score of a model is not a number: {error}"
            ) from None
        status = row.get("status") or "ok"
        records.append(
            Record(
                row["path"],
                values["score"],
                values["prob"],
                int(label) if label else None,
                row.get("decision") or "",
                status,
                per_model,
            )
        )
    return records


def stream_table(
    path: Union[str, Path],
    what: str = "table",
    header_for: Optional[Callable[[List[str]], Optional[List[str]]]] = None,
) -> Iterator[List[str]]:
    """Yield the column names of a CSV with a header, then the fields of each row; rows without any text are skipped.

    Encoding and separator are those that :mod:`aidet.dialect` finds.

    Parameters
    ----------
    path : str or Path
    what : str
        What the table is, for messages.
    header_for : callable, optional
        Takes the first row and returns the column names if that row is not a header, else None.

    Raises
    ------
    UserError
        As for :func:`read_table`, when the row is reached.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what} {str(path)!r} does not exist")
    try:
        with dialect.csv_reader(path, what) as reader:
            first = next((fields for fields in reader if any(cell.strip() for cell in fields)), None)
            if first is None:
                raise UserError(f"{what} {str(path)!r} is empty")
            header = [h.strip() for h in first]
            made = None if header_for is None else header_for(header)
            header = made or header
            doubled = sorted({h for h in header if h and header.count(h) > 1})
            if doubled:
                raise UserError(f"{what} {str(path)!r}: column {doubled[0]!r} appears twice")
            yield header
            for fields in reader if made is None else itertools.chain([first], reader):
                if not fields or (len(fields) > 1 and not fields[0].strip() and not any(map(str.strip, fields))):
                    continue
                if len(fields) != len(header):
                    raise UserError(
                        f"{what} {str(path)!r} line {reader.line_num}: {len(fields)} fields, "
                        f"the header has {len(header)}"
                    )
                yield fields
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read as CSV: {error}") from None


def read_table(path: Union[str, Path], what: str = "table") -> Tuple[List[Dict[str, str]], List[str]]:
    """Read a CSV with a header.

    Returns
    -------
    (list of dict, list of str)
        The rows and the column names. Rows without any text are skipped.

    Raises
    ------
    UserError
        Missing or empty file, no text, a row with more or fewer fields than the header.
    """
    rows = stream_table(path, what)
    header = next(rows)
    return [dict(zip(header, fields)) for fields in rows], header


def digits(text: str) -> Tuple[int, str]:
    """Sort key for a string of digits in numerical order; Python does not parse a number of over 4300 digits."""
    text = text.lstrip("0")
    return len(text), text


def natural_key(path: object) -> Tuple[List[Tuple[int, int, str]], str]:
    """Sort key: digits compare as numbers, so ``2.jpg`` comes before ``10.jpg``; the text breaks ties."""
    text = str(path)
    return [
        (0, *digits(part)) if part.isdigit() and part.isascii() else (1, 0, part)
        for part in re.split(r"([0-9]+)", text)
    ], text


def natural_order(names: Iterable[str]) -> List[str]:
    """Names sorted as by :func:`natural_key`, with a fifth of the memory: the key is one short string per name.

    Parameters
    ----------
    names : iterable of str
        File names (no NUL character).

    Returns
    -------
    list of str
    """

    def number(match):
        length, text = digits(match.group())
        # NUL sorts before every character, as the end of a string does.
        return f"\0{chr(1 + length)}{text}"

    # The sort is stable: if only leading zeros differ, the text decides.
    return sorted(sorted(names), key=lambda name: re.sub("[0-9]+", number, name))


def stem_order(paths: Sequence[object]) -> List[int]:
    """Order for ``result.txt``: by the number in the stem if every stem is a number, else natural order.

    Returns
    -------
    list of int
        Indices into ``paths``.
    """
    stems = [stem_of(str(p)) for p in paths]
    if all(re.fullmatch(r"[0-9]+", s) for s in stems):
        return sorted(range(len(paths)), key=lambda i: (digits(stems[i]), natural_key(paths[i])))
    return sorted(range(len(paths)), key=lambda i: natural_key(paths[i]))
