"""From a file to numbers: decoding, the one-line pipeline and its operations, augmentation."""

from . import augment, operations
from .operations import INTERPOLATION, STATISTICS
from .pipeline import OPERATIONS, Pipeline, applied, generator, parsed
from .reading import EXTENSIONS, ImageError, decode, require_folder, walk

__all__ = [
    "EXTENSIONS", "INTERPOLATION", "ImageError", "OPERATIONS", "Pipeline", "STATISTICS", "applied", "augment",
    "decode", "generator", "operations", "parsed", "require_folder", "walk",
]  # fmt: skip
