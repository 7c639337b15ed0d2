"""Images in zip files."""

import zipfile
from typing import Iterator

from .places import MAX_BYTES, Archive, ArchiveError, opened
from .remote import is_address


class Zip(Archive):
    """A zip file; its members are read one by one and checked against their checksums."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            self._file = zipfile.ZipFile(opened(path) if is_address(path) else path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise ArchiveError(f"not a zip archive, or a damaged one ({error})") from None

    def names(self) -> Iterator[str]:
        """The members that are files."""
        return (info.filename for info in self._file.infolist() if not info.is_dir())

    def read(self, name: str) -> bytes:
        """See :meth:`Archive.read`; at most :data:`MAX_BYTES`, whatever the archive says of its length."""
        try:
            info = self._file.getinfo(name)
        except KeyError:
            raise ArchiveError("no such file in the archive") from None
        if info.flag_bits & 1:
            raise ArchiveError("encrypted in the archive; unpack it first")
        try:
            with self._file.open(info) as file:
                data = file.read(MAX_BYTES + 1)
        except Exception as error:  # noqa: BLE001 - zipfile and its decompressors raise many types on damaged archives
            raise ArchiveError(f"damaged in the archive ({error})") from None
        if len(data) > MAX_BYTES:
            raise ArchiveError(f"unpacks to more than {MAX_BYTES >> 20} MB")
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()
