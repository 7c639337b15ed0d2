"""Cells that several families share, written so that they export to ONNX and keep the batch dimension free."""

import contextlib
import math

import mindspore as ms
from mindspore import nn, ops
from mindspore.common import initializer as init

from ..errors import UserError


def make_divisible(value, divisor=8):
    """Round a width to a multiple of ``divisor``, never more than 10% down (MobileNet's rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def dropout(p):
    """``nn.Dropout`` by the probability of dropping, on MindSpore 2.x."""
    return nn.Dropout(p=float(p))


def conv(cin, cout, kernel, stride=1, group=1, bias=False, padding="symmetric"):
    """A convolution with PyTorch's or TensorFlow's padding.

    Parameters
    ----------
    padding : {"symmetric", "same"}
        ``symmetric`` pads ``(kernel - 1) // 2`` on every side, as PyTorch models do. ``same`` pads so that the output
        has ``ceil(size / stride)`` pixels, the odd pixel at the right and bottom, as TensorFlow ports do. They differ
        only where ``stride > 1``.
    """
    mode = {"pad_mode": "same"} if padding == "same" else {"pad_mode": "pad", "padding": (kernel - 1) // 2}
    return nn.Conv2d(cin, cout, kernel, stride, group=group, has_bias=bias, **mode)


def check_stem_stride(value, published):
    """The stride of the first convolution, 1 up to the published one, or :class:`UserError`.

    A smaller one keeps the fine detail that betrays a generator: the filter-stride reduction of the VIP Cup 2022 entry
    awsaf49/vip-cup-2022 (ICIP 2023). Weights keep their shapes, so those of the published stride load.
    """
    if isinstance(value, bool) or value not in range(1, published + 1):
        raise UserError(f"stem_stride (={value!r}) must be a whole number from 1 to {published}")
    return value


class Sigmoid(nn.Cell):
    """``1 / (1 + exp(-x))``, on a CPU as exact as float32 allows.

    MindSpore's CPU kernels of ``exp`` and ``sigmoid`` are off by up to 5e-6 of the value and to one side, which a deep
    net adds up; ``expm1`` there is right to 1.5e-7. It costs three times as much, so training keeps the kernel, and
    its exporters do not know it: see :func:`native_sigmoid`.
    """

    def __init__(self):
        super().__init__()
        self.exact = ms.get_context("device_target") == "CPU"

    def construct(self, x):
        if self.training or not self.exact:
            return ops.sigmoid(x)
        # Held below the overflow of exp, where the derivative would be NaN.
        return 1.0 / (2.0 + ops.expm1(ops.minimum(-x, 80.0)))


class Swish(Sigmoid):
    """``x * sigmoid(x)``."""

    def construct(self, x):
        return x * super().construct(x)


@contextlib.contextmanager
def native_sigmoid(net):
    """Inside the block every :class:`Sigmoid` of ``net`` is the framework's operator, as an export should have it."""
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

    def construct(self, x):
        return x.mean((2, 3))


class DropPath(nn.Cell):
    """Stochastic depth (arXiv:1603.09382): in training, a residual branch is dropped for a whole sample."""

    def __init__(self, p=0.0):
        super().__init__()
        self.active = p > 0
        self.drop = dropout(p)

    def construct(self, x):
        if not (self.training and self.active):
            return x
        mask = self.drop(ops.ones((x.shape[0],) + (1,) * (x.ndim - 1), x.dtype))
        return x * mask


class GroupNorm(nn.Cell):
    """Group normalisation in plain operations, which every exporter knows; (N, C, H, W) in and out.

    Parameters ``gamma`` and ``beta`` as in ``nn.GroupNorm``; mean and variance in two passes.
    """

    def __init__(self, groups, channels, eps=1e-6):
        super().__init__()
        self.groups, self.eps = groups, eps
        self.gamma = ms.Parameter(init.initializer("ones", (channels,), ms.float32))
        self.beta = ms.Parameter(init.initializer("zeros", (channels,), ms.float32))

    def construct(self, x):
        c, h, w = x.shape[1:]
        y = ops.reshape(x, (-1, self.groups, c // self.groups * h * w))
        y = y - y.mean(2, keep_dims=True)
        y = y / ops.sqrt((y * y).mean(2, keep_dims=True) + self.eps)
        y = ops.reshape(y, (-1, c, h, w))
        return y * ops.reshape(self.gamma, (1, -1, 1, 1)) + ops.reshape(self.beta, (1, -1, 1, 1))


class Upsample(nn.Cell):
    """Twice the size by repeating pixels; the batch dimension stays free."""

    def construct(self, x):
        c, h, w = x.shape[1:]
        x = ops.reshape(x, (-1, c, h, 1, w, 1))
        x = ops.concat((x, x), 5)
        x = ops.concat((x, x), 3)
        return ops.reshape(x, (-1, c, 2 * h, 2 * w))


class Mlp(nn.Cell):
    """Dense, GELU (exact, not the tanh approximation), dense; on the last axis."""

    def __init__(self, width, hidden, drop=0.0):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Dense(width, hidden), nn.GELU(approximate=False), nn.Dense(hidden, width)
        self.drop = dropout(drop)

    def construct(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class SqueezeExcite(nn.Cell):
    """Channel gate (arXiv:1709.01507): mean, 1x1 conv, activation, 1x1 conv, gate, scale."""

    def __init__(self, channels, squeezed, act, gate=Sigmoid):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1, has_bias=True)
        self.act = act()
        self.conv_expand = nn.Conv2d(squeezed, channels, 1, has_bias=True)
        self.gate = gate()

    def construct(self, x):
        squeezed = x.mean((2, 3), keep_dims=True)
        return x * self.gate(self.conv_expand(self.act(self.conv_reduce(squeezed))))


def initialise(net):
    """He-normal convolutions, small uniform dense layers, zero biases (training from scratch only)."""
    for _, cell in net.cells_and_names():
        if isinstance(cell, nn.Conv2d):
            _fill(cell.weight, init.HeNormal(mode="fan_out", nonlinearity="relu"))
        elif isinstance(cell, nn.Dense):
            _fill(cell.weight, init.Uniform(1.0 / math.sqrt(cell.weight.shape[0])))
        else:
            continue
        if cell.has_bias:
            _fill(cell.bias, init.Zero())
    return net


def initialise_uniform(net):
    """Convolutions and dense layers as PyTorch starts them, biases too: uniform within 1 / sqrt(fan_in).

    For networks whose published results start there; a small one learns at another speed from :func:`initialise`.
    """
    for _, cell in net.cells_and_names():
        if isinstance(cell, (nn.Conv2d, nn.Dense)):
            bound = 1.0 / math.sqrt(math.prod(cell.weight.shape[1:]))
            _fill(cell.weight, init.Uniform(bound))
            if cell.has_bias:
                _fill(cell.bias, init.Uniform(bound))
    return net


def _fill(parameter, how):
    # Where weights are about to be loaded the parameters carry no data, and filling them would be time lost.
    if getattr(parameter, "has_init", False):
        return
    parameter.set_data(init.initializer(how, parameter.shape, parameter.dtype or ms.float32))
