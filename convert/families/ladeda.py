"""LaDeDa and Tiny-LaDeDa, as their authors save them."""

from typing import Tuple

from . import Arguments, Config, Family, Layout, Taps, Tensors, shape

RULES = (
    ("w", "conv1", "conv1"),
    ("w", "conv2", "conv2"),
    ("bn", "bn1", "bn1"),
    ("w", "layer{s}.{b}.conv{c}", "layer{s}.{b}.conv{c}"),
    ("bn", "layer{s}.{b}.bn{c}", "layer{s}.{b}.bn{c}"),
    ("w", "layer{s}.{b}.down_sample.0", "layer{s}.{b}.downsample.0"),
    ("bn", "layer{s}.{b}.down_sample.1", "layer{s}.{b}.downsample.1"),
    ("wb", "fc", "fc"),
)
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
