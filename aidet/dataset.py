"""Training data: where the samples are, in which order an epoch takes them, and how they become batches.

Sources: an ImageFolder ``data_dir/<split>/[<anything>/]<class>/``; a CSV
``path,label[,generator][,split][,group][,pair]``; ArtiFact folders with ``metadata.csv``
(``image_path,target,category``; Rahman et al., ICIP 2023); numbered files beside a bare column of 0 and 1 (MindCon).
Classes are read as ``evaluate.py`` reads them (:func:`aidet.labels.class_depth`, ``of_cell``). Everything random is
drawn from (seed, epoch, key of the file), so that neither workers, batch size nor the number of devices changes what a
sample looks like.
"""

import atexit
import collections
import hashlib
import itertools
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import List, NamedTuple, Optional

import numpy as np
from PIL import Image

from . import images, labels, runtime, transforms
from .errors import UserError, nearest
from .records import LABEL_COLUMNS, PATH_COLUMNS, natural_key, read_table

GENERATOR_COLUMNS = ("generator", "category", "source")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass
class Samples:
    """A list of images with their classes.

    Attributes
    ----------
    root : Path
    paths : list of str
        Relative to ``root``.
    texts : list of str
        The class as the source writes it.
    sides : ndarray of int, shape (n,)
        0 real, 1 generated, -1 where the class says neither.
    generators : list of str
    groups, pairs : list of str
        ``""`` where the source names none. Images of one pair get the same random draws.
    targets : ndarray of int, shape (n,)
        Index of the class, filled by :func:`assign_classes`; -1 where training knows no such class.
    """

    root: Path
    paths: List[str]
    texts: List[str]
    sides: np.ndarray
    generators: List[str]
    groups: List[str]
    pairs: List[str]
    splits: Optional[List[str]] = None
    targets: np.ndarray = field(default=None)

    def __len__(self):
        return len(self.paths)

    def take(self, index):
        """The rows of ``index``, in that order."""
        index = [int(i) for i in index]

        def pick(values):
            return None if values is None else [values[i] for i in index]

        return Samples(
            self.root, pick(self.paths), pick(self.texts), self.sides[index], pick(self.generators),
            pick(self.groups), pick(self.pairs), pick(self.splits),
            None if self.targets is None else self.targets[index],
        )  # fmt: skip

    def key(self, i):
        """What the random draws of row ``i`` depend on: its pair where it has one, else its path."""
        return self.pairs[i] or self.paths[i]

    def unit(self, i):
        """What must stay on one side of a split: the group, else the pair, else the path."""
        return self.groups[i] or self.pairs[i] or self.paths[i]


# --- reading the sources ------------------------------------------------------------------------------------------
def open_data(config, log=None):
    """Find the training and validation samples that a configuration describes.

    Parameters
    ----------
    config : aidet.config.Config
    log : callable, optional
        Takes one line of text.

    Returns
    -------
    (Samples, Samples or None, list of str)
        Training, validation (None where there is none) and the class names in the order of the targets.

    Raises
    ------
    UserError
        Missing data, one class only, or a validation set that shares images with the training set.
    """
    if not config.data_dir:
        raise UserError("data_dir is not set; give --data_dir FOLDER or a CSV")
    place = Path(os.path.expanduser(config.data_dir))
    if not place.exists():
        raise UserError(f"data_dir {config.data_dir!r} does not exist")
    whole = _table(place)
    train = _split(place, whole, config.train_split)
    if config.val_split and config.val_split != config.train_split:
        # An explicit fraction serves data that come without a validation part.
        optional = config.val_fraction > 0 or not config.val_while_train
        val = _split(place, whole, config.val_split, optional=optional)
    else:
        val = None
    if val is None and config.val_fraction > 0:
        train, val = hold_out(train, config.val_fraction, config.seed)
    if val is not None:
        _check_disjoint(train, val, log or (lambda text: None))
    if config.num_samples and config.num_samples < len(train):
        rng = transforms.generator(config.seed, "num_samples")
        train = train.take(sorted(rng.permutation(len(train))[: config.num_samples]))
    classes = assign_classes(train, val, config.multiclass_to_binary)
    return train, val, classes


