"""The commands of ``infer.py``: score a set of images, join shards, check a result.

Printed lines are for the user of the command: results on stdout, remarks on stderr.
"""

import argparse
import contextlib
import functools
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, NamedTuple, Optional, Sequence, Tuple, Union

from tqdm import tqdm

from .. import cli, distributed, files, runinfo
from ..datasets.sources import Inputs, Names
from ..detector import Detector, default
from ..errors import UserError, nearest
from ..records import Record
from . import journal, look, maps, results, submission
from .journal import Journal, journal_path, read_end

Shard = Optional[Tuple[int, int]]
NOTES = 10  # that are printed; the column ``note`` has all
ENGINES = ("single", "ray")
Engine = Callable[[Iterable[Tuple[str, str]], int], Iterator[Record]]  # images and their number -> rows, in order


class NoneUsable(UserError):
    """Not one image of a run could be used: there are no verdicts to write."""


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


def is_look(args: argparse.Namespace) -> bool:
    """Whether the answer goes to the screen: images are named, and no place for result files."""
    vip = len(args.inputs) == 2 and all(name.lower().endswith(".csv") for name in args.inputs)
    if args.inputs and args.images:
        raise UserError(f"got {args.inputs[0]!r} and --images {args.images!r}; name the images in one way")
    return not args.out and not args.contest and not vip and bool(args.inputs or args.images)


def targets(args: argparse.Namespace) -> Target:
    """The target of a command line in any of its three forms.

    Raises
    ------
    UserError
        An incomplete or mixed form, an unknown format, or a file given as folder.
    """
    if args.inputs and not args.out:
        table, written = args.inputs
        if args.format not in (None, "logit"):
            raise UserError(
                f"--format {args.format}: the form {table} {written} writes logits; name a folder with --out"
            )
        return Target(table, Path(written).parent, "logit", Path(written).name)
    if len(args.inputs) > 1:
        raise UserError(f"{args.inputs[1]!r}: result files need one folder, table or list; name it with --images")
    source: str = args.images or (args.inputs[0] if args.inputs else "")
    form = args.format or ("csv" if args.contest and Path(args.out or "").suffix == ".csv" else "result")
    for value, missing in ((source, "no image is named, give an image or a folder"), (args.out, "--out is missing")):
        if not value:
            raise UserError(f"{missing}; see python infer.py --help")
    if form in look.FORMATS and form not in results.FORMATS:
        raise UserError(f"--format {form} is for the screen; leave out --out {args.out}")
    if form not in results.FORMATS:
        raise UserError(nearest(form, results.FORMATS, "format"))
    out = Path(args.out)
    if args.contest and out.suffix in (".txt", ".csv") and not out.is_dir():
        if out.suffix != Path(results.FILE_NAMES[form]).suffix:
            wanted = Path(results.FILE_NAMES[form]).suffix
            raise UserError(f"--output_path {args.out!r}: --format {form} writes a {wanted} file; give it that name")
        return Target(source, out.parent, form, out.name)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {args.out!r} is a file; give a folder")
    return Target(source, out, form)


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
    maps.check(args, is_look(args))
    _check_engine(args)
    if is_look(args):
        look.refuse(args)
        form = args.format or "table"
        if form not in look.FORMATS and form in results.FORMATS:
            raise UserError(f"--format {form} is a result file; add --out DIR")
        return look.look(args.inputs or [args.images], make_detector(args), form)
    target, shard = targets(args), shard_to_run(args.shard)
    if args.answer != "auto" and target.format != "submission":
        raise UserError(f"--answer {args.answer!r} goes with --format submission, not with {target.format!r}")
    if args.sample_submission and target.format != "submission":
        raise UserError(f"--sample-submission goes with --format submission, not with {target.format!r}")
    if args.localize:
        maps.refuse_inside(target.folder, target.images)
    read = (target.images, args.sample_submission)
    results.refuse_names(target.folder, target.format, target.name, args.stability, read)
    inputs = Inputs(target.images)
    total, names = inputs.survey()
    for line in inputs.left.lines():
        print(line, file=sys.stderr)
    if target.format == "submission":
        sample = submission.read_sample(args.sample_submission, args.answer)
        submission.match_sample(sample.names, (k for k, _ in inputs), sample.path)
    detector = make_detector(args)
    localizer = maps.opened(args) if args.localize else None
    facts = {
        **header_of(args, detector, shard, target), "images": str(inputs.where), "total": total, "names": names,
        **({} if localizer is None else {"localizer": maps.facts(localizer)}),
    }  # fmt: skip
    mapped = None if localizer is None else maps.Maps(localizer, target.folder, (key for key, _ in inputs))
    journal = Journal(journal_path(target.folder, shard), facts, args.resume)
    index, shards = shard or (0, 1)
    part = range(index, total, shards)
    before, start, done = journal.done, time.monotonic(), None
    try:
        with engine_of(args, detector, inputs, mapped) as engine:
            score_all(engine, inputs, journal, part, names)
        done = {
            "scored": len(part) - before,
            "seconds": round(time.monotonic() - start, 3),
            "load_seconds": round(start - begin, 3),
            "device": runinfo.machine("/".join(sorted({m.device for m in detector.models}))),
            **({"engine": args.engine} if args.engine != "single" else {}),
        }
        # The processes of a cluster count for themselves.
        if args.engine == "single" and detector.cascade is not None and detector.cascade.first is not None:
            done["scored_twice"] = detector.cascade.twice
            print(f"{done['scored_twice']} of {done['scored']} images were close and scored in float32, too")
    finally:
        journal.close(len(part) if done else None, done)
    if shard is not None:
        lost = f", {journal.bad} could not be used" if journal.bad else ""
        again = f"{cli.as_called('python infer.py')} merge {target.folder}"
        named = args.shard or f"{index}/{shards}"
        print(f"shard {named}: {len(part)} images{lost}; when all are done: {again}")
        # msrun treats any exit code but 0 as a crash and kills the other workers; merge reports the unusable images.
        return cli.PARTIAL if journal.bad and args.shard is not None else cli.OK
    try:
        code = finish(target.folder, [journal.path], facts, parts=args.engine == "ray")
    except NoneUsable:
        journal.path.unlink()
        raise
    journal.path.unlink()
    return code


