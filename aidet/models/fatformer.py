"""FatFormer (CVPR 2024, arXiv:2312.16649): CLIP with adapters for traces of generators, and texts that see the image.

Rebuilt from the paper and from the authors' public code (Michel-liu/FatFormer). Three blocks of the image tower have an
adapter beside their MLP, which looks at the patches and at their Haar bands. The context of the prompts "real" and
"fake" attends to the image before CLIP's text tower reads them; the score compares both texts with the class token, and
with the patches after these have attended to the texts.
"""

from typing import Any, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from ..errors import UserError
from . import register
from .clip import L2Normalize, sizes
from .layers import GroupNorm, Mlp
from .transformer import Attention, Block, Tower

EPS = 1e-5


def cross(attention: Attention, x: Tensor, seen: Tensor) -> Tensor:
    """Tokens (N, n, C) attend to others (N, m, C): (N, n, C)."""
    c = attention.width
    query, others = attention.qkv(x)[:, :, :c], attention.qkv(seen)
    return attention.attend(query, others[:, :, c : 2 * c], others[:, :, 2 * c :])


class Causal(Attention):
    """Self-attention in which a token sees itself and those before it: (N, tokens, C) in and out."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__(width, heads)
        # So far below any weight that its exponential is zero.
        self.mask = Tensor(np.triu(np.full((1, 1, tokens, tokens), -1e9, np.float32), 1))

    def weigh(self, scores: Tensor) -> Tensor:
        return self.softmax(scores + self.mask)


class Look(nn.Cell):
    """Cross-attention and MLP, each residual with the norm behind it: (N, n, C) and (N, m, C) -> (N, n, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(width, heads), Mlp(width, 4 * width, act=nn.ReLU)
        self.norm1, self.norm2 = nn.LayerNorm((width,), epsilon=EPS), nn.LayerNorm((width,), epsilon=EPS)

    def construct(self, x: Tensor, seen: Tensor) -> Tensor:
        x = self.norm1(x + cross(self.attn, x, seen))
        return self.norm2(x + self.mlp(x))


def haar(x: Tensor) -> Tensor:
    """One step of the orthonormal Haar transform of four pixels (N, 4, ...), which is its own inverse."""
    a, b, c, d = x[:, 0:1], x[:, 1:2], x[:, 2:3], x[:, 3:4]
    return ops.concat((a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d), 1) * 0.5


class Adapter(nn.Cell):
    """The forgery-aware adapter: tokens (N, 1 + side**2, width) -> what is added to them, of the same shape.

    Parameters
    ----------
    width, side : int
        Of the tokens, and of the grid of patches; even.
    bottleneck : int
        Width between the two layers of the branch of pixels, whose result counts a tenth.
    heads, groups : int
        Of both attentions and of the norm in the branch of frequencies.
    """

    def __init__(self, width: int, side: int, bottleneck: int, heads: int, groups: int) -> None:
        super().__init__()
        if side % 2:
            raise UserError(f"the grid of {side} x {side} patches has no halves: image_size / patch_size must be even")
        self.width, self.half = width, side // 2
        self.down, self.act, self.up = nn.Dense(width, bottleneck), nn.ReLU(), nn.Dense(bottleneck, width)
        self.scale = Parameter(initializer("zeros", (1,), ms.float32))
        self.norm = GroupNorm(groups, width, EPS)
        self.across, self.within = Attention(width, heads), Attention(width, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm((width,), epsilon=EPS) for _ in range(3))
        self.mlp = Mlp(width, 4 * width, act=nn.ReLU)

    def frequencies(self, x: Tensor) -> Tensor:
        """Bands (N, 4, places, width): each place attends across its bands, each band to all of its places."""
        places, c = self.half * self.half, self.width
        x = ops.transpose(self.norm(ops.transpose(x, (0, 3, 1, 2))), (0, 2, 3, 1))
        y = self.across(ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, 4, c)))
        x = self.norm1(x + ops.transpose(ops.reshape(y, (-1, places, 4, c)), (0, 2, 1, 3)))
        y = self.within(ops.reshape(x, (-1, places, c)))
        x = self.norm2(x + ops.reshape(y, (-1, 4, places, c)))
        return self.norm3(x + self.mlp(x))

    def construct(self, x: Tensor) -> Tensor:
        h, c = self.half, self.width
        y = ops.transpose(ops.reshape(x[:, 1:], (-1, h, 2, h, 2, c)), (0, 2, 4, 1, 3, 5))
        y = haar(self.frequencies(haar(ops.reshape(y, (-1, 4, h * h, c)))))
        y = ops.transpose(ops.reshape(y, (-1, 2, 2, h, h, c)), (0, 3, 1, 4, 2, 5))
        y = ops.concat((x[:, :1] * 0, ops.reshape(y, (-1, 4 * h * h, c))), 1)
        return self.up(self.act(self.down(x))) * 0.1 + y * self.scale


