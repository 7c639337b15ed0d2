"""Swin Transformer v2 (arXiv:2111.09883): tiny, small, base, large, and any other width and depth.

It differs from v1 in three places: attention weights come from the cosine of query and key, with a learned scale per
head; the position bias is computed by a small MLP from the distance of two positions, so that a window can be another
than in pretraining; a block normalises what it adds, not what it reads.
"""

import math
from typing import Any, Optional, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import TruncatedNormal

from ..errors import UserError
from . import register
from .layers import DropPath, Mlp, Sigmoid, dropout, initialise_small
from .swin import EPS, Embed, Stage, in_windows, neighbours, relative_index, shift_mask

# width, blocks in each stage, heads in each stage
SIZES = {
    "swin_v2_tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_v2_small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_v2_base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_v2_large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
HIDDEN = 512  # width of the MLP that makes the position bias


def distances(window: int, pretrained: int = 0) -> np.ndarray:
    """Input of the position MLP for every offset in a window: float32 ((2 * window - 1)**2, 2).

    An offset is divided by the largest one of the window that the weights were pretrained with (0: this window), times
    8, and compressed to ``sign(d) * log2(1 + |d|) / 3``.
    """
    offsets = np.arange(1 - window, window, dtype=np.float32)
    grid = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 2)
    grid = grid * np.float32(8) / np.float32(max((pretrained or window) - 1, 1))
    return (np.sign(grid) * np.log2(np.abs(grid) + 1) / np.log2(8)).astype(np.float32)


class PositionBias(nn.Cell):
    """Bias for every pair of positions of a window, between 0 and 16: (1, heads, window**2, window**2)."""

    def __init__(self, window: int, heads: int, pretrained: int) -> None:
        super().__init__()
        self.area, self.heads = window * window, heads
        self.mlp = nn.SequentialCell(
            [nn.Dense(2, HIDDEN), nn.ReLU(), nn.Dense(HIDDEN, heads, has_bias=False, weight_init=TruncatedNormal(0.02))]
        )
        self.gate = Sigmoid()
        self.table = ms.Tensor(distances(window, pretrained))
        self.places = ms.Tensor(relative_index(window).astype(np.int32))

    def construct(self) -> Tensor:
        rows = 16 * self.gate(self.mlp(self.table))
        bias = ops.reshape(ops.gather(rows, self.places, 0), (self.area, self.area, self.heads))
        return ops.expand_dims(ops.transpose(bias, (2, 0, 1)), 0)


