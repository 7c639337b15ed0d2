"""The detector that is part of the repository, for commands that are given no checkpoint."""

import os
import sys
from typing import List, Optional

from .. import files
from ..errors import UserError

# The wheel's copy, or that of the repository.
_PLACES = (files.SHIPPED, files.SHIPPED.parents[1] / "ckpt")
CKPT = next((p for p in _PLACES if (p / "aidet_default.ckpt").is_file()), _PLACES[-1]) / "aidet_default.ckpt"

LOCALIZER = CKPT.with_name("aidet_partial.ckpt")


def path() -> str:
    """Path of the default detector's checkpoint.

    Raises
    ------
    UserError
        It was deleted.
    """
    if not CKPT.is_file():
        raise UserError(
            f"no --ckpt given and the default detector, {CKPT}, which comes with the repository and with the wheel, "
            "does not exist here; name a detector: --ckpt A.ckpt or --ckpt A.onnx"
        )
    return str(CKPT)


def checkpoints(given: Optional[List[str]]) -> List[str]:
    """``given``, or the default detector if nothing is given; in that case one line on stderr says so.

    Parameters
    ----------
    given : list of str or None

    Returns
    -------
    list of str

    Raises
    ------
    UserError
        Nothing is given and the default detector is missing, because it was deleted.
    """
    if given:
        return given
    found = path()
    card = CKPT.with_suffix(".md")
    near = os.path.relpath(card)
    shown = card if near.startswith("..") else near
    print(f"no --ckpt given: using the default detector, {CKPT.name} (its limits: {shown})", file=sys.stderr)
    return [found]


def localizer_path() -> str:
    """Path of the default localizer's checkpoint.

    Raises
    ------
    UserError
        It is not there.
    """
    if not LOCALIZER.is_file():
        raise UserError(
            f"the default localizer, {LOCALIZER}, does not exist here; name one with --localizer A.ckpt, or in Python "
            'with Localizer("A.ckpt") (docs/localize.md)'
        )
    return str(LOCALIZER)


def localizer_if_any(given: Optional[str]) -> Optional[str]:
    """``given``, or the default localizer if there is one; None for ``none``."""
    if given == "none":
        return None
    return given or (str(LOCALIZER) if LOCALIZER.is_file() else None)
