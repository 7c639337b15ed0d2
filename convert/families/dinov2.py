"""DINOv2, with and without registers: transformers, timm, and the authors' own files (torch.hub)."""

import math
import re
from collections import defaultdict
from functools import partial
from typing import Tuple

from aidet.errors import UserError
from aidet.models.dinov2 import SIZES, sizes

from . import GELU, HEADS, Arguments, Config, Family, Layout, Lookups, Taps, Tensors, depth_of, shape, tower, vision
from .vit import TIMM

_SCALES = (
    ("one", "blocks.{b}.ls1.gamma", "blocks.{b}.ls1.gamma"),
    ("one", "blocks.{b}.ls2.gamma", "blocks.{b}.ls2.gamma"),
)


def _timm(norm):
    lines = tuple(("ln", "norm", norm) if line[1] == "norm" else line for line in TIMM)
    return (*lines, *_SCALES, ("one", "reg_token", "reg_token"))


def _hub():
    first, second = ("blocks.{b}.mlp.fc1", "blocks.{b}.mlp.fc2")
    other = {first: "blocks.{b}.mlp.{hub1(b)}", second: "blocks.{b}.mlp.{hub2(b)}"}
    lines = tuple((kind, ours, other.get(ours, theirs)) for kind, ours, theirs in TIMM)
    return (*lines, *_SCALES, ("one", "reg_token", "register_tokens"))


def _huggingface(root):
    block = root + ".encoder.layer.{b}."
    return (
        ("one", "cls_token", root + ".embeddings.cls_token"),
        ("one", "reg_token", root + ".embeddings.register_tokens"),
        ("one", "pos_embed", root + ".embeddings.position_embeddings"),
        ("wb", "patch_embed.proj", root + ".embeddings.patch_embeddings.projection"),
        ("ln", "blocks.{b}.norm1", block + "norm1"),
        ("ln", "blocks.{b}.norm2", block + "norm2"),
        ("join", "blocks.{b}.attn.qkv", block + "attention.attention.[query|key|value]"),
        ("wb", "blocks.{b}.attn.proj", block + "attention.output.dense"),
        ("one", "blocks.{b}.ls1.gamma", block + "layer_scale1.lambda1"),
        ("one", "blocks.{b}.ls2.gamma", block + "layer_scale2.lambda1"),
        ("wb", "blocks.{b}.mlp.fc1", block + "mlp.{hf1(b)}"),
        ("wb", "blocks.{b}.mlp.fc2", block + "mlp.{hf2(b)}"),
        ("ln", "norm", root + ".layernorm"),
        ("wb", "head", "classifier"),
    )


# What a running model of transformers 5 calls the same tensors.
_RUNNING = [
    (rf"(.*)\.attention\.{n[0]}_proj\.(.*)", rf"\1.attention.attention.{n}.\2") for n in ("query", "key", "value")
]
_RUNNING.append((r"(.*)\.attention\.o_proj\.(.*)", r"\1.attention.output.dense.\2"))
_MASK = ((r"(.*\.)?mask_token", "a token of the pretraining"),)


def _of_transformers(name, root, interpolation, marks=(), **rest):
    return Layout(
        name,
        (rf"{root}\.encoder\.layer\.0\.layer_scale1\.lambda1", *marks),
        _huggingface(root),
        drop=_MASK,
        zeros=((root + ".embeddings.mask_token", "cls_token", 2),),
        arguments={"interpolation": interpolation},
        stated={"hidden_act": GELU},
        renames=(
            (rf"(?:model|backbone)\.({root}\..*)", r"\1"),
            (r"((?:embeddings|encoder|layernorm)\..*)", root + r".\1"),
            (HEADS, r"classifier.\1"),
            *_RUNNING,
        ),
        **rest,
    )


