"""Pictures as people reported them in public trackers; docs/field-cases.md says where. Every input is made here."""

import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from test_image_reading import PHOTO, chunk, encoded, read, same, segment

from aidet import images
from aidet.app import metadata, uploads
from aidet.images import extras

PNG, JPEG = encoded("PNG"), encoded("JPEG", quality=95)
PIXELS = read(JPEG)[0].tobytes()


def test_jpeg_with_a_stray_byte_before_a_marker():  # Pillow 630
    at = JPEG.index(b"\xff\xdb")
    assert read(JPEG[:at] + b"\x00" + JPEG[at:])[0].tobytes() == PIXELS


@pytest.mark.parametrize("kind", [b"iCCP", b"iTXt", b"gAMA"])
def test_png_whose_ancillary_checksum_is_wrong(kind):  # Pillow 1991, 4472, 5631, 5672
    same(PNG[:33] + chunk(kind, b"abcd", crc=0x12345678) + PNG[33:])


def test_png_whose_profile_names_an_unknown_compression():  # Pillow 7817
    same(PNG[:33] + chunk(b"iCCP", b"ICC profile\0\1xyz") + PNG[33:])


def test_png_whose_image_checksum_is_wrong_is_scored():  # Pillow 5800: browsers show it
    at = PNG.index(b"IEND") - 8
    same(PNG[:at] + b"\0\0\0\0" + PNG[at + 4 :])


def test_jpeg_that_claims_to_hold_several_pictures():  # Pillow 1138, 4603
    entry = struct.pack(">HHII", 0xB001, 4, 1, 2)
    index = b"MPF\0MM\0*\0\0\0\x08" + struct.pack(">H", 1) + entry + bytes(4)
    assert read(JPEG[:2] + segment(0xE2, index) + JPEG[2:])[0].tobytes() == PIXELS


def test_jpeg_whose_exif_is_something_else():  # Pillow 7879
    body = b"Exif\0\0http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"
    assert read(JPEG[:2] + segment(0xE1, body) + JPEG[2:])[0].tobytes() == PIXELS


def test_jpeg_2000_with_a_restricted_profile():  # Pillow 5629: the header is parsed before the pixels
    data = encoded("JPEG2000", irreversible=False)
    at = data.index(b"colr")
    assert data[at + 4 : at + 7] == b"\1\0\0"  # an enumerated colour space
    body = b"\2\0\0" + bytes(20)
    box = struct.pack(">I4s", 8 + len(body), b"colr") + body
    grown = data[: at - 4] + box + data[at - 4 + 15 :]
    header = grown.index(b"jp2h") - 4
    size = struct.unpack_from(">I", grown, header)[0] + len(box) - 15
    try:
        image, _ = read(grown[:header] + struct.pack(">I", size) + grown[header + 4 :])
    except images.ImageError as error:
        assert str(error)
    else:
        assert image.size == PHOTO.size


def test_webp_with_bytes_behind_its_end_and_one_without_the_profile_it_announces():  # ImageSharp 2925, image-webp 143
    plain = encoded("WEBP", lossless=True)
    same(plain + b"behind the end" * 9)
    whole = bytearray(encoded("WEBP", lossless=True, icc_profile=b"p" * 100))
    start = whole.index(b"ICCP")
    del whole[start : start + 108]
    struct.pack_into("<I", whole, 4, len(whole) - 8)
    assert whole[20] & 0x20  # the flag says that there is a profile
    same(bytes(whole))


def test_tiff_whose_zero_is_white():  # image-tiff 129, xarray-spatial 2278
    grey = np.asarray(PHOTO.convert("L"))
    for values in (grey.astype(np.uint16) * 257, grey.astype(np.float32) / 255):
        found = np.asarray(read(encoded("TIFF", Image.fromarray(values), tiffinfo={262: 0}))[0])[..., 0]
        assert np.abs(found.astype(int) - (255 - grey)).max() <= 1, values.dtype
    signed = encoded("TIFF", Image.fromarray(grey.astype(np.int32)), tiffinfo={262: 0})
    with pytest.raises(images.ImageError, match="32 bits .signed integer., a kind which Pillow does not read"):
        read(signed)


def test_cmyk_jpeg_without_the_marker_of_adobe():  # sharp 1649
    data = encoded("JPEG", PHOTO.convert("CMYK"), quality=95)
    at = data.index(b"\xff\xee")
    length = 2 + struct.unpack_from(">H", data, at + 2)[0]
    with_marker, without = (np.asarray(read(d)[0], int) for d in (data, data[:at] + data[at + length :]))
    assert np.abs(with_marker - np.asarray(PHOTO, int)).mean() < 12
    assert np.array_equal(with_marker, without)  # as Photoshop writes them, as browsers read them


def test_names_of_telephones(tmp_path, monkeypatch):  # libheif 111, 675, 907; data-collection-ios 184
    (tmp_path / "IMG_1.HEIC").write_bytes(JPEG)
    assert images.decode(tmp_path / "IMG_1.HEIC").tobytes() == PIXELS
    monkeypatch.setattr(extras, "installed", lambda key: False)
    for brand in (b"heic", b"hevm", b"avci", b"miaf"):
        (tmp_path / "IMG_2.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(20))
        with pytest.raises(images.ImageError, match="HEIC, which Pillow .*; pip install .* or save it as PNG"):
            images.decode(tmp_path / "IMG_2.jpg")


def test_photoshop_and_text_under_the_name_of_a_jpeg(tmp_path):  # Pillow 4279, ImageGlass 1635
    head = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 48, 64, 8, 3) + struct.pack(">III", 0, 0, 0)
    psd = head + b"\0\0" + np.asarray(PHOTO).transpose(2, 0, 1).tobytes()
    same(psd)
    with pytest.raises(images.ImageError, match="not an image"):
        read(JPEG.decode("latin-1").encode("utf-8"))


def test_folders_of_a_mac_and_capitals(tmp_path):  # fastai 488, faceswap 116, lora-training 9, datumaro 151
    for name in (".DS_Store", "._IMG_1.JPG", "IMG_1.JPG", "b.Png", "c.JPEG", "notes.TXT"):
        (tmp_path / name).write_bytes(JPEG if not name.startswith(".") else b"\0\5\x16\7")
    left = images.LeftOut()
    assert list(images.walk(tmp_path, left)) == ["IMG_1.JPG", "b.Png", "c.JPEG"]
    assert left.hidden == 2 and dict(left.extensions) == {".txt": 1}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("IMG_1.JPG", "noext", "x.jpg_large", "__MACOSX/._IMG_1.JPG", "@eaDir/t.jpg", "a.txt"):
            archive.writestr(name, JPEG)
    assert [name for name, _ in uploads.Batch([tmp_path / "a.zip"])] == ["IMG_1.JPG", "noext", "x.jpg_large"]


def test_a_large_workflow_is_still_shown_as_a_trace_of_a_generator():  # Pillow 8363
    text = b'{"nodes": [' + b'{"type": "KSampler"}, ' * 100_000 + b"{}]}"
    for body in (b"workflow\0\0" + zlib.compress(text), b"prompt\0\0" + zlib.compress(text)):
        (found,) = metadata.read(PNG[:33] + chunk(b"zTXt", body) + PNG[33:])
        assert found.kind == "generator" and "KSampler" in found.text and len(found.text) <= 400


def test_a_picture_of_222_megapixels_names_its_remedy():  # baserow 3013, comfyui-art-venture 36
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    data = PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(images.ImageError, match="20000x20000 pixels.*--max-pixels 400M"):
        read(data)
