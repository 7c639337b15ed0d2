"""LaDeDa and Tiny-LaDeDa, as their authors save them."""

from typing import Tuple

from . import Arguments, Config, Family, Layout, Taps, Tensors, shape
from .resnet import TRUNK

RULES = (*TRUNK, ("w", "conv2", "conv2"), ("wb", "fc", "fc"))
LAYOUTS = (Layout("ladeda", (r"conv1\.weight", r"conv2\.weight", r"layer1\.0\.conv1\.weight", r"fc\.weight"), RULES),)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size from the width of the first convolution."""
    return ("tiny_ladeda" if shape(tensors, "conv1.weight")[0] == 8 else "ladeda9"), {}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The authors' evaluation."""
    return "decode | resize((256, 256), bilinear) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Stem and stages."""
    stages = 1 if architecture == "tiny_ladeda" else 4
    return [(name, {"ladeda": name}) for name in ("bn1", *(f"layer{s + 1}" for s in range(stages)))]


FAMILY = Family(
    "ladeda", ("ladeda9", "tiny_ladeda"), LAYOUTS, infer, transform, head=("fc.weight", "fc.bias"), taps=taps
)
