"""The result files: written from the journal of a run in every format, and checked before an upload.

The results are written at the end of a run, from its journal or those of its shards. So a result file is either whole
or absent.
"""

import itertools
import os
import re
from pathlib import Path
from typing import Any, List, Optional, Sequence, Union

from .. import distributed, files, labels, records, runinfo
from ..archives.parquet import pyarrow
from ..datasets import sources
from ..errors import UserError
from ..records import COLUMNS, natural_key, number
from . import maps
from .submission import Rows, write_submission

PART, GROUP = 1 << 20, 1 << 16  # rows of a Parquet part, and of a row group in it
FORMATS = ("result", "csv", "logit", "submission")
FILE_NAMES = {"result": "result.txt", "csv": "scores.csv", "logit": "logits.csv", "submission": "submission.csv"}


def refuse_names(
    out: Union[str, Path], kind: str, name: Optional[str], stability: bool, read: Sequence[Union[None, str, Path]]
) -> None:
    """Refuse, before anything is scored, result files that would replace one another or a file that the run reads.

    Parameters
    ----------
    out, kind, name, stability :
        As for :func:`write`.
    read : sequence of str or Path
        The list of the images, the sample submission; None and folders are passed over.

    Raises
    ------
    UserError
        Names the file and the remedy.
    """
    own = name or FILE_NAMES[kind]
    others = [runinfo.NAME, *([] if kind == "csv" else ["scores.csv"]), *(["stability.csv"] if stability else [])]
    if own.lower() in others:
        raise UserError(f"{str(Path(out, own))!r}: a run writes {own} of its own beside it; give another name")
    for path in (Path(out, other) for other in (own, *others)):
        if path.is_dir():
            raise UserError(f"{str(path)!r} is a folder, where the result goes; give another name or folder")
        for source in (entry for entry in read if entry):
            if path.is_file() and os.path.isfile(source) and path.samefile(source):
                raise UserError(
                    f"{str(source)!r} is read by this run, whose result would replace it; give another name or folder"
                )
    if kind == "logit" and name is not None and Path(out, own).is_file():
        with open(Path(out, own), encoding="utf-8-sig", errors="replace") as file:
            first = file.readline().strip()
        if first not in ("", "filename,logit"):
            raise UserError(
                f"{str(Path(out, own))!r} is no earlier result (its first line is {first[:60]!r}) and would be "
                "replaced: in the form IN.csv OUT.csv the second file is the output; give another name"
            )


def write(
    out: Union[str, Path],
    rows: Rows,
    models: Sequence[str],
    kind: str = "result",
    on_error: str = "fail",
    sample: Union[None, str, Path] = None,
    stability: bool = False,
    name: Optional[str] = None,
    answer: str = "auto",
    local: bool = False,
    threshold: float = 0.5,
) -> List[Path]:
    """Write the result files.

    Parameters
    ----------
    out : str or Path
        Folder.
    rows : callable
        Returns a new iterator over the records; it is called several times.
    models : sequence of str
        Their scores become columns of ``scores.csv``.
    kind : {"result", "csv", "logit", "submission"}
        ``scores.csv`` is always written; in addition ``result.txt``, nothing, ``logits.csv`` or ``submission.csv``.
    on_error : str
        ``skip`` leaves unusable inputs out of every file but ``scores.csv``.
    sample : str or Path, optional
        The contest's sample, for ``submission``.
    stability : bool
        Write ``stability.csv``, too.
    name : str, optional
        File name of the chosen format; default: as above.
    answer : str
        What a submission holds, see :func:`aidet.inference.submission.read_sample`.
    local : bool
        Write the columns of a localizer, see :func:`write_scores`.
    threshold : float
        Of the probability; logits are counted from it, see :func:`aidet.labels.above`.

    Returns
    -------
    list of Path
        The files written, that of the chosen format first.

    Raises
    ------
    UserError
        A sample submission that does not fit the images.
    """
    out = Path(out)
    path, skip = out / (name or FILE_NAMES[kind]), on_error == "skip"
    written = []
    if kind == "result":
        written.append(write_result(path, rows, skip))
    elif kind == "logit":
        written.append(write_logits(path, rows, skip, threshold))
    elif kind == "submission":
        written.append(write_submission(path, rows, sample, answer, threshold))
    written.append(write_scores(path if kind == "csv" else out / "scores.csv", rows, models, local))
    if stability:
        written.append(write_stability(out / "stability.csv", rows))
    return written


