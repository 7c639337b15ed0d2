"""A mask goes through a pipeline with its picture: it stays on the same pixels."""

import numpy as np
import pytest
from PIL import Image

from aidet import images
from aidet.errors import UserError
from aidet.images import masked


def marked(size=(70, 61)):
    """A grey picture whose generated pixels are red, and their mask."""
    rng = np.random.default_rng(0)
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[8:31, 20:52] = 1
    mask[40:44, 3:60] = 1
    pixels = np.repeat(rng.integers(90, 110, mask.shape, dtype=np.uint8)[..., None], 3, axis=2)
    pixels[mask == 1] = (250, 20, 20)
    return Image.fromarray(pixels), mask


def red(image):
    pixels = np.asarray(image, int)
    return (pixels[..., 0] - pixels[..., 1] > 115).astype(np.uint8)


@pytest.mark.parametrize(
    "line",
    [
        "center_crop(48)", "center_crop((80, 32))", "random_crop(40)", "random_crop(96)", "pad(32)", "hflip", "vflip",
        "rotate90", "resize((61, 70), nearest)", "random_crop(40) | hflip | vflip | rotate90",
    ],
)  # fmt: skip
def test_the_mask_stays_on_its_pixels(line):
    image, mask = marked()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        moved, found = images.together(images.Pipeline(line), image, mask, rng)
        assert found.dtype == np.float32 and set(np.unique(found)) <= {0.0, 1.0}
        np.testing.assert_array_equal(found, red(moved))


@pytest.mark.parametrize(
    "line", ["resize(40)", "rescale((0.5, 1.5))", "random_resized_crop(48, scale=(0.3, 1))", "two_sizes(40)"]
)
def test_a_resize_keeps_shares(line):
    image, mask = marked()
    for seed in range(8):
        moved, found = images.together(images.Pipeline(line), image, mask, np.random.default_rng(seed))
        assert found.shape == (moved.height, moved.width) and 0 <= found.min() and found.max() <= 1
        # Half a pixel of the edge may fall on either side.
        assert np.mean((found >= 0.5) != red(moved)) < 0.03


def test_operations_that_move_nothing_leave_the_mask_and_the_draws():
    """Compression and noise change the picture only, and the picture is the one that training without masks sees."""
    image, mask = marked((64, 64))
    text = (
        "noise((2, 6)) | random_crop(32) | jpeg((50, 90)) | blur((0.5, 1)) | hflip | color_jitter | down_up | to_float"
    )
    line = images.Pipeline(text)
    for seed in range(4):
        got, found = images.together(line, image, mask, np.random.default_rng(seed))
        np.testing.assert_array_equal(got, line(image, np.random.default_rng(seed)))
        bare, same = images.together(images.Pipeline("random_crop(32) | hflip"), image, mask, np.random.default_rng(1))
        assert found.shape == same.shape == (32, 32)
    _, still = images.together(images.Pipeline("jpeg(30) | webp(50) | grayscale(1) | normalize(half)"), image, mask,
                               np.random.default_rng(0))  # fmt: skip
    np.testing.assert_array_equal(still, mask)


def test_every_operation_is_known_to_move_or_not_or_is_refused():
    kinds = masked.MOVING | masked.STILL
    refused = {"albumentations", "auto_augment", "cutout", "random_erasing", "vip_cup"}
    assert kinds | refused == set(images.OPERATIONS) and not kinds & refused and not masked.MOVING & masked.STILL
    with pytest.raises(UserError, match="cannot follow 'cutout'"):
        images.refuse_unmasked(images.Pipeline("random_crop(32) | cutout | to_float"))


def test_shares_of_cells():
    mask = np.zeros((32, 48), np.float32)
    mask[:16, :16], mask[16:24, 16:32] = 1, 0.5
    np.testing.assert_array_equal(images.shares(mask, 16), [[1, 0, 0], [0, 0.25, 0]])
