"""Training runs of the tiny architecture through train.py and aidet.training."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aidet import ckpt, config
from aidet.errors import UserError
from aidet.training import run
from aidet.training.run import train
from aidet.training.updates import Updater

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Real: smooth; generated: with a fine checkerboard. 24 + 24 images to train with, 10 + 10 to validate."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    board = (np.indices((20, 20)).sum(0) % 2 * 80 - 40)[..., None]
    for split, n in (("train", 24), ("val", 10)):
        for i in range(n):
            base = np.asarray(Image.fromarray(rng.integers(60, 196, (3, 3, 3), np.uint8)).resize((20, 20), 2), int)
            for name, extra in (("real", 0), ("fake", board)):
                place = root / split / name
                place.mkdir(parents=True, exist_ok=True)
                noisy = base + extra + rng.integers(-4, 5, base.shape)
                Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(place / f"{split}{i}.png")
    return root


def keys(data, out, **more):
    return {
        "model": "testing", "data_dir": str(data), "ckpt_save_dir": str(out), "batch_size": 8, "epoch_size": 3,
        "transform": "random_crop(16) | hflip | jpeg((90, 100), p=0.3) | normalize(half)",
        "transform_eval": "center_crop(16) | normalize(half)", "opt": "adamw", "lr": 0.03, "log_interval": 1,
        "num_parallel_workers": 0, "device_target": "CPU", **more,
    }  # fmt: skip


def fitted(data, out, **more):
    said = []
    code = train(config.load(None, keys(data, out, **more)), out=said.append)
    return code, said


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def log(folder):
    """The log without what depends on the clock."""
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows(folder / "log.csv")
    ]


def same_weights(a, b):
    first, second = ckpt.load_arrays(a), ckpt.load_arrays(b)
    assert first.keys() == second.keys()
    return all(np.array_equal(first[n], second[n]) for n in first)


def test_a_run_learns_and_writes_everything(data, tmp_path):
    code, said = fitted(data, tmp_path, epoch_size=6, threshold="auto", views="random_crop(16) | normalize(half)")
    assert code == 0 and said[-1].startswith("wrote ")
    there = {p.name for p in tmp_path.iterdir()}
    assert {"best.ckpt", "best.json", "last.ckpt", "state.ckpt", "config.yaml", "log.csv", "curves.png"} <= there
    assert any(n.startswith("events.out.tfevents") for n in there) and not [n for n in there if n.startswith(".")]
    table = rows(tmp_path / "log.csv")
    assert len(table) == 6 and max(float(r["balanced_accuracy"]) for r in table) > 0.9
    assert len(rows(tmp_path / "steps.csv")) == 36
    facts = ckpt.read_sidecar(tmp_path / "best.ckpt")
    best = max(table, key=lambda r: float(r["balanced_accuracy"]))
    assert facts["training"]["epoch"] == int(best["epoch"]) and facts["threshold"] == float(best["threshold"])
    assert facts["class_order"] == ["real", "generated"] and facts["input"]["size"] == [16, 16]
    assert facts["input"]["transform"] == "decode | center_crop(16) | normalize(half)"
    assert facts["input"]["views"] == "decode | random_crop(16) | normalize(half)"
    # The weights in best.ckpt are those with the metrics stored beside them.
    net = ckpt.load_model(tmp_path / "last.ckpt")
    assert net.sidecar["training"]["epoch"] == 6
    again = config.load(tmp_path / "config.yaml")
    assert again.as_dict() == config.load(None, keys(data, tmp_path, epoch_size=6, threshold="auto",
                                                     views="random_crop(16) | normalize(half)")).as_dict()  # fmt: skip


def test_views_of_training_only_operations_open_in_a_fresh_process(data, tmp_path, run):
    line = "vip_cup | random_crop(16) | normalize(half)"
    code, said = fitted(data, tmp_path, epoch_size=1, views=line)
    assert code == 0, said
    assert ckpt.read_sidecar(tmp_path / "best.ckpt")["input"]["views"] == f"decode | {line}"
    script = (
        "import sys\nfrom aidet import Detector\n"
        "detector = Detector(sys.argv[1], votes=3)\n"
        "result = detector.score([sys.argv[2]])[0]\n"
        "assert result.status == 'ok', result.status\n"
    )
    done = run("-c", script, tmp_path / "best.ckpt", next((data / "val" / "real").iterdir()))
    assert done.returncode == 0, done.stderr


def test_the_same_seed_gives_the_same_run_and_workers_change_nothing(data, tmp_path):
    fitted(data, tmp_path / "a")
    fitted(data, tmp_path / "b", num_parallel_workers=2)
    fitted(data, tmp_path / "c", seed=1)
    assert log(tmp_path / "a") == log(tmp_path / "b") != log(tmp_path / "c")
    assert same_weights(tmp_path / "a/last.ckpt", tmp_path / "b/last.ckpt")


RESUMES = {
    "plain": {},
    "everything": {
        "ema": True, "ema_decay": 0.9, "clip_grad": True, "clip_value": 1.0, "gradient_accumulation_steps": 2,
        "mixup": 0.3,
        "label_smoothing": 0.1, "opt": "lamb", "scheduler": "one_cycle", "warmup_epochs": 0, "drop_remainder": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RESUMES)
def test_a_killed_run_resumes_bit_for_bit(data, tmp_path, name):
    """kill -9 in the middle of an epoch, then resume: same losses, log and weights as an uninterrupted run."""
    more = {**RESUMES[name], "save_every_steps": 2}
    fitted(data, tmp_path / "whole", **more)
    settings = config.load(None, keys(data, tmp_path / "killed", resume="auto", **more))
    (tmp_path / "c.yaml").write_text(settings.to_yaml())
    process = subprocess.Popen(
        [sys.executable, "train.py", "-c", str(tmp_path / "c.yaml")], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    steps = tmp_path / "killed" / "steps.csv"
    wanted = 5 if name == "everything" else 9
    deadline = time.time() + 240
    while time.time() < deadline and process.poll() is None:
        if steps.exists() and steps.read_text().count("\n") > wanted:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = rows(steps)
    assert len(before) >= wanted
    assert not list((tmp_path / "killed").glob("*.tmp"))
    said = fitted(data, tmp_path / "killed", resume="auto", **more)[1]
    assert any(line.startswith("resumed ") for line in said)
    assert rows(steps) == rows(tmp_path / "whole/steps.csv")
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    for file in ("last.ckpt", "best.ckpt"):
        assert same_weights(tmp_path / "killed" / file, tmp_path / "whole" / file)


DROPPED = {"drop_rate": 0.5, "drop_path_rate": 0.3}


def test_dropout_and_stochastic_depth_resume_bit_for_bit(data, tmp_path, monkeypatch):
    """The masks of a resumed run are those of an uninterrupted run."""
    more = {**DROPPED, "save_every_steps": 2, "val_every_steps": 3}
    fitted(data, tmp_path / "whole", **more)
    # Looking inside an epoch changes nothing.
    fitted(data, tmp_path / "blind", **DROPPED)
    assert log(tmp_path / "whole") == log(tmp_path / "blind") and not (tmp_path / "blind/curve.csv").exists()
    curve = rows(tmp_path / "whole/curve.csv")
    assert [int(r["update"]) for r in curve] == [3, 6, 9, 12, 15, 18]
    assert curve[1]["val_loss"] == rows(tmp_path / "whole/log.csv")[0]["val_loss"]
    fitted(data, tmp_path / "plain")
    assert log(tmp_path / "whole") != log(tmp_path / "plain")
    plain = Updater.update

    def stopped(self, batch, progress):
        if (batch.epoch, batch.number) == (1, 3):
            raise KeyboardInterrupt
        return plain(self, batch, progress)

    monkeypatch.setattr(Updater, "update", stopped)
    with pytest.raises(KeyboardInterrupt):
        fitted(data, tmp_path / "cut", **more)
    monkeypatch.setattr(Updater, "update", plain)
    said = fitted(data, tmp_path / "cut", resume="auto", **more)[1]
    assert any("resumed" in line and ": 8 updates" in line for line in said), said
    for file in ("steps.csv", "curve.csv"):
        assert rows(tmp_path / "cut" / file) == rows(tmp_path / "whole" / file)
    assert log(tmp_path / "cut") == log(tmp_path / "whole")
    assert same_weights(tmp_path / "cut/last.ckpt", tmp_path / "whole/last.ckpt")


def test_a_run_can_be_extended(data, tmp_path):
    fitted(data, tmp_path / "long", epoch_size=4, scheduler="constant")
    fitted(data, tmp_path / "short", epoch_size=2, scheduler="constant")
    fitted(data, tmp_path / "short", epoch_size=4, scheduler="constant", resume="auto")
    assert log(tmp_path / "short") == log(tmp_path / "long")
    assert same_weights(tmp_path / "short/last.ckpt", tmp_path / "long/last.ckpt")
    # A finished run has nothing left to do, and says so by changing nothing.
    before = (tmp_path / "short/log.csv").read_text()
    fitted(data, tmp_path / "short", epoch_size=4, scheduler="constant", resume="auto")
    assert (tmp_path / "short/log.csv").read_text() == before


@pytest.mark.parametrize("clip", [{}, {"clip_grad": True, "clip_value": 0.2}])
def test_accumulation_equals_the_larger_batch(data, tmp_path, clip):
    """Half the batch, twice accumulated: the same updates (the frozen normalisation takes no part)."""
    common = {
        **clip,
        "freeze": ["norm.*"],
        "transform": "center_crop(16) | normalize(half)",
        "opt": "momentum",
        "epoch_size": 2,
    }
    fitted(data, tmp_path / "a", batch_size=16, **common)
    fitted(data, tmp_path / "b", batch_size=8, gradient_accumulation_steps=2, **common)
    a, b = (np.array([float(r["loss"]) for r in rows(tmp_path / n / "steps.csv")]) for n in "ab")
    assert len(a) == len(b) == 6 and np.allclose(a, b, atol=1e-5)


def test_clipping_holds_the_length_of_the_step(data, tmp_path):
    """One step of plain SGD: the weights move by lr times the clipped norm, whatever the gradient was."""
    common = {"epoch_size": 1, "opt": "sgd", "momentum": 0.0, "weight_decay": 0.0, "scheduler": "constant", "lr": 0.1}
    common.update(num_samples=8, seed=3, clip_grad=True)
    fitted(data, tmp_path / "a", **{**common, "lr": 0.0})
    start = ckpt.load_arrays(tmp_path / "a/last.ckpt")
    for value in (1e-3, 1e6):
        fitted(data, tmp_path / "b", **common, clip_value=value)
        after = ckpt.load_arrays(tmp_path / "b/last.ckpt")
        moved = [after[n] - start[n] for n in start if "moving_" not in n]
        length = np.sqrt(sum(float((d.astype(np.float64) ** 2).sum()) for d in moved))
        assert abs(length - 1e-4) < 1e-7 if value == 1e-3 else length > 1e-3


def test_init_from_replaces_a_head_and_refuses_another_model(data, tmp_path):
    fitted(data, tmp_path / "a", epoch_size=1)
    start = tmp_path / "any name.ckpt"
    start.write_bytes((tmp_path / "a/last.ckpt").read_bytes())
    code, said = fitted(data, tmp_path / "b", epoch_size=0, init_from=str(start), num_classes=2)
    assert code == 0
    _, said = fitted(data, tmp_path / "c", epoch_size=1, init_from=str(start), num_classes=1, freeze=["conv*", "norm*"],
                  metrics=["accuracy"])  # fmt: skip
    assert "head classifier: 2 outputs replaced by 1" in said
    before, after = ckpt.load_arrays(start), ckpt.load_arrays(tmp_path / "c/last.ckpt")
    for name in before:
        assert np.array_equal(before[name], after[name]) == (not name.startswith("classifier")), name
    with pytest.raises(UserError, match="nothing was loaded.*in model, not in init_from"):
        fitted(data, tmp_path / "d", model="squeezenet1_0", init_from=str(start))


def test_frozen_and_grouped_rates(data, tmp_path):
    fitted(data, tmp_path / "a", epoch_size=0)
    common = {"epoch_size": 1, "opt": "sgd", "momentum": 0.0, "weight_decay": 0.0, "scheduler": "constant", "lr": 0.1}
    common.update(transform="center_crop(16) | normalize(half)", num_samples=8, seed=3)
    fitted(data, tmp_path / "b", **common)
    fitted(data, tmp_path / "c", lr_groups={"conv1.*": 0.0, "conv2.*": {"lr": 0.05}}, **common)
    fitted(data, tmp_path / "d", **{**common, "epoch_size": 1, "lr": 0.0})
    start, full, half = (ckpt.load_arrays(tmp_path / n / "last.ckpt") for n in "dbc")
    assert np.array_equal(half["conv1.weight"], start["conv1.weight"])
    assert np.allclose(
        half["conv2.weight"] - start["conv2.weight"], (full["conv2.weight"] - start["conv2.weight"]) / 2, atol=1e-6
    )
    assert np.array_equal(half["classifier.weight"], full["classifier.weight"])


def test_one_output_and_multiclass_to_binary(data, tmp_path):
    fitted(data, tmp_path / "one", num_classes=1, loss="BCE", epoch_size=6)
    facts = ckpt.read_sidecar(tmp_path / "one/best.ckpt")
    assert facts["class_order"] == ["generated"] and facts["num_outputs"] == 1
    assert float(rows(tmp_path / "one/log.csv")[-1]["auc"]) > 0.9
    lines = ["path,label,generator,split"]
    for path in sorted(data.rglob("*.png")):
        number = int(re.sub("[^0-9]", "", path.stem))
        kind = "photo" if path.parent.name == "real" else f"g{number % 2}"
        # A generator that training never saw counts in the two-class metrics.
        kind = "g9" if kind == "g1" and "val" in path.parts else kind
        lines.append(f"{path.relative_to(data)},{path.parent.name},{kind},{path.parts[-3]}")
    # Beside the images: their names, which seed the draws, are then the same in every run.
    table = data / "multi.csv"
    table.write_text("\n".join(lines) + "\n")
    fitted(
        table,
        tmp_path / "multi",
        multiclass_to_binary=True,
        epoch_size=6,
        class_weights="balanced",
        sampler="generator",
    )
    facts = ckpt.read_sidecar(tmp_path / "multi/best.ckpt")
    assert facts["classes"] == ["real", "g0", "g1"] and facts["class_order"] == ["real", "generated", "generated"]
    assert float(rows(tmp_path / "multi/log.csv")[-1]["auc"]) > 0.8


def test_more_outputs_than_plain_classes_are_said(data, tmp_path, capsys):
    """As in MindCV's MobileNet recipes; with classes that say real or generated it stays an error."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for new, old in (("cat", "real"), ("dog", "fake")):
            (tmp_path / split / new).symlink_to(data / split / old)
    code, _ = fitted(tmp_path, tmp_path / "out", num_classes=3, epoch_size=1, metrics=["accuracy"])
    assert code == 0 and "num_classes is 3, the data have 2 classes" in capsys.readouterr().err
    with pytest.raises(UserError, match="num_classes .=3. is not the number of classes.* 2 .*--num_classes auto"):
        fitted(data, tmp_path / "b", num_classes=3)


