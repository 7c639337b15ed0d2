"""Folders of images, and what the names of folders mean."""

from pathlib import Path

from .. import images
from ..errors import UserError
from .table import Place, Table

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# Folders that name neither a class nor a generator.
SPLIT_WORDS = frozenset(("images", *(word for words in SPLIT_NAMES.values() for word in words)))


def read_folder(folder: Place, what: str = "image list") -> Table:
    """The images below a folder; raise a :class:`UserError` if there are none."""
    keys = list(images.walk(folder))
    if not keys:
        raise UserError(f"{what} {str(folder)!r}: no images in this folder")
    return Table(keys, {}, Path(folder), str(folder))
