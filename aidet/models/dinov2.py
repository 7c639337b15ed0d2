"""DINOv2 (arXiv:2304.07193), with and without registers (arXiv:2309.16588): small, base, large, giant, free sizes.

The published position embeddings are for 518 pixels; any other input reads them by bicubic interpolation, in the way of
the library that the weights come from (``interpolation``).
"""

from typing import Any, Dict

from mindspore import Tensor, nn, ops

from ..errors import UserError, nearest
from . import register
from .layers import initialise_small
from .transformer import Tower

POOLS = ("token", "avg", "token_avg")
# width, depth, MLP, its activation; one head for every 64 channels
SIZES = {
    "dinov2_vit_s_14": (384, 12, 1536, "gelu"),
    "dinov2_vit_b_14": (768, 12, 3072, "gelu"),
    "dinov2_vit_l_14": (1024, 24, 4096, "gelu"),
    "dinov2_vit_g_14": (1536, 40, 4096, "swiglu"),
}


class DinoV2(Tower):
    """DINOv2: (N, in_channels, image_size, image_size) -> (N, num_classes) raw logits, or features.

    Parameters
    ----------
    num_classes : int
        0: no classifier, the net gives the features.
    pool : {"token", "avg", "token_avg"}
        The class token, the mean of the patches' tokens, or both side by side (transformers'
        ``Dinov2ForImageClassification``, the hub's linear classifiers).
    norm_after : bool
        Normalise after pooling, as timm does where ``pool`` is ``avg``; else before.
    **tower
        Of :class:`.transformer.Tower`; ``lead_positions=False`` where the class token has no position (timm's nets with
        registers).

    Notes
    -----
    ``tokens(images)`` gives the sequence behind the last block, ``norm`` normalises it.
    """

    def __init__(
        self,
        num_classes: int = 0,
        pool: str = "token",
        norm_after: bool = False,
        **tower: Any,
    ) -> None:
        if pool not in POOLS:
            raise UserError(nearest(pool, POOLS, "pool"))
        super().__init__(**{"scale": 1.0, "patch_size": 14, **tower})
        self.pool, self.norm_after = pool, norm_after
        width = 2 * self.width if pool == "token_avg" else self.width
        self.head = initialise_small(nn.Dense(width, num_classes)) if num_classes else nn.Identity()

    def construct(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        if not self.norm_after:
            x = self.norm(x)
        if self.pool == "token":
            x = x[:, 0]
        elif self.pool == "avg":
            x = self.patches(x).mean(1)
        else:
            x = ops.concat((x[:, 0], self.patches(x).mean(1)), 1)
        return self.head(self.norm(x) if self.norm_after else x)


def sizes(name: str) -> Dict[str, Any]:
    """Arguments that an architecture's name stands for; ``dinov2_vit`` has ViT-S/14's by default."""
    width, depth, hidden, act = SIZES.get(name, SIZES["dinov2_vit_s_14"])
    return {"width": width, "depth": depth, "hidden": hidden, "act": act, "patch_size": 14, "grid": 37}


def _named(name: str, num_classes: int, in_channels: int, kwargs: Any) -> DinoV2:
    return DinoV2(num_classes, in_channels=in_channels, **{**sizes(name), **kwargs})


@register
def dinov2_vit_s_14(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> DinoV2:
    """DINOv2 ViT-S/14, 22.1 M parameters, 384 features."""
    return _named("dinov2_vit_s_14", num_classes, in_channels, kwargs)


@register
def dinov2_vit_b_14(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> DinoV2:
    """DINOv2 ViT-B/14, 86.6 M parameters, 768 features."""
    return _named("dinov2_vit_b_14", num_classes, in_channels, kwargs)


@register
def dinov2_vit_l_14(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> DinoV2:
    """DINOv2 ViT-L/14, 304.4 M parameters, 1024 features."""
    return _named("dinov2_vit_l_14", num_classes, in_channels, kwargs)


@register
def dinov2_vit_g_14(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> DinoV2:
    """DINOv2 ViT-g/14 with gated MLPs, 1,136.5 M parameters, 1536 features."""
    return _named("dinov2_vit_g_14", num_classes, in_channels, kwargs)


@register
def dinov2_vit(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> DinoV2:
    """DINOv2 of any size; by default ViT-S/14."""
    return _named("dinov2_vit_s_14", num_classes, in_channels, kwargs)
