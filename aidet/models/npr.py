"""NPR (arXiv:2312.10461): the first half of ResNet-50 on the differences of neighbouring pixels.

A generator ends with an upsampling, after which the pixels of every 2x2 block are related. The network looks at what is
left of an image after its nearest-neighbour reduction and enlargement by two. Rebuilt from the paper and from the
authors' public code (chuangchuangtan/NPR-DeepfakeDetection). 1,437,761 parameters with one output.
"""

from mindspore import Tensor, nn

from . import register
from .layers import GlobalPool, Upsample, conv, initialise
from .resnet import first_stages


class Neighbours(nn.Cell):
    """The image minus the upper left pixel of each 2x2 block: (N, C, H, W) to the same shape, H and W even."""

    def __init__(self) -> None:
        super().__init__()
        self.double = Upsample()

    def construct(self, x: Tensor) -> Tensor:
        return x - self.double(x[:, :, ::2, ::2])


class HalfResNet(nn.Cell):
    """ResNet-50 up to its second stage, with a 3x3 stem: (N, 3, H, W) -> (N, num_classes) raw logits.

    Parameters
    ----------
    num_classes, in_channels : int
    """

    def __init__(self, num_classes: int = 1, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, 64, 3, 2)
        self.bn1, self.relu = nn.BatchNorm2d(64), nn.ReLU()
        self.max_pool = nn.MaxPool2d(3, 2, pad_mode="pad", padding=1)
        self.layer1, self.layer2 = first_stages()
        self.pool = GlobalPool()
        self.fc1 = nn.Dense(512, num_classes)
        initialise(self)

    def construct(self, x: Tensor) -> Tensor:
        x = self.max_pool(self.relu(self.bn1(self.conv1(x))))
        return self.fc1(self.pool(self.layer2(self.layer1(x))))


class NPR(HalfResNet):
    """The detector: (N, 3, H, W) -> (N, num_classes) raw logits, H and W even.

    The input is normalised with ImageNet's statistics; the factor 2/3 is the authors'.
    """

    def __init__(self, num_classes: int = 1, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.neighbours = Neighbours()

    def construct(self, x: Tensor) -> Tensor:
        return super().construct(self.neighbours(x) * 2.0 / 3.0)


@register
def npr_resnet50(num_classes: int = 1, in_channels: int = 3) -> NPR:
    """NPR, 1.4 M parameters."""
    return NPR(num_classes, in_channels)
