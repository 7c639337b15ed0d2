"""One conversion from start to end: read, plan, write, verify, describe."""

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np

from aidet import ckpt, files, labels
from aidet.errors import UserError

from . import adapters, hub, reading, rules
from .parity import compare
from .plan import Plan, build, make_plan
from .preprocessing import evaluation_line, fit_input

# What the arithmetic of the families raises if shapes or values in config.json make no sense.
_NONSENSE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)

Facts = Dict[str, Any]
Say = Callable[[str], None]


@dataclass
class Result:
    """The result of a conversion.

    Attributes
    ----------
    plan : Plan
    sidecar : dict
        As written, but without ``parity`` and the hash of the output.
    report : dict
        The content that ``--report`` writes: what happened to every key.
    """

    plan: Plan
    sidecar: Facts
    report: Facts


def convert(
    src: Union[str, Path],
    dst: Union[str, Path],
    architecture: Optional[str] = None,
    layout: Optional[str] = None,
    num_classes: Optional[int] = None,
    head: str = "keep",
    positive: Optional[str] = None,
    dtype: str = "fp32",
    level: str = "logits",
    reference: Optional[str] = None,
    dry_run: bool = False,
    say: Say = print,
    base: Optional[str] = None,
    lora_alpha: Optional[float] = None,
    given: Optional[Mapping[str, Any]] = None,
) -> Result:
    """Convert one source.

    Parameters
    ----------
    src : str
        File, folder, ``pypi:PACKAGE`` or hub id.
    dst : str or Path
        ``.ckpt`` to write; the sidecar goes beside it.
    architecture, layout, num_classes, head : see :func:`.plan.make_plan`.
    positive : str, optional
        Name or index of the class that means generated, if the class names do not show it.
    dtype : {"fp32", "fp16"}
    level : {"none", "tensors", "logits", "layers"}
    reference : str, optional
        Stored activations. Default: those shipped for this file, else PyTorch if it is installed.
    dry_run : bool
        Plan and account for everything, but write nothing.
    base : str, optional
        The model that the adapters in ``src`` belong to, if the file holds the adapters alone.
    lora_alpha : float, optional
        alpha of LoRA adapters, if no ``adapter_config.json`` states it.
    given : dict, optional
        Arguments of the architecture that the file does not show.

    Returns
    -------
    Result

    Raises
    ------
    UserError
        The conversion failed; nothing was written.
    """
    if not dry_run and Path(dst).suffix != ".ckpt":
        raise UserError(f"the output {str(dst)!r} must end in .ckpt")
    if not dry_run and (Path(dst).is_dir() or Path(dst).with_suffix(".json").is_dir()):
        raise UserError(f"the output {str(dst)!r} or its .json is a folder; choose another name")
    path, entry = hub.locate(src)
    source = reading.read(path)
    digest = source.sha256()
    if "==" in str(src) and str(src).startswith("pypi:"):
        source.notes.append(f"sha256 {digest}")
    take_part(source, entry)
    folded = fold_adapters(source, path, base, lora_alpha)
    numpy_type = np.float16 if dtype == "fp16" else np.float32
    try:
        plan = make_plan(source, layout, architecture, num_classes, head, given)
        fit_input(plan, source, given or {})
        classes, order = class_names(plan, source, entry, positive)
        sidecar = describe(plan, source, entry, src, digest, classes, order)
    except _NONSENSE as error:
        raise UserError(
            f"{path}: its tensors, or the config.json beside them, are of no model known here "
            f"({type(error).__name__}: {str(error)[:200]}): damaged file"
        ) from error
    if folded:
        sidecar["source"]["adapters"] = {**asdict(folded), "base": base}
    report = {
        "adapters": sidecar["source"].get("adapters"),
        "source": [str(p) for p in source.files],
        "kind": source.kind,
        "family": plan.family.name,
        "layout": plan.layout.name,
        "architecture": plan.architecture,
        "arguments": plan.arguments,
        "num_outputs": plan.num_classes,
        "notes": source.notes,
        **plan.report,
    }
    say(
        f"read    {source.files[0].name}: {source.kind}, {len(source.tensors)} tensors"
        + "".join(f"; {n}" for n in source.notes)
    )
    say(
        f"detect  {plan.family.name}, layout {plan.layout.name}, {plan.architecture}"
        + (f", {plan.num_classes} outputs" if plan.num_classes else "")
    )
    say(
        f"rename  {len(plan.report['used'])} parameters used, {len(plan.report['dropped'])} keys dropped, "
        f"{len(plan.computed)} computed by the net, {len(plan.fresh)} new"
    )
    if dry_run:
        for key, reason in plan.report["dropped"].items():
            if not key.endswith("num_batches_tracked"):
                say(f"drop    {key}: {reason}")
        return Result(plan, sidecar, report)
    _write(plan, source, sidecar, report, Path(dst), numpy_type, level, reference, digest, say)
    return Result(plan, sidecar, report)


