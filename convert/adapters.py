"""Adapters beside frozen weights are folded into them before the layouts run, so that an ordinary net remains.

Three forms are known. ``y = W x + s B A x`` and ``y = (W + U diag(S) V) x`` are both one dense layer:

``peft``    LoRA (Hu et al. 2021) as the library peft writes it: ``P.lora_A[.default].weight`` (r, in),
            ``P.lora_B[.default].weight`` (out, r), the frozen weight as ``P.base_layer.weight`` or ``P.weight`` or in
            another file; s is alpha / r, for rsLoRA alpha / sqrt(r). DoRA's ``lora_magnitude_vector`` scales rows.
            Beside peft's, a detector may have layers of its own: ``P.original.weight``, ``P.lora_A.weight``.
``dda``     LoRA of Dual Data Alignment (github.com/roy-ch/Dual-Data-Alignment): ``P.lora.lora_A``, ``P.lora.lora_B``,
            ``P.original_layer.weight``; s is alpha / r, and its published command lines set alpha to 1.
``effort``  The orthogonal split of Effort (Yan et al. 2024): ``P.weight_main`` holds the leading singular values, and
            ``U_residual`` (out, k), ``S_residual`` (k), ``V_residual`` (k, in) the rest, which was trained.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Set, Tuple

import numpy as np

from aidet import files
from aidet.errors import UserError

DDA_ALPHA = 1.0
_PEFT = re.compile(r"(?P<module>.+)\.lora_A(\.(?P<adapter>[^.]+))?\.weight")
_DDA = re.compile(r"(?P<module>.+)\.lora\.lora_A")
_EFFORT = re.compile(r"(?P<module>.+)\.(?P<leaf>weight_main|weight_r)")
# Parts of an adapter; one that stays after folding belongs to a form that is not known.
_PART = re.compile(
    r"(.+\.)?(lora_\w+(\.[^.]+)*(\.weight)?|[USV]_residual|vera_\w+.*|ia3_\w+.*|hada_w\w+.*|lokr_w\w+.*)"
)
# What Effort keeps of the frozen part for its losses.
_UNREAD = ("U_r", "S_r", "V_r", "weight_original_fnorm", "weight_main_fnorm")


class Folded:
    """A lazy tensor: a weight with its adapter added, in float32 (computed in float64).

    Attributes
    ----------
    shape : tuple of int
    dtype : str
    """

    def __init__(self, shape: Tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        self.shape, self.dtype, self._make = shape, "float32", make

    def array(self) -> np.ndarray:
        """The values, C order."""
        return np.ascontiguousarray(self._make(), np.float32).reshape(self.shape)


@dataclass(frozen=True)
class Record:
    """What was folded.

    Attributes
    ----------
    kind : str
        "peft", "dda" or "effort".
    count : int
        Weights with an adapter.
    ranks : list of int
        The different ranks.
    scales : list of float
        The different factors s; empty for Effort.
    alpha : float or None
        As given or found; None if it differs, or for Effort.
    """

    kind: str
    count: int
    ranks: List[int]
    scales: List[float]
    alpha: Optional[float]

    def line(self) -> str:
        """One line for a person."""
        name = {"peft": "LoRA", "dda": "LoRA (DDA)", "effort": "SVD residuals (Effort)"}[self.kind]
        text = f"folded {self.count} {name}, rank {', '.join(map(str, self.ranks))}"
        return text + (f", scale {', '.join(f'{s:g}' for s in self.scales)}" if self.scales else "")


def holds_adapters(tensors: Mapping[str, Any]) -> bool:
    """Whether any key is part of an adapter."""
    return any(_PART.fullmatch(key) for key in tensors)


def read_config(path: Path) -> Optional[Dict[str, Any]]:
    """``adapter_config.json`` in a folder, or beside a file; None if there is none."""
    file = (path if path.is_dir() else path.parent) / "adapter_config.json"
    if not file.is_file():
        return None
    config = files.read_json(file, "adapter_config.json")
    if not isinstance(config, dict):
        raise UserError(f"{file}: holds a {type(config).__name__}, not a JSON object")
    return config


def fold(
    tensors: Mapping[str, Any],
    config: Optional[Mapping[str, Any]] = None,
    alpha: Optional[float] = None,
    base: Optional[Mapping[str, Any]] = None,
) -> Tuple[Dict[str, Any], Optional[Record]]:
    """Fold every adapter into its weight.

    Parameters
    ----------
    tensors : dict of str to lazy tensor
        A checkpoint; not changed.
    config : dict, optional
        ``adapter_config.json`` of peft (lora_alpha, alpha_pattern, use_rslora).
    alpha : float, optional
        Wins over ``config``. DDA's adapters need neither: their authors' value is 1.
    base : dict of str to lazy tensor, optional
        The frozen model, if ``tensors`` holds the adapters alone.

    Returns
    -------
    (dict, Record or None)
        The tensors without adapters, under the names of the frozen model; None if there were no adapters.

    Raises
    ------
    UserError
        alpha is unknown, a part or the frozen weight is missing, shapes do not fit, or the kind of adapter is unknown.
    """
    if not holds_adapters(tensors):
        if base is not None:
            raise UserError("--base: the source holds no adapters, so there is nothing to fold into other weights")
        return dict(tensors), None
    forms = (("dda", _DDA), ("effort", _EFFORT), ("peft", _PEFT))
    found = {kind: [m for m in map(pattern.fullmatch, tensors) if m] for kind, pattern in forms}
    kind = next((k for k, modules in found.items() if modules), "")
    result: Dict[str, Any] = dict(tensors)
    record: Optional[Record] = None
    if kind == "effort":
        result, record = _effort(tensors, found[kind])
    elif kind:
        result, record = _lora(kind, tensors, found[kind], config or {}, alpha, base)
    left = sorted(key for key in result if _PART.fullmatch(key))
    if left:
        raise UserError(
            f"{len(left)} keys belong to adapters of a kind that cannot be folded, for example {left[0]!r}; merge them "
            "with the library that made them (peft: model.merge_and_unload()) and save the result"
        )
    return result, record


# ---- LoRA ----------------------------------------------------------------------------------------------------------


def _lora(kind, tensors, modules, config, alpha, base):
    # Layers that a detector wrapped itself have no name of an adapter, whatever peft called its own.
    own = {m["module"] for m in modules if m["module"] + ".original.weight" in tensors}
    names = {m["adapter"] for m in modules if m["module"] not in own} if kind == "peft" else {None}
    if len(names) > 1:
        raise UserError(
            f"the file holds {len(names)} adapters ({', '.join(sorted(map(str, names)))}); save the model with the one "
            "that is meant, or merge it with peft (model.merge_and_unload())"
        )
    result = _frozen(kind, tensors, base)
    ranks: Set[int] = set()
    scales: Set[float] = set()
    alphas: Set[float] = set()
    parts: Set[str] = set()  # what is folded; another part, such as a bias of lora_B, would be lost
    for match in modules:
        first, module = match.group(0), _plain(kind, match["module"])
        second = first.replace(".lora_A", ".lora_B")
        a, b = tensors[first], tensors.get(second)
        if b is None:
            raise UserError(f"the adapter {first!r} has no {second!r}: incomplete file")
        weight, place = _weight(kind, result, module)
        rank = a.shape[0] if a.shape else 0
        if not rank or not _fits(a, b, weight):
            raise UserError(
                f"the adapter of {module!r} does not fit: A {tuple(a.shape)}, B {tuple(b.shape)}, weight "
                f"{tuple(weight.shape)}"
            )
        factor = _alpha(kind, module, config, alpha)
        scale = factor / (math.sqrt(rank) if config.get("use_rslora") and kind == "peft" else rank)
        magnitude = first.replace(".lora_A", ".lora_magnitude_vector")
        magnitude = magnitude if magnitude in tensors else re.sub(r"\.weight$", "", magnitude)
        result[place] = Folded(tuple(weight.shape), _summed(weight, a, b, scale, tensors.get(magnitude)))
        parts |= {_plain(kind, key) for key in (first, second, magnitude)}
        ranks.add(rank)
        scales.add(scale)
        alphas.add(factor)
    clean = {
        re.sub(r"\.(base_layer|original_layer|original)(?=\.\w+$)", "", key): tensor
        for key, tensor in result.items()
        if key not in parts
    }
    return clean, Record(kind, len(modules), sorted(ranks), sorted(scales), alphas.pop() if len(alphas) == 1 else None)


def _plain(kind, key):
    """A key without the wrapper of peft's model."""
    return re.sub(r"(^|\.)base_model\.model\.", r"\1", key) if kind == "peft" else key


