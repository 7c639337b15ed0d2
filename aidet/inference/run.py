"""The commands of ``infer.py``: score a set of images, join shards, check a result.

Printed lines are for the user of the command: results on stdout, remarks on stderr.
"""

import argparse
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple, Union

from tqdm import tqdm

from .. import cli, files, runinfo
from ..datasets.sources import Inputs, Names
from ..detector import Detector, default
from ..errors import UserError, nearest
from . import journal, results
from .journal import Journal, journal_path, read_end

Shard = Optional[Tuple[int, int]]


class Target(NamedTuple):
    """What to score and where the results go.

    Attributes
    ----------
    images : str
    folder : Path
    format : str
        One of :data:`aidet.inference.results.FORMATS`.
    name : str or None
        File name of the result; None: the format's own.
    """

    images: str
    folder: Path
    format: str
    name: Optional[str] = None


def targets(args: argparse.Namespace) -> Target:
    """The target of a command line in any of its three forms.

    Raises
    ------
    UserError
        An incomplete or mixed form, an unknown format, or a file given as folder.
    """
    if args.vip:
        if len(args.vip) != 2 or args.images or args.out:
            got = " ".join(args.vip)
            raise UserError(f"got {got!r}; the form is: infer.py IN.csv OUT.csv, without --images and --out")
        source, target = args.vip
        if not source.endswith(".csv") or not target.endswith(".csv"):
            raise UserError(f"IN.csv OUT.csv: {source!r} and {target!r} must both end in .csv")
        return Target(source, Path(target).parent, "logit", Path(target).name)
    for flag, value in (("--images", args.images), ("--out", args.out)):
        if not value:
            raise UserError(f"{flag} is missing; see python infer.py --help")
    if args.format not in results.FORMATS:
        raise UserError(nearest(args.format, results.FORMATS, "format"))
    out = Path(args.out)
    if args.contest and out.suffix in (".txt", ".csv") and not out.is_dir():
        return Target(args.images, out.parent, args.format if out.suffix == ".txt" else "csv", out.name)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {args.out!r} is a file; give a folder")
    return Target(args.images, out, args.format)


def shard_to_run(given: Optional[str]) -> Shard:
    """(index, number of shards) of ``--shard`` or, if this process was started by msrun, of its rank; else None."""
    if given is not None:
        return journal.shard_of(given)
    rank, size = os.environ.get("RANK_ID", ""), int(os.environ.get("RANK_SIZE") or 1)
    return journal.shard_of(f"{rank}/{size}") if size > 1 and rank.isdigit() else None


def score(args: argparse.Namespace, begin: Optional[float] = None) -> int:
    """Score the images, or one shard of them, and write the result files.

    Parameters
    ----------
    args : argparse.Namespace
        The options of ``infer.py``.
    begin : float, optional
        ``time.monotonic()`` when the command started, for the time it took to load; default: now.

    Returns
    -------
    int
        Exit code, see :func:`aidet.cli.main`.

    Raises
    ------
    UserError
    """
    begin = time.monotonic() if begin is None else begin
    target, shard = targets(args), shard_to_run(args.shard)
    inputs = Inputs(target.images)
    total, names = inputs.survey()
    if target.format == "submission":
        table, header = results.read_sample(args.sample_submission)
        results.match_sample([r[header[0]] for r in table], (k for k, _ in inputs), args.sample_submission)
    detector = make_detector(args)
    facts = {
        **header_of(args, detector, shard, target), "images": str(inputs.where), "total": total, "names": names,
    }  # fmt: skip
    journal = Journal(journal_path(target.folder, shard), facts, args.resume)
    index, shards = shard or (0, 1)
    part = range(index, total, shards)
    before, start, done = journal.done, time.monotonic(), None
    try:
        score_all(detector, inputs, journal, part, names)
        done = {
            "scored": len(part) - before,
            "seconds": round(time.monotonic() - start, 3),
            "load_seconds": round(start - begin, 3),
            "device": runinfo.machine("/".join(sorted({m.device for m in detector.models}))),
        }
        if detector.cascade is not None and detector.cascade.first is not None:
            done["scored_twice"] = detector.cascade.twice
            print(f"{done['scored_twice']} of {done['scored']} images were close and scored in float32, too")
    finally:
        journal.close(len(part) if done else None, done)
    if shard is not None:
        lost = f", {journal.bad} could not be used" if journal.bad else ""
        again = f"python infer.py merge {target.folder}"
        print(f"shard {index}/{shards}: {len(part)} images{lost}; when all are done: {again}")
        # msrun treats any exit code but 0 as a crash and kills the other workers; merge reports the unusable images.
        return cli.PARTIAL if journal.bad and args.shard is not None else cli.OK
    code = finish(target.folder, [journal.path], facts)
    journal.path.unlink()
    return code


def make_detector(args: argparse.Namespace) -> Detector:
    """The detector that the options describe; its messages are printed on stderr."""
    names = (
        "backend votes vote fuse threshold unsure views flips stability early_exit cascade seed workers batch_size "
        "device on_error"
    ).split()
    options = {name: getattr(args, name) for name in names}
    options.update(positive=args.positive, real=args.real)
    return Detector(*default.checkpoints(args.ckpt), say=cli.to_stderr, **options)


