"""Checkpoints that cannot lie: strict loading, atomic saving, a JSON sidecar with the facts, SHA-256 of the file.

A checkpoint ``x.ckpt`` is MindSpore's own format, so ``mindspore.load_checkpoint`` reads it. ``x.json`` beside it is
the sidecar: architecture and arguments, class order, preprocessing, source, parity, hash. Everything that uses a model
takes these facts from there, never from flags alone.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from . import files, runtime
from .errors import UserError

FORMAT = 1


def sidecar_path(path):
    """``x.ckpt`` -> ``x.json``."""
    return Path(path).with_suffix(".json")


def read_sidecar(path, check_hash=True):
    """Read and check the sidecar of a checkpoint.

    Parameters
    ----------
    path : str or Path
        The checkpoint.
    check_hash : bool
        Compare the file's SHA-256 with the one the sidecar states.

    Returns
    -------
    dict

    Raises
    ------
    UserError
        Missing checkpoint or sidecar, unknown format, or a file that is not the one described.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.ckpt"))[:5] if path.parent.is_dir() else []
        raise UserError(f"checkpoint {str(path)!r} does not exist" + (f"; there is {', '.join(near)}" if near else ""))
    if not sidecar_path(path).is_file():
        raise UserError(
            f"{str(path)!r} has no sidecar {sidecar_path(path).name!r}; "
            "convert or train it with this project to get one"
        )
    facts = files.read_json(sidecar_path(path), "sidecar")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or not isinstance(facts.get("architecture"), str):
        raise UserError(
            f"sidecar {str(sidecar_path(path))!r} is not of format {FORMAT}: it needs 'format' and 'architecture'"
        )
    stated = (facts.get("output") or {}).get("sha256")
    if check_hash and stated and files.sha256(path) != stated:
        raise UserError(f"{str(path)!r} is not the file its sidecar describes (sha256 differs); copy both again")
    return facts


def load_arrays(path):
    """Read a MindSpore checkpoint as NumPy arrays.

    Returns
    -------
    dict of str to numpy.ndarray
        In the file's order and data types (bfloat16 comes as float32).

    Raises
    ------
    UserError
        The file is missing or no checkpoint.
    """
    if not Path(path).is_file():
        raise UserError(f"checkpoint {str(path)!r} does not exist")
    runtime.prepare()
    import mindspore as ms

    try:
        parameters = ms.load_checkpoint(str(path))
    except Exception as error:  # noqa: BLE001 - protobuf and MindSpore raise several types on damaged files
        raise UserError(
            f"{str(path)!r} cannot be read as a MindSpore checkpoint: {str(error).strip().splitlines()[0][:200]}"
        ) from None
    result = {}
    for name, parameter in parameters.items():
        if not hasattr(parameter, "asnumpy"):
            continue
        if parameter.dtype == ms.bfloat16:
            parameter = parameter.float()
        result[name] = parameter.asnumpy()
    return result


def compare_names(wanted, given, what="file"):
    """List every difference between a network's parameters and a file's, or return None.

    Parameters
    ----------
    wanted, given : dict of str to tuple
        Shapes by name, of the model and of the file.
    what : str

    Returns
    -------
    str or None
        One line each: ``- in model, not in file``, ``+ in file, not in model``, ``! shape``; at most 20 of each kind.
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


def load_strict(net, arrays, what="file"):
    """Put arrays into a network; every name and shape must match, or nothing is loaded.

    ``mindspore.load_param_into_net`` is silent about missing names and strips common prefixes, so the comparison is
    made here. Half precision is widened to the parameter's own type.

    Parameters
    ----------
    net : mindspore.nn.Cell
    arrays : dict of str to numpy.ndarray
    what : str
        What the arrays come from, for the message.

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


def save(net, path, sidecar, dtype=None):
    """Write a checkpoint and its sidecar, each whole or not at all.

    Parameters
    ----------
    net : mindspore.nn.Cell or dict of str to numpy.ndarray
    path : str or Path
        Must end in ``.ckpt``.
    sidecar : dict
        The facts; ``format`` and ``output`` (sha256, parameter count) are filled in here.
    dtype : {"fp32", "fp16"}, optional
        Type of floating-point values in the file; default: as they are.

    Returns
    -------
    dict
        The sidecar as written.
    """
    path = Path(path)
    if path.suffix != ".ckpt":
        raise UserError(f"checkpoint name {str(path)!r} must end in .ckpt")
    runtime.prepare()
    import mindspore as ms

    arrays = net if isinstance(net, dict) else {p.name: p.asnumpy() for p in net.get_parameters()}
    if dtype is not None:
        kind = {"fp32": np.float32, "fp16": np.float16}[dtype]
        arrays = {n: a.astype(kind) if np.issubdtype(a.dtype, np.floating) else a for n, a in arrays.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            temporary = os.path.join(folder, path.name)
            # Parameters of shape () become (1,) in some MindSpore versions: write them as they are, check on loading.
            ms.save_checkpoint(
                [{"name": n, "data": ms.Tensor(np.ascontiguousarray(a))} for n, a in arrays.items()], temporary
            )
            os.chmod(temporary, 0o644)
            facts = {"format": FORMAT, **sidecar}
            facts["output"] = {
                "file": path.name,
                "sha256": files.sha256(temporary),
                "parameters": int(sum(a.size for a in arrays.values())),
                "tensors": len(arrays),
            }
            # The old sidecar goes first: a kill between the two renames leaves a checkpoint without facts, which is
            # refused, never one with the facts of another.
            if sidecar_path(path).exists():
                sidecar_path(path).unlink()
            os.replace(temporary, path)
            files.write_json(sidecar_path(path), facts)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from None
    return facts


def load_model(path, train=False):
    """Build the network that a checkpoint's sidecar describes and load the weights strictly.

    Parameters
    ----------
    path : str or Path
    train : bool
        Leave the cell in training mode.

    Returns
    -------
    mindspore.nn.Cell
        Takes float32 (N, 3, h, w) and gives raw logits as the source model gives them; the sidecar is its attribute
        ``sidecar``.
    """
    facts = read_sidecar(path)
    from . import models

    net = models.create(facts["architecture"], **facts.get("arguments", {}))
    load_strict(net, load_arrays(path), what=f"checkpoint {str(path)!r}")
    net.set_train(train)
    net.sidecar = facts
    return net
