"""BEiT (arXiv:2106.08254) base and large, and any other width and depth: a ViT with relative positions.

Every block has a learned bias for each offset between two patches, and three more for pairs with the class token; the
key has no bias; layer scales. The image is the mean of its patches, or the class token.
"""

from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import TruncatedNormal, initializer

from ..errors import UserError
from . import register
from .layers import DropPath, Mlp, dropout, initialise_small
from .swin import relative_index
from .transformer import Embed

# width, depth, heads
SIZES = {"beit_b_16": (768, 12, 12), "beit_l_16": (1024, 24, 16)}


def bias_index(side: int) -> np.ndarray:
    """Row of the bias table for every pair of tokens, the class token first: ((side**2 + 1)**2,) int32.

    The last three rows are for the class token with a patch, a patch with the class token, and the class token with
    itself.
    """
    area, offsets = side * side, (2 * side - 1) ** 2
    index = np.zeros((area + 1, area + 1), np.int32)
    index[1:, 1:] = relative_index(side).reshape(area, area)
    index[0, :], index[:, 0] = offsets, offsets + 1
    index[0, 0] = offsets + 2
    return index.reshape(-1)


class Attention(nn.Cell):
    """Self-attention with a bias for relative positions: (N, tokens, C) in and out."""

    def __init__(self, width: int, heads: int, side: int, relative: bool) -> None:
        super().__init__()
        self.width, self.heads, self.scale, self.tokens = width, heads, (width // heads) ** -0.5, side * side + 1
        self.q, self.k, self.v = nn.Dense(width, width), nn.Dense(width, width, has_bias=False), nn.Dense(width, width)
        self.proj, self.softmax = nn.Dense(width, width), nn.Softmax(-1)
        self.relative = relative
        if relative:
            rows = (2 * side - 1) ** 2 + 3
            table = initializer(TruncatedNormal(0.02), (rows, heads), ms.float32)
            self.relative_position_bias_table = Parameter(table)
            self.places = ms.Tensor(bias_index(side))

    def split(self, x: Tensor) -> Tensor:
        """(N, tokens, C) -> (N, heads, tokens, C / heads)."""
        return ops.transpose(ops.reshape(x, (-1, self.tokens, self.heads, self.width // self.heads)), (0, 2, 1, 3))

    def construct(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        weights = ops.matmul(q * self.scale, ops.transpose(k, (0, 1, 3, 2)))
        if self.relative:
            bias = ops.gather(self.relative_position_bias_table, self.places, 0)
            bias = ops.transpose(ops.reshape(bias, (self.tokens, self.tokens, self.heads)), (2, 0, 1))
            weights = weights + ops.expand_dims(bias, 0)
        y = ops.matmul(self.softmax(weights), v)
        return self.proj(ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (-1, self.tokens, self.width)))


class Block(nn.Cell):
    """Attention and MLP, both residual with pre-normalisation and a layer scale."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        side: int,
        relative: bool,
        scale: Optional[float],
        eps: float,
        drop_path: float,
        drop: float,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm((width,), epsilon=eps), nn.LayerNorm((width,), epsilon=eps)
        self.attn, self.mlp = Attention(width, heads, side, relative), Mlp(width, hidden, drop)
        self.drop_path = DropPath(drop_path)
        self.scaled = scale is not None
        if self.scaled:
            self.gamma_1 = Parameter(ms.Tensor(np.full((width,), scale, np.float32)))
            self.gamma_2 = Parameter(ms.Tensor(np.full((width,), scale, np.float32)))

    def construct(self, x: Tensor) -> Tensor:
        y = self.attn(self.norm1(x))
        x = x + self.drop_path(self.gamma_1 * y if self.scaled else y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(self.gamma_2 * y if self.scaled else y)


class BEiT(nn.Cell):
    """BEiT: (N, in_channels, image_size, image_size) -> (N, num_classes) raw logits.

    Parameters
    ----------
    num_classes, in_channels, width, depth, heads : int
    hidden : int, optional
        Width inside the MLP; four times ``width`` without it.
    image_size, patch_size : int
    ln_eps : float
        1e-6 in timm, 1e-12 in transformers.
    pooling : {"mean", "token"}
        What is classified: the mean of the patches, then ``fc_norm``; or the class token of the normalised output.
    relative, absolute : bool
        Whether there are relative positions in every block, and a table of absolute ones.
    layer_scale : float or None
        Initial value; None: there are no layer scales.
    drop_rate, drop_path_rate : float

    Raises
    ------
    UserError
        ``pooling`` is neither of the two.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: Optional[int] = None,
        image_size: int = 224,
        patch_size: int = 16,
        ln_eps: float = 1e-6,
        pooling: str = "mean",
        relative: bool = True,
        absolute: bool = False,
        layer_scale: Optional[float] = 0.1,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "token"):
            raise UserError(f"pooling: {pooling!r}: one of mean, token")
        small, side = TruncatedNormal(0.02), image_size // patch_size
        self.cls_token = Parameter(initializer(small, (1, 1, width), ms.float32))
        self.patch_embed, self.pos_drop = Embed(in_channels, width, patch_size), dropout(drop_rate)
        self.absolute = absolute
        if absolute:
            self.pos_embed = Parameter(initializer(small, (1, side * side + 1, width), ms.float32))
        paths = np.linspace(0, drop_path_rate, depth).tolist()
        hidden = hidden or 4 * width
        self.blocks = nn.SequentialCell(
            [Block(width, heads, hidden, side, relative, layer_scale, ln_eps, path, drop_rate) for path in paths]
        )
        self.mean = pooling == "mean"
        if self.mean:
            self.fc_norm = nn.LayerNorm((width,), epsilon=ln_eps)
        else:
            self.norm = nn.LayerNorm((width,), epsilon=ln_eps)
        self.head = nn.Dense(width, num_classes)
        initialise_small(self)

    def construct(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        # A zero with the right batch size: broadcasting keeps the batch dimension dynamic in an export.
        x = ops.concat((x[:, :1] * 0 + self.cls_token, x), 1)
        if self.absolute:
            x = x + self.pos_embed
        x = self.blocks(self.pos_drop(x))
        return self.head(self.fc_norm(x[:, 1:].mean(1)) if self.mean else self.norm(x)[:, 0])


@register
def beit(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> BEiT:
    """BEiT of any ``width``, ``depth`` and ``heads``; without them a BEiT-Base/16."""
    return BEiT(num_classes, in_channels, **kwargs)


@register
def beit_b_16(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> BEiT:
    """BEiT-Base/16, 86.5 M parameters with an input of 224."""
    return BEiT(num_classes, in_channels, *SIZES["beit_b_16"], **kwargs)


@register
def beit_l_16(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> BEiT:
    """BEiT-Large/16, 304.4 M parameters with an input of 224."""
    return BEiT(num_classes, in_channels, *SIZES["beit_l_16"], **kwargs)
