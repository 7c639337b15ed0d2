"""Every key of a recipe: its type, its default, what it does, and the names other projects give it."""

import argparse
import math
from typing import Any, Callable, Optional

import yaml

from .. import cli
from ..errors import UserError, _shown
from ..files import MAX_DEPTH, _depth


# --- types: each takes a YAML value or a command-line string and returns the value, or raises ValueError -------------
def _bool(value):
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, str)) and str(value).strip().lower() in ("true", "yes", "on", "1"):
        return True
    if isinstance(value, (int, str)) and str(value).strip().lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError("true or false")


def _float(value):
    # PyYAML reads `1e-4` (no dot) as a string, so strings are numbers here too.
    if isinstance(value, bool):
        raise ValueError("a number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a number") from None


def _inside(value):
    number = _float(value)
    if not 0 < number < 1:
        raise ValueError("a number above 0 and below 1")
    return number


def _int(value):
    number = _float(value)
    if not math.isfinite(number) or number != int(number):
        raise ValueError("a whole number")
    return int(number)


def _str(value):
    if not isinstance(value, (str, int, float)) and type(value).__module__ != "datetime":
        raise ValueError("a text")
    text = str(value)
    if "\0" in text:
        raise ValueError("a text without the character 0")
    return text


def _parsed(value):
    """A command-line string parsed as a YAML value; ``0.2,1.0`` and ``a,b`` are lists."""
    if not isinstance(value, str):
        return value
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"a value with at most {MAX_DEPTH} nested brackets")
    try:
        parsed = yaml.safe_load(value)
        if isinstance(parsed, str) and "," in parsed:
            return [yaml.safe_load(part) if part.strip() else "" for part in parsed.split(",")]
    except (yaml.YAMLError, RecursionError, ValueError):
        raise ValueError("a value, a list a,b or a mapping {a: b}") from None
    return parsed


def _list(item, length=None):
    def convert(value):
        value = _parsed(value)
        value = list(value) if isinstance(value, (list, tuple)) else [value]
        if length is not None and len(value) != length:
            raise ValueError(f"a list of {length}")
        return [item(v) for v in value]

    convert.label = f"list of {item.__name__.strip('_')}"
    return convert


def _either(*kinds):
    def convert(value):
        wanted = []
        for kind in kinds:
            try:
                return kind(value)
            except ValueError as error:
                wanted.append(str(error))
        raise ValueError(" or ".join(wanted))

    convert.label = " or ".join(_label(k) for k in kinds)
    return convert


def _count(value):
    return None if str(value).strip().lower() == "auto" else _int(value)


_count.label = "int or auto"  # type: ignore[attr-defined]


def _pixels(value):
    try:
        return cli.pixels(str(value))
    except argparse.ArgumentTypeError:
        raise ValueError("a number of pixels, for example 200M for 200 megapixels") from None


def _map(value):
    value = _parsed(value)
    if not isinstance(value, dict):
        raise ValueError("a mapping {name: value}")
    return value


def _size(value):
    value = _parsed(value)
    if isinstance(value, (list, tuple)):
        if len(value) != 2:
            raise ValueError("one number or [height, width]")
        return [_int(v) for v in value]
    return _int(value)


def _one_of(*choices):
    def convert(value):
        text = str(value)
        for choice in choices:
            if text.lower() == choice.lower():
                return choice
        raise ValueError("one of " + ", ".join(choices))

    convert.label = "|".join(choices)
    return convert


def _label(kind: Callable[[Any], Any]) -> str:
    return getattr(kind, "label", kind.__name__.strip("_"))