def _frozen(kind, tensors, base):
    """All tensors under the frozen model's names. Modules that were trained as a whole replace theirs."""
    result = dict(base or {})
    whole = {re.sub(r"\.modules_to_save\.[^.]+", "", k) for k in tensors if ".modules_to_save." in k}
    for key, tensor in tensors.items():
        if ".original_module." in key and key.replace(".original_module", "") in whole:
            continue
        result[_plain(kind, re.sub(r"\.modules_to_save\.[^.]+(?=\.)", "", key))] = tensor
    return result


def _weight(kind, result, module):
    """The frozen weight of a module and its key."""
    leaves = {"dda": ("original_layer.weight",), "peft": ("base_layer.weight", "original.weight", "weight")}[kind]
    for leaf in leaves:
        if f"{module}.{leaf}" in result:
            return result[f"{module}.{leaf}"], f"{module}.{leaf}"
    raise UserError(
        f"the adapter of {module!r} has no weight to be added to ({' or '.join(leaves)}); name the model that it was "
        "trained on with --base SRC"
    )


def _fits(a, b, weight):
    if len(weight.shape) < 2 or len(a.shape) < 2 or tuple(b.shape[:2]) != (weight.shape[0], a.shape[0]):
        return False
    return math.prod(a.shape[1:]) == math.prod(weight.shape[1:]) and math.prod(b.shape[2:]) == 1


