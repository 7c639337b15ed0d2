"""MobileNetV2 of any width: torchvision, timm, Hugging Face (with TensorFlow's padding)."""

from typing import Dict, Tuple

from aidet.errors import UserError
from aidet.models.mobilenet_v2 import STAGES, STARTS, widths

from . import Arguments, Config, Family, Layout, Lookups, Rules, Taps, Tensors, count, shape

WIDTHS = (1.0, 0.35, 0.5, 0.75, 1.1, 1.2, 1.3, 1.4)
# Our block 0 has no expansion: its parts are 0, 1 and 3, 4; those of the others 0, 1 and 3, 4 and 6, 7. The lookups
# whose names end in 0 know the first block only, the others know all but it.
TORCHVISION: Rules = (
    ("w", "stem.0", "features.0.0"),
    ("bn", "stem.1", "features.0.1"),
    ("w", "blocks.{i}.block.0", "features.{i+1}.conv.0.0"),
    ("bn", "blocks.{i}.block.1", "features.{i+1}.conv.0.1"),
    ("w", "blocks.{i}.block.3", "features.{next0(i)}.conv.1"),
    ("bn", "blocks.{i}.block.4", "features.{next0(i)}.conv.2"),
    ("w", "blocks.{i}.block.3", "features.{i+1}.conv.1.0"),
    ("bn", "blocks.{i}.block.4", "features.{i+1}.conv.1.1"),
    ("w", "blocks.{i}.block.6", "features.{i+1}.conv.2"),
    ("bn", "blocks.{i}.block.7", "features.{i+1}.conv.3"),
    ("w", "top.0", "features.18.0"),
    ("bn", "top.1", "features.18.1"),
    ("wb", "classifier", "classifier.1"),
)
TIMM: Rules = (
    ("w", "stem.0", "conv_stem"),
    ("bn", "stem.1", "bn1"),
    ("w", "blocks.{i}.block.0", "blocks.{stage0(i)}.conv_dw"),
    ("bn", "blocks.{i}.block.1", "blocks.{stage0(i)}.bn1"),
    ("w", "blocks.{i}.block.3", "blocks.{stage0(i)}.conv_pw"),
    ("bn", "blocks.{i}.block.4", "blocks.{stage0(i)}.bn2"),
    ("w", "blocks.{i}.block.0", "blocks.{stage(i)}.conv_pw"),
    ("bn", "blocks.{i}.block.1", "blocks.{stage(i)}.bn1"),
    ("w", "blocks.{i}.block.3", "blocks.{stage(i)}.conv_dw"),
    ("bn", "blocks.{i}.block.4", "blocks.{stage(i)}.bn2"),
    ("w", "blocks.{i}.block.6", "blocks.{stage(i)}.conv_pwl"),
    ("bn", "blocks.{i}.block.7", "blocks.{stage(i)}.bn3"),
    ("w", "top.0", "conv_head"),
    ("bn", "top.1", "bn2"),
    ("wb", "classifier", "classifier"),
)


def _huggingface() -> Rules:
    lines = [("stem.{n}", "conv_stem.first_conv"), ("top.{n}", "conv_1x1")]
    rules = []
    for target, source in lines:
        rules.append(("w", target.format(n=0), f"mobilenet_v2.{source}.convolution"))
        rules.append(("bn", target.format(n=1), f"mobilenet_v2.{source}.normalization"))
    first = ((0, "conv_stem{zero0(i)}.conv_3x3"), (3, "conv_stem{zero0(i)}.reduce_1x1"))
    others = ((0, "layer.{i-1}.expand_1x1"), (3, "layer.{i-1}.conv_3x3"), (6, "layer.{i-1}.reduce_1x1"))
    for n, source in (*first, *others):
        rules.append(("w", f"blocks.{{i}}.block.{n}", f"mobilenet_v2.{source}.convolution"))
        rules.append(("bn", f"blocks.{{i}}.block.{n + 1}", f"mobilenet_v2.{source}.normalization"))
    return (*rules, ("wb", "classifier", "classifier"))


