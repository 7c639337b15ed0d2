"""Leaks between splits: each planted kind is found at its level, a clean set is quiet."""

import csv
import json
import os

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from aidet.audit import crops, fingerprints
from aidet.errors import UserError


def prints_of(root):
    paths = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    return fingerprints.collect(paths, [root / p for p in paths], [fingerprints.fingerprint(root / p) for p in paths])


@pytest.fixture
def splits(tmp_path, photo):
    for s, split in enumerate(("train", "valid", "test")):
        (tmp_path / split).mkdir()
        for i in range(40):
            photo(1000 * s + i, (96, 80)).save(tmp_path / split / f"{i}.jpg", quality=90)
    return tmp_path


def test_clean_splits_are_quiet(run, splits):
    done = run("evaluate.py", "leaks", "--train", splits / "train", "--valid", splits / "valid",
               "--test", splits / "test", "--out", splits / "out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no leak:") == 3 and "\nleak:" not in done.stdout
    assert (splits / "out/leaks.csv").read_text() == "level,split,path,also_in,also_path,bits\n"


def test_each_kind_of_leak_is_found_at_its_level(run, splits):
    source = splits / "train" / "7.jpg"
    (splits / "test" / "bytes.jpg").write_bytes(source.read_bytes())
    Image.open(splits / "train" / "8.jpg").save(splits / "test" / "pixels.png")
    saved = Image.open(splits / "train" / "9.jpg")
    saved.save(splits / "test" / "again.jpg", quality=40)
    saved.resize((48, 40), Image.Resampling.BICUBIC).save(splits / "test" / "small.jpg")
    ImageEnhance.Brightness(saved).enhance(1.15).save(splits / "test" / "bright.jpg")
    (splits / "test" / "link.jpg").symlink_to(splits / "train" / "10.jpg")
    done = run("evaluate.py", "leaks", "--train", splits / "train", "--test", splits / "test", "--out", splits / "out")
    assert done.returncode == 0, done.stderr
    assert (
        "leak: 6 of 46 images of test are in train (1 by path, 1 by bytes, 1 by pixels, 3 by near, 0 by turned)"
        in done.stdout
    )
    rows = {r["path"]: (r["level"], r["also_path"]) for r in csv.DictReader(open(splits / "out/leaks.csv"))}
    assert rows == {
        "link.jpg": ("path", "10.jpg"), "bytes.jpg": ("bytes", "7.jpg"), "pixels.png": ("pixels", "8.jpg"),
        "again.jpg": ("near", "9.jpg"), "small.jpg": ("near", "9.jpg"), "bright.jpg": ("near", "9.jpg"),
    }  # fmt: skip
    found = json.loads((splits / "out/metrics.json").read_text())
    assert found["leaks"][0]["leaked"] == 6 and found["splits"]["train"]["doubles_by_bytes"] == 0


POSITIONS = ["FLIP_LEFT_RIGHT", "FLIP_TOP_BOTTOM", "ROTATE_90", "ROTATE_180", "ROTATE_270", "TRANSPOSE", "TRANSVERSE"]


@pytest.mark.parametrize("position", POSITIONS)
def test_mirrored_and_turned_copies_are_found(splits, position):
    image = Image.open(splits / "train" / "7.jpg").transpose(Image.Transpose[position])
    image.save(splits / "test" / "copy.jpg", quality=80)
    found = fingerprints.compare(prints_of(splits / "train"), prints_of(splits / "test"))
    other, known = (sorted(p.name for p in (splits / s).iterdir()) for s in ("test", "train"))
    assert [(level, other[j], known[i]) for level, j, i, _ in found] == [("turned", "copy.jpg", "7.jpg")]


def test_hashes_of_all_positions_follow_from_one_transform(tmp_path, photo):
    photo(3, (160, 120)).save(tmp_path / "a.png")
    prints, image = prints_of(tmp_path), Image.open(tmp_path / "a.png").convert("L")
    own = [prints.look, *(view.look for view in fingerprints.turned(prints))]
    want = [imagehash.phash(i) for i in [image, *(image.transpose(Image.Transpose[p]) for p in POSITIONS)]]
    want = {int(str(h), 16) for h in want}
    assert len(want) == 8 and {int(look[0]) for look in own} == want


