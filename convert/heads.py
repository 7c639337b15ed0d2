"""A classifier under another name: ``fc.1`` behind a Dropout, ``head.fc``, ``last_linear``."""

import re
from typing import List, Mapping, Optional, Tuple

from aidet.errors import UserError

from . import misses, prefixes, rules
from .families import Layout, Lookups
from .reading import Tensor, Tensors, natural

# Top-level names of classifiers, and what may stand behind them.
ROOTS = "fc head classifier last_linear linear cls_head heads logits".split()
_PART = r"(\.(\d+|fc|linear|head|classifier|dense|out_proj|proj|last_linear|logits))?\.weight"


def find(layout: Layout, names: Tuple[str, ...], tensors: Tensors, lookups: Lookups) -> Tuple[Tensors, Optional[str]]:
    """Rename the file's classifier to the name that the layout has for it.

    Parameters
    ----------
    layout : Layout
    names : tuple of str
        Target parameter names of the classifier, weight first.
    tensors : dict of str to lazy tensor
    lookups : dict
        Tables of the family.

    Returns
    -------
    (dict, str or None)
        The tensors, and what was renamed, for people; None if nothing was.

    Raises
    ------
    UserError
        The classifier is a chain of several layers.
    """
    wanted = rules.source_of(layout, names[0], lookups) if names else None
    if wanted is None or wanted in tensors or not wanted.endswith(".weight"):
        return tensors, None
    stem = wanted[: -len(".weight")]
    found = linear_layers(stem, tensors)
    if len(found) > 1:
        shown = ", ".join(f"{k} {tuple(tensors[k].shape)}" for k in found)
        raise UserError(
            f"its classifier is a chain of {len(found)} layers ({shown}), where this layout has one ({wanted}); "
            "start a new one with --head init --num-classes N, or leave keys out with --drop GLOB"
        )
    if not found:
        found = _only_unknown(layout, tensors)
    if not found:
        return tensors, None
    own = found[0][: -len(".weight")]
    renamed = {stem + k[len(own) :] if k in (own + ".weight", own + ".bias") else k: v for k, v in tensors.items()}
    return renamed, f"read {own!r} as the classifier {stem!r}: what stands before it must do nothing, as a Dropout"


def linear_layers(stem: str, tensors: Mapping[str, Tensor]) -> List[str]:
    """Keys of linear layers under ``stem`` or another name of a classifier, in order."""
    roots = "|".join(re.escape(r) for r in dict.fromkeys([stem, *ROOTS]))
    keys = [k for k in tensors if re.fullmatch(f"({roots}){_PART}", k) and len(tensors[k].shape) == 2]
    return sorted(keys, key=natural)


def _only_unknown(layout, tensors):
    """The weight of a linear layer under any name, if it and its bias are all that the layout does not know."""
    keys = [k for k in misses.unknown(layout, tensors) if prefixes.reason(k) is None]
    weights = [k for k in keys if k.endswith(".weight") and len(tensors[k].shape) == 2]
    if len(weights) != 1 or set(keys) - {weights[0], weights[0][: -len("weight")] + "bias"}:
        return []
    return [] if re.search(r"proj|embed|neck|decoder", weights[0]) else weights


def leftover(keys: List[str], tensors: Mapping[str, Tensor], beside: Mapping[str, Optional[str]]) -> str:
    """Weights of no layer of the layout, for the message that there is no classifier; empty if there are none."""
    wide = [k for k in keys if len(tensors[k].shape) >= 2]
    shown = ", ".join(f"{k} {tuple(tensors[k].shape)}" for k in sorted(wide, key=natural)[:4])
    text = f"; of no layer of the net are {shown}" if shown else ""
    outside = sorted((k for k, why in beside.items() if why is None), key=natural)
    if outside:
        text += f"; without the prefix of the net are {', '.join(outside[:4])}"
    return text
