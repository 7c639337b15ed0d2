"""NPR, as its authors save it; the keys and shapes are those of SAFE, so that a recipe or ``--layout`` decides."""

from typing import Tuple

from . import Arguments, Config, Family, Layout, Taps, Tensors
from .resnet import TRUNK

RULES = (*TRUNK, ("wb", "fc1", "fc1"))
MARKS = (r"conv1\.weight", r"layer2\.3\.conv3\.weight", r"fc1\.weight")
WITHOUT = (r"layer3\..*",)
HEAD = ("fc1.weight", "fc1.bias")
LAYOUTS = (Layout("npr", MARKS, RULES, without=WITHOUT),)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """There is one size."""
    return "npr_resnet50", {}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The authors' evaluation on images of different sizes."""
    return "decode | resize((256, 256), bilinear) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Stem and both stages."""
    return [(name, {"npr": name, "safe": name}) for name in ("bn1", "layer1", "layer2")]


FAMILY = Family("npr", ("npr_resnet50",), LAYOUTS, infer, transform, head=HEAD, taps=taps)
