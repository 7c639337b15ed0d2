"""Swin v2: Hugging Face, timm, and Microsoft's own names.

Neither the window nor the input size can be told from the weights that Hugging Face and timm save: config.json has to
say them. Microsoft's files carry a table whose size gives the window.
"""

import math
import re
from typing import Any, Dict, Mapping, Tuple

import numpy as np

from aidet.errors import UserError
from aidet.models.swin_v2 import SIZES

from ..reading import Tensor
from . import GELU, Arguments, Config, Family, Layout, Taps, Tensors, count, shape

_TARGET = "stages.{s}.blocks.{b}."
_TIMM_BLOCK = "layers.{s}.blocks.{b}."
_TIMM = (
    ("wb", "patch_embed.proj", "patch_embed.proj"),
    ("ln", "patch_embed.norm", "patch_embed.norm"),
    ("qw", _TARGET + "attn.q", _TIMM_BLOCK + "attn.qkv"),
    ("kw", _TARGET + "attn.k", _TIMM_BLOCK + "attn.qkv"),
    ("vw", _TARGET + "attn.v", _TIMM_BLOCK + "attn.qkv"),
    ("one", _TARGET + "attn.q.bias", _TIMM_BLOCK + "attn.q_bias"),
    ("one", _TARGET + "attn.v.bias", _TIMM_BLOCK + "attn.v_bias"),
    ("one", _TARGET + "attn.logit_scale", _TIMM_BLOCK + "attn.logit_scale"),
    ("wb", _TARGET + "attn.position_bias.mlp.{n}", _TIMM_BLOCK + "attn.cpb_mlp.{n}"),
    ("wb", _TARGET + "attn.proj", _TIMM_BLOCK + "attn.proj"),
    ("ln", _TARGET + "norm1", _TIMM_BLOCK + "norm1"),
    ("ln", _TARGET + "norm2", _TIMM_BLOCK + "norm2"),
    ("wb", _TARGET + "mlp.fc1", _TIMM_BLOCK + "mlp.fc1"),
    ("wb", _TARGET + "mlp.fc2", _TIMM_BLOCK + "mlp.fc2"),
    ("ln", "norm", "norm"),
)
# timm moved a merge from the end of a stage to the start of the next.
TIMM = _TIMM + (
    ("w", "stages.{s}.downsample.reduction", "layers.{s+1}.downsample.reduction"),
    ("ln", "stages.{s}.downsample.norm", "layers.{s+1}.downsample.norm"),
    ("wb", "classifier", "head.fc"),
)
MICROSOFT = _TIMM + (
    ("w", "stages.{s}.downsample.reduction", "layers.{s}.downsample.reduction"),
    ("ln", "stages.{s}.downsample.norm", "layers.{s}.downsample.norm"),
    ("wb", "classifier", "head"),
)
_HF_BLOCK = "swinv2.encoder.layers.{s}.blocks.{b}."
HF = (
    ("wb", "patch_embed.proj", "swinv2.embeddings.patch_embeddings.projection"),
    ("ln", "patch_embed.norm", "swinv2.embeddings.norm"),
    ("wb", _TARGET + "attn.q", _HF_BLOCK + "attention.self.query"),
    ("wb", _TARGET + "attn.k", _HF_BLOCK + "attention.self.key"),
    ("wb", _TARGET + "attn.v", _HF_BLOCK + "attention.self.value"),
    ("one", _TARGET + "attn.logit_scale", _HF_BLOCK + "attention.self.logit_scale"),
    ("wb", _TARGET + "attn.position_bias.mlp.{n}", _HF_BLOCK + "attention.self.continuous_position_bias_mlp.{n}"),
    ("wb", _TARGET + "attn.proj", _HF_BLOCK + "attention.output.dense"),
    ("ln", _TARGET + "norm1", _HF_BLOCK + "layernorm_before"),
    ("ln", _TARGET + "norm2", _HF_BLOCK + "layernorm_after"),
    ("wb", _TARGET + "mlp.fc1", _HF_BLOCK + "intermediate.dense"),
    ("wb", _TARGET + "mlp.fc2", _HF_BLOCK + "output.dense"),
    ("w", "stages.{s}.downsample.reduction", "swinv2.encoder.layers.{s}.downsample.reduction"),
    ("ln", "stages.{s}.downsample.norm", "swinv2.encoder.layers.{s}.downsample.norm"),
    ("ln", "norm", "swinv2.layernorm"),
    ("wb", "classifier", "classifier"),
)
_DROP = (
    (r".*relative_position_index", "computed from the window size"),
    (r".*relative_coords_table", "computed from the window size"),
    (r".*attn_mask", "computed from sizes"),
)
_SCALE = r"layers\.0\.blocks\.0\.attn\.logit_scale"
LAYOUTS = (
    Layout(
        "hf",
        (r"swinv2\.encoder\.layers\.0\.blocks\.0\.attention\.self\.logit_scale",),
        HF,
        drop=_DROP,
        arguments={"mask_value": 200.0},
        stated={"hidden_act": GELU, "layer_norm_eps": (1e-5,)},
    ),
    Layout(
        "timm",
        (_SCALE, r"layers\.1\.downsample\.reduction\.weight"),
        TIMM,
        without=(r"layers\.0\.downsample\..*",),
        drop=_DROP,
        arguments={"mask_value": 100.0},
    ),
    Layout(
        "microsoft",
        (_SCALE, r"layers\.0\.downsample\.reduction\.weight"),
        MICROSOFT,
        drop=_DROP,
        arguments={"mask_value": 100.0},
        aliases=("timm-old",),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Width, depths and heads from the shapes; window and input size from config.json, or from Microsoft's tables."""
    root = "swinv2.encoder." if layout.name == "hf" else ""
    attention = "attention.self" if layout.name == "hf" else "attn"
    patch = shape(tensors, "patch_embed.proj.weight", "swinv2.embeddings.patch_embeddings.projection.weight")
    stages = count(tensors, re.escape(root) + r"layers\.(\d+)\..*")
    depths = tuple(count(tensors, re.escape(root) + rf"layers\.{s}\.blocks\.(\d+)\..*") for s in range(stages))
    heads = tuple(shape(tensors, f"{root}layers.{s}.blocks.0.{attention}.logit_scale")[0] for s in range(stages))
    if patch[2:] != (4, 4):
        raise UserError(f"a Swin v2 with patches of {patch[2:]} is not known here; they are 4 x 4")
    arguments = {**layout.arguments, **_sizes(tensors, config or {}, stages)}
    for name, size in SIZES.items():
        if size == (patch[0], depths, heads):
            return name, arguments
    return "swin_v2", {**arguments, "width": patch[0], "depths": list(depths), "heads": list(heads)}


def _sizes(tensors: Tensors, config: Mapping[str, Any], stages: int) -> Dict[str, Any]:
    """``image_size``, ``window_size`` and ``pretrained_window``."""
    settings = {**(config.get("model_args") or {}), **config}
    named = re.search(r"window(\d+)(?:to(\d+))?_(\d+)(?:to(\d+))?", str(config.get("architecture") or ""))
    window, image = settings.get("window_size"), settings.get("image_size", settings.get("img_size"))
    pretrained = settings.get("pretrained_window_sizes")
    if named:
        first, second, small, large = named.groups()
        window = window or second or first
        image = image or (config.get("pretrained_cfg") or {}).get("input_size", [large or small])[-1]
        if second and not pretrained:
            # The last stage of pretraining had half the window, because its map is that small.
            pretrained = [int(first)] * (stages - 1) + [int(first) // 2]
    tables = [tensors.get(f"layers.{s}.blocks.0.attn.relative_coords_table") for s in range(stages)]
    if not window and all(table is not None for table in tables):
        window = (max(table.shape[1] for table in tables if table is not None) + 1) // 2
        pretrained = [_pretrained(table) for table in tables if table is not None]
    if not window:
        raise UserError(
            "the weights of a Swin v2 do not tell its window: put its config.json beside the file (Hugging Face's, or "
            'timm\'s with "architecture": "swinv2_tiny_window8_256" or another name)'
        )
    window = int(_side(window))
    mask = shape(tensors, "layers.0.blocks.1.attn_mask")
    if not image and mask:
        image = 4 * window * math.isqrt(mask[0])
    found: Dict[str, Any] = {
        "image_size": int(_side(image)) if image else {12: 192, 24: 384}.get(window, 256),
        "window_size": window,
    }
    if pretrained and any(pretrained):
        found["pretrained_window"] = [int(_side(w)) for w in pretrained]
    return found


def _pretrained(table: Tensor) -> int:
    """The window of pretraining, from a table of compressed offsets (1, 2w - 1, 2w - 1, 2); 0 if it is this window."""
    own = (table.shape[1] + 1) // 2
    largest = 2 ** (3 * float(np.abs(table.array()).max())) - 1  # 8 * (own - 1) / (pretrained - 1)
    pretrained = round(8 * (own - 1) / largest) + 1 if largest > 0 else own
    return 0 if pretrained == own else pretrained


def _side(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) else value


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The published evaluation of each library."""
    size = arguments["image_size"]
    if layout.name == "hf":
        return f"decode | resize(({size}, {size}), bicubic) | normalize(imagenet)"
    edge = size if size >= 384 else int(size / 0.9)
    return f"decode | resize({edge}, bicubic) | center_crop({size}) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Patches, the stages' first blocks, the final norm."""

    def named(timm, huggingface):
        return {"timm": timm, "microsoft": timm, "hf": "swinv2." + huggingface}

    rows = [("patch_embed", named("patch_embed", "embeddings.norm"))]
    for s in range(4 if architecture in SIZES else 2):  # at least two stages in any
        rows.append((f"stages.{s}.blocks.0", named(f"layers.{s}.blocks.0", f"encoder.layers.{s}.blocks.0")))
    return rows + [("norm", named("norm", "layernorm"))]


FAMILY = Family(
    "swin_v2",
    (*SIZES, "swin_v2"),
    LAYOUTS,
    infer,
    transform,
    head=("classifier.weight", "classifier.bias"),
    taps=taps,
)
