"""A process that decodes one HEIC or JPEG XL file and ends: ``python apart.py heif|jxl MAX_PIXELS [FILE]``.

Run by :mod:`aidet.images.extras`. A decoder of HEIC was seen to crash on damaged files (LOG.md), which would end the
whole run; here a crash is one row that says so. Only the standard library, Pillow and the decoder are imported, so
that a start takes little.

Without FILE the file comes on the standard input. On the standard output stands one line of JSON, then the pixels.
"""

import importlib.util
import io
import json
import sys
from typing import Any, BinaryIO, Dict, List, Tuple

MEGABYTE = 1 << 20
ORIENTATION = 0x0112  # EXIF
MODES = ("L", "LA", "RGB", "RGBA", "I;16")
_RATIOS = {1: (1, 1), 2: (6, 5), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


def jxl_size(data: bytes) -> Tuple[int, int]:
    """Width and height of a JPEG XL file from its header (ISO/IEC 18181-1, SizeHeader), before anything is decoded.

    Parameters
    ----------
    data : bytes
        The file, bare or in a container (ISO/IEC 18181-2).

    Raises
    ------
    ValueError
        It has no such header.
    """
    place = 0
    if data[:2] != b"\xff\x0a":
        place = _codestream(data)
    if data[place : place + 2] != b"\xff\x0a":
        raise ValueError("no JPEG XL codestream")
    bits, used = int.from_bytes(data[place + 2 : place + 18], "little"), 0

    def take(count):
        nonlocal used
        used += count
        return bits >> (used - count) & ((1 << count) - 1)

    def side(small):
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    small = take(1)
    height = side(small)
    ratio = take(3)
    if not ratio:
        return side(small), height
    over, under = _RATIOS[ratio]
    return height * over // under, height


def _codestream(data):
    """Offset of the codestream, or of its first part, in a container."""
    place = 0
    while place + 8 <= len(data):
        size, kind, head = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        if kind == b"jxlc":
            return place + head
        if kind == b"jxlp":
            return place + head + 4
        if size < head:
            break
        place += size
    raise ValueError("no JPEG XL codestream")


def _limit(pixels):
    """Bound the memory of this process: 2 GB, and 40 bytes for each pixel that may be decoded."""
    try:
        import resource

        most = 2048 * MEGABYTE + 40 * pixels
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, ValueError, OSError):
        pass  # not on every system; the size of the picture is checked in any case


def _decode(kind: str, most: int, file: BinaryIO) -> Tuple[Dict[str, Any], bytes]:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the limit is ours
    if kind == "heif":
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
        return _by_pillow("HEIF", most, file)
    data = file.read()
    size = jxl_size(data)
    if size[0] * size[1] > most:
        return {"size": size}, b""
    if importlib.util.find_spec("pillow_jxl") is not None:  # it starts faster
        import pillow_jxl  # noqa: F401 - registers itself

        return _by_pillow("JXL", most, io.BytesIO(data))
    return _jxl(data)


def _by_pillow(name: str, most: int, file: BinaryIO) -> Tuple[Dict[str, Any], bytes]:
    from PIL import Image

    with Image.open(file, formats=[name]) as image:
        if image.width * image.height > most:
            return {"size": image.size}, b""
        # pillow-jxl-plugin gives a JPEG that was repacked as JPEG XL as it was, so that its EXIF turns it. All others
        # are decoded upright; pillow-heif then sets the orientation in EXIF to 1, JPEG XL ignores it.
        plain = name == "HEIF" or getattr(image, "jpeg", False)
        turn = image.getexif().get(ORIENTATION, 1) if plain else 1
        exif = image.info.get("exif") or b""
        image.load()
        mode = image.mode if image.mode in MODES else "RGBA" if "A" in image.mode else "RGB"
        return _facts(image.size, mode, turn, exif), image.convert(mode).tobytes()


def _jxl(data: bytes) -> Tuple[Dict[str, Any], bytes]:
    """By imagecodecs: upright; the first frame of an animation. Wide types are scaled by their range, as elsewhere."""
    import imagecodecs
    import numpy as np

    array = np.asarray(imagecodecs.jpegxl_decode(data, index=0))
    if array.dtype.kind == "f":
        array = np.clip(np.nan_to_num(array.astype(np.float32)), 0, 1) * 255 + 0.5
    elif array.dtype == np.uint16:
        array = (array.astype(np.uint32) + 128) // 257
    array = array.astype(np.uint8)
    channels = 1 if array.ndim == 2 else array.shape[2]
    if array.ndim not in (2, 3) or channels > 4:
        raise ValueError(f"an array of shape {array.shape} is no picture")
    return _facts((array.shape[1], array.shape[0]), MODES[channels - 1], 1, b""), array.tobytes()


def _facts(size, mode, turn, exif):
    return {"size": size, "mode": mode, "turn": turn if isinstance(turn, int) else 1, "exif": exif.hex()}


def main(argv: List[str]) -> None:
    """Decode, and write what was found or ``{"error": reason}``."""
    kind, most, path = argv[0], int(argv[1]), argv[2] if len(argv) > 2 else None
    _limit(most)
    out = sys.stdout.buffer
    try:
        with open(path, "rb") if path else io.BytesIO(sys.stdin.buffer.read()) as file:
            facts, pixels = _decode(kind, most, file)
    except MemoryError:
        facts, pixels = {"error": "not enough memory to decode it"}, b""
    except Exception as error:  # noqa: BLE001 - decoders raise nearly every type on damaged files
        text = " ".join(str(error).split()).partition(" <_io.")[0]  # without Python's name of the file
        facts, pixels = {"error": f"{type(error).__name__}: {text}"[:200]}, b""
    out.write(json.dumps(facts).encode() + b"\n")
    out.write(pixels)
    out.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules have common names
    main(sys.argv[1:])
