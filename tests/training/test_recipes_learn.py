"""Every recipe learns: a small network of its family fits a few pictures with its loss, optimizer and proof profile."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_train_recipes import PROOFS, RECIPES

from aidet import ckpt, config
from aidet.training.run import train

SIDE = 32
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(monkeypatch):
    """Families with one block a stage; their blocks, normalisation and start stay as they are."""
    from aidet.models import clip, convnext, dinov2, efficientnet, resnet, swin

    sizes = (
        (swin.SIZES, dict.fromkeys(("swin_tiny", "swin_base"), (24, (1, 1, 1, 1), (1, 2, 4, 8)))),
        (convnext.SIZES, {"convnext_tiny": ((1, 1, 1, 1), (16, 32, 64, 96))}),
        (efficientnet.SIZES, {"b0": (0.5, 0.3, 0.2, 224), "b6": (0.5, 0.3, 0.5, 528)}),
        (resnet.SIZES, {name: (resnet.SIZES[name][0], (1, 1, 1, 1)) for name in ("resnet18", "resnet50")}),
        (clip.SIZES, {"clip_vit_b_16": (32, 2, 16, SIDE, 16)}),
        (dinov2.SIZES, {"dinov2_vit_s_14": (32, 2, 64, "gelu")}),
    )
    for table, small in sizes:
        for name, size in small.items():
            monkeypatch.setitem(table, name, size)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Four real and four generated pictures of noise, for training and again for validation: only memory helps."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for i in range(8):
        image = np.random.default_rng(i).integers(0, 256, (SIDE // 4, SIDE // 4, 3), np.uint8)
        image = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for split in ("train", "val"):
            image.save(folder / f"{split}{i}.png")
            rows.append((f"{split}{i}.png", i % 2, ("photo", "made")[i % 2], split))
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "generator", "split"), *rows])
    return folder


def keys(pictures, out, recipe, **more):
    end = {"resnet_hf": "high_pass(3)", "aekl_clf": "to_float"}.get(recipe, "normalize(imagenet)")
    line = f"decode | resize(({SIDE}, {SIDE})) | {end}"
    return {
        "data_dir": str(pictures), "ckpt_save_dir": str(out), "train_split": "train", "val_split": "val",
        "transform": line, "transform_eval": line, "views": None, "batch_size": 8, "num_parallel_workers": 0,
        "gradient_accumulation_steps": 1, "sampler": None, "early_stopping": None, "device_target": "CPU",
        "num_samples": None, "metrics": ["auc", "val_loss"], "monitor": "auc", **more,
    }  # fmt: skip


ARGUMENTS = {
    "swin_tiny_finetune": {"image_size": SIDE, "window_size": 4},
    "aekl_clf": {"latent_size": SIDE // 8, "widths": [32, 32, 64, 64], "depth": 1},
}


@pytest.mark.matrix
@pytest.mark.parametrize("recipe", [p.stem for p in PROOFS if not p.stem.endswith(("_probe", "_lora"))])
def test_a_recipe_fits_eight_pictures(recipe, small, pictures, tmp_path):
    """With its own loss, optimizer and the proof profile's peak rate; no augmentation, mixing or average of weights."""
    steps = 40
    path = next(p for p in RECIPES if p.stem == recipe)
    more = {"epoch_size": steps, "val_interval": steps, "ckpt_save_interval": steps, "scheduler": "constant",
            "warmup_epochs": 0, "mixup": 0, "ema": False, "drop_path_rate": None}  # fmt: skip
    settings = keys(pictures, tmp_path, recipe, profile="proof", **more)
    if recipe in ARGUMENTS:
        settings["model_args"] = ARGUMENTS[recipe]
    assert train(config.load(path, settings), out=lambda line: None) == 0
    with open(tmp_path / "log.csv", newline="", encoding="utf-8") as file:
        log = list(csv.DictReader(file))
    assert float(log[-1]["auc"]) == 1


SMALL = {"width": 32, "depth": 2}
TOWERS = {
    "clip_probe": {**SMALL, "patch_size": 16, "image_size": SIDE, "projection": 16, "features": "levels_avg"},
    "dinov2_probe": {**SMALL, "hidden": 64, "act": "gelu", "image_size": 28, "grid": 2},
}


@pytest.mark.parametrize("recipe", TOWERS)
def test_a_probe_trains_a_new_head_alone(recipe, pictures, tmp_path):
    """In a process of its own, as users train: after a thousand other graphs MindSpore's compiler can fail (LOG.md)."""
    from aidet import models

    arguments = TOWERS[recipe]
    path = next(p for p in RECIPES if p.stem == recipe)
    name = config.load(path).model
    tower = {p.name: p.asnumpy().copy() for p in models.create(name, **arguments).get_parameters()}
    ckpt.save_arrays(tower, tmp_path / "tower.ckpt")
    settings = keys(pictures, tmp_path / "run", recipe, init_from=str(tmp_path / "tower.ckpt"), model_args=arguments)
    line = f"decode | resize(({SIDE}, {SIDE})) | center_crop(28) | normalize(clip)"
    if recipe == "dinov2_probe":
        settings.update(transform=line, transform_eval=line)
    (tmp_path / "c.yaml").write_text(config.load(path, {**settings, "epoch_size": 1}).to_yaml())
    argv = [sys.executable, "train.py", "-c", str(tmp_path / "c.yaml")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "head: new, 2 outputs; the file has features only" in done.stdout
    after = ckpt.load_arrays(tmp_path / "run" / "last.ckpt")
    assert set(after) == {*tower, "head.weight", "head.bias"}
    assert all(np.array_equal(after[n], tower[n]) for n in tower) and np.abs(after["head.bias"]).max() > 0


def test_a_published_swin_is_finetuned_in_its_order_of_classes(small, pictures, tmp_path):
    from aidet import models

    arguments = {"image_size": SIDE, "window_size": 4, "num_classes": 2}
    before = models.create("swin_base", **arguments)
    sidecar = {
        "architecture": "swin_base",
        "arguments": arguments,
        "num_outputs": 2,
        "class_order": ["generated", "real"],
    }
    ckpt.save(before, tmp_path / "published.ckpt", sidecar)
    path = next(p for p in RECIPES if p.stem == "swin_base_finetune")
    settings = keys(pictures, tmp_path / "run", path.stem, init_from=str(tmp_path / "published.ckpt"), epoch_size=1)
    assert train(config.load(path, settings), out=lambda line: None) == 0
    assert ckpt.Sidecar.read(tmp_path / "run" / "last.ckpt").class_order == ["generated", "real"]
    after, old = ckpt.load_arrays(tmp_path / "run" / "last.ckpt"), ckpt.load_arrays(tmp_path / "published.ckpt")
    assert any(not np.array_equal(after[n], old[n]) for n in old)
