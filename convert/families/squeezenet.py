"""SqueezeNet 1.0 and 1.1: torchvision's names, which MindCV shares."""

from typing import Tuple

from . import Arguments, Config, Family, Layout, Taps, Tensors, mindcv, shape

LAYOUTS = (
    Layout(
        "torchvision",
        (r"features\.0\.weight", r"features\.3\.squeeze\.weight", r"classifier\.1\.weight"),
        (
            ("wb", "features.0", "features.0"),
            ("wb", "features.{i}.squeeze", "features.{i}.squeeze"),
            ("wb", "features.{i}.expand1x1", "features.{i}.expand1x1"),
            ("wb", "features.{i}.expand3x3", "features.{i}.expand3x3"),
            ("wb", "classifier.1", "classifier.1"),
        ),
        arguments={"ceil_mode": True},
    ),
    mindcv(r"features\.0\.weight", r"features\.3\.squeeze\.weight"),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """1.0 begins with 96 channels, 1.1 with 64."""
    return ("squeezenet1_0" if shape(tensors, "features.0.weight")[0] == 96 else "squeezenet1_1"), dict(
        layout.arguments
    )


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """torchvision's published evaluation."""
    return "decode | resize(256, bilinear) | center_crop(224) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Every fire module."""
    fires = (3, 4, 5, 7, 8, 9, 10, 12) if architecture == "squeezenet1_0" else (3, 4, 6, 7, 9, 10, 11, 12)
    return [("features.0", {"torchvision": "features.0"})] + [
        (f"features.{i}", {"torchvision": f"features.{i}"}) for i in fires
    ]


FAMILY = Family(
    "squeezenet",
    ("squeezenet1_0", "squeezenet1_1"),
    LAYOUTS,
    infer,
    transform,
    head=("classifier.1.weight", "classifier.1.bias"),
    taps=taps,
)
