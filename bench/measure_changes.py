"""Measure a checkpoint after re-saving and resizing, on one split of several sets: results/NAME.csv.

    python bench/measure_changes.py --ckpt ckpt/aidet_default.ckpt --name default_changes \\
        --set "full-size pictures=A/labels.csv" --set "256-pixel crops=B/labels.csv"

Runs `evaluate.py sweep --where split=test --points jpeg resize` on every set, or with another split and other points.
"""

import argparse
import shlex
import tempfile
from pathlib import Path

import common

from aidet import cli, files
from aidet.errors import UserError

COLUMNS = ["set", "change", "images", "AUC", "balanced accuracy at the shipped threshold"]


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--set", action="append", required=True, metavar="TITLE=labels.csv", dest="sets")
    parser.add_argument("--name", required=True, help="results/NAME.csv")
    parser.add_argument("--split", default="test", help="rows of the sets (default test)")
    parser.add_argument("--points", nargs="+", default=["jpeg", "resize"], help="as evaluate.py sweep's")
    args = parser.parse_args(argv)
    sweep = ("--where", f"split={args.split}", "--points", *args.points)
    columns, facts = [*COLUMNS, *common.FACTS], common.facts(shlex.join(("evaluate.py", "sweep", *sweep)))
    rows = []
    for given in args.sets:
        title, found, labels = given.partition("=")
        if not found:
            raise UserError(f"--set {given!r} is no TITLE=labels.csv")
        with tempfile.TemporaryDirectory() as folder:
            common.run("evaluate.py", "sweep", "--ckpt", args.ckpt, "--labels", labels, "--out", folder, *sweep)
            metrics = files.read_json(Path(folder) / "metrics.json")
        for point in metrics["points"]:
            numbers = [common.shown(point[name], point["ci"][name]) for name in ("auc", "balanced_accuracy")]
            values = [title, point["point"], point["n"], *numbers]
            rows.append(dict(zip(columns, values + facts)))
            print(*values, sep="  ", flush=True)
    common.write(common.ROOT / "results" / f"{args.name}.csv", columns, rows)


if __name__ == "__main__":
    cli.main(main)
