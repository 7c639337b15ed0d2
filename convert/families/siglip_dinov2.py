"""SigLIP under transformers' names beside DINOv2 under timm's, and a classifier on the features of both."""

from typing import Tuple

from aidet.models import dinov2 as dino
from aidet.models import siglip as sig

from . import Arguments, Config, Family, Layout, Lookups, Taps, Tensors, dinov2, siglip

_HF = next(x for x in siglip.LAYOUTS if x.name == "hf")
_TIMM = next(x for x in dinov2.LAYOUTS if x.name == "timm")


def _under(name, rules):
    return tuple((kind, f"{name}.{ours}", f"{name}.{theirs}") for kind, ours, theirs in rules if ours != "head")


RULES = (
    *_under("siglip", _HF.rules),
    *_under("dinov2", _TIMM.rules),
    ("ln", "norm", "classifier.head.0"),
    ("wb", "fc1", "classifier.head.1"),
    ("wb", "fc2", "classifier.head.4"),
    ("wb", "head", "classifier.head.7"),
)
LAYOUTS = (
    Layout(
        "siglip_dinov2",
        (r"siglip\.vision_model\.head\.probe", r"dinov2\.blocks\.0\.ls1\.gamma", r"classifier\.head\.7\.weight"),
        RULES,
        drop=((r"siglip\..*\.position_ids", "numbers from 0 up"),),
        reshaped=tuple((rf"siglip\.{regex}", n) for regex, n in _HF.reshaped),
        # transformers 5 leaves out a part of every name.
        renames=((r"siglip\.((?:embeddings|encoder|post_layernorm|head)\..*)", r"siglip.vision_model.\1"),),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Sizes of both towers, and the width of the classifier."""
    first, arguments = siglip.infer(_HF, _inside("siglip.", tensors), None)
    second, others = dinov2.infer(_TIMM, _inside("dinov2.", tensors), None)
    return "siglip_dinov2", {
        "siglip": {**sig.sizes(first), **arguments},
        "dinov2": {**dino.sizes(second), **others},
        "hidden": tensors["classifier.head.1.weight"].shape[0],
    }


def _inside(prefix, tensors):
    return {k[len(prefix) :]: t for k, t in tensors.items() if k.startswith(prefix)}


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """Those of DINOv2."""
    return dinov2.lookups("dinov2_vit_l_14", arguments.get("dinov2", {}))


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The authors' evaluation: the whole picture for each tower, in the library's way of its own."""
    above, below = (arguments[name]["image_size"] for name in ("dinov2", "siglip"))
    return f"decode | two_sizes({above}, bicubic, {below}, bilinear) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """What both towers give, token by token."""
    rows = {"siglip.norm": "siglip.vision_model.post_layernorm", "dinov2.norm": "dinov2.norm"}
    return [(ours, {"siglip_dinov2": theirs}) for ours, theirs in rows.items()]


FAMILY = Family(
    "siglip_dinov2",
    ("siglip_dinov2",),
    LAYOUTS,
    infer,
    transform,
    lookups,
    head=("head.weight", "head.bias"),
    taps=taps,
)
