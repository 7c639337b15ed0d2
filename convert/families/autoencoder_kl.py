"""AutoencoderKL: diffusers with new and old attention names, the original LDM naming, and AIGC-clf's classifier."""

import re
from typing import Tuple

from aidet.errors import UserError

from . import Arguments, Config, Family, Layout, Lookups, Taps, Tensors, shape

_NEW = ("to_q", "to_k", "to_v", "to_out.0")
_OLD = ("query", "key", "value", "proj_attn")
_DECODER_PARTS = (r"decoder\..*|post_quant_conv\..*", "the decoder, which the classifier does not use")


def _diffusers(half, attention):
    """One half in diffusers' names."""
    blocks = "down_blocks" if half == "encoder" else "up_blocks"
    sample = "downsamplers" if half == "encoder" else "upsamplers"
    lines = [
        ("wb", f"{half}.conv_in", f"{half}.conv_in"),
        ("wb", f"{half}.conv_out", f"{half}.conv_out"),
        ("ln", f"{half}.conv_norm_out", f"{half}.conv_norm_out"),
        ("wb", f"{half}.{blocks}.{{i}}.{sample}.0.conv", f"{half}.{blocks}.{{i}}.{sample}.0.conv"),
    ]
    for block in (f"{half}.{blocks}.{{i}}.resnets.{{j}}.", f"{half}.mid_block.resnets.{{j}}."):
        lines += [(kind, block + name, block + name) for kind, name in _RESNET]
    mid = f"{half}.mid_block.attentions.0."
    lines.append(("ln", mid + "group_norm", mid + "group_norm"))
    return lines + [("wb11", mid + ours, mid + theirs) for ours, theirs in zip(_NEW, attention)]


_RESNET = (("ln", "norm1"), ("wb", "conv1"), ("ln", "norm2"), ("wb", "conv2"), ("wb", "conv_shortcut"))
_LDM_RESNET = (
    ("ln", "norm1", "norm1"),
    ("wb", "conv1", "conv1"),
    ("ln", "norm2", "norm2"),
    ("wb", "conv2", "conv2"),
    ("wb", "conv_shortcut", "nin_shortcut"),
)


def _ldm(half):
    """One half in the names of CompVis' latent-diffusion; its decoder counts resolutions from the other end."""
    if half == "encoder":
        blocks, block, sample = "down_blocks", "encoder.down.{i}.", ("downsamplers", "downsample")
    else:
        blocks, block, sample = "up_blocks", "decoder.up.{rev(i)}.", ("upsamplers", "upsample")
    lines = [
        ("wb", f"{half}.conv_in", f"{half}.conv_in"),
        ("wb", f"{half}.conv_out", f"{half}.conv_out"),
        ("ln", f"{half}.conv_norm_out", f"{half}.norm_out"),
        ("wb", f"{half}.{blocks}.{{i}}.{sample[0]}.0.conv", f"{block}{sample[1]}.conv"),
    ]
    for kind, ours, theirs in _LDM_RESNET:
        lines.append((kind, f"{half}.{blocks}.{{i}}.resnets.{{j}}.{ours}", f"{block}block.{{j}}.{theirs}"))
        lines.append((kind, f"{half}.mid_block.resnets.{{j}}.{ours}", f"{half}.mid.block_{{j+1}}.{theirs}"))
    mid = f"{half}.mid_block.attentions.0."
    lines.append(("ln", mid + "group_norm", f"{half}.mid.attn_1.norm"))
    names = ("q", "k", "v", "proj_out")
    return lines + [("wb11", mid + ours, f"{half}.mid.attn_1.{theirs}") for ours, theirs in zip(_NEW, names)]


_QUANT = [("wb", "quant_conv", "quant_conv"), ("wb", "post_quant_conv", "post_quant_conv")]
_CLF = [("wb", "quant_conv", "quant_conv"), ("wb", "clf.{i}", "clf.{i}")]
_LDM_DROP = ((r"loss\..*", "the training loss and its discriminator"), (r"model_ema\..*", "counters of the averaging"))
_OLD_MARK = r"encoder\.mid_block\.attentions\.0\.query\.weight"
_NEW_MARK = r"encoder\.mid_block\.attentions\.0\.to_q\.weight"
_HEAD = r"clf\.0\.weight"
_CONV_ATTENTION = ((r".*\.mid\.attn_1\.(q|k|v|proj_out)\.weight", 4),)


