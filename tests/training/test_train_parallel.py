"""Several processes, and teachers."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aidet import ckpt, config, images, labels, models, runtime
from aidet.errors import UserError
from aidet.training import distill
from aidet.training.run import Run, train

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """48 images to train with and 22 to validate: neither divides by the batch."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, n in (("train", 24), ("val", 11)):
        for i in range(n):
            for name in ("real", "fake"):
                place = root / split / name
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(place / f"{split}{i}.png")
    return root


def arguments(data, out, batch):
    line = "resize((32,32)) | {}normalize(half)"
    pairs = {
        "data_dir": data, "ckpt_save_dir": out, "model": "cifake_cnn", "num_classes": 2,
        "transform": line.format("hflip | "),
        "transform_eval": line.format(""), "epoch_size": 2, "opt": "momentum", "lr": 0.05, "log_interval": 1,
        "num_parallel_workers": 0, "drop_remainder": "false", "batch_size": batch, "device_target": "CPU",
        "class_weights": "1,2", "label_smoothing": 0.1,
    }  # fmt: skip
    return [str(word) for name, value in pairs.items() for word in (f"--{name}", value)]


def numbers(path, columns):
    with open(path, newline="") as file:
        return np.array([[float(row[c]) for c in columns] for row in csv.DictReader(file)])


def test_two_processes_give_the_curve_of_one_with_the_doubled_batch(data, tmp_path):
    same_curve(data, tmp_path)


@pytest.mark.matrix
@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_two_processes_train_over_archives_as_one_does(form, data, tmp_path):
    pytest.importorskip("pyarrow", reason="pip install 'aidet[parquet]'")
    from aidet.data import main

    assert main(["pack", str(data), "--out", str(tmp_path / "shards"), "--format", form]) == 0
    same_curve(tmp_path / "shards", tmp_path)


def same_curve(data, tmp_path):
    """Train in one process, and with msrun in two, each with half of its batch."""
    msrun = Path(sys.executable).parent / "msrun"
    if not msrun.exists():
        pytest.skip("this MindSpore brings no msrun")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PATH": f"{msrun.parent}{os.pathsep}{os.environ['PATH']}"}
    one = subprocess.run(
        [sys.executable, "train.py", *arguments(data, tmp_path / "one", 20)], cwd=ROOT, capture_output=True, timeout=300
    )
    assert one.returncode == 0, one.stderr
    several = subprocess.run(
        [str(msrun), f"--worker_num={PROCESSES}", f"--local_worker_num={PROCESSES}", f"--master_port={port}",
         f"--log_dir={tmp_path / 'log'}", "--join=True", "train.py", *arguments(data, tmp_path / "two", 10)],
        cwd=ROOT, env=environment, capture_output=True, timeout=300,
    )  # fmt: skip
    assert several.returncode == 0, several.stdout[-2000:] + several.stderr[-2000:]
    for file, columns in (
        ("steps.csv", ["loss", "lr"]),
        ("log.csv", ["train_loss", "val_loss", "balanced_accuracy", "auc"]),
    ):
        first, second = (numbers(tmp_path / n / file, columns) for n in ("one", "two"))
        assert first.shape == second.shape and np.abs(first - second).max() < 1e-5, file
    a, b = (ckpt.load_arrays(tmp_path / n / "last.ckpt") for n in ("one", "two"))
    assert max(np.abs(a[n] - b[n]).max() for n in a) < 1e-5


def trained(data, out, **more):
    keys = dict(zip(*[iter(arguments(data, out, 16))] * 2))
    settings = config.load(None, {**{k[2:]: v for k, v in keys.items()}, "model": "testing", **more})
    assert train(settings, out=lambda text: None) == 0
    return out / "last.ckpt"


def test_teachers_cannot_look_at_a_high_passed_student():
    line = images.Pipeline("center_crop(16) | high_pass(3)")
    with pytest.raises(UserError, match="cannot turn a high_pass input back into pixels"):
        distill.Teachers({"teachers": ["none.ckpt"]}, line, ["real", "generated"])


