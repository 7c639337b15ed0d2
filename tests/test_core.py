"""Labels, records, files, images: the conventions that everything else relies on."""

import io
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aidet import files, images, labels, records
from aidet.errors import UserError, nearest
from aidet.images import extras
from aidet.inference import results
from aidet.records import Record

ROOT = Path(__file__).resolve().parents[1]


# --- labels ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("FAKE", 1), ("REAL", 0), ("0_real", 0), ("1_fake", 1), ("ai", 1), ("nature", 0), ("fake_images", 1),
        ("real_images", 0), ("AiArtData", 1), ("RealArt", 0), ("artificial", 1), ("human", 0), ("NonFake", 0),
        ("not_ai", 0), ("hum", 0), ("1", 1), ("0", 0), ("cat", None), ("real_vs_fake", None), ("paint", None),
    ],
)  # fmt: skip
def test_folder_and_class_names(name, want):
    assert labels.side(name) == want


def test_class_order_of_the_seeds_hub_models():
    # artfan123, umm-maybe and Organika all put the generated class first (measured on labelled contest images).
    assert labels.class_order(["AiArtData", "RealArt"]) == ["generated", "real"]
    assert labels.class_order(["artificial", "human"]) == ["generated", "real"]
    assert labels.class_order(["LABEL_0", "LABEL_1"], positive=0) == ["generated", "real"]
    assert labels.class_order(["x", "y"], positive="y") == ["real", "generated"]
    assert labels.class_order(["real", "fake", "fake gan"]) == ["real", "generated", "generated"]


@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1"], ["fake", "ai"], ["cat", "fake"]])
def test_class_order_asks_instead_of_guessing(names):
    with pytest.raises(UserError, match="--positive"):
        labels.class_order(names)
    with pytest.raises(UserError, match="'dog' is neither"):
        labels.class_order(names, positive="dog")


def test_scores_have_one_sign():
    logits = np.array([[3.0, 1.0], [0.0, 2.0]])
    np.testing.assert_allclose(labels.score_from_logits(logits, ["real", "generated"]), [-2, 2])
    np.testing.assert_allclose(labels.score_from_logits(logits, ["generated", "real"]), [2, -2])
    np.testing.assert_allclose(labels.score_from_logits([[1.5]], ["real"]), [-1.5])  # CIFAKE_CNN gives P(real)
    with pytest.raises(UserError, match="2 outputs"):
        labels.score_from_logits(logits, ["real"])


@given(st.lists(st.floats(-30, 30), min_size=3, max_size=6))
def test_multiclass_score_is_the_log_odds_of_not_real(values):
    z = np.array(values)
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    score = labels.score_from_logits(z, ["real"] + ["generated"] * (len(z) - 1))
    np.testing.assert_allclose(labels.sigmoid(score), 1 - p[0], rtol=1e-9, atol=1e-12)


@given(st.floats(-700, 700))
def test_sigmoid_is_finite_symmetric_and_inverted(x):
    p = labels.sigmoid(x)
    assert 0 <= p <= 1
    np.testing.assert_allclose(p + labels.sigmoid(-x), 1)
    if abs(x) < 20:
        np.testing.assert_allclose(labels.logit(p), x, atol=1e-6)


def test_a_tie_is_real_and_unsure_keeps_the_label():
    assert labels.decide(0.5) == (0, "real")
    assert labels.decide(0.51) == (1, "generated")
    assert labels.decide(0.6, unsure=(0.4, 0.6)) == (1, "unsure")
    assert labels.decide(0.3, threshold=0.2) == (1, "generated")


# --- records ---------------------------------------------------------------------------------------------------------
def test_scores_come_back_as_written(tmp_path):
    rows = [
        Record('a, "b"\nc.jpg', 1.25, 0.777299861, 1, "generated", "ok", {"m": 1.25}),
        Record("日本.png", None, None, None, "", "error: empty file"),
    ]
    path = tmp_path / "scores.csv"
    results.write_scores(path, lambda: iter(rows), ["m"])
    assert (
        path.read_bytes().startswith(b"path,score,prob,label,decision,status,score:m\n")
        and b"\r" not in path.read_bytes()
    )
    assert records.read_scores(path) == rows
    assert [r.ok for r in rows] == [True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,prob\na,1\n", "no column 'score'"),
        ("path,score\na,x\n", "line 2: score 'x' is not a number"),
        ("path,score\na,nan\n", "NaN"),
        ("path,score\na,1\na,2\n", "line 3: 'a' is already in line 2"),
        ("path,score\na,1,2\n", "3 fields, the header has 2"),
        ("path,score,label\na,1,2\n", "neither 0 nor 1"),
        ("path,path\n", "appears twice"),
    ],
)
def test_damaged_scores_are_refused_with_the_line(tmp_path, text, message):
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        records.read_scores(path)


@given(st.lists(st.text(st.sampled_from("ab_. 01290\x01é²"), max_size=8)))
def test_natural_order_is_that_of_the_key(names):
    assert records.natural_order(names) == sorted(names, key=records.natural_key)


def test_result_order_is_numeric_then_natural():
    paths = ["10.jpg", "2.png", "b/1.jpg", "0003.jpg"]
    assert [paths[i] for i in records.stem_order(paths)] == ["b/1.jpg", "2.png", "0003.jpg", "10.jpg"]
    paths = ["img10.jpg", "img2.jpg", "img1.jpg"]
    assert [paths[i] for i in records.stem_order(paths)] == ["img1.jpg", "img2.jpg", "img10.jpg"]


