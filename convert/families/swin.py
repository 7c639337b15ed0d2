"""Swin v1: Hugging Face (also as npz), timm before and after 0.9 (the older is also Microsoft's own), torchvision."""

import math
import re
from typing import Tuple

from aidet.errors import UserError
from aidet.models.swin import SIZES

from . import GELU, Arguments, Config, Family, Layout, Lookups, Taps, Tensors, count, mindcv, shape

_STAGES = (("0.blocks.{b}.", 0), ("0.blocks.{s}.blocks.{b}.", None))


def _table(block, merge, stem, norms, attention, mlp, tail):
    """Lines for both ways MindCV names a stage: the first, and the others."""
    lines = list(stem)
    for target, stage in _STAGES:
        source = block if stage is None else block.replace("{s}", "0").replace("{stage(s)}", "1")
        for name, theirs in norms:
            lines.append(("ln", target + name, source + theirs))
        for kind, name, theirs in (*attention, *mlp):
            lines.append((kind, target + name, source + theirs))
    for target, replace in (("0.downsample.", "0"), ("0.blocks.{s}.downsample.", None)):
        source = merge
        if replace is not None:
            source = merge.replace("{s}", "0").replace("{s+1}", "1").replace("{merge(s)}", "2")
        lines += [("w", target + "reduction", source + "reduction"), ("ln", target + "norm", source + "norm")]
    return tuple(lines) + tuple(tail)


_BIAS = "attn.relative_bias.relative_position_bias_table"
_MLP = (("wb", "mlp.fc1", "mlp.fc1"), ("wb", "mlp.fc2", "mlp.fc2"))
_TIMM_ATTENTION = (
    ("q", "attn.q", "attn.qkv"),
    ("k", "attn.k", "attn.qkv"),
    ("v", "attn.v", "attn.qkv"),
    ("one", _BIAS, "attn.relative_position_bias_table"),
    ("wb", "attn.proj", "attn.proj"),
)
_TIMM_STEM = (("wb", "patch_embed.proj", "patch_embed.proj"), ("ln", "patch_embed.norm", "patch_embed.norm"))
_NORMS = (("norm1", "norm1"), ("norm2", "norm2"))
TIMM_OLD = _table(
    "layers.{s}.blocks.{b}.",
    "layers.{s}.downsample.",
    _TIMM_STEM,
    _NORMS,
    _TIMM_ATTENTION,
    _MLP,
    (("ln", "norm", "norm"), ("wb", "classifier", "head")),
)
TIMM = _table(
    "layers.{s}.blocks.{b}.",
    "layers.{s+1}.downsample.",
    _TIMM_STEM,
    _NORMS,
    _TIMM_ATTENTION,
    _MLP,
    (("ln", "norm", "norm"), ("wb", "classifier", "head.fc")),
)
TORCHVISION = _table(
    "features.{stage(s)}.{b}.",
    "features.{merge(s)}.",
    (("wb", "patch_embed.proj", "features.0.0"), ("ln", "patch_embed.norm", "features.0.2")),
    _NORMS,
    _TIMM_ATTENTION,
    (("wb", "mlp.fc1", "mlp.0"), ("wb", "mlp.fc2", "mlp.3")),
    (("ln", "norm", "norm"), ("wb", "classifier", "head")),
)
_HF_STEM = (
    ("wb", "patch_embed.proj", "swin.embeddings.patch_embeddings.projection"),
    ("ln", "patch_embed.norm", "swin.embeddings.norm"),
)
HF = _table(
    "swin.encoder.layers.{s}.blocks.{b}.",
    "swin.encoder.layers.{s}.downsample.",
    _HF_STEM,
    (("norm1", "layernorm_before"), ("norm2", "layernorm_after")),
    (
        ("wb", "attn.q", "attention.self.query"),
        ("wb", "attn.k", "attention.self.key"),
        ("wb", "attn.v", "attention.self.value"),
        ("one", _BIAS, "attention.self.relative_position_bias_table"),
        ("wb", "attn.proj", "attention.output.dense"),
    ),
    (("wb", "mlp.fc1", "intermediate.dense"), ("wb", "mlp.fc2", "output.dense")),
    (("ln", "norm", "swin.layernorm"), ("wb", "classifier", "classifier")),
)
# What a running model of transformers 5 calls the same tensors (its saved files keep the names above).
HF5 = _table(
    "swin.encoder.layers.{s}.blocks.{b}.",
    "swin.encoder.layers.{s}.downsample.",
    _HF_STEM,
    (("norm1", "layernorm_before"), ("norm2", "layernorm_after")),
    (
        ("wb", "attn.q", "attention.q_proj"),
        ("wb", "attn.k", "attention.k_proj"),
        ("wb", "attn.v", "attention.v_proj"),
        ("one", _BIAS, "attention.relative_position_bias.relative_position_bias_table"),
        ("wb", "attn.proj", "attention.o_proj"),
    ),
    _MLP,
    (("ln", "norm", "swin.layernorm"), ("wb", "classifier", "classifier")),
)

