"""CLIP's image tower: transformers, OpenAI, open_clip, timm.

OpenAI and open_clip give their tensors the same names, but OpenAI's nets approximate GELU and most of open_clip's do
not. OpenAI's original files are known by the numbers stored beside the weights; for all others ``--layout`` decides.
"""

from typing import Tuple

from aidet.models.clip import SIZES, sizes

from . import HEADS, Arguments, Config, Family, Layout, Taps, Tensors, activation, depth_of, shape, tower, vision
from .vit import TIMM

_BLOCK = "vision_model.encoder.layers.{b}."
HF = (
    ("reshape", "cls_token", "vision_model.embeddings.class_embedding"),
    ("reshape", "pos_embed", "vision_model.embeddings.position_embedding.weight"),
    ("w", "patch_embed.proj", "vision_model.embeddings.patch_embedding"),
    ("ln", "norm_pre", "vision_model.pre_layrnorm"),
    ("ln", "blocks.{b}.norm1", _BLOCK + "layer_norm1"),
    ("ln", "blocks.{b}.norm2", _BLOCK + "layer_norm2"),
    ("join", "blocks.{b}.attn.qkv", _BLOCK + "self_attn.[q_proj|k_proj|v_proj]"),
    ("wb", "blocks.{b}.attn.proj", _BLOCK + "self_attn.out_proj"),
    ("wb", "blocks.{b}.mlp.fc1", _BLOCK + "mlp.fc1"),
    ("wb", "blocks.{b}.mlp.fc2", _BLOCK + "mlp.fc2"),
    ("ln", "norm", "vision_model.post_layernorm"),
    ("w", "projection", "visual_projection"),
    ("wb", "head", "classifier"),
)
_RESIDUAL = "visual.transformer.resblocks.{b}."
OPENAI = (
    ("reshape", "cls_token", "visual.class_embedding"),
    ("reshape", "pos_embed", "visual.positional_embedding"),
    ("w", "patch_embed.proj", "visual.conv1"),
    ("ln", "norm_pre", "visual.ln_pre"),
    ("ln", "blocks.{b}.norm1", _RESIDUAL + "ln_1"),
    ("ln", "blocks.{b}.norm2", _RESIDUAL + "ln_2"),
    ("one", "blocks.{b}.attn.qkv.weight", _RESIDUAL + "attn.in_proj_weight"),
    ("one", "blocks.{b}.attn.qkv.bias", _RESIDUAL + "attn.in_proj_bias"),
    ("wb", "blocks.{b}.attn.proj", _RESIDUAL + "attn.out_proj"),
    ("wb", "blocks.{b}.mlp.fc1", _RESIDUAL + "mlp.c_fc"),
    ("wb", "blocks.{b}.mlp.fc2", _RESIDUAL + "mlp.c_proj"),
    ("ln", "norm", "visual.ln_post"),
    ("turn", "projection", "visual.proj"),
    ("wb", "head", "fc"),
)
_TEXT = "a part of CLIP that is not its image tower"
_UNUSED = "the projection, which these features stand in front of"
_OTHERS = (r"(?:clip\.)?alpha", r"attention_head\..*")  # RINE and D3 have the same tower


def _visual(name, **rest):
    """The names that OpenAI's files and open_clip's share."""
    return Layout(
        name,
        (r"visual\.class_embedding", r"visual\.ln_pre\.weight"),
        OPENAI,
        drop=(
            (
                # Nothing of the image tower, which has a transformer and positions of its own.
                r"(?!visual\.)(\w+\.)?((transformer|token_embedding|ln_final)\..*|positional_embedding|text_projection)",
                _TEXT,
            ),
            (r"(\w+\.)?(logit_scale|logit_bias|input_resolution|context_length|vocab_size|attn_mask)", _TEXT),
            (r"visual\.proj", _UNUSED),
        ),
        reshaped=((r"visual\.class_embedding", 1), (r"visual\.positional_embedding", 2)),
        renames=((r"(?:clip|model|backbone)\.(visual\..*)", r"\1"), (HEADS, r"fc.\1")),
        **rest,
    )


