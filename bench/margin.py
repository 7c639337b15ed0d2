"""Whether a cascade decides as float32 on pictures that its margin was not measured on: results/margin.csv.

    python bench/margin.py --ckpt ckpt/aidet_default.ckpt --measure DIR --precision bfloat16 NAME=LABELS.csv ...

The first stage is made from the checkpoint as `export.py --int8` or `--bf16` does, its margin measured on DIR. Then
every picture of every set is scored by both; a picture counts as equal if label and decision are. One row a set.
"""

import argparse
import tempfile
from pathlib import Path

import common
from common import ROOT

from aidet import cli, records
from aidet.errors import UserError

TABLE = ROOT / "results" / "margin.csv"
COLUMNS = (
    "detector", "first stage", "margin", "score margin", "measured on", "set", "pictures", "decisions equal",
    "labels equal", "scored twice", "largest change of score", *common.FACTS,
)  # fmt: skip


def pictures(listing):
    """The paths of a labels.csv."""
    base = Path(listing).resolve().parent
    return [base / row["path"] for row in records.read_table(listing, "labels")[0]]


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=LABELS.csv")
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--measure", required=True, metavar="DIR", help="pictures that the margin is measured on")
    parser.add_argument("--precision", choices=["int8", "bfloat16"], default="bfloat16")
    args = parser.parse_args(argv)
    wrong = [text for text in args.sets if "=" not in text]
    if wrong:
        raise UserError(f"{wrong[0]!r} is not NAME=LABELS.csv")
    from aidet import Detector
    from aidet.detector import int8
    from aidet.export import exporter

    with tempfile.TemporaryDirectory() as folder:
        exporter.export(args.ckpt, "onnx", folder)
        plain = Path(folder) / f"{Path(args.ckpt).stem}.onnx"
        made = int8.quantize(plain, args.measure, precision=args.precision)
        exact, cascade = Detector(args.ckpt), Detector(args.ckpt, cascade=plain.with_name(made["file"]))
        for text in args.sets:
            name, _, listing = text.partition("=")
            paths = pictures(listing)
            before = cascade.cascade.twice
            pairs = [(a, b) for a, b in zip(exact.score(paths), cascade.score(paths)) if a.ok and b.ok]
            if not pairs:
                raise UserError(f"none of the {len(paths)} pictures of {listing!r} can be used")
            row = dict(zip(COLUMNS, (
                Path(args.ckpt).stem, args.precision, f"{made['margin']:.2f}", f"{made['score_margin']:.2f}",
                f"{made['images']} pictures", name, len(pairs), sum(a.decision == b.decision for a, b in pairs),
                sum(a.label == b.label for a, b in pairs), cascade.cascade.twice - before,
                f"{max(abs(a.score - b.score) for a, b in pairs):.2f}", *common.facts("defaults"),
            )))  # fmt: skip
            print({k: v for k, v in row.items() if k not in common.FACTS}, flush=True)
            key = ("detector", "first stage", "set")
            common.write(TABLE, COLUMNS, common.replaced(common.rows(TABLE), [row], key))


if __name__ == "__main__":
    cli.main(main)