LAYOUTS = (
    _of_transformers("hf", "dinov2", "bicubic", without=(r".*register_tokens",)),
    _of_transformers(
        "hf-registers", "dinov2_with_registers", "bicubic_antialias", (r".*\.embeddings\.register_tokens",)
    ),
    Layout(
        "timm",
        (r"cls_token", r"blocks\.0\.ls1\.gamma", r"norm\.weight"),
        _timm("norm"),
        without=(r"mask_token", r"fc_norm\..*"),
        arguments={"interpolation": "bicubic_antialias"},
    ),
    Layout(
        "timm-avg",
        (r"cls_token", r"blocks\.0\.ls1\.gamma", r"fc_norm\.weight"),
        _timm("fc_norm"),
        arguments={"interpolation": "bicubic_antialias", "pool": "avg", "norm_after": True},
    ),
    Layout(
        "hub",
        (r"cls_token", r"blocks\.0\.ls1\.gamma", r"mask_token"),
        _hub(),
        drop=_MASK,
        zeros=(("mask_token", "cls_token", 2),),
        renames=(
            (r"(?:model|backbone|encoder)\.(.*)", r"\1"),
            # Blocks in chunks, as in a file of the training program.
            (r"blocks\.\d+\.(\d+)\.(.*)", r"blocks.\1.\2"),
            (HEADS, r"head.\1"),
        ),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size from the shapes; the input is that of the published evaluation unless a file says otherwise."""
    table = shape(tensors, layout.source("pos_embed"))
    # timm's nets with registers have no position for the class token.
    lead = 0 if math.isqrt(table[1]) ** 2 == table[1] else 1
    found = tower(layout, tensors, config, lead)
    width, grid = found["width"], found.pop("grid")
    rows, hidden = _mlp(tensors)
    found["hidden"], act = hidden, "swiglu" if rows == 2 * hidden else "gelu"
    registers = shape(tensors, layout.source("reg_token"))
    arguments: Arguments = {**layout.arguments}
    if layout.name == "hub":
        arguments["interpolation"] = "bicubic_antialias" if registers else "bicubic_offset"
    if registers:
        arguments["registers"] = registers[1]
    if not lead:
        arguments["lead_positions"] = False
    head = shape(tensors, layout.source("head") + ".weight")
    if head and head[1] not in (width, 2 * width):
        raise UserError(f"a classifier of {head[1]} features does not fit a DINOv2 of width {width}")
    if head and head[1] == 2 * width:
        arguments["pool"] = "token_avg"
    eps = vision(config).get("layer_norm_eps", 1e-6)
    arguments.update({} if eps == 1e-6 else {"ln_eps": eps})
    published = grid == 37 and not layout.name.startswith("timm")
    arguments["image_size"] = 224 if published else grid * found["patch_size"]
    if grid != 37:
        arguments["grid"] = grid
    if found["patch_size"] == 14 and found["heads"] == width // 64:
        for name, row in SIZES.items():
            if row == (width, found["depth"], hidden, act):
                return name, arguments
    return "dinov2_vit", {**found, "act": act, **arguments}


def _mlp(tensors):
    """Rows of the first layer and columns of the second layer of a block's MLP."""
    first = next(k for k in tensors if re.fullmatch(r".*\b0\.mlp\.(fc1|w12|weights_in)\.weight", k))
    second = next(k for k in tensors if re.fullmatch(r".*\b0\.mlp\.(fc2|w3|weights_out)\.weight", k))
    return tensors[first].shape[0], tensors[second].shape[1]


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """What a gated MLP is called where it is not called like a plain one."""
    gated = {**sizes(architecture), **arguments}["act"] == "swiglu"
    names = {"hub1": "w12", "hub2": "w3", "hf1": "weights_in", "hf2": "weights_out"}
    plain = {k: "fc" + k[-1] for k in names}
    return {k: defaultdict(partial(str, v)) for k, v in (names if gated else plain).items()}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The published evaluation: short edge to 8/7 of the input, bicubic, centre crop; timm resizes to the input."""
    size = arguments["image_size"]
    edge = size if layout.name.startswith("timm") else round(size * 256 / 224)
    return f"decode | resize({edge}, bicubic) | center_crop({size}) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Every block, and the norm behind the last."""
    rows = []
    for b in range(depth_of(sizes, architecture)):
        names = {**dict.fromkeys(("timm", "timm-avg"), f"blocks.{b}"), "both": f"net.blocks.{b}"}
        names["hf"] = f"dinov2.encoder.layer.{b}"
        rows.append((f"blocks.{b}", {**names, "hf-registers": f"dinov2_with_registers.encoder.layer.{b}"}))
    names = {
        "timm": "norm",
        "timm-avg": "fc_norm",
        "both": "net.norm",
        "hf": "dinov2.layernorm",
        "hf-registers": "dinov2_with_registers.layernorm",
    }
    return [*rows, ("norm", names)]


FAMILY = Family(
    "dinov2",
    (*SIZES, "dinov2_vit"),
    LAYOUTS,
    infer,
    transform,
    lookups,
    head=("head.weight", "head.bias"),
    taps=taps,
    headless=True,
    free_input=True,
)
