"""DRCT on ConvNeXt or CLIP: timm's or OpenAI's names under ``model.``, and a classifier on the embedding."""

from typing import Tuple

from . import Arguments, Config, Family, Layout, Lookups, Taps, Tensors, clip, convnext, shape, tower

LAYOUTS = (
    Layout(
        "drct",
        (r"model\.stem\.0\.weight", r"model\.head\.fc\.weight", r"fc\.weight"),
        (*((kind, target, f"model.{source}") for kind, target, source in convnext.TIMM), ("wb", "fc", "fc")),
    ),
    Layout(
        "drct-clip",
        (r"model\.model\.visual\.class_embedding", r"model\.model\.visual\.proj", r"model\.fc\.weight", r"fc\.weight"),
        (
            *((kind, target, f"model.model.{source}") for kind, target, source in clip.OPENAI[:-1]),
            ("wb", "head", "model.fc"),
            ("wb", "fc", "fc"),
        ),
        drop=tuple((rf"model\.model\.(?:{regex})", why) for regex, why in clip.LAYOUTS[1].drop),
        reshaped=tuple((rf"model\.model\.(?:{regex})", n) for regex, n in clip.LAYOUTS[1].reshaped),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size of the backbone and width of the embedding."""
    if layout.name == "drct-clip":
        found = tower(layout, tensors, config, 1)
        image = found.pop("grid") * found["patch_size"]
        projection = shape(tensors, "model.model.visual.proj")[1]
        own = {"projection": projection, "embedding": tensors["fc.weight"].shape[1]}
        return "drct_clip", {**found, "image_size": image, **own}
    inside = {k[len("model.") :]: t for k, t in tensors.items() if k.startswith("model.")}
    name, _ = convnext.infer(next(x for x in convnext.LAYOUTS if x.name == "timm"), inside, config)
    return f"drct_{name}", {"embedding": tensors["fc.weight"].shape[1]}


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """Those of ConvNeXt."""
    return {} if architecture == "drct_clip" else convnext.lookups(architecture, arguments)


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The authors' evaluation."""
    return "decode | center_crop(224, floor) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Those of the backbone."""
    if architecture == "drct_clip":
        return [("norm_pre", {"drct-clip": "model.model.visual.ln_pre"})]
    return [(cell, {"drct": f"model.{names['timm']}"}) for cell, names in convnext.taps(architecture)]


FAMILY = Family(
    "drct",
    ("drct_clip", "drct_convnext_tiny", "drct_convnext_base"),
    LAYOUTS,
    infer,
    transform,
    lookups,
    ("fc.weight", "fc.bias"),
    taps,
)
