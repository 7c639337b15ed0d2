"""BEiT: Hugging Face's saved names, those of a running model of transformers 5, and timm's."""

import math
from typing import Any, Dict, Tuple

from aidet.errors import UserError
from aidet.models.beit import SIZES

from . import GELU, Arguments, Config, Family, Layout, Rules, Taps, Tensors, count, shape

_TABLE = "relative_position_bias_table"


def _huggingface(block: str, attention: str, output: str, table: str, fc1: str, fc2: str) -> Rules:
    q, k, v = (f"attention.{attention.format(n)}" for n in ("query", "key", "value"))
    if attention == "{}_proj":
        q, k, v = "attention.q_proj", "attention.k_proj", "attention.v_proj"
    return (
        ("one", "cls_token", "beit.embeddings.cls_token"),
        ("one", "pos_embed", "beit.embeddings.position_embeddings"),
        ("wb", "patch_embed.proj", "beit.embeddings.patch_embeddings.projection"),
        ("ln", "blocks.{b}.norm1", block + "layernorm_before"),
        ("ln", "blocks.{b}.norm2", block + "layernorm_after"),
        ("wb", "blocks.{b}.attn.q", block + q),
        ("w", "blocks.{b}.attn.k", block + k),
        ("wb", "blocks.{b}.attn.v", block + v),
        ("wb", "blocks.{b}.attn.proj", block + output),
        ("one", f"blocks.{{b}}.attn.{_TABLE}", block + table),
        ("one", "blocks.{b}.gamma_{g}", block + "lambda_{g}"),
        ("wb", "blocks.{b}.mlp.fc1", block + fc1),
        ("wb", "blocks.{b}.mlp.fc2", block + fc2),
        ("ln", "fc_norm", "beit.pooler.layernorm"),
        ("ln", "norm", "beit.layernorm"),
        ("wb", "head", "classifier"),
    )


