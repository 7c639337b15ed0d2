"""Partly generated pictures: exact masks, a twin that differs in nothing else, draws that can be repeated."""

import builtins
import csv
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from aidet import align, config, images, labels
from aidet.align import command, partial, regions
from aidet.datasets.masks import read_mask
from aidet.datasets.samples import open_data
from aidet.datasets.truth import read_labels
from aidet.errors import UserError


def dull(pixels):
    """Stands in for an autoencoder: drops the last three bits."""
    return (pixels & 0xF8).astype(np.uint8)


ROOT = Path(__file__).resolve().parents[1]
OWN = ROOT / "ckpt" / "aidet_tae.ckpt"
AE = partial.autoencoder(dull, "dull")
PNG = partial.Settings(seed=1, formats=("png",))


@pytest.fixture
def photos(tmp_path, photo):
    for i in range(10):
        place = tmp_path / "photos" / ("sub" if i % 2 else "")
        place.mkdir(parents=True, exist_ok=True)
        photo(i, (120, 96) if i % 3 else (64, 128)).save(place / f"{i}.jpg", quality=90)
    return tmp_path / "photos"


def rows_of(folder):
    with open(folder / "labels.csv", newline="") as file:
        return list(csv.DictReader(file))


# --- regions ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", list(regions.KINDS))
@pytest.mark.parametrize("area", [0.03, 0.2, 0.55])
def test_regions_have_the_area_that_was_asked_for(photo, kind, area):
    pixels = np.asarray(photo(4, (128, 96)))
    for seed in range(4):
        region = regions.KINDS[kind](pixels, area, np.random.default_rng(seed))
        assert region.shape == (96, 128) and region.dtype == bool
        if kind == "segment":  # whole segments, so at most that
            assert 0 < region.mean() <= area * 1.1
        else:
            assert region.mean() == pytest.approx(area, rel=0.15)


def test_a_segment_follows_the_picture():
    pixels = np.full((96, 96, 3), 40, np.uint8)
    pixels[20:60, 30:80] = (200, 60, 60)
    found = [regions.segment(pixels, 0.3, np.random.default_rng(seed)) for seed in range(5)]
    truth = np.zeros((96, 96), bool)
    truth[20:60, 30:80] = True
    # A soft edge is a segment of its own, so the region may go a few pixels beyond the patch.
    assert all(region[truth].all() and (region == truth).mean() > 0.94 for region in found)
    assert regions.segment(np.full((64, 64, 3), 9, np.uint8), 0.3, np.random.default_rng(0)) is None


def test_without_scikit_image_the_remedy_is_named(monkeypatch, photo):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] in ("skimage", "cv2"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match="leave segment out of --kinds"):
        regions.segment(np.asarray(photo()), 0.2, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"aidet\[partial\]"):
        partial.inpainting("telea")


# --- one picture ------------------------------------------------------------------------------------------------------
def test_outside_its_soft_edge_nothing_changes(photo):
    pixels = np.asarray(photo(2, (128, 100)))
    for i in range(12):
        made = partial.draw(pixels, f"{i}.jpg", [AE], PNG)
        out = partial.repainted(pixels, made)
        assert (out[made.alpha == 0] == pixels[made.alpha == 0]).all()
        assert (out[made.alpha == 255] == dull(pixels)[made.alpha == 255]).all()
        assert set(np.unique(made.mask)) == {0, 255} and ((made.mask > 0) == (made.alpha > 127)).all()
        assert 0.02 <= (made.mask > 0).mean() <= 0.6
        # The edge is a few pixels wide.
        assert 0 < ((made.alpha > 0) & (made.alpha < 255)).mean() < 0.5


def test_only_the_neighbourhood_is_repainted(photo):
    seen = []

    def watch(pixels):
        seen.append(pixels.shape)
        return pixels

    pixels = np.asarray(photo(3, (640, 480)))
    settings = partial.Settings(seed=3, kinds=("rectangle",), area=(0.02, 0.03))
    partial.repainted(pixels, partial.draw(pixels, "a", [partial.autoencoder(watch, "w")], settings))
    (height, width, _) = seen[0]
    assert height * width < 0.2 * 640 * 480 and not height % partial.STEP and not width % partial.STEP


