"""Aligned fakes: same size, format, tables and metadata as the original; the file does not reveal the class."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from aidet import align, ckpt, files, images, models, runtime
from aidet.align import command
from aidet.audit import shortcuts
from aidet.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
OWN = ROOT / "ckpt" / "aidet_tae.ckpt"


def dull(pixels):
    """Stands in for an autoencoder: drops the last two bits."""
    return (pixels & 0xFC).astype(np.uint8)


class Stand:
    """Stands in for a Reconstructor, named like its checkpoint."""

    def __init__(self, path, tile, device, decoder):
        self.name, self.sha256, self.decoder_sha256 = path, path, None

    def __call__(self, pixels):
        return dull(pixels)


def tables(path):
    with Image.open(path) as image:
        return image.quantization, JpegImagePlugin.get_sampling(image), bool(image.info.get("progressive")), image.mode


@pytest.mark.parametrize("quality", [30, 75, 92, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_tables_and_subsampling_are_the_originals(tmp_path, photo, quality, subsampling):
    photo(1, (61, 47)).save(tmp_path / "a.jpg", quality=quality, subsampling=subsampling, progressive=quality == 75)
    data, _ = align.twin(tmp_path / "a.jpg", dull)
    (tmp_path / "b.jpg").write_bytes(data)
    assert tables(tmp_path / "a.jpg") == tables(tmp_path / "b.jpg")
    assert Image.open(tmp_path / "b.jpg").size == (61, 47)


def test_tables_no_quality_setting_makes_are_kept(tmp_path, photo):
    odd = [[min(255, 3 + i) for i in range(64)], [min(255, 9 + i // 2) for i in range(64)]]
    photo().save(tmp_path / "a.jpg", qtables=odd)
    (tmp_path / "b.jpg").write_bytes(align.twin(tmp_path / "a.jpg", dull)[0])
    assert tables(tmp_path / "a.jpg") == tables(tmp_path / "b.jpg")


@pytest.mark.parametrize(
    ("name", "options"), [("a.png", {}), ("a.webp", {"quality": 60}), ("a.webp", {"lossless": True}), ("a.bmp", {})]
)
def test_other_formats(tmp_path, photo, name, options):
    photo(2).save(tmp_path / name, **options)
    data, psnr = align.twin(tmp_path / name, dull)
    (tmp_path / f"b{name}").write_bytes(data)
    a, b = (Image.open(tmp_path / n) for n in (name, f"b{name}"))
    assert (a.format, a.mode, a.size) == (b.format, b.mode, b.size) and 35 < psnr < 50
    ratio = (tmp_path / name).stat().st_size / len(data)
    assert 0.8 < ratio < (1.25 if options.get("quality") else 4)


def test_grey_stays_grey(tmp_path, photo):
    photo().convert("L").save(tmp_path / "l.jpg")
    photo().convert("L").convert("RGB").save(tmp_path / "rgb.png")

    def tint(pixels):
        return np.clip(pixels.astype(int) + [9, 0, 0], 0, 255).astype(np.uint8)

    for name, mode in (("l.jpg", "L"), ("rgb.png", "RGB")):
        (tmp_path / f"b{name}").write_bytes(align.twin(tmp_path / name, tint)[0])
        got = Image.open(tmp_path / f"b{name}")
        pixels = np.asarray(got.convert("RGB"))
        assert got.mode == mode and (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_kept_and_not_applied_twice(tmp_path, photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(3, (60, 40)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    (tmp_path / "b.jpg").write_bytes(align.twin(tmp_path / "a.jpg", dull)[0])
    a, b = (np.asarray(images.decode(tmp_path / n), int) for n in ("a.jpg", "b.jpg"))
    assert a.shape == b.shape and np.abs(a - b).mean() < 4
    assert Image.open(tmp_path / "b.jpg").size == (60, 40)
    (tmp_path / "c.jpg").write_bytes(align.twin(tmp_path / "a.jpg", dull, metadata="drop")[0])
    assert not Image.open(tmp_path / "c.jpg").info.get("exif")


def test_what_cannot_be_written_alike_is_refused(tmp_path, photo):
    photo().convert("P").save(tmp_path / "p.gif")
    with pytest.raises(images.ImageError, match="format GIF"):
        align.twin(tmp_path / "p.gif", dull)
    photo().convert("RGBA").save(tmp_path / "a.png")
    with pytest.raises(images.ImageError, match="mode RGBA"):
        align.twin(tmp_path / "a.png", dull)


@pytest.mark.parametrize("size", [(3, 300, 130), (3, 128, 128), (3, 129, 500), (1, 131, 300)])
def test_tiles_meet_without_a_seam(size):
    x = np.random.default_rng(0).random(size).astype(np.float32)
    seen = []

    def scale(part):
        seen.append(part.shape[1:])
        return part * 2 + 1

    np.testing.assert_allclose(align.tiled(scale, x, 128, 32), x * 2 + 1, rtol=1e-5)
    assert max(max(s) for s in seen) <= 128
    assert (len(seen) == 1) == (max(size[1:]) <= 128)


def test_tiles_that_disagree_are_blended():
    calls = iter(range(10))
    y = align.tiled(lambda part: np.full_like(part, next(calls)), np.zeros((1, 128, 224), np.float32), 128, 32)
    steps = np.diff(y[0, 0])
    assert y[0, 0, 0] == 0 and y[0, 0, -1] == 1 and (steps >= 0).all() and steps.max() < 0.05


# --- the command, through the project's own autoencoder ---------------------------------------------------------------
@pytest.fixture
def photos(tmp_path, photo):
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for i in range(8):
        size = (int(rng.integers(50, 90)), int(rng.integers(50, 90)))
        name = f"sub/{i}.jpg" if i % 2 else f"{i}.jpg"
        photo(i, size).save(tmp_path / "photos" / name, quality=int(rng.integers(70, 96)))
    return tmp_path / "photos"


def test_a_name_that_labels_cannot_hold_is_left_out(photos, tmp_path):
    os.rename(photos / "0.jpg", os.fsencode(photos) + b"/odd\xff.jpg")
    rows, lost, _ = align.build(photos, tmp_path / "out", dull)
    assert len(rows) == 14 and lost == [("odd\\udcff.jpg", lost[0][1])] and "not Unicode" in lost[0][1]


@pytest.mark.skipif(not OWN.exists(), reason="the project's own autoencoder is not in ckpt/")
def test_command_makes_pairs_whose_files_say_nothing(run, photos):
    out = photos.parent / "pairs"
    (photos / "broken.jpg").write_bytes(b"no image")
    done = run("-m", "aidet.align", "--images", photos, "--ckpt", OWN, "--out", out)
    assert done.returncode == 3 and "8 pairs" in done.stdout, done.stderr
    assert "left out broken.jpg: not an image" in done.stderr
    rows = list(csv.DictReader(open(out / "labels.csv")))
    assert len(rows) == 16 and list(rows[0]) == ["path", "label", "generator", "group"]
    for real, fake in zip(rows[::2], rows[1::2]):
        assert real["group"] == fake["group"] and (real["label"], fake["label"]) == ("0", "1")
        assert fake["path"] == real["path"].replace("real/", "generated/", 1) and fake["generator"] == "aidet_tae"
        assert (out / real["path"]).read_bytes() == (photos / real["group"]).read_bytes()
        a, b = (shortcuts.file_features(out / r["path"]) for r in (real, fake))
        different = {k for k in a if a[k] != b[k]}
        assert different <= {"bytes_per_pixel"}
        assert (out / real["path"]).read_bytes() != (out / fake["path"]).read_bytes()
    facts = json.loads((out / "align.json").read_text())
    assert facts["pairs"] == 8 and facts["psnr"] > 15 and len(facts["sha256"]) == 64
    before = (out / "generated" / "0.jpg").stat().st_mtime_ns
    (out / "generated" / "2.jpg").unlink()
    again = run(
        "-m", "aidet.align", "--images", photos, "--ckpt", OWN, "--out", out, "--resume", "--originals", "reference"
    )
    assert again.returncode == 3 and (out / "generated" / "2.jpg").is_file()
    assert (out / "generated" / "0.jpg").stat().st_mtime_ns == before
    assert list(csv.DictReader(open(out / "labels.csv")))[0]["path"] == "../photos/0.jpg"


@pytest.mark.skipif(not OWN.exists(), reason="the project's own autoencoder is not in ckpt/")
def test_a_large_image_goes_tile_by_tile_and_shows_no_seam(photo):
    reconstruct = align.Reconstructor(OWN, tile=256)
    pixels = np.asarray(photo(5, (403, 301)))
    whole = align.Reconstructor(OWN, tile=512)(pixels)
    pieces = reconstruct(pixels)
    assert pieces.shape == whole.shape == pixels.shape
    assert np.abs(pieces.astype(int) - whole).mean() < 1


def test_groups_and_splits_come_from_the_source(photos, tmp_path):
    """Crops of one photograph have one group, and a test photograph makes no training pair."""
    rows = ["sub/1.jpg,train,x", "sub/3.jpg,train,x", "0.jpg,test,"]
    (photos / "l.csv").write_text("\n".join(["path,split,group", *rows]) + "\n")
    made, _, _ = align.build(photos / "l.csv", tmp_path / "o", dull)
    assert [row[3:] for row in made[::2]] == [["x", "train"], ["x", "train"], ["0.jpg", "test"]]
    assert [row[3:] for row in made[1::2]] == [row[3:] for row in made[::2]]


def test_generated_pictures_are_no_originals(photos, tmp_path):
    """ArtiFact's tables say which they are, class folders as well; the originals are labelled real."""
    for name, target in (("coco", 0), ("ddpm", 3)):
        (photos / name).mkdir()
        (photos / f"{target and 2}.jpg").rename(photos / name / "0.jpg")
        (photos / name / "metadata.csv").write_text(f"image_path,target\n0.jpg,{target}\n")
    made, _, _ = align.build(photos, tmp_path / "o", dull)
    assert [row[0] for row in made] == ["real/coco/0.jpg", "generated/coco/0.jpg"]
    with pytest.raises(UserError, match="no image is called real"):
        align.build(photos / "ddpm", tmp_path / "p", dull)
    (photos / "ddpm" / "metadata.csv").unlink()
    (photos / "ddpm").rename(photos / "fake")
    (photos / "coco" / "metadata.csv").unlink()
    with pytest.raises(UserError, match="the folder 'fake' of 'fake/0.jpg' says generated"):
        align.build(photos, tmp_path / "p", dull)
    assert not (tmp_path / "p").exists()


