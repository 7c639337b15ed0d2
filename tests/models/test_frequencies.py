"""What FreqNet and AIDE do to an image before their convolutions, against NumPy's own transforms."""

import mindspore as ms
import numpy as np
import pytest

from aidet import models, runtime
from aidet.models import aide, freqnet

SMALL = {"depths": (1, 1, 1, 1), "widths": (8, 8, 8, 8), "resnet": "resnet18", "projection": 4, "hidden": 4}


@pytest.fixture(autouse=True)
def pynative():
    runtime.setup(device="CPU", mode="pynative")


@pytest.mark.parametrize("shape", [(8, 8), (16, 10), (15, 9)], ids=str)
def test_high_pass_and_spectral_convolution_are_those_of_a_fourier_transform(shape):
    x = np.random.default_rng(0).normal(size=(2, 4, *shape)).astype(np.float32)
    h, w = shape
    spectrum = np.fft.fftshift(np.fft.fft2(x), axes=(2, 3))
    spectrum[:, :, h // 2 - h // 4 : h // 2 + h // 4, w // 2 - w // 4 : w // 2 + w // 4] = 0
    wanted = np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(2, 3))).real.clip(0)
    assert np.abs(freqnet.HighPass()(ms.Tensor(x)).asnumpy() - wanted).max() < 1e-5
    cell = freqnet.Spectral(4)
    real, imaginary = (layer.weight.asnumpy()[:, :, 0, 0] for layer in (cell.real, cell.imaginary))
    spectrum = np.fft.fft2(x)
    mixed = np.einsum("dc,nchw->ndhw", real, spectrum.real) + 1j * np.einsum("dc,nchw->ndhw", imaginary, spectrum.imag)
    wanted = np.fft.ifft2(mixed).real.clip(0)
    assert np.abs(cell(ms.Tensor(x)).asnumpy() - wanted).max() < 1e-5


def test_high_pass_along_the_channels():
    x = np.random.default_rng(0).normal(size=(2, 12, 3, 5)).astype(np.float32)
    spectrum = np.fft.fftshift(np.fft.fft(x, axis=1), axes=1)
    spectrum[:, 12 // 2 - 12 // 4 : 12 // 2 + 12 // 4] = 0
    wanted = np.fft.ifft(np.fft.ifftshift(spectrum, axes=1), axis=1).real.clip(0)
    assert np.abs(freqnet.ChannelHighPass(12)(ms.Tensor(x)).asnumpy() - wanted).max() < 1e-5


def _corners(x):
    """Mean of every four pixels that meet."""
    return (x[:, :-1, :-1] + x[:, :-1, 1:] + x[:, 1:, :-1] + x[:, 1:, 1:]) / 4


def test_the_patches_are_the_windows_with_the_least_and_the_most_detail():
    """Noise that is weak in one window and strong in another, with a second of each."""
    rng = np.random.default_rng(0)
    x = 0.5 + 0.02 * rng.standard_normal((2, 3, 133, 170)).astype(np.float32)
    places = [(16, 32), (64, 96), (96, 0), (0, 128)]  # least, most, second least, second most
    for n, order in enumerate((places, places[::-1])):
        for (row, column), factor in zip(order, (0.05, 20, 0.06, 18)):
            window = x[n, :, row : row + 32, column : column + 32]
            window += (factor - 1) * (window - 0.5)
    for i, patch in enumerate(aide.Patches()(ms.Tensor(x))):
        assert patch.shape == (2, 3, 256, 256)
        for n, order in enumerate((places, places[::-1])):
            row, column = order[i]
            window = x[n, :, row : row + 32, column : column + 32]
            # Where four pixels meet, the picture enlarged by eight has their mean, too.
            assert np.abs(_corners(patch.asnumpy()[n])[:, 7::8, 7::8] - _corners(window)).max() < 1e-5


@pytest.mark.parametrize("shape", [(1, 1), (20, 70), (32, 32), (47, 33)], ids=str)
def test_aide_takes_images_of_any_size(shape):
    net = models.create("aide", **SMALL).set_train(False)
    logits = net(ms.Tensor(np.random.default_rng(0).random((1, 3, *shape), np.float32))).asnumpy()
    assert logits.shape == (1, 2) and np.isfinite(logits).all()
