"""Images made to break a decoder, with good ones between them."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

# Its first directory says that the Exif directory, and the next one, are the first one again.
LOOP = b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 40\n%%EndComments\n"
SCREEN = b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6)
DOCUMENTS = ("PDF", "XVTHUMB", "MPO")  # Pillow writes them; they are no images of their own


def photo(seed=0, size=(48, 40), mode="RGB"):
    """A textured image."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image, kind, **options):
    """The image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def formats():
    """Every format that the installed Pillow writes, in every mode that it takes: name -> bytes."""
    Image.init()
    found = {}
    for kind in sorted(set(Image.SAVE) - set(DOCUMENTS)):
        for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"):
            try:
                image = photo(1).convert("I").convert(mode) if mode == "I;16" else photo(1, mode=mode)
                found[f"{kind.lower()}-{mode.replace(';', '')}"] = encoded(image, kind)
            except Exception:  # noqa: BLE001 - each plugin has its own way to say that it does not take a mode
                continue
    return found


def png(width, height, body=b"", kind=2, depth=8, extra=b""):
    """A PNG that claims a size, with whatever pixel data."""

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = _chunk(b"IDAT", zlib.compress(body))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + extra + pixels + _chunk(b"IEND", b"")


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def special():
    """Files that are unusual but valid: these must be scored. Name -> bytes."""
    frames = [photo(i) for i in range(3)]
    animated = {"save_all": True, "append_images": frames[1:]}
    clear = photo(2, mode="RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.arange(48, dtype=np.uint8) * 5, (40, 1))))
    deep = Image.fromarray((np.arange(1920, dtype=np.uint32).reshape(40, 48) * 33 % 65536).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    good = encoded(photo(3), "JPEG")
    bomb = _chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * (80 << 20)))
    return {
        "text bomb.png": png(48, 40, bytes(145 * 40), extra=bomb),
        "one pixel.png": encoded(photo(size=(1, 1)), "PNG"),
        "one pixel.jpg": encoded(photo(size=(1, 1)), "JPEG"),
        "1x20000.png": encoded(photo(size=(1, 20000)), "PNG"),
        "20000x1.jpg": encoded(photo(size=(20000, 1)), "JPEG"),
        "2x3.gif": encoded(photo(size=(2, 3), mode="P"), "GIF"),
        "animated.gif": encoded(frames[0], "GIF", **animated),
        "animated.webp": encoded(frames[0], "WEBP", **animated),
        "animated.png": encoded(frames[0], "PNG", **animated),
        "pages.tif": encoded(frames[0], "TIFF", **animated),
        "alpha.png": encoded(clear, "PNG"),
        "alpha.webp": encoded(clear, "WEBP", lossless=True),
        "palette with one clear colour.png": encoded(photo(mode="P"), "PNG", transparency=3),
        "grey with one clear level.png": encoded(photo(mode="L"), "PNG", transparency=7),
        "sixteen bits.png": encoded(deep, "PNG"),
        "sixteen bits.tif": encoded(deep, "TIFF"),
        "floats.tif": encoded(photo(mode="F"), "TIFF"),
        "not a number.tif": encoded(Image.fromarray(np.full((40, 48), np.nan, np.float32)), "TIFF"),
        "cmyk.jpg": encoded(photo(mode="CMYK"), "JPEG"),
        "progressive.jpg": encoded(photo(), "JPEG", progressive=True),
        "turned.jpg": encoded(photo(), "JPEG", exif=exif),
        "broken exif.jpg": encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0\x2a" + b"\xff" * 200),
        "exif that points at itself.jpg": encoded(photo(), "JPEG", exif=LOOP),
        "broken icc.jpg": encoded(photo(), "JPEG", icc_profile=b"not a profile" * 100),
        "broken icc.png": encoded(photo(), "PNG", icc_profile=b"\0" * 3000),
        "rubbish behind it.jpg": good + b"\x00\xff" * 5000,
        "a jpeg by another name.png": good,
        "bits.bmp": encoded(photo(mode="1"), "BMP"),
        "long comment.jpg": encoded(photo(), "JPEG", comment=b"x" * 60000),
    }  # fmt: skip


def hopeless():
    """Files that cannot be used: each must be an error in its own row. Name -> bytes."""
    return {
        "empty.jpg": b"",
        "text.png": b"hello",
        "page.jpg": b"<!doctype html><html></html>",
        "zeros.jpg": bytes(5000),
        "header only.jpg": b"\xff\xd8\xff\xe0",
        "65000x65000.png": png(65000, 65000),
        "four thousand million squared.png": png(2**31 - 1, 2**31 - 1),
        "0x0.png": png(0, 0),
        "no pixels.png": png(48, 40),
        "12000x12000.png": png(12000, 12000, b"", 0, 1),
        "huge screen.gif": SCREEN + b"\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0\x3b",
        "huge.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
        "huge.ppm": b"P6 65000 65000 255\n",
        "huge.tga": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 65535, 65535, 24, 0),
        "huge.webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff",
        "loop.tif": b"II\x2a\0\x08\0\0\0\0\0\x08\0\0\0",
        "strips of terabytes.tif": _tiff(),
        "program.jpg": EPS + b"(x) (w) file\n",
        "pipe of a program.png": EPS + b"(%pipe%touch x) (w) file\n",
        "zip.jpg": b"PK\x03\x04" + bytes(100),
        "pickle.png": b"\x80\x02cos\nsystem\n.",
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }  # fmt: skip


def _tiff():
    """A TIFF of 48 x 40 pixels whose one strip claims to be of terabytes."""
    entries = [(256, 4, 1, 48), (257, 4, 1, 40), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    entries += [(277, 3, 1, 1), (278, 4, 1, 40), (279, 4, 1, 0xFFFFFFFF)]
    body = b"".join(struct.pack("<HHII", *e) for e in entries)
    return b"II\x2a\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0\0\0\0"


def truncated(step):
    """Valid files truncated at many places."""
    kinds = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "jp2": "JPEG2000"}
    for ending, kind in kinds.items():
        whole = encoded(photo(4, mode="P") if kind == "GIF" else photo(4), kind)
        for end in range(1, len(whole), max(1, len(whole) // step)):
            yield f"cut {end}.{ending}", whole[:end]


def flipped(count, seed=0):
    """Valid files with one to three bits changed."""
    rng = np.random.default_rng(seed)
    for ending, kind in {
        "jpg": "JPEG",
        "png": "PNG",
        "webp": "WEBP",
        "gif": "GIF",
        "tif": "TIFF",
        "bmp": "BMP",
    }.items():
        whole = encoded(photo(5, mode="P") if kind == "GIF" else photo(5), kind)
        for i in range(count):
            broken = bytearray(whole)
            for _ in range(int(rng.integers(1, 4))):
                # half of them in the first bytes, where the sizes are
                high = 64 if rng.random() < 0.5 else len(whole)
                broken[int(rng.integers(min(high, len(whole))))] ^= 1 << int(rng.integers(8))
            yield f"bits {i}.{ending}", bytes(broken)


def write(folder, cuts=6, flips=8, seed=0):
    """Write the whole corpus into a folder, every tenth file a good one.

    Returns
    -------
    (list of str, set of str, list of str)
        Names that must be scored, names that must be error rows, and the good ones between (their names).
    """
    folder.mkdir(parents=True, exist_ok=True)
    everything = {**special(), **hopeless()}
    for name, data in formats().items():
        everything[f"format {name}.png"] = data
    everything.update(truncated(cuts))
    everything.update(flipped(flips, seed))
    good = []
    for i, (name, data) in enumerate(everything.items()):
        (folder / f"{i:04d} {name}").write_bytes(data)
        if i % 10 == 0:
            good.append(f"{i:04d} good.png")
            photo(100 + i).save(folder / good[-1])
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "nowhere.png").symlink_to(folder / "absent")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "folder.png").mkdir()
    number = {name: f"{i:04d} {name}" for i, name in enumerate(everything)}
    usable = [number[n] for n in special()]
    bad = {number[n] for n in hopeless()} | {"pipe.png", "device.png", "nowhere.png", "loop.png"}
    return usable, bad, good
