"""``infer.py photo.jpg ...``: the answer on the screen, and no files."""

import argparse
import heapq
import io
import json
import sys
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from .. import cli, images, records
from ..detector import Detector, Verdict, wording
from ..errors import UserError, nearest
from . import given

FORMATS = ("table", "json", "jsonl", "csv")
# With so many images, the most suspicious ones are listed again at the end.
MANY, LISTED = 20, 10


def look(names: Iterable[str], detector: Detector, form: str = "table", out: Callable[[str], Any] = print) -> int:
    """Score what is named and print one line for each image, as soon as it is there.

    Parameters
    ----------
    names : iterable of str
        See :func:`aidet.inference.given.items`.
    detector : aidet.Detector
    form : {"table", "json", "jsonl", "csv"}
        ``table``: verdict, probability of *generated*, name, and a summary; of a detector that states for which odds
        its probability holds, percentages, and at the end what they mean. The others: the fields of
        :meth:`aidet.detector.Verdict.to_dict`, or the columns of ``scores.csv``, and nothing else.
    out : callable
        Takes a line.

    Returns
    -------
    int
        Exit code: 0; 3 if some images could not be used; 2 if none could.

    Raises
    ------
    UserError
        An unknown form, or no image at all.
    """
    if form not in FORMATS:
        raise UserError(nearest(form, FORMATS, "format") + "; the files of a contest need --out DIR")
    counts: Dict[str, int] = {}
    left, words = images.LeftOut(), list(names)
    found = _counted(detector.stream(given.items(words, left)), counts)
    if form == "csv":
        lines = _csv(found, detector.ruled)
    else:
        lines = (
            _table(found, counts, detector.unsure) if form == "table" else {"json": _json, "jsonl": _jsonl}[form](found)
        )
    for line in lines:
        out(line)
    total, bad = sum(counts.values()), counts.get("", 0)
    for line in left.lines():
        print(line, file=sys.stderr)
    if not total:
        raise UserError(f"no image in {', '.join(map(repr, words))}; name an image, or a folder that holds some")
    return cli.WRONG if bad == total else cli.PARTIAL if bad else cli.OK


def _counted(verdicts: Iterable[Verdict], counts: Dict[str, int]) -> Iterator[Verdict]:
    """Pass the verdicts on and count them by decision; unusable images count under ''."""
    for verdict in verdicts:
        key = verdict.decision if verdict.ok else ""
        counts[key] = counts.get(key, 0) + 1
        yield verdict


def _table(
    verdicts: Iterable[Verdict], counts: Mapping[str, int], zone: Optional[Tuple[float, float]]
) -> Iterator[str]:
    """A line for each verdict, and a summary of what :func:`_counted` has counted by then."""
    suspicious: List[Tuple[float, int, str]] = []
    meaning = ""
    for i, verdict in enumerate(verdicts):
        yield _line(verdict)
        if verdict.prior is not None and verdict.threshold is not None:
            meaning = wording.meaning(verdict.threshold, verdict.prior, zone)
        if verdict.ok and verdict.prob is not None and not verdict.reason:
            heapq.heappush(suspicious, (verdict.prob, -i, verdict.path))
            suspicious = heapq.nlargest(LISTED, suspicious) if len(suspicious) > 10 * LISTED else suspicious
            heapq.heapify(suspicious)
    total, bad = sum(counts.values()), counts.get("", 0)
    if total < 2:
        yield from [meaning] if meaning else []
        return
    if total >= MANY and suspicious:
        yield f"\nmost likely generated, of {total}:"
        for prob, _, path in heapq.nlargest(LISTED, suspicious):
            shown = f"{wording.percent(prob):>6}" if meaning else f"{prob:.3f}"
            yield f"  {shown}  {cli.printable(path)}"
    yield f"{total} images: " + ", ".join([*decisions(counts), *([f"{bad} could not be used"] if bad else [])])
    yield from [meaning] if meaning else []


def decisions(counts: Mapping[str, int]) -> List[str]:
    """``3 real``, ``1 generated`` ..., of the decisions that occur."""
    return [f"{counts[name]} {name}" for name in ("real", "generated", "unsure") if name in counts]


def _line(verdict: Verdict) -> str:
    """Columns of fixed width first, because a name may be long and the next names are not known yet."""
    name = cli.printable(verdict.path)
    if verdict.prob is None:
        return f"unusable       -  {name}: {cli.printable(verdict.status[len('error: ') :])}"
    notes = [cli.printable(note) for note in (verdict.statement if verdict.reason else "", verdict.note) if note]
    note = f" ({'; '.join(notes)})" if notes else ""
    shown = f"{verdict.prob:.3f}" if verdict.percent is None else f"{verdict.percent:>6}"
    return f"{verdict.decision:<9}  {shown}  {name}{note}"


def _json(verdicts: Iterable[Verdict]) -> Iterator[str]:
    lines = [json.dumps(v.to_dict(), ensure_ascii=False) for v in verdicts]
    yield "[" + ",\n ".join(lines) + "]"


def _jsonl(verdicts: Iterable[Verdict]) -> Iterator[str]:
    for verdict in verdicts:
        yield json.dumps(verdict.to_dict(), ensure_ascii=False)


def _csv(verdicts: Iterable[Verdict], ruled: bool) -> Iterator[str]:
    yield _row(records.columns(ruled))
    for v in verdicts:
        yield _row(records.cells(v, ruled))


def _row(fields: Sequence[Any]) -> str:
    text = io.StringIO()
    records.csv_writer(text).writerow(fields)
    return text.getvalue().rstrip("\n")


def refuse(args: argparse.Namespace) -> None:
    """Raise :class:`UserError` for an option that only result files have a use for."""
    for flag, value in (("--resume", args.resume), ("--shard", args.shard)):
        if value:
            raise UserError(f"{flag} continues or divides result files; add --out DIR")
    if args.stability:
        raise UserError("--stability writes stability.csv; add --out DIR")
    if args.answer != "auto":
        raise UserError(f"--answer {args.answer!r} is for --format submission; add --out DIR")
    if args.sample_submission:
        raise UserError("--sample-submission is for --format submission; add --out DIR")
