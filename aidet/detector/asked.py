"""What a caller asks of a detector: which files are meant, and options that cannot work together."""

import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from .. import ckpt
from ..errors import UserError, nearest
from . import foreign, vote
from .scorer import Scorer
from .vote import FUSIONS, read_fusion

AnyPath = Union[str, Path]


def absolute(path: Any) -> Any:
    """The absolute path of a file that is there; a rule's name and None stay as they are."""
    return os.path.abspath(path) if path is not None and os.path.isfile(path) else path


def fusion(checkpoints: Tuple[AnyPath, ...], fuse: AnyPath) -> Tuple[Tuple[AnyPath, ...], AnyPath, Dict[str, Any]]:
    """The models that are meant, and how they are fused.

    Parameters
    ----------
    checkpoints : sequence of str or Path
        Models, or one ``.yaml`` in their place that names its own.
    fuse : str or Path
        One of :data:`aidet.detector.vote.FUSIONS`, or a fusion file.

    Returns
    -------
    (tuple, str or Path, dict)
        Models, ``fuse``, and the content of the fusion file as :func:`aidet.detector.vote.check_fusion` gives it.

    Raises
    ------
    UserError
        A file that cannot be read, one beside other models than it names, or a model that does not exist.
    """
    files = [p for p in checkpoints if vote.is_fusion_file(p)]
    if files:
        if len(checkpoints) > 1 or fuse != "soft":
            raise UserError(f"{files[0]} is a fusion file with models of its own; give it alone, without fuse")
        fuse = files[0]
    if fuse in FUSIONS:
        return checkpoints, fuse, {"fuse": fuse, "decisions": ckpt.Sidecar({}, "")}
    spec = read_fusion(fuse)
    if not files:
        own, others = ([str(absolute(str(p))) for p in paths] for paths in (spec["models"], checkpoints))
        if own and set(own) != set(others):
            named, given = (", ".join(map(str, paths)) for paths in (spec["models"], checkpoints))
            raise UserError(
                f"fusion file {str(fuse)!r} names the models {named}, not {given}; give it alone, --ckpt {fuse}, or "
                "remove 'models' from it"
            )
        return checkpoints, fuse, spec
    if not spec["models"]:
        raise UserError(f"fusion file {str(fuse)!r} names no models; add models: [A.ckpt, B.ckpt]")
    missing = [m for m in spec["models"] if not m.startswith(vote.RULE) and not Path(m).is_file()]
    if missing:
        card = Path(fuse).with_suffix(".md")
        how = f"; {card} says how it is made" if card.is_file() else ""
        raise UserError(f"fusion file {str(fuse)!r}: model {missing[0]!r} does not exist{how}")
    return tuple(spec["models"]), fuse, spec


def of_foreign(checkpoints: Sequence[AnyPath], transform: Optional[str]) -> List[Dict[str, Any]]:
    """For each checkpoint the options that only an ONNX file from elsewhere takes.

    Raises
    ------
    UserError
        There is a ``transform`` and no such file.
    """
    if transform is None:
        return [{} for _ in checkpoints]
    elsewhere = [foreign.is_foreign(path) for path in checkpoints]
    if not any(elsewhere):
        raise UserError("--transform is for ONNX files from elsewhere; a checkpoint's sidecar has its own")
    return [{"transform": transform} if plain else {} for plain in elsewhere]


def check_point(name: str, threshold: Optional[float], spec: Mapping[str, Any]) -> None:
    """Refuse an unknown operating point, and one beside another threshold; ``spec`` is the fusion file's content.

    Raises
    ------
    UserError
    """
    if name not in ckpt.POINTS:
        raise UserError(nearest(str(name), ckpt.POINTS, "operating point"))
    if threshold is not None:
        raise UserError(f"threshold (={threshold!r}) and operating point {name!r} exclude each other; give one of them")
    if spec["decisions"].operating_points:
        return
    if spec.get("threshold") is not None or spec.get("thresholds"):
        raise UserError(f"the fusion file states thresholds, which operating point {name!r} excludes; leave one out")


def check_rules(models: Sequence[Scorer], options: Mapping[str, Any]) -> None:
    """Refuse options that none of the models has a use for, because all are rules.

    Votes and views are taken: ``evaluate.py`` gives the same ones to every model that it compares.

    Raises
    ------
    UserError
    """
    name = models[0].name
    if (options["early_exit"] or options["cascade"] is not None) and models[0].views is None:
        raise UserError(f"early_exit and cascade are for networks with views; {name!r} is a rule")
    if options["own_order"] or any(m.order is not None for m in models):
        return
    for option in ("positive", "real"):
        if options[option] is not None:
            raise UserError(f"{option} (={options[option]!r}) names classes of a network; {name!r} is a rule")
