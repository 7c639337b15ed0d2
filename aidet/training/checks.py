"""The plan of a training, checked before the network is built: keys, files, data, pipelines, steps and rates."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from .. import images, metrics
from ..config import made_by
from ..config.keys import DROPPED, SCHEMA
from ..datasets import samples
from ..datasets.samples import Samples
from ..errors import UserError, nearest
from .masks import METRIC
from .pipelines import pipelines
from .schedules import learning_rates

STATE = "state.ckpt"


class Data(NamedTuple):
    """The images; ``val_set`` is None without validation, ``classes`` are in the order of the targets."""

    train_set: Samples
    val_set: Optional[Samples]
    classes: List[str]


class Lines(NamedTuple):
    """The one-line pipelines; ``size`` and ``size_eval`` are the height and width of the results of the first two."""

    text: str
    text_eval: str
    views: Optional[str]
    size: Tuple[int, int]
    size_eval: Tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """What a training will do; nothing in it changes once the network is built.

    Attributes
    ----------
    config : aidet.config.Config
    folder : Path
        Folder of the run's files.
    data : Data
    lines : Lines
    batches : int
        Steps per epoch, of each process.
    updates_per_epoch : int
        Updates of the weights: fewer than steps if gradients are accumulated.
    rates : list of float, length updates_per_epoch * epoch_size
        Learning rate of every update.
    class_weights : ndarray of float, shape (classes,)
    """

    config: Any
    folder: Path
    data: Data
    lines: Lines
    batches: int
    updates_per_epoch: int
    rates: List[float]
    class_weights: np.ndarray


def make_plan(config: Any, data: Data, lines: Lines, world: int) -> Plan:
    """The steps, learning rates and class weights of a training by ``world`` processes.

    Raises
    ------
    UserError
        The schedule or the class weights contradict the data or the length of the run.
    """
    rows = (config.samples_per_epoch if config.sampler else None) or len(data.train_set)
    whole = config.batch_size * world
    # The last batch is kept if it is the only one: otherwise the epoch would have no steps.
    batches = rows // whole if config.drop_remainder and rows >= whole else math.ceil(rows / whole)
    updates = math.ceil(batches / config.gradient_accumulation_steps)
    rates = learning_rates(config, updates)
    weights = _class_weights(config.class_weights, data)
    return Plan(config, run_folder(config), data, lines, batches, updates, rates, weights)


def run_folder(config: Any) -> Path:
    """Folder of the run's files."""
    return Path(os.path.expanduser(config.ckpt_save_dir))


def state_path(config: Any) -> Path:
    """The state file that ``resume`` continues from, whether it exists or not."""
    given = config.resume
    return run_folder(config) / STATE if given in (None, "auto") else Path(os.path.expanduser(given))


# --- one check after the other, cheapest first ----------------------------------------------------------------------
def check_files(config: Any) -> None:
    """Refuse files that are named but missing, and unknown metrics.

    Raises
    ------
    UserError
    """
    if config.init_from and Path(config.init_from).is_dir():  # a platform's pretrain_url may be one
        held = sorted(p.name for p in Path(config.init_from).iterdir() if p.suffix == ".ckpt")
        which = f": {', '.join(held[:3])}" if held else ""
        raise UserError(f"init_from {config.init_from!r} is a folder; give the file of the weights in it{which}")
    if config.init_from and not Path(config.init_from).is_file():
        raise UserError(f"init_from {config.init_from!r} does not exist{_remedy(config, config.init_from)}")
    for path in teachers_of(config.distill or {}):
        if not Path(str(path)).is_file():
            raise UserError(f"distill: teacher {str(path)!r} does not exist")
    if config.data_dir and not Path(config.data_dir).exists() and _remedy(config, config.data_dir):
        raise UserError(f"data_dir {config.data_dir!r} does not exist{_remedy(config, config.data_dir)}")
    folder = run_folder(config)
    if config.resume not in (None, "auto") and not state_path(config).is_file():
        raise UserError(f"resume {config.resume!r} does not exist")
    if config.pretrained and not config.init_from:
        raise UserError("pretrained downloads weights in MindCV; here convert them and give init_from FILE")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"ckpt_save_dir {str(folder)!r} is not a folder")
    for name in (config.monitor, *config.metrics):
        known = (*metrics.METRICS, METRIC) if config.map_weight else metrics.METRICS
        if name not in known:
            raise UserError(nearest(name, known, "metric"))


def teachers_of(distill: Mapping[str, Any]) -> List[Any]:
    """The paths of the teachers that the key ``distill`` names: a list, or one path."""
    paths = distill.get("teachers") or []
    return [paths] if isinstance(paths, str) else list(paths)


def _remedy(config, path):
    """What makes a missing file of a recipe, as the end of a sentence."""
    command = made_by(config.source, path)
    return f"; make it first: {command}" if command else ""


