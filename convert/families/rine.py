"""RINE: CLIP's image tower under OpenAI's names, and what the authors trained on it, in one file or two."""

from typing import Tuple

from . import Arguments, Config, Family, Layout, Lookups, Taps, Tensors, clip, count, tower

RULES = (
    *(line for line in clip.OPENAI if line[1] not in ("projection", "head")),
    ("one", "alpha", "alpha"),
    ("wb", "proj1.{n}", "proj1.{place(n)}"),
    ("wb", "proj2.{n}", "proj2.{place(n)}"),
    ("wb", "hidden.{n}", "head.{row(n)}"),
    ("wb", "head", "head.6"),
)
LAYOUTS = (
    Layout(
        "rine",
        (r"visual\.class_embedding", r"alpha", r"proj1\.1\.weight"),
        RULES,
        drop=clip.LAYOUTS[1].drop,
        reshaped=clip.LAYOUTS[1].reshaped,
        renames=((r"clip\.(.*)", r"\1"),),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size of the tower, width and number of the dense layers."""
    found = tower(layout, tensors, config, 1)
    image = found.pop("grid") * found["patch_size"]
    layers = count(tensors, r"proj1\.(\d+)\.weight")
    return "rine", {**found, "image_size": image, "embedding": tensors["alpha"].shape[2], "layers": layers}


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """The authors' numbers count Dropouts, ours do not: proj1 and proj2 begin with one, the head does not."""
    return {"place": {(2 * i,): 3 * i + 1 for i in range(16)}, "row": {(0,): 0, (2,): 3}}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The authors' evaluation."""
    return f"decode | center_crop({arguments['image_size']}) | normalize(clip)"


def taps(architecture: str) -> Taps:
    """The norm in front of the first block, the last norm of some blocks."""
    return [("norm_pre", {"rine": "visual.ln_pre"})]


FAMILY = Family("rine", ("rine",), LAYOUTS, infer, transform, lookups, ("head.weight", "head.bias"), taps)
