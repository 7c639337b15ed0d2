"""The files of a run: its state, the weights with their sidecars, and reading them back to resume."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional

import numpy as np

from .. import ckpt, files, images, runtime
from ..errors import UserError
from .checks import STATE, Plan, state_path

NET = "net."  # in front of the names of weights in a state, beside those of optimizer and moving averages


@dataclass
class Progress:
    """The progress of a run: what ``state.ckpt`` holds besides the tensors.

    Attributes
    ----------
    epochs, batches : int
        Completed epochs, and completed steps of the current one.
    updates : int
        Completed updates of the weights.
    running : list of float and int
        Sum and number of the losses of this epoch's updates.
    best : dict
        ``value, epoch, threshold`` of the best validation, and the metric ``monitor`` that it is the best by.
    waiting : int
        Validations since the best one.
    scale : float
        Loss scale; ``good_steps`` counts the updates since it changed.
    rows : list of dict
        The log of the completed epochs.
    batches_per_epoch, world : int
        Steps per epoch and number of processes: a state from the middle of an epoch needs the same.
    """

    epochs: int = 0
    batches: int = 0
    updates: int = 0
    running: List[Any] = field(default_factory=lambda: [0.0, 0])
    best: Dict[str, Any] = field(default_factory=lambda: {"value": None, "epoch": None, "threshold": None})
    waiting: int = 0
    scale: float = 1.0
    good_steps: int = 0
    rows: List[Dict[str, Any]] = field(default_factory=list)
    batches_per_epoch: int = 0
    world: int = 1

    def count(self, loss: float) -> None:
        """Count one update and its loss."""
        self.updates += 1
        self.running[0] += loss
        self.running[1] += 1

    def judge(self, row: Dict[str, Any], monitor: str) -> bool:
        """Whether a row of the log is the best so far by the metric ``monitor``; False without a value, or if NaN."""
        value, best = row.get(monitor), self.best["value"]
        if value is None:
            return False
        if math.isnan(value):
            self.waiting += 1
            return False
        if best is None or (value < best if monitor.endswith("loss") else value > best):
            self.best = {"value": value, "epoch": row["epoch"], "threshold": row.get("threshold"), "monitor": monitor}
            self.waiting = 0
            return True
        self.waiting += 1
        return False


# --- the state --------------------------------------------------------------------------------------------------------
def save_state(progress: Progress, parameters: Dict[str, Any], folder: Path) -> None:
    """Write everything that the next step depends on to one file, whole or not at all.

    Parameters
    ----------
    progress : Progress
    parameters : dict of str to mindspore.Parameter
        Weights, optimizer and moving averages.
    folder : Path
    """
    arrays = dict(parameters)
    arrays[ckpt.META] = np.frombuffer(json.dumps(asdict(progress)).encode(), np.uint8)
    ckpt.save_arrays(arrays, folder / STATE)


def resume(plan: Plan, parameters: Dict[str, Any], world: int) -> Optional[Progress]:
    """Load the state into the parameters if ``resume`` asks for it.

    Returns
    -------
    Progress or None
        None if the run starts anew.

    Raises
    ------
    UserError
        The file is not a state, or not one of this configuration.
    """
    path = state_path(plan.config)
    if plan.config.resume is None or (plan.config.resume == "auto" and not path.is_file()):
        return None
    arrays = ckpt.load_arrays(path)
    if ckpt.META not in arrays:
        raise UserError(f"resume {str(path)!r} is not a state of train.py; to start from weights use init_from")
    progress = _read_progress(arrays.pop(ckpt.META), path)
    if progress.batches and progress.batches_per_epoch != plan.batches:
        raise UserError(
            f"resume {str(path)!r} is in the middle of an epoch of {progress.batches_per_epoch} steps, but this "
            f"configuration has {plan.batches}; use the same data, batch_size and number of processes"
        )
    group = plan.config.gradient_accumulation_steps
    if progress.batches % group:
        raise UserError(
            f"resume {str(path)!r} is {progress.batches} steps into an epoch, where no update ends with "
            f"gradient_accumulation_steps (={group}); set it to what it was, and change it between epochs"
        )
    chosen = progress.best.get("monitor", plan.config.monitor)
    if chosen != plan.config.monitor:
        raise UserError(
            f"resume {str(path)!r}: its best epoch was chosen by {chosen}, which monitor (={plan.config.monitor}) "
            f"cannot be compared with; set monitor {chosen}, or start anew"
        )
    put_arrays(parameters, arrays, path)
    return replace(progress, batches_per_epoch=plan.batches, world=world)


def _read_progress(meta, path):
    try:
        return Progress(**json.loads(meta.tobytes().decode()))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"resume {str(path)!r} is damaged or from another version ({error}); start anew, or from its weights with "
            "init_from"
        ) from None


def put_arrays(parameters: Dict[str, Any], arrays: Dict[str, np.ndarray], path: Path) -> None:
    """Load the arrays of a state into the parameters; unless every name and shape matches, nothing is loaded.

    Raises
    ------
    UserError
        A name or shape differs; lists the mismatches in both directions.
    """
    import mindspore as ms

    difference = ckpt.compare_names(
        {n: p.shape for n, p in parameters.items()}, {n: a.shape for n, a in arrays.items()}, "state"
    )
    if difference:
        raise UserError(f"resume {str(path)!r} does not fit this configuration: {difference}")
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(arrays[name].reshape(parameter.shape), parameter.dtype))


def weights_only(arrays: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """The weights of a checkpoint, or those in a state by the names of the net, with adapters (``lora``) folded in."""
    from . import lora

    if ckpt.META not in arrays:
        return arrays
    return lora.folded({n[len(NET) :]: a for n, a in arrays.items() if n.startswith(NET)})


# --- the folder and the weights ---------------------------------------------------------------------------------------
def begin_folder(plan: Plan, fresh: bool) -> None:
    """Write config.yaml; a fresh run first removes the files of an earlier one."""
    folder = plan.folder
    if fresh:
        for name in ("best.ckpt", "best.json", "last.ckpt", "last.json", STATE, "curves.png", "teachers.csv"):
            if (folder / name).exists():
                (folder / name).unlink()
        for pattern in ("events.out.tfevents.*", "epoch_*.ckpt", "epoch_*.json"):
            for old in folder.glob(pattern):
                old.unlink()
    with files.atomic(folder / "config.yaml") as file:
        file.write(f"# written by train.py; train again with: python train.py -c {folder / 'config.yaml'}\n")
        if plan.config.profile is not None:
            file.write(f"# {plan.config.profile.line()}\n")
        file.write(plan.config.to_yaml())


def save_weights(
    plan: Plan, tensors: Iterable[Any], facts: Dict[str, Any], rows: List[Dict[str, Any]], better: bool
) -> None:
    """Write last.ckpt, best.ckpt if the epoch is the best so far, and epoch checkpoints according to the policy.

    Parameters
    ----------
    plan : Plan
    tensors : iterable of mindspore.Parameter
    facts : dict
        The sidecar, from :func:`sidecar`.
    rows : list of dict
        The log up to and including this epoch.
    better : bool
        Whether the epoch is the best so far.
    """
    from . import lora

    config, folder, epoch = plan.config, plan.folder, rows[-1]["epoch"]
    ckpt.save(lora.folded({p.name: p.asnumpy() for p in tensors}), folder / "last.ckpt", facts)
    if better:
        ckpt.copy_checkpoint(folder / "last.ckpt", folder / "best.ckpt")
    keeps = config.ckpt_save_policy in ("latest_k", "top_k") and config.keep_checkpoint_max
    if keeps and epoch % config.ckpt_save_interval == 0:
        ckpt.copy_checkpoint(folder / "last.ckpt", folder / f"epoch_{epoch}.ckpt")
        prune(config, folder, rows)


def remove_weights(folder: Path) -> None:
    """Remove the checkpoints of a run that came to nothing."""
    for path in (folder / "last.ckpt", folder / STATE, *folder.glob("epoch_*.ckpt")):
        for one in (path, path.with_suffix(".json")):
            one.unlink(missing_ok=True)


def prune(config: Any, folder: Path, rows: List[Dict[str, Any]]) -> None:
    """Keep the newest or, by the monitored metric, the best epoch checkpoints and delete the others."""
    kept = {int(p.stem.split("_")[1]): p for p in folder.glob("epoch_*.ckpt") if p.stem[6:].isdigit()}
    values = {row["epoch"]: row.get(config.monitor) for row in rows}
    sign = -1 if config.monitor.endswith("loss") else 1

    def rank(epoch):
        value = values.get(epoch)
        if config.ckpt_save_policy == "latest_k":
            return epoch
        return -math.inf if value is None or math.isnan(value) else sign * value, epoch

    for epoch in sorted(kept, key=rank)[: -config.keep_checkpoint_max]:
        kept[epoch].with_suffix(".json").unlink(missing_ok=True)
        kept[epoch].unlink()


def sidecar(
    plan: Plan,
    network: Dict[str, Any],
    row: Dict[str, Any],
    world: int,
    device: Optional[str],
    threshold: Optional[float] = None,
) -> Dict[str, Any]:
    """The sidecar of the weights of an epoch.

    Parameters
    ----------
    plan : Plan
    network : dict
        The entries that describe the network: architecture, arguments, classes.
    row : dict
        The epoch's row of the log.
    world : int
        Number of processes.
    device : str
    threshold : float, optional
        The one that the last validation chose; default: that of the configuration, or 0.5.
    """
    config, lines, data = plan.config, plan.lines, plan.data
    profile = {} if config.profile is None else {"profile": asdict(config.profile)}
    training = {
        "configuration": config.source, **profile, "data": str(config.data_dir), "images": len(data.train_set),
        "validation_images": 0 if data.val_set is None else len(data.val_set), "epoch": row["epoch"],
        "updates": row["updates"], "batch_size": config.batch_size * world, "seed": config.seed,
        "transform": images.parsed(lines.text).text, "init_from": config.init_from,
        "metrics": {k: v for k, v in row.items() if isinstance(v, float) and k not in ("lr",) and math.isfinite(v)},
        "versions": runtime.versions(), "device": device,
    }  # fmt: skip
    return {
        **network,
        "input": {
            "size": list(lines.size_eval), "transform": images.parsed(lines.text_eval).text, "views": lines.views,
            "channels": 3, "range": [0.0, 1.0],
        },
        "source": {"repository": "trained with train.py", "init_from": config.init_from},
        "training": training,
        "threshold": threshold if threshold is not None else 0.5 if config.threshold == "auto" else config.threshold,
    }  # fmt: skip
