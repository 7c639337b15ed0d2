"""Learning rates, one value per step, computed in advance in plain Python.

The shapes are those of MindCV 0.3.0's ``scheduler`` package, which are PyTorch's. Every value depends only on the step,
the number of steps per epoch and the number of epochs, so that a resumed or extended run needs no state.
"""

import math
from bisect import bisect_right
from typing import Any, List

from ..errors import UserError


def learning_rates(config: Any, steps_per_epoch: int) -> List[float]:
    """Learning rate of every step.

    Parameters
    ----------
    config : aidet.config.Config
        Uses ``scheduler``, ``lr``, ``min_lr``, ``epoch_size``, ``warmup_*``, ``decay_*``, ``num_cycles``,
        ``cycle_decay``, ``multi_step_decay_milestones``, ``lr_epoch_stair``.
    steps_per_epoch : int

    Returns
    -------
    list of float, length steps_per_epoch * epoch_size
    """
    if config.warmup_epochs > config.epoch_size:
        raise UserError(f"warmup_epochs (={config.warmup_epochs:g}) is more than epoch_size (={config.epoch_size})")
    if config.scheduler in ("one_cycle", "cyclic") and (config.lr_epoch_stair or config.warmup_epochs):
        raise UserError(
            f"scheduler {config.scheduler!r} has its own warm-up; set warmup_epochs 0 and lr_epoch_stair false"
        )
    warm = round(config.warmup_epochs * steps_per_epoch)
    total = steps_per_epoch * config.epoch_size
    rates = []
    for step in range(total):
        at = step // steps_per_epoch if config.lr_epoch_stair else step / steps_per_epoch
        if step < warm:
            part = min(1.0, at / config.warmup_epochs)
            rates.append(config.lr * (config.warmup_factor + part * (1 - config.warmup_factor)))
        else:
            rates.append(_after_warmup(config, step - warm, total - warm, steps_per_epoch))
    return rates


def _after_warmup(config, step, total, steps_per_epoch):
    name, lr, low = config.scheduler, config.lr, config.min_lr or 0.0
    epochs = max(total / steps_per_epoch, 1e-9)
    epoch = step // steps_per_epoch
    at = epoch if config.lr_epoch_stair else step / steps_per_epoch
    if name == "constant":
        return lr
    if name in ("cosine_decay", "warmup_cosine_decay"):
        span = config.decay_epochs or max(1e-9, epochs / config.num_cycles)
        cycle = int(at // span)
        if cycle >= config.num_cycles:
            return low
        top = lr * config.cycle_decay**cycle
        return low + 0.5 * (top - low) * (1 + math.cos(math.pi * (at - cycle * span) / span))
    if name == "exponential_decay":
        return lr * config.decay_rate**at
    if name == "polynomial_decay":
        return lr * (1 - min(at / epochs, 1.0)) ** config.decay_rate
    if name == "step_decay":
        return lr * config.decay_rate ** (epoch // (config.decay_epochs or 30))
    if name == "multi_step_decay":
        return lr * config.decay_rate ** bisect_right(sorted(config.multi_step_decay_milestones or []), epoch)
    if name == "one_cycle":
        return _one_cycle(step, total, lr, low)
    return _cyclic(step, total, lr, low, config.num_cycles)


def _one_cycle(step, total, top, low, rise=0.3, start_part=25.0):
    """Cosine up to ``top`` over the first 30 % of the steps, then down to ``low`` (Smith & Topin 2018)."""

    def between(a, b, part):
        return b + (a - b) / 2 * (1 + math.cos(math.pi * min(max(part, 0.0), 1.0)))

    up, down = rise * total - 1, total - 1
    if step <= up:
        return between(top / start_part, top, step / up if up > 0 else 1.0)
    return between(top, low, (step - up) / (down - up) if down > up else 1.0)


def _cyclic(step, total, top, low, cycles):
    """Triangles between ``low`` and ``top`` (Smith 2017)."""
    half = max(1, int(total / cycles / 2))
    part = step / half
    return low + (top - low) * (1 - abs(part % 2 - 1))
