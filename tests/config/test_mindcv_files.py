"""The keys and forms of value in 150 YAML files of MindCV's folder `configs`: each loads, or is refused with a remedy.

The table lists what occurs there (mindspore-lab/mindcv, all families, files of Ascend and GPU, older names of keys
included), in the spelling that matters to YAML: quotes, `1e-6` (a string to PyYAML), `0.`, whole numbers where a
fraction is meant, words without quotes.
"""

import pytest

from aidet import config, images
from aidet.errors import UserError
from aidet.training import pipelines, schedules

# key -> values as they are written; a result that is not plain to see stands after =>
OCCURS = """
mode: 0
distribute: True | False
num_parallel_workers: 4 | 8 | 16 | 32
val_while_train: True
val_interval: 1 | 2 | 5
log_interval: 100
seed: 1
device_target: 'Ascend'
dataset: 'imagenet' | "imagenet"
data_dir: '/path/to/imagenet' | "path/to/imagenet" | './imagenet/' | '' =>
train_split: 'train' | val/
val_split: val | 'val' | val/
shuffle: True
dataset_download: False
batch_size: 16 | 32 | 48 # fewer than in the paper | 64 | 75 | 128 | 192 | 256 | 320 | 512
drop_remainder: True
image_resize: 224 | 240 | 256 | 299
scale: [0.08, 1.0] | [ 0.08, 1.0 ] | [0.2, 1.0]
ratio: [0.75, 1.333] | [0.75, 1.33]
hflip: 0.5
vflip: 0. | 0.0
interpolation: 'bicubic' | "bilinear" | bilinear | BICUBIC
auto_augment: autoaug | 'autoaug-mstd0.5' | "randaug-m7-mstd0.5" | 'randaug-m7-mstd0.5-inc1' | "randaug-m9-mstd0.5"
auto_augment: randaug-m9-mstd0.5-inc1 | 'randaug-m9-n2-mstd0.5-inc1' | "randaug-m15-mstd0.5"
re_prob: 0.0 | 0.1 | 0.15 | 0.2 | 0.25 | 0.5 | 1.0
re_value: 'random' | "random"
re_ratio: [0.3, 3.333]
re_max_attempts: 1
crop_pct: 0.87 | 0.875 | 0.9 | 0.915 | 0.925 | 0.93 | 0.935 | 0.95 | 0.96 | 1.0 | 1.15
color_jitter: 0.0 | 0.3 | 0.4 | [0.3, 0.3, 0.3] | [0.4, 0.4, 0.4]
mixup: 0.2 | 0.5 | 0.8
cutmix: 0.5 | 1 | 1.0
cutmix_prob: 0.0 | 1.0
aug_repeats: 3
model: 'resnet18' | "swin_tiny" | 'RepMLPNet_T224' | 'BiT_resnet50x3'
num_classes: 1000 | 1000 # | 1001
in_channels: 3
drop_rate: 0.0 | 0.1 | 0.12 | 0.2 | 0.25
drop_path_rate: 0.0 | 0.1 | 0.2 | 0.3 | 0.4 | 0.5
pretrained: False | False #
ckpt_path: '' => | "" =>
keep_checkpoint_max: 5 | 10 | 20 | 30 | 50 | 80
ckpt_save_dir: './ckpt' | "./ckpt/" | '/cache/output/' | '' =>
ckpt_save_interval: 1
ckpt_save_policy: 'top_k' | "latest_k"
epoch_size: 90 | 300 | 1200
dataset_sink_mode: True
ema: True | False
ema_decay: 0.9995 | 0.9999 | 0.99996
clip_grad: True | False
clip_value: 1.0 | 3.0 | 5.0
layer_decay: 0.65
gradient_accumulation_steps: 2
loss: 'CE' | "CE" | 'ce' => CE | "ce" => CE
label_smoothing: 0.1
aux_factor: 0.1
scheduler: 'cosine_decay' | "cosine_decay" | 'warmup_cosine_decay' | 'multi_step_decay'
lr: 0.001 | 0.128 | 1.08 | 0.0005 # | 1.6e-3 | 1.5e-4 | 4e-3 => 0.004 | 5e-4 => 0.0005
min_lr: 0 | 0.0 | 0.0000003 | 1e-6 => 1e-06 | 1e-06 => 1e-06 | 1.0e-6 | 1e-10 => 1e-10 | 5e-6 => 5e-06
warmup_epochs: 0 | 2 | 5 | 40
warmup_factor: 0 | 0.0000175 | 0.002 | 0.01 | 0.02
decay_epochs: 30 | 198 | 568
decay_rate: 0.01 | 0.1 | 0.4 | 0.5
multi_step_decay_milestones: [30, 40, 50, 60, 70, 80, 85]
lr_epoch_stair: True | False
num_cycles: 2 | 3 | 4
cycle_decay: 1 | 1.0
opt: 'sgd' | 'SGD' => sgd | "momentum" | 'adamw' | 'AdamW' => adamw | 'lion' | 'rmsprop'
momentum: 0.9
weight_decay: 0.0001 | 0.00002 | 0.15 | 0.3 | 1e-5 => 1e-05 | 2e-05 => 2e-05 | 5e-5 => 5e-05 | 1.0e-5
weight_decay_filter: 'auto' | "norm_and_bias"
use_nesterov: True | False
eps: 1e-3 => 0.001 | 1e-8 => 1e-08 | 0.00000001
amp_level: 'O0' | "O2" | O2 | 'O3'
val_amp_level: 'O2' | 'O3'
loss_scale_type: 'fixed' | dynamic | "dynamic" | 'auto'
loss_scale: 128 | 300 | 1024 | 1024.0 | 16777216 | 16777216.0
drop_overflow_update: True
"""
# Names of earlier versions: key and value, and what they mean now; None: nothing, as MindCV ignored or dropped it.
EARLIER = {
    "save_checkpoint: True": None,
    "filter_bias_and_bn: True": ("weight_decay_filter", "norm_and_bias"),
    "filter_bias_and_bn: False": ("weight_decay_filter", "disable"),
    "dynamic_loss_scale: True": ("loss_scale_type", "dynamic"),
    "dynamic_loss_scale: False": ("loss_scale_type", "fixed"),
    "lr_scheduler: 'onecycle'": ("scheduler", "one_cycle"),
    "lr_scheduler: 'cosine_decay'": ("scheduler", "cosine_decay"),
    "use_ema: False": ("ema", False),
    "use_clip_grad: True": ("clip_grad", True),
    "smooth_factor: 0.1": None,
    "mixup_prob: 1.0": None,
    "mixup_mode: batch": None,
    "mixup_off_epoch: 0.0": None,
    "switch_prob: 0.5": None,
    "data_url: '/cache/data'": ("data_dir", "/cache/data"),
    "epoch_size : 300": ("epoch_size", 300),
}


