"""The compiled cells: the training step, the forward pass, moving averages, and dropout that can be resumed.

One step is one graph: forward, loss, gradients, reduction over devices, clipping, update, moving average. Everything
that changes from step to step (learning rate, seed, loss scale) is an input, so the graph is compiled once.
"""

from typing import Any, Dict, Optional, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from ..errors import UserError


# --- dropout ----------------------------------------------------------------------------------------------------
class SeededDropout(nn.Cell):
    """Dropout whose mask is a hash of (seed of the step, number of the layer, position).

    MindSpore's dropout kernels keep their generator inside the compiled graph, where it can neither be saved nor set,
    so a run resumed in the middle would draw different masks. The hash squares modulo the prime 2^31 - 1, three times.
    """

    PRIME = 2147483647

    def __init__(self, p: float, number: int, seed: Parameter) -> None:
        super().__init__()
        self.p, self.number, self.seed = float(p), number, seed

    def construct(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        size = 1
        for side in x.shape:
            size = size * side
        start = self.seed.value() * 7919 + self.number * 104729
        h = ops.arange(0, size, 1, dtype=ms.int64) * 48271 + start
        h = ops.floor_mod(h, self.PRIME)
        h = ops.floor_mod(h * h + 12345 + self.number, self.PRIME)
        h = ops.floor_mod(h * h + 69621, self.PRIME)
        h = ops.floor_mod(h * h + 1013, self.PRIME)
        keep = (h.astype(ms.float32) >= self.p * self.PRIME).astype(x.dtype).reshape(x.shape)
        return x * keep * (1.0 / (1.0 - self.p))


def seed_dropout(net: nn.Cell) -> Optional[Parameter]:
    """Replace every ``nn.Dropout`` by :class:`SeededDropout`.

    Returns
    -------
    mindspore.Parameter or None
        To be set before each step; None if the network has no dropout.
    """
    seed = Parameter(Tensor(0, ms.int64), name="dropout_seed", requires_grad=False)
    number = 0
    for _, cell in list(net.cells_and_names()):
        for name, child in list(cell.name_cells().items()):
            if isinstance(child, nn.Dropout):
                number += 1
                p = getattr(child, "p", None)
                p = 1.0 - child.keep_prob if p is None else p
                _replace(cell, name, SeededDropout(p, number, seed))
    return seed if number else None


def _replace(cell, name, new):
    if isinstance(cell, (nn.SequentialCell, nn.CellList)):
        cell[int(name) if name.isdigit() else list(cell.name_cells()).index(name)] = new
    else:
        setattr(cell, name, new)


# --- steps ------------------------------------------------------------------------------------------------------
class Forward(nn.Cell):
    """The first output of a network."""

    def __init__(self, net: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, x: Tensor) -> Tensor:
        out = self.net(x)
        return out[0] if isinstance(out, tuple) else out


class Both(nn.Cell):
    """Logits and map of a network that has both."""

    def __init__(self, net: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        out = self.net(x)
        return out[0], out[1]


class _WithLoss(nn.Cell):
    def __init__(self, net, loss, distilled, scaled=True):
        super().__init__(auto_prefix=False)
        self.net, self.loss, self.distilled, self.scaled = net, loss, distilled, scaled

    def construct(self, x, targets, weights, soft, scale):
        outputs = self.net(x)
        if self.distilled:
            loss = self.loss(outputs, targets, weights, soft)
        else:
            loss = self.loss(outputs, targets, weights)
        return loss * scale if self.scaled else loss


class _Update(nn.Cell):
    """From gradients to new weights: sum over devices, unscale, clip, optimizer, moving average."""

    def __init__(self, optimizer, clip=None, world=1, ema=None, scaled=True):
        super().__init__(auto_prefix=False)
        self.optimizer, self.clip, self.world, self.scaled = optimizer, clip, world, scaled
        self.map = ops.HyperMap()
        self.reduce = ops.AllReduce(ops.ReduceOp.SUM) if world > 1 else None
        self.ema = ema

    def construct(self, gradients, lr, step, scale):
        # Mapped functions, not loops: the compiler adds one call level per iteration and gives up at 1000.
        gradients = self.map(ops.partial(self.mean, scale), gradients)
        if self.clip is not None:
            norm = ops.sqrt(ops.addn(self.map(self.square, gradients)))
            factor = self.clip / ops.maximum(norm, Tensor(self.clip, ms.float32))
            gradients = self.map(ops.partial(self.times, factor), gradients)
        result = self.optimizer(gradients, lr, step)
        if self.ema is not None:
            result = ops.depend(self.ema(result), result)
        return result

    def mean(self, scale, g):
        g = g.astype(ms.float32)
        if self.world > 1:
            g = self.reduce(g)
        return g / scale if self.scaled else g

    def square(self, g):
        return (g * g).sum()

    def times(self, factor, g):
        return g * factor


class Ema(nn.Cell):
    """Moving average of every parameter, running statistics included.

    The decay rises as ``min(decay, (1 + step) / (10 + step))``, so that the initial weights do not dominate the average
    of a short run.
    """

    def __init__(self, parameters: Sequence[Parameter], decay: float) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.decay, self.map = decay, ops.HyperMap()
        self.averages = ParameterTuple(
            [Parameter(p.value().copy(), name=f"ema.{p.name}", requires_grad=False) for p in parameters]
        )
        # Shape (1,), because a scalar has that shape when it is read back from a checkpoint.
        self.made = Parameter(Tensor([0.0], ms.float32), name="ema_steps", requires_grad=False)

    def state(self) -> Dict[str, Parameter]:
        """All state parameters, by name."""
        return {p.name: p for p in (*self.averages, self.made)}

    def construct(self, after: Any) -> Any:
        made = ops.depend(self.made, after) + 1.0
        keep = ops.minimum(Tensor(self.decay, ms.float32), (1.0 + made) / (10.0 + made))
        saved = ops.assign(self.made, made)
        return saved, self.map(ops.partial(self.one, keep, saved), self.averages, self.parameters)

    def one(self, keep: Tensor, saved: Any, average: Parameter, now: Tensor) -> Tensor:
        """Update one average."""
        now = ops.depend(now, saved).astype(ms.float32)
        return ops.assign(average, (average * keep + now * (1.0 - keep)).astype(average.dtype))


class TrainStep(nn.Cell):
    """One update from one batch. ``construct`` returns the (unscaled) loss of this device's share.

    With ``scaled`` False the loss scale is taken to be 1, which saves one division per weight and step. ``filler`` is
    the number of padding kernels, see :func:`filler`.
    """

    def __init__(
        self,
        net: nn.Cell,
        loss: nn.Cell,
        optimizer: nn.Cell,
        distilled: bool = False,
        clip: Optional[float] = None,
        world: int = 1,
        ema: Optional[Ema] = None,
        scaled: bool = True,
        filler: int = 0,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.forward, self.scaled, self.filler = _WithLoss(net, loss, distilled, scaled), scaled, filler
        self.weights = optimizer.parameters
        self.update = _Update(optimizer, clip, world, ema, scaled)
        self.gradient = ops.value_and_grad(self.forward, None, self.weights)

    def construct(
        self, x: Tensor, targets: Tensor, weights: Tensor, soft: Tensor, lr: Tensor, step: Tensor, scale: Tensor
    ) -> Tensor:
        loss, gradients = self.gradient(x, targets, weights, soft, scale)
        updated = self.update(gradients, lr, step, scale)
        idle = lr
        for _ in range(self.filler):
            idle = ops.sin(idle)  # of a scalar; the compiler does not fold it
        return ops.depend(ops.depend(loss / scale if self.scaled else loss, updated), idle)


def filler(device: Optional[str], world: int, weights: int) -> int:
    """Number of padding kernels that make the step of a small network fast on a CPU.

    A graph of at most 100 kernels runs in the "single thread" mode of MindSpore's CPU runtime (graph_scheduler.cc,
    ``CheckSingleThreadRunningCondition``), in which the threads sleep between two kernels and are woken for each, so
    that every kernel takes twice as long. A step has about five kernels per weight; padding brings it above 100.
    Several processes on one machine run better with sleeping threads.

    Parameters
    ----------
    device : str
    world : int
        Number of processes.
    weights : int
        Number of weight tensors.

    Returns
    -------
    int
    """
    return max(0, 110 - 5 * weights) if device == "CPU" and world == 1 else 0


class GradientStep(nn.Cell):
    """Adds the gradients of one batch to accumulators; returns the loss and whether every gradient is finite."""

    def __init__(self, net: nn.Cell, loss: nn.Cell, optimizer: nn.Cell, distilled: bool = False) -> None:
        super().__init__(auto_prefix=False)
        self.forward = _WithLoss(net, loss, distilled)
        self.weights = optimizer.parameters
        self.sums = ParameterTuple(
            [Parameter(ops.zeros(p.shape, ms.float32), name=f"sum.{p.name}", requires_grad=False) for p in self.weights]
        )
        self.gradient = ops.value_and_grad(self.forward, None, self.weights)
        self.map = ops.HyperMap()

    def state(self) -> Dict[str, Parameter]:
        """All state parameters, by name."""
        return {p.name: p for p in self.sums}

    def construct(
        self, x: Tensor, targets: Tensor, weights: Tensor, soft: Tensor, scale: Tensor, first: Tensor
    ) -> Tuple[Tensor, Tensor]:
        loss, gradients = self.gradient(x, targets, weights, soft, scale)
        size = ops.addn(self.map(self.size, gradients))
        saved = self.map(ops.partial(self.add, first), self.sums, gradients)
        return ops.depend(loss / scale, saved), ops.isfinite(size)

    def size(self, g: Tensor) -> Tensor:
        """Sum of absolute values: finite only if every value is."""
        return ops.abs(g.astype(ms.float32)).sum()

    def add(self, first: Tensor, total: Parameter, g: Tensor) -> Tensor:
        """Add a gradient to its accumulator; the first one of an update replaces what was there."""
        g = g.astype(ms.float32)
        return ops.assign(total, ops.select(first > 0, g, total + g))


class ApplyStep(nn.Cell):
    """One update from the accumulators of :class:`GradientStep`."""

    def __init__(
        self,
        gradient_step: GradientStep,
        optimizer: nn.Cell,
        clip: Optional[float] = None,
        world: int = 1,
        ema: Optional[Ema] = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.sums = gradient_step.sums
        self.update = _Update(optimizer, clip, world, ema)

    def construct(self, lr: Tensor, step: Tensor, scale: Tensor) -> Any:
        return self.update(self.sums, lr, step, scale)


class Reduce(nn.Cell):
    """Sum of an array over the devices."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = ops.AllReduce(ops.ReduceOp.SUM)

    def construct(self, x: Tensor) -> Tensor:
        return self.reduce(x)


def scalar(value: float, kind: Any = np.float32) -> Tensor:
    """A 0-dimensional tensor of fixed type, so that a new value does not compile a new graph."""
    return Tensor(np.array(value, kind))


def mixed_precision(
    net: nn.Cell, level: str, dtype: str, device: Optional[str], cast: Optional[Sequence[str]] = None
) -> nn.Cell:
    """Cast a network as ``amp_level`` says; O0 leaves it unchanged.

    Raises
    ------
    UserError
        The device cannot compute bfloat16, or ``cast`` names an unknown layer.
    """
    if level == "O0" and not cast:
        return net
    names = [(p, p.name) for p in net.get_parameters()]
    made = _cast(net, level, dtype, device, cast)
    for parameter, name in names:
        parameter.name = name  # O1 and a list build the network anew, and name parameters after the cells around them
    return made


def _cast(net, level, dtype, device, cast):
    kind = {"float16": ms.float16, "bfloat16": ms.bfloat16}[dtype]
    if dtype == "bfloat16" and device == "CPU":
        raise UserError("amp_dtype 'bfloat16' fails on a CPU at every level; use float16 or amp_level O0")
    if cast:
        white = [getattr(nn, name, None) for name in cast]
        if None in white:
            raise UserError(f"amp_cast_list {cast}: {cast[white.index(None)]!r} is not a layer of mindspore.nn")
        return ms.amp.custom_mixed_precision(net, white_list=white, dtype=kind)
    try:
        return ms.amp.auto_mixed_precision(net, level, kind)
    except TypeError:  # MindSpore before 2.3 knows float16 only
        return ms.amp.auto_mixed_precision(net, level)
