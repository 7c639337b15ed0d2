"""TAESD, tiny autoencoders of diffusion latents (madebyollin/taesd): 8x, the FLUX.2 variant, and the 32x Sana encoder.

Images are in [0, 1]. The numbered names are those of the published files, so each half is a single sequence.
"""

from typing import Sequence

from mindspore import Tensor, nn, ops

from . import register
from .layers import GroupNorm, Upsample, conv


class Clamp(nn.Cell):
    """Soft limit of latents: ``3 * tanh(x / 3)``."""

    def construct(self, x: Tensor) -> Tensor:
        return ops.tanh(x / 3) * 3


class Block(nn.Cell):
    """conv-ReLU-conv-ReLU-conv plus the input, then ReLU; ``pool`` adds a group-norm branch before it."""

    def __init__(self, cin: int, cout: int, pool: bool = False) -> None:
        super().__init__()
        first, second, third = (conv(n, cout, 3, bias=True) for n in (cin, cout, cout))
        self.conv = nn.SequentialCell([first, nn.ReLU(), second, nn.ReLU(), third])
        self.skip = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1, has_bias=False)
        self.relu = nn.ReLU()
        self.pooled = pool
        if pool:
            self.pool = nn.SequentialCell(
                [
                    nn.Conv2d(cin, 4 * cin, 1, has_bias=False),
                    GroupNorm(4, 4 * cin, 1e-5),
                    nn.ReLU(),
                    nn.Conv2d(4 * cin, cin, 1, has_bias=False),
                ]
            )

    def construct(self, x: Tensor) -> Tensor:
        if self.pooled:
            x = x + self.pool(x)
        return self.relu(self.conv(x) + self.skip(x))


def _encoder(latent_channels: int, pool: bool, deep: bool) -> nn.Cell:
    if deep:
        cells = [conv(3, 32, 3, 2, bias=True), nn.ReLU(), conv(32, 64, 3, 2, bias=True), nn.ReLU(), Block(64, 64)]
    else:
        cells = [conv(3, 64, 3, bias=True), Block(64, 64)]
    for stage in range(3):
        cells += [conv(64, 64, 3, 2)] + [Block(64, 64, pool and stage == 2) for _ in range(3)]
    return nn.SequentialCell(cells + [conv(64, latent_channels, 3, bias=True)])


def _decoder(latent_channels: int, pool: bool, widths: Sequence[int]) -> nn.Cell:
    cells = [Clamp(), conv(latent_channels, widths[0], 3, bias=True), nn.ReLU()]
    for stage, width in enumerate(widths):
        after = widths[min(stage + 1, len(widths) - 1)]
        cells += [Block(width, width, pool and stage == 0) for _ in range(3)]
        cells += [Upsample(), conv(width, after, 3)]
    return nn.SequentialCell(cells + [Block(64, 64), conv(64, 3, 3, bias=True)])


class Half(nn.Cell):
    """One half of a tiny autoencoder: the numbered sequence of the published file.

    Encoder: (N, 3, H, W) in [0, 1] -> (N, latent_channels, H / f, W / f), f = 8 or 32. Decoder: the inverse; its
    output may slightly exceed [0, 1] and is meant to be clipped.
    """

    def __init__(self, layers: nn.Cell) -> None:
        super().__init__()
        self.layers = layers
        for parameter in self.get_parameters():
            # The files number the layers from the root.
            if parameter.name.startswith("layers."):
                parameter.name = parameter.name[len("layers.") :]

    def construct(self, x: Tensor) -> Tensor:
        return self.layers(x)


@register
def taesd_encoder(latent_channels: int = 4, pool: bool = False) -> Half:
    """Encoder, 8 times smaller latents; ``pool`` for the FLUX.2 variant (32 latent channels)."""
    return Half(_encoder(latent_channels, pool, deep=False))


@register
def taesd_decoder(latent_channels: int = 4, pool: bool = False) -> Half:
    """Decoder of 8 times smaller latents; ``pool`` for the FLUX.2 variant."""
    return Half(_decoder(latent_channels, pool, (64, 64, 64)))


@register
def taesana_encoder(latent_channels: int = 32) -> Half:
    """Encoder with 32 times smaller latents (Sana's DC-AE)."""
    return Half(_encoder(latent_channels, pool=False, deep=True))


@register
def taesana_decoder(latent_channels: int = 32) -> Half:
    """Decoder of 32 times smaller latents."""
    return Half(_decoder(latent_channels, False, (256, 128, 64, 64, 64)))
