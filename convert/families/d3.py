"""D3: CLIP's image tower under OpenAI's names, and the attention that the authors trained on it."""

from typing import Tuple

from . import Arguments, Config, Family, Layout, Taps, Tensors, clip, tower

RULES = (
    *(line for line in clip.OPENAI if line[1] not in ("projection", "head")),
    ("wb", "query", "attention_head.query"),
    ("wb", "key", "attention_head.key"),
    ("wb", "value", "attention_head.value"),
    ("wb", "head", "attention_head.fc"),
)
LAYOUTS = (
    Layout(
        "d3",
        (r"visual\.class_embedding", r"attention_head\.query\.weight", r"attention_head\.fc\.weight"),
        RULES,
        drop=clip.LAYOUTS[1].drop,
        reshaped=clip.LAYOUTS[1].reshaped,
        renames=((r"model\.(visual\..*)", r"\1"),),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size of the tower; all but one branch are shuffled copies, each patch as large as the tower's."""
    found = tower(layout, tensors, config, 1)
    image = found.pop("grid") * found["patch_size"]
    branches = tensors["attention_head.fc.weight"].shape[1] // found["width"]
    return "d3", {**found, "image_size": image, "shuffles": branches - 1, "shuffle_patch": found["patch_size"]}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The authors' evaluation."""
    return f"decode | center_crop({arguments['image_size']}) | normalize(clip)"


def taps(architecture: str) -> Taps:
    """The norm in front of the first block."""
    return [("norm_pre", {"d3": "visual.ln_pre"})]


FAMILY = Family("d3", ("d3",), LAYOUTS, infer, transform, head=("head.weight", "head.bias"), taps=taps)