def _table(place):
    """The rows of a CSV source, or None where the source is a folder of folders."""
    if place.is_file():
        return _read_csv(place, place.parent)
    for name in ("labels.csv", "metadata.csv"):
        if (place / name).is_file():
            return _read_csv(place / name, place)
    parts = sorted(place.glob("*/metadata.csv"), key=lambda p: natural_key(p.parent.name))
    if not parts:
        return None
    return _joined([_read_csv(p, place, prefix=p.parent.name + "/", generator=p.parent.name) for p in parts])


def _joined(tables):
    first = tables[0]
    return Samples(
        first.root,
        *[sum((getattr(t, n) for t in tables), []) for n in ("paths", "texts")],
        np.concatenate([t.sides for t in tables]),
        *[sum((getattr(t, n) for t in tables), []) for n in ("generators", "groups", "pairs")],
        splits=sum((t.splits for t in tables), []) if all(t.splits for t in tables) else None,
    )


def _read_csv(path, root, prefix="", generator=None):
    rows, header = read_table(path, "data")
    by_name = {}
    for what, choices in (("path", PATH_COLUMNS), ("label", LABEL_COLUMNS)):
        by_name[what] = next((c for c in choices if c in header), None)
        if by_name[what] is None:
            raise UserError(f"data {str(path)!r} has no column {what!r}; it has {', '.join(header)}")
    if not rows:
        raise UserError(f"data {str(path)!r} has no rows")
    generators = next((c for c in GENERATOR_COLUMNS if c in header), None)
    texts = [r[by_name["label"]].strip() for r in rows]
    paths = [prefix + r[by_name["path"]].strip().replace("\\", "/") for r in rows]
    doubled = [p for p, n in collections.Counter(paths).items() if n > 1]
    if doubled:
        raise UserError(f"data {str(path)!r}: {doubled[0]!r} stands there more than once")
    pairs = [r["pair"].strip() for r in rows] if "pair" in header else _twins(paths)
    return Samples(
        Path(root),
        paths,
        texts,
        np.array([_side(t, by_name["label"]) for t in texts]),
        [generator or (r[generators].strip() if generators else t) for r, t in zip(rows, texts)],
        [r.get("group", "").strip() for r in rows],
        pairs,
        splits=[r["split"].strip() for r in rows] if "split" in header else None,
    )


def _twins(paths):
    """Pairs that names tell: the same path but for one folder, which says real in one and generated in the other."""
    keys = []
    for path in paths:
        parts = path.split("/")
        sides = [k for k, part in enumerate(parts[:-1]) if labels.side(part, numbers=False) is not None]
        keys.append("/".join(parts[: sides[0]] + parts[sides[0] + 1 :]) if len(sides) == 1 else None)
    count = collections.Counter(keys)
    if None in count or set(count.values()) != {2}:
        return [""] * len(paths)
    return keys


def _side(text, column="label"):
    side = labels.of_cell(text, column)
    return -1 if side is None else side


def _split(place, whole, name, optional=False):
    wanted = next((names for names in SPLIT_NAMES.values() if name in names), (name,))
    wanted = (name, *(w for w in wanted if w != name))
    if whole is not None:
        return _split_of_table(whole, name, wanted, optional)
    for word in wanted:
        if (place / word).is_dir():
            return _from_folder(place, word)
    if optional:
        return None
    there = sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
    raise UserError(
        f"data_dir {str(place)!r}: {nearest(name, there, 'split')}" if there
        else f"data_dir {str(place)!r} holds neither labels.csv nor split folders"
    )  # fmt: skip


def _split_of_table(whole, name, wanted, optional):
    if whole.splits is None:
        if name in SPLIT_NAMES["train"]:
            return whole
        if optional:
            return None
        raise UserError(f"the data name no splits, so there is no {name!r}; set val_fraction to hold some out")
    for word in wanted:
        rows = [i for i, s in enumerate(whole.splits) if s == word]
        if rows:
            return whole.take(rows)
    if optional:
        return None
    raise UserError(f"data: {nearest(name, set(whole.splits), 'split')}")


