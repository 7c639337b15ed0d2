"""Score images with one or several detectors: votes, fusion, every contest's file.

python infer.py photo.jpg folder/ photos.zip https://... -     the answer on the screen; - is the standard input
python infer.py --ckpt A.ckpt [--ckpt B.ckpt] --images DIR|FILE|LIST.csv --out DIR [--votes 7] ...
python infer.py IN.csv OUT.csv                      the VIP Cup's form: filename in, filename,logit out
python infer.py merge DIR                           join the results of --shard 1/N ... N/N in DIR
python infer.py check result.txt --images DIR       before the only upload of the day
"""

import argparse
import os
import sys
import time
from typing import List, Optional

from aidet import cli

CONTEST = ("--model_path", "--test_data_path", "--output_path")


def parser() -> cli.Parser:
    """The options; what they mean in full is in docs/infer.md."""
    p = cli.Parser(prog="infer.py", description=__doc__)
    p.add_argument(
        "inputs",
        nargs="*",
        metavar="IMAGE",
        help="files, folders, archives (.zip), addresses, lists, or - for the standard input: one line each on the "
        "screen; or IN.csv OUT.csv, the VIP Cup's form",
    )
    cli.add_detector(p, "ckpt")
    p.add_argument(
        "--images", metavar="DIR|FILE|LIST.csv", help="the images to score: one folder, file, archive or list"
    )
    p.add_argument("--out", metavar="DIR", help="folder for result files (default: none, the answer is printed)")
    for name, contest in zip(("ckpt", "images", "out"), CONTEST):
        p.add_argument(contest, dest=name, action="append" if name == "ckpt" else "store", help=argparse.SUPPRESS)
    g = p.add_argument_group("votes and decision")
    cli.add_detector(g, "votes", "vote", "views", "fuse", "threshold", "operating-point", "unsure")
    cli.add_detector(g, "seed", "positive", "real", "transform")
    g.add_argument("--flips", action="store_true", help="score every view mirrored, too")
    g.add_argument("--stability", action="store_true", help="score re-saved and resized versions: stability.csv")
    g.add_argument(
        "--localize",
        action="store_true",
        help="find the generated parts: maps/NAME.png and the columns area, where, local_score (docs/localize.md)",
    )
    g.add_argument(
        "--localizer", metavar="C.ckpt", help="the localizer of --localize (default: ckpt/aidet_partial.ckpt)"
    )
    g.add_argument(
        "--early-exit", action="store_true", help="score only as many views as the decision needs; labels do not change"
    )
    g.add_argument(
        "--cascade",
        metavar="A_int8.onnx",
        help="score with this model of export.py --int8 or --bf16 first, and close images again in float32",
    )
    g = p.add_argument_group("output")
    g.add_argument(
        "--format",
        metavar="result|csv|logit|submission|table|json|jsonl",
        help="with --out a result file (default: result); without it, what is printed (table, json, jsonl or csv)",
    )
    g.add_argument(
        "--sample-submission", metavar="S.csv", help="the contest's sample, which --format submission fills in"
    )
    g.add_argument(
        "--answer",
        default="auto",
        metavar="label|probability|score",
        help="what a submission holds (default: what the sample's column names and placeholders say)",
    )
    g.add_argument(
        "--on-error",
        default="fail",
        metavar="fail|real|generated|skip",
        help="unusable image: no label, that label, or left out. With fail, the default, a contest's file says real: 0 "
        "in result.txt and in labels of a submission; where it takes numbers, undecided: probability 0.5, score 0",
    )
    g = p.add_argument_group("running")
    cli.add_detector(g, "backend", "precision", "device", "workers")
    g.add_argument("--batch-size", type=int, default=32, metavar="N", help="images in a call on Ascend and GPU")
    cli.add_reading(g)
    g.add_argument("--resume", action="store_true", help="continue where a killed run stopped")
    g.add_argument("--shard", metavar="I/N", help="every N-th image, I = 1 to N (or from 0); then: infer.py merge DIR")
    g.add_argument(
        "--engine",
        default="single",
        metavar="single|ray",
        help="ray: --workers processes, here or on a Ray cluster; needs aidet[ray]; writes Parquet parts as well",
    )
    g.add_argument(
        "--ray-address", metavar="HOST:PORT|auto", help="a running Ray cluster (default: one is started here)"
    )
    return p


def parse(argv: List[str]) -> argparse.Namespace:
    """Parse the arguments; with the contest's flags, unknown ones are ignored, because its platform adds some."""
    given = {a.partition("=")[0] for a in argv}
    if given & set(CONTEST):
        args, unknown = parser().parse_known_args(argv)
        if unknown:
            print(f"note: ignored flags of the platform: {' '.join(unknown)}", file=sys.stderr)
        args.inputs = []
    else:
        args = parser().parse_intermixed_args(argv)
    args.contest = bool(given & set(CONTEST))
    return args


def run(argv: List[str]) -> Optional[int]:
    """The command line; returns the exit code."""
    if argv[:1] == ["check"]:
        run_check(argv[1:])
        return cli.OK
    if argv[:1] == ["merge"]:
        return run_merge(argv[1:])
    cli.refuse_misspelt(argv, ("check", "merge"))
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        return cli.OK  # msrun runs the same command as its scheduler, with the rank of the first worker
    begin = time.monotonic()
    args = parse(argv)
    from aidet.inference import run as inference

    return inference.score(args, begin)


def run_merge(argv: List[str]) -> int:
    """Check that all shards in DIR are present and complete, and write the results."""
    p = cli.Parser(prog="infer.py merge", description=run_merge.__doc__)
    p.add_argument("out", nargs="?", metavar="DIR", help="the --out of the shards")
    p.add_argument("--out", dest="out_flag", metavar="DIR", help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    from aidet.inference import run as inference

    return inference.merge(args.out or args.out_flag)


def run_check(argv: List[str]) -> None:
    """Check a contest's result.txt as its server will; exit code 2 at the first fault."""
    p = cli.Parser(prog="infer.py check", description=run_check.__doc__)
    p.add_argument("result", metavar="result.txt")
    p.add_argument("--images", metavar="DIR", help="the test images; there must be one line for each")
    p.add_argument("--count", type=int, metavar="N", help="number of lines that the contest expects")
    args = p.parse_args(argv)
    from aidet.inference import run as inference

    inference.check(args.result, args.images, args.count)


if __name__ == "__main__":
    cli.main(run)
