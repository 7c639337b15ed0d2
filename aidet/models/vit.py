"""Vision Transformer (arXiv:2010.11929) and distilled DeiT (arXiv:2012.12877): tiny, small, base at 224 and 384.

Parameter names are MindCV's (and timm's). LayerNorm's epsilon is an argument because the published ones differ: timm
1e-6, Hugging Face 1e-12. A DeiT without distillation token is a ViT.
"""

from typing import Any, Optional

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import TruncatedNormal, initializer

from . import register
from .layers import DropPath, Mlp, dropout

# width, heads; depth is 12 and the hidden width four times the width
SIZES = {"t": (192, 3), "s": (384, 6), "b": (768, 12)}


class Attention(nn.Cell):
    """Multi-head self-attention with one fused projection: (N, tokens, C) in and out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads, self.scale = width, heads, (width // heads) ** -0.5
        self.qkv, self.proj, self.softmax = nn.Dense(width, 3 * width), nn.Dense(width, width), nn.Softmax(-1)

    def split(self, x: Tensor) -> Tensor:
        """(N, tokens, C) -> (N, heads, tokens, C / heads)."""
        return ops.transpose(ops.reshape(x, (-1, x.shape[1], self.heads, self.width // self.heads)), (0, 2, 1, 3))

    def construct(self, x: Tensor) -> Tensor:
        tokens, c = x.shape[1], self.width
        qkv = self.qkv(x)
        q, k, v = self.split(qkv[:, :, :c]), self.split(qkv[:, :, c : 2 * c]), self.split(qkv[:, :, 2 * c :])
        weights = self.softmax(ops.matmul(q * self.scale, ops.transpose(k, (0, 1, 3, 2))))
        return self.proj(ops.reshape(ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3)), (-1, tokens, c)))


class Block(nn.Cell):
    """Attention and MLP, both residual with pre-normalisation."""

    def __init__(self, width: int, heads: int, eps: float, drop_path: float, drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm((width,), epsilon=eps), nn.LayerNorm((width,), epsilon=eps)
        self.attn, self.mlp, self.drop_path = Attention(width, heads), Mlp(width, 4 * width, drop), DropPath(drop_path)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Embed(nn.Cell):
    """Patches to tokens: (N, C, H, W) -> (N, tokens, width)."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.width = width
        self.proj = nn.Conv2d(in_channels, width, patch, patch, pad_mode="valid", has_bias=True)

    def construct(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return ops.transpose(ops.reshape(x, (-1, self.width, x.shape[2] * x.shape[3])), (0, 2, 1))


class ViT(nn.Cell):
    """Vision Transformer: (N, in_channels, image_size, image_size) -> (N, num_classes) raw logits.

    Parameters
    ----------
    size : {"t", "s", "b"}
    image_size, patch_size, num_classes, in_channels : int
    ln_eps : float
    distilled : {None, "token", "heads"}
        ``token`` has DeiT's distillation token and reads the class token alone (Hugging Face's
        ``DeiTForImageClassification``); ``heads`` has a second head on that token and gives the mean of the two (timm's
        distilled models, ``DeiTForImageClassificationWithTeacher``).
    drop_rate, drop_path_rate : float
    """

    def __init__(
        self,
        size: str,
        image_size: int = 224,
        num_classes: int = 1000,
        in_channels: int = 3,
        patch_size: int = 16,
        ln_eps: float = 1e-6,
        distilled: Optional[str] = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        width, heads = SIZES[size]
        extra = 2 if distilled else 1
        small = TruncatedNormal(0.02)
        self.cls_token = Parameter(initializer(small, (1, 1, width), ms.float32))
        self.pos_embed = Parameter(initializer(small, (1, (image_size // patch_size) ** 2 + extra, width), ms.float32))
        self.has_token, self.has_heads = distilled is not None, distilled == "heads"
        if self.has_token:
            self.dist_token = Parameter(initializer(small, (1, 1, width), ms.float32))
        self.patch_embed, self.pos_drop = Embed(in_channels, width, patch_size), dropout(drop_rate)
        self.blocks = nn.SequentialCell(
            [Block(width, heads, ln_eps, drop_path_rate * i / 11, drop_rate) for i in range(12)]
        )
        self.norm = nn.LayerNorm((width,), epsilon=ln_eps)
        self.head = nn.Dense(width, num_classes, weight_init=small)
        if self.has_heads:
            self.head_dist = nn.Dense(width, num_classes, weight_init=small)

    def construct(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        # A zero with the right batch size: broadcasting keeps the batch dimension dynamic in an export.
        zero = x[:, :1] * 0
        if self.has_token:
            x = ops.concat((zero + self.cls_token, zero + self.dist_token, x), 1)
        else:
            x = ops.concat((zero + self.cls_token, x), 1)
        x = self.norm(self.blocks(self.pos_drop(x + self.pos_embed)))
        logits = self.head(x[:, 0])
        return (logits + self.head_dist(x[:, 1])) / 2 if self.has_heads else logits


@register
def vit_t_16_224(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """ViT-Tiny/16, 5.7 M parameters, input 224."""
    return ViT("t", 224, num_classes, in_channels, **kwargs)


@register
def vit_t_16_384(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """ViT-Tiny/16, 5.7 M parameters, input 384."""
    return ViT("t", 384, num_classes, in_channels, **kwargs)


@register
def vit_s_16_224(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """ViT-Small/16, 22 M parameters, input 224."""
    return ViT("s", 224, num_classes, in_channels, **kwargs)


@register
def vit_s_16_384(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """ViT-Small/16, 22 M parameters, input 384."""
    return ViT("s", 384, num_classes, in_channels, **kwargs)


@register
def vit_b_16_224(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """ViT-Base/16, 86 M parameters, input 224."""
    return ViT("b", 224, num_classes, in_channels, **kwargs)


@register
def vit_b_16_384(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """ViT-Base/16, 86 M parameters, input 384."""
    return ViT("b", 384, num_classes, in_channels, **kwargs)


@register
def deit_t_16_224(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """Distilled DeiT-Tiny/16, 5.7 M parameters, input 224."""
    return ViT("t", 224, num_classes, in_channels, **{"distilled": "heads", **kwargs})


@register
def deit_t_16_384(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """Distilled DeiT-Tiny/16, 5.7 M parameters, input 384."""
    return ViT("t", 384, num_classes, in_channels, **{"distilled": "heads", **kwargs})


@register
def deit_s_16_224(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """Distilled DeiT-Small/16, 22 M parameters, input 224."""
    return ViT("s", 224, num_classes, in_channels, **{"distilled": "heads", **kwargs})


@register
def deit_s_16_384(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """Distilled DeiT-Small/16, 22 M parameters, input 384."""
    return ViT("s", 384, num_classes, in_channels, **{"distilled": "heads", **kwargs})


@register
def deit_b_16_224(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """Distilled DeiT-Base/16, 86 M parameters, input 224."""
    return ViT("b", 224, num_classes, in_channels, **{"distilled": "heads", **kwargs})


@register
def deit_b_16_384(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """Distilled DeiT-Base/16, 86 M parameters, input 384."""
    return ViT("b", 384, num_classes, in_channels, **{"distilled": "heads", **kwargs})