class Key:
    """One key: type, default, whether None is allowed, bounds, and a line of help."""

    def __init__(
        self,
        kind: Callable[[Any], Any],
        default: Any,
        text: str,
        none: bool = False,
        low: Optional[float] = None,
        high: Optional[float] = None,
    ) -> None:
        self.kind, self.default, self.text = kind, default, text
        self.none, self.low, self.high = none or default is None, low, high

    def convert(self, name: str, value: Any) -> Any:
        """The value converted to its type; a wrong one is a :class:`UserError` that names key and value."""
        if value is None or (self.none and isinstance(value, str) and value.strip().lower() in ("none", "null", "~")):
            if self.none:
                return None
            raise UserError(f"{name} needs a value ({_label(self.kind)})")
        try:
            result = self.kind(value)
        except ValueError as error:
            raise UserError(f"{name} (={_shown(value)}) must be {error}") from None
        for number in result if isinstance(result, list) else [result]:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                if self.low is not None and not number >= self.low:
                    raise UserError(f"{name} (={_shown(value)}) must be >= {self.low}")
                if not math.isfinite(number):
                    raise UserError(f"{name} (={_shown(value)}) must be finite")
                if self.high is not None and number > self.high:
                    raise UserError(f"{name} (={_shown(value)}) must be <= {self.high}")
        return result


