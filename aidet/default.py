"""The detector that comes along with a clone of the repository, for commands that are given no checkpoint."""

import sys
from pathlib import Path

from .errors import UserError

CKPT = Path(__file__).resolve().parents[1] / "ckpt" / "aidet_default.ckpt"


def checkpoints(given):
    """``given``; where nothing is given, the default detector, which is said in one line on stderr.

    Parameters
    ----------
    given : list of str or None

    Returns
    -------
    list of str

    Raises
    ------
    UserError
        Nothing is given and the default detector is not there: a wheel comes without it.
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
