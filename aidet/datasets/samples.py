"""Training sets: from the sources to samples with classes, their split into training and validation.

Sources: an ImageFolder ``data_dir/<split>/[<anything>/]<class>/``; a CSV
``path,label[,generator][,split][,group][,pair]``; ArtiFact folders with ``metadata.csv``
(``image_path,target,category``; Rahman et al., ICIP 2023); numbered files beside a bare column of 0 and 1 (MindCon).
Classes are read as ``evaluate.py`` reads them (:func:`aidet.datasets.folders.layout`,
:func:`aidet.labels.of_cell`).
"""

import collections
import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, List, NoReturn, Optional, Sequence, Tuple

import numpy as np

from .. import images, labels
from ..errors import UserError, nearest
from ..records import natural_key
from . import pairs, sources
from .archived import chunks, layout_of, named_splits
from .folders import first_folders, layout, read_numbered, refuse_silent

# Columns kept besides paths and classes. Others are dropped: a training set may have millions of rows.
COLUMNS = ("split", "group", "pair", "mask", "area")


@dataclass
class Samples(sources.Table):
    """Training images: a table in which every row has a class.

    Attributes
    ----------
    paths, columns, root, source
        As in :class:`aidet.datasets.sources.Table`; of the columns only :data:`COLUMNS`, as far as the source has them.
    texts : list of str
        The class as the source writes it.
    sides : ndarray of int, shape (n,)
        0 real, 1 generated, -1 if the class says neither.
    generators : list of str
    pairs : list of str
        Images of one pair get the same random draws. The column ``pair``; without it, the pairs that names suggest (the
        same name in both class folders) and groups or pixels confirm, see :mod:`aidet.datasets.pairs`. ``""`` if there
        is none.
    targets : ndarray of int, shape (n,)
        Index of the class, filled by :func:`assign_classes`; -1 if training has no such class.
    """

    paths: List[str]
    texts: List[str] = None  # type: ignore[assignment]  # always given, as are the next three; the base class has defaults
    sides: np.ndarray = None  # type: ignore[assignment]
    generators: List[str] = None  # type: ignore[assignment]
    pairs: List[str] = None  # type: ignore[assignment]
    targets: Optional[np.ndarray] = None

    @cached_property
    def chunks(self) -> Optional[np.ndarray]:
        """Which rows can only be read together, see :func:`aidet.datasets.archived.chunks`."""
        return chunks(self)

    @property
    def splits(self) -> Optional[List[str]]:
        """The column ``split``, or None."""
        return self.columns.get("split")

    def key(self, i: int) -> str:
        """Seed of the random draws of row ``i``: its pair if it has one, else its path."""
        return self.pairs[i] or self.paths[i]

    def units(self) -> List[str]:
        """What must stay on one side of a split, for every row, see :func:`aidet.datasets.pairs.units`."""
        return pairs.units(self.groups() or [""] * len(self), self.pairs, self.paths)


def open_data(config: Any, log: Optional[Callable[[str], None]] = None) -> Tuple[Samples, Optional[Samples], List[str]]:
    """Find the training and validation samples that a configuration describes.

    Parameters
    ----------
    config : aidet.config.Config
    log : callable, optional
        Takes one line of text.

    Returns
    -------
    (Samples, Samples or None, list of str)
        Training, validation (None if there is none) and the class names in the order of the targets.

    Raises
    ------
    UserError
        Missing data, one class only, or a validation set that shares images with the training set.
    """
    if not config.data_dir:
        raise UserError("data_dir is not set; give --data_dir FOLDER or a CSV")
    sources.refuse_address(config.data_dir, "data_dir")
    place = Path(os.path.expanduser(config.data_dir))
    if not place.exists():
        raise UserError(f"data_dir {config.data_dir!r} does not exist")
    log = log or (lambda text: None)
    whole = _table(place, log)
    silent = whole.splits.count("") if whole is not None and whole.splits else 0
    if silent:
        log(f"note: {silent} of {len(whole or ())} images name no split, although others do; they are left out")
    train = _split(place, whole, config.train_split, log)
    assert train is not None  # the training split is not optional
    if config.val_split and config.val_split != config.train_split:
        # An explicit fraction serves data that come without a validation part.
        optional = config.val_fraction > 0 or not config.val_while_train
        val = _split(place, whole, config.val_split, log, optional=optional)
    else:
        val = None
    if val is None and config.val_fraction > 0:
        train, val = hold_out(train, config.val_fraction, config.seed)
    if val is not None:
        _check_disjoint(train, val, log)
    if config.num_samples and config.num_samples < len(train):
        rng = images.generator(config.seed, "num_samples")
        train = train.take(sorted(rng.permutation(len(train))[: config.num_samples]))
    classes = assign_classes(train, val, config.multiclass_to_binary)
    if log is not None and config.shuffle and train.chunks is not None:
        log(
            "note: the archives can only be read in order, so images are shuffled in windows of some thousand; "
            "`python -m aidet.data pack --format tar` makes shards that can be read in any order"
        )
    if log is not None and (train.sides < 0).any():
        log(
            f"note: no class name says real or generated ({sources.examples(classes)}), so the network learns to tell "
            "these classes apart and is no detector"
        )
    return train, val, classes


