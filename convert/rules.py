"""Renaming rules as data, and the one engine that applies them in both directions.

A rule is a line ``(kind, target, source)``: for every parameter of the target net that fits the ``target`` template,
the ``source`` template says which tensor of the source file it comes from. Every parameter of the net needs a source,
and every key of the file must be used, or dropped for a stated reason, so nothing is forgotten on either side. Applied
in reverse, the same lines give the reverse conversion.

Templates: ``{b}`` stands for a number; in a source template also ``{s-1}`` (shifted) and ``{flat(s,b)}`` or
``{last()}`` (looked up in a table of the family).

Kinds
-----
``bn``     gamma, beta, moving_mean, moving_variance from weight, bias, running_mean, running_var
``ln``     gamma, beta from weight, bias
``emb``    embedding_table from weight
``w``, ``b``, ``wb``   weight, bias, both, unchanged
``wb11``   weight and bias; a 1x1 convolution on one side, a dense layer on the other
``q``, ``k``, ``v``    weight and bias: first, second or third part of a fused qkv
``qw``, ``kw``, ``vw``  the weight alone
``join``   the opposite: a fused qkv from three tensors, written ``[query|key|value]`` in the source template
``join_kv``  a fused qkv from a query and a fused key and value, written ``[q|kv]``
``one``    a parameter of exactly that name
``reshape``  the same, with dimensions of size one added or removed
``turn``   the weight of a dense layer from a matrix of exactly that name, stored as (inputs, outputs)
"""

import re
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from aidet.errors import UserError

from . import prefixes
from .families import Layout, Lookups, Rules, Shape
from .reading import Tensor

_BN = (("gamma", "weight"), ("beta", "bias"), ("moving_mean", "running_mean"), ("moving_variance", "running_var"))
_KINDS = {
    "bn": [(t, s, "same") for t, s in _BN],
    "ln": [(t, s, "same") for t, s in _BN[:2]],
    "emb": [("embedding_table", "weight", "same")],
    "w": [("weight", "weight", "same")],
    "b": [("bias", "bias", "same")],
    "wb": [("weight", "weight", "same"), ("bias", "bias", "same")],
    "wb11": [("weight", "weight", "reshape"), ("bias", "bias", "same")],
    "q": [("weight", "weight", "part0"), ("bias", "bias", "part0")],
    "k": [("weight", "weight", "part1"), ("bias", "bias", "part1")],
    "v": [("weight", "weight", "part2"), ("bias", "bias", "part2")],
    "qw": [("weight", "weight", "part0")],
    "kw": [("weight", "weight", "part1")],
    "vw": [("weight", "weight", "part2")],
    "join": [("weight", "weight", "join"), ("bias", "bias", "join")],
    "join_kv": [("weight", "weight", "join_kv"), ("bias", "bias", "join_kv")],
    "one": [("", "", "same")],
    "reshape": [("", "", "reshape")],
    "turn": [("weight", "", "turn")],
}
COMMON_DROPS = ((r"(.*\.)?num_batches_tracked", "a counter that inference never reads"),)


class Entry:
    """Where one target parameter comes from: ``sources`` has one name, or three for ``join``."""

    __slots__ = ("target", "sources", "op")

    def __init__(self, target: str, source: str, op: str) -> None:
        self.target, self.op = target, op
        choice = re.search(r"\[([^]]+)\]", source)
        self.sources: Tuple[str, ...] = (
            tuple(source[: choice.start()] + name + source[choice.end() :] for name in choice.group(1).split("|"))
            if choice
            else (source,)
        )

    @property
    def source(self) -> str:
        """The first source."""
        return self.sources[0]


def _pattern(template, suffix):
    """The target template as a regular expression."""
    parts = re.split(r"\{(\w+)\}", template)
    text, seen = "", set()
    for i, part in enumerate(parts):
        if i % 2 == 0:
            text += re.escape(part)
        else:
            text += f"(?P={part})" if part in seen else f"(?P<{part}>\\d+)"
            seen.add(part)
    return re.compile(text + (re.escape("." + suffix) if suffix else "") + r"\Z")


def _fill(template, numbers, lookups):
    """The source template with its numbers filled in."""

    def value(match):
        text = match.group(1)
        call = re.fullmatch(r"(\w+)\(([\w,]*)\)", text)
        if call:
            return str(lookups[call.group(1)][tuple(numbers[n] for n in call.group(2).split(",") if n)])
        name, shift = re.fullmatch(r"(\w+?)([+-]\d+)?", text).groups()
        return str(numbers[name] + int(shift or 0))

    return re.sub(r"\{([^}]+)\}", value, template)