def take_part(source: reading.Source, entry: Optional[Mapping[str, Any]]) -> None:
    """Keep only the tensors that are the net, in place, if a known file holds more (``part`` in :data:`.hub.KNOWN`)."""
    part = (entry or {}).get("part")
    if part:
        inside = {k[len(part) :]: t for k, t in source.tensors.items() if k.startswith(part)}
        source.notes.append(f"took the {len(inside)} tensors under {part!r}, left {len(source.tensors) - len(inside)}")
        source.tensors = inside


def fold_adapters(
    source: reading.Source, path: Path, base: Optional[str] = None, alpha: Optional[float] = None
) -> Optional[adapters.Record]:
    """Fold the adapters of a source into its weights, in place; returns what was folded, or None.

    Parameters
    ----------
    source : convert.reading.Source
        Its notes say what was folded.
    path : Path
        File or folder of the source; ``adapter_config.json`` is looked for there.
    base : str, optional
        Source of the frozen weights.
    alpha : float, optional
    """
    if base is None and not adapters.holds_adapters(source.tensors):
        return None
    frozen = None
    if base is not None:
        frozen = reading.read(hub.locate(base)[0])
        source.config, source.preprocessor = source.config or frozen.config, source.preprocessor or frozen.preprocessor
    source.tensors, record = adapters.fold(
        source.tensors, adapters.read_config(path), alpha, frozen.tensors if frozen else None
    )
    if record:
        source.kind += " with adapters"
        source.notes.append(record.line())
    return record


def _write(
    plan: Plan,
    source: reading.Source,
    sidecar: Facts,
    report: Facts,
    dst: Path,
    dtype: type,
    level: str,
    reference: Optional[str],
    digest: str,
    say: Say,
) -> None:
    """Write into a temporary folder beside ``dst``, verify, and only then move the files into place."""

    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".convert-", dir=str(dst.parent))
    except OSError as error:
        raise UserError(f"cannot write {dst}: {error.strerror or error}") from None
    with folder as name:
        path = Path(name) / dst.name
        ckpt.save(_arrays(plan, dtype), path, sidecar)
        written = ckpt.Sidecar.read(path)
        parity: Facts = {"level": level}
        if level != "none":
            parity["tensors"] = compare.tensors(plan, path, dtype)
            say(f"tensors {len(plan.entries)} of {len(plan.entries)} equal to the source bit by bit")
        if level in ("logits", "layers") and not plan.fresh:
            parity.update(_parity(plan, source, written, level, reference, digest, dtype, say))
        elif level in ("logits", "layers"):
            say("logits  not compared: the head is new")
        sidecar = {**written.raw, "parity": parity}
        report["parity"] = parity
        files.write_json(path.with_suffix(".json"), sidecar)
        # Move the sidecar first: weights without a sidecar are refused, but a sidecar without weights is harmless.
        os.replace(path.with_suffix(".json"), dst.with_suffix(".json"))
        os.replace(path, dst)
    say(f"wrote   {dst} and {dst.with_suffix('.json').name}")


def _arrays(plan: Plan, dtype: type) -> Dict[str, np.ndarray]:
    """All parameters of the net: those from the source, and the net's own values for computed and new ones."""
    arrays = dict(rules.gather(plan.entries, plan.tensors, plan.shapes, dtype))
    missing = [n for n in plan.shapes if n not in arrays]
    if missing:
        net = build(plan.architecture, plan.arguments, plan.num_classes, weights=True)
        values = {p.name: p.asnumpy() for p in net.get_parameters() if p.name in set(missing)}
        arrays.update({n: v.astype(dtype) if v.dtype.kind == "f" else v for n, v in values.items()})
    return {n: arrays[n] for n in plan.shapes}


