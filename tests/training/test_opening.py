"""A wrong folder is said before training starts, and weights that are no numbers are never the best."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from aidet import images
from aidet.datasets.samples import Samples
from aidet.errors import UserError
from aidet.training import opening, saving
from aidet.training.loader import Loader
from aidet.training.workers import Workers


def samples(folder, targets, missing):
    """Images of the given classes; those whose index is in ``missing`` are no files."""
    paths = [f"{i}.png" for i in range(len(targets))]
    for i, path in enumerate(paths):
        if i not in missing:
            Image.new("RGB", (4, 4)).save(folder / path)
    return Samples(paths, {}, folder, "here", targets=np.array(targets))


def check(train, val=None):
    said = []
    opening.require_images(SimpleNamespace(train_set=train, val_set=val, classes=["real", "generated"]), said.append)
    return said


def test_a_sample_is_opened(tmp_path):
    targets = [0, 1] * 20
    assert check(samples(tmp_path, targets, ())) == []


def test_none_one_class_and_some(tmp_path):
    targets = [0, 1] * 20
    for name, missing, match in (
        (
            "none",
            range(40),
            "none of the training images that were tried can be used .*first '0.png': no such file; .*none",
        ),
        ("one", range(0, 40, 2), "training: no image of 'real' can be used, which leaves one class; first '0.png'"),
    ):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=match):
            check(samples(tmp_path / name, targets, missing))
    (tmp_path / "some").mkdir()
    (said,) = check(samples(tmp_path / "some", targets, (0, 1)))
    assert said.startswith("warning: 2 of the training images that were tried cannot be used")
    # All but one of a class: the search goes on until it is found.
    (tmp_path / "last").mkdir()
    (said,) = check(samples(tmp_path / "last", targets, range(0, 36, 2)))
    assert "cannot be used" in said
    good = samples(tmp_path, targets, ())
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="none of the validation images that were tried"):
        check(good, samples(tmp_path / "val", targets, range(40)))


def test_what_is_left_after_an_epoch(tmp_path):
    part = samples(tmp_path, [0, 1, 0, 1], ())
    opening.require_classes(part, {}, "training")
    opening.require_classes(part, {"0.png": "empty file"}, "training")
    with pytest.raises(UserError, match="2 of 4 training images cannot be used, which leaves one class; first '0.png'"):
        opening.require_classes(part, {"0.png": "empty file", "2.png": "empty file"}, "training")
    with pytest.raises(UserError, match="none of the 4 training images can be used, first '0.png': x"):
        opening.require_classes(part, {f"{i}.png": "x" for i in range(4)}, "training")


@pytest.mark.parametrize("monitor", ["auc", "val_loss"])
def test_a_validation_that_is_no_number_is_never_the_best(monitor):
    progress = saving.Progress()
    assert not progress.judge({"epoch": 1, monitor: math.nan}, monitor) and progress.best["value"] is None
    assert progress.waiting == 1
    assert progress.judge({"epoch": 2, monitor: 0.7}, monitor)
    assert not progress.judge({"epoch": 3, monitor: math.nan}, monitor) and progress.best["epoch"] == 2


def test_how_images_are_read_holds_for_the_sample_the_memory_and_the_workers(tmp_path, photo):
    """max_pixels and truncated of the configuration reach every place that decodes."""
    part = samples(tmp_path, [0, 1] * 10, ())
    small = images.Reading(max_pixels=15)
    data = SimpleNamespace(train_set=part, val_set=None, classes=["real", "generated"])
    with pytest.raises(UserError, match="4x4 pixels, more than the limit of 15; --max-pixels"):
        opening.require_images(data, print, small)
    photo(1, (200, 160)).save(tmp_path / "whole.png")
    (tmp_path / "0.png").write_bytes((tmp_path / "whole.png").read_bytes()[:30_000])
    part = Samples(["0.png"], {}, tmp_path, "here", targets=np.array([0]), pairs=[""])
    line, order = "decode | resize((8, 8)) | to_float", np.array([[0, 0]])
    for count in (0, 1):
        workers = Workers(count)
        try:
            for reading, lost in ((images.Reading(), True), (images.Reading(truncated="score"), False)):
                loader = Loader(part, line, (8, 8), 1, seed=1, workers=workers, reading=reading)
                ((x, rows),) = loader.run(order, 0)
                assert bool(loader.failed) == lost and (rows[0] == -1) == lost and bool(np.any(x)) != lost
        finally:
            workers.close()
    part = samples(tmp_path, [0, 1], ())
    part.pairs = ["", ""]
    loader = Loader(part, "decode | to_float", (4, 4), 2, seed=1, workers=Workers(0), reading=small)
    assert set(loader.failed) in (set(), {"0.png", "1.png"})  # read into memory at once, or with the first batch
    list(loader.run(np.array([[0, 0], [1, 0]]), 0))
    assert set(loader.failed) == {"0.png", "1.png"}
