"""From what a checkpoint of torch holds (dictionaries in dictionaries) to one set of tensors."""

import re
from typing import Any, Dict, List, Mapping, Optional, Tuple

from aidet.errors import UserError

from .unpickle import Placeholder, is_tensor

# Keys under which training programs put the weights, in order of preference.
WRAPPERS = (
    "state_dict model_state_dict model net netC ema model_ema state_dict_ema params_ema params weights teacher student "
    "module shadow"
).split()
_AVERAGED = set("ema swa averaged average avg shadow polyak".split())
_GENERAL = set("model net network module state dict params weights backbone encoder classifier detector".split())
DEEPEST = 4  # dictionaries in dictionaries
SAVE_AGAIN = "save the weights alone where it is trusted: torch.save(model.state_dict(), 'weights.pth')"


def is_averaged(name: str) -> bool:
    """Whether a name means weights averaged over training: ``state_dict_ema``, ``ema_model``, ``averaged_model``."""
    words = set(re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())) - {""}
    # `avg_pool` or `average` may be a layer of a net.
    return not _AVERAGED.isdisjoint(words) and words <= _AVERAGED | _GENERAL and words not in ({"avg"}, {"average"})


def _wanted(name: Any, weights: str) -> bool:
    return isinstance(name, str) and (name == weights or weights == "ema" and is_averaged(name))


def _tensors_in(value: Any) -> int:
    return sum(map(is_tensor, value.values())) if isinstance(value, dict) else 0


def _mostly(value: Any) -> bool:
    return isinstance(value, dict) and _tensors_in(value) * 2 > len(value)


def unwrap(value: Any, path: object, weights: Optional[str] = None) -> Tuple[Dict[Any, Any], List[str], bool]:
    """Find the set of tensors inside a checkpoint.

    Parameters
    ----------
    value : object
        What the pickle holds.
    path : path
        For messages.
    weights : str, optional
        The set to take: its name, or ``ema`` for any averaged one.

    Returns
    -------
    (dict, list of str, bool)
        The dictionary, what was taken and left (for people), and whether a set of the name ``weights`` was found.

    Raises
    ------
    UserError
        There is none, or there are several and nothing says which to take.
    """
    notes: List[str] = []
    found = False
    for _ in range(DEEPEST):
        _refuse_objects(value, path)
        name = next((n for n in value if weights and not found and _wanted(n, weights) and _holds(value[n])), None)
        found = found or name is not None
        if name is None:
            if _mostly(value):
                return value, notes, found
            name = _usual(value, path)
        if name is None:
            break
        notes.append(_taken(value, name))
        value = value[name]
    _refuse_objects(value, path)
    if _tensors_in(value):
        return value, notes, found
    keys = ", ".join(map(_text, list(value)[:8]))
    whole = next((v.kind for v in value.values() if isinstance(v, Placeholder) and v.kind[:2] != "a "), None)
    hint = f"; its weights are inside an object ({whole}): {SAVE_AGAIN}" if whole else ""
    raise UserError(f"{path}: no dictionary of tensors inside (its keys: {keys}){hint}")


def _text(key: Any) -> str:
    return key[:60] if isinstance(key, str) else repr(key)[:60]


def _holds(value: Any, depth: int = 2) -> bool:
    """Whether a dictionary holds tensors, at most two levels down."""
    if _tensors_in(value):
        return True
    return isinstance(value, dict) and depth > 0 and any(_holds(v, depth - 1) for v in value.values())


def _usual(value: Mapping[Any, Any], path: object) -> Optional[str]:
    """The key of the weights: a known one, else the only one under which there are mostly tensors."""
    name = next((w for w in WRAPPERS if isinstance(value.get(w), dict) and value[w]), None)
    if name is not None:
        return name
    sets = [k for k, v in value.items() if isinstance(k, str) and _mostly(v)]
    if len(sets) > 1:
        shown = ", ".join(f"{k!r} ({len(value[k])})" for k in sets[:6])
        raise UserError(f"{path}: holds several sets of tensors: {shown}; take one with --weights NAME")
    return sets[0] if sets else None


def _taken(value: Mapping[Any, Any], name: str) -> str:
    others = [k for k in value if k != name]
    text = f"took {name!r}" + (f", left {', '.join(map(_text, others[:6]))}" if others else "")
    averaged = [k for k in others if isinstance(k, str) and is_averaged(k) and _holds(value[k])]
    if averaged and not is_averaged(name):
        text += f" (averaged weights are in {averaged[0][:60]!r}: --weights ema)"
    return text


def _refuse_objects(value: Any, path: object) -> None:
    if isinstance(value, Placeholder):
        raise UserError(
            f"{path}: holds a whole object ({value.kind}), not a dictionary of tensors; nothing was executed; "
            f"{SAVE_AGAIN}"
        )
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not a dictionary of tensors")


def tensors_of(value: Mapping[Any, Any], path: object) -> Tuple[Dict[Any, Any], List[str]]:
    """The tensors of a set, and what of it is left out.

    Raises
    ------
    UserError
        A tensor is quantised, sparse or of another kind whose values cannot be read.
    """
    tensors = {k: v for k, v in value.items() if is_tensor(v)}
    strange = next(((k, v) for k, v in value.items() if isinstance(v, Placeholder) and " tensor" in v.kind), None)
    if strange is not None:
        raise UserError(
            f"{path}: {_text(strange[0])!r} is {strange[1].kind}, which cannot be read; save it as plain floats"
        )
    rest = [k for k in value if k not in tensors]
    left = f"left out {len(rest)} entries that are no tensors: {', '.join(map(_text, rest[:5]))}"
    return tensors, [left] if rest else []


def choose_prefix(tensors: Mapping[str, Any], weights: str) -> Optional[str]:
    """The prefix of the asked-for set in a flat dictionary (``ema_model.``), or None."""
    for depth in range(3):
        for key in tensors:
            parts = key.split(".")
            if len(parts) > depth + 1 and _wanted(parts[depth], weights):
                return ".".join(parts[: depth + 1]) + "."
    return None
