"""ResNet (arXiv:1512.03385) 18 to 152, with MindCV's parameter names, and without its in-place additions.

The stride is in the 3x3 convolution of the bottleneck, as in torchvision ("ResNet v1.5"). MindCV's max-pool pads at the
right and bottom only; PyTorch's pads on both sides. ``padding`` says which of the two the weights were trained with.

``resnet50_nodown`` is GRIP-UNINA's ResNet-50 without downsampling in the first layers (arXiv:2104.02617 and
arXiv:2211.00680; grip-unina/GANimageDetection and DMimageDetection): the first convolution and the 3x3 max-pool have
stride 1. Names and shapes of its weights are those of ``resnet50``.
"""

from typing import Any, List, Sequence, Tuple, Union

from mindspore import Tensor, nn

from ..errors import UserError
from . import register
from .layers import GlobalPool, check_stem_stride, conv, dropout, initialise

# block, blocks in each stage
SIZES = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}


class Basic(nn.Cell):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(cin, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.down_sample = _shortcut(cin, width, stride)

    def construct(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.down_sample(x))


class Bottleneck(nn.Cell):
    """1x1, 3x3 (with the stride), 1x1 to four times the width."""

    expansion = 4

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(cin, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.down_sample = _shortcut(cin, 4 * width, stride)

    def construct(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.down_sample(x))


def _shortcut(cin: int, cout: int, stride: int) -> nn.Cell:
    if stride == 1 and cin == cout:
        return nn.Identity()
    return nn.SequentialCell([conv(cin, cout, 1, stride), nn.BatchNorm2d(cout)])


def first_stages() -> Tuple[nn.SequentialCell, nn.SequentialCell]:
    """The first two stages of ResNet-50: (N, 64, H, W) -> (N, 256, H, W) -> (N, 512, H / 2, W / 2)."""
    first = nn.SequentialCell([Bottleneck(64 if j == 0 else 256, 64, 1) for j in range(3)])
    return first, nn.SequentialCell([Bottleneck(256 if j == 0 else 512, 128, 2 if j == 0 else 1) for j in range(4)])


def hidden_layers(spec: Sequence[Union[int, str]], width: int) -> Tuple[nn.SequentialCell, int]:
    """The layers of a head before its last dense layer, and their output width.

    Parameters
    ----------
    spec : sequence of int or str
        A number is a dense layer of that width; "norm" is a BatchNorm, "relu" a ReLU, "dropout" a Dropout of 0.5.
    width : int
        Of the input.

    Raises
    ------
    UserError
        An entry is none of these.
    """
    cells: List[nn.Cell] = []
    for item in spec:
        if isinstance(item, int) and not isinstance(item, bool) and item > 0:
            cells.append(nn.Dense(width, item))
            width = item
        elif item == "norm":
            cells.append(nn.BatchNorm1d(width))
        elif item in ("relu", "dropout"):
            cells.append(nn.ReLU() if item == "relu" else dropout(0.5))
        else:
            raise UserError(f"head: {item!r}: a width, 'norm', 'relu' or 'dropout'")
    return nn.SequentialCell(cells), width


class ResNet(nn.Cell):
    """ResNet for images.

    Parameters
    ----------
    name : str
        Key of :data:`SIZES`.
    num_classes, in_channels : int
    padding : {"same", "symmetric"}
        Of the max-pool: MindCV's or PyTorch's.
    stem_stride : int
        Of the first convolution; 1 instead of 2 keeps fine detail.
    pool_stride : {2, 1}
        Of the max-pool.
    head : sequence of int or str
        Layers between the mean over the image and the classifier: see :func:`hidden_layers`.

    Notes
    -----
    Input (N, in_channels, H, W) float32; output (N, num_classes) raw logits.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        in_channels: int = 3,
        padding: str = "same",
        stem_stride: int = 2,
        pool_stride: int = 2,
        head: Sequence[Union[int, str]] = (),
    ) -> None:
        super().__init__()
        if isinstance(pool_stride, bool) or pool_stride not in (1, 2):
            raise UserError(f"pool_stride (={pool_stride!r}) must be 1 or 2")
        kind, depths = SIZES[name]
        block = Basic if kind == "basic" else Bottleneck
        self.conv1 = conv(in_channels, 64, 7, check_stem_stride(stem_stride, 2))
        self.bn1, self.relu = nn.BatchNorm2d(64), nn.ReLU()
        pool = {"pad_mode": "same"} if padding == "same" else {"pad_mode": "pad", "padding": 1}
        self.max_pool = nn.MaxPool2d(3, pool_stride, **pool)
        channels = 64
        stages = []
        for i, depth in enumerate(depths):
            width = 64 * 2**i
            cells = []
            for j in range(depth):
                cells.append(block(channels, width, 2 if i > 0 and j == 0 else 1))
                channels = width * block.expansion
            stages.append(nn.SequentialCell(cells))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.pool = GlobalPool()
        self.hidden = bool(head)
        if self.hidden:
            self.head, channels = hidden_layers(head, channels)
        self.classifier = nn.Dense(channels, num_classes)
        initialise(self)

    def construct(self, x: Tensor) -> Tensor:
        x = self.max_pool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.pool(x)
        return self.classifier(self.head(x) if self.hidden else x)


@register
def resnet18(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ResNet:
    """ResNet-18, 11.7 M parameters."""
    return ResNet("resnet18", num_classes, in_channels, **kwargs)


@register
def resnet34(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ResNet:
    """ResNet-34, 21.8 M parameters."""
    return ResNet("resnet34", num_classes, in_channels, **kwargs)


@register
def resnet50(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ResNet:
    """ResNet-50, 25.6 M parameters."""
    return ResNet("resnet50", num_classes, in_channels, **kwargs)


@register
def resnet50_nodown(num_classes: int = 1, in_channels: int = 3, **kwargs: Any) -> ResNet:
    """ResNet-50 with stride 1 in the first convolution and the max-pool, 23.5 M parameters, any input size."""
    arguments = {"padding": "symmetric", "stem_stride": 1, "pool_stride": 1, **kwargs}
    return ResNet("resnet50", num_classes, in_channels, **arguments)


@register
def resnet101(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ResNet:
    """ResNet-101, 44.5 M parameters."""
    return ResNet("resnet101", num_classes, in_channels, **kwargs)


@register
def resnet152(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ResNet:
    """ResNet-152, 60.2 M parameters."""
    return ResNet("resnet152", num_classes, in_channels, **kwargs)
