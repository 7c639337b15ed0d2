"""Validation: loss and metrics over all images, shared between the processes."""

import math
from typing import Any, Callable, Dict, Iterable

import numpy as np

from .. import ckpt, images, labels
from ..datasets.samples import Samples
from ..metrics import best_threshold, class_metrics
from .checks import Plan, validates_apart
from .loader import Loader
from .masks import METRIC, map_auc, sides_of
from .opening import require_classes
from .processes import Processes
from .start import Student
from .targets import loss_kind, soft_targets
from .workers import Workers


def validation_set(plan: Plan) -> Samples:
    """The validation set of a plan that has one."""
    assert plan.data.val_set is not None
    return plan.data.val_set


class Validator:
    """Measures the student on the validation set.

    If ``val_amp_level`` differs from the precision of the training, a copy of the network validates. A cast changes a
    network permanently, so the copy has weights of its own, updated before every validation.

    Parameters
    ----------
    plan : Plan
        Its data include a validation set.
    student : Student
    net : mindspore.nn.Cell
        The student's network in the precision of the training.
    processes : Processes
    workers : Workers

    Attributes
    ----------
    loader : Loader
        Over the validation set; ``loader.failed`` names the images that could not be read.
    """

    def __init__(self, plan: Plan, student: Student, net: Any, processes: Processes, workers: Workers) -> None:
        from .. import models
        from . import cells

        config, val_set, lines = plan.config, validation_set(plan), plan.lines
        self._plan, self._student, self._processes = plan, student, processes
        size = min(config.batch_size, max(1, math.ceil(len(val_set) / processes.world)))
        self.loader = Loader(
            val_set, lines.text_eval, lines.size_eval, size, seed=config.seed, workers=workers,
            cache_mb=config.cache_mb, reading=images.Reading.of(config), grid=student.grid,
        )  # fmt: skip
        self._copies = []
        if validates_apart(config):
            twin = models.create(config.model, **student.arguments)
            own = {p.name: p for p in student.tensors}
            self._copies = [(p, own[p.name]) for p in twin.get_parameters()]
            net = cells.mixed_precision(twin, config.val_amp_level, config.amp_dtype, processes.device)
        self._forward: Any = cells.Both(net) if student.grid else cells.Forward(net)
        grid = student.grid
        self._cells = tuple(side // grid for side in lines.size_eval) if grid else (0, 0)
        self._forward.set_train(False)
        student.train_mode()

    def measure(self) -> Dict[str, float]:
        """Loss and metrics of the student as it is now; afterwards the student is in training mode again.

        Returns
        -------
        dict of str to float
            ``val_loss``, the metrics of the configuration, and ``threshold`` if it is chosen anew.
        """
        logits = self._logits()
        if self._processes.world > 1:
            logits = self._processes.sum(logits)
        counted = logits[:, -1] > 0
        if self._processes.world == 1:
            require_classes(validation_set(self._plan), self.loader.failed, "validation")
        return self._metrics(logits[counted, :-1].astype(np.float64), np.flatnonzero(counted))

    def _logits(self):
        """Outputs of this process's share, float32 (n, outputs + 1); the last column is 1 if the image was read.

        With masks the map's logits and the true shares of the cells lie between the two.
        """
        import mindspore as ms

        n, size, processes = len(self._plan.data.val_set), self.loader.batch_size, self._processes
        share = math.ceil(n / processes.world / size) * size
        rows = np.arange(processes.rank * share, (processes.rank + 1) * share)
        order = np.stack([np.where(rows < n, rows, -1), np.zeros_like(rows)], 1)
        outputs, cells = self._student.outputs, self._cells[0] * self._cells[1]
        logits = np.zeros((n, outputs + 2 * cells + 1), np.float32)
        self._student.net.set_train(False)
        for p, own in self._copies:
            p.set_data(own.value())
        for x, there, shares in self.loader.run_masked(order, 0):
            out = self._forward(ms.Tensor(x))
            ok = there >= 0
            if shares is None:
                parts = [out.asnumpy()]
            else:
                parts = [part.reshape(len(x), -1) for part in (out[0].asnumpy(), out[1].asnumpy(), shares)]
            logits[there[ok], :-1] = np.concatenate(parts, 1)[ok]
            logits[there[ok], -1] = 1
        self._student.train_mode()
        return logits

    def _metrics(self, logits, rows):
        config, outputs, order = self._plan.config, self._student.outputs, self._student.class_order
        maps, logits = logits[:, outputs:], logits[:, :outputs]
        sound = bool(np.isfinite(logits).all())
        logits = logits if sound else np.nan_to_num(logits, posinf=0, neginf=0)
        targets, sides = self._plan.data.val_set.targets[rows], self._plan.data.val_set.sides[rows]
        found: Dict[str, float] = {}
        if self._student.grid:
            cells, shares = (part.reshape(-1, *self._cells) for part in np.split(maps, 2, axis=1))
            targets = sides = sides_of(targets, shares)
            found[METRIC] = map_auc(cells, shares)
        found["val_loss"] = host_loss(logits, targets, order, loss_kind(config, outputs))
        if order is None:
            decided = logits.argmax(1) if outputs > 1 else (logits[:, 0] > 0).astype(int)
            found.update(class_metrics(targets, decided, None, max(2, outputs)))
        else:
            score = labels.score_from_logits(logits, order)
            threshold = config.threshold
            if threshold == "auto":
                threshold = best_threshold(sides, score)
                found["threshold"] = threshold
            decided = (labels.sigmoid(score) > threshold).astype(int)
            found.update(class_metrics(sides, decided, score, 2))
        wanted = ["val_loss", METRIC, *config.metrics, config.monitor, "threshold"]
        # Outputs that are no numbers are decided as class 0, which may look like an accuracy.
        return {
            name: found[name] if sound or name == "threshold" else float("nan")
            for name in dict.fromkeys(wanted) if name in found
        }  # fmt: skip


def host_loss(logits: np.ndarray, targets: np.ndarray, order: Any, kind: str) -> float:
    """Mean loss against targets that are not smoothed, in float64.

    Parameters
    ----------
    logits : ndarray of float64, shape (n, outputs)
    targets : ndarray of int, shape (n,)
        -1 for an image without a class, which is left out.
    order : list of str, or None
        Side of every output.
    kind : str
        ``"BCE"`` and ``"asl_multi_label"`` are measured as binary cross-entropy, all others as cross-entropy.

    Returns
    -------
    float
        NaN if no image has a class.
    """
    known = targets >= 0
    logits, targets = logits[known], targets[known]
    if not len(targets):
        return float("nan")
    hot = soft_targets(targets, logits.shape[1], order).astype(np.float64)
    if kind in ("BCE", "asl_multi_label"):
        return float((np.maximum(logits, 0) - logits * hot + np.log1p(np.exp(-np.abs(logits)))).mean())
    shifted = logits - logits.max(1, keepdims=True)
    return float(-(hot * (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))).sum(1).mean())