def _whole(attention):
    return tuple(_diffusers("encoder", attention) + _diffusers("decoder", attention) + _QUANT)


_LDM = tuple(_ldm("encoder") + _ldm("decoder") + _QUANT)
LAYOUTS = (
    Layout("diffusers", (_NEW_MARK, r"decoder\.conv_in\.weight"), _whole(_NEW), without=(_HEAD,)),
    Layout("diffusers-old", (_OLD_MARK, r"decoder\.conv_in\.weight"), _whole(_OLD), without=(_HEAD,)),
    Layout(
        "ldm",
        (r"encoder\.down\.0\.block\.0\.norm1\.weight", r"decoder\.mid\.attn_1\.q\.weight"),
        _LDM,
        drop=_LDM_DROP,
        reshaped=_CONV_ATTENTION,
    ),
    Layout(
        "ldm-pipeline",
        (r"encoder\.down\.0\.block\.0\.norm1\.weight",),
        _LDM,
        drop=_LDM_DROP,
        prefix="first_stage_model.",
        reshaped=_CONV_ATTENTION,
    ),
    Layout(
        "aekl",
        (_NEW_MARK, _HEAD),
        tuple(_diffusers("encoder", _NEW) + _CLF),
        drop=(_DECODER_PARTS,),
        aliases=("aigc-clf",),
    ),
    Layout("aekl-old", (_OLD_MARK, _HEAD), tuple(_diffusers("encoder", _OLD) + _CLF), drop=(_DECODER_PARTS,)),
    Layout("aidet", (r"encoder\.conv_in\.weight", r"encoder\.conv_norm_out\.gamma"), (), identity=True),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Widths, depth and latent channels from shapes; the scaling factor from config.json if there is one."""
    latent = shape(tensors, "encoder.conv_out.weight")[0] // 2
    if layout.name.startswith("ldm"):
        block, first = r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight", "encoder.down.{}.block.0.conv1.weight"
    else:
        block, first = (
            r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight",
            "encoder.down_blocks.{}.resnets.0.conv1.weight",
        )
    found = [tuple(map(int, m.groups())) for m in (re.fullmatch(block, k) for k in tensors) if m]
    stages, depth = 1 + max(i for i, _ in found), 1 + max(j for _, j in found)
    widths = [shape(tensors, first.format(i))[0] for i in range(stages)]
    if any(w % 32 for w in widths):
        raise UserError(f"an AutoencoderKL of widths {widths}: they must be multiples of 32")
    arguments = {"latent_channels": latent, "widths": widths, "depth": depth}
    head = shape(tensors, "clf.0.weight")
    if head:
        arguments.update(
            latent_size=int(round((head[1] / latent) ** 0.5)), hidden=[head[0], shape(tensors, "clf.2.weight")[0]]
        )
        return "aekl_clf", arguments
    arguments["quant"] = "quant_conv.weight" in tensors
    arguments["scaling_factor"] = float((config or {}).get("scaling_factor", 0.18215))
    return "autoencoder_kl", arguments


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """``rev``: resolutions counted from the other end."""
    last = len(arguments["widths"]) - 1
    return {"rev": {(i,): last - i for i in range(last + 1)}}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """[-1, 1] for the autoencoder; AIGC-clf's classifier takes [0, 1] at the size its first layer fits (256)."""
    if architecture == "aekl_clf":
        side = arguments["latent_size"] * 2 ** (len(arguments["widths"]) - 1)
        return f"decode | resize({side}, bilinear) | center_crop({side}) | to_float()"
    return "decode | center_crop(256) | normalize(half)"


def taps(architecture: str) -> Taps:
    """Stages of both halves, in the order of the forward pass."""
    layouts = ("diffusers", "diffusers-old", "aekl", "aekl-old")
    stages = {"encoder": [f"down_blocks.{i}" for i in range(4)] + ["mid_block"]}
    if architecture != "aekl_clf":
        stages["decoder"] = ["mid_block"] + [f"up_blocks.{i}" for i in range(4)]
    names = [f"{half}.{n}" for half, middle in stages.items() for n in ("conv_in", *middle, "conv_out")]
    return [(n, dict.fromkeys(layouts, n)) for n in names]


FAMILY = Family(
    "autoencoder_kl",
    ("autoencoder_kl", "aekl_clf"),
    LAYOUTS,
    infer,
    transform,
    lookups,
    {"aekl_clf": ("clf.4.weight", "clf.4.bias")},
    taps,
)