def compile_rules(rules: Rules) -> List[Tuple["re.Pattern[str]", str, str]]:
    """Turn the lines of a table into ``[(pattern, source template, op)]``."""
    compiled = []
    for kind, target, source in rules:
        for target_end, source_end, op in _KINDS[kind]:
            full = source + ("." + source_end if source_end else "")
            compiled.append((_pattern(target, target_end), full, op))
    return compiled


def assign(layout: Layout, shapes: Mapping[str, Shape], lookups: Lookups) -> Tuple[List[Entry], Dict[str, str]]:
    """Determine for every target parameter where it comes from.

    Parameters
    ----------
    layout : convert.families.Layout
    shapes : dict of str to tuple
        Parameters of the target net and their shapes.
    lookups : dict
        Tables of the family that the source templates use.

    Returns
    -------
    (list of Entry, dict)
        The entries, and target names that are computed by the net (name -> reason).
    """
    if layout.identity:
        return [Entry(target, target, "same") for target in shapes], {}
    compiled = compile_rules(layout.rules)
    entries: List[Entry] = []
    computed: Dict[str, str] = {}
    for target in shapes:
        found = None
        for pattern, source, op in compiled:
            match = pattern.match(target)
            if match:
                numbers = {k: int(v) for k, v in match.groupdict().items()}
                try:
                    found = Entry(target, _fill(source, numbers, lookups), op)
                except KeyError:
                    continue  # the lookup lacks this number: the line is for other parameters
                break
        if found is not None:
            entries.append(found)
            continue
        reason = next((why for regex, why in layout.computed if re.fullmatch(regex, target)), None)
        if reason is None:
            raise AssertionError(f"layout {layout.name} has no rule for the parameter {target}")
        computed[target] = reason
    return entries, computed


def source_of(layout: Layout, target: str, lookups: Lookups) -> Optional[str]:
    """Name of the source tensor that a target parameter comes from; None if no rule mentions it."""
    if layout.identity:
        return target
    for pattern, source, _ in compile_rules(layout.rules):
        match = pattern.match(target)
        if match:
            return _fill(source, {k: int(v) for k, v in match.groupdict().items()}, lookups)
    return None


def account(
    entries: Sequence[Entry],
    computed: Mapping[str, str],
    shapes: Mapping[str, Shape],
    tensors: Mapping[str, Tensor],
    layout: Layout,
    beside: Optional[Mapping[str, Optional[str]]] = None,
) -> Dict[str, Dict[str, Any]]:
    """Compare the plan with the file in both directions.

    Parameters
    ----------
    entries, computed : see :func:`assign`
    shapes : dict of str to tuple
        Parameters of the target net and their shapes.
    tensors : dict of str to lazy tensor
        The file, without a prefix.
    layout : convert.families.Layout
    beside : dict of str to str or None, optional
        Keys that do not have the prefix of the others, and why each may be left out; None: nothing excuses it.

    Returns
    -------
    dict
        ``used`` (target -> [source..., op]), ``dropped`` (source -> reason), ``computed`` (target -> reason).

    Raises
    ------
    UserError
        The two do not match; the message lists every name that is on one side only and every shape that differs.
    """
    wrong = []
    used_keys = set()
    for entry in entries:
        expected = tuple(shapes[entry.target])
        for part, source in enumerate(entry.sources):
            if source not in tensors:
                wrong.append(f"- in model, not in file: {entry.target} {expected} (looked for {source})")
                continue
            used_keys.add(source)
            if not _fits(entry.op, tuple(tensors[source].shape), expected, part):
                wrong.append(f"! shape differs: {entry.target} {expected} from {source} {tuple(tensors[source].shape)}")
    dropped = {}
    for key in tensors:
        if key in used_keys:
            continue
        reason = next((why for regex, why in (*layout.drop, *COMMON_DROPS) if re.fullmatch(regex, key)), None)
        reason = reason or prefixes.reason(key)
        if reason is None:
            wrong.append(f"+ in file, not in model: {key} {tuple(tensors[key].shape)}")
        else:
            dropped[key] = reason
    for key, reason in (beside or {}).items():
        if reason is None:
            wrong.append(f"+ in file, without the prefix of the others: {key}")
        else:
            dropped[key] = reason
    if wrong:
        shown = "; ".join(wrong[:12]) + (f"; ... {len(wrong) - 12} more" if len(wrong) > 12 else "")
        surplus = any(line.startswith("+") for line in wrong)
        hint = "; what is no part of the net can be left out with --drop KEY or --drop GLOB" if surplus else ""
        raise UserError(
            f"the file does not fit layout {layout.name!r} ({len(wrong)} difference{'s' if len(wrong) > 1 else ''}, "
            f"{len(used_keys)} of {len(tensors)} keys fit): {shown}{hint}"
        )
    return {"used": {e.target: [*e.sources, e.op] for e in entries}, "dropped": dropped, "computed": dict(computed)}