def _check_engine(args):
    """Refuse options that do not go together."""
    if args.engine not in ENGINES:
        raise UserError(nearest(args.engine, ENGINES, "engine"))
    if args.engine == "single":
        if args.ray_address is not None:
            raise UserError(f"--ray-address {args.ray_address!r} goes with --engine ray")
        return
    if is_look(args):
        raise UserError("--engine ray writes result files; add --out DIR")
    if shard_to_run(args.shard) is not None:
        raise UserError("--engine ray divides the images itself; leave out --shard, and do not start it with msrun")
    distributed.ray()  # missing: say so before anything is read


@contextlib.contextmanager
def engine_of(
    args: argparse.Namespace, detector: Detector, inputs: Inputs, mapped: Optional[maps.Maps] = None
) -> Iterator[Engine]:
    """What scores the images: this process, which also writes maps if they are wanted, or those of a Ray cluster.

    Raises
    ------
    UserError
        There is no such cluster.
    """
    if args.engine == "single":
        yield lambda items, _: detector.stream(items) if mapped is None else mapped.stream(detector, items)
        return
    with distributed.connected(args.ray_address, args.workers) as workers:
        yield functools.partial(distributed.stream, detector=detector, workers=workers, root=str(inputs.root))


def make_detector(args: argparse.Namespace) -> Detector:
    """The detector that the options describe; its messages are printed on stderr."""
    names = (
        "backend votes vote fuse threshold operating_point unsure views flips stability early_exit cascade seed "
        "workers batch_size device on_error max_pixels truncated transform positive real precision"
    ).split()
    options = {name: getattr(args, name) for name in names}
    return Detector(*default.checkpoints(args.ckpt), say=cli.to_stderr, **options)


def header_of(args: argparse.Namespace, detector: Detector, shard: Shard, target: Target) -> Dict[str, Any]:
    """What a journal's rows depend on besides the images, and how its results are to be written."""
    names = "vote flips stability early_exit seed on_error max_pixels truncated transform".split()
    fusion = detector.fusion
    first = detector.cascade.first if detector.cascade is not None else None
    sides = {n: getattr(args, n) for n in ("positive", "real") if getattr(args, n) is not None}
    return {
        **sides,
        **{name: getattr(args, name) for name in names},
        "fuse": fusion.how,
        **({} if fusion.weights is None else {"weights": dict(zip(fusion.names, fusion.weights.tolist()))}),
        "votes": detector.votes,
        "views": detector.views,
        "threshold": detector.threshold,
        **({"operating_point": detector.operating_point} if detector.operating_point or detector.points else {}),
        **({"thresholds": detector.points} if detector.points else {}),
        **({"prior": detector.prior} if detector.prior is not None else {}),
        "unsure": detector.unsure,
        # The content of a fusion file, which may have changed under the same name when the run is resumed.
        "fusion": fusion.stated(),
        "models": {m.name: m.identity for m in detector.models},
        "stated": [m.stated() for m in detector.models],
        "cascade": first and first.path and files.sha256(first.path),
        "backends": [m.backend_name for m in detector.models],
        "precisions": [getattr(m.backend, "precision", None) for m in detector.models],
        "files": {m.name: str(m.path.resolve()) for m in detector.models if m.path is not None},
        "shard": shard and list(shard),
        "format": target.format,
        "name": target.name,
        "sample": args.sample_submission and str(args.sample_submission),
        **({"answer": args.answer} if target.format == "submission" else {}),
    }


