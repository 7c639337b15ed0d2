"""Faster convolutions for training on a CPU, most of them as matrix products.

MindSpore's CPU kernels are slow for some convolutions, and slowest for their gradients; matrix products run at the
processor's full speed. The results differ from the convolution's by rounding only.

*Depthwise* convolutions take more than half of a training step of EfficientNet-B0 at 64 pixels. A convolution is
linear, so for each channel it is a matrix from input positions to output positions, which a constant matrix makes from
the kernel. Small maps are computed at once, larger ones two output rows at a time, because the matrix grows with the
square of the area that it covers. Measured (EfficientNet-B0, ConvNeXt-T; forward and both gradients): 2 to 5 times as
fast for maps up to 8x8, 1.2 to 4 times for larger ones at stride 1. Larger maps at stride 2, or wider than 32, keep the
convolution.

*Full* convolutions of stride 1: the gradient with respect to the input is a convolution, too, with the kernel rotated
by 180 degrees and its channels exchanged, and MindSpore's forward kernel is faster than its gradient kernel: both
gradients together take .67 to .98 of the time (64 channels on 56x56: .78). With fewer than 16 channels it is slower.

*Full* convolutions with few output positions have many weights and little work, as in the last stage of a ResNet-18 at
64 pixels: a constant matrix gathers the columns under the kernel, and one product does the rest. Measured, 512
channels, batch 16 and 64: 2.1 and 2.7 times as fast for a map of 2x2, 2.6 and 4.5 times for 1x1; no gain from 3x3
upwards.
"""

from typing import Any, Dict, Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr

SMALL = 64  # positions of the largest map that is computed at once
FEW = 4  # most output positions of a full convolution that becomes one product
MANY = 16  # fewest channels, in and out, for which the gradient with respect to the input becomes a convolution
WIDE = 32  # widest map that is computed two rows at a time: memory, and work per output position, grow with the width


def speed_up(net: nn.Cell) -> Dict[str, int]:
    """Let the ``nn.Conv2d`` of a network compute as this module describes, if that is faster; all names stay.

    For graph mode and float32. It affects convolutions without dilation that are depthwise (as many groups as channels
    in and out, kernels larger than 1x1) or have one group. Whether a map is computed so is decided from its size, when
    the graph is compiled.

    Parameters
    ----------
    net : mindspore.nn.Cell
        Changed in place.

    Returns
    -------
    dict
        How many there are of each kind: ``{"depthwise": int, "full": int}``.
    """
    found = {"depthwise": 0, "full": 0}
    for _, cell in list(net.cells_and_names()):
        if type(cell) is not nn.Conv2d or tuple(cell.dilation) != (1, 1):
            continue
        kind: Any
        if 1 < cell.group == cell.in_channels == cell.out_channels and cell.kernel_size != (1, 1):
            kind, found["depthwise"] = Depthwise, found["depthwise"] + 1
        elif cell.group == 1:
            kind, found["full"] = Full, found["full"] + 1
        else:
            continue
        cell.edges = _edges(cell)
        if kind is Full:
            cell.conv = Turned(cell) if Turned.fits(cell) else cell.conv2d
        # The class is exchanged, not the cell: a new cell would give the weights another name.
        cell.__class__ = kind
    return found


def _edges(cell):
    """(top, bottom, left, right) of the padding; None for "same", because it depends on the image then."""
    if cell.pad_mode == "same":
        return None
    if cell.pad_mode == "valid":
        return (0, 0, 0, 0)
    p = cell.padding
    return (p, p, p, p) if isinstance(p, int) else tuple(p)