def _from_folder(place, split):
    folder = place / split
    table = next((folder / n for n in ("labels.csv", "metadata.csv") if (folder / n).is_file()), None)
    if table is not None:
        return _read_csv(table, folder)
    keys = list(images.walk(folder))
    if not keys:
        raise UserError(f"{str(folder)!r} holds no images")
    flat = [k for k in keys if "/" not in k]
    if len(flat) == len(keys):
        return _numbered(place, split, keys)
    if flat:
        raise UserError(f"{str(folder)!r}: {flat[0]!r} lies in no class folder")
    parts = [k.split("/") for k in keys]
    depth = _class_level(parts)
    texts = [p[depth] for p in parts]
    # The same name in two class folders is the two sides of a pair.
    names = ["/".join(p[:depth] + p[depth + 1 :]) for p in parts]
    count = collections.Counter(names)
    n_classes = len(set(texts))
    paired = n_classes > 1 and all(count[n] == n_classes for n in names)
    return Samples(
        folder, keys, texts, np.array([_side(t) for t in texts]),
        # generated/midjourney/1.png, sdv4/ai/1.png: the folder beside the class names the generator.
        [n.rsplit("/", 1)[0] if "/" in n else t for n, t in zip(names, texts)],
        [""] * len(keys), names if paired else [""] * len(keys),
    )  # fmt: skip


def _class_level(parts):
    """The level of the class folders: the first, but where its names say nothing and those of a deeper one do
    (``sdv4/nature/1.png``, ``sdv4/ai/2.png``) that one, as ``evaluate.py`` reads the same folder."""
    folders = [p[:-1] for p in parts]
    silent = all(labels.side(f[0]) is None for f in folders)
    return (labels.class_depth(folders) or 0) if silent else 0


def _numbered(place, split, keys):
    """Numbered files and a bare column of 0 and 1 in the order of their numbers (MindCon)."""
    folder = place / split
    files = [folder / f"{n}.txt" for n in ("labels", "truth", "label", "result")] + [place / f"{split}.txt"]
    truth = next((f for f in files if f.is_file()), None)
    if truth is None:
        raise UserError(f"{str(folder)!r} has images but no class folders, no labels.csv and no {split}.txt beside it")
    column = truth.read_text(encoding="utf-8").split()
    if len(column) != len(keys) or set(column) - {"0", "1"}:
        raise UserError(
            f"{str(truth)!r} must hold {len(keys)} lines of 0 or 1, one an image; it has {len(column)} words"
        )
    keys = sorted(keys, key=natural_key)
    sides = np.array([int(c) for c in column])
    blank = [""] * len(keys)
    return Samples(folder, keys, column, sides, list(column), blank, list(blank))


def hold_out(samples, fraction, seed):
    """Split by a hash of each image's group, so that the parts stay the same when images are added.

    Returns
    -------
    (Samples, Samples)
        Training, held out.
    """

    def held(unit):
        digest = hashlib.blake2b(f"{seed}\0{unit}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") / 2**64 < fraction

    chosen = [held(samples.unit(i)) for i in range(len(samples))]
    rest, out = [i for i, h in enumerate(chosen) if not h], [i for i, h in enumerate(chosen) if h]
    if not rest or not out:
        raise UserError(f"val_fraction (={fraction}) leaves one part of {len(samples)} images empty")
    return samples.take(rest), samples.take(out)


