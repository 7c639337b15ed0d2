"""Crops of further photographs for training a detector: it generalises better with more sources.

    python -m convert.training.photographs --folder PHOTOS --out runs/photographs

    for p in lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 plasma-workspace-wallpapers palapeli-data; do
        apt-get download $p && dpkg -x ${p}_*.deb unpacked; done
    python -m convert.training.photographs --folder unpacked --list convert/training/photographs.csv --crops 6 \\
        --out runs/photographs

The default detector was trained with the last command: it uses listed photographs from four packages of Debian 12.

Without a list, every sub-folder of PHOTOS is one source; a list has the columns ``name`` (``SOURCE/NAME``) and ``file``
(its path under the folder). Each photograph gives crops of 448 pixels (or fewer if it is smaller), alternately at
native size and from the photograph shrunk to a long side drawn from 900 to 2,200 pixels, as is usual on the web. All
are encoded as JPEG 4:2:0 with a quality drawn from 85 to 95, like the project's other training crops. ``labels.csv``
has path, label (0), generator (the source), split and group (the photograph); one photograph in eight is kept for
validation. The random draws depend only on the photograph's name.
"""

from pathlib import Path
from typing import Any, Iterable, Iterator, List, Sequence, Tuple

import numpy as np
from PIL import Image

from aidet import cli, files, images, records
from aidet.errors import UserError

CROP, WEB, QUALITY = 448, (900, 2200), (85, 95)
VALIDATION = 8  # one photograph in this many
Photo = Tuple[Iterable[Tuple[Image.Image, int]], str, str, str]  # crops, source, split, name of the photograph


def crops(image: Image.Image, rng: np.random.Generator, count: int) -> List[Tuple[Image.Image, int]]:
    """Crops of one photograph and the JPEG quality of each: a list of (PIL.Image, int)."""
    found = []
    for i in range(count):
        picture = image
        if i % 2:
            scale = min(1.0, int(rng.integers(*WEB)) / max(image.size))
            picture = shrunk(image, scale)
        found.append(cut(picture, rng))
    return found


def shrunk(image: Image.Image, scale: float) -> Image.Image:
    """The image scaled down, to at least one pixel."""
    width, height = (max(1, round(n * scale)) for n in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def cut(picture: Image.Image, rng: np.random.Generator) -> Tuple[Image.Image, int]:
    """A crop at a random place, as large as the picture allows, and its JPEG quality: (PIL.Image, int)."""
    width, height = (min(CROP, n) for n in picture.size)
    x, y = (int(rng.integers(n - side + 1)) for n, side in zip(picture.size, (width, height)))
    return picture.crop((x, y, x + width, y + height)), int(rng.integers(QUALITY[0], QUALITY[1] + 1))


def write(out: Path, photos: Iterable[Photo]) -> None:
    """Write crops as JPEG files with ``labels.csv``; ``photos``: (crops, source, split, name of the photograph)."""
    (out / "crops").mkdir(parents=True, exist_ok=True)
    rows: List[List[Any]] = []
    for found, source, split, name in photos:
        for crop, quality in found:
            path = f"crops/{len(rows):05d}.jpg"
            with files.atomic(out / path, "wb") as target:
                crop.save(target, "JPEG", quality=quality, subsampling="4:2:0")
            rows.append([path, 0, source, split, name, quality])
    with files.atomic(out / "labels.csv") as table:
        header = ["path", "label", "generator", "split", "group", "jpeg_quality"]
        records.csv_writer(table).writerows([header, *rows])
    print(f"{len(rows)} crops in {out}")


def drawn(folder: Path, photos: Iterable[Tuple[str, str]], count: int, seed: int) -> Iterator[Photo]:
    """The photos that ``write`` takes, from (name, file) under a folder; undecodable files are reported and skipped."""
    for name, file in photos:
        rng = images.generator(seed, Path(name).as_posix())
        split = "val" if rng.integers(VALIDATION) == 0 else "train"
        try:
            image = images.decode(folder / file)
        except images.ImageError as error:
            print(f"left out: {name} ({error})")
            continue
        yield crops(image, rng, count), Path(name).parts[0], split, name


def main(argv: Sequence[str]) -> None:
    """Cut the crops and write them with their labels."""
    p = cli.Parser(prog=f"python -m {__package__}.photographs", description=__doc__)
    p.add_argument("--folder", required=True, help="one sub-folder of photographs a source")
    p.add_argument("--list", metavar="CSV", help="the photographs: name, file")
    p.add_argument("--out", required=True)
    p.add_argument("--crops", type=int, default=2, help="crops a photograph")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)
    folder = images.require_folder(args.folder)
    if args.list:
        listed, columns = records.read_table(args.list, "list")
        if not {"name", "file"} <= set(columns):
            raise UserError(f"{args.list} lacks a column: wanted name and file, found {', '.join(columns)}")
        photos = [(r["name"], r["file"]) for r in listed]
    else:
        photos = [(name, name) for name in images.walk(folder)]
    photos = [(name, file) for name, file in photos if len(Path(name).parts) > 1]
    if not photos:
        raise UserError(f"no image in a sub-folder of {args.folder}; every sub-folder is one source")
    write(Path(args.out), drawn(folder, photos, args.crops, args.seed))


if __name__ == "__main__":
    cli.main(main)
