"""ViT and DeiT with 16-pixel patches: timm and Hugging Face."""

import math
from typing import Tuple

from aidet.errors import UserError
from aidet.models.vit import SIZES

from . import Arguments, Config, Family, Layout, Taps, Tensors, count, mindcv, shape

TIMM = (
    ("one", "cls_token", "cls_token"),
    ("one", "pos_embed", "pos_embed"),
    ("one", "dist_token", "dist_token"),
    ("wb", "patch_embed.proj", "patch_embed.proj"),
    ("ln", "blocks.{b}.norm1", "blocks.{b}.norm1"),
    ("ln", "blocks.{b}.norm2", "blocks.{b}.norm2"),
    ("wb", "blocks.{b}.attn.qkv", "blocks.{b}.attn.qkv"),
    ("wb", "blocks.{b}.attn.proj", "blocks.{b}.attn.proj"),
    ("wb", "blocks.{b}.mlp.fc1", "blocks.{b}.mlp.fc1"),
    ("wb", "blocks.{b}.mlp.fc2", "blocks.{b}.mlp.fc2"),
    ("ln", "norm", "norm"),
    ("wb", "head", "head"),
    ("wb", "head_dist", "head_dist"),
)


def _huggingface(root, attention, output, fc1, fc2, layer="encoder.layer"):
    block = f"{root}.{layer}.{{b}}."
    return (
        ("one", "cls_token", f"{root}.embeddings.cls_token"),
        ("one", "pos_embed", f"{root}.embeddings.position_embeddings"),
        ("one", "dist_token", f"{root}.embeddings.distillation_token"),
        ("wb", "patch_embed.proj", f"{root}.embeddings.patch_embeddings.projection"),
        ("ln", "blocks.{b}.norm1", block + "layernorm_before"),
        ("ln", "blocks.{b}.norm2", block + "layernorm_after"),
        ("join", "blocks.{b}.attn.qkv", block + attention),
        ("wb", "blocks.{b}.attn.proj", block + output),
        ("wb", "blocks.{b}.mlp.fc1", block + fc1),
        ("wb", "blocks.{b}.mlp.fc2", block + fc2),
        ("ln", "norm", f"{root}.layernorm"),
    )


_SAVED = ("attention.attention.[query|key|value]", "attention.output.dense", "intermediate.dense", "output.dense")
_RUNNING = ("attention.[q_proj|k_proj|v_proj]", "attention.o_proj", "mlp.fc1", "mlp.fc2", "layers")
_POOLER = ((r"(vit|deit)\.pooler\..*", "a pooler the classifier does not use"),)
_HEAD = (("wb", "head", "classifier"),)
_HEADS = (("wb", "head", "cls_classifier"), ("wb", "head_dist", "distillation_classifier"))
_EPS = {"ln_eps": 1e-12}
_MARK = r"\.encoder\.layer\.0\.attention\.attention\.query\.weight"
LAYOUTS = (
    Layout(
        "timm",
        (r"cls_token", r"blocks\.0\.attn\.qkv\.weight", r"norm\.weight"),
        TIMM,
        without=(r"fc_norm\..*", r"blocks\.0\.ls1.*", r"norm_pre\..*", r"reg_token"),
        arguments={"ln_eps": 1e-6},
    ),
    Layout("hf", (r"vit" + _MARK,), _huggingface("vit", *_SAVED) + _HEAD, drop=_POOLER, arguments=_EPS),
    Layout(
        "hf5",
        (r"vit\.layers\.0\.attention\.q_proj\.weight",),
        _huggingface("vit", *_RUNNING) + _HEAD,
        drop=_POOLER,
        arguments=_EPS,
    ),
    Layout(
        "hf-deit",
        (r"deit" + _MARK, r"classifier\.weight"),
        _huggingface("deit", *_SAVED) + _HEAD,
        drop=_POOLER,
        arguments={**_EPS, "distilled": "token"},
    ),
    Layout(
        "hf-deit-teacher",
        (r"deit" + _MARK, r"cls_classifier\.weight"),
        _huggingface("deit", *_SAVED) + _HEADS,
        drop=_POOLER,
        arguments={**_EPS, "distilled": "heads"},
    ),
    mindcv(r"cls_token", r"blocks\.0\.attn\.qkv\.weight"),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size from the width, input size from the number of positions."""
    tokens = shape(tensors, "pos_embed", "vit.embeddings.position_embeddings", "deit.embeddings.position_embeddings")
    patch = shape(
        tensors,
        "patch_embed.proj.weight",
        "vit.embeddings.patch_embeddings.projection.weight",
        "deit.embeddings.patch_embeddings.projection.weight",
    )
    arguments = dict(layout.arguments)
    if layout.name == "timm" and "dist_token" in tensors:
        arguments["distilled"] = "heads"
    if config and layout.name.startswith("hf") and "layer_norm_eps" in config:
        arguments["ln_eps"] = config["layer_norm_eps"]
    extra = 2 if arguments.get("distilled") else 1
    edge = math.isqrt(tokens[1] - extra) * patch[2]
    size = next((k for k, (width, _) in SIZES.items() if width == tokens[2]), None)
    depth = count(tensors, r"(?:.*\.)?(?:blocks|layer|layers)\.(\d+)\..*")
    if size is None or depth != 12 or patch[2] != 16 or edge not in (224, 384):
        raise UserError(
            f"a ViT of width {tokens[2]}, depth {depth}, patch {patch[2]} and input {edge} is not one of tiny, "
            "small, base with 16-pixel patches at 224 or 384"
        )
    return f"{'deit' if arguments.get('distilled') else 'vit'}_{size}_16_{edge}", arguments


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The published evaluation: ViT (timm, Hugging Face) with mean and deviation 0.5, DeiT with ImageNet's."""
    size = int(architecture.rsplit("_", 1)[1])
    statistics = "imagenet" if architecture.startswith("deit") else "half"
    if layout.name.startswith("hf") and architecture.startswith("vit"):
        return f"decode | resize(({size}, {size}), bilinear) | normalize({statistics})"
    edge = size if size == 384 else 256 if layout.name.startswith("hf") else 248
    return f"decode | resize({edge}, bicubic) | center_crop({size}) | normalize({statistics})"


def taps(architecture: str) -> Taps:
    """Patches, every block, the final norm."""
    roots = {"hf": "vit", "hf5": "vit", "hf-deit": "deit", "hf-deit-teacher": "deit"}

    def named(timm, huggingface):
        return {"timm": timm, **{layout: f"{root}.{huggingface}" for layout, root in roots.items()}}

    rows = [("patch_embed", named("patch_embed", "embeddings.patch_embeddings"))]
    rows += [(f"blocks.{b}", named(f"blocks.{b}", f"layers.{b}")) for b in range(12)]
    return rows + [("norm", named("norm", "layernorm"))]


FAMILY = Family(
    "vit",
    [f"{f}_{k}_16_{s}" for f in ("vit", "deit") for k in SIZES for s in (224, 384)],
    LAYOUTS,
    infer,
    transform,
    head=("head.weight", "head.bias", "head_dist.weight", "head_dist.bias"),
    taps=taps,
)
