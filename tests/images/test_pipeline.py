"""Each operation alone and in the pipeline; the line's grammar and its errors."""

import importlib.util
import io
import json

import numpy as np
import pytest
from PIL import Image

from aidet import images
from aidet.errors import UserError
from aidet.evaluation import degrade
from aidet.images import OPERATIONS, Pipeline, augment, generator

# Operations that need an argument, or numbers in place of an image; the others open by their name alone.
ARGUMENTS = {
    "resize": "resize(32)", "center_crop": "center_crop(32)", "random_crop": "random_crop(32)", "pad": "pad(16)",
    "random_resized_crop": "random_resized_crop(32)", "grayscale": "grayscale(0.5)",
    "random_erasing": "to_float | random_erasing", "albumentations": "albumentations(RandomGamma, p=1.0)",
    "two_sizes": "two_sizes(32)",
}  # fmt: skip


def rng(seed=0):
    return np.random.default_rng(seed)


def test_normalize_is_the_written_formula(photo):
    image = photo(size=(20, 16))
    got = Pipeline("normalize(imagenet)")(image)
    want = (
        np.asarray(image, np.float64).transpose(2, 0, 1) / 255 - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))
    ) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    assert got.dtype == np.float32 and got.shape == (3, 16, 20)
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_array_equal(Pipeline("normalize(half)")(image), Pipeline("normalize(0.5, 0.5)")(image))


def test_to_float_and_default_range(photo):
    image = photo()
    np.testing.assert_allclose(
        Pipeline("to_float(-1, 1)")(image), Pipeline("hflip(0)")(image, rng()) * 2 - 1, atol=1e-6
    )
    white = Image.new("RGB", (4, 4), "white")
    assert Pipeline("decode | to_float")(white).max() == 1.0


def test_crops_take_native_pixels(photo):
    image = photo(size=(51, 40))
    pixels = np.asarray(image).transpose(2, 0, 1)
    got = np.rint(Pipeline("center_crop(24)")(image) * 255)
    top, left = 8, 14  # (40 - 24) / 2 = 8; (51 - 24) / 2 = 13.5, rounded to the even 14 as torchvision does
    np.testing.assert_array_equal(got, pixels[:, top : top + 24, left : left + 24])
    floor = np.rint(Pipeline("center_crop(24, floor)")(image) * 255)  # as transformers does
    np.testing.assert_array_equal(floor, pixels[:, top : top + 24, left - 1 : left + 23])
    crop = np.rint(Pipeline("random_crop(24)")(image, rng(3)) * 255)
    places = [(y, x) for y in range(17) for x in range(28) if np.array_equal(pixels[:, y : y + 24, x : x + 24], crop)]
    assert len(places) == 1


def test_two_sizes_are_the_two_resized_images_one_above_the_other(photo):
    image = photo(size=(51, 40))
    both = Pipeline("two_sizes(24, bicubic, 30, bilinear)")(image)
    assert both.shape == (3, 54, 30) and not both[:, :24, 24:].any()
    np.testing.assert_array_equal(both[:, :24, :24], Pipeline("resize((24, 24), bicubic)")(image))
    np.testing.assert_array_equal(both[:, 24:], Pipeline("resize((30, 30), bilinear)")(image))


def test_a_smaller_image_lies_on_black_as_in_torchvision():
    """torchvision puts the odd pixel of the margin to the right and below."""
    image = Image.fromarray(np.full((5, 30, 3), 200, np.uint8))
    got = np.rint(Pipeline("center_crop(8, edges=black)")(image) * 255)
    assert got.shape == (3, 8, 8)
    assert (got[:, 1:6] == 200).all() and (got[:, 0] == 0).all() and (got[:, 6:] == 0).all()
    with pytest.raises(UserError, match="did you mean 'black'"):
        Pipeline("center_crop(8, edges=blak)")


@pytest.mark.parametrize("name", ["center_crop", "random_crop"])
def test_an_image_smaller_than_the_crop_is_mirrored(photo, name):
    image = photo(size=(5, 3))
    got = np.rint(Pipeline(f"{name}(16)")(image, rng()) * 255)
    assert got.shape == (3, 16, 16)
    colours = {tuple(c) for c in np.asarray(image).reshape(-1, 3)}
    assert {tuple(c) for c in got.transpose(1, 2, 0).reshape(-1, 3).astype(int)} <= colours


