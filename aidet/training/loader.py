"""Training data: the order of the samples in an epoch, and how they become batches.

Everything random is drawn from (seed, epoch, key of the file), so that neither the number of workers or devices nor the
batch size changes what a sample looks like.
"""

import collections
import itertools
import mmap
import os
import weakref
from concurrent.futures import BrokenExecutor
from typing import Any, Dict, Iterator, Optional, Tuple

import numpy as np
from PIL import Image

from .. import images
from ..datasets.samples import Samples
from ..errors import UserError
from .masks import cells_of
from .workers import _DEAD, Workers, _Rows, to_numbers

WINDOW = 4096  # rows of archives that are shuffled together, where an archive cannot be read in any order


# --- the order of an epoch ----------------------------------------------------------------------------------------
def epoch_order(
    samples: Samples,
    epoch: int,
    seed: int,
    shuffle: bool = True,
    repeats: int = 1,
    sampler: Optional[str] = None,
    length: Optional[int] = None,
) -> np.ndarray:
    """Rows of one epoch with the number of their draw.

    Parameters
    ----------
    samples : Samples
    epoch, seed : int
    shuffle : bool
    repeats : int
        Consecutive repetitions of each sample, each with a different draw (Hoffer et al. 2020). The epoch keeps its
        length, so that it contains only some of the images, as with MindCV's ``aug_repeats``.
    sampler : {None, "class", "generator"}
        Draw classes, or generators within classes, equally often, with replacement.
    length : int, optional
        Number of rows that a sampler draws; default: as many as there are samples.

    Returns
    -------
    ndarray of int, shape (n, 2)
        Row and draw.
    """
    rng = images.generator(seed, "order", epoch)
    if sampler is None:
        rows = _shuffled(samples, rng) if shuffle else np.arange(len(samples))
    else:
        probability = _probabilities(samples, sampler)
        rows = rng.choice(len(samples), size=length or len(samples), replace=True, p=probability)
    repeats = max(1, repeats)
    seen: Dict[int, int] = collections.Counter()
    pairs = []
    for row in np.repeat(rows, repeats)[: len(rows)].tolist():
        pairs.append((row, seen[row]))
        seen[row] += 1
    return np.array(pairs, np.int64).reshape(-1, 2)


def _shuffled(samples, rng):
    """A permutation of the rows; of those that are read together, of the chunks and of the rows of some chunks."""
    if samples.chunks is None:
        return rng.permutation(len(samples))
    order = np.argsort(samples.chunks, kind="stable")
    bounds = np.flatnonzero(np.diff(samples.chunks[order])) + 1
    parts = np.split(order, bounds)
    if samples.chunks[order[0]] < 0:  # images that are read on their own
        parts[:1] = parts[0].reshape(-1, 1)
    rows, window, result = 0, [], []
    for place in rng.permutation(len(parts)).tolist():
        window.append(parts[place])
        rows += len(parts[place])
        if rows >= WINDOW:
            result.append(rng.permutation(np.concatenate(window)))
            rows, window = 0, []
    return np.concatenate([*result, *([rng.permutation(np.concatenate(window))] if window else [])])


def _probabilities(samples, sampler):
    names = [(t, g) if sampler == "generator" else (t,) for t, g in zip(samples.targets.tolist(), samples.generators)]
    count = collections.Counter(names)
    inside = collections.Counter(name[0] for name in count)
    weight = np.array([1.0 / (count[n] * inside[n[0]]) for n in names])
    return weight / weight.sum()


_READING = images.Reading()


