"""ViT and DeiT of any size: timm, Hugging Face, torchvision."""

from typing import Tuple

from aidet.models.vit import SIZES, sizes

from . import GELU, Arguments, Config, Family, Layout, Taps, Tensors, depth_of, mindcv, tower

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
_LAYER = "encoder.layers.encoder_layer_{b}."
TORCHVISION = (
    ("one", "cls_token", "class_token"),
    ("one", "pos_embed", "encoder.pos_embedding"),
    ("wb", "patch_embed.proj", "conv_proj"),
    ("ln", "blocks.{b}.norm1", _LAYER + "ln_1"),
    ("ln", "blocks.{b}.norm2", _LAYER + "ln_2"),
    ("one", "blocks.{b}.attn.qkv.weight", _LAYER + "self_attention.in_proj_weight"),
    ("one", "blocks.{b}.attn.qkv.bias", _LAYER + "self_attention.in_proj_bias"),
    ("wb", "blocks.{b}.attn.proj", _LAYER + "self_attention.out_proj"),
    ("wb", "blocks.{b}.mlp.fc1", _LAYER + "mlp.0"),
    ("wb", "blocks.{b}.mlp.fc2", _LAYER + "mlp.3"),
    ("ln", "norm", "encoder.ln"),
    ("wb", "head", "heads.head"),
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
_STATED = {"hidden_act": GELU}
_MARK = r"\.encoder\.layer\.0\.attention\.attention\.query\.weight"
LAYOUTS = (
    Layout(
        "timm",
        (r"cls_token", r"blocks\.0\.attn\.qkv\.weight", r"norm\.weight"),
        TIMM,
        without=(r"fc_norm\..*", r"blocks\.0\.ls1.*", r"norm_pre\..*", r"reg_token"),
        arguments={"ln_eps": 1e-6},
        stated={"global_pool": ("token", "")},
    ),
    Layout(
        "hf",
        (r"vit" + _MARK,),
        _huggingface("vit", *_SAVED) + _HEAD,
        drop=_POOLER,
        arguments=_EPS,
        stated=_STATED,
    ),
    Layout(
        "hf5",
        (r"vit\.layers\.0\.attention\.q_proj\.weight",),
        _huggingface("vit", *_RUNNING) + _HEAD,
        drop=_POOLER,
        arguments=_EPS,
        stated=_STATED,
    ),
    Layout(
        "hf-deit",
        (r"deit" + _MARK, r"classifier\.weight"),
        _huggingface("deit", *_SAVED) + _HEAD,
        drop=_POOLER,
        arguments={**_EPS, "distilled": "token"},
        stated=_STATED,
    ),
    Layout(
        "hf-deit-teacher",
        (r"deit" + _MARK, r"cls_classifier\.weight"),
        _huggingface("deit", *_SAVED) + _HEADS,
        drop=_POOLER,
        arguments={**_EPS, "distilled": "heads"},
        stated=_STATED,
    ),
    Layout(
        "torchvision",
        (r"class_token", r"encoder\.layers\.encoder_layer_0\.ln_1\.weight"),
        TORCHVISION,
        arguments={"ln_eps": 1e-6},
        renames=(
            # torchvision before 0.13; a classifier that a trainer put into the place of the published one.
            (r"(.*\.mlp)\.linear_1\.(.*)", r"\1.0.\2"),
            (r"(.*\.mlp)\.linear_2\.(.*)", r"\1.3.\2"),
            (r"heads(?:\.\d+)?\.(weight|bias)", r"heads.head.\1"),
        ),
    ),
    mindcv(r"cls_token", r"blocks\.0\.attn\.qkv\.weight"),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Sizes from the shapes; tiny, small and base with 16-pixel patches at 224 and 384 have names of their own."""
    arguments = dict(layout.arguments)
    if layout.name == "timm" and "dist_token" in tensors:
        arguments["distilled"] = "heads"
    if config and layout.name.startswith("hf") and "layer_norm_eps" in config:
        arguments["ln_eps"] = config["layer_norm_eps"]
    kind = "deit" if arguments.get("distilled") else "vit"
    found = tower(layout, tensors, config, 2 if kind == "deit" else 1)
    edge = found.pop("grid") * found["patch_size"]
    for size, (width, heads) in SIZES.items():
        named = {"width": width, "depth": 12, "patch_size": 16, "hidden": 4 * width, "heads": heads}
        if found == named and edge in (224, 384):
            return f"{kind}_{size}_16_{edge}", arguments
    return kind, {**found, "image_size": edge, **arguments}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The published evaluation: ViT (timm, Hugging Face) with mean and deviation 0.5, DeiT, torchvision: ImageNet's."""
    size = arguments.get("image_size") or int(architecture.rsplit("_", 1)[1])
    plain = architecture.startswith("vit")
    statistics = "half" if plain and layout.name != "torchvision" else "imagenet"
    if layout.name.startswith("hf") and plain:
        return f"decode | resize(({size}, {size}), bilinear) | normalize({statistics})"
    if layout.name == "torchvision":
        edge = 242 if arguments.get("width") == 1024 and arguments["patch_size"] == 16 and size == 224 else 256
        edge = edge if size == 224 else size
        return f"decode | resize({edge}, bilinear) | center_crop({size}) | normalize(imagenet)"
    edge = size if size == 384 else round(size * 8 / 7) if layout.name.startswith("hf") else int(size / 0.9)
    return f"decode | resize({edge}, bicubic) | center_crop({size}) | normalize({statistics})"


def taps(architecture: str) -> Taps:
    """Patches, every block, the final norm."""
    roots = {"hf": "vit", "hf5": "vit", "hf-deit": "deit", "hf-deit-teacher": "deit"}

    def named(timm, huggingface):
        torchvision = timm.replace("blocks.", "encoder.layers.encoder_layer_").replace("norm", "encoder.ln")
        return {
            "timm": timm,
            "torchvision": torchvision,
            **{layout: f"{root}.{huggingface}" for layout, root in roots.items()},
        }

    rows = [("patch_embed", named("patch_embed", "embeddings.patch_embeddings"))]
    rows += [(f"blocks.{b}", named(f"blocks.{b}", f"layers.{b}")) for b in range(depth_of(sizes, architecture))]
    return rows + [("norm", named("norm", "layernorm"))]


FAMILY = Family(
    "vit",
    [f"{f}_{k}_16_{s}" for f in ("vit", "deit") for k in SIZES for s in (224, 384)] + ["vit", "deit"],
    LAYOUTS,
    infer,
    transform,
    head=("head.weight", "head.bias", "head_dist.weight", "head_dist.bias"),
    taps=taps,
)