def test_resize_rule_matches_its_documentation():
    wide = Image.new("RGB", (301, 100))
    assert Pipeline("resize(50)")(wide).shape == (3, 50, 150)
    assert Pipeline("resize((40, 60), bicubic)")(wide).shape == (3, 40, 60)
    strip = Image.new("RGB", (20000, 1))
    assert Pipeline("resize(64) | center_crop(64)")(strip).shape == (3, 64, 64)


def test_high_pass_is_the_seeds_formula(photo):
    from PIL import ImageFilter

    image = photo()
    low = np.asarray(image.filter(ImageFilter.GaussianBlur(3)), np.int16)
    want = (np.asarray(image, np.int16) - low).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(Pipeline("high_pass(3)")(image), want, atol=1e-7)


def test_jpeg_operation_equals_a_real_save(photo):
    image = photo()
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70, subsampling=2)
    want = np.asarray(Image.open(buffer), np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_array_equal(Pipeline("jpeg(70)")(image, rng()), want)


@pytest.mark.parametrize("name", sorted(n for n, (_, random) in OPERATIONS.items() if random))
def test_random_operations_follow_the_generator_alone(photo, name):
    pipeline = Pipeline(ARGUMENTS.get(name, name))
    image = photo()
    assert pipeline.random
    before = np.asarray(image).copy()
    first, again = pipeline(image, generator(1, "a.jpg", 0)), pipeline(image, generator(1, "a.jpg", 0))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(before, np.asarray(image))
    others = [pipeline(image, generator(1, "a.jpg", k)) for k in range(1, 40)]
    assert any(o.shape != first.shape or not np.array_equal(o, first) for o in others)


@pytest.mark.parametrize(
    "name", ["hflip", "vflip", "jpeg", "webp", "blur", "noise", "down_up", "cutout", "color_jitter"]
)
def test_probability_zero_changes_nothing(photo, name):
    image = photo()
    got = Pipeline(f"{name}(p=0)")(image, rng())
    np.testing.assert_array_equal(np.rint(got * 255).astype(np.uint8), np.asarray(image).transpose(2, 0, 1))


def test_changing_one_probability_leaves_later_draws_alone(photo):
    image = photo()
    a = Pipeline("hflip(0) | random_crop(20)")(image, rng(5))
    b = Pipeline("hflip(0.001) | random_crop(20)")(image, rng(5))
    np.testing.assert_array_equal(a, b)


def test_generator_depends_on_seed_key_and_view():
    draws = {generator(s, k, v).integers(1 << 62) for s in (0, 1) for k in ("a", "b", "a\0") for v in (0, 1)}
    assert len(draws) == 12
    assert generator(7, "x", 2).integers(1 << 62) == generator(7, "x", 2).integers(1 << 62)


def test_text_is_a_normal_form(photo):
    line = "decode|resize( 64 ,'bicubic' )|center_crop(48)|  normalize(mean=half)"
    pipeline = Pipeline(line)
    assert pipeline.text == "decode | resize(64, bicubic) | center_crop(48) | normalize(mean=half)"
    np.testing.assert_array_equal(Pipeline(pipeline.text)(photo()), pipeline(photo()))
    assert pipeline.size() == (48, 48) and Pipeline("hflip").size() is None


@pytest.mark.parametrize(
    ("line", "geometry", "numbers"),
    [
        ("decode | resize(40) | center_crop(32) | normalize(half)", "decode | resize(40) | center_crop(32)",
         "decode | normalize(half)"),
        ("random_crop(32)|hflip | high_pass( 3 )", "decode | random_crop(32) | hflip", "decode | high_pass(3)"),
        ("resize(40) | center_crop(32)", "decode | resize(40) | center_crop(32)", "decode | to_float"),
        ("center_crop(32) | normalize([0.1, 0.2, 0.3], 0.5)", "decode | center_crop(32)",
         "decode | normalize((0.1, 0.2, 0.3), 0.5)"),
        ("to_float(-1, 1)", "decode", "decode | to_float(-1, 1)"),
        ("decode", "decode", "decode | to_float"),
        ("hflip | normalize(half) | random_erasing", "decode | hflip", "decode | normalize(half)"),
    ],
)  # fmt: skip
def test_a_pipeline_comes_apart_into_geometry_and_numbers(photo, line, geometry, numbers):
    pipeline = Pipeline(line)
    assert (pipeline.geometry.text, pipeline.numbers.text) == (geometry, numbers)
    image = images.applied(pipeline.geometry.steps, photo(), rng(1))
    assert isinstance(image, Image.Image)
    if "random_erasing" not in line:
        np.testing.assert_array_equal(pipeline.numbers(image), pipeline(photo(), rng(1)))


def test_parts_are_the_operations_as_written():
    pipeline = Pipeline("decode|resize( 64 ) | normalize([0.1, 0.2, 0.3], 0.5)")
    assert pipeline.parts == ["resize( 64 )", "normalize([0.1, 0.2, 0.3], 0.5)"]
    assert Pipeline("|".join(pipeline.parts)).text == pipeline.text


def test_the_longest_line_comes_apart_too():
    line = "|".join(["hflip"] * 666)
    assert len(line) > 3990 and len(Pipeline(line).geometry.steps) == 666


@pytest.mark.parametrize("name", [*images.STATISTICS, "(0.1, 0.2, 0.3), (0.9, 0.5, 0.01)"])
@pytest.mark.parametrize("white", [1, 255])
def test_affine_is_the_arithmetic_of_normalize(photo, name, white):
    pipeline = Pipeline(f"random_crop(32) | normalize({name}) | random_erasing")
    scale, offset = pipeline.affine(white)
    mean, std = images.STATISTICS.get(name, ((0.1, 0.2, 0.3), (0.9, 0.5, 0.01)))
    np.testing.assert_allclose(scale, 1 / np.array(std) / white, rtol=1e-6)
    np.testing.assert_allclose(offset, -np.array(mean) / std, rtol=1e-6)
    assert scale.dtype == offset.dtype == np.float64 and scale.shape == offset.shape == (3,)
    pixels = np.asarray(photo(), np.float64).transpose(2, 0, 1) * (white / 255)
    want = pixels * scale[:, None, None] + offset[:, None, None]
    np.testing.assert_allclose(pipeline.numbers(photo()), want, atol=2e-5)


@pytest.mark.parametrize(
    ("line", "scale", "offset"),
    [("hflip", 1, 0), ("to_float", 1, 0), ("to_float(-1, 1)", 2, -1), ("to_float(0, 255)", 255, 0)],
)
def test_affine_of_a_range(line, scale, offset):
    np.testing.assert_allclose(Pipeline(line).affine(), ([scale] * 3, [offset] * 3), rtol=1e-6)


@pytest.mark.parametrize("line", ["high_pass", "center_crop(32) | high_pass(0)", "to_float(0.5, 0.5)"])
def test_numbers_that_do_not_tell_the_pixel_have_no_affine(line):
    assert Pipeline(line).affine() is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("centre_crop(224)", "did you mean 'center_crop'"),
        ("resize(64, bicubik)", "did you mean 'bicubic'"),
        ("normalize(imagenett)", "did you mean 'imagenet'"),
        ("resize(0)", r"size \(=0\) must be"),
        ("jpeg((90, 60))", "ascending order"),
        ("hflip(1.5)", r"p \(=1.5\) must be between 0 and 1"),
        ("center_crop()", "it takes"),
        ("resize(64) | ", "cannot read ''"),
        ("__import__('os').system('true')", "cannot read"),
        ("normalize((124, 116, 104), (58, 57, 57))", "0-255 units"),
        ("", "is empty"),
    ],
)
def test_errors_name_the_value_and_the_remedy(line, message):
    with pytest.raises(UserError, match=message):
        Pipeline(line)


