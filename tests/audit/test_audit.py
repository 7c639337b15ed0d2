"""The shortcut audit finds planted shortcuts and stays quiet on clean sets."""

import csv
import json
import os
from argparse import Namespace

import numpy as np
import pytest
from PIL import Image

from aidet import data, images
from aidet.audit import audit, shortcuts
from aidet.datasets import read_labels
from aidet.errors import UserError


@pytest.fixture
def plant(tmp_path, photo):
    """Write n images of each class; ``how(side, i, rng)`` gives size and the arguments of save()."""

    def make(how, n=60, per_group=3):
        rng = np.random.default_rng(0)
        rows = []
        for side in (0, 1):
            for i in range(n):
                size, suffix, arguments = how(side, i, rng)
                name = f"{'real' if side == 0 else 'fake'}/{i}{suffix}"
                (tmp_path / name).parent.mkdir(exist_ok=True)
                photo(1000 * side + i, size).save(tmp_path / name, **arguments)
                rows.append([name, side, f"{side}-{i // per_group}"])
        with open(tmp_path / "labels.csv", "w", newline="") as file:
            csv.writer(file).writerows([["path", "label", "group"], *rows])
        return tmp_path / "labels.csv"

    return make


def clean(side, i, rng):
    return (int(rng.integers(40, 90)), int(rng.integers(40, 90))), ".jpg", {"quality": int(rng.integers(70, 96))}


def size_512(side, i, rng):
    size, suffix, arguments = clean(side, i, rng)
    return ((64, size[1]) if side else size), suffix, arguments


def jpeg_tables(side, i, rng):
    size, suffix, _ = clean(side, i, rng)
    return size, suffix, {"quality": 90 if side else int(rng.choice([75, 80, 85, 95]))}


def png_fakes(side, i, rng):
    size, suffix, arguments = clean(side, i, rng)
    return (size, ".png", {}) if side else (size, suffix, arguments)


def camera_exif(side, i, rng):
    size, suffix, arguments = clean(side, i, rng)
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    return size, suffix, {**arguments, **({} if side else {"exif": exif})}


@pytest.fixture
def found(capsys):
    """Run the audit; returns the names of the shortcuts, metrics.json and the printed output."""

    def call(path, scores=None, code=0):
        options = Namespace(
            labels=path, where=None, out=path.parent / "out", scores=scores, warn=0.6, bootstrap=100, seed=42
        )
        assert audit.main(options) == code
        out = capsys.readouterr().out
        shortcuts = [line.split()[1] for line in out.splitlines() if line.startswith("shortcut: ")]
        return shortcuts, json.loads((path.parent / "out/metrics.json").read_text()), out

    return call


def test_a_clean_set_raises_no_alarm(found, plant):
    shortcuts, result, out = found(plant(clean))
    assert shortcuts == [] and "no shortcut: 14 other properties" in out
    assert result["aligned"]["n"] == result["aligned"]["of"] == 120
    assert result["features"]["exif"]["distinct"] == 1


@pytest.mark.parametrize(
    ("how", "name", "least"),
    [
        (size_512, "width", 0.9),
        (jpeg_tables, "jpeg_tables", 0.95),
        (png_fakes, "format", 0.99),
        (camera_exif, "exif", 0.99),
    ],
)
def test_a_planted_shortcut_is_found_and_named(found, plant, how, name, least):
    shortcuts, result, out = found(plant(how))
    assert name in shortcuts
    assert result["features"][name]["auc"] > least and f"shortcut: {name} AUC " in out
    assert result["auc"] > least  # all together see it, too
    page = (plant(how).parent / "out/report.html").read_text(encoding="utf-8")
    assert f"{name} tells the classes apart" in page and "SHORTCUT" in page


