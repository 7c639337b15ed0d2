"""Files that are either complete or absent: atomic writing, hashes, JSON, safe YAML."""

import collections
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple, Union

import yaml

from .errors import UserError, _shown

# In a wheel: the default detector and the recipes, which a clone has in ckpt/ and mindcv_cfg/ (setup.py copies them).
SHIPPED = Path(__file__).resolve().parent / "shipped"
MAX_BYTES = 1 << 18  # of a configuration file
MAX_DEPTH = 100  # of nested brackets in it: PyYAML's time grows with the square of the depth
MAX_VALUES = 20_000  # in it, counting everything that an alias (*name) repeats


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key that appears twice."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = False) -> Dict[Any, Any]:
    seen = set()
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, (str, int, float, bool)):
            what = f"a key is a {type(key).__name__}, not text"
            raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
        if key in seen:
            what = f"key {_shown(key)} appears twice"
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


def read_mapping(path: Path, what: str = "configuration") -> Dict[str, Any]:
    """Read a YAML mapping from an untrusted file: no objects are constructed; duplicate keys and bombs are refused.

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
            raise UserError(f"{what} {str(path)!r} cannot be read: over {MAX_DEPTH} nested brackets")
        values = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, OSError, RecursionError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read as YAML: {' '.join(str(error).split())[:300]}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        raise UserError(f"{what} {str(path)!r} must be a mapping of keys to values")
    known: Dict[int, int] = {}
    for name, value in values.items():
        if _count(value, known) > MAX_VALUES:
            raise UserError(f"{what} {str(path)!r}: the aliases of {name} expand to over {MAX_VALUES} values")
    return values


def _depth(text: str) -> int:
    """The largest number of brackets that are open at the same time."""
    depth = most = 0
    for mark in re.findall(r"[\[\]{}]", text):
        depth += 1 if mark in "[{" else -1
        most = max(most, depth)
    return most


def _count(value: object, known: Dict[int, int]) -> int:
    """Number of values inside a value, counting what an alias repeats each time; no value is walked twice."""
    if not isinstance(value, (list, dict, set)):
        return 1
    if id(value) not in known:
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(v, known) for v in inside)
    return known[id(value)]


_UMASK = threading.Lock()  # it is read by setting it, and is the whole process's: one thread at a time


@contextmanager
def atomic(path: Union[str, Path], mode: str = "w", **kwargs: Any) -> Iterator[Any]:
    """Open a temporary file beside ``path`` and rename it to ``path`` when the block succeeds.

    A reader, or a process killed at any moment, sees the old file or the new one, never a half-written one.

    Parameters
    ----------
    path : str or Path
        The final name; its folder is created if missing.
    mode : str
        ``"w"`` or ``"wb"``; text is UTF-8 with LF line endings on every system.

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
        # mkstemp creates a private file; a result gets the permissions of any other file of the user.
        with _UMASK:
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
        The final name; its folder is created if missing. A folder of that name is replaced.

    Yields
    ------
    Path
        Absolute, with the same file name, in a temporary folder beside ``path``. The block creates a file or a
        folder of that name; it is renamed to ``path`` when the block succeeds, and removed when it raises.

    Raises
    ------
    UserError
        The folder cannot be written to.
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


def write_json(path: Union[str, Path], value: object) -> None:
    """Write ``value`` as indented JSON, atomically. NaN is refused: it is not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name need not be Unicode on Linux: invalid bytes are written as \udcXX, which JSON reads back unchanged.
    with atomic(path, errors="backslashreplace") as file:
        file.write(text)


def unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """``object_pairs_hook`` of :func:`json.loads` that refuses a duplicate key instead of taking the last."""
    result = dict(pairs)
    if len(result) != len(pairs):
        name = collections.Counter(k for k, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {name[:200]!r} appears twice")
    return result


def read_json(path: Union[str, Path], what: str = "file") -> Any:
    """Read a JSON file; a missing or broken one is a :class:`UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except FileNotFoundError:
        raise UserError(f"{what} {str(path)!r} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read as JSON: {error}") from None


def sha256(path: Union[str, Path]) -> str:
    """Hex SHA-256 of a file, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
