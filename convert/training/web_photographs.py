"""Crops of web photographs for training a detector: by many photographers, shrunk and compressed.

    apt-get download gcompris-qt-data && dpkg -x gcompris-qt-data_*.deb unpacked
    python -m convert.training.web_photographs --rcc unpacked/usr/share/gcompris-qt/rcc --out runs/web

The photographs are the 215, by many photographers, that KDE's GCompris (Debian 12, gcompris-qt-data 3.1-2) contains,
saved as WebP by its authors. `web_photographs.csv` beside this file lists them with their licences; drawings, paintings
and photographs with cut-out parts are excluded. A third of them, drawn at random from the name, is held out for
`bench/false_alarms.py`. Each of the others gives up to four crops of 448 pixels (or fewer if the photograph is
smaller): two at native size, and two of the photograph scaled to .45 to .85 of its size, which removes most traces of
WebP. ``labels.csv`` has the format of ``photographs``; all crops are in split ``train``.
"""

import io
import struct
import zlib
from pathlib import Path
from typing import Dict, Iterator, Mapping, Sequence, Tuple, Union

import numpy as np
from PIL import Image

from aidet import cli, images, records
from aidet.errors import UserError

from .photographs import Photo, cut, shrunk, write

LIST = Path(__file__).with_suffix(".csv")
CROPS, SCALE, LEAST = 4, (0.45, 0.85), 200
APART = 3  # one photograph in this many is held out from training


def resources(path: Union[str, Path]) -> Iterator[Tuple[str, bytes]]:
    """Files inside a Qt resource file: yields (name, bytes); files compressed with zstd are skipped.

    The layout is that of Qt's ``rcc`` (qtbase, src/tools/rcc/rcc.cpp, versions 1 to 3): a tree of nodes, breadth first.
    Each node has the offset of its name and of its data or first child.
    """
    body = Path(path).read_bytes()
    if body[:4] != b"qres":
        raise UserError(f"{path} is no Qt resource file")
    version, tree, data, names = struct.unpack(">4I", body[4:20])
    size = 22 if version >= 2 else 14

    def visit(node: int, above: str) -> Iterator[Tuple[str, bytes]]:
        at = tree + node * size
        place, flags = struct.unpack(">IH", body[at : at + 6])
        (length,) = struct.unpack(">H", body[names + place : names + place + 2])
        name = body[names + place + 6 : names + place + 6 + 2 * length].decode("utf-16-be") if node else ""
        name = f"{above}/{name}".strip("/")
        if flags & 2:
            count, first = struct.unpack(">2I", body[at + 6 : at + 14])
            for child in range(first, first + count):
                yield from visit(child, name)
        elif not flags & 4:
            start = data + struct.unpack(">I", body[at + 10 : at + 14])[0]
            (length,) = struct.unpack(">I", body[start : start + 4])
            found = body[start + 4 : start + 4 + length]
            yield name, zlib.decompress(found[4:]) if flags & 1 else found

    yield from visit(0, "")


def photographs(rcc: Union[str, Path]) -> Dict[str, bytes]:
    """The listed photographs in a folder of Qt resource files: dict of name to bytes, sorted by name."""
    listed = {row["file"] for row in records.read_table(LIST)[0]}
    found = {}
    for path in sorted(images.require_folder(rcc).glob("*.rcc")):
        found.update({name: blob for name, blob in resources(path) if name in listed})
    missing = sorted(listed - set(found))
    if missing:
        raise UserError(f"{len(missing)} of {len(listed)} photographs are not in {rcc}, first {missing[0]!r}")
    return dict(sorted(found.items()))


def drawn(name: str) -> Tuple[np.random.Generator, bool]:
    """The photograph's random generator, and whether it is held out from training."""
    rng = images.generator(0, name)
    return rng, bool(rng.integers(APART) == 0)


def crops(image: Image.Image, rng: np.random.Generator) -> Iterator[Tuple[Image.Image, int]]:
    """Crops of one photograph and the JPEG quality of each: yields (PIL.Image, int)."""
    for i in range(CROPS):
        picture = image
        if i % 2 == 0:
            picture = shrunk(image, rng.uniform(*SCALE))
        if min(picture.size) >= LEAST:
            yield cut(picture, rng)


def training(found: Mapping[str, bytes]) -> Iterator[Photo]:
    """The photos that ``write`` takes, without those held out; ``found``: dict of name to bytes."""
    for name, blob in found.items():
        rng, apart = drawn(name)
        if not apart:
            yield crops(images.decode(io.BytesIO(blob)), rng), "gcompris", "train", name


def main(argv: Sequence[str]) -> None:
    """Cut the crops and write them with their labels."""
    p = cli.Parser(prog=f"python -m {__package__}.web_photographs", description=__doc__)
    p.add_argument("--rcc", required=True, help="folder of Qt resource files")
    p.add_argument("--out", required=True)
    args = p.parse_args(argv)
    write(Path(args.out), training(photographs(args.rcc)))


if __name__ == "__main__":
    cli.main(main)
