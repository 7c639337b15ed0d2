"""CIFAR ResNets: akamaster/pytorch_resnet_cifar10."""

from typing import Tuple

from aidet.errors import UserError
from aidet.models.cifar_resnet import DEPTHS

from . import Arguments, Config, Family, Layout, Taps, Tensors, count

AKAMASTER = (
    ("w", "conv1", "conv1"),
    ("bn", "bn1", "bn1"),
    ("w", "layer{s}.{b}.conv{c}", "layer{s}.{b}.conv{c}"),
    ("bn", "layer{s}.{b}.bn{c}", "layer{s}.{b}.bn{c}"),
    ("wb", "classifier", "linear"),
)
LAYOUTS = (
    Layout(
        "akamaster",
        (r"conv1\.weight", r"layer3\.0\.conv1\.weight", r"linear\.weight"),
        AKAMASTER,
        without=(r"layer4\..*", r".*shortcut.*"),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Depth is 6 n + 2, with n blocks per stage."""
    depth = 6 * count(tensors, r"layer1\.(\d+)\..*") + 2
    if depth not in DEPTHS:
        raise UserError(f"a CIFAR ResNet of depth {depth} is not one of {', '.join(map(str, DEPTHS))}")
    return f"cifar_resnet{depth}", {}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """32x32, with the channel statistics that akamaster's trainer uses (ImageNet's)."""
    return "decode | resize((32, 32), bilinear) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Stem and three stages."""
    return [(name, {"akamaster": name}) for name in ("bn1", "layer1", "layer2", "layer3")]


FAMILY = Family(
    "cifar_resnet",
    [f"cifar_resnet{d}" for d in DEPTHS],
    LAYOUTS,
    infer,
    transform,
    head=("classifier.weight", "classifier.bias"),
    taps=taps,
)
