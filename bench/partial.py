"""Measure a localizer on a partial set, as it is and after JPEG 80: results/partial.csv.

    python bench/partial.py --labels SET/labels.csv [--ckpt ckpt/aidet_partial.ckpt] [--each 2]

Runs the real command lines (`infer.py --localize`, `evaluate.py localize`) on the split. The baseline beside the
localizer's image score is the default detector's mean over views, which `infer.py` computes for the same pictures.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import common
from common import ROOT
from PIL import Image

from aidet import cli, files, images, records
from aidet.errors import UserError

COLUMNS = [
    "change", "part", "pictures", "pixel AUC", "F1", "IoU", "image AUC", "image balanced accuracy",
    "image AUC, mean of views", "false area of untouched photographs", "untouched photographs over 2 %",
]  # fmt: skip
CHANGES = {"none": None, "JPEG 80": 80}


def run(*arguments):
    """Run one command line of the project; if it fails, exit with its message."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in (cli.OK, cli.PARTIAL):
        raise UserError(f"{arguments[0]} ended with exit code {done.returncode}")


def copied(labels, split, quality, folder, each):
    """The pictures of a split, compressed if a quality is given, with masks; the path of their labels."""
    table, columns = records.read_table(labels, "labels")
    base, kept = Path(labels).resolve().parent, []
    rows = [row for row in table if row["split"] == split]
    if not rows:
        raise UserError(f"{labels} has no row of split {split!r}")
    groups = sorted({row["group"] for row in rows})[::each]
    for i, row in enumerate(row for row in rows if row["group"] in set(groups)):
        path = base / row["path"]
        target = folder / f"{i:05d}{'.jpg' if quality else path.suffix}"
        if quality:
            buffer = io.BytesIO()
            images.decode(path).save(buffer, "JPEG", quality=quality, subsampling=2)
            target.write_bytes(buffer.getvalue())
        else:
            target.write_bytes(path.read_bytes())
        mask = ""
        if row.get("mask"):
            mask = f"{i:05d}_mask.png"
            with Image.open(base / row["mask"]) as image:
                image.save(folder / mask)
        kept.append({**row, "path": target.name, "mask": mask})
    common.write(folder / "labels.csv", columns, kept)
    return folder / "labels.csv"


def measured(args, quality):
    """metrics.json of one version of the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "set").mkdir()
        labels = copied(args.labels, args.split, quality, folder / "set", args.each)
        out = folder / "out"
        run("infer.py", "--images", labels, "--out", out, "--localize", "--localizer", args.ckpt)
        threshold = files.read_json(Path(args.ckpt).with_suffix(".json"))["localization"]["threshold"]
        run("evaluate.py", "localize", "--maps", out / "maps", "--labels", labels, "--scores", out / "scores.csv",
            "--threshold", threshold, "--out", folder / "report", "--bootstrap", args.bootstrap)  # fmt: skip
        return files.read_json(folder / "report" / "metrics.json")


def table(change, metrics):
    """Rows of the results file: all pictures, then by area, kind and builder."""
    alone, images_of = metrics["untouched"], metrics["images"]
    mean = images_of.get("score", {})

    def row(part, pixels, image, *last):
        ci, whole = pixels.get("ci", {}), image.get("ci", {})
        return [
            change, part, pixels["n"], common.shown(pixels["auc"], ci.get("auc")), common.shown(pixels["f1"]),
            common.shown(pixels["iou"]), common.shown(image["auc"], whole.get("auc")),
            common.shown(image.get("balanced_accuracy")), *last,
        ]  # fmt: skip

    yield row(
        "all", metrics["pixels"], images_of[metrics["image_score"]],
        common.shown(mean.get("auc"), mean.get("ci", {}).get("auc")),
        common.shown(alone["false_area"], alone["ci"].get("false_area")),
        common.shown(alone["alarms"], alone["ci"].get("alarms")),
    )  # fmt: skip
    for name, values in metrics["by"].items():
        for value, found in values.items():
            yield row(f"{name}: {value}", found, found["image"], "", "", "")


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", required=True, help="labels.csv of a partial set")
    parser.add_argument("--ckpt", default=str(ROOT / "ckpt" / "aidet_partial.ckpt"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--each", type=int, default=1, help="only every n-th source image")
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--name", default="partial", help="results/NAME.csv")
    args = parser.parse_args(argv)
    facts = common.facts("defaults" if args.each == 1 else f"every {args.each}th source image")
    lines = []
    for change, quality in CHANGES.items():
        lines += [[*row, *facts] for row in table(change, measured(args, quality))]
    columns = [*COLUMNS, *common.FACTS]
    common.write(ROOT / "results" / f"{args.name}.csv", columns, [dict(zip(columns, line)) for line in lines])
    print(json.dumps([line[:11] for line in lines], indent=0))


if __name__ == "__main__":
    cli.main(main)
