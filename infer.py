"""Score images with one or several detectors: votes, fusion, every contest's file.

python infer.py --ckpt A.ckpt [--ckpt B.ckpt] --images DIR|FILE|LIST.csv --out DIR [--votes 7] ...
python infer.py IN.csv OUT.csv                      the VIP Cup's form: filename in, filename,logit out
python infer.py merge DIR                           join what --shard 1/N ... N/N left in DIR
python infer.py check result.txt --images DIR       before the day's only upload
"""

import os
import sys
import time
from pathlib import Path

from aidet import cli
from aidet.errors import UserError, nearest

CONTEST = ("--model_path", "--test_data_path", "--output_path")


def parser():
    """The options; what they mean in full is in docs/infer.md."""
    p = cli.Parser(prog="infer.py", description=__doc__)
    p.add_argument("vip", nargs="*", metavar="IN.csv OUT.csv", help="the VIP Cup's form instead of --images, --out")
    p.add_argument(
        "--ckpt",
        "--model_path",
        action="append",
        metavar="A.ckpt",
        help="detector: a checkpoint with its sidecar, or an exported .onnx; more than one are fused "
        "(default: ckpt/aidet_default.ckpt)",
    )
    p.add_argument("--images", "--test_data_path", metavar="DIR|FILE|LIST.csv")
    p.add_argument("--out", "--output_path", metavar="DIR")
    g = p.add_argument_group("votes and decision")
    g.add_argument("--votes", type=int, metavar="N", help="views of each image (default: the sidecar's, else 1)")
    g.add_argument("--vote", default="soft", metavar="soft|hard", help="mean of probabilities, or share of votes")
    g.add_argument(
        "--views",
        metavar="random|native|grid|pyramid|LINE",
        help="the views: the sidecar's random line, random native crops, a grid of them, a grid at two sizes",
    )
    g.add_argument("--flips", action="store_true", help="score every view mirrored, too")
    g.add_argument("--fuse", default="soft", metavar="soft|hard|soft-or|score|FILE.yaml", help="how models are fused")
    g.add_argument("--threshold", type=float, help="generated above this prob (default: the sidecar's, else 0.5)")
    g.add_argument("--unsure", metavar="LOW,HIGH", help="zone of prob in which the decision is 'unsure'")
    g.add_argument("--stability", action="store_true", help="score re-saved and resized versions: stability.csv")
    g.add_argument("--early-exit", action="store_true", help="no more views than the decision needs; the same labels")
    g.add_argument(
        "--cascade", metavar="A_int8.onnx", help="eight bits of export.py --int8 first, float32 where it is close"
    )
    g.add_argument("--seed", type=int, default=42)
    g = p.add_argument_group("output")
    g.add_argument("--format", default="result", metavar="result|csv|logit|submission")
    g.add_argument("--sample-submission", metavar="S.csv")
    g.add_argument(
        "--on-error",
        default="fail",
        metavar="fail|real|generated|skip",
        help="unusable image: no label (0 in result.txt), that label, or left out",
    )
    g = p.add_argument_group("running")
    g.add_argument("--backend", default="auto", metavar="auto|onnxruntime|mindspore")
    g.add_argument("--device", default="auto", metavar="auto|Ascend|GPU|CPU")
    g.add_argument("--batch-size", type=int, default=32, metavar="N", help="images in a call on Ascend and GPU")
    g.add_argument("--workers", type=int, metavar="N", help="threads (default: the CPUs this process may use)")
    g.add_argument("--resume", action="store_true", help="go on where a killed run stopped")
    g.add_argument("--shard", metavar="I/N", help="only input k with k mod N = I mod N; then: infer.py merge DIR")
    return p


def parse(argv):
    """Arguments to namespace; the contest's form tolerates flags it does not know, as its platform passes some."""
    given = {a.partition("=")[0] for a in argv}
    if given & set(CONTEST):
        args, unknown = parser().parse_known_args(argv)
        if unknown:
            print(f"note: ignored, as the platform's own: {' '.join(unknown)}", file=sys.stderr)
        args.vip = []
    else:
        args = parser().parse_intermixed_args(argv)
    args.contest = bool(given & set(CONTEST))
    return args