# --- crops -----------------------------------------------------------------------------------------------------------
def drawing(seed, size=(320, 240)):
    """A picture with many corners, different for every seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(c) for c in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y = int(rng.integers(0, size[0])), int(rng.integers(0, size[1]))
        w, h = (int(v) for v in rng.integers(8, 60, 2))
        kind = (draw.rectangle, draw.ellipse)[int(rng.integers(2))]
        kind((x, y, x + w, y + h), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return image


def test_crops_are_found_on_request(run, tmp_path):
    for s, split in enumerate(("train", "test")):
        (tmp_path / split).mkdir()
        for i in range(12):
            drawing(100 * s + i).save(tmp_path / split / f"{i}.jpg", quality=90)
    drawing(3).crop((60, 40, 260, 200)).save(tmp_path / "test" / "part.jpg", quality=70)
    drawing(4).crop((0, 0, 200, 240)).resize((150, 180)).save(tmp_path / "test" / "small.jpg", quality=80)
    large = Image.new("RGB", (600, 500), (9, 9, 9))
    large.paste(drawing(5), (200, 150))
    large.save(tmp_path / "test" / "around.jpg")  # the known image is the part
    Image.new("RGB", (200, 200)).save(tmp_path / "test" / "flat.png")
    given = (
        "evaluate.py",
        "leaks",
        "--train",
        tmp_path / "train",
        "--test",
        tmp_path / "test",
        "--out",
        tmp_path / "o",
    )
    done = run(*given)
    assert done.returncode == 0 and "no leak: test (16 images)" in done.stdout, done.stderr + done.stdout
    done = run(*given, "--crops")
    assert "leak: 3 of 16 images of test are in train" in done.stdout and "3 by crop)" in done.stdout, done.stdout
    rows = {r["path"]: (r["level"], r["also_path"]) for r in csv.DictReader(open(tmp_path / "o/leaks.csv"))}
    assert rows == {"part.jpg": ("crop", "3.jpg"), "small.jpg": ("crop", "4.jpg"), "around.jpg": ("crop", "5.jpg")}


def test_matching_corners_without_matching_pixels_are_no_crop(tmp_path):
    """The same frame around other pictures: its corners match, the pictures do not."""
    for i in (1, 2):
        image = drawing(0)
        image.paste(drawing(i).resize((190, 140)), (65, 50))
        image.save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / "1.png")], [str(tmp_path / "2.png")]
    one, two = (crops.collect([crops.corners(p[0])]) for p in paths)
    assert crops.candidates(one, two), "the frame's corners should match"
    assert crops.compare(one, two, *paths) == []


def test_flat_images_are_no_near_duplicates_of_each_other(tmp_path):
    for split, grey in (("train", 100), ("test", 180)):
        (tmp_path / split).mkdir()
        Image.new("RGB", (64, 64), (grey, grey, grey)).save(tmp_path / split / "a.png")
    assert fingerprints.compare(prints_of(tmp_path / "train"), prints_of(tmp_path / "test")) == []


def test_band_search_equals_comparing_all_pairs():
    rng = np.random.default_rng(0)

    def some(n, base):
        look = rng.choice(base, n)
        for _ in range(5):
            look = look ^ (np.uint64(1) << rng.integers(0, 64, n).astype(np.uint64))
        thumbs = np.tile(rng.integers(-100, 100, 256).astype(np.int8), (n, 1))
        empty = np.array([bytes(16)] * n, "V16")
        return fingerprints.Prints([str(i) for i in range(n)], [""] * n, empty, empty, look, thumbs, [])

    base = rng.integers(0, 2**63, 20).astype(np.uint64)
    known, other = some(300, base), some(200, base)
    other.thumbs = known.thumbs[:200]
    for distance in (0, 3, 6, 12):
        bits = np.array([[bin(int(a ^ b)).count("1") for a in known.look] for b in other.look])
        want = [(j, int(bits[j].argmin()), int(bits[j].min())) for j in range(200) if bits[j].min() <= distance]
        assert fingerprints.near(known, other, distance) == want
    assert len(want) > 100


@pytest.mark.parametrize("distance", range(1, 13))
def test_no_pair_escapes_by_how_its_bits_lie(distance):
    """Differing bits as far apart as they can be, and in every position of such a comb."""
    rng = np.random.default_rng(0)
    thumb = rng.integers(-90, 90, (1, 256)).astype(np.int8)

    def prints(look):
        mark = np.zeros(len(look), "V16")
        names = [str(i) for i in range(len(look))]
        return fingerprints.Prints(names, names, mark, mark, look, np.repeat(thumb, len(look), axis=0), [])

    looks = []
    for step in {64 // distance, -(-64 // distance)}:
        looks += [sum(1 << p for p in {(k * step + shift) % 64 for k in range(distance)}) for shift in range(64)]
    bits = fingerprints.popcount(np.array(looks, np.uint64))
    found = fingerprints.near(prints(np.zeros(1, np.uint64)), prints(np.array(looks, np.uint64)), distance)
    assert [row for row, _, _ in found] == np.flatnonzero(bits <= distance).tolist() == list(range(len(looks)))


def test_large_sets_do_not_need_all_pairs():
    """100,000 against 20,000 hashes: a test of all two billion pairs would take too long."""
    rng = np.random.default_rng(1)
    look = rng.integers(0, 2**63, 120000).astype(np.uint64)
    look[100000:100378] = look[:378]
    thumbs = np.tile(rng.integers(-100, 100, 256).astype(np.int8), (120000, 1))
    digest = np.zeros(120000, "V16")

    def part(rows):
        return fingerprints.Prints(
            [""] * len(look[rows]), [""] * len(look[rows]), digest[rows], digest[rows], look[rows], thumbs[rows], []
        )

    found = fingerprints.near(part(slice(100000)), part(slice(100000, None)), 4)
    assert [(j, i) for j, i, _ in found][:378] == [(k, k) for k in range(378)] and len(found) < 400


def test_cifakes_leaks_on_a_small_copy(run, tmp_path, photo):
    """As in CIFAKE: 32-pixel JPEGs, names used anew in both splits, some generated files the same in train and test."""
    for s, split in enumerate(("train", "test")):
        for c, side in enumerate(("REAL", "FAKE")):
            (tmp_path / split / side).mkdir(parents=True)
            for i in range(30):
                photo(10000 * s + 100 * c + i, (32, 32)).save(tmp_path / split / side / f"{i}.jpg", quality=75)
    planted = {f"FAKE/{i} (3).jpg": f"FAKE/{i + 7}.jpg" for i in range(5)}
    for copy, source in planted.items():
        (tmp_path / "test" / copy).write_bytes((tmp_path / "train" / source).read_bytes())
    (tmp_path / "train/FAKE/again.jpg").write_bytes((tmp_path / "train/FAKE/20.jpg").read_bytes())
    done = run("evaluate.py", "leaks", "--train", tmp_path / "train", "--test", tmp_path / "test", "--out", tmp_path)
    assert "leak: 5 of 65 images of test are in train (0 by path, 5 by bytes," in done.stdout, done.stdout
    assert "duplicates: 1 files of train are byte-identical to another of train" in done.stdout
    rows = {r["path"]: (r["level"], r["also_path"]) for r in csv.DictReader(open(tmp_path / "leaks.csv"))}
    assert rows == {copy: ("bytes", source) for copy, source in planted.items()}


def test_unreadable_files_are_named(run, splits):
    (splits / "test" / "x.jpg").write_bytes(b"nothing")
    done = run("evaluate.py", "leaks", "--train", splits / "train", "--test", splits / "test", "--out", splits / "out")
    assert done.returncode == 3 and "not read: 1 files of test, first x.jpg" in done.stdout


def test_a_split_column_chooses_the_rows(run, splits):
    with open(splits / "all.csv", "w") as file:
        file.write("path,split\n" + "".join(f"{s}/{i}.jpg,{s}\n" for s in ("train", "test") for i in range(40)))
    (splits / "test" / "3.jpg").write_bytes((splits / "train" / "4.jpg").read_bytes())
    done = run("evaluate.py", "leaks", "--train", f"{splits}/all.csv@split=train",
               "--test", f"{splits}/all.csv@split=test", "--out", splits / "out")  # fmt: skip
    assert (
        "leak: 1 of 40 images of test are in train" in done.stdout and "bytes: test/3.jpg = train/4.jpg" in done.stdout
    )


def test_file_names_need_not_be_unicode(run, splits):
    odd = os.fsencode(splits) + b"/test/odd\xff.jpg"
    with open(odd, "wb") as file:
        file.write((splits / "train" / "4.jpg").read_bytes())
    done = run("evaluate.py", "leaks", "--train", splits / "train", "--test", splits / "test", "--out", splits / "out")
    assert done.returncode == 0, done.stderr
    assert r"bytes: odd\udcff.jpg = 4.jpg" in done.stdout
    assert r"bytes,test,odd\udcff.jpg,train,4.jpg,0" in (splits / "out/leaks.csv").read_text()


@pytest.mark.parametrize(
    ("more", "text"),
    [(("--train", "{0}/train"), "at least two"), (("--train", "{0}/train", "--test", "{0}/none"), "does not exist"),
     (("--train", "{0}/train", "--test", "{0}/test", "--distance", "20"), "between 0 and 12"),
     (("--train", "{0}/train", "--test", "{0}/test", "--workers", "0"), "--workers (=0) must be >= 1")],
)  # fmt: skip
def test_wrong_arguments(run, splits, more, text):
    done = run("evaluate.py", "leaks", *(m.format(splits) for m in more), "--out", splits / "out")
    assert done.returncode == 2 and text in done.stderr and not (splits / "out").exists()


def test_distance_is_checked():
    empty = fingerprints.collect([], [], [])
    with pytest.raises(UserError, match=r"distance \(=13\)"):
        fingerprints.compare(empty, empty, 13)
