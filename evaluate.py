"""Measure a detector, and check a data set for shortcuts and leaks.

score     compare a scores.csv with labels: metrics with intervals, metrics.json and report.html
sweep     robustness: thresholds, votes, JPEG, WebP, blur, noise, resize, crop, degradation tiers
transfer  models x data sets
localize  maps of generated pixels against true masks: pixels, whole pictures by area, false area
audit     shortcuts: can size, format or compression alone tell the classes apart?
leaks     find duplicate images across train, validation and test

Exit codes: 0 done; 2 wrong argument or file; 3 done, but some images could not be used. See docs/evaluate.md.
"""

import argparse
from typing import Sequence

from aidet import cli
from aidet.errors import UserError


def _parser():
    parser = cli.Parser(prog="evaluate.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_score, _sweep, _transfer, _localize, _audit, _leaks):
        add(commands)
    return parser


def _command(commands, name, text):
    return commands.add_parser(name, description=text, help=text)


def _common(parser, bootstrap=1000, least="0: none"):
    parser.add_argument("--out", required=True, help="folder for metrics.json and report.html")
    parser.add_argument(
        "--bootstrap",
        type=_count,
        default=bootstrap,
        metavar="N",
        help=f"draws for the intervals; {least} ({bootstrap})",
    )
    parser.add_argument("--seed", type=int, default=42)


def _labels(parser, **more):
    parser.add_argument(
        "--labels",
        required=True,
        metavar="CSV|DIR",
        help="a table path,label; ArtiFact's metadata.csv; class folders; or archives (docs/evaluate.md)",
        **more,
    )
    parser.add_argument(
        "--where", action="append", metavar="COLUMN=VALUE", help="only these rows of the labels, e.g. split=test"
    )


def _count(text):
    value = int(text)
    if not 0 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} must be between 0 and 1000000")
    return value


def _share(text):
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} must lie between 0 and 1")
    return value


def _score(commands):
    p = _command(commands, "score", "a scores.csv against labels")
    p.add_argument(
        "--scores",
        metavar="CSV",
        help="scores.csv, filename,logit, or decisions without scores: result.txt, submission.csv",
    )
    _labels(p, nargs="+")
    _common(p)
    p.add_argument(
        "--by",
        nargs="+",
        metavar="COLUMN",
        help="tables by these columns of the labels; also size, format (of the files), fine, superclass (CIFAR-100)",
    )
    p.add_argument(
        "--threshold", type=_share, help="on the probability (default: the labels in the scores file, else 0.5)"
    )
    p.add_argument(
        "--operating-point",
        metavar="NAME",
        help="few-false-alarms, balanced or few-misses: the threshold that the detector states for this purpose, from "
        "the run.json beside the scores; not with --threshold",
    )
    p.add_argument("--target-fpr", type=_share, metavar="RATE", help="of the threshold from validation images (0.05)")
    p.add_argument(
        "--valid-scores", metavar="CSV", help="choose the threshold on the real images of this validation set"
    )
    p.add_argument("--valid-labels", metavar="CSV|DIR")
    p.add_argument("--valid-where", action="append", metavar="COLUMN=VALUE")
    p.add_argument("--one-class", action="store_true", help="the set has one class only (CIFAR-100: all real)")
    p.add_argument("--leaks", metavar="leaks.csv", help="also measure without images that are in another split")
    p.add_argument("--against", metavar="CSV", help="a second scores file of the same images: paired test")
    p.add_argument(
        "--explain",
        action="append",
        metavar="A.ckpt|none",
        help="models whose maps appear beside the errors (default: the checkpoints of run.json beside the scores)",
    )
    p.add_argument(
        "--include", nargs="+", metavar="DIR", help="put the results of sweep, transfer and localize into the report"
    )
    p.add_argument("--vip", nargs=2, metavar=("P1", "P2"), help="VIP Cup score of two filename,logit files")
    p.add_argument("--thumbnails", type=_count, default=12, metavar="N", help="worst errors shown per class (12)")
    cli.add_reading(p)


