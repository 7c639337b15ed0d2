"""Weights and inputs that any machine can regenerate from a name, so that stored logits need no stored weights.

Every value is rounded to float16, so that half-precision files contain the same numbers.
"""

import zlib

import numpy as np


def weights(name, shape, gain=2.0):
    """Values for one tensor of an original model, drawn by its name and shape.

    Parameters
    ----------
    name : str
        Key in the original model's state dict; its end tells the kind of tensor.
    shape : tuple of int
    gain : float
        2 keeps the deviation through a layer with a ReLU. A smaller one is for nets whose sums of many blocks would
        grow until they are all rounding.

    Returns
    -------
    numpy.ndarray, float32
        Running variances in 0.5 to 1.5, norm weights in 0.6 to 1.4, layer scales in 0.2 to 0.8; position tables and
        tokens with deviation 0.5, running means and biases with 0.1, all others with ``sqrt(gain / fan-in)``.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(("running_var", "dct_var")):
        values = rng.uniform(0.5, 1.5, shape)
    elif "layer_scale" in name or name.endswith(".gamma"):
        values = rng.uniform(0.2, 0.8, shape)
    elif any(part in name for part in ("position_bias_table", "pos_embed", "position_embeddings", "_token")):
        values = 0.5 * rng.standard_normal(shape)
    elif len(shape) > 1:
        values = np.sqrt(gain / np.prod(shape[1:])) * rng.standard_normal(shape)
    elif name.endswith("weight"):
        values = rng.uniform(0.6, 1.4, shape)
    else:
        values = 0.1 * rng.standard_normal(shape)
    return np.asarray(values).astype(np.float16).astype(np.float32)


def image(side, channels=3, seed=0):
    """A picture of patches with grain, or latents: float32 (1, channels, side, side), deviation about 1."""
    rng = np.random.default_rng(seed)
    patches = rng.standard_normal((1, channels, 8, 8)).repeat(-(-side // 8), 2).repeat(-(-side // 8), 3)
    grain = rng.standard_normal((1, channels, side, side))
    return np.ascontiguousarray(patches[:, :, :side, :side] + 0.3 * grain, np.float32)


def tensors(rows, gain=2.0):
    """The source file's tensors from the rows of a stored case.

    Parameters
    ----------
    rows : list of [key, shape, how]
        ``how`` is the name that seeds :func:`weights`, also with the shape that it was drawn in (``name|3,4``), turned
        (``name|turned``), or the names of equal parts joined by ``+``; or ``[dtype, value]`` for a constant tensor.
    gain : float
        See :func:`weights`.

    Returns
    -------
    dict of str to numpy.ndarray
    """
    made = {}
    for key, shape, how in rows:
        if isinstance(how, str) and "+" in how:
            part = (shape[0] // len(how.split("+")), *shape[1:])
            made[key] = np.concatenate([weights(name, part, gain) for name in how.split("+")])
        elif isinstance(how, str) and how.endswith("|turned"):
            made[key] = np.ascontiguousarray(weights(how.split("|")[0], tuple(shape[::-1]), gain).T)
        elif isinstance(how, str):
            name, drawn = how.split("|") if "|" in how else (how, None)
            drawn = tuple(map(int, drawn.split(","))) if drawn else tuple(shape)
            made[key] = weights(name, drawn, gain).reshape(shape)
        else:
            made[key] = np.full(shape, how[1], how[0])
    return made
