"""DRCT (ICML 2024, Chen et al.): an embedding for contrastive training, from ConvNeXt or CLIP, and a classifier on it.

Rebuilt from the paper and from the authors' public code (beibuwandeluori/DRCT).
"""

from typing import Any

from mindspore import Tensor, nn

from . import register
from .clip import ClipViT, sizes
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


class DRCTClip(ClipViT):
    """The detector on CLIP: (N, in_channels, image_size, image_size) -> (N, num_classes) raw logits.

    Parameters
    ----------
    num_classes, embedding : int
    **clip
        Of :class:`.clip.ClipViT`.
    """

    def __init__(self, num_classes: int = 2, embedding: int = 1024, **clip: Any) -> None:
        super().__init__(embedding, **clip)
        self.fc = nn.Dense(embedding, num_classes)

    def construct(self, x: Tensor) -> Tensor:
        return self.fc(super().construct(x))


@register
def drct_clip(num_classes: int = 2, in_channels: int = 3, **kwargs: Any) -> DRCTClip:
    """DRCT on CLIP's image tower; by default ViT-L/14, 304.8 M parameters, input 224."""
    return DRCTClip(num_classes, in_channels=in_channels, **{**sizes("clip_vit_l_14"), **kwargs})


@register
def drct_convnext_tiny(num_classes: int = 2, in_channels: int = 3, **kwargs: Any) -> DRCT:
    """DRCT on ConvNeXt-Tiny, 28.6 M parameters; no such weights are published."""
    return DRCT("convnext_tiny", num_classes, in_channels, **kwargs)


@register
def drct_convnext_base(num_classes: int = 2, in_channels: int = 3, **kwargs: Any) -> DRCT:
    """DRCT on ConvNeXt-Base, 88.6 M parameters."""
    return DRCT("convnext_base", num_classes, in_channels, **kwargs)