def targets(args):
    """(images, folder, format, file name or None) from the three forms of the command line."""
    from aidet import output

    if args.vip:
        if len(args.vip) != 2 or args.images or args.out:
            got = " ".join(args.vip)
            raise UserError(f"got {got!r}; the form is: infer.py IN.csv OUT.csv, without --images and --out")
        source, target = args.vip
        if not source.endswith(".csv") or not target.endswith(".csv"):
            raise UserError(f"IN.csv OUT.csv: {source!r} and {target!r} must both end in .csv")
        return source, Path(target).parent, "logit", Path(target).name
    for flag, value in (("--images", args.images), ("--out", args.out)):
        if not value:
            raise UserError(f"{flag} is missing; see python infer.py --help")
    if args.format not in output.FORMATS:
        raise UserError(nearest(args.format, output.FORMATS, "format"))
    out = Path(args.out)
    if args.contest and out.suffix in (".txt", ".csv") and not out.is_dir():
        return args.images, out.parent, args.format if out.suffix == ".txt" else "csv", out.name
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {args.out!r} is a file; give a folder")
    return args.images, out, args.format, None


def run(argv):
    """The command line; gives the exit code."""
    if argv[:1] == ["check"]:
        return run_check(argv[1:])
    if argv[:1] == ["merge"]:
        return run_merge(argv[1:])
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        return cli.OK  # msrun starts the same command as its scheduler, with the rank of the first worker
    begin = time.monotonic()
    args = parse(argv)
    from aidet import output, runinfo
    from aidet.datasets import sources

    source, out, kind, name = targets(args)
    shard = None if args.shard is None else output.shard_of(args.shard)
    if shard is None and int(os.environ.get("RANK_SIZE") or 1) > 1 and os.environ.get("RANK_ID", "").isdigit():
        shard = output.shard_of(f"{os.environ['RANK_ID']}/{os.environ['RANK_SIZE']}")  # started by msrun
    inputs = sources.Inputs(source)
    total, names = inputs.survey()
    if kind == "submission":
        table, header = output.read_sample(args.sample_submission)
        output.match_sample([r[header[0]] for r in table], (k for k, _ in inputs), args.sample_submission)
    detector = make_detector(args)
    facts = {
        **header_of(args, detector, shard, kind, name), "images": str(inputs.where), "total": total, "names": names,
    }  # fmt: skip
    journal = output.Journal(output.journal_path(out, shard), facts, args.resume)
    part = range(*(shard or (0, 1))[:1], total, (shard or (0, 1))[1])
    before, start, done = journal.done, time.monotonic(), None
    try:
        score_all(detector, inputs, journal, part, names)
        done = {
            "scored": len(part) - before,
            "seconds": round(time.monotonic() - start, 3),
            "load_seconds": round(start - begin, 3),
            "device": runinfo.machine("/".join(sorted({m.device for m in detector.models}))),
        }
        if detector.first is not None:
            done["scored_twice"] = detector.twice.value
            print(f"{detector.twice.value} of {done['scored']} images were close and scored in float32, too")
    finally:
        journal.close(len(part) if done else None, done)
    if shard is not None:
        lost = f", {journal.bad} could not be used" if journal.bad else ""
        print(f"shard {shard[0]}/{shard[1]}: {len(part)} images{lost}; when all are done: python infer.py merge {out}")
        # msrun takes any code but 0 for a crash and kills the other workers; merge lists what could not be used.
        return cli.PARTIAL if journal.bad and args.shard is not None else cli.OK
    code = finish(out, [journal.path], facts)
    journal.path.unlink()
    return code


def make_detector(args):
    """Checkpoints and options to a :class:`aidet.Detector`."""
    from aidet import Detector, default

    names = (
        "backend",
        "votes",
        "vote",
        "fuse",
        "threshold",
        "unsure",
        "views",
        "flips",
        "stability",
        "early_exit",
        "cascade",
        "seed",
        "workers",
        "batch_size",
        "device",
        "on_error",
    )
    return Detector(*default.checkpoints(args.ckpt), **{n: getattr(args, n) for n in names})