def header_of(args: argparse.Namespace, detector: Detector, shard: Shard, target: Target) -> Dict[str, Any]:
    """What a journal's rows depend on besides the images, and how its results are to be written."""
    names = "vote fuse flips stability early_exit seed on_error".split()
    views = [m.views for m in detector.models]
    weights = detector.fusion.weights
    first = detector.cascade.first if detector.cascade is not None else None
    sides = {n: getattr(args, n) for n in ("positive", "real") if getattr(args, n) is not None}
    return {
        **sides,
        **{name: getattr(args, name) for name in names},
        "votes": detector.votes,
        "views": detector.views,
        "preprocessing": [v and [v.first.text, v.others and v.others.text] for v in views],
        "threshold": detector.threshold,
        "unsure": detector.unsure,
        # The content of a fusion file, which may have changed under the same name when the run is resumed.
        "fusion": [detector.fusion.how, None if weights is None else weights.tolist(), detector.fusion.thresholds],
        "models": {m.name: m.identity for m in detector.models},
        "cascade": first and files.sha256(first.path),
        "backends": [m.backend_name for m in detector.models],
        "files": {m.name: str(m.path.resolve()) for m in detector.models if m.path is not None},
        "shard": shard and list(shard),
        "format": target.format,
        "name": target.name,
        "sample": args.sample_submission and str(args.sample_submission),
    }


def score_all(detector: Detector, inputs: Inputs, journal: journal.Journal, part: range, names: str) -> None:
    """Score the inputs of ``part`` that the journal does not hold yet, and append each row as it comes.

    Parameters
    ----------
    detector : aidet.Detector
    inputs : aidet.datasets.sources.Inputs
    journal : aidet.inference.journal.Journal
    part : range
        Numbers of the inputs of this shard.
    names : str
        Hash of the inputs' names from when they were counted.

    Raises
    ------
    UserError
        A file was added or removed since then: a row would be missing, or belong to another file than in other shards.
    """
    seen = Names()

    def mine():
        for i, item in enumerate(inputs):
            seen.add(item[0])
            if i in part:
                yield item

    items = islice(mine(), journal.done, None)
    if journal.done:
        print(f"resuming after {journal.done} of {len(part)} images", file=sys.stderr)
    bar = tqdm(detector.stream(items), total=len(part), initial=journal.done, unit="img", file=sys.stderr)
    flushed = None
    for record in bar:
        journal.append(record)
        if flushed is None or time.monotonic() - flushed > 0.5:
            journal.flush()
            flushed = time.monotonic()
    if seen.digest() != names:
        raise UserError(
            f"the images changed while they were scored ({seen.number} at the end); run again without --resume"
        )


def finish(out: Path, journals: Sequence[Path], facts: Dict[str, Any]) -> int:
    """Write the result files from complete journals and print the summary.

    Parameters
    ----------
    out : Path
        Folder of the results.
    journals : sequence of Path
        One journal, or those of all shards.
    facts : dict
        The journals' header.

    Returns
    -------
    int
        Exit code: 3 if some images could not be used.
    """

    def rows():
        return journal.read_journal(journals)

    how = (facts[key] for key in "format on_error sample stability name".split())
    written = results.write(out, rows, list(facts["models"]), *how)
    counts, bad = _counted(rows())
    parts = [read_end(journal) for journal in journals]
    facts_at = runinfo.write(out, facts, parts, {**counts, **({"error": bad} if bad else {})}, written)
    said = ", ".join(f"{counts[k]} {k}" for k in ("real", "generated", "unsure") if k in counts)
    unusable = f", {bad} could not be used" if bad else ""
    print(f"{sum(counts.values()) + bad} images: {said or 'none usable'}{unusable}")
    if bad and facts["format"] != "csv":
        line = {"fail": "are written as real (0)", "skip": "are left out, so later lines move up"}
        what = line.get(facts["on_error"], f"are written as {facts['on_error']}")
        print(f"warning: {bad} unusable images {what} in {written[0].name}", file=sys.stderr)
    print("wrote " + ", ".join(str(p) for p in (*written, facts_at)))
    return cli.PARTIAL if bad else cli.OK


def _counted(rows):
    """(images by decision, number of unusable images, each of which is printed with its reason)."""
    counts, bad = {}, 0
    for record in rows:
        if record.ok:
            counts[record.decision] = counts.get(record.decision, 0) + 1
            continue
        if not bad:
            print("could not be used:", file=sys.stderr)
        bad += 1
        print(f"  {cli.printable(record.path)}: {cli.printable(record.status[len('error: ') :])}", file=sys.stderr)
    return counts, bad


def merge(out: Union[None, str, Path]) -> int:
    """Check that a folder holds all shards of a run, each complete, and write the results; gives the exit code.

    Raises
    ------
    UserError
        There is no folder, a shard is missing or incomplete, or the shards are of different runs.
    """
    if not out or not Path(out).is_dir():
        raise UserError(f"merge: {out!r} is not a folder; give the --out of the shards")
    paths = journal.find_shards(out)
    return finish(Path(out), paths, journal.read_header(paths[0]))


def check(result: Union[str, Path], images: Union[None, str, Path] = None, count: Optional[int] = None) -> None:
    """Print what :func:`aidet.inference.results.check` finds in a ``result.txt``, then ``ok``.

    Raises
    ------
    UserError
        The first fault.
    """
    for line in results.check(result, images, count):
        print(line)
    print("ok")
