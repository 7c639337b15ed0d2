"""EfficientNetV2 (arXiv:2104.00298) B0 to B3, S, M, L: fused blocks first, squeeze-excite in the later stages.

TensorFlow ports (timm ``tf_efficientnetv2_*``) have ``padding="same"`` and ``bn_eps=1e-3``; torchvision has
``padding="symmetric"`` and 1e-3, timm's own trainings ``padding="symmetric"`` and 1e-5.
"""

import math
from typing import Any, Callable, List, Tuple

import numpy as np
from mindspore import Tensor, nn

from . import register
from .efficientnet import MBConv, Residual
from .layers import GlobalPool, Swish, check_stem_stride, conv, dropout, initialise

Stage = Tuple[str, int, int, int, int]  # kind ("plain", "fused", "gated"), expansion, stride, width, blocks
_BASE: Tuple[Stage, ...] = (
    ("plain", 1, 1, 16, 1),
    ("fused", 4, 2, 32, 2),
    ("fused", 4, 2, 48, 2),
    ("gated", 4, 2, 96, 3),
    ("gated", 6, 1, 112, 5),
    ("gated", 6, 2, 192, 8),
)
_LARGE = {
    "s": (24, (24, 48, 64, 128, 160, 256), (2, 4, 4, 6, 9, 15)),
    "m": (24, (24, 48, 80, 160, 176, 304, 512), (3, 5, 5, 7, 14, 18, 5)),
    "l": (32, (32, 64, 96, 192, 224, 384, 640), (4, 7, 7, 10, 19, 25, 7)),
}
# width, depth
_SMALL = {"b0": (1.0, 1.0), "b1": (1.0, 1.1), "b2": (1.1, 1.2), "b3": (1.2, 1.4)}
SIZES = (*_SMALL, *_LARGE)


def plan(size: str) -> Tuple[int, List[Stage], int]:
    """Width of the stem, the stages, and the width of the last convolution of ``size`` ("b0" ... "l")."""
    if size in _LARGE:
        stem, widths, repeats = _LARGE[size]
        pattern = [*_BASE, ("gated", 6, 1, 0, 0)]
        stages = [(kind, expand, stride, w, n) for (kind, expand, stride, _, _), w, n in zip(pattern, widths, repeats)]
        return stem, stages, 1280
    width, depth = _SMALL[size]

    def scaled(channels: int) -> int:
        # To the nearest multiple of eight, also if that loses more than the usual tenth.
        return max(8, int(channels * width + 4) // 8 * 8)

    stages = [(k, expand, stride, scaled(w), math.ceil(n * depth)) for k, expand, stride, w, n in _BASE]
    return scaled(32), stages, scaled(1280)


class Fused(Residual):
    """A 3x3 convolution, with expansion followed by a 1x1 projection; residual if the shapes allow it."""

    def __init__(
        self,
        cin: int,
        cout: int,
        expand: int,
        stride: int,
        drop: float,
        padding: str,
        norm: Callable[[int], nn.Cell],
    ) -> None:
        mid = cout if expand == 1 else cin * expand
        cells = [conv(cin, mid, 3, stride, padding=padding), norm(mid), Swish()]
        if expand != 1:
            cells += [conv(mid, cout, 1), norm(cout)]
        super().__init__(nn.SequentialCell(cells), stride == 1 and cin == cout, drop)


class EfficientNetV2(nn.Cell):
    """EfficientNetV2: (N, in_channels, H, W) float32, normalised -> (N, num_classes) raw logits.

    Parameters
    ----------
    size : {"b0", "b1", "b2", "b3", "s", "m", "l"}
    num_classes, in_channels : int
    padding : {"same", "symmetric"}
    bn_eps : float
    drop_rate, drop_path_rate : float
    stem_stride : int
        Of the first convolution; 1 instead of 2 keeps fine detail.
    """

    def __init__(
        self,
        size: str,
        num_classes: int = 1000,
        in_channels: int = 3,
        padding: str = "same",
        bn_eps: float = 1e-3,
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.2,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()

        def norm(channels: int) -> nn.Cell:
            return nn.BatchNorm2d(channels, eps=bn_eps)

        channels, stages, last = plan(size)
        first = conv(in_channels, channels, 3, check_stem_stride(stem_stride, 2), padding=padding)
        self.stem = nn.SequentialCell([first, norm(channels), Swish()])
        paths = iter(np.linspace(0, drop_path_rate, sum(s[4] for s in stages)).tolist())
        cells = []
        for kind, expand, stride, cout, repeats in stages:
            blocks: List[nn.Cell] = []
            for i in range(repeats):
                step, drop = stride if i == 0 else 1, next(paths)
                if kind == "gated":
                    blocks.append(MBConv(channels, cout, expand, 3, step, drop, False, padding, norm))
                else:
                    blocks.append(Fused(channels, cout, expand, step, drop, padding, norm))
                channels = cout
            cells.append(nn.SequentialCell(blocks))
        self.stages = nn.SequentialCell(cells)
        self.top = nn.SequentialCell([conv(channels, last, 1), norm(last), Swish()])
        self.pool, self.dropout = GlobalPool(), dropout(drop_rate)
        self.classifier = nn.Dense(last, num_classes)
        initialise(self)

    def construct(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.pool(self.top(self.stages(self.stem(x))))))


@register
def efficientnetv2_b0(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNetV2:
    """EfficientNetV2-B0, 7.1 M parameters, published input 192."""
    return EfficientNetV2("b0", num_classes, in_channels, **kwargs)


@register
def efficientnetv2_b1(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNetV2:
    """EfficientNetV2-B1, 8.1 M parameters, published input 192."""
    return EfficientNetV2("b1", num_classes, in_channels, **kwargs)


@register
def efficientnetv2_b2(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNetV2:
    """EfficientNetV2-B2, 10.1 M parameters, published input 208."""
    return EfficientNetV2("b2", num_classes, in_channels, **kwargs)


@register
def efficientnetv2_b3(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNetV2:
    """EfficientNetV2-B3, 14.4 M parameters, published input 240."""
    return EfficientNetV2("b3", num_classes, in_channels, **kwargs)


@register
def efficientnetv2_s(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNetV2:
    """EfficientNetV2-S, 21.5 M parameters, published input 300 or 384."""
    return EfficientNetV2("s", num_classes, in_channels, **kwargs)


@register
def efficientnetv2_m(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNetV2:
    """EfficientNetV2-M, 54.1 M parameters, published input 384 or 480."""
    return EfficientNetV2("m", num_classes, in_channels, **kwargs)


@register
def efficientnetv2_l(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNetV2:
    """EfficientNetV2-L, 118.5 M parameters, published input 384 or 480."""
    return EfficientNetV2("l", num_classes, in_channels, **kwargs)
