"""Preprocessing without a model: our pipeline line against the libraries' own code, on the same photos.

Compared after normalisation, in grey levels of the source image.
"""

import numpy as np
import pytest
from cells import HF_PROCESSOR

from aidet.images import Pipeline, decode
from convert import preprocessing
from convert.families import family_of
from convert.parity import compare, torch_reference
from convert.parity.torch_imports import without_broken_ops

pytestmark = [pytest.mark.parity, pytest.mark.matrix]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SCALE = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_resize": True}
# Contents of preprocessor_config.json in repositories of these kinds.
PROCESSORS = {
    "ViTImageProcessor": {"size": {"height": 224, "width": 224}, "resample": 2, **HALF, **SCALE},
    "ViTImageProcessor bicubic": HF_PROCESSOR,
    "ViTImageProcessor 384": {"size": {"height": 384, "width": 384}, "resample": 2, **HALF, **SCALE},
    "ConvNextImageProcessor": {
        "size": {"shortest_edge": 224},
        "crop_pct": 0.875,
        "resample": 3,
        **IMAGENET,
        **SCALE,
    },
    "ConvNextImageProcessor 384": {
        "size": {"shortest_edge": 384},
        "crop_pct": 0.875,
        "resample": 3,
        **IMAGENET,
        **SCALE,
    },
    "DeiTImageProcessor": {
        "size": {"height": 256, "width": 256},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "resample": 3,
        **IMAGENET,
        **SCALE,
    },
    "EfficientNetImageProcessor": {
        "size": {"height": 224, "width": 224},
        "resample": 0,
        "do_center_crop": False,
        "rescale_offset": False,
        "include_top": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.47853944, 0.4732864, 0.47434163],
        **SCALE,
    },
}
TORCHVISION = {
    **{f"resnet{n}": f"ResNet{n}_Weights" for n in (18, 34, 50, 101, 152)},
    **{f"efficientnet_b{i}": f"EfficientNet_B{i}_Weights" for i in range(8)},
    "mobilenet_v3_small_100": "MobileNet_V3_Small_Weights",
    "mobilenet_v3_large_100": "MobileNet_V3_Large_Weights",
    "squeezenet1_0": "SqueezeNet1_0_Weights",
    "squeezenet1_1": "SqueezeNet1_1_Weights",
    "swin_tiny": "Swin_T_Weights",
    "swin_small": "Swin_S_Weights",
    "swin_base": "Swin_B_Weights",
    "convnext_tiny": "ConvNeXt_Tiny_Weights",
    "convnext_small": "ConvNeXt_Small_Weights",
    "convnext_base": "ConvNeXt_Base_Weights",
    **{f"efficientnetv2_{k}": f"EfficientNet_V2_{k.upper()}_Weights" for k in "sml"},
    "mobilenet_v2": "MobileNet_V2_Weights",
}
TIMM = {
    **{(f"efficientnet_b{i}", "timm-tf"): f"tf_efficientnet_b{i}.ns_jft_in1k" for i in range(8)},
    **{(f"efficientnet_lite{i}", "timm-tf"): f"tf_efficientnet_lite{i}" for i in range(3)},
    **{(f"swin_{n}", "timm"): f"swin_{n}_patch4_window7_224" for n in ("tiny", "small", "base", "large")},
    **{(f"swin_{n}", "timm", 384): f"swin_{n}_patch4_window12_384" for n in ("base", "large")},
    **{(f"vit_{k}_16_224", "timm"): f"vit_{n}_patch16_224" for k, n in zip("tsb", ("tiny", "small", "base"))},
    **{(f"vit_{k}_16_384", "timm", 384): f"vit_{n}_patch16_384" for k, n in zip("tsb", ("tiny", "small", "base"))},
    **{
        (f"deit_{k}_16_224", "timm"): f"deit_{n}_distilled_patch16_224"
        for k, n in zip("tsb", ("tiny", "small", "base"))
    },
    ("deit_b_16_384", "timm", 384): "deit_base_distilled_patch16_384",
    **{(f"convnext_{n}", "timm"): f"convnext_{n}.fb_in1k" for n in ("tiny", "small", "base")},
    ("convnext_v2_tiny", "timm"): "convnextv2_tiny.fcmae_ft_in1k",
    **{(f"efficientnetv2_{k}", "timm-tf"): f"tf_efficientnetv2_{k}.in1k" for k in ("b0", "b1", "b2", "b3", *"sml")},
    ("swin_v2_tiny", "timm", 256): "swinv2_tiny_window8_256",
    ("swin_v2_base", "timm", 384): "swinv2_base_window12to24_192to384",
    ("beit_b_16", "timm"): "beit_base_patch16_224",
    ("beit_b_16", "timm", 384): "beit_base_patch16_384",
    ("mobilenet_v2", "timm"): "mobilenetv2_100",
    ("resnest50d", "timm"): "resnest50d",
}


def photos():
    paths = [compare.photo_path(n) for n in torch_reference.PHOTOS]
    if None in paths:
        pytest.skip("scikit-image's photos are not installed")
    return [decode(p) for p in paths]


def apart(line, theirs):
    """Largest difference in grey levels between our pipeline and (C, H, W) arrays of the library, over the photos."""
    std = np.asarray(torch_reference.statistics(line)[1], np.float32)[:, None, None]
    worst = 0.0
    for photo in photos():
        ours, other = Pipeline(line)(photo), np.asarray(theirs(photo), np.float32)
        assert ours.shape == other.shape
        worst = max(worst, float(np.abs((ours - other) * std * 255).max()))
    return worst


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PROCESSORS)
def test_hugging_face(name):
    import transformers

    without_broken_ops()
    kind, config = name.split()[0], PROCESSORS[name]
    cls = getattr(transformers, kind + "Pil", None) or getattr(transformers, kind)
    processor = cls.from_dict(dict(config))
    line = preprocessing.from_huggingface({"image_processor_type": kind, **config})
    assert apart(line, lambda photo: processor(photo, return_tensors="np")["pixel_values"][0]) < 1e-3


class Layout:
    """Stands in for a layout, of which only the name is used here."""

    def __init__(self, name):
        self.name = name


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    """The published recipe of the first ImageNet weights."""
    import torchvision

    preset = getattr(torchvision.models, TORCHVISION[name]).IMAGENET1K_V1.transforms()
    line = family_of(name).transform(name, Layout("torchvision"), {"image_size": 224})
    assert apart(line, preset) < 1e-3


@pytest.mark.parametrize("case", TIMM, ids=lambda case: "-".join(map(str, case)))
def test_timm(case):
    """The line made from ``pretrained_cfg``, and the family's own line for a file without a configuration."""
    import timm

    config = timm.get_pretrained_cfg(TIMM[case]).to_dict()
    theirs = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
    assert apart(preprocessing.from_timm(config), theirs) < 1e-3
    arguments = {"image_size": case[2] if len(case) > 2 else 224}
    line = family_of(case[0]).transform(case[0], Layout(case[1]), arguments)
    assert apart(line, theirs) < 1e-3
