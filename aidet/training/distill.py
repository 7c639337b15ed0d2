"""Teachers of a distillation: trained checkpoints that score the student's pixels.

The recipe is that of the model card ``ai-image-detect-distilled`` (several specialist teachers, one small student) with
the loss of Hinton et al. 2015.
"""

import csv
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from .. import ckpt, files, images, labels, metrics
from ..datasets.samples import Samples
from ..errors import UserError, nearest
from .checks import teachers_of
from .loader import Loader

COMBINE = ("mean", "max")


class Teachers:
    """Soft targets from several two-sided detectors.

    Parameters
    ----------
    settings : dict
        ``teachers`` (paths of checkpoints with sidecars), ``temperature`` (default 2), ``alpha`` (weight of the soft
        loss, default 0.5), ``combine``: ``mean`` of the teachers' scores, or ``max`` for specialists that each know
        some generators only.
    line : aidet.images.Pipeline
        The student's training pipeline; its last step determines the units of the pixels.
    class_order : list of str, or None
        Side of each of the student's outputs; None (no sides) is refused.

    Raises
    ------
    UserError
        A wrong setting, a student without the two sides, or a teacher that is not a detector.
    """

    def __init__(
        self,
        settings: Dict[str, Any],
        line: images.Pipeline,
        class_order: Optional[List[str]],
        device: Optional[str] = None,
    ) -> None:
        known = ("teachers", "temperature", "alpha", "combine")
        for key in settings:
            if key not in known:
                raise UserError(nearest(key, known, "key of distill"))
        paths = teachers_of(settings)
        if not paths:
            raise UserError("distill needs teachers: a list of checkpoints")
        self.temperature = _number(settings, "temperature", 2.0, 0.01, 1000)
        self.alpha = _number(settings, "alpha", 0.5, 0, 1)
        self.combine = settings.get("combine", "mean")
        if self.combine not in COMBINE:
            raise UserError(nearest(self.combine, COMBINE, "combine"))
        if class_order is None or len(class_order) > 2:
            raise UserError("distill needs a student with the classes real and generated")
        self.order = class_order
        offset, factor = _units(line)
        self.nets = [_Teacher(path, offset, factor) for path in paths]
        stems = [Path(path).stem for path in paths]
        # Every run calls its result best.ckpt: if two names are equal, the whole path is the name.
        self.names = stems if len(set(stems)) == len(stems) else [str(path) for path in paths]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Probability of each output of the student at the temperature.

        Parameters
        ----------
        x : ndarray of float32, shape (B, 3, h, w)
            As the student sees it.

        Returns
        -------
        ndarray of float32, shape (B, C)
        """
        score = self.combined(self.scores(x))
        made = labels.sigmoid(score / self.temperature)
        columns = [made if side == labels.NAMES[labels.GENERATED] else 1 - made for side in self.order]
        return np.stack(columns, 1).astype(np.float32)

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Score of every teacher, shape (teachers, B); ``x`` as in :meth:`__call__`."""
        return np.stack([teacher(x) for teacher in self.nets])

    def combined(self, scores: np.ndarray) -> np.ndarray:
        """One score per image from those of all teachers, shape (teachers, B)."""
        return scores.mean(0) if self.combine == "mean" else scores.max(0)


def compare(
    teachers: Teachers, student: Callable[[np.ndarray], np.ndarray], loader: Loader, samples: Samples
) -> List[Dict[str, Any]]:
    """The table "teachers against student per generator" on a validation set.

    Parameters
    ----------
    teachers : Teachers
    student : callable
        From (B, 3, h, w), as the loader yields it, to scores (B,).
    loader : Loader
        Over ``samples``, with the student's evaluation pipeline: the teachers score the same pixels.
    samples : aidet.datasets.samples.Samples

    Returns
    -------
    list of dict
        ``model, generator, images, accuracy, auc``: for each teacher, all teachers together and the student one row per
        generator and one for ``all`` (balanced accuracy). Decisions are made at probability .5; the AUC of a generator
        is against all real images.
    """
    names = [*teachers.names, *(["teachers together"] if len(teachers.names) > 1 else []), "student"]
    scores = np.full((len(names), len(samples)), np.nan)
    order = np.stack([np.arange(len(samples)), np.zeros(len(samples), int)], 1)
    for x, rows in loader.run(order, 0):
        ok = rows >= 0
        each = teachers.scores(x)
        together = [teachers.combined(each)] if len(teachers.names) > 1 else []
        scores[:, rows[ok]] = np.stack([*each, *together, student(x)])[:, ok]
    seen = ~np.isnan(scores[0])
    side, source = samples.sides[seen], np.array(samples.generators)[seen]
    return [row for name, score in zip(names, scores[:, seen]) for row in _rows(name, score, side, source)]


