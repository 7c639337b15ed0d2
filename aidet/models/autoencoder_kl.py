"""The autoencoder of Stable Diffusion 1.x and XL (AutoencoderKL, arXiv:2112.10752), and AIGC-clf's detector on it.

Parameter names follow diffusers, with MindSpore's ``gamma`` and ``beta`` for normalisations.
"""

import math
from typing import Any, Sequence

from mindspore import Tensor, nn, ops

from . import register
from .layers import GroupNorm, Swish, Upsample, conv, fill_scaled

SWISH = 1.68  # one over the root mean square of swish(z), z normal: the gain that keeps the scale behind a Swish


class Resnet(nn.Cell):
    """Two normalised 3x3 convolutions around a shortcut."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(32, cin), conv(cin, cout, 3, bias=True)
        self.norm2, self.conv2 = GroupNorm(32, cout), conv(cout, cout, 3, bias=True)
        self.act = Swish()
        self.conv_shortcut = conv(cin, cout, 1, bias=True) if cin != cout else nn.Identity()

    def construct(self, x: Tensor) -> Tensor:
        y = self.conv1(self.act(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(self.act(self.norm2(y)))


class Attention(nn.Cell):
    """Single-head self-attention over all positions of the feature map; residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = width**-0.5
        self.group_norm = GroupNorm(32, width)
        self.to_q, self.to_k, self.to_v = nn.Dense(width, width), nn.Dense(width, width), nn.Dense(width, width)
        self.to_out = nn.SequentialCell([nn.Dense(width, width)])
        self.softmax = nn.Softmax(-1)

    def construct(self, x: Tensor) -> Tensor:
        c, h, w = x.shape[1:]
        y = ops.transpose(ops.reshape(self.group_norm(x), (-1, c, h * w)), (0, 2, 1))
        weights = self.softmax(ops.matmul(self.to_q(y) * self.scale, ops.transpose(self.to_k(y), (0, 2, 1))))
        y = self.to_out(ops.matmul(weights, self.to_v(y)))
        return x + ops.reshape(ops.transpose(y, (0, 2, 1)), (-1, c, h, w))


