"""FreDect: torchvision's names for the ResNet, and the mean and variance of the coefficients beside them."""

from typing import Tuple

from aidet.errors import UserError
from aidet.models.resnet import SIZES

from . import Arguments, Config, Family, Layout, Taps, Tensors, count, shape
from .resnet import TORCHVISION

LAYOUTS = (
    Layout(
        "fredect",
        (r"conv1\.weight", r"layer4\.0\.conv1\.weight", r"dct_mean", r"dct_var"),
        (*TORCHVISION, ("one", "dct_mean", "dct_mean"), ("one", "dct_var", "dct_var")),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size from the blocks of each stage, input from the map of coefficients."""
    depths = tuple(count(tensors, rf"layer{s}\.(\d+)\..*") for s in range(1, 5))
    kind = "basic" if count(tensors, r"layer1\.0\.conv(\d)\..*") == 2 else "bottleneck"
    name = next((n for n in ("resnet18", "resnet50") if SIZES[n] == (kind, depths)), None)
    if name is None:
        raise UserError(f"FreDect with {depths} blocks of kind {kind} is not one of resnet18, resnet50")
    mean = shape(tensors, "dct_mean")
    if len(mean) != 3 or mean[1] != mean[2]:
        raise UserError(f"FreDect's dct_mean has the shape {mean}; the maps of coefficients are (channels, size, size)")
    return f"fredect_{name}", {"image_size": mean[2]}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """AIGCDetectBenchmark's evaluation, in grey levels."""
    return f"decode | resize(256, bilinear) | center_crop({arguments['image_size']}) | to_float(0, 255)"


def taps(architecture: str) -> Taps:
    """Stem and stages."""
    return [(name, {"fredect": f"net.{name}"}) for name in ("bn1", "layer1", "layer2", "layer3", "layer4")]


FAMILY = Family(
    "fredect",
    ("fredect_resnet18", "fredect_resnet50"),
    LAYOUTS,
    infer,
    transform,
    head=("classifier.weight", "classifier.bias"),
    taps=taps,
)
