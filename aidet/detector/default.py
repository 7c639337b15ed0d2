"""The detector that is part of the repository, for commands that are given no checkpoint."""

import sys
from pathlib import Path
from typing import List, Optional

from ..errors import UserError

CKPT = Path(__file__).resolve().parents[2] / "ckpt" / "aidet_default.ckpt"


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
        Nothing is given and the default detector is missing (a wheel does not contain it).
    """
    if given:
        return given
    if not CKPT.is_file():
        raise UserError(
            "no --ckpt given and ckpt/aidet_default.ckpt, which comes with a clone of the repository, does not exist "
            "here; name a detector: --ckpt A.ckpt or --ckpt A.onnx"
        )
    print(
        "no --ckpt given: using the default detector, ckpt/aidet_default.ckpt (its limits: ckpt/aidet_default.md)",
        file=sys.stderr,
    )
    return [str(CKPT)]
