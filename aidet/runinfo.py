"""What a run of ``infer.py`` was: ``run.json`` beside its scores, and how reports show it.

It holds what ``scores.csv`` must not, because times differ from run to run: seconds, images a second, versions, device,
back ends, and the SHA-256 of the checkpoints and of the scores it belongs to.
"""

import platform
from pathlib import Path

from . import files, runtime
from .errors import UserError
from .parallel import cpus

NAME, FORMAT = "run.json", 1
OPTIONS = (
    "votes", "vote", "fuse", "views", "flips", "stability", "early_exit", "cascade", "seed", "threshold", "unsure",
    "on_error", "images",
)  # fmt: skip
# The VIP Cup 2022 gave an hour for 5,000 images; other contests are of that order.
CONTEST_IMAGES, CONTEST_SECONDS = 5000, 3600


def machine(device="CPU"):
    """One line: device, processor architecture, CPUs this process may use."""
    return f"{device}, {platform.machine()}, {cpus()} CPUs"


def write(out, header, parts, counts, written):
    """Write ``run.json``.

    Parameters
    ----------
    out : str or Path
    header : dict
        The journal's header (models, backends, files, options).
    parts : list of dict
        For each journal what its last line says: ``rows``, and of the process that ended it ``scored`` (images, fewer
        than rows after a resume), ``seconds`` (from the first image to the last), ``load_seconds`` (before), and
        ``device``.
    counts : dict of str to int
        Images by decision, ``error`` among them.
    written : list of Path
        Result files.

    Returns
    -------
    Path
    """
    scored, seconds = (sum(p.get(k) or 0 for p in parts) for k in ("scored", "seconds"))
    models = [
        {"name": name, "sha256": identity, "backend": backend, "file": (header.get("files") or {}).get(name)}
        for (name, identity), backend in zip(header["models"].items(), header["backends"])
    ]
    value = {
        "format": FORMAT,
        "models": models,
        "options": {k: header.get(k) for k in OPTIONS},
        "counts": counts,
        "processes": parts,
        "images_per_second": round(scored / seconds, 4) if scored and seconds else None,
        "versions": runtime.versions(),
        "outputs": {p.name: files.sha256(p) for p in written},
    }
    path = Path(out) / NAME
    files.write_json(path, value)
    return path


def read(scores):
    """The ``run.json`` that belongs to a scores file.

    Parameters
    ----------
    scores : str or Path

    Returns
    -------
    (dict or None, str or None)
        The facts; where there are none, or they are of another run (the hash of the scores differs), None and, in the
        second case, a sentence that says so.
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


def hour(rate, load=0.0):
    """Whether 5,000 images fit into an hour at ``rate`` images a second: ``"yes"`` or ``"no"``."""
    return "yes" if rate and load + CONTEST_IMAGES / rate <= CONTEST_SECONDS else "no"
