"""FreqNet (arXiv:2403.07240, AAAI 2024): half a ResNet-50 between high-pass filters and layers on the spectrum.

Rebuilt from the paper and from public forks of the authors' code (chuangchuangtan/FreqNet-DeepfakeDetection). No
Fourier transform is taken here, because what the authors do to a spectrum has an equal on the image, which every device
and exporter has:

- Setting a box of frequencies to zero is a product with one matrix along each axis. The box is half the spectrum wide
  and has one frequency more on the negative side, so the matrices are complex; the authors keep the real part.
- One convolution for the real and one for the imaginary part of a spectrum, which mixes channels and no frequencies:
  the real part is the transform of the even half of the image, the imaginary part that of its odd half.

1.9 million parameters.
"""

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from . import register
from .layers import GlobalPool, initialise
from .resnet import first_stages

SCALE = 4  # the box reaches from -1/4 to 1/4 of the sampling frequency


def low_pass(size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Real and imaginary part of the matrix that keeps the low frequencies of an axis: float64 (size, size) each."""
    shifted = np.arange(size // 2 - size // SCALE, size // 2 + size // SCALE)
    kept = (shifted - size // 2)[:, None] * np.arange(size)
    wave = np.exp(2j * np.pi * kept / size)
    matrix = wave.T @ wave.conj() / size
    return matrix.real, matrix.imag


@ops.constexpr
def _low_pass(size):
    """:func:`low_pass` as tensors, when the size of an image is known."""
    real, imaginary = low_pass(size)
    return ms.Tensor(real.astype(np.float32)), ms.Tensor(imaginary.astype(np.float32))


@ops.constexpr
def _mirrored(size):
    """Place -n of every place n of a periodic axis."""
    return ms.Tensor((-np.arange(size) % size).astype(np.int32))


class HighPass(nn.Cell):
    """(N, C, H, W) without its low frequencies along height and width, and then without its negative part."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def construct(self, x: Tensor) -> Tensor:
        real_h, imaginary_h = _low_pass(x.shape[2])
        real_w, imaginary_w = _low_pass(x.shape[3])
        low = ops.matmul(ops.matmul(real_h, x), ops.transpose(real_w, (1, 0)))
        low = low - ops.matmul(ops.matmul(imaginary_h, x), ops.transpose(imaginary_w, (1, 0)))
        return self.relu(x - low)


class ChannelHighPass(nn.Cell):
    """The same along the channels, of which there are ``channels``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        matrix = np.eye(channels) - low_pass(channels)[0]
        self.matrix = ms.Tensor(matrix.astype(np.float32))
        self.relu = nn.ReLU()

    def construct(self, x: Tensor) -> Tensor:
        c, h, w = x.shape[1:]
        y = ops.matmul(self.matrix, ops.reshape(x, (-1, c, h * w)))
        return self.relu(ops.reshape(y, (-1, c, h, w)))


class Spectral(nn.Cell):
    """A convolution for the real and one for the imaginary part of the spectrum: (N, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.real, self.imaginary = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU()

    def construct(self, x: Tensor) -> Tensor:
        turned = ops.gather(ops.gather(x, _mirrored(x.shape[2]), 2), _mirrored(x.shape[3]), 3)
        return self.relu(self.real((x + turned) * 0.5) + self.imaginary((x - turned) * 0.5))


class FreqNet(nn.Cell):
    """The detector: (N, 3, H, W) -> (N, num_classes) raw logits.

    The input is normalised with ImageNet's statistics.

    Parameters
    ----------
    num_classes, in_channels : int
    """

    def __init__(self, num_classes: int = 1, in_channels: int = 3) -> None:
        super().__init__()
        self.relu, self.high = nn.ReLU(), HighPass()
        self.conv1 = nn.Conv2d(in_channels, 64, 1, has_bias=True)
        self.conv2 = nn.Conv2d(64, 64, 1, 2, pad_mode="valid", has_bias=True)
        self.conv3 = nn.Conv2d(256, 256, 1, has_bias=True)
        self.conv4 = nn.Conv2d(256, 256, 1, 2, pad_mode="valid", has_bias=True)
        self.across = ChannelHighPass(64)
        self.spectral1, self.spectral2 = Spectral(64), Spectral(64)
        self.spectral3, self.spectral4 = Spectral(256), Spectral(256)
        self.max_pool = nn.MaxPool2d(3, 2, pad_mode="pad", padding=1)
        self.layer1, self.layer2 = first_stages()
        self.pool = GlobalPool()
        self.fc1 = nn.Dense(512, num_classes)
        initialise(self)

    def construct(self, x: Tensor) -> Tensor:
        x = self.across(self.relu(self.conv1(self.high(x))))
        x = self.across(self.relu(self.conv2(self.high(self.spectral1(x)))))
        x = self.layer1(self.max_pool(self.spectral2(x)))
        x = self.spectral3(self.relu(self.conv3(self.high(x))))
        x = self.spectral4(self.relu(self.conv4(self.high(x))))
        return self.fc1(self.pool(self.layer2(x)))


@register
def freqnet(num_classes: int = 1, in_channels: int = 3) -> FreqNet:
    """FreqNet, 1.9 M parameters, any input size."""
    return FreqNet(num_classes, in_channels)
