"""The network before its first step: built, filled with the weights it starts from, and frozen where asked."""

import fnmatch
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from .. import ckpt, images, labels
from ..errors import UserError, nearest
from .checks import Plan
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
        Side of every output; None where the classes are no sides.
    tensors : list of mindspore.Parameter
        The weights, running statistics included.
    parameters, trainable : int
        Numbers in the weights, and in those that are trained.
    dropout_seed : mindspore.Parameter or None
        Set before each step; None where the network has no dropout.
    still : list of mindspore.nn.Cell
        Frozen normalisations, which keep their running statistics.

    Raises
    ------
    UserError
        The number of outputs is not that of the classes, ``init_from`` is another model, or a key is wrong.
    """

    def __init__(self, plan: Plan, processes: Processes) -> None:
        import mindspore as ms

        from .. import models
        from . import cells

        config = plan.config
        self._plan = plan
        given = read_initial(config)
        self.outputs = output_count(plan, processes.warn)
        self.arguments = {**(given[1].get("arguments", {}) if given else {}), **config.model_args}
        for name in ("drop_rate", "drop_path_rate"):
            if getattr(config, name) is not None:
                self.arguments[name] = getattr(config, name)
        self.arguments["num_classes"] = self.outputs
        if config.in_channels != 3:
            raise UserError(f"in_channels (={config.in_channels}): images are read as RGB, 3 channels")
        ms.set_seed(config.seed)
        self.net = models.create(config.model, **self.arguments)
        self.class_order = class_order(plan, self.outputs, given[1] if given else {})
        if given:
            load_initial(self.net, given[0], config, processes.say)
        self.still = freeze(self.net, config.freeze or [])
        # The weights proper: the seed of the dropout is a parameter to the compiler only.
        self.tensors = list(self.net.get_parameters())
        self.parameters = int(sum(p.size for p in self.tensors))
        self.trainable = int(sum(p.size for p in self.tensors if p.requires_grad))
        self.dropout_seed = cells.seed_dropout(self.net)

    def train_mode(self) -> None:
        """Training behaviour everywhere but in frozen normalisations."""
        self.net.set_train(True)
        for cell in self.still:
            cell.set_train(False)

    def facts(self) -> Dict[str, Any]:
        """What a sidecar says of the network itself."""
        return {
            "architecture": self._plan.config.model, "arguments": self.arguments, "num_outputs": self.outputs,
            "classes": self._plan.data.classes, "class_order": self.class_order,
        }  # fmt: skip


def output_count(plan: Plan, warn: Callable[[str], Any]) -> int:
    """Number of outputs: ``num_classes``, or one for each class of the data.

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
        raise UserError(
            f"num_classes (={outputs}) is not the number of classes in the data, "
            f"{len(classes)} ({shown}); leave it out or set it to that"
        )
    return outputs


def read_initial(config: Any) -> Optional[Tuple[Dict[str, np.ndarray], Dict[str, Any]]]:
    """Arrays and sidecar (empty where it has none) of ``init_from``; None where the key is not set.

    Raises
    ------
    UserError
        The file is no checkpoint, or its sidecar names another architecture.
    """
    path = config.init_from
    if not path:
        return None
    facts = ckpt.read_sidecar(path) if ckpt.sidecar_path(path).is_file() else {}
    if facts and facts["architecture"] != config.model:
        raise UserError(f"init_from {path!r} holds {facts['architecture']!r}, model says {config.model!r}")
    return weights_only(ckpt.load_arrays(path)), facts


def load_initial(net: Any, arrays: Dict[str, np.ndarray], config: Any, say: Callable[[str], Any]) -> None:
    """Put the weights of ``init_from`` into the network; only the last layer may differ in size, and starts anew.

    Raises
    ------
    UserError
        Another name or shape differs.
    """
    own = {p.name: p for p in net.get_parameters()}
    differs = [n for n in own if n in arrays and tuple(own[n].shape) != arrays[n].shape]
    layers = {n.rsplit(".", 1)[0] for n in differs}
    head = len(layers) == 1 and all(own[n].shape[1:] == arrays[n].shape[1:] for n in differs)
    if differs and head:
        before, after = arrays[differs[0]].shape[0], own[differs[0]].shape[0]
        say(f"head {layers.pop()}: {before} outputs replaced by {after}")
        # A small start: the pretrained features meet a head that says nothing yet, instead of a wrong one loudly.
        rng = images.generator(config.seed, "head")
        for n in differs:
            deviation = 0.01 if len(own[n].shape) > 1 else 0.0
            arrays[n] = rng.normal(0, deviation, own[n].shape).astype(np.float32)
    ckpt.load_strict(net, arrays, what=f"init_from {config.init_from!r}")


def class_order(plan: Plan, outputs: int, facts: Dict[str, Any]) -> Optional[List[str]]:
    """Side of every output, or None where the classes of the data are no sides.

    ``facts`` is the sidecar of ``init_from`` or empty: with one or two outputs its order is kept.
    """
    if (plan.data.train_set.sides < 0).any():
        return None
    order = facts.get("class_order")
    if outputs <= 2 and order and len(order) == outputs:
        return list(order)
    if outputs == 1:
        return [labels.NAMES[labels.GENERATED]]
    if outputs == 2:
        return list(labels.NAMES)
    return [labels.NAMES[labels.REAL]] + [labels.NAMES[labels.GENERATED]] * (outputs - 1)


def freeze(net: Any, globs: List[str]) -> List[Any]:
    """Take the parameters whose names match out of the training.

    Returns
    -------
    list of mindspore.nn.Cell
        The normalisations that are frozen by it: they keep their running statistics too.

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
