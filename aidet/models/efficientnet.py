"""EfficientNet (arXiv:1905.11946) B0-B7 and Lite0-Lite2, with MindCV's parameter names.

B0-B7 load strictly into ``mindcv.create_model("efficientnet_b*")`` and back. Settings that MindCV fixes but that differ
between published weights are arguments here: TensorFlow ports (timm ``tf_*``, lukemelas, Hugging Face) use
``padding="same"`` and ``bn_eps=1e-3``; torchvision and plain timm use ``padding="symmetric"``, and 1e-5 up to B4. The
Lite variants follow the TPU repository's ``lite`` settings: no squeeze-excite, ReLU6, stem and head not scaled.
"""

import math
from typing import Any, Callable, Dict, List, Tuple

from mindspore import Tensor, nn

from . import register
from .layers import (
    DropPath,
    GlobalPool,
    SqueezeExcite,
    Swish,
    check_stem_stride,
    conv,
    dropout,
    initialise,
    make_divisible,
)

# expand ratio, kernel, stride, output width, repeats
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
# width, depth, dropout, published input size
SIZES = {
    "b0": (1.0, 1.0, 0.2, 224),
    "b1": (1.0, 1.1, 0.2, 240),
    "b2": (1.1, 1.2, 0.3, 260),
    "b3": (1.2, 1.4, 0.3, 300),
    "b4": (1.4, 1.8, 0.4, 380),
    "b5": (1.6, 2.2, 0.4, 456),
    "b6": (1.8, 2.6, 0.5, 528),
    "b7": (2.0, 3.1, 0.5, 600),
    "lite0": (1.0, 1.0, 0.2, 224),
    "lite1": (1.0, 1.1, 0.2, 240),
    "lite2": (1.1, 1.2, 0.3, 260),
}


def depths(size: str) -> List[int]:
    """Blocks in each of the seven stages of ``size`` ("b0" ... "lite2")."""
    depth = SIZES[size][1]
    fixed = (0, 6) if size.startswith("lite") else ()
    return [n if i in fixed else int(math.ceil(n * depth)) for i, (_, _, _, _, n) in enumerate(STAGES)]


