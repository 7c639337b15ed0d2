"""Configuration: types, errors, YAML, command line."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aidet import config, images
from aidet.errors import UserError
from aidet.training import checks, schedules


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_values_get_the_types_of_their_keys(tmp_path):
    c = config.load(write(tmp_path, "lr: 1e-4\nepoch_size: 3\nema: true\nscale: [0.2, 1.0]\nloss: ce\nopt: AdamW\n"))
    assert (c.lr, c.epoch_size, c.ema, c.scale, c.loss, c.opt) == (1e-4, 3, True, [0.2, 1.0], "CE", "adamw")
    assert c.given == {"lr", "epoch_size", "ema", "scale", "loss", "opt"}


def test_the_command_line_overrides_the_file_and_takes_lists_and_booleans(tmp_path):
    path = write(tmp_path, "lr: 0.1\nema: true\n")
    found, overrides, flags = config.parse_args(
        ["-c", str(path), "--lr=0.2", "--scale", "0.2,1.0", "--ratio", "0.9", "1.1", "--drop_overflow_update", "False",
         "--no-ema", "--use_nesterov", "--dry-run", "--mean", "[1, 2, 3]"], ["dry_run"],
    )  # fmt: skip
    c = config.load(found, overrides)
    assert (c.lr, c.scale, c.ratio, c.mean) == (0.2, [0.2, 1.0], [0.9, 1.1], [1.0, 2.0, 3.0])
    assert (c.drop_overflow_update, c.ema, c.use_nesterov, flags) == (False, False, True, {"dry_run"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochsize: 3", "unknown key 'epochsize'; did you mean 'epoch_size'?"),
        ("lr: fast", "lr (='fast') must be a number"),
        ("batch_size: 0", "batch_size (=0) must be >= 1"),
        ("batch_size: 2.5", "batch_size (=2.5) must be a whole number"),
        ("ema: maybe", "ema (='maybe') must be true or false"),
        ("hflip: 1.5", "hflip (=1.5) must be <= 1"),
        ("lr: .nan", "lr (=nan) must be >= 0"),
        ("mean: [1, 2]", "mean (=[1, 2]) must be a list of 3"),
        ("scheduler: sometimes", "scheduler (='sometimes') must be one of constant"),
        ("- a\n- b", "must be a mapping of keys to values"),
        ("lr: 1\nlr: 2", "key 'lr' appears twice"),
        ("lr: !!python/object/apply:os.system ['true']", "cannot be read"),
        ("lr: [1", "cannot be read"),
        ("epochs: 5\nepoch_size: 9", "epochs (=5) is another name of epoch_size (=9); give one of them"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        config.load(write(tmp_path, text))


def test_names_of_other_programs_are_found_in_a_file_and_on_the_command_line(tmp_path):
    (tmp_path / "c.yaml").write_text("learning_rate: 3e-4\nnum_epochs: 7\narch: testing\nimg_size: 96\n")
    c = config.load(tmp_path / "c.yaml")
    assert (c.lr, c.epoch_size, c.model, c.image_resize) == (3e-4, 7, "testing", 96)
    argv = "--learning-rate 1e-2 --optimizer sgd --wd=0.1 --workers 3 --out o --device CPU".split()
    c = config.load(tmp_path / "c.yaml", config.parse_args(argv)[1])
    assert (c.lr, c.opt, c.weight_decay, c.num_parallel_workers) == (1e-2, "sgd", 0.1, 3)
    assert (c.ckpt_save_dir, c.device_target) == ("o", "CPU")
    same = {"learning_rate": "1e-2", "lr": 0.01, "dynamic_loss_scale": True, "loss_scale_type": "dynamic"}
    assert config.load(tmp_path / "c.yaml", same).lr == 1e-2
    with pytest.raises(UserError, match="unknown flag 'lerning_rate'; did you mean 'learning_rate'"):
        config.parse_args(["--lerning_rate", "1"])


def test_how_images_are_read_is_a_key(tmp_path):
    c = config.load(None, config.parse_args(["--max-pixels", "200M", "--truncated", "score"])[1])
    assert (c.max_pixels, c.truncated) == (200_000_000, "score")
    assert images.Reading.of(c) == images.Reading(200_000_000, "score")
    assert images.Reading.of(config.load(None)) == images.Reading()
    with pytest.raises(UserError, match="max_pixels .='many'. must be a number of pixels, for example 200M"):
        config.load(None, {"max_pixels": "many"})


def test_the_command_line_wins_by_any_name_of_a_key(tmp_path):
    """Also over the configuration that a run wrote, which has every key in it."""
    path = write(tmp_path, config.load(None, {"output_path": "first", "ckpt_path": "first.ckpt"}).to_yaml())
    again = config.load(path)
    assert (again.ckpt_save_dir, again.init_from) == ("first", "first.ckpt")
    for name in ("ckpt_save_dir", "output_path", "train_url"):
        assert config.load(path, {name: "second"}).ckpt_save_dir == "second"
    for name in ("ckpt_path", "init_from", "pretrain_url"):
        assert config.load(path, {name: "second.ckpt"}).init_from == "second.ckpt"
    # As a job's own key wins over what a platform adds.
    assert config.load(None, {"output_path": "theirs", "ckpt_save_dir": "mine"}).ckpt_save_dir == "mine"
    c = config.load(path, {"ckpt_path": "state.ckpt", "resume_opt": "true"})
    assert (c.init_from, c.resume) == ("first.ckpt", "state.ckpt")
    path = write(tmp_path, c.to_yaml())
    assert config.load(path, {"ckpt_path": "other.ckpt"}).resume == "other.ckpt"


def profiled(folder):
    """A recipe with an overlay ``small``, and a recipe without one."""
    (folder / "small").mkdir()
    write(folder, "lr: 0.1\nepoch_size: 9\nbatch_size: 8\n")
    (folder / "small" / "c.yaml").write_text("epoch_size: 3\nbatch_size: 4\nlr: 0.1\nseed: 7\n")
    (folder / "other.yaml").write_text("lr: 0.1\n")
    return folder / "c.yaml"


def test_a_profile_comes_between_the_file_and_the_command_line(tmp_path):
    path = profiled(tmp_path)
    found, overrides, _ = config.parse_args(["-c", str(path), "--profile", "small", "--seed", "5"])
    c = config.load(found, overrides)
    assert (c.lr, c.epoch_size, c.batch_size, c.seed) == (0.1, 3, 4, 5)
    assert c.profile.changes == {"epoch_size": 3, "batch_size": 4}  # lr is the same, seed is the command line's
    line = f"profile small ({tmp_path / 'small' / 'c.yaml'}) changes epoch_size 3; batch_size 4"
    assert c.profile.line() == line and config.load(found).profile is None
    # What a run writes holds the values, not the name of the profile.
    written = write(tmp_path, c.to_yaml())
    assert config.load(written).as_dict() == c.as_dict()


def test_a_profile_says_what_follows_from_its_keys_and_which_have_no_use(tmp_path):
    path = profiled(tmp_path)
    (tmp_path / "small" / "c.yaml").write_text("metrics: [auc]\nsmooth_factor: 0.1\n")
    c = config.load(path, {"profile": "small", "mixup_mode": "batch"})
    assert c.profile.changes == {"metrics": ["auc"], "monitor": "auc"}
    assert c.dropped == ["smooth_factor", "mixup_mode"]
    assert config.load(path, {"mixup_mode": "batch"}).dropped == config.Config({"mixup_mode": "batch"}).dropped


@pytest.mark.parametrize(
    ("name", "recipe", "message"),
    [
        ("small", "other.yaml", "profile 'small' has no overlay for 'other'"),
        ("smal", "c.yaml", "unknown profile 'smal'; did you mean 'small'? (profiles are folders beside "),
        ("../small", "c.yaml", "unknown profile"),
        ("", "c.yaml", "unknown profile"),
        ("small", None, "--profile small needs the recipe that it changes: -c FILE"),
    ],
)
def test_a_profile_that_is_missing_is_one_clear_error(tmp_path, name, recipe, message):
    profiled(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        config.load(recipe and tmp_path / recipe, {"profile": name})


def test_keys_of_a_profile_are_checked_as_any_other(tmp_path):
    path = profiled(tmp_path)
    (tmp_path / "small" / "c.yaml").write_text("epochsize: 3\n")
    with pytest.raises(UserError, match="unknown key 'epochsize'; did you mean 'epoch_size'"):
        config.load(path, {"profile": "small"})
    (tmp_path / "small" / "c.yaml").write_text("[1")
    with pytest.raises(UserError, match="small/c.yaml.*cannot be read"):
        config.load(path, {"profile": "small"})


@pytest.mark.parametrize("name", ["demo.yaml", "mindcv_cfg/dem.yaml", "mindcv_cfg/demo.yml", "elsewhere/demo.yaml"])
def test_the_recipe_that_is_meant_is_named_with_its_folder(name, monkeypatch):
    monkeypatch.chdir(Path(config.__file__).resolve().parents[2])
    with pytest.raises(UserError, match=f"'{name}' does not exist; did you mean 'mindcv_cfg/demo.yaml'"):
        config.load(name)
    with pytest.raises(UserError, match="does not exist; known are .*clip_probe.yaml, .*demo.yaml") as error:
        config.load("other_thing.yaml")
    assert "mkdocs.yml" not in str(error.value), "a file of the clone that is no recipe"


def test_missing_file_and_unknown_flag(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        config.load(tmp_path / "no.yaml")
    with pytest.raises(UserError, match=re.escape("unknown flag 'epochsize'; did you mean 'epoch_size'?")):
        config.parse_args(["--epochsize", "3"])
    with pytest.raises(UserError, match="--lr needs a value"):
        config.parse_args(["--lr"])
    with pytest.raises(UserError, match="unexpected argument 'x'"):
        config.parse_args(["x"])


def test_a_written_configuration_loads_back_unchanged(tmp_path):
    c = config.load(
        None, {"lr": 0.01, "lr_groups": {"head.*": 2}, "class_weights": "1,2", "transform": "decode | hflip"}
    )
    again = config.load(write(tmp_path, c.to_yaml()))
    assert again.as_dict() == c.as_dict()


def test_platform_names_are_mapped():
    c = config.load(None, {"data_url": "/d", "train_url": "/o", "pretrain_url": "", "aim_repo": "x"})
    assert (c.data_dir, c.ckpt_save_dir, c.init_from) == ("/d", "/o", None)
    # A job's own key wins over what the platform adds.
    assert config.load(None, {"data_url": "/d", "data_dir": "/mine"}).data_dir == "/mine"
    assert config.load(None, {"output_path": "/out"}).ckpt_save_dir == "/out"


def test_ckpt_path_means_init_from_or_with_resume_opt_resume():
    assert config.load(None, {"ckpt_path": "my.ckpt"}).init_from == "my.ckpt"
    c = config.load(None, {"ckpt_path": "my.ckpt", "resume_opt": True})
    assert (c.init_from, c.resume) == (None, "my.ckpt")


def test_help_and_a_bad_flag_need_no_framework():
    code = (
        "import sys, runpy; sys.argv = ['train.py', {}]\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as e: print(e.code, 'mindspore' in sys.modules, 'numpy' in sys.modules)"
    )
    for flag, wanted in (("'--help'", "0 False False"), ("'--lrr', '3'", "2 False False")):
        done = subprocess.run([sys.executable, "-c", code.format(flag)], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip().splitlines()[-1] == wanted, done.stderr


def rates(**keys):
    """Learning rates of 4 epochs with 10 steps each."""
    return schedules.learning_rates(config.load(None, {"lr": 1.0, "min_lr": 0.0, "epoch_size": 4, **keys}), 10)


def test_schedules():
    # The expected values follow by hand from PyTorch's definitions, which MindCV shares.
    cosine = rates(scheduler="cosine_decay")
    assert cosine[0] == 1.0 and abs(cosine[20] - 0.5) < 1e-12 and 0 < cosine[-1] < 0.01 and len(cosine) == 40
    warm = rates(scheduler="constant", warmup_epochs=1)
    assert warm[0] == 0.0 and abs(warm[5] - 0.5) < 1e-12 and set(warm[10:]) == {1.0}
    assert rates(scheduler="step_decay", decay_epochs=2, decay_rate=0.1)[20] == 0.1
    multi = rates(scheduler="multi_step_decay", multi_step_decay_milestones=[1, 3], decay_rate=0.5)
    assert (multi[9], multi[10], multi[29], multi[30]) == (1.0, 0.5, 0.5, 0.25)
    assert abs(rates(scheduler="exponential_decay", decay_rate=0.5)[20] - 0.25) < 1e-12
    stair = rates(scheduler="exponential_decay", decay_rate=0.5, lr_epoch_stair=True)
    assert stair[10] == stair[19] == 0.5
    cycle = rates(scheduler="one_cycle", min_lr=1e-4)
    assert abs(cycle[0] - 1 / 25) < 1e-12 and cycle[11] == 1.0 and abs(cycle[-1] - 1e-4) < 1e-12
    assert abs(max(rates(scheduler="cyclic", num_cycles=2)) - 1.0) < 1e-12
    assert abs(rates(scheduler="polynomial_decay", decay_rate=1.0)[20] - 0.5) < 1e-12


@pytest.fixture(scope="module")
def mindcv_scheduler():
    """MindCV's scheduler package alone, without the framework behind it."""
    found = importlib.util.find_spec("mindcv")
    if found is None:
        pytest.skip("mindcv is not installed")
    place = Path(found.origin).parent / "scheduler"
    spec = importlib.util.spec_from_file_location(
        "mindcv_scheduler", place / "__init__.py", submodule_search_locations=[str(place)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["mindcv_scheduler"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("warmup", "stair"), [(0, False), (2, False), (2, True)])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("constant", {}),
        ("warmup_cosine_decay", {}),
        ("cosine_decay", {"decay_epochs": 3, "num_cycles": 2, "cycle_decay": 0.5}),
        ("exponential_decay", {"decay_rate": 0.7}),
        ("step_decay", {"decay_epochs": 2, "decay_rate": 0.5}),
        ("multi_step_decay", {"multi_step_decay_milestones": [2, 5], "decay_rate": 0.1}),
        ("polynomial_decay", {"decay_rate": 2.0}),
        ("one_cycle", {}),
        ("cyclic", {"num_cycles": 2}),
    ],
)
def test_every_schedule_equals_mindcvs_at_every_step(mindcv_scheduler, name, more, warmup, stair):
    if name in ("one_cycle", "cyclic") and warmup:
        pytest.skip("refused by both")
    common = {"scheduler": name, "lr": 0.1, "min_lr": 1e-4, "warmup_epochs": warmup, "warmup_factor": 0.01,
              "lr_epoch_stair": stair, "decay_epochs": 10 - warmup, **more}  # fmt: skip
    ours = schedules.learning_rates(config.load(None, {**common, "epoch_size": 10}), 7)
    common["milestones"] = common.pop("multi_step_decay_milestones", None)
    theirs = mindcv_scheduler.create_scheduler(7, num_epochs=10, **common)
    assert len(ours) == len(theirs) == 70 and max(abs(a - b) for a, b in zip(ours, theirs)) < 1e-12


