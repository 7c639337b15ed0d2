"""From a file to numbers: decoding, the one-line pipeline and its operations, augmentation."""

from . import augment, operations
from .masked import refuse_unmasked, shares, together
from .opening import binary, opened, upright_size
from .operations import INTERPOLATION, STATISTICS
from .pipeline import OPERATIONS, Pipeline, applied, generator, parsed
from .reading import MAX_PIXELS, TRUNCATED, ImageError, Reading, decode, require_folder
from .walking import EXTENSIONS, LeftOut, walk

__all__ = [
    "EXTENSIONS", "INTERPOLATION", "ImageError", "LeftOut", "MAX_PIXELS", "OPERATIONS", "Pipeline", "Reading",
    "STATISTICS", "TRUNCATED", "applied", "augment", "binary", "decode", "generator", "opened", "operations", "parsed",
    "refuse_unmasked", "require_folder", "shares", "together", "upright_size", "walk",
]  # fmt: skip
