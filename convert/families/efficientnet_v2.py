"""EfficientNetV2 B0 to B3, S, M, L: torchvision, timm's own trainings, timm's ports of TensorFlow's weights."""

from typing import Dict, Tuple

from aidet.errors import UserError
from aidet.models.efficientnet_v2 import SIZES, plan

from . import Arguments, Config, Family, Layout, Lookups, Rules, Taps, Tensors, count, shape

# The three kinds of stage have parts of their own; the lookups plain, fused and gated know the stages of one kind only.
TIMM: Rules = (
    ("w", "stem.0", "conv_stem"),
    ("bn", "stem.1", "bn1"),
    ("w", "stages.{s}.{j}.block.0", "blocks.{plain(s)}.{j}.conv"),
    ("bn", "stages.{s}.{j}.block.1", "blocks.{plain(s)}.{j}.bn1"),
    ("w", "stages.{s}.{j}.block.0", "blocks.{fused(s)}.{j}.conv_exp"),
    ("bn", "stages.{s}.{j}.block.1", "blocks.{fused(s)}.{j}.bn1"),
    ("w", "stages.{s}.{j}.block.3", "blocks.{fused(s)}.{j}.conv_pwl"),
    ("bn", "stages.{s}.{j}.block.4", "blocks.{fused(s)}.{j}.bn2"),
    ("w", "stages.{s}.{j}.block.0", "blocks.{gated(s)}.{j}.conv_pw"),
    ("bn", "stages.{s}.{j}.block.1", "blocks.{gated(s)}.{j}.bn1"),
    ("w", "stages.{s}.{j}.block.3", "blocks.{gated(s)}.{j}.conv_dw"),
    ("bn", "stages.{s}.{j}.block.4", "blocks.{gated(s)}.{j}.bn2"),
    ("wb", "stages.{s}.{j}.block.6.conv_reduce", "blocks.{gated(s)}.{j}.se.conv_reduce"),
    ("wb", "stages.{s}.{j}.block.6.conv_expand", "blocks.{gated(s)}.{j}.se.conv_expand"),
    ("w", "stages.{s}.{j}.block.7", "blocks.{gated(s)}.{j}.conv_pwl"),
    ("bn", "stages.{s}.{j}.block.8", "blocks.{gated(s)}.{j}.bn3"),
    ("w", "top.0", "conv_head"),
    ("bn", "top.1", "bn2"),
    ("wb", "classifier", "classifier"),
)
_FEATURE = "features.{%s1(s)}.{j}.block."
TORCHVISION: Rules = (
    ("w", "stem.0", "features.0.0"),
    ("bn", "stem.1", "features.0.1"),
    ("w", "stages.{s}.{j}.block.0", _FEATURE % "plain" + "0.0"),
    ("bn", "stages.{s}.{j}.block.1", _FEATURE % "plain" + "0.1"),
    ("w", "stages.{s}.{j}.block.0", _FEATURE % "fused" + "0.0"),
    ("bn", "stages.{s}.{j}.block.1", _FEATURE % "fused" + "0.1"),
    ("w", "stages.{s}.{j}.block.3", _FEATURE % "fused" + "1.0"),
    ("bn", "stages.{s}.{j}.block.4", _FEATURE % "fused" + "1.1"),
    ("w", "stages.{s}.{j}.block.0", _FEATURE % "gated" + "0.0"),
    ("bn", "stages.{s}.{j}.block.1", _FEATURE % "gated" + "0.1"),
    ("w", "stages.{s}.{j}.block.3", _FEATURE % "gated" + "1.0"),
    ("bn", "stages.{s}.{j}.block.4", _FEATURE % "gated" + "1.1"),
    ("wb", "stages.{s}.{j}.block.6.conv_reduce", _FEATURE % "gated" + "2.fc1"),
    ("wb", "stages.{s}.{j}.block.6.conv_expand", _FEATURE % "gated" + "2.fc2"),
    ("w", "stages.{s}.{j}.block.7", _FEATURE % "gated" + "3.0"),
    ("bn", "stages.{s}.{j}.block.8", _FEATURE % "gated" + "3.1"),
    ("w", "top.0", "features.{top()}.0"),
    ("bn", "top.1", "features.{top()}.1"),
    ("wb", "classifier", "classifier.1"),
)
_TIMM_MARKS = (r"conv_stem\.weight", r"blocks\.0\.0\.conv\.weight", r"blocks\.1\.0\.conv_exp\.weight")
LAYOUTS = (
    Layout(
        "torchvision",
        (r"features\.0\.0\.weight", r"features\.2\.0\.block\.1\.0\.weight", r"features\.4\.0\.block\.2\.fc1\.weight"),
        TORCHVISION,
        without=(r"features\.2\.0\.block\.2\..*",),
        arguments={"padding": "symmetric", "bn_eps": 1e-3},
    ),
    Layout(
        "timm",
        _TIMM_MARKS,
        TIMM,
        arguments={"padding": "symmetric", "bn_eps": 1e-5},
        configured=r"efficientnetv2_.*",
    ),
    Layout("timm-tf", _TIMM_MARKS, TIMM, arguments={"padding": "same", "bn_eps": 1e-3}, configured=r"tf_.*"),
)