HF = _huggingface(
    "beit.encoder.layer.{b}.",
    "attention.{}",
    "attention.output.dense",
    f"attention.attention.relative_position_bias.{_TABLE}",
    "intermediate.dense",
    "output.dense",
)
HF5 = _huggingface(
    "beit.layers.{b}.", "{}_proj", "attention.o_proj", f"relative_position_bias.{_TABLE}", "mlp.fc1", "mlp.fc2"
)
TIMM: Rules = (
    ("one", "cls_token", "cls_token"),
    ("one", "pos_embed", "pos_embed"),
    ("wb", "patch_embed.proj", "patch_embed.proj"),
    ("ln", "blocks.{b}.norm1", "blocks.{b}.norm1"),
    ("ln", "blocks.{b}.norm2", "blocks.{b}.norm2"),
    ("qw", "blocks.{b}.attn.q", "blocks.{b}.attn.qkv"),
    ("kw", "blocks.{b}.attn.k", "blocks.{b}.attn.qkv"),
    ("vw", "blocks.{b}.attn.v", "blocks.{b}.attn.qkv"),
    ("one", "blocks.{b}.attn.q.bias", "blocks.{b}.attn.q_bias"),
    ("one", "blocks.{b}.attn.v.bias", "blocks.{b}.attn.v_bias"),
    ("wb", "blocks.{b}.attn.proj", "blocks.{b}.attn.proj"),
    ("one", f"blocks.{{b}}.attn.{_TABLE}", f"blocks.{{b}}.attn.{_TABLE}"),
    ("one", "blocks.{b}.gamma_{g}", "blocks.{b}.gamma_{g}"),
    ("wb", "blocks.{b}.mlp.fc1", "blocks.{b}.mlp.fc1"),
    ("wb", "blocks.{b}.mlp.fc2", "blocks.{b}.mlp.fc2"),
    ("ln", "fc_norm", "fc_norm"),
    ("wb", "head", "head"),
)
_DROP = (
    (r".*relative_position_index", "computed from the input size"),
    (r"(beit\.embeddings\.)?mask_token", "only pretraining uses it"),
)
_STATED = {"hidden_act": GELU}
LAYOUTS = (
    Layout(
        "hf",
        (r"beit\.encoder\.layer\.0\.attention\.attention\.query\.weight",),
        HF,
        drop=_DROP,
        arguments={"ln_eps": 1e-12},
        stated=_STATED,
    ),
    Layout(
        "hf5",
        (r"beit\.layers\.0\.attention\.q_proj\.weight",),
        HF5,
        drop=_DROP,
        arguments={"ln_eps": 1e-12},
        stated=_STATED,
    ),
    Layout(
        "timm",
        (r"cls_token", r"blocks\.0\.attn\.q_bias", r"blocks\.0\.attn\.qkv\.weight", r"fc_norm\.weight"),
        TIMM,
        without=(r"blocks\.0\.attn\.(q_proj|k_bias).*",),
        drop=_DROP,
        arguments={"ln_eps": 1e-6},
        aliases=("microsoft",),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Width, depth, heads, MLP and input size from the shapes; the epsilon from config.json."""
    root = {"hf": "beit.encoder.layer.0.", "hf5": "beit.layers.0.", "timm": "blocks.0."}[layout.name]
    patch = shape(tensors, "patch_embed.proj.weight", "beit.embeddings.patch_embeddings.projection.weight")
    positions = shape(tensors, "pos_embed", "beit.embeddings.position_embeddings")
    table = shape(
        tensors,
        f"{root}attn.{_TABLE}",
        f"{root}attention.attention.relative_position_bias.{_TABLE}",
        f"{root}relative_position_bias.{_TABLE}",
    )
    width, depth = patch[0], count(tensors, r"(?:beit\.encoder\.layer|beit\.layers|blocks)\.(\d+)\..*")
    side = (math.isqrt(table[0] - 3) + 1) // 2 if table else math.isqrt(positions[1] - 1) if positions else 0
    heads = table[1] if table else (config or {}).get("num_attention_heads")
    if not side or not heads:
        raise UserError("a BEiT without positions in its blocks: how many heads it has has to come from a config.json")
    arguments: Dict[str, Any] = {**layout.arguments, "image_size": side * patch[2]}
    hidden = shape(tensors, root + "mlp.fc1.weight", root + "intermediate.dense.weight")[0]
    optional = {
        "ln_eps": (config or {}).get("layer_norm_eps") if layout.name != "timm" else None,
        "patch_size": patch[2] if patch[2] != 16 else None,
        "hidden": hidden if hidden != 4 * width else None,
        "pooling": None if any(k.endswith(("fc_norm.weight", "pooler.layernorm.weight")) for k in tensors) else "token",
        "relative": None if table else False,
        "absolute": True if positions else None,
    }
    arguments.update({k: v for k, v in optional.items() if v is not None})
    if shape(tensors, root + "lambda_1", root + "gamma_1") is None:
        arguments["layer_scale"] = None
    for name, size in SIZES.items():
        if size == (width, depth, heads) and patch[2] == 16:
            return name, arguments
    return "beit", {**arguments, "width": width, "depth": depth, "heads": heads}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The published evaluation: Hugging Face stretches the image, timm crops it; mean and deviation 0.5."""
    size = arguments["image_size"]
    if layout.name != "timm":
        return f"decode | resize(({size}, {size}), bilinear) | normalize(half)"
    edge = size if size >= 384 else int(size / 0.9)
    return f"decode | resize({edge}, bicubic) | center_crop({size}) | normalize(half)"


def taps(architecture: str) -> Taps:
    """Patches, every block; of a depth that is not published the first."""
    depth = SIZES.get(architecture, (0, 1, 0))[1]

    def named(timm: str, huggingface: str) -> Dict[str, str]:
        return {"timm": timm, "hf": "beit." + huggingface, "hf5": "beit." + huggingface}

    rows = [("patch_embed", named("patch_embed", "embeddings.patch_embeddings"))]
    return rows + [(f"blocks.{b}", named(f"blocks.{b}", f"layers.{b}")) for b in range(depth)]


FAMILY = Family("beit", (*SIZES, "beit"), LAYOUTS, infer, transform, head=("head.weight", "head.bias"), taps=taps)
