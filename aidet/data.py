"""Data sets as shards: what is in one, and how to make them from any source.

python -m aidet.data info SOURCE
python -m aidet.data pack SOURCE --out DIR [--format parquet|tar] [--shard-mb 500]

SOURCE is whatever the other commands take: a folder, a table, a list, Parquet and Arrow files, tar and zip files,
MindRecord. Images are copied byte for byte. Parquet shards have the columns of Hugging Face's image data sets; tar
shards are WebDataset's, ``000001.jpg`` and ``000001.json``.
"""

import collections
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple, Type, Union

from . import cli, files, images
from .datasets.archived import add_splits, as_folders
from .datasets.folders import layout
from .datasets.sources import LABEL_COLUMNS, Table, column_of, image_tables, joined, label_column, refuse_doubles
from .errors import UserError
from .labels import NAMES, of_cell

ROWS = 100  # of a row group: so many are decoded together
Row = Tuple[bytes, str, Dict[str, str]]  # an image, its path in the source, the cells beside it


# --- what is packed -----------------------------------------------------------------------------------------------
def opened(source: str) -> Table:
    """The images of a source, with a column ``label`` if their classes are known.

    Parameters
    ----------
    source : str
        As :func:`aidet.datasets.read_images` takes it; of a folder with tables of classes, their rows, as in training.

    Returns
    -------
    Table
        ``label`` is ``real`` or ``generated``; it is left out if the source does not say it of every image.

    Raises
    ------
    UserError
        No images; or folders that contradict each other.
    """
    tables = image_tables(source)
    for table in tables:
        refuse_doubles(table.paths or (), repr(table.source))
        _name_sides(table)
    table = joined(tables)
    add_splits(table)
    return table


def _name_sides(table: Table) -> None:
    """Put the classes of a table into its column ``label``, if they are known of every image."""
    columns = dict(table.columns)
    if column_of(columns, LABEL_COLUMNS) is not None:
        name = label_column(columns, table.source)
        sides: List[Optional[int]] = [of_cell(cell, name) for cell in columns[name]]
        if None not in sides:
            columns.pop(name)
    else:
        found = layout([as_folders(path) for path in table.paths or ()], table.source)
        sides = found.sides
        if None not in sides:
            columns.setdefault("generator", found.generators)
    if None not in sides:
        if "label" in columns:  # of the content, where another column says real or generated
            columns["source_label"] = columns.pop("label")
        columns = {"label": [NAMES[side or 0] for side in sides], **columns}
    table.columns = columns


def rows_of(table: Table, lost: List[Tuple[str, str]]) -> Iterator[Row]:
    """The images of a table with their cells; those that cannot be read go to ``lost`` with the reason."""
    for i, (path, file) in enumerate(zip(table.paths or (), table.files())):
        try:
            with images.binary(file) as opened_file:
                data = opened_file.read()
        except OSError as error:
            lost.append((path, error.strerror or str(error)))
            continue
        yield data, path, {name: cells[i] for name, cells in table.columns.items()}


def name_of(path: str, data: bytes) -> str:
    """A file name for an image: that of its path, with the extension of its content if it has none."""
    name = as_folders(path)
    if os.path.splitext(name)[1].lower() in images.EXTENSIONS:
        return name
    kinds = {b"\xff\xd8\xff": ".jpg", b"\x89PN": ".png", b"RIF": ".webp", b"GIF": ".gif"}
    return name + kinds.get(data[:3], ".bmp" if data[:2] == b"BM" else ".jpg")


# --- shards -------------------------------------------------------------------------------------------------------
class ParquetShard:
    """A Parquet file with the columns ``image`` (struct of bytes and path), ``label`` and those of the source.

    Parameters
    ----------
    path : Path
    columns : list of str
    sided : bool
        Whether all labels are ``real`` or ``generated``; they become numbers with these names.
    """

    suffix, taken = ".parquet", "image"

    def __init__(self, path: Path, columns: List[str], sided: bool) -> None:
        from .archives.parquet import pyarrow

        self._arrow, self._sided = pyarrow(), sided
        text = self._arrow.string()
        kinds: Dict[str, Any] = {n: self._arrow.int64() if n == "label" and sided else text for n in columns}
        image = self._arrow.struct([("bytes", self._arrow.binary()), ("path", text)])
        features = {name: _feature(name, sided) for name in ("image", *columns)}
        noted = {"huggingface": json.dumps({"info": {"features": features}})}
        self._schema = self._arrow.schema([("image", image), *kinds.items()], metadata=noted)
        self._writer = self._arrow.parquet.ParquetWriter(path, self._schema, compression="snappy")
        self._rows: List[Dict[str, Any]] = []

    def add(self, row: Row) -> None:
        """Add one image."""
        data, path, cells = row
        made: Dict[str, Any] = {name: _text(cell) for name, cell in cells.items()}
        made["image"] = {"bytes": data, "path": _text(name_of(path, data))}
        if self._sided:
            made["label"] = NAMES.index(cells["label"])
        self._rows.append(made)
        if len(self._rows) == ROWS:
            self._flush()

    def _flush(self):
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def close(self) -> None:
        """Write the rest, and the end of the file."""
        self._flush()
        self._writer.close()


def _text(cell: str) -> str:
    # On Linux a file name need not be Unicode; invalid bytes are written as \udcXX, as in scores.csv.
    return cell.encode("utf-8", "backslashreplace").decode("utf-8")


def _feature(name: str, sided: bool) -> Dict[str, Any]:
    if name == "image":
        return {"_type": "Image"}
    if name == "label" and sided:
        return {"_type": "ClassLabel", "names": list(NAMES)}
    return {"_type": "Value", "dtype": "string"}