def _size(architecture: str) -> str:
    return architecture.split("_")[1]


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size from the widths of stem and head and the blocks of each stage."""
    torchvision = layout.name == "torchvision"
    stem = shape(tensors, "features.0.0.weight" if torchvision else "conv_stem.weight")[0]
    stage, first = (r"features\.%d\.(\d+)\.block\..*", 1) if torchvision else (r"blocks\.%d\.(\d+)\..*", 0)
    depths = [n for n in (count(tensors, stage % (s + first)) for s in range(8)) if n]
    last = shape(tensors, "classifier.1.weight", "classifier.weight")
    for size in SIZES:
        width, stages, top = plan(size)
        if (width, [s[4] for s in stages]) == (stem, depths) and last in (None, (last[0], top)):
            return f"efficientnetv2_{size}", dict(layout.arguments)
    raise UserError(
        f"an EfficientNetV2 with a stem of {stem} and stages of {depths} blocks is not one of {', '.join(SIZES)}"
    )


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """For each kind of stage the stages of that kind, as timm (``plain``) and torchvision (``plain1``) number them."""
    stages = plan(_size(architecture))[1]
    table: Dict[str, Dict[Tuple[int, ...], int]] = {"top": {(): len(stages) + 1}}
    for kind in ("plain", "fused", "gated"):
        table[kind] = {(s,): s for s, stage in enumerate(stages) if stage[0] == kind}
        table[kind + "1"] = {(s,): s + 1 for (s,) in table[kind]}
    return table


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """Published evaluation of the library."""
    size = _size(architecture)
    if layout.name == "torchvision":
        side = 384 if size == "s" else 480
        how, statistics = ("bicubic", "half") if size == "l" else ("bilinear", "imagenet")
        return f"decode | resize({side}, {how}) | center_crop({side}) | normalize({statistics})"
    side = {"b0": 192, "b1": 192, "b2": 208, "b3": 240, "s": 300, "m": 384, "l": 384}[size]
    if size in ("m", "l"):
        return f"decode | resize(({side}, {side}), bicubic) | normalize(half)"
    edge = int(side / {"b0": 0.875, "b1": 0.882, "b2": 0.89, "b3": 0.904, "s": 1.0}[size])
    statistics = "half" if size == "s" else "imagenet"
    return f"decode | resize({edge}, bicubic) | center_crop({side}) | normalize({statistics})"


def taps(architecture: str) -> Taps:
    """Stem, stages, head convolution."""

    def named(torchvision: str, timm: str) -> Dict[str, str]:
        return {"torchvision": torchvision, "timm": timm, "timm-tf": timm}

    stages = len(plan(_size(architecture))[1])
    rows = [("stem.1", named("features.0.1", "bn1.drop"))]
    rows += [(f"stages.{s}", named(f"features.{s + 1}", f"blocks.{s}")) for s in range(stages)]
    return rows + [("top.0", named(f"features.{stages + 1}.0", "conv_head"))]


FAMILY = Family(
    "efficientnet_v2",
    [f"efficientnetv2_{s}" for s in SIZES],
    LAYOUTS,
    infer,
    transform,
    lookups,
    ("classifier.weight", "classifier.bias"),
    taps,
)
