"""Formats that Pillow reads with a further package only: HEIC and HEIF (``aidet[heif]``), JPEG XL (``aidet[jxl]``).

The package is looked for when the first such file comes. Every file is decoded in a process of its own, see
:mod:`aidet.images.apart`.
"""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, NamedTuple, Optional, Tuple

from PIL import Image

from . import walking

PROGRAM = Path(__file__).with_name("apart.py")
SECONDS = 120  # for one file; 200 megapixels take some 20


class Kind(NamedTuple):
    """A format: its name for a user, the modules that read it, and the extra that installs one of them."""

    name: str
    modules: Tuple[str, ...]
    extra: str


# pillow-jxl-plugin reads JPEG XL, too; it is under the GPL, so that the extra installs imagecodecs.
KINDS = {
    "heif": Kind("HEIC", ("pillow_heif",), "heif"),
    "jxl": Kind("JPEG XL", ("pillow_jxl", "imagecodecs"), "jxl"),
}


class Undecodable(Exception):
    """The file is of such a format and cannot be decoded; the message is the reason."""


class Found(NamedTuple):
    """A decoded file.

    Attributes
    ----------
    size : (int, int)
        Width and height.
    image : PIL.Image.Image or None
        None: it has more pixels than allowed and was not decoded. EXIF is in ``info``.
    turn : int
        EXIF orientation that is still to be applied; 1: none.
    """

    size: Tuple[int, int]
    image: Optional[Image.Image]
    turn: int = 1


def kind(head: bytes) -> Optional[str]:
    """The key in :data:`KINDS` of a file that begins with ``head``, of :data:`aidet.images.walking.HEAD` bytes."""
    if head[4:8] == b"ftyp" and head[8:12] in walking.HEIC:
        return "heif"
    if head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n" or head[:2] == b"\xff\x0a":
        return "jxl"
    return None


@cache
def installed(key: str) -> bool:
    """Whether a package that reads a format is installed."""
    return any(importlib.util.find_spec(name) is not None for name in KINDS[key].modules)


def remedy(key: str) -> str:
    """What to do with a file of a format whose package is not installed."""
    found = KINDS[key]
    return (
        f"{found.name}, which Pillow does not read; pip install 'aidet[{found.extra}]' reads it, or save it as PNG, or "
        "as JPEG of high quality"
    )


def decode(key: str, source: Any, most: int) -> Found:
    """Decode a HEIC or JPEG XL file.

    Parameters
    ----------
    key : {"heif", "jxl"}
    source : str, Path or binary file
    most : int
        Larger images, in pixels, are not decoded.

    Returns
    -------
    Found
        The first picture of several.

    Raises
    ------
    Undecodable
        The package is missing, the file is damaged, or the decoder crashed or took too long.
    """
    if not installed(key):
        raise Undecodable(remedy(key))
    named = isinstance(source, (str, os.PathLike))
    data = b"" if named else _content(source)
    argv = [sys.executable, str(PROGRAM), key, str(most), *([os.fspath(source)] if named else [])]
    # Where this process finds packages, that one does, too.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with _process(argv, environment) as child:
        writer = threading.Thread(target=_give, args=(child.stdin, data), daemon=True)
        writer.start()
        try:
            facts = json.loads(child.stdout.readline() or b"{}")
        except ValueError:
            facts = {}
        if not isinstance(facts, dict):
            facts = {}
        if "error" in facts:
            raise Undecodable(f"damaged {KINDS[key].name} ({facts['error']})")
        if "size" not in facts:
            why = f"took more than {SECONDS:g} s" if getattr(child, "late", False) else "ended"
            raise Undecodable(f"damaged {KINDS[key].name}: its decoder {why}")
        size = int(facts["size"][0]), int(facts["size"][1])
        if "mode" not in facts:
            return Found(size, None)
        return Found(size, _image(facts, size, child.stdout), facts["turn"])


def _image(facts: Dict[str, Any], size: Tuple[int, int], pipe: BinaryIO) -> Image.Image:
    mode = facts["mode"]
    width = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "I;16": 2}[mode]
    pixels = pipe.read(size[0] * size[1] * width)
    if len(pixels) < size[0] * size[1] * width:
        raise Undecodable("its decoder ended before all pixels were there")
    image = Image.frombytes(mode, size, pixels)
    if facts["exif"]:
        image.info["exif"] = bytes.fromhex(facts["exif"])
    return image


@contextmanager
def _process(argv, environment) -> Iterator[Any]:
    """A child process that ends with the block, and after :data:`SECONDS` in any case."""
    child: Any = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )

    def stop():
        child.late = True
        child.kill()

    clock = threading.Timer(SECONDS, stop)
    clock.daemon = True
    clock.start()
    try:
        yield child
    finally:
        clock.cancel()
        child.kill()
        child.stdout.close()
        child.wait()


def _give(pipe, data):
    try:
        with pipe:
            pipe.write(data)
    except OSError:
        pass  # the process has ended; its output says why


def _content(file):
    file.seek(0)
    try:
        return file.read()
    finally:
        file.seek(0)
