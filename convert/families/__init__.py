"""The families the converters know: for each, its layouts as tables and how a file says which size it is."""

import importlib
import re

from aidet.errors import UserError, nearest

MODULES = (
    "efficientnet",
    "resnet",
    "cifar_resnet",
    "squeezenet",
    "mobilenet_v3",
    "cifake",
    "taesd",
    "swin",
    "vit",
    "convnext",
    "autoencoder_kl",
)


class Layout:
    """One way of naming a family's weights.

    Parameters
    ----------
    name : str
        What ``--layout`` takes ("hf", "timm", ...).
    marks : sequence of str
        Regular expressions; each must fit at least one key for the layout to be detected.
    rules : sequence of (kind, target, source)
        See :mod:`convert.rules`.
    without : sequence of str
        Regular expressions that must fit no key.
    drop : sequence of (regex, reason)
        Source keys that are left out.
    computed : sequence of (regex, reason)
        Target parameters that the net computes itself.
    arguments : dict
        Arguments of the architecture that this layout's models were built with.
    prefix : str
        Only keys under it belong to the model, the rest of the file is another part of a pipeline.
    configured : str
        Regular expression on the ``architecture`` (timm) or ``model_type`` (Hugging Face) of a config.json that
        settles an ambiguity.
    transform : str or None
        Evaluation pipeline of these models where neither file nor folder tells; None: the family's.
    reshaped : tuple of (regex, dimensions)
        For reverse: source keys whose weight is stored with trailing dimensions of one.
    aliases : tuple of str
        Other names of the same layout.
    classes : tuple of str or None
        The classes of every model in this layout.
    head : tuple of str
        Target parameter names of the classifier, weight first, where they are not the family's.
    identity : bool
        The file already carries the target's names (MindCV's own checkpoints and ours).
    """

    def __init__(
        self,
        name,
        marks,
        rules,
        without=(),
        drop=(),
        computed=(),
        arguments=None,
        prefix="",
        configured="",
        transform=None,
        reshaped=(),
        aliases=(),
        classes=None,
        identity=False,
        head=(),
    ):
        self.name, self.marks, self.rules, self.without = name, marks, rules, without
        self.drop, self.computed, self.arguments, self.prefix = drop, computed, dict(arguments or {}), prefix
        self.configured, self.transform, self.reshaped = configured, transform, tuple(reshaped)
        self.aliases, self.classes, self.identity = tuple(aliases), classes, identity
        self.head = tuple(head)

    def called(self, name):
        """Whether ``name`` is the layout's name or one of its aliases."""
        return name == self.name or name in self.aliases

    def fits(self, keys):
        """Whether the marks are there and the excluded keys are not."""
        return all(any(re.fullmatch(m, k) for k in keys) for m in self.marks) and not any(
            re.fullmatch(w, k) for w in self.without for k in keys
        )


class Family:
    """What a family module gives.

    Attributes
    ----------
    name : str
    architectures : tuple of str
        Names in :mod:`aidet.models`.
    layouts : tuple of Layout
    infer : callable
        ``f(layout, tensors, config) -> (architecture, arguments)`` from keys and shapes.
    lookups : callable
        ``f(architecture, arguments) -> dict`` of tables for the templates.
    transform : callable
        ``f(architecture, layout, arguments) -> str``: evaluation pipeline where no file tells it.
    head : tuple of str, or dict of architecture to such tuples
        Target parameter names of the classifier, weight first; empty where there is none.
    taps : callable
        ``f(architecture) -> list of (cell name, {layout: module name})``: where layer-by-layer comparison looks.
    """

    def __init__(self, name, architectures, layouts, infer, transform, lookups=None, head=(), taps=None):
        self.name, self.architectures, self.layouts = name, tuple(architectures), tuple(layouts)
        self.infer, self.transform, self.heads = infer, transform, head
        self.lookups = lookups or (lambda arch, args: {})
        self.taps = taps or (lambda arch: [])

    def head(self, architecture):
        """Parameter names of the classifier, weight first."""
        return tuple(self.heads.get(architecture, ()) if isinstance(self.heads, dict) else self.heads)

    def layout(self, name):
        """The layout of that name, or a :class:`UserError` with the nearest."""
        for layout in self.layouts:
            if layout.called(name):
                return layout
        raise UserError(f"{self.name}: {nearest(name, self.layout_names(), 'layout')}")

    def layout_names(self):
        """Names and aliases of all layouts."""
        return [n for x in self.layouts for n in (x.name, *x.aliases)]


def mindcv(*marks):
    """The layout of a MindCV checkpoint: the target's own names."""
    return Layout("mindcv", marks, (), identity=True)


def families():
    """All families, in the order of :data:`MODULES`."""
    return [importlib.import_module(f"{__name__}.{m}").FAMILY for m in MODULES]


def family_of(architecture):
    """The family an architecture belongs to."""
    for family in families():
        if architecture in family.architectures:
            return family
    raise UserError(nearest(architecture, [a for f in families() for a in f.architectures], "architecture"))


def count(tensors, pattern):
    """How many different numbers (or tuples of numbers) the groups of ``pattern`` take over the keys."""
    regex = re.compile(pattern)
    return len({m.groups() for m in map(regex.fullmatch, tensors) if m})


def shape(tensors, *keys):
    """Shape of the first of ``keys`` that is there, else None."""
    for key in keys:
        if key in tensors:
            return tuple(tensors[key].shape)
    return None
