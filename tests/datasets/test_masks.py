"""Masks of partly generated pictures: read exactly, and one clear line for each that is wrong."""

import numpy as np
import pytest
from PIL import Image

from aidet.datasets.masks import mask_of, read_mask
from aidet.errors import UserError

SIZE = (40, 24)


@pytest.fixture
def mask(tmp_path):
    """A function that writes a mask: pixels in, path out."""

    def write(pixels, name="m.png", **options):
        Image.fromarray(pixels).save(tmp_path / name, **options)
        return tmp_path / name

    return write


def block(value=255):
    pixels = np.zeros((24, 40), np.uint8)
    pixels[3:9, 10:31] = value
    return pixels


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_a_mask_is_read_pixel_by_pixel(tmp_path, mode):
    Image.fromarray(block()).convert(mode).save(tmp_path / "m.png")
    found = read_mask(tmp_path / "m.png", SIZE)
    assert found.dtype == np.uint8 and (found == (block() > 0)).all()


def test_each_fault_is_one_line(tmp_path, mask):
    (tmp_path / "bad.png").write_bytes(mask(block()).read_bytes()[:60])
    (tmp_path / "none.png").write_bytes(b"")
    noisy = block()
    noisy[0, 0] = 7
    faults = {
        tmp_path / "gone.png": "does not exist",
        tmp_path / "bad.png": "cannot be read",
        tmp_path / "none.png": "cannot be read",
        mask(block()[:, :-1], "size.png"): "39x24 pixels, its picture 40x24",
        mask(block()[:-1], "rows.png"): "40x23 pixels, its picture 40x24",
        mask(noisy, "grey.png"): "not binary: 1 pixels are neither 0 nor 255, such as 7",
        mask(block(1), "ones.png"): "not binary: 126 pixels",
        mask(np.dstack([block()] * 4), "alpha.png"): "mode RGBA",
        mask(block().astype(np.uint16) * 257, "deep.png"): "mode I;16",
        mask(block(0), "empty.png"): "is empty",
    }
    for path, text in faults.items():
        with pytest.raises(UserError) as caught:
            read_mask(path, SIZE)
        said = str(caught.value)
        assert text in said and path.name in said and "\n" not in said
    assert not read_mask(tmp_path / "empty.png", SIZE, empty=True).any()


def test_a_row_without_a_mask(tmp_path, mask):
    mask(block())
    mask(block(0), "empty.png")
    assert not mask_of(tmp_path, "", 0, "", SIZE).any()
    assert mask_of(tmp_path, "", 1, "1.0", SIZE).all()
    assert mask_of(tmp_path, "m.png", 1, "", SIZE).sum() == 126
    assert mask_of(tmp_path, "empty.png", 0, "", SIZE).shape == (24, 40)
    for area in ("", "0.3", "all", "nan"):
        with pytest.raises(UserError, match="'a.jpg' is labelled generated and has no mask"):
            mask_of(tmp_path, "", 1, area, SIZE, "a.jpg")
    with pytest.raises(UserError, match="marks 126 pixels, but its picture 'a.jpg' is labelled real"):
        mask_of(tmp_path, "m.png", 0, "0", SIZE, "a.jpg")
    with pytest.raises(UserError, match="is empty"):
        mask_of(tmp_path, "empty.png", 1, "0.2", SIZE, "a.jpg")