def test_early_stopping_and_kept_checkpoints(data, tmp_path):
    _, said = fitted(
        data,
        tmp_path,
        epoch_size=9,
        lr=0.0,
        freeze=["norm.*"],
        early_stopping=2,
        ckpt_save_policy="latest_k",
        keep_checkpoint_max=2,
    )
    assert any(line.startswith("early stopping") for line in said) and len(rows(tmp_path / "log.csv")) == 3
    assert sorted(p.name for p in tmp_path.glob("epoch_*.ckpt")) == ["epoch_2.ckpt", "epoch_3.ckpt"]


def test_states_and_points_of_the_curve_with_accumulated_gradients(data, tmp_path, monkeypatch):
    """Six steps an epoch: updates after steps 4 and 6; a state after step 4, the first update at or after step 3."""
    saved, save = [], run.Run._save_state
    monkeypatch.setattr(run.Run, "_save_state", lambda self: saved.append(self.progress.batches) or save(self))
    more = {"gradient_accumulation_steps": 4, "save_every_steps": 3, "val_every_steps": 1, "epoch_size": 1}
    fitted(data, tmp_path, **more)
    assert saved == [4, 0]
    assert [int(r["update"]) for r in rows(tmp_path / "curve.csv")] == [1, 2]


def test_a_run_that_stopped_early_is_over(data, tmp_path):
    more = {"epoch_size": 9, "lr": 0.0, "freeze": ["norm.*"], "early_stopping": 2, "ckpt_save_interval": 5}
    fitted(data, tmp_path, **more)
    kept = {name: (tmp_path / name).read_bytes() for name in ("log.csv", "best.ckpt", "last.ckpt")}
    _, said = fitted(data, tmp_path, resume="auto", **more)
    assert any(line.startswith("early stopping") for line in said)
    assert kept == {name: (tmp_path / name).read_bytes() for name in kept}