GROUPS = {
    "system": {
        "mode": Key(_int, 0, "0 graph mode, 1 PyNative", low=0, high=1),
        "distribute": Key(_bool, False, "data-parallel over the processes started by msrun, mpirun or a rank table"),
        "val_while_train": Key(_bool, True, "validate while training (MindCV's default is false)"),
        "val_interval": Key(_int, 1, "epochs between validations", low=1),
        "log_interval": Key(_int, 100, "steps between lines of steps.csv and TensorBoard", low=1),
        "seed": Key(_int, 42, "seed of everything random", low=0, high=2**32 - 1),
        "device_target": Key(_one_of("auto", "Ascend", "GPU", "CPU"), "auto", "auto: Ascend if it answers, else CPU"),
    },
    "dataset": {
        "dataset": Key(_str, "", "accepted and ignored: the folder or CSV of data_dir decides", none=True),
        "data_dir": Key(_str, None, "class folders, a table (CSV), or archives such as Parquet and tar: docs/train.md"),
        "train_split": Key(_str, "train", "folder or value of the split column"),
        "val_split": Key(_str, "val", "likewise; empty: hold out val_fraction of the training set", none=True),
        "dataset_download": Key(_bool, False, "accepted; nothing is ever downloaded"),
        "num_parallel_workers": Key(_int, 8, "worker processes, at most the number of cores; 0: none", low=0),
        "shuffle": Key(_bool, True, "a new order every epoch"),
        "num_samples": Key(_int, None, "use that many training images (before aug_repeats), drawn by seed", low=1),
        "batch_size": Key(_int, 128, "images per step and process", low=1),
        "drop_remainder": Key(_bool, True, "leave out the last, smaller batch of an epoch"),
    },
    "augmentation": {
        "image_resize": Key(_size, 224, "input size, or [height, width]", low=1),
        "scale": Key(_list(_float, 2), [0.08, 1.0], "area of the random resized crop", none=True, low=0),
        "ratio": Key(_list(_float, 2), [0.75, 1.333], "aspect of the random resized crop", none=True, low=0),
        "hflip": Key(_float, 0.5, "probability of a left-right flip", none=True, low=0, high=1),
        "vflip": Key(_float, 0.0, "probability of a top-bottom flip", none=True, low=0, high=1),
        "color_jitter": Key(
            _either(_float, _list(_float)),
            0.4,
            "strength, or one each for brightness, contrast, saturation",
            none=True,
            low=0,
        ),
        "interpolation": Key(_str, "bilinear", "bilinear, bicubic, lanczos, ...; an unknown name is an error"),
        "auto_augment": Key(_str, None, "randaug-m9-mstd0.5..., autoaug, autoaugr, 3a, augmix, trivialaugwide"),
        "aug_splits": Key(_int, 0, "views of an image; all but the first use auto_augment (loss JSD: 3)", low=0),
        "aug_repeats": Key(_int, 0, "repeat each image of a batch that many times, with different draws", low=0),
        "re_prob": Key(_float, 0.0, "probability of random erasing", low=0, high=1),
        "re_scale": Key(_list(_float, 2), [0.02, 0.33], "area erased", low=0, high=1),
        "re_ratio": Key(_list(_float, 2), [0.3, 3.3], "aspect erased", low=0),
        "re_value": Key(_either(_float, _list(_float), _str), 0, "value put in its place, or 'random'"),
        "re_max_attempts": Key(_int, 10, "tries to place the box", low=1),
        "mean": Key(_list(_float, 3), [123.675, 116.28, 103.53], "per channel, in 0..255"),
        "std": Key(_list(_float, 3), [58.395, 57.12, 57.375], "per channel, in 0..255"),
        "crop_pct": Key(
            _float,
            0.875,
            "centre crop in validation, as a fraction of the resized side; above 1 the edges are mirrored",
            low=0.01,
            high=4,
        ),
        "mixup": Key(_float, 0.0, "alpha of mixup; 0 off", low=0),
        "cutmix": Key(_float, 0.0, "alpha of CutMix; 0 off", low=0),
        "cutmix_prob": Key(_float, 1.0, "probability of mixing a batch at all", low=0, high=1),
    },
    "model": {
        "model": Key(_str, "efficientnet_lite0", "architecture: the project's own or any of MindCV's"),
        "num_classes": Key(_count, None, "number of outputs; auto, the default: number of classes in the data", low=1),
        "in_channels": Key(_int, 3, "input channels", low=1),
        "drop_rate": Key(_float, None, "dropout before the head", low=0, high=1),
        "drop_path_rate": Key(_float, None, "stochastic depth", low=0, high=1),
        "pretrained": Key(_bool, False, "MindCV downloads weights; use init_from instead"),
        "ckpt_path": Key(
            _str, "", "weights to start from (as init_from); with resume_opt the state to resume", none=True
        ),
        "resume_opt": Key(_bool, False, "resume optimizer and epoch from ckpt_path"),
        "keep_checkpoint_max": Key(_int, 10, "how many epoch checkpoints are kept", low=0),
        "ckpt_save_dir": Key(_str, "runs/train", "where everything is written"),
        "ckpt_save_interval": Key(_int, 1, "epochs between states", low=1),
        "ckpt_save_policy": Key(_one_of("latest_k", "top_k"), None, "also keep epoch checkpoints"),
        "epoch_size": Key(_int, 90, "epochs", low=0),
        "dataset_sink_mode": Key(_bool, True, "accepted; specific to MindCV on Ascend, not needed here"),
        "ema": Key(_bool, False, "validate and keep the moving average of the weights"),
        "ema_decay": Key(_float, 0.9999, "its decay per step", low=0, high=1),
        "clip_grad": Key(_bool, False, "clip the global gradient norm"),
        "clip_value": Key(_float, 15.0, "the maximum norm", low=0),
        "layer_decay": Key(_float, None, "learning-rate factor per layer group, from the head down", low=0, high=1),
        "gradient_accumulation_steps": Key(_int, 1, "batches per update", low=1),
    },
    "loss": {
        "loss": Key(_one_of("CE", "BCE", "JSD", "asl_single_label", "asl_multi_label"), "CE", "loss function"),
        "label_smoothing": Key(_float, 0.0, "fraction of the target spread over all classes", low=0, high=1),
        "aux_factor": Key(_float, 0.0, "weight of auxiliary outputs", low=0),
        "reduction": Key(_one_of("mean", "sum"), "mean", "over the batch"),
    },
    "schedule": {
        "scheduler": Key(
            _one_of(
                "constant",
                "cosine_decay",
                "warmup_cosine_decay",
                "exponential_decay",
                "step_decay",
                "multi_step_decay",
                "polynomial_decay",
                "one_cycle",
                "cyclic",
            ),
            "cosine_decay",
            "learning-rate schedule, updated every step",
        ),
        "lr": Key(_float, 0.001, "peak learning rate", low=0),
        "min_lr": Key(_float, 1e-6, "lowest learning rate", none=True, low=0),
        "warmup_epochs": Key(_float, 0, "epochs of linear warm-up", low=0),
        "warmup_factor": Key(_float, 0.0, "learning rate at the first step, as a fraction of lr", low=0),
        "decay_epochs": Key(_int, None, "epochs of one cosine (default: all after the warm-up) or step (30)", low=1),
        "decay_rate": Key(_float, 0.9, "factor of exponential and step decay, power of the polynomial", low=0),
        "multi_step_decay_milestones": Key(_list(_int), [30, 60, 90], "epochs of the multi-step decay", none=True),
        "lr_epoch_stair": Key(_bool, False, "change the learning rate only between epochs"),
        "num_cycles": Key(_int, 1, "cosine or cyclic cycles", low=1),
        "cycle_decay": Key(_float, 1.0, "factor of the peak from cycle to cycle", low=0),
    },
    "optimizer": {
        "opt": Key(
            _one_of(
                "sgd", "momentum", "nesterov", "adam", "adamw", "lion", "rmsprop", "adagrad", "lamb", "nadam", "adan"
            ),
            "adam",
            "optimizer",
        ),
        "momentum": Key(_float, 0.9, "of sgd, momentum and rmsprop", low=0),
        "weight_decay": Key(_float, 1e-6, "L2 term (decoupled in adamw, lion, lamb, adan)", low=0),
        "use_nesterov": Key(_bool, False, "Nesterov's momentum"),
        "weight_decay_filter": Key(
            _one_of("disable", "auto", "norm_and_bias"), "disable", "parameters without weight decay"
        ),
        "eps": Key(
            _float, 1e-8, "epsilon of the adaptive optimizers (MindCV's default 1e-10 is below fp32's use)", low=0
        ),
    },
    "amp": {
        "amp_level": Key(_one_of("O0", "O1", "O2", "O3"), "O0", "mixed precision"),
        "val_amp_level": Key(_one_of("O0", "O1", "O2", "O3"), None, "for validation; default: amp_level"),
        "amp_cast_list": Key(_list(_str), None, "cells to cast (by type name); default: those of the level"),
        "loss_scale_type": Key(_one_of("fixed", "dynamic", "auto"), "fixed", "loss scaling"),
        "loss_scale": Key(_float, None, "factor, or first one of dynamic scaling; default 1, dynamic 65536", low=0),
        "drop_overflow_update": Key(_bool, False, "skip an update whose gradients are not finite"),
        "eval_shuffle": Key(_bool, False, "accepted; the order does not change the validation results"),
    },
    "added": {
        "map_weight": Key(
            _float,
            0.0,
            "weight of the cells' loss against the column 'mask', for a model with a map; 0: no masks",
            low=0,
        ),
        "image_weight": Key(_float, 1.0, "weight of the image's loss beside it", low=0),
        "init_from": Key(_str, None, "weights to start from, any file name; a head of a different size is replaced"),
        "resume": Key(_str, None, "auto (state.ckpt in ckpt_save_dir, if it exists) or a state file"),
        "transform": Key(_str, None, "one-line training pipeline, instead of the augmentation keys"),
        "transform_eval": Key(_str, None, "one-line evaluation pipeline"),
        "views": Key(_str, None, "one-line random pipeline that infer.py votes with"),
        "model_args": Key(_map, {}, "further arguments of the architecture"),
        "freeze": Key(_list(_str), [], "globs of parameter names that are not trained", none=True),
        "lora": Key(
            _map,
            None,
            "{rank: 8, layers: [globs of dense layers]}: these stay as they are, a low-rank product is trained",
        ),
        "lr_groups": Key(_map, {}, "glob: factor, or glob: {lr: rate}; the first match applies", none=True),
        "class_weights": Key(
            _either(_one_of("balanced"), _list(_float)),
            None,
            "one per class, or 'balanced' for those of the training set",
        ),
        "sampler": Key(_one_of("class", "generator"), None, "draw every class (or class and generator) equally often"),
        "samples_per_epoch": Key(_int, None, "length of an epoch with a sampler", low=1),
        "val_fraction": Key(_float, 0.0, "held out by group if the data has no validation split", low=0, high=0.9),
        "early_stopping": Key(
            _int, 0, "stop after that many validations without improvement; 0: never", none=True, low=0
        ),
        "metrics": Key(_list(_str), ["balanced_accuracy", "accuracy", "auc", "macro_f1"], "shown and logged"),
        "monitor": Key(_str, None, "metric that chooses best.ckpt; default: the first of metrics"),
        "threshold": Key(
            _either(_one_of("auto"), _inside), 0.5, "on the probability; auto: best balanced accuracy in validation"
        ),
        "multiclass_to_binary": Key(
            _bool, False, "one class per generator, class 0 is real; scored as real or generated"
        ),
        "distill": Key(_map, None, "{teachers: [a.ckpt, ...], temperature: 2, alpha: 0.5, combine: mean}"),
        "device_id": Key(_int, None, "index of the device", low=0),
        "jit_level": Key(_one_of("O0", "O1", "O2"), None, "MindSpore's compilation level"),
        "amp_dtype": Key(_one_of("float16", "bfloat16"), "float16", "half-precision type of amp_level"),
        "val_every_steps": Key(_int, None, "also validate every N updates within an epoch, into curve.csv", low=1),
        "save_every_steps": Key(_int, None, "also save the state every N steps", low=1),
        "max_pixels": Key(_pixels, 120_000_000, "larger images are not used; 200M is 200 megapixels"),
        "truncated": Key(
            _one_of("error", "score"), "error", "images whose end is missing: not used, or used as far as they go"
        ),
        "cache_mb": Key(_int, 1024, "memory for decoded images in MB; larger sets are read from disk", low=0),
    },
}
SCHEMA = {name: key for group in GROUPS.values() for name, key in group.items()}
# Keys of older MindCV versions that nothing here does, and what to use.
DROPPED = {
    "save_checkpoint": "checkpoints are always written",
    "smooth_factor": "label_smoothing is the key",
    "mixup_prob": "cutmix_prob is the probability of any mixing",
    "mixup_mode": "a batch is mixed as a whole",
    "mixup_off_epoch": "mixing goes on to the end",
    "switch_prob": "mixup and CutMix are drawn equally often",
}
# Flags that OpenI, ModelArts and Xihe add to the command line of a job.
PLATFORM = {
    "data_url": "data_dir",
    "train_url": "ckpt_save_dir",
    "output_url": "ckpt_save_dir",
    "output_path": "ckpt_save_dir",
    "pretrain_url": "init_from",
    "aim_repo": None,
    "enable_modelarts": None,
    "multi_data_url": "data_dir",
    "ckpt_url": "init_from",
}
# Names that others use for the same key.
ALIASES = {
    **PLATFORM,
    # of older MindCV versions
    "dynamic_loss_scale": "loss_scale_type",
    "filter_bias_and_bn": "weight_decay_filter",
    "epochs": "epoch_size",
    "nesterov": "use_nesterov",
    "milestones": "multi_step_decay_milestones",
    "lr_scheduler": "scheduler",
    "use_ema": "ema",
    "use_clip_grad": "clip_grad",
    **dict.fromkeys(DROPPED),
    # of other programs, and of the other commands of this project
    "learning_rate": "lr",
    "num_epochs": "epoch_size",
    "wd": "weight_decay",
    "optimizer": "opt",
    "arch": "model",
    "architecture": "model",
    "image_size": "image_resize",
    "img_size": "image_resize",
    "num_workers": "num_parallel_workers",
    "workers": "num_parallel_workers",
    "device": "device_target",
    "out": "ckpt_save_dir",
}
# Keys of MindCV's train_pretrain.py: masked image modelling (MAE, BEiT), which needs no labels and gives no classifier.
PRETRAINING = (
    "mask_patch_size",
    "mask_ratio",
    "mask_type",
    "pretrain_interpolations",
    "pretrain_resize",
    "tokenizer",
)
_OLD_VALUES = {
    "dynamic_loss_scale": lambda v: "dynamic" if _bool(v) else "fixed",
    "filter_bias_and_bn": lambda v: "norm_and_bias" if _bool(v) else "disable",
    "lr_scheduler": lambda v: "one_cycle" if v == "onecycle" else v,
}
