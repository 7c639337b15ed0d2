"""Architectures by name: the project's own first, then all that MindCV registers.

There is one file per family; importing a family registers it. Parameter names follow MindCV if MindCV has the
architecture, so that checkpoints load strictly into ``mindcv.create_model`` as well.
"""

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Set

from .. import runtime
from ..errors import UserError, nearest, signature_text

if TYPE_CHECKING:
    from mindspore import nn

_REGISTRY: Dict[str, Callable[..., Any]] = {}
# Names in the YAML files of older MindCV versions -> those of 0.3.0.
RENAMED = {
    "BiTresnet50": "BiT_resnet50", "BiTresnet101": "BiT_resnet101", "BiTresnet50x3": "BiT_resnet50x3",
    "mnasnet0_5": "mnasnet_050", "mnasnet0_75": "mnasnet_075", "mnasnet1_0": "mnasnet_100",
    "mnasnet1_3": "mnasnet_130", "mnasnet1_4": "mnasnet_140",
    "mobilenet_v1_025_224": "mobilenet_v1_025", "mobilenet_v1_050_224": "mobilenet_v1_050",
    "mobilenet_v1_075_224": "mobilenet_v1_075", "mobilenet_v1_100_224": "mobilenet_v1_100",
    "mobilenet_v2_075_224": "mobilenet_v2_075", "mobilenet_v2_100_224": "mobilenet_v2_100",
    "mobilenet_v2_140_224": "mobilenet_v2_140", "RepMLPNet_T224": "repmlp_t224",
    "rexnet_x09": "rexnet_09", "rexnet_x10": "rexnet_10", "rexnet_x13": "rexnet_13", "rexnet_x15": "rexnet_15",
    "rexnet_x20": "rexnet_20",
}  # fmt: skip


def register(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Register ``factory(num_classes=1000, in_channels=3, **arguments) -> Cell`` under its own name."""
    _REGISTRY[factory.__name__] = factory
    return factory


def backbone(name: str) -> Optional[str]:
    """The architecture whose weights a training of ``name`` may start from, for networks built on another one."""
    _load_families()
    return getattr(_REGISTRY.get(name), "backbone", None)


def _load_families() -> None:
    runtime.prepare()
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def names(own_only: bool = False) -> List[str]:
    """Sorted architecture names; ``own_only`` leaves MindCV's out."""
    _load_families()
    return sorted(_REGISTRY) if own_only else sorted(set(_REGISTRY) | _mindcv_names())


def _mindcv_names() -> Set[str]:
    try:
        import mindcv
    except ImportError:
        return set()
    return set(mindcv.list_models())


def create(name: str, **arguments: Any) -> "nn.Cell":
    """Build an architecture.

    Parameters
    ----------
    name : str
        The project's own or MindCV's, also by the name it had in an older version.
    **arguments
        ``num_classes``, ``in_channels``, ``drop_rate``, ...

    Returns
    -------
    mindspore.nn.Cell
        With random weights, in the training mode in which MindSpore creates it.

    Raises
    ------
    UserError
        Unknown name (the message suggests the nearest one), or an argument that the architecture does not take.
    """
    _load_families()
    name = RENAMED.get(name, name)
    factory = _REGISTRY.get(name)
    if factory is None:
        if name not in _mindcv_names():
            raise UserError(nearest(name, names(), "architecture"))
        import mindcv

        try:
            return mindcv.create_model(name, **arguments)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise UserError(f"architecture {name!r}: {error}; leave it out") from None
    taken = inspect.signature(factory)
    try:
        taken.bind(**arguments)
        return factory(**arguments)
    except TypeError as error:
        # A factory that passes its arguments on fails in the constructor it calls.
        if "argument" not in str(error):
            raise
        raise UserError(f"architecture {name!r}: {error}; it takes {signature_text(factory)}") from None
