"""ConvNeXt tiny, small, base: torchvision, timm, Hugging Face, Meta's own."""

import re
from typing import Tuple

from aidet.errors import UserError
from aidet.models.convnext import SIZES

from . import GELU, Arguments, Config, Family, Layout, Lookups, Taps, Tensors, count, mindcv

# Target: feature.0 stem, feature.1, 3, 5, 7 stages, feature.2, 4, 6 downsampling.
TORCHVISION = (
    ("wb", "feature.0.0", "features.0.0"),
    ("ln", "feature.0.1", "features.0.1"),
    ("reshape", "feature.{f}.{b}.gamma_", "features.{f}.{b}.layer_scale"),
    ("wb", "feature.{f}.{b}.dwconv", "features.{f}.{b}.block.0"),
    ("ln", "feature.{f}.{b}.norm", "features.{f}.{b}.block.2"),
    ("wb", "feature.{f}.{b}.pwconv1", "features.{f}.{b}.block.3"),
    ("wb", "feature.{f}.{b}.pwconv2", "features.{f}.{b}.block.5"),
    ("ln", "feature.{f}.0", "features.{f}.0"),
    ("wb", "feature.{f}.1", "features.{f}.1"),
    ("ln", "norm", "classifier.0"),
    ("wb", "classifier", "classifier.2"),
)


def _by_stage(block, down, names, stem, tail):
    gamma, dwconv, norm, fc1, fc2 = names
    return (
        ("wb", "feature.0.0", stem[0]),
        ("ln", "feature.0.1", stem[1]),
        ("one", "feature.{f}.{b}.gamma_", block + gamma),
        ("wb", "feature.{f}.{b}.dwconv", block + dwconv),
        ("ln", "feature.{f}.{b}.norm", block + norm),
        ("wb", "feature.{f}.{b}.pwconv1", block + fc1),
        ("wb", "feature.{f}.{b}.pwconv2", block + fc2),
        ("ln", "feature.{f}.0", down + "0"),
        ("wb", "feature.{f}.1", down + "1"),
    ) + tail


TIMM = _by_stage(
    "stages.{stage(f)}.blocks.{b}.",
    "stages.{down(f)}.downsample.",
    ("gamma", "conv_dw", "norm", "mlp.fc1", "mlp.fc2"),
    ("stem.0", "stem.1"),
    (("ln", "norm", "head.norm"), ("wb", "classifier", "head.fc")),
)
HF = _by_stage(
    "convnext.encoder.stages.{stage(f)}.layers.{b}.",
    "convnext.encoder.stages.{down(f)}.downsampling_layer.",
    ("layer_scale_parameter", "dwconv", "layernorm", "pwconv1", "pwconv2"),
    ("convnext.embeddings.patch_embeddings", "convnext.embeddings.layernorm"),
    (("ln", "norm", "convnext.layernorm"), ("wb", "classifier", "classifier")),
)
META = _by_stage(
    "stages.{stage(f)}.{b}.",
    "downsample_layers.{down(f)}.",
    ("gamma", "dwconv", "norm", "pwconv1", "pwconv2"),
    ("downsample_layers.0.0", "downsample_layers.0.1"),
    (("ln", "norm", "norm"), ("wb", "classifier", "head")),
)
_NO_V2 = (r".*\.grn\..*",)
LAYOUTS = (
    Layout(
        "torchvision",
        (r"features\.1\.0\.layer_scale", r"features\.7\.0\.block\.0\.weight"),
        TORCHVISION,
        reshaped=((r".*\.layer_scale", 3),),
    ),
    Layout("timm", (r"stem\.0\.weight", r"stages\.0\.blocks\.0\.conv_dw\.weight", r"head\.norm\.weight"), TIMM, _NO_V2),
    Layout(
        "hf",
        (r"convnext\.encoder\.stages\.0\.layers\.0\.dwconv\.weight",),
        HF,
        stated={"hidden_act": GELU, "layer_norm_eps": (1e-12, 1e-6)},
    ),
    Layout("meta", (r"downsample_layers\.0\.0\.weight", r"stages\.0\.0\.dwconv\.weight"), META, _NO_V2),
    mindcv(r"feature\.0\.0\.weight", r"feature\.1\.0\.dwconv\.weight"),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size from width and depths."""
    stem = next(
        tuple(t.shape)
        for k, t in tensors.items()
        if re.fullmatch(
            r"features?\.0\.0\.weight|stem\.0\.weight|convnext\.embeddings\.patch_embeddings\.weight|downsample_layers\.0\.0\.weight",
            k,
        )
    )
    patterns = {"torchvision": r"features\.%d\.(\d+)\.layer_scale", "mindcv": r"feature\.%d\.(\d+)\.gamma_"}
    pattern = patterns.get(
        layout.name, r"(?:convnext\.encoder\.)?stages\.%d\.(?:blocks\.|layers\.)?(\d+)\.(?:gamma|layer_scale_parameter)"
    )
    depths = tuple(count(tensors, pattern % (2 * s + 1 if layout.name in patterns else s)) for s in range(4))
    for name, (known, widths) in SIZES.items():
        if (known, widths[0]) == (depths, stem[0]):
            return name, {}
    raise UserError(f"a ConvNeXt of width {stem[0]} and depths {depths} is not one of {', '.join(SIZES)}")


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """Index in our list -> stage."""
    return {"stage": {(f,): (f - 1) // 2 for f in (1, 3, 5, 7)}, "down": {(f,): f // 2 for f in (2, 4, 6)}}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The published evaluation of each library."""
    if layout.name == "torchvision":
        edge = {"convnext_tiny": 236, "convnext_small": 230, "convnext_base": 232}[architecture]
        return f"decode | resize({edge}, bilinear) | center_crop(224) | normalize(imagenet)"
    return "decode | resize(256, bicubic) | center_crop(224) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Stem, stages and the blocks of the last stage."""
    rows = [("feature.0", {"torchvision": "features.0", "timm": "stem", "hf": "convnext.embeddings.layernorm"})]
    for s in range(4):
        rows.append(
            (
                f"feature.{2 * s + 1}.0",
                {
                    "torchvision": f"features.{2 * s + 1}.0",
                    "timm": f"stages.{s}.blocks.0",
                    "hf": f"convnext.encoder.stages.{s}.layers.0",
                },
            )
        )
        rows.append(
            (
                f"feature.{2 * s + 1}",
                {"torchvision": f"features.{2 * s + 1}", "timm": f"stages.{s}", "hf": f"convnext.encoder.stages.{s}"},
            )
        )
    return rows


FAMILY = Family("convnext", SIZES, LAYOUTS, infer, transform, lookups, ("classifier.weight", "classifier.bias"), taps)