# --- files -----------------------------------------------------------------------------------------------------------
def test_atomic_from_many_threads_keeps_the_permissions(tmp_path, monkeypatch):
    """The umask is read by setting it, which threads must not do at once: one would restore the other's 0."""
    umask = os.umask
    before = umask(0o027)

    def slow(mask):
        old = umask(mask)
        time.sleep(0.001)
        return old

    monkeypatch.setattr(files.os, "umask", slow)
    try:

        def write(i):
            for k in range(5):
                with files.atomic(tmp_path / f"{i}-{k}"):
                    pass

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        assert umask(0o027) == 0o027
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
    finally:
        umask(before)


def test_atomic_leaves_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    with files.atomic(path) as file:
        file.write("old")
    with pytest.raises(RuntimeError), files.atomic(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(path.parent) == ["x.txt"]


def test_json_refuses_nan_and_names_broken_files(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(UserError, match="y.json"):
        files.read_json(tmp_path / "y.json")


def test_nearest_names_the_choice_or_lists_them():
    assert nearest("epoch_sze", ["epoch_size", "lr"], "key") == "unknown key 'epoch_sze'; did you mean 'epoch_size'?"
    assert nearest("qqq", ["a", "b"]) == "unknown name 'qqq'; choose from: a, b"


# --- images ----------------------------------------------------------------------------------------------------------
def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000"])
def test_lossless_formats_give_the_same_pixels(photo, kind):
    image = photo()
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(kind, {})
    np.testing.assert_array_equal(np.asarray(images.decode(encoded(image, kind, **options))), np.asarray(image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(photo, mode):
    image = photo()
    source = image.convert("L").convert(mode) if mode in ("I", "F", "I;16", "1") else image.convert(mode)
    got = images.decode(source)
    assert got.mode == "RGB" and got.size == image.size
    if mode in ("I", "F", "I;16"):
        np.testing.assert_array_equal(np.asarray(got)[..., 0], np.asarray(image.convert("L")))


@pytest.mark.parametrize("brand", ["heic", "mif1"])
def test_telephone_photographs_are_refused_with_the_remedy(tmp_path, brand, monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda key: False)
    head = b"\0\0\0\x1cftyp" + brand.encode() + b"\0\0\0\0mif1heicmiaf" + bytes(64)
    (tmp_path / "a.jpg").write_bytes(head)
    for source in (tmp_path / "a.jpg", io.BytesIO(head)):
        with pytest.raises(images.ImageError, match="HEIC, which Pillow .*; pip install .* or save it as PNG"):
            images.decode(source)


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    got = np.asarray(images.decode(encoded(Image.fromarray(ramp), "PNG")))[..., 0]
    np.testing.assert_array_equal(got, np.arange(256).reshape(16, 16))


def test_transparency_lies_over_white():
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert images.decode(encoded(image, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied(photo):
    image = photo(size=(32, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    got = images.decode(encoded(image, "JPEG", exif=exif, quality=95))
    assert got.size == (20, 32)


def test_arrays_and_their_errors(photo):
    array = np.asarray(photo())
    np.testing.assert_array_equal(np.asarray(images.decode(array)), array)
    assert images.decode(array[..., 0]).mode == "RGB"
    for wrong in (array.astype(np.float32), np.zeros((2, 2, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(images.ImageError):
            images.decode(wrong)


def test_unusable_files_are_reasons(tmp_path, photo):
    whole = encoded(photo(), "JPEG").getvalue()
    for name, content, reason in (
        ("empty.jpg", b"", "empty file"),
        ("text.jpg", b"not an image at all", "not an image"),
        ("cut.jpg", whole[: len(whole) // 2], "truncated"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(images.ImageError, match=reason):
            images.decode(tmp_path / name)
    with pytest.raises(images.ImageError, match="no such file"):
        images.decode(tmp_path / "absent.jpg")
    with pytest.raises(images.ImageError, match="is a folder"):
        images.decode(tmp_path)
    with pytest.raises(images.ImageError, match="96x80 pixels, more than the limit of 100"):
        images.decode(encoded(photo(), "PNG"), max_pixels=100)


def test_walk_is_natural_nested_and_ends_on_loops(tmp_path, photo):
    for name in ("10.png", "2.png", "a b/1.PNG", "日本/ü.png", ".hidden/x.png", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo(size=(4, 4)).save(tmp_path / name, "PNG") if name.lower().endswith("png") else (
            tmp_path / name
        ).write_text("x")
    (tmp_path / "a b" / "loop").symlink_to(tmp_path)
    assert list(images.walk(tmp_path)) == ["2.png", "10.png", "a b/1.PNG", "日本/ü.png"]


def test_sidecars_are_plain_json(tmp_path):
    files.write_json(tmp_path / "x.json", {"name": "日本", "list": [1, 2]})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"name": "日本", "list": [1, 2]}


# --- scripts ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("line", ["train.py", "infer.py x.png", "evaluate.py audit --labels x --out y", "app.py"])
def test_a_python_without_the_packages_is_told_what_to_run(tmp_path, line):
    """``-S`` leaves out installed packages, as the system's Python would."""
    script, *rest = line.split()
    done = subprocess.run([sys.executable, "-S", ROOT / script, *rest], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "is not installed in this Python" in done.stderr and "run `make setup`" in done.stderr
