"""Checkpoints that match their description: strict loading, atomic saving with a JSON sidecar and a SHA-256.

A checkpoint ``x.ckpt`` is MindSpore's own format, so ``mindspore.load_checkpoint`` reads it. ``x.json`` beside it is
the sidecar: architecture and arguments, class order, preprocessing, source, parity, hash. Everything that uses a model
takes these facts from the sidecar, never from flags alone.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence, Union

import numpy as np

from .. import files
from ..errors import UserError
from .format import load_arrays, write_arrays
from .sidecar import FORMAT, Sidecar, read_sidecar, sidecar_path

if TYPE_CHECKING:
    from mindspore import nn


def compare_names(
    wanted: Mapping[str, Sequence[int]], given: Mapping[str, Sequence[int]], what: str = "file"
) -> Optional[str]:
    """Describe the differences between the parameters of a network and those of a file; None if there are none.

    Parameters
    ----------
    wanted, given : dict of str to tuple
        Shapes by name in the model and in the file.
    what : str

    Returns
    -------
    str or None
        The differences, separated by semicolons: ``- in model, not in file``, ``+ in file, not in model``, ``! shape``;
        at most 20 of each kind.
    """
    kinds = (
        [f"- in model, not in {what}: {n}" for n in wanted if n not in given],
        [f"+ in {what}, not in model: {n}" for n in given if n not in wanted],
        [
            f"! shape of {n}: model {tuple(wanted[n])}, {what} {tuple(given[n])}"
            for n in wanted
            if n in given and tuple(wanted[n]) != tuple(given[n])
        ],
    )
    lines = []
    for kind in kinds:
        lines += kind[:20] + ([f"  ... and {len(kind) - 20} more"] if len(kind) > 20 else [])
    return "; ".join(lines) or None


def load_strict(net: "nn.Cell", arrays: Mapping[str, np.ndarray], what: str = "file") -> None:
    """Load arrays into a network; every name and shape must match, or nothing is loaded.

    ``mindspore.load_param_into_net`` does not report missing names and strips common prefixes, so the comparison is
    made here. Half precision is converted to the type of the parameter.

    Parameters
    ----------
    net : mindspore.nn.Cell
    arrays : dict of str to numpy.ndarray
    what : str
        Source of the arrays, for the message.

    Raises
    ------
    UserError
        Lists both directions of the mismatch.
    """
    import mindspore as ms

    parameters = {p.name: p for p in net.get_parameters()}
    difference = compare_names(
        {n: p.shape for n, p in parameters.items()}, {n: a.shape for n, a in arrays.items()}, what
    )
    if difference:
        raise UserError(f"weights do not fit the model, nothing was loaded: {difference}")
    for name, parameter in parameters.items():
        array = np.ascontiguousarray(arrays[name])
        parameter.set_data(ms.Tensor(array).astype(parameter.dtype))


def save(
    net: Union["nn.Cell", Dict[str, np.ndarray]],
    path: Union[str, Path],
    sidecar: Dict[str, Any],
    dtype: Optional[str] = None,
) -> Dict[str, Any]:
    """Write a checkpoint and its sidecar, each completely or not at all.

    Parameters
    ----------
    net : mindspore.nn.Cell or dict of str to numpy.ndarray
    path : str or Path
        Must end in ``.ckpt``.
    sidecar : dict
        The facts; ``format`` and ``output`` (sha256, parameter count) are filled in here.
    dtype : {"fp32", "fp16"}, optional
        Type of floating-point values in the file; default: unchanged.

    Returns
    -------
    dict
        The sidecar as written.
    """
    path = Path(path)
    if path.suffix != ".ckpt":
        raise UserError(f"checkpoint name {str(path)!r} must end in .ckpt")
    arrays = net if isinstance(net, dict) else {p.name: p.asnumpy() for p in net.get_parameters()}
    if dtype is not None:
        kind = {"fp32": np.float32, "fp16": np.float16}[dtype]
        arrays = {n: a.astype(kind) if np.issubdtype(a.dtype, np.floating) else a for n, a in arrays.items()}
    try:
        with files.atomic_path(path) as temporary:
            write_arrays(arrays, temporary)
            facts = {"format": FORMAT, **sidecar}
            facts["output"] = {
                "file": path.name,
                "sha256": files.sha256(temporary),
                "parameters": int(sum(a.size for a in arrays.values())),
                "tensors": len(arrays),
            }
            # The old sidecar is removed first: a kill between the two renames leaves a checkpoint without facts, which
            # is refused, never one with the facts of another.
            if sidecar_path(path).exists():
                sidecar_path(path).unlink()
        files.write_json(sidecar_path(path), facts)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from None
    return facts


def load_model(path: Union[str, Path], train: bool = False) -> "nn.Cell":
    """Build the network that a checkpoint's sidecar describes and load the weights strictly.

    Parameters
    ----------
    path : str or Path
    train : bool
        Leave the cell in training mode.

    Returns
    -------
    mindspore.nn.Cell
        Takes float32 (N, 3, h, w) and returns the raw logits of the source model; its attribute ``sidecar`` holds the
        facts.
    """
    return load_network(Sidecar.read(path), train)


def load_network(sidecar: Sidecar, train: bool = False) -> Any:
    """:func:`load_model` for a checkpoint whose sidecar has already been read and verified."""
    net = _build(sidecar)
    load_strict(net, load_arrays(sidecar.path), what=f"checkpoint {str(sidecar.path)!r}")
    net.set_train(train)
    net.sidecar = sidecar.raw
    return net


def _build(sidecar: Sidecar) -> "nn.Cell":
    """The network that a sidecar describes. No size in it may exceed the size of the file, to bound the memory."""
    from .. import models

    path, arguments = sidecar.path, sidecar.arguments
    size = Path(path).stat().st_size
    flat = [n for v in arguments.values() for n in (v if isinstance(v, (list, tuple)) else [v])]
    large = [n for n in flat if isinstance(n, (int, float)) and not abs(n) <= max(size, 1024)]
    if large:
        raise UserError(f"sidecar of {str(path)!r}: arguments hold {large[0]}, but the file has {size} bytes")
    try:
        return models.create(sidecar.architecture, **arguments)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise UserError(
            f"sidecar of {str(path)!r}: {sidecar.architecture!r} cannot be built with {arguments}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def save_arrays(arrays: Dict[str, Any], path: Union[str, Path]) -> None:
    """Write arrays or parameters as one MindSpore checkpoint without a sidecar, completely or not at all."""
    with files.atomic_path(path) as temporary:
        write_arrays(arrays, temporary)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint and its sidecar to another name, each file completely or not at all."""
    facts = read_sidecar(source, check_hash=False)
    facts["output"]["file"] = target.name
    # As in save(): never weights beside the facts of other weights.
    sidecar_path(target).unlink(missing_ok=True)
    # A hard link where the file system has them: writing replaces a checkpoint and never changes it in place.
    temporary = target.with_name(f".{target.name}.link")
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # still there if target was already a link to the same file
    except OSError:
        temporary.unlink(missing_ok=True)
        with files.atomic(target, "wb") as file, open(source, "rb") as original:
            shutil.copyfileobj(original, file, 1 << 20)
    files.write_json(sidecar_path(target), facts)
