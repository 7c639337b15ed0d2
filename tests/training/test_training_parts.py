"""The parts of a training run on their own: what is remembered, taught, planned and left out."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_train import RESUMES, data, fitted, log, rows  # noqa: F401 - data is a fixture

from aidet import ckpt, config, metrics
from aidet.errors import UserError
from aidet.training import checks, saving, updates
from aidet.training.log import Journal
from aidet.training.processes import Processes
from aidet.training.run import global_batches, train
from aidet.training.saving import Progress
from aidet.training.targets import batch_weights, loss_kind, soft_targets
from aidet.training.validation import host_loss

# Written after update 4 (two of the six steps of epoch 2) by the version before Progress, with the keys of
# test_train.RESUMES["everything"].
OLD_STATE = Path(__file__).parents[1] / "data" / "training" / "state.ckpt"
NAMES = (
    "epochs", "batches", "updates", "running", "best", "waiting", "scale", "good_steps", "rows", "batches_per_epoch",
    "world",
)  # fmt: skip


def meta_of(path):
    return json.loads(ckpt.load_arrays(path)[ckpt.META].tobytes().decode())


def test_a_state_keeps_its_names(tmp_path):
    """Older states resume, and older versions read new ones: the names and their order are those of before."""
    before = meta_of(OLD_STATE)
    assert tuple(before) == NAMES
    saving.save_state(Progress(**before), {}, tmp_path)
    assert meta_of(tmp_path / "state.ckpt") == before and tuple(meta_of(tmp_path / "state.ckpt")) == NAMES


def test_a_state_of_the_version_before_resumes_in_the_middle_of_an_epoch(data, tmp_path):  # noqa: F811
    more = {**RESUMES["everything"], "save_every_steps": 2}
    fitted(data, tmp_path / "whole", **more)
    (tmp_path / "old").mkdir()
    shutil.copy(OLD_STATE, tmp_path / "old" / "state.ckpt")
    _, said = fitted(data, tmp_path / "old", resume="auto", **more)
    assert said[0] == f"resumed {tmp_path / 'old' / 'state.ckpt'}: 4 updates, 1 whole epochs done"
    before, table, whole = meta_of(OLD_STATE), log(tmp_path / "old"), log(tmp_path / "whole")
    assert len(table) == len(whole) == 3
    # The first epoch is the old run's, the others go on from its tensors; processors differ in the last digits.
    assert all(float(table[0][name]) == before["rows"][0][name] for name in table[0])
    for a, b in zip(table[1:], whole[1:]):
        for name in ("updates", "lr", "train_loss", "val_loss"):
            assert abs(float(a[name]) - float(b[name])) < 1e-3, name
    old, new = (rows(tmp_path / name / "steps.csv") for name in ("old", "whole"))
    assert [row["update"] for row in old] == [row["update"] for row in new[4:]]
    assert np.allclose([float(row["loss"]) for row in old], [float(row["loss"]) for row in new[4:]], atol=1e-3)
    assert meta_of(tmp_path / "old" / "state.ckpt")["updates"] == 9


def test_a_state_of_another_kind_is_refused(data, tmp_path):  # noqa: F811
    more = {**RESUMES["everything"], "resume": str(tmp_path / "state.ckpt")}
    arrays = ckpt.load_arrays(OLD_STATE)
    meta = meta_of(OLD_STATE)
    for change, message in (
        ({"tempo": 1}, "damaged or from another version.*tempo"),
        ({"batches_per_epoch": 5}, "middle of an epoch of 5 steps.*this configuration has 6"),
        (None, "is not a state of train.py; to start from weights use init_from"),
    ):
        arrays[ckpt.META] = np.frombuffer(json.dumps({**meta, **(change or {})}).encode(), np.uint8)
        if change is None:
            del arrays[ckpt.META]
        ckpt.save_arrays(arrays, tmp_path / "state.ckpt")
        with pytest.raises(UserError, match=message):
            fitted(data, tmp_path / "out", **more)
        assert not (tmp_path / "out").exists()


def test_weights_of_a_state_start_another_run(data, tmp_path):  # noqa: F811
    state = ckpt.load_arrays(OLD_STATE)
    fitted(data, tmp_path, init_from=str(OLD_STATE), lr=1e-6, min_lr=0.0, weight_decay=0.0, epoch_size=1)
    kept = ckpt.load_arrays(tmp_path / "last.ckpt")
    assert kept.keys() == {n[4:] for n in state if n.startswith("net.")}
    assert all(np.allclose(a, state[f"net.{n}"], atol=1e-4) for n, a in kept.items() if "moving_" not in n)


def test_progress_judges_by_the_metric():
    up, down = Progress(), Progress()
    assert [up.judge({"epoch": e, "auc": v}, "auc") for e, v in enumerate((0.5, 0.7, 0.6, 0.7), 1)] == [
        True, True, False, False,
    ]  # fmt: skip
    assert up.best == {"value": 0.7, "epoch": 2, "threshold": None, "monitor": "auc"} and up.waiting == 2
    assert [down.judge({"epoch": e, "val_loss": v}, "val_loss") for e, v in enumerate((0.5, 0.7, 0.4), 1)] == [
        True, False, True,
    ]  # fmt: skip
    # An epoch without validation is neither better nor waited for.
    assert not up.judge({"epoch": 5}, "auc") and up.waiting == 2
    first, second = Progress(), Progress()
    first.count(2.0)
    assert second.running == [0.0, 0] and first.running == [2.0, 1] and first.updates == 1


def test_the_loss_scale_falls_and_rises():
    progress = Progress(scale=1024.0)
    updates.adapt_scale(progress, finite=False)
    assert (progress.scale, progress.good_steps) == (512.0, 0)
    for _ in range(updates.GROWTH - 1):
        updates.adapt_scale(progress, finite=True)
    assert (progress.scale, progress.good_steps) == (512.0, updates.GROWTH - 1)
    updates.adapt_scale(progress, finite=True)
    assert (progress.scale, progress.good_steps) == (1024.0, 0)
    progress.scale = 1.5
    updates.adapt_scale(progress, finite=False)
    assert progress.scale == 1.0
    assert updates.first_scale(config.load(None, {})) == 1.0
    assert updates.first_scale(config.load(None, {"loss_scale_type": "dynamic"})) == 65536.0


def test_an_update_that_overflows_is_left_out_and_the_scale_halved(data, tmp_path):  # noqa: F811
    """A scale that makes the gradients infinite: nothing moves, and each of the two updates halves it."""
    more = {"epoch_size": 1, "num_samples": 16, "opt": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    more["freeze"] = ["norm.*"]  # whose statistics would move without an update
    fitted(data, tmp_path / "start", **{**more, "lr": 0.0, "scheduler": "constant"})
    fitted(data, tmp_path / "b", **more, loss_scale=3e38, loss_scale_type="dynamic")
    meta = meta_of(tmp_path / "b" / "state.ckpt")
    assert meta["updates"] == 2 and meta["scale"] == 3e38 / 4 and meta["good_steps"] == 0
    start, after = (ckpt.load_arrays(tmp_path / n / "last.ckpt") for n in ("start", "b"))
    assert all(np.array_equal(start[n], after[n]) for n in start)


def test_soft_targets_follow_the_order_of_the_outputs():
    index = np.array([0, 1, 1])
    assert soft_targets(index, 2, ["real", "generated"]).tolist() == [[1, 0], [0, 1], [0, 1]]
    assert soft_targets(index, 2, ["generated", "real"]).tolist() == [[0, 1], [1, 0], [1, 0]]
    assert soft_targets(index, 1, ["generated"]).tolist() == [[0], [1], [1]]
    assert soft_targets(index, 1, ["real"]).tolist() == [[1], [0], [0]]
    assert soft_targets(index, 1, None).tolist() == [[0], [1], [1]]
    found = soft_targets(np.array([2, 0]), 4, None, smoothing=0.2)
    assert found.dtype == np.float32 and np.allclose(found, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
    assert np.allclose(soft_targets(index, 1, ["generated"], 0.2), [[0.1], [0.9], [0.9]])


def test_weights_of_an_update_sum_to_one_over_its_batches():
    known, weight = np.array([0, 1, 1, -1, 0]), np.array([1.0, 3.0])
    group = np.array([0, 1, 2, 3, 4, -1])
    parts = [batch_weights(rows, group, known, weight, "mean") for rows in (group[:3], group[3:])]
    assert np.isclose(sum(w.sum() for _, w in parts), 1.0)
    assert np.allclose(parts[0][1], [1 / 8, 3 / 8, 3 / 8]) and np.allclose(parts[1][1], [0, 1 / 8, 0])
    assert parts[0][0].tolist() == [0, 1, 1] and parts[1][0].tolist() == [0, 0, 0]
    assert np.allclose(batch_weights(group[:3], group, known, weight, "sum")[1], [1, 3, 3])


def test_the_loss_of_the_validation_knows_no_smoothing():
    logits = np.array([[2.0, -1.0], [0.5, 0.25], [9.0, 9.0]])
    wanted = -np.mean(
        [np.log(np.exp(2) / (np.exp(2) + np.exp(-1))), np.log(np.exp(0.25) / (np.exp(0.5) + np.exp(0.25)))]
    )
    assert np.isclose(host_loss(logits, np.array([0, 1, -1]), ["real", "generated"], "CE"), wanted)
    one = np.array([[2.0], [-1.0]])
    wanted = np.mean([np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0))])
    assert np.isclose(host_loss(one, np.array([1, 0]), ["generated"], "BCE"), wanted)
    assert np.isnan(host_loss(logits, np.full(3, -1), None, "CE"))
    assert loss_kind(SimpleNamespace(loss="CE"), 1) == "BCE" and loss_kind(SimpleNamespace(loss="CE"), 2) == "CE"
    assert loss_kind(SimpleNamespace(loss="JSD"), 1) == "JSD"


@pytest.mark.parametrize("scores", [[0.1, 0.4, 0.35, 0.8], [0.5, 0.5, 0.5, 0.9], [1.0, 0.0, 1.0, 0.0]])
def test_metrics_of_the_training_are_scikit_learns(scores):
    from sklearn import metrics as sk

    truth, score = np.array([0, 0, 1, 1]), np.array(scores)
    decided = (score > 0.45).astype(int)
    found = metrics.class_metrics(truth, decided, score, 2)
    assert set(found) == set(metrics.METRICS) - {"val_loss"}
    assert np.isclose(found["auc"], sk.roc_auc_score(truth, score))
    assert np.isclose(found["balanced_accuracy"], sk.balanced_accuracy_score(truth, decided))
    assert np.isclose(found["macro_f1"], sk.f1_score(truth, decided, average="macro"))
    assert np.isclose(found["recall"], sk.recall_score(truth, decided))


def test_an_epoch_is_filled_up_and_cut():
    order = np.stack([np.arange(5), np.zeros(5, int)], 1)
    assert [b[:, 0].tolist() for b in global_batches(order, 2, 3)] == [[0, 1, 2], [3, 4, -1]]
    assert [b[:, 0].tolist() for b in global_batches(order, 1, 3)] == [[0, 1, 2]]


def test_a_plan_counts_steps_and_updates_of_all_processes(data, tmp_path):  # noqa: F811
    settings = config.load(None, {
        "data_dir": str(data), "ckpt_save_dir": str(tmp_path / "out"), "batch_size": 10, "epoch_size": 4,
        "gradient_accumulation_steps": 2, "drop_remainder": False, "transform": "resize((16, 12)) | to_float",
        "transform_eval": "center_crop(16) | to_float", "class_weights": "balanced",
    })  # fmt: skip
    found, lines = checks.find_data(settings, print), checks.find_lines(settings)
    assert (lines.size, lines.size_eval, lines.views) == ((16, 12), (16, 16), None)
    for world, batches, wanted in ((1, 5, 3), (2, 3, 2), (3, 2, 1)):
        plan = checks.make_plan(settings, found, lines, world)
        assert (plan.batches, plan.updates_per_epoch, len(plan.rates)) == (batches, wanted, 4 * wanted)
    assert plan.class_weights.tolist() == [1.0, 1.0] and plan.folder == tmp_path / "out"
    with pytest.raises(AttributeError):
        plan.batches = 7
    settings.class_weights = [1.0]
    with pytest.raises(UserError, match="class_weights has 1 values, the data 2 classes"):
        checks.make_plan(settings, found, lines, 1)


def test_only_the_first_process_speaks(capsys):
    said = []
    processes = Processes(said.append)
    processes.say("a")
    processes.warn("b")
    processes.rank, processes.world = 1, 2
    processes.say("c")
    processes.warn("d")
    assert said == ["a"] and capsys.readouterr().err == "b\n"
    assert Processes(said.append).total(0.1) == 0.1


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(data, tmp_path, capsys):  # noqa: F811
    said = []
    settings = config.load(None, {
        "model": "testing", "data_dir": str(data), "ckpt_save_dir": str(tmp_path / "out"), "batch_size": 8,
        "transform": "center_crop(16) | normalize(half)", "transform_eval": "center_crop(16) | normalize(half)",
        "device_target": "CPU", "epoch_size": 2, "lr": 0.03, "scheduler": "constant", "hflip": 0.3,
    })  # fmt: skip
    assert train(settings, dry_run=True, out=said.append) == 0
    assert "note: without effect here: hflip (transform says it all)" in capsys.readouterr().err
    words = [line.split()[0] for line in said[1:]]
    assert words == "train validation classes transform evaluation model device steps output".split()
    assert "2 epochs x 6 updates, lr up to 0.03" in said[-2] and not os.path.exists(tmp_path / "out")


def test_a_dry_run_misses_a_teacher_that_is_not_there(data, tmp_path):  # noqa: F811
    settings = config.load(None, {
        "model": "testing", "data_dir": str(data), "ckpt_save_dir": str(tmp_path / "out"), "device_target": "CPU",
        "distill": {"teachers": ["no.ckpt"]},
    })  # fmt: skip
    with pytest.raises(UserError, match="teacher 'no.ckpt' does not exist"):
        train(settings, dry_run=True)


def test_a_run_ends_well_without_the_package_for_its_picture(tmp_path, monkeypatch, capsys):
    journal = Journal(tmp_path)
    journal.rows = [{"epoch": 1, "train_loss": 0.5, "val_loss": 0.4, "auc": 0.9, "lr": 0.1}]
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what import finds for a package that is missing
    journal.curves(["auc"])
    assert "curves.png is not drawn: pip install matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "curves.png").exists()


def test_a_profile_is_said_and_recorded(data, tmp_path):  # noqa: F811
    (tmp_path / "proof").mkdir()
    (tmp_path / "r.yaml").write_text(
        "model: testing\nepoch_size: 9\ntransform: center_crop(16) | normalize(half)\n"
        "transform_eval: center_crop(16) | normalize(half)\n"
    )
    (tmp_path / "proof" / "r.yaml").write_text("epoch_size: 1\n")
    said, out = [], tmp_path / "out"
    more = {"profile": "proof", "data_dir": str(data), "ckpt_save_dir": str(out), "num_parallel_workers": 0}
    settings = config.load(tmp_path / "r.yaml", {**more, "batch_size": 8, "device_target": "CPU"})
    assert train(settings, out=said.append) == 0
    line = f"profile proof ({tmp_path / 'proof' / 'r.yaml'}) changes epoch_size 1"
    assert said[0] == line and f"# {line}\n" in (out / "config.yaml").read_text(encoding="utf-8")
    recorded = json.loads((out / "best.json").read_text(encoding="utf-8"))["training"]["profile"]
    assert recorded == {"name": "proof", "file": str(tmp_path / "proof" / "r.yaml"), "changes": {"epoch_size": 1}}
