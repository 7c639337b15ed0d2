"""Finding the images below a folder, and counting what is left out."""

import collections
import os
from pathlib import Path
from typing import BinaryIO, Callable, Counter, Iterator, List, Optional, Set, Tuple, Union

from .. import archives
from ..errors import UserError
from ..records import natural_order

# Extensions that make a file an image whatever it holds: it gets a row, and if it cannot be read the row says why.
EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .tif .tiff .gif .ppm .pgm .pbm .pnm .pfm .avif .avifs .jp2 .ico "
    ".tga .heic .heif .hif .heics .heifs .avci .avcs .jxl".split()
)
# Photographs before they are developed. Pillow reads the small preview of some of them, which is not the photograph.
RAW = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 "
    ".srf .srw .x3f".split()
)
# Never an image, so that a folder with a million of them is not opened file by file.
OTHER = frozenset(
    ".csv .html .ini .ipynb .json .jsonl .log .md .npy .npz .parquet .pdf .pickle .pkl .py .sh .tar .tsv .txt .xml "
    ".yaml .yml .zip".split()
)
# Folders that archives, file servers and systems leave behind.
LITTER = frozenset(
    "__macosx @eadir @recycle @recently-snapshot #recycle #snapshot $recycle.bin __pycache__ lost+found".split()
    + ["system volume information"]
)
LITTER_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini"))
HEAD = 32  # bytes of a file that tell its format


class LeftOut:
    """What a walk did not take.

    Attributes
    ----------
    extensions : Counter of str
        Files by their extension in small letters; ``""`` for files without.
    hidden : int
        Files and folders whose names begin with a dot.
    litter : Counter of str
        Folders and files that archives, file servers and systems leave behind, by name; nothing inside is counted.
    """

    def __init__(self) -> None:
        self.extensions: Counter[str] = collections.Counter()
        self.litter: Counter[str] = collections.Counter()
        self.hidden = 0

    def __bool__(self) -> bool:
        return bool(self.extensions or self.litter or self.hidden)

    def lines(self) -> List[str]:
        """What was left out, as lines for the user; empty if nothing was."""
        said = []
        if self.extensions:
            total = sum(self.extensions.values())
            names = [f"{n} {ext or 'without extension'}" for ext, n in self.extensions.most_common(12)]
            if len(self.extensions) > len(names):
                names.append(f"{len(self.extensions) - len(names)} other extensions")
            said.append(f"note: {total} {_files(total)} left out, no image by name or content: {', '.join(names)}")
        raw = sum(n for ext, n in self.extensions.items() if ext in RAW)
        if raw:
            said.append(
                f"note: {raw} of them {'is a raw photograph' if raw == 1 else 'are raw photographs'}; "
                "develop to JPEG or PNG to score"
            )
        if self.litter or self.hidden:
            names = [f"{n} {name}" for name, n in self.litter.most_common(8)]
            names += [f"{self.hidden} hidden"] if self.hidden else []
            said.append(f"note: skipped {', '.join(names)}")
        return said


def _files(number):
    return "file is" if number == 1 else "files are"