def _table(place: Path, log: Callable[[str], None]) -> Optional[Samples]:
    """The rows of a table, of archives, or of the tables in a folder; None if the source is a folder of folders."""
    if sources.is_archived(place):
        return _from_archive(sources.read(place, "data"))
    if place.is_file():
        return _from_table(sources.read_csv(place, "data", labelled=True))
    parts = [_from_table(table) for table in sources.tables_in(place)]
    if not all(part.splits for part in parts):
        parts = [_without_splits(part, log) for part in parts]
    return sources.joined(parts) if parts else None


def _without_splits(part: Samples, log: Callable[[str], None]) -> Samples:
    """A part beside others that name no splits: without its own, and without what it keeps for tests."""
    splits = part.columns.get("split")
    if not splits:
        return part
    kept = [i for i, split in enumerate(splits) if split.lower() not in sources.SPLIT_NAMES["test"]]
    left = f", and {len(splits) - len(kept)} test images are left out" if len(kept) < len(splits) else ""
    log(f"note: the splits of {part.source} are not used, because a table beside it names none{left}")
    part = part.take(kept)
    part.columns.pop("split")
    return part


def _from_table(table: sources.Table) -> Samples:
    if table.paths is None:
        raise UserError(f"data {table.source!r} is a bare column of labels; give a CSV path,label or a folder")
    paths, root = table.located() or [], Path(table.root or ".")
    sources.refuse_doubles(paths, f"data {table.source!r}")
    label = sources.label_column(table.columns, table.source)
    texts = table.columns[label]
    generator = sources.column_of(table.columns, sources.GENERATOR_COLUMNS)
    columns = {name: table.columns[name] for name in COLUMNS if name in table.columns}
    return Samples(
        paths, columns, root, table.source,
        texts=texts,
        sides=_sides(texts, label),
        generators=texts if generator is None else table.columns[generator],
        pairs=columns["pair"] if "pair" in columns else pairs.of_names(
            pairs.twins(paths), [root / path for path in paths], columns.get("group")
        ),
    )  # fmt: skip


def _from_archive(table: sources.Table) -> Samples:
    if "split" not in table.columns:
        named = dict(zip(reversed(named_splits(table)), reversed(table.paths or ())))  # the first path of each
        if "test" in named:
            raise UserError(
                f"data {table.source!r}: {named['test']!r} is of a test split and {named['']!r} of none, so that both "
                "would be trained on; keep them apart, or name the split of all"
            )
    if sources.column_of(table.columns, sources.LABEL_COLUMNS) is not None:
        return _from_table(table)
    assert table.paths is not None
    found = layout_of(table, table.source)
    return Samples(
        table.paths, {name: table.columns[name] for name in COLUMNS if name in table.columns}, table.root, table.source,
        texts=found.classes,
        sides=np.array(found.sides),
        generators=found.generators,
        pairs=[""] * len(table),
    )  # fmt: skip


