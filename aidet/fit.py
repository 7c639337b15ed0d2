"""Training: from a configuration to best.ckpt.

:func:`train` is what ``train.py`` runs. A run is determined by its configuration and data: the order of an epoch, the
random draws of an image, mixing and dropout depend on the seed, the epoch (or step) and the image alone. So a run that
was killed and resumed gives the numbers of one that was not, and N processes give those of one with the N-fold batch.
"""

import fnmatch
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from . import ckpt, dataset, files, labels, runtime, schedules, transforms
from .datasets import samples
from .errors import UserError, nearest
from .journal import Journal

STATE = "state.ckpt"
META = "__meta__"


def train(config, dry_run=False, out=None):
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
        0, or 3 where some images could not be read.

    Raises
    ------
    UserError
    """
    run = Run(config, out or (lambda text: print(text, flush=True)))
    try:
        run.prepare()
        if dry_run:
            run.describe()
            return 0
        return run.go()
    finally:
        run.close()


class Run:
    """One training run; see :func:`train`."""

    def __init__(self, config, out):
        self.config, self._out = config, out
        self.rank, self.world = 0, 1
        self.workers = dataset.Workers(config.num_parallel_workers)
        self.folder = Path(os.path.expanduser(config.ckpt_save_dir))
        self.journal = None
        self.exit_code = 0

    def say(self, text):
        """A line on stdout, of the first process only."""
        if self.rank == 0:
            self._out(text)

    def warn(self, text):
        """A line on stderr, of the first process only."""
        if self.rank == 0:
            print(text, file=sys.stderr, flush=True)

    def close(self):
        """Free the workers and close the logs."""
        self.workers.close()
        if self.journal is not None:
            self.journal.close()

    # --- before the first step -------------------------------------------------------------------------------------
    def prepare(self):
        """Check everything that can be wrong, cheapest first, then build the network."""
        config = self.config
        self._check_files()
        self._check_keys()
        self.train_set, self.val_set, self.classes = samples.open_data(config, self.warn)
        if self.val_set is None and (config.early_stopping or config.threshold == "auto"):
            raise UserError("early_stopping and threshold auto need a validation split; set val_split or val_fraction")
        if self.val_set is None and config.ckpt_save_policy == "top_k":
            raise UserError("ckpt_save_policy top_k ranks by validation; give a validation split or use latest_k")
        self._pipelines()
        self.ms, self.device = runtime.setup(
            config.device_target, "pynative" if config.mode else "graph", config.seed,
            device_id=config.device_id, jit_level=config.jit_level,
        )  # fmt: skip
        self._join()
        self._network()
        self._steps_and_rates()

    def _check_files(self):
        for key in ("init_from",):
            path = getattr(self.config, key)
            if path and not Path(path).is_file():
                raise UserError(f"{key} {path!r} does not exist")
        state = self.state_path()
        if self.config.resume not in (None, "auto") and not state.is_file():
            raise UserError(f"resume {self.config.resume!r} does not exist")
        if self.config.pretrained and not self.config.init_from:
            raise UserError("pretrained downloads in MindCV; here convert the weights and give init_from FILE")
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"ckpt_save_dir {str(self.folder)!r} is not a folder")
        if self.config.monitor not in METRICS:
            raise UserError(nearest(self.config.monitor, METRICS, "metric"))
        for name in self.config.metrics:
            if name not in METRICS:
                raise UserError(nearest(name, METRICS, "metric"))

    def _check_keys(self):
        """Keys that contradict each other."""
        config = self.config
        if config.ckpt_save_policy == "top_k" and not config.val_while_train:
            raise UserError("ckpt_save_policy top_k ranks by validation; set val_while_train true or use latest_k")
        if config.aug_splits == 1 or (config.loss == "JSD" and not config.aug_splits):
            raise UserError(
                f"aug_splits (={config.aug_splits}) with loss {config.loss}: JSD compares views of an image, set "
                "aug_splits 3 and auto_augment; without JSD leave aug_splits 0"
            )
        if config.aug_splits and (config.mixup or config.cutmix):
            raise UserError("aug_splits compares views of one image; set mixup 0 and cutmix 0")

    def state_path(self):
        """Where the state to resume lies."""
        given = self.config.resume
        return self.folder / STATE if given in (None, "auto") else Path(os.path.expanduser(given))

    def _pipelines(self):
        from . import recipes

        config = self.config
        self.text, self.text_eval = recipes.pipelines(config)
        policies = [name for name, _ in dataset.pipeline(self.text).steps].count("auto_augment")
        if config.aug_splits and policies != 1:
            raise UserError(f"aug_splits (={config.aug_splits}) needs one auto_augment in the training pipeline")
        self.size = self._size("transform", self.text)
        self.size_eval = self._size("transform_eval", self.text_eval)
        if dataset.pipeline(self.text_eval).random:
            raise UserError(f"transform_eval {self.text_eval!r} is random; validation needs the same pixels every time")
        self.views = None if config.views is None else transforms.Pipeline(config.views).text

    def _size(self, key, text):
        size = dataset.pipeline(text).size()
        if size is None:
            raise UserError(f"{key} {text!r} gives images of different sizes; end it with a crop or resize((h, w))")
        return size

    def _join(self):
        """Join the other processes where msrun, mpirun or a rank table started several."""
        sizes = [os.environ.get(n, "") for n in ("MS_WORKER_NUM", "RANK_SIZE", "OMPI_COMM_WORLD_SIZE")]
        several = any(s.isdigit() and int(s) > 1 for s in sizes)
        if not (several or (self.config.distribute and any(sizes))):
            if self.config.distribute:
                self.warn("warning: distribute is set, but no launcher (msrun, mpirun) started this: one process")
            return
        from mindspore.communication import get_group_size, get_rank, init

        init()
        self.rank, self.world = get_rank(), get_group_size()
        self.ms.reset_auto_parallel_context()
        self.ms.set_auto_parallel_context(
            parallel_mode=self.ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=self.world
        )

    def _warn_of_idle_keys(self):
        """Keys that the user set and that do nothing here: said once, together."""
        config, idle = self.config, []
        if "dataset_sink_mode" in config.given and config.dataset_sink_mode:
            idle.append("dataset_sink_mode (batches are fed the same way on every device)")
        if config.dataset not in (None, "", "imagenet") and "dataset" in config.given:
            idle.append(f"dataset {config.dataset!r} (data_dir decides)")
        if "keep_checkpoint_max" in config.given and not config.ckpt_save_policy:
            idle.append("keep_checkpoint_max (ckpt_save_policy latest_k or top_k keeps epoch checkpoints)")
        if config.eval_shuffle:
            idle.append("eval_shuffle (the order changes no number)")
        if config.use_nesterov and config.opt not in ("sgd", "momentum", "nesterov", "adam", "adamw"):
            idle.append(f"use_nesterov (opt {config.opt} has none)")
        if config.aug_repeats > 1 and config.num_samples:
            idle.append("num_samples counts images before aug_repeats")
        if config.dataset_download:
            idle.append("dataset_download (nothing is downloaded)")
        if config.jit_level and self.device == "CPU":
            idle.append("jit_level (Ascend and GPU)")
        if config.device_id and self.device == "CPU":
            idle.append("device_id (there is one CPU)")
        if idle:
            self.warn("note: without effect here: " + "; ".join(idle))

    def _network(self):
        from . import models, steps

        config, ms = self.config, self.ms
        given = self._initial()
        self.arguments = {**(given[1].get("arguments", {}) if given else {}), **config.model_args}
        self.num_classes = config.num_classes or len(self.classes)
        named = (self.train_set.sides >= 0).all()
        if self.num_classes > len(self.classes) and not named:
            # MindCV's MobileNet recipes have 1001 outputs for the 1000 classes of ImageNet.
            self.warn(f"note: num_classes is {self.num_classes}, the data have {len(self.classes)} classes")
        elif self.num_classes != len(self.classes) and not (self.num_classes == 1 and len(self.classes) == 2):
            shown = ", ".join(self.classes[:8]) + (", ..." if len(self.classes) > 8 else "")
            raise UserError(
                f"num_classes (={self.num_classes}) is not the number of classes in the data, "
                f"{len(self.classes)} ({shown}); leave it out or set it to that"
            )
        for name in ("drop_rate", "drop_path_rate"):
            if getattr(config, name) is not None:
                self.arguments[name] = getattr(config, name)
        self.arguments["num_classes"] = self.num_classes
        if config.in_channels != 3:
            raise UserError(f"in_channels (={config.in_channels}): images are read as RGB, 3 channels")
        ms.set_seed(config.seed)
        net = models.create(config.model, **self.arguments)
        self.class_order = self._class_order(given)
        if given:
            self._load_initial(net, *given)
        self._freeze(net)
        # The weights proper: the seed of the dropout is a parameter to the compiler only.
        self.tensors = list(net.get_parameters())
        self.parameters = int(sum(p.size for p in self.tensors))
        self.trainable = int(sum(p.size for p in self.tensors if p.requires_grad))
        self.dropout_seed = steps.seed_dropout(net)
        self.net = net

    def _initial(self):
        """(arrays, sidecar or {}) of init_from, or None."""
        path = self.config.init_from
        if not path:
            return None
        facts = ckpt.read_sidecar(path) if ckpt.sidecar_path(path).is_file() else {}
        if facts and facts["architecture"] != self.config.model:
            raise UserError(f"init_from {path!r} holds {facts['architecture']!r}, model says {self.config.model!r}")
        arrays = ckpt.load_arrays(path)
        arrays = {n: a for n, a in arrays.items() if n != META and not n.startswith(STATE_PREFIXES)}
        return arrays, facts

    def _load_initial(self, net, arrays, facts):
        """All weights; only the last layer may be of another size, and then starts anew."""
        own = {p.name: p for p in net.get_parameters()}
        differs = [n for n in own if n in arrays and tuple(own[n].shape) != arrays[n].shape]
        layers = {n.rsplit(".", 1)[0] for n in differs}
        head = len(layers) == 1 and all(own[n].shape[1:] == arrays[n].shape[1:] for n in differs)
        if differs and head:
            before, after = arrays[differs[0]].shape[0], own[differs[0]].shape[0]
            self.say(f"head {layers.pop()}: {before} outputs replaced by {after}")
            # A small start: the pretrained features meet a head that says nothing yet, instead of a wrong one loudly.
            rng = transforms.generator(self.config.seed, "head")
            for n in differs:
                deviation = 0.01 if len(own[n].shape) > 1 else 0.0
                arrays[n] = rng.normal(0, deviation, own[n].shape).astype(np.float32)
        ckpt.load_strict(net, arrays, what=f"init_from {self.config.init_from!r}")

    def _class_order(self, given):
        """Side of every output, or None where the classes say nothing."""
        if (self.train_set.sides < 0).any():
            return None
        if given and self.num_classes <= 2:
            order = given[1].get("class_order")
            if order and len(order) == self.num_classes:
                return list(order)
        if self.num_classes == 1:
            return [labels.NAMES[labels.GENERATED]]
        if self.num_classes == 2:
            return list(labels.NAMES)
        return [labels.NAMES[labels.REAL]] + [labels.NAMES[labels.GENERATED]] * (self.num_classes - 1)

    def _freeze(self, net):
        from mindspore import nn

        named = list(net.get_parameters())
        for glob in self.config.freeze or []:
            hit = [p for p in named if fnmatch.fnmatchcase(p.name, glob)]
            if not hit:
                raise UserError(f"freeze {glob!r} matches no parameter; {nearest(glob, [p.name for p in named])}")
            for p in hit:
                p.requires_grad = False
        # A frozen normalisation keeps its running statistics too.
        self.still = [
            cell for _, cell in net.cells_and_names()
            if isinstance(cell, (nn.BatchNorm1d, nn.BatchNorm2d)) and not cell.gamma.requires_grad
            and self.config.freeze
        ]  # fmt: skip

    def _steps_and_rates(self):
        config = self.config
        self.order_args = {
            "seed": config.seed, "shuffle": config.shuffle, "repeats": config.aug_repeats, "sampler": config.sampler,
            "length": config.samples_per_epoch,
        }  # fmt: skip
        rows = (config.samples_per_epoch if config.sampler else None) or len(self.train_set)
        whole = config.batch_size * self.world
        # An epoch smaller than one batch would have no step at all.
        self.batches = rows // whole if config.drop_remainder and rows >= whole else math.ceil(rows / whole)
        self.updates_per_epoch = math.ceil(self.batches / config.gradient_accumulation_steps)
        self.rates = schedules.learning_rates(config, self.updates_per_epoch)

    def describe(self):
        """What ``--dry_run`` prints."""
        config = self.config
        self.say(config.to_yaml(only_given=True))
        self.say(f"train       {samples.describe(self.train_set)}")
        self.say(f"validation  {samples.describe(self.val_set) if self.val_set is not None else 'none'}")
        self.say(f"classes     {', '.join(self.classes[:12])}{' ...' if len(self.classes) > 12 else ''}")
        self.say(f"transform   {self.text}")
        self.say(f"evaluation  {self.text_eval}")
        self.say(f"model       {config.model}: {self.parameters:,} parameters, {self.trainable:,} trained")
        self.say(f"device      {self.device}, {self.world} process{'es' if self.world > 1 else ''}")
        rate = max(self.rates or [0])
        self.say(f"steps       {config.epoch_size} epochs x {self.updates_per_epoch} updates, lr up to {rate:g}")
        self.say(f"output      {self.folder}")

    # --- the run ---------------------------------------------------------------------------------------------------
    def _build(self):
        """Compile-time objects: optimizer, loss, step, loaders."""
        from . import convolutions, optim, steps

        config = self.config
        self.optimizer = optim.create(config, self.net)
        kind = "BCE" if self.num_classes == 1 and config.loss == "CE" else config.loss
        loss = steps.Loss(kind, config.aux_factor, config.aug_splits)
        self.kind = kind
        self.teachers = None
        if config.distill:
            from .distill import Teachers

            self.teachers = Teachers(config.distill, dataset.pipeline(self.text), self.class_order, self.device)
            loss = steps.Distilled(loss, self.teachers.temperature, self.teachers.alpha, self.num_classes == 1)
        graph = config.mode == 0  # else operations run one by one
        if graph and self.device == "CPU" and config.amp_level == "O0" and not config.amp_cast_list:
            convolutions.speed_up(self.net)
        self.ema = steps.Ema(self.tensors, config.ema_decay) if config.ema else None
        clip = config.clip_value if config.clip_grad else None
        cast = steps.mixed_precision(self.net, config.amp_level, config.amp_dtype, self.device, config.amp_cast_list)
        self.scaling = config.loss_scale_type != "fixed" or config.drop_overflow_update
        self.scale = config.loss_scale or (1.0 if config.loss_scale_type == "fixed" else 2.0**16)
        distilled = self.teachers is not None
        if self.scaling or config.gradient_accumulation_steps > 1:
            self.gradient = steps.GradientStep(cast, loss, self.optimizer, distilled)
            self.apply = steps.ApplyStep(self.gradient, self.optimizer, clip, self.world, self.ema)
            self.cells = [self.gradient, self.apply]
        else:
            filler = steps.filler(self.device, self.world, len(self.optimizer.parameters)) if graph else 0
            self.step = steps.TrainStep(
                cast, loss, self.optimizer, distilled, clip, self.world, self.ema, scaled=self.scale != 1.0,
                filler=filler,
            )  # fmt: skip
            self.gradient = None
            self.cells = [self.step]
        for cell in self.cells:
            cell.set_train(True)
        self._training()
        self.cast = cast
        self.validator = None
        self.good_steps = 0
        common = {"seed": config.seed, "workers": self.workers, "cache_mb": config.cache_mb}
        self.loader = dataset.Loader(
            self.train_set, self.text, self.size, config.batch_size, splits=max(1, config.aug_splits), **common
        )
        self.val_loader = None
        if self.val_set is not None and config.val_while_train:
            size = min(config.batch_size, max(1, math.ceil(len(self.val_set) / self.world)))
            self.val_loader = dataset.Loader(self.val_set, self.text_eval, self.size_eval, size, **common)
        self.weights = self._class_weights()

    def _training(self):
        self.net.set_train(True)
        for cell in self.still:
            cell.set_train(False)

    def _class_weights(self):
        given, n = self.config.class_weights, len(self.classes)
        if given is None:
            return np.ones(n)
        if given == "balanced":
            count = np.bincount(self.train_set.targets, minlength=n)
            return len(self.train_set) / (n * np.maximum(count, 1))
        if len(given) != n:
            raise UserError(f"class_weights has {len(given)} values, the data {n} classes: {self.classes}")
        return np.array(given, np.float64)

    def go(self):
        """Train, resuming where asked, and write everything."""
        config = self.config
        self._build()
        self._warn_of_idle_keys()
        self.best = {"value": None, "epoch": None, "threshold": None}
        self.waiting = 0
        self.done_epochs, self.done_batches, self.updates = 0, 0, 0
        self.running = [0.0, 0]
        self.journal = Journal(self.folder, active=self.rank == 0)
        rows = self._resume()
        if self.rank == 0:
            self._begin_folder(fresh=not self.updates)
        self.journal.start(rows, self.updates)
        several = f", {self.world} processes" if self.world > 1 else ""
        self.say(
            f"train: {samples.describe(self.train_set)}; {config.model}, {self.trainable:,} of {self.parameters:,} "
            f"parameters, {self.device}{several}"
        )
        for epoch in range(self.done_epochs, config.epoch_size):
            self._epoch(epoch)
            if config.early_stopping and self.waiting >= config.early_stopping:
                self.say(f"early stopping: no better {config.monitor} in {self.waiting} validations")
                break
        self.journal.curves(config.metrics)
        if self.teachers and self.val_loader is not None and self.rank == 0:
            self._compare_teachers()
        self._report_failures()
        if self.rank == 0:
            best = "" if self.best["value"] is None else (
                f"; best {config.monitor} {self.best['value']:.4f} at epoch {self.best['epoch']}"
            )  # fmt: skip
            self.say(f"wrote {self.folder / 'best.ckpt'}{best}")
        return self.exit_code

    def _compare_teachers(self):
        """teachers.csv: what each teacher and the best student decide, by generator."""
        from . import distill

        path = self.folder / "best.ckpt"
        if not path.is_file():
            return
        net = ckpt.load_model(path)

        def student(x):
            out = net(self.ms.Tensor(x))
            return labels.score_from_logits((out[0] if isinstance(out, tuple) else out).asnumpy(), self.class_order)

        rows = distill.compare(self.teachers, student, self.val_loader, self.val_set)
        distill.write_table(rows, self.folder / "teachers.csv")
        for line in distill.lines(rows):
            self.say(line)

    def _begin_folder(self, fresh):
        if fresh:
            for name in ("best.ckpt", "best.json", "last.ckpt", "last.json", STATE, "curves.png", "teachers.csv"):
                if (self.folder / name).exists():
                    (self.folder / name).unlink()
            for old in self.folder.glob("events.out.tfevents.*"):
                old.unlink()
        with files.atomic(self.folder / "config.yaml") as file:
            file.write(f"# written by train.py; train again with: python train.py -c {self.folder / 'config.yaml'}\n")
            file.write(self.config.to_yaml())

    def _epoch(self, epoch):
        from tqdm import tqdm

        config = self.config
        began = time.time()
        order = dataset.epoch_order(self.train_set, epoch, **self.order_args)
        plan = self._plan(order)
        skip = self.done_batches
        local = [rows[self.rank * config.batch_size : (self.rank + 1) * config.batch_size] for rows in plan]
        batches = self.loader.run(np.concatenate(local[skip:]) if len(local) > skip else np.zeros((0, 2), int), epoch)
        bar = tqdm(
            total=len(plan), initial=skip, desc=f"epoch {epoch + 1}/{config.epoch_size}", unit="step", leave=False,
            file=sys.stderr, disable=self.rank != 0 or not sys.stderr.isatty(),
        )  # fmt: skip
        seen = 0
        for number, (x, rows) in zip(range(skip, len(plan)), batches):
            loss = self._batch(epoch, number, plan, x, rows, order)
            seen += int((rows >= 0).sum())
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self.done_batches = number + 1
            self._look_inside(epoch, number)
            if config.save_every_steps and (number + 1) % config.save_every_steps == 0 and number + 1 < len(plan):
                if (number + 1) % config.gradient_accumulation_steps == 0:
                    self._save_state()
        bar.close()
        self.done_epochs, self.done_batches = epoch + 1, 0
        self._finish_epoch(epoch, time.time() - began, seen)

    def _look_inside(self, epoch, number):
        """A point of the learning curve where ``val_every_steps`` asks for one; training goes on as if unseen.

        With several processes each validates its share with its own running statistics, averaged only at the end.
        """
        every, whole = self.config.val_every_steps, (number + 1) % self.config.gradient_accumulation_steps == 0
        if not every or self.val_loader is None or not whole or self.updates % every:
            return
        swapped = self._swap_ema()
        try:
            self.journal.point(self.updates, epoch + 1, self.validate())
        finally:
            self._restore(swapped)

    def _plan(self, order):
        """Global batches of the epoch, the last one filled up with -1."""
        whole = self.config.batch_size * self.world
        missing = self.batches * whole - len(order)
        if missing > 0:
            order = np.concatenate([order, np.full((missing, 2), -1, np.int64)])
        return [order[i * whole : (i + 1) * whole] for i in range(self.batches)]

    def _batch(self, epoch, number, plan, x, rows, order):
        from . import mixing, steps

        config = self.config
        group = config.gradient_accumulation_steps
        first = number // group * group
        chosen = np.concatenate(plan[first : first + group])[:, 0]
        update = epoch * self.updates_per_epoch + number // group
        targets, weights = self._targets(rows, chosen)
        if config.mixup or config.cutmix:
            rng = transforms.generator(config.seed, f"mix {epoch} {number}", self.rank)
            x, targets, weights = mixing.mix(x, targets, weights, rng, config)
        if config.aug_splits:
            targets, weights = np.tile(targets, (config.aug_splits, 1)), np.tile(weights, config.aug_splits)
            weights = weights / np.float32(config.aug_splits)
        if self.dropout_seed is not None:
            value = (update * group + number % group) * self.world + self.rank
            self.dropout_seed.set_data(self.ms.Tensor(value % 2147483647, self.ms.int64))
        tensor = self.ms.Tensor
        soft = self.teachers(x) if self.teachers else np.zeros((1, 1), np.float32)
        inputs = [tensor(x), tensor(targets), tensor(weights), tensor(soft)]
        lr, step = steps.scalar(self.rates[update]), steps.scalar(self.updates + 1)
        scale = steps.scalar(self.scale)
        last = number - first == group - 1 or number == len(plan) - 1
        if self.gradient is None:
            loss = float(self.step(*inputs, lr, step, scale).asnumpy())
            finite = True
        else:
            loss, finite = self.gradient(*inputs, scale, steps.scalar(1.0 if number == first else 0.0))
            loss, finite = float(loss.asnumpy()), bool(finite.asnumpy())
        loss = self._over_devices(loss)
        if not math.isfinite(loss):
            self._stop_on_nan(loss, epoch, number, rows)
        self._group_loss = loss + (0.0 if number == first else self._group_loss)
        self._group_finite = finite and (number == first or self._group_finite)
        if last:
            self._apply(lr, step, scale)
            self.updates += 1
            self.running[0] += self._group_loss
            self.running[1] += 1
            if self.updates % config.log_interval == 0:
                self.journal.step(self.updates, epoch + 1, self._group_loss, self.rates[update])
        return loss

    def _apply(self, lr, step, scale):
        """The update of accumulated gradients; one that overflowed is left out and the scale halved."""
        if self.gradient is None:
            return
        config = self.config
        finite = self._over_devices(0.0 if self._group_finite else 1.0) == 0.0
        if finite or not self.scaling:
            self.apply(lr, step, scale)
        if config.loss_scale_type != "fixed":
            self.good_steps = self.good_steps + 1 if finite else 0
            if not finite:
                self.scale = max(1.0, self.scale / 2)
            elif self.good_steps >= 2000:
                self.scale, self.good_steps = self.scale * 2, 0

    def _over_devices(self, value):
        """Sum of a number over the processes."""
        if self.world == 1:
            return value
        return float(self._reduce(np.array([value], np.float32))[0])

    def _reduce(self, array):
        from . import steps

        if not hasattr(self, "_reducer"):
            self._reducer = steps.Reduce()
        return self._reducer(self.ms.Tensor(np.asarray(array, np.float32))).asnumpy()

    def _targets(self, rows, chosen):
        """Soft targets and weights of a batch; the weights of all processes of one update sum to 1."""
        config, known = self.config, self.train_set.targets
        share = self.weights[np.maximum(known[chosen[chosen >= 0]], 0)] * (known[chosen[chosen >= 0]] >= 0)
        norm = share.sum() if config.reduction == "mean" else 1.0
        own = np.where(rows >= 0, known[np.maximum(rows, 0)], -1)
        weights = np.where(own >= 0, self.weights[np.maximum(own, 0)], 0.0) / max(norm, 1e-12)
        return self._soft(np.maximum(own, 0)), weights.astype(np.float32)

    def _soft(self, index):
        n, s = self.num_classes, self.config.label_smoothing
        if n == 1:
            on = labels.NAMES.index(self.class_order[0]) if self.class_order else 1
            t = (index == on).astype(np.float32)[:, None]
            return t * np.float32(1 - s) + np.float32(s / 2)
        if self.class_order and n == 2 and self.class_order[0] != labels.NAMES[0]:
            index = 1 - index
        return np.eye(n, dtype=np.float32)[index] * np.float32(1 - s) + np.float32(s / n)

    def _stop_on_nan(self, loss, epoch, number, rows):
        names = [self.train_set.paths[r] for r in rows if r >= 0]
        raise UserError(
            f"loss is {loss} at update {self.updates + 1} (epoch {epoch + 1}, step {number + 1}), stopped; lower lr or "
            f"use clip_grad; images of the batch: {', '.join(names[:64])}{' ...' if len(names) > 64 else ''}"
        )

    # --- the end of an epoch ---------------------------------------------------------------------------------------
    def _finish_epoch(self, epoch, seconds, seen):
        config = self.config
        last = epoch + 1 == config.epoch_size
        row = {
            "epoch": epoch + 1, "updates": self.updates,
            "lr": self.rates[max(0, min(self.updates, len(self.rates)) - 1)],
            "train_loss": self.running[0] / max(1, self.running[1]),
        }  # fmt: skip
        self.running = [0.0, 0]
        if self.world > 1:
            self._average_statistics()
        better = False
        swapped = self._swap_ema()
        try:
            if self.val_loader is not None and ((epoch + 1) % config.val_interval == 0 or last):
                row.update(self.validate())
                better = self._is_better(row)
            elif self.val_loader is None:
                better = True
            if self.rank == 0:
                self._save_weights(row, epoch, better)
        finally:
            self._restore(swapped)
        timing = {"seconds": round(seconds, 2), "images_per_second": round(seen * self.world / max(seconds, 1e-9), 1)}
        self.journal.epoch({**row, **timing})
        shown = " ".join(
            f"{k} {v:.4f}" for k, v in row.items() if isinstance(v, float) and k not in ("lr", "threshold")
        )
        self.say(
            f"epoch {epoch + 1}/{config.epoch_size}: {shown} lr {row['lr']:.3g}, {seconds:.0f} s, "
            f"{timing['images_per_second']:.1f} images/s{' *' if better and self.val_loader is not None else ''}"
        )
        if (epoch + 1) % config.ckpt_save_interval == 0 or last:
            self._save_state()

    def _is_better(self, row):
        value = row.get(self.config.monitor)
        if value is None:
            return False
        smaller = self.config.monitor.endswith("loss")
        best = self.best["value"]
        if best is None or (value < best if smaller else value > best):
            self.best = {"value": value, "epoch": row["epoch"], "threshold": row.get("threshold")}
            self.waiting = 0
            return True
        self.waiting += 1
        return False

    def validate(self):
        """Loss and metrics on the validation set; counted over all images, however many processes share them.

        Returns
        -------
        dict of str to float
        """
        from . import steps

        n, size = len(self.val_set), self.val_loader.batch_size
        share = math.ceil(n / self.world / size) * size
        rows = np.arange(self.rank * share, (self.rank + 1) * share)
        order = np.stack([np.where(rows < n, rows, -1), np.zeros_like(rows)], 1)
        logits = np.zeros((n, self.num_classes + 1), np.float32)
        self.net.set_train(False)
        if self.validator is None:
            self.validator = steps.Forward(self._validation_net())
            self.validator.set_train(False)
        for p, own in self.copies:
            p.set_data(own.value())
        for x, there in self.val_loader.run(order, 0):
            out = self.validator(self.ms.Tensor(x)).asnumpy()
            ok = there >= 0
            logits[there[ok], :-1] = out[ok]
            logits[there[ok], -1] = 1
        self._training()
        if self.world > 1:
            logits = self._reduce(logits)
        counted = logits[:, -1] > 0
        return self._metrics(logits[counted, :-1].astype(np.float64), np.flatnonzero(counted))

    def _validation_net(self):
        """The network that validates: the trained one, or a twin where ``val_amp_level`` asks for another precision.

        A cast changes a network for good, so the twin has weights of its own, copied before every validation.
        """
        from . import models, steps

        config, self.copies = self.config, []
        if config.val_amp_level in (None, config.amp_level):
            return self.cast
        twin = models.create(config.model, **self.arguments)
        own = {p.name: p for p in self.tensors}
        self.copies = [(p, own[p.name]) for p in twin.get_parameters()]
        return steps.mixed_precision(twin, config.val_amp_level, config.amp_dtype, self.device)

    def _metrics(self, logits, rows):
        targets, sides = self.val_set.targets[rows], self.val_set.sides[rows]
        found = {"val_loss": self._host_loss(logits, targets)}
        if self.class_order is None:
            decided = logits.argmax(1) if self.num_classes > 1 else (logits[:, 0] > 0).astype(int)
            found.update(class_metrics(targets, decided, None, self.num_classes))
        else:
            score = labels.score_from_logits(logits, self.class_order)
            threshold = self.config.threshold
            if threshold == "auto":
                threshold = best_threshold(sides, score)
                found["threshold"] = threshold
            decided = (labels.sigmoid(score) > threshold).astype(int)
            found.update(class_metrics(sides, decided, score, 2))
        wanted = ["val_loss", *self.config.metrics, self.config.monitor, "threshold"]
        return {name: found[name] for name in dict.fromkeys(wanted) if name in found}

    def _host_loss(self, logits, targets):
        known = targets >= 0
        logits, targets = logits[known], targets[known]
        if not len(targets):
            return float("nan")
        hot = self._soft_plain(targets)
        if self.kind in ("BCE", "asl_multi_label"):
            return float((np.maximum(logits, 0) - logits * hot + np.log1p(np.exp(-np.abs(logits)))).mean())
        shifted = logits - logits.max(1, keepdims=True)
        return float(-(hot * (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))).sum(1).mean())

    def _soft_plain(self, targets):
        smoothing, self.config.label_smoothing = self.config.label_smoothing, 0.0
        try:
            return self._soft(targets).astype(np.float64)
        finally:
            self.config.label_smoothing = smoothing

    def _average_statistics(self):
        """Running statistics differ between the processes, which see different images: take their mean."""
        for p in self.tensors:
            if "moving_" in p.name:
                p.set_data(self.ms.Tensor(self._reduce(p.asnumpy()) / self.world, p.dtype))

    def _swap_ema(self):
        if self.ema is None:
            return None
        before = [p.asnumpy().copy() for p in self.ema.parameters]
        for p, average in zip(self.ema.parameters, self.ema.averages):
            p.set_data(self.ms.Tensor(average.asnumpy(), p.dtype))
        return before

    def _restore(self, before):
        if before is not None:
            for p, value in zip(self.ema.parameters, before):
                p.set_data(self.ms.Tensor(value, p.dtype))

    # --- saving ----------------------------------------------------------------------------------------------------
    def _save_weights(self, row, epoch, better):
        config = self.config
        arrays = {p.name: p.asnumpy() for p in self.tensors}
        facts = self._sidecar(row)
        ckpt.save(arrays, self.folder / "last.ckpt", facts)
        if better:
            copy_checkpoint(self.folder / "last.ckpt", self.folder / "best.ckpt")
        policy = config.ckpt_save_policy
        if (
            policy in ("latest_k", "top_k")
            and config.keep_checkpoint_max
            and (epoch + 1) % config.ckpt_save_interval == 0
        ):
            copy_checkpoint(self.folder / "last.ckpt", self.folder / f"epoch_{epoch + 1}.ckpt")
            self._prune(policy, row)

    def _prune(self, policy, row):
        """Keep the newest or the best epoch checkpoints."""
        kept = {int(p.stem.split("_")[1]): p for p in self.folder.glob("epoch_*.ckpt") if p.stem[6:].isdigit()}
        values = {r["epoch"]: r.get(self.config.monitor) for r in [*self.journal.rows, row]}
        sign = -1 if self.config.monitor.endswith("loss") else 1

        def rank(epoch):
            value = values.get(epoch)
            return epoch if policy == "latest_k" else (-math.inf if value is None else sign * value, epoch)

        for epoch in sorted(kept, key=rank)[: -self.config.keep_checkpoint_max]:
            kept[epoch].with_suffix(".json").unlink(missing_ok=True)
            kept[epoch].unlink()

    def _sidecar(self, row):
        config = self.config
        threshold = row.get("threshold", config.threshold if config.threshold != "auto" else 0.5)
        training = {
            "configuration": config.source, "data": str(config.data_dir), "images": len(self.train_set),
            "validation_images": 0 if self.val_set is None else len(self.val_set), "epoch": row["epoch"],
            "updates": row["updates"], "batch_size": config.batch_size * self.world, "seed": config.seed,
            "transform": dataset.pipeline(self.text).text, "init_from": config.init_from,
            "metrics": {k: v for k, v in row.items() if isinstance(v, float) and k not in ("lr",) and math.isfinite(v)},
            "versions": runtime.versions(), "device": self.device,
        }  # fmt: skip
        return {
            "architecture": config.model, "arguments": self.arguments, "num_outputs": self.num_classes,
            "classes": self.classes, "class_order": self.class_order,
            "input": {
                "size": list(self.size_eval), "transform": dataset.pipeline(self.text_eval).text, "views": self.views,
                "channels": 3, "range": [0.0, 1.0],
            },
            "source": {"repository": "trained with train.py", "init_from": config.init_from},
            "training": training, "threshold": threshold,
        }  # fmt: skip

    def _state_parameters(self):
        named = {f"net.{p.name}": p for p in self.tensors}
        named.update({f"optimizer.{n}": p for n, p in self.optimizer.state().items()})
        if self.ema is not None:
            named.update(self.ema.state())
        return named

    def _save_state(self):
        """Everything that the next step depends on, in one file, renamed into place when whole."""
        if self.rank != 0:
            return
        meta = {
            "epochs": self.done_epochs, "batches": self.done_batches, "updates": self.updates, "running": self.running,
            "best": self.best, "waiting": self.waiting, "scale": self.scale, "good_steps": self.good_steps,
            "rows": self.journal.rows, "batches_per_epoch": self.batches, "world": self.world,
        }  # fmt: skip
        arrays = dict(self._state_parameters())
        arrays[META] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        save_arrays(arrays, self.folder / STATE)

    def _resume(self):
        """Load the state where asked; gives the rows of the log so far."""
        path = self.state_path()
        if self.config.resume is None or (self.config.resume == "auto" and not path.is_file()):
            return []
        arrays = ckpt.load_arrays(path)
        if META not in arrays:
            raise UserError(f"resume {str(path)!r} is no state of train.py; to start from weights use init_from")
        meta = json.loads(arrays.pop(META).tobytes().decode())
        if meta["batches"] and meta["batches_per_epoch"] != self.batches:
            raise UserError(
                f"resume {str(path)!r} stands in the middle of an epoch of {meta['batches_per_epoch']} steps, this "
                f"configuration has {self.batches}; use the same data, batch_size and number of processes"
            )
        own = self._state_parameters()
        difference = ckpt.compare_names(
            {n: p.shape for n, p in own.items()}, {n: a.shape for n, a in arrays.items()}, "state"
        )
        if difference:
            raise UserError(f"resume {str(path)!r} does not fit this configuration: {difference}")
        for name, parameter in own.items():
            parameter.set_data(self.ms.Tensor(arrays[name].reshape(parameter.shape), parameter.dtype))
        self.done_epochs, self.done_batches, self.updates = meta["epochs"], meta["batches"], meta["updates"]
        self.running, self.best, self.waiting = meta["running"], meta["best"], meta["waiting"]
        self.scale, self.good_steps = meta["scale"], meta["good_steps"]
        self.say(f"resumed {path}: {self.updates} updates, {self.done_epochs} whole epochs done")
        return meta["rows"]

    def _report_failures(self):
        failed = dict(self.loader.failed)
        if self.val_loader is not None:
            failed.update(self.val_loader.failed)
        for path, reason in failed.items():
            print(f"unusable image {path}: {reason}", file=sys.stderr)
        if failed:
            self.exit_code = 3


STATE_PREFIXES = ("optimizer.", "ema.", "ema_steps")


def save_arrays(arrays, path):
    """Arrays or parameters as one MindSpore checkpoint without a sidecar, whole or not at all."""
    import tempfile

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = os.path.join(folder, path.name)
        ckpt.write_arrays(arrays, temporary)
        os.replace(temporary, path)


def copy_checkpoint(source, target):
    """A checkpoint with its sidecar under another name, each file whole or not at all."""
    facts = ckpt.read_sidecar(source, check_hash=False)
    facts["output"]["file"] = target.name
    # As in ckpt.save: never weights beside the facts of others.
    ckpt.sidecar_path(target).unlink(missing_ok=True)
    # A second name for the same bytes where the file system has links: writing replaces a checkpoint, never changes it.
    temporary = target.with_name(f".{target.name}.link")
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # still there where target was a name of these bytes already
    except OSError:
        temporary.unlink(missing_ok=True)
        with files.atomic(target, "wb") as file, open(source, "rb") as original:
            shutil.copyfileobj(original, file, 1 << 20)
    files.write_json(ckpt.sidecar_path(target), facts)


METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "val_loss", "precision", "recall")


def class_metrics(truth, decided, score, classes):
    """Metrics of decisions, and AUC where there is a score.

    Parameters
    ----------
    truth, decided : ndarray of int, shape (n,)
    score : ndarray of float, shape (n,), or None
    classes : int

    Returns
    -------
    dict of str to float
        ``precision`` and ``recall`` are those of class 1 (generated) where there are two classes.
    """
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (truth, decided), 1)
    hits, there, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    present = there > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = hits / there, np.where(said > 0, hits / said, 0.0)
        f1 = np.where(hits > 0, 2 * hits / (there + said), 0.0)
    result = {
        "accuracy": float(hits.sum() / max(1, confusion.sum())),
        "balanced_accuracy": float(recall[present].mean()) if present.any() else float("nan"),
        "macro_f1": float(f1[present].mean()) if present.any() else float("nan"),
    }
    if classes == 2:
        result["precision"], result["recall"] = float(precision[1]), float(np.nan_to_num(recall[1]))
    if score is not None and 0 < truth.sum() < len(truth):
        result["auc"] = area(truth, score)
    return result


def area(truth, score):
    """Area under the ROC curve: the chance that a generated image scores above a real one, ties counting half."""
    values, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2.0
    positive = truth == 1
    n, m = positive.sum(), (~positive).sum()
    return float((rank[inverse][positive].sum() - n * (n + 1) / 2) / (n * m))


def best_threshold(truth, score):
    """Probability at which balanced accuracy is highest; the middle between two neighbouring scores."""
    order = np.argsort(score, kind="stable")
    score, truth = score[order], truth[order]
    real, made = (truth == 0).sum(), (truth == 1).sum()
    if not real or not made:
        return 0.5
    value = (np.cumsum(truth == 0) / real + 1 - np.cumsum(truth == 1) / made) / 2
    usable = np.flatnonzero(np.diff(score) > 0)
    if not len(usable):
        return 0.5
    at = usable[np.argmax(value[usable])]
    return float(labels.sigmoid((score[at] + score[at + 1]) / 2))
