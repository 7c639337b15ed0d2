"""Setting MindSpore up: device, mode, seeds, known pitfalls, a quiet exit.

Call :func:`setup` before anything else imports ``mindspore``.
"""

import atexit
import contextlib
import glob
import os
import random
import signal
import sys
import warnings
from importlib import metadata
from types import ModuleType
from typing import Any, Dict, Iterator, Optional, Tuple

import numpy as np

from .errors import UserError, first_line


def has_ascend(device: str = "auto") -> bool:
    """Whether an Ascend device file exists; checks the file system, so that MindSpore need not be imported."""
    return device == "auto" and bool(glob.glob("/dev/davinci[0-9]*"))


DEVICES = ("auto", "Ascend", "GPU", "CPU")


def version_of(package: str) -> Optional[str]:
    """Installed version as a string; None if the package is not installed. Imports nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: Optional[str]) -> Tuple[int, ...]:
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in (version or "0").split(".")[:2])


def mindspore_version() -> Optional[Tuple[int, ...]]:
    """(major, minor) of the installed MindSpore, or None. Ascend and GPU builds have other distribution names."""
    for name in ("mindspore", "mindspore-ascend", "mindspore-gpu", "mindspore-dev"):
        if version_of(name):
            return _numbers(version_of(name))
    return None


def prepare() -> None:
    """Set what must be set before ``import mindspore``; cheap, and may be called repeatedly.

    * NumPy 2 is refused: MindSpore up to 2.9 forbids it, and 2.10 breaks on it
      (``SystemError ... pyboost_add_ext``).
    * oneDNN 3.10.1, inside MindSpore 2.9 and 2.10, has no fast AVX-512 convolution and falls back to its reference
      code, which is about 80 times slower. Restricted to AVX2 it is fast again. A value set by the user is kept.
    """
    version = mindspore_version()
    if version is None and sys.version_info >= (3, 13):
        raise UserError(
            f"MindSpore has no build for Python {sys.version_info[0]}.{sys.version_info[1]}; use Python 3.9 to 3.12, "
            "or an exported .onnx, which needs no MindSpore"
        )
    if version is None:
        raise UserError(
            "MindSpore is not installed; run: pip install 'mindspore==2.8.0' 'numpy<2' "
            "(on an Ascend image keep the build that came with it)"
        )
    if int(np.__version__.split(".")[0]) >= 2:
        raise UserError(f"NumPy {np.__version__} does not work with MindSpore; run: pip install 'numpy<2'")
    if version >= (2, 9) and "mindspore" not in sys.modules:
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    # MindSpore logs its deprecations as warnings to stderr; errors are still shown. A level set by the user is kept.
    os.environ.setdefault("GLOG_v", "3")
    _quiet_exit()


_hooked = False


def _quiet_exit() -> None:
    """Keep MindSpore's shutdown noise off the terminal.

    At interpreter exit ``Cell.__del__`` runs after its modules are gone and prints "Exception ignored in ..." once per
    layer. Only that one method is silenced, and only once the interpreter is on its way out.
    """
    global _hooked
    if _hooked:
        return
    _hooked = True

    def leave():
        before = sys.unraisablehook

        def hook(event, before=before):
            name = getattr(event.object, "__qualname__", "")
            if not name.endswith("__del__"):
                before(event)

        sys.unraisablehook = hook

    atexit.register(leave)


@contextlib.contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Defer Ctrl-C until the block has ended; processes started inside never receive it, even during their imports."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def setup(
    device: str = "auto",
    mode: str = "graph",
    seed: Optional[int] = None,
    device_id: Optional[int] = None,
    jit_level: Optional[str] = None,
) -> Tuple[ModuleType, str]:
    """Import MindSpore, choose the device and the mode, and seed every generator.

    Parameters
    ----------
    device : {"auto", "Ascend", "GPU", "CPU"}
        ``auto`` takes Ascend if a device answers, else the CPU; a GPU is used on request only (the wheels' CUDA
        backend is old and untested here).
    mode : {"graph", "pynative"}
    seed : int, optional
        For Python, NumPy and MindSpore.
    device_id : int, optional
    jit_level : {"O0", "O1", "O2"}, optional
        Passed on to MindSpore.

    Returns
    -------
    (module, str)
        ``mindspore`` and the device in use.
    """
    if device not in DEVICES:
        raise UserError(f"device_target {device!r}: choose one of {', '.join(DEVICES)}")
    prepare()
    with warnings.catch_warnings(), without_ctrl_c():
        warnings.simplefilter("ignore")
        # If interrupted, this import fails with errors of MindSpore's own, or aborts the process.
        import mindspore as ms
    chosen = _choose(ms, device)
    # Untested: all branches for MindSpore before 2.7.2, here and in _choose. pyproject.toml asks for 2.7.2 or later,
    # but the Xihe images have 2.2.10 to 2.7.1.
    if hasattr(ms, "set_device"):  # from 2.5
        try:
            ms.set_device(chosen, device_id) if device_id is not None else ms.set_device(chosen)
        except Exception as error:  # noqa: BLE001 - each backend raises its own types of error
            # Once MindSpore has computed anything, as in a notebook, its device is chosen; it may be the wanted one.
            if device_id is not None or ms.get_context("device_target") != chosen:
                raise UserError(f"device_target {chosen!r} does not answer: {first_line(error)}") from None
    else:
        options = {} if device_id is None else {"device_id": device_id}
        ms.set_context(device_target=chosen, **options)
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    if jit_level is not None:
        ms.set_context(jit_config={"jit_level": jit_level})
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        ms.set_seed(seed)
    return ms, chosen


def _choose(ms: Any, device: str) -> str:
    if device != "auto":
        return device
    try:
        hal = getattr(ms, "hal", None)
        if hal is not None and hal.is_available("Ascend"):
            return "Ascend"
    except Exception:  # noqa: BLE001 - a system without the Ascend driver raises several kinds of error
        pass
    return "CPU"


def versions() -> Dict[str, str]:
    """Versions of the packages that a result depends on, for sidecars, logs and reports; imports nothing heavy."""
    names = "aidet mindspore mindcv numpy pillow onnx onnxruntime openvino scikit-learn torch".split()
    from . import __version__

    found = {name: version_of(name) for name in names}
    found["aidet"] = __version__
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    return {name: version for name, version in found.items() if version}
