"""Architectures by name: the project's own first, then all that MindCV registers.

One file a family; importing a family registers it. Parameter names follow MindCV where MindCV has the architecture, so
that checkpoints load strictly into ``mindcv.create_model`` as well.
"""

import importlib
import inspect
import pkgutil

from .. import runtime
from ..errors import UserError, nearest

_REGISTRY = {}


def register(factory):
    """Register ``factory(num_classes=1000, in_channels=3, **arguments) -> Cell`` under its own name."""
    _REGISTRY[factory.__name__] = factory
    return factory


def _load_families():
    runtime.prepare()
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def names(own_only=False):
    """Sorted architecture names; with ``own_only`` without MindCV's."""
    _load_families()
    return sorted(_REGISTRY) if own_only else sorted(set(_REGISTRY) | _mindcv_names())


def _mindcv_names():
    try:
        import mindcv
    except ImportError:
        return set()
    return set(mindcv.list_models())


def create(name, **arguments):
    """Build an architecture.

    Parameters
    ----------
    name : str
        The project's own or MindCV's.
    **arguments
        ``num_classes``, ``in_channels``, ``drop_rate``, ...

    Returns
    -------
    mindspore.nn.Cell
        Random weights; training mode as MindSpore makes it.

    Raises
    ------
    UserError
        Unknown name (the nearest is said) or an argument the architecture does not take.
    """
    _load_families()
    factory = _REGISTRY.get(name)
    if factory is None:
        if name not in _mindcv_names():
            raise UserError(nearest(name, names(), "architecture"))
        import mindcv

        return mindcv.create_model(name, **arguments)
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise UserError(f"architecture {name!r}: {error}; it takes {inspect.signature(factory)}") from None
    return factory(**arguments)
