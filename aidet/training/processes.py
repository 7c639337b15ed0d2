"""The processes of one training: the rank of this one, which one prints, and sums over all."""

import os
import sys
from typing import Any, Callable, Optional

import numpy as np

from .. import runtime

# Environment variables in which msrun, a rank table and mpirun state the number of processes.
SIZES = ("MS_WORKER_NUM", "RANK_SIZE", "OMPI_COMM_WORLD_SIZE")


class Processes:
    """The processes that train together; one until :meth:`join` finds others.

    Parameters
    ----------
    out : callable
        Takes one line of text; called in the first process only.

    Attributes
    ----------
    rank, world : int
        Rank of this process, and the number of processes.
    device : str or None
        ``"Ascend"``, ``"GPU"`` or ``"CPU"``; known after :meth:`join`.
    """

    def __init__(self, out: Callable[[str], Any]) -> None:
        self.rank, self.world = 0, 1
        self.device: Optional[str] = None
        self._out = out
        self._reducer: Any = None

    def join(self, config: Any) -> None:
        """Load MindSpore, select the device, and join the other processes if a launcher started several.

        Parameters
        ----------
        config : aidet.config.Config

        Raises
        ------
        UserError
            The device is not available.
        """
        ms, self.device = runtime.setup(
            config.device_target, "pynative" if config.mode else "graph", config.seed,
            device_id=config.device_id, jit_level=config.jit_level,
        )  # fmt: skip
        sizes = [os.environ.get(name, "") for name in SIZES]
        several = any(size.isdigit() and int(size) > 1 for size in sizes)
        if not (several or (config.distribute and any(sizes))):
            if config.distribute:
                self.warn(
                    "warning: distribute is set, but no launcher (msrun, mpirun) started this run; it uses one process"
                )
            return
        from mindspore.communication import get_group_size, get_rank, init

        init()
        self.rank, self.world = get_rank(), get_group_size()
        ms.reset_auto_parallel_context()
        ms.set_auto_parallel_context(
            parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=self.world
        )

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line for the user, in the first process only."""
        if self.first:
            self._out(text)

    def warn(self, text: str) -> None:
        """Print a line on stderr, in the first process only."""
        if self.first:
            print(text, file=sys.stderr, flush=True)

    def total(self, value: float) -> float:
        """Sum of a number over the processes."""
        return value if self.world == 1 else float(self.sum(np.array([value], np.float32))[0])

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Sum of an array over the processes, float32 of the same shape; every process has to call it."""
        import mindspore as ms

        from . import cells

        if self._reducer is None:
            self._reducer = cells.Reduce()
        return self._reducer(ms.Tensor(np.asarray(array, np.float32))).asnumpy()
