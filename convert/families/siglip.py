"""SigLIP and SigLIP 2: transformers and timm."""

from typing import Tuple

from aidet.models.siglip import SIZES, sizes

from . import HEADS, Arguments, Config, Family, Layout, Taps, Tensors, activation, depth_of, tower, vision
from .clip import HF as CLIP
from .vit import TIMM

_POOL = "vision_model.head."
# The tower has CLIP's names in transformers; there is no class token, and the patches have a bias.
HF = (
    *(row for row in CLIP if row[1] not in ("cls_token", "patch_embed.proj", "norm_pre", "projection")),
    ("wb", "patch_embed.proj", "vision_model.embeddings.patch_embedding"),
    ("one", "pool.probe", _POOL + "probe"),
    ("one", "pool.attn.qkv.weight", _POOL + "attention.in_proj_weight"),
    ("one", "pool.attn.qkv.bias", _POOL + "attention.in_proj_bias"),
    ("wb", "pool.attn.proj", _POOL + "attention.out_proj"),
    ("ln", "pool.norm", _POOL + "layernorm"),
    ("wb", "pool.mlp.fc1", _POOL + "mlp.fc1"),
    ("wb", "pool.mlp.fc2", _POOL + "mlp.fc2"),
)
_TIMM = (
    *TIMM,
    ("one", "pool.probe", "attn_pool.latent"),
    ("join_kv", "pool.attn.qkv", "attn_pool.[q|kv]"),
    ("wb", "pool.attn.proj", "attn_pool.proj"),
    ("ln", "pool.norm", "attn_pool.norm"),
    ("wb", "pool.mlp.fc1", "attn_pool.mlp.fc1"),
    ("wb", "pool.mlp.fc2", "attn_pool.mlp.fc2"),
)
_TEXT = "a part of SigLIP that is not its image tower"
LAYOUTS = (
    Layout(
        "hf",
        (
            r"vision_model\.embeddings\.position_embedding\.weight",
            r"vision_model\.embeddings\.patch_embedding\.bias",
            r"vision_model\.post_layernorm\.weight",
        ),
        HF,
        without=(
            r"vision_model\.pre_layrnorm\..*",
            r"vision_model\.embeddings\.class_embedding",
            r"dinov2\..*",  # a detector with both towers
        ),
        drop=(
            (r"text_model\..*|logit_scale|logit_bias", _TEXT),
            (r".*\.position_ids", "numbers from 0 up"),
            (r"vision_model\.head\..*", "an attention pool that the classifier does not read"),
        ),
        reshaped=((r".*\.position_embedding\.weight", 2),),
        renames=(
            (r"(?:siglip|model|backbone)\.(vision_model\..*)", r"\1"),
            (HEADS, r"classifier.\1"),
            # A file of SiglipVisionModel, saved by transformers 5.
            (r"((?:embeddings|encoder|post_layernorm|head)\..*)", r"vision_model.\1"),
        ),
    ),
    Layout(
        "timm",
        (r"pos_embed", r"blocks\.0\.attn\.qkv\.weight", r"norm\.weight"),
        _TIMM,
        without=(r"cls_token", r"norm_pre\..*", r"fc_norm\..*", r"blocks\.0\.ls1.*"),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size from the shapes, the input from config.json or the positions, the pool from what the file has."""
    found = tower(layout, tensors, config, 0)
    image = vision(config).get("image_size") if layout.name == "hf" else None
    # 384 pixels are 27 patches of 14, and six pixels more.
    image = image or {(27, 14): 384}.get((found["grid"], found["patch_size"]), found["grid"] * found["patch_size"])
    if layout.name == "hf":
        pooled = layout.source("head") + ".weight" not in tensors and layout.source("pool.probe") in tensors
        act = activation(config, "gelu_pytorch_tanh")
    else:
        pooled = layout.source("pool.probe") in tensors
        act = _timm_act(found, image, pooled)
    arguments: Arguments = {"image_size": int(image), "pool": "map" if pooled else "avg", "act": act}
    eps = vision(config).get("layer_norm_eps", 1e-6)
    arguments.update({} if eps == 1e-6 else {"ln_eps": eps})
    shapes = (found["width"], found["depth"], found["hidden"], found["patch_size"])
    for name, (width, depth, heads, hidden, patch) in SIZES.items():
        if shapes == (width, depth, hidden, patch) and vision(config).get("num_attention_heads", heads) == heads:
            return name, arguments
    del found["grid"]
    return "siglip_vit", {**found, **arguments}


def _timm_act(found, image, pooled):
    """timm registers these sizes with the tanh form of GELU, all others with the exact one."""
    width, patch = found["width"], found["patch_size"]
    tanh = patch == 32 or width == 1536 or (width == 1024 and image == 512)
    so400m = width == 1152 and patch == 16 and (pooled or image == 256)
    return "gelu_tanh" if tanh or so400m else "gelu"


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The published evaluation: the whole picture at the input's size, bicubic, mean and deviation 0.5."""
    size = arguments["image_size"]
    return f"decode | resize(({size}, {size}), bicubic) | normalize(half)"


def taps(architecture: str) -> Taps:
    """Every block, and the norm behind the last."""
    rows = [
        (f"blocks.{b}", {"hf": f"vision_model.encoder.layers.{b}", "timm": f"blocks.{b}"})
        for b in range(depth_of(sizes, architecture))
    ]
    return [*rows, ("norm", {"hf": "vision_model.post_layernorm", "timm": "norm"})]


FAMILY = Family(
    "siglip",
    (*SIZES, "siglip_vit"),
    LAYOUTS,
    infer,
    transform,
    head=("head.weight", "head.bias"),
    taps=taps,
    headless=True,
)
