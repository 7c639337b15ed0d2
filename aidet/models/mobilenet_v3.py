"""MobileNetV3 (arXiv:1905.02244), large and small, with MindCV's parameter names.

torchvision trains with a BatchNorm epsilon of 1e-3 and pads depthwise convolutions on both sides; MindCV uses 1e-5 and
TensorFlow's padding. Both are arguments.
"""

from typing import Any

from mindspore import Tensor, nn

from . import register
from .layers import GlobalPool, SqueezeExcite, conv, dropout, initialise, make_divisible

# kernel, expanded width, output width, squeeze-excite, hard-swish, stride
BLOCKS = {
    "large": (
        (3, 16, 16, 0, 0, 1),
        (3, 64, 24, 0, 0, 2),
        (3, 72, 24, 0, 0, 1),
        (5, 72, 40, 1, 0, 2),
        (5, 120, 40, 1, 0, 1),
        (5, 120, 40, 1, 0, 1),
        (3, 240, 80, 0, 1, 2),
        (3, 200, 80, 0, 1, 1),
        (3, 184, 80, 0, 1, 1),
        (3, 184, 80, 0, 1, 1),
        (3, 480, 112, 1, 1, 1),
        (3, 672, 112, 1, 1, 1),
        (5, 672, 160, 1, 1, 2),
        (5, 960, 160, 1, 1, 1),
        (5, 960, 160, 1, 1, 1),
    ),
    "small": (
        (3, 16, 16, 1, 0, 2),
        (3, 72, 24, 0, 0, 2),
        (3, 88, 24, 0, 0, 1),
        (5, 96, 40, 1, 1, 2),
        (5, 240, 40, 1, 1, 1),
        (5, 240, 40, 1, 1, 1),
        (5, 120, 48, 1, 1, 1),
        (5, 144, 48, 1, 1, 1),
        (5, 288, 96, 1, 1, 2),
        (5, 576, 96, 1, 1, 1),
        (5, 576, 96, 1, 1, 1),
    ),
}
HIDDEN = {"large": 1280, "small": 1024}


class Block(nn.Cell):
    """Inverted residual with an optional squeeze-excite."""

    def __init__(
        self,
        cin: int,
        kernel: int,
        mid: int,
        cout: int,
        gated: int,
        swish: int,
        stride: int,
        padding: str,
        bn_eps: float,
    ) -> None:
        super().__init__()
        act = nn.HSwish if swish else nn.ReLU
        cells = []
        if mid != cin:
            cells += [conv(cin, mid, 1), nn.BatchNorm2d(mid, eps=bn_eps), act()]
        cells += [conv(mid, mid, kernel, stride, mid, padding=padding), nn.BatchNorm2d(mid, eps=bn_eps), act()]
        if gated:
            cells.append(SqueezeExcite(mid, make_divisible(mid / 4), nn.ReLU, nn.HSigmoid))
        cells += [conv(mid, cout, 1), nn.BatchNorm2d(cout, eps=bn_eps)]
        self.layers = nn.SequentialCell(cells)
        self.residual = stride == 1 and cin == cout

    def construct(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


class MobileNetV3(nn.Cell):
    """MobileNetV3: (N, in_channels, H, W) -> (N, num_classes) raw logits.

    Parameters
    ----------
    size : {"large", "small"}
    num_classes, in_channels : int
    padding : {"same", "symmetric"}
        Of the depthwise convolutions.
    bn_eps, drop_rate : float
    """

    def __init__(
        self,
        size: str,
        num_classes: int = 1000,
        in_channels: int = 3,
        padding: str = "same",
        bn_eps: float = 1e-5,
        drop_rate: float = 0.2,
    ) -> None:
        super().__init__()
        cells = [conv(in_channels, 16, 3, 2), nn.BatchNorm2d(16, eps=bn_eps), nn.HSwish()]
        channels = 16
        for kernel, mid, cout, gated, swish, stride in BLOCKS[size]:
            cells.append(Block(channels, kernel, mid, cout, gated, swish, stride, padding, bn_eps))
            channels = cout
        last = 6 * channels
        cells += [conv(channels, last, 1), nn.BatchNorm2d(last, eps=bn_eps), nn.HSwish()]
        self.features = nn.SequentialCell(cells)
        self.pool = GlobalPool()
        self.classifier = nn.SequentialCell(
            [nn.Dense(last, HIDDEN[size]), nn.HSwish(), dropout(drop_rate), nn.Dense(HIDDEN[size], num_classes)]
        )
        initialise(self)

    def construct(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)))


@register
def mobilenet_v3_small_100(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> MobileNetV3:
    """MobileNetV3-Small, 2.5 M parameters."""
    return MobileNetV3("small", num_classes, in_channels, **kwargs)


@register
def mobilenet_v3_large_100(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> MobileNetV3:
    """MobileNetV3-Large, 5.5 M parameters."""
    return MobileNetV3("large", num_classes, in_channels, **kwargs)
