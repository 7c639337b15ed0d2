"""ResNeSt (arXiv:2004.08955) with two splits: a ResNet-D whose 3x3 convolutions come in two, weighed by attention."""

from typing import Any, Optional, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from . import register
from .layers import GlobalPool, check_stem_stride, conv, initialise, make_divisible

DEPTHS = (3, 4, 6, 3)  # of ResNeSt-50
RADIX = 2


class Mean3(nn.Cell):
    """Mean of 3x3 pixels with a border of zeros that counts, as PyTorch's ``AvgPool2d(3, stride, 1)``.

    Written as a depthwise convolution, which every exporter supports.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.weight = ms.Tensor(np.full((channels, 1, 3, 3), 1 / 9, np.float32))
        self.convolve = ops.Conv2D(
            channels, (3, 3), mode=1, pad_mode="pad", pad=(1, 1, 1, 1), stride=(stride, stride), group=channels
        )

    def construct(self, x: Tensor) -> Tensor:
        return self.convolve(x, ops.cast(self.weight, x.dtype))


class Halve(nn.Cell):
    """Mean of 2x2 pixels; at an odd edge of those that exist, as PyTorch's ``ceil_mode`` without the border."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, 2)

    def construct(self, x: Tensor) -> Tensor:
        if x.shape[2] % 2:
            x = ops.concat((x, x[:, :, -1:]), 2)
        if x.shape[3] % 2:
            x = ops.concat((x, x[:, :, :, -1:]), 3)
        return self.pool(x)


class SplitAttention(nn.Cell):
    """Two grouped 3x3 convolutions, added with weights that depend on both: (N, C, H, W) in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, splits = channels, RADIX * channels
        squeezed = max(32, make_divisible(channels * RADIX * 0.25))
        self.conv, self.bn0 = conv(channels, splits, 3, group=RADIX), nn.BatchNorm2d(splits)
        self.relu = nn.ReLU()
        self.fc1, self.bn1 = nn.Conv2d(channels, squeezed, 1, has_bias=True), nn.BatchNorm2d(squeezed)
        self.fc2 = nn.Conv2d(squeezed, splits, 1, has_bias=True)
        self.softmax = nn.Softmax(1)

    def construct(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn0(self.conv(x)))
        first, second = x[:, : self.channels], x[:, self.channels :]
        pooled = (first + second).mean((2, 3), keep_dims=True)
        weights = self.fc2(self.relu(self.bn1(self.fc1(pooled))))
        weights = self.softmax(ops.reshape(weights, (-1, RADIX, self.channels, 1, 1)))
        return first * weights[:, 0] + second * weights[:, 1]


class Bottleneck(nn.Cell):
    """1x1, split attention, mean pool if the map gets smaller, 1x1; the shortcut pools before its convolution."""

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        cout = 4 * width
        self.conv1, self.bn1, self.relu = conv(cin, width, 1), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2 = SplitAttention(width)
        self.pool: nn.Cell = Mean3(width, stride) if stride > 1 else nn.Identity()
        self.conv3, self.bn3 = conv(width, cout, 1), nn.BatchNorm2d(cout)
        self.down: nn.Cell = nn.Identity()
        if stride > 1 or cin != cout:
            # The pool keeps its place if it does nothing, so that one table of names serves both.
            pool: Optional[nn.Cell] = Halve() if stride > 1 else nn.Identity()
            self.down = nn.SequentialCell([pool, conv(cin, cout, 1), nn.BatchNorm2d(cout)])

    def construct(self, x: Tensor) -> Tensor:
        y = self.pool(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(self.bn3(self.conv3(y)) + self.down(x))


class ResNeSt(nn.Cell):
    """ResNeSt: (N, in_channels, H, W) -> (N, num_classes) raw logits.

    Parameters
    ----------
    num_classes, in_channels : int
    depths : sequence of 4 int
        Blocks of each stage.
    stem_width : int
        Channels of the first two of the three convolutions of the stem; the third has twice as many.
    stem_stride : int
        Of the first convolution; 1 instead of 2 keeps fine detail.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        depths: Sequence[int] = DEPTHS,
        stem_width: int = 32,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        w = stem_width
        self.conv1 = nn.SequentialCell(
            [
                conv(in_channels, w, 3, check_stem_stride(stem_stride, 2)),
                nn.BatchNorm2d(w),
                nn.ReLU(),
                conv(w, w, 3),
                nn.BatchNorm2d(w),
                nn.ReLU(),
                conv(w, 2 * w, 3),
            ]
        )
        self.bn1, self.relu = nn.BatchNorm2d(2 * w), nn.ReLU()
        self.max_pool = nn.MaxPool2d(3, 2, pad_mode="pad", padding=1)
        channels, stages = 2 * w, []
        for i, depth in enumerate(depths):
            cells = []
            for j in range(depth):
                cells.append(Bottleneck(channels, 64 * 2**i, 2 if i > 0 and j == 0 else 1))
                channels = 256 * 2**i
            stages.append(nn.SequentialCell(cells))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.global_pool, self.classifier = GlobalPool(), nn.Dense(channels, num_classes)
        initialise(self)

    def construct(self, x: Tensor) -> Tensor:
        x = self.max_pool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.classifier(self.global_pool(x))


@register
def resnest(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ResNeSt:
    """ResNeSt of any ``depths``; without them a ResNeSt-50."""
    return ResNeSt(num_classes, in_channels, **kwargs)


@register
def resnest50d(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ResNeSt:
    """ResNeSt-50, 27.5 M parameters."""
    return ResNeSt(num_classes, in_channels, **kwargs)
