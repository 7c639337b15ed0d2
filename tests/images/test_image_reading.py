"""From odd but usable files to pixels: metadata beside the picture, wide pixel types, animations, missing ends."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from aidet import images
from aidet.errors import UserError
from aidet.images import Reading, containers

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(
    np.clip(RNG.normal(128, 40, (12, 16, 3)).repeat(4, 0).repeat(4, 1) + RNG.normal(0, 6, (48, 64, 3)), 0, 255).astype(
        np.uint8
    )
)
GREY = np.asarray(PHOTO.convert("L"))


def encoded(kind, image=PHOTO, **options):
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)  # Pillow keeps some options in the image
    return buffer.getvalue()


def chunk(kind, body, crc=None):
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def read(data, **options):
    return Reading(**options).read(io.BytesIO(data))


def same(data, wanted=PHOTO):
    image, note = read(data)
    assert (image.mode, image.size, note) == ("RGB", wanted.size, "")
    assert image.tobytes() == wanted.tobytes()


BIG = zlib.compress(b"a node of a workflow " * 200_000)
BESIDE_PNG = {
    "a long text": chunk(b"zTXt", b"workflow\0\0" + BIG),
    "a long international text": chunk(b"iTXt", b"workflow\0\1\0\0\0" + BIG),
    "a long profile": chunk(b"iCCP", b"p\0\0" + BIG),
    "a long plain text": chunk(b"tEXt", b"parameters\0" + b"x" * (3 << 20)),
    "a text of an unknown compression": chunk(b"zTXt", b"k\0\7xx"),
    "a wrong checksum": chunk(b"tEXt", b"k\0v", crc=1),
    "a short pHYs": chunk(b"pHYs", b"\0"),
    "an empty sRGB": chunk(b"sRGB", b""),
    "a short acTL": chunk(b"acTL", b"\0"),
    "a profile of an unknown compression": chunk(b"iCCP", b"p\0\7" + BIG[:50]),
    "an animation out of order": chunk(b"acTL", bytes(7) + b"\2") + chunk(b"fcTL", b"\0\0\0\7" + bytes(22)),
    "many texts": chunk(b"tEXt", b"k\0" + b"v" * 1_000_000) * 80,
}


@pytest.mark.parametrize("name", BESIDE_PNG)
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_png_with_a_fault_beside_the_picture(name, behind):
    data = encoded("PNG")
    at = len(data) - 12 if behind else 33
    same(data[:at] + BESIDE_PNG[name] + data[at:])


def test_png_whose_last_text_is_cut_off_has_all_its_pixels():
    data = encoded("PNG")
    same(data[:-12] + chunk(b"tEXt", b"k\0" + b"v" * 1000)[:500])
    same(data[:-12])  # the end itself


def test_damaged_pixels_stay_an_error():
    data = bytearray(encoded("PNG"))
    for end in (len(data) // 2, len(data) - 40):
        with pytest.raises(images.ImageError, match="truncated"):
            read(bytes(data[:end]))
    data[len(data) // 2] ^= 255
    with pytest.raises(images.ImageError):
        read(bytes(data))


def test_the_orientation_stays_where_other_metadata_go():
    turned = PHOTO.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    png = encoded("PNG", turned, exif=exif)
    same(png[:33] + BESIDE_PNG["a long text"] + png[33:])
    same(png[:33] + BESIDE_PNG["a text of an unknown compression"] + png[33:])
    webp = encoded("WEBP", turned, exif=exif, xmp=b"<x/>" * 400_000, lossless=True)
    same(webp)
    tiff = encoded("TIFF", turned, tiffinfo={274: 6, 700: b"x" * (2 << 20)})
    same(tiff)


def segment(marker, body):
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def test_jpeg_with_a_fault_beside_the_picture():
    data = encoded("JPEG", quality=95)
    wanted = read(data)[0]
    faults = {
        "many": segment(0xE5, bytes(65000)) * 400,
        "stray bytes": segment(0xE5, b"abc") + b"stray",
        "short profile": segment(0xE2, b"ICC_PROFILE\0"),
        "short photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04"),
        "damaged exif": segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(9)),
        "many pictures": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
        "comment": segment(0xFE, b"\xff" * 70),
    }
    for name, fault in faults.items():
        image, note = read(data[:2] + fault + data[2:])
        assert image.tobytes() == wanted.tobytes() and not note, name


def test_webp_with_a_fault_beside_the_picture():
    whole = encoded("WEBP", lossless=True, xmp=b"x" * 5000, icc_profile=b"p" * 300)
    same(whole)
    same(whole[:-2000])  # the XMP stands last


def test_tiff_with_a_fault_beside_the_picture():
    data = encoded("TIFF", tiffinfo={700: b"x" * 5000, 34675: b"p" * 3000})
    same(data)
    # Each value beside the picture moved beyond the end of the file.
    broken = bytearray(data)
    start = struct.unpack_from("<I", broken, 4)[0]
    moved = 0
    for i in range(struct.unpack_from("<H", broken, start)[0]):
        at = start + 2 + 12 * i
        if struct.unpack_from("<H", broken, at)[0] in (700, 34675):
            struct.pack_into("<I", broken, at + 8, 1 << 30)
            moved += 1
    assert moved == 2
    same(bytes(broken))


def test_pieces_are_a_file():
    file = containers.Picture([(2, 3), b"ab", (0, 0), (8, 2)]).open(io.BytesIO(b"0123456789"))
    assert file.read() == b"234ab89"
    for start in (*range(9), 0, 6, 1):
        file.seek(start)
        assert file.read(3) == b"234ab89"[start : start + 3], start
    assert file.seek(-2, 2) == 5 and file.read() == b"89"


# --- depth --------------------------------------------------------------------------------------------------------
def tiff(values, **tags):
    return encoded("TIFF", Image.fromarray(values), tiffinfo={int(k[1:]): v for k, v in tags.items()})


def level(data):
    image, note = read(data)
    return np.asarray(image)[..., 0], note


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("shift", [0, 4, 8])
def test_sixteen_bits_scale_by_their_type(kind, shift):
    """A dark image stays dark, whatever its largest value is."""
    values = (GREY.astype(np.uint16) * 257) >> shift
    found, note = level(encoded(kind, Image.fromarray(values)))
    np.testing.assert_array_equal(found, values >> 8)
    assert ("lowest" in note) == (bool(shift) and kind != "PPM")


def test_portable_maps_scale_by_their_maximum():
    for maximum, form in ((15, np.uint8), (1023, ">u2"), (4095, ">u2")):
        values = (GREY.astype(int) * maximum // 255).astype(form)
        found, note = level(b"P5 64 48 %d\n" % maximum + values.tobytes())
        assert np.abs(found.astype(int) - GREY).max() <= 255 / maximum + 1 and not note


def test_tags_say_what_white_is():
    twelve = (GREY.astype(np.uint16) * 257) >> 4
    for tags in ({"t341": 4095}, {"t281": 4095}):
        found, note = level(tiff(twelve, **tags))
        assert np.abs(found.astype(int) - GREY).max() <= 1 and not note, tags
    found, _ = level(tiff(twelve, t281=2000))  # the largest value of this image: no statement of its depth
    np.testing.assert_array_equal(found, twelve >> 8)
    found, note = level(tiff(GREY.astype(np.float32) * 10 - 500, t340=-500.0, t341=2050.0))
    assert np.abs(found.astype(int) - GREY).max() <= 1 and not note
    found, _ = level(tiff(GREY.astype(np.uint16) * 257, t262=0))  # white is zero
    np.testing.assert_array_equal(found, 255 - GREY)


def test_wide_types_of_unknown_range_are_noted_and_never_all_white():
    for values, white in (
        (GREY.astype(np.int32) * 257, 65535),
        (GREY.astype(np.int32) << 23, 2**31 - 1),
        (GREY.astype(np.float32), 255),
        (GREY.astype(np.float32) * 257, 65535),
        (GREY.astype(np.float32) * 1e7, 2**32 - 1),
    ):
        found, note = level(tiff(values))
        assert f"taken as 0 to {white};" in note, note
        assert found.mean() < 200
        assert np.abs(found - values.astype(np.float64) / white * 255).max() <= 1.01, white
    found, note = level(tiff(GREY.astype(np.float32) / 255))
    assert np.abs(found.astype(int) - GREY).max() <= 1 and not note
    found, note = level(encoded("PPM", Image.fromarray(GREY.astype(np.float32) / 255)))  # a portable float map
    assert np.abs(found.astype(int) - GREY).max() <= 1 and not note
    unsigned = bytearray(tiff((GREY.astype(np.uint64) * 16843009).astype(np.uint32).view(np.int32)))
    start = struct.unpack_from("<I", unsigned, 4)[0]
    for i in range(struct.unpack_from("<H", unsigned, start)[0]):
        at = start + 2 + 12 * i
        if struct.unpack_from("<H", unsigned, at)[0] == 339:
            struct.pack_into("<H", unsigned, at + 8, 1)
    found, note = level(bytes(unsigned))
    assert np.abs(found.astype(int) - GREY).max() <= 1 and "taken as 0 to 4294967295" in note
    dark = level(tiff(GREY.astype(np.int32)))[0]
    assert dark.max() == 0, "no integer is made brighter because the image is dark"


def test_values_that_are_no_numbers_are_black():
    values = GREY.astype(np.float32) / 255
    values[:4] = np.nan
    values[4:8] = np.inf
    values[8:12] = -np.inf
    found, _ = level(tiff(values))
    assert not found[:4].any() and (found[4:8] == 255).all() and not found[8:12].any()
    np.testing.assert_allclose(found[12:], GREY[12:], atol=1)


def test_a_tiff_that_pillow_does_not_read_is_described():
    data = bytearray(tiff(GREY.astype(np.float32)))
    start = struct.unpack_from("<I", data, 4)[0]
    for i in range(struct.unpack_from("<H", data, start)[0]):
        at = start + 2 + 12 * i
        if struct.unpack_from("<H", data, at)[0] == 258:
            struct.pack_into("<H", data, at + 8, 24)
    with pytest.raises(images.ImageError, match="1 samples of 24 bits .float.*save it with 8 or 16 bits"):
        read(bytes(data))


# --- animations and pages -----------------------------------------------------------------------------------------
BLACK = Image.new("RGB", PHOTO.size)


def test_the_frame_of_an_animation_that_a_viewer_shows():
    more = {"save_all": True, "append_images": [PHOTO, BLACK]}
    same(encoded("PNG", BLACK, default_image=True, **more))
    same(encoded("PNG", save_all=True, append_images=[BLACK]))
    same(encoded("TIFF", save_all=True, append_images=[BLACK]))
    # The first frame covers a part of the canvas; the rest of it is transparent.
    small = encoded("PNG", PHOTO.crop((0, 0, 20, 10)))
    idat = small[small.index(b"IDAT") + 4 : small.index(b"IEND") - 8]
    control = struct.pack(">5IHHBB", 0, 20, 10, 5, 7, 1, 10, 0, 0)
    frames = chunk(b"acTL", b"\0\0\0\1\0\0\0\0") + encoded("PNG", BLACK)[33:-12]
    data = encoded("PNG", BLACK)[:33] + frames + chunk(b"fcTL", control) + chunk(b"fdAT", b"\0\0\0\1" + idat)
    wanted = Image.new("RGB", PHOTO.size, (255, 255, 255))
    wanted.paste(PHOTO.crop((0, 0, 20, 10)), (5, 7))
    same(data + chunk(b"IEND", b""), wanted)


def test_a_thumbnail_page_is_passed_over():
    thumbnail = PHOTO.resize((16, 12))
    thumbnail.encoderinfo = {}
    buffer = io.BytesIO()
    thumbnail.save(buffer, "TIFF", save_all=True, append_images=[PHOTO], tiffinfo={254: 1})
    data = bytearray(buffer.getvalue())
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    second = struct.unpack_from("<I", data, start + 2 + 12 * count)[0]
    for i in range(struct.unpack_from("<H", data, second)[0]):  # Pillow gives every page the same tags
        at = second + 2 + 12 * i
        if struct.unpack_from("<H", data, at)[0] == 254:
            struct.pack_into("<I", data, at + 8, 0)
    same(bytes(data))


def test_a_raw_photograph_is_not_its_preview(tmp_path):
    (tmp_path / "a.nef").write_bytes(encoded("TIFF"))
    with pytest.raises(images.ImageError, match="raw photograph.*develop"):
        images.decode(tmp_path / "a.nef")
    with pytest.raises(images.ImageError, match="raw photograph"):
        read(encoded("TIFF", tiffinfo={50706: b"\1\4\0\0"}))


# --- missing ends -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "BMP", "TIFF", "GIF"])
def test_a_missing_end_is_an_error_unless_asked_for(kind):
    options = {"progressive": {"progressive": True}, "GIF": {"interlace": 0}}.get(kind, {})
    options["kind"] = "JPEG" if kind == "progressive" else kind
    data = encoded(**options)
    whole = np.asarray(read(data)[0], int)
    cut = data[: int(len(data) * 0.7)]
    with pytest.raises(images.ImageError, match="^truncated file .*--truncated score"):
        read(cut)
    image, note = read(cut, truncated="score")
    assert image.size == PHOTO.size and note.startswith("truncated file: scored")
    if kind != "progressive":
        there = slice(-12, None) if kind == "BMP" else slice(0, 12)  # BMP begins below
        assert np.abs(np.asarray(image, int)[there] - whole[there]).max() == 0, "as in the whole file"
        assert "of 48 rows are missing" in note
    with pytest.raises(images.ImageError):
        read(data[:20], truncated="score")


def test_a_jpeg_without_its_end_marker_has_all_its_pixels():
    data = encoded("JPEG", quality=95)
    image, note = read(data[:-2], truncated="score")
    assert image.tobytes() == read(data)[0].tobytes() and "last bytes" in note
    assert read(data, truncated="score")[1] == ""


# --- size ---------------------------------------------------------------------------------------------------------
def test_the_limit_of_pixels_is_an_option():
    data = encoded("PNG")
    with pytest.raises(images.ImageError, match="64x48 pixels, more than the limit of 3000; --max-pixels 1M"):
        read(data, max_pixels=3000)
    assert read(data, max_pixels=64 * 48)[0].size == PHOTO.size


def test_an_image_above_pillows_own_limit_is_opened(monkeypatch):
    """The limit of Pillow is one for the process; it stays, and so do bombs."""
    for kind in ("PNG", "JPEG", "TIFF", "BMP"):
        data = encoded(kind)
        wanted = read(data)[0].tobytes()
        with monkeypatch.context() as patch:
            patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
            image, _ = read(data)
            assert image.tobytes() == wanted and Image.MAX_IMAGE_PIXELS == 1000
            with pytest.raises(images.ImageError, match="64x48"):
                read(data, max_pixels=2000)


@pytest.mark.parametrize("options", [{"max_pixels": 0}, {"max_pixels": 1.5}, {"truncated": "scored"}])
def test_wrong_options(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Reading(**options)


def test_a_picture_is_turned_once():
    """A decoded picture may be decoded again, by the application and by the sweep."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        once, _ = read(encoded(kind, exif=exif.tobytes(), **options))
        assert once.size == PHOTO.size[::-1] and once.tobytes() == PHOTO.transpose(Image.Transpose.ROTATE_270).tobytes()
        again = images.decode(once)
        assert again.tobytes() == once.tobytes() and again.size == once.size


def test_a_transparent_colour_of_an_rgb_png_is_white():
    green = PHOTO.copy()
    green.paste((0, 255, 0), (0, 0, 20, 20))
    image, _ = read(encoded("PNG", green, transparency=(0, 255, 0)))
    assert image.getpixel((5, 5)) == (255, 255, 255) and image.getpixel((40, 30)) == PHOTO.getpixel((40, 30))


def test_an_open_picture_that_cannot_be_used_is_refused_as_a_file_is():
    cut = Image.open(io.BytesIO(encoded("JPEG")[:-200]))
    with pytest.raises(images.ImageError, match="truncated"):
        images.decode(cut)
    closed = Image.open(io.BytesIO(encoded("PNG")))
    closed.close()
    with pytest.raises(images.ImageError):
        images.decode(closed)
    for source in (PHOTO, np.asarray(PHOTO)):
        with pytest.raises(images.ImageError, match="64x48 pixels, more than the limit of 1000"):
            images.decode(source, max_pixels=1000)
