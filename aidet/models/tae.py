"""A tiny convolutional autoencoder: the neural decoder behind the sample set's "generated" twins.

Its shape follows the autoencoders of latent diffusion (Rombach et al. 2022, their f = 4): latents of a quarter of the
size, and a decoder of nearest-neighbour upsampling and 3x3 convolutions, whose traces in the high frequencies are what
a detector looks for. It is small enough to reconstruct a photograph on a CPU in a fraction of a second. Weights:
``ckpt/aidet_tae.ckpt``, made by ``convert/training/autoencoder.py``.
"""

from typing import Sequence

from mindspore import Tensor, nn, ops

from . import register


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Cell:
    return nn.Conv2d(inputs, outputs, 3, stride, pad_mode="pad", padding=1, has_bias=True, weight_init="HeUniform")


class Block(nn.Cell):
    """Two 3x3 convolutions around a skip connection; (N, C, h, w) in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, width)
        self.conv2 = _conv(width, width)
        self.relu = nn.ReLU()

    def construct(self, x: Tensor) -> Tensor:
        return self.relu(x + self.conv2(self.relu(self.conv1(x))))


class Up(nn.Cell):
    """Doubles the size by repeating pixels; done by stacking, without a resize operator, for any batch and size."""

    def construct(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = ops.reshape(ops.stack((x, x), 4), (n, c, h, 2 * w))
        return ops.reshape(ops.stack((x, x), 3), (n, c, 2 * h, 2 * w))


class TinyAutoencoder(nn.Cell):
    """Encoder and decoder with ``2 ** len(widths)``-fold smaller latents.

    Parameters
    ----------
    latent_channels : int
        Channels of the latent map.
    widths : tuple of int
        Channels at 1/2, 1/4, ... of the size.

    Notes
    -----
    ``construct`` takes float32 images (N, 3, h, w) in [0, 1], sides multiples of ``2 ** len(widths)``, and
    returns their reconstruction in the same shape (not clipped). ``encode`` returns the latents, ``decode`` turns
    latents into images.
    """

    def __init__(self, latent_channels: int = 4, widths: Sequence[int] = (32, 64)) -> None:
        super().__init__()
        encoder, decoder = [], []
        for before, width in zip((3, *widths), widths):
            encoder += [_conv(before, width, 2), nn.ReLU(), Block(width)]
        encoder += [Block(widths[-1]), _conv(widths[-1], latent_channels)]
        decoder += [_conv(latent_channels, widths[-1]), nn.ReLU(), Block(widths[-1])]
        for width, after in zip(widths[::-1], (*widths[-2::-1], widths[0] // 2)):
            decoder += [Block(width), Up(), _conv(width, after), nn.ReLU()]
        decoder += [_conv(widths[0] // 2, 3)]
        self.encoder = nn.SequentialCell(*encoder)
        self.decoder = nn.SequentialCell(*decoder)

    def encode(self, x: Tensor) -> Tensor:
        """Latents of images."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Images from latents."""
        return self.decoder(z)

    def construct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@register
def aidet_tae(latent_channels: int = 4, widths: Sequence[int] = (32, 64)) -> TinyAutoencoder:
    """The project's own tiny autoencoder, see :class:`TinyAutoencoder`."""
    return TinyAutoencoder(latent_channels, tuple(widths))