def _parity(
    plan: Plan,
    source: reading.Source,
    sidecar: ckpt.Sidecar,
    level: str,
    reference: Optional[str],
    digest: str,
    dtype: type,
    say: Say,
) -> Facts:
    """Run the checkpoint that the sidecar describes and compare it with the reference."""

    chosen = compare.Reference.load(reference) if reference else compare.stored_reference(digest)
    if chosen is None and source.kind == "onnx" and level == "logits":
        from .parity import onnx_reference

        whole = ckpt.load_network(sidecar)
        chosen = onnx_reference.reference(plan, source, sidecar, lambda x: compare.run(whole, x[:1])[0].shape[1:])
    if chosen is None:
        from .parity import torch_reference

        chosen = torch_reference.reference(plan, source, sidecar, level)
    net = ckpt.load_network(sidecar)
    result = compare.activations(net, chosen, level)
    result["preprocessing"] = compare.preprocessing(sidecar.transform, chosen)
    for line in compare.lines(result):
        say(line)
    if not result["ok"] and dtype == np.float32:
        raise UserError(
            f"not equal to the reference: largest difference {result['logits']['largest']} of scale "
            f"{result['logits']['scale']}; see the layers with --verify layers. Nothing was written"
        )
    return result


def class_names(
    plan: Plan, source: reading.Source, entry: Optional[Mapping[str, Any]], positive: Optional[str]
) -> Tuple[Optional[List[str]], Optional[List[str]]]:
    """The source's class names and, for a detector, which side each is on.

    Returns
    -------
    (list of str or None, list of str or None)
    """
    count = plan.num_classes
    if count is None:
        return None, None
    names: Optional[List[str]] = None
    if plan.fresh:
        pass  # the names in the file belong to the classifier that is left out
    elif plan.layout.classes:
        names = list(plan.layout.classes)
    elif entry and entry.get("classes"):
        names = list(entry["classes"])
    elif source.config:
        names = _config_names(source.config, count)
    if names is not None and len(names) != count:
        raise UserError(f"config.json names {len(names)} classes, the classifier has {count} outputs")
    if positive is not None:
        return names, labels.class_order(names or [str(i) for i in range(count)], positive)
    if names is None:
        return None, None
    try:
        return names, labels.class_order(names)
    except UserError:
        # ImageNet's classes are neither real nor generated: such a model is a starting point for finetuning.
        return names, None


def _config_names(config: Mapping[str, Any], count: int) -> Optional[List[str]]:
    table = config.get("id2label")
    if isinstance(table, dict):
        return [str(table[k]) for k in sorted(table, key=lambda k: int(k))]
    for key in ("label_names", "labels"):
        if isinstance(config.get(key), list) and len(config[key]) == count:
            return [str(n) for n in config[key]]
    return None


def describe(
    plan: Plan,
    source: reading.Source,
    entry: Optional[Mapping[str, Any]],
    src: Union[str, Path],
    digest: str,
    classes: Optional[List[str]],
    order: Optional[List[str]],
) -> Facts:
    """The sidecar without its ``parity`` and output sections."""
    transform, views = evaluation_line(plan, source)
    from aidet.images import Pipeline

    size = Pipeline(transform).size() if transform else None
    channels = 3 if transform else plan.arguments.get("latent_channels")
    known = entry or {}
    return {
        "architecture": plan.architecture,
        "arguments": plan.model_arguments(),
        "num_outputs": plan.num_classes,
        "classes": classes,
        "class_order": order,
        "input": {
            "size": list(size) if size else None,
            "transform": transform,
            "views": views,
            "channels": channels,
            "range": [0.0, 1.0] if transform else None,
        },
        "source": {
            "repository": known.get("repository") or (src if str(src).startswith("pypi:") else None),
            "revision": known.get("revision"),
            "file": source.files[0].name,
            "sha256": digest,
            "licence": known.get("licence") or hub.card_licence(source.files[0].parent),
            "layout": plan.layout.name,
        },
    }