def check_keys(config: Any) -> None:
    """Refuse keys that contradict each other.

    Raises
    ------
    UserError
    """
    if config.ckpt_save_policy == "top_k" and not config.val_while_train:
        raise UserError("ckpt_save_policy top_k ranks by validation; set val_while_train true or use latest_k")
    if config.aug_splits == 1 or (config.loss == "JSD" and not config.aug_splits):
        raise UserError(
            f"aug_splits (={config.aug_splits}) with loss {config.loss}: JSD compares views of an image; set "
            "aug_splits 3 and auto_augment, or aug_splits 0 without JSD"
        )
    if config.aug_splits and (config.mixup or config.cutmix):
        raise UserError("aug_splits compares views of one image; set mixup 0 and cutmix 0")


def validates_apart(config: Any) -> bool:
    """Whether validation is computed in another precision than the training, by a copy of the network."""
    level = config.val_amp_level
    return level is not None and (level != config.amp_level or bool(config.amp_cast_list))


def find_data(config: Any, warn: Callable[[str], Any]) -> Data:
    """The images of a training; ``warn`` takes one line of text.

    Raises
    ------
    UserError
        There are no images, all are of one class, or a key needs a validation set and there is none.
    """
    train_set, val_set, classes = samples.open_data(config, warn)
    if val_set is None and (config.early_stopping or config.threshold == "auto"):
        raise UserError("early_stopping and threshold auto need a validation split; set val_split or val_fraction")
    if not config.val_while_train and (config.early_stopping or config.threshold == "auto"):
        raise UserError("early_stopping and threshold auto need validation while training; set val_while_train true")
    if val_set is None and config.ckpt_save_policy == "top_k":
        raise UserError("ckpt_save_policy top_k ranks by validation; give a validation split or use latest_k")
    if (train_set.sides < 0).any():
        _check_plain(config, val_set is not None and config.val_while_train, len(classes), warn)
    return Data(train_set, val_set, classes)


def _check_plain(config, validated, classes, warn):
    """Refuse what needs real and generated images where the classes are others; else it would be found at the end."""
    outputs = config.num_classes or classes
    without = ("auc",) if outputs <= 2 else ("auc", "precision", "recall")
    if validated and config.monitor in without:
        raise UserError(
            f"monitor (={config.monitor}) needs the classes real and generated; these {classes} are others: set it to "
            "accuracy, balanced_accuracy or macro_f1"
        )
    if config.threshold == "auto":
        raise UserError("threshold auto needs the classes real and generated; these are others: leave it out")
    if config.threshold != SCHEMA["threshold"].default:
        warn(f"note: without effect here: threshold (={config.threshold:g}), the classes are not real and generated")


def find_lines(config: Any) -> Lines:
    """The pipelines of a training.

    Raises
    ------
    UserError
        A line is wrong, produces images of different sizes, makes validation random, or maps pixels to other numbers
        than the training.
    """
    text, text_eval = pipelines(config)
    policies = [name for name, _ in images.parsed(text).steps].count("auto_augment")
    if config.aug_splits and policies != 1:
        raise UserError(f"aug_splits (={config.aug_splits}) needs one auto_augment in the training pipeline")
    size, size_eval = _size("transform", text), _size("transform_eval", text_eval)
    if images.parsed(text_eval).random:
        raise UserError(f"transform_eval {text_eval!r} is random; validation needs the same pixels every time")
    views = None if config.views is None else images.Pipeline(config.views).text
    for key, line in (("transform_eval", text_eval), ("views", views)):
        if line is not None and not _same_numbers(text, line):
            raise UserError(
                f"{key} {line!r} does not map pixels to the numbers that the network is trained with, {text!r}; use "
                "the same normalize, to_float or high_pass"
            )
    return Lines(text, text_eval, views, size, size_eval)


def _same_numbers(first, second):
    """Whether two lines map grey levels to the same numbers; of lines that look at neighbours, whether both do."""
    one, two = images.parsed(first).affine(), images.parsed(second).affine()
    if one is None or two is None:
        return one is two
    return all(np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(one, two))


def _size(key, text):
    size = images.parsed(text).size()
    if size is None:
        raise UserError(f"{key} {text!r} gives images of different sizes; end it with a crop or resize((h, w))")
    return size


def _class_weights(given, data):
    n = len(data.classes)
    if given is None:
        return np.ones(n)
    if given == "balanced":
        count = np.bincount(data.train_set.targets, minlength=n)
        return len(data.train_set) / (n * np.maximum(count, 1))
    if len(given) != n:
        raise UserError(f"class_weights has {len(given)} values, the data {n} classes: {data.classes}")
    if min(given) < 0 or not any(given):
        raise UserError(f"class_weights (={given}) must be numbers >= 0, not all of them 0")
    return np.array(given, np.float64)


