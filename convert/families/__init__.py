"""The families that the converter knows: the layouts of each as tables, and how its size is found from a file."""

import importlib
import math
import re
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from aidet.errors import UserError, nearest

from ..reading import Tensor

MODULES = (
    "efficientnet resnet cifar_resnet squeezenet mobilenet_v3 cifake taesd swin vit clip dinov2 siglip convnext "
    "autoencoder_kl swin_v2 convnext_v2 efficientnet_v2 beit mobilenet_v2 resnest aide d3 drct fatformer fredect "
    "freqnet gramnet ladeda npr rine safe siglip_dinov2"
).split()
# What trainers call a linear classifier that they put on a tower of another library.
HEADS = r"(?:fc|head|linear|linear_head|classifier)(?:\.\d+)?\.(weight|bias)"
GELU = ("gelu", "gelu_python")  # what transformers calls the exact one
TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate")  # its approximation
# Heads of published towers (SO400M, H, g, bigG) that do not have one for every 64 channels, by their width.
HEADS_OF_WIDTH = dict.fromkeys((1152, 1280, 1408, 1664), 16)
# Arguments of a timm model that change the net, and which neither a key nor a shape shows.
UNSEEN = ("act_layer", "aa_layer", "output_stride", "pad_type")
Shape = Tuple[int, ...]
Rules = Sequence[Tuple[str, str, str]]  # (kind, target, source)
Reasons = Sequence[Tuple[str, str]]  # (regular expression, reason)
Tensors = Mapping[str, Tensor]
Config = Optional[Mapping[str, Any]]  # of a config.json
Arguments = Dict[str, Any]  # of an architecture
Lookups = Mapping[str, Mapping[Any, Any]]  # name of a table -> {tuple of numbers: what it stands for}
Taps = List[Tuple[str, Dict[str, str]]]  # (cell name, {layout: module name})


@dataclass(frozen=True, eq=False)
class Layout:
    """One way of naming a family's weights.

    Parameters
    ----------
    name : str
        What ``--layout`` takes ("hf", "timm", ...).
    marks : sequence of str
        Regular expressions; each must match at least one key for the layout to be detected.
    rules : sequence of (kind, target, source)
        See the module ``rules``.
    without : sequence of str
        Regular expressions that must not match any key.
    drop : sequence of (regex, reason)
        Source keys that are left out.
    computed : sequence of (regex, reason)
        Target parameters that the net computes itself.
    arguments : dict
        Arguments of the architecture that this layout's models were built with.
    prefix : str
        Only keys under it belong to the model; the rest of the file is another part of a pipeline.
    configured : str
        Regular expression on the ``architecture`` (timm) or ``model_type`` (Hugging Face) of a config.json that
        settles an ambiguity.
    transform : str or None
        Evaluation pipeline of these models if neither file nor folder gives one; None: that of the family.
    reshaped : tuple of (regex, dimensions) or (regex, dimensions, regex)
        For the reverse conversion: source keys whose weight is stored with trailing dimensions of size one, with
        leading ones if the number is negative, or without leading ones if it is below the net's own. A third entry is a
        regular expression of the architectures of which this is true.
    zeros : tuple of (key, target, dimensions)
        For the reverse conversion: tensors that the library's net has, that inference never reads, and that are
        therefore dropped; zeros of the target parameter's last dimensions take their place.
    renames : sequence of (regex, replacement)
        Other names of the layout's tensors (an older release, a wrapper), turned into its own before anything else. If
        two keys would get one name, nothing is renamed.
    aliases : tuple of str
        Other names of the same layout.
    classes : tuple of str or None
        The classes of every model in this layout.
    head : tuple of str
        Target parameter names of the classifier, weight first, if they are not the family's.
    identity : bool
        The file already has the target's names (MindCV's own checkpoints and ours).
    stated : dict of str to tuple
        Entries of a transformers ``config.json`` that no key or shape shows and that our net has in one form only, and
        the values that mean this form.
    only : str
        The one architecture of a layout whose keys and shapes are also those of another architecture. Nothing in a file
        tells them apart, so the layout is never detected: ``--arch`` or ``--layout`` chooses it.
    """

    name: str
    marks: Sequence[str]
    rules: Rules
    without: Sequence[str] = ()
    drop: Reasons = ()
    computed: Reasons = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    configured: str = ""
    transform: Optional[str] = None
    reshaped: Sequence[Tuple[Any, ...]] = ()
    zeros: Sequence[Tuple[str, str, int]] = ()
    renames: Sequence[Tuple[str, str]] = ()
    aliases: Tuple[str, ...] = ()
    classes: Optional[Tuple[str, ...]] = None
    identity: bool = False
    head: Tuple[str, ...] = ()
    stated: Mapping[str, Tuple[Any, ...]] = field(default_factory=dict)
    only: str = ""

    def renamed(self, tensors: Tensors) -> Tensors:
        """The tensors under the layout's own names."""
        names = {}
        for key in tensors:
            names[key] = key
            for pattern, replacement in self.renames:
                names[key] = re.sub(rf"\A(?:{pattern})\Z", replacement, names[key])
        if len(set(names.values())) < len(names):
            return tensors
        return {names[key]: tensor for key, tensor in tensors.items()}

    def source(self, target: str) -> str:
        """What the rules call the parameter or layer ``target``; itself if they do not name it."""
        return next((theirs for _, ours, theirs in self.rules if ours == target), target)

    def check(self, config: Config) -> None:
        """Raise a :class:`UserError` if ``config`` states a net that computes something else under the same keys."""
        said = vision(config)
        hidden = {name: (None,) for name in UNSEEN if name in model_args(config)}
        said = {**said, **{name: model_args(config)[name] for name in hidden}}
        for name, known in {**self.stated, **hidden}.items():
            value = said.get(name)
            if value is not None and value not in known:
                raise UserError(
                    f"config.json: {name} (={value!r}) makes another net under the keys of layout {self.name!r}; known "
                    f"here is {' or '.join(map(repr, known)) if name in self.stated else 'the plain one'}. Correct "
                    "config.json if it is wrong"
                )

    def dimensions(self, key: str, architecture: str) -> Optional[int]:
        """How many dimensions :attr:`reshaped` gives the source ``key``; None if it is stored like ours."""
        for regex, number, *architectures in self.reshaped:
            if re.fullmatch(regex, key) and all(re.fullmatch(a, architecture) for a in architectures):
                return number
        return None

    def called(self, name: str) -> bool:
        """Whether ``name`` is the layout's name or one of its aliases."""
        return name == self.name or name in self.aliases

    def fits(self, keys: Iterable[str]) -> bool:
        """Whether all marks are among the keys and no excluded key is."""
        keys = list(keys)
        return all(any(re.fullmatch(m, k) for k in keys) for m in self.marks) and not any(
            re.fullmatch(w, k) for w in self.without for k in keys
        )


