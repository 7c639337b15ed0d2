"""Images in columns: Parquet files and the Arrow files that the ``datasets`` library saves.

The image column is a binary column, or one of Hugging Face's image type, a struct of ``bytes`` and ``path``
(``datasets.Image``). Class names come from the schema's metadata, where that library keeps its features.
"""

import bisect
import itertools
import json
import os
import sys
import threading
from collections import OrderedDict
from typing import Any, Dict, Iterator, List, Optional, Tuple

from ..errors import UserError
from .places import MAX_BYTES, Archive, ArchiveError, opened
from .remote import is_address

IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "png", "webp", "bytes", "image_bytes", "content", "data")
BATCH = 32  # rows that are decoded at a time
KEPT = 512 << 20  # bytes of images that a process keeps, of all files whose rows are read in any order
KEPT_IN_ORDER = 4  # batches of a file that are kept as long as its rows are read forwards: threads are a little apart


def pyarrow() -> Any:
    """The package that reads Parquet.

    Raises
    ------
    UserError
        It is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"Parquet and Arrow files need pyarrow ({error}): pip install 'aidet[parquet]'") from None
    return pyarrow


class _Columns(Archive):
    """What both formats share: which column holds the images, and what the others say."""

    by_number = True

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._arrow, self._lock = pyarrow(), threading.Lock()

    def _choose(self, schema):
        self._schema, self._features = schema, _features(schema)
        self._column = self._image_column(schema)

    def _image_column(self, schema):
        declared = [name for name, kind in self._features.items() if kind.get("_type") == "Image"]
        fitting = [field.name for field in schema if self._holds_images(field.type)]
        found = [name for name in declared if name in fitting] or [c for c in IMAGE_COLUMNS if c in fitting] or fitting
        if not found:
            has = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise UserError(
                f"{self.path!r} has no column of images; it has {has}; wanted one of bytes, or of struct{{bytes, path}}"
            )
        return found[0]

    def _holds_images(self, kind):
        types = self._arrow.types
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return types.is_binary(kind) or types.is_large_binary(kind)

    def _length(self) -> int:
        raise NotImplementedError

    def _table(self, names: List[str]) -> Any:
        raise NotImplementedError

    def names(self) -> Iterator[str]:
        """The numbers of the rows, from 0."""
        return map(str, range(self._length()))

    def _row(self, name):
        row = int(name) if name.isdecimal() else -1
        if not 0 <= row < self._length():
            raise ArchiveError(f"no row {name!r}; it has {self._length()}")
        return row

    def columns(self) -> Dict[str, List[str]]:
        """The other columns that hold one word, number or truth value a row; class numbers by their names."""
        plain = [f.name for f in self._schema if f.name != self._column and self._is_plain(f.type)]
        try:
            table = self._table(plain)
        except (self._arrow.ArrowException, OSError) as error:
            raise ArchiveError(_reason(error)) from None
        return {name: _cells(table.column(name).to_pylist(), self._features.get(name, {})) for name in plain}

    def _is_plain(self, kind):
        types = self._arrow.types
        if types.is_dictionary(kind):
            kind = kind.value_type
        return any(
            test(kind)
            for test in (
                types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean,
            )
        )  # fmt: skip

    def _bytes(self, cell):
        """The image of a cell: its bytes or, if it only names a file, those of the file beside the archive."""
        if isinstance(cell, dict):
            data, name = cell.get("bytes"), cell.get("path")
            if data is None and name:
                data = self._beside(name)
            cell = data
        if cell is None:
            raise ArchiveError("the row has no image")
        if len(cell) > MAX_BYTES:
            raise ArchiveError(f"larger than {MAX_BYTES >> 20} MB")
        return cell

    def _beside(self, name):
        if is_address(self.path):
            raise ArchiveError(f"its bytes are not in the archive but in {name!r}, which is read from disks only")
        folder = os.path.realpath(os.path.dirname(self.path) or ".")
        file = os.path.realpath(os.path.join(folder, name))
        if os.path.commonpath((folder, file)) != folder:
            raise ArchiveError(f"its bytes are not in the archive, and {name!r} lies outside its folder")
        try:
            with open(file, "rb") as opened:
                return opened.read(MAX_BYTES + 1)
        except (OSError, ValueError):
            raise ArchiveError(f"its bytes are not in the archive, and there is no file {name!r} beside it") from None


class Parquet(_Columns):
    """A Parquet file. A row group is decoded from its start, so that rows are cheap in their order only."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            # Not mapped: a file that is cut off while it is read would end the process.
            file = opened(path) if is_address(path) else path
            self._file = self._arrow.parquet.ParquetFile(file, memory_map=False, pre_buffer=False)
        except (self._arrow.ArrowException, OSError) as error:
            raise ArchiveError(f"not a Parquet file, or a damaged one ({_reason(error)})") from None
        self._choose(self._file.schema_arrow)
        meta = self._file.metadata
        self.chunks = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        self._starts = [0, *itertools.accumulate(self.chunks)]
        self._reader: Optional[Tuple[int, int, Iterator[Any]]] = None  # row group, next batch in it, batches
        self._last = (0, -1)  # row group and number of the batch that was read last
        self._kept = _Kept(most=KEPT_IN_ORDER)  # until a batch is wanted that lies before the last one

    def _length(self):
        return self._starts[-1]

    def _table(self, names):
        return self._file.read(columns=names)

    def read(self, name: str) -> bytes:
        """See :meth:`Archive.read`; reads on from the last row where it can."""
        row = self._row(name)
        group = bisect.bisect_right(self._starts, row) - 1
        batch, place = divmod(row - self._starts[group], BATCH)
        with self._lock:
            cells = self._kept.get((self, group, batch))
            if cells is None:
                cells = self._batch(group, batch)
            return self._bytes(cells[place])

    def _batch(self, group, wanted):
        if (0, 0) < (group, wanted) <= self._last:  # not a new start
            self._kept = _IN_ANY_ORDER
        self._last = (group, wanted)
        if self._reader is None or self._reader[0] != group or self._reader[1] > wanted:
            batches = self._file.iter_batches(BATCH, row_groups=[group], columns=[self._column])
            self._reader = (group, 0, batches)
        _, number, batches = self._reader
        try:
            while True:
                cells = next(batches).column(0).to_pylist()
                self._kept.add((self, group, number), cells)
                self._reader = (group, number + 1, batches)
                if number == wanted:
                    return cells
                number += 1
        except (self._arrow.ArrowException, OSError, StopIteration) as error:
            self._reader = None
            raise ArchiveError(f"damaged in row group {group} ({_reason(error)})") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._kept.drop(self)