def _sides(texts: List[str], column: str = "label") -> np.ndarray:
    """Side of each cell or folder name, -1 if it names none."""
    known = {text: labels.of_cell(text, column) for text in set(texts)}
    return np.array([-1 if known[text] is None else known[text] for text in texts])


def _split(
    place: Path, whole: Optional[Samples], name: str, log: Callable[[str], None], optional: bool = False
) -> Optional[Samples]:
    wanted = next((names for names in sources.SPLIT_NAMES.values() if name in names), (name,))
    wanted = (name, *(w for w in wanted if w != name))
    if whole is not None:
        return _split_of_table(whole, name, wanted, optional)
    there = [word for word in wanted if (place / word).is_dir()]
    if there:
        # Where the names of files do not tell upper from lower case, one folder has two names.
        others = [word for word in there[1:] if not (place / word).samefile(place / there[0])]
        if others:
            log(f"note: {place / others[0]} is left out beside {there[0]}, because both are names of one split")
        return _from_folder(place, there[0], log)
    # GenImage has its splits below the generators; others write Train.
    left = images.LeftOut()
    keys = [key for key in images.walk(place, left) if any(part.lower() in wanted for part in key.split("/")[:-1])]
    if keys:
        for line in left.lines():
            log(f"{line} ({place})")
        return _from_class_folders(keys, place)
    if optional:
        return None
    if sources.is_without_splits(place):
        return _from_folder(place, "", log) if name in sources.SPLIT_NAMES["train"] else _no_splits(name)
    there = sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
    raise UserError(
        f"data_dir {str(place)!r}: {nearest(name, there, 'split')}{_or_hold_out(name)}" if there
        else f"data_dir {str(place)!r} holds neither labels.csv nor folders such as train/real and train/fake"
    )  # fmt: skip


def _or_hold_out(name: str) -> str:
    return "" if name in sources.SPLIT_NAMES["train"] else "; or set val_fraction, which holds some images out"


def _no_splits(name: str) -> NoReturn:
    raise UserError(f"the data name no splits, so there is no {name!r}; set val_fraction to hold some out")


def _split_of_table(whole: Samples, name: str, wanted: Sequence[str], optional: bool) -> Optional[Samples]:
    if whole.splits is None:
        if name in sources.SPLIT_NAMES["train"]:
            return whole
        return None if optional else _no_splits(name)
    rows = [i for i, s in enumerate(whole.splits) if s == name or s.lower() in wanted]
    if rows:
        return whole.take(rows)
    if optional:
        return None
    raise UserError(f"data: {nearest(name, set(whole.splits), 'split')}{_or_hold_out(name)}")


def _from_folder(place: Path, split: str, log: Callable[[str], None]) -> Samples:
    folder = place / split
    table = sources.table_of(folder)
    if table is not None:
        return _from_table(table)
    left = images.LeftOut()
    keys = list(images.walk(folder, left))
    if not keys:
        raise UserError("; ".join((f"{str(folder)!r} holds no images", *left.lines())))
    for line in left.lines():
        log(f"{line} ({folder})")
    flat = [k for k in keys if "/" not in k]
    if len(flat) == len(keys):
        numbered = read_numbered(place, split, keys)
        assert numbered.paths is not None
        texts = numbered.columns["label"]
        return Samples(
            numbered.paths, {}, numbered.root, numbered.source,
            texts=texts, sides=_sides(texts), generators=list(texts), pairs=[""] * len(keys),
        )  # fmt: skip
    if flat:
        raise UserError(f"{str(folder)!r}: {flat[0]!r} lies in no class folder")
    return _from_class_folders(keys, folder)


def _from_class_folders(keys: List[str], folder: Path) -> Samples:
    """Real and generated as the folders say; classes by the first folder only if none of them says either."""
    found = layout(keys, str(folder))
    if any(side is not None for side in found.sides):
        refuse_silent(keys, found.sides, str(folder))
        return Samples(
            keys, {}, folder, str(folder),
            texts=found.classes,
            sides=np.array(found.sides),
            generators=found.generators,
            pairs=pairs.of_names(found.names, [folder / key for key in keys], None),
        )  # fmt: skip
    texts = first_folders(keys)
    none = np.full(len(keys), -1)
    return Samples(
        keys, {}, folder, str(folder), texts=texts, sides=none, generators=list(texts), pairs=[""] * len(keys)
    )