def test_alignment_removes_a_partial_shortcut_and_the_detectors_gain(found, plant, tmp_path):
    def half(side, i, rng):  # the fakes are PNG in four of five cases, the reals in one of five
        size, _, arguments = clean(side, i, rng)
        return (size, ".png", {}) if (i % 5 != 0) == bool(side) else (size, ".jpg", arguments)

    path = plant(half, n=150, per_group=1)
    rows = list(csv.DictReader(open(path)))
    with open(tmp_path / "scores.csv", "w", newline="") as file:  # a "detector" that knows the format and nothing else
        writer = csv.writer(file)
        writer.writerow(["path", "score"])
        writer.writerows([r["path"], 1 if r["path"].endswith(".png") else -1] for r in rows)
    shortcuts, result, _ = found(path, tmp_path / "scores.csv")
    assert "format" in shortcuts
    assert result["detector"]["raw"]["accuracy"] == pytest.approx(0.8)
    assert result["detector"]["aligned"]["accuracy"] == pytest.approx(0.5)
    assert result["aligned"]["features"]["format"]["auc"] < 0.6 and 40 <= result["aligned"]["n"] <= 120


def test_the_numbers_of_rows_in_parquet_are_no_property(plant, tmp_path):
    """Sorted by class, their order would be the label."""
    pytest.importorskip("pyarrow")
    labels = plant(clean)
    rows = sorted(csv.DictReader(open(labels)), key=lambda row: row["label"])
    with open(labels.parent / "sorted.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = []
    for form in ("parquet", "tar"):
        data.pack(data.opened(str(labels.parent / "sorted.csv")), tmp_path / form, form, 1 << 30)
        features, *_ = audit.read_features(read_labels(tmp_path / form).files())
        found.append({name: values for name, values in features.items() if name != "extension"})
        assert set(features["extension"]) == ({""} if form == "parquet" else {".jpg"})
    assert found[0] == found[1]


def test_groups_stay_together(plant):
    """A property that names the photograph predicts nothing about other photographs."""
    y = np.repeat(np.arange(20) % 2, 10)
    groups = np.repeat(np.arange(20), 10)
    features = {name: ["x"] * 200 for name in shortcuts.WORDS}
    features.update({name: np.ones(200) for name in shortcuts.NUMBERS})
    features["jpeg_tables"] = groups
    result, _ = shortcuts.audit(features, y, groups)
    assert not result["jpeg_tables"]["shortcut"]
    assert shortcuts.audit(features, y, None)[0]["jpeg_tables"]["auc"] > 0.99


def test_aligned_keeps_equal_numbers_in_every_cell():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 500)
    features = {"width": rng.integers(0, 400, 500) + 60 * y, "format": rng.choice(["JPEG", "PNG"], 500)}
    kept = shortcuts.aligned(features, y, ["width", "format"])
    assert len(kept) > 200 and len(set(kept)) == len(kept)
    assert (y[kept] == 0).sum() == (y[kept] == 1).sum()
    for kind in ("JPEG", "PNG"):
        own = kept[features["format"][kept] == kind]
        assert (y[own] == 0).sum() == (y[own] == 1).sum()
    assert (shortcuts.aligned(features, y, ["width"]) == shortcuts.aligned(features, y, ["width"])).all()
    assert len(shortcuts.aligned({"format": np.where(y, "PNG", "JPEG")}, y, ["format"])) == 0


@pytest.mark.parametrize("quality", [10, 35, 50, 75, 90, 95, 100])
def test_jpeg_quality_is_read_off_the_tables(tmp_path, photo, quality):
    photo().save(tmp_path / "a.jpg", quality=quality)
    assert shortcuts.file_features(tmp_path / "a.jpg")["jpeg_quality"] == quality


def test_an_image_over_the_limit_is_left_out_as_in_scoring(tmp_path, photo):
    for name, size in (("a.png", (20, 10)), ("b.png", (30, 10))):
        photo(size=size).save(tmp_path / name)
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "none.png"]
    columns, rows, lost = audit.read_features(paths, images.Reading(max_pixels=200))
    assert rows == [0] and columns["width"] == [20]
    (large, why), (missing, no_file) = lost
    assert (large, missing, no_file) == (1, 2, "no such file")
    assert why.startswith("30x10 pixels, more than the limit of 200; --max-pixels")
    assert audit.read_features(paths)[1] == [0, 1]


