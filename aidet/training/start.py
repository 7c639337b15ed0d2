"""The network before its first step: built, given its initial weights, and frozen as asked."""

import fnmatch
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

import numpy as np

from .. import ckpt, images, labels
from ..errors import UserError, nearest
from .checks import Plan
from .masks import localization, require_map
from .processes import Processes
from .saving import weights_only


class Student:
    """The network that is trained.

    Parameters
    ----------
    plan : Plan
    processes : Processes

    Attributes
    ----------
    net : mindspore.nn.Cell
    arguments : dict
        What the architecture is built with.
    outputs : int
    class_order : list of str, or None
        Side (``real`` or ``generated``) of every output; None if the classes are not sides.
    tensors : list of mindspore.Parameter
        The weights, running statistics included.
    parameters, trainable : int
        Number of values in all weights, without those of adapters (``lora``), and in those that are trained.
    grid : int
        Side of a cell of the map in pixels, if the training uses masks; else 0.
    dropout_seed : mindspore.Parameter or None
        Set before each step; None if the network has no dropout.
    still : list of mindspore.nn.Cell
        Frozen normalisation layers, which keep their running statistics.

    Raises
    ------
    UserError
        The number of outputs differs from the number of classes, ``init_from`` is another model, or a key is wrong.
    """

    def __init__(self, plan: Plan, processes: Processes) -> None:
        import mindspore as ms

        from .. import models
        from . import cells, lora

        config = plan.config
        self._plan = plan
        initial = read_initial(config)
        arrays, sidecar = initial if initial else (None, None)
        self.outputs = output_count(plan, processes.warn)
        self.arguments: Dict[str, Any] = {**(sidecar.arguments if sidecar else {}), **config.model_args}
        for name in ("drop_rate", "drop_path_rate"):
            if getattr(config, name) is not None:
                self.arguments[name] = getattr(config, name)
        self.arguments["num_classes"] = self.outputs
        if config.in_channels != 3:
            raise UserError(f"in_channels (={config.in_channels}): images are read as RGB, 3 channels")
        ms.set_seed(config.seed)
        self.net = models.create(config.model, **self.arguments)
        self.grid = require_map(self.net, config.model, plan.lines.size) if config.map_weight else 0
        self.class_order = class_order(plan, self.outputs, sidecar)
        fresh: Set[str] = set()
        if arrays is not None:
            started = sidecar is not None and sidecar.architecture != config.model
            fresh = (load_backbone if started else load_initial)(self.net, arrays, config, processes.say)
        self.still = freeze(self.net, config.freeze or [])
        lora.adapt(self.net, config, fresh)
        # Taken before seed_dropout: its seed is a parameter for the compiler only, not a weight.
        self.tensors = list(self.net.get_parameters())
        self.parameters = lora.parameters_of(self.tensors)
        self.trainable = int(sum(p.size for p in self.tensors if p.requires_grad))
        self.dropout_seed = cells.seed_dropout(self.net)

    def train_mode(self) -> None:
        """Put the network in training mode, except its frozen normalisation layers."""
        self.net.set_train(True)
        for cell in self.still:
            cell.set_train(False)

    def facts(self) -> Dict[str, Any]:
        """The entries of a sidecar that describe the network itself."""
        where = {"localization": localization(self.net, self._plan.lines.size_eval[0])} if self.grid else {}
        classes = self._plan.data.classes
        if len(classes) == self.outputs == 2 and (self.class_order or [""])[0] == labels.NAMES[labels.GENERATED]:
            classes = classes[::-1]  # in the order of the outputs, which init_from decided
        return {
            **where,
            "architecture": self._plan.config.model, "arguments": self.arguments, "num_outputs": self.outputs,
            "classes": classes, "class_order": self.class_order,
        }  # fmt: skip


def output_count(plan: Plan, warn: Callable[[str], Any]) -> int:
    """Number of outputs: ``num_classes`` if set, else one for each class of the data.

    Raises
    ------
    UserError
        ``num_classes`` is not the number of classes in the data.
    """
    classes = plan.data.classes
    outputs = plan.config.num_classes or len(classes)
    sided = (plan.data.train_set.sides >= 0).all()
    if outputs > len(classes) and not sided:
        # MindCV's MobileNet recipes have 1001 outputs for the 1000 classes of ImageNet.
        warn(f"note: num_classes is {outputs}, the data have {len(classes)} classes")
    elif outputs != len(classes) and not (outputs == 1 and len(classes) == 2):
        shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
        advice = "add --num_classes auto (or num_classes: auto in the YAML), which takes the number from the data"
        if not sided:
            advice = "none of them says real or generated: name the folders or labels real and fake for a detector"
        raise UserError(
            f"num_classes (={outputs}) is not the number of classes in the data, {len(classes)} ({shown}); {advice}"
        )
    return outputs


