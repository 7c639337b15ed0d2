"""Cells that several families share, written so that they export to ONNX and keep the batch dimension dynamic."""

import contextlib
import math
from typing import Callable, Iterator

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common import initializer as init

from ..errors import UserError


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a width to a multiple of ``divisor``, never more than 10% down (MobileNet's rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def dropout(p: float) -> nn.Cell:
    """``nn.Dropout`` given the probability of dropping."""
    return nn.Dropout(p=float(p))


def conv(
    cin: int, cout: int, kernel: int, stride: int = 1, group: int = 1, bias: bool = False, padding: str = "symmetric"
) -> nn.Cell:
    """A convolution with PyTorch's or TensorFlow's padding.

    Parameters
    ----------
    padding : {"symmetric", "same"}
        ``symmetric`` pads ``(kernel - 1) // 2`` on every side, as PyTorch models do. ``same`` pads so that the output
        has ``ceil(size / stride)`` pixels, with the odd pixel at the right and bottom, as TensorFlow ports do. They
        differ only if ``stride > 1``.
    """
    mode = {"pad_mode": "same"} if padding == "same" else {"pad_mode": "pad", "padding": (kernel - 1) // 2}
    return nn.Conv2d(cin, cout, kernel, stride, group=group, has_bias=bias, **mode)


def check_stem_stride(value: int, published: int) -> int:
    """Return a stride from 1 to the published one for the first convolution; :class:`UserError` if it is anything else.

    A smaller stride keeps the fine detail that betrays a generator: the filter-stride reduction of the VIP Cup 2022
    entry awsaf49/vip-cup-2022 (ICIP 2023). The weights keep their shapes, so those of the published stride load.
    """
    if isinstance(value, bool) or value not in range(1, published + 1):
        raise UserError(f"stem_stride (={value!r}) must be a whole number from 1 to {published}")
    return value


def bilinear(new: int, old: int) -> np.ndarray:
    """Matrix of bilinear resizing of an axis between pixel centres, without antialiasing: float64 (new, old)."""
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = centre.astype(int)
    rows = np.zeros((new, old))
    rows[np.arange(new), low] = 1 - (centre - low)
    rows[np.arange(new), np.minimum(low + 1, old - 1)] += centre - low
    return rows


class Sigmoid(nn.Cell):
    """``1 / (1 + exp(-x))``, as exact on a CPU as float32 allows.

    MindSpore's CPU kernels of ``exp`` and ``sigmoid`` have a one-sided relative error of up to 5e-6, which accumulates
    in a deep net; its ``expm1`` is accurate to 1.5e-7. It is three times as slow, so training keeps the kernel.
    Exporters do not support ``expm1``: see :func:`native_sigmoid`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.exact = ms.get_context("device_target") == "CPU"

    def construct(self, x: Tensor) -> Tensor:
        if self.training or not self.exact:
            return ops.sigmoid(x)
        # Clamped below the overflow of exp, beyond which the derivative would be NaN.
        return 1.0 / (2.0 + ops.expm1(ops.minimum(-x, 80.0)))


class Swish(Sigmoid):
    """``x * sigmoid(x)``."""

    def construct(self, x: Tensor) -> Tensor:
        return x * super().construct(x)


@contextlib.contextmanager
def native_sigmoid(net: nn.Cell) -> Iterator[None]:
    """Within the block every :class:`Sigmoid` of ``net`` uses the framework's operator, which exporters support."""
    cells = [(c, c.exact) for _, c in net.cells_and_names() if isinstance(c, Sigmoid)]
    try:
        for cell, _ in cells:
            cell.exact = False
        yield
    finally:
        for cell, exact in cells:
            cell.exact = exact


class GlobalPool(nn.Cell):
    """Mean over height and width: (N, C, H, W) -> (N, C)."""

    def construct(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class DropPath(nn.Cell):
    """Stochastic depth (arXiv:1603.09382): training drops a residual branch for whole samples."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.active = p > 0
        self.drop = dropout(p)

    def construct(self, x: Tensor) -> Tensor:
        if not (self.training and self.active):
            return x
        mask = self.drop(ops.ones((x.shape[0],) + (1,) * (x.ndim - 1), x.dtype))
        return x * mask


class GroupNorm(nn.Cell):
    """Group normalisation in plain operations, which every exporter supports; (N, C, H, W) in and out.

    Its parameters are ``gamma`` and ``beta`` as in ``nn.GroupNorm``; mean and variance take two passes.
    """

    def __init__(self, groups: int, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.gamma = ms.Parameter(init.initializer("ones", (channels,), ms.float32))
        self.beta = ms.Parameter(init.initializer("zeros", (channels,), ms.float32))

    def construct(self, x: Tensor) -> Tensor:
        c, h, w = x.shape[1:]
        y = ops.reshape(x, (-1, self.groups, c // self.groups * h * w))
        y = y - y.mean(2, keep_dims=True)
        y = y / ops.sqrt((y * y).mean(2, keep_dims=True) + self.eps)
        y = ops.reshape(y, (-1, c, h, w))
        return y * ops.reshape(self.gamma, (1, -1, 1, 1)) + ops.reshape(self.beta, (1, -1, 1, 1))


class Upsample(nn.Cell):
    """Doubles the size by repeating pixels; the batch dimension stays dynamic."""

    def construct(self, x: Tensor) -> Tensor:
        c, h, w = x.shape[1:]
        x = ops.reshape(x, (-1, c, h, 1, w, 1))
        x = ops.concat((x, x), 5)
        x = ops.concat((x, x), 3)
        return ops.reshape(x, (-1, c, 2 * h, 2 * w))


def gelu() -> nn.Cell:
    """GELU, exact: MindSpore's default is the tanh approximation."""
    return nn.GELU(approximate=False)


class Mlp(nn.Cell):
    """Dense, activation (exact GELU if none is given), dense; over the last axis."""

    def __init__(self, width: int, hidden: int, drop: float = 0.0, act: Callable[[], nn.Cell] = gelu) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Dense(width, hidden), act(), nn.Dense(hidden, width)
        self.drop = dropout(drop)

    def construct(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class SqueezeExcite(nn.Cell):
    """Channel gate (arXiv:1709.01507): mean, 1x1 conv, activation, 1x1 conv, gate, scale."""

    def __init__(
        self, channels: int, squeezed: int, act: Callable[[], nn.Cell], gate: Callable[[], nn.Cell] = Sigmoid
    ) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1, has_bias=True)
        self.act = act()
        self.conv_expand = nn.Conv2d(squeezed, channels, 1, has_bias=True)
        self.gate = gate()

    def construct(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keep_dims=True)
        return x * self.gate(self.conv_expand(self.act(self.conv_reduce(squeezed))))


def initialise(net: nn.Cell, wide: bool = False) -> nn.Cell:
    """He-normal convolutions, uniform dense layers within 1 / sqrt(inputs), zero biases (training from scratch only).

    ``wide`` draws dense layers within 1 / sqrt(outputs), as EfficientNet's authors do for 1000 classes. With two
    classes and 2,304 features the first logits are then some ten units apart, and training begins with undoing that.
    """
    for _, cell in net.cells_and_names():
        if isinstance(cell, nn.Conv2d):
            _fill(cell.weight, init.HeNormal(mode="fan_out", nonlinearity="relu"))
        elif isinstance(cell, nn.Dense):
            _fill(cell.weight, init.Uniform(1.0 / math.sqrt(cell.weight.shape[0 if wide else 1])))
        else:
            continue
        if cell.has_bias:
            _fill(cell.bias, init.Zero())
    return net


def initialise_uniform(net: nn.Cell) -> nn.Cell:
    """Initialise convolutions and dense layers, biases included, as PyTorch does: uniform within 1 / sqrt(fan_in).

    For networks whose published results start from these weights; a small net learns at a different speed from those
    of :func:`initialise`.
    """
    for _, cell in net.cells_and_names():
        if isinstance(cell, (nn.Conv2d, nn.Dense)):
            bound = 1.0 / math.sqrt(math.prod(cell.weight.shape[1:]))
            _fill(cell.weight, init.Uniform(bound))
            if cell.has_bias:
                _fill(cell.bias, init.Uniform(bound))
    return net


def initialise_small(net: nn.Cell, convolutions: bool = False) -> nn.Cell:
    """Normal weights of deviation 0.02 and zero biases, as timm starts the dense layers of its transformers.

    timm cuts its normal distribution at 2, a hundred deviations away, hence not at all. Patch embeddings keep their own
    start there; ConvNeXt starts its convolutions like its dense layers (``convolutions``).
    """
    for _, cell in net.cells_and_names():
        if isinstance(cell, (nn.Dense, nn.Conv2d) if convolutions else nn.Dense):
            _fill(cell.weight, init.Normal(0.02))
            if cell.has_bias:
                _fill(cell.bias, init.Zero())
    return net


def fill_scaled(cell: nn.Cell, gain: float = 1.0) -> None:
    """Fill a convolution or dense layer so that the scale of independent inputs grows by ``gain``; zero bias."""
    _fill(cell.weight, init.Normal(gain / math.sqrt(math.prod(cell.weight.shape[1:]))))
    if cell.has_bias:
        _fill(cell.bias, init.Zero())


def _fill(parameter: ms.Parameter, how: init.Initializer) -> None:
    # Parameters that are about to be loaded carry no data yet; filling them would waste time.
    if getattr(parameter, "has_init", False):
        return
    parameter.set_data(init.initializer(how, parameter.shape, parameter.dtype or ms.float32))
