"""The journal of a run: one line per image, appended as soon as it is scored, so that a killed run can be resumed."""

import json
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from ..errors import UserError
from ..records import Record

# Ignored when comparing runs: a moved checkpoint is the same checkpoint, and its hash is in the header.
PLACES = "files"


def shard_of(text: str) -> Tuple[int, int]:
    """``"I/N"`` -> (I mod N, N). Shards may be counted from 0 or from 1; input k belongs to shard k mod N.

    Raises
    ------
    UserError
        Not of this form, or I above N.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(text))
    index, of = (int(g) for g in match.groups()) if match else (0, 0)
    if not of or index > of:
        raise UserError(f"shard (={text!r}) must be I/N with 0 <= I <= N, for example 1/4")
    return index % of, of


def journal_path(out: Union[str, Path], shard: Optional[Tuple[int, int]] = None) -> Path:
    """File of a run's rows: ``infer.journal``, or ``shard-I-of-N.journal``."""
    return Path(out) / ("infer.journal" if shard is None else f"shard-{shard[0]}-of-{shard[1]}.journal")


class Journal:
    """Rows of a run, appended one by one; survives ``kill -9`` at any moment.

    Parameters
    ----------
    path : str or Path
    header : dict
        What the rows depend on (models, votes, seed, ...), serialisable as JSON.
    resume : bool
        Keep the complete rows of an earlier run with the same header; otherwise start anew.

    Attributes
    ----------
    done : int
        Rows of the earlier run.
    bad : int
        Rows of unusable inputs, earlier ones included.

    Raises
    ------
    UserError
        ``resume`` is set and the journal has another header, or another process is writing it.
    """

    def __init__(self, path: Union[str, Path], header: Dict[str, Any], resume: bool = False) -> None:
        self.path, self.done, self.bad = Path(path), 0, 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Append mode: if the lock fails to keep another process out, the rows of both remain whole.
        self.file = open(self.path, "a", encoding="utf-8", newline="\n")
        try:
            _lock(self.file, self.path)
            # Drop the row that was being written when the run was killed; it is scored again.
            end = self._known(json.loads(json.dumps(header))) if resume else 0
            self.file.truncate(end)
            if not end:
                self._line(header)
            self.file.flush()
        except BaseException:
            self.file.close()
            raise

    def _known(self, header):
        """Count the complete rows of an earlier run; returns the number of bytes up to their end."""
        end = 0
        with open(self.path, "rb") as file:
            for i, line in enumerate(file):
                value = _row(line) if line.endswith(b"\n") else None
                if value is None or "done" in value or (i and not {"path", "status"} <= value.keys()):
                    break
                if i == 0:
                    self._compare(header, value)
                else:
                    self.done += 1
                    self.bad += value["status"] != "ok"
                end += len(line)
        return end

    def _compare(self, header, known):
        # Of both: a run with an option that this one lacks is another run.
        changed = [k for k in {**header, **known} if k != PLACES and header.get(k) != known.get(k)]
        if {"names", "total"} & set(changed):
            now = f"{known.get('total')} then, {header.get('total')} now"
            raise UserError(
                f"{str(self.path)!r} was written for other images or another order ({now}); run without --resume"
            )
        if changed:
            raise UserError(
                f"{str(self.path)!r} was written with another {changed[0]} "
                f"({known.get(changed[0])!r}, now {header.get(changed[0])!r}); run without --resume to start anew"
            )

    def _line(self, value):
        self.file.write(json.dumps(value) + "\n")

    def append(self, record: Record) -> None:
        """Add one row."""
        self.bad += not record.ok
        row = {
            "path": record.path,
            "score": record.score,
            "prob": record.prob,
            "label": record.label,
            "decision": record.decision,
            "status": record.status,
            "scores": record.scores,
        }
        if record.stability:
            row["stability"] = record.stability
        if record.note:
            row["note"] = record.note
        if record.reason is not None:
            row["reason"] = record.reason
        if record.local is not None:
            row["local"] = record.local
        self._line(row)

    def flush(self) -> None:
        """Hand the rows to the operating system, so that killing this process does not lose them."""
        self.file.flush()

    def close(self, rows: Optional[int] = None, facts: Optional[Dict[str, Any]] = None) -> None:
        """Close the file; with ``rows``, mark the journal as complete and add facts about the run."""
        if rows is not None:
            self._line({"done": rows, **(facts or {})})
        self.file.close()


