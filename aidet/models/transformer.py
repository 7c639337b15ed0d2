"""What the vision transformers share: attention, blocks, patches, and position embeddings read at another grid.

Written so that it exports to ONNX and keeps the batch dimension dynamic. Parameter names are timm's.
"""

from typing import Optional, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Constant, Normal, TruncatedNormal, initializer

from ..errors import UserError, nearest
from .layers import DropPath, Mlp, Sigmoid, Swish, dropout, gelu, initialise_small

# How a library reads position embeddings at another grid than theirs; see axis_weights.
INTERPOLATIONS = ("bicubic", "bicubic_antialias", "bicubic_offset")


class QuickGelu(Sigmoid):
    """``x * sigmoid(1.702 x)``, OpenAI's approximation of GELU."""

    def construct(self, x: Tensor) -> Tensor:
        return x * super().construct(x * 1.702)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": lambda: nn.GELU(approximate=True),
    "quick_gelu": QuickGelu,
}


class Attention(nn.Cell):
    """Multi-head self-attention with one fused projection: (N, tokens, C) in and out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads, self.scale = width, heads, (width // heads) ** -0.5
        self.qkv, self.proj, self.softmax = nn.Dense(width, 3 * width), nn.Dense(width, width), nn.Softmax(-1)

    def split(self, x: Tensor) -> Tensor:
        """(N, tokens, C) -> (N, heads, tokens, C / heads)."""
        return ops.transpose(ops.reshape(x, (-1, x.shape[1], self.heads, self.width // self.heads)), (0, 2, 1, 3))

    def weigh(self, scores: Tensor) -> Tensor:
        """The weight of each key for each query, of their products (N, heads, tokens, any)."""
        return self.softmax(scores)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Weighted means of the values, projected: queries (N, tokens, C), keys and values (N, any, C)."""
        tokens = q.shape[1]
        weights = self.weigh(ops.matmul(self.split(q) * self.scale, ops.transpose(self.split(k), (0, 1, 3, 2))))
        mixed = ops.transpose(ops.matmul(weights, self.split(v)), (0, 2, 1, 3))
        return self.proj(ops.reshape(mixed, (-1, tokens, self.width)))

    def construct(self, x: Tensor) -> Tensor:
        c = self.width
        qkv = self.qkv(x)
        return self.attend(qkv[:, :, :c], qkv[:, :, c : 2 * c], qkv[:, :, 2 * c :])


class LayerScale(nn.Cell):
    """A learned factor for each channel of a residual branch (arXiv:2103.17239)."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.gamma = Parameter(initializer(Constant(value), (width,), ms.float32))

    def construct(self, x: Tensor) -> Tensor:
        return x * self.gamma


class SwiGlu(nn.Cell):
    """A gated MLP (arXiv:2002.05202): ``fc2(swish(a) * b)``, where ``fc1`` gives a and b side by side."""

    def __init__(self, width: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.hidden = hidden
        self.fc1, self.act, self.fc2 = nn.Dense(width, 2 * hidden), Swish(), nn.Dense(hidden, width)
        self.drop = dropout(drop)

    def construct(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.drop(self.fc2(self.drop(self.act(x[:, :, : self.hidden]) * x[:, :, self.hidden :])))


class Block(nn.Cell):
    """Attention and MLP, both residual with pre-normalisation: (N, tokens, width) in and out.

    Parameters
    ----------
    width, heads : int
    eps : float
        Of both LayerNorms.
    drop_path, drop : float
    hidden : int, optional
        Width inside the MLP; default four times the width.
    act : str
        One of :data:`ACTIVATIONS`, or ``swiglu``.
    scale : float, optional
        Start of the layer scales; None: no layer scale.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        eps: float,
        drop_path: float,
        drop: float,
        hidden: Optional[int] = None,
        act: str = "gelu",
        scale: Optional[float] = None,
    ) -> None:
        super().__init__()
        hidden = hidden or 4 * width
        self.norm1, self.norm2 = nn.LayerNorm((width,), epsilon=eps), nn.LayerNorm((width,), epsilon=eps)
        self.attn, self.drop_path = Attention(width, heads), DropPath(drop_path)
        self.mlp = SwiGlu(width, hidden, drop) if act == "swiglu" else Mlp(width, hidden, drop, ACTIVATIONS[act])
        self.ls1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.ls2 = nn.Identity() if scale is None else LayerScale(width, scale)

    def attended(self, x: Tensor) -> Tensor:
        """The first half: the tokens after attention."""
        return x + self.drop_path(self.ls1(self.attn(self.norm1(x))))

    def construct(self, x: Tensor) -> Tensor:
        x = self.attended(x)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Embed(nn.Cell):
    """Patches to tokens: (N, C, H, W) -> (N, tokens, width). Pixels beyond the last whole patch are left out."""

    def __init__(self, in_channels: int, width: int, patch: int, bias: bool = True) -> None:
        super().__init__()
        self.width = width
        self.proj = nn.Conv2d(in_channels, width, patch, patch, pad_mode="valid", has_bias=bias)

    def construct(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return ops.transpose(ops.reshape(x, (-1, self.width, x.shape[2] * x.shape[3])), (0, 2, 1))


def axis_weights(old: int, new: int, how: str) -> np.ndarray:
    """Weights that read ``old`` values along an axis at ``new`` positions: float32 (new, old), rows sum to 1.

    Parameters
    ----------
    old, new : int
    how : {"bicubic", "bicubic_antialias", "bicubic_offset"}
        ``bicubic`` is ``torch.nn.functional.interpolate(size=new)``, Keys' kernel with -0.75: transformers' DINOv2,
        CLIP and SigLIP. ``bicubic_antialias`` has a kernel with -0.5 that widens where the grid shrinks: timm, and the
        DINOv2 with registers of both the hub and transformers. ``bicubic_offset`` is ``bicubic`` with the scale factor
        ``(new + 0.1) / old``: the hub's DINOv2 without registers.

    Returns
    -------
    numpy.ndarray
    """
    weights = np.zeros((new, old), np.float32)
    # Places in float32, as PyTorch computes them: a rounded place moves the result by more than a rounded weight.
    step = np.float32(old / (new + (0.1 if how == "bicubic_offset" else 0.0)))
    for i in range(new):
        centre = step * np.float32(i + 0.5)
        if how == "bicubic_antialias":
            wide = max(step, np.float32(1))
            first, last = max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), old)
            row = _keys((np.arange(first, last) - centre + 0.5) / wide, -0.5)
            weights[i, first:last] = row / row.sum()
            continue
        centre = centre - np.float32(0.5)
        taps = int(np.floor(centre)) + np.arange(-1, 3)
        # A tap beyond the border takes the value at the border.
        np.add.at(weights[i], np.clip(taps, 0, old - 1), _keys(taps - centre, -0.75))
    return weights


