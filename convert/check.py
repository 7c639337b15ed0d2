"""Verify a converted checkpoint again, at any time and on any machine."""

from typing import Callable, Optional, Sequence

import numpy as np

from aidet import ckpt
from aidet.errors import UserError

from . import published, reading, rules
from .conversion import fold_adapters, take_part
from .parity import compare, statement
from .plan import make_plan


def check(
    path: str,
    source: Optional[str] = None,
    level: str = "logits",
    reference: Optional[str] = None,
    say: Callable[[str], None] = print,
    *,
    architecture: Optional[str] = None,
    layout: Optional[str] = None,
    recipe: Optional[str] = None,
    sources: Sequence[str] = (),
) -> int:
    """Check the hash, load strictly, and compare with whatever is available: source, given or shipped reference.

    Parameters
    ----------
    path : str
        ``.ckpt`` with its sidecar.
    source : str, optional
        The original weights: every tensor is compared bit by bit, and the file's hash with the sidecar's.
    level : {"logits", "layers"}
    reference : str, optional
        Stored activations.
    architecture, layout, recipe : str, optional
        What the source is to be read as; by default what the sidecar says it was read as.
    sources : sequence of str
        Further files of a detector that is made of several.

    Returns
    -------
    int
        0. Any failure raises a :class:`UserError`.
    """
    sidecar = ckpt.Sidecar.read(path)
    say(f"hash    {sidecar.identity[:16]}... is the one its sidecar states")
    net = ckpt.load_network(sidecar)
    say(f"load    {sidecar.architecture}: every name and shape fits")
    if source is not None:
        read = _read(source, sidecar, recipe, sources)
        _against_source(path, source, read, sidecar, say, architecture or sidecar.architecture, layout)
    chosen = compare.Reference.load(reference) if reference else compare.stored_reference(sidecar.source_sha256)
    if chosen is None:
        way = "--reference REF.npz" if source else "--source SRC or --reference REF.npz"
        say(f"note    no reference is stored for these weights: outputs not compared; {way} would prove more")
        return 0
    result = compare.activations(net, chosen, level)
    result["compared_with"] = statement.of_stored(chosen.meta)
    result["preprocessing"] = compare.preprocessing(sidecar.transform, chosen)
    for line in compare.lines(result):
        say(line)
    if not result["ok"] and _is_half(ckpt.load_arrays(path)):
        say(compare.HALF)
    elif not result["ok"]:
        raise UserError(f"{path}: its outputs differ from the reference by {result['logits']['largest']}")
    return 0


def _is_half(arrays):
    """Whether a checkpoint was written with ``--dtype fp16``."""
    return {a.dtype for a in arrays.values() if a.dtype.kind == "f"} == {np.dtype(np.float16)}


def _read(source, sidecar, recipe, sources):
    """(what the source holds, its first file or folder), read as it was at conversion."""
    recipe = recipe or sidecar.recipe_name or "none"
    if recipe != "none" and not recipe.endswith((".yaml", ".yml")) and recipe not in published.names():
        raise UserError(f"{sidecar.path} was made by the recipe {recipe!r}, a file of your own: name it with --recipe")
    known, paths, entry = published.resolve(source, recipe, sources)
    weights = sidecar.source_options.get("weights")
    read = known.read(paths, weights) if known else reading.read(paths[0], weights)
    take_part(read, entry)
    return read, paths[0]


def _against_source(path, source, found, sidecar, say, architecture, layout):
    read, place = found
    options = sidecar.source_options
    if sidecar.source_sha256 and read.sha256() != sidecar.source_sha256:
        raise UserError(f"{source} is not the file {path} was made from (sha256 differs)")
    folded = sidecar.source_adapters
    fold_adapters(read, place, folded.get("base"), folded.get("alpha"))
    arrays = ckpt.load_arrays(path)
    plan = make_plan(
        read,
        layout or sidecar.source_layout,
        architecture,
        options.get("num_classes"),
        options.get("head", "keep"),
        given={k: v for k, v in sidecar.arguments.items() if k != "num_classes"},
        prefix=options.get("prefix"),
        drop=tuple(options.get("drop") or ()),
    )
    dtype = np.float16 if _is_half(arrays) else np.float32
    same = [
        np.array_equal(arrays[name], array)
        for name, array in rules.gather(plan.entries, plan.tensors, plan.shapes, dtype)
    ]
    if plan.fresh:
        say(f"note    the head is new, so that it has no counterpart in the source: {', '.join(plan.fresh)}")
    if not all(same):
        raise UserError(f"{path} differs from {source} in {len(same) - sum(same)} of {len(same)} tensors")
    say(compare.bit_by_bit(len(same), dtype == np.float16))
