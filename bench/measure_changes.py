"""Measure a checkpoint under re-saving and resizing, on the test rows of several sets, into results/NAME.csv.

    python bench/measure_changes.py --ckpt ckpt/aidet_default.ckpt --name default_changes \\
        --set "full-size pictures=A/labels.csv" --set "256-pixel crops=B/labels.csv"

Runs `evaluate.py sweep --where split=test --points jpeg resize` on every set.
"""

import argparse
import datetime
import tempfile
from pathlib import Path

import common
from measure_set import run

from aidet import cli, files, runtime
from aidet.errors import UserError

COLUMNS = ["set", "change", "images", "AUC", "balanced accuracy at the shipped threshold"]
FACTS = ["commit", "versions", "device", "command", "date"]
ARGUMENTS = ("--where", "split=test", "--points", "jpeg", "resize")


def shown(point, name):
    """``"0.893 [0.854, 0.923]"``."""
    low, high = point["ci"][name]
    return f"{point[name]:.3f} [{low:.3f}, {high:.3f}]"


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--set", action="append", required=True, metavar="TITLE=labels.csv", dest="sets")
    parser.add_argument("--name", required=True, help="results/NAME.csv")
    args = parser.parse_args(argv)
    versions = runtime.versions()
    facts = [
        common.commit(),
        f"MindSpore {versions['mindspore']}, ONNX Runtime {versions.get('onnxruntime', 'absent')}",
        f"CPU, {common.cores()}",
        " ".join(("evaluate.py sweep", *ARGUMENTS)),
        datetime.date.today().isoformat(),
    ]
    rows = []
    for given in args.sets:
        title, found, labels = given.partition("=")
        if not found:
            raise UserError(f"--set {given!r} is no TITLE=labels.csv")
        with tempfile.TemporaryDirectory() as folder:
            run("evaluate.py", "sweep", "--ckpt", args.ckpt, "--labels", labels, "--out", folder, *ARGUMENTS)
            metrics = files.read_json(Path(folder) / "metrics.json")
        for point in metrics["points"]:
            values = [title, point["point"], point["n"], shown(point, "auc"), shown(point, "balanced_accuracy")]
            rows.append(dict(zip(COLUMNS + FACTS, values + facts)))
            print(*values, sep="  ", flush=True)
    common.write(common.ROOT / "results" / f"{args.name}.csv", COLUMNS + FACTS, rows)


if __name__ == "__main__":
    cli.main(main)