class Texts(nn.Cell):
    """CLIP's text tower on embeddings: (N, tokens, width) -> the same, normalised."""

    def __init__(self, width: int, depth: int, tokens: int, stored: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.pos_embed = Parameter(initializer(Normal(0.01), (stored, width), ms.float32))
        blocks = [Block(width, width // 64, EPS, 0.0, 0.0, act="quick_gelu") for _ in range(depth)]
        for block in blocks:
            block.attn = Causal(width, width // 64, tokens)
        self.blocks, self.norm = nn.SequentialCell(blocks), nn.LayerNorm((width,), epsilon=EPS)

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(x + self.pos_embed[: self.tokens]))


class FatFormer(Tower):
    """The detector: (N, in_channels, image_size, image_size) -> (N, num_classes) raw logits.

    Parameters
    ----------
    num_classes : int
    adapted : sequence of int
        Numbers of the blocks with an adapter.
    bottleneck, adapter_heads, groups : int
        Of :class:`Adapter`.
    text_width, text_depth : int
        Of the text tower, with one head for every 64 channels. The image's features are as wide.
    heads_between : int
        Heads of the attention between texts and image.
    context : int
        Tokens of the context in front of a class's name.
    suffix : int
        Tokens stored behind the context: the name, the end, and what fills the rest.
    ends : sequence of int
        Where each class's text ends, counted from 0. No text is read beyond the last of these.
    **tower
        Of :class:`.transformer.Tower`.

    Raises
    ------
    UserError
        Numbers that do not fit together.
    """

    def __init__(
        self,
        num_classes: int = 2,
        adapted: Sequence[int] = (7, 15, 23),
        bottleneck: int = 64,
        adapter_heads: int = 8,
        groups: int = 128,
        text_width: int = 768,
        text_depth: int = 12,
        heads_between: int = 12,
        context: int = 8,
        suffix: int = 68,
        ends: Sequence[int] = (11, 11),
        **tower: Any,
    ) -> None:
        super().__init__(**{"ln_eps": EPS, "act": "quick_gelu", **tower}, pre_norm=True, patch_bias=False)
        if len(ends) != num_classes or not context < min(ends) <= max(ends) <= context + suffix:
            raise UserError(f"ends (={list(ends)}) must place the end of each of {num_classes} texts in its suffix")
        side = tower.get("image_size", 224) // tower.get("patch_size", 16)
        self.ends = tuple(ends)
        # Which adapter each block has; -1: none.
        self.places = tuple(list(adapted).index(i) if i in adapted else -1 for i in range(self.depth))
        self.length = max(ends) + 1
        self.rest = self.length - 1 - context
        rows = {"context": (context,), "prefix": (num_classes, 1), "suffix": (num_classes, suffix)}
        small = {k: initializer(Normal(0.02), (*shape, text_width), ms.float32) for k, shape in rows.items()}
        self.context = Parameter(small["context"])
        self.prefix = Parameter(small["prefix"], requires_grad=False)
        self.suffix = Parameter(small["suffix"], requires_grad=False)
        self.adapters = nn.CellList([Adapter(self.width, side, bottleneck, adapter_heads, groups) for _ in adapted])
        self.projection = nn.Dense(self.width, text_width, has_bias=False)
        self.enhancer, self.interactor = Look(text_width, heads_between), Look(text_width, heads_between)
        self.text = Texts(text_width, text_depth, self.length, 1 + context + suffix)
        self.text_projection = nn.Dense(text_width, text_width, has_bias=False)
        self.text_width, self.unit = text_width, L2Normalize()
        self.logit_scale = Parameter(initializer(float(np.log(1 / 0.07)), (1,), ms.float32))

    def tokens(self, x: Tensor) -> Tensor:
        """Images -> the tokens behind the last block, adapters included."""
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = block.attended(x)
            y = x + block.mlp(block.norm2(x))
            x = y + self.adapters[self.places[i]](x) if self.places[i] >= 0 else y
        return x

    def texts(self, image: Tensor) -> Tensor:
        """Features of the image's tokens (N, tokens, C) -> those of each class's text, (N, num_classes, C)."""
        zero = image[:, :1] * 0
        context = self.enhancer(zero + self.context, image)
        prompts = []
        for i in range(len(self.ends)):
            prompts += [zero + self.prefix[i : i + 1], context, zero + self.suffix[i : i + 1, : self.rest]]
        count, width = self.length, self.text_width
        x = self.text(ops.reshape(ops.concat(tuple(prompts), 1), (-1, count, width)))
        x = ops.reshape(x, (-1, len(self.ends) * count, width))
        x = ops.concat(tuple(x[:, i * count + e : i * count + e + 1] for i, e in enumerate(self.ends)), 1)
        return self.text_projection(x)

    def construct(self, x: Tensor) -> Tensor:
        x = self.projection(self.norm(self.tokens(x)))
        texts = self.texts(x)
        patches = self.interactor(x[:, 1:], texts).mean(1)
        # Both similarities have the texts in common, so that they are added before they are compared.
        image = ops.expand_dims(self.unit(x[:, 0]) + self.unit(patches), 2)
        lengths = ops.sqrt((texts * texts).sum(2, keepdims=True) + 1e-24)
        return ops.exp(self.logit_scale) * ops.matmul(texts / lengths, image)[:, :, 0]


@register
def fatformer(num_classes: int = 2, in_channels: int = 3, **kwargs: Any) -> FatFormer:
    """FatFormer; by default on CLIP ViT-L/14 with three adapters, 454.8 M parameters, input 224."""
    tower = {k: v for k, v in sizes("clip_vit_l_14").items() if k != "projection"}
    return FatFormer(num_classes, in_channels=in_channels, **{**tower, **kwargs})
