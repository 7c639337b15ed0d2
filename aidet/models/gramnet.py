"""Gram-Net (arXiv:2002.00133): ResNet-18 that also looks at the Gram matrices of six of its layers.

A Gram matrix has the correlations of a layer's channels over the image: its texture, wherever it is. Rebuilt from the
paper and from the public code of AIGCDetectBenchmark (Ekko-zn), which has the authors' network.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from . import register
from .layers import GlobalPool, conv, initialise
from .resnet import SIZES, Basic

# Channels of the layers that the branches look at: the image, the stem before and after pooling, three stages.
BRANCHES = (3, 64, 64, 64, 128, 256)


def _step(cin, cout, stride):
    return nn.SequentialCell([conv(cin, cout, 3, stride), nn.BatchNorm2d(cout), nn.ReLU()])


class Branch(nn.Cell):
    """32 channels of a layer, their Gram matrix, and two convolutions on it: (N, C, H, W) -> (N, 32)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = _step(channels, 32, 1)
        self.fc1, self.fc2 = _step(1, 16, 2), _step(16, 32, 2)
        self.pool = GlobalPool()

    def construct(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        c, h, w = x.shape[1:]
        flat = ops.reshape(x, (-1, c, h * w))
        gram = ops.matmul(flat, ops.transpose(flat, (0, 2, 1))) / (c * h * w)
        return self.pool(self.fc2(self.fc1(ops.reshape(gram, (-1, 1, c, c)))))


class GramNet(nn.Cell):
    """The detector: (N, in_channels, H, W) -> (N, num_classes) raw logits.

    Parameters
    ----------
    num_classes, in_channels : int
    """

    def __init__(self, num_classes: int = 1, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(in_channels, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU()
        self.max_pool = nn.MaxPool2d(3, 2, pad_mode="pad", padding=1)
        channels, stages = 64, []
        for i, depth in enumerate(SIZES["resnet18"][1]):
            width = 64 * 2**i
            cells = [Basic(channels if j == 0 else width, width, 2 if i > 0 and j == 0 else 1) for j in range(depth)]
            stages.append(nn.SequentialCell(cells))
            channels = width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.gram = nn.CellList([Branch(c if i else in_channels) for i, c in enumerate(BRANCHES)])
        self.scale = Parameter(ms.Tensor(np.ones(1, np.float32)), name="scale")
        self.pool = GlobalPool()
        self.fc1, self.fc2 = nn.Dense(channels + 32 * len(BRANCHES), 512), nn.Dense(512, num_classes)
        initialise(self)

    def construct(self, x: Tensor) -> Tensor:
        stem = self.relu(self.bn1(self.conv1(x)))
        pooled = self.max_pool(stem)
        first = self.layer1(pooled)
        second = self.layer2(first)
        third = self.layer3(second)
        seen = (x, stem, pooled, first, second, third)
        textures = tuple(self.gram[i](seen[i]) * self.scale for i in range(len(seen)))
        whole = ops.concat((self.pool(self.layer4(third)),) + textures, 1)
        return self.fc2(self.relu(self.fc1(whole)))


@register
def gramnet_resnet18(num_classes: int = 1, in_channels: int = 3) -> GramNet:
    """Gram-Net on ResNet-18, 11.7 M parameters."""
    return GramNet(num_classes, in_channels)
