"""A look at some images before training starts, so that a wrong folder is said at once and not after the last epoch."""

from typing import Any, Callable, List, Tuple

import numpy as np

from .. import images
from ..datasets.samples import Samples
from ..errors import UserError

TRIED = 16  # images of a set that are opened, spread over its classes
MOST = 1000  # of one class, where none of the first could be opened
_READING = images.Reading()


def require_images(data: Any, warn: Callable[[str], Any], reading: images.Reading = _READING) -> None:
    """Open a sample of the images of a training.

    Parameters
    ----------
    data : aidet.training.checks.Data
    warn : callable
        Takes one line of text: which images of the sample cannot be used.
    reading : aidet.images.Reading, optional
        How images are read.

    Raises
    ------
    UserError
        No image of the training or validation set can be used, or those of one class only.
    """
    for name, part in (("training", data.train_set), ("validation", data.val_set)):
        if part is not None:
            _require(part, name, data.classes, warn, reading)


def _require(part: Samples, name: str, classes: List[str], warn: Callable[[str], Any], reading: images.Reading) -> None:
    assert part.targets is not None
    kinds = np.unique(part.targets)
    chosen = kinds[np.unique(np.linspace(0, len(kinds) - 1, TRIED).astype(int))]
    lost, failed = [], []
    for kind in chosen.tolist():
        rows = np.flatnonzero(part.targets == kind)
        usable, reasons = _try(part, rows, max(1, TRIED // len(chosen)), reading)
        failed += reasons
        if not usable:
            lost.append(f"{classes[kind]!r}" if 0 <= kind < len(classes) else "images without a class")
    if failed:
        path, why = failed[0]
        first = f"first {path!r}: {why}"
        if len(lost) == len(chosen):
            raise UserError(
                f"none of the {name} images that were tried can be used ({len(failed)}), {first}; paths "
                f"are relative to {str(part.root)!r}"
            )
        if len(kinds) - len(lost) < 2 <= len(kinds):
            raise UserError(f"{name}: no image of {', '.join(lost)} can be used, which leaves one class; {first}")
        warn(f"warning: {len(failed)} of the {name} images that were tried cannot be used, {first}")


def _try(part: Samples, rows: np.ndarray, count: int, reading: images.Reading) -> Tuple[int, List[Tuple[str, str]]]:
    """How many of ``count`` images, evenly chosen, can be decoded; if none, look further. And (path, reason) of others.

    They are decoded: that a header can be read says little.
    """
    first = rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]
    others = rows[~np.isin(rows, first)][:MOST]
    usable = 0
    failed: List[Tuple[str, str]] = []
    for row in [*first.tolist(), *others.tolist()]:
        if usable and len(failed) + usable >= len(first):
            break
        try:
            reading.decode(part.root / part.paths[row])
            usable += 1
        except images.ImageError as error:
            failed.append((part.paths[row], str(error)))
    return usable, failed


def require_classes(part: Samples, failed: Any, name: str) -> None:
    """Raise :class:`UserError` if the images that could be used are none, or of one class only.

    Parameters
    ----------
    part : Samples
    failed : dict of str to str
        Reason for each image that could not be used, by its path.
    name : str
        ``training`` or ``validation``.
    """
    if not failed or part.targets is None:
        return
    left = {int(t) for path, t in zip(part.paths, part.targets.tolist()) if path not in failed}
    path, why = next(iter(failed.items()))
    if not left:
        raise UserError(f"none of the {len(part)} {name} images can be used, first {path!r}: {why}")
    if len(left) < 2 <= len(set(part.targets.tolist())):
        raise UserError(
            f"{len(failed)} of {len(part)} {name} images cannot be used, which leaves one class; first {path!r}: {why}"
        )
