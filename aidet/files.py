"""Files that are either whole or absent: atomic writing, hashes, JSON."""

import collections
import hashlib
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Union

from .errors import UserError


@contextmanager
def atomic(path, mode="w", **kwargs):
    """Open a temporary file beside ``path`` and rename it onto ``path`` when the block ends well.

    A reader, or a process killed at any moment, sees the old file or the new one, never a half-written one.

    Parameters
    ----------
    path : str or Path
        The final name; its folder is made if missing.
    mode : str
        ``"w"`` or ``"wb"``; text is UTF-8 with LF line ends on every system.

    Yields
    ------
    file object
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from None
    try:
        if "b" not in mode:
            kwargs = {"encoding": "utf-8", "newline": "\n", **kwargs}
        with os.fdopen(handle, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; a result is meant to be read like any other file of the user.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise


@contextmanager
def atomic_path(path: Union[str, Path]) -> Iterator[Path]:
    """Like :func:`atomic`, for writers that take a name instead of an open file, and for whole folders.

    Parameters
    ----------
    path : str or Path
        The final name; its folder is made if missing. A folder of that name is replaced.

    Yields
    ------
    Path
        Absolute, with the same file name, in a temporary folder beside ``path``. The block makes a file or a folder of
        that name; it is renamed onto ``path`` when the block ends well, and removed when it raises.

    Raises
    ------
    UserError
        The place cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=os.path.abspath(path.parent), prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from None
    with folder as place:
        made = Path(place) / path.name
        yield made
        if made.is_dir() and path.exists():
            shutil.rmtree(path)
        os.replace(made, path)


def write_json(path, value):
    """Write ``value`` as indented JSON, atomically. NaN is refused: it is not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name need not be Unicode on Linux: its odd bytes become \udcXX, which JSON reads back as they were.
    with atomic(path, errors="backslashreplace") as file:
        file.write(text)


def unique(pairs):
    """``object_pairs_hook`` of :func:`json.loads` that refuses a key that stands twice, instead of taking the last."""
    result = dict(pairs)
    if len(result) != len(pairs):
        name = collections.Counter(k for k, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {name[:200]!r} stands twice")
    return result


def read_json(path, what="file"):
    """Read a JSON file; a missing or broken one is a :class:`UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except FileNotFoundError:
        raise UserError(f"{what} {str(path)!r} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read as JSON: {error}") from None


def sha256(path):
    """Hex SHA-256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()