def _open(path):
    # On Linux a file name need not be valid Unicode; other bytes are written as \udcXX.
    return files.atomic(path, errors="backslashreplace")


def write_scores(path: Union[str, Path], rows: Rows, models: Sequence[str], local: bool = False) -> Path:
    """``scores.csv``: path, score, prob, label, decision, status and one ``score:<model>`` column per model.

    With ``local`` the columns :data:`aidet.inference.maps.COLUMNS` follow. If a row has a note, a further column
    ``note``; if the detector has a rule on too little evidence, a last column ``reason``, which is empty where the
    evidence is enough.
    """
    noted = ruled = False
    for r in rows():
        noted, ruled = noted or bool(r.note), ruled or r.reason is not None
        if noted and ruled:
            break
    more = [*(["note"] if noted else []), *(["reason"] if ruled else [])]
    with _open(path) as file:
        writer = records.csv_writer(file)
        writer.writerow([*COLUMNS, *(f"score:{m}" for m in models), *(maps.COLUMNS if local else ()), *more])
        for r in rows():
            per_model = [*(number(r.scores.get(m)) for m in models), *(maps.cells(r) if local else ())]
            writer.writerow([*records.cells(r), *per_model, *(getattr(r, name) or "" for name in more)])
    return Path(path)


def write_stability(path: Union[str, Path], rows: Rows) -> Path:
    """``stability.csv``: spread of the probabilities, then that of the image and of each changed version."""
    with _open(path) as file:
        writer = records.csv_writer(file)
        names: Optional[List[str]] = None
        for r in rows():
            values = r.stability
            if values and names is None:
                names = list(values)
                writer.writerow(["path", "spread", *names])
            if values and names is not None:
                spread = max(values.values()) - min(values.values())
                writer.writerow([r.path, number(spread), *(number(values[n]) for n in names)])
    return Path(path)


