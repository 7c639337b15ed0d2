"""Worker processes that decode and augment images; they import no MindSpore."""

import atexit
import mmap
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple, Optional

import numpy as np

from .. import images, runtime
from ..errors import UserError
from ..images import pipeline

_READING = images.Reading()


# --- from files to batches ----------------------------------------------------------------------------------------
@lru_cache(maxsize=16)
def to_numbers(text: str) -> Optional[images.Pipeline]:
    """The last operation of a pipeline if it maps grey levels to numbers one by one, else None.

    Workers leave it to the loader, which applies it to a whole batch: bytes are a quarter as much to send.
    """
    line = images.parsed(text)
    last = line.numbers.parts == line.parts[-1:]
    return line.numbers if last and line.affine() else None


def _one(text, seed, source, key, view, size, splits=1, reading=_READING):
    """One image through the pipeline: (array, None), or (None, reason).

    The array is uint8 (h, w, 3) if :func:`to_numbers` is still to be applied, else float32 (3, h, w), or with several
    splits (splits, 3, h, w).
    """
    try:
        image = reading.decode(source)
        if splits > 1:
            array = _splits(images.parsed(text), image, seed, key, view, splits)
        elif to_numbers(text):
            rng = images.generator(seed, key, view)
            array = np.asarray(images.applied(images.parsed(text).geometry.steps, image, rng))
        else:
            array = images.parsed(text)(image, images.generator(seed, key, view))
    except images.ImageError as error:
        return None, str(error)
    found = array.shape[:2] if array.dtype == np.uint8 else array.shape[-2:]
    if size is not None and found != tuple(size):
        return None, f"the pipeline gave {found} pixels, not {tuple(size)}"
    return array, None


def _one_masked(text, seed, source, key, view, size, reading, cell, grid):
    """As :func:`_one`, with the generated share of every cell: (array, shares, None), or (None, None, reason)."""
    line = images.parsed(text)
    try:
        image = reading.decode(source)
        mask = cell.read(image.size)
        steps = line.geometry if to_numbers(text) else line
        array, mask = images.together(steps, image, mask, images.generator(seed, key, view))
    except (images.ImageError, UserError) as error:
        return None, None, str(error)
    array = array if isinstance(array, np.ndarray) or to_numbers(text) else pipeline.to_array(array)
    if mask.shape != tuple(size):
        return None, None, f"the pipeline gave {mask.shape} pixels, not {tuple(size)}"
    return np.asarray(array), images.shares(mask, grid), None


def _splits(line, image, seed, key, view, splits):
    """The augmentation splits of AugMix (Hendrycks et al. 2020): one crop, without and with the automatic policy.

    Returns
    -------
    ndarray of float32, shape (splits, 3, h, w)
        The first without ``auto_augment``; each has its own random draws from there on.
    """
    at = [name for name, _ in line.steps].index("auto_augment")
    rng = images.generator(seed, key, view)
    image = images.applied(line.steps[:at], image, rng)
    out = []
    for number in range(splits):
        rng = images.generator(seed, key, f"{view}.split{number}")
        part = images.applied(line.steps[at + (number == 0) :], image, rng)
        out.append(part if isinstance(part, np.ndarray) else pipeline.to_array(part))
    return np.stack(out)


class _Rows(NamedTuple):
    """Rows of the loader's memory, which other processes can map: the arguments of :func:`_mapped`, and the rows."""

    place: tuple
    rows: list


@lru_cache(maxsize=4)
def _mapped(file, serial, shape):
    """In a worker: the pixels in the loader's memory, uint8 (n, h, w, 3), read only.

    ``serial`` distinguishes memories that used the same file number one after the other.
    """
    with open(file, "rb") as opened:
        return np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.uint8).reshape(shape)


def _chunk(text, seed, size, sources, views, splits=1, reading=_READING, masks=None, grid=0):
    """Run by a worker: a part of a batch. Errors are returned as text, so that the caller can name the file.

    ``sources`` are paths or pixels; for small images one array (n, h, w, 3), which is sent faster than n of them, or
    a :class:`_Rows`, which is sent faster still. ``views`` are the (key, view) that each image's draws depend on.
    ``masks`` are the :class:`aidet.training.masks.MaskCell` of each; the third result are then the shares of cells of
    ``grid`` pixels, float32 (n, h / grid, w / grid), else None.
    """
    if isinstance(sources, _Rows):
        sources = _mapped(*sources.place)[sources.rows]
    if splits == 1 and to_numbers(text):
        out = np.zeros((len(views), *size, 3), np.uint8)
    else:
        out = np.zeros((len(views), *((splits,) if splits > 1 else ()), 3, *size), np.float32)
    reasons, shares = {}, None
    if masks is not None:
        shares = np.zeros((len(views), *(side // grid for side in size)), np.float32)
    for i, (source, (key, view)) in enumerate(zip(sources, views)):
        if shares is None:
            array, reason = _one(text, seed, source, key, view, size, splits, reading)
        else:
            array, share, reason = _one_masked(text, seed, source, key, view, size, reading, masks[i], grid)
        if reason is not None:
            reasons[i] = reason
            continue
        out[i] = array
        if shares is not None:
            shares[i] = share
    return out, reasons, shares


def _start_worker(parent):
    """Let the worker exit when the trainer is gone, even if killed, and leave Ctrl-C to the trainer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_DEAD = "a worker process was killed (out of memory?); continue with --resume auto and fewer num_parallel_workers, or 0"


class Workers:
    """A pool of processes that decode and transform; with 0 workers a thread of this process does it.

    They are processes because PIL and NumPy hold Python's lock for much of an augmentation, and are spawned because
    forking a process that runs MindSpore's threads can hang.
    """

    def __init__(self, count: int) -> None:
        self.count = min(count, os.cpu_count() or 1)
        self._pool: Optional[Executor] = None

    def submit(self, *arguments: Any) -> "Future[Any]":
        """Process a part of a batch; the arguments are those of :func:`_chunk`."""
        if self._pool is None:
            self._pool = self._open()
        try:
            with runtime.without_ctrl_c():
                return self._pool.submit(_chunk, *arguments)
        except BrokenExecutor:
            raise UserError(_DEAD) from None

    def _open(self):
        if self.count == 0:
            return ThreadPoolExecutor(1)
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
        atexit.register(pool.shutdown, wait=False, cancel_futures=True)
        return pool

    def close(self) -> None:
        """End the pool."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