def walk(
    folder: Union[str, Path], left: Optional[LeftOut] = None, wanted: Optional[Callable[[str], bool]] = None
) -> Iterator[str]:
    """Yield the image files below a folder, in natural order of their path relative to it.

    An image is a file with an extension of :data:`EXTENSIONS`, or with an unknown or no extension and the first bytes
    of an image. Hidden files and folders and the litter of file servers are left out; a symbolic link to a folder is
    followed once (loops end). Memory is bounded by the file names of one folder and those above it, not of the whole
    tree.

    Parameters
    ----------
    folder : str or Path
    left : LeftOut, optional
        Counts what is left out.
    wanted : callable, optional
        Whether to take a file, by its path; default: whether it is an image.

    Yields
    ------
    str
        Path relative to ``folder``, with ``/``.

    Raises
    ------
    UserError
        A folder that cannot be read: its images would be missing silently.
    """
    folder, left, wanted = os.fspath(folder), LeftOut() if left is None else left, wanted or is_image
    seen: Set[Tuple[int, int]] = set()

    def visit(relative):
        where = os.path.join(folder, relative) if relative else folder
        names, folders = [], set()
        try:
            for name, is_folder in _entries(where, seen):
                if _unwanted(name, left):
                    continue
                names.append(name)
                if is_folder:
                    folders.add(name)
        except (FileNotFoundError, NotADirectoryError):
            return  # deleted since it was listed
        except OSError as error:
            raise UserError(
                f"folder {where!r} cannot be read ({error.strerror or error}); allow it, or move that folder away"
            ) from None
        names = natural_order(names)
        for name in names:
            path = f"{relative}/{name}" if relative else name
            if name in folders:
                yield from visit(path)
            elif wanted(os.path.join(where, name)):
                yield path
            else:
                left.extensions[extension(name)] += 1

    yield from visit("")


def _entries(where, seen):
    """(name, whether it is a folder) of what is in a folder; nothing if it was listed already."""
    if archives.is_address(where):
        return archives.listing(where)
    here = os.stat(where)
    if (here.st_dev, here.st_ino) in seen:
        return []
    with os.scandir(where) as entries:
        found = [(entry.name, _is_dir(entry)) for entry in entries]
    seen.add((here.st_dev, here.st_ino))
    return found


def _unwanted(name, left):
    """Whether a file or folder is hidden or litter; counts it."""
    known = name.lower()
    if known in LITTER or known in LITTER_FILES:
        left.litter[name] += 1
        return True
    left.hidden += name.startswith(".")
    return name.startswith(".")


def _is_dir(entry):
    """A link that points to itself is not a folder; it gets a result row that says so."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def extension(name: str) -> str:
    """Extension of a file name in small letters, with the dot; ``""`` if it has none."""
    return os.path.splitext(name)[1].lower()


def is_image(path: str) -> bool:
    """Whether a file is taken for an image: by its extension or, where that says nothing, by its first bytes.

    At an address only by its extension.
    """
    kind = extension(path)
    if kind in EXTENSIONS:
        return True
    if kind in OTHER or archives.is_address(path):
        return False
    try:
        # A pipe would be waited for; a file that cannot be opened is none that can be told to be an image.
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return looks_like_image(file, raw=kind in RAW)
    except OSError:
        return False


def looks_like_image(file: BinaryIO, raw: bool = False) -> bool:
    """Whether the first bytes of an open file are those of an image format that is scored, or of HEIC or JPEG XL.

    Raw photographs (``raw``) begin as a TIFF does.
    """
    head = file.read(HEAD)
    if raw and head[:2] in (b"II", b"MM"):
        return False
    return (
        head.startswith(_STARTS)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in HEIC | AVIF)
        or (head[:2] == b"BM" and head[6:10] == bytes(4) and head[14:18] in _BITMAPS)
        or (head[:1] == b"P" and head[1:2] in _NETPBM and head[2:3].isspace() and head[3:4] in _NETPBM_NEXT)
    )


_STARTS = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"8BPS\0\1",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xffO\xffQ\0", b"\0\0\0\x0cJXL \r\n\x87\n", b"qoif",
)  # fmt: skip
# First brands of HEIF files whose pixels are HEVC or AVC (ISO/IEC 23008-12, annexes B to E), as telephones and cameras
# write them, and the two general brands. The decoder for them that was tried crashed on a damaged file (LOG.md).
HEIC = frozenset(b"heic heix heim heis hevc hevx hevm hevs mif1 msf1 avci avcs miaf".split())
AVIF = frozenset((b"avif", b"avis"))
_NETPBM = frozenset(bytes((c,)) for c in b"123456fF")
_NETPBM_NEXT = frozenset(bytes((c,)) for c in b"#0123456789")
_BITMAPS = frozenset(bytes((size, 0, 0, 0)) for size in (12, 40, 52, 56, 64, 108, 124))  # lengths of BMP headers
