"""The same images as files and in archives: rate and memory of infer.py, results/scale.csv and docs/data.md.

    python bench/scale.py [--images 20000] [--repeat 3]

JPEG files of 32 pixels, scored by ``ckpt/aidet_cifake.ckpt``: the detector takes so little that reading is what counts.
The sources are measured in turn, ``--repeat`` times; the table has the medians. Scores must be the same from all.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from common import ROOT

from aidet import cli, data
from aidet.errors import UserError

TABLE = ROOT / "results" / "scale.csv"
COLUMNS = ("source", "images", "bytes an image", "images a second", "peak MB", "commit", "versions", "device")


def make(folder, count):
    """JPEG files ``k/N.jpg``, a thousand in a folder, drawn from smooth noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i // 1000}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        small.resize((32, 32), Image.Resampling.BICUBIC).save(path, quality=90)


def peak(process):
    """Largest resident memory of a process so far, in MB (Linux); 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM")), 0)


def score(source, out):
    """Run infer.py on a source (Linux): (seconds of the whole process, peak memory in MB, scores)."""
    argv = [sys.executable, "infer.py", "--ckpt", "ckpt/aidet_cifake.ckpt", "--images", str(source), "--out", str(out)]
    start, memory = time.perf_counter(), 0
    child = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None:
        memory = max(memory, peak(child.pid))
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise UserError(f"infer.py on {source} ended with {child.returncode}")
    with open(out / "scores.csv", newline="") as file:
        scores = sorted(row["score"] for row in csv.DictReader(file))
    return seconds, memory, scores


def main(argv):
    """Make the sources, measure each, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        make(place / "files", options.images)
        for form in sorted(data.SHARDS):
            code = data.main(["pack", str(place / "files"), "--out", str(place / form), "--format", form])
            if code:
                raise UserError(f"packing as {form} ended with {code}")
        size = sum(p.stat().st_size for p in (place / "files").rglob("*.jpg")) // options.images
        measured, expected = {name: [] for name in ("files", *sorted(data.SHARDS))}, None
        for turn in range(options.repeat):
            for name, found in measured.items():
                seconds, memory, scores = score(place / name, place / f"out-{turn}-{name}")
                expected = expected or scores
                if scores != expected:
                    raise UserError(f"the scores from {name} differ from those from files")
                found.append((seconds, memory))
    about = {
        "images": options.images, "bytes an image": size, "commit": common.commit(),
        "versions": common.versions("onnxruntime", "pyarrow", "pillow"), "device": f"CPU, {common.cores()}",
    }  # fmt: skip
    rows = [
        {
            "source": name,
            "images a second": f"{options.images / statistics.median(s for s, _ in found):.0f}",
            "peak MB": f"{statistics.median(m for _, m in found):.0f}",
            **about,
        }
        for name, found in measured.items()
    ]
    common.write(TABLE, COLUMNS, rows)
    for row in rows:
        print({k: row[k] for k in COLUMNS[:5]})
    return 0


if __name__ == "__main__":
    cli.main(main)
