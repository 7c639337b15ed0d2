"""Optimizers written as functions of explicit state, so that a run can be saved and resumed bit for bit.

MindSpore's own optimizers keep their learning-rate table and step counter inside the graph, so that extending a run or
resuming it from any step fails or shifts the schedule. Here the learning rate is an input of every step. Fused kernels
(``ApplyMomentum``, ``Adam``) are used if they compute the same thing.
"""

import fnmatch
import math
from typing import Any, Dict, List, Sequence, Tuple

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from ..errors import UserError, nearest


class Optimizer(nn.Cell):
    """Base class: one learning-rate factor and one weight decay per parameter.

    Parameters
    ----------
    parameters : list of mindspore.Parameter
    factors : sequence of float
        Factor on the learning rate of each parameter.
    decays : sequence of float
    momentum, nesterov, eps
        Options of the optimizers that have them.
    """

    # (name, initial value) of each state tensor per parameter, four at most.
    slots: Tuple[Tuple[str, float], ...] = ()

    def __init__(
        self,
        parameters: Sequence[Parameter],
        factors: Sequence[float],
        decays: Sequence[float],
        momentum: float = 0.9,
        nesterov: bool = False,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        self.parameters = ParameterTuple(parameters)
        self.factors, self.decays = tuple(factors), tuple(decays)
        self.momentum, self.nesterov, self.eps = momentum, nesterov, eps
        self.map = ops.HyperMap()
        self.first = self.second = self.third = self.fourth = None
        for attribute, (name, value) in zip(("first", "second", "third", "fourth"), self.slots):
            state = [
                Parameter(ops.full(p.shape, value, dtype=ms.float32), name=f"{name}.{p.name}", requires_grad=False)
                for p in parameters
            ]
            setattr(self, attribute, ParameterTuple(state))

    def state(self) -> Dict[str, Parameter]:
        """All state parameters, by name."""
        tables: Tuple[Any, ...] = (self.first, self.second, self.third, self.fourth)
        return {p.name: p for table in tables[: len(self.slots)] for p in table}

    def construct(self, gradients: Tuple[Tensor, ...], lr: Tensor, step: Tensor) -> Any:
        """Update every parameter.

        Parameters
        ----------
        gradients : tuple of Tensor, float32
        lr : Tensor, scalar
        step : Tensor, scalar float32
            Number of this update, from 1.
        """
        # A mapped function, not a loop: the compiler adds one call level per iteration and gives up at 1000.
        one = ops.partial(self.one, lr, step)
        common = (self.parameters, gradients, self.factors, self.decays)
        if self.fourth is not None:
            return self.map(one, *common, self.first, self.second, self.third, self.fourth)
        if self.third is not None:
            return self.map(one, *common, self.first, self.second, self.third)
        if self.second is not None:
            return self.map(one, *common, self.first, self.second)
        return self.map(one, *common, self.first)

    def one(
        self, lr: Tensor, step: Tensor, p: Parameter, g: Tensor, factor: float, decay: float, *state: Parameter
    ) -> Any:
        """Update one parameter."""
        # A factor of 1 is left out, which saves one small kernel per parameter and step.
        return self.update(p, g, lr if factor == 1.0 else lr * factor, decay, step, *state)


class Sgd(Optimizer):
    """SGD with (Nesterov) momentum and coupled weight decay, as in PyTorch and MindSpore's ``Momentum``."""

    slots = (("moment", 0.0),)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.apply_momentum = ops.ApplyMomentum()

    def update(self, p: Parameter, g: Tensor, lr: Tensor, decay: float, step: Tensor, moment: Parameter) -> Any:
        """Update one parameter."""
        if decay > 0:
            g = g + p * decay
        if not self.nesterov:
            return self.apply_momentum(p, moment, lr, g, self.momentum)
        # Written out: the CPU kernel's Nesterov step is not PyTorch's.
        m = self.momentum * moment + g
        return ops.assign(moment, m), ops.assign(p, p - lr * (g + self.momentum * m))


class Adam(Optimizer):
    """Adam with coupled weight decay (Kingma & Ba 2015)."""

    slots = (("mean", 0.0), ("square", 0.0))
    beta1, beta2 = 0.9, 0.999

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.adam = ops.Adam(use_nesterov=self.nesterov)

    def update(
        self, p: Parameter, g: Tensor, lr: Tensor, decay: float, step: Tensor, mean: Parameter, square: Parameter
    ) -> Any:
        """Update one parameter."""
        if decay > 0:
            g = g + p * decay
        return self.fused(p, g, lr, step, mean, square)

    def fused(self, p: Parameter, g: Tensor, lr: Tensor, step: Tensor, mean: Parameter, square: Parameter) -> Any:
        """The update by MindSpore's kernel, without weight decay."""
        power1, power2 = power(self.beta1, step), power(self.beta2, step)
        # The kernel adds eps before the bias correction, the paper (and PyTorch) after it.
        eps = self.eps * ops.sqrt(1.0 - power2)
        return self.adam(p, mean, square, power1, power2, lr, self.beta1, self.beta2, eps, g)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    def update(
        self, p: Parameter, g: Tensor, lr: Tensor, decay: float, step: Tensor, mean: Parameter, square: Parameter
    ) -> Any:
        """Update one parameter."""
        if decay > 0:
            g = ops.depend(g, ops.assign(p, p * (1.0 - lr * decay)))
        return self.fused(p, g, lr, step, mean, square)


class NAdam(Optimizer):
    """Adam with Nesterov momentum (Dozat 2016), momentum decay 0.004 as in MindCV and PyTorch."""

    slots = (("mean", 0.0), ("square", 0.0), ("schedule", 1.0))
    beta1, beta2 = 0.9, 0.999

    def update(
        self,
        p: Parameter,
        g: Tensor,
        lr: Tensor,
        decay: float,
        step: Tensor,
        mean: Parameter,
        square: Parameter,
        schedule: Parameter,
    ) -> Any:
        """Update one parameter."""
        if decay > 0:
            g = g + p * decay
        now = self.beta1 * (1.0 - 0.5 * power(0.96, 0.004 * step))
        after = self.beta1 * (1.0 - 0.5 * power(0.96, 0.004 * (step + 1.0)))
        product = schedule * now
        m = self.beta1 * mean + (1.0 - self.beta1) * g
        v = self.beta2 * square + (1.0 - self.beta2) * g * g
        look = (1.0 - now) * g / (1.0 - product) + after * m / (1.0 - product * after)
        new = p - lr * look / (ops.sqrt(v / (1.0 - power(self.beta2, step))) + self.eps)
        return ops.assign(mean, m), ops.assign(square, v), ops.assign(schedule, product), ops.assign(p, new)


class Lion(Optimizer):
    """Sign of an interpolated momentum, decoupled weight decay (Chen et al. 2023)."""

    slots = (("moment", 0.0),)

    def update(self, p: Parameter, g: Tensor, lr: Tensor, decay: float, step: Tensor, moment: Parameter) -> Any:
        """Update one parameter."""
        direction = ops.sign(0.9 * moment + 0.1 * g)
        new = p * (1.0 - lr * decay) - lr * direction
        return ops.assign(p, new), ops.assign(moment, 0.99 * moment + 0.01 * g)


class RmsProp(Optimizer):
    """RMSProp with momentum (Tieleman & Hinton 2012), smoothing 0.9 and eps inside the root as in MindSpore."""

    slots = (("square", 0.0), ("moment", 0.0))

    def update(
        self, p: Parameter, g: Tensor, lr: Tensor, decay: float, step: Tensor, square: Parameter, moment: Parameter
    ) -> Any:
        """Update one parameter."""
        if decay > 0:
            g = g + p * decay
        s = 0.9 * square + 0.1 * g * g
        m = self.momentum * moment + lr * g / ops.sqrt(s + self.eps)
        return ops.assign(square, s), ops.assign(moment, m), ops.assign(p, p - m)


class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011); the accumulator starts at 0.1 as in MindSpore."""

    slots = (("square", 0.1),)

    def update(self, p: Parameter, g: Tensor, lr: Tensor, decay: float, step: Tensor, square: Parameter) -> Any:
        """Update one parameter."""
        if decay > 0:
            g = g + p * decay
        s = square + g * g
        return ops.assign(square, s), ops.assign(p, p - lr * g / (ops.sqrt(s) + self.eps))


class Lamb(Optimizer):
    """Adam direction scaled by the ratio of norms, decoupled decay (You et al. 2020)."""

    slots = (("mean", 0.0), ("square", 0.0))

    def update(
        self, p: Parameter, g: Tensor, lr: Tensor, decay: float, step: Tensor, mean: Parameter, square: Parameter
    ) -> Any:
        """Update one parameter."""
        m = 0.9 * mean + 0.1 * g
        v = 0.999 * square + 0.001 * g * g
        direction = m / (1.0 - power(0.9, step)) / (ops.sqrt(v / (1.0 - power(0.999, step))) + self.eps) + decay * p
        size, length = ops.sqrt((p * p).sum()), ops.sqrt((direction * direction).sum())
        # If the weight or the direction has norm 0, the step is not scaled.
        both = ops.logical_and(size > 0, length > 0)
        trust = ops.select(both, size / (length + 1e-12), ops.ones_like(size))
        return ops.assign(mean, m), ops.assign(square, v), ops.assign(p, p - lr * trust * direction)


class Adan(Optimizer):
    """Adaptive Nesterov momentum (Xie et al. 2022), betas 0.98, 0.92, 0.99."""

    slots = (("mean", 0.0), ("change", 0.0), ("square", 0.0), ("before", 0.0))

    def update(
        self,
        p: Parameter,
        g: Tensor,
        lr: Tensor,
        decay: float,
        step: Tensor,
        mean: Parameter,
        change: Parameter,
        square: Parameter,
        before: Parameter,
    ) -> Any:
        """Update one parameter."""
        # The first step has no previous gradient, so no change of it either.
        d = (g - before) * (step > 1.5).astype(ms.float32)
        m, v = 0.98 * mean + 0.02 * g, 0.92 * change + 0.08 * d
        look = g + 0.92 * d
        n = 0.99 * square + 0.01 * look * look
        direction = m / (1.0 - power(0.98, step)) + 0.92 * v / (1.0 - power(0.92, step))
        new = (p - lr * direction / (ops.sqrt(n / (1.0 - power(0.99, step))) + self.eps)) / (1.0 + lr * decay)
        saved = ops.assign(mean, m), ops.assign(change, v), ops.assign(square, n)
        return saved, ops.assign(before, g), ops.assign(p, new)


def power(base: float, exponent: Tensor) -> Tensor:
    """``base ** exponent`` with a tensor exponent, in float32."""
    return ops.pow(Tensor(base, ms.float32), exponent)


OPTIMIZERS = {
    "sgd": Sgd, "momentum": Sgd, "nesterov": Sgd, "adam": Adam, "adamw": AdamW, "nadam": NAdam, "lion": Lion,
    "rmsprop": RmsProp, "adagrad": Adagrad, "lamb": Lamb, "adan": Adan,
}  # fmt: skip


def create(config: Any, net: nn.Cell) -> Optimizer:
    """The optimizer of a configuration over the trainable parameters of a network.

    Parameters
    ----------
    config : aidet.config.Config
    net : mindspore.nn.Cell

    Returns
    -------
    Optimizer
    """
    parameters = [p for p in net.get_parameters() if p.requires_grad]
    if not parameters:
        raise UserError(f"freeze {config.freeze} leaves nothing to train")
    kind = OPTIMIZERS[config.opt]
    factors = rate_factors(config, net, parameters)
    named = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    decays = [_decay(config, p, named or ()) for p in parameters]
    nesterov = config.use_nesterov or config.opt == "nesterov"
    return kind(parameters, factors, decays, momentum=config.momentum, nesterov=nesterov, eps=config.eps)


def _decay(config, parameter, named):
    """Weight decay of one parameter; ``named`` are those that the network itself exempts (position embeddings).

    The words are MindCV's: ``norm_and_bias`` exempts parameters with beta, gamma or bias in their name, ``auto`` those
    that MindSpore's optimizers exempt by themselves (beta and gamma).
    """
    words = {"norm_and_bias": ("beta", "gamma", "bias"), "auto": ("beta", "gamma"), "disable": ()}
    free = any(word in parameter.name for word in words[config.weight_decay_filter])
    if config.weight_decay_filter == "norm_and_bias" or config.layer_decay is not None:
        free = free or parameter.name in named
    if config.layer_decay is not None and parameter.ndim == 1:
        free = True
    return 0.0 if free else config.weight_decay


def rate_factors(config: Any, net: nn.Cell, parameters: Sequence[Parameter]) -> List[float]:
    """Learning-rate factor of every parameter, from ``lr_groups`` and ``layer_decay``.

    The value of a group is a factor, or ``{lr: rate}``, which scales the schedule so that its peak is that rate.
    """
    factors = [1.0] * len(parameters)
    if config.layer_decay is not None:
        layers = _layers(net)
        top = max(layers.values())
        factors = [config.layer_decay ** (top - layers.get(p.name, top)) for p in parameters]
    used = set()
    for i, p in enumerate(parameters):
        for glob, value in (config.lr_groups or {}).items():
            if fnmatch.fnmatchcase(p.name, str(glob)):
                factors[i] *= _factor(value, config.lr)
                used.add(glob)
                break
    for glob in config.lr_groups or {}:
        if glob not in used:
            close = nearest(glob, [p.name for p in parameters])
            raise UserError(f"lr_groups {glob!r} matches no trainable parameter; {close}")
    return factors


def _factor(value, lr):
    try:
        if isinstance(value, dict):
            if set(value) != {"lr"} or lr <= 0:
                raise ValueError
            value = float(value["lr"]) / lr
        if not 0 <= float(value) < math.inf:
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"lr_groups value {value!r} must be a factor or {{lr: rate}}, not negative") from None


def _layers(net, size=12):
    """Layer number of every parameter: those before the head in groups of 12 (as MindCV counts), the head last."""
    names = [p.name for p in net.get_parameters()]
    head = str(getattr(net, "pretrained_cfg", None) and net.pretrained_cfg.get("classifier") or "")
    if not head:
        dense = [n for n, c in net.cells_and_names() if isinstance(c, nn.Dense)]
        head = dense[-1] if dense else names[-1].rsplit(".", 1)[0]
    trunk = [n for n in names if not n.startswith(head)]
    layers = {n: i // size for i, n in enumerate(trunk)}
    last = -(-len(trunk) // size)
    layers.update({n: last for n in names if n not in layers})
    return layers
