"""ConvNeXt V2 atto to large: timm, Hugging Face, Meta's own names."""

import re
from typing import Tuple

from aidet.errors import UserError
from aidet.models.convnext_v2 import SIZES

from . import GELU, Arguments, Config, Family, Layout, Lookups, Rules, Taps, Tensors, count


# Target: feature.0 stem, feature.1, 3, 5, 7 stages, feature.2, 4, 6 downsampling.
def _table(block: str, down: str, names: Tuple[str, ...], grn: Tuple[str, str], rest: Rules) -> Rules:
    dwconv, norm, fc1, fc2 = names
    return (
        ("wb", "feature.{f}.{b}.dwconv", block + dwconv),
        ("ln", "feature.{f}.{b}.norm", block + norm),
        ("wb11", "feature.{f}.{b}.pwconv1", block + fc1),
        ("reshape", "feature.{f}.{b}.grn.weight", block + grn[0]),
        ("reshape", "feature.{f}.{b}.grn.bias", block + grn[1]),
        ("wb11", "feature.{f}.{b}.pwconv2", block + fc2),
        ("wb", "feature.0.0", rest[0][2]),
        ("ln", "feature.0.1", rest[1][2]),
        ("ln", "feature.{f}.0", down + "0"),
        ("wb", "feature.{f}.1", down + "1"),
        *rest[2:],
    )


TIMM = _table(
    "stages.{stage(f)}.blocks.{b}.",
    "stages.{down(f)}.downsample.",
    ("conv_dw", "norm", "mlp.fc1", "mlp.fc2"),
    ("mlp.grn.weight", "mlp.grn.bias"),
    (("", "", "stem.0"), ("", "", "stem.1"), ("ln", "norm", "head.norm"), ("wb", "classifier", "head.fc")),
)
HF = _table(
    "convnextv2.encoder.stages.{stage(f)}.layers.{b}.",
    "convnextv2.encoder.stages.{down(f)}.downsampling_layer.",
    ("dwconv", "layernorm", "pwconv1", "pwconv2"),
    ("grn.weight", "grn.bias"),
    (
        ("", "", "convnextv2.embeddings.patch_embeddings"),
        ("", "", "convnextv2.embeddings.layernorm"),
        ("ln", "norm", "convnextv2.layernorm"),
        ("wb", "classifier", "classifier"),
    ),
)
META = _table(
    "stages.{stage(f)}.{b}.",
    "downsample_layers.{down(f)}.",
    ("dwconv", "norm", "pwconv1", "pwconv2"),
    ("grn.gamma", "grn.beta"),
    (
        ("", "", "downsample_layers.0.0"),
        ("", "", "downsample_layers.0.1"),
        ("ln", "norm", "norm"),
        ("wb", "classifier", "head"),
    ),
)
LAYOUTS = (
    Layout(
        "timm",
        (r"stem\.0\.weight", r"stages\.0\.blocks\.0\.mlp\.grn\.weight", r"head\.fc\.weight"),
        TIMM,
        arguments={"head_eps": 1e-6},
        # timm's small ones have convolutions there (conv_mlp), the others dense layers.
        reshaped=((r".*\.mlp\.fc[12]\.weight", 4, r"convnext_v2_(atto|femto|pico|nano)"),),
    ),
    Layout(
        "hf",
        (r"convnextv2\.encoder\.stages\.0\.layers\.0\.grn\.weight",),
        HF,
        arguments={"head_eps": 1e-12},
        stated={"hidden_act": GELU},
        reshaped=((r".*\.grn\.(weight|bias)", -4),),
    ),
    Layout(
        "meta",
        (r"downsample_layers\.0\.0\.weight", r"stages\.0\.0\.grn\.gamma"),
        META,
        arguments={"head_eps": 1e-6},
        reshaped=((r".*\.grn\.(gamma|beta)", -4),),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size from width and depths."""
    pattern = r"stem\.0\.weight|convnextv2\.embeddings\.patch_embeddings\.weight|downsample_layers\.0\.0\.weight"
    stem = next(tuple(t.shape) for k, t in tensors.items() if re.fullmatch(pattern, k))
    block = r"(?:convnextv2\.encoder\.)?stages\.%d\.(?:blocks\.|layers\.)?(\d+)\.(?:mlp\.)?grn\..*"
    depths = tuple(count(tensors, block % s) for s in range(4))
    arguments = dict(layout.arguments)
    if layout.name == "hf" and config and "layer_norm_eps" in config:
        arguments["head_eps"] = float(config["layer_norm_eps"])
    for name, (known, widths) in SIZES.items():
        if (known, widths[0], (4, 4)) == (depths, stem[0], stem[2:]):
            return name, arguments
    raise UserError(
        f"a ConvNeXt V2 of width {stem[0]}, patch {stem[2:]} and depths {depths} is not one of {', '.join(SIZES)}"
    )


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """Index in our list -> stage."""
    return {"stage": {(f,): (f - 1) // 2 for f in (1, 3, 5, 7)}, "down": {(f,): f // 2 for f in (2, 4, 6)}}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The published evaluation at 224 pixels."""
    return "decode | resize(256, bicubic) | center_crop(224) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Stem and stages."""
    rows = [("feature.0", {"timm": "stem", "hf": "convnextv2.embeddings.layernorm"})]
    for s in range(4):
        rows.append((f"feature.{2 * s + 1}", {"timm": f"stages.{s}", "hf": f"convnextv2.encoder.stages.{s}"}))
    return rows


FAMILY = Family(
    "convnext_v2", SIZES, LAYOUTS, infer, transform, lookups, ("classifier.weight", "classifier.bias"), taps
)