def _rows(name, score, side, source):
    real, made = side == labels.REAL, side == labels.GENERATED
    right = (score > 0) == made
    for kind in sorted(set(source.tolist())):
        for group in (real, made):
            own = (source == kind) & group
            if not own.any():
                continue
            both = own | real
            area = metrics.auc(side[both], score[both]) if group is made and real.any() else None
            accuracy = float(right[own].mean())
            yield {"model": name, "generator": kind, "images": int(own.sum()), "accuracy": accuracy, "auc": area}
    if real.any() and made.any():
        mean = metrics.decision_metrics(side, (score > 0).astype(int))["balanced_accuracy"]
        area = metrics.auc(side, score)
        yield {"model": name, "generator": "all", "images": len(side), "accuracy": mean, "auc": area}


def write_table(rows: Sequence[Dict[str, Any]], path: Union[str, Path]) -> None:
    """The rows of :func:`compare` as CSV."""
    with files.atomic(path) as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def lines(rows: Sequence[Dict[str, Any]]) -> List[str]:
    """The rows of :func:`compare` as a table of ``accuracy (AUC)``, one line per generator and one column per model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    kinds: Dict[Any, Dict[str, str]] = {}
    for row in rows:
        area = "" if row["auc"] is None else f" ({row['auc']:.3f})"
        kinds.setdefault((row["generator"], row["images"]), {})[row["model"]] = f"{row['accuracy']:.3f}{area}"
    table = [["accuracy (AUC)", "images", *models]]
    table += [[kind, str(n), *(cells.get(m, "") for m in models)] for (kind, n), cells in kinds.items()]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in table]


class _Teacher:
    """One teacher: converts the student's pixels to its own units and size, and scores them."""

    def __init__(self, path, offset, factor):
        import mindspore as ms

        self.ms = ms
        sidecar = ckpt.Sidecar.read(path)
        self.net = ckpt.load_network(sidecar)
        self.order = sidecar.class_order
        if not self.order:
            raise UserError(f"teacher {str(path)!r} is not a detector: its sidecar has no class_order")
        line = images.Pipeline(sidecar.detector_transform)
        if "two_sizes" in [name for name, _ in line.steps]:
            raise UserError(
                f"teacher {str(path)!r} looks at two sizes of a picture, the student shows one; leave it out"
            )
        own_offset, own_factor = _units(line)
        # The student sees (p - offset) / factor of a pixel p in [0, 1]: convert it to p, then to the teacher's units.
        self.scale = (factor / own_factor).reshape(1, 3, 1, 1)
        self.shift = ((offset - own_offset) / own_factor).reshape(1, 3, 1, 1)
        self.size = sidecar.size
        # A network with positions takes one size only; convolutional ones see the crop at its own size, if they can.
        placed = any("pos_embed" in p.name or "position" in p.name for p in self.net.get_parameters())
        self.fixed = placed or any(word in sidecar.architecture for word in ("vit", "deit", "swin", "mlp"))
        self.takes: Dict[Tuple[int, ...], bool] = {}

    def __call__(self, x):
        x = self.ms.Tensor((x * self.scale + self.shift).astype(np.float32))
        if self.size and tuple(x.shape[2:]) != self.size and not self._takes(x.shape[1:]):
            x = self.ms.ops.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        out = self.net(x)
        out = out[0] if isinstance(out, tuple) else out
        return labels.score_from_logits(out.asnumpy(), self.order)

    def _takes(self, shape):
        """Whether the network takes images of this shape; one with a dense layer over all positions does not."""
        if self.fixed:
            return False
        if shape not in self.takes:
            mode = self.ms.get_context("mode")
            self.ms.set_context(mode=self.ms.PYNATIVE_MODE)  # a graph that cannot be compiled leaves files behind
            try:
                self.net(self.ms.Tensor(np.zeros((1, *shape), np.float32)))
                self.takes[shape] = True
            except Exception:  # noqa: BLE001 - MindSpore raises several types for shapes that do not fit
                self.takes[shape] = False
            finally:
                self.ms.set_context(mode=mode)
        return self.takes[shape]


def _units(line):
    """(offset, factor) per channel: value = (pixel - offset) / factor, with pixels in [0, 1]."""
    affine = line.affine()
    if affine is None:
        raise UserError("distill cannot turn a high_pass input back into pixels; use normalize or to_float")
    scale, offset = affine
    return -offset / scale, 1 / scale


def _number(settings, name, default, low, high):
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UserError(f"distill {name} (={value!r}) must be a number between {low} and {high}")
    return float(value)
