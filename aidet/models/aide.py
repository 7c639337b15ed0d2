"""AIDE (arXiv:2406.19435, ICLR 2025): the noise of four patches, and what CLIP's ConvNeXt-XXL sees in the image.

The patches are the windows of 32 pixels with the least and with the most detail, two of each. How much detail one has
is told by its discrete cosine transform. Rebuilt from the paper and from the authors' public code (shilinyan99/AIDE),
whose data loader makes five images of a photograph; here the network makes them, from the photograph at its own size.
"""

from typing import Any, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from . import register
from .convnext import Block, Trunk
from .fredect import cosines
from .layers import bilinear, gelu, initialise
from .resnet import ResNet

WINDOW, STRIDE, SIDE, GRADES = 32, 16, 256, 6
EPS = 1e-5  # of open_clip's ConvNeXt-XXL; the smaller ConvNeXts have 1e-6
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def weights_of_detail() -> np.ndarray:
    """What each coefficient of a window adds to its grade: float64 (32, 32).

    The anti-diagonals of the transform are cut into six bands, which share the diagonals at their ends. A band counts
    twice as much as the one before, and is divided by its number of coefficients.
    """
    diagonal = np.add.outer(np.arange(WINDOW), np.arange(WINDOW))
    total = np.zeros((WINDOW, WINDOW))
    for k in range(GRADES):
        band = (diagonal >= 2.0 * WINDOW / GRADES * k) & (diagonal <= 2.0 * WINDOW / GRADES * (k + 1))
        total += 2.0**k * band / band.sum()
    return total


@ops.constexpr
def _resizing(new, old):
    return ms.Tensor(bilinear(new, old).astype(np.float32))


@ops.constexpr
def _places(count):
    """0, 1, ... as float32, which is exact up to 16 million."""
    return ms.Tensor(np.arange(count, dtype=np.float32))


class Resize(nn.Cell):
    """Bilinear without antialiasing, as the authors' torchvision resizes a tensor: (N, C, H, W) -> (N, C, *size)."""

    def construct(self, x: Tensor, size: Tuple[int, int]) -> Tensor:
        rows, columns = _resizing(size[0], x.shape[2]), _resizing(size[1], x.shape[3])
        return ops.matmul(ops.matmul(rows, x), ops.transpose(columns, (1, 0)))