class Arrow(_Columns):
    """An Arrow file, as ``datasets`` writes it: mapped into memory, every row is read on its own."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            mapped = self._arrow.memory_map(path)
            try:
                self._data = self._arrow.ipc.open_stream(mapped).read_all()
            except self._arrow.ArrowInvalid:
                mapped.seek(0)
                self._data = self._arrow.ipc.open_file(mapped).read_all()
        except (self._arrow.ArrowException, OSError) as error:
            raise ArchiveError(f"not an Arrow file, or a damaged one ({_reason(error)})") from None
        self._choose(self._data.schema)

    def _length(self):
        return self._data.num_rows

    def _table(self, names):
        return self._data.select(names)

    def read(self, name: str) -> bytes:
        """See :meth:`Archive.read`."""
        return self._bytes(self._data.column(self._column)[self._row(name)].as_py())


class _Kept:
    """The batches of rows that were read last: at most ``most`` of them and :data:`KEPT` bytes."""

    def __init__(self, most=None):
        self._batches, self._size, self._most, self._lock = OrderedDict(), 0, most, threading.Lock()

    def get(self, key):
        with self._lock:
            if key not in self._batches:
                return None
            self._batches.move_to_end(key)
            return self._batches[key][0]

    def add(self, key, cells):
        size = sum(len((c.get("bytes") if isinstance(c, dict) else c) or b"") for c in cells)
        with self._lock:
            if key in self._batches:
                return
            self._batches[key] = cells, size
            self._size += size
            while (self._size > KEPT and len(self._batches) > 2) or len(self._batches) > (self._most or sys.maxsize):
                self._size -= self._batches.popitem(last=False)[1][1]

    def drop(self, file):
        """Forget the rows of a file."""
        with self._lock:
            for key in [key for key in self._batches if key[0] is file]:
                self._size -= self._batches.pop(key)[1]


_IN_ANY_ORDER = _Kept()  # of all files of the process, so that many open ones need no more memory than one


def _features(schema):
    """The features that the ``datasets`` library notes in a schema, by column; none if it does not."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in found.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _cells(values: List[Any], feature: Dict[str, Any]) -> List[str]:
    """Cells as text: numbers of classes by their names, truth values as 0 and 1, nothing as an empty cell."""
    classes = feature.get("names") if feature.get("_type") == "ClassLabel" else None

    def text(value):
        if value is None:
            return ""
        if classes and isinstance(value, int) and 0 <= value < len(classes):
            return str(classes[value])
        return str(int(value)) if isinstance(value, bool) else str(value)

    return [text(value) for value in values]


def _reason(error):
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