def test_teachers_give_their_own_probability_whatever_the_units(data, tmp_path):
    """The teacher was trained on values normalised by .5; the student's pixels come in ImageNet's units."""
    path = trained(data, tmp_path / "t", epoch_size=1)
    line = images.Pipeline("resize((32,32)) | normalize(imagenet)")
    teachers = distill.Teachers({"teachers": [str(path)], "temperature": 4}, line, ["real", "generated"])
    image = Image.open(next((data / "val/real").iterdir()))
    soft = teachers(line(image)[None])
    import mindspore as ms

    own = images.Pipeline("resize((32,32)) | normalize(half)")(image)[None]
    score = labels.score_from_logits(ckpt.load_model(path)(ms.Tensor(own)).asnumpy(), ["real", "generated"])
    assert np.allclose(soft[0, 1], labels.sigmoid(score[0] / 4), atol=1e-5) and np.allclose(soft.sum(), 1)
    assert np.allclose(distill.Teachers({"teachers": [str(path)] * 2, "combine": "max", "temperature": 4}, line,
                                        ["generated", "real"])(line(image)[None])[0, 0], soft[0, 1])  # fmt: skip


def test_a_teacher_of_one_size_sees_the_crop_at_its_size(tmp_path):
    """CIFAKE's network has a dense layer over all positions; without one, the crop's own size is kept."""
    runtime.setup(seed=0)
    order, sides = ["real", "generated"], {"classes": ["real", "generated"], "class_order": ["real", "generated"]}
    x = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    for name, made, size in (("cifake_cnn", {"num_classes": 2}, 32), ("testing", {"num_classes": 2}, 64)):
        about = {"size": [32, 32], "channels": 3, "transform": "decode | resize((32, 32)) | to_float"}
        facts = {"architecture": name, "arguments": made, "num_outputs": 2, **sides, "input": about, "threshold": None}
        ckpt.save(models.create(name, **made), tmp_path / f"{name}.ckpt", facts)
        settings = {"teachers": [str(tmp_path / f"{name}.ckpt")]}
        found = distill.Teachers(settings, images.Pipeline("resize((64, 64)) | to_float"), order).scores(x)[0]
        import mindspore as ms

        at = ms.ops.interpolate(ms.Tensor(x), size=(size, size), mode="bilinear", align_corners=False)
        own = labels.score_from_logits(ckpt.load_model(tmp_path / f"{name}.ckpt")(at).asnumpy(), order)
        assert np.allclose(found, own, atol=1e-5)


def test_a_student_learns_from_the_teacher_alone(data, tmp_path):
    """With alpha 1 and the teacher's own weights as a start the loss is 0; from other weights it falls."""
    path = trained(data, tmp_path / "t", epoch_size=1, label_smoothing=0.0)
    common = {"distill": {"teachers": [str(path)], "temperature": 2, "alpha": 1.0}, "class_weights": None}
    common.update(lr=0.0, freeze=["norm.*"], transform="resize((32,32)) | normalize(half)")
    trained(data, tmp_path / "same", epoch_size=1, init_from=str(path), **common)
    # Batch statistics are kept still, so student and teacher compute the same thing.
    assert numbers(tmp_path / "same/log.csv", ["train_loss"])[0, 0] < 1e-5
    trained(data, tmp_path / "other", epoch_size=4, **{**common, "lr": 0.02, "opt": "adam", "freeze": []})
    curve = numbers(tmp_path / "other/log.csv", ["train_loss"])[:, 0]
    assert curve[-1] < curve[0]


def test_the_table_of_teachers_and_student(data, tmp_path):
    """Its rows are what the teacher and the written student score on their own, by generator."""
    import mindspore as ms

    first = trained(data, tmp_path / "first", epoch_size=1, label_smoothing=0.0)
    second = trained(data, tmp_path / "second", epoch_size=1, label_smoothing=0.0, seed=1)
    teachers = {"teachers": [str(first), str(second)], "combine": "max"}
    trained(data, tmp_path / "s", epoch_size=1, distill=teachers, class_weights=None)
    with open(tmp_path / "s/teachers.csv", newline="") as file:
        table = {(r["model"], r["generator"]): r for r in csv.DictReader(file)}
    models = [str(first), str(second), "teachers together", "student"]
    assert set(table) == {(m, g) for m in models for g in ("real", "fake", "all")}
    line = images.Pipeline("resize((32,32)) | normalize(half)")
    net = ckpt.load_model(tmp_path / "s/best.ckpt")
    for side, name in ((0, "real"), (1, "fake")):
        x = np.stack([line(Image.open(p)) for p in sorted((data / "val" / name).iterdir())])
        score = labels.score_from_logits(net(ms.Tensor(x)).asnumpy(), ["real", "generated"])
        row = table["student", name]
        assert int(row["images"]) == 11 and abs(float(row["accuracy"]) - ((score > 0) == side).mean()) < 1e-4
        assert (row["auc"] == "") == (side == 0)
    both = [float(table["student", g]["accuracy"]) for g in ("real", "fake")]
    assert abs(float(table["student", "all"]["accuracy"]) - np.mean(both)) < 2e-4


