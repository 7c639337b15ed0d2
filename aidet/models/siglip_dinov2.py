"""SigLIP 2 and DINOv2 side by side, and a classifier on the features of both: Bombek1/ai-image-detector-siglip-dinov2.

Rebuilt from public copies of the authors' code. They prepare the photograph twice, once for each tower. A network has
one input here, so both pictures lie in it, one above the other, as the operation ``two_sizes`` arranges them.
"""

from typing import Any, Mapping, Optional

import numpy as np
from mindspore import Tensor, nn, ops

from ..errors import UserError
from . import dinov2 as dino
from . import register
from . import siglip as sig
from .layers import gelu

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SigLipDinoV2(nn.Cell):
    """The detector: (N, 3, d + s or more, max(d, s) or more) -> (N, num_classes) raw logits.

    DINOv2 sees the square of d pixels in the upper left corner, SigLIP that of s pixels below it; d and s are the
    inputs of the towers. All pixels are normalised with ImageNet's statistics; the network turns SigLIP's into the
    range from -1 to 1, which that tower expects.

    Parameters
    ----------
    num_classes, in_channels : int
    hidden : int
        Width of the classifier's first layer; the second has half of it.
    siglip, dinov2 : dict, optional
        Arguments of :class:`.siglip.SigLip` and :class:`.dinov2.DinoV2`, on top of those of the published towers.

    Raises
    ------
    UserError
        The input has not three channels.
    """

    def __init__(
        self,
        num_classes: int = 1,
        in_channels: int = 3,
        hidden: int = 512,
        siglip: Optional[Mapping[str, Any]] = None,
        dinov2: Optional[Mapping[str, Any]] = None,
    ) -> None:
        super().__init__()
        if in_channels != 3:
            raise UserError(f"in_channels (={in_channels}) must be 3: the two towers have statistics of colours")
        first = {**dino.sizes("dinov2_vit_l_14"), "grid": 28, "image_size": 392, **(dinov2 or {})}
        second = {**sig.sizes("siglip_vit_so400m_14"), "image_size": 384, "pool": "map", **(siglip or {})}
        self.dinov2, self.siglip = dino.DinoV2(0, **first), sig.SigLip(0, **second)
        self.above, self.below = first["image_size"], second["image_size"]
        # (x * STD + MEAN - 0.5) / 0.5
        self.scale = Tensor(np.reshape(np.array(STD) * 2, (1, 3, 1, 1)).astype(np.float32))
        self.offset = Tensor(np.reshape(np.array(MEAN) * 2 - 1, (1, 3, 1, 1)).astype(np.float32))
        width = self.dinov2.width + self.siglip.width
        self.norm = nn.LayerNorm((width,), epsilon=1e-5)
        self.fc1, self.fc2, self.act = nn.Dense(width, hidden), nn.Dense(hidden, hidden // 2), gelu()
        self.head = nn.Dense(hidden // 2, num_classes)

    def construct(self, x: Tensor) -> Tensor:
        a, b = self.above, self.below
        first = self.dinov2(x[:, :, :a, :a])
        second = self.siglip(x[:, :, a : a + b, :b] * self.scale + self.offset)
        x = self.norm(ops.concat((second, first), 1))
        return self.head(self.act(self.fc2(self.act(self.fc1(x)))))


@register
def siglip_dinov2(num_classes: int = 1, in_channels: int = 3, **kwargs: Any) -> SigLipDinoV2:
    """SigLIP 2 so400m/14 at 384 pixels beside DINOv2 ViT-L/14 at 392; 733.2 M parameters, input 776 x 392."""
    return SigLipDinoV2(num_classes, in_channels, **kwargs)