def _keys(x, a):
    """Keys' cubic convolution kernel (1981)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


class Resample(nn.Cell):
    """Position embeddings of a square grid, read at another: (1, lead + old**2, C) -> (1, lead + new**2, C).

    The first ``lead`` embeddings belong to no patch and stay as they are. Weights are kept as they were published, so
    the resampling is part of the net, as it is in the libraries.
    """

    def __init__(self, old: int, new: int, lead: int, how: str) -> None:
        super().__init__()
        if how not in INTERPOLATIONS:
            raise UserError(nearest(how, INTERPOLATIONS, "interpolation"))
        self.old, self.new, self.lead, self.same = old, new, lead, old == new
        if not self.same:
            self.weights = Tensor(axis_weights(old, new, how))

    def along(self, x: Tensor, length: int) -> Tensor:
        """Resample the first axis of (old, length, C) and swap the first two: (length, new, C)."""
        c = x.shape[2]
        x = ops.reshape(ops.matmul(self.weights, ops.reshape(x, (self.old, length * c))), (self.new, length, c))
        return ops.transpose(x, (1, 0, 2))

    def construct(self, table: Tensor) -> Tensor:
        if self.same:
            return table
        c = table.shape[2]
        grid = ops.reshape(table[0, self.lead :], (self.old, self.old, c))
        grid = self.along(self.along(grid, self.old), self.new)
        grid = ops.reshape(grid, (1, self.new * self.new, c))
        return ops.concat((table[:, : self.lead], grid), 1) if self.lead else grid


class Tower(nn.Cell):
    """Patches, positions and blocks; what is read out of the tokens is up to the subclass.

    Parameters
    ----------
    width, depth : int
    heads : int, optional
        Default: one for every 64 channels.
    patch_size, image_size, in_channels : int
    hidden : int, optional
        Width inside the MLPs; default four times the width.
    ln_eps : float
    act : str
        One of :data:`ACTIVATIONS`, or ``swiglu``.
    scale : float, optional
        Start of the layer scales; None: none.
    lead : int
        Tokens in front of the patches: 0; 1, the class token; 2, also DeiT's distillation token.
    lead_positions : bool
        Whether these tokens have position embeddings.
    registers : int
        Tokens without position behind the class token (arXiv:2309.16588).
    pre_norm, patch_bias : bool
        CLIP normalises before the first block, and its patches have no bias.
    grid : int, optional
        Side of the grid that the position embeddings are stored for; default that of the image.
    interpolation : str
        How they are read if the image has another grid: one of :data:`INTERPOLATIONS`.
    drop_rate, drop_path_rate : float

    Raises
    ------
    UserError
        The numbers do not fit together.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: Optional[int] = None,
        patch_size: int = 16,
        image_size: int = 224,
        in_channels: int = 3,
        hidden: Optional[int] = None,
        ln_eps: float = 1e-6,
        act: str = "gelu",
        scale: Optional[float] = None,
        lead: int = 1,
        lead_positions: bool = True,
        registers: int = 0,
        pre_norm: bool = False,
        patch_bias: bool = True,
        grid: Optional[int] = None,
        interpolation: str = "bicubic",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        heads = heads or max(1, width // 64)
        if act not in (*ACTIVATIONS, "swiglu"):
            raise UserError(nearest(act, (*ACTIVATIONS, "swiglu"), "act"))
        if width % heads:
            raise UserError(f"heads (={heads}) must divide the width {width}")
        side = image_size // patch_size
        if side < 1:
            raise UserError(f"image_size (={image_size}) must be at least the patch of {patch_size} pixels")
        self.width, self.depth, self.lead, self.registers = width, depth, lead, registers
        self.level: nn.Cell = FirstToken()
        self.lead_positions, self.has_norm = lead_positions, pre_norm
        placed = lead if lead_positions else 0
        small = TruncatedNormal(0.02)
        if lead:
            self.cls_token = Parameter(initializer(small, (1, 1, width), ms.float32))
        if registers:
            self.reg_token = Parameter(initializer(Normal(1e-6), (1, registers, width), ms.float32))
        stored = (grid or side) ** 2 + placed
        self.pos_embed = Parameter(initializer(small, (1, stored, width), ms.float32))
        if lead > 1:
            self.dist_token = Parameter(initializer(small, (1, 1, width), ms.float32))
        self.patch_embed, self.pos_drop = Embed(in_channels, width, patch_size, patch_bias), dropout(drop_rate)
        self.positions = Resample(grid or side, side, placed, interpolation)
        if pre_norm:
            self.norm_pre = nn.LayerNorm((width,), epsilon=ln_eps)
        last = max(1, depth - 1)
        self.blocks = nn.SequentialCell(
            [
                Block(width, heads, ln_eps, drop_path_rate * i / last, drop_rate, hidden, act, scale)
                for i in range(depth)
            ]
        )
        initialise_small(self.blocks)
        self.norm = nn.LayerNorm((width,), epsilon=ln_eps)

    def embed(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) -> the tokens in front of the first block (N, lead + registers + patches, width)."""
        x = self.patch_embed(x)
        # A zero with the right batch size: broadcasting keeps the batch dimension dynamic in an export.
        zero = x[:, :1] * 0
        table = self.positions(self.pos_embed)
        if not self.lead_positions:
            x = x + table
        if self.lead > 1:
            x = ops.concat((zero + self.cls_token, zero + self.dist_token, x), 1)
        elif self.lead:
            x = ops.concat((zero + self.cls_token, x), 1)
        if self.lead_positions:
            x = x + table
        if self.registers:
            x = ops.concat((x[:, : self.lead], zero + self.reg_token, x[:, self.lead :]), 1)
        x = self.pos_drop(x)
        return self.norm_pre(x) if self.has_norm else x

    def tokens(self, x: Tensor) -> Tensor:
        """Images -> the tokens behind the last block, not normalised: (N, lead + registers + patches, width)."""
        return self.blocks(self.embed(x))

    def patches(self, x: Tensor) -> Tensor:
        """The tokens of patches among all tokens."""
        return x[:, self.lead + self.registers :]

    def levels(self, x: Tensor) -> Tensor:
        """What :attr:`level` reads of every block behind its second norm: (N, depth, width) for RINE's first tokens."""
        x = self.embed(x)
        # Neither a list nor a branch in the loop: compiling either in a training step failed now and then (LOG.md).
        found: Tuple[Tensor, ...] = ()
        for block in self.blocks:
            x = block.attended(x)
            normal = block.norm2(x)
            found = found + (self.level(normal),)
            x = x + block.drop_path(block.ls2(block.mlp(normal)))
        return ops.concat(found, 1)


class FirstToken(nn.Cell):
    """(N, tokens, width) -> (N, 1, width)."""

    def construct(self, x: Tensor) -> Tensor:
        return x[:, :1]


class FirstAndMean(nn.Cell):
    """(N, tokens, width) -> (N, 2, width): the first token and the mean of those from ``start`` on."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start

    def construct(self, x: Tensor) -> Tensor:
        return ops.concat((x[:, :1], ops.expand_dims(x[:, self.start :].mean(1), 1)), 1)
