"""Training: from a configuration to best.ckpt."""

from .run import train

__all__ = ["train"]
