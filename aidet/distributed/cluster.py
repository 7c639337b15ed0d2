"""The Ray cluster of a run: one of this machine alone, or one that runs already."""

import contextlib
import logging
import os
import re
import signal
import socket
import threading
from typing import Any, Dict, Iterator, Optional

from .. import runtime
from ..errors import UserError, first_line
from ..parallel import cpus

SECONDS = 10  # that a cluster may take to accept a connection
# MindSpore sets it for itself, and cannot be imported into a process in which Ray has loaded protobuf without it.
PROTOBUF = ("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
STORE = 256 << 20  # bytes of shared memory on this machine; what passes through are names and scores, not images


def ray() -> Any:
    """The package Ray, with Ray Data.

    Raises
    ------
    UserError
        It is not installed.
    """
    with _protobuf(PROTOBUF[1] if runtime.mindspore_version() is not None else None):
        try:
            import ray as package
            import ray.data
        except ImportError as error:
            raise UserError(f"the engine ray needs Ray ({error}): pip install 'aidet[ray]' (Python 3.10+)") from None
    return package


@contextlib.contextmanager
def _protobuf(value: Optional[str]) -> Iterator[None]:
    """Have protobuf's variable at a value, None for no value, for the time of a block."""
    before = os.environ.pop(PROTOBUF[0], None)
    if value is not None:
        os.environ[PROTOBUF[0]] = value
    try:
        yield
    finally:
        os.environ.pop(PROTOBUF[0], None)
        if before is not None:
            os.environ[PROTOBUF[0]] = before


@contextlib.contextmanager
def connected(address: Optional[str] = None, workers: Optional[int] = None) -> Iterator[int]:
    """Be connected to a Ray cluster for the time of a block.

    A process that is connected already stays so. Otherwise, without an address, a cluster of this machine is started
    and ended with the block; it has no dashboard, and nothing is reported to anybody.

    Parameters
    ----------
    address : str, optional
        ``HOST:PORT`` of the head of a cluster of which this machine is a node, or ``auto``: the one that runs here.
    workers : int, optional
        Processes that will score; default: one for each CPU of the cluster.

    Yields
    ------
    int
        Number of processes that will score.

    Raises
    ------
    UserError
        Ray is missing, or there is no cluster at the address.
    """
    package = ray()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error is raised as well
    if package.is_initialized():
        yield workers or _cpus(package)
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray's C++ side would print a remark on every pool of actors; what matters is also raised.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: Dict[str, Any] = {"address": "local", "num_cpus": workers or cpus(), "include_dashboard": False}
    options["object_store_memory"] = STORE
    if address is not None:
        _probe(address)
        options = {"address": address}
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with _protobuf(None):  # which Ray's own processes start much faster without
            package.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # noqa: BLE001 - Ray raises its own types, built-in ones and bare Exceptions
        if address is None:
            raise UserError(f"a Ray cluster could not be started here: {first_line(error, 300)}") from None
        raise UserError(
            f"a Ray cluster at {address!r} cannot be used: {first_line(error, 300)}; this machine must be one of its "
            "nodes with the same Ray and Python and, if the cluster asks for its token, RAY_AUTH_MODE=token must be set"
        ) from None
    try:
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray's own would wait; cli.main treats it like Ctrl-C
        yield workers or _cpus(package)
    finally:
        package.shutdown()


def _cpus(package: Any) -> int:
    return max(1, int(package.cluster_resources().get("CPU", 1)))


def _probe(address: str) -> None:
    """Raise a :class:`UserError` unless something answers at an address: Ray itself would try for minutes."""
    if address == "auto":
        return
    found = re.fullmatch(r"\[?([^/\[\]]+?)\]?:([0-9]{1,5})", address)
    if found is None:
        raise UserError(f"--ray-address {address!r} must be HOST:PORT or auto, for example 10.0.0.1:6379")
    try:
        socket.create_connection((found[1], int(found[2])), SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"no Ray cluster answers at {address!r} ({reason}); start one with: ray start --head --port=6379"
        ) from None
