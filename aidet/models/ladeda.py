"""LaDeDa and Tiny-LaDeDa (arXiv:2406.09398): scores of small patches, averaged over the image.

No convolution is padded, and most are 1x1, so that each place of the last layer has seen 9x9 pixels only. Rebuilt from
the paper and from the authors' public code (barcavia/RealTime-DeepfakeDetection-in-the-RealWorld). With one output they
have 13.6 million and 1,297 parameters.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ..errors import UserError, nearest
from . import register
from .layers import GlobalPool, initialise
from .npr import Neighbours

GRADIENTS = {
    "x": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "y": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "left_diagonal": ((0, 1, 2), (-1, 0, 1), (-2, -1, 0)),
    "right_diagonal": ((-2, -1, 0), (-1, 0, 1), (0, 1, 2)),
}
FILTERS = ("none", "neighbours", *GRADIENTS)


class Gradient(nn.Cell):
    """A 3x3 gradient of every channel, the image padded with zeros: (N, 3, H, W) to the same shape."""

    def __init__(self, name: str) -> None:
        super().__init__()
        kernel = np.array(GRADIENTS[name], np.float32)
        self.kernel = ms.Tensor(np.broadcast_to(kernel, (3, 1, 3, 3)).copy())
        # All of them tuples, which the exporter needs.
        self.conv = ops.Conv2D(3, (3, 3), pad_mode="pad", pad=(1, 1, 1, 1), stride=(1, 1), dilation=(1, 1), group=3)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x, self.kernel)


def input_filter(name: str) -> nn.Cell:
    """The cell that the network looks through; :class:`UserError` if the name is not one of :data:`FILTERS`."""
    if name not in FILTERS:
        raise UserError(nearest(name, FILTERS, "input_filter"))
    return nn.Identity() if name == "none" else Neighbours() if name == "neighbours" else Gradient(name)


def _bare(cin, cout, kernel=1, stride=1):
    return nn.Conv2d(cin, cout, kernel, stride, pad_mode="valid", has_bias=False)


class Patch(nn.Cell):
    """A bottleneck without padding; its shortcut loses the pixels at the right and bottom that the 3x3 kernel does."""

    def __init__(self, cin: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _bare(cin, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _bare(width, width, kernel, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _bare(width, 4 * width), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.down_sample = (
            nn.Identity()
            if stride == 1 and cin == 4 * width
            else nn.SequentialCell([_bare(cin, 4 * width, 1, stride), nn.BatchNorm2d(4 * width)])
        )

    def construct(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        h, w = y.shape[2:]
        return self.relu(y + self.down_sample(x)[:, :, :h, :w])


class LaDeDa(nn.Cell):
    """LaDeDa9: (N, 3, H, W) -> (N, num_classes) raw logits.

    Parameters
    ----------
    num_classes, in_channels : int
    input_filter : str
        One of :data:`FILTERS`; the published weights were trained with ``neighbours``, NPR's.
    """

    def __init__(self, num_classes: int = 1, in_channels: int = 3, input_filter: str = "neighbours") -> None:
        super().__init__()
        self.filter = _filter(input_filter)
        self.conv1, self.conv2 = _bare(in_channels, 64), _bare(64, 64, 3)
        self.bn1, self.relu = nn.BatchNorm2d(64), nn.ReLU()
        channels, stages = 64, []
        for i, (depth, stride, kernel) in enumerate(((3, 2, 3), (4, 2, 3), (6, 2, 1), (3, 1, 1))):
            cells = []
            for j in range(depth):
                cells.append(Patch(channels, 64 * 2**i, kernel if j == 0 else 1, stride if j == 0 else 1))
                channels = 256 * 2**i
            stages.append(nn.SequentialCell(cells))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.pool, self.fc = GlobalPool(), nn.Dense(channels, num_classes)
        initialise(self)

    def construct(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(self.filter(x) * 2.0 / 3.0))
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.relu(self.bn1(x))))))
        return self.fc(self.pool(x))


class TinyBlock(nn.Cell):
    """A 1x1 and a 3x3 convolution (stride 2), each with BatchNorm and ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _bare(width, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _bare(width, width, 3, 2), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def construct(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


class TinyLaDeDa(nn.Cell):
    """Tiny-LaDeDa: (N, 3, H, W) -> (N, num_classes) raw logits.

    Parameters
    ----------
    num_classes, in_channels : int
    input_filter : str
        One of :data:`FILTERS`; the authors' training script uses ``right_diagonal``.
    """

    def __init__(self, num_classes: int = 1, in_channels: int = 3, input_filter: str = "right_diagonal") -> None:
        super().__init__()
        self.filter = _filter(input_filter)
        self.conv1, self.conv2 = _bare(in_channels, 8), _bare(8, 8, 3)
        self.bn1, self.relu = nn.BatchNorm2d(8), nn.ReLU()
        self.layer1 = nn.SequentialCell([TinyBlock(8)])
        self.pool, self.fc = GlobalPool(), nn.Dense(8, num_classes)
        initialise(self)

    def construct(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv2(self.conv1(self.filter(x)))))
        return self.fc(self.pool(self.layer1(x)))


_filter = input_filter


@register
def ladeda9(num_classes: int = 1, in_channels: int = 3, **kwargs: Any) -> LaDeDa:
    """LaDeDa with patches of 9 pixels, 13.6 M parameters."""
    return LaDeDa(num_classes, in_channels, **kwargs)


@register
def tiny_ladeda(num_classes: int = 1, in_channels: int = 3, **kwargs: Any) -> TinyLaDeDa:
    """Tiny-LaDeDa, 1,297 parameters."""
    return TinyLaDeDa(num_classes, in_channels, **kwargs)