def _check_disjoint(train, val, log):
    """No file, group or pair on both sides; files of equal bytes are counted and said."""
    for what in ("groups", "pairs"):
        shared = set(filter(None, getattr(train, what))) & set(filter(None, getattr(val, what)))
        if shared:
            raise UserError(
                f"{len(shared)} {what} are in the training and the validation split, for example {sorted(shared)[0]!r}"
            )
    here = {os.path.realpath(train.root / p) for p in train.paths}
    shared = [p for p in val.paths if os.path.realpath(val.root / p) in here]
    if shared:
        raise UserError(f"{len(shared)} images are in the training and the validation split, for example {shared[0]!r}")
    doubled = _same_bytes(train, val)
    if doubled:
        log(f"warning: {len(doubled)} validation images are byte for byte in the training set too, as {doubled[0]!r}")


def _same_bytes(train, val, limit=512 << 20):
    """Paths of validation images whose bytes are in the training set; nothing where comparing would read too much."""

    def sizes(samples):
        result = collections.defaultdict(list)
        for path in samples.paths:
            try:
                result[os.path.getsize(samples.root / path)].append(path)
            except OSError:
                pass
        return result

    ours, theirs = sizes(train), sizes(val)
    common = ours.keys() & theirs.keys()
    if sum(size * (len(ours[size]) + len(theirs[size])) for size in common) > limit:
        return []
    known = {hashlib.blake2b((train.root / p).read_bytes()).digest() for size in common for p in ours[size]}
    return sorted(
        p for size in common for p in theirs[size] if hashlib.blake2b((val.root / p).read_bytes()).digest() in known
    )


def assign_classes(train, val, by_generator=False):
    """Fill ``targets`` of both sets and return the class names.

    Real and generated become 0 and 1 wherever the names say so. With ``by_generator`` class 0 is real and every
    generator of the training set gets a class of its own (vip-cup-2022's multi-class training); a generator that only
    the validation set has keeps target -1 and counts in its two-class metrics alone. Where names say nothing, classes
    are in natural order of their names, as MindCV and torchvision have them.
    """
    both = [s for s in (train, val) if s is not None]
    known = all((s.sides >= 0).all() for s in both)
    if known and set(train.sides.tolist()) != {0, 1}:
        raise UserError(f"the training set has one class only: {sorted(set(train.texts))}")
    if by_generator:
        if not known:
            raise UserError("multiclass_to_binary needs classes that say real or generated")
        made = {g for g, side in zip(train.generators, train.sides) if side == 1}
        classes = ["real", *sorted(made, key=natural_key)]
        index = {name: i for i, name in enumerate(classes)}
        for s in both:
            s.targets = np.array([0 if side == 0 else index.get(g, -1) for g, side in zip(s.generators, s.sides)])
        return classes
    if known:
        for s in both:
            s.targets = s.sides.astype(np.int64)
        return list(labels.NAMES)
    classes = sorted(set(train.texts), key=natural_key)
    if len(classes) < 2:
        raise UserError(f"the training set has one class only: {classes}")
    extra = sorted(set(val.texts) - set(classes)) if val is not None else []
    if extra:
        raise UserError(f"the validation set has a class that the training set lacks: {extra[0]!r}")
    for s in both:
        s.targets = np.array([classes.index(t) for t in s.texts])
        s.sides = np.full(len(s), -1)
    return classes


# --- the order of an epoch ----------------------------------------------------------------------------------------
def epoch_order(samples, epoch, seed, shuffle=True, repeats=1, sampler=None, length=None):
    """Rows of one epoch with the number of their draw.

    Parameters
    ----------
    samples : Samples
    epoch, seed : int
    shuffle : bool
    repeats : int
        Every row that many times in a row, each with a different draw (Hoffer et al. 2020). The epoch keeps its
        length, so that it shows a part of the images only, as MindCV's ``aug_repeats`` does.
    sampler : {None, "class", "generator"}
        Draw classes, or generators within classes, equally often, with replacement.
    length : int, optional
        Rows drawn by a sampler; default as many as there are.

    Returns
    -------
    ndarray of int, shape (n, 2)
        Row and draw.
    """
    rng = transforms.generator(seed, "order", epoch)
    if sampler is None:
        rows = rng.permutation(len(samples)) if shuffle else np.arange(len(samples))
    else:
        probability = _probabilities(samples, sampler)
        rows = rng.choice(len(samples), size=length or len(samples), replace=True, p=probability)
    repeats = max(1, repeats)
    seen = collections.Counter()
    pairs = []
    for row in np.repeat(rows, repeats)[: len(rows)].tolist():
        pairs.append((row, seen[row]))
        seen[row] += 1
    return np.array(pairs, np.int64).reshape(-1, 2)