LAYOUTS = (
    Layout(
        "torchvision",
        (r"features\.0\.0\.weight", r"features\.1\.conv\.0\.0\.weight", r"features\.18\.0\.weight"),
        TORCHVISION,
        arguments={"padding": "symmetric", "bn_eps": 1e-5},
    ),
    Layout(
        "timm",
        (r"conv_stem\.weight", r"blocks\.0\.0\.conv_dw\.weight", r"blocks\.6\.0\.conv_pwl\.weight"),
        TIMM,
        without=(r".*\.se\..*", r"blocks\.\d+\.\d+\.conv\.weight", r"blocks\.5\.3\..*"),
        arguments={"padding": "symmetric", "bn_eps": 1e-5},
        configured=r"mobilenetv2_.*",
    ),
    Layout(
        "hf",
        (r"mobilenet_v2\.conv_stem\.first_conv\.convolution\.weight",),
        _huggingface(),
        arguments={"padding": "same", "bn_eps": 1e-3},
        stated={"hidden_act": ("relu6",)},
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Width from the channels of the stem and the last convolutions; padding and epsilon from config.json."""
    names = {
        "torchvision": ("features.0.0", "features.18.0", r"features\.(\d+)\.conv\.0\.0\.weight"),
        "timm": ("conv_stem", "conv_head", r"blocks\.(\d+\.\d+)\.conv_pw\.weight"),
        "hf": ("mobilenet_v2.conv_stem.first_conv.convolution", "mobilenet_v2.conv_1x1.convolution", ""),
    }[layout.name]
    stem, last = shape(tensors, names[0] + ".weight"), shape(tensors, names[1] + ".weight")
    blocks = count(tensors, names[2]) if names[2] else 1 + count(tensors, r"mobilenet_v2\.layer\.(\d+)\..*")
    arguments = dict(layout.arguments)
    config = config or {}
    if layout.name == "hf":
        if config.get("output_stride", 32) != 32:
            raise UserError(f"config.json: output_stride {config['output_stride']}: only 32 is known here")
        arguments["padding"] = "same" if config.get("tf_padding", True) else "symmetric"
        arguments["bn_eps"] = float(config.get("layer_norm_eps", 1e-3))
    for width in WIDTHS:
        first, outputs, top = widths(width)
        if (first, outputs[-1], top, len(outputs)) == (stem[0], last[1], last[0], blocks):
            return "mobilenet_v2", {**arguments, **({"width": width} if width != 1 else {})}
    raise UserError(
        f"a MobileNetV2 with a stem of {stem[0]}, {blocks} blocks and a last convolution of {last[:2]} is none of the "
        f"widths {', '.join(map(str, sorted(WIDTHS)))}"
    )


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """Flat number of a block -> timm's stage and number in it; tables that know the first block only end in 0."""
    stage = {}
    for s, start in enumerate(STARTS):
        for j in range(STAGES[s][2]):
            stage[(start + j,)] = f"{s}.{j}"
    return {"stage0": {(0,): stage.pop((0,))}, "stage": stage, "next0": {(0,): 1}, "zero0": {(0,): ""}}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The published evaluation of each library."""
    if layout.name == "hf":
        return "decode | resize(256, bilinear) | center_crop(224, floor) | normalize(half)"
    how = "bilinear" if layout.name == "torchvision" else "bicubic"
    return f"decode | resize(256, {how}) | center_crop(224) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Stem and the first block of every stage."""

    def named(torchvision: str, timm: str, huggingface: str) -> Dict[str, str]:
        return {"torchvision": torchvision, "timm": timm, "hf": "mobilenet_v2." + huggingface}

    rows = [("stem.1", named("features.0.1", "bn1.drop", "conv_stem.first_conv.normalization"))]
    rows += [
        (f"blocks.{i}", named(f"features.{i + 1}", f"blocks.{s}.0", f"layer.{i - 1}" if i else "conv_stem"))
        for s, i in enumerate(STARTS)
    ]
    return rows + [("top.1", named("features.18.1", "bn2.drop", "conv_1x1.normalization"))]


FAMILY = Family(
    "mobilenet_v2",
    ("mobilenet_v2",),
    LAYOUTS,
    infer,
    transform,
    lookups,
    ("classifier.weight", "classifier.bias"),
    taps,
)
