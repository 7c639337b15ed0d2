"""From a batch to new weights: compiled steps, gradient accumulation, loss scale, moving averages, teachers."""

import math
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import numpy as np

from .. import images
from ..errors import UserError
from .checks import Plan
from .masks import sides_of
from .processes import Processes
from .saving import NET, Progress
from .start import Student
from .targets import batch_weights, loss_kind, mix, soft_targets

GROWTH = 2000  # updates without overflow after which a dynamic loss scale is doubled


class Batch(NamedTuple):
    """This process's share of one step.

    Attributes
    ----------
    epoch, number : int
        Number of the epoch, and of the step in it, from 0.
    update : int
        Number of its update in the schedule, from 0.
    x : ndarray of float32, shape (splits * B, 3, h, w)
    rows : ndarray of int, shape (B,)
        Rows of the training set, -1 for padding.
    group : ndarray of int, shape (G,)
        Rows of all batches of all processes that contribute to the same update.
    first, last : bool
        Whether this batch is the first, and the last, of its update.
    shares : ndarray of float32, shape (B, h / grid, w / grid), or None
        Generated share of the cells; None without masks.
    """

    epoch: int
    number: int
    update: int
    x: np.ndarray
    rows: np.ndarray
    group: np.ndarray
    first: bool
    last: bool
    shares: Optional[np.ndarray] = None