def test_a_run_is_not_resumed_with_another_autoencoder(photos, tmp_path, monkeypatch):
    """The labels would say of fakes that exist that the new one had made them."""
    monkeypatch.setattr(command, "Reconstructor", Stand)
    arguments = ["--images", str(photos), "--out", str(tmp_path / "o")]
    assert command.main([*arguments, "--ckpt", "first"]) == 0
    (tmp_path / "o" / "labels.csv").unlink()  # interrupted
    for more, said in ((["--ckpt", "second"], "autoencoder first, now it is second"),
                       (["--ckpt", "first", "--metadata", "drop"], "metadata copy, now it is drop")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            command.main([*arguments, *more, "--resume"])
    assert not (tmp_path / "o" / "labels.csv").exists()
    assert command.main([*arguments, "--ckpt", "first", "--resume"]) == 0


def test_a_set_without_a_usable_picture_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "Reconstructor", Stand)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no image")
    for more in (["--ckpt", "first"], ["--partial", "--inpaint", "telea"]):
        pytest.importorskip("cv2")
        with pytest.raises(UserError, match="none of the 1 images"):
            command.main(["--images", str(tmp_path / "photos"), "--out", str(tmp_path / "o"), *more])
        assert not (tmp_path / "o").exists()


# --- other autoencoders, whole or in halves --------------------------------------------------------------------------
def save_net(path, architecture, low=0.0, **arguments):
    """A converted autoencoder, or half of one, with random weights; no ``role`` and no ``multiple``, as converted."""
    runtime.setup(seed=0)
    about = {"size": None, "channels": 3, "range": [low, 1.0]}
    facts = {"architecture": architecture, "arguments": arguments, "class_order": None, "input": about}
    ckpt.save(models.create(architecture, **arguments), path, facts)
    return path