def header_of(args, detector, shard, kind, name):
    """What a journal's rows depend on besides the images, and how its results are to be written."""
    from aidet import files

    names = ("vote", "fuse", "flips", "stability", "early_exit", "seed", "on_error")
    views = [getattr(m, "views", None) for m in detector.models]
    weights = detector.fusion.weights
    return {
        **{n: getattr(args, n) for n in names},
        "votes": detector.votes,
        "views": detector.views,
        "preprocessing": [v and [v.first.text, v.others and v.others.text] for v in views],
        "threshold": detector.threshold,
        "unsure": detector.unsure,
        # What a fusion file said, which may be another under the same name tomorrow.
        "fusion": [detector.fusion.how, None if weights is None else weights.tolist(), detector.fusion.thresholds],
        "models": {m.name: m.identity for m in detector.models},
        "cascade": detector.first and files.sha256(detector.first.path),
        "backends": [m.backend_name for m in detector.models],
        "files": {m.name: str(m.path.resolve()) for m in detector.models if hasattr(m, "path")},
        "shard": shard and list(shard),
        "format": kind,
        "name": name,
        "sample": args.sample_submission and str(args.sample_submission),
    }


def score_all(detector, inputs, journal, part, names):
    """Run the inputs of ``part`` that the journal does not hold yet, and write each row down as it comes.

    ``names`` is the hash of the inputs' names when they were counted: where a file came or went since, a row would be
    missing, or stand for another file than in the other shards.
    """
    from itertools import islice

    from tqdm import tqdm

    from aidet.datasets import sources

    seen = sources.Names()

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


def finish(out, journals, facts):
    """Journals to result files, and the summary; gives the exit code."""
    from aidet import output, runinfo

    def rows():
        return output.read_journal(journals)

    written = output.write(
        out,
        rows,
        list(facts["models"]),
        facts["format"],
        facts["on_error"],
        facts["sample"],
        facts["stability"],
        facts["name"],
    )
    counts, bad = {}, 0
    for record in rows():
        if record.ok:
            counts[record.decision] = counts.get(record.decision, 0) + 1
            continue
        if not bad:
            print("could not be used:", file=sys.stderr)
        bad += 1
        print(f"  {cli.printable(record.path)}: {cli.printable(record.status[len('error: ') :])}", file=sys.stderr)
    said = ", ".join(f"{counts[k]} {k}" for k in ("real", "generated", "unsure") if k in counts)
    unusable = f", {bad} could not be used" if bad else ""
    parts = [output.read_end(j) for j in journals]
    facts_at = runinfo.write(out, facts, parts, {**counts, **({"error": bad} if bad else {})}, written)
    print(f"{sum(counts.values()) + bad} images: {said or 'none usable'}{unusable}")
    if bad and facts["format"] != "csv":
        line = {"fail": "stand as real (0)", "skip": "are left out, so later lines move up"}
        what = line.get(facts["on_error"], f"stand as {facts['on_error']}")
        print(f"warning: {bad} unusable images {what} in {written[0].name}", file=sys.stderr)
    print("wrote " + ", ".join(str(p) for p in (*written, facts_at)))
    return cli.PARTIAL if bad else cli.OK


def run_merge(argv):
    """``infer.py merge DIR``: verify that all shards are there and whole, and write the results."""
    p = cli.Parser(prog="infer.py merge", description=run_merge.__doc__)
    p.add_argument("out", nargs="?", metavar="DIR")
    p.add_argument("--out", dest="out_flag", metavar="DIR")
    args = p.parse_args(argv)
    from aidet import output

    out = args.out or args.out_flag
    if not out or not Path(out).is_dir():
        raise UserError(f"merge: {out!r} is no folder; give the --out of the shards")
    paths = output.find_shards(out)
    return finish(Path(out), paths, output.read_header(paths[0]))


def run_check(argv):
    """``infer.py check result.txt --images DIR [--count N]``: exit 2 at the first fault."""
    p = cli.Parser(prog="infer.py check", description=run_check.__doc__)
    p.add_argument("result")
    p.add_argument("--images", metavar="DIR")
    p.add_argument("--count", type=int, metavar="N")
    args = p.parse_args(argv)
    from aidet import output

    for line in output.check(args.result, args.images, args.count):
        print(line)
    print("ok")


if __name__ == "__main__":
    cli.main(run)