def test_grey_stays_grey(photo):
    pixels = np.asarray(photo(1, (96, 96)).convert("L").convert("RGB"))
    tint = partial.autoencoder(lambda p: np.clip(p.astype(int) + [20, 0, 0], 0, 255).astype(np.uint8), "tint")
    out = partial.repainted(pixels, partial.draw(pixels, "a", [tint], PNG))
    assert (out == out[..., :1]).all() and (out != pixels).any()


@pytest.mark.parametrize("method", partial.METHODS)
def test_opencv_fills_small_regions_from_their_rim(method):
    pixels = np.full((96, 96, 3), 120, np.uint8)
    pixels[40:56, 40:56] = 255
    builder = partial.inpainting(method)
    region = np.zeros((96, 96), bool)
    region[36:60, 36:60] = True
    assert np.abs(builder.repaint(pixels, region).astype(int) - 120).max() <= 5  # the patch differs by 135
    assert builder.name == f"opencv-{method}" and builder.most == partial.MOST_INPAINTED


def test_a_small_picture_and_one_without_room_are_refused(photo):
    with pytest.raises(images.ImageError, match="63x80 pixels"):
        partial.draw(np.asarray(photo(0, (63, 80))), "a", [AE], PNG)
    flat = np.full((80, 80, 3), 5, np.uint8)
    made = partial.draw(flat, "a", [AE], partial.Settings(kinds=("segment",)))
    assert made.kind == "ellipse"  # a picture of one colour has no segments


# --- a set ------------------------------------------------------------------------------------------------------------
def test_a_set(photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"no image")
    settings = partial.Settings(seed=5, formats=("jpeg", "png", "webp"))
    rows, lost = partial.build(photos, tmp_path / "out", [AE, partial.inpainting("telea")], settings)
    assert [name for name, _ in lost] == ["broken.jpg"] and len(rows) == 20
    for new, old in zip(rows[::2], rows[1::2]):
        assert new["path"].replace("_p.", "_r.") == old["path"] and (new["label"], old["label"]) == (1, 0)
        assert (new["group"], new["split"]) == (old["group"], old["split"])
        a, b = (Image.open(tmp_path / "out" / row["path"]) for row in (new, old))
        assert (a.format, a.size, a.mode) == (b.format, b.size, b.mode)
        if a.format == "JPEG":
            assert a.quantization == b.quantization
            assert JpegImagePlugin.get_sampling(a) == JpegImagePlugin.get_sampling(b)
        mask = read_mask(tmp_path / "out" / new["mask"], a.size)
        assert mask.mean() == pytest.approx(float(new["area"]), abs=1e-6)
        apart = np.abs(np.asarray(a.convert("RGB"), int) - np.asarray(b.convert("RGB"))).mean(2)
        assert apart[mask > 0].mean() > 4 * apart[mask == 0].mean()
        assert (old["mask"], old["area"], old["kind"], old["builder"]) == ("", "0", "none", "none")
    assert len({row["kind"] for row in rows}) > 2 and len({row["builder"] for row in rows}) == 3
    assert len({row["path"].rpartition(".")[2] for row in rows}) == 3


def test_the_same_seed_and_name_give_the_same_files(photos, tmp_path):
    def make(out, seed=9, keep=None):
        rows, _ = partial.build(keep or photos, tmp_path / out, [AE], partial.Settings(seed=seed))
        return {row["path"]: (tmp_path / out / row["path"]).read_bytes() for row in rows}

    first = make("a")
    assert make("b") == first and make("c", seed=10) != first
    for path in sorted(photos.rglob("*.jpg"))[::2]:
        path.unlink()
    fewer = make("d")
    assert fewer and all(first[name] == data for name, data in fewer.items())


