"""evaluate.py localize: numbers of pixels and of whole pictures, faults as rows, and the report."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score, jaccard_score, roc_auc_score

import evaluate
from aidet.datasets.map_names import MapNames
from aidet.datasets.truth import read_labels
from aidet.errors import UserError
from aidet.evaluation import included, localize_page, maps
from aidet.evaluation.localize import Localized, summary

SIZE = (64, 48)  # width, height
COLUMNS = ("path", "label", "generator", "split", "group", "mask", "area", "kind", "builder")


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def run(folder, *more):
    base = ["--maps", folder / "maps", "--labels", folder / "labels.csv", "--out", folder / "out", "--bootstrap", 40]
    return evaluate.main(["localize", *map(str, [*base, "--thumbnails", 2, *more])])


@pytest.fixture
def scene(tmp_path):
    """Twelve photographs, each with a partly generated version, and maps that are right more often than not."""
    rng = np.random.default_rng(0)
    rows, kept = [], []
    for i in range(12):
        for kind in "pr":
            name = f"pictures/{i}_{kind}.png"
            mask = np.zeros(SIZE[::-1], np.uint8)
            if kind == "p":
                mask[4 : 10 + 2 * i, 6 : 26 + 3 * i] = 255
                save(tmp_path / f"masks/{i}_p.png", mask)
            save(tmp_path / name, rng.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8))
            values = rng.normal(-2 + 2.5 * (mask > 0), 1.0)
            values = np.rint(65535 / (1 + np.exp(-values))).astype(np.uint16)
            save(tmp_path / f"maps/pictures/{i}_{kind}.png", values)
            kept.append((kind, mask > 0, values))
            about = (f"masks/{i}_p.png", (mask > 0).mean(), "rectangle", ("ae", "cv")[i % 2])
            about = about if kind == "p" else ("", 0, "none", "none")
            rows.append([name, int(kind == "p"), "x", "test" if i < 9 else "val", f"g{i}", *about])
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return tmp_path, kept


def read(folder):
    with open(folder / "out/localize.csv") as file:
        return json.loads((folder / "out/metrics.json").read_text()), list(csv.DictReader(file))


def test_numbers_are_scikit_learns(scene):
    folder, kept = scene
    assert run(folder) == 0
    result, rows = read(folder)
    masks = np.concatenate([m.ravel() for k, m, _ in kept if k == "p"])
    values = np.concatenate([v.ravel() for k, _, v in kept if k == "p"]) / 65535
    pixels = result["pixels"]
    assert pixels["n"] == 12 and abs(pixels["auc"] - roc_auc_score(masks, values)) < 1e-4
    assert pixels["f1"] == pytest.approx(f1_score(masks, values > 0.5))
    assert pixels["iou"] == pytest.approx(jaccard_score(masks, values > 0.5))
    best = max(f1_score(masks, values > t) for t in np.linspace(0.05, 0.95, 60))
    assert pixels["best_f1"] == pytest.approx(best, abs=0.003)
    assert pixels["best_f1"] == pytest.approx(f1_score(masks, values > pixels["best_threshold"]))
    single = [roc_auc_score(m.ravel(), v.ravel()) for k, m, v in kept if k == "p"]
    assert pixels["mean_auc"] == pytest.approx(np.mean(single), abs=1e-4)
    assert float(rows[0]["pixel_auc"]) == pytest.approx(single[0], abs=1e-4)
    share = np.array([(v > 0.5 * 65535).mean() for k, _, v in kept if k == "r"])
    alone = result["untouched"]
    assert alone["false_area"] == pytest.approx(share.mean()) and alone["alarms"] == pytest.approx(
        (share > 0.02).mean()
    )
    top = np.array([np.sort(v.ravel())[-round(0.01 * v.size) :].mean() for _, _, v in kept]) / 65535
    y = [int(k == "p") for k, _, _ in kept]
    image = result["images"]["map"]
    assert image["auc"] == pytest.approx(roc_auc_score(y, top))
    assert image["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, top > 0.5))
    for got, key in ((pixels, "auc"), (pixels, "f1"), (pixels, "iou"), (alone, "false_area"), (image, "auc")):
        low, high = got["ci"][key]
        assert low <= got[key] <= high and low < high
    assert len(rows) == 24 and {r["status"] for r in rows} == {"ok"}


def test_tables_by_area_kind_and_builder(scene):
    folder, kept = scene
    run(folder, "--by", "split", "--bootstrap", 0)
    by = read(folder)[0]["by"]
    areas = [m.mean() for k, m, _ in kept if k == "p"]
    wanted = {
        name: sum(low <= a < high for a in areas)
        for name, low, high in (
            ("2-5 %", 0.02, 0.05),
            ("5-10 %", 0.05, 0.1),
            ("10-30 %", 0.1, 0.3),
            ("30-60 %", 0.3, 0.6),
        )
    }
    assert {k: v["n"] for k, v in by["area"].items() if k in wanted} == {k: n for k, n in wanted.items() if n}
    assert by["area"]["10 % and more"]["n"] == sum(a >= 0.1 for a in areas)
    assert {k: v["n"] for k, v in by["builder"].items()} == {"ae": 6, "cv": 6}
    assert {k: v["n"] for k, v in by["split"].items()} == {"test": 9, "val": 3}
    assert by["kind"]["rectangle"]["image"]["n"] == 24  # with the untouched ones
    assert by["kind"]["rectangle"]["ci"] == {}


def test_faults_are_rows_with_their_reason(scene):
    folder, _ = scene
    there = folder / "maps/pictures"
    (there / "0_p.png").unlink()
    (there / "1_p.png").write_bytes((there / "1_p.png").read_bytes()[:90])
    save(there / "2_p.png", np.zeros((10, 10), np.uint8))
    save(there / "3_p.png", np.zeros((*SIZE[::-1], 3), np.uint8))
    (folder / "masks/4_p.png").unlink()
    save(folder / "masks/5_p.png", np.full(SIZE[::-1], 7, np.uint8))
    (folder / "pictures/6_p.png").write_bytes(b"no image")
    assert run(folder) == 3
    result, rows = read(folder)
    said = [row["status"] for row in rows if row["status"] != "ok"]
    wanted = (
        "no map",
        "map cannot be read",
        "map of 10x10 pixels",
        "mode RGB",
        "does not exist",
        "not binary",
        "picture",
    )
    assert len(rows) == 24 and len(said) == 7 == result["errors"]["n"]
    assert all(text in status for text, status in zip(wanted, said)), said
    assert result["pixels"]["n"] == 5 and result["untouched"]["n"] == 12
    assert "7 pictures could not be measured" in (folder / "out/report.html").read_text()


def test_maps_of_eight_bits_and_of_a_subfolder(scene):
    folder, _ = scene
    run(folder, "--bootstrap", 0)
    before = read(folder)[0]
    for path in (folder / "maps/pictures").iterdir():
        save(folder / "maps" / path.name, np.rint(np.asarray(Image.open(path)) / 257).astype(np.uint8))
        path.unlink()
    (folder / "maps/pictures").rmdir()
    assert run(folder, "--bootstrap", 0) == 0
    after = read(folder)[0]
    assert after["pixels"]["auc"] == pytest.approx(before["pixels"]["auc"], abs=0.002)
    assert after["untouched"]["false_area"] == pytest.approx(before["untouched"]["false_area"], abs=0.01)


def test_two_pictures_of_one_stem(tmp_path):
    ones = np.ones((8, 8), np.uint8)
    save(tmp_path / "maps/a.png", ones * 255)
    found = maps.Maps(tmp_path / "maps", ["a.jpg", "a.webp"])
    with pytest.raises(UserError, match="could be that of several pictures"):
        found.read("a.jpg", (8, 8))
    save(tmp_path / "maps/a.jpg.png", ones * 3)
    assert (maps.Maps(tmp_path / "maps", ["a.jpg", "a.webp"]).read("a.jpg", (8, 8)) == 771).all()


def test_maps_are_found_under_the_names_that_infer_gives_them(tmp_path):
    """Also those with a hash, cut or cleaned names, and if the labels hold a part of the pictures only."""
    paths = ["a.jpg", "a.png", "a.jpg.png", "b.png", "b.jpg", f"{'x' * 260}.jpg", "../c.jpg", "zip#d/e.png", "f\n.png"]
    names = MapNames(paths)
    for i, path in enumerate(paths):
        save(tmp_path / "maps" / names(path), np.full((8, 8), i, np.uint8))
    for some in (paths, paths[3:]):
        found = maps.Maps(tmp_path / "maps", some)
        assert [int(found.read(path, (8, 8))[0, 0]) // 257 for path in some] == [paths.index(path) for path in some]


def test_scores_of_whole_pictures(scene):
    folder, kept = scene
    rng = np.random.default_rng(1)
    y = np.array([int(k == "p") for k, _, _ in kept])
    local, plain = y * 1.5 - 0.75 + rng.normal(0, 1, 24), rng.normal(0, 1, 24)
    with open(folder / "labels.csv") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    with open(folder / "scores.csv", "w", newline="") as file:
        rows = [[p, s, "ok", v if i else ""] for i, (p, s, v) in enumerate(zip(paths, plain, local))]
        csv.writer(file).writerows([["path", "score", "status", "local_score"], *rows])
    # The scores are those of all rows, the labels those of a part.
    assert run(folder, "--scores", folder / "scores.csv", "--where", "split=test") == 0
    result, rows = read(folder)
    assert result["image_score"] == "local_score" and set(result["images"]) == {"local_score", "score", "map"}
    part = np.arange(24) < 18
    assert result["images"]["score"]["auc"] == pytest.approx(roc_auc_score(y[part], plain[part]))
    use = part & (np.arange(24) > 0)
    assert result["images"]["local_score"]["n"] == 17
    assert result["images"]["local_score"]["auc"] == pytest.approx(roc_auc_score(y[use], local[use]))
    assert rows[0]["image_local_score"] == "" and float(rows[1]["image_local_score"]) == pytest.approx(
        local[1], abs=1e-4
    )


def test_the_detectors_decisions_are_those_at_its_own_threshold(scene):
    """Of a detector whose line is a log-odds of 1 the pictures between 0 and 1 are called real."""
    folder, kept = scene
    y = np.array([int(k == "p") for k, _, _ in kept])
    score = np.where(y == 1, 2.0, np.where(np.arange(24) % 4 == 1, 0.5, -1.0))
    with open(folder / "labels.csv") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    for labelled in (True, False):
        with open(folder / "scores.csv", "w", newline="") as file:
            rows = [[p, s, int(s > 1) if labelled else ""] for p, s in zip(paths, score)]
            csv.writer(file).writerows([["path", "score", "label"], *rows])
        assert run(folder, "--scores", folder / "scores.csv") == 0
        found = read(folder)[0]["images"]["score"]
        right = 1.0 if labelled else (score[y == 0] < 0).mean()
        assert found["auc"] == 1 and found["generated_recall"] == 1 and found["real_recall"] == pytest.approx(right)


def test_the_report_shows_the_worst_and_can_be_included(scene, capsys):
    folder, _ = scene
    run(folder)
    page = (folder / "out/report.html").read_text()
    for text in (
        "Pixels and pictures",
        "By area of the region",
        "Regions found worst",
        "By what painted the region",
    ):
        assert text in page
    assert "pixels of 12 partly generated pictures: AUC 0." in capsys.readouterr().out
    made, warnings, _ = included.read([folder / "out"])
    assert made[0].title == "Localisation: Pixels and pictures" and not warnings


def test_nearly_all_is_not_called_all():
    pixels, image = {"n": 9, "auc": 0.9998}, {"auc": 0.9996}
    alone = {"n": 300, "false_area": 0.01, "alarms": 0.003, "limit": 0.02}
    told = localize_page._told({"pixels": pixels, "untouched": alone, "images": {"map": image}, "image_score": "map"})
    assert told[1].endswith("than an untouched one >99.9% of the time.") and told[2].endswith("in 0.3% of them.")
    assert told[3].endswith("rank above untouched ones >99.9% of the time.")


def test_wholly_generated_and_only_untouched_pictures(tmp_path):
    grey = np.full(SIZE[::-1], 90, np.uint8)
    for name in ("a.png", "b.png"):
        save(tmp_path / name, grey)
        save(tmp_path / "maps" / name, grey)
    (tmp_path / "labels.csv").write_text("path,label,mask,area\na.png,1,,1\nb.png,0,,0\n")
    assert run(tmp_path) == 0
    result = read(tmp_path)[0]
    assert result["pixels"]["auc"] is None and result["pixels"]["f1"] == 0 and result["images"]["map"]["auc"] == 0.5
    (tmp_path / "labels.csv").write_text("path,label,mask\nb.png,0,\na.png,0,\n")
    assert run(tmp_path) == 0
    assert read(tmp_path)[0]["pixels"]["n"] == 0 and read(tmp_path)[0]["untouched"]["false_area"] == 0


def test_wrong_arguments(scene):
    folder, _ = scene
    with pytest.raises(UserError, match="is not a folder"):
        run(folder, "--maps", folder / "none")
    (folder / "empty").mkdir()
    with pytest.raises(
        UserError, match="has no map of any picture of the labels; wanted such as empty/pictures/0_p.png"
    ):
        run(folder, "--maps", folder / "empty")
    (folder / "plain.csv").write_text("path,label\npictures/0_p.png,1\npictures/0_r.png,0\n")
    with pytest.raises(UserError, match="has no column mask"):
        run(folder, "--labels", folder / "plain.csv")
    with pytest.raises(UserError, match="unknown column"):
        run(folder, "--by", "camera")
    assert not (folder / "out").exists()


def test_histograms_equal_scikit_learn_and_the_bootstraps_formula():
    rng = np.random.default_rng(3)
    mask = rng.random((40, 50)) < 0.3
    values = np.clip(rng.normal(20000 + 9000 * mask, 12000), 0, 65535).astype(np.uint16)
    got = maps.compared("a", 1, mask.astype(np.uint8), values, 0.4)
    exact = roc_auc_score(mask.ravel(), values.ravel())
    assert maps.pixel_auc(got.histogram) == pytest.approx(exact, abs=2e-3)
    assert maps.aucs(got.histogram.astype(float)) == pytest.approx(maps.pixel_auc(got.histogram))
    assert sum(got.counts) == mask.size and got.histogram.sum() == mask.size
    assert np.isnan(maps.aucs(np.zeros((2, maps.BINS))))


def test_draws_are_by_source_image(scene):
    folder, _ = scene
    true = read_labels(folder / "labels.csv")
    rows = maps.measure(true, maps.Maps(folder / "maps", true.paths))
    first = summary(Localized(true, rows, {}, 0.5), (), 60, 1)
    true.columns["group"] = ["one"] * 24
    assert summary(Localized(true, rows, {}, 0.5), (), 60, 1)["pixels"]["ci"]["auc"] != first["pixels"]["ci"]["auc"]
