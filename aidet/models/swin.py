"""Swin Transformer v1 (arXiv:2103.14030): tiny, small, base, large; any window and input size that fit together.

Parameter names are those of MindCV's ``swin_tiny``, whose cell lists give the stages the names ``0.blocks.B`` and
``0.blocks.S.blocks.B``. At its own size (224, window 7) ``swin_tiny`` also carries MindCV's constant parameters
(``relative_bias.index``, ``attn_mask``), so that a checkpoint loads strictly there; at other sizes they would be most
of the file and are plain constants. Unlike MindCV every LayerNorm has PyTorch's epsilon and GELU is exact.
"""

from typing import Any, Optional, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import TruncatedNormal, initializer

from ..errors import UserError
from . import register
from .layers import DropPath, Mlp, dropout, initialise_small

# width, blocks in each stage, heads in each stage
SIZES = {
    "swin_tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
EPS = 1e-5


def relative_index(window: int) -> np.ndarray:
    """Row of the bias table for every pair of positions in a window, shape (window**4,)."""
    rows, columns = (g.reshape(-1) for g in np.meshgrid(np.arange(window), np.arange(window), indexing="ij"))
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    return (down * (2 * window - 1) + right).reshape(-1)


def shift_mask(size: int, window: int, shift: int) -> np.ndarray:
    """0 if two positions of a window were neighbours before the shift, else -100: (windows, window**2, window**2)."""
    region = np.zeros((size, size))
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(cuts):
        for j, columns in enumerate(cuts):
            region[rows, columns] = 3 * i + j
    n = size // window
    parts = region.reshape(n, window, n, window).transpose(0, 2, 1, 3).reshape(n * n, window * window)
    return np.where(parts[:, None, :] == parts[:, :, None], 0.0, -100.0).astype(np.float32)


def roll(x: Tensor, shift: int) -> Tensor:
    """Cyclic shift of the rows and columns of (N, H, W, C)."""
    x = ops.concat((x[:, shift:], x[:, :shift]), 1)
    return ops.concat((x[:, :, shift:], x[:, :, :shift]), 2)


class RelativeBias(nn.Cell):
    """Learned bias for every pair of positions: (1, heads, window**2, window**2)."""

    def __init__(self, window: int, heads: int, stored: bool) -> None:
        super().__init__()
        rows = (2 * window - 1) ** 2
        self.area, self.stored = window * window, stored
        self.relative_position_bias_table = Parameter(initializer(TruncatedNormal(0.02), (rows, heads), ms.float32))
        index = relative_index(window)
        if stored:
            self.index = Parameter(ms.Tensor(np.eye(rows, dtype=np.float32)[index]), requires_grad=False)
        else:
            self.places = ms.Tensor(index.astype(np.int32))

    def construct(self) -> Tensor:
        if self.stored:
            bias = ops.matmul(self.index, self.relative_position_bias_table)
        else:
            bias = ops.gather(self.relative_position_bias_table, self.places, 0)
        return ops.expand_dims(ops.transpose(ops.reshape(bias, (self.area, self.area, -1)), (2, 0, 1)), 0)


class Attention(nn.Cell):
    """Attention inside windows: (windows, area, C) in and out."""

    def __init__(self, width: int, window: int, heads: int, stored: bool) -> None:
        super().__init__()
        self.heads, self.width, self.area = heads, width, window * window
        self.scale = (width // heads) ** -0.5
        self.relative_bias = RelativeBias(window, heads, stored)
        self.q, self.k, self.v = nn.Dense(width, width), nn.Dense(width, width), nn.Dense(width, width)
        self.proj, self.softmax = nn.Dense(width, width), nn.Softmax(-1)

    def split(self, x: Tensor) -> Tensor:
        """(windows, area, C) -> (windows, heads, area, C / heads)."""
        return ops.transpose(ops.reshape(x, (-1, self.area, self.heads, self.width // self.heads)), (0, 2, 1, 3))

    def construct(self, x: Tensor, mask: Optional[Tensor]) -> Tensor:
        q, k, v = self.split(self.q(x) * self.scale), self.split(self.k(x)), self.split(self.v(x))
        weights = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) + self.relative_bias()
        if mask is not None:
            weights = ops.reshape(weights, (-1, mask.shape[1], self.heads, self.area, self.area)) + mask
            weights = ops.reshape(weights, (-1, self.heads, self.area, self.area))
        y = ops.matmul(self.softmax(weights), v)
        return self.proj(ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (-1, self.area, self.width)))


def in_windows(attention: nn.Cell, x: Tensor, window: int, shift: int, mask: Optional[Tensor]) -> Tensor:
    """Attention inside the windows of a square map, which ``shift`` moves there and back: (N, H, H, C) in and out."""
    _, side, _, c = x.shape
    n, w = side // window, window
    y = roll(x, shift) if shift else x
    y = ops.transpose(ops.reshape(y, (-1, n, w, n, w, c)), (0, 1, 3, 2, 4, 5))
    y = attention(ops.reshape(y, (-1, w * w, c)), mask)
    y = ops.transpose(ops.reshape(y, (-1, n, n, w, w, c)), (0, 1, 3, 2, 4, 5))
    y = ops.reshape(y, (-1, side, side, c))
    return roll(y, side - shift) if shift else y


def neighbours(x: Tensor) -> Tensor:
    """Four neighbours become one position: (N, H, H, C) -> (N, H/2, H/2, 4C)."""
    _, side, _, c = x.shape
    # Columns vary slowest in the four: (0,0), (1,0), (0,1), (1,1).
    x = ops.transpose(ops.reshape(x, (-1, side // 2, 2, side // 2, 2, c)), (0, 1, 3, 4, 2, 5))
    return ops.reshape(x, (-1, side // 2, side // 2, 4 * c))


class Block(nn.Cell):
    """Window attention and MLP, both residual; every second block shifts the windows. (N, H, W, C) in and out."""

    def __init__(
        self, width: int, size: int, heads: int, window: int, shift: int, drop_path: float, drop: float, stored: bool
    ) -> None:
        super().__init__()
        # A window as large as the map needs no shift.
        self.window, self.shift = min(window, size), shift if size > window else 0
        self.norm1, self.norm2 = nn.LayerNorm((width,), epsilon=EPS), nn.LayerNorm((width,), epsilon=EPS)
        self.attn = Attention(width, self.window, heads, stored)
        self.mlp, self.drop_path = Mlp(width, 4 * width, drop), DropPath(drop_path)
        self.attn_mask = None
        if self.shift:
            mask = ms.Tensor(shift_mask(size, self.window, self.shift)[None, :, None])
            self.attn_mask = Parameter(mask, requires_grad=False) if stored else mask

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(in_windows(self.attn, self.norm1(x), self.window, self.shift, self.attn_mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Merge(nn.Cell):
    """Four neighbours become one position of twice the width: (N, H, W, C) -> (N, H/2, W/2, 2C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Dense(4 * width, 2 * width, has_bias=False)
        self.norm = nn.LayerNorm((4 * width,), epsilon=EPS)

    def construct(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(neighbours(x)))


class Stage(nn.Cell):
    """Blocks, then a merge unless it is the last stage."""

    def __init__(self, blocks: Sequence[nn.Cell], merge: Optional[nn.Cell]) -> None:
        super().__init__()
        self.blocks = nn.SequentialCell(list(blocks))
        self.downsample = nn.Identity() if merge is None else merge

    def construct(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


class Embed(nn.Cell):
    """4x4 patches to vectors: (N, C, H, W) -> (N, H/4, W/4, width)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, 4, 4, pad_mode="valid", has_bias=True)
        self.norm = nn.LayerNorm((width,), epsilon=EPS)

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(ops.transpose(self.proj(x), (0, 2, 3, 1)))


class Swin(nn.Cell):
    """Swin Transformer: (N, in_channels, image_size, image_size) -> (N, num_classes) raw logits.

    Parameters
    ----------
    name : str
        Key of :data:`SIZES`.
    num_classes, in_channels : int
    image_size, window_size : int
        Every stage's map must be a multiple of the window (224 with 7, 384 with 12).
    drop_rate, drop_path_rate : float
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        window_size: int = 7,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        width, depths, heads = SIZES[name]
        if image_size % 32 or any(
            (image_size // 4 // 2**s) % min(window_size, image_size // 4 // 2**s) for s in range(4)
        ):
            raise UserError(
                f"image_size (={image_size}) does not divide into windows of {window_size}; "
                "use 224 with 7 or 384 with 12"
            )
        stored = name == "swin_tiny" and (image_size, window_size) == (224, 7)
        self.patch_embed, self.pos_drop = Embed(in_channels, width), dropout(drop_rate)
        paths = np.linspace(0, drop_path_rate, sum(depths)).tolist()
        stages = []
        for s, depth in enumerate(depths):
            wide, side, done = width * 2**s, image_size // 4 // 2**s, sum(depths[:s])
            blocks = [
                Block(wide, side, heads[s], window_size, window_size // 2 if b % 2 else 0, paths[done + b], drop_rate,
                      stored)
                for b in range(depth)
            ]  # fmt: skip
            stages.append(Stage(blocks, Merge(wide) if s < 3 else None))
        self.stages = nn.SequentialCell(stages)
        self.norm = nn.LayerNorm((8 * width,), epsilon=EPS)
        self.classifier = nn.Dense(8 * width, num_classes)
        initialise_small(self)
        for parameter in self.get_parameters():
            parameter.name = mindcv_name(parameter.name)

    def construct(self, x: Tensor) -> Tensor:
        x = self.norm(self.stages(self.pos_drop(self.patch_embed(x))))
        return self.classifier(x.mean((1, 2)))


def mindcv_name(name: str) -> str:
    """``stages.S.blocks.B...`` under the name that MindCV's nested cell lists give it."""
    if not name.startswith("stages."):
        return name
    stage, rest = name.split(".", 2)[1:]
    return f"0.{rest}" if stage == "0" else f"0.blocks.{stage}.{rest}"


@register
def swin_tiny(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> Swin:
    """Swin-Tiny, 28.3 M parameters."""
    return Swin("swin_tiny", num_classes, in_channels, **kwargs)


@register
def swin_small(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> Swin:
    """Swin-Small, 49.6 M parameters."""
    return Swin("swin_small", num_classes, in_channels, **kwargs)


@register
def swin_base(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> Swin:
    """Swin-Base, 87.8 M parameters."""
    return Swin("swin_base", num_classes, in_channels, **kwargs)


@register
def swin_large(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> Swin:
    """Swin-Large, 196.5 M parameters."""
    return Swin("swin_large", num_classes, in_channels, **kwargs)