class Normalise(nn.Cell):
    """Pixels in [0, 1] minus a mean, over a deviation, both per channel."""

    def __init__(self, statistics: Tuple[Sequence[float], Sequence[float]]) -> None:
        super().__init__()
        self.mean, self.deviation = (ms.Tensor(np.array(s, np.float32).reshape(1, 3, 1, 1)) for s in statistics)

    def construct(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class Patches(nn.Cell):
    """The windows of 32 pixels with the least and the most detail, enlarged to 256 pixels.

    (N, 3, H, W) in [0, 1], H and W from 32 up -> a tuple of four (N, 3, 256, 256): least, most, second least, second
    most. Windows lie 16 pixels apart; pixels at the right and lower edge that fill no window are not looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.matrix = ms.Tensor(cosines(WINDOW).astype(np.float32))
        self.weights = ms.Tensor(weights_of_detail().astype(np.float32).reshape(1, 1, WINDOW, 1, WINDOW))
        self.enlarge = ms.Tensor(bilinear(SIDE, WINDOW).astype(np.float32))
        self.first = ops.Argmax(axis=1, output_type=ms.int32)

    def construct(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        tall, wide = x.shape[2] // STRIDE, x.shape[3] // STRIDE
        x = x[:, :, : tall * STRIDE, : wide * STRIDE]
        detail = self.detail(x[:, 0], tall, wide)
        for c in range(1, x.shape[1]):  # one channel after the other: the transforms are four times the image
            detail = detail + self.detail(x[:, c], tall, wide)
        low, low2 = self.best(-detail)
        high, high2 = self.best(detail)
        columns = wide - 1
        return tuple([self.cut(x, place, columns) for place in (low, high, low2, high2)])

    def detail(self, x: Tensor, tall: int, wide: int) -> Tensor:
        """Grade of every window of one channel: (N, H, W) -> (N, windows)."""
        x = ops.reshape(x, (-1, tall, STRIDE, wide * STRIDE))
        x = ops.matmul(self.matrix, ops.concat((x[:, :-1], x[:, 1:]), 2))
        x = ops.reshape(x, (-1, tall - 1, WINDOW, wide, STRIDE))
        x = ops.matmul(ops.concat((x[:, :, :, :-1], x[:, :, :, 1:]), 4), ops.transpose(self.matrix, (1, 0)))
        x = ops.log(ops.abs(x) + 1.0) * self.weights
        return ops.reshape(x.sum((2, 4)), (-1, (tall - 1) * (wide - 1)))

    def best(self, values: Tensor) -> Tuple[Tensor, Tensor]:
        """Places of the highest and the second highest value as float32: (N, windows) -> two of (N, 1)."""
        places = _places(values.shape[1])
        top = ops.reshape(ops.cast(self.first(values), ms.float32), (-1, 1))
        if values.shape[1] == 1:
            return top, top
        taken = ops.cast(ops.abs(places - top) < 0.5, ms.float32)
        second = self.first(values - taken * 1e9)
        return top, ops.reshape(ops.cast(second, ms.float32), (-1, 1))

    def cut(self, x: Tensor, place: Tensor, columns: int) -> Tensor:
        """The window at ``place`` of each image, enlarged."""
        row = ops.floor((place + 0.5) / columns)
        rows = self.selected(row * STRIDE, x.shape[2])
        across = self.selected((place - row * columns) * STRIDE, x.shape[3])
        return ops.matmul(ops.matmul(rows, x), ops.transpose(across, (0, 1, 3, 2)))

    def selected(self, start: Tensor, size: int) -> Tensor:
        """Matrices that cut 32 pixels of an axis from ``start`` on, and enlarge them: (N, 1) -> (N, 1, 256, size)."""
        wanted = ops.reshape(start + _places(WINDOW), (-1, 1, WINDOW, 1))
        chosen = ops.cast(ops.abs(_places(size) - wanted) < 0.5, ms.float32)
        return ops.matmul(self.enlarge, chosen)


class Noise(ResNet):
    """A ResNet on 30 high-pass filters, without classifier: (N, 30, H, W) -> (N, features)."""

    def __init__(self, name: str) -> None:
        super().__init__(name, 1, 30, padding="symmetric")
        self.features = self.classifier.in_channels
        del self.classifier

    def construct(self, x: Tensor) -> Tensor:
        x = self.max_pool(self.relu(self.bn1(self.conv1(x))))
        return self.pool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


class Tower(Trunk):
    """ConvNeXt without classifier, its last norm before the mean: (N, 3, H, W) -> (N, widths[-1])."""

    def __init__(self, depths: Sequence[int], widths: Sequence[int]) -> None:
        def block(width, drop_path):
            return Block(width, drop_path, 1e-6, EPS)

        super().__init__((depths, widths), block, 1, 3, 0.0, EPS, 4, EPS)
        del self.classifier

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(ops.transpose(self.feature(x), (0, 2, 3, 1))).mean((1, 2))


class AIDE(nn.Cell):
    """The detector: (N, 3, H, W) -> (N, num_classes) raw logits.

    The input is in [0, 1], at the photograph's own size. Sides of less than 32 pixels, for which the authors' code has
    no patch, are enlarged to 32.

    Parameters
    ----------
    num_classes : int
    depths, widths : sequence of int
        Blocks and channels of each stage of the ConvNeXt.
    resnet : str
        Key of :data:`aidet.models.resnet.SIZES`.
    projection : int
        Width that the ConvNeXt's features are reduced to.
    hidden : int
        Width of the head's hidden layer.
    """

    def __init__(
        self,
        num_classes: int = 2,
        depths: Sequence[int] = (3, 4, 30, 3),
        widths: Sequence[int] = (384, 768, 1536, 3072),
        resnet: str = "resnet50",
        projection: int = 256,
        hidden: int = 1024,
    ) -> None:
        super().__init__()
        self.patches, self.resize = Patches(), Resize()
        self.imagenet, self.clip = Normalise(IMAGENET), Normalise(CLIP)
        self.hpf = nn.Conv2d(3, 30, 5, pad_mode="pad", padding=2)
        self.model_min, self.model_max = Noise(resnet), Noise(resnet)
        self.tower = Tower(depths, widths)
        self.proj = nn.Dense(widths[-1], projection)
        self.fc1, self.act = nn.Dense(projection + self.model_min.features, hidden), gelu()
        self.fc2 = nn.Dense(hidden, num_classes)
        for layer in (self.hpf, self.proj, self.fc1, self.fc2):
            initialise(layer)

    def construct(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        if h < WINDOW or w < WINDOW:
            x = self.resize(x, (max(h, WINDOW), max(w, WINDOW)))
        seen = self.proj(self.tower(self.clip(self.resize(x, (SIDE, SIDE)))))
        low, high, low2, high2 = self.patches(x)
        noise = self.noise(self.model_min, low) + self.noise(self.model_max, high)
        noise = noise + self.noise(self.model_min, low2) + self.noise(self.model_max, high2)
        return self.fc2(self.act(self.fc1(ops.concat((seen, noise / 4.0), 1))))

    def noise(self, resnet: nn.Cell, patch: Tensor) -> Tensor:
        """Features of the high-pass filters of a patch."""
        return resnet(self.hpf(self.imagenet(patch)))


@register
def aide(num_classes: int = 2, in_channels: int = 3, **kwargs: Any) -> AIDE:
    """AIDE, 894 M parameters; colour only."""
    return AIDE(num_classes, **kwargs)
