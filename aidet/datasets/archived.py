"""Archives as sources of images: which of their members are images, and what is said of each.

A Parquet or Arrow file says it in columns. In a tar or zip file, ``.cls`` and ``.json`` members beside an image do
(WebDataset), or the folders in it. A folder that holds archives and no image is a set of shards.
"""

import json
import os
import re
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from .. import archives, images
from ..errors import UserError
from ..images.walking import LITTER, extension
from ..records import natural_order
from .folders import SPLIT_NAMES, Layout, layout, refuse_silent
from .table import Place, Table, examples, joined

# What a shard is called: train-00000-of-00004.parquet, test.tar, genimage_val_0003.tar.
_SPLITS = {word: name for name, words in SPLIT_NAMES.items() for word in words}
# Files that the ``datasets`` library keeps beside its data: results of map() and select().
_CACHES = re.compile(r"(cache|indices)-[0-9a-f]+.*\.arrow|indices\.arrow")
NOTES = (".cls", ".json")  # members that say something of the image of the same name


def shards(folder: Place, left: Optional[images.LeftOut] = None) -> List[str]:
    """The archives below a folder, relative to it, in natural order.

    Raises
    ------
    UserError
        A data set that was saved with an order of its own, which only the ``datasets`` library can apply.
    """
    found = []
    for name in images.walk(folder, left, wanted=archives.is_archive):
        if not _CACHES.fullmatch(os.path.basename(name)):
            found.append(name)
    for state in {Path(folder, name).parent / "state.json" for name in found if name.endswith(".arrow")}:
        try:
            indices = json.loads(state.read_text(encoding="utf-8")).get("_indices_files")
        except (OSError, ValueError, AttributeError):
            continue
        if indices:
            raise UserError(
                f"{str(state.parent)!r} was saved with rows selected or shuffled; call flatten_indices() before "
                "save_to_disk()"
            )
    return found


def holds_shards(folder: Place) -> bool:
    """Whether a folder is a set of shards: it holds archives and no image outside of them."""
    return next(images.walk(folder), None) is None and bool(shards(folder))


def walk(folder: Place, left: Optional[images.LeftOut] = None) -> Iterator[str]:
    """The images below a folder, as :func:`aidet.images.walk` finds them; of a set of shards, those in its archives."""
    if not holds_shards(folder):
        yield from images.walk(folder, left)
        return
    for shard in shards(folder, left):
        yield from (archives.joined(shard, name) for name in names(os.path.join(folder, shard), left))


def stream(path: Place, left: Optional[images.LeftOut] = None) -> Iterator[str]:
    """The images of one archive as ``FILE#NAME``, relative to its folder."""
    return (archives.joined(os.path.basename(path), name) for name in names(path, left))


def names(path: Place, left: Optional[images.LeftOut] = None) -> Iterator[str]:
    """The names of the images in an archive; one empty name if it cannot be read, which then says why."""
    try:
        archive = archives.open_archive(path)
    except archives.ArchiveError:
        yield ""
        return
    if archive.by_number:
        yield from archive.names()
        return
    for name in natural_order(archive.names()):
        if not name or _is_image(name, left):
            yield name


def _is_image(name: str, left: Optional[images.LeftOut] = None) -> bool:
    parts = name.split("/")
    if any((part.startswith(".") and part not in (".", "..")) or part.lower() in LITTER for part in parts):
        return False
    kind = extension(name)
    if kind not in images.EXTENSIONS and left is not None and kind not in NOTES:
        left.extensions[kind] += 1
    return kind in images.EXTENSIONS