def test_a_new_run_in_a_used_folder_keeps_its_own_checkpoints(data, tmp_path):
    more = {"ckpt_save_policy": "latest_k", "keep_checkpoint_max": 2}
    fitted(data, tmp_path, epoch_size=3, **more)
    fitted(data, tmp_path, epoch_size=1, **more)
    assert [p.name for p in tmp_path.glob("epoch_*")] in (
        ["epoch_1.ckpt", "epoch_1.json"], ["epoch_1.json", "epoch_1.ckpt"],
    )  # fmt: skip


def test_the_best_epoch_by_another_metric_is_no_longer_the_best(data, tmp_path):
    fitted(data, tmp_path, epoch_size=1, monitor="val_loss")
    with pytest.raises(UserError, match="was chosen by val_loss, which monitor .=auc. cannot be compared with"):
        fitted(data, tmp_path, epoch_size=2, monitor="auc", resume="auto")


def test_outputs_of_the_initial_weights_keep_their_names(data, tmp_path):
    """A checkpoint whose first output is `generated` goes on with that order, and its classes say so."""
    fitted(data, tmp_path / "a", epoch_size=1)
    path = tmp_path / "a" / "best.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "classes": ["fake", "real"], "class_order": ["generated", "real"]}))
    fitted(data, tmp_path / "b", epoch_size=1, init_from=str(tmp_path / "a" / "best.ckpt"))
    sidecar = ckpt.Sidecar.read(tmp_path / "b" / "best.ckpt")
    assert sidecar.class_order == ["generated", "real"] == sidecar.order_named("generated", None)


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("threshold", 5, "above 0 and below 1"), ("class_weights", [0, 0], "not all of them 0"),
        ("class_weights", [-1, 1], "must be numbers >= 0"), ("lr_groups", {"*": -1}, "not negative"),
    ],
)  # fmt: skip
def test_values_that_make_a_useless_result_are_refused(data, tmp_path, key, value, said):
    with pytest.raises(UserError, match=said):
        fitted(data, tmp_path, **{key: value})