def score_all(engine: Engine, inputs: Inputs, journal: journal.Journal, part: range, names: str) -> None:
    """Score the inputs of ``part`` that the journal does not hold yet, and append each row as it comes.

    Parameters
    ----------
    engine : callable
        See :func:`engine_of`.
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
    left = len(part) - journal.done
    bar = tqdm(engine(items, left), total=len(part), initial=journal.done, unit="img", file=sys.stderr)
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


def finish(out: Path, journals: Sequence[Path], facts: Dict[str, Any], parts: bool = False) -> int:
    """Write the result files from complete journals and print the summary.

    Parameters
    ----------
    out : Path
        Folder of the results.
    journals : sequence of Path
        One journal, or those of all shards.
    facts : dict
        The journals' header.
    parts : bool
        Write the rows as Parquet files, too.

    Returns
    -------
    int
        Exit code: 3 if some images could not be used.

    Raises
    ------
    NoneUsable
        No image could be used.
    """

    def rows():
        return journal.read_journal(journals)

    counts, reasons = _counted(rows())
    bad = len(reasons)
    if bad and not counts:
        why = cli.by_reason(reasons)
        raise NoneUsable(f"none of the {bad} images could be used, so nothing is written; by reason: {why}")
    answer = facts.get("answer", "auto")
    kind, on_error, sample, stability, name = (facts[key] for key in "format on_error sample stability name".split())
    local = "localizer" in facts
    written = results.write(
        out, rows, list(facts["models"]), kind, on_error, sample, stability, name, answer, local, facts["threshold"]
    )
    made = results.write_parts(out / "parts", rows, list(facts["models"]), stability) if parts else []
    ends = [read_end(journal) for journal in journals]
    facts_at = runinfo.write(out, facts, ends, {**counts, **({"error": bad} if bad else {})}, [*written, *made])
    said = ", ".join(look.decisions(counts))
    unusable = f", {bad} could not be used" if bad else ""
    print(f"{sum(counts.values()) + bad} images: {said or 'none usable'}{unusable}")
    if local:
        print(maps.summary(rows(), out))
    if facts["format"] == "submission":
        print(submission.read_sample(facts["sample"], answer).says())
    print("wrote " + ", ".join(map(str, (*written, *([out / "parts"] if made else []), facts_at))))
    if bad:
        _say_fate(facts, written[0].name, reasons)
    return cli.PARTIAL if bad else cli.OK


def _say_fate(facts, name, reasons):
    """The last lines of a run with unusable images: why, and what stands for them in the contest's file."""
    kind, on_error = facts["format"], facts["on_error"]
    print(f"could not be used, by reason: {cli.by_reason(reasons)}", file=sys.stderr)
    given = {"real": "real (0)", "generated": "generated (1)"}.get(on_error, "real (0)")
    if kind == "submission":
        form = submission.read_sample(facts["sample"], facts.get("answer", "auto"))
        label = {"real": 0, "generated": 1}.get(on_error)
        cells = [answer.value(Record("", label=label)) for answer in form.answers]
        fate = f"ARE WRITTEN AS {', '.join(cells)}"
    elif on_error == "skip" and kind != "csv":
        fate = "ARE LEFT OUT, so later lines move up"
    elif kind == "logit":
        fate = {"real": "ARE WRITTEN AS -1 (real)", "generated": "ARE WRITTEN AS 1 (generated)"}.get(
            on_error, "ARE WRITTEN AS 0 (undecided)"
        )
    elif kind == "csv":
        fate = "have no label" if on_error in ("fail", "skip") else f"ARE LABELLED {given}"
    else:
        fate = f"ARE WRITTEN AS {given}"
    print(
        f"WARNING: {len(reasons)} unusable images {fate} in {name}; --on-error real|generated|skip decides otherwise",
        file=sys.stderr,
    )


def _counted(rows):
    """(images by decision, the reasons of the unusable images, each of which is printed with its reason)."""
    counts, reasons, noted = {}, [], 0
    for record in rows:
        if record.note:
            noted += 1
            if noted <= NOTES:
                print(f"note: {cli.printable(record.path)}: {cli.printable(record.note)}", file=sys.stderr)
        if record.ok:
            counts[record.decision] = counts.get(record.decision, 0) + 1
            continue
        if not reasons:
            print("could not be used:", file=sys.stderr)
        reasons.append(record.status)
        print(f"  {cli.printable(record.path)}: {cli.printable(record.status[len('error: ') :])}", file=sys.stderr)
    if noted > NOTES:
        print(f"note: {noted - NOTES} more images have a note in scores.csv", file=sys.stderr)
    return counts, reasons


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