def idle_keys(config: Any, device: Optional[str]) -> List[str]:
    """Keys that the user set and that have no effect, each with the reason."""
    idle = []
    if "dataset_sink_mode" in config.given and config.dataset_sink_mode:
        idle.append("dataset_sink_mode (batches are fed the same way on every device)")
    if config.dataset not in (None, "", "imagenet") and "dataset" in config.given:
        idle.append(f"dataset {config.dataset!r} (data_dir decides)")
    if "keep_checkpoint_max" in config.given and not config.ckpt_save_policy:
        idle.append("keep_checkpoint_max (ckpt_save_policy latest_k or top_k keeps epoch checkpoints)")
    if config.eval_shuffle:
        idle.append("eval_shuffle (the order changes no number)")
    if config.use_nesterov and config.opt not in ("sgd", "momentum", "nesterov", "adam", "adamw"):
        idle.append(f"use_nesterov (opt {config.opt} has no Nesterov momentum)")
    if config.dataset_download:
        idle.append("dataset_download (nothing is downloaded)")
    if config.jit_level and device == "CPU":
        idle.append("jit_level (Ascend and GPU)")
    if config.device_id and device == "CPU":
        idle.append("device_id (there is one CPU)")
    for name, why, without in _PAIRED:
        set_here = name in config.given and config[name] not in (None, 0, False, SCHEMA[name].default)
        if set_here and without(config):
            idle.append(f"{name} ({why})")
    if not config.shuffle and config.sampler:
        idle.append("shuffle (a sampler draws in random order)")
    idle += _unread(config)
    idle += [f"{name} ({DROPPED[name]})" for name in config.dropped]
    return idle


_TRAINING = "scale ratio hflip vflip color_jitter auto_augment re_prob".split()
_ERASING = "re_value re_scale re_ratio re_max_attempts".split()
_BOTH = "image_resize interpolation mean std".split()
_COSINE = ("cosine_decay", "warmup_cosine_decay")
# Keys of the schedule and of the optimizer -> the schedulers, or optimizers, that read them.
_READ_BY = {
    "min_lr": (*_COSINE, "one_cycle", "cyclic"),
    "decay_epochs": (*_COSINE, "step_decay"),
    "decay_rate": ("exponential_decay", "polynomial_decay", "step_decay", "multi_step_decay"),
    "multi_step_decay_milestones": ("multi_step_decay",),
    "num_cycles": (*_COSINE, "cyclic"),
    "cycle_decay": _COSINE,
    "momentum": ("sgd", "momentum", "nesterov", "rmsprop"),
    "eps": ("adam", "adamw", "rmsprop", "adagrad", "lamb", "nadam", "adan"),
}
_WHOLE_EPOCHS = ("constant", "step_decay", "multi_step_decay")  # schedulers that change between epochs only
# Keys that another key replaces or that need another one: name, the reason, and when it holds.
_PAIRED = (
    *((name, "transform says it all", lambda c: c.transform) for name in (*_TRAINING, *_ERASING)),
    *((name, "without re_prob", lambda c: not c.re_prob and not c.transform) for name in _ERASING),
    *((name, "the lines say it all", lambda c: c.transform and c.transform_eval) for name in _BOTH),
    ("color_jitter", "auto_augment replaces it", lambda c: c.auto_augment and not c.transform),
    ("crop_pct", "transform_eval says it all", lambda c: c.transform_eval),
    ("samples_per_epoch", "without sampler", lambda c: not c.sampler),
    ("cutmix_prob", "without mixup and cutmix", lambda c: not c.mixup and not c.cutmix),
    ("ema_decay", "without ema", lambda c: not c.ema),
    ("clip_value", "without clip_grad", lambda c: not c.clip_grad),
    ("image_weight", "without map_weight", lambda c: not c.map_weight),
    ("aux_factor", "with map_weight the second output is the map", lambda c: c.map_weight),
    ("amp_dtype", "amp_level is O0", lambda c: not c.amp_cast_list and {c.amp_level, c.val_amp_level} <= {"O0", None}),
    ("resume_opt", "without ckpt_path", lambda c: not c.ckpt_path),
    *((name, "val_while_train is false", lambda c: not c.val_while_train)
      for name in ("val_interval", "val_every_steps", "val_amp_level", "monitor")),
    ("warmup_factor", "without warmup_epochs", lambda c: not c.warmup_epochs),
    ("cycle_decay", "num_cycles is 1", lambda c: c.scheduler in _COSINE and c.num_cycles == 1),
    ("lr_epoch_stair", "the scheduler changes between epochs only",
     lambda c: c.scheduler in _WHOLE_EPOCHS and not c.warmup_epochs),
)  # fmt: skip


def _unread(config):
    """Keys of :data:`_READ_BY` that were set and that the chosen scheduler or optimizer does not read."""
    for name, users in _READ_BY.items():
        key = "opt" if name in ("momentum", "eps") else "scheduler"
        if name in config.given and config[name] != SCHEMA[name].default and config[key] not in users:
            yield f"{name} ({key} {config[key]} does not read it)"
