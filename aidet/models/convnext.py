"""ConvNeXt (arXiv:2201.03545) tiny, small, base, with MindCV's parameter names and exact GELU."""

import functools
from typing import Any, Callable, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from . import register
from .layers import DropPath, check_stem_stride, initialise_small

SIZES = {
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
}
EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def __init__(self, channels: int, eps: float = EPS) -> None:
        super().__init__((channels,), epsilon=eps)

    def construct(self, x: Tensor) -> Tensor:
        return ops.transpose(super().construct(ops.transpose(x, (0, 2, 3, 1))), (0, 3, 1, 2))


class Block(nn.Cell):
    """7x7 depthwise convolution, LayerNorm, two dense layers over the channels, layer scale; residual."""

    def __init__(self, width: int, drop_path: float, scale: float, eps: float = EPS) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, pad_mode="pad", padding=3, group=width, has_bias=True)
        self.norm = nn.LayerNorm((width,), epsilon=eps)
        self.pwconv1, self.act, self.pwconv2 = (
            nn.Dense(width, 4 * width),
            nn.GELU(approximate=False),
            nn.Dense(4 * width, width),
        )
        self.gamma_ = Parameter(ms.Tensor(np.full((width,), scale, np.float32)))
        self.drop_path = DropPath(drop_path)

    def construct(self, x: Tensor) -> Tensor:
        y = ops.transpose(self.dwconv(x), (0, 2, 3, 1))
        y = self.gamma_ * self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        return x + self.drop_path(ops.transpose(y, (0, 3, 1, 2)))


class Trunk(nn.Cell):
    """Stem, four stages and classifier of ConvNeXt and ConvNeXt V2, which differ in their blocks.

    Parameters
    ----------
    sizes : (tuple of int, tuple of int)
        Blocks and channels of each stage.
    block : callable
        ``block(width, drop_path)`` gives a block.
    num_classes, in_channels : int
    drop_path_rate : float
    head_eps : float
        Epsilon of the last LayerNorm.
    stem_stride : int
        Of the first convolution (kernel 4); 2 or 1 instead of 4 keeps fine detail.
    eps : float
        Epsilon of the LayerNorms outside the blocks, but for the last one.
    """

    def __init__(
        self,
        sizes: Tuple[Sequence[int], Sequence[int]],
        block: Callable[[int, float], nn.Cell],
        num_classes: int,
        in_channels: int,
        drop_path_rate: float,
        head_eps: float,
        stem_stride: int,
        eps: float = EPS,
    ) -> None:
        super().__init__()
        stride = check_stem_stride(stem_stride, 4)
        depths, widths = sizes
        paths = np.linspace(0, drop_path_rate, sum(depths)).tolist()
        cells = []
        for i, (depth, width) in enumerate(zip(depths, widths)):
            if i == 0:
                stem = nn.Conv2d(in_channels, width, 4, stride, pad_mode="valid", has_bias=True)
                down = [stem, ChannelNorm(width, eps)]
            else:
                halve = nn.Conv2d(widths[i - 1], width, 2, 2, pad_mode="valid", has_bias=True)
                down = [ChannelNorm(widths[i - 1], eps), halve]
            done = sum(depths[:i])
            cells += [
                nn.SequentialCell(down),
                nn.SequentialCell([block(width, paths[done + j]) for j in range(depth)]),
            ]
        self.feature = nn.SequentialCell(cells)
        self.norm = nn.LayerNorm((widths[-1],), epsilon=head_eps)
        self.classifier = nn.Dense(widths[-1], num_classes)
        initialise_small(self, convolutions=True)

    def construct(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(self.feature(x).mean((2, 3))))


class ConvNeXt(Trunk):
    """ConvNeXt: (N, in_channels, H, W) -> (N, num_classes) raw logits.

    Parameters
    ----------
    name : str
        Key of :data:`SIZES`.
    num_classes, in_channels : int
    drop_path_rate, layer_scale : float
    stem_stride : int
        See :class:`Trunk`.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale: float = 1e-6,
        stem_stride: int = 4,
    ) -> None:
        block = functools.partial(Block, scale=layer_scale)
        super().__init__(SIZES[name], block, num_classes, in_channels, drop_path_rate, EPS, stem_stride)


@register
def convnext_tiny(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ConvNeXt:
    """ConvNeXt-Tiny, 28.6 M parameters."""
    return ConvNeXt("convnext_tiny", num_classes, in_channels, **kwargs)


@register
def convnext_small(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ConvNeXt:
    """ConvNeXt-Small, 50.2 M parameters."""
    return ConvNeXt("convnext_small", num_classes, in_channels, **kwargs)


@register
def convnext_base(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ConvNeXt:
    """ConvNeXt-Base, 88.6 M parameters."""
    return ConvNeXt("convnext_base", num_classes, in_channels, **kwargs)