def _alpha(kind, module, config, alpha):
    if alpha is not None:
        return float(alpha)
    if kind == "dda":
        return DDA_ALPHA
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return float(value)
        except (re.error, TypeError, ValueError):
            raise UserError(
                f"adapter_config.json: alpha_pattern {pattern!r}: {value!r} is no pattern and number"
            ) from None
    value = config.get("lora_alpha")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(
            "LoRA adapters without their alpha (no adapter_config.json beside the file, or no lora_alpha in it); it is "
            "in the training settings: pass it with --lora-alpha"
        )
    return float(value)


def _summed(weight, a, b, scale, magnitude):
    def make():
        down, up = (np.asarray(t.array(), np.float64) for t in (a, b))
        change = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
        total = np.asarray(weight.array(), np.float64) + scale * change.reshape(weight.shape)
        if magnitude is not None:
            rows = total.reshape(len(total), -1)
            length = np.linalg.norm(rows, axis=1).reshape(-1, *[1] * (total.ndim - 1))
            total = total / length * np.asarray(magnitude.array(), np.float64).reshape(length.shape)
        return total

    return make


# ---- Effort --------------------------------------------------------------------------------------------------------


def _effort(tensors, modules):
    result = dict(tensors)
    ranks: Set[int] = set()
    count = 0
    for match in modules:
        key, module = match.group(0), match["module"]
        main = result.pop(key)
        parts = [result.pop(f"{module}.{leaf}", None) for leaf in ("U_residual", "S_residual", "V_residual")]
        for leaf in _UNREAD:
            result.pop(f"{module}.{leaf}", None)
        if all(part is None for part in parts):
            result[f"{module}.weight"] = main  # no residual was split off
            continue
        if any(part is None for part in parts):
            raise UserError(f"{module!r} has only some of U_residual, S_residual and V_residual: incomplete file")
        u, s, v = parts
        rank = s.shape[0] if len(s.shape) == 1 else 0
        if len(main.shape) != 2 or u.shape != (main.shape[0], rank) or v.shape != (rank, main.shape[1]):
            raise UserError(
                f"the residual of {module!r} does not fit: U {tuple(u.shape)}, S {tuple(s.shape)}, V {tuple(v.shape)}, "
                f"weight {tuple(main.shape)}"
            )
        result[f"{module}.weight"] = Folded(tuple(main.shape), _restored(main, u, s, v))
        ranks.add(rank)
        count += 1
    return result, Record("effort", count, sorted(ranks), [], None)


def _restored(main, u, s, v):
    def make():
        left, middle, right, whole = (np.asarray(t.array(), np.float64) for t in (u, s, v, main))
        return whole + (left * middle) @ right

    return make
