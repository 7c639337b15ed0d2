"""Work on several threads or processes, with results in the order of the input."""

import os
import signal
import sys
from collections import deque
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any, Callable, Deque, Iterable, Iterator, Optional, Sequence

from tqdm import tqdm

from .errors import UserError


def in_order(work: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """``map`` over threads, in order; at most ``4 * workers`` items are in flight at a time."""
    items = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="aidet") as pool:
        window: Deque[Future[Any]] = deque()
        try:
            for item in items:
                window.append(pool.submit(work, item))
                if len(window) >= 4 * workers:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            for future in window:
                future.cancel()


def cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_IGNORE = (signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C


def spread(work: Callable[[Any], Any], items: Sequence, name: str, workers: Optional[int] = None) -> list:
    """``[work(i) for i in items]``, in several processes if that is worth while."""
    workers = min(workers or cpus(), max(1, len(items) // 200))
    bar = {"desc": name, "unit": "image", "total": len(items), "file": sys.stderr, "disable": len(items) < 1000}
    if workers <= 1:
        return list(tqdm(map(work, items), **bar))
    # multiprocessing.Pool would wait forever for the task of a killed worker.
    try:
        with ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, _IGNORE) as pool:
            return list(tqdm(pool.map(work, items, chunksize=64), **bar))
    except BrokenExecutor:
        raise UserError("a worker process was killed (short of memory?); run again with fewer --workers") from None
