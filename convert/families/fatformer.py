"""FatFormer: both towers of CLIP under OpenAI's names, and what the authors added to them."""

import re
from typing import List, Optional, Tuple

import numpy as np

from . import Arguments, Config, Family, Layout, Lookups, Taps, Tensors, clip, count, shape, tower

_BLOCK = "clip_model.transformer.resblocks.{b}."
_ADAPTER = "clip_model.visual.transformer.resblocks.{place(n)}.forgery_aware_adapter."
_PROMPTS = "language_guided_alignment."


def _attention(ours, theirs):
    return (
        ("one", ours + ".qkv.weight", theirs + ".in_proj_weight"),
        ("one", ours + ".qkv.bias", theirs + ".in_proj_bias"),
        ("wb", ours + ".proj", theirs + ".out_proj"),
    )


def _look(ours, attention, theirs):
    """A cross-attention, and the layers behind it."""
    return (
        *_attention(ours + ".attn", theirs + attention),
        ("ln", ours + ".norm1", theirs + "norm1"),
        ("ln", ours + ".norm2", theirs + "norm2"),
        ("wb", ours + ".mlp.fc1", theirs + "linear1"),
        ("wb", ours + ".mlp.fc2", theirs + "linear2"),
    )


RULES = (
    *((kind, ours, f"clip_model.{theirs}") for kind, ours, theirs in clip.OPENAI if ours != "head"),
    ("one", "text.pos_embed", "clip_model.positional_embedding"),
    ("ln", "text.blocks.{b}.norm1", _BLOCK + "ln_1"),
    ("ln", "text.blocks.{b}.norm2", _BLOCK + "ln_2"),
    *_attention("text.blocks.{b}.attn", _BLOCK + "attn"),
    ("wb", "text.blocks.{b}.mlp.fc1", _BLOCK + "mlp.c_fc"),
    ("wb", "text.blocks.{b}.mlp.fc2", _BLOCK + "mlp.c_proj"),
    ("ln", "text.norm", "clip_model.ln_final"),
    ("turn", "text_projection", "clip_model.text_projection"),
    ("reshape", "logit_scale", "clip_model.logit_scale"),
    ("wb11", "adapters.{n}.down", _ADAPTER + "first_conv_layer"),
    ("wb11", "adapters.{n}.up", _ADAPTER + "second_conv_layer"),
    ("one", "adapters.{n}.scale", _ADAPTER + "freq_scale"),
    ("ln", "adapters.{n}.norm", _ADAPTER + "dwt_norm"),
    # The authors' intra_band attends across the bands, their inter_band within each.
    *_attention("adapters.{n}.across", _ADAPTER + "intra_band"),
    *_attention("adapters.{n}.within", _ADAPTER + "inter_band"),
    ("ln", "adapters.{n}.norm1", _ADAPTER + "norm_intra"),
    ("ln", "adapters.{n}.norm2", _ADAPTER + "norm_inter"),
    ("ln", "adapters.{n}.norm3", _ADAPTER + "norm3"),
    ("wb", "adapters.{n}.mlp.fc1", _ADAPTER + "linear1"),
    ("wb", "adapters.{n}.mlp.fc2", _ADAPTER + "linear2"),
    ("one", "context", _PROMPTS + "ctx"),
    ("one", "prefix", _PROMPTS + "token_prefix"),
    ("one", "suffix", _PROMPTS + "token_suffix"),
    *_look("enhancer", "patch_basaed_enhancer", _PROMPTS),  # spelt so
    *_look("interactor", "text_guided_interactor", ""),
)
LAYOUTS = (
    Layout(
        "fatformer",
        (
            r"clip_model\.visual\.class_embedding",
            r"language_guided_alignment\.ctx",
            r"language_guided_alignment\.token_suffix",
            r"text_guided_interactor\.in_proj_weight",
        ),
        RULES,
        drop=(
            (r"(image_encoder|text_encoder)\..*|logit_scale", "a second name of a tensor of clip_model"),
            (r"clip_model\.token_embedding\.weight", "the prompts' embeddings, made of it, are in the file"),
            (r".*\.i?dwt_transform\..*", "the filters of the Haar transform, which the net computes itself"),
        ),
        reshaped=(
            (r"clip_model\.visual\.class_embedding", 1),
            (r"clip_model\.visual\.positional_embedding", 2),
            (r"clip_model\.logit_scale", 0),
            (r".*_conv_layer\.weight", 3),
        ),
    ),
)
_PLACE = re.compile(r"clip_model\.visual\.transformer\.resblocks\.(\d+)\.forgery_aware_adapter\.freq_scale")


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Sizes of both towers, the blocks with adapters, and where the prompts end."""
    found = tower(layout, tensors, config, 1)
    image = found.pop("grid") * found["patch_size"]
    adapted = sorted(int(m.group(1)) for m in map(_PLACE.fullmatch, tensors) if m)
    down = shape(tensors, *(k for k in tensors if k.endswith("forgery_aware_adapter.first_conv_layer.weight")))
    context, width = shape(tensors, _PROMPTS + "ctx")
    suffix = tensors[_PROMPTS + "token_suffix"]
    return "fatformer", {
        **found,
        "image_size": image,
        "adapted": adapted,
        "bottleneck": down[0] if down else 64,
        "text_width": width,
        "text_depth": count(tensors, r"clip_model\.transformer\.resblocks\.(\d+)\.ln_1\.weight"),
        "context": context,
        "suffix": suffix.shape[1],
        "ends": [1 + context + _end(rows) for rows in suffix.array()],
    }


def _end(rows):
    """The last token in front of the padding, which repeats one token; without padding the last of all."""
    differ = np.flatnonzero((np.asarray(rows) != rows[-1]).any(1))
    return int(differ[-1]) if len(differ) and differ[-1] < len(rows) - 2 else len(rows) - 1


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """The block that each adapter belongs to."""
    return {"place": {(i,): block for i, block in enumerate(arguments.get("adapted", (7, 15, 23)))}}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The authors' evaluation."""
    return f"decode | resize((256, 256)) | center_crop({arguments['image_size']}) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """The norms in front of the image tower and behind the text tower."""
    return [
        ("norm_pre", {"fatformer": "clip_model.visual.ln_pre"}),
        ("text.norm", {"fatformer": "clip_model.ln_final"}),
    ]


def notes(architecture: str, layout: Layout, arguments: Arguments, outputs: Optional[int]) -> List[str]:
    """What is the authors' and in no tensor."""
    return ["assumed 8 heads and 128 groups in the adapters, 12 heads between texts and image: no tensor tells"]


FAMILY = Family("fatformer", ("fatformer",), LAYOUTS, infer, transform, lookups, ("prefix",), taps, notes)
