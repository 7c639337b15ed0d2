"""A tiny convolutional autoencoder: the neural decoder behind the sample set's "generated" twins.

Its shape follows the autoencoders of latent diffusion (Rombach et al. 2022, their f = 4): latents of a quarter of the
size, and a decoder of nearest-neighbour upsampling and 3x3 convolutions, whose traces in the high frequencies are what
a detector looks for. It is small enough to pass a photograph through it on a CPU in a fraction of a second. Weights:
``ckpt/aidet_tae.ckpt``, made by ``convert/training/autoencoder.py``.
"""

from mindspore import nn, ops

from . import register


def _conv(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride, pad_mode="pad", padding=1, has_bias=True, weight_init="HeUniform")


class Block(nn.Cell):
    """Two 3x3 convolutions around a skip connection; (N, C, h, w) in and out."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = _conv(width, width)
        self.conv2 = _conv(width, width)
        self.relu = nn.ReLU()

    def construct(self, x):
        return self.relu(x + self.conv2(self.relu(self.conv1(x))))


class Up(nn.Cell):
    """Twice the size by repeating pixels, by stacking: no resize operator, any batch and size."""

    def construct(self, x):
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
    ``construct`` takes images float32 (N, 3, h, w) in [0, 1], sides a multiple of ``2 ** len(widths)``, and gives their
    reconstruction of the same shape (not clipped). ``encode`` gives the latents, ``decode`` the way back.
    """

    def __init__(self, latent_channels=4, widths=(32, 64)):
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

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)

    def construct(self, x):
        return self.decoder(self.encoder(x))


@register
def aidet_tae(latent_channels=4, widths=(32, 64)):
    """The project's own tiny autoencoder, see :class:`TinyAutoencoder`."""
    return TinyAutoencoder(latent_channels, tuple(widths))
