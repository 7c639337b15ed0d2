"""Gram-Net on ResNet-18, as AIGCDetectBenchmark saves it."""

from typing import Tuple

from . import Arguments, Config, Family, Layout, Taps, Tensors
from .resnet import TORCHVISION

# Their names of the six branches: the narrowing convolution, and the two convolutions on the Gram matrix.
_BRANCHES = (
    ("conv_interi_0", "gi_fc1", "gi_fc2"),
    ("conv_inter0_0", "g0_fc1", "g0_fc2"),
    ("conv_inter1_0", "g_fc1r", "g_fc2r"),
    ("conv_inter2_0", "g2_fc1", "g2_fc2"),
    ("conv_inter3_0", "g3_fc1", "g3_fc2"),
    ("conv_inter4_0", "g4_fc1", "g4_fc2"),
)
RULES = (
    *TORCHVISION[:-1],
    *(
        (kind, f"gram.{i}.{ours}.{place}", f"{theirs}.{place}")
        for i, names in enumerate(_BRANCHES)
        for ours, theirs in zip(("narrow", "fc1", "fc2"), names)
        for kind, place in (("w", 0), ("bn", 1))
    ),
    ("one", "scale", "scale.scale"),
    ("wb", "fc1", "fcnewr.0"),
    ("wb", "fc2", "fcnewr.3"),
)
LAYOUTS = (Layout("gramnet", (r"conv1\.weight", r"conv_interi_0\.0\.weight", r"fcnewr\.3\.weight"), RULES),)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """There is one size."""
    return "gramnet_resnet18", {}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """AIGCDetectBenchmark's evaluation."""
    return "decode | resize(256, bilinear) | center_crop(224) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Stem, stages and the ends of the branches."""
    stages = [(name, {"gramnet": name}) for name in ("bn1", "layer1", "layer2", "layer3", "layer4")]
    return stages + [(f"gram.{i}.fc2", {"gramnet": names[2]}) for i, names in enumerate(_BRANCHES)]


FAMILY = Family("gramnet", ("gramnet_resnet18",), LAYOUTS, infer, transform, head=("fc2.weight", "fc2.bias"), taps=taps)