class Residual(nn.Cell):
    """Its ``block``, added to the input if the shapes allow it."""

    def __init__(self, block: nn.Cell, residual: bool, drop: float) -> None:
        super().__init__()
        self.block, self.residual, self.drop_path = block, residual, DropPath(drop)

    def construct(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return x + self.drop_path(y) if self.residual else y


class MBConv(Residual):
    """Inverted residual: expand, depthwise, squeeze-excite, project. ``lite`` uses ReLU6 and no gate."""

    def __init__(
        self,
        cin: int,
        cout: int,
        expand: int,
        kernel: int,
        stride: int,
        drop: float,
        lite: bool,
        padding: str,
        norm: Callable[[int], nn.Cell],
    ) -> None:
        act = nn.ReLU6 if lite else Swish
        mid = cin * expand
        cells = []
        if expand != 1:
            cells += [conv(cin, mid, 1), norm(mid), act()]
        cells += [conv(mid, mid, kernel, stride, group=mid, padding=padding), norm(mid), act()]
        # The lite variants keep a placeholder, so that one table of names serves both.
        cells += [nn.Identity() if lite else SqueezeExcite(mid, max(1, cin // 4), Swish)]
        cells += [conv(mid, cout, 1), norm(cout)]
        super().__init__(nn.SequentialCell(cells), stride == 1 and cin == cout, drop)


def trunk(
    size: str,
    in_channels: int,
    padding: str,
    bn_eps: float,
    bn_momentum: float,
    drop_path_rate: float,
    stem_stride: int = 2,
    stages: int = len(STAGES),
) -> Tuple[List[nn.Cell], int]:
    """Stem (three cells) and the first ``stages`` stages (one cell each); the parameters as :class:`EfficientNet`'s.

    Returns
    -------
    (list of mindspore.nn.Cell, int)
        The cells in their order, and the channels of the last one's output.
    """
    width, lite = SIZES[size][0], size.startswith("lite")

    def norm(channels):
        return nn.BatchNorm2d(channels, eps=bn_eps, momentum=bn_momentum)

    def scaled(channels):
        return make_divisible(channels * width)

    channels = 32 if lite else scaled(32)
    stem = conv(in_channels, channels, 3, check_stem_stride(stem_stride, 2), padding=padding)
    cells = [stem, norm(channels), nn.ReLU6() if lite else Swish()]
    total, done = sum(depths(size)), 0
    for (expand, kernel, stride, cout, _), repeats in list(zip(STAGES, depths(size)))[:stages]:
        stage = []
        for i in range(repeats):
            drop, step = drop_path_rate * done / total, stride if i == 0 else 1
            stage.append(MBConv(channels, scaled(cout), expand, kernel, step, drop, lite, padding, norm))
            channels, done = scaled(cout), done + 1
        cells.append(nn.SequentialCell(stage))
    return cells, channels


class EfficientNet(nn.Cell):
    """EfficientNet of one of the published sizes.

    Parameters
    ----------
    size : str
        Key of :data:`SIZES`.
    num_classes, in_channels : int
    padding : {"same", "symmetric"}
    bn_eps, bn_momentum : float
        MindSpore's momentum is the weight of the old statistics (1 - PyTorch's).
    drop_rate, drop_path_rate : float
    head : {"plain", "stacked"}
        ``stacked`` keeps a 1000-way layer and adds Dropout(0.5) and Dense(1000, num_classes) after it, without a ReLU,
        as the fake_or_real detector does.
    stem_stride : int
        Of the first convolution; 1 instead of 2 keeps fine detail.

    Notes
    -----
    Input (N, in_channels, H, W) float32, normalised; output (N, num_classes) raw logits.
    """

    def __init__(
        self,
        size: str,
        num_classes: int = 1000,
        in_channels: int = 3,
        padding: str = "same",
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.9,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        head: str = "plain",
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        lite = size.startswith("lite")
        act = nn.ReLU6 if lite else Swish
        cells, channels = trunk(size, in_channels, padding, bn_eps, bn_momentum, drop_path_rate, stem_stride)
        last = 1280 if lite else 4 * channels
        cells += [conv(channels, last, 1), nn.BatchNorm2d(last, eps=bn_eps, momentum=bn_momentum), act()]
        self.features = nn.SequentialCell(cells)
        self.pool = GlobalPool()
        self.dropout = dropout(drop_rate)
        self.mlp_head = nn.Dense(last, 1000 if head == "stacked" else num_classes)
        self.stacked = head == "stacked"
        if self.stacked:
            self.head_dropout = dropout(0.5)
            self.classifier = nn.Dense(1000, num_classes)
        initialise(self)

    def construct(self, x: Tensor) -> Tensor:
        x = self.mlp_head(self.dropout(self.pool(self.features(x))))
        return self.classifier(self.head_dropout(x)) if self.stacked else x


def _build(size: str, num_classes: int, in_channels: int, kwargs: Dict[str, Any]) -> EfficientNet:
    wide = SIZES[size][0] >= 1.6
    lite = size.startswith("lite")
    # MindCV's defaults for B0-B7, so that its checkpoints give the same results here; TensorFlow's for Lite.
    defaults = {
        "padding": "same",
        "bn_eps": 1e-3 if lite or wide else 1e-5,
        "bn_momentum": 0.99 if wide else 0.9,
        "drop_rate": SIZES[size][2],
        "drop_path_rate": 0.2,
    }
    return EfficientNet(size, num_classes, in_channels, **{**defaults, **kwargs})


@register
def efficientnet_lite0(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNet:
    """EfficientNet-Lite0, 4.65 M parameters, published input 224."""
    return _build("lite0", num_classes, in_channels, kwargs)


@register
def efficientnet_lite1(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNet:
    """EfficientNet-Lite1, 5.42 M parameters, published input 240."""
    return _build("lite1", num_classes, in_channels, kwargs)


@register
def efficientnet_lite2(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNet:
    """EfficientNet-Lite2, 6.09 M parameters, published input 260."""
    return _build("lite2", num_classes, in_channels, kwargs)


@register
def efficientnet_b0(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B0, 5.29 M parameters, published input 224."""
    return _build("b0", num_classes, in_channels, kwargs)


@register
def efficientnet_b1(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B1, 7.79 M parameters, published input 240."""
    return _build("b1", num_classes, in_channels, kwargs)


@register
def efficientnet_b2(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B2, 9.11 M parameters, published input 260."""
    return _build("b2", num_classes, in_channels, kwargs)


@register
def efficientnet_b3(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B3, 12.23 M parameters, published input 300."""
    return _build("b3", num_classes, in_channels, kwargs)


@register
def efficientnet_b4(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B4, 19.34 M parameters, published input 380."""
    return _build("b4", num_classes, in_channels, kwargs)


@register
def efficientnet_b5(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B5, 30.39 M parameters, published input 456."""
    return _build("b5", num_classes, in_channels, kwargs)


@register
def efficientnet_b6(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B6, 43.04 M parameters, published input 528."""
    return _build("b6", num_classes, in_channels, kwargs)


@register
def efficientnet_b7(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B7, 66.35 M parameters, published input 600."""
    return _build("b7", num_classes, in_channels, kwargs)
