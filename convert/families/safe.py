"""SAFE, as its authors save it; the keys and shapes are those of NPR, so that a recipe or ``--layout`` decides."""

from typing import Tuple

from . import Arguments, Config, Family, Layout, Tensors
from .npr import HEAD, MARKS, RULES, WITHOUT, taps

LAYOUTS = (Layout("safe", MARKS, RULES, without=WITHOUT),)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """There is one size; the input is that of the authors' evaluation."""
    return "safe_resnet50", {"image_size": 256}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The authors' evaluation."""
    return f"decode | center_crop({arguments['image_size']}) | to_float"


FAMILY = Family("safe", ("safe_resnet50",), LAYOUTS, infer, transform, head=HEAD, taps=taps)