class Depthwise(nn.Conv2d):
    """A depthwise convolution, (N, C, h, w) -> (N, C, ho, wo). Made by :func:`speed_up` only."""

    def construct(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        ho, wo, rows, reach, top, below, step = _plan((h, w), self.kernel_size, self.stride, self.edges)
        if rows == 0:
            out = self.conv2d(x, self.weight)
        else:
            taps = _taps((h, w), self.kernel_size, self.stride, self.edges)
            matrix = ops.matmul(self.weight.reshape((c, -1)), taps).reshape((c, -1, rows * wo))
            places = ops.transpose(x, (1, 0, 2, 3))
            if reach == 0:
                places = places.reshape((c, n, h * w))
            else:
                # Zeros are concatenated: the padding operator takes fifteen times as long.
                if top > 0:
                    places = ops.concat([ops.zeros((c, n, top, w), ms.float32), places], 2)
                if below > 0:
                    places = ops.concat([places, ops.zeros((c, n, below, w), ms.float32)], 2)
                bands = ho // rows
                parts = []
                for i in range(reach):
                    part = places[:, :, i * step : (i + bands) * step]
                    parts.append(part.reshape((c, n * bands, step * w)))
                places = ops.concat(parts, -1)
            out = ops.transpose(ops.bmm(places, matrix).reshape((c, n, ho, wo)), (1, 0, 2, 3))
        if self.has_bias:
            out = self.bias_add(out, self.bias)
        return out


class Full(nn.Conv2d):
    """A convolution of one group, (N, C, h, w) -> (N, C', ho, wo). Made by :func:`speed_up` only."""

    def construct(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        ho, wo, few = _outputs((h, w), self.kernel_size, self.stride, self.edges)
        if not few:
            out = self.conv(x, self.weight)
        else:
            columns = x.reshape((n, c, h * w))
            if self.kernel_size != (1, 1) or self.stride != (1, 1):
                taps = _columns((h, w), self.kernel_size, self.stride, self.edges)
                columns = ops.matmul(x.reshape((n * c, h * w)), taps).reshape((n, -1, ho * wo))
            if ho * wo > 1:
                columns = ops.transpose(columns, (0, 2, 1))
            weight = self.weight.reshape((self.out_channels, -1))
            out = ops.MatMul(transpose_b=True)(columns.reshape((n * ho * wo, -1)), weight)
            if ho * wo > 1:
                out = ops.transpose(out.reshape((n, ho * wo, -1)), (0, 2, 1))
            out = out.reshape((n, -1, ho, wo))
        if self.has_bias:
            out = self.bias_add(out, self.bias)
        return out


class Turned(nn.Cell):
    """A convolution of stride 1 whose gradient with respect to the input is a convolution with the rotated kernel.

    ``construct(x, weight)``; it has no weights of its own.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(auto_prefix=False)
        (kh, kw), (top, bottom, left, right) = conv.kernel_size, _fixed(conv)
        self.forward = _Operator(conv.conv2d)
        around = (kh - 1 - top, kh - 1 - bottom, kw - 1 - left, kw - 1 - right)
        self.back = ops.Conv2D(conv.in_channels, (kh, kw), pad_mode="pad", pad=around)
        self.gradient = ops.GradOperation(get_all=True, sens_param=True)
        # A product with this rotates the kernel; each sum has one term other than 0, so nothing is rounded.
        self.half_circle = Tensor(np.eye(kh * kw, dtype=np.float32)[::-1].copy())
        self.split = (conv.out_channels, conv.in_channels, kh * kw)
        self.turned = (conv.in_channels, conv.out_channels, kh, kw)

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether a convolution of one group and no dilation can be computed so, and faster."""
        if conv.stride != (1, 1) or conv.kernel_size == (1, 1) or min(conv.in_channels, conv.out_channels) < MANY:
            return False
        (kh, kw), (top, bottom, left, right) = conv.kernel_size, _fixed(conv)
        return max(top, bottom) < kh and max(left, right) < kw

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.forward(x, weight)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, by: Tensor) -> Tuple[Tensor, Tensor]:
        """Gradients with respect to the input and the weight; ``by`` is that with respect to the output."""
        turned = ops.matmul(weight.reshape((-1, self.split[2])), self.half_circle).reshape(self.split)
        turned = ops.transpose(turned, (1, 0, 2)).reshape(self.turned)
        return self.back(by, turned), self.gradient(self.forward)(x, weight, by)[1]


class _Operator(nn.Cell):
    """An operator as a cell: only cells can be differentiated inside a graph."""

    def __init__(self, operator):
        super().__init__(auto_prefix=False)
        self.operator = operator

    def construct(self, x, weight):
        return self.operator(x, weight)


def _extent(size, kernel, stride, edges):
    """((top, bottom, left, right), (ho, wo)): the padding and the output's size."""
    if edges is None:
        want = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, stride)]
        edges = (want[0] // 2, want[0] - want[0] // 2, want[1] // 2, want[1] - want[1] // 2)
    out = [(n + sum(edges[2 * i : 2 * i + 2]) - kernel[i]) // stride[i] + 1 for i, n in enumerate(size)]
    return edges, out


def _fixed(conv):
    """(top, bottom, left, right) at stride 1, at which even that of "same" does not depend on the image."""
    return _extent(conv.kernel_size, conv.kernel_size, (1, 1), conv.edges)[0]


def _geometry(size, kernel, stride, edges):
    """((top, bottom, left, right), (ho, wo), rows, step, reach), see :func:`_plan`; rows 0: keep the convolution."""
    edges, out = _extent(size, kernel, stride, edges)
    if size[0] * size[1] <= SMALL:
        rows = out[0]
    else:
        rows = 2 if tuple(stride) == (1, 1) and out[0] % 2 == 0 and size[1] <= WIDE else 0
    step = rows * stride[0]
    reach = 0 if rows in (0, out[0]) else -(-((rows - 1) * stride[0] + kernel[0]) // step)
    return edges, out, rows, step, reach


@constexpr
def _outputs(size, kernel, stride, edges):
    """(ho, wo) of the output, and whether it becomes a product."""
    ho, wo = _extent(size, kernel, stride, edges)[1]
    return ho, wo, ho * wo <= FEW and size[0] * size[1] <= SMALL


@constexpr
def _columns(size, kernel, stride, edges):
    """The constant matrix, inputs x (taps * outputs): 1 if the tap of the output reads the input."""
    edges, (ho, wo) = _extent(size, kernel, stride, edges)
    down = _line(kernel[0], stride[0], edges[0], size[0], ho)
    along = _line(kernel[1], stride[1], edges[2], size[1], wo)
    return Tensor(np.einsum("iab,jcd->acijbd", down, along).reshape(size[0] * size[1], -1))


@constexpr
def _plan(size, kernel, stride, edges):
    """(ho, wo, rows, reach, top, below, step) as plain numbers.

    Bands of ``rows`` output rows start every ``step`` input rows and extend over ``reach`` such steps (0: the whole
    map at once); ``top`` and ``below`` are the rows of zeros that this needs.
    """
    edges, (ho, wo), rows, step, reach = _geometry(size, kernel, stride, edges)
    if reach == 0:
        return ho, wo, rows, 0, 0, 0, 0
    below = (reach - 1 + ho // rows) * step - edges[0] - size[0]
    return ho, wo, rows, reach, edges[0], max(0, below), step


@constexpr
def _taps(size, kernel, stride, edges):
    """The constant matrix of a product, taps x (inputs * outputs): 1 if the tap connects input and output."""
    edges, (ho, wo), rows, step, reach = _geometry(size, kernel, stride, edges)
    # Rows of a band are counted from the first padded one, rows of the whole map from the first real one.
    above, height = (0, reach * step) if reach else (edges[0], size[0])
    down = _line(kernel[0], stride[0], above, height, rows)
    along = _line(kernel[1], stride[1], edges[2], size[1], wo)
    return Tensor(np.einsum("iab,jcd->ijacbd", down, along).reshape(kernel[0] * kernel[1], -1))


def _line(taps, stride, before, size, out):
    """float32 (taps, size, out): 1 if tap ``t`` of output ``o`` reads input ``i``."""
    t, i, o = np.ogrid[:taps, :size, :out]
    return (i == o * stride + t - before).astype(np.float32)
