"""How many photographs from the web a checkpoint calls generated, into results/false_alarms.csv.

    apt-get download gcompris-qt-data && dpkg -x gcompris-qt-data_*.deb unpacked
    python bench/false_alarms.py --rcc unpacked/usr/share/gcompris-qt/rcc --ckpt ckpt/aidet_default.ckpt

The photographs are those that KDE's GCompris (Debian 12, gcompris-qt-data 3.1-2) shows children, shrunk and saved as
WebP by its makers: 215 by many photographers, none of which the default detector was trained on.
`false_alarms.csv` beside this file names them with their licences; drawings, paintings and photographs with cut-out
parts are left out. Scored by `infer.py` as they are and after changes of `evaluate.py sweep`; intervals are Wilson's.
"""

import argparse
import io
import struct
import tempfile
import zlib
from pathlib import Path

import common
from measure_set import run

from aidet import cli, degrade, images
from aidet.errors import UserError
from aidet.metrics import wilson

CHANGES = ("clean", "jpeg 70", "resize 0.5")
THRESHOLDS = (0.5, 0.8)
COLUMNS = ["kind", "change", "images", *(f"called generated at {t:g}" for t in THRESHOLDS)]


def resources(path):
    """Files inside a Qt resource file: yields (name, bytes); what zstd compressed is left out.

    The layout is that of Qt's ``rcc`` (qtbase, src/tools/rcc/rcc.cpp, versions 1 to 3): a tree of nodes, breadth first,
    each with the place of its name and of its data or its first child.
    """
    body = Path(path).read_bytes()
    if body[:4] != b"qres":
        raise UserError(f"{path} is no Qt resource file")
    version, tree, data, names = struct.unpack(">4I", body[4:20])
    size = 22 if version >= 2 else 14

    def visit(node, above):
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


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rcc", required=True, help="folder of Qt resource files")
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--list", default=str(Path(__file__).with_suffix(".csv")))
    parser.add_argument("--out", default=str(common.ROOT / "results" / "false_alarms.csv"))
    args = parser.parse_args(argv)
    listed = {row["file"]: row for row in common.rows(args.list)}
    found = {}
    for path in sorted(Path(args.rcc).glob("*.rcc")):
        found.update({name: blob for name, blob in resources(path) if name in listed})
    if len(found) < len(listed):
        missing = sorted(set(listed) - set(found))
        raise UserError(f"{len(missing)} of {len(listed)} photographs are not in {args.rcc}, first {missing[0]!r}")
    found = dict(sorted(found.items()))
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
            run("infer.py", "--ckpt", args.ckpt, "--images", str(given), "--out", str(out))
            probability = [float(row["prob"]) for row in common.rows(out / "scores.csv")]
        for kind in ("all", *(sorted(set(kinds)) if change == "clean" else ())):
            chosen = [p for p, k in zip(probability, kinds) if kind in ("all", k)]
            counts = [sum(p > t for p in chosen) for t in THRESHOLDS]
            shares = [common.shown(c / len(chosen), wilson(c, len(chosen))) for c in counts]
            table.append([kind, change, len(chosen), *shares])
            print(*table[-1], sep="  ", flush=True)
    columns = [*COLUMNS, *common.FACTS]
    common.write(args.out, columns, [dict(zip(columns, row + facts)) for row in table])


if __name__ == "__main__":
    cli.main(main)
