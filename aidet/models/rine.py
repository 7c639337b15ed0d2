"""RINE (arXiv:2402.19091): a detector on the class token of every block of CLIP's image tower.

Rebuilt from the paper and from the authors' public code (mever-team/rine). The tokens are those behind the second norm
of each block; a learned softmax over the blocks weighs them, channel by channel.
"""

from typing import Any

from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from . import register
from .clip import sizes
from .transformer import Tower


def _dense(widths):
    """Dense layers, each with a ReLU."""
    cells = []
    for i in range(len(widths) - 1):
        cells += [nn.Dense(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.SequentialCell(cells)


class RINE(Tower):
    """The detector: (N, in_channels, image_size, image_size) -> (N, num_classes) raw logits.

    Parameters
    ----------
    num_classes : int
    embedding : int
        Width of what is made of each token.
    layers : int
        Dense layers before and again behind the weighing.
    **tower
        Of :class:`.transformer.Tower`.
    """

    def __init__(self, num_classes: int = 1, embedding: int = 1024, layers: int = 4, **tower: Any) -> None:
        super().__init__(**{"ln_eps": 1e-5, "act": "quick_gelu", **tower}, pre_norm=True, patch_bias=False)
        self.alpha = Parameter(initializer(Normal(1.0), (1, self.depth, embedding)))
        self.proj1 = _dense([self.width] + [embedding] * layers)
        self.proj2 = _dense([embedding] * (layers + 1))
        self.hidden, self.head = _dense([embedding] * 3), nn.Dense(embedding, num_classes)
        self.share = nn.Softmax(1)

    def construct(self, x: Tensor) -> Tensor:
        x = self.proj1(self.levels(x)) * self.share(self.alpha)
        return self.head(self.hidden(self.proj2(ops.ReduceSum()(x, 1))))


@register
def rine(num_classes: int = 1, in_channels: int = 3, **kwargs: Any) -> RINE:
    """RINE; by default on CLIP ViT-L/14, 313.7 M parameters, input 224."""
    tower = {k: v for k, v in sizes("clip_vit_l_14").items() if k != "projection"}
    return RINE(num_classes, in_channels=in_channels, **{**tower, **kwargs})
