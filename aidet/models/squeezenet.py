"""SqueezeNet 1.0 and 1.1 (arXiv:1602.07360) with MindCV's (and torchvision's) parameter names.

torchvision's max-pools keep a partial window at the right and bottom (``ceil_mode``); MindCV's drop it.
"""

from typing import Any, Dict, Tuple

from mindspore import Tensor, nn, ops

from . import register
from .layers import GlobalPool, dropout, initialise

# squeeze width and width of each expansion; "pool" is a 3x3 max-pool of stride 2
FIRES: Dict[str, Tuple[Any, ...]] = {
    "1_0": (
        "pool",
        (16, 64),
        (16, 64),
        (32, 128),
        "pool",
        (32, 128),
        (48, 192),
        (48, 192),
        (64, 256),
        "pool",
        (64, 256),
    ),
    "1_1": (
        "pool",
        (16, 64),
        (16, 64),
        "pool",
        (32, 128),
        (32, 128),
        "pool",
        (48, 192),
        (48, 192),
        (64, 256),
        (64, 256),
    ),
}


class Fire(nn.Cell):
    """1x1 squeeze, then 1x1 and 3x3 expansions side by side."""

    def __init__(self, cin: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeeze, 1, has_bias=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1, has_bias=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, pad_mode="pad", padding=1, has_bias=True)
        self.relu = nn.ReLU()

    def construct(self, x: Tensor) -> Tensor:
        x = self.relu(self.squeeze(x))
        return ops.concat((self.relu(self.expand1x1(x)), self.relu(self.expand3x3(x))), axis=1)


class CeilPool(nn.Cell):
    """3x3 max-pool of stride 2 that keeps a partial window.

    Padding by one row and column and pooling whole windows only gives the same result for odd and even sizes. The
    padding may be zero because the pool always follows a ReLU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.Pad(((0, 0), (0, 0), (0, 1), (0, 1)))
        self.pool = nn.MaxPool2d(3, 2)

    def construct(self, x: Tensor) -> Tensor:
        return self.pool(self.pad(x))


class SqueezeNet(nn.Cell):
    """SqueezeNet: (N, in_channels, H, W) -> (N, num_classes) raw outputs, none below 0: the last layer is a ReLU.

    Parameters
    ----------
    version : {"1_0", "1_1"}
    num_classes, in_channels : int
    drop_rate : float
    ceil_mode : bool
        torchvision's pooling (True) or MindCV's (False).
    """

    def __init__(
        self,
        version: str,
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_rate: float = 0.5,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        if version == "1_0":
            stem, channels = nn.Conv2d(in_channels, 96, 7, 2, pad_mode="valid", has_bias=True), 96
        else:
            # MindCV pads this convolution by a pixel, torchvision does not.
            pad = {"pad_mode": "valid"} if ceil_mode else {"pad_mode": "pad", "padding": 1}
            stem, channels = nn.Conv2d(in_channels, 64, 3, 2, has_bias=True, **pad), 64
        cells = [stem, nn.ReLU()]
        for fire in FIRES[version]:
            if fire == "pool":
                cells.append(CeilPool() if ceil_mode else nn.MaxPool2d(3, 2))
            else:
                cells.append(Fire(channels, *fire))
                channels = 2 * fire[1]
        self.features = nn.SequentialCell(cells)
        self.classifier = nn.SequentialCell(
            [dropout(drop_rate), nn.Conv2d(512, num_classes, 1, has_bias=True), nn.ReLU(), GlobalPool()]
        )
        initialise(self)

    def construct(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


@register
def squeezenet1_0(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> SqueezeNet:
    """SqueezeNet 1.0, 1.25 M parameters."""
    return SqueezeNet("1_0", num_classes, in_channels, **kwargs)


@register
def squeezenet1_1(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> SqueezeNet:
    """SqueezeNet 1.1, 1.24 M parameters."""
    return SqueezeNet("1_1", num_classes, in_channels, **kwargs)
