"""Losses of training as MindSpore cells."""

from typing import Tuple, Union

import mindspore as ms
from mindspore import Tensor, nn, ops

Outputs = Union[Tensor, Tuple[Tensor, ...]]


class Loss(nn.Cell):
    """Weighted loss with soft targets.

    Parameters
    ----------
    kind : {"CE", "BCE", "JSD", "asl_single_label", "asl_multi_label"}
    aux_factor : float
        Weight of the second and later outputs of a network that has several.
    splits : int
        Views per image for JSD (AugMix; Hendrycks et al. 2020).

    Notes
    -----
    ``construct(outputs, targets, weights)``: targets float32 (N, C), weights float32 (N,). The weights include the
    division by the number of images (they sum to 1 over the global batch), so that a padded position has weight 0 and
    devices may hold unequal shares.
    """

    def __init__(self, kind: str = "CE", aux_factor: float = 0.0, splits: int = 0) -> None:
        super().__init__()
        self.kind, self.aux_factor, self.splits = kind, aux_factor, splits

    def construct(self, outputs: Outputs, targets: Tensor, weights: Tensor) -> Tensor:
        if isinstance(outputs, tuple):
            loss = self.single(outputs[0].astype(ms.float32), targets, weights)
            if self.aux_factor > 0:
                for other in outputs[1:]:
                    loss = loss + self.aux_factor * self.single(other.astype(ms.float32), targets, weights)
            return loss
        return self.single(outputs.astype(ms.float32), targets, weights)

    def single(self, z: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Loss of one output of the network."""
        if self.kind == "CE":
            return (weights * self.cross_entropy(z, targets)).sum()
        if self.kind == "BCE":
            return (weights * self.binary(z, targets)).sum()
        if self.kind == "JSD":
            return self.jensen_shannon(z, targets, weights)
        if self.kind == "asl_single_label":
            return (weights * self.asymmetric_single(z, targets)).sum()
        return (weights * self.asymmetric_multi(z, targets)).sum()

    def cross_entropy(self, z: Tensor, targets: Tensor) -> Tensor:
        """Softmax cross-entropy per image."""
        return -(targets * log_softmax(z)).sum(-1)

    def binary(self, z: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy per image, the mean over the outputs."""
        # max(z, 0) - z t + log(1 + exp(-|z|)): finite for every z.
        value = ops.relu(z) - z * targets + ops.log(1.0 + ops.exp(-ops.abs(z)))
        return value.mean(-1)

    def jensen_shannon(self, z: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Cross-entropy of the clean views plus 12 times the Jensen-Shannon divergence between all views."""
        clean = z.shape[0] // self.splits
        loss = (weights[:clean] * self.cross_entropy(z[:clean], targets[:clean])).sum() * self.splits
        p = ops.softmax(z, -1).reshape((self.splits, clean, -1))
        mixture = ops.log(ops.clip_by_value(p.mean(0), 1e-7, 1.0))
        divergence = (p * (ops.log(ops.clip_by_value(p, 1e-7, 1.0)) - mixture)).sum(-1).mean(0)
        return loss + 12.0 * (weights[:clean] * self.splits * divergence).sum()

    def asymmetric_single(self, z: Tensor, targets: Tensor) -> Tensor:
        """Asymmetric loss per image with one true class."""
        # Ridnik et al. 2021 with MindCV's gammas: 1 for the true class (the largest target), 4 for the others.
        logp = log_softmax(z)
        p = ops.exp(logp)
        true = (targets >= targets.max(-1, keepdims=True)).astype(ms.float32)
        focus = true * (1.0 - p) + (1.0 - true) * p * p * p * p
        return -(targets * logp * focus).sum(-1)

    def asymmetric_multi(self, z: Tensor, targets: Tensor) -> Tensor:
        """Asymmetric loss per image with any number of true classes."""
        # Gamma is 1 for positives and 4 for negatives; the probability of negatives is shifted by 0.05.
        p = ops.sigmoid(z)
        n = ops.minimum(1.0 - p + 0.05, ops.ones_like(p))
        value = targets * ops.log(ops.maximum(p, 1e-8 * ops.ones_like(p))) * (1.0 - p)
        negative = ops.log(ops.maximum(n, 1e-8 * ops.ones_like(n))) * ops.pow(1.0 - n + 1e-8, 4.0)
        value = value + (1.0 - targets) * negative
        return -value.sum(-1)


class Mapped(nn.Cell):
    """``image_weight * loss + map_weight * (binary cross-entropy of the cells, the mean over the cells of an image)``.

    ``outputs`` are the logits and the map (N, h, w), ``shares`` the generated share of every cell, float32 (N, h, w).
    """

    def __init__(self, loss: Loss, map_weight: float, image_weight: float) -> None:
        super().__init__()
        self.loss, self.map_weight, self.image_weight = loss, map_weight, image_weight

    def construct(self, outputs: Tuple[Tensor, ...], targets: Tensor, weights: Tensor, shares: Tensor) -> Tensor:
        whole = self.loss(outputs[0], targets, weights)
        z = outputs[1].astype(ms.float32)
        cells = ops.relu(z) - z * shares + ops.log(1.0 + ops.exp(-ops.abs(z)))
        return self.image_weight * whole + self.map_weight * (weights * cells.mean((1, 2))).sum()


def log_softmax(z: Tensor) -> Tensor:
    """Row-wise, made of elementary operations, so that it compiles on every device and in every version."""
    z = z - ops.stop_gradient(z.max(-1, keepdims=True))
    return z - ops.log(ops.exp(z).sum(-1, keepdims=True))


class Distilled(nn.Cell):
    """``(1 - alpha) * loss + alpha * T^2 * KL(teacher || student)`` at temperature T (Hinton et al. 2015).

    ``soft`` is the teachers' probability of each output at that temperature, float32 (N, C).
    """

    def __init__(self, loss: Loss, temperature: float, alpha: float, sigmoid: bool) -> None:
        super().__init__()
        self.loss, self.temperature, self.alpha, self.sigmoid = loss, temperature, alpha, sigmoid

    def construct(self, outputs: Outputs, targets: Tensor, weights: Tensor, soft: Tensor) -> Tensor:
        z = (outputs[0] if isinstance(outputs, tuple) else outputs).astype(ms.float32) / self.temperature
        if self.sigmoid:
            own = self.loss.binary(z, soft)
            teacher = -(soft * ops.log(soft + 1e-7) + (1.0 - soft) * ops.log(1.0 - soft + 1e-7)).mean(-1)
        else:
            own = self.loss.cross_entropy(z, soft)
            teacher = -(soft * ops.log(soft + 1e-7)).sum(-1)
        divergence = (weights * (own - teacher)).sum() * self.temperature * self.temperature
        return (1.0 - self.alpha) * self.loss(outputs, targets, weights) + self.alpha * divergence