def test_features_of_a_file(tmp_path, photo):
    photo(size=(50, 40)).save(
        tmp_path / "a.JPG", "JPEG", quality=80, subsampling=0, progressive=True, icc_profile=b"icc"
    )
    got = shortcuts.file_features(tmp_path / "a.JPG")
    assert (got["width"], got["height"], got["aspect"], got["format"], got["extension"]) == (
        50,
        40,
        1.25,
        "JPEG",
        ".jpg",
    )
    assert (got["subsampling"], got["progressive"], got["icc"], got["exif"], got["mode"]) == (
        "4:4:4",
        "yes",
        "yes",
        "no",
        "RGB",
    )
    photo().convert("L").save(tmp_path / "b.png")
    got = shortcuts.file_features(tmp_path / "b.png")
    assert (got["jpeg_tables"], got["jpeg_quality"], got["mode"], got["subsampling"]) == ("none", -1, "L", "none")
    assert set(got) == set(shortcuts.FEATURES)


def test_unreadable_files_are_counted_by_the_command(run, plant):
    path = plant(clean, n=30)
    (path.parent / "real/3.jpg").write_bytes(b"no image")
    (path.parent / "fake/4.jpg").unlink()
    done = run("evaluate.py", "audit", "--labels", path, "--out", path.parent / "out")
    assert done.returncode == 3 and "not read: 2 files, first real/3.jpg" in done.stdout
    result = json.loads((path.parent / "out/metrics.json").read_text())
    assert result["n"] == 58 and result["errors"]["first"][1] == {"path": "fake/4.jpg", "status": "no such file"}


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="only 3 images of one class; at least 20"):
        shortcuts.Folds([0] * 50 + [1] * 3)
    with pytest.raises(UserError, match="at least two source images"):
        shortcuts.Folds([0] * 50 + [1] * 30, ["a"] * 50 + ["b"] * 30)


def test_images_without_a_group_are_each_their_own(plant):
    """Fakes have no source photograph: their empty cells do not form a group."""
    y = np.repeat([0, 1], 40)
    folds = shortcuts.Folds(y, [f"photo {i // 2}" for i in range(40)] + [""] * 40)
    assert len(folds.parts) == shortcuts.FOLDS
    assert all(set(y[test]) == {0, 1} for _, test in folds.parts)


def test_decisions_alone_have_an_accuracy_on_both_sets(found, plant, tmp_path):
    path = plant(png_fakes, n=30)
    rows = list(csv.DictReader(open(path)))
    with open(tmp_path / "decisions.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "answer"], *([r["path"], r["label"]] for r in rows)])
    _, result, out = found(path, tmp_path / "decisions.csv")
    assert result["detector"]["raw"]["accuracy"] == 1 and result["detector"]["raw"]["auc"] is None
    assert "detector, raw: balanced accuracy 1.0000, AUC –" in out


def test_file_names_need_not_be_unicode(run, plant):
    path = plant(clean, n=30)
    os.rename(path.parent / "real/3.jpg", os.fsencode(path.parent) + b"/real/odd\xff.jpg")
    path.unlink()
    with open(os.fsencode(path.parent) + b"/real/bad\xfe.jpg", "wb") as file:
        file.write(b"no image")
    done = run("evaluate.py", "audit", "--labels", path.parent, "--out", path.parent / "out")
    assert done.returncode == 3, done.stderr
    assert r"not read: 1 files, first real/bad\udcfe.jpg" in done.stdout
    result = json.loads((path.parent / "out/metrics.json").read_text())
    assert result["errors"]["first"][0]["path"] == "real/bad\udcfe.jpg"