def _probabilities(samples, sampler):
    names = [(t, g) if sampler == "generator" else (t,) for t, g in zip(samples.targets.tolist(), samples.generators)]
    count = collections.Counter(names)
    inside = collections.Counter(name[0] for name in count)
    weight = np.array([1.0 / (count[n] * inside[n[0]]) for n in names])
    return weight / weight.sum()


# --- from files to batches ----------------------------------------------------------------------------------------
@lru_cache(maxsize=16)
def pipeline(text):
    """The parsed pipeline, parsed once a process."""
    return transforms.Pipeline(text)


@lru_cache(maxsize=16)
def to_numbers(text: str) -> Optional[transforms.Pipeline]:
    """The last operation of a pipeline where it maps grey levels to numbers one by one, else None.

    Workers leave it to the batch (:meth:`Loader._numbers`): bytes are a quarter to send, and one call serves them all.
    """
    line = pipeline(text)
    last = line.numbers.parts == line.parts[-1:]
    return line.numbers if last and line.affine() else None


def _one(text, seed, source, key, view, size, splits=1):
    """One image through the pipeline: (array, None), or (None, reason).

    The array is uint8 (h, w, 3) where :func:`to_numbers` is left to do, else float32 (3, h, w), with several splits
    (splits, 3, h, w).
    """
    try:
        image = images.decode(source)
        if splits > 1:
            array = _splits(pipeline(text), image, seed, key, view, splits)
        elif to_numbers(text):
            rng = transforms.generator(seed, key, view)
            array = np.asarray(transforms.applied(pipeline(text).geometry.steps, image, rng))
        else:
            array = pipeline(text)(image, transforms.generator(seed, key, view))
    except images.ImageError as error:
        return None, str(error)
    found = array.shape[:2] if array.dtype == np.uint8 else array.shape[-2:]
    if size is not None and found != tuple(size):
        return None, f"the pipeline gave {found} pixels, not {tuple(size)}"
    return array, None


def _splits(line, image, seed, key, view, splits):
    """The augmentation splits of AugMix (Hendrycks et al. 2020): one crop, without and with the automatic policy.

    Returns
    -------
    ndarray of float32, shape (splits, 3, h, w)
        The first without ``auto_augment``; every one with its own draws from there on.
    """
    at = [name for name, _ in line.steps].index("auto_augment")
    rng = transforms.generator(seed, key, view)
    image = transforms.applied(line.steps[:at], image, rng)
    out = []
    for number in range(splits):
        rng = transforms.generator(seed, key, f"{view}.split{number}")
        part = transforms.applied(line.steps[at + (number == 0) :], image, rng)
        out.append(part if isinstance(part, np.ndarray) else transforms._to_array(part))
    return np.stack(out)


class _Rows(NamedTuple):
    """Rows of a :class:`_Memory` that other processes can map: the arguments of :func:`_mapped`, and which rows."""

    place: tuple
    rows: list


@lru_cache(maxsize=4)
def _mapped(file, serial, shape):
    """In a worker: the pixels of a :class:`_Memory`, uint8 (n, h, w, 3), read only.

    ``serial`` tells two memories apart that had the same file number one after the other.
    """
    with open(file, "rb") as opened:
        return np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.uint8).reshape(shape)


