"""ResNet 18 to 152: torchvision and timm (one naming), Hugging Face (also as AIGC-clf's npz), MindCV."""

from typing import Tuple

from aidet.errors import UserError
from aidet.models.resnet import SIZES

from . import Arguments, Config, Family, Layout, Taps, Tensors, count, mindcv

TORCH = {"padding": "symmetric"}
TORCHVISION = (
    ("w", "conv1", "conv1"),
    ("bn", "bn1", "bn1"),
    ("w", "layer{s}.{b}.conv{c}", "layer{s}.{b}.conv{c}"),
    ("bn", "layer{s}.{b}.bn{c}", "layer{s}.{b}.bn{c}"),
    ("w", "layer{s}.{b}.down_sample.0", "layer{s}.{b}.downsample.0"),
    ("bn", "layer{s}.{b}.down_sample.1", "layer{s}.{b}.downsample.1"),
    ("wb", "classifier", "fc"),
)
_STAGE = "resnet.encoder.stages.{s-1}.layers.{b}."
HF = (
    ("w", "conv1", "resnet.embedder.embedder.convolution"),
    ("bn", "bn1", "resnet.embedder.embedder.normalization"),
    ("w", "layer{s}.{b}.conv{c}", _STAGE + "layer.{c-1}.convolution"),
    ("bn", "layer{s}.{b}.bn{c}", _STAGE + "layer.{c-1}.normalization"),
    ("w", "layer{s}.{b}.down_sample.0", _STAGE + "shortcut.convolution"),
    ("bn", "layer{s}.{b}.down_sample.1", _STAGE + "shortcut.normalization"),
    ("wb", "classifier", "classifier.1"),
)
LAYOUTS = (
    Layout(
        "torchvision",
        (r"conv1\.weight", r"layer1\.0\.conv1\.weight", r"layer4\.0\.conv1\.weight", r"bn1\.running_mean"),
        TORCHVISION,
        without=(r"dct_mean", r"dct_var", r"fcnewr\..*", r"conv2\.weight"),
        arguments=TORCH,
        aliases=("timm",),
    ),
    Layout("hf", (r"resnet\.embedder\.embedder\.convolution\.weight",), HF, arguments=TORCH, aliases=("aigc-clf",)),
    mindcv(r"conv1\.weight", r"layer4\.0\.conv1\.weight", r"bn1\.moving_mean"),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size from the blocks of each stage and the number of convolutions in a block."""
    if layout.name == "hf":
        depths = tuple(count(tensors, rf"resnet\.encoder\.stages\.{s}\.layers\.(\d+)\..*") for s in range(4))
        convs = count(tensors, r"resnet\.encoder\.stages\.0\.layers\.0\.layer\.(\d)\..*")
    else:
        depths = tuple(count(tensors, rf"layer{s}\.(\d+)\..*") for s in range(1, 5))
        convs = count(tensors, r"layer1\.0\.conv(\d)\..*")
    wanted = ("basic" if convs == 2 else "bottleneck", depths)
    for name, size in SIZES.items():
        if size == wanted:
            return name, dict(layout.arguments)
    raise UserError(f"a ResNet with {depths} blocks of {convs} convolutions is not one of {', '.join(SIZES)}")


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """torchvision's and Hugging Face's published evaluation."""
    return "decode | resize(256, bilinear) | center_crop(224) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Stem and four stages."""
    stages = [(f"layer{s}", {"torchvision": f"layer{s}", "hf": f"resnet.encoder.stages.{s - 1}"}) for s in range(1, 5)]
    return [("bn1", {"torchvision": "bn1", "hf": "resnet.embedder.embedder.normalization"})] + stages


FAMILY = Family("resnet", SIZES, LAYOUTS, infer, transform, head=("classifier.weight", "classifier.bias"), taps=taps)