def _lock(file, path):
    """Keep other processes from writing to the same journal; does nothing on a system without locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process is writing {str(path)!r}; wait for it, or give another --out") from None
    except (ImportError, OSError):
        pass


def _row(line):
    """One line of a journal as a dict; None if it is not one."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_header(path: Union[str, Path]) -> Dict[str, Any]:
    """First line of a journal.

    Raises
    ------
    UserError
        The file is missing or is not a journal.
    """
    try:
        with open(path, encoding="utf-8") as file:
            header = _row(file.readline())
    except (OSError, ValueError):
        header = None
    if header is None or "total" not in header:
        raise UserError(f"{str(path)!r} is not a journal of infer.py")
    return header


def read_end(path: Union[str, Path]) -> Dict[str, Any]:
    """Last line of a complete journal: ``rows`` and the facts given to :meth:`Journal.close`.

    Raises
    ------
    UserError
        The journal is not complete.
    """
    path = Path(path)
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        tail = file.read().rstrip(b"\n").split(b"\n")[-1]
    try:
        value = json.loads(tail)
        return {"rows": value.pop("done"), **value}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path.name} is not complete; run that shard again with --resume") from None


def read_journal(paths: Sequence[Union[str, Path]]) -> Iterator[Record]:
    """Read complete journals in the order of the inputs.

    Parameters
    ----------
    paths : sequence of str or Path
        One journal, or those of all N shards, which are read in turn.

    Yields
    ------
    Record

    Raises
    ------
    UserError
        A journal is not complete, or holds rows that ``infer.py`` did not write.
    """
    handles = [open(p, encoding="utf-8", errors="replace") for p in paths]
    try:
        for handle in handles:
            handle.readline()
        turn = 0
        while True:
            line = handles[turn].readline()
            value = _row(line) if line.endswith("\n") else None
            if value is None or not value.keys() & {"path", "done"}:
                raise UserError(f"{str(paths[turn])!r} is not complete; run that shard again with --resume")
            if "done" in value:
                return
            try:
                record = Record(**value)
            except TypeError:
                raise UserError(f"{str(paths[turn])!r} holds a row that infer.py did not write; run it again") from None
            yield record
            turn = (turn + 1) % len(handles)
    finally:
        for handle in handles:
            handle.close()


def find_shards(out: Union[str, Path]) -> List[Path]:
    """The journals of all shards in a folder, in order.

    Raises
    ------
    UserError
        There is no shard, one is missing or incomplete, or they are of different runs.
    """
    found = {}
    for path in Path(out).glob("shard-*-of-*.journal"):
        match = re.fullmatch(r"shard-(\d+)-of-(\d+)\.journal", path.name)
        if match:
            found[int(match.group(1)), int(match.group(2))] = path
    if not found:
        raise UserError(f"{str(out)!r} holds no shard; run infer.py with --shard I/N first")
    sizes = sorted({n for _, n in found})
    if len(sizes) > 1:
        raise UserError(f"{str(out)!r} holds shards of different splits ({', '.join(map(str, sizes))}); remove one set")
    of = sizes[0]
    missing = [i for i in range(of) if (i, of) not in found]
    if missing:
        raise UserError(f"{str(out)!r}: shard {missing[0]}/{of} is missing; run it, then merge")
    paths = [found[i, of] for i in range(of)]
    headers = [{k: v for k, v in read_header(p).items() if k not in ("shard", PLACES)} for p in paths]
    for path, header in zip(paths, headers):
        changed = [k for k in headers[0] if headers[0][k] != header.get(k)]
        if "names" in changed:
            raise UserError(
                f"{path.name} was made from other images than {paths[0].name}; run both again on the same images"
            )
        if changed:
            raise UserError(f"{path.name} was made with another {changed[0]} than {paths[0].name}; run it again")
    _check_complete(paths, headers[0]["total"])
    return paths


def _check_complete(paths, total):
    rows = sum(read_end(path)["rows"] for path in paths)
    if rows != total:
        raise UserError(f"the shards hold {rows} rows, the input had {total}; run them again")
