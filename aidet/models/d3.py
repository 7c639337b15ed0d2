"""D3 (CVPR 2025, arXiv:2404.04584): an image and its shuffled copy, through CLIP's image tower, compared by attention.

Rebuilt from the paper and from public copies of the authors' code (BigAandSmallq/D3). The authors shuffle the patches
anew for every batch, so that their score changes from run to run; here the order is drawn once, from ``seed``.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ..errors import UserError
from . import register
from .clip import sizes
from .transformer import Tower


class Shuffle(nn.Cell):
    """Square patches of the image in another order: (N, C, size, size) to the same shape."""

    def __init__(self, size: int, patch: int, seed: int) -> None:
        super().__init__()
        if size % patch:
            raise UserError(f"shuffle_patch (={patch}) must divide the input of {size} pixels")
        self.grid, self.patch = size // patch, patch
        self.order = ms.Tensor(np.random.default_rng(seed).permutation(self.grid**2).astype(np.int32))

    def construct(self, x: Tensor) -> Tensor:
        c, g, p = x.shape[1], self.grid, self.patch
        x = ops.transpose(ops.reshape(x, (-1, c, g, p, g, p)), (0, 2, 4, 1, 3, 5))
        x = ops.gather(ops.reshape(x, (-1, g * g, c * p * p)), self.order, 1)
        x = ops.transpose(ops.reshape(x, (-1, g, g, c, p, p)), (0, 3, 1, 4, 2, 5))
        return ops.reshape(x, (-1, c, g * p, g * p))


class D3(Tower):
    """The detector: (N, in_channels, image_size, image_size) -> (N, num_classes) raw logits.

    Parameters
    ----------
    num_classes : int
    shuffles, originals : int
        Shuffled copies, and how often the image itself counts.
    shuffle_patch, seed : int
        Side of a patch in pixels, and the seed of its order; every copy has an order of its own.
    **tower
        Of :class:`.transformer.Tower`.
    """

    def __init__(
        self,
        num_classes: int = 1,
        shuffles: int = 1,
        originals: int = 1,
        shuffle_patch: int = 14,
        seed: int = 0,
        **tower: Any,
    ) -> None:
        super().__init__(**{"ln_eps": 1e-5, "act": "quick_gelu", **tower}, pre_norm=True, patch_bias=False)
        size = tower.get("image_size", 224)
        self.copies = nn.CellList([Shuffle(size, shuffle_patch, seed + i) for i in range(shuffles)])
        self.originals, self.branches = originals, shuffles + originals
        self.query, self.key, self.value = (nn.Dense(self.width, self.width) for _ in range(3))
        # The authors' softmax runs over the queries, not over the keys.
        self.share = nn.Softmax(1)
        self.head = nn.Dense(self.branches * self.width, num_classes)

    def token(self, x: Tensor) -> Tensor:
        """Images -> class tokens behind the last norm, (N, 1, width)."""
        return self.norm(self.tokens(x)[:, :1])

    def construct(self, x: Tensor) -> Tensor:
        found = [self.token(copy(x)) for copy in self.copies]
        seen = ops.concat(found + [self.token(x)] * self.originals, 1)
        weights = ops.matmul(self.query(seen), ops.transpose(self.key(seen), (0, 2, 1))) / self.width**0.5
        mixed = ops.matmul(self.share(weights), self.value(seen))
        return self.head(ops.reshape(mixed, (-1, self.branches * self.width)))


@register
def d3(num_classes: int = 1, in_channels: int = 3, **kwargs: Any) -> D3:
    """D3; by default on CLIP ViT-L/14, 306.3 M parameters, input 224."""
    tower = {k: v for k, v in sizes("clip_vit_l_14").items() if k != "projection"}
    return D3(num_classes, in_channels=in_channels, **{**tower, **kwargs})
