"""Every optimizer and schedule against PyTorch's (or timm's, where PyTorch has none), step by step.

The problem is a small least-squares one in which every parameter has its own curvature. Each side gets the gradient at
its own position, so an error in one step shows in all later ones. Known differences of definition, each stated where
it is tested: RMSProp's epsilon (MindSpore inside the root, PyTorch outside), its momentum (MindSpore's holds the
learning rate) and Nesterov's momentum in Adam, which PyTorch does not have.
"""

import sys
import types

import numpy as np
import pytest
import torch

from aidet import config
from aidet.training import schedules

sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
pytestmark = pytest.mark.parity
SHAPES = ((4, 3), (3,), (2, 2, 3))
STEPS = 40


class Problem:
    """f(p) = sum a (p - b)^2 / 2 with fixed random a, b and start."""

    def __init__(self):
        rng = np.random.default_rng(5)
        self.curvature = [rng.uniform(0.2, 3.0, s).astype(np.float32) for s in SHAPES]
        self.target = [rng.standard_normal(s).astype(np.float32) for s in SHAPES]
        self.start = [rng.standard_normal(s).astype(np.float32) for s in SHAPES]

    def gradient(self, values):
        return [a * (p - b) for a, p, b in zip(self.curvature, values, self.target)]


def rates(name="cosine_decay", **keys):
    """Rates that change at every step: an optimizer that stores a rate in its state would give other positions."""
    return schedules.learning_rates(config.load(None, {"scheduler": name, "epoch_size": 4, **keys}), STEPS // 4)


def ours(problem, lr, **keys):
    """Positions after every step of the project's optimizer, compiled as in training."""
    import mindspore as ms
    from mindspore import nn

    from aidet.training import optim

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            for i, value in enumerate(problem.start):
                setattr(self, f"w{i}", ms.Parameter(ms.Tensor(value), name=f"w{i}"))

    ms.set_context(mode=ms.GRAPH_MODE)
    optimizer = optim.create(config.load(None, keys), Net())
    parameters, out = list(optimizer.parameters), []
    for step, rate in enumerate(lr):
        gradients = tuple(ms.Tensor(g) for g in problem.gradient([p.asnumpy() for p in parameters]))
        optimizer(gradients, ms.Tensor(np.float32(rate)), ms.Tensor(np.float32(step + 1)))
        out.append(np.concatenate([p.asnumpy().ravel() for p in parameters]))
    return np.array(out)


def theirs(problem, lr, make):
    """The same for a torch optimizer."""
    parameters, out = [torch.nn.Parameter(torch.from_numpy(v.copy())) for v in problem.start], []
    optimizer = make(parameters)
    for rate in lr:
        for group in optimizer.param_groups:
            group["lr"] = rate
        for p, g in zip(parameters, problem.gradient([p.detach().numpy() for p in parameters])):
            p.grad = torch.from_numpy(g)
        optimizer.step()
        out.append(np.concatenate([p.detach().numpy().ravel() for p in parameters]))
    return np.array(out)


def timm(name):
    """A class of timm.optim."""
    return getattr(pytest.importorskip("timm.optim"), name)


CASES = {
    "sgd": ({"opt": "sgd", "momentum": 0.0}, lambda p: torch.optim.SGD(p, 1.0, weight_decay=0.1)),
    "momentum": ({"opt": "momentum"}, lambda p: torch.optim.SGD(p, 1.0, momentum=0.9, weight_decay=0.1)),
    "nesterov": (
        {"opt": "nesterov"},
        lambda p: torch.optim.SGD(p, 1.0, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    "adam": ({"opt": "adam"}, lambda p: torch.optim.Adam(p, 1.0, weight_decay=0.1)),
    # An epsilon large enough to show where in the formula it is added.
    "adam, eps": ({"opt": "adam", "eps": 1e-2}, lambda p: torch.optim.Adam(p, 1.0, eps=1e-2, weight_decay=0.1)),
    "adamw": ({"opt": "adamw"}, lambda p: torch.optim.AdamW(p, 1.0, weight_decay=0.1)),
    "nadam": ({"opt": "nadam"}, lambda p: torch.optim.NAdam(p, 1.0, weight_decay=0.1)),
    "adagrad": (
        {"opt": "adagrad", "eps": 1e-3},
        lambda p: torch.optim.Adagrad(p, 1.0, initial_accumulator_value=0.1, eps=1e-3, weight_decay=0.1),
    ),
    "lion": ({"opt": "lion"}, lambda p: timm("Lion")(p, 1.0, betas=(0.9, 0.99), weight_decay=0.1)),
    "lamb": (
        {"opt": "lamb"},
        lambda p: timm("Lamb")(p, 1.0, eps=1e-8, betas=(0.9, 0.999), weight_decay=0.1, max_grad_norm=None),
    ),
    "adan": ({"opt": "adan"}, lambda p: timm("Adan")(p, 1.0, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.1)),
}


@pytest.mark.parametrize("name", CASES)
def test_an_optimizer_takes_the_same_steps(name):
    keys, make = CASES[name]
    problem, lr = Problem(), rates(lr=0.05, min_lr=0.001)
    first, second = ours(problem, lr, weight_decay=0.1, **keys), theirs(problem, lr, make)
    assert np.abs(first[-1] - np.concatenate([v.ravel() for v in problem.start])).max() > 0.05
    assert np.abs(first - second).max() < 5e-6


def test_rmsprop_is_mindspores_and_equals_pytorchs_where_the_definitions_agree():
    problem, constant = Problem(), [0.01] * STEPS
    # With a constant rate and a negligible epsilon the two definitions agree.
    first = ours(problem, constant, opt="rmsprop", eps=1e-16, weight_decay=0.1)
    second = theirs(
        problem, constant, lambda p: torch.optim.RMSprop(p, 1.0, alpha=0.9, eps=1e-16, momentum=0.9, weight_decay=0.1)
    )
    assert np.abs(first - second).max() < 5e-6
    # Otherwise it is MindSpore's; this is the formula of nn.RMSProp in NumPy.
    lr, eps = rates(lr=0.05, min_lr=0.001), 1e-3
    p = [v.copy() for v in problem.start]
    square, moment, wanted = [0.0] * 3, [0.0] * 3, []
    for rate in lr:
        for i, g in enumerate(problem.gradient(p)):
            square[i] = 0.9 * square[i] + 0.1 * g * g
            moment[i] = 0.9 * moment[i] + rate * g / np.sqrt(square[i] + eps)
        p = [v - m for v, m in zip(p, moment)]
        wanted.append(np.concatenate([v.ravel() for v in p]))
    assert np.abs(ours(problem, lr, opt="rmsprop", eps=eps, weight_decay=0.0) - np.array(wanted)).max() < 5e-6


SCHEDULES = {
    "cosine": (
        {"scheduler": "cosine_decay", "min_lr": 1e-3},
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=1e-3),
    ),
    "polynomial": (
        {"scheduler": "polynomial_decay", "decay_rate": 2.0},
        lambda o: torch.optim.lr_scheduler.PolynomialLR(o, STEPS, power=2.0),
    ),
    "one cycle": (
        {"scheduler": "one_cycle", "min_lr": 1e-4},
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, STEPS, final_div_factor=0.1 / 25 / 1e-4),
    ),
    "cyclic": (
        {"scheduler": "cyclic", "min_lr": 1e-3, "num_cycles": 2},
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 1e-3, 0.1, STEPS // 4, cycle_momentum=False),
    ),
    "step": (
        {"scheduler": "step_decay", "decay_epochs": 2, "decay_rate": 0.1},
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2 * STEPS // 4, 0.1),
    ),
    "multi-step": (
        {"scheduler": "multi_step_decay", "multi_step_decay_milestones": [1, 3], "decay_rate": 0.5},
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [STEPS // 4, 3 * STEPS // 4], 0.5),
    ),
    "exponential": (
        {"scheduler": "exponential_decay", "decay_rate": 0.5},
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5 ** (4 / STEPS)),
    ),
    "warm-up": (
        {"scheduler": "constant", "warmup_epochs": 2, "warmup_factor": 0.1},
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, STEPS // 2),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_equals_pytorchs(name):
    keys, make = SCHEDULES[name]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    schedule, wanted = make(optimizer), []
    for _ in range(STEPS):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    found = schedules.learning_rates(config.load(None, {"lr": 0.1, "epoch_size": 4, **keys}), STEPS // 4)
    assert np.abs(np.array(found) - wanted).max() < 1e-9