def test_groups_and_splits_come_from_the_source(photos, tmp_path, photo):
    table = photos / "labels.csv"
    lines = [
        f"{'sub/' if i % 2 else ''}{i}.jpg,{'1' if i == 9 else '0'},cam,{('train', 'test', '')[i % 3]},g{i // 2}"
        for i in range(10)
    ]
    table.write_text("path,label,generator,split,group\n" + "\n".join(lines) + "\n")
    rows, _ = partial.build(table, tmp_path / "a", [AE], PNG)
    assert len(rows) == 18 and {row["generator"] for row in rows} == {"cam", "partial"}
    assert [row["split"] for row in rows[::2][:2]] == ["train", "test"] and rows[0]["group"] == "g0"
    part, _ = partial.build(f"{table}@split=test", tmp_path / "b", [AE], PNG)
    assert len(part) == 6 and {row["split"] for row in part} == {"test"}
    # Without splits, a source image decides, and all are used.
    for i in range(60):
        photo(0, (64, 64)).save(photos / f"more{i}.png")
    table.write_text("path,label,group\n" + "".join(f"more{i}.png,0,g{i // 2}\n" for i in range(60)))
    rows, _ = partial.build(table, tmp_path / "c", [AE], PNG)
    splits = {}
    for row in rows:
        splits.setdefault(row["group"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert Counter(row["split"] for row in rows)["train"] > 60 and len({row["split"] for row in rows}) == 3


def test_names_that_would_meet(tmp_path, photo):
    (tmp_path / "p").mkdir()
    for name in ("a.jpg", "a.png", "b.png"):
        photo(0, (64, 64)).save(tmp_path / "p" / name)
    rows, _ = partial.build(tmp_path / "p", tmp_path / "o", [AE], PNG)
    assert [row["path"] for row in rows[::2]] == ["pictures/a-jpg_p.png", "pictures/a-png_p.png", "pictures/b_p.png"]


def test_an_area_that_a_builder_cannot_paint(photos, tmp_path):
    with pytest.raises(UserError, match="opencv-ns paints at most 0.2"):
        partial.build(photos, tmp_path / "o", [partial.inpainting("ns")], partial.Settings(area=(0.3, 0.6)))
    with pytest.raises(UserError, match="opencv-ns paints at most 0.2"):
        command.main(
            [
                "--partial",
                "--images",
                str(photos),
                "--inpaint",
                "ns",
                "--area",
                "0.3",
                "0.6",
                "--out",
                str(tmp_path / "o"),
            ]
        )
    assert not (tmp_path / "o").exists()


# --- the command ------------------------------------------------------------------------------------------------------
def test_command(photos, tmp_path, capsys):
    arguments = [
        "--partial",
        "--images",
        photos,
        "--inpaint",
        "telea",
        "ns",
        "--out",
        tmp_path / "o",
        "--area",
        0.02,
        0.1,
    ]
    arguments = [str(a) for a in arguments]
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    assert "10 partly generated pictures and as many untouched ones" in out and "opencv-ns" in out
    rows = rows_of(tmp_path / "o")
    assert len(rows) == 20 and tuple(rows[0]) == partial.COLUMNS
    assert read_labels(tmp_path / "o/labels.csv").labels.tolist() == [1, 0] * 10
    facts = json.loads((tmp_path / "o/align.json").read_text())
    assert (
        facts["pairs"] == 10 and facts["partial"]["area"] == [0.02, 0.1] and sum(facts["counts"]["kind"].values()) == 10
    )
    with pytest.raises(UserError, match="is not empty; name a new folder, or add --resume"):
        command.main(arguments)
    first, gone = (tmp_path / "o" / row["path"] for row in rows[:3:2])
    before, data = first.stat().st_mtime_ns, gone.read_bytes()
    gone.unlink()
    (tmp_path / "o/labels.csv").unlink()
    assert command.main([*arguments, "--resume"]) == 0
    assert first.stat().st_mtime_ns == before and gone.read_bytes() == data and rows_of(tmp_path / "o") == rows
    with pytest.raises(UserError, match="was begun with seed 42, now it is 7; name a new folder"):
        command.main([*arguments, "--resume", "--seed", "7"])


@pytest.mark.skipif(not OWN.exists(), reason="the project's own autoencoder is not in ckpt/")
def test_command_with_an_autoencoder(photos, tmp_path, capsys):
    for path in sorted(photos.rglob("*.jpg"))[2:]:
        path.unlink()
    (photos / "broken.png").write_bytes(b"no image")
    arguments = [
        "--partial",
        "--images",
        str(photos),
        "--ckpt",
        str(OWN),
        "--out",
        str(tmp_path / "o"),
        "--format",
        "png",
    ]
    assert command.main(arguments) == 3
    assert "left out broken.png: not an image" in capsys.readouterr().err
    for new, old in zip(*[iter(rows_of(tmp_path / "o"))] * 2):
        a, b = (np.asarray(images.decode(tmp_path / "o" / row["path"]), int) for row in (new, old))
        mask = read_mask(tmp_path / "o" / new["mask"], a.shape[1::-1]) > 0
        error = np.abs(a - b)[mask].mean()
        assert new["builder"] == "aidet_tae" and 0 < error < 25


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--partial"], "needs something that paints"),
        (["--partial", "--inpaint", "ns", "--metadata", "drop"], "--metadata has no meaning with --partial"),
        (["--partial", "--inpaint", "ns", "--area", "0.5", "0.1"], "--area 0.5 0.1"),
        (["--partial", "--inpaint", "ns", "--quality", "90", "300"], "--quality 90 300"),
        (["--partial", "--inpaint", "ns", "--decoder", "d.ckpt"], "'d.ckpt' has no encoder"),
        (["--ckpt", "a", "--seed", "1"], "--seed goes with --partial"),
        (["--ckpt", "a", "--inpaint", "ns"], "--inpaint goes with --partial"),
        (["--ckpt", "a", "--ckpt", "b"], "several --ckpt need --partial"),
        ([], "--ckpt is missing"),
    ],
)
def test_wrong_arguments(photos, tmp_path, arguments, text):
    with pytest.raises(UserError) as caught:
        command.main([*arguments, "--images", str(photos), "--out", str(tmp_path / "o")])
    assert text in str(caught.value) and not (tmp_path / "o").exists()


