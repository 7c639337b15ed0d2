"""Wrappers around a net's keys: prefixes that come off, and keys beside the net that are left out for a reason."""

import fnmatch
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from aidet.errors import UserError

from .reading import Source, Tensors, natural
from .unwrap import is_averaged

# Parts of a key that wrappers add wherever they wrap a module: FSDP, activation checkpointing, compile, Fabric.
ANYWHERE = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "_forward_module")
# First parts of a key that are no part of a net: data parallel, Lightning, and attributes in which detectors hold it.
WRAPPING = (
    "module model net netC network backbone encoder_q detector vit student classifier_model base_model timm_model "
    "feature_extractor _model"
).split()
DEEPEST = 6

_METRIC = (
    r"(.*[._])?(acc|accuracy|auc|auroc|roc|f1|f1score|f1_score|precision|recall|specificity|eer|mcc|confmat|"
    r"confusion|confusion_matrix|metric|metrics)(_\w+)?"
)
_STATE = r"(tp|fp|tn|fn|correct|total|confmat|preds|target|(mean|sum|max|min)_value)(\.\d+)?"
_LOSS = r"(.*\.)?(criterion\w*|criteria|loss|losses|loss_?fn|loss_?func|\w+_loss)"
NORMALISATION = r"((data_)?(normali[sz]e[r]?|preprocess\w*|transform)\.)?(pixel_|image_|input_)?(mean|std)"
# Keys that stand beside a net. Each is left out only if no rule of the layout uses it.
BESIDE = (
    (r"(.*\.)?n_averaged", "the number of averaged models, a counter"),
    (_LOSS + r"\..*", "a state of the loss, which inference does not use"),
    (r"(.*\.)?(pos_weight|class_weights?|cls_weights?)", "the weights of the classes in the loss"),
    (_METRIC + r"(\.\w+)*\." + _STATE, "a state of a metric"),
    (NORMALISATION, "constants of the preprocessing"),
    (r"(optimizer|lr_scheduler|scheduler|grad_scaler|amp_scaler)\..*", "a state of the training"),
    (r"_?(epoch|step|global_step|iteration|num_updates|best_\w+)", "a number of the training"),
)


@dataclass
class View:
    """The tensors of a file without a prefix.

    Attributes
    ----------
    tensors : dict of str to lazy tensor
        Under the names that are left.
    beside : dict of str to str or None
        Keys that do not have the prefix, and why each is left out; None: nothing is known that would excuse it.
    prefix : str
        What was taken off.
    cleaned : str
        What was taken out of the middle of keys, for people.
    """

    tensors: Tensors
    beside: Dict[str, Optional[str]] = field(default_factory=dict)
    prefix: str = ""
    cleaned: str = ""

    def notes(self) -> List[str]:
        """What was taken off, for people."""
        where = f"{len(self.tensors)} keys" if self.beside else "every key"
        off = [f"took the prefix {self.prefix!r} off {where}"] if self.prefix else []
        return ([self.cleaned] if self.cleaned else []) + off


def reason(key: str) -> Optional[str]:
    """Why a key beside a net may be left out; None if nothing is known about it."""
    found = next((why for regex, why in BESIDE if re.fullmatch(regex, key)), None)
    if found is None and "." in key and is_averaged(key.split(".")[0]):
        return "averaged weights beside the net's own; --weights ema takes them"
    return found


def without(source: Source, globs: Sequence[str]) -> Tuple[Tensors, Dict[str, str]]:
    """Leave out what ``--drop`` names.

    Returns
    -------
    (dict, dict of str to str)
        The tensors that stay, and the dropped keys with their reason.

    Raises
    ------
    UserError
        A pattern matches no key.
    """
    dropped: Dict[str, str] = {}
    for glob in globs:
        hit = [k for k in source.tensors if fnmatch.fnmatchcase(k, glob)]
        if not hit:
            keys = ", ".join(sorted(source.tensors, key=natural)[:4])
            raise UserError(f"--drop {glob!r} matches none of the {len(source.tensors)} keys ({keys}, ...)")
        dropped.update((k, f"--drop {glob}") for k in hit)
    return {k: v for k, v in source.tensors.items() if k not in dropped}, dropped


def views(tensors: Tensors, prefix: Optional[str] = None) -> List[View]:
    """The tensors as they are, and with the prefixes of wrappers removed, one after the other.

    Parameters
    ----------
    tensors : dict of str to lazy tensor
    prefix : str, optional
        ``--prefix``: only keys under it belong to the net.

    Raises
    ------
    UserError
        No key has the prefix; the message names those that there are.
    """
    plain = _unwrapped(tensors)
    first = View(plain, cleaned="" if plain.keys() == tensors.keys() else _transparent_note(tensors))
    if prefix is not None:
        literal = View(tensors) if any(k.startswith(prefix) for k in tensors) else first
        first = _asked(literal, prefix)
        first.tensors = _unwrapped(first.tensors)
    found = [first]
    for _ in range(DEEPEST):
        following = _stripped(found[-1])
        if following is None:
            break
        found.append(following)
    return found


def _unwrapped(tensors):
    """Take off the parts in :data:`ANYWHERE`, unless two keys would become one."""
    names = {k: ".".join(p for p in k.split(".") if p not in ANYWHERE) or k for k in tensors}
    return {names[k]: v for k, v in tensors.items()} if len(set(names.values())) == len(names) else tensors


def _transparent_note(tensors):
    parts = sorted({p for k in tensors for p in k.split(".") if p in ANYWHERE})
    return "took " + " and ".join(f"{p + '.'!r}" for p in parts) + " out of the keys"


def _asked(view, prefix):
    forms = [prefix] if prefix.endswith(".") else [prefix + ".", prefix]
    full = next((f for f in forms if any(k.startswith(f) for k in view.tensors)), None)
    if full is None:
        common = ", ".join(f"{p!r} ({n})" for p, n in prefixes(view.tensors)[:6])
        raise UserError(f"--prefix {prefix!r}: no key begins with it" + (f"; there are {common}" if common else ""))
    beside = {k: f"not under --prefix {full}" for k in view.tensors if not k.startswith(full)}
    return _without_prefix(view, full, beside)


def _without_prefix(view, prefix, beside):
    tensors = {k[len(prefix) :]: v for k, v in view.tensors.items() if k.startswith(prefix)}
    taken = view.prefix + prefix
    full = {**view.beside, **{view.prefix + k: why for k, why in beside.items()}}
    return View(tensors, full, taken, view.cleaned)


def _stripped(view):
    """The next view: without the one wrapper that more than half of the keys have."""
    unexplained = [k for k in view.tensors if reason(k) is None]
    for part in WRAPPING:
        inside = [k for k in unexplained if k.startswith(part + ".")]
        if inside and len(inside) * 2 > len(unexplained):
            beside = {k: reason(k) for k in view.tensors if not k.startswith(part + ".")}
            return _without_prefix(view, part + ".", beside)
    return None


def prefixes(tensors: Mapping[str, Any], most: int = 4) -> List[Tuple[str, int]]:
    """Prefixes that more than one key has, with their counts: the most frequent first, the longest of equals."""
    counts: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        counts.update(".".join(parts[:n]) + "." for n in range(1, min(len(parts), most + 1)))
    return sorted(((p, n) for p, n in counts.items() if n > 1), key=lambda item: (-item[1], -len(item[0])))