def test_top_k_keeps_the_best_epochs(data, tmp_path):
    keep = {"ckpt_save_policy": "top_k", "keep_checkpoint_max": 2, "monitor": "val_loss"}
    fitted(data, tmp_path, epoch_size=5, lr=0.3, scheduler="constant", **keep)
    value = {int(r["epoch"]): float(r["val_loss"]) for r in rows(tmp_path / "log.csv")}
    best = sorted(value, key=value.get)[:2]
    assert sorted(p.name for p in tmp_path.glob("epoch_*.ckpt")) == sorted(f"epoch_{e}.ckpt" for e in best)
    for epoch in best:
        assert ckpt.read_sidecar(tmp_path / f"epoch_{epoch}.ckpt")["training"]["epoch"] == epoch
    assert same_weights(tmp_path / f"epoch_{best[0]}.ckpt", tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="top_k ranks by validation"):
        fitted(data, tmp_path / "b", ckpt_save_policy="top_k", val_while_train=False)


def test_the_validation_has_its_own_precision(data, tmp_path):
    """Half precision in the validation changes its numbers a little and the training not at all, and the other way."""
    fitted(data, tmp_path / "a")
    fitted(data, tmp_path / "b", val_amp_level="O3")
    assert same_weights(tmp_path / "a/last.ckpt", tmp_path / "b/last.ckpt")
    assert rows(tmp_path / "a/steps.csv") == rows(tmp_path / "b/steps.csv")
    a, b = (np.array([float(r["val_loss"]) for r in rows(tmp_path / n / "log.csv")]) for n in "ab")
    assert (a != b).any() and np.allclose(a, b, atol=5e-3)


