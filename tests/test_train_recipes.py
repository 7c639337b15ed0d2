"""Every recipe of mindcv_cfg, and configurations as MindCV's users have them, load and give usable pipelines."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aidet import config, dataset, recipes, schedules, transforms
from aidet.errors import UserError

RECIPES = sorted((Path(__file__).resolve().parents[1] / "mindcv_cfg").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_loads_states_its_command_and_runs_its_pipelines(path):
    text = path.read_text(encoding="utf-8")
    assert f"# Command: python train.py -c mindcv_cfg/{path.name}" in text and "../shared" not in text
    c = config.load(path)
    assert "data_dir" not in c.given or path.stem == "demo"
    training, evaluation = recipes.pipelines(c)
    first, last = dataset.pipeline(training), dataset.pipeline(evaluation)
    assert not last.random and last.size() is not None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 280, 3), np.uint8))
    a, b = first(image, transforms.generator(1, "k")), last(image)
    assert a.shape == b.shape and a.dtype == b.dtype == np.float32
    if c.views:
        assert transforms.Pipeline(c.views)(image, transforms.generator(1, "k")).shape == b.shape
    assert len(schedules.learning_rates(c, 7)) == 7 * c.epoch_size


# The shape of MindCV's own files: group comments, keys in its order, values as its users write them.
MINDCV = """
# system
mode: 0
distribute: True
num_parallel_workers: 8
val_while_train: True
# dataset
dataset: "imagenet"
data_dir: "/path/to/imagenet"
shuffle: True
dataset_download: False
batch_size: 128
drop_remainder: True
# augmentation
image_resize: 224
scale: [0.08, 1.0]
ratio: [0.75, 1.333]
hflip: 0.5
vflip: 0.
interpolation: "bicubic"
auto_augment: "randaug-m9-mstd0.5-inc1"
re_prob: 0.25
re_value: "random"
crop_pct: 0.95
color_jitter: [0.4, 0.4, 0.4]
mixup: 0.8
cutmix: 1.0
cutmix_prob: 1.0
mean: [123.675, 116.28, 103.53]
# model
model: "swin_tiny"
num_classes: 1000
pretrained: False
ckpt_path: ""
keep_checkpoint_max: 10
ckpt_save_policy: "top_k"
ckpt_save_dir: "./ckpt"
epoch_size: 600
dataset_sink_mode: True
amp_level: "O2"
drop_path_rate: 0.2
# loss
loss: "ce"
label_smoothing: 0.1
# lr scheduler
scheduler: "warmup_cosine_decay"
lr: 0.003
min_lr: 1e-6
warmup_epochs: 32
decay_epochs: 568
lr_epoch_stair: False
# optimizer
opt: "AdamW"
weight_decay: 0.025
weight_decay_filter: "norm_and_bias"
filter_bias_and_bn: True
loss_scale: 1024
dynamic_loss_scale: False
use_nesterov: False
"""


def test_a_mindcv_file_loads_unchanged(tmp_path):
    (tmp_path / "c.yaml").write_text(MINDCV)
    c = config.load(tmp_path / "c.yaml")
    assert (c.min_lr, c.opt, c.loss, c.ckpt_save_policy) == (1e-6, "adamw", "CE", "top_k")
    training, evaluation = recipes.pipelines(c)
    steps = [name for name, _ in dataset.pipeline(training).steps]
    assert steps == ["random_resized_crop", "hflip", "auto_augment", "normalize", "random_erasing"]
    assert evaluation.startswith("resize(235, bicubic) | center_crop((224, 224))")


@pytest.mark.parametrize(
    "policy", ["randaug-m9-n2-mstd0.5-inc1", "autoaug", "autoaugr", "3a", "augmix-m5-w4-d2", "trivialaugwide"]
)
def test_automatic_policies_follow_their_seed(policy, photo):
    p = dataset.pipeline(f"auto_augment('{policy}') | to_float")
    draws = [p(photo(), transforms.generator(1, "k", v)) for v in (0, 0, 1, 2, 3)]
    assert np.array_equal(draws[0], draws[1]) and any(not np.array_equal(draws[0], d) for d in draws[2:])


def test_unknown_names_are_errors():
    with pytest.raises(UserError, match="did you mean 'randaug'"):
        dataset.pipeline("auto_augment('randagu-m9')")
    with pytest.raises(UserError, match="did you mean 'bicubic'"):
        recipes.pipelines(config.load(None, {"interpolation": "bicubicc"}))
    with pytest.raises(UserError, match="transform_eval"):
        recipes.pipelines(config.load(None, {"transform": "hflip"}))


def test_albumentations_follow_the_seed_and_name_their_errors(photo):
    pytest.importorskip("albumentations")
    p = dataset.pipeline("albumentations(GaussNoise, p=1.0) | to_float")
    a, b, c = (p(photo(), transforms.generator(1, "k", v)) for v in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    with pytest.raises(UserError, match="did you mean 'GaussNoise'"):
        dataset.pipeline("albumentations(GausNoise)")
    with pytest.raises(UserError, match="foo"):
        dataset.pipeline("albumentations(GaussNoise, foo=1)")
