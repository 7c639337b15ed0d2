"""Names that a checkpoint's pickle may ask for besides tensors, and what becomes of them.

Nothing here is ever imported or called. A name is either *data*, which the machine of :mod:`.unpickle` builds itself
(``collections.Counter``, a NumPy array), or *inert*: an object that stands beside the weights (the arguments of the
run, a path, the time) and is replaced by a :class:`Placeholder`. Every other name is refused.

Inert are the data types of Python's library that are listed here, and classes of other packages, as far as their name
shows that they are classes (a capital letter, PEP 8). Functions are refused, and so is everything else of Python's
library, NumPy and torch.
"""

import functools
import os
import re
import sys
import sysconfig
from typing import FrozenSet

# Data that the machine builds, by module.
DATA = {
    "collections": "OrderedDict Counter defaultdict",
    "builtins": "set frozenset bytearray bytes complex",
    "__builtin__": "set frozenset bytearray bytes complex",
    "_codecs": "encode",
    "torch": "Size device",
    "torch.serialization": "_get_layout",
    "torch.storage": "UntypedStorage TypedStorage",
    "torch._tensor": "_rebuild_from_type_v2 _rebuild_from_type",
    "torch._utils": "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter "
    "_rebuild_parameter_with_state _rebuild_qtensor _rebuild_sparse_tensor _rebuild_meta_tensor_no_storage "
    "_rebuild_nested_tensor _rebuild_wrapper_subclass _rebuild_device_tensor_from_numpy "
    "_rebuild_device_tensor_from_cpu_tensor",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.numeric": "_frombuffer",
    "numpy._core.numeric": "_frombuffer",
}
# Objects that stand beside the weights, by module.
INERT = {
    "argparse": "Namespace",
    "builtins": "list dict tuple str int float bool object type slice range Ellipsis NotImplemented",
    "__builtin__": "list dict tuple str unicode int long float bool object type slice xrange Ellipsis NotImplemented",
    "collections": "deque",
    "copy_reg": "_reconstructor __newobj__",
    "copyreg": "_reconstructor __newobj__",
    "datetime": "datetime date time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "torch": "Tensor Generator strided sparse_coo contiguous_format channels_last preserve_format per_tensor_affine "
    "per_tensor_symmetric per_channel_affine per_channel_symmetric per_channel_affine_float_qparams",
    "torch.nn.parameter": "Parameter Buffer UninitializedParameter",
    "torch.torch_version": "TorchVersion",
    "torch.version": "TorchVersion",
    "types": "SimpleNamespace",
    "typing": "Any List Dict Tuple Optional Union",
    "uuid": "UUID",
    "zoneinfo": "ZoneInfo",
}
# Objects of torch that stand beside a state dictionary: optimizers, schedulers, losses, the modules of a whole model.
_TORCH = re.compile(r"torch\.(nn|optim|amp|cuda\.amp)(\.\w+)*")
_NUMPY_TYPE = re.compile(r"(bool|u?int|float|complex)\d*_?|str_|bytes_|longlong|double|single|intc|uintc|half")
_NUMPY_STATE = re.compile(r"_*(randomstate|generator|bit_generator)_ctor", re.IGNORECASE)
# What could run code: only of these does the message say so.
_DANGEROUS = frozenset("os posix nt subprocess sys shutil socket runpy pty commands".split())
_DANGEROUS_BUILTINS = frozenset("eval exec execfile compile __import__ open input breakpoint".split())
# Modules of Python that run code or read files, in any version (Python 2's too).
_OLD = (
    "__builtin__ commands copy_reg cPickle dummy_thread exceptions imp popen2 thread urllib2 distutils asyncore"
).split()


class Placeholder:
    """What stands for an inert object: its class's name and nothing else."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def is_data(module: str, name: str) -> bool:
    """Whether the machine builds this name itself (storages and number types of torch apart)."""
    return name in DATA.get(module, "").split()


def is_inert(module: str, name: str) -> bool:
    """Whether an object of this name is replaced by a :class:`Placeholder`."""
    if name in INERT.get(module, "").split():
        return True
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return False
    top = module.split(".")[0]
    if top == "numpy":
        types = module in ("numpy", "numpy.dtypes") and (_NUMPY_TYPE.fullmatch(name) or name.endswith("DType"))
        return bool(types or module == "numpy.random._pickle" and _NUMPY_STATE.fullmatch(name))
    if top == "torch":
        return bool(_TORCH.fullmatch(module)) and name[0].isupper()
    return name.lstrip("_")[:1].isupper() and top not in standard_modules()


def is_dangerous(module: str, name: str) -> bool:
    """Whether the name could run code, so that the file should not be loaded anywhere."""
    if module in ("builtins", "__builtin__"):
        return name in _DANGEROUS_BUILTINS
    return module.split(".")[0] in _DANGEROUS


@functools.cache
def standard_modules() -> FrozenSet[str]:
    """Top-level names of Python's own library."""
    known = getattr(sys, "stdlib_module_names", None)
    if known is None:  # Python 3.9
        folder = sysconfig.get_path("stdlib")
        files = [n for f in (folder, os.path.join(folder, "lib-dynload")) if os.path.isdir(f) for n in os.listdir(f)]
        known = {n.split(".")[0] for n in files} - {"site-packages"} | set(sys.builtin_module_names)
    return frozenset(known) | frozenset(_OLD) | frozenset(("test", "pip", "setuptools", "pkg_resources"))
