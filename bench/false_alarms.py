"""Count the web photographs that a checkpoint classifies as generated: results/false_alarms.csv.

    apt-get download gcompris-qt-data && dpkg -x gcompris-qt-data_*.deb unpacked
    python bench/false_alarms.py --rcc unpacked/usr/share/gcompris-qt/rcc --ckpt ckpt/aidet_default.ckpt

The photographs come from `convert/training/web_photographs.py`: taken by many photographers, shrunk and saved as WebP.
That script holds out a third of them, and this script measures on that third. `infer.py` scores them unchanged and
after degradations of `evaluate.py sweep`, at every operating point of the checkpoint; the intervals are Wilson's.
"""

import argparse
import io
import tempfile
from pathlib import Path

import common

from aidet import ckpt, cli, images
from aidet.errors import UserError
from aidet.evaluation import degrade
from aidet.metrics import wilson
from convert.training import web_photographs

CHANGES = ("clean", "jpeg 70", "resize 0.5")


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rcc", required=True, help="folder of Qt resource files")
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--out", default=str(common.ROOT / "results" / "false_alarms.csv"))
    args = parser.parse_args(argv)
    thresholds = {name: point.threshold for name, point in ckpt.Sidecar.read(args.ckpt).operating_points.items()}
    if not thresholds:
        raise UserError(f"{args.ckpt} has no operating points; convert.training.calibrate finds them")
    listed = {row["file"]: row for row in common.rows(web_photographs.LIST)}
    everything = web_photographs.photographs(args.rcc).items()
    found = {name: blob for name, blob in everything if web_photographs.drawn(name)[1]}
    kinds = [listed[name]["kind"] for name in found]
    table, facts = [], common.facts("infer.py")
    points = {point[0]: point for point in degrade.points(["jpeg", "resize"])}
    for change in CHANGES:
        with tempfile.TemporaryDirectory() as folder:
            given, out = Path(folder, "in"), Path(folder, "out")
            given.mkdir()
            for i, (name, blob) in enumerate(found.items()):
                if change == "clean":
                    (given / f"{i:04d}.webp").write_bytes(blob)
                else:
                    image = degrade.apply(points[change], images.decode(io.BytesIO(blob)), 42, name)
                    image.save(given / f"{i:04d}.png")
            common.run("infer.py", "--ckpt", args.ckpt, "--images", str(given), "--out", str(out))
            probability = [float(row["prob"]) for row in common.rows(out / "scores.csv")]
        for kind in ("all", *(sorted(set(kinds)) if change == "clean" else ())):
            chosen = [p for p, k in zip(probability, kinds) if kind in ("all", k)]
            counts = [sum(p > t for p in chosen) for t in thresholds.values()]
            shares = [common.shown(c / len(chosen), wilson(c, len(chosen))) for c in counts]
            table.append([kind, change, len(chosen), *shares])
            print(*table[-1], sep="  ", flush=True)
    shown = [f"called generated, {name} (above {t:.3f})" for name, t in thresholds.items()]
    columns = ["kind", "change", "images", *shown, *common.FACTS]
    common.write(args.out, columns, [dict(zip(columns, row + facts)) for row in table])


if __name__ == "__main__":
    cli.main(main)