def _chunk(text, seed, size, sources, views, splits=1):
    """Run by a worker: a part of a batch. Errors come back as text, so that the caller can name the file.

    ``sources`` are paths, or pixels; of small images one array (n, h, w, 3), which is sent faster than n of them, or
    a :class:`_Rows`, which is sent faster still. ``views`` are the (key, view) that each image's draws depend on.
    """
    if isinstance(sources, _Rows):
        sources = _mapped(*sources.place)[sources.rows]
    if splits == 1 and to_numbers(text):
        out = np.zeros((len(views), *size, 3), np.uint8)
    else:
        out = np.zeros((len(views), *((splits,) if splits > 1 else ()), 3, *size), np.float32)
    reasons = {}
    for i, (source, (key, view)) in enumerate(zip(sources, views)):
        array, reason = _one(text, seed, source, key, view, size, splits)
        if reason is None:
            out[i] = array
        else:
            reasons[i] = reason
    return out, reasons


def _start_worker(parent):
    """Workers leave when the trainer is gone, also when it was killed; Ctrl-C is the trainer's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_DEAD = "a worker process was killed (short of memory?); go on with --resume auto, with fewer num_parallel_workers or 0"


class Workers:
    """A pool of processes that decode and transform; with 0 workers the work is done in a thread of this process.

    Processes, because PIL and NumPy hold Python's lock for much of an augmentation; started fresh (``spawn``), because
    forking a process that runs MindSpore's threads can hang.
    """

    def __init__(self, count):
        self.count = min(count, os.cpu_count() or 1)
        self._pool = None

    def submit(self, *arguments):
        """A future of :func:`_chunk`."""
        if self._pool is None:
            self._pool = self._open()
        try:
            with runtime.without_ctrl_c():
                return self._pool.submit(_chunk, *arguments)
        except BrokenExecutor:
            raise UserError(_DEAD) from None

    def _open(self):
        if self.count == 0:
            from concurrent.futures import ThreadPoolExecutor

            return ThreadPoolExecutor(1)
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
        atexit.register(pool.shutdown, wait=False, cancel_futures=True)
        return pool

    def close(self):
        """End the pool."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