def test_augmentation_splits_compare_views_of_one_image(data, tmp_path):
    line = "random_crop(16) | hflip | auto_augment('augmix-m3-w3') | normalize(half)"
    code, _ = fitted(data, tmp_path / "a", aug_splits=3, loss="JSD", transform=line, epoch_size=6)
    assert code == 0 and float(rows(tmp_path / "a/log.csv")[-1]["auc"]) > 0.9
    for message, more in (
        ("JSD compares views", {"loss": "JSD"}),
        ("needs one auto_augment", {"loss": "JSD", "aug_splits": 3}),
        ("set mixup 0", {"loss": "JSD", "aug_splits": 3, "transform": line, "mixup": 0.2}),
    ):
        with pytest.raises(UserError, match=message):
            fitted(data, tmp_path / "b", **more)


def test_keys_without_effect_are_named_once(data, tmp_path, capsys):
    fitted(data, tmp_path, epoch_size=0, dataset_sink_mode=True, keep_checkpoint_max=3, eval_shuffle=True,
           dataset="cifar10", dataset_download=True, opt="lamb", use_nesterov=True,
           smooth_factor=0.1, clip_value=5.0, ema_decay=0.9, hflip=0.3, crop_pct=0.8)  # fmt: skip
    lines = [line for line in capsys.readouterr().err.splitlines() if "without effect" in line]
    assert len(lines) == 1
    for word in ("smooth_factor (label_smoothing is the key)", "clip_value", "ema_decay", "hflip", "crop_pct"):
        assert word in lines[0], word
    for word in ("dataset_sink_mode", "keep_checkpoint_max", "eval_shuffle", "'cifar10'", "download", "use_nesterov"):
        assert word in lines[0], word


