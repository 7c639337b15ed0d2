"""DRCT's ConvNeXt (ICML 2024, Chen et al.): an embedding for contrastive training, and a classifier on it.

Rebuilt from the paper and from the authors' public code (beibuwandeluori/DRCT).
"""

from typing import Any

from mindspore import Tensor, nn

from . import register
from .convnext import ConvNeXt


class DRCT(ConvNeXt):
    """The detector: (N, in_channels, H, W) -> (N, num_classes) raw logits.

    Parameters
    ----------
    name : str
        Key of :data:`aidet.models.convnext.SIZES`.
    num_classes, in_channels : int
    embedding : int
        Width of the embedding, the output of the ConvNeXt.
    """

    def __init__(
        self, name: str, num_classes: int = 2, in_channels: int = 3, embedding: int = 1024, **kwargs: Any
    ) -> None:
        super().__init__(name, embedding, in_channels, **kwargs)
        self.fc = nn.Dense(embedding, num_classes)

    def construct(self, x: Tensor) -> Tensor:
        return self.fc(super().construct(x))


@register
def drct_convnext_tiny(num_classes: int = 2, in_channels: int = 3, **kwargs: Any) -> DRCT:
    """DRCT on ConvNeXt-Tiny, 28.6 M parameters; no such weights are published."""
    return DRCT("convnext_tiny", num_classes, in_channels, **kwargs)


@register
def drct_convnext_base(num_classes: int = 2, in_channels: int = 3, **kwargs: Any) -> DRCT:
    """DRCT on ConvNeXt-Base, 88.6 M parameters."""
    return DRCT("convnext_base", num_classes, in_channels, **kwargs)
