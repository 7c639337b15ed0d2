"""SigLIP's image tower (arXiv:2303.15343; SigLIP 2, arXiv:2502.14786): base, large, so400m at any input, free sizes.

There is no class token. Classifiers read the mean of the patches' tokens; the features shared with texts come from an
attention pool. GELU is its tanh approximation, in timm's ports of some sizes the exact one.
"""

from typing import Any, Dict

import mindspore as ms
from mindspore import Parameter, Tensor, nn
from mindspore.common.initializer import TruncatedNormal, initializer

from ..errors import UserError, nearest
from . import register
from .layers import Mlp
from .transformer import ACTIVATIONS, Attention, Tower

POOLS = ("avg", "map")
# width, depth, heads, MLP, patch
SIZES = {
    "siglip_vit_b_16": (768, 12, 12, 3072, 16),
    "siglip_vit_b_32": (768, 12, 12, 3072, 32),
    "siglip_vit_l_16": (1024, 24, 16, 4096, 16),
    "siglip_vit_so400m_14": (1152, 27, 16, 4304, 14),
    "siglip_vit_so400m_16": (1152, 27, 16, 4304, 16),
}


class AttentionPool(nn.Cell):
    """One learned query attends to all tokens, then an MLP: (N, tokens, width) -> (N, width)."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, act: str) -> None:
        super().__init__()
        self.width = width
        self.probe = Parameter(initializer(TruncatedNormal(0.02), (1, 1, width), ms.float32))
        self.attn, self.norm = Attention(width, heads), nn.LayerNorm((width,), epsilon=eps)
        self.mlp = Mlp(width, hidden, act=ACTIVATIONS[act])

    def construct(self, x: Tensor) -> Tensor:
        c = self.width
        # A zero with the right batch size: broadcasting keeps the batch dimension dynamic in an export.
        query = self.attn.qkv(x[:, :1] * 0 + self.probe)[:, :, :c]
        x = self.attn.qkv(x)
        x = self.attn.attend(query, x[:, :, c : 2 * c], x[:, :, 2 * c :])
        return (x + self.mlp(self.norm(x)))[:, 0]


class SigLip(Tower):
    """SigLIP's image tower: (N, in_channels, image_size, image_size) -> (N, num_classes) raw logits, or features.

    Parameters
    ----------
    num_classes : int
        0: no classifier, the net gives the features.
    pool : {"avg", "map"}
        The mean of the tokens, or the attention pool.
    **tower
        Of :class:`.transformer.Tower`.
    """

    def __init__(self, num_classes: int = 0, pool: str = "avg", **tower: Any) -> None:
        if pool not in POOLS:
            raise UserError(nearest(pool, POOLS, "pool"))
        tower = {"ln_eps": 1e-6, "act": "gelu_tanh", **tower}
        super().__init__(**tower, lead=0)
        self.by_attention = pool == "map"
        if self.by_attention:
            heads = tower.get("heads") or max(1, self.width // 64)
            hidden = tower.get("hidden") or 4 * self.width
            self.pool = AttentionPool(self.width, heads, hidden, tower["ln_eps"], tower["act"])
        small = TruncatedNormal(0.02)
        self.head = nn.Dense(self.width, num_classes, weight_init=small) if num_classes else nn.Identity()

    def construct(self, x: Tensor) -> Tensor:
        x = self.norm(self.tokens(x))
        return self.head(self.pool(x) if self.by_attention else x.mean(1))


def sizes(name: str) -> Dict[str, Any]:
    """Arguments that an architecture's name stands for; ``siglip_vit`` has ViT-B/16's by default."""
    keys = ("width", "depth", "heads", "hidden", "patch_size")
    return dict(zip(keys, SIZES.get(name, SIZES["siglip_vit_b_16"])))


def _named(name: str, num_classes: int, in_channels: int, kwargs: Any) -> SigLip:
    return SigLip(num_classes, in_channels=in_channels, **{**sizes(name), **kwargs})


@register
def siglip_vit_b_16(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> SigLip:
    """SigLIP ViT-B/16, 85.8 M parameters, 92.9 M with the attention pool; input 224 unless ``image_size`` says more."""
    return _named("siglip_vit_b_16", num_classes, in_channels, kwargs)


@register
def siglip_vit_b_32(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> SigLip:
    """SigLIP 2 ViT-B/32, 87.5 M parameters without the attention pool, published for 256 pixels."""
    return _named("siglip_vit_b_32", num_classes, in_channels, {"image_size": 256, **kwargs})


@register
def siglip_vit_l_16(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> SigLip:
    """SigLIP ViT-L/16, 303.4 M parameters without the attention pool, published for 256 and 384 pixels."""
    return _named("siglip_vit_l_16", num_classes, in_channels, {"image_size": 256, **kwargs})


@register
def siglip_vit_so400m_14(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> SigLip:
    """SigLIP so400m/14, 413.0 M parameters without the attention pool, published for 224 and 384 pixels."""
    return _named("siglip_vit_so400m_14", num_classes, in_channels, {"image_size": 384, **kwargs})


@register
def siglip_vit_so400m_16(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> SigLip:
    """SigLIP 2 so400m/16, 413.0 M parameters without the attention pool, published for 256, 384 and 512 pixels."""
    return _named("siglip_vit_so400m_16", num_classes, in_channels, {"image_size": 384, **kwargs})


@register
def siglip_vit(num_classes: int = 0, in_channels: int = 3, **kwargs: Any) -> SigLip:
    """SigLIP's image tower of any size; by default ViT-B/16."""
    return _named("siglip_vit", num_classes, in_channels, kwargs)