class TarShard:
    """A tar file as WebDataset reads it: an image and a ``.json`` with its cells and its name in the source.

    Parameters
    ----------
    path : Path
    columns : list of str
    sided : bool
        Without effect: labels are words.
    """

    suffix, taken = ".tar", "name"

    def __init__(self, path: Path, columns: List[str], sided: bool) -> None:
        self._file, self._number = tarfile.open(path, "w", format=tarfile.GNU_FORMAT), 0

    def add(self, row: Row) -> None:
        """Add one image."""
        data, path, cells = row
        name, key = name_of(path, data), f"{self._number:06d}"
        self._number += 1
        about = json.dumps({**cells, "name": name}, ensure_ascii=False).encode("utf-8", "surrogatepass")
        for extension, content in ((os.path.splitext(name)[1].lower(), data), (".json", about)):
            info = tarfile.TarInfo(key + extension)
            info.size = len(content)
            self._file.addfile(info, io.BytesIO(content))

    def close(self) -> None:
        """Write the end of the file."""
        self._file.close()


SHARDS: Dict[str, Union[Type[ParquetShard], Type[TarShard]]] = {"parquet": ParquetShard, "tar": TarShard}


def pack(table: Table, out: Path, kind: str, size: int, split: str = "data") -> Tuple[int, int, List[Tuple[str, str]]]:
    """Write the images of a table as shards of about ``size`` bytes each.

    Parameters
    ----------
    table : Table
    out : Path
        Folder; shards are named ``SPLIT-00000.parquet``. With a column ``split`` each split has its own.
    kind : {"parquet", "tar"}
    size : int
        Bytes of images after which a shard ends.
    split : str
        Name of the shards of a table without splits.

    Returns
    -------
    (int, int, list of (str, str))
        Images, shards, and (path, reason) of what could not be read. A shard is complete or absent.
    """
    splits = table.columns.get("split", [split] * len(table))
    lost: List[Tuple[str, str]] = []
    taken = SHARDS[kind].taken
    if taken in table.columns:
        raise UserError(f"column {taken!r} is what a {kind} shard calls its own; give the column another name")
    sided = set(table.columns.get("label", [""])) <= set(NAMES)
    count = 0
    numbers: Dict[str, int] = {}  # of shards by stem, which two splits may share
    for name in dict.fromkeys(splits):
        part = table.take([i for i, cell in enumerate(splits) if cell == name])
        rows = rows_of(part, lost)
        row = next(rows, None)
        while row is not None:
            stem = re.sub(r"[^\w.-]+", "_", name).lstrip(".") or split  # a hidden file would be no shard
            k = numbers.get(stem, 0)
            with files.atomic_path(out / f"{stem}-{k:05d}{SHARDS[kind].suffix}") as path:
                shard, written = SHARDS[kind](path, list(table.columns), sided), 0
                try:
                    while row is not None and (not written or written + len(row[0]) <= size):
                        shard.add(row)
                        written += len(row[0])
                        count += 1
                        row = next(rows, None)
                finally:
                    shard.close()
            numbers[stem] = k + 1
    return count, sum(numbers.values()), lost


# --- command line -------------------------------------------------------------------------------------------------
def parser() -> cli.Parser:
    """The command-line options."""
    p = cli.Parser(prog="python -m aidet.data", description=__doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="info|pack")
    info = commands.add_parser("info", help="images, columns, classes and shards of a source")
    make = commands.add_parser("pack", help="write a source as Parquet or tar shards")
    for one in (info, make):
        one.add_argument("source", metavar="SOURCE")
    make.add_argument("--out", required=True, metavar="DIR", help="a new or an empty folder")
    make.add_argument("--format", choices=sorted(SHARDS), default="parquet")
    make.add_argument("--shard-mb", type=int, default=500, metavar="MB", help="size of a shard (500)")
    return p


def describe(table: Table) -> List[str]:
    """What is in a table, as lines."""
    paths = table.paths or []
    holders = collections.Counter(path.partition("#")[0] if "#" in path else "files" for path in paths)
    lines = [f"{len(paths)} images in {len(holders)} {'archive' if len(holders) == 1 else 'archives'}"]
    if set(holders) <= {"files"}:
        lines = [f"{len(paths)} image files"]
    for name, cells in table.columns.items():
        count = collections.Counter(cells)
        shown = ", ".join(f"{n} {cell or '(empty)'}" for cell, n in count.most_common(8))
        more = f", and {len(count) - 8} other values" if len(count) > 8 else ""
        lines.append(f"{name}: {shown}{more}")
    if "label" not in table.columns:
        lines.append("no classes: neither a column nor a folder says real or generated of every image")
    return lines


def main(argv: List[str]) -> int:
    """Parse the command line and run the command; gives the exit code."""
    options = parser().parse_args(argv)
    table = opened(options.source)
    if options.command == "info":
        for line in describe(table):
            print(cli.printable(line))
        return cli.OK
    out = Path(options.out)
    if options.shard_mb < 1:
        raise UserError(f"--shard-mb {options.shard_mb} must be at least 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {options.out!r} is not an empty folder; name a new one")
    if table.columns.pop("mask", None) is not None:
        cli.to_stderr("note: the column 'mask' is left out: shards hold no masks; train with masks from the table")
    count, number, lost = pack(table, out, options.format, options.shard_mb << 20)
    for path, why in lost:
        cli.to_stderr(f"left out {path}: {why}")
    if not count:
        raise UserError(f"none of the {len(lost)} images of {options.source!r} can be read")
    print(f"{count} images in {number} {options.format} {'shard' if number == 1 else 'shards'}, {out}")
    return cli.PARTIAL if lost else cli.OK


if __name__ == "__main__":
    cli.main(main)
