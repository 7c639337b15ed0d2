"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a batch, drawn from a given generator."""

import numpy as np


def mix(x, targets, weights, rng, config):
    """Mix each image of a batch with the one at its mirrored place.

    Parameters
    ----------
    x : ndarray of float32, shape (B, 3, h, w)
    targets : ndarray of float32, shape (B, C)
    weights : ndarray of float32, shape (B,)
        Places of weight 0 (padding) take no part.
    rng : numpy.random.Generator
    config : aidet.config.Config
        ``mixup`` and ``cutmix`` (alphas), ``cutmix_prob`` (whether to mix at all). With both alphas each batch takes
        one of the two with equal chance.

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
