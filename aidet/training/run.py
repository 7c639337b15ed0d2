"""Training: from a configuration to best.ckpt.

:func:`train` is what ``train.py`` runs. A run is determined by its configuration and data: the order of an epoch, the
random draws of an image, mixing and dropout depend only on the seed, the epoch (or step) and the image. So a run that
was killed and resumed gives the same numbers as an uninterrupted one, and N processes give those of one process with an
N times larger batch.
"""

import math
import sys
import time
from contextlib import closing
from typing import Any, Callable, Dict, Iterator, List, Optional

import numpy as np

from .. import images
from ..datasets import samples
from ..errors import UserError
from . import checks, masks, opening, saving
from .checks import Plan
from .loader import Loader, epoch_order
from .log import Journal
from .processes import Processes
from .saving import Progress
from .start import Student
from .updates import Batch, Updater, first_scale
from .validation import Validator, average_statistics, compare_teachers
from .workers import Workers


def train(config: Any, dry_run: bool = False, out: Optional[Callable[[str], Any]] = None) -> int:
    """Run a training.

    Parameters
    ----------
    config : aidet.config.Config
    dry_run : bool
        Print what would be done and stop.
    out : callable, optional
        Takes one line; default prints to stdout.

    Returns
    -------
    int
        0, or 3 if some images could not be read.

    Raises
    ------
    UserError
    """
    processes = Processes(out or (lambda text: print(text, flush=True)))
    # Every check, cheapest first; join loads MindSpore, which takes seconds.
    checks.check_files(config)
    checks.check_keys(config)
    data = checks.find_data(config, processes.warn)
    opening.require_images(data, processes.warn, images.Reading.of(config))
    lines = checks.find_lines(config)
    masks.require_masks(config, data, lines)
    processes.join(config)
    plan = checks.make_plan(config, data, lines, processes.world)
    if config.profile is not None:
        processes.say(config.profile.line())
    student = Student(plan, processes)
    idle = checks.idle_keys(config, processes.device)
    if idle:
        processes.warn("note: without effect here: " + "; ".join(idle))
    if dry_run:
        describe(plan, student, processes)
        return 0
    journal = Journal(plan.folder, active=processes.first)
    with closing(Workers(config.num_parallel_workers)) as workers, closing(journal):
        return Run(plan, student, processes, workers, journal).go()


def describe(plan: Plan, student: Student, processes: Processes) -> None:
    """Print what ``--dry_run`` shows."""
    config, say, (train_set, val_set, classes) = plan.config, processes.say, plan.data
    say(config.to_yaml(only_given=True))
    say(f"train       {samples.describe(train_set)}")
    say(f"validation  {samples.describe(val_set) if val_set is not None else 'none'}")
    say(f"classes     {', '.join(classes[:12])}{' ...' if len(classes) > 12 else ''}")
    say(f"transform   {plan.lines.text}")
    say(f"evaluation  {plan.lines.text_eval}")
    say(f"model       {config.model}: {student.parameters:,} parameters, {student.trainable:,} trained")
    say(f"device      {processes.device}, {processes.world} process{'es' if processes.world > 1 else ''}")
    rate = max(plan.rates or [0])
    say(f"steps       {config.epoch_size} epochs x {plan.updates_per_epoch} updates, lr up to {rate:g}")
    say(f"output      {plan.folder}")


