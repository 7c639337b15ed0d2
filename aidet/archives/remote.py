"""Files at an address, ``s3://``, ``gs://``, ``hdfs://``, ``abfs://`` or ``file://``: pyarrow's file systems.

Keys and regions come from where pyarrow takes them: environment variables and the configuration files of each store.
"""

import functools
import re
from typing import Any, BinaryIO, List, Tuple

from ..errors import UserError

_ADDRESS = re.compile(r"((?:s3|gs|gcs|hdfs|abfss?|file)://[^/]*)(.*)", re.DOTALL)


def is_address(path: object) -> bool:
    """Whether a path is an address of this module."""
    return isinstance(path, str) and _ADDRESS.fullmatch(path) is not None


def trimmed(address: str) -> str:
    """An address without the slashes at its end; those of its front stay.

    Raises
    ------
    UserError
        It names no bucket.
    """
    match = _ADDRESS.fullmatch(address)
    assert match is not None
    if match[1].endswith("://") and not match[1].startswith(("file", "hdfs")):  # those two have a default host
        raise UserError(f"address {address!r} names no bucket; give {match[1]}BUCKET/FOLDER")
    return match[1] + match[2].rstrip("/")


@functools.lru_cache(maxsize=16)
def _system(front: str) -> Tuple[Any, str]:
    try:
        from pyarrow.fs import FileSystem
    except ImportError as error:
        raise UserError(f"addresses like {front} need pyarrow ({error}): pip install 'aidet[parquet]'") from None
    system, base = FileSystem.from_uri(front if front != "file://" else "file:///")
    return system, base.rstrip("/")


def _found(address: str) -> Tuple[Any, str]:
    """The file system of an address, and the path in it. Only the front is read as an address: names may hold ``%``."""
    match = _ADDRESS.fullmatch(address)
    assert match is not None
    try:
        system, base = _system(match[1])
    except (ValueError, NotImplementedError) as error:
        raise OSError(f"{match[1]} cannot be opened by pyarrow ({error})") from None
    return system, base + match[2]


def kind(address: str) -> str:
    """``file``, ``folder``, or empty if there is nothing.

    Raises
    ------
    OSError
        The store does not answer, or refuses.
    """
    system, path = _found(address)
    return {"File": "file", "Directory": "folder"}.get(system.get_file_info(path).type.name, "")


def opened(address: str) -> BinaryIO:
    """Open a file for reading at any place.

    Raises
    ------
    OSError
    """
    system, path = _found(address)
    return system.open_input_file(path)


def read(address: str, most: int) -> bytes:
    """The content of a file, at most ``most`` bytes; raise ``OSError`` if it cannot be read."""
    with opened(address) as file:
        return file.read(most)


def listing(address: str) -> List[Tuple[str, bool]]:
    """What is in a folder: (name, whether it is a folder).

    Raises
    ------
    OSError
    """
    from pyarrow.fs import FileSelector

    system, path = _found(address)
    return [(found.base_name, found.type.name == "Directory") for found in system.get_file_info(FileSelector(path))]