class Loader:
    """Batches of one set of samples.

    Parameters
    ----------
    samples : Samples
    text : str
        One-line pipeline.
    size : (int, int)
        Height and width that it gives.
    batch_size : int
    seed : int
    workers : Workers
    cache_mb : int
        Sets of small images of one size are decoded once and kept in memory when they fit.
    splits : int
        Views of every image (see :func:`_splits`); the pipeline then holds an ``auto_augment``.
    """

    AHEAD = 4  # batches under way at a time

    def __init__(self, samples, text, size, batch_size, seed, workers, cache_mb=1024, splits=1):
        self.samples, self.text, self.size, self.splits = samples, text, tuple(size), splits
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.failed = {}
        self._memory = _Memory(samples, cache_mb << 20, shared=workers.count > 0)
        self._last = to_numbers(text) if splits == 1 else None
        self._direct = None

    def run(self, order, epoch):
        """Yield ``(x, rows)`` for consecutive batches of ``order``.

        Parameters
        ----------
        order : ndarray of int, shape (n, 2)
            Row (-1: nothing, a place kept so that shapes stay equal) and draw.
        epoch : int

        Yields
        ------
        x : ndarray of float32, shape (splits * batch_size, 3, h, w)
            Zeros where there is no image. With several splits first all the images of split 0, then of split 1, ...
        rows : ndarray of int, shape (batch_size,)
            -1 where there is no image, or none that could be read (:attr:`failed` names it).
        """
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        plain = self._plain()
        pending = collections.deque()
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
            yield self._remembered(batch) if futures is None else self._collect(batch, futures)

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
            job = self.workers.submit(self.text, self.seed, self.size, sources, views, self.splits)
            futures.append((list(places), job))
        return futures

    def _collect(self, batch, futures):
        x = np.zeros((self.splits, self.batch_size, 3, *self.size), np.float32)
        rows = np.full(self.batch_size, -1, np.int64)
        rows[: len(batch)] = batch[:, 0]
        for places, job in futures:
            try:
                values, reasons = job.result()
            except BrokenExecutor:
                raise UserError(_DEAD) from None
            if self._last:
                values = self._numbers(values)
            x[:, places] = values.swapaxes(0, 1) if self.splits > 1 else values
            for i, reason in reasons.items():
                row = int(rows[places[i]])
                self.failed.setdefault(self.samples.paths[row], reason)
                rows[places[i]] = -1
                x[:, places[i]] = 0
        return x.reshape(-1, 3, *self.size), rows

    def _numbers(self, pixels):
        """The pipeline's last operation for uint8 (n, h, w, 3) at once, as one tall image: float32 (n, 3, h, w)."""
        n, h, w, _ = pixels.shape
        return self._last(pixels.reshape(n * h, w, 3), None).reshape(3, n, h, w).swapaxes(0, 1)

    def _plain(self):
        """Whether the pipeline only maps the grey levels of images that are in memory to numbers."""
        if not self._last or not self._memory.filled or self._memory.size != self.size:
            return False
        if self._direct is None:
            self._direct = all(self._idle(name, step) for name, step in pipeline(self.text).geometry.steps)
        return self._direct

    def _idle(self, name, step):
        """Whether a step leaves images of the memory's size alone, as a resize to the size they have."""
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
    """Decoded pixels of a set of small images of one size; empty where they do not fit or differ in size."""

    SMALL = 128  # side; larger images cost more to transform than to decode
    _serial = itertools.count()

    def __init__(self, samples, limit, shared):
        self.samples, self.failed, self.pixels, self.size = samples, {}, None, None
        self.filled, self._shared = False, None
        self._fill(limit, shared)

    def _fill(self, limit, shared):
        if not len(self.samples):
            return
        try:
            first = images.decode(self.samples.root / self.samples.paths[0])
        except images.ImageError:
            return
        w, h = first.size
        if max(w, h) > self.SMALL or w * h * 3 * len(self.samples) > limit:
            return
        shape = (len(self.samples), h, w, 3)
        pixels = self._mappable(shape) if shared else np.zeros(shape, np.uint8)
        for i, path in enumerate(self.samples.paths):
            try:
                image = images.decode(self.samples.root / path)
            except images.ImageError as error:
                self.failed[i] = str(error)
                continue
            if image.size != (w, h):
                return
            pixels[i] = np.asarray(image)
        self.pixels, self.size, self.filled = pixels, (h, w), True

    def _mappable(self, shape):
        """Zeros, uint8, in a file without a name (Linux), which the workers map instead of being sent the pixels.

        It is gone with the process, also with one that was killed.
        """
        size = int(np.prod(shape))
        try:
            number = os.memfd_create("pixels")
            weakref.finalize(self, os.close, number)
            os.ftruncate(number, size)
            array = np.frombuffer(mmap.mmap(number, size), np.uint8).reshape(shape)
            file = f"/proc/{os.getpid()}/fd/{number}"
            open(file, "rb").close()  # a sandbox may have no /proc, or not let it be opened
        except (AttributeError, OSError):  # the first where the system has no such files
            return np.zeros(shape, np.uint8)
        self._shared = (file, next(self._serial), shape)
        return array

    def get(self, rows):
        """Pixels of the rows: where to find them, or one array, or a list with paths where there are none."""
        if self.filled and self.failed.keys().isdisjoint(rows):
            return _Rows(self._shared, rows) if self._shared else self.pixels[rows]
        known = set(rows).difference(self.failed) if self.filled else ()
        return [self.pixels[row] if row in known else str(self.samples.root / self.samples.paths[row]) for row in rows]


def describe(samples):
    """One line: how many of each class, and of each generator where there are several."""
    count = collections.Counter(
        samples.texts if (samples.sides < 0).any() else [labels.NAMES[s] for s in samples.sides]
    )
    text = ", ".join(f"{n} {name}" for name, n in sorted(count.items())[:12])
    kinds = len(set(samples.generators))
    paired = sum(1 for p in samples.pairs if p)
    more = [f"{kinds} sources" if kinds > len(count) else "", f"{paired} in pairs" if paired else ""]
    return f"{len(samples)} images ({text}{''.join(', ' + m for m in more if m)})"


def warn(text):
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)
