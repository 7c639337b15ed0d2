"""Folders of images, and what the names of folders mean."""

import sys
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
    left = images.LeftOut()
    keys = list(images.walk(folder, left))
    if not keys:
        raise UserError(" ".join((f"{what} {str(folder)!r}: no images in this folder", *left.lines())))
    for line in left.lines():
        print(f"{line} ({folder})", file=sys.stderr)
    return Table(keys, {}, Path(folder), str(folder))
