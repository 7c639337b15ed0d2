"""What a file holds beside its picture, and how to read the picture without it.

Text, colour profiles, EXIF, XMP and other ancillary data may be large, damaged or cut off while every pixel is there.
Pillow then refuses the whole file. The functions here find the parts of a file that make the picture and present them
as a file of their own (:class:`Pieces`); nothing is copied, and no limit of Pillow is changed.

Sources: PNG (W3C Recommendation, third edition, 2025), JPEG (ITU-T T.81, annex B), "WebP Container Specification"
(Google), APNG (part of the third edition of PNG); :mod:`aidet.images.tiff`.
"""

import io
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from . import tiff

# Ancillary data larger than this are left out; the same number of bytes bounds what compressed text may unpack to.
LARGE = 1 << 20
# How much is left out: what is too large or damaged; all but what turns the picture upright; everything.
FAULTY, UPRIGHT, ALL = range(3)
LEVELS = (FAULTY, UPRIGHT, ALL)

PNG = b"\x89PNG\r\n\x1a\n"
Piece = Union[bytes, Tuple[int, int]]  # bytes, or (offset, length) in the file


class Pieces(io.RawIOBase):
    """A read-only, seekable file put together from parts of another file and bytes.

    Parameters
    ----------
    file : binary file
        Seekable; not closed with this one.
    pieces : sequence of bytes or (int, int)
        Bytes, or offset and length of a part of ``file``, in the order in which they are read.
    """

    def __init__(self, file: BinaryIO, pieces: Sequence[Piece]) -> None:
        self.file, self.pieces = file, [p for p in pieces if (len(p) if isinstance(p, bytes) else p[1])]
        self.starts, at = [], 0
        for piece in self.pieces:
            self.starts.append(at)
            at += len(piece) if isinstance(piece, bytes) else piece[1]
        self.size, self.at, self.part = at, 0, 0

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As in :class:`io.IOBase`."""
        self.at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence])
        return self.at

    def tell(self) -> int:
        """As in :class:`io.IOBase`."""
        return self.at

    def readinto(self, buffer: Any) -> int:
        """As in :class:`io.RawIOBase`; reads from one piece at a time."""
        if self.at >= self.size:
            return 0
        # Nearly always the piece of the last read, or the next one.
        if not self.starts[self.part] <= self.at:
            self.part = 0
        while self.part + 1 < len(self.starts) and self.starts[self.part + 1] <= self.at:
            self.part += 1
        piece, inside = self.pieces[self.part], self.at - self.starts[self.part]
        if isinstance(piece, bytes):
            data = piece[inside : inside + len(buffer)]
        else:
            self.file.seek(piece[0] + inside)
            data = self.file.read(min(len(buffer), piece[1] - inside))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


@dataclass(frozen=True)
class Picture:
    """A file without what lies beside its picture.

    Attributes
    ----------
    pieces : list of bytes or (int, int)
        For :class:`Pieces`.
    canvas : (int, int, int, int) or None
        Width and height of the whole picture, left and top of the part that the file holds; None: it holds all of it.
    """

    pieces: List[Piece]
    canvas: Optional[Tuple[int, int, int, int]] = None

    def open(self, file: BinaryIO) -> BinaryIO:
        """The picture as a buffered file over ``file``."""
        return io.BufferedReader(Pieces(file, self.pieces), 1 << 16)  # type: ignore[return-value]


def picture(file: BinaryIO, level: int = FAULTY) -> Optional[Picture]:
    """The parts of a file that make its picture.

    Parameters
    ----------
    file : binary file
        Seekable; its position is changed.
    level : int
        :data:`FAULTY`: leave out what is larger than :data:`LARGE`, damaged or cut off. :data:`UPRIGHT`: all ancillary
        data but the orientation. :data:`ALL`: all ancillary data.

    Returns
    -------
    Picture or None
        None if nothing is left out, or the file is of none of the four kinds, or its structure cannot be followed.
    """
    file.seek(0)
    head = file.read(12)
    end = file.seek(0, os.SEEK_END)
    try:
        if head.startswith(PNG):
            return _png(file, end, level)
        if head.startswith(b"\xff\xd8\xff"):
            return _jpeg(file, end, level)
        if head[:4] == b"RIFF" and head[8:] == b"WEBP":
            return _webp(file, end, level)
        if head[:4] in tiff.ORDERS:
            made = tiff.without(file, end, None if level else LARGE)
            return None if made is None else Picture(made)
    except (struct.error, IndexError, OverflowError):
        pass
    return None


# --- PNG ----------------------------------------------------------------------------------------------------------
class _Chunk(NamedTuple):
    kind: bytes
    start: int  # of its length field
    length: int  # of its data
    whole: bool  # not cut off by the end of the file

    @property
    def span(self) -> Tuple[int, int]:
        return self.start, self.length + 12


_NEEDED = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"))
_FRAMES = frozenset((b"acTL", b"fcTL", b"fdAT"))
_TURNING = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # keywords of texts that may hold an orientation


def _png(file, end, level):
    chunks, tail = _chunks(file, end)
    if not chunks or chunks[0].kind != b"IHDR":
        return None
    frame = _first_frame(file, chunks)
    kept, dropped = [], False
    for chunk in chunks:
        if chunk.kind in _FRAMES and (frame is not None or level >= ALL):
            dropped = True
        elif chunk.kind in _NEEDED or (chunk.kind in _FRAMES and chunk.whole) or _harmless(file, chunk, level):
            kept.append(chunk)
        else:
            dropped = True
    if frame is not None:
        return _frame_picture(file, kept, *frame)
    if not dropped:
        return None
    pieces: List[Piece] = [PNG, *(c.span for c in kept)]
    if kept[-1].kind != b"IEND":
        # What was cut off lay beside the picture unless the picture's own data end the file.
        pieces.append(tail if kept[-1] is chunks[-1] else _made(b"IEND", b""))
    return Picture(pieces)


def _chunks(file, end):
    """The chunks of a PNG up to IEND, and the rest of the file after the last one."""
    chunks, at = [], len(PNG)
    while at + 8 <= end:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if not kind.isalpha():
            break
        chunks.append(_Chunk(kind, at, length, at + length + 12 <= end))
        at += length + 12
        if kind == b"IEND":
            break
    return chunks, (min(at, end), max(0, end - at))


def _harmless(file, chunk, level):
    """Whether an ancillary chunk can stay."""
    ancillary = chunk.kind[0] & 0x20
    if not ancillary:
        return True
    if chunk.length > LARGE or not chunk.whole or level == ALL:
        return False
    file.seek(chunk.start + 4)
    data = file.read(chunk.length + 8)
    body = data[4:-4]
    if zlib.crc32(data[:-4]) != struct.unpack(">I", data[-4:])[0]:
        return False
    if level == UPRIGHT and not (chunk.kind == b"eXIf" or body.startswith(_TURNING)):
        return False
    return not (chunk.kind in (b"zTXt", b"iTXt", b"iCCP") and _swells(chunk.kind, body))


def _swells(kind, body):
    """Whether a chunk unpacks to more than :data:`LARGE` bytes."""
    return len(_unpacked(kind, body, LARGE + 1)) > LARGE


def _unpacked(kind, body, most):
    """At most the first ``most`` bytes of what a text or a profile holds; empty if it is damaged."""
    rest = body.partition(b"\0")[2]
    if kind == b"tEXt":
        return rest[:most]
    if kind == b"iTXt":
        packed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
        if not packed:
            return rest[:most]
    else:
        rest = rest[1:]
    try:
        return zlib.decompressobj().decompress(rest, most)
    except zlib.error:
        return b""  # Pillow reads it as empty


def png_texts(file: BinaryIO, most: int = 1 << 16) -> Iterator[Tuple[str, bytes]]:
    """The texts of a PNG, of any size, in bounded memory.

    Parameters
    ----------
    file : binary file
        Of a PNG; its position is changed.
    most : int
        Bytes of each text that are given.

    Yields
    ------
    (str, bytes)
        Keyword and the beginning of the text.
    """
    for chunk in _chunks(file, file.seek(0, os.SEEK_END))[0]:
        if chunk.kind in (b"tEXt", b"zTXt", b"iTXt"):
            file.seek(chunk.start + 8)
            body = file.read(min(chunk.length, 16 * LARGE))
            yield body.partition(b"\0")[0][:79].decode("latin-1"), _unpacked(chunk.kind, body, most)


def _first_frame(file, chunks):
    """Frame control and data of an animation whose default image is none of its frames, else None.

    Such a default image is shown only by programs without animation (APNG specification, "Structure").
    """
    kinds = [c.kind for c in chunks]
    if b"acTL" not in kinds or b"fcTL" not in kinds or b"IDAT" not in kinds:
        return None
    control = kinds.index(b"fcTL")
    if not kinds.index(b"acTL") < kinds.index(b"IDAT") < control or chunks[control].length != 26:
        return None
    later = kinds.index(b"fcTL", control + 1) if b"fcTL" in kinds[control + 1 :] else len(kinds)
    data = [c for c in chunks[control + 1 : later] if c.kind == b"fdAT" and c.length > 4]
    return (chunks[control], data) if data and all(c.whole for c in data) else None


def _frame_picture(file, kept, control, data):
    """The first frame of an animation as a picture of its own."""
    file.seek(control.start + 8)
    _, width, height, left, top = struct.unpack(">5I", file.read(20))
    file.seek(kept[0].start + 8)
    header = file.read(13)
    canvas = struct.unpack(">II", header[:8])
    if not width or not height or left + width > canvas[0] or top + height > canvas[1]:
        return None
    before = [c for c in kept[1:] if c.kind not in (b"IDAT", b"IEND") and c.start < data[0].start]
    pieces: List[Piece] = [PNG, _made(b"IHDR", struct.pack(">II", width, height) + header[8:])]
    pieces += [c.span for c in before]
    for chunk in data:
        # The data of a frame begin with its number; the checksum of image data is not looked at.
        pieces += [struct.pack(">I4s", chunk.length - 4, b"IDAT"), (chunk.start + 12, chunk.length)]
    pieces.append(_made(b"IEND", b""))
    return Picture(pieces, None if (width, height) == canvas else (*canvas, left, top))


def _made(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


# --- JPEG ---------------------------------------------------------------------------------------------------------
_SOS, _APP0, _APP1, _APP14, _COM = 0xDA, 0xE0, 0xE1, 0xEE, 0xFE
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without data
JPEG_LARGE = 16 * LARGE  # of all segments beside the picture; a profile of several megabytes is usual in print


def _jpeg(file, end, level):
    kept: List[Piece] = [b"\xff\xd8"]
    beside = 0
    for marker, start, length in _segments(file, end):
        if marker == _SOS:
            kept.append((start, end - start))
            break
        file.seek(start + 4)
        name = file.read(14)
        if marker == _APP0 and name.startswith(b"JFIF\0"):
            needed = True  # with Adobe's segment it says how the colours are stored
        elif marker == _APP14 and name.startswith(b"Adobe"):
            needed = True
        elif marker == _APP1 and name.startswith(b"Exif\0"):
            needed = level < ALL
        else:
            needed = not (_APP0 <= marker <= 0xEF or marker == _COM)
        if needed:
            kept.append((start, length))
        else:
            beside += length
    else:
        return None  # cut off before the picture
    return Picture(kept) if level > FAULTY or beside > JPEG_LARGE else None


def _segments(file, end) -> Iterator[Tuple[int, int, int]]:
    """(marker, offset, length with the marker) of the segments up to the first scan; stray bytes are passed over."""
    at = 2
    while at + 4 <= end:
        file.seek(at)
        block = file.read(4096)
        # A marker is 0xff and neither 0x00 nor another 0xff.
        skip = next((i for i in range(len(block) - 1) if block[i] == 0xFF and block[i + 1] not in (0x00, 0xFF)), None)
        if skip is None:
            at += max(1, len(block) - 1)
            continue
        marker, at = block[skip + 1], at + skip
        if marker in _ALONE:
            at += 2
            continue
        file.seek(at + 2)
        length = 2 + struct.unpack(">H", file.read(2))[0]
        if length < 4 or at + length > end:
            return
        yield marker, at, length
        if marker == _SOS:
            return
        at += length


# --- WebP ---------------------------------------------------------------------------------------------------------
_BESIDE_WEBP = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}  # and their flags in VP8X
_PICTURE_WEBP = frozenset((b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"))


def _webp(file, end, level):
    kept: List[Piece] = []
    at, dropped, flags, extended = 12, level > FAULTY, 0, None
    while at + 8 <= end:
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(8))
        size = 8 + length + (length & 1)
        whole = at + 8 + length <= end
        needed = kind in _PICTURE_WEBP or (
            length <= LARGE and whole and (level == FAULTY or (level == UPRIGHT and kind == b"EXIF"))
        )
        if needed:
            if kind == b"VP8X":
                extended = len(kept), file.read(length)
            kept.append((at, min(size, end - at)))
        else:
            dropped, flags = True, flags | _BESIDE_WEBP.get(kind, 0)
        at += size
    if not dropped or not kept:
        return None
    if extended is not None:
        place, body = extended
        body = bytes([body[0] & ~flags & 0xFF]) + body[1:]
        kept[place] = struct.pack("<4sI", b"VP8X", len(body)) + body
    size = 4 + sum(len(p) if isinstance(p, bytes) else p[1] for p in kept)
    return Picture([struct.pack("<4sI4s", b"RIFF", size, b"WEBP"), *kept])
