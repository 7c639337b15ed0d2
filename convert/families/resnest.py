"""ResNeSt with two splits: timm's names, which are those of the authors' own files (zhanghang1989/ResNeSt)."""

from typing import Tuple

from aidet.errors import UserError
from aidet.models.resnest import DEPTHS

from . import Arguments, Config, Family, Layout, Rules, Taps, Tensors, count, shape

_BLOCK = "layer{s}.{b}."
TIMM: Rules = (
    ("w", "conv1.{n}", "conv1.{n}"),
    ("bn", "conv1.{n}", "conv1.{n}"),
    ("bn", "bn1", "bn1"),
    ("w", _BLOCK + "conv{c}", _BLOCK + "conv{c}"),
    ("bn", _BLOCK + "bn{c}", _BLOCK + "bn{c}"),
    ("w", _BLOCK + "conv2.conv", _BLOCK + "conv2.conv"),
    ("bn", _BLOCK + "conv2.bn{c}", _BLOCK + "conv2.bn{c}"),
    ("wb", _BLOCK + "conv2.fc{c}", _BLOCK + "conv2.fc{c}"),
    ("w", _BLOCK + "down.1", _BLOCK + "downsample.1"),
    ("bn", _BLOCK + "down.2", _BLOCK + "downsample.2"),
    ("wb", "classifier", "fc"),
)
LAYOUTS = (
    Layout(
        "timm",
        (r"conv1\.6\.weight", r"layer1\.0\.conv2\.conv\.weight", r"layer1\.0\.conv2\.fc2\.weight"),
        TIMM,
        aliases=("zhanghang1989",),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Depths from the keys, width of the stem from its shape; the number of splits must be two."""
    depths = tuple(count(tensors, rf"layer{s}\.(\d+)\..*") for s in range(1, 5))
    width = shape(tensors, "conv1.0.weight")[0]
    split = shape(tensors, "layer1.0.conv2.conv.weight")
    if split[:2] != (128, 32):
        raise UserError(f"a ResNeSt whose split convolution is {split}: only two splits of one group are known here")
    if (depths, width) == (DEPTHS, 32):
        return "resnest50d", {}
    return "resnest", {"depths": list(depths), "stem_width": width}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """timm's published evaluation."""
    return "decode | resize(256, bilinear) | center_crop(224) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Stem and four stages."""
    return [("bn1", {"timm": "bn1"})] + [(f"layer{s}", {"timm": f"layer{s}"}) for s in range(1, 5)]


FAMILY = Family(
    "resnest",
    ("resnest50d", "resnest"),
    LAYOUTS,
    infer,
    transform,
    head=("classifier.weight", "classifier.bias"),
    taps=taps,
)