_DROP = ((r".*relative_position_index", "computed from the window size"), (r".*attn_mask", "computed from sizes"))
_COMPUTED = ((r".*\.relative_bias\.index", "constant of the window size"), (r".*\.attn_mask", "constant of the sizes"))
_STATED = {"hidden_act": GELU, "layer_norm_eps": (1e-5,)}
LAYOUTS = (
    Layout(
        "hf",
        (r"swin\.encoder\.layers\.0\.blocks\.0\.attention\.self\.query\.weight",),
        HF,
        drop=_DROP,
        computed=_COMPUTED,
        aliases=("aigc-clf",),
        stated=_STATED,
    ),
    Layout(
        "hf5",
        (r"swin\.encoder\.layers\.0\.blocks\.0\.attention\.q_proj\.weight",),
        HF5,
        drop=_DROP,
        computed=_COMPUTED,
        stated=_STATED,
    ),
    Layout(
        "timm",
        (r"layers\.0\.blocks\.0\.attn\.qkv\.weight", r"layers\.3\.downsample\.reduction\.weight"),
        TIMM,
        without=(r".*\.logit_scale",),
        drop=_DROP,
        computed=_COMPUTED,
    ),
    Layout(
        "timm-old",
        (r"layers\.0\.blocks\.0\.attn\.qkv\.weight", r"layers\.0\.downsample\.reduction\.weight"),
        TIMM_OLD,
        without=(r".*\.logit_scale",),
        drop=_DROP,
        computed=_COMPUTED,
        aliases=("microsoft",),
    ),
    Layout(
        "torchvision",
        (r"features\.1\.0\.attn\.qkv\.weight", r"features\.2\.reduction\.weight"),
        TORCHVISION,
        drop=_DROP,
        computed=_COMPUTED,
    ),
    mindcv(r"0\.blocks\.0\.attn\.q\.weight"),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size from width and depths, window from the bias table, input size from config.json, a mask, or the window."""
    patch = next(
        tuple(t.shape)
        for k, t in tensors.items()
        if re.fullmatch(r".*patch_embed(dings)?\.proj(ection)?\.weight|features\.0\.0\.weight", k)
    )
    patterns = {
        "hf": r"swin\.encoder\.layers\.%d\.blocks\.(\d+)\..*",
        "hf5": r"swin\.encoder\.layers\.%d\.blocks\.(\d+)\..*",
        "torchvision": r"features\.%d\.(\d+)\.norm1\..*",
        "mindcv": r"0\.blocks\.%d\.blocks\.(\d+)\..*",
    }
    pattern = patterns.get(layout.name, r"layers\.%d\.blocks\.(\d+)\..*")
    depths = [count(tensors, pattern % (2 * s + 1 if layout.name == "torchvision" else s)) for s in range(4)]
    if layout.name == "mindcv":
        depths[0] = count(tensors, r"0\.blocks\.(\d+)\.norm1\..*")
    name = next((n for n, (width, d, _) in SIZES.items() if (width, tuple(depths)) == (patch[0], d)), None)
    if name is None or patch[2:] != (4, 4):
        raise UserError(
            f"a Swin of width {patch[0]}, patch {patch[2:]} and depths {depths} is not one of {', '.join(SIZES)}"
        )
    table = next(tuple(t.shape) for k, t in tensors.items() if k.endswith("relative_position_bias_table"))
    window = (math.isqrt(table[0]) + 1) // 2
    return name, {"image_size": _image_size(tensors, config, window), "window_size": window}


def _image_size(tensors, config, window):
    config = config or {}
    size = config.get("image_size") or (config.get("pretrained_cfg") or {}).get("input_size", [None])[-1]
    if size:
        return int(size if isinstance(size, int) else size[0])
    mask = shape(tensors, "layers.0.blocks.1.attn_mask", "0.blocks.1.attn_mask")
    if mask:
        return 4 * window * math.isqrt(mask[0] if len(mask) == 3 else mask[1])
    return {7: 224, 12: 384}.get(window, 32 * window)


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """torchvision alternates stages and merges in one list."""
    return {"stage": {(s,): 2 * s + 1 for s in range(4)}, "merge": {(s,): 2 * s + 2 for s in range(3)}}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The published evaluation of each library."""
    size = arguments["image_size"]
    if layout.name == "torchvision":
        edge = {"swin_tiny": 232, "swin_small": 246, "swin_base": 238}.get(architecture, 232)
        return f"decode | resize({edge}, bicubic) | center_crop({size}) | normalize(imagenet)"
    if layout.name.startswith("hf"):
        return f"decode | resize(({size}, {size}), bicubic) | normalize(imagenet)"
    edge = size if size == 384 else int(size / 0.9)
    return f"decode | resize({edge}, bicubic) | center_crop({size}) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Patches, every second block, the final norm."""
    hf = dict.fromkeys(("hf", "hf5"), "swin.embeddings.norm")
    rows = [("patch_embed", {"timm": "patch_embed", "timm-old": "patch_embed", "torchvision": "features.0", **hf})]
    for s in range(4):
        for b in range(0, SIZES[architecture][1][s], 2):
            name = f"layers.{s}.blocks.{b}"
            rows.append(
                (
                    f"stages.{s}.blocks.{b}",
                    {
                        "timm": name,
                        "timm-old": name,
                        "hf": f"swin.encoder.{name}",
                        "hf5": f"swin.encoder.{name}",
                        "torchvision": f"features.{2 * s + 1}.{b}",
                    },
                )
            )
    hf = dict.fromkeys(("hf", "hf5"), "swin.layernorm")
    return rows + [("norm", {"timm": "norm", "timm-old": "norm", "torchvision": "norm", **hf})]


FAMILY = Family("swin", SIZES, LAYOUTS, infer, transform, lookups, ("classifier.weight", "classifier.bias"), taps)
