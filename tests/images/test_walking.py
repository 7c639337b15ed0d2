"""Which files of a folder are images, and what is said of the others."""

import io

import pytest
from PIL import Image

from aidet import images
from aidet.datasets.sources import Inputs
from aidet.errors import UserError
from aidet.images import extras, walking


def encoded(kind, **options):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 99, 199)).save(buffer, kind, **options)
    return buffer.getvalue()


JPEG = encoded("JPEG")


def test_an_unknown_or_missing_extension_is_looked_into(tmp_path):
    kinds = ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "JPEG")
    names = [f"file{i}" for i, _ in enumerate(kinds)]
    for name, kind in zip(names, kinds):
        (tmp_path / name).write_bytes(encoded(kind))
    for name in ("x.jpg_large", "x.jpg.1", "x.jpg ", "x.img", "x.mpo", "x.psd", "x.dng"):
        (tmp_path / name).write_bytes(JPEG)
        names.append(name)
    others = {"a.bin": b"\0" * 40, "b": b"", "c.txt": JPEG, "d.dng": encoded("TIFF"), "e.py": b"P5 "}
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
    left = images.LeftOut()
    assert sorted(images.walk(tmp_path, left)) == sorted(names)
    assert dict(left.extensions) == {".bin": 1, "": 1, ".txt": 1, ".dng": 1, ".py": 1}
    said = left.lines()
    assert said[0].startswith("note: 5 files are left out") and "1 .bin" in said[0] and "without extension" in said[0]
    assert "1 of them is a raw photograph; develop" in said[1]


@pytest.mark.parametrize("name", ["heic", "heif", "hif", "heics", "heifs", "avci", "avcs", "HIF", "jxl"])
def test_every_extension_of_a_kind_that_cannot_be_read_gets_a_row_that_says_so(tmp_path, name, monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda key: False)
    jxl = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(30)
    data = jxl if name == "jxl" else b"\0\0\0\x18ftypheic" + bytes(30)
    (tmp_path / f"a.{name}").write_bytes(data)
    assert list(images.walk(tmp_path)) == [f"a.{name}"]
    with pytest.raises(images.ImageError, match="which Pillow does not read; pip install .* or save it as PNG"):
        images.decode(tmp_path / f"a.{name}")


def test_litter_is_skipped_and_counted(tmp_path):
    for folder in ("@eaDir/a.jpg", "__MACOSX/real", ".ipynb_checkpoints", "real"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.jpg").write_bytes(JPEG)
    (tmp_path / "Thumbs.db").write_bytes(JPEG)
    left = images.LeftOut()
    assert list(images.walk(tmp_path, left)) == ["real/1.jpg"]
    assert dict(left.litter) == {"@eaDir": 1, "__MACOSX": 1, "Thumbs.db": 1} and left.hidden == 1
    (said,) = left.lines()
    assert said.startswith("note: skipped ") and "1 @eaDir" in said and "1 hidden" in said
    # Named itself, a folder is taken whatever its name.
    assert list(images.walk(tmp_path / "@eaDir")) == ["a.jpg/1.jpg"]


def test_a_folder_without_an_image_says_what_it_holds(tmp_path):
    (tmp_path / "a.xyz").write_bytes(b"no image")
    with pytest.raises(UserError, match="holds no image file; note: 1 file is left out.*1 .xyz"):
        Inputs(tmp_path).count()
    (tmp_path / "b").write_bytes(JPEG)
    inputs = Inputs(tmp_path)
    assert inputs.count() == 1 and dict(inputs.left.extensions) == {".xyz": 1}
    assert [name for name, _ in inputs] == ["b"]


def test_no_extension_has_two_meanings():
    assert not walking.EXTENSIONS & walking.RAW and not walking.EXTENSIONS & walking.OTHER
    assert not walking.RAW & walking.OTHER
