"""Files that are either whole or absent: atomic writing, hashes, JSON."""

import collections
import hashlib
import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Union

import yaml

from .errors import UserError, _shown

MAX_BYTES = 1 << 18  # of a configuration file
MAX_DEPTH = 100  # of brackets in it: PyYAML's time grows with the square of it
MAX_VALUES = 20_000  # in it, with everything that an alias (*name) repeats


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key that stands twice."""


def _mapping(loader, node, deep=False):
    seen = set()
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, (str, int, float, bool)):
            what = f"a key is a {type(key).__name__}, not a text"
            raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
        if key in seen:
            what = f"key {_shown(key)} stands twice"
            raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
        seen.add(key)
        try:
            loader.construct_object(value_node, deep=True)
        except yaml.constructor.ConstructorError as error:
            raise yaml.constructor.ConstructorError(None, None, f"{key}: {error.problem}", error.problem_mark) from None
        except (ValueError, TypeError) as error:  # a date of a 13th month, a number of 5000 digits
            raise yaml.constructor.ConstructorError(None, None, f"{key}: {error}", value_node.start_mark) from None
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_mapping(path, what="configuration"):
    """Read a YAML mapping from anyone: nothing is constructed, doubled keys and bombs are refused.

    Parameters
    ----------
    path : Path
    what : str
        What the file is, for the message.

    Returns
    -------
    dict of str

    Raises
    ------
    UserError
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{what} {str(path)!r} is larger than {MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        if _depth(text) > MAX_DEPTH:
            raise UserError(f"{what} {str(path)!r} cannot be read: over {MAX_DEPTH} brackets within each other")
        values = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, OSError, RecursionError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read as YAML: {' '.join(str(error).split())[:300]}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        raise UserError(f"{what} {str(path)!r} must be a mapping of keys to values")
    known = {}
    for name, value in values.items():
        if _count(value, known) > MAX_VALUES:
            raise UserError(f"{what} {str(path)!r}: {name} repeats its aliases to over {MAX_VALUES} values")
    return values


def _depth(text):
    """The most brackets that are open at a time."""
    depth = most = 0
    for mark in re.findall(r"[\[\]{}]", text):
        depth += 1 if mark in "[{" else -1
        most = max(most, depth)
    return most


def _count(value, known):
    """How many values a value holds, those that an alias repeats counted each time; never walks one twice."""
    if not isinstance(value, (list, dict, set)):
        return 1
    if id(value) not in known:
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(v, known) for v in inside)
    return known[id(value)]


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
