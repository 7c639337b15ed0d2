"""LoRA (Hu et al. 2021, arXiv:2106.09685): a pretrained dense layer stays as it is, a product of low rank is trained.

``lora: {rank: 8, layers: ["blocks.*.attn.qkv", ...]}`` in a recipe. The product is computed beside the layer while the
training runs, and added to its weight in every checkpoint: those are of the plain architecture, for the same commands.
"""

import fnmatch
import math
from typing import Any, Collection, Dict, Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from .. import images
from ..errors import UserError, nearest
from .checks import validates_apart

DOWN, UP = "lora_A", "lora_B"  # the names that peft gives them


class LoraDense(nn.Cell):
    """A dense layer and an adapter: ``x W' + b + (x A') B'``, (..., in) -> (..., out).

    Parameters
    ----------
    dense : mindspore.nn.Dense
        Its parameters are used, not copied, and no longer trained.
    rank : int
        Of the product ``B A``. The paper's factor alpha / rank is 1: the learning rate does its work.
    rng : numpy.random.Generator
        For ``A``, uniform within ``1 / sqrt(in)``; ``B`` starts as zero, so that the layer starts as it was.
    """

    def __init__(self, dense: nn.Dense, rank: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.dense = dense
        width, limit = dense.weight.shape[1], 1 / math.sqrt(dense.weight.shape[1])
        down = rng.uniform(-limit, limit, (rank, width)).astype(np.float32)
        self.lora_A = Parameter(Tensor(down), name=DOWN)
        self.lora_B = Parameter(Tensor(np.zeros((dense.weight.shape[0], rank), np.float32)), name=UP)

    def construct(self, x: Tensor) -> Tensor:
        # In mixed precision x has half the width of the parameters.
        down = ops.transpose(self.lora_A.astype(x.dtype), (1, 0))
        up = ops.transpose(self.lora_B.astype(x.dtype), (1, 0))
        return self.dense(x) + ops.matmul(ops.matmul(x, down), up)


def adapt(net: nn.Cell, config: Any, fresh: Collection[str] = ()) -> int:
    """Put an adapter beside every pretrained dense layer that ``config.lora`` names; others are left as they are.

    Parameters
    ----------
    net : mindspore.nn.Cell
        Changed in place. Its parameters keep their names; the new ones are ``LAYER.lora_A`` and ``LAYER.lora_B``.
    config : aidet.config.Config
    fresh : collection of str
        Layers without pretrained weights, such as a new head: they are trained as a whole.

    Returns
    -------
    int
        Number of adapters; 0 if ``config.lora`` is not set.

    Raises
    ------
    UserError
        The settings are wrong, name no dense layer, or there are no pretrained weights to adapt.
    """
    if config.lora is None:
        return 0
    rank, globs = _settings(config)
    cells = dict(net.cells_and_names())
    dense = [name for name, cell in cells.items() if isinstance(cell, nn.Dense)]
    if not dense:
        raise UserError(f"lora adapts dense layers, of which model {config.model!r} has none")
    for glob in globs:
        if not fnmatch.filter(dense, glob):
            raise UserError(f"lora layers {glob!r} matches no dense layer; {nearest(glob, dense)}")
    matched = [name for name in dense if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]
    chosen = [name for name in matched if name not in fresh]
    if not chosen:
        raise UserError(
            f"lora: layers (={globs!r}) names no pretrained layer: {', '.join(matched)} is new, and trained as a whole"
        )
    for name in chosen:
        holder, _, last = name.rpartition(".")
        _replace(cells[holder], last, cells[name], rank, images.generator(config.seed, "lora", name))
    return len(chosen)


def _settings(config):
    """Rank and patterns, checked."""
    given = config.lora
    rank, globs = given.get("rank", 8), given.get("layers")
    wrong = sorted(set(given) - {"rank", "layers"})
    if wrong:
        raise UserError(f"lora: unknown key {wrong[0]!r}; it takes rank and layers")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise UserError(f"lora: rank (={rank!r}) must be a whole number of at least 1")
    if not isinstance(globs, list) or not globs or not all(isinstance(glob, str) for glob in globs):
        raise UserError(f"lora: layers (={globs!r}) must be a list of patterns, such as ['blocks.*.attn.qkv']")
    if not config.init_from:
        raise UserError("lora adapts pretrained layers; set init_from to their weights")
    if validates_apart(config):
        cast = ", without amp_cast_list" if config.amp_cast_list else ""
        raise UserError(
            f"lora: val_amp_level (={config.val_amp_level!r}) must be amp_level, {config.amp_level!r}{cast}"
        )
    return rank, globs


def _replace(holder, last, dense, rank, rng):
    """Put an adapter around a layer; the names of the layer's parameters stay."""
    names = {id(p): p.name for p in dense.get_parameters()}  # MindSpore prefixes those of what a cell is given
    layer = dense.weight.name.rpartition(".")[0]
    for parameter in dense.get_parameters():
        parameter.requires_grad = False
    adapted = LoraDense(dense, rank, rng)
    names.update({id(adapted.lora_A): f"{layer}.{DOWN}", id(adapted.lora_B): f"{layer}.{UP}"})
    if isinstance(holder, nn.SequentialCell):
        holder._cells[last] = adapted  # its own assignment guesses names of parameters, and fails on some networks
        holder.cell_list = list(holder._cells.values())
    else:
        setattr(holder, last, adapted)
    for parameter in adapted.get_parameters():
        parameter.name = names[id(parameter)]


def folded(arrays: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """The weights of the plain architecture: ``W + B A`` for every adapted layer, the rest as it is.

    Parameters
    ----------
    arrays : dict of str to ndarray
        Changed nowhere.

    Returns
    -------
    dict of str to ndarray
    """
    result = {name: value for name, value in arrays.items() if not name.endswith((f".{DOWN}", f".{UP}"))}
    for name, down in arrays.items():
        if name.endswith(f".{DOWN}"):
            layer = name[: -len(DOWN)]
            weight = result[f"{layer}weight"]
            product = arrays[f"{layer}{UP}"].astype(np.float64) @ down.astype(np.float64)
            result[f"{layer}weight"] = (weight + product).astype(weight.dtype)
    return result


def parameters_of(tensors: Sequence[Any]) -> int:
    """Number of values among ``tensors`` that belong to the plain architecture."""
    return int(sum(p.size for p in tensors if not p.name.endswith((f".{DOWN}", f".{UP}"))))
