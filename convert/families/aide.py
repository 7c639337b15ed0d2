"""AIDE, as its authors save it: two ResNets, open_clip's ConvNeXt under timm's names, filters and head in one file."""

from typing import Tuple

from aidet.errors import UserError
from aidet.models.resnet import SIZES

from . import Arguments, Config, Family, Layout, Lookups, Taps, Tensors, convnext, count, resnet, shape

TOWER = "openclip_convnext_xxl."
RULES = (
    *((kind, f"tower.{target}", TOWER + source) for kind, target, source in convnext.TIMM if target != "classifier"),
    *(
        (kind, f"model_{n}.{target}", f"model_{n}.{source}")
        for n in ("min", "max")
        for kind, target, source in resnet.TRUNK
    ),
    ("w", "hpf", "hpf.hpf"),
    ("wb", "proj", "convnext_proj.0"),
    ("wb", "fc1", "fc.fc1"),
    ("wb", "fc2", "fc.fc2"),
)
LAYOUTS = (
    Layout(
        "aide",
        (
            *(r"hpf\.hpf\.weight", r"openclip_convnext_xxl\.stem\.0\.weight", r"model_min\.conv1\.weight"),
            *(r"convnext_proj\.0\.weight", r"fc\.fc1\.weight"),
        ),
        RULES,
        drop=((r"model_(?:min|max)\.fc\..*", "a ResNet's own classifier, which the authors' forward never reads"),),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Sizes of the ConvNeXt, the ResNets and the head."""
    stages = [rf"openclip_convnext_xxl\.stages\.{s}\.blocks\.(\d+)\.gamma" for s in range(4)]
    widths = [shape(tensors, f"{TOWER}stages.{s}.blocks.0.gamma") for s in range(4)]
    blocks = tuple(count(tensors, rf"model_min\.layer{s}\.(\d+)\..*") for s in range(1, 5))
    kind = "basic" if count(tensors, r"model_min\.layer1\.0\.conv(\d)\..*") == 2 else "bottleneck"
    name = next((n for n, size in SIZES.items() if size == (kind, blocks)), None)
    if name is None or None in widths:
        raise UserError(f"AIDE with ResNets of {blocks} blocks of kind {kind}, or a ConvNeXt without four stages")
    return "aide", {
        "depths": [count(tensors, pattern) for pattern in stages],
        "widths": [w[0] for w in widths],
        "resnet": name,
        "projection": shape(tensors, "convnext_proj.0.weight")[0],
        "hidden": shape(tensors, "fc.fc1.weight")[0],
    }


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """Those of ConvNeXt."""
    return convnext.lookups(architecture, arguments)


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The photograph as it is: the network cuts and resizes."""
    return "decode | to_float"


def taps(architecture: str) -> Taps:
    """The stages of the ConvNeXt; the ResNets run twice."""
    return [(f"tower.feature.{2 * s + 1}", {"aide": f"{TOWER}stages.{s}"}) for s in range(4)]


FAMILY = Family("aide", ("aide",), LAYOUTS, infer, transform, lookups, ("fc2.weight", "fc2.bias"), taps)