def hold_out(samples: Samples, fraction: float, seed: int) -> Tuple[Samples, Samples]:
    """Split by a hash of each image's unit, so that the parts stay the same when images are added.

    Returns
    -------
    (Samples, Samples)
        Training, held out.
    """

    def held(unit):
        digest = hashlib.blake2b(f"{seed}\0{unit}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") / 2**64 < fraction

    chosen = [held(unit) for unit in samples.units()]
    rest, out = [i for i, h in enumerate(chosen) if not h], [i for i, h in enumerate(chosen) if h]
    if not rest or not out:
        raise UserError(f"val_fraction (={fraction}) leaves one part of {len(samples)} images empty")
    return samples.take(rest), samples.take(out)


def _check_disjoint(train: Samples, val: Samples, log: Callable[[str], None]) -> None:
    """Refuse a file, group or pair on both sides; warn about files with equal bytes and about pairs that look alike.

    Only a column defines pairs with certainty. Equal names prove nothing: most data sets restart their numbering in
    every folder.
    """
    for what in ("group", "pair"):
        shared = _shared(train.columns.get(what, ()), val.columns.get(what, ()))
        if shared:
            raise UserError(
                f"{len(shared)} {what}s are in the training and the validation split, for example {shared[0]!r}; "
                f"give all images of one {what} the same split"
            )
    here = {os.path.realpath(train.root / p) for p in train.paths}
    shared = [p for p in val.paths if os.path.realpath(val.root / p) in here]
    if shared:
        raise UserError(f"{len(shared)} images are in the training and the validation split, for example {shared[0]!r}")
    if train.root == val.root:  # names in two folders of splits have nothing to do with each other
        shared = _shared(train.pairs, val.pairs)
        if shared:
            log(
                f"warning: {len(shared)} names have one class in training and another in validation, such as "
                f"{shared[0]!r}; if they are pairs, say so in a column 'pair' and give both images the same split"
            )
    doubled = _same_bytes(train, val)
    if doubled:
        log(f"warning: {len(doubled)} validation images are byte for byte in the training set too, e.g. {doubled[0]!r}")


def _shared(first: Sequence[str], second: Sequence[str]) -> List[str]:
    """The non-empty names that both have."""
    return sorted(set(filter(None, first)) & set(filter(None, second)))


def _same_bytes(train: Samples, val: Samples, limit: int = 512 << 20) -> List[str]:
    """Paths of validation images whose bytes are in the training set; nothing if comparing would read too much."""

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


def assign_classes(train: Samples, val: Optional[Samples], by_generator: bool = False) -> List[str]:
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
    _refuse_half_told(both)
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


def _refuse_half_told(sets: Sequence[Samples]) -> None:
    """Refuse classes of which some say real or generated and some do not.

    Real images and those of some generators would become classes of one kind, and the network no detector. Numbers are
    plain classes if not all of them are 0 and 1.
    """
    told = {text for s in sets for text in s.texts if labels.side(text, numbers=False) is not None}
    silent = {text for s in sets for text, side in zip(s.texts, s.sides) if side < 0}
    if told and silent:
        raise UserError(
            f"the classes {sources.examples(sorted(silent))} say neither real nor generated, but "
            f"{sources.examples(sorted(told))} do; name every class real or fake, and the generators in a folder below "
            "or in a column 'generator'"
        )


def describe(samples: Samples) -> str:
    """One line: the number of images per class, and the number of generators if there are several."""
    count = collections.Counter(
        samples.texts if (samples.sides < 0).any() else [labels.NAMES[s] for s in samples.sides]
    )
    text = ", ".join(f"{n} {name}" for name, n in sorted(count.items())[:12])
    kinds = len(set(samples.generators))
    paired = sum(1 for p in samples.pairs if p)
    more = [f"{kinds} sources" if kinds > len(count) else "", f"{paired} in pairs" if paired else ""]
    return f"{len(samples)} images ({text}{''.join(', ' + m for m in more if m)})"
