"""Images in archives, read in place: Parquet, Arrow, tar and zip files, MindRecord."""

from .places import (
    SUFFIXES,
    Archive,
    ArchiveError,
    exists,
    is_archive,
    joined,
    open_archive,
    parted,
    read,
    size,
)

__all__ = [
    "Archive", "ArchiveError", "SUFFIXES", "exists", "is_archive", "joined", "open_archive", "parted", "read", "size",
]  # fmt: skip