def average_statistics(tensors: Iterable[Any], processes: Processes) -> None:
    """Average the running statistics, which differ between processes because each sees different images.

    Parameters
    ----------
    tensors : iterable of mindspore.Parameter
        Those among them that are running statistics, or moving averages of such, are changed.
    processes : Processes
    """
    import mindspore as ms

    for p in tensors:
        if "moving_" in p.name:
            p.set_data(ms.Tensor(processes.sum(p.asnumpy()) / processes.world, p.dtype))


def compare_teachers(plan: Plan, student: Student, teachers: Any, loader: Any, say: Callable[[str], Any]) -> None:
    """Write teachers.csv and print it: accuracy of each teacher and of the best student, by generator.

    Parameters
    ----------
    plan : Plan
    student : Student
    teachers : aidet.training.distill.Teachers
    loader : Loader
        Over the validation set.
    say : callable
        Takes one line of text.
    """
    import mindspore as ms

    from . import distill

    path = plan.folder / "best.ckpt"
    if not path.is_file():
        return
    net = ckpt.load_model(path)

    def score(x):
        out = net(ms.Tensor(x))
        return labels.score_from_logits((out[0] if isinstance(out, tuple) else out).asnumpy(), student.class_order)

    rows = distill.compare(teachers, score, loader, validation_set(plan))
    distill.write_table(rows, plan.folder / "teachers.csv")
    for line in distill.lines(rows):
        say(line)
