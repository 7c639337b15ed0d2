"""A dense head on EfficientNet-Lite0: which cells of a picture are generated, and whether any is.

Made for partly generated pictures. What tells a generated region from its surroundings are traces of a few pixels, so
three things are kept that a classifier loses: features of strides 4 and 8 beside those of stride 16; a branch that sees
only high frequencies, through fixed second differences as in steganalysis (Fridrich and Kodovsky 2012; Bayar and Stamm
2016); and the energy of those frequencies in each cell. Each cell is judged beside the mean over the picture, because
what counts is the difference (as in ManTra-Net, Wu et al. 2019).

The image's score is a log-sum-exp over the cells with a learned sharpness, between their mean and their maximum
(Pinheiro and Collobert 2015), so that a small region can move it.
"""

from typing import Any, List, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ..errors import UserError
from . import register
from .efficientnet import trunk
from .layers import conv, initialise

GRID = 16  # pixels of a cell's side
STAGES = 5  # of the backbone: down to stride 16
BACKBONE = "efficientnet_lite0"  # whose weights a training may start from
# Sharpness 2, scale 1, offset 2: a picture without a generated cell, all at -3, then starts near even odds.
START = (0.6931472, 1.0, 2.0)
ENERGY_FLOOR = 0.01  # of a cell's mean residue, in twentieths of a grey level; plain areas have nearly 0


def high_pass() -> np.ndarray:
    """The fixed kernels: float32 (9, 1, 5, 5), three second differences per colour, scaled for input in [-1, 1]."""
    kernels = np.zeros((3, 5, 5), np.float32)
    kernels[0, 1:4, 1:4] = np.array([[-1, 2, -1], [2, -4, 2], [-1, 2, -1]]) * 8
    kernels[1, 2, 1:4] = kernels[2, 1:4, 2] = (16, -32, 16)
    return np.tile(kernels, (3, 1, 1))[:, None]


class Residue(nn.Cell):
    """High frequencies: (N, 3, H, W) -> features (N, 64, H/16, W/16) and log energies (N, 9, H/16, W/16)."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.high_pass = conv(3, 9, 5, group=3)
        cells: List[nn.Cell] = []
        for cin, cout in ((9, 24), (24, 32), (32, 48), (48, 64)):
            cells += _unit(cin, cout, norm, 3, 2)
        self.layers = nn.SequentialCell(cells)
        self.limit, self.pool = nn.ReLU6(), nn.AvgPool2d(GRID, GRID)

    def construct(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        # Clipped at three, some twelve grey levels: edges say nothing, noise does.
        r = self.limit(self.high_pass(x) + 3.0) - 3.0
        return self.layers(r), ops.log(self.pool(ops.abs(r)) + ENERGY_FLOOR)


class Pooling(nn.Cell):
    """Log-sum-exp over the cells, scaled: logits (N, 1, h, w) -> score (N, 1).

    ``pooling`` holds the logarithm of the sharpness t, the scale a and the offset b of
    ``a * log(mean(exp(t * logits))) / t + b``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pooling = Parameter(Tensor(np.array(START, np.float32)), name="pooling")
        self.top = ops.ReduceMax(keep_dims=True)

    def construct(self, cells: Tensor) -> Tensor:
        sharpness = ops.exp(self.pooling[0:1])
        scaled = cells * sharpness
        top = ops.stop_gradient(self.top(scaled, (2, 3)))
        mean = ops.exp(scaled - top).mean((2, 3), keep_dims=True)
        value = (ops.log(mean) + top).mean((2, 3)) / sharpness
        return value * self.pooling[1:2] + self.pooling[2:3]


class PartialLite0(nn.Cell):
    """EfficientNet-Lite0 down to stride 16 with a dense head.

    Parameters
    ----------
    padding : {"same", "symmetric"}
    bn_eps, bn_momentum : float
    drop_path_rate : float

    Notes
    -----
    Input (N, 3, H, W) float32 in [-1, 1] at native resolution, H and W multiples of 32. Output: logits (N, 2), real
    first, and the map (N, H/16, W/16), whose sigmoid is the generated share of a cell.
    """

    grid = GRID

    def __init__(self, padding: str, bn_eps: float, bn_momentum: float, drop_path_rate: float) -> None:
        super().__init__()

        def norm(channels):
            return nn.BatchNorm2d(channels, eps=bn_eps, momentum=bn_momentum)

        cells, width = trunk("lite0", 3, padding, bn_eps, bn_momentum, drop_path_rate, stages=STAGES)
        self.features = nn.SequentialCell(cells)
        self.residue = Residue(norm)
        self.fine = nn.SequentialCell(_unit(24, 32, norm))
        self.middle = nn.SequentialCell(_unit(40, 48, norm))
        self.coarse = nn.SequentialCell(_unit(width, 64, norm))
        self.by_four, self.by_two = nn.AvgPool2d(4, 4), nn.AvgPool2d(2, 2)
        joined = 32 + 48 + 64 + 64 + 9
        self.local = conv(joined, 96, 1, bias=True)
        self.whole = conv(joined, 96, 1)
        self.join = nn.SequentialCell([norm(96), nn.ReLU6(), *_unit(96, 96, norm, 3), *_unit(96, 96, norm, 3)])
        self.cell = conv(96, 1, 1, bias=True)
        self.pool = Pooling()
        initialise(self)
        self.residue.high_pass.weight.set_data(Tensor(high_pass(), ms.float32))
        self.residue.high_pass.weight.requires_grad = False

    def construct(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        y = x
        for i in range(5):
            y = self.features[i](y)
        fine = self.by_four(self.fine(y))
        y = self.features[5](y)
        middle = self.by_two(self.middle(y))
        coarse = self.coarse(self.features[7](self.features[6](y)))
        traces, energy = self.residue(x)
        y = ops.concat((fine, middle, coarse, traces, energy), 1)
        y = self.local(y) + self.whole(y.mean((2, 3), keep_dims=True))
        cells = self.cell(self.join(y))
        score = self.pool(cells)
        # The mean drops the axis of length 1; `squeeze` would fail in a MindIR of free batch size. Nothing else reads
        # this tensor: MindSpore's ONNX exporter renames an output, but not where it is read.
        return ops.concat((score * -0.5, score * 0.5), 1), cells.mean(1)


def _unit(cin, cout, norm, kernel=1, stride=1):
    return [conv(cin, cout, kernel, stride, padding="same"), norm(cout), nn.ReLU6()]


@register
def partial_lite0(num_classes: int = 2, in_channels: int = 3, **kwargs: Any) -> PartialLite0:
    """Dense head on EfficientNet-Lite0, 0.97 M parameters: logits (N, 2) and the map (N, H/16, W/16)."""
    if (num_classes, in_channels) != (2, 3):
        raise UserError(
            f"partial_lite0 tells generated from real in RGB: num_classes (={num_classes}) must be 2, in_channels "
            f"(={in_channels}) 3"
        )
    return PartialLite0(**{"padding": "same", "bn_eps": 1e-3, "bn_momentum": 0.9, "drop_path_rate": 0.0, **kwargs})


partial_lite0.backbone = BACKBONE  # type: ignore[attr-defined] # read by aidet.models.backbone
