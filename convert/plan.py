"""Detect layout and architecture from keys and shapes, and determine where every weight goes."""

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

from aidet.errors import UserError, nearest

from . import COMMAND, heads, misses, prefixes, rules
from .families import Arguments, Family, Layout, Lookups, Shape, families
from .reading import Source, Tensors, natural

if TYPE_CHECKING:
    from mindspore import nn


@dataclass
class Plan:
    """A conversion that is fully determined: nothing is guessed after this.

    Attributes
    ----------
    family, layout : Family, Layout
    architecture : str
    arguments : dict
        Arguments of :func:`aidet.models.create` besides ``num_classes``.
    num_classes : int or None
        None if the architecture has no classifier.
    tensors : dict of str to lazy tensor
        The source tensors that belong to the model, without prefixes.
    shapes : dict of str to tuple
        Parameters of the target net and their shapes, in the net's order.
    entries : list of Entry
        Where every parameter comes from; see the module ``rules``.
    computed : dict of str to str
        Parameters that the net computes itself, and why.
    fresh : list of str
        Parameters of a head that is newly initialised (``--head init``).
    report : dict
        What happened to every key: see :func:`.rules.account`, and ``new``.
    prefix : str
        What was taken off the keys.
    beside : dict of str to str
        Keys that are no part of the net, and why each was left out; they are in ``report["dropped"]``, too.
    """

    family: Family
    layout: Layout
    architecture: str
    arguments: Arguments
    num_classes: Optional[int]
    tensors: Tensors
    shapes: Mapping[str, Shape]
    entries: List[rules.Entry]
    computed: Dict[str, str]
    fresh: List[str] = field(default_factory=list)
    report: Dict[str, Any] = field(default_factory=dict)
    prefix: str = ""
    beside: Dict[str, str] = field(default_factory=dict)

    def model_arguments(self) -> Arguments:
        """All that :func:`aidet.models.create` needs besides the name."""
        return dict(self.arguments) if self.num_classes is None else {**self.arguments, "num_classes": self.num_classes}


def detect(
    source: Source, layout: Optional[str] = None, architecture: Optional[str] = None
) -> Tuple[Family, Layout, Tensors]:
    """Find family and layout.

    Returns
    -------
    (Family, Layout, dict)
        The dictionary holds the tensors that belong to the model.

    Raises
    ------
    UserError
        No layout fits, or several do and neither ``config.json`` nor ``layout`` decides between them.
    """
    family, chosen, tensors, view = _detect(source, source.tensors, layout, architecture)
    source.notes += view.notes()
    return family, chosen, tensors


def _detect(source, tensors, layout, architecture, prefix=None):
    """:func:`detect` with the view that fits, and ``--prefix``."""
    candidates = _candidates(source, layout, architecture)
    views = prefixes.views(tensors, prefix)
    found = []
    for view in views:
        for family, candidate in candidates:
            inside = candidate.renamed(_inside(view.tensors, candidate.prefix))
            if inside and candidate.fits(inside):
                found.append((family, candidate, inside, view))
        if found:  # the fewest prefixes that make a layout fit
            break
    found = _settle(found, source.config)
    name = source.files[0].name
    if not found and source.own:
        raise UserError(
            f"{name} is a checkpoint of this project ({source.own}): it needs no conversion; no layout fits its keys"
        )
    if not found:
        keys = sorted(tensors, key=natural)
        wanted = f" as layout {layout!r}" if layout else ""
        others = sorted({x.name for f, x in _candidates(source, None, architecture) if x.fits(views[-1].tensors)})
        wanted += f" (without the option: {', '.join(others)})" if layout and others else ""
        raise UserError(
            f"{name}: its {len(keys)} keys ({', '.join(keys[:4])}, ...) fit no known layout{wanted}"
            f"{misses.advice(views, candidates)}; `{COMMAND} list` shows what is known"
        )
    if len(found) > 1:
        names = ", ".join(f"{f.name}/{x.name}" for f, x, _, _ in found)
        raise UserError(f"{name}: the keys fit {names} alike; choose with --layout (and --arch)")
    return found[0]


def _candidates(source, layout, architecture):
    """The (family, layout) pairs that the options and the type of the file allow."""
    known = families()
    if layout is not None and not any(layout in f.layout_names() for f in known):
        raise UserError(nearest(layout, {n for f in known for n in f.layout_names()}, "layout"))
    if architecture is not None:
        all_names = [a for f in known for a in f.architectures]
        if architecture not in all_names:
            raise UserError(nearest(architecture, all_names, "architecture"))
    # Some families have the same names in both frameworks; the file type tells them apart.
    return [
        (family, candidate)
        for family in known
        if architecture is None or architecture in family.architectures
        for candidate in family.layouts
        if (layout is None or candidate.called(layout))
        and candidate.identity == (source.kind == "mindspore")
        and _chosen(candidate, family, layout, architecture)
    ]


def _chosen(candidate, family, layout, architecture):
    """Whether a layout may be detected: one whose keys are also another's must be asked for."""
    if architecture in {x.only for x in family.layouts if x.only}:
        return candidate.only == architecture
    return not candidate.only or layout is not None


def _inside(tensors, prefix):
    if not prefix:
        return tensors
    return OrderedDict((k[len(prefix) :], v) for k, v in tensors.items() if k.startswith(prefix))