class Loader:
    """Batches of one set of samples.

    Parameters
    ----------
    samples : Samples
    text : str
        One-line pipeline.
    size : (int, int)
        Height and width of its results.
    batch_size : int
    seed : int
    workers : Workers
    cache_mb : int
        Sets of small images of one size are decoded once and kept in memory if they fit.
    splits : int
        Views of every image, for AugMix; with more than one the pipeline has to contain an ``auto_augment``.
    reading : aidet.images.Reading
        How images are read.
    grid : int
        With masks: side of a cell in pixels; 0 without.

    Attributes
    ----------
    failed : dict of str to str
        Reason for each image that could not be read, by its path.
    """

    AHEAD = 4  # batches in preparation at a time

    def __init__(
        self,
        samples: Samples,
        text: str,
        size: Tuple[int, int],
        batch_size: int,
        seed: int,
        workers: Workers,
        cache_mb: int = 1024,
        splits: int = 1,
        reading: images.Reading = _READING,
        grid: int = 0,
    ) -> None:
        self.reading, self.grid = reading, grid
        self._cells = cells_of(samples) if grid else None
        self.samples, self.text, self.size, self.splits = samples, text, tuple(size), splits
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.failed: Dict[str, str] = {}
        self._memory = _Memory(samples, cache_mb << 20, shared=workers.count > 0, reading=reading)
        self._last = to_numbers(text) if splits == 1 else None
        self._direct: Optional[bool] = None

    def run(self, order: np.ndarray, epoch: int) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """:meth:`run_masked` without the shares."""
        for x, rows, _ in self.run_masked(order, epoch):
            yield x, rows

    def run_masked(
        self, order: np.ndarray, epoch: int
    ) -> Iterator[Tuple[np.ndarray, np.ndarray, Optional[np.ndarray]]]:
        """Yield ``(x, rows, shares)`` for consecutive batches of ``order``.

        Parameters
        ----------
        order : ndarray of int, shape (n, 2)
            Row (-1: no image, only padding to keep shapes equal) and draw.
        epoch : int

        Yields
        ------
        x : ndarray of float32, shape (splits * batch_size, 3, h, w)
            Zeros if there is no image. With several splits first all images of split 0, then of split 1, ...
        rows : ndarray of int, shape (batch_size,)
            -1 if there is no image, or it could not be read (:attr:`failed` names it).
        shares : ndarray of float32, shape (batch_size, h / grid, w / grid), or None
            Generated share of every cell; None without masks.
        """
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        plain = self._plain()
        pending: Any = collections.deque()
        todo = iter(batches)
        while True:
            while len(pending) < (1 if plain else self.AHEAD):
                batch = next(todo, None)
                if batch is None:
                    break
                pending.append((batch, None if plain else self._submit(batch, epoch)))
            if not pending:
                return
            batch, futures = pending.popleft()
            yield (*self._remembered(batch), None) if futures is None else self._collect(batch, futures)

    def _submit(self, batch, epoch):
        items = []
        for place, (row, draw) in enumerate(batch.tolist()):
            if row >= 0:
                items.append((place, row, (self.samples.key(row), epoch if draw == 0 else f"{epoch}.{draw}")))
        parts = max(1, min(self.workers.count, len(items)))
        futures = []
        for k in range(parts):
            places, rows, views = zip(*items[k::parts]) if items else ((), (), ())
            sources = self._memory.get(list(rows))
            masks = None if self._cells is None else [self._cells[row] for row in rows]
            job = self.workers.submit(
                self.text, self.seed, self.size, sources, views, self.splits, self.reading, masks, self.grid
            )
            futures.append((list(places), job))
        return futures

    def _collect(self, batch, futures):
        x = np.zeros((self.splits, self.batch_size, 3, *self.size), np.float32)
        rows = np.full(self.batch_size, -1, np.int64)
        rows[: len(batch)] = batch[:, 0]
        shares = (
            np.zeros((self.batch_size, *(side // self.grid for side in self.size)), np.float32) if self.grid else None
        )
        for places, job in futures:
            try:
                values, reasons, found = job.result()
            except BrokenExecutor:
                raise UserError(_DEAD) from None
            if self._last:
                values = self._numbers(values)
            x[:, places] = values.swapaxes(0, 1) if self.splits > 1 else values
            if shares is not None:
                shares[places] = found
            for i, reason in reasons.items():
                row = int(rows[places[i]])
                self.failed.setdefault(self.samples.paths[row], reason)
                rows[places[i]] = -1
                x[:, places[i]] = 0
        return x.reshape(-1, 3, *self.size), rows, shares

    def _numbers(self, pixels):
        """Apply the pipeline's last operation to uint8 (n, h, w, 3) as one tall image; returns float32 (n, 3, h, w)."""
        n, h, w, _ = pixels.shape
        return self._last(pixels.reshape(n * h, w, 3), None).reshape(3, n, h, w).swapaxes(0, 1)

    def _plain(self):
        """Whether all images are in memory and the pipeline only maps their grey levels to numbers."""
        if self.grid or not self._last or not self._memory.filled or self._memory.size != self.size:
            return False
        if self._direct is None:
            self._direct = all(self._idle(name, step) for name, step in images.parsed(self.text).geometry.steps)
        return self._direct

    def _idle(self, name, step):
        """Whether a step does not change images of the size in memory, such as a resize to that size."""
        if name not in ("resize", "center_crop", "pad"):
            return False
        probe = np.random.default_rng(0).integers(0, 256, (*self._memory.size, 3), np.uint8)
        return np.array_equal(np.asarray(step(Image.fromarray(probe), None)), probe)

    def _remembered(self, batch):
        x = np.zeros((self.batch_size, 3, *self.size), np.float32)
        rows = np.full(self.batch_size, -1, np.int64)
        rows[: len(batch)] = batch[:, 0]
        there = np.flatnonzero(rows >= 0)
        bad = np.isin(rows[there], list(self._memory.failed)) if self._memory.failed else np.zeros(len(there), bool)
        for row in rows[there[bad]].tolist():
            self.failed.setdefault(self.samples.paths[row], self._memory.failed[row])
        rows[there[bad]] = -1
        there = there[~bad]
        x[there] = self._numbers(self._memory.pixels[rows[there]])
        return x, rows


class _Memory:
    """Decoded pixels of a set of small images of one size; empty if they do not fit or differ in size."""

    SMALL = 128  # largest side; larger images take longer to transform than to decode
    _serial = itertools.count()

    def __init__(self, samples, limit, shared, reading=_READING):
        self.reading = reading
        self.samples, self.failed, self.pixels, self.size = samples, {}, None, None
        self.filled, self._shared = False, None
        self._fill(limit, shared)

    def _fill(self, limit, shared):
        if not len(self.samples):
            return
        try:
            first = self.reading.decode(self.samples.root / self.samples.paths[0])
        except images.ImageError:
            return
        w, h = first.size
        if max(w, h) > self.SMALL or w * h * 3 * len(self.samples) > limit:
            return
        shape = (len(self.samples), h, w, 3)
        pixels = self._mappable(shape) if shared else np.zeros(shape, np.uint8)
        for i, path in enumerate(self.samples.paths):
            try:
                image = self.reading.decode(self.samples.root / path)
            except images.ImageError as error:
                self.failed[i] = str(error)
                continue
            if image.size != (w, h):
                return
            pixels[i] = np.asarray(image)
        self.pixels, self.size, self.filled = pixels, (h, w), True

    def _mappable(self, shape):
        """Zeros, uint8, in an anonymous file (Linux only), which the workers map instead of being sent the pixels.

        It disappears with the process, even if that is killed.
        """
        size = int(np.prod(shape))
        try:
            number = os.memfd_create("pixels")
            weakref.finalize(self, os.close, number)
            os.ftruncate(number, size)
            array = np.frombuffer(mmap.mmap(number, size), np.uint8).reshape(shape)
            file = f"/proc/{os.getpid()}/fd/{number}"
            open(file, "rb").close()  # a sandbox may have no /proc, or not let it be opened
        except (AttributeError, OSError):  # AttributeError: the system has no anonymous files
            return np.zeros(shape, np.uint8)
        self._shared = (file, next(self._serial), shape)
        return array

    def get(self, rows):
        """Pixels of the rows: a reference to shared memory, one array, or a list with the paths of images not held."""
        if self.filled and self.failed.keys().isdisjoint(rows):
            return _Rows(self._shared, rows) if self._shared else self.pixels[rows]
        known = set(rows).difference(self.failed) if self.filled else ()
        return [self.pixels[row] if row in known else str(self.samples.root / self.samples.paths[row]) for row in rows]
