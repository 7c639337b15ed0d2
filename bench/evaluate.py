"""Run time of evaluate.py, and the leaks in CIFAKE: results/evaluate.csv.

    python bench/evaluate.py [--train cifake/train --test cifake/test] [--crops DIR DIR] [--small]

``score`` runs on 20,000 synthetic rows of 5,000 source images and 20 generators, with 1,000 bootstrap draws; ``audit``
and ``leaks`` run on the given folders. Each time is that of the whole command line.
"""

import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from common import ROOT

from aidet import cli, files
from aidet.errors import UserError

COLUMNS = ("what", "value", "unit", "note", "load", "commit", "versions", "device")


def command(*arguments):
    """Run one command of evaluate.py; return the seconds and the printed lines."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, ROOT / "evaluate.py", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode not in (0, 3):
        raise UserError(f"evaluate.py {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return time.perf_counter() - start, done.stdout.splitlines()


def said(lines):
    """The printed lines of a command, without those that name output files."""
    return "; ".join(line for line in lines if not line.startswith(("report", "all of them")))


def make_scores(folder, rows):
    """Write labels.csv and scores.csv of synthetic rows."""
    import numpy as np

    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, rows)
    score = rng.normal(size=rows) + 2 * y - 1
    with open(folder / "labels.csv", "w", newline="") as labels, open(folder / "scores.csv", "w", newline="") as scores:
        labels, scores = csv.writer(labels), csv.writer(scores)
        labels.writerow(["path", "label", "generator", "group"])
        scores.writerow(["path", "score"])
        for i in range(rows):
            labels.writerow([f"{i}.jpg", y[i], f"{'generator' if y[i] else 'camera'} {i % 10}", i // 4])
            scores.writerow([f"{i}.jpg", f"{score[i]:.6f}"])


def measure(args, folder):
    """Yield the table rows."""
    rows = 500 if args.small else 20000
    make_scores(folder, rows)
    given = ("--scores", folder / "scores.csv", "--labels", folder / "labels.csv", "--out", folder / "o1")
    for draws in (0, 1000):
        seconds, _ = command("score", *given, "--bootstrap", draws)
        yield {"what": f"score, {rows} rows, {draws} draws, 20 generators", "value": seconds, "unit": "s"}
    if args.test:
        seconds, lines = command("audit", "--labels", args.test, "--out", folder / "o2")
        yield {"what": "audit of the test folder", "value": seconds, "unit": "s", "note": said(lines)}
        seconds, lines = command("leaks", "--train", args.train, "--test", args.test, "--out", folder / "o3")
        found = files.read_json(folder / "o3" / "metrics.json")
        leak = found["leaks"][0]
        yield {"what": f"leaks, {found['n']} files", "value": seconds, "unit": "s"}
        for level in ("path", "bytes", "pixels", "near", "turned"):
            yield {"what": f"leaks: test images in train by {level}", "value": leak[level], "unit": "images"}
        for name, split in found["splits"].items():
            yield {"what": f"leaks: doubles inside {name}", "value": split["doubles_by_bytes"], "unit": "images"}
    if args.crops:
        one, two = args.crops
        seconds, lines = command("leaks", "--train", one, "--test", two, "--crops", "--out", folder / "o4")
        yield {"what": "leaks with --crops", "value": seconds, "unit": "s", "note": said(lines)}


def run(argv):
    """Measure, print, write results/evaluate.csv."""
    parser = cli.Parser(prog="bench/evaluate.py", description=__doc__)
    parser.add_argument("--train", metavar="DIR")
    parser.add_argument("--test", metavar="DIR", help="with --train: audit, and leaks between the two")
    parser.add_argument("--crops", nargs=2, metavar="DIR", help="two folders or CSVs for leaks --crops")
    parser.add_argument("--small", action="store_true", help="try the script out; writes nothing")
    args = parser.parse_args(argv)
    if bool(args.train) != bool(args.test):
        raise UserError("--train and --test go together")
    about = {
        "commit": common.commit(),
        "device": f"CPU {platform.machine()}, {common.cores()}",
        "versions": common.versions("scikit-learn", "numpy", "pillow"),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(args, Path(folder)):
            row["value"] = f"{row['value']:.4g}" if isinstance(row["value"], float) else row["value"]
            rows.append({**row, "load": f"{os.getloadavg()[0]:.1f}", **about})
            print({k: v for k, v in rows[-1].items() if k not in about}, flush=True)
    if not args.small:
        common.write(ROOT / "results" / "evaluate.csv", COLUMNS, rows)
    return cli.OK


if __name__ == "__main__":
    cli.main(run)