def _settle(found, config):
    """Let config.json decide between layouts whose keys are the same."""
    if len(found) < 2 or not config:
        return found
    said = [str(config[k]) for k in ("architecture", "model_type", "_class_name") if config.get(k)]
    fitting = [f for f in found if f[1].configured and any(re.fullmatch(f[1].configured, s) for s in said)]
    return fitting or found


def make_plan(
    source: Source,
    layout: Optional[str] = None,
    architecture: Optional[str] = None,
    num_classes: Optional[int] = None,
    head: str = "keep",
    given: Optional[Mapping[str, Any]] = None,
    prefix: Optional[str] = None,
    drop: Sequence[str] = (),
) -> Plan:
    """Detect, build the net's names and shapes, and account for every key.

    Parameters
    ----------
    source : convert.reading.Source
    layout, architecture : str, optional
        Override the detected ones; the architecture must still fit the shapes.
    num_classes : int, optional
        Number of outputs; with ``head="keep"`` it must be the file's own number.
    head : {"keep", "init"}
        ``init`` leaves the file's classifier out and initialises a new one.
    given : dict, optional
        Arguments of the architecture that neither keys nor shapes show; they win over what was found.
    prefix : str, optional
        Only keys under this prefix belong to the net.
    drop : sequence of str
        Patterns (``fnmatch``) of keys that are no part of the net.

    Returns
    -------
    Plan

    Raises
    ------
    UserError
        The layout is unknown or ambiguous, the file does not fit it, or the requested head is not possible.
    """
    tensors, dropped = prefixes.without(source, drop)
    family, chosen, tensors, view = _detect(source, tensors, layout, architecture, prefix)
    source.notes += view.notes()
    chosen.check(source.config)
    found, arguments = family.infer(chosen, tensors, source.config)
    arguments = {**arguments, **(given or {})}
    if architecture is not None and architecture != found:
        raise UserError(f"--arch {architecture!r}: the file's shapes are those of {found!r}")
    lookups = family.lookups(found, arguments)
    names = chosen.head or family.head(found)
    if head == "keep":
        tensors, note = heads.find(chosen, names, tensors, lookups)
        source.notes += [note] if note else []
    if family.headless and head == "keep" and rules.source_of(chosen, names[0], lookups) not in tensors:
        names = ()
    outputs = _outputs(found, chosen, names, tensors, lookups, num_classes, head, view.beside)
    shapes = shapes_of(found, arguments, outputs)
    entries, computed = rules.assign(chosen, shapes, lookups)
    fresh = [n for n in names if n in shapes] if head == "init" else []
    if fresh:
        left = [s for e in entries if e.target in fresh for s in e.sources]
        entries = [e for e in entries if e.target not in fresh]
        tensors = {k: v for k, v in tensors.items() if k not in left}
    beside = {**source.dropped, **dropped}
    report: Dict[str, Any] = {
        **rules.account(entries, computed, shapes, tensors, chosen, view.beside),
        "new": dict.fromkeys(fresh, "a new head (--head init)"),
    }
    beside.update((k, why) for k, why in report["dropped"].items() if k in view.beside or prefixes.reason(k) == why)
    report["dropped"] = {**report["dropped"], **beside}
    place = (family, chosen, found, arguments, outputs)
    return Plan(*place, tensors, shapes, entries, computed, fresh, report, view.prefix, beside)


def _outputs(
    architecture: str,
    layout: Layout,
    names: Tuple[str, ...],
    tensors: Tensors,
    lookups: Lookups,
    wanted: Optional[int],
    head: str,
    beside: Mapping[str, Optional[str]],
) -> Optional[int]:
    """Number of outputs of the classifier, whose parameters are ``names``; None if there is no classifier."""
    if not names:
        if wanted is not None or head == "init":
            raise UserError(f"{architecture} has no classifier: --num-classes and --head do not apply")
        return None
    key = rules.source_of(layout, names[0], lookups)
    have = tensors[key].shape[0] if key in tensors and tensors[key].shape else None
    if head == "init":
        if wanted is None:
            raise UserError("--head init needs --num-classes")
        return wanted
    if have is None:
        odd = heads.leftover(misses.unknown(layout, tensors), tensors, beside)
        raise UserError(f"the file has no classifier ({key}){odd}; start a new one with --head init --num-classes N")
    if wanted is not None and wanted != have:
        raise UserError(
            f"--num-classes {wanted}: the file's classifier has {have} outputs; a new one needs --head init"
        )
    return have


def build(
    architecture: str, arguments: Mapping[str, Any], num_classes: Optional[int], weights: bool = False
) -> "nn.Cell":
    """The net. Without ``weights`` its parameters are not initialised, which saves most of the time."""
    import contextlib

    from mindspore import nn

    from aidet import models

    kwargs = dict(arguments) if num_classes is None else {**arguments, "num_classes": num_classes}
    skip = getattr(nn.utils, "no_init_parameters", None) if not weights and hasattr(nn, "utils") else None
    with skip() if skip else contextlib.nullcontext():
        return models.create(architecture, **kwargs)


def shapes_of(architecture: str, arguments: Mapping[str, Any], num_classes: Optional[int]) -> "OrderedDict[str, Shape]":
    """Names and shapes of the net's parameters, in its order."""
    net = build(architecture, arguments, num_classes)
    return OrderedDict((p.name, tuple(p.shape)) for p in net.get_parameters())