LAYOUTS = (
    Layout(
        "hf",
        (r"vision_model\.pre_layrnorm\.weight",),
        HF,
        drop=(
            (r"text_model\..*|text_projection\.weight|logit_scale", _TEXT),
            (r".*\.position_ids", "numbers from 0 up"),
            (r"visual_projection\.weight", _UNUSED),
        ),
        reshaped=((r".*\.class_embedding", 1), (r".*\.position_embedding\.weight", 2)),
        renames=(
            (r"(?:clip|model|backbone)\.((?:vision_model|visual_projection)\..*)", r"\1"),
            # A file of CLIPVisionModel, saved by transformers 5.
            (r"((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..*)", r"vision_model.\1"),
            (HEADS, r"classifier.\1"),
        ),
    ),
    _visual("openai", without=_OTHERS, arguments={"act": "quick_gelu"}),
    _visual("open_clip", without=("input_resolution", "vocab_size", *_OTHERS), arguments={"act": "gelu"}),
    Layout(
        "timm",
        (r"norm_pre\.weight", r"blocks\.0\.attn\.qkv\.weight", r"cls_token"),
        tuple(("w", *line[1:]) if line[1] == "patch_embed.proj" else line for line in TIMM)
        + (("ln", "norm_pre", "norm_pre"),),
        arguments={"act": "gelu"},
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size from the shapes; what the features are, from the projection and the width of the classifier."""
    found = tower(layout, tensors, config, 1)
    width = found["width"]
    projection = shape(tensors, layout.source("projection") + ("" if layout.name.startswith("open") else ".weight"))
    size = projection[1 if layout.name.startswith("open") else 0] if projection else None
    head = shape(tensors, layout.source("head") + ".weight")
    arguments: Arguments = {**layout.arguments, "features": _features(layout, found, size, head)}
    if layout.name == "hf":
        arguments["act"] = activation(config, "quick_gelu")
        eps = vision(config).get("layer_norm_eps", 1e-5)
        arguments.update({} if eps == 1e-5 else {"ln_eps": eps})
    if layout.name == "timm" and "quickgelu" in str((config or {}).get("architecture")):
        arguments["act"] = "quick_gelu"
    if arguments["features"] == "projection":
        arguments["projection"] = size
    image = found.pop("grid") * found["patch_size"]
    name = next(
        (n for n, row in SIZES.items() if row[:4] == (width, found["depth"], found["patch_size"], image)), "clip_vit"
    )
    plain = found["hidden"] == 4 * width and found["heads"] == width // 64
    if name == "clip_vit" or not plain:
        return "clip_vit", {**found, "image_size": image, **arguments}
    if arguments.get("projection") == SIZES[name][4]:
        arguments.pop("projection")
    return name, arguments


def _features(layout, found, projection, head):
    """A classifier as wide as the projection reads it; one as wide as the tower reads what is in front of it."""
    width, depth = found["width"], found["depth"]
    if head and depth > 1 and head[1] in (depth * width, 2 * depth * width):
        return "levels" if head[1] == depth * width else "levels_avg"
    if head is None or head[1] != width:
        return "projection" if projection else "penultimate"
    if head[1] == projection:
        return "projection"
    # transformers' own classifier has no projection beside it and reads the mean of the patches.
    return "patches" if layout.name == "hf" and projection is None else "penultimate"


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """OpenAI's: short edge to the input's size, bicubic, centre crop, CLIP's statistics."""
    size = arguments.get("image_size") or SIZES[architecture][3]
    return f"decode | resize({size}, bicubic) | center_crop({size}) | normalize(clip)"


def taps(architecture: str) -> Taps:
    """Every block and the norm in front of the first; a net without some of them has no such module."""
    rows = [
        ("norm_pre", {"hf": "vision_model.pre_layrnorm", **dict.fromkeys(("openai", "open_clip"), "visual.ln_pre")})
    ]
    for b in range(depth_of(sizes, architecture)):
        visual = dict.fromkeys(("openai", "open_clip"), f"visual.transformer.resblocks.{b}")
        rows.append((f"blocks.{b}", {"hf": f"vision_model.encoder.layers.{b}", "timm": f"blocks.{b}", **visual}))
    return rows


FAMILY = Family(
    "clip",
    (*SIZES, "clip_vit"),
    LAYOUTS,
    infer,
    transform,
    head=("head.weight", "head.bias"),
    taps=taps,
    headless=True,
)