def saved(name, path, transform, size, **arguments):
    net = models.create(name, num_classes=2, **arguments)
    facts = {
        "architecture": name, "arguments": {"num_classes": 2, **arguments}, "num_outputs": 2,
        "classes": ["real", "generated"], "class_order": ["real", "generated"], "threshold": 0.5,
        "input": {"size": size, "transform": transform, "views": None, "channels": 3, "range": [0.0, 1.0]},
        "source": {}, "training": {},
    }  # fmt: skip
    ckpt.save({p.name: p.asnumpy() for p in net.get_parameters()}, path, facts)
    return {"teachers": [str(path)]}


def test_a_teacher_with_positions_gets_its_own_size(tmp_path):
    """Whatever its name: BEiT's attention knows its own number of patches only."""
    settings = saved(
        "beit", tmp_path / "t.ckpt", "resize((32, 32)) | normalize(half)", [32, 32], image_size=32, depth=1
    )
    teachers = distill.Teachers(settings, images.Pipeline("center_crop(16) | normalize(half)"), ["real", "generated"])
    small = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    assert np.allclose(teachers(small).sum(1), 1)


def test_a_teacher_of_two_sizes_is_refused(tmp_path):
    line = "two_sizes(8, bicubic, 16) | normalize(half)"
    settings = saved("testing", tmp_path / "t.ckpt", line, [24, 16])
    with pytest.raises(UserError, match="t.ckpt' looks at two sizes of a picture"):
        distill.Teachers(settings, images.Pipeline("center_crop(16) | normalize(half)"), ["real", "generated"])


class Two:
    """Stands for two processes; the other one's numbers are those of this one and 2."""

    world, first = 2, True

    def sum(self, array):
        return 2 * array + 2

    def total(self, value):
        return 2 * value + 2

    def say(self, text):
        pass


def test_moving_averages_of_running_statistics_are_averaged_over_the_processes(data, tmp_path, monkeypatch):
    """What is validated and saved with ``ema`` are the averages, not the statistics themselves."""
    kept = []
    monkeypatch.setattr(Run, "go", lambda self: kept.append(self) or 0)
    keys = dict(zip(*[iter(arguments(data, tmp_path, 16))] * 2))
    train(config.load(None, {**{k[2:]: v for k, v in keys.items()}, "model": "testing", "ema": True}))
    run = kept[0]
    run.processes = Two()
    before = {p.name: p.asnumpy().copy() for p in (*run.student.tensors, *run.updater.ema.averages)}
    run._share_statistics()
    for p in (*run.student.tensors, *run.updater.ema.averages):
        assert np.array_equal(p.asnumpy(), before[p.name] + ("moving_" in p.name)), p.name
    assert sum("ema." in name and "moving_" in name for name in before) == 2


def test_processes_that_resume_different_states_are_refused(data, tmp_path, monkeypatch):
    path = trained(data, tmp_path, epoch_size=1).with_name("state.ckpt")
    begin = Run._begin

    def with_another(self):
        self.processes.total, self.processes.world = Two().total, 2
        begin(self)

    monkeypatch.setattr(Run, "_begin", with_another)
    with pytest.raises(UserError, match="the processes have different states, here of 3 updates; ckpt_save_dir must"):
        trained(data, tmp_path, epoch_size=2, resume=str(path))
    assert path.is_file() and len(numbers(tmp_path / "log.csv", ["epoch"])) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": ["a"]}, "did you mean 'teachers'"),
        ({"teachers": []}, "distill needs teachers"),
        ({"teachers": ["no.ckpt"]}, "'no.ckpt' does not exist"),
        ({"teachers": ["no.ckpt"], "alpha": 2}, r"distill alpha \(=2\) must be a number between 0 and 1"),
    ],
)
def test_wrong_teachers_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        distill.Teachers(settings, images.Pipeline("to_float"), ["real", "generated"])
