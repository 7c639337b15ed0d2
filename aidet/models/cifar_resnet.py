"""ResNets for 32x32 images (arXiv:1512.03385, section 4.2) with parameter-free shortcuts ("option A").

The shapes are those of akamaster/pytorch_resnet_cifar10, whose trained weights can be converted: at the start of a
stage the shortcut takes every second pixel and pads the new channels with zeros on both sides.
"""

from mindspore import Tensor, nn

from . import register
from .layers import GlobalPool, conv, initialise

DEPTHS = (20, 32, 44, 56, 110)


class Shortcut(nn.Cell):
    """Every second pixel; channels padded with zeros, a quarter of the new width before and after them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # A 1x1 max-pool of stride 2 is the same as [::2, ::2], and every exporter supports it.
        self.subsample = nn.MaxPool2d(1, 2)
        self.pad = nn.Pad(((0, 0), (width // 4, width // 4), (0, 0), (0, 0)))

    def construct(self, x: Tensor) -> Tensor:
        return self.pad(self.subsample(x))


class Block(nn.Cell):
    """Two 3x3 convolutions around an option-A shortcut."""

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(cin, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut = nn.Identity() if stride == 1 and cin == width else Shortcut(width)

    def construct(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class CifarResNet(nn.Cell):
    """ResNet of depth 6n + 2 for small images: (N, in_channels, 32, 32) -> (N, num_classes)."""

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(in_channels, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
        channels, stages = 16, []
        for i, width in enumerate((16, 32, 64)):
            cells = []
            for j in range((depth - 2) // 6):
                cells.append(Block(channels, width, 2 if i > 0 and j == 0 else 1))
                channels = width
            stages.append(nn.SequentialCell(cells))
        self.layer1, self.layer2, self.layer3 = stages
        self.pool = GlobalPool()
        self.classifier = nn.Dense(64, num_classes)
        initialise(self)

    def construct(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))
        return self.classifier(self.pool(x))


@register
def cifar_resnet20(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """CIFAR ResNet-20, 0.27 M parameters, input 32x32."""
    return CifarResNet(20, num_classes, in_channels)


@register
def cifar_resnet32(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """CIFAR ResNet-32, 0.46 M parameters, input 32x32."""
    return CifarResNet(32, num_classes, in_channels)


@register
def cifar_resnet44(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """CIFAR ResNet-44, 0.66 M parameters, input 32x32."""
    return CifarResNet(44, num_classes, in_channels)


@register
def cifar_resnet56(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """CIFAR ResNet-56, 0.85 M parameters, input 32x32."""
    return CifarResNet(56, num_classes, in_channels)


@register
def cifar_resnet110(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """CIFAR ResNet-110, 1.7 M parameters, input 32x32."""
    return CifarResNet(110, num_classes, in_channels)