def _sweep(commands):
    p = _command(commands, "sweep", "robustness of checkpoints under degradations")
    cli.add_detector(p, "ckpt", "votes", "operating-point", "positive", "real", "backend", "device", "workers")
    _labels(p)
    _common(p, 300)
    p.add_argument(
        "--points", nargs="+", metavar="NAME",
        help="families, or points such as 'jpeg 70' (default: all); see docs/evaluate.md",
    )  # fmt: skip
    p.add_argument(
        "--limit", type=_count, default=0, metavar="N", help="only N images, drawn evenly from both classes; 0: all"
    )
    cli.add_reading(p)


def _transfer(commands):
    p = _command(commands, "transfer", "models x data sets")
    p.add_argument(
        "--ckpt",
        action="append",
        metavar="[NAME=]A.ckpt",
        help="detector; several are compared (default: aidet_default, which comes with AIDet)",
    )
    cli.add_detector(p, "votes", "operating-point", "positive", "real", "backend", "device", "workers")
    p.add_argument(
        "--sets", nargs="+", required=True, metavar="NAME=CSV|DIR", help="a CSV may be followed by @column=value"
    )
    _common(p)
    p.add_argument("--by", nargs="+", metavar="COLUMN", help="tables by these columns of each set's labels")
    cli.add_reading(p)


def _localize(commands):
    p = _command(commands, "localize", "maps of generated pixels against true masks")
    p.add_argument(
        "--maps", required=True, metavar="DIR", help="8- or 16-bit grey PNG of the pictures' size: OUT/maps of infer.py"
    )
    _labels(p)
    _common(p)
    p.add_argument(
        "--scores",
        metavar="CSV",
        help="scores of whole pictures: local_score and score; without it the map's highest 1%%",
    )
    p.add_argument("--by", nargs="+", metavar="COLUMN", help="further tables; area, kind and builder always have one")
    p.add_argument("--threshold", type=_share, help="on the map's probability (0.5)")
    p.add_argument("--thumbnails", type=_count, default=6, metavar="N", help="worst pictures shown of each side (6)")


def _audit(commands):
    p = _command(commands, "audit", "shortcuts in a data set")
    _labels(p)
    _common(p, 100, "at least 100, because they decide what is a shortcut")
    p.add_argument("--scores", metavar="CSV", help="also give a detector's accuracy raw and on the aligned subset")
    p.add_argument("--warn", type=_share, default=0.6, metavar="AUC", help="a property above this is a shortcut (0.6)")
    cli.add_reading(p)


def _leaks(commands):
    p = _command(commands, "leaks", "the same images in several splits")
    for name in ("train", "valid", "test"):
        p.add_argument(f"--{name}", metavar="CSV|DIR")
    p.add_argument("--out", required=True, help="folder for metrics.json, leaks.csv and report.html")
    p.add_argument(
        "--distance",
        type=int,
        default=4,
        metavar="BITS",
        help="near-duplicates differ in at most this many of 64 bits (4)",
    )
    p.add_argument("--crops", action="store_true", help="also look for crops of one image (slower; needs OpenCV)")
    p.add_argument("--workers", type=int, help="processes that decode (default: CPUs)")
    cli.add_reading(p)


def main(argv: Sequence[str]) -> int:
    """Parse the command line and run one command."""
    options = _parser().parse_args(argv)
    if options.command == "score":
        if not options.scores and not options.vip:
            raise UserError("score needs --scores CSV (or --vip P1.csv P2.csv)")
        from aidet.evaluation.score import main as run
    elif options.command == "localize":
        from aidet.evaluation.localize import main as run
    elif options.command == "audit":
        from aidet.audit.audit import main as run
    elif options.command == "leaks":
        from aidet.audit.leaks import main as run
    elif options.command == "sweep":
        from aidet.evaluation.sweep import main as run
    else:
        from aidet.evaluation.transfer import main as run
    cli.require("jinja2", "scipy", *(("imagehash",) if options.command == "leaks" else ("sklearn", "matplotlib")))
    return run(options)


if __name__ == "__main__":
    cli.main(main)