class Attention(nn.Cell):
    """Scaled cosine attention inside windows: (windows, area, C) in and out. The key has no bias."""

    def __init__(self, width: int, window: int, heads: int, pretrained: int) -> None:
        super().__init__()
        self.heads, self.width, self.area = heads, width, window * window
        self.logit_scale = Parameter(ms.Tensor(np.full((heads, 1, 1), math.log(10), np.float32)))
        self.most = math.log(100)
        self.position_bias = PositionBias(window, heads, pretrained)
        self.q, self.k, self.v = nn.Dense(width, width), nn.Dense(width, width, has_bias=False), nn.Dense(width, width)
        self.proj, self.softmax = nn.Dense(width, width), nn.Softmax(-1)

    def split(self, x: Tensor) -> Tensor:
        """(windows, area, C) -> (windows, heads, area, C / heads)."""
        return ops.transpose(ops.reshape(x, (-1, self.area, self.heads, self.width // self.heads)), (0, 2, 1, 3))

    def unit(self, x: Tensor) -> Tensor:
        """Vectors of length one along the last axis."""
        return x / ops.maximum(ops.sqrt((x * x).sum(-1, keepdims=True)), 1e-12)

    def construct(self, x: Tensor, mask: Optional[Tensor]) -> Tensor:
        q, k, v = self.unit(self.split(self.q(x))), self.unit(self.split(self.k(x))), self.split(self.v(x))
        scale = ops.exp(ops.minimum(self.logit_scale, self.most))
        weights = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) * scale + self.position_bias()
        if mask is not None:
            weights = ops.reshape(weights, (-1, mask.shape[1], self.heads, self.area, self.area)) + mask
            weights = ops.reshape(weights, (-1, self.heads, self.area, self.area))
        y = ops.matmul(self.softmax(weights), v)
        return self.proj(ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (-1, self.area, self.width)))


class Block(nn.Cell):
    """Window attention and MLP, each normalised before it is added. (N, H, W, C) in and out."""

    def __init__(
        self,
        width: int,
        size: int,
        heads: int,
        window: int,
        shift: int,
        pretrained: int,
        mask_value: float,
        drop_path: float,
        drop: float,
    ) -> None:
        super().__init__()
        # A window as large as the map needs no shift.
        self.window, self.shift = min(window, size), shift if size > window else 0
        self.norm1, self.norm2 = nn.LayerNorm((width,), epsilon=EPS), nn.LayerNorm((width,), epsilon=EPS)
        self.attn = Attention(width, self.window, heads, pretrained)
        self.mlp, self.drop_path = Mlp(width, 4 * width, drop), DropPath(drop_path)
        self.mask = None
        if self.shift:
            mask = shift_mask(size, self.window, self.shift) * np.float32(mask_value / 100)
            self.mask = ms.Tensor(mask[None, :, None])

    def construct(self, x: Tensor) -> Tensor:
        y = in_windows(self.attn, x, self.window, self.shift, self.mask)
        x = x + self.drop_path(self.norm1(y))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class Merge(nn.Cell):
    """Four neighbours become one position of twice the width: (N, H, W, C) -> (N, H/2, W/2, 2C); the norm is last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Dense(4 * width, 2 * width, has_bias=False)
        self.norm = nn.LayerNorm((2 * width,), epsilon=EPS)

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(neighbours(x)))


class SwinV2(nn.Cell):
    """Swin Transformer v2: (N, in_channels, image_size, image_size) -> (N, num_classes) raw logits.

    Parameters
    ----------
    num_classes, in_channels : int
    width : int
        Of the first stage; each following stage has twice as much.
    depths, heads : sequence of 4 int
        Blocks and attention heads of each stage.
    image_size, window_size : int
        Every stage's map must be a multiple of the window, or smaller than it (256 with 8 or 16, 192 with 12).
    pretrained_window : sequence of 4 int, optional
        Window of each stage in pretraining, if it was another (12, 12, 12, 6 in the published Large).
    mask_value : float
        What is subtracted from the attention across the edge of the image: 100, or 200 in transformers, which does it
        twice.
    drop_rate, drop_path_rate : float
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        image_size: int = 256,
        window_size: int = 8,
        pretrained_window: Sequence[int] = (0, 0, 0, 0),
        mask_value: float = 100.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        sides = [image_size // 4 // 2**s for s in range(len(depths))]
        if image_size % (4 * 2 ** (len(depths) - 1)) or any(side % min(window_size, side) for side in sides):
            raise UserError(
                f"image_size (={image_size}) does not divide into windows of {window_size}; "
                "use 256 with 8 or 16, or 192 with 12"
            )
        self.patch_embed, self.pos_drop = Embed(in_channels, width), dropout(drop_rate)
        paths = np.linspace(0, drop_path_rate, sum(depths)).tolist()
        stages = []
        for s, depth in enumerate(depths):
            blocks = [
                Block(
                    width * 2**s,
                    sides[s],
                    heads[s],
                    window_size,
                    window_size // 2 if b % 2 else 0,
                    pretrained_window[s],
                    mask_value,
                    paths[sum(depths[:s]) + b],
                    drop_rate,
                )
                for b in range(depth)
            ]
            stages.append(Stage(blocks, Merge(width * 2**s) if s < len(depths) - 1 else None))
        self.stages = nn.SequentialCell(stages)
        last = width * 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm((last,), epsilon=EPS)
        self.classifier = nn.Dense(last, num_classes)
        initialise_small(self)

    def construct(self, x: Tensor) -> Tensor:
        x = self.norm(self.stages(self.pos_drop(self.patch_embed(x))))
        return self.classifier(x.mean((1, 2)))


def _build(name: str, num_classes: int, in_channels: int, kwargs: Any) -> SwinV2:
    width, depths, heads = SIZES[name]
    return SwinV2(num_classes, in_channels, width, depths, heads, **kwargs)


@register
def swin_v2(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> SwinV2:
    """Swin v2 of any ``width``, ``depths`` and ``heads``; without them a Swin v2-Tiny."""
    return SwinV2(num_classes, in_channels, **kwargs)


@register
def swin_v2_tiny(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> SwinV2:
    """Swin v2-Tiny, 28.3 M parameters."""
    return _build("swin_v2_tiny", num_classes, in_channels, kwargs)


@register
def swin_v2_small(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> SwinV2:
    """Swin v2-Small, 49.7 M parameters."""
    return _build("swin_v2_small", num_classes, in_channels, kwargs)


@register
def swin_v2_base(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> SwinV2:
    """Swin v2-Base, 87.9 M parameters."""
    return _build("swin_v2_base", num_classes, in_channels, kwargs)


@register
def swin_v2_large(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> SwinV2:
    """Swin v2-Large, 196.7 M parameters."""
    return _build("swin_v2_large", num_classes, in_channels, kwargs)
