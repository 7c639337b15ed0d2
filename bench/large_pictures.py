"""Time and memory of one large picture, by the default detector as a user runs it: results/large_pictures.csv.

    python bench/large_pictures.py [--megapixels 12,48,200]

A photograph of scikit-image is enlarged and gets grain, as a camera's has it; saved as JPEG (quality 90) and PNG.
"seconds" is the whole command less the same command on a picture of 0.1 megapixels; "decoding" is that of one thread,
and "scaled decoding" what libjpeg-turbo would take at half the size (Pillow's ``draft``), which AIDet does not use: its
views are native pixels.
"""

import argparse
import tempfile
from pathlib import Path

import common
import numpy as np
import speed
from PIL import Image
from skimage import data

from aidet import cli, images

TABLE = common.ROOT / "results" / "large_pictures.csv"
COLUMNS = ("megapixels", "format", "file MB", "seconds", "decoding", "scaled decoding", "peak MB", *common.FACTS)
STRIP = 512  # rows that get their grain at once


def make(path, megapixels):
    """Write a picture of 3:2 with that many megapixels."""
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    size = (round(height * 1.5), height)
    photo = Image.fromarray(data.coffee()).resize(size, Image.Resampling.BICUBIC)
    rng = np.random.default_rng(0)
    for top in range(0, height, STRIP):
        box = (0, top, size[0], min(height, top + STRIP))
        strip = np.asarray(photo.crop(box), np.int16)
        strip = strip + rng.integers(-8, 9, strip.shape, np.int16)
        photo.paste(Image.fromarray(np.clip(strip, 0, 255).astype(np.uint8)), box)
    photo.save(path, **({"quality": 90} if path.suffix == ".jpg" else {"compress_level": 1}))


def scaled(path):
    """Decode a JPEG at half its size."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow's limit is 179 million
    with Image.open(path) as image:
        image.draft("RGB", (image.width // 2, image.height // 2))
        image.load()


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megapixels", default="12,48,200", help="separated by commas")
    args = parser.parse_args(argv)
    ckpt = common.ROOT / "ckpt" / "aidet_default.ckpt"
    rows = []
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)

        def run(path):
            return speed.Run(ckpt, path, folder / "out", "--workers", 1, "--max-pixels", "400M")

        make(folder / "small.jpg", 0.1)
        run(folder / "small.jpg")  # makes the graph, if there is none yet
        base = min(run(folder / "small.jpg").seconds for _ in range(3))
        for megapixels in map(float, args.megapixels.split(",")):
            for suffix in (".jpg", ".png"):
                path = folder / f"large{suffix}"
                make(path, megapixels)
                decoding = speed.timed(lambda path=path: images.decode(path, max_pixels=400_000_000))
                half = f"{speed.timed(lambda path=path: scaled(path)):.2f}" if suffix == ".jpg" else ""
                done = run(path)
                row = dict(zip(COLUMNS, (
                    f"{megapixels:g}", suffix[1:].upper(), f"{path.stat().st_size / 1e6:.1f}",
                    f"{done.seconds - base:.2f}", f"{decoding:.2f}", half, f"{done.peak:.0f}",
                    *common.facts("defaults, one worker"),
                )))  # fmt: skip
                print({k: v for k, v in row.items() if k not in common.FACTS}, flush=True)
                rows.append(row)
                path.unlink()
    common.write(TABLE, COLUMNS, rows)


if __name__ == "__main__":
    cli.main(main)
