"""MobileNetV3 large and small: torchvision's names.

torchvision numbers only the parts that a block has (expansion, depthwise, squeeze-excite, projection), so the index of
a part depends on the block; the lookups ``dw``, ``se`` and ``pw`` give it.
"""

from typing import Tuple

from aidet.models.mobilenet_v3 import BLOCKS

from . import Arguments, Config, Family, Layout, Lookups, Taps, Tensors, mindcv, shape

# Our block numbers: with expansion 0 1 | 3 4 | [6 gate] | last two; without: 0 1 | [3 gate] | last two.
TORCHVISION = (
    ("w", "features.0", "features.0.0"),
    ("bn", "features.1", "features.0.1"),
    ("wb", "features.{f}.layers.{n}.conv_reduce", "features.{f-2}.block.{se(f,n)}.fc1"),
    ("wb", "features.{f}.layers.{n}.conv_expand", "features.{f-2}.block.{se(f,n)}.fc2"),
    ("w", "features.{f}.layers.{n}", "features.{f-2}.block.{conv(f,n)}"),
    ("bn", "features.{f}.layers.{n}", "features.{f-2}.block.{norm(f,n)}"),
    ("w", "features.{f}", "features.{last(f)}.0"),
    ("bn", "features.{f}", "features.{lastnorm(f)}.1"),
    ("wb", "classifier.{n}", "classifier.{n}"),
)
LAYOUTS = (
    Layout(
        "torchvision",
        (r"features\.0\.0\.weight", r"features\.1\.block\.0\.0\.weight", r"classifier\.3\.weight"),
        TORCHVISION,
        without=(r"features\.1\.0\..*",),
        arguments={"padding": "symmetric", "bn_eps": 1e-3},
    ),
    mindcv(r"features\.0\.weight", r"features\.3\.layers\.0\.weight"),
)


def _size(architecture):
    return architecture.split("_")[2]


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """The hidden layer has 1280 (large) or 1024 units."""
    size = "large" if shape(tensors, "classifier.0.weight")[0] == 1280 else "small"
    return f"mobilenet_v3_{size}_100", dict(layout.arguments)


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """Indices in torchvision's numbering, by (feature, index in our block)."""
    blocks = BLOCKS[_size(architecture)]
    conv, norm, gate, channels = {}, {}, {}, 16
    for i, (_, mid, cout, gated, _, _) in enumerate(blocks):
        parts = (["conv"] if mid != channels else []) + ["conv"] + (["gate"] if gated else []) + ["conv"]
        ours = 0
        for theirs, part in enumerate(parts):
            if part == "gate":
                gate[(i + 3, ours)] = theirs
                ours += 1
            else:
                conv[(i + 3, ours)], norm[(i + 3, ours + 1)] = f"{theirs}.0", f"{theirs}.1"
                ours += 3
        channels = cout
    last = len(blocks) + 3
    return {"conv": conv, "norm": norm, "se": gate, "last": {(last,): last - 2}, "lastnorm": {(last + 1,): last - 2}}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """torchvision's published evaluation."""
    return "decode | resize(256, bilinear) | center_crop(224) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Stem, every block."""
    return [("features.1", {"torchvision": "features.0.1"})] + [
        (f"features.{i + 3}", {"torchvision": f"features.{i + 1}"}) for i in range(len(BLOCKS[_size(architecture)]))
    ]


FAMILY = Family(
    "mobilenet_v3",
    ("mobilenet_v3_small_100", "mobilenet_v3_large_100"),
    LAYOUTS,
    infer,
    transform,
    lookups,
    ("classifier.3.weight", "classifier.3.bias"),
    taps,
)