def test_encoder_and_decoder_in_two_files(run, photos, tmp_path):
    encoder = save_net(tmp_path / "e.ckpt", "taesd_encoder")
    decoder = save_net(tmp_path / "d.ckpt", "taesd_decoder")
    for path in sorted(photos.rglob("*.jpg"))[2:]:
        path.unlink()
    done = run(
        "-m", "aidet.align", "--images", photos, "--ckpt", encoder, "--decoder", decoder, "--out", tmp_path / "o"
    )
    assert done.returncode == 0 and "2 pairs" in done.stdout, done.stderr
    facts = json.loads((tmp_path / "o/align.json").read_text())
    assert facts["sha256"] == files.sha256(encoder) and facts["decoder_sha256"] == files.sha256(decoder)
    found = align.Reconstructor(encoder, decoder=decoder)
    assert found.multiple == 8 and found(np.zeros((33, 50, 3), np.uint8)).shape == (33, 50, 3)
    with pytest.raises(UserError, match="name the other with --decoder"):
        align.Reconstructor(encoder)
    with pytest.raises(UserError, match="wanted an encoder and its decoder"):
        align.Reconstructor(decoder, decoder=encoder)
    other = save_net(tmp_path / "x.ckpt", "taesd_decoder", latent_channels=8)
    with pytest.raises(UserError, match="does not give an image of 64 pixels back"):
        align.Reconstructor(encoder, decoder=other)