def test_a_group_in_several_splits_is_said(photos, tmp_path, capsys):
    table = photos / "labels.csv"
    table.write_text("path,label,split,group\n0.jpg,0,train,g\n2.jpg,0,test,g\n")
    arguments = ["--partial", "--images", str(table), "--inpaint", "ns", "--out", str(tmp_path / "o")]
    assert command.main(arguments) == 0
    assert "warning: group g lies in several splits: test, train" in capsys.readouterr().err


def test_what_a_format_cannot_hold_is_left_out(photo):
    made = partial.draw(np.asarray(photo(0, (64, 64))), "a", [AE], partial.Settings(formats=("webp",)))
    with pytest.raises(images.ImageError, match="cannot be written as webp"):
        partial.encoded(np.zeros((1, 17000, 3), np.uint8), made)
    assert Image.open(io.BytesIO(partial.encoded(np.zeros((64, 64, 3), np.uint8), made))).format == "WEBP"


def test_the_room_shows_its_parts():
    assert align.build_partial is partial.build and align.Settings is partial.Settings


# --- as a class of the VIP Cup's recipe -------------------------------------------------------------------------------
def test_partial_pictures_are_a_class_of_their_own(photos, tmp_path, photo):
    """ArtiFact's folders with a partial set beside them: real, one class per generator, partial; score 1 - p(real)."""
    for kind, target in (("camera", 0), ("synthetic", 3)):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for i in range(3):
            photo(i, (64, 64)).save(tmp_path / "set" / kind / f"{i}.jpg")
        lines = "".join(f"{i}.jpg,{target},{kind}\n" for i in range(3))
        (tmp_path / "set" / kind / "metadata.csv").write_text("image_path,target,category\n" + lines)
    arguments = ["--partial", "--images", str(photos), "--inpaint", "ns", "--out", str(tmp_path / "set/partial")]
    assert command.main(arguments) == 0
    # Both forms of the table: beside the folders of ArtiFact, and a set of its own.
    (tmp_path / "set/partial/metadata.csv").write_bytes((tmp_path / "set/partial/labels.csv").read_bytes())
    recipe = config.load(ROOT / "mindcv_cfg/vipcup_convnext_tiny.yaml", {"data_dir": str(tmp_path / "set")})
    assert recipe.multiclass_to_binary
    train, val, classes = open_data(recipe)
    assert classes == ["real", "partial", "synthetic"] and len(train) + len(val) == 26
    for samples in (train, val):
        for path, target in zip(samples.paths, samples.targets):
            assert classes[target] == ("partial" if "_p." in path else "synthetic" if "synthetic/" in path else "real")
    keys = {"data_dir": str(tmp_path / "set/partial"), "multiclass_to_binary": True, "val_while_train": False}
    assert open_data(config.load(None, keys))[2] == ["real", "partial"]


def test_the_score_of_three_classes_is_the_log_odds_of_one_minus_real():
    logits = np.array([[2.0, -1.0, 0.5], [-3.0, 4.0, 1.0], [0.0, 0.0, 0.0]])
    real = np.exp(logits[:, 0]) / np.exp(logits).sum(1)
    score = labels.score_from_logits(logits, ["real", "generated", "generated"])
    np.testing.assert_allclose(score, labels.logit(1 - real), rtol=1e-9)
    assert labels.class_order(["real", "synthetic", "partial"], real="real") == ["real", "generated", "generated"]
