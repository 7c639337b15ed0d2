"""Encoding and separator of a text table, told by its content.

Spreadsheets write tables with semicolons, tabs or ``|``, in UTF-8 with a byte-order mark, in UTF-16, or in the code
page of their country. A table's first bytes and lines say which.
"""

import codecs
import csv
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List, Optional, TextIO, Union

from .errors import UserError

SEPARATORS = (",", ";", "\t", "|")
SAMPLE = 1 << 14  # characters that decide the separator
CHUNK = 1 << 16
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# First bytes of files that are often given for a table -> what they are, and the remedy.
FOREIGN = (
    (b"PK\x03\x04", "an Excel workbook or a zip archive; save the table as CSV in UTF-8, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook; save the table as CSV in UTF-8"),
    (b"PAR1", "a Parquet file; save the table as CSV in UTF-8"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
)
WESTERN = "‘’“”–—…•€«»©®°§·\xa0"  # signs that Western text may hold beside letters
CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
EXCEL_LINE = re.compile(r'"?sep=([,;|\t])"?\s*[\r\n]')  # a first line that names the separator
NAME_AND_WORDS = re.compile(r"\S+\.\w{2,5}( -?\w{1,12})+\s*")
Place = Union[str, Path]


def encoding_of(path: Place, what: str = "table") -> str:
    """The encoding of a text file.

    A byte-order mark decides; without one UTF-8 if the whole file is valid UTF-8, UTF-16 if every second byte of its
    beginning is zero, else GB18030 (which contains GBK) or Windows-1252, whichever gives the more likely text.

    Parameters
    ----------
    path : str or Path
    what : str
        What the file is, for messages.

    Returns
    -------
    str
        A name that :func:`open` takes.

    Raises
    ------
    UserError
        The file is not text in any of these.
    OSError
        It cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(4096)
        for first, meaning in FOREIGN:
            if head.startswith(first):
                raise UserError(f"{what} {str(path)!r} is {meaning}")
        for mark, name in MARKS:
            if head.startswith(mark):
                return name
        for name, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
            if len(zeros) > 1 and zeros.count(0) > 0.8 * len(zeros):
                return name
        decoder = codecs.getincrementaldecoder("utf-8")()
        chunk = head
        try:
            while chunk:
                decoder.decode(chunk)
                chunk = file.read(CHUNK)
            decoder.decode(b"", True)
            return "utf-8-sig"
        except UnicodeDecodeError as error:
            where = error
        file.seek(0)
        data = file.read()
    guess = code_page(data)
    if guess is None:
        raise UserError(
            f"{what} {str(path)!r} cannot be read as UTF-8, UTF-16, GB18030 or Windows-1252 text "
            f"(byte 0x{where.object[where.start]:02x} is not UTF-8); save it as UTF-8"
        )
    return guess


def code_page(data: bytes) -> Optional[str]:
    """The likelier of GB18030 and Windows-1252, or None if the bytes are neither.

    Chinese text is nearly all made of the 3755 common characters, whose first bytes are B0 to D7, and of Chinese
    punctuation (A1 to A3). Western text has ASCII letters in every line beside the accented ones;
    in other code pages (Big5, Shift JIS) its letters would be mixed with signs.
    """
    try:
        text = data.decode("gb18030")
        if not CONTROLS.search(text):
            wide = [c for c in text if c > "\x7f"]
            common = sum(_is_common(c) for c in wide)
            if common > 0.5 * len(wide):
                return "gb18030"
    except UnicodeDecodeError:
        pass
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    lines = [line for line in text.splitlines() if not line.isascii()]
    western = all(re.search("[A-Za-z]", line) for line in lines) and not CONTROLS.search(text)
    wide = [c for line in lines for c in line if c > "\x7f"]
    letters = sum(c.isalpha() and c not in "ªº" or c in WESTERN for c in wide)
    return "cp1252" if western and letters > 0.8 * len(wide) else None


def _is_common(character: str) -> bool:
    try:
        first, _ = character.encode("gb2312")
    except (UnicodeEncodeError, ValueError):
        return False
    return 0xB0 <= first <= 0xD7 or 0xA1 <= first <= 0xA3


def separator_of(text: str) -> str:
    """The separator of a table.

    Parameters
    ----------
    text : str
        The beginning of the table. A first line ``sep=;``, as Excel understands it, decides.

    Returns
    -------
    str
        One of :data:`SEPARATORS`: the first one that divides all lines into equally many fields, more than one; else
        the one that divides the first line into most; a comma if none does. A blank if every line is a file name and
        short words, as in ``img/1.png 0``.
    """
    said = EXCEL_LINE.match(text)
    if said:
        return said.group(1)
    most, best = 1, ","
    for separator in SEPARATORS:
        counts = _widths(text, separator)
        if counts and counts[0] > 1 and set(counts) == {counts[0]}:
            return separator
        if counts and counts[0] > most:
            most, best = counts[0], separator
    if most == 1 and all(NAME_AND_WORDS.fullmatch(line) for line in _lines(text)):
        return " "
    return best


def _widths(text: str, separator: str) -> List[int]:
    """Number of fields in each line that is not empty."""
    try:
        return [len(row) for row in csv.reader(_lines(text), delimiter=separator) if row]
    except csv.Error:
        return []


def _lines(text: str) -> List[str]:
    """The lines that are not blank, without the last one if it is cut."""
    lines = [line for line in text.splitlines(keepends=True) if line.strip()]
    return lines[:-1] or lines if len(text) >= SAMPLE else lines


@contextmanager
def opened(path: Place, what: str = "table") -> Iterator[TextIO]:
    """A text file in the encoding of :func:`encoding_of`, line ends as they are.

    Raises
    ------
    UserError
        The file is not text.
    OSError, UnicodeDecodeError
        It cannot be read.
    """
    with open(path, encoding=encoding_of(path, what), newline="") as file:
        yield file


@contextmanager
def csv_reader(path: Place, what: str = "table") -> Iterator[Any]:
    """``csv.reader`` with the settings of every table: encoding and separator by content, strict quotes.

    Raises
    ------
    UserError
        The file is not text.
    OSError, UnicodeDecodeError, csv.Error
        It cannot be read; the last two when the row is reached.
    """
    with opened(path, what) as file:
        sample = file.read(SAMPLE)
        separator = separator_of(sample)
        file.seek(0)
        if EXCEL_LINE.match(sample):
            file.readline()
        yield csv.reader(file, delimiter=separator, strict=True)