def test_an_autoencoder_kl_works_in_its_own_range(tmp_path):
    path = save_net(tmp_path / "kl.ckpt", "autoencoder_kl", low=-1.0, widths=(32, 32), depth=1)
    reconstruct = align.Reconstructor(path)
    assert (reconstruct.low, reconstruct.high, reconstruct.multiple) == (-1.0, 1.0, 2)
    assert reconstruct(np.full((30, 41, 3), 90, np.uint8)).shape == (30, 41, 3)
    reconstruct.encode = reconstruct.decode = lambda x: x  # identity: the change of range is undone exactly
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert (reconstruct(pixels) == pixels).all()
    with pytest.raises(UserError, match="not an autoencoder"):
        align.Reconstructor(save_net(tmp_path / "t.ckpt", "testing"))


def test_the_published_tiny_autoencoder_makes_a_likeness(shared, run, tmp_path):
    for half in ("encoder", "decoder"):
        source = shared / "weights" / "taesd" / f"taef2_{half}.pth"
        assert run("-m", "convert", source, tmp_path / f"{half}.ckpt", "--verify", "none").returncode == 0
    reconstruct = align.Reconstructor(tmp_path / "encoder.ckpt", decoder=tmp_path / "decoder.ckpt")
    photo = sorted((shared / "data/aigen_dev/val").glob("*.jpg"))[0]
    pixels = np.asarray(images.decode(photo))[:96, :96]
    error = np.mean((reconstruct(pixels).astype(float) - pixels) ** 2)
    assert 10 * np.log10(255**2 / error) > 25


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--images", "{0}/none", "--ckpt", "x", "--out", "{0}/o"), "does not exist"),
        (("--images", "{0}/photos", "--ckpt", "x", "--out", "{0}/photos/o"), "lies inside --images"),
        (("--images", "{0}/photos", "--ckpt", "{0}/none.ckpt", "--out", "{0}/o"), "none.ckpt"),
    ],
)
def test_wrong_arguments(run, photos, arguments, text):
    done = run("-m", "aidet.align", *(a.format(photos.parent) for a in arguments))
    assert done.returncode == 2 and text in done.stderr and not (photos.parent / "o").exists()
