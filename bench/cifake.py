"""Accuracy on CIFAKE's 20,000 test images, with and without those also in the training set: results/cifake.csv.

    python evaluate.py leaks --train CIFAKE/train --test CIFAKE/test --out out/leaks
    python bench/cifake.py --data CIFAKE --leaks out/leaks/leaks.csv runs/cifake_cnn/last.ckpt [MORE.ckpt ...]

Runs the real command lines (`infer.py`, `evaluate.py score --leaks`). Rows with the same weights (SHA-256) are
replaced; the others are kept. CIFAKE's splits share 378 byte-identical files; other projects report their results on
all 20,000 images.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import common
from common import ROOT

from aidet import ckpt, cli, files

CSV = ROOT / "results" / "cifake.csv"
COLUMNS = (
    "model", "weights", "seed", "epochs", "images", "accuracy", "interval", "auc", "images_without_leaks",
    "accuracy_without_leaks", "interval_without_leaks", "training_minutes", "sha256", "commit", "versions", "device",
)  # fmt: skip


def run(*arguments):
    """Run one command line of the project, which must leave nothing out."""
    common.run(*arguments, accepted=(cli.OK,))


def minutes(folder):
    """Minutes of training and validation, from the log.csv next to the checkpoint; empty if there is none."""
    log = Path(folder) / "log.csv"
    if not log.is_file():
        return ""
    with open(log, encoding="utf-8", newline="") as file:
        return f"{sum(float(row['seconds']) for row in csv.DictReader(file)) / 60:.1f}"


def measure(path, data, leaks):
    """The table row of one checkpoint."""
    facts = ckpt.read_sidecar(path)
    with tempfile.TemporaryDirectory() as out:
        test = Path(data) / "test"
        run("infer.py", "--ckpt", Path(path).resolve(), "--images", test, "--out", out)
        run(
            "evaluate.py",
            "score",
            "--scores",
            Path(out) / "scores.csv",
            "--labels",
            test,
            "--out",
            out,
            "--leaks",
            leaks,
        )
        found = files.read_json(Path(out) / "metrics.json")
    less = found["deduplicated"]
    training = facts.get("training") or {}
    return {
        "model": facts["architecture"],
        "weights": facts["source"].get("file")
        or f"{training.get('configuration', '')}, trained from {Path(training.get('init_from') or 'scratch').name}",
        "seed": training.get("seed", ""),
        "epochs": training.get("epoch", ""),
        "images": found["n"],
        "accuracy": f"{found['accuracy']:.4f}",
        "interval": interval(found),
        "auc": f"{found['auc']:.4f}",
        "images_without_leaks": less["n"],
        "accuracy_without_leaks": f"{less['accuracy']:.4f}",
        "interval_without_leaks": interval(less),
        "training_minutes": minutes(Path(path).parent),
        "sha256": facts["output"]["sha256"],
        "commit": common.commit(),
        "versions": common.versions("mindspore", "onnxruntime", "numpy", "pillow"),
        "device": f"CPU, {common.cores()}",
    }


def interval(found):
    """The 95% bootstrap interval of the accuracy as text."""
    low, high = found["ci"]["accuracy"]
    return f"[{low:.4f}, {high:.4f}]"


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with test/FAKE and test/REAL")
    parser.add_argument("--leaks", required=True, help="leaks.csv of evaluate.py leaks")
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT")
    args = parser.parse_args(argv)
    for path in args.checkpoints:
        row = measure(path, args.data, Path(args.leaks).resolve())
        table = common.replaced(common.rows(CSV), [row], ("sha256",))
        common.write(CSV, COLUMNS, sorted(table, key=lambda r: (r["model"], r["weights"], str(r["seed"]))))
        print(
            f"{path}: {row['accuracy']} on {row['images']}, {row['accuracy_without_leaks']} without leaks", flush=True
        )
    return cli.OK


if __name__ == "__main__":
    cli.main(main)