def write_parts(folder: Union[str, Path], rows: Rows, models: Sequence[str], stability: bool = False) -> List[Path]:
    """``parts/part-00000.parquet``, ...: the rows of ``scores.csv`` at most :data:`PART` a file, unrounded.

    Parameters
    ----------
    folder : str or Path
        Replaced as a whole.
    rows, models, stability :
        See :func:`write`.

    Returns
    -------
    list of Path
    """
    form = distributed.schema(models, stability)
    paths: List[Path] = []
    todo = iter(rows())
    groups = iter(lambda: list(itertools.islice(todo, GROUP)), [])
    with files.atomic_path(folder) as made:
        made.mkdir()
        for first in groups:
            name = f"part-{len(paths):05d}.parquet"
            with pyarrow().parquet.ParquetWriter(made / name, form) as writer:
                for group in itertools.chain([first], itertools.islice(groups, PART // GROUP - 1)):
                    writer.write_table(distributed.to_table(group, form))
            paths.append(Path(folder) / name)
    return paths


def _label(record):
    # A contest's file needs 0 or 1 in every line. An image without a label counts as real, as after a tied vote.
    return 0 if record.label is None else record.label


def write_result(path: Union[str, Path], rows: Rows, skip: bool = False) -> Path:
    """``result.txt``: one 0 or 1 per line, LF, in the order of :func:`aidet.records.stem_order`.

    The natural order of a folder is nearly always that order; then the labels are streamed. Otherwise one sort key per
    image is held in memory.
    """
    numeric = ordered = natural = True
    before: Any = None
    before_natural: Any = None
    for r in rows():
        if skip and not r.ok:
            continue
        stem = records.stem_of(r.path)
        numeric = numeric and re.fullmatch(r"[0-9]+", stem) is not None
        plain = natural_key(r.path)
        key = (records.digits(stem), plain) if numeric else None
        ordered = ordered and (not numeric or before is None or before <= key)
        natural = natural and (before_natural is None or before_natural <= plain)
        before, before_natural = key, plain
        if not numeric and not natural:
            break

    def kept():
        return (r for r in rows() if r.ok or not skip)

    with files.atomic(path) as file:
        if ordered if numeric else natural:
            for r in kept():
                file.write(f"{_label(r)}\n")
        else:
            paths, labels_ = [], bytearray()
            for r in kept():
                paths.append(r.path)
                labels_.append(_label(r))
            for i in records.stem_order(paths):
                file.write(f"{labels_[i]}\n")
    return Path(path)


def _logit(record, threshold):
    """The score less the threshold's; for an unusable input 0 (undecided), or -1 or 1 if ``--on-error`` says so."""
    if record.score is not None:
        return number(labels.above(record.score, threshold))
    return {None: "0", 0: "-1", 1: "1"}[record.label]


def write_logits(path: Union[str, Path], rows: Rows, skip: bool = False, threshold: float = 0.5) -> Path:
    """The VIP Cup's CSV: ``filename,logit``, rows in input order; above 0 means generated at any threshold."""
    with _open(path) as file:
        writer = records.csv_writer(file)
        writer.writerow(["filename", "logit"])
        for r in rows():
            if r.ok or not skip:
                writer.writerow([r.path, _logit(r, threshold)])
    return Path(path)


# --- check -----------------------------------------------------------------------------------------------------------
def check(path: Union[str, Path], images_at: Union[None, str, Path] = None, count: Optional[int] = None) -> List[str]:
    """Check a ``result.txt`` as the contest's server will, before the only upload of the day.

    Parameters
    ----------
    path : str or Path
    images_at : str or Path, optional
        The test images; there must be one line for each.
    count : int, optional
        Number of lines that the contest expects.

    Returns
    -------
    list of str
        Lines for the user: counts, and warnings that start with ``warning:``.

    Raises
    ------
    UserError
        The first fault, with its line number.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"result {str(path)!r} does not exist")
    if path.suffix != ".txt" or re.search(r"\s", path.name):
        raise UserError(f"result {path.name!r}: the contest takes a .txt file whose name has no space")
    data = path.read_bytes()
    if data.startswith(b"\xef\xbb\xbf"):
        raise UserError(f"result {str(path)!r} starts with a byte-order mark; save it as plain UTF-8")
    if b"\r" in data:
        line = data[: data.index(b"\r")].count(b"\n") + 1
        raise UserError(f"result {str(path)!r} line {line} has a Windows line end (CR LF)")
    lines = data.split(b"\n")
    if lines and lines[-1] == b"":
        lines.pop()
    for i, text in enumerate(lines, 1):
        if text not in (b"0", b"1"):
            shown = text[:40].decode("utf-8", "replace")
            raise UserError(f"result {str(path)!r} line {i}: {shown!r} is neither 0 nor 1")
    names: List[str] = []
    there = None
    if images_at is not None:
        inputs = sources.Inputs(images_at)
        names = [name for name, _ in inputs]
        there = len(names) or inputs.count()  # which says why there are none
    for wanted, what in ((count, "--count wants"), (there, "the images are")):
        if wanted is not None and len(lines) != wanted:
            raise UserError(f"result {str(path)!r} has {len(lines)} lines, {what} {wanted}")
    ones = sum(line == b"1" for line in lines)
    said = [f"{len(lines)} lines: {len(lines) - ones} real (0), {ones} generated (1)"]
    if not lines:
        raise UserError(f"result {str(path)!r} is empty")
    if ones in (0, len(lines)):
        said.append(f"warning: every line is {'1' if ones else '0'}")
    if not data.endswith(b"\n"):
        said.append("warning: the last line has no line end")
    return said + _check_scores(path, lines, names)


def _check_scores(path, lines, names):
    """Compare labels and order with the ``scores.csv`` beside the result, if there is one, and its images."""
    scores = path.with_name("scores.csv")
    if not scores.is_file():
        return []
    every = records.read_scores(scores)
    rows = every if len(every) == len(lines) else [r for r in every if r.ok]  # what --on-error skip writes
    if len(rows) != len(lines):
        return [f"warning: scores.csv beside it has {len(every)} rows; it may be from another run"]
    for line, i in enumerate(records.stem_order([r.path for r in rows]), 1):
        if _label(rows[i]) != int(lines[line - 1]):
            raise UserError(
                f"result {str(path)!r} line {line} says {int(lines[line - 1])}, "
                f"scores.csv says {_label(rows[i])} for {rows[i].path!r}: the order or the run differs"
            )
    said = ["labels and order agree with scores.csv"]
    other = sorted(set(names) - {r.path for r in every})
    if other:
        said.append(f"warning: scores.csv is for other images than --images: {other[0]} is not in it")
    bad = [r for r in every if not r.ok]
    if bad:
        out = " and are left out" if len(rows) < len(every) else ""
        said.append(f"warning: {len(bad)} images could not be used{out}, the first is {bad[0].path}: {bad[0].status}")
    return said
