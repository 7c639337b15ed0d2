"""ConvNeXt V2 (arXiv:2301.00808), atto to large: global response normalisation instead of a layer scale; exact GELU."""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from . import register
from .convnext import EPS, Trunk
from .layers import DropPath

SIZES = {
    "convnext_v2_atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "convnext_v2_femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "convnext_v2_pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "convnext_v2_nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "convnext_v2_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_v2_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_v2_large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}


class ResponseNorm(nn.Cell):
    """Global response normalisation of (N, H, W, C): a channel counts by its share of the energy of the whole map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = Parameter(ms.Tensor(np.zeros((channels,), np.float32)))
        self.bias = Parameter(ms.Tensor(np.zeros((channels,), np.float32)))

    def construct(self, x: Tensor) -> Tensor:
        energy = ops.sqrt((x * x).sum((1, 2), keepdims=True))
        share = energy / (energy.mean(-1, keep_dims=True) + EPS)
        return x + self.bias + self.weight * (x * share)


class Block(nn.Cell):
    """7x7 depthwise convolution, LayerNorm, dense, GELU, response normalisation, dense; residual. (N, C, H, W)."""

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, pad_mode="pad", padding=3, group=width, has_bias=True)
        self.norm = nn.LayerNorm((width,), epsilon=EPS)
        self.pwconv1, self.act = nn.Dense(width, 4 * width), nn.GELU(approximate=False)
        self.grn, self.pwconv2 = ResponseNorm(4 * width), nn.Dense(4 * width, width)
        self.drop_path = DropPath(drop_path)

    def construct(self, x: Tensor) -> Tensor:
        y = self.norm(ops.transpose(self.dwconv(x), (0, 2, 3, 1)))
        y = self.pwconv2(self.grn(self.act(self.pwconv1(y))))
        return x + self.drop_path(ops.transpose(y, (0, 3, 1, 2)))


class ConvNeXtV2(Trunk):
    """ConvNeXt V2: (N, in_channels, H, W) -> (N, num_classes) raw logits.

    Parameters
    ----------
    name : str
        Key of :data:`SIZES`.
    num_classes, in_channels : int
    drop_path_rate : float
    head_eps : float
        Epsilon of the last LayerNorm: 1e-6 in the paper's code and timm, 1e-12 in transformers.
    stem_stride : int
        See :class:`aidet.models.convnext.Trunk`.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        head_eps: float = EPS,
        stem_stride: int = 4,
    ) -> None:
        super().__init__(SIZES[name], Block, num_classes, in_channels, drop_path_rate, head_eps, stem_stride)


@register
def convnext_v2_atto(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ConvNeXtV2:
    """ConvNeXt V2-Atto, 3.7 M parameters."""
    return ConvNeXtV2("convnext_v2_atto", num_classes, in_channels, **kwargs)


@register
def convnext_v2_femto(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ConvNeXtV2:
    """ConvNeXt V2-Femto, 5.2 M parameters."""
    return ConvNeXtV2("convnext_v2_femto", num_classes, in_channels, **kwargs)


@register
def convnext_v2_pico(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ConvNeXtV2:
    """ConvNeXt V2-Pico, 9.1 M parameters."""
    return ConvNeXtV2("convnext_v2_pico", num_classes, in_channels, **kwargs)


@register
def convnext_v2_nano(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ConvNeXtV2:
    """ConvNeXt V2-Nano, 15.6 M parameters."""
    return ConvNeXtV2("convnext_v2_nano", num_classes, in_channels, **kwargs)


@register
def convnext_v2_tiny(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ConvNeXtV2:
    """ConvNeXt V2-Tiny, 28.6 M parameters."""
    return ConvNeXtV2("convnext_v2_tiny", num_classes, in_channels, **kwargs)


@register
def convnext_v2_base(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ConvNeXtV2:
    """ConvNeXt V2-Base, 88.7 M parameters."""
    return ConvNeXtV2("convnext_v2_base", num_classes, in_channels, **kwargs)


@register
def convnext_v2_large(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ConvNeXtV2:
    """ConvNeXt V2-Large, 198.0 M parameters."""
    return ConvNeXtV2("convnext_v2_large", num_classes, in_channels, **kwargs)