def read_initial(config: Any) -> Optional[Tuple[Dict[str, np.ndarray], Optional[ckpt.Sidecar]]]:
    """Arrays and sidecar (None if it has none) of ``init_from``; None if the key is not set.

    Raises
    ------
    UserError
        The file is not a checkpoint, or its sidecar names another architecture.
    """
    path = config.init_from
    if not path:
        return None
    from .. import models

    sidecar = ckpt.Sidecar.read(path) if ckpt.sidecar_path(path).is_file() else None
    if sidecar and sidecar.architecture not in (config.model, models.backbone(config.model)):
        raise UserError(f"init_from {path!r} holds {sidecar.architecture!r}, model says {config.model!r}")
    return weights_only(ckpt.load_arrays(path)), sidecar


def load_initial(net: Any, arrays: Dict[str, np.ndarray], config: Any, say: Callable[[str], Any]) -> Set[str]:
    """Load the weights of ``init_from`` into the network; returns the names of the layers that are initialised anew.

    That is the last layer if it differs in size, or if the file is a tower without a classifier.

    Raises
    ------
    UserError
        A name, or the shape of any other layer, differs.
    """
    own = {p.name: p for p in net.get_parameters()}
    fresh: Set[str] = set()
    if set(own) - set(arrays) == {"head.weight", "head.bias"} and set(arrays) <= set(own):
        say(f"head: new, {own['head.weight'].shape[0]} outputs; the file has features only")
        fresh = {"head"}
        for n in ("head.weight", "head.bias"):
            arrays[n] = _new_head(config, own[n].shape)
    differs = [n for n in own if n in arrays and tuple(own[n].shape) != arrays[n].shape]
    layers = {n.rsplit(".", 1)[0] for n in differs}
    head = len(layers) == 1 and all(own[n].shape[1:] == arrays[n].shape[1:] for n in differs)
    if differs and head:
        before, after = arrays[differs[0]].shape[0], own[differs[0]].shape[0]
        fresh = layers
        say(f"head {', '.join(layers)}: {before} outputs replaced by {after}")
        for n in differs:
            arrays[n] = _new_head(config, own[n].shape)
    ckpt.load_strict(net, arrays, what=f"init_from {config.init_from!r}")
    return fresh


def load_backbone(net: Any, arrays: Dict[str, np.ndarray], config: Any, say: Callable[[str], Any]) -> Set[str]:
    """Load the weights of a backbone into a network built on it; returns the names of all other layers.

    Raises
    ------
    UserError
        A tensor of the part that both have, ``features``, is missing, or has another shape.
    """
    own = {p.name: p for p in net.get_parameters()}
    shared = {n: arrays[n] for n in own if n.startswith("features.") and n in arrays}
    ckpt.load_strict(
        net, {n: shared.get(n, p.asnumpy()) for n, p in own.items() if n in shared or not n.startswith("features.")},
        what=f"init_from {config.init_from!r}",
    )  # fmt: skip
    say(f"backbone from {config.init_from}: {len(shared)} of {len(own)} tensors; the others are initialised anew")
    return {n.rsplit(".", 1)[0] for n in own if n not in shared}


def _new_head(config, shape):
    """Values near zero, so that the random output of a new head does not disturb the pretrained features."""
    deviation = 0.01 if len(shape) > 1 else 0.0
    return images.generator(config.seed, "head").normal(0, deviation, shape).astype(np.float32)


def class_order(plan: Plan, outputs: int, initial: Optional[ckpt.Sidecar]) -> Optional[List[str]]:
    """Side of every output, or None if the classes of the data are not sides.

    ``initial`` is the sidecar of ``init_from``, if any: with one or two outputs its order is kept.
    """
    if (plan.data.train_set.sides < 0).any():
        return None
    order = initial.class_order if initial else None
    if outputs <= 2 and order and len(order) == outputs:
        return list(order)
    if outputs == 1:
        return [labels.NAMES[labels.GENERATED]]
    if outputs == 2:
        return list(labels.NAMES)
    return [labels.NAMES[labels.REAL]] + [labels.NAMES[labels.GENERATED]] * (outputs - 1)


def freeze(net: Any, globs: List[str]) -> List[Any]:
    """Exclude the parameters whose names match one of the patterns from training.

    Returns
    -------
    list of mindspore.nn.Cell
        The normalisation layers that this freezes: they keep their running statistics, too.

    Raises
    ------
    UserError
        A pattern matches no parameter.
    """
    from mindspore import nn

    named = list(net.get_parameters())
    for glob in globs:
        hit = [p for p in named if fnmatch.fnmatchcase(p.name, glob)]
        if not hit:
            raise UserError(f"freeze {glob!r} matches no parameter; {nearest(glob, [p.name for p in named])}")
        for p in hit:
            p.requires_grad = False
    if not globs:
        return []
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return [c for _, c in net.cells_and_names() if isinstance(c, kinds) and not c.gamma.requires_grad]