class Run:
    """The epochs of one training, with everything that they need.

    Parameters
    ----------
    plan : Plan
    student : Student
    processes : Processes
    workers : Workers
    journal : Journal
    """

    def __init__(self, plan: Plan, student: Student, processes: Processes, workers: Workers, journal: Journal) -> None:
        config, data, lines = plan.config, plan.data, plan.lines
        self.config, self.plan, self.student, self.processes, self.journal = config, plan, student, processes, journal
        self.updater = Updater(plan, student, processes)
        self.loader = Loader(
            data.train_set, lines.text, lines.size, config.batch_size, seed=config.seed, workers=workers,
            cache_mb=config.cache_mb, splits=max(1, config.aug_splits),
            reading=images.Reading.of(config), grid=student.grid,
        )  # fmt: skip
        self.validator: Optional[Validator] = None
        if data.val_set is not None and config.val_while_train:
            self.validator = Validator(plan, student, self.updater.net, processes, workers)
        self.progress = Progress(scale=first_scale(config), batches_per_epoch=plan.batches, world=processes.world)

    def go(self) -> int:
        """Train, resuming if asked, and write everything; returns the exit code."""
        config = self.config
        self._begin()
        for epoch in range(self.progress.epochs, config.epoch_size):
            if self._waited():
                waited = self.progress.waiting
                self.processes.say(f"early stopping: no better {config.monitor} in {waited} validations")
                break
            self._epoch(epoch)
        self.journal.curves(config.metrics)
        teachers = self.updater.teachers
        if teachers is not None and self.validator is not None and self.processes.first:
            compare_teachers(self.plan, self.student, teachers, self.validator.loader, self.processes.say)
        failed = self._failures()
        best = self.progress.best
        # A run that resumes elsewhere may have its best epoch behind it, and no epoch at all judges nothing.
        none = self.progress.rows and (self.validator is None or best["value"] is None)
        if none and self.processes.first and not (self.plan.folder / "best.ckpt").is_file():
            self._no_best(failed)
        of = "" if best["value"] is None else f"; best {config.monitor} {best['value']:.4f} at epoch {best['epoch']}"
        there = (self.plan.folder / "best.ckpt").is_file() or not self.processes.first
        why = "the best epoch lies before the state that was resumed" if self.progress.rows else "no epoch was trained"
        what = "wrote {}" if there else f"no {{}} here, because {why}"
        self.processes.say(what.format(self.plan.folder / "best.ckpt") + of)
        return 3 if failed else 0

    def _waited(self):
        """Whether early stopping ends the run."""
        return bool(self.config.early_stopping) and self.progress.waiting >= self.config.early_stopping

    def _no_best(self, failed):
        """Say why there is no best.ckpt, and leave no other checkpoint of weights that are no numbers."""
        config, rows = self.config, self.progress.rows
        values = [row[config.monitor] for row in rows if row.get(config.monitor) is not None]
        if self.validator is not None and not values:
            raise UserError(
                f"validation has no {config.monitor}, so there is no best.ckpt; set monitor to another metric"
            )
        saving.remove_weights(self.plan.folder)
        lost = f" ({len(failed)} images could not be used)" if failed else ""
        raise UserError(
            f"{config.monitor if self.validator is not None else 'the loss'} is not a number in any of {len(rows)} "
            f"epochs{lost}, so there is no checkpoint; lower lr, set clip_grad, or look at the images"
        )

    def _begin(self):
        """Load the state if there is one to resume, and open the logs."""
        path = saving.state_path(self.config)
        found = saving.resume(self.plan, self.updater.state(), self.processes.world)
        if found is not None:
            self.progress = found
            if self.config.loss_scale_type == "fixed":
                found.scale = first_scale(self.config)
            self.processes.say(f"resumed {path}: {found.updates} updates, {found.epochs} whole epochs done")
        world, student, updates = self.processes.world, self.student, self.progress.updates
        if self.processes.total(updates) != world * updates:
            raise UserError(
                f"resume {str(path)!r}: the processes have different states, here of {updates} updates; "
                "ckpt_save_dir must be a folder that all of them see"
            )
        if self.processes.first:
            saving.begin_folder(self.plan, fresh=not self.progress.updates)
        self.journal.start(self.progress.rows, self.progress.updates)
        several = f", {world} processes" if world > 1 else ""
        self.processes.say(
            f"train: {samples.describe(self.plan.data.train_set)}; {self.config.model}, {student.trainable:,} of "
            f"{student.parameters:,} parameters, {self.processes.device}{several}"
        )

    def _epoch(self, epoch):
        from tqdm import tqdm

        config, progress = self.config, self.progress
        began, seen = time.time(), 0
        bar = tqdm(
            total=self.plan.batches, initial=progress.batches, desc=f"epoch {epoch + 1}/{config.epoch_size}",
            unit="step", leave=False, file=sys.stderr, disable=not self.processes.first or not sys.stderr.isatty(),
        )  # fmt: skip
        for batch in self._batches(epoch):
            loss = self.updater.update(batch, progress)
            if batch.last and progress.updates % config.log_interval == 0:
                self.journal.step(progress.updates, epoch + 1, self.updater.loss, self.plan.rates[batch.update])
            seen += int((batch.rows >= 0).sum())
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            progress.batches = batch.number + 1
            self._inside(batch)
        bar.close()
        if self.processes.world == 1 and epoch == 0:
            opening.require_classes(self.plan.data.train_set, self.loader.failed, "training")
        progress.epochs, progress.batches = epoch + 1, 0
        self._finish_epoch(epoch, time.time() - began, seen)

    def _batches(self, epoch) -> Iterator[Batch]:
        """This process's share of the steps of an epoch that are not done yet."""
        config, plan, rank = self.config, self.plan, self.processes.rank
        size, group = config.batch_size, config.gradient_accumulation_steps
        order = epoch_order(
            plan.data.train_set, epoch, seed=config.seed, shuffle=config.shuffle, repeats=config.aug_repeats,
            sampler=config.sampler, length=config.samples_per_epoch,
        )  # fmt: skip
        steps = global_batches(order, plan.batches, size * self.processes.world)
        skip = self.progress.batches
        own = [rows[rank * size : (rank + 1) * size] for rows in steps[skip:]]
        stream = self.loader.run_masked(np.concatenate(own) if own else np.zeros((0, 2), int), epoch)
        for number, (x, rows, shares) in zip(range(skip, len(steps)), stream):
            first = number // group * group
            yield Batch(
                epoch, number, epoch * plan.updates_per_epoch + number // group, x, rows,
                group=np.concatenate(steps[first : first + group])[:, 0], first=number == first,
                last=number - first == group - 1 or number == len(steps) - 1, shares=shares,
            )  # fmt: skip

    def _inside(self, batch):
        """Inside an epoch: write a point of the learning curve, or a state, if the configuration asks for one.

        Training is not affected: with several processes the running statistics are averaged before, but the mean over
        the processes at the end of the epoch is the same.
        """
        config, progress, done = self.config, self.progress, batch.number + 1
        if not batch.last:
            return
        every = config.val_every_steps
        if every and self.validator is not None and progress.updates % every == 0:
            self._share_statistics()
            with self.updater.averaged():
                self.journal.point(progress.updates, batch.epoch + 1, self.validator.measure())
        every = config.save_every_steps
        # A state lies between two updates: the first that is done at or after every N-th step.
        if every and done // every > (done - config.gradient_accumulation_steps) // every and done < self.plan.batches:
            self._share_statistics()
            self._save_state()

    def _share_statistics(self):
        """Give all processes the mean of their running statistics, and of the moving averages of these."""
        if self.processes.world > 1:
            averages = () if self.updater.ema is None else self.updater.ema.averages
            average_statistics([*self.student.tensors, *averages], self.processes)

    def _finish_epoch(self, epoch, seconds, seen):
        """Validate, save the weights, and write the epoch's row of the log."""
        config, progress, processes = self.config, self.progress, self.processes
        last = epoch + 1 == config.epoch_size
        row = {
            "epoch": epoch + 1, "updates": progress.updates,
            "lr": self.plan.rates[max(0, min((epoch + 1) * self.plan.updates_per_epoch, len(self.plan.rates)) - 1)],
            "train_loss": progress.running[0] / max(1, progress.running[1]),
        }  # fmt: skip
        progress.running = [0.0, 0]
        self._share_statistics()
        better = self.validator is None and self._sound(row["train_loss"])
        with self.updater.averaged():
            if self.validator is not None and ((epoch + 1) % config.val_interval == 0 or last):
                row.update(self.validator.measure())
                better = progress.judge(row, config.monitor)
            if processes.first:
                rows = [row, *reversed(progress.rows)]
                threshold = next((r["threshold"] for r in rows if r.get("threshold") is not None), None)
                network = self.student.facts()
                facts = saving.sidecar(self.plan, network, row, processes.world, processes.device, threshold)
                saving.save_weights(self.plan, self.student.tensors, facts, [*progress.rows, row], better)
        speed = round(seen * processes.world / max(seconds, 1e-9), 1)
        progress.rows.append({**row, "seconds": round(seconds, 2), "images_per_second": speed})
        self.journal.epoch(progress.rows[-1])
        processes.say(
            f"epoch {epoch + 1}/{config.epoch_size}: {shown(row)} lr {row['lr']:.3g}, {seconds:.0f} s, "
            f"{speed:.1f} images/s{' *' if better and self.validator is not None else ''}"
        )
        if (epoch + 1) % config.ckpt_save_interval == 0 or last or self._waited():
            self._save_state()

    def _sound(self, loss):
        """Whether the weights are numbers; a loss that is one says so, an overflow of one step does not."""
        return math.isfinite(loss) or all(np.isfinite(p.asnumpy()).all() for p in self.student.tensors)

    def _save_state(self):
        if self.processes.first:
            saving.save_state(self.progress, self.updater.state(), self.plan.folder)

    def _failures(self) -> Dict[str, str]:
        """Images that could not be read, with the reasons; every process prints its own."""
        failed = dict(self.loader.failed)
        if self.validator is not None:
            failed.update(self.validator.loader.failed)
        for path, reason in failed.items():
            print(f"unusable image {path}: {reason}", file=sys.stderr)
        return failed


def global_batches(order: np.ndarray, count: int, size: int) -> List[np.ndarray]:
    """The batches of an epoch over all processes, the last one padded with -1.

    Parameters
    ----------
    order : ndarray of int, shape (n, 2)
    count, size : int
        Number of batches, and images in each.

    Returns
    -------
    list of ndarray of int, each of shape (size, 2)
    """
    missing = count * size - len(order)
    if missing > 0:
        order = np.concatenate([order, np.full((missing, 2), -1, np.int64)])
    return [order[i * size : (i + 1) * size] for i in range(count)]


def shown(row: Dict[str, Any]) -> str:
    """Loss and metrics of a row of the log as text."""
    return " ".join(f"{k} {v:.4f}" for k, v in row.items() if isinstance(v, float) and k not in ("lr", "threshold"))