def _fits(op, have, want, part=0):
    if op.startswith("part"):
        return len(have) == len(want) and have[0] == 3 * want[0] and have[1:] == want[1:]
    if op == "join_kv":
        return len(have) == len(want) and 3 * have[0] == (1, 2)[part] * want[0] and have[1:] == want[1:]
    if op == "join":
        return len(have) == len(want) and 3 * have[0] == want[0] and have[1:] == want[1:]
    if op == "reshape":
        return [n for n in have if n != 1] == [n for n in want if n != 1]
    if op == "turn":
        return len(have) == 2 and have[::-1] == want
    return have == want


def apply(entry: Entry, array: np.ndarray, shape: Shape) -> np.ndarray:
    """Turn one source array into one target array."""
    if entry.op.startswith("part"):
        step = array.shape[0] // 3
        start = int(entry.op[4:]) * step
        array = array[start : start + step]
    elif entry.op == "turn":
        array = array.T
    return np.ascontiguousarray(array).reshape(shape)


def gather(
    entries: Iterable[Entry], tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape], dtype: Any = None
) -> Iterator[Tuple[str, np.ndarray]]:
    """Yield (target, array) one at a time, so that little more than the result is in memory.

    Raises
    ------
    UserError
        A weight is NaN or infinite; all such tensors are named.
    """
    bad = []
    for entry in entries:
        array = tensors[entry.source].array()
        if entry.op.startswith("join"):
            array = np.concatenate([array] + [tensors[s].array() for s in entry.sources[1:]])
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad.append(entry.source)
            continue
        array = apply(entry, array, shapes[entry.target])
        if array.dtype.kind == "f":
            array = _cast(array, dtype or np.float32, entry.source)
        yield entry.target, array
    if bad:
        raise UserError(
            f"{len(bad)} tensors hold NaN or infinity, for example {', '.join(bad[:4])}; the file is damaged"
        )


def _cast(array, dtype, name):
    dtype = np.dtype(dtype)
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    if not np.isfinite(result).all():
        raise UserError(f"{name} holds values up to {np.abs(array).max():g}, too large for {dtype}; use --dtype fp32")
    return result


def ungather(
    entries: Iterable[Entry],
    arrays: Mapping[str, np.ndarray],
    shapes_of_source: Callable[[Entry], Optional[Shape]],
) -> Dict[str, np.ndarray]:
    """The reverse of :func:`gather`: target arrays back to source names.

    Parameters
    ----------
    shapes_of_source : callable
        ``f(entry) -> shape or None``: the shape a ``reshape`` entry has in the source layout.
    """
    result: Dict[str, np.ndarray] = {}
    parts: Dict[str, Dict[int, np.ndarray]] = {}
    for entry in entries:
        array = np.asarray(arrays[entry.target])
        if entry.op.startswith("part"):
            parts.setdefault(entry.source, {})[int(entry.op[4:])] = array
            result.setdefault(entry.source, array)  # reserves the position; the tensor is assembled below
        elif entry.op == "join":
            result.update(zip(entry.sources, np.split(array, 3)))
        elif entry.op == "join_kv":
            result.update(zip(entry.sources, np.split(array, [len(array) // 3])))
        elif entry.op == "turn":
            result[entry.source] = np.ascontiguousarray(array.T)
        elif entry.op == "reshape":
            shape = shapes_of_source(entry)
            result[entry.source] = array if shape is None else array.reshape(shape)
        else:
            result[entry.source] = array
    for source, three in parts.items():
        result[source] = np.concatenate([three[i] for i in range(3)])
    return result
