"""The architecture of the fast tests: two convolutions and a linear layer, any input size from 4 pixels up."""

from mindspore import Tensor, nn

from . import register
from .layers import DropPath, GlobalPool, dropout, initialise


class Testing(nn.Cell):
    """Conv(3 -> 8, stride 2), BatchNorm, ReLU, Conv(8 -> 16, stride 2), ReLU, global mean, Dense.

    Parameters
    ----------
    num_classes, in_channels : int
    drop_rate, drop_path_rate : float
        Dropout before the last layer, and probability of dropping the second convolution for a whole image.

    Notes
    -----
    Input float32 (N, in_channels, h, w), output (N, num_classes) raw logits. With two classes and three channels it
    has 1,442 trainable parameters and 16 running statistics, 1,458 values in its checkpoint.
    """

    def __init__(
        self, num_classes: int = 2, in_channels: int = 3, drop_rate: float = 0.0, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, 2, pad_mode="pad", padding=1, has_bias=True)
        self.norm = nn.BatchNorm2d(8, eps=1e-5, momentum=0.9)
        self.conv2 = nn.Conv2d(8, 16, 3, 2, pad_mode="pad", padding=1, has_bias=True)
        self.relu = nn.ReLU()
        self.path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()
        self.drop = dropout(drop_rate) if drop_rate else nn.Identity()
        self.pool = GlobalPool()
        self.classifier = nn.Dense(16, num_classes)
        initialise(self, wide=True)  # learns in a few steps

    def construct(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv1(x)))
        x = self.relu(self.path(self.conv2(x)))
        return self.classifier(self.drop(self.pool(x)))


@register
def testing(num_classes: int = 2, in_channels: int = 3, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> Testing:
    """The tiny architecture of the fast tests, 1,442 trainable parameters with two classes."""
    return Testing(num_classes, in_channels, drop_rate, drop_path_rate)