SCHEDULE = {
    "min_lr": 0.05, "decay_epochs": 2, "decay_rate": 0.3, "multi_step_decay_milestones": [1, 2], "num_cycles": 2,
    "cycle_decay": 0.5, "lr_epoch_stair": True, "warmup_factor": 0.5, "warmup_epochs": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "scheduler",
    [
        "constant",
        "cosine_decay",
        "warmup_cosine_decay",
        "exponential_decay",
        "step_decay",
        "multi_step_decay",
        "polynomial_decay",
        "one_cycle",
        "cyclic",
    ],
)
@pytest.mark.parametrize("more", [{}, {"warmup_epochs": 1}, {"num_cycles": 2}], ids=str)
def test_a_key_of_the_schedule_is_named_where_it_changes_no_rate(scheduler, more):
    """Also the other way round: what is not named changes some rate."""
    keys = {"scheduler": scheduler, "lr": 1.0, "epoch_size": 40, **more}
    if scheduler in ("one_cycle", "cyclic") and "warmup_epochs" in more:
        pytest.skip("refused")
    plain = schedules.learning_rates(config.load(None, keys), 3)
    for name in set(SCHEDULE) - set(more):
        c = config.load(None, {**keys, name: SCHEDULE[name]})
        try:
            rates = schedules.learning_rates(c, 3)
        except UserError:
            continue
        idle = [line.split()[0] for line in checks.idle_keys(c, "CPU")]
        assert (name in idle) == (rates == plain), (name, idle)


def test_schedule_errors():
    with pytest.raises(UserError, match="warmup_epochs .=9. is more than epoch_size .=4."):
        rates(warmup_epochs=9)
    with pytest.raises(UserError, match="one_cycle"):
        rates(scheduler="one_cycle", warmup_epochs=1)


def test_more_epochs_leave_the_earlier_rates_unchanged():
    short, long = (rates(scheduler="step_decay", decay_epochs=2, epoch_size=n) for n in (2, 6))
    assert long[: len(short)] == short
