"""CIFAKE_CNN of jshrdt/aics-project: a small net for 32x32 images, with or without style recalibration.

Style-based recalibration (SRM, arXiv:1903.10829) weights every channel by its mean and standard deviation.
The single output is a sigmoid logit of the class *real*, as in the original; the sidecar's class order says so.
"""

import functools
import math
from typing import Callable, Dict

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import HeUniform, initializer

from ..errors import UserError
from . import register
from .layers import initialise, initialise_uniform

STARTS: Dict[str, Callable[[nn.Cell], nn.Cell]] = {
    "torch": initialise_uniform, "he": functools.partial(initialise, wide=True),
}  # fmt: skip


class ChannelwiseFC(nn.Cell):
    """(N, C, 2) statistics to (N, C): two weights per channel (a depthwise Conv1d of kernel 2 without bias)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = Parameter(initializer(HeUniform(math.sqrt(5)), (channels, 1, 2), ms.float32))

    def construct(self, mean: Tensor, std: Tensor) -> Tensor:
        return mean * self.weight[:, 0, 0] + std * self.weight[:, 0, 1]


class StyleRecalibration(nn.Cell):
    """(N, C, H, W), each channel scaled by sigmoid(BatchNorm(w1 * mean + w2 * std)); std is the unbiased one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cfc = ChannelwiseFC(channels)
        self.bn = nn.BatchNorm1d(channels)

    def construct(self, x: Tensor) -> Tensor:
        flat = ops.reshape(x, (-1, x.shape[1], x.shape[2] * x.shape[3]))
        mean = flat.mean(2)
        centred = flat - ops.expand_dims(mean, 2)
        variance = (centred * centred).sum(2) / (flat.shape[2] - 1)
        # The square root has no gradient at exactly zero; 1e-20 adds 1e-10 to the deviation of a flat channel.
        std = ops.sqrt(variance + 1e-20)
        gate = ops.sigmoid(self.bn(self.cfc(mean, std)))
        return x * ops.expand_dims(ops.expand_dims(gate, 2), 3)


class CifakeCNN(nn.Cell):
    """Two 5x5 convolutions and three dense layers: (N, 3, 32, 32) -> (N, num_classes) raw logits.

    Parameters
    ----------
    num_classes, in_channels : int
    attention : bool
        Style recalibration after the first pooling.
    start : {"torch", "he"}
        Initial weights: PyTorch's, as in the original, or He-normal convolutions and wider dense layers, which learn
        faster (``LOG.md``).

    Raises
    ------
    UserError
        Unknown ``start``.
    """

    def __init__(
        self, num_classes: int = 1, in_channels: int = 3, attention: bool = False, start: str = "torch"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5, pad_mode="valid", has_bias=True)
        self.attend = StyleRecalibration(6) if attention else nn.Identity()
        self.conv2 = nn.Conv2d(6, 16, 5, pad_mode="valid", has_bias=True)
        self.fc1, self.fc2, self.fc3 = nn.Dense(400, 120), nn.Dense(120, 84), nn.Dense(84, num_classes)
        self.relu, self.pool, self.flatten = nn.ReLU(), nn.MaxPool2d(2, 2), nn.Flatten()
        if start not in STARTS:
            raise UserError(f"start: {start!r}: one of {', '.join(STARTS)}")
        STARTS[start](self)

    def construct(self, x: Tensor) -> Tensor:
        x = self.attend(self.pool(self.relu(self.conv1(x))))
        x = self.flatten(self.pool(self.relu(self.conv2(x))))
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


@register
def cifake_cnn(num_classes: int = 1, in_channels: int = 3, start: str = "torch") -> CifakeCNN:
    """CIFAKE_CNN without attention, 61,241 parameters, input 32x32."""
    return CifakeCNN(num_classes, in_channels, start=start)


@register
def cifake_cnn_srm(num_classes: int = 1, in_channels: int = 3, start: str = "torch") -> CifakeCNN:
    """CIFAKE_CNN with style recalibration, 61,265 parameters, input 32x32."""
    return CifakeCNN(num_classes, in_channels, attention=True, start=start)