def test_every_operation_is_documented():
    assert all(factory.__doc__ for factory, _ in images.OPERATIONS.values())


def test_every_operation_opens_whatever_was_imported_before(run):
    """What training accepts in ``views`` goes into the sidecar; a process that only reads images must open it too."""
    needed = {"vip_cup", "albumentations", "auto_augment", "random_erasing"}
    assert needed <= set(OPERATIONS)
    names = [n for n in OPERATIONS if n != "albumentations" or importlib.util.find_spec("albumentations")]
    code = (
        "import json, sys\n"
        f"from {Pipeline.__module__} import Pipeline\n"
        "early = {'cv2', 'albumentations'} & set(sys.modules)\n"
        "assert not early, early\n"
        "for line in json.loads(sys.argv[1]):\n    Pipeline(line)\n"
    )
    done = run("-c", code, json.dumps([ARGUMENTS.get(n, n) for n in names]))
    assert done.returncode == 0, done.stderr
    for first in (augment.__name__, degrade.__name__):
        done = run("-c", f"import {first}\nfrom {Pipeline.__module__} import Pipeline\nPipeline('vip_cup | hflip')")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "line", ["to_float | normalize(half)", "normalize(half) | center_crop(8)", "high_pass | random_erasing | hflip"]
)
def test_no_operation_on_pictures_comes_after_the_numbers(line):
    with pytest.raises(UserError, match="takes a picture, .* before it gives numbers"):
        Pipeline(line)
