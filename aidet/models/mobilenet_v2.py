"""MobileNetV2 (arXiv:1801.04381) of any width: inverted residuals with linear bottlenecks, ReLU6.

TensorFlow's weights (Hugging Face) have ``padding="same"`` and ``bn_eps=1e-3``; torchvision and timm have
``padding="symmetric"`` and 1e-5.
"""

from typing import Any, List, Tuple

from mindspore import Tensor, nn

from . import register
from .layers import GlobalPool, check_stem_stride, conv, dropout, initialise, make_divisible

# expansion, width, blocks, stride of the first
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
# The flat list of blocks starts anew with each of these.
STARTS = (0, 1, 3, 6, 10, 13, 16)


def widths(width: float) -> Tuple[int, List[int], int]:
    """Channels of the stem, of each of the 17 blocks, and of the last convolution."""
    blocks = [make_divisible(channels * width) for _, channels, repeats, _ in STAGES for _ in range(repeats)]
    return make_divisible(32 * width), blocks, max(1280, make_divisible(1280 * width))


class Block(nn.Cell):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation; residual if the shapes allow it."""

    def __init__(self, cin: int, cout: int, expand: int, stride: int, padding: str, bn_eps: float) -> None:
        super().__init__()
        mid = cin * expand
        cells = []
        if expand != 1:
            cells += [conv(cin, mid, 1), nn.BatchNorm2d(mid, eps=bn_eps), nn.ReLU6()]
        cells += [conv(mid, mid, 3, stride, mid, padding=padding), nn.BatchNorm2d(mid, eps=bn_eps), nn.ReLU6()]
        cells += [conv(mid, cout, 1), nn.BatchNorm2d(cout, eps=bn_eps)]
        self.block = nn.SequentialCell(cells)
        self.residual = stride == 1 and cin == cout

    def construct(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Cell):
    """MobileNetV2: (N, in_channels, H, W) -> (N, num_classes) raw logits.

    Parameters
    ----------
    num_classes, in_channels : int
    width : float
        Multiplier of all channels; the last convolution keeps at least 1280.
    padding : {"same", "symmetric"}
    bn_eps, drop_rate : float
    stem_stride : int
        Of the first convolution; 1 instead of 2 keeps fine detail.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        padding: str = "symmetric",
        bn_eps: float = 1e-5,
        drop_rate: float = 0.2,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        channels, outputs, last = widths(width)
        first = conv(in_channels, channels, 3, check_stem_stride(stem_stride, 2), padding=padding)
        self.stem = nn.SequentialCell([first, nn.BatchNorm2d(channels, eps=bn_eps), nn.ReLU6()])
        blocks: List[nn.Cell] = []
        for expand, _, repeats, stride in STAGES:
            for i in range(repeats):
                cout = outputs[len(blocks)]
                blocks.append(Block(channels, cout, expand, stride if i == 0 else 1, padding, bn_eps))
                channels = cout
        self.blocks = nn.SequentialCell(blocks)
        self.top = nn.SequentialCell([conv(channels, last, 1), nn.BatchNorm2d(last, eps=bn_eps), nn.ReLU6()])
        self.pool, self.dropout = GlobalPool(), dropout(drop_rate)
        self.classifier = nn.Dense(last, num_classes)
        initialise(self)

    def construct(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.pool(self.top(self.blocks(self.stem(x))))))


@register
def mobilenet_v2(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> MobileNetV2:
    """MobileNetV2, 3.5 M parameters at width 1."""
    return MobileNetV2(num_classes, in_channels, **kwargs)
