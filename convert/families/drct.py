"""DRCT on ConvNeXt: timm's names under ``model.``, and a classifier on the embedding."""

from typing import Tuple

from . import Arguments, Config, Family, Layout, Lookups, Taps, Tensors, convnext

LAYOUTS = (
    Layout(
        "drct",
        (r"model\.stem\.0\.weight", r"model\.head\.fc\.weight", r"fc\.weight"),
        (*((kind, target, f"model.{source}") for kind, target, source in convnext.TIMM), ("wb", "fc", "fc")),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size of the ConvNeXt and width of the embedding."""
    inside = {k[len("model.") :]: t for k, t in tensors.items() if k.startswith("model.")}
    name, _ = convnext.infer(next(x for x in convnext.LAYOUTS if x.name == "timm"), inside, config)
    return f"drct_{name}", {"embedding": tensors["fc.weight"].shape[1]}


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """Those of ConvNeXt."""
    return convnext.lookups(architecture, arguments)


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The authors' evaluation."""
    return "decode | center_crop(224, floor) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """ConvNeXt's."""
    return [(cell, {"drct": f"model.{names['timm']}"}) for cell, names in convnext.taps(architecture)]


FAMILY = Family(
    "drct",
    ("drct_convnext_tiny", "drct_convnext_base"),
    LAYOUTS,
    infer,
    transform,
    lookups,
    ("fc.weight", "fc.bias"),
    taps,
)
