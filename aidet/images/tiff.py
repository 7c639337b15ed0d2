"""The first directory of a TIFF: its entries, numbers in them, and the same file without what is not the picture.

Sources: TIFF 6.0 (Adobe, 1992); BigTIFF design (AWare Systems).
"""

import os
import struct
from typing import Any, BinaryIO, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

MOST_ENTRIES = 4096  # of a directory; a longer one is not looked into
# First bytes of a TIFF, and the byte order as in :mod:`struct`.
ORDERS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q"}
# Tags that say how the pixels are stored; the orientation among them.
_PICTURE_TAGS = frozenset(
    (*range(254, 260), 262, 266, 273, 274, 277, 278, 279, 280, 281, 284, 292, 293, 317, *range(320, 326), 332, 334,
     336, *range(338, 343), 347, *range(512, 522), *range(529, 533))
)  # fmt: skip


class Entry(NamedTuple):
    """One entry of a TIFF directory.

    Attributes
    ----------
    tag, type, number : int
    size : int
        Bytes of its values.
    at : int
        Offset of its values.
    packed : bytes
        The entry as it is stored.
    """

    tag: int
    type: int
    number: int
    size: int
    at: int
    packed: bytes


def directory(file: BinaryIO, end: int) -> Tuple[str, int, int, List[Entry]]:
    """The first directory of a TIFF.

    Parameters
    ----------
    file : binary file
    end : int
        Its length.

    Returns
    -------
    (str, int, int, list of Entry)
        Byte order as in :mod:`struct`; offset and length in bytes of the directory; its entries.

    Raises
    ------
    struct.error
        The file ends within it.
    """
    file.seek(0)
    head = file.read(16)
    order, big = ORDERS[head[:4]], head[2:4] in (b"+\0", b"\0+")
    count_form, offset_form, entry_size = ("Q", "Q", 20) if big else ("H", "I", 12)
    start = struct.unpack_from(order + offset_form, head, 8 if big else 4)[0]
    file.seek(start)
    width = struct.calcsize("=" + count_form)
    count = struct.unpack(order + count_form, file.read(width))[0]
    if count > MOST_ENTRIES or start + width + count * entry_size > end:
        raise struct.error("the directory is cut off")
    packed = file.read(count * entry_size)
    entries = []
    for i in range(0, len(packed), entry_size):
        one = packed[i : i + entry_size]
        tag, kind, number = struct.unpack_from(order + "HH" + offset_form, one)
        size, inline = _SIZES.get(kind, 1) * number, 8 if big else 4
        here = start + width + i + entry_size - inline
        at = here if size <= inline else struct.unpack_from(order + offset_form, one, entry_size - inline)[0]
        entries.append(Entry(tag, kind, number, size, at, one))
    return order, start, width + len(packed), entries


def tags(file: BinaryIO, wanted: Sequence[int]) -> Dict[int, Tuple[Any, ...]]:
    """Numbers of some tags in the first directory of a TIFF; without the tags that it lacks or that are damaged."""
    end, found = file.seek(0, os.SEEK_END), {}
    try:
        order, _, _, entries = directory(file, end)
        for entry in entries:
            short = entry.type in _FORMATS and 0 < entry.number < 64
            if entry.tag in wanted and short and entry.at + entry.size <= end:
                file.seek(entry.at)
                form = f"{order}{entry.number}{_FORMATS[entry.type]}"
                found[entry.tag] = struct.unpack(form, file.read(entry.size))
    except (KeyError, struct.error, OverflowError, OSError):
        pass
    return found


def without(file: BinaryIO, end: int, large: Optional[int]) -> Optional[List[Union[bytes, Tuple[int, int]]]]:
    """The parts of a TIFF, with a first directory that has fewer entries.

    Parameters
    ----------
    file : binary file
    end : int
        Its length.
    large : int or None
        Leave out what is not the picture and takes more bytes than this, or is cut off; None: all that is not the
        picture.

    Returns
    -------
    list of bytes or (int, int), or None
        Bytes, or offset and length in the file; None if nothing is left out.

    Raises
    ------
    struct.error
        The file ends within the directory.
    """
    order, start, length, entries = directory(file, end)
    kept = [
        e for e in entries
        if e.tag in _PICTURE_TAGS or (large is not None and e.size <= large and e.at + e.size <= end)
    ]  # fmt: skip
    if len(kept) == len(entries):
        return None
    big = len(entries[0].packed) == 20
    made = struct.pack(order + ("Q" if big else "H"), len(kept)) + b"".join(e.packed for e in kept)
    # The offset of the next page follows the last entry; other pages keep their places in the file.
    file.seek(start + length)
    after = file.read(8 if big else 4)
    made += after
    made += bytes(length + len(after) - len(made))
    return [(0, start), made, (start + len(made), max(0, end - start - len(made)))]
