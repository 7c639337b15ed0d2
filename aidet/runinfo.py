"""The facts of a run of ``infer.py``: ``run.json`` beside its scores.

It holds what must not be in ``scores.csv`` because it differs from run to run: seconds, images per second, versions,
device, backends, and the SHA-256 of the checkpoints and of the scores it belongs to.
"""

import platform
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple, Union

from . import files, runtime
from .errors import UserError
from .parallel import cpus

NAME, FORMAT = "run.json", 1
OPTIONS = (
    "votes", "vote", "fuse", "views", "flips", "stability", "early_exit", "cascade", "seed", "threshold", "unsure",
    "on_error", "images",
)  # fmt: skip
# Where there are any: weights of a fusion, the threshold's name, all thresholds by name, the probability's prior.
OF_SOME = ("weights", "operating_point", "thresholds", "prior")
# The VIP Cup 2022 allowed an hour for 5,000 images; other contests are similar.
CONTEST_IMAGES, CONTEST_SECONDS = 5000, 3600


def machine(device: str = "CPU") -> str:
    """Device, processor architecture and usable CPUs as one line."""
    return f"{device}, {platform.machine()}, {cpus()} CPUs"


def write(
    out: Union[str, Path],
    header: Dict[str, Any],
    parts: Sequence[Dict[str, Any]],
    counts: Dict[str, int],
    written: Sequence[Path],
) -> Path:
    """Write ``run.json``.

    Parameters
    ----------
    out : str or Path
    header : dict
        The journal's header (models, backends, files, options).
    parts : list of dict
        The last line of each journal: ``rows``, and for the process that finished it ``scored`` (images, fewer than
        rows after a resume), ``seconds`` (from the first image to the last), ``load_seconds`` (before that) and
        ``device``.
    counts : dict of str to int
        Images by decision, including ``error``.
    written : list of Path
        Result files.

    Returns
    -------
    Path
    """
    scored, seconds = (sum(p.get(k) or 0 for p in parts) for k in ("scored", "seconds"))
    precisions = header.get("precisions") or [None] * len(header["backends"])
    stated = header.get("stated") or [{}] * len(header["backends"])
    models = [
        {
            "name": name, "sha256": identity, "backend": backend, "precision": precision,
            "file": (header.get("files") or {}).get(name), "order": own.get("order"),
        }
        for (name, identity), backend, precision, own in zip(
            header["models"].items(), header["backends"], precisions, stated
        )
    ]  # fmt: skip
    value = {
        "format": FORMAT,
        "models": models,
        "options": {**{k: header.get(k) for k in OPTIONS}, **{k: header[k] for k in OF_SOME if k in header}},
        **({"localizer": header["localizer"]} if "localizer" in header else {}),
        "counts": counts,
        "processes": parts,
        "images_per_second": round(scored / seconds, 4) if scored and seconds else None,
        "versions": runtime.versions(),
        "outputs": {p.name: files.sha256(p) for p in written},
    }
    path = Path(out) / NAME
    files.write_json(path, value)
    return path


def read(scores: Union[str, Path]) -> Tuple[Optional[Dict[str, Any]], Optional[str]]:
    """The ``run.json`` that belongs to a scores file.

    Parameters
    ----------
    scores : str or Path

    Returns
    -------
    (dict or None, str or None)
        The facts and None; if there are none, (None, None); if they belong to another run (the hash of the scores
        differs) or cannot be read, None and a sentence that says so.
    """
    scores = Path(scores)
    path = scores.with_name(NAME)
    if not path.is_file():
        return None, None
    try:
        value = files.read_json(path, "run")
        stated = value["outputs"].get(scores.name)
        fits = value["format"] == FORMAT and stated == files.sha256(scores)
    except (UserError, KeyError, TypeError, AttributeError):
        return None, f"{path} cannot be read as the facts of a run; speed and weights are not shown."
    if not fits:
        return None, f"{path} belongs to another run than {scores.name}; speed and weights are not shown."
    return value, None


def hour(rate: Optional[float], load: float = 0.0) -> str:
    """Whether 5,000 images take at most an hour at ``rate`` images per second: ``"yes"`` or ``"no"``."""
    return "yes" if rate and load + CONTEST_IMAGES / rate <= CONTEST_SECONDS else "no"