class Updater:
    """Makes one update of the weights from each batch, or from several if gradients are accumulated.

    Parameters
    ----------
    plan : Plan
    student : Student
    processes : Processes

    Attributes
    ----------
    net : mindspore.nn.Cell
        The student's network, cast to the precision of the training.
    teachers : aidet.training.distill.Teachers or None
    ema : aidet.training.cells.Ema or None
    loss : float
        Sum over the batches so far of the current update, or over those of the last one.

    Raises
    ------
    UserError
        A key of the optimizer, the precision or the teachers is wrong.
    """

    def __init__(self, plan: Plan, student: Student, processes: Processes) -> None:
        from . import activations, cells, convolutions, losses, optim

        config = plan.config
        self._plan, self._student, self._processes = plan, student, processes
        self.optimizer = optim.create(config, student.net)
        loss: Any = losses.Loss(loss_kind(config, student.outputs), config.aux_factor, config.aug_splits)
        self.teachers = _teachers(plan, student, processes.device)
        if self.teachers is not None:
            loss = losses.Distilled(loss, self.teachers.temperature, self.teachers.alpha, student.outputs == 1)
        if student.grid:
            loss = losses.Mapped(loss, config.map_weight, config.image_weight)
        self._graph = config.mode == 0  # otherwise operations run one by one
        if self._graph and processes.device == "CPU" and config.amp_level == "O0" and not config.amp_cast_list:
            convolutions.speed_up(student.net)
            activations.speed_up(student.net)
        self.ema = cells.Ema(student.tensors, config.ema_decay) if config.ema else None
        self.net = cells.mixed_precision(
            student.net, config.amp_level, config.amp_dtype, processes.device, config.amp_cast_list
        )
        self._guarded = config.loss_scale_type != "fixed" or config.drop_overflow_update
        self._step: Any = None
        self._gradient: Any = None
        self._apply: Any = None
        for cell in self._compiled(loss):
            cell.set_train(True)
        student.train_mode()
        self.loss, self._finite = 0.0, True

    def _compiled(self, loss) -> List[Any]:
        """The cells of a step: one, or two if an update may be skipped or is made from several batches."""
        from . import cells

        config, world = self._plan.config, self._processes.world
        distilled = self.teachers is not None or bool(self._student.grid)  # the loss takes one more input
        clip = config.clip_value if config.clip_grad else None
        if self._guarded or config.gradient_accumulation_steps > 1:
            self._gradient = cells.GradientStep(self.net, loss, self.optimizer, distilled)
            self._apply = cells.ApplyStep(self._gradient, self.optimizer, clip, world, self.ema)
            return [self._gradient, self._apply]
        count = len(self.optimizer.parameters)
        filler = cells.filler(self._processes.device, world, count) if self._graph else 0
        self._step = cells.TrainStep(
            self.net, loss, self.optimizer, distilled, clip, world, self.ema, scaled=first_scale(config) != 1.0,
            filler=filler,
        )  # fmt: skip
        return [self._step]

    def update(self, batch: Batch, progress: Progress) -> float:
        """Train with one batch; if it is the last of its update, change the weights.

        Parameters
        ----------
        batch : Batch
        progress : Progress
            Holds the loss scale; the update and its loss are counted in it.

        Returns
        -------
        float
            Loss of the batch, over all processes.

        Raises
        ------
        UserError
            The loss is not finite; the message names the images.
        """
        from . import cells

        inputs = self._inputs(batch)
        self._seed_dropout(batch)
        lr, step = cells.scalar(self._plan.rates[batch.update]), cells.scalar(progress.updates + 1)
        scale = cells.scalar(progress.scale)
        if self._step is not None:
            loss, finite = float(self._step(*inputs, lr, step, scale).asnumpy()), True
        else:
            loss, finite = self._gradient(*inputs, scale, cells.scalar(1.0 if batch.first else 0.0))
            loss, finite = float(loss.asnumpy()), bool(finite.asnumpy())
        loss = self._processes.total(loss)
        if not math.isfinite(loss):
            raise self._stopped(loss, batch, progress.updates + 1)
        self.loss = loss + (0.0 if batch.first else self.loss)
        self._finite = finite and (batch.first or self._finite)
        if batch.last:
            if self._apply is not None:
                self._apply_sums(lr, step, scale, progress)
            progress.count(self.loss)
        return loss

    def _inputs(self, batch) -> List[Any]:
        """Tensors of a step: images, targets, weights; the teachers' probabilities, the shares, or a placeholder."""
        import mindspore as ms

        config, student = self._plan.config, self._student
        known: Any = self._plan.data.train_set.targets
        class_weights = self._plan.class_weights
        index, weights = batch_weights(batch.rows, batch.group, known, class_weights, config.reduction)
        if batch.shares is not None:
            index = sides_of(index, batch.shares)
        x, targets = batch.x, soft_targets(index, student.outputs, student.class_order, config.label_smoothing)
        if config.mixup or config.cutmix:
            rng = images.generator(config.seed, f"mix {batch.epoch} {batch.number}", self._processes.rank)
            x, targets, weights = mix(x, targets, weights, rng, config)
        if config.aug_splits:
            targets, weights = np.tile(targets, (config.aug_splits, 1)), np.tile(weights, config.aug_splits)
            weights = weights / np.float32(config.aug_splits)
        soft = batch.shares if batch.shares is not None else np.zeros((1, 1), np.float32)
        if self.teachers is not None:
            soft = self.teachers(x)
        return [ms.Tensor(array) for array in (x, targets, weights, soft)]

    def _seed_dropout(self, batch):
        """Seed the masks from the step and the process only, so that a resumed run draws the same ones."""
        seed, group = self._student.dropout_seed, self._plan.config.gradient_accumulation_steps
        if seed is not None:
            import mindspore as ms

            step = batch.update * group + batch.number % group
            value = step * self._processes.world + self._processes.rank
            seed.set_data(ms.Tensor(value % 2147483647, ms.int64))

    def _apply_sums(self, lr, step, scale, progress):
        """Update from the accumulated gradients; if they overflowed in any process, skip it."""
        finite = self._processes.total(0.0 if self._finite else 1.0) == 0.0
        if finite or not self._guarded:
            self._apply(lr, step, scale)
        if self._plan.config.loss_scale_type != "fixed":
            adapt_scale(progress, finite)

    def _stopped(self, loss, batch, update) -> UserError:
        paths: Any = self._plan.data.train_set.paths
        names = [paths[row] for row in batch.rows if row >= 0]
        return UserError(
            f"loss is {loss} at update {update} (epoch {batch.epoch + 1}, step {batch.number + 1}), stopped; lower lr "
            f"or use clip_grad; images of the batch: {', '.join(names[:64])}{' ...' if len(names) > 64 else ''}"
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the network's weights are the moving averages, if the run keeps any."""
        if self.ema is None:
            yield
            return
        import mindspore as ms

        before = [p.asnumpy().copy() for p in self.ema.parameters]
        for p, average in zip(self.ema.parameters, self.ema.averages):
            p.set_data(ms.Tensor(average.asnumpy(), p.dtype))
        try:
            yield
        finally:
            for p, value in zip(self.ema.parameters, before):
                p.set_data(ms.Tensor(value, p.dtype))

    def state(self) -> Dict[str, Any]:
        """Every tensor that the next step depends on, by its name in the state."""
        named = {f"{NET}{p.name}": p for p in self._student.tensors}
        named.update({f"optimizer.{n}": p for n, p in self.optimizer.state().items()})
        if self.ema is not None:
            named.update(self.ema.state())
        return named


def _teachers(plan, student, device):
    settings = plan.config.distill
    if not settings:
        return None
    from .distill import Teachers

    return Teachers(settings, images.parsed(plan.lines.text), student.class_order, device)


def first_scale(config: Any) -> float:
    """The initial loss scale of a run."""
    return config.loss_scale or (1.0 if config.loss_scale_type == "fixed" else 2.0**16)


def adapt_scale(progress: Progress, finite: bool) -> None:
    """Halve a dynamic loss scale after an overflow (to 1 at least), double it after 2,000 updates without one."""
    progress.good_steps = progress.good_steps + 1 if finite else 0
    if not finite:
        progress.scale = max(1.0, progress.scale / 2)
    elif progress.good_steps >= GROWTH:
        progress.scale, progress.good_steps = progress.scale * 2, 0