class Family:
    """What a family module defines.

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
        ``f(architecture, layout, arguments) -> str or None``: evaluation pipeline if no file gives one.
    head : tuple of str, or dict of architecture to such tuples
        Target parameter names of the classifier, weight first; empty if there is none.
    headless : bool
        A file without classifier is a net that gives features.
    free_input : bool
        The net takes any input (``image_size``): the one that the files beside the weights prepare.
    taps : callable
        ``f(architecture) -> list of (cell name, {layout: module name})``: where layer-by-layer comparison looks.
    notes : callable
        ``f(architecture, layout, arguments, outputs) -> list of str``: what was assumed because no key or shape says
        it, one sentence each.
    """

    def __init__(
        self,
        name: str,
        architectures: Iterable[str],
        layouts: Iterable[Layout],
        infer: Callable[[Layout, Tensors, Config], Tuple[str, Arguments]],
        transform: Callable[[str, Layout, Arguments], Optional[str]],
        lookups: Optional[Callable[[str, Arguments], Lookups]] = None,
        head: Union[Tuple[str, ...], Mapping[str, Tuple[str, ...]]] = (),
        taps: Optional[Callable[[str], Taps]] = None,
        notes: Optional[Callable[[str, Layout, Arguments, Optional[int]], Sequence[str]]] = None,
        headless: bool = False,
        free_input: bool = False,
    ) -> None:
        self.name, self.architectures, self.layouts = name, tuple(architectures), tuple(layouts)
        self.infer, self.transform, self.heads = infer, transform, head
        self.lookups = lookups or (lambda architecture, arguments: {})
        self.taps = taps or (lambda architecture: [])
        self.notes = notes or (lambda architecture, layout, arguments, outputs: [])
        self.headless, self.free_input = headless, free_input

    def head(self, architecture: str) -> Tuple[str, ...]:
        """Parameter names of the classifier, weight first."""
        return self.heads if isinstance(self.heads, tuple) else self.heads.get(architecture, ())

    def layout(self, name: str) -> Layout:
        """The layout of that name; raises a :class:`UserError` that suggests the most similar name."""
        for layout in self.layouts:
            if layout.called(name):
                return layout
        raise UserError(f"{self.name}: {nearest(name, self.layout_names(), 'layout')}")

    def layout_names(self) -> List[str]:
        """Names and aliases of all layouts."""
        return [n for x in self.layouts for n in (x.name, *x.aliases)]