class Middle(nn.Cell):
    """Residual, attention, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attentions = nn.SequentialCell([Attention(width)])
        self.resnets = nn.SequentialCell([Resnet(width, width), Resnet(width, width)])

    def construct(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions(self.resnets[0](x)))


class Down(nn.Cell):
    """Halve the size: a 3x3 convolution of stride 2 that pads at the right and bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 2, pad_mode="pad", padding=(0, 1, 0, 1), has_bias=True)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Up(nn.Cell):
    """Double the size: repeat pixels, 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.conv = Upsample(), conv(width, width, 3, bias=True)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(self.up(x))


class DownBlock(nn.Cell):
    """Residual blocks, then halving unless it is the last."""

    def __init__(self, cin: int, cout: int, depth: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.SequentialCell([Resnet(cin if i == 0 else cout, cout) for i in range(depth)])
        self.downsamplers = nn.SequentialCell([nn.Identity() if last else Down(cout)])

    def construct(self, x: Tensor) -> Tensor:
        return self.downsamplers(self.resnets(x))


class UpBlock(nn.Cell):
    """Residual blocks, then doubling unless it is the last."""

    def __init__(self, cin: int, cout: int, depth: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.SequentialCell([Resnet(cin if i == 0 else cout, cout) for i in range(depth)])
        self.upsamplers = nn.SequentialCell([nn.Identity() if last else Up(cout)])

    def construct(self, x: Tensor) -> Tensor:
        return self.upsamplers(self.resnets(x))


class Encoder(nn.Cell):
    """(N, 3, H, W) -> (N, 2 * latent_channels, H / 8, W / 8): mean and log-variance before ``quant_conv``."""

    def __init__(self, latent_channels: int, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = conv(3, widths[0], 3, bias=True)
        self.down_blocks = nn.SequentialCell(
            [DownBlock(widths[max(i - 1, 0)], w, depth, i == last) for i, w in enumerate(widths)]
        )
        self.mid_block = Middle(widths[-1])
        self.conv_norm_out, self.act = GroupNorm(32, widths[-1]), Swish()
        self.conv_out = conv(widths[-1], 2 * latent_channels, 3, bias=True)

    def construct(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.down_blocks(self.conv_in(x)))
        return self.conv_out(self.act(self.conv_norm_out(x)))


class Decoder(nn.Cell):
    """(N, latent_channels, h, w) -> (N, 3, 8 h, 8 w)."""

    def __init__(self, latent_channels: int, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        wide, last = widths[::-1], len(widths) - 1
        self.conv_in = conv(latent_channels, wide[0], 3, bias=True)
        self.mid_block = Middle(wide[0])
        self.up_blocks = nn.SequentialCell(
            [UpBlock(wide[max(i - 1, 0)], w, depth + 1, i == last) for i, w in enumerate(wide)]
        )
        self.conv_norm_out, self.act = GroupNorm(32, wide[-1]), Swish()
        self.conv_out = conv(wide[-1], 3, 3, bias=True)

    def construct(self, x: Tensor) -> Tensor:
        x = self.up_blocks(self.mid_block(self.conv_in(x)))
        return self.conv_out(self.act(self.conv_norm_out(x)))


class AutoencoderKL(nn.Cell):
    """Encoder, decoder and the 1x1 convolutions between them.

    Parameters
    ----------
    latent_channels : int
    widths : sequence of int
        Channels of each resolution (multiples of 32).
    depth : int
        Residual blocks per resolution in the encoder; the decoder has one more.
    quant : bool
        Whether there are ``quant_conv`` and ``post_quant_conv``.
    scaling_factor : float
        Factor by which diffusion models multiply latents (0.18215; SDXL 0.13025). Kept as an attribute, not applied.

    Notes
    -----
    ``construct`` takes images (N, 3, H, W) in [-1, 1], with sides that are multiples of 8, and returns the
    reconstruction from the mean of the posterior. ``encode`` returns that mean; ``decode`` takes latents.
    """

    def __init__(
        self,
        latent_channels: int = 4,
        widths: Sequence[int] = (128, 256, 512, 512),
        depth: int = 2,
        quant: bool = True,
        scaling_factor: float = 0.18215,
    ) -> None:
        super().__init__()
        self.latent_channels, self.scaling_factor = latent_channels, scaling_factor
        self.encoder = Encoder(latent_channels, tuple(widths), depth)
        self.decoder = Decoder(latent_channels, tuple(widths), depth)
        self.quant_conv = conv(2 * latent_channels, 2 * latent_channels, 1, bias=True) if quant else nn.Identity()
        self.post_quant_conv = conv(latent_channels, latent_channels, 1, bias=True) if quant else nn.Identity()

    def encode(self, x: Tensor) -> Tensor:
        """Mean of the posterior, (N, latent_channels, H / 8, W / 8)."""
        return self.quant_conv(self.encoder(x))[:, : self.latent_channels]

    def decode(self, z: Tensor) -> Tensor:
        """Images from latents."""
        return self.decoder(self.post_quant_conv(z))

    def construct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def start_scaled(encoder: Encoder, quant_conv: nn.Cell) -> None:
    """Random weights with which an encoder's activations keep their scale, for training without published weights.

    With the framework's own start (uniform, variance 1 / (3 inputs)) every layer keeps a third of the variance, and the
    posterior mean hardly depends on the image. Here a residual branch adds a fixed part to the variance of the stream,
    so that all of them together double it (the depth rule of Fixup, arXiv:1901.09321).
    """
    blocks = [c for _, c in encoder.cells_and_names() if isinstance(c, Resnet)]
    part = 1.0 / math.sqrt(len(blocks) + 1)
    for _, cell in encoder.cells_and_names():
        if isinstance(cell, (nn.Conv2d, nn.Dense)):
            fill_scaled(cell)
    for block in blocks:
        fill_scaled(block.conv1, SWISH)
        fill_scaled(block.conv2, SWISH * part)
    for _, cell in encoder.cells_and_names():
        if isinstance(cell, Attention):
            fill_scaled(cell.to_out[0], part)
    fill_scaled(encoder.conv_out, SWISH)
    fill_scaled(quant_conv)


class AutoencoderClassifier(nn.Cell):
    """AIGC-clf's ``aekl_clf``: the encoder's posterior mean, flattened, then three dense layers.

    (N, 3, 8 s, 8 s) in [0, 1] -> (N, num_classes) raw logits, with ``s = latent_size`` (32 for 256-pixel crops).
    """

    def __init__(
        self,
        num_classes: int = 2,
        latent_channels: int = 4,
        widths: Sequence[int] = (128, 256, 512, 512),
        depth: int = 2,
        latent_size: int = 32,
        hidden: Sequence[int] = (256, 128),
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.encoder = Encoder(latent_channels, tuple(widths), depth)
        self.quant_conv = conv(2 * latent_channels, 2 * latent_channels, 1, bias=True)
        self.flatten = nn.Flatten()
        self.clf = nn.SequentialCell(
            [
                nn.Dense(latent_channels * latent_size**2, hidden[0]),
                Swish(),
                nn.Dense(hidden[0], hidden[1]),
                Swish(),
                nn.Dense(hidden[1], num_classes),
            ]
        )
        start_scaled(self.encoder, self.quant_conv)
        # The last layer starts small: logits of its own would have to be unlearnt first.
        for i, gain in ((0, 1.0), (2, SWISH), (4, 0.01 * SWISH)):
            fill_scaled(self.clf[i], gain)

    def construct(self, x: Tensor) -> Tensor:
        return self.clf(self.flatten(self.quant_conv(self.encoder(x))[:, : self.latent_channels]))


@register
def autoencoder_kl(**kwargs: Any) -> AutoencoderKL:
    """AutoencoderKL of Stable Diffusion 1.x and XL, 83.7 M parameters."""
    return AutoencoderKL(**kwargs)


@register
def aekl_clf(num_classes: int = 2, in_channels: int = 3, **kwargs: Any) -> AutoencoderClassifier:
    """AIGC-clf's classifier on the encoder of AutoencoderKL, 35.2 M parameters."""
    if in_channels != 3:
        raise ValueError("aekl_clf takes three channels")
    return AutoencoderClassifier(num_classes, **kwargs)
