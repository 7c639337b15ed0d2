"""HEIC and JPEG XL: read with the package of the extra, in a process of its own whose end costs one row."""

import io

import numpy as np
import pytest
from PIL import Image

from aidet import images
from aidet.images import apart, extras

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
JXL = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64)
ORIENTATION = 0x0112


def reason(source, **more):
    with pytest.raises(images.ImageError) as caught:
        images.decode(source, **more)
    return str(caught.value)


@pytest.mark.parametrize("data, extra", [(HEIC, "heif"), (JXL, "jxl"), (b"\xff\x0a" + bytes(30), "jxl")])
def test_without_the_package_the_row_says_what_installs_it(data, extra, monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda key: False)
    assert f"pip install 'aidet[{extra}]' reads it, or save it as PNG" in reason(io.BytesIO(data))


# Beginnings of files of libjxl, bare and in a container.
CONTAINER = "0000000c4a584c200d0a870a00000014667479706a786c20000000006a786c20000000126a786c7000000000"


@pytest.mark.parametrize(
    "head, size",
    [
        ("ff0add4052dc0800", (160, 120)),
        ("ff0a271c88040802", (120, 160)),
        ("ff0a7a5e03910802", (4032, 3024)),
        ("ff0afa7de8798148", (3024, 4032)),
        ("ff0af80700824880", (257, 256)),
        ("ff0a1080fe3f8804", (8192, 3)),
        ("ff0a7c8b08080091", (3, 70000)),
        (CONTAINER + "ff0add2c1013000001", (160, 120)),
    ],
)
def test_the_size_of_jpeg_xl_is_read_before_it_is_decoded(head, size):
    assert apart.jxl_size(bytes.fromhex(head)) == size


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", JXL, JXL[:12] + b"\0\0\0\x01jxlc" + b"\0" * 8])
def test_what_has_no_such_header_is_an_error(data):
    with pytest.raises(ValueError, match="no JPEG XL codestream"):
        apart.jxl_size(data)


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Puts a program in the place of the decoding process."""
    monkeypatch.setattr(extras, "installed", lambda key: True)
    monkeypatch.setattr(extras, "PROGRAM", tmp_path / "program.py")

    def put(text):
        (tmp_path / "program.py").write_text("import json, os, sys, time\n" + text)

    return put


@pytest.mark.parametrize(
    "program, why",
    [
        ("os.abort()", "damaged HEIC: its decoder ended"),
        ("print('nonsense')", "damaged HEIC: its decoder ended"),
        ("print([1])", "damaged HEIC: its decoder ended"),
        ("print(json.dumps({'error': 'ValueError: bad'}))", r"damaged HEIC \(ValueError: bad\)"),
        ("time.sleep(60)", "damaged HEIC: its decoder took more than 0.5 s"),
        ("print(json.dumps({'size': [4, 4], 'mode': 'RGB', 'turn': 1, 'exif': ''}))", "ended before all pixels"),
        ("print(json.dumps({'size': [20000, 20000]}))", "20000x20000 pixels, more than the limit of 120000000"),
    ],
)
def test_a_decoder_that_fails_costs_one_row(stand_in, monkeypatch, program, why):
    monkeypatch.setattr(extras, "SECONDS", 0.5 if "sleep" in program else 60)
    stand_in(program)
    with pytest.raises(images.ImageError, match=why):
        images.decode(io.BytesIO(HEIC))


def test_the_process_is_given_the_file_and_gives_pixels(stand_in, tmp_path):
    stand_in(
        "data = open(sys.argv[3], 'rb').read() if len(sys.argv) > 3 else sys.stdin.buffer.read()\n"
        "print(json.dumps({'size': [2, 1], 'mode': 'RGB', 'turn': 6, 'exif': ''}), flush=True)\n"
        "sys.stdout.buffer.write(data[4:10])"
    )
    (tmp_path / "a.heic").write_bytes(HEIC)
    for source in (tmp_path / "a.heic", io.BytesIO(HEIC)):
        image = images.decode(source)
        assert image.size == (1, 2) and image.tobytes() == b"ftyphe"  # turned by a quarter


# --- with the packages -----------------------------------------------------------------------------------------------
@pytest.fixture
def picture(photo):
    return photo(3, (64, 48))


def alike(a, b, limit):
    return a.size == b.size and np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() < limit


@pytest.mark.parametrize("turn", [1, 3, 5, 6, 8])
def test_heic_is_turned_once(tmp_path, picture, turn):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    heif = pillow_heif.from_pillow(picture)
    heif.info["exif"] = exif.tobytes()
    heif.save(tmp_path / "a.heic", quality=-1, chroma=444)  # the encoder stores the turn, and keeps EXIF's
    picture.save(tmp_path / "a.png", exif=exif)
    for source in (tmp_path / "a.heic", io.BytesIO((tmp_path / "a.heic").read_bytes())):
        assert alike(images.decode(source), images.decode(tmp_path / "a.png"), 3)
    assert "pixels, more than the limit of 100; --max-pixels" in reason(tmp_path / "a.heic", max_pixels=100)
    with images.opened(tmp_path / "a.heic") as image:
        assert image.format == "HEIF" and image.size == images.decode(tmp_path / "a.png").size


def test_another_librarys_plugin_is_not_used(tmp_path, picture, monkeypatch):
    """imageio, which scikit-image imports, registers one that decodes in this process."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    pillow_heif.from_pillow(picture).save(tmp_path / "a.heic", quality=-1, chroma=444)
    data = (tmp_path / "a.heic").read_bytes()

    def factory(*args):
        raise AssertionError("decoded in this process")

    monkeypatch.setitem(Image.OPEN, "HEIF", (factory, lambda prefix: True))
    monkeypatch.setattr(Image, "ID", ["HEIF", *(name for name in Image.ID if name != "HEIF")])
    assert alike(images.decode(tmp_path / "a.heic"), picture, 3)
    with images.opened(io.BytesIO(data)) as image:
        assert image.size == picture.size
    assert "damaged HEIC" in reason(io.BytesIO(data[: len(data) // 2]))


def test_heic_with_transparency_greys_and_damage(tmp_path, picture):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    clear = picture.convert("RGBA")
    clear.putalpha(0)
    for name, image, wanted in (("a", clear, Image.new("RGB", (64, 48), "white")), ("l", picture.convert("L"), None)):
        pillow_heif.from_pillow(image).save(tmp_path / f"{name}.heic", quality=-1, chroma=444)
        assert alike(images.decode(tmp_path / f"{name}.heic"), wanted or image.convert("RGB"), 3)
    data = (tmp_path / "l.heic").read_bytes()
    for cut in (30, len(data) // 2):
        assert "HEIC" in reason(io.BytesIO(data[:cut]))


def test_jpeg_xl_is_read(tmp_path, picture):
    codecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    pixels = np.asarray(picture)
    for name, array in {"rgb": pixels, "grey": pixels[..., 0], "wide": pixels.astype(np.uint16) * 257}.items():
        data = codecs.jpegxl_encode(array, lossless=True)
        (tmp_path / f"{name}.jxl").write_bytes(data)
        found = np.asarray(images.decode(tmp_path / f"{name}.jxl"))
        assert np.array_equal(found, np.stack([array] * 3, -1) if name == "grey" else pixels), name
    assert "64x48 pixels, more than the limit of 100" in reason(tmp_path / "rgb.jxl", max_pixels=100)
    assert "JPEG XL" in reason(io.BytesIO(data[: len(data) // 2]))


def test_what_the_extras_read_has_a_verdict(tmp_path, picture, monkeypatch, capsys):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    import infer

    (tmp_path / "in").mkdir()
    pillow_heif.from_pillow(picture).save(tmp_path / "in/a.HEIC", quality=90)
    (tmp_path / "in/b.heic").write_bytes(HEIC)
    picture.save(tmp_path / "in/c.png")
    assert infer.run(["--ckpt", "rule:size", str(tmp_path / "in")]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] == "unusable" for line in lines[:3]] == [False, True, False]
    assert "damaged HEIC" in lines[1]