def _cases():
    for line in OCCURS.strip().splitlines():
        key, _, values = line.partition(": ")
        for value in values.split(" | "):
            text, arrow, wanted = value.partition(" =>")
            yield key, text, wanted.strip() if arrow else None


def _load(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text + "\n")
    return config.load(tmp_path / "c.yaml")


def test_every_value_in_mindcvs_files_loads(tmp_path):
    for key, text, wanted in _cases():
        found = _load(tmp_path, f"{key}: {text}")
        assert key in found.given, text
        plain = text.partition(" #")[0].strip("'\"")
        shown = str(found[key])
        if wanted is not None:
            assert shown == wanted, (key, text)
        elif isinstance(found[key], float):
            assert found[key] == float(plain), (key, text)
        elif isinstance(found[key], list):
            assert found[key] == [float(v) for v in plain.strip("[ ]").split(",")], (key, text)
        else:
            assert shown == plain, (key, text)


def test_names_of_earlier_versions_keep_their_meaning(tmp_path):
    for text, meaning in EARLIER.items():
        found = _load(tmp_path, text)
        if meaning is None:
            assert not found.given, text
        else:
            assert found.given == {meaning[0]} and found[meaning[0]] == meaning[1], text


def test_what_only_a_pipeline_or_a_schedule_reads_is_understood_there(tmp_path):
    """The loader takes any text for these two keys; what they name is looked up when training starts."""
    read = [(k, t) for k, t, _ in _cases() if k in ("interpolation", "auto_augment", "re_value", "color_jitter")]
    for key, text in read:
        found = _load(tmp_path, f"{key}: {text}\nre_prob: 0.25")
        for line in pipelines.pipelines(found):
            images.parsed(line)
    capital = pipelines.pipelines(_load(tmp_path, "interpolation: BICUBIC"))
    assert all("bicubic" in line for line in capital)
    for text in {t for k, t, _ in _cases() if k == "scheduler"}:
        found = _load(tmp_path, f"scheduler: {text}\nepoch_size: 9\nwarmup_epochs: 2")
        assert len(schedules.learning_rates(found, 2)) == 18


@pytest.mark.parametrize(
    "text",
    [
        "pretrain_resize: [224]",
        'pretrain_interpolations: ["bicubic"]',
        'mask_type: "random"',
        "mask_ratio: 0.75",
        "mask_patch_size: 32",
        'tokenizer: "dall-e"',
        'model: "mae_b_16_224_pretrain"\nloss: "None"',
        'loss: "None"\nloss_scale: 1024.0\nmask_ratio: 0.75\nmask_type: "random"',  # the reason, not its first symptom
    ],
)
def test_a_recipe_for_pretraining_is_refused_with_the_way_out(tmp_path, text):
    with pytest.raises(UserError, match="self-supervised pretraining .*train.py does not do.* as init_from"):
        _load(tmp_path, text)


def test_a_flag_for_pretraining_is_refused_in_the_same_words():
    with pytest.raises(UserError, match="mask_ratio .='0.6'. belongs to self-supervised pretraining"):
        config.parse_args(["-c", "x.yaml", "--mask_ratio", "0.6"])
    assert _finetune().layer_decay == 0.65  # the recipe that the message points to


def _finetune():
    given = {"model": "mae_b_16_224_finetune", "layer_decay": "0.65", "lr": "5e-4", "warmup_factor": 0}
    return config.load(None, given)
