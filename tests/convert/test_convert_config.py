"""What a config.json states about the net and no key or shape shows: it is used, or the file is refused."""

import json

import numpy as np
import pytest

from aidet.errors import UserError
from convert import reading, reverse
from convert.families import family_of
from convert.plan import build, make_plan

TOWER = {"width": 64, "depth": 1, "hidden": 96, "patch_size": 8, "image_size": 16, "heads": 1}
SWIN = {"width": 32, "depths": [1, 1], "heads": [1, 2], "image_size": 32, "window_size": 4}
NETS = {
    "vit": TOWER,
    "deit": {**TOWER, "distilled": "token"},
    "beit": {"width": 64, "depth": 1, "heads": 1, "image_size": 64},
    "dinov2_vit": {"width": 64, "depth": 1, "hidden": 96, "heads": 1, "grid": 3, "image_size": 42},
    "siglip_vit": {**TOWER, "pool": "avg"},
    "clip_vit": {**TOWER, "features": "penultimate"},
    "swin_v2": SWIN,
}


def plan(folder, architecture, layout, config):
    """The plan for a file of random weights in a layout, with a config.json beside it."""
    family, arguments = family_of(architecture), NETS.get(architecture, {})
    arguments = {**family.layout(layout).arguments, **arguments}
    net = build(architecture, arguments, 2)
    arrays = {p.name: np.zeros(p.shape, np.float32) for p in net.get_parameters()}
    tensors = reverse.to_layout(arrays, family, family.layout(layout), architecture, arguments)
    reverse.write_safetensors(folder / "model.safetensors", tensors, {})
    known = {"window_size": 4, "image_size": 32} if architecture == "swin_v2" else {}
    (folder / "config.json").write_text(json.dumps({**known, **config}))
    return make_plan(reading.read(folder), layout)


@pytest.mark.parametrize(
    ("architecture", "layout", "other", "own"),
    [
        ("vit", "hf", {"hidden_act": "relu"}, {"hidden_act": "gelu"}),
        ("vit", "hf5", {"hidden_act": "gelu_new"}, {}),
        ("deit", "hf-deit", {"hidden_act": "relu"}, {"hidden_act": "gelu"}),
        ("beit", "hf", {"hidden_act": "relu"}, {"hidden_act": "gelu"}),
        ("dinov2_vit", "hf", {"hidden_act": "relu"}, {"hidden_act": "gelu"}),
        ("siglip_vit", "hf", {"vision_config": {"hidden_act": "relu"}}, {"vision_config": {"hidden_act": "gelu"}}),
        ("clip_vit", "hf", {"vision_config": {"hidden_act": "relu"}}, {}),
        ("swin_tiny", "hf", {"hidden_act": "relu"}, {"hidden_act": "gelu", "layer_norm_eps": 1e-5}),
        ("swin_tiny", "hf", {"layer_norm_eps": 1e-3}, {}),
        ("swin_v2", "hf", {"layer_norm_eps": 1e-3}, {"layer_norm_eps": 1e-5}),
        ("convnext_tiny", "hf", {"layer_norm_eps": 1e-3}, {"hidden_act": "gelu", "layer_norm_eps": 1e-12}),
        ("convnext_v2_atto", "hf", {"hidden_act": "relu"}, {"hidden_act": "gelu"}),
        ("resnet50", "hf", {"downsample_in_bottleneck": True}, {"downsample_in_bottleneck": False}),
        ("resnet18", "hf", {"downsample_in_first_stage": True}, {"hidden_act": "relu"}),
        ("mobilenet_v2", "hf", {"hidden_act": "relu"}, {"hidden_act": "relu6"}),
        ("vit", "timm", {"global_pool": "avg"}, {"global_pool": "token"}),
        ("resnet50", "torchvision", {"model_args": {"output_stride": 8}}, {"model_args": {"in_chans": 3}}),
        ("efficientnet_b0", "hf", {"pooling_type": "max"}, {"pooling_type": "mean", "hidden_act": "swish"}),
    ],
)
def test_another_net_under_the_same_keys_is_refused(tmp_path, architecture, layout, other, own):
    assert plan(tmp_path, architecture, layout, own).architecture == architecture
    inner = other.get("vision_config") or other.get("model_args") or other
    (name,) = inner
    with pytest.raises(UserError, match=f"config.json: {name} .={inner[name]!r}.* Correct config.json if it is wrong"):
        plan(tmp_path, architecture, layout, other)


@pytest.mark.parametrize(
    ("stated", "act"),
    [(None, "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("gelu", "gelu"), ("quick_gelu", "quick_gelu")],
)
def test_siglip_has_the_stated_activation(tmp_path, stated, act):
    assert plan(tmp_path, "siglip_vit", "hf", {"vision_config": {"hidden_act": stated}}).arguments["act"] == act


def test_efficientnet_has_the_stated_epsilon(tmp_path):
    assert plan(tmp_path, "efficientnet_b0", "hf", {}).arguments["bn_eps"] == 1e-3
    assert plan(tmp_path, "efficientnet_b0", "hf", {"batch_norm_eps": 0.01}).arguments["bn_eps"] == 0.01


@pytest.mark.parametrize("name", ["resnetblur50", "resnetaa50"])
def test_filters_before_strides_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=f"architecture .='{name}'. filters before its strides"):
        plan(tmp_path, "resnet50", "torchvision", {"architecture": name})


@pytest.mark.parametrize(
    ("width", "config", "heads"),
    [(128, {}, 2), (1280, {}, 16), (1280, {"num_attention_heads": 20}, 20), (128, {"model_args": {"num_heads": 4}}, 4)],
)
def test_heads_are_those_of_the_config_or_of_the_published_towers(tmp_path, monkeypatch, width, config, heads):
    monkeypatch.setitem(NETS, "vit", {**TOWER, "width": width})
    assert plan(tmp_path, "vit", "timm", config).arguments["heads"] == heads
