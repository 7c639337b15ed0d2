"""SAFE (arXiv:2408.06741): the first half of ResNet-50 on the finest diagonal wavelet band.

Rebuilt from the paper and from the authors' public code (Ouxiang-Li/SAFE). The wavelet is bior1.3, whose high-pass
filter has two taps, so its diagonal band is a difference of differences in every 2x2 block; the mirrored edges give one
block more on each side. 1,438,274 parameters with two outputs.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ..errors import UserError
from . import register
from .layers import bilinear
from .npr import HalfResNet


class Diagonal(nn.Cell):
    """Diagonal band of one level of bior1.3, enlarged bilinearly: (N, C, size, size) to the same shape.

    Parameters
    ----------
    size : int
        Height and width, even.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if isinstance(size, bool) or not isinstance(size, int) or size < 4 or size % 2:
            raise UserError(f"image_size (={size!r}) must be an even number from 4 up")
        # Both steps are linear along each axis, so each axis is one product with a matrix.
        self.matrix = ms.Tensor((bilinear(size, size // 2 + 2) @ _differences(size)).astype(np.float32))

    def construct(self, x: Tensor) -> Tensor:
        return ops.matmul(ops.matmul(self.matrix, x), ops.transpose(self.matrix, (1, 0)))


def _differences(size):
    """Matrix of the high-pass filter with step two on the mirrored axis: (size / 2 + 2, size)."""
    rows = np.zeros((size // 2 + 2, size))
    for k in range(len(rows)):
        for place, sign in ((2 * k - 2, 1), (2 * k - 1, -1)):
            place = -1 - place if place < 0 else place
            place = 2 * size - 1 - place if place >= size else place
            rows[k, place] += sign * np.sqrt(0.5)
    return rows


class SAFE(HalfResNet):
    """The detector: (N, 3, image_size, image_size) -> (N, num_classes) raw logits.

    The input is in [0, 1] and not normalised.

    Parameters
    ----------
    num_classes, in_channels, image_size : int
    """

    def __init__(self, num_classes: int = 2, in_channels: int = 3, image_size: int = 256) -> None:
        super().__init__(num_classes, in_channels)
        self.diagonal = Diagonal(image_size)

    def construct(self, x: Tensor) -> Tensor:
        return super().construct(self.diagonal(x))


@register
def safe_resnet50(num_classes: int = 2, in_channels: int = 3, image_size: int = 256) -> SAFE:
    """SAFE, 1.4 M parameters."""
    return SAFE(num_classes, in_channels, image_size)
