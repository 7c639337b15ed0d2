"""CIFAR ResNets: akamaster/pytorch_resnet_cifar10."""

from aidet.errors import UserError
from aidet.models.cifar_resnet import DEPTHS

from . import Family, Layout, count

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


def infer(layout, tensors, config):
    """Depth is 6 n + 2, n blocks a stage."""
    depth = 6 * count(tensors, r"layer1\.(\d+)\..*") + 2
    if depth not in DEPTHS:
        raise UserError(f"a CIFAR ResNet of depth {depth} is none of {', '.join(map(str, DEPTHS))}")
    return f"cifar_resnet{depth}", {}


def transform(architecture, layout, arguments):
    """32x32, with the channel statistics akamaster's trainer uses (ImageNet's)."""
    return "decode | resize((32, 32), bilinear) | normalize(imagenet)"


def taps(architecture):
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
