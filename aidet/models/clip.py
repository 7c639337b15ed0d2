"""CLIP's image tower (arXiv:2103.00020): ViT-B/32, B/16, L/14, L/14 at 336, and free sizes.

OpenAI's weights need ``act="quick_gelu"``, most of open_clip's the exact GELU. Without classes the net gives features:
the projection into the space shared with texts, or what is in front of it.
"""

from typing import Any, Dict

from mindspore import Tensor, nn, ops

from ..errors import UserError, nearest
from . import register
from .layers import initialise_small
from .transformer import FirstAndMean, Tower

FEATURES = ("projection", "penultimate", "patches", "levels", "levels_avg")
# width, depth, patch, input, projection; one head for every 64 channels, MLP four times the width
SIZES = {
    "clip_vit_b_32": (768, 12, 32, 224, 512),
    "clip_vit_b_16": (768, 12, 16, 224, 512),
    "clip_vit_l_14": (1024, 24, 14, 224, 768),
    "clip_vit_l_14_336": (1024, 24, 14, 336, 768),
}


class L2Normalize(nn.Cell):
    """Rows of (N, C) divided by their length."""

    def construct(self, x: Tensor) -> Tensor:
        return x / ops.sqrt((x * x).sum(1, keepdims=True) + 1e-24)


class ClipViT(Tower):
    """CLIP's image tower: (N, in_channels, image_size, image_size) -> (N, num_classes) raw logits, or features.

    Parameters
    ----------
    num_classes : int
        0: no classifier, the net gives the features.
    features : {"projection", "penultimate", "patches", "levels", "levels_avg"}
        ``projection``: the class token, normalised and projected to ``projection`` numbers; ``penultimate``: the same
        without the projection; ``patches``: the mean of the patches' tokens, not normalised, as in transformers'
        ``CLIPForImageClassification``; ``levels``: the class token of every block, behind its second norm, side by side
        (``depth`` times ``width`` numbers), which :mod:`.rine` reads; ``levels_avg``: the same, each followed by the
        mean of the block's patches.
    normalise : bool
        Divide the features by their length.
    projection : int
        Size of the projection.
    **tower
        Of :class:`.transformer.Tower`.

    Notes
    -----
    ``levels(images)`` gives the class token of every block, ``tokens(images)`` the whole sequence.
    """

    def __init__(
        self,
        num_classes: int = 0,
        features: str = "projection",
        normalise: bool = False,
        projection: int = 512,
        **tower: Any,
    ) -> None:
        if features not in FEATURES:
            raise UserError(nearest(features, FEATURES, "features"))
        super().__init__(**{"ln_eps": 1e-5, "act": "quick_gelu", **tower}, pre_norm=True, patch_bias=False)
        self.kind, self.flat = features, nn.Flatten()
        if features == "levels_avg":
            self.level = FirstAndMean(self.lead + self.registers)
        levels = self.depth * self.width
        out = {"projection": projection, "levels": levels, "levels_avg": 2 * levels}.get(features, self.width)
        if features == "projection":
            self.projection = nn.Dense(self.width, projection, has_bias=False)
        self.scale = L2Normalize() if normalise else nn.Identity()
        self.head = initialise_small(nn.Dense(out, num_classes)) if num_classes else nn.Identity()

    def construct(self, x: Tensor) -> Tensor:
        if self.kind in ("levels", "levels_avg"):
            return self.head(self.scale(self.flat(self.levels(x))))
        x = self.tokens(x)
        if self.kind == "patches":
            x = self.patches(x).mean(1)
        else:
            x = self.norm(x[:, 0])
        if self.kind == "projection":
            x = self.projection(x)
        return self.head(self.scale(x))


def sizes(name: str) -> Dict[str, Any]:
    """Arguments that an architecture's name stands for; ``clip_vit`` has ViT-B/16's by default."""
    keys = ("width", "depth", "patch_size", "image_size", "projection")
    return dict(zip(keys, SIZES.get(name, SIZES["clip_vit_b_16"])))


def _named(name: str, num_classes: int, in_channels: int, kwargs: Any) -> ClipViT:
    return ClipViT(num_classes, in_channels=in_channels, **{**sizes(name), **kwargs})


@register
def clip_vit_b_32(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> ClipViT:
    """CLIP ViT-B/32's image tower, 87.8 M parameters, input 224, 512 features."""
    return _named("clip_vit_b_32", num_classes, in_channels, kwargs)


@register
def clip_vit_b_16(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> ClipViT:
    """CLIP ViT-B/16's image tower, 86.2 M parameters, input 224, 512 features."""
    return _named("clip_vit_b_16", num_classes, in_channels, kwargs)


@register
def clip_vit_l_14(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> ClipViT:
    """CLIP ViT-L/14's image tower, 304.0 M parameters, input 224, 768 features."""
    return _named("clip_vit_l_14", num_classes, in_channels, kwargs)


@register
def clip_vit_l_14_336(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> ClipViT:
    """CLIP ViT-L/14's image tower at 336 pixels, 304.3 M parameters, 768 features."""
    return _named("clip_vit_l_14_336", num_classes, in_channels, kwargs)


@register
def clip_vit(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> ClipViT:
    """CLIP's image tower of any size; by default ViT-B/16."""
    return _named("clip_vit_b_16", num_classes, in_channels, kwargs)
