"""Images in archives, read in place: Parquet, Arrow, tar and zip files, MindRecord."""

from .places import (
    SUFFIXES,
    Archive,
    ArchiveError,
    apart,
    exists,
    is_archive,
    joined,
    open_archive,
    parted,
    read,
    size,
)
from .remote import is_address, kind, listing, trimmed

__all__ = [
    "Archive", "ArchiveError", "SUFFIXES", "apart", "exists", "is_address", "is_archive", "joined", "kind", "listing",
    "open_archive", "parted", "read", "size", "trimmed",
]  # fmt: skip
