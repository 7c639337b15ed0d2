"""Keys that act on each other: what a resumed run takes from its state and what from the keys, what is refused."""

import shutil

import pytest
from test_train import data, fitted, rows  # noqa: F401  (data is a fixture)

from aidet import ckpt
from aidet.errors import UserError
from aidet.training.updates import Updater


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):  # noqa: F811
    """The same images, of classes that say neither real nor generated."""
    root = tmp_path_factory.mktemp("plain")
    for split in ("train", "val"):
        for name, other in (("real", "cat"), ("fake", "dog")):
            shutil.copytree(data / split / name, root / split / other)
    return root


def cut(data, out, number, monkeypatch, **more):  # noqa: F811
    """A run that ends before a step of its first epoch."""
    step = Updater.update

    def stops(self, batch, progress):
        if batch.number == number:
            raise KeyboardInterrupt
        return step(self, batch, progress)

    monkeypatch.setattr(Updater, "update", stops)
    with pytest.raises(KeyboardInterrupt):
        fitted(data, out, **more)
    monkeypatch.undo()


def test_a_state_inside_an_epoch_needs_updates_that_end_there(data, tmp_path, monkeypatch):  # noqa: F811
    """Else the first update after it would be made from a part of its batches, weighted as if they were all."""
    keys = {"batch_size": 4, "save_every_steps": 3, "epoch_size": 1}
    cut(data, tmp_path, 4, monkeypatch, gradient_accumulation_steps=3, **keys)
    with pytest.raises(UserError, match=r"is 3 steps into an epoch, .* gradient_accumulation_steps .=2.; set it to"):
        fitted(data, tmp_path, gradient_accumulation_steps=2, resume="auto", **keys)
    assert fitted(data, tmp_path, gradient_accumulation_steps=3, resume="auto", **keys)[0] == 0
    assert [int(row["update"]) for row in rows(tmp_path / "steps.csv")] == [1, 2, 3, 4]


def test_a_fixed_loss_scale_is_that_of_the_keys_also_when_resumed(data, tmp_path, monkeypatch):  # noqa: F811
    fitted(data, tmp_path, epoch_size=1, loss_scale=8)
    seen, step = set(), Updater.update

    def watched(self, batch, progress):
        seen.add(progress.scale)
        return step(self, batch, progress)

    monkeypatch.setattr(Updater, "update", watched)
    fitted(data, tmp_path, epoch_size=2, loss_scale=1024, resume="auto")
    assert seen == {1024}


def test_the_precision_of_the_validation_holds_against_cast_layers(data, tmp_path, monkeypatch):  # noqa: F811
    """amp_cast_list casts the training's network, val_amp_level O0 asks for a validation without."""
    monkeypatch.chdir(tmp_path)  # where MindSpore writes the networks that it rewrites
    cast = {"epoch_size": 1, "amp_cast_list": ["Conv2d", "Dense"]}
    fitted(data, tmp_path / "a", **cast)
    fitted(data, tmp_path / "b", val_amp_level="O0", **cast)
    one, two = (float(rows(tmp_path / n / "log.csv")[0]["val_loss"]) for n in "ab")
    assert one != two and abs(one - two) < 5e-3
    assert rows(tmp_path / "a/steps.csv") == rows(tmp_path / "b/steps.csv")


def test_plain_classes_have_no_threshold_and_no_auc(data, plain, tmp_path, capsys):  # noqa: F811
    for more, message in (
        ({"threshold": "auto"}, "threshold auto needs the classes real and generated"),
        ({"monitor": "auc"}, r"monitor .=auc. needs the classes real and generated"),
        ({"metrics": ["auc", "accuracy"]}, r"monitor .=auc. needs the classes real and generated"),
    ):
        with pytest.raises(UserError, match=message):
            fitted(plain, tmp_path, **more)
    assert not list(tmp_path.iterdir())
    code, _ = fitted(plain, tmp_path / "one", num_classes=1, threshold=0.3, epoch_size=1)
    assert code == 0 and 0 <= float(rows(tmp_path / "one/log.csv")[0]["balanced_accuracy"]) <= 1
    assert "without effect here: threshold (=0.3), the classes" in capsys.readouterr().err
    assert ckpt.read_sidecar(tmp_path / "one/best.ckpt")["num_outputs"] == 1
    assert fitted(plain, tmp_path / "two", monitor="recall", epoch_size=1)[0] == 0


def test_training_evaluation_and_views_have_the_same_numbers(data, tmp_path):  # noqa: F811
    """Else the network is validated, and later used, on numbers that it never saw."""
    line = "center_crop(16) | normalize(imagenet)"
    for more, message in (
        ({"transform_eval": line}, "transform_eval .*imagenet.* does not map pixels to the numbers .*half"),
        ({"transform": None, "image_resize": 16}, "transform_eval .*half.* does not map pixels"),
        ({"views": line}, "views .*imagenet.* does not map pixels"),
        ({"views": "center_crop(16) | high_pass"}, "views .*high_pass.* does not map pixels"),
    ):
        with pytest.raises(UserError, match=message):
            fitted(data, tmp_path, **more)
    same = "center_crop(16) | to_float(-1, 1)"  # as normalize(half)
    assert fitted(data, tmp_path, views=same, epoch_size=0)[0] == 0


def test_a_run_of_no_epochs_says_so(data, tmp_path):  # noqa: F811
    assert fitted(data, tmp_path, epoch_size=0)[1][-1].endswith("best.ckpt here, because no epoch was trained")


def test_more_keys_without_effect_are_named(data, tmp_path, capsys):  # noqa: F811
    fitted(data, tmp_path, epoch_size=0, val_while_train=False, val_every_steps=2, val_interval=3, val_amp_level="O3",
           resume_opt=True, opt="sgd", eps=1e-3, sampler="class", shuffle=False, amp_dtype="bfloat16", re_ratio=[1, 2],
           scheduler="constant", min_lr=0.1, warmup_factor=0.1)  # fmt: skip
    line = next(line for line in capsys.readouterr().err.splitlines() if "without effect" in line)
    for word in ("val_every_steps (", "val_interval (", "val_amp_level (", "resume_opt (without ckpt_path)",
                 "re_ratio (", "eps (opt sgd does not read it)", "min_lr (scheduler constant does not read it)",
                 "warmup_factor (", "shuffle (a sampler draws in random order)"):  # fmt: skip
        assert word in line, word
    assert "amp_dtype" not in line and "momentum" not in line  # with val_amp_level O3 it would say the type