def read(path: Place, what: str = "image list") -> Table:
    """The images of an archive, or of all archives of a folder, with what is said of them.

    Parameters
    ----------
    path : str or Path
    what : str
        What it is, for messages.

    Returns
    -------
    Table
        Paths ``FILE#NAME`` below ``root``. A split in the name of a shard or of a folder, in it or around it, becomes
        the column ``split`` if there is none.

    Raises
    ------
    UserError
        No images, or an archive that cannot be read: its images would be missing silently.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    files = shards(path) if path.is_dir() else [path.name]
    tables = [table for table in (_table(folder, name, what) for name in files) if len(table)]
    if not tables:
        raise UserError(f"{what} {str(path)!r}: no images in {examples(files) or 'this folder'}")
    table = joined(tables)
    table.source = str(path)
    add_splits(table)
    return table


def _table(folder: Path, name: str, what: str) -> Table:
    path = os.path.join(folder, name)
    try:
        archive = archives.open_archive(path)
        inside = list(names(path))
        if "" in inside:
            archive.read("")  # raises the reason
        columns = archive.columns() if archive.by_number else _notes(archive, inside)
    except archives.ArchiveError as error:
        raise UserError(f"{what} {path!r}: {error}; fetch it again, or leave it out") from None
    return Table([archives.joined(name, n) for n in inside], columns, folder, path)


def _notes(archive: archives.Archive, inside: Sequence[str]) -> Dict[str, List[str]]:
    """The columns that ``.cls`` and ``.json`` members make; images without one have empty cells."""
    beside = {name for name in archive.names() if extension(name) in NOTES}
    if not beside:
        return {}
    rows = []
    for name in inside:
        # WebDataset's key ends at the first dot of the file name: 0001.seg.png belongs to 0001.
        folder, slash, file = name.rpartition("/")
        key = folder + slash + file.split(".")[0]
        row = {}
        if key + ".cls" in beside:
            row["label"] = archive.read(key + ".cls").decode("utf-8", "replace").strip()
        if key + ".json" in beside:
            row.update(_scalars(archive.read(key + ".json"), archives.joined(archive.path, key + ".json")))
        rows.append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return {column: [row.get(column, "") for row in rows] for column in columns}


def _scalars(data: bytes, place: str) -> Dict[str, str]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise UserError(f"{place!r} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f'{place!r} must be a JSON object, as {{"label": "real"}}')
    return {
        key: str(int(value)) if isinstance(value, bool) else str(value)
        for key, value in found.items()
        if isinstance(value, (str, int, float))
    }


def add_splits(table: Table) -> None:
    """Add the column ``split``, if there is none and the names of folders or shards say the split of every image."""
    if "split" in table.columns:
        return
    cells = named_splits(table)
    if all(cells):
        table.columns["split"] = cells


def named_splits(table: Table) -> List[str]:
    """The split that folders or shards name for each image of a table; ``""`` where they name none."""
    known: Dict[str, str] = {}
    cells = []
    for path in table.paths or ():
        folders = as_folders(path).rpartition("/")[0]
        if folders not in known:
            known[folders] = _split_of(folders)
        cells.append(known[folders])
    return cells


def _split_of(folders: str) -> str:
    """The first word of a path that is a split's, by itself or as a part of a shard's name; ``""`` if there is none."""
    for part in folders.split("/"):
        words = re.split(r"[-_.]", part.lower())
        found = next((_SPLITS[word] for word in words if word in _SPLITS), "")
        if found:
            return found
    return ""


def as_folders(path: str) -> str:
    """The path of an image as if its archive were a folder: ``ADM.zip#val/ai/1.png`` -> ``ADM/val/ai/1.png``."""
    return re.sub(r"\.(?:parquet|arrow|tar|zip|mindrecord[0-9]*)#", "/", path, count=1, flags=re.IGNORECASE)


def layout_of(table: Table, what: str) -> Layout:
    """The classes and generators that the folders in archives say of all images of a table.

    Raises
    ------
    UserError
        They contradict each other, or say nothing of some image; ``what`` names the source.
    """
    names = [as_folders(path) for path in table.paths or ()]
    found = layout(names, what)
    refuse_silent(names, found.sides, what)
    return found


def chunks(table: Table) -> Optional[np.ndarray]:
    """Which rows can only be read together, see :attr:`aidet.archives.Archive.chunks`.

    Returns
    -------
    ndarray of int, shape (n,) or None
        A number for each row, equal for rows of one chunk; None if all can be read in any order.
    """
    known: Dict[str, Optional[Tuple[int, np.ndarray]]] = {}
    total, result = 0, np.zeros(len(table), np.int64)
    for row, path in enumerate(table.located() or ()):
        found = archives.parted(os.path.join(table.root, path)) if "#" in path else None
        if found is None:
            result[row] = -1
            continue
        file, name = found
        if file not in known:
            sizes = archives.open_archive(file).chunks
            known[file] = None if sizes is None else (total, np.cumsum(sizes))
            total += len(sizes or ())
        place = known[file]
        result[row] = -1 if place is None else place[0] + int(np.searchsorted(place[1], int(name), side="right"))
    return None if (result < 0).all() else result
