"""FreDect (arXiv:2003.08685): ResNet on the logarithm of an image's discrete cosine transform.

Rebuilt from the paper and from the public code of AIGCDetectBenchmark (Ekko-zn), whose ResNet-50 is the one in use.
Mean and variance of every coefficient over the training images are files of their own, and parameters here.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from . import register
from .resnet import ResNet

EPSILON = 1e-12  # of the authors: keeps the logarithm finite
MIDDLE = 128.0


def cosines(size: int) -> np.ndarray:
    """Matrix of the orthonormal DCT of type II: float64 (size, size), one frequency in each row."""
    n = np.arange(size)
    rows = np.cos(np.pi * (2 * n + 1) * n[:, None] / (2 * size)) * np.sqrt(2 / size)
    rows[0] *= np.sqrt(0.5)
    return rows


class FreDect(ResNet):
    """The detector: (N, 3, image_size, image_size) -> (N, num_classes) raw logits.

    The input is in grey levels, 0 to 255.

    Parameters
    ----------
    name : str
        Key of :data:`aidet.models.resnet.SIZES`.
    num_classes, in_channels, image_size : int
    """

    def __init__(self, name: str, num_classes: int = 1, in_channels: int = 3, image_size: int = 224) -> None:
        super().__init__(name, num_classes, in_channels, padding="symmetric")
        shape = (in_channels, image_size, image_size)
        # In float32 the small coefficients, of which the logarithm is taken, would be rounding errors. Ascend has no
        # float64 product of matrices.
        self.wide = ms.float64 if ms.get_context("device_target") == "CPU" else ms.float32
        self.matrix = ms.Tensor(cosines(image_size), self.wide)
        # A grey of MIDDLE is taken off before the transform and put back into the one coefficient that has it.
        grey = np.zeros(shape, np.float32)
        grey[:, 0, 0] = MIDDLE * image_size
        self.grey = ms.Tensor(grey)
        self.dct_mean = Parameter(ms.Tensor(np.zeros(shape, np.float32)), name="dct_mean")
        self.dct_var = Parameter(ms.Tensor(np.ones(shape, np.float32)), name="dct_var")

    def construct(self, x: Tensor) -> Tensor:
        x = ops.cast(x, self.wide) - MIDDLE
        x = ops.matmul(ops.matmul(self.matrix, x), ops.transpose(self.matrix, (1, 0)))
        x = ops.cast(x, ms.float32) + self.grey
        x = ops.log(ops.abs(x) + EPSILON)
        return super().construct((x - self.dct_mean) / ops.sqrt(self.dct_var))


@register
def fredect_resnet18(num_classes: int = 1, in_channels: int = 3, **kwargs: Any) -> FreDect:
    """FreDect with ResNet-18, 11.2 M parameters and two maps of coefficients."""
    return FreDect("resnet18", num_classes, in_channels, **kwargs)


@register
def fredect_resnet50(num_classes: int = 1, in_channels: int = 3, **kwargs: Any) -> FreDect:
    """FreDect with ResNet-50, 23.5 M parameters and two maps of coefficients."""
    return FreDect("resnet50", num_classes, in_channels, **kwargs)
