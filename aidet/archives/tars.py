"""Images in tar files, WebDataset's shards among them (Aizman et al., "High performance I/O for large scale deep
learning", IEEE Big Data 2019)."""

import os
import tarfile
import threading
from typing import Dict, Iterator, Tuple

from .places import MAX_BYTES, Archive, ArchiveError, opened
from .remote import is_address


class Tar(Archive):
    """A tar file without compression: an index of its members is made once, then each is read where it lies."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._places: Dict[str, Tuple[int, int]] = {}
        self._damage, self._lock = "", threading.Lock()
        self._file = opened(path)
        self._size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        self._index()
        if self._damage and not self._places:
            raise ArchiveError(self._damage)

    def _index(self):
        try:
            file = self._file if is_address(self.path) else None  # a disk's is opened with a buffer
            with tarfile.open(self.path, "r:", file) as archive:
                for info in archive:
                    archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all that it has seen
                    # A link names another file, a sparse member has holes: neither lies there as one piece.
                    if info.isreg() and not info.issparse():
                        self._places[info.name] = (info.offset_data, info.size)
                end = archive.offset
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            self._damage = f"the archive is damaged after {len(self._places)} members ({error})"
            return
        # Two blocks of zeros end an archive. A download that broke off between two members lacks nothing else.
        if self._size < end + tarfile.BLOCKSIZE:
            self._damage = f"the archive is cut off after {len(self._places)} members"

    def names(self) -> Iterator[str]:
        """The members that are files; an empty name at the end if the archive is damaged."""
        yield from self._places
        if self._damage:
            yield ""

    def read(self, name: str) -> bytes:
        """See :meth:`Archive.read`."""
        if not name and self._damage:
            raise ArchiveError(self._damage)
        if name not in self._places:
            raise ArchiveError("no such file in the archive")
        start, size = self._places[name]
        if size > MAX_BYTES:
            raise ArchiveError(f"larger than {MAX_BYTES >> 20} MB")
        with self._lock:
            self._file.seek(start)
            data = self._file.read(size)
        if len(data) < size:
            raise ArchiveError("cut off with the end of the archive")
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()
