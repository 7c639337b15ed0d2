"""Time and memory of ``infer.py`` on photographs of 12, 48 and 200 megapixels: results/photographs.csv, docs/infer.md.

    python bench/photographs.py

Each photograph is made by enlarging noise, is scored by the default detector in a process of its own, and the whole
command is measured, the start included. HEIC is measured where pillow-heif is installed.
"""

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np
from common import ROOT
from PIL import Image

from aidet import cli

TABLE = ROOT / "results" / "photographs.csv"
COLUMNS = "photograph size seconds peak_mb note load commit versions device".split()
SIZES = {"12 MP": (4032, 3024), "48 MP": (8064, 6048), "200 MP": (16384, 12288)}
LIMIT = "250M"


def main(argv):
    """Measure every size as JPEG, and 12 megapixels as HEIC."""
    if argv[:1] == ["make"]:
        return make(argv[1], (int(argv[2]), int(argv[3])))
    table = []
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items():
            path = Path(folder) / f"{size[0]}.jpg"
            in_another_process(path, size)
            table.append(measured(f"{name} JPEG", size, path))
        table.append({**measured("200 MP JPEG, default limit", size, path, []), "note": "refused: over 120M"})
        if importlib.util.find_spec("pillow_heif") is None:
            cli.to_stderr("pillow-heif is not installed: no HEIC")
        else:
            size, path = SIZES["12 MP"], Path(folder) / "a.heic"
            in_another_process(path, size)
            row = measured("12 MP HEIC", size, path)
            table.append({**row, "note": "decoded in a process of its own, the larger of both"})
    common.write(TABLE, COLUMNS, table)


def in_another_process(path, size):
    """Run :func:`make` there: a process that Linux starts counts the largest memory of the one that started it."""
    subprocess.run([sys.executable, __file__, "make", str(path), *map(str, size)], check=True)


def make(path, size):
    """Write an image of this size, JPEG or HEIC."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR)
    if path.endswith(".heic"):
        import pillow_heif

        pillow_heif.from_pillow(image).save(path, quality=80, enc_params={"preset": "ultrafast"})
    else:
        image.save(path, quality=92)


def measured(name, size, path, more=("--max-pixels", LIMIT)):
    """A row: seconds of the whole command, and the largest resident memory of it or of a process that it started."""
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "infer.py"), str(path), *more]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        _, _, used = os.wait4(child.pid, 0)
        child.returncode = 0
    return {
        "photograph": name,
        "size": f"{size[0]}x{size[1]}",
        "seconds": f"{time.monotonic() - started:.1f}",
        "peak_mb": f"{used.ru_maxrss / 1024:.0f}",
        "load": f"{os.getloadavg()[0]:.1f}",
        "commit": common.commit(),
        "versions": common.versions("onnxruntime", "pillow", "pillow-heif"),
        "device": f"CPU {platform.machine()}, {common.cores()}",
    }


if __name__ == "__main__":
    cli.main(main)
