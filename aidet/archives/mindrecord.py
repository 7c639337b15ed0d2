"""Images in MindRecord files, MindSpore's own format."""

import threading
from typing import Any, Dict, Iterator, List

from ..errors import UserError
from .places import Archive, ArchiveError

IMAGE_FIELDS = ("image", "img", "data", "picture", "photo", "bytes", "jpg", "png")
WINDOW = 64  # rows that are read at a time


class MindRecord(Archive):
    """One MindRecord file with its ``.db`` beside it, read through MindSpore a window of rows at a time."""

    by_number = True

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            import mindspore.dataset as dataset
            from mindspore.mindrecord import FileReader
        except ImportError as error:
            raise UserError(f"MindRecord files need MindSpore ({error}): pip install 'aidet[mindspore]'") from None
        self._dataset, self._lock = dataset, threading.Lock()
        try:
            reader = FileReader(path)
            self._schema = dict(reader.schema())
            self._rows = reader.len()
            reader.close()
        except Exception as error:  # noqa: BLE001 - MindSpore raises many types
            raise ArchiveError(f"not a MindRecord file, or a damaged one ({_reason(error)})") from None
        binary = [name for name, kind in self._schema.items() if kind.get("type") == "bytes"]
        found = [name for name in IMAGE_FIELDS if name in binary] or binary
        if not found:
            has = ", ".join(f"{name} ({kind.get('type')})" for name, kind in self._schema.items())
            raise UserError(f"{path!r} has no field of bytes for the images; it has {has}")
        self._field = found[0]
        self.chunks = [WINDOW] * (self._rows // WINDOW) + [self._rows % WINDOW] * bool(self._rows % WINDOW)
        self._window: List[bytes] = []
        self._start = -1

    def names(self) -> Iterator[str]:
        """The numbers of the rows, from 0."""
        return map(str, range(self._rows))

    def _read(self, fields: List[str], start: int, rows: int) -> Iterator[Dict[str, Any]]:
        sampler = self._dataset.SequentialSampler(start_index=start, num_samples=rows)
        data = self._dataset.MindDataset(self.path, columns_list=fields, sampler=sampler, num_parallel_workers=1)
        try:
            yield from data.create_dict_iterator(num_epochs=1, output_numpy=True)
        except Exception as error:  # noqa: BLE001 - MindSpore raises many types
            raise ArchiveError(f"damaged ({_reason(error)})") from None

    def read(self, name: str) -> bytes:
        """See :meth:`Archive.read`."""
        row = int(name) if name.isdecimal() else -1
        if not 0 <= row < self._rows:
            raise ArchiveError(f"no row {name!r}; it has {self._rows}")
        with self._lock:
            start = row - row % WINDOW
            if start != self._start:
                rows = min(WINDOW, self._rows - start)
                self._window = [cells[self._field].tobytes() for cells in self._read([self._field], start, rows)]
                self._start = start
            if row - start >= len(self._window):
                raise ArchiveError(f"row {row} is damaged")
            return self._window[row - start]

    def columns(self) -> Dict[str, List[str]]:
        """The fields that hold one word or number a row."""
        plain = [name for name, kind in self._schema.items() if kind.get("type") != "bytes" and "shape" not in kind]
        if not plain or not self._rows:
            return {}
        rows = list(self._read(plain, 0, self._rows))
        return {name: [str(row[name].reshape(-1)[0]) for row in rows] for name in plain}


def _reason(error):
    return " ".join(str(error).split())[:200] or type(error).__name__
