"""Targets of a batch: soft targets, weights, and the mixing of images (mixup, CutMix)."""

from typing import Any, List, Optional, Tuple

import numpy as np

from .. import labels


def loss_kind(config: Any, outputs: int) -> str:
    """Name of the loss; with a single output cross-entropy becomes the binary one."""
    return "BCE" if outputs == 1 and config.loss == "CE" else config.loss


def soft_targets(index: np.ndarray, classes: int, order: Optional[List[str]], smoothing: float = 0.0) -> np.ndarray:
    """Targets of a network's outputs.

    Parameters
    ----------
    index : ndarray of int, shape (n,)
        Class of each image, from 0; if the classes are sides, 0 is real and 1 generated.
    classes : int
        Number of outputs; 1 is a single sigmoid.
    order : list of str, or None
        Side of every output, if the classes are sides.
    smoothing : float
        Share of the target that is spread evenly over the classes, 0 to 1.

    Returns
    -------
    ndarray of float32, shape (n, classes)
    """
    if classes == 1:
        on = labels.NAMES.index(order[0]) if order else 1
        hot = (index == on).astype(np.float32)[:, None]
        return hot * np.float32(1 - smoothing) + np.float32(smoothing / 2)
    if order and classes == 2 and order[0] != labels.NAMES[0]:
        index = 1 - index
    return np.eye(classes, dtype=np.float32)[index] * np.float32(1 - smoothing) + np.float32(smoothing / classes)


def batch_weights(
    rows: np.ndarray, group: np.ndarray, known: np.ndarray, class_weights: np.ndarray, reduction: str
) -> Tuple[np.ndarray, np.ndarray]:
    """Class and weight of every position of a batch.

    Parameters
    ----------
    rows : ndarray of int, shape (B,)
        Rows of the training set, -1 for padding.
    group : ndarray of int, shape (G,)
        Rows of all batches of all processes that contribute to the same update.
    known : ndarray of int, shape (n,)
        Class of every image of the training set, -1 if it has none.
    class_weights : ndarray of float, shape (classes,)
    reduction : {"mean", "sum"}
        With ``mean`` the weights of all processes of one update sum to 1.

    Returns
    -------
    (ndarray of int, ndarray of float32), each of shape (B,)
        Class and weight are 0 if there is no image or it has no class.
    """
    there = known[group[group >= 0]]
    share = class_weights[np.maximum(there, 0)] * (there >= 0)
    norm = share.sum() if reduction == "mean" else 1.0
    own = np.where(rows >= 0, known[np.maximum(rows, 0)], -1)
    weights = np.where(own >= 0, class_weights[np.maximum(own, 0)], 0.0) / max(norm, 1e-12)
    return np.maximum(own, 0), weights.astype(np.float32)


def mix(
    x: np.ndarray, targets: np.ndarray, weights: np.ndarray, rng: np.random.Generator, config: Any
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mix each image of a batch with the one at the mirrored position of the batch.

    Mixup (Zhang et al. 2018) averages the two, CutMix (Yun et al. 2019) pastes a rectangle of one into the other.

    Parameters
    ----------
    x : ndarray of float32, shape (B, 3, h, w)
    targets : ndarray of float32, shape (B, C)
    weights : ndarray of float32, shape (B,)
        Positions of weight 0 (padding) are not mixed.
    rng : numpy.random.Generator
    config : aidet.config.Config
        ``mixup`` and ``cutmix`` (alphas), ``cutmix_prob`` (probability of mixing at all). If both alphas are set, each
        batch uses one of the two with equal probability.

    Returns
    -------
    (x, targets, weights)
    """
    if rng.random() >= config.cutmix_prob:
        return x, targets, weights
    cut = config.cutmix > 0 and (config.mixup == 0 or rng.random() < 0.5)
    alpha = config.cutmix if cut else config.mixup
    part = float(rng.beta(alpha, alpha))
    there = np.flatnonzero(weights > 0)
    other = there[::-1]
    x, targets, weights = x.copy(), targets.copy(), weights.copy()
    if cut:
        h, w = x.shape[2:]
        top, bottom = _span(h, part, rng)
        left, right = _span(w, part, rng)
        x[there, :, top:bottom, left:right] = x[other, :, top:bottom, left:right]
        part = 1.0 - (bottom - top) * (right - left) / (h * w)
    else:
        x[there] = np.float32(part) * x[there] + np.float32(1 - part) * x[other]
    keep, rest = np.float32(part) * weights[there], np.float32(1 - part) * weights[other]
    total = keep + rest
    # Fancy indexing on the right makes copies, so both sides are those before mixing.
    targets[there] = (keep[:, None] * targets[there] + rest[:, None] * targets[other]) / total[:, None]
    weights[there] = total
    return x, targets, weights


def _span(side, part, rng):
    length = side * np.sqrt(1 - part)
    centre = rng.integers(0, side)
    low, high = (int(np.clip(round(centre + sign * length / 2), 0, side)) for sign in (-1, 1))
    return low, high