def mindcv(*marks: str) -> Layout:
    """The layout of a MindCV checkpoint, which has the target's own names."""
    return Layout("mindcv", marks, (), identity=True)


def families() -> List[Family]:
    """All families, in the order of :data:`MODULES`."""
    return [importlib.import_module(f"{__name__}.{m}").FAMILY for m in MODULES]


def family_of(architecture: str) -> Family:
    """The family that an architecture belongs to; :class:`UserError` if there is none."""
    for family in families():
        if architecture in family.architectures:
            return family
    from aidet import models

    if architecture in models.names():
        raise UserError(f"{architecture!r}: no layout of a PyTorch library is known for this network")
    raise UserError(nearest(architecture, [a for f in families() for a in f.architectures], "architecture"))


def count(tensors: Tensors, pattern: str) -> int:
    """How many different values the groups of ``pattern`` have among the keys that it matches."""
    regex = re.compile(pattern)
    return len({m.groups() for m in map(regex.fullmatch, tensors) if m})


def shape(tensors: Tensors, *keys: str) -> Any:
    """Shape (a tuple) of the first of ``keys`` that exists, else None."""
    for key in keys:
        if key in tensors:
            return tuple(tensors[key].shape)
    return None


def tower(layout: Layout, tensors: Tensors, config: Config, lead: int) -> Arguments:
    """Sizes of a vision transformer (:class:`aidet.models.transformer.Tower`) from its shapes.

    Parameters
    ----------
    layout : Layout
    tensors : dict
    config : dict or None
        The number of heads is not visible in shapes; without it there is one for every 64 channels, or as many as
        the published towers of that width have (:data:`HEADS_OF_WIDTH`).
    lead : int
        Positions that belong to no patch.

    Returns
    -------
    dict
        ``width``, ``depth``, ``patch_size``, ``hidden``, ``grid`` (side of the grid of positions), ``heads``.

    Raises
    ------
    UserError
        The positions are not those of a square, or the file lacks what tells the sizes.
    """
    patches_at, table_at = layout.source("patch_embed.proj") + ".weight", layout.source("pos_embed")
    patch, table = shape(tensors, patches_at), shape(tensors, table_at)
    if table is None or patch is None or len(patch) != 4:
        odd, found = (table_at, table) if table is None else (patches_at, patch)
        said = f"{odd} has the shape {found}" if found is not None else f"the file has no {odd}"
        raise UserError(f"{said}, but the sizes of the tower are read from it; name a complete file")
    fc1 = shape(tensors, layout.source("blocks.{b}.mlp.fc1").replace("{b}", "0") + ".weight")
    block = re.escape(layout.source("blocks.{b}.attn.proj").partition("{b}")[0])
    patches = math.prod(table[:-1]) - lead
    grid = math.isqrt(max(patches, 0))
    if grid * grid != patches or not patches:
        raise UserError(f"{patches + lead} position embeddings are not those of a square of patches")
    found = {
        "width": patch[0],
        "depth": count(tensors, block + r"(\d+)\..*"),
        "patch_size": patch[2],
        "hidden": fc1[0] if fc1 else 4 * patch[0],
        "grid": grid,
        "heads": HEADS_OF_WIDTH.get(patch[0], patch[0] // 64),
    }
    heads = vision(config).get("num_attention_heads") or model_args(config).get("num_heads")
    return {**found, "heads": int(heads)} if heads else found


def depth_of(sizes: Callable[[str], Arguments], architecture: str) -> int:
    """Blocks of an architecture; for one of free depth more than any has, since its name does not tell."""
    return int(sizes(architecture)["depth"]) if architecture.count("_") > 1 else 64


def activation(config: Config, default: str) -> str:
    """The activation of a transformer's MLP (``act``) that a ``config.json`` of transformers states.

    Raises
    ------
    UserError
        It is one that our towers do not have.
    """
    stated = str(vision(config).get("hidden_act") or default)
    known = {**dict.fromkeys(GELU, "gelu"), **dict.fromkeys(TANH, "gelu_tanh"), "quick_gelu": "quick_gelu"}
    if stated not in known:
        raise UserError(
            f"config.json: hidden_act (={stated!r}) is not known here; known are {', '.join(known)}. "
            "Correct config.json if it is wrong"
        )
    return known[stated]


def model_args(config: Config) -> Mapping[str, Any]:
    """What timm's ``config.json`` changes in the architecture that it names."""
    stated = (config or {}).get("model_args")
    return stated if isinstance(stated, Mapping) else {}


def vision(config: Config) -> Mapping[str, Any]:
    """The part of a config.json that describes the image tower."""
    config = config or {}
    return {**config, **(config.get("vision_config") or {})}
