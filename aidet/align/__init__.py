"""Fakes made of photographs: aligned reconstructions, and partly generated pictures with their masks."""

from .pairs import build, encode_like, originals, twin
from .partial import Builder, Settings
from .partial import build as build_partial
from .reconstruct import Reconstructor, tiled

__all__ = [
    "Builder", "Reconstructor", "Settings", "build", "build_partial", "encode_like", "originals", "tiled", "twin",
]  # fmt: skip