def test_a_loss_that_is_not_finite_stops_with_the_images(data, tmp_path):
    with pytest.raises(UserError, match=r"loss is (nan|inf) at update \d+ .epoch \d+, step \d+.*train\d+.png"):
        fitted(data, tmp_path, lr=1e30, opt="sgd", scheduler="constant")


def test_loss_scaling_leaves_the_result_alone(data, tmp_path):
    common = {"epoch_size": 1, "opt": "momentum"}
    fitted(data, tmp_path / "a", **common)
    fitted(data, tmp_path / "b", loss_scale_type="dynamic", **common)
    fitted(data, tmp_path / "c", loss_scale=1024, **common)
    a, b, c = (np.array([float(r["loss"]) for r in rows(tmp_path / n / "steps.csv")]) for n in "abc")
    assert np.allclose(a, b, atol=1e-6) and np.allclose(a, c, atol=1e-6)


def test_idle_kernels_change_no_number(data, tmp_path, monkeypatch):
    from aidet.training import cells

    assert cells.filler("CPU", 1, 10) == 60 and cells.filler("CPU", 1, 60) == 0
    assert cells.filler("CPU", 2, 10) == 0 and cells.filler("Ascend", 1, 10) == 0
    fitted(data, tmp_path / "with")
    monkeypatch.setattr(cells, "filler", lambda device, world, weights: 0)
    fitted(data, tmp_path / "without")
    assert log(tmp_path / "with") == log(tmp_path / "without")
    assert same_weights(tmp_path / "with" / "last.ckpt", tmp_path / "without" / "last.ckpt")


def test_pynative_mode_trains_the_same(data, tmp_path):
    common = {"epoch_size": 1, "opt": "adamw", "ema": True, "clip_grad": True, "clip_value": 1.0}
    fitted(data, tmp_path / "a", **common)
    fitted(data, tmp_path / "b", mode=1, **common)
    a, b = (np.array([float(r["loss"]) for r in rows(tmp_path / n / "steps.csv")]) for n in "ab")
    assert np.allclose(a, b, atol=1e-4)


def test_half_precision_runs(data, tmp_path):
    fitted(data, tmp_path, epoch_size=1, amp_level="O2", loss_scale=1024, drop_overflow_update=True)
    assert np.isfinite(float(rows(tmp_path / "log.csv")[0]["val_loss"]))
    with pytest.raises(UserError, match="bfloat16"):
        fitted(data, tmp_path / "b", amp_level="O2", amp_dtype="bfloat16")


def test_an_unreadable_image_gives_exit_code_3(data, tmp_path, capsys):
    import shutil

    shutil.copytree(data, tmp_path / "data")
    broken = tmp_path / "data/train/real/train3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    code, _ = fitted(tmp_path / "data", tmp_path / "out", epoch_size=1)
    assert code == 3 and "unusable image real/train3.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tesing"], "unknown architecture 'tesing'; did you mean 'testing'?"),
        (["--init_from", "no.ckpt"], "init_from 'no.ckpt' does not exist"),
        (["--init_from", str(ROOT / "ckpt")], "is a folder; give the file of the weights in it: aidet_cifake.ckpt, "),
        (["--data_dir", "/nowhere"], "data_dir '/nowhere' does not exist"),
        (["--num_classes", "1", "--transform_eval", "random_crop(16)"], "is random"),
        (["--resume", "no.ckpt"], "resume 'no.ckpt' does not exist"),
        (["--freeze", "nothing.*"], "freeze 'nothing.*' matches no parameter"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(data, tmp_path, run, arguments, message):
    (tmp_path / "c.yaml").write_text(config.load(None, keys(data, tmp_path / "out")).to_yaml())
    done = run("train.py", "-c", tmp_path / "c.yaml", *arguments)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()
