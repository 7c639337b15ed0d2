"""Vision Transformer (arXiv:2010.11929) and distilled DeiT (arXiv:2012.12877): tiny, small, base at 224 and 384,
and any other size.

Parameter names are MindCV's (and timm's). LayerNorm's epsilon is an argument because the published ones differ: timm
1e-6, Hugging Face 1e-12. A DeiT without distillation token is a ViT.
"""

from typing import Any, Dict, Optional

from mindspore import Tensor, nn

from . import register
from .layers import initialise_small
from .transformer import Tower

# width, heads; depth is 12 and the hidden width four times the width
SIZES = {"t": (192, 3), "s": (384, 6), "b": (768, 12)}


class ViT(Tower):
    """Vision Transformer: (N, in_channels, image_size, image_size) -> (N, num_classes) raw logits.

    Parameters
    ----------
    size : {"t", "s", "b"} or None
        None: ``width``, and what goes with it, among ``free``.
    image_size, patch_size, num_classes, in_channels : int
    ln_eps : float
    distilled : {None, "token", "heads"}
        ``token`` has DeiT's distillation token and reads the class token alone (Hugging Face's
        ``DeiTForImageClassification``); ``heads`` has a second head on that token and gives the mean of the two (timm's
        distilled models, ``DeiTForImageClassificationWithTeacher``).
    drop_rate, drop_path_rate : float
    **free
        ``width``, ``depth``, ``heads``, ``hidden``, ... of :class:`.transformer.Tower`; they win over ``size``.
    """

    def __init__(
        self,
        size: Optional[str],
        image_size: int = 224,
        num_classes: int = 1000,
        in_channels: int = 3,
        patch_size: int = 16,
        ln_eps: float = 1e-6,
        distilled: Optional[str] = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **free: Any,
    ) -> None:
        sizes = {"depth": 12}
        if size is not None:
            sizes["width"], sizes["heads"] = SIZES[size]
        super().__init__(
            **{**sizes, **free},
            patch_size=patch_size,
            image_size=image_size,
            in_channels=in_channels,
            ln_eps=ln_eps,
            lead=2 if distilled else 1,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        self.has_heads = distilled == "heads"
        self.head = initialise_small(nn.Dense(self.width, num_classes))
        if self.has_heads:
            self.head_dist = initialise_small(nn.Dense(self.width, num_classes))

    def construct(self, x: Tensor) -> Tensor:
        x = self.norm(self.tokens(x))
        logits = self.head(x[:, 0])
        return (logits + self.head_dist(x[:, 1])) / 2 if self.has_heads else logits


def sizes(name: str) -> Dict[str, Any]:
    """Arguments that an architecture's name stands for; ``vit`` and ``deit`` are ViT-Small/16 by default."""
    parts = name.split("_")
    width, heads = SIZES[parts[1] if len(parts) > 1 else "s"]
    image = int(parts[3]) if len(parts) > 1 else 224
    return {"width": width, "depth": 12, "heads": heads, "patch_size": 16, "image_size": image}


@register
def vit(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """A ViT of any width, depth, number of heads, MLP, patch and input; by default ViT-Small/16, 22 M parameters."""
    return ViT(None, num_classes=num_classes, in_channels=in_channels, **{"width": 384, **kwargs})


@register
def deit(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """The distilled DeiT of any size; by default DeiT-Small/16, 22 M parameters."""
    return vit(num_classes, in_channels, **{"distilled": "heads", **kwargs})


@register
def vit_t_16_224(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """ViT-Tiny/16, 5.7 M parameters, input 224."""
    return ViT("t", 224, num_classes, in_channels, **kwargs)


@register
def vit_t_16_384(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """ViT-Tiny/16, 5.7 M parameters, input 384."""
    return ViT("t", 384, num_classes, in_channels, **kwargs)


@register
def vit_s_16_224(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """ViT-Small/16, 22 M parameters, input 224."""
    return ViT("s", 224, num_classes, in_channels, **kwargs)


@register
def vit_s_16_384(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """ViT-Small/16, 22 M parameters, input 384."""
    return ViT("s", 384, num_classes, in_channels, **kwargs)


@register
def vit_b_16_224(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """ViT-Base/16, 86 M parameters, input 224."""
    return ViT("b", 224, num_classes, in_channels, **kwargs)


@register
def vit_b_16_384(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """ViT-Base/16, 86 M parameters, input 384."""
    return ViT("b", 384, num_classes, in_channels, **kwargs)


@register
def deit_t_16_224(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """Distilled DeiT-Tiny/16, 5.7 M parameters, input 224."""
    return ViT("t", 224, num_classes, in_channels, **{"distilled": "heads", **kwargs})


@register
def deit_t_16_384(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """Distilled DeiT-Tiny/16, 5.7 M parameters, input 384."""
    return ViT("t", 384, num_classes, in_channels, **{"distilled": "heads", **kwargs})


@register
def deit_s_16_224(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """Distilled DeiT-Small/16, 22 M parameters, input 224."""
    return ViT("s", 224, num_classes, in_channels, **{"distilled": "heads", **kwargs})


@register
def deit_s_16_384(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """Distilled DeiT-Small/16, 22 M parameters, input 384."""
    return ViT("s", 384, num_classes, in_channels, **{"distilled": "heads", **kwargs})


@register
def deit_b_16_224(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """Distilled DeiT-Base/16, 86 M parameters, input 224."""
    return ViT("b", 224, num_classes, in_channels, **{"distilled": "heads", **kwargs})


@register
def deit_b_16_384(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> ViT:
    """Distilled DeiT-Base/16, 86 M parameters, input 384."""
    return ViT("b", 384, num_classes, in_channels, **{"distilled": "heads", **kwargs})
