"""Duplicate images across splits: same path, bytes or pixels, or near-duplicates, including mirrored or turned ones.

A test set that shares images with the training set measures memorization. CIFAKE, for example, has 378 generated files
that are byte-identical in its training and test folders.
"""

import hashlib
import itertools
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image

from .. import images
from ..errors import UserError

LEVELS = ("path", "bytes", "pixels", "near", "turned", "crop")  # crop: aidet.audit.crops, on request
THUMB = 16
HASHED, LOW = 32, 8  # pHash: the 8 x 8 lowest frequencies of the cosine transform of 32 x 32 pixels
CORRELATION = 0.95
CHUNK = 1 << 20
_READING = images.Reading()
Leak = Tuple[str, int, int, int]  # level, row in the other split, row in the known one, differing bits (crop: corners)


@dataclass
class Prints:
    """Fingerprints of one split.

    Attributes
    ----------
    paths : list of str
        As given, only the files that could be read.
    files : list of str
        The same files as absolute paths, with links resolved.
    digest, pixels : ndarray of bytes, shape (n,)
        Hash of the file, and hash of its decoded RGB pixels and their size.
    look : ndarray of uint64, shape (n,)
        Perceptual hash (pHash: signs of the 64 lowest cosine frequencies against their median; Zauner 2010).
    thumbs : ndarray of int8, shape (n, 256)
        Grey 16 x 16 thumbnail, mean removed, to verify candidates.
    lost : list of (str, str)
        Path and reason for each file that could not be read.
    waves : ndarray of float32, shape (n, 8, 8), optional
        The frequencies from which ``look`` is computed. Mirroring an image only changes their signs, and a quarter
        turn also transposes them, so the hashes of all eight orientations follow from one transform. If None, turned
        copies are not searched.
    """

    paths: List[str]
    files: List[str]
    digest: np.ndarray
    pixels: np.ndarray
    look: np.ndarray
    thumbs: np.ndarray
    lost: List[Tuple[str, str]]
    waves: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.paths)


def fingerprint(path: Union[str, Path], reading: images.Reading = _READING) -> tuple:
    """Fingerprints of one file.

    Parameters
    ----------
    path : str or Path
    reading : aidet.images.Reading
        How images are read.

    Returns
    -------
    tuple
        (file digest, pixel digest, perceptual hash as int, thumbnail (256,) int8, frequencies (64,) float32), or
        (reason,) if the file cannot be read.
    """
    import imagehash
    from scipy.fft import dctn

    try:
        with images.binary(path) as file:
            digest = hashlib.blake2b(file.read(), digest_size=16).digest()
    except OSError as error:
        return (error.strerror or str(error),)
    try:
        image = reading.decode(path)
    except images.ImageError as error:
        return (str(error),)
    pixels = hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()
    grey = image.convert("L")
    small = grey.resize((HASHED, HASHED), Image.Resampling.LANCZOS)  # the same first step as in imagehash
    bits = imagehash.phash(small).hash.reshape(-1)
    waves = dctn(np.asarray(small, np.float64))[:LOW, :LOW].astype(np.float32)
    look = int.from_bytes(np.packbits(bits).tobytes(), "big")
    thumb = np.asarray(grey.resize((THUMB, THUMB), 2), np.float32).reshape(-1)  # 2: bilinear with antialiasing
    thumb = np.clip(np.rint((thumb - thumb.mean()) / 2), -127, 127).astype(np.int8)
    return digest, pixels, look, thumb, waves.reshape(-1)


def collect(paths: Sequence[str], files: Sequence[Union[str, Path]], results: Sequence[tuple]) -> Prints:
    """Combine the results of :func:`fingerprint`, of files in the order of ``paths``, into one :class:`Prints`."""
    good, lost, places = [], [], []
    for path, file, one in zip(paths, files, results):
        if len(one) == 1:
            lost.append((path, one[0]))
        else:
            good.append((path, *one))
            places.append(os.path.realpath(file))
    columns = list(zip(*good)) or [()] * 6
    return Prints(
        list(columns[0]),
        places,
        np.array(columns[1], "V16"),
        np.array(columns[2], "V16"),
        np.array(columns[3], np.uint64),
        np.array(columns[4], np.int8).reshape(-1, THUMB * THUMB),
        lost,
        np.array(columns[5], np.float32).reshape(-1, LOW, LOW),
    )


def turned(prints: Prints) -> Iterator[Prints]:
    """The split with every image mirrored or turned: seven :class:`Prints`, one for each new orientation."""
    assert prints.waves is not None  # without them, compare searches no turned copies
    sign = np.where(np.arange(LOW) % 2, -1, 1).astype(np.float32)
    thumbs = prints.thumbs.reshape(-1, THUMB, THUMB)
    for swap, down, across in list(itertools.product((False, True), repeat=3))[1:]:
        waves, small = prints.waves, thumbs
        if swap:
            waves, small = waves.transpose(0, 2, 1), small.transpose(0, 2, 1)
        if down:
            waves, small = waves * sign[:, None], small[:, ::-1]
        if across:
            waves, small = waves * sign, small[:, :, ::-1]
        flat = waves.reshape(len(prints), -1)
        bits = flat > np.median(flat, axis=1, keepdims=True) if len(prints) else flat > 0
        look = np.packbits(bits, axis=1).view(">u8").astype(np.uint64).reshape(-1)
        yield replace(prints, look=look, thumbs=np.ascontiguousarray(small).reshape(len(prints), -1))


def compare(known: Prints, other: Prints, distance: int = 4) -> List[Leak]:
    """Which images of ``other`` are already in ``known``.

    Parameters
    ----------
    known, other : Prints
    distance : int
        Maximum number of differing bits, of 64, between the perceptual hashes of near-duplicates; their thumbnails
        must also correlate by at least 0.95. The same holds for *turned* copies after mirroring or rotating them by a
        multiple of 90 degrees.

    Returns
    -------
    list of (str, int, int, int)
        Level, row in ``other``, row in ``known``, differing bits. Each image of ``other`` has at most one entry, at
        its strongest level (path, bytes, pixels, near, turned); entries are in ascending order of that row.

    Raises
    ------
    UserError
        The distance is outside 0..12.
    """
    if not 0 <= distance <= 12:
        raise UserError(f"distance (={distance}) must be between 0 and 12")
    found = {}
    for level, mine, theirs in (
        ("path", known.files, other.files),
        ("bytes", [d.tobytes() for d in known.digest], [d.tobytes() for d in other.digest]),
        ("pixels", [d.tobytes() for d in known.pixels], [d.tobytes() for d in other.pixels]),
    ):
        place: Dict[Any, Any] = {}
        for i, key in enumerate(mine):
            place.setdefault(key, i)
        for j, key in enumerate(theirs):
            if key in place and j not in found:
                found[j] = (level, j, place[key], 0)
    for j, i, bits in near(known, other, distance):
        found.setdefault(j, ("near", j, i, bits))
    if known.waves is not None and other.waves is not None:
        for view in turned(other):
            for j, i, bits in near(known, view, distance):
                if j not in found or (found[j][0] == "turned" and bits < found[j][3]):
                    found[j] = ("turned", j, i, bits)
    return [found[j] for j in sorted(found)]


def near(known: Prints, other: Prints, distance: int) -> List[Tuple[int, int, int]]:
    """Near-duplicates as (row in other, row in known, bits), with the nearest match for each row of ``other``.

    Hashes that differ in at most d bits are identical in at least one of d + 1 bands of bits (multi-index hashing,
    Norouzi, Punjani & Fleet 2012), so only pairs that share a band are compared.
    """
    best: Dict[Any, Any] = {}
    edges = [64 * i // (distance + 1) for i in range(distance + 2)]  # bands of one width might be fewer than d + 1
    for start, end in zip(edges, edges[1:]):
        mask = np.uint64((1 << (end - start)) - 1)
        bands = [(side.look >> np.uint64(start)) & mask for side in (known, other)]
        for mine, theirs in equal_pairs(*bands):
            bits = popcount(known.look[mine] ^ other.look[theirs])
            close = bits <= distance
            mine, theirs, bits = mine[close], theirs[close], bits[close]
            same = correlation(known.thumbs[mine], other.thumbs[theirs]) >= CORRELATION
            for i, j, b in zip(mine[same].tolist(), theirs[same].tolist(), bits[same].tolist()):
                if j not in best or (b, i) < best[j][::-1]:
                    best[j] = (i, b)
    return [(j, i, b) for j, (i, b) in sorted(best.items())]


def equal_pairs(left: np.ndarray, right: np.ndarray) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Index arrays of all pairs with equal values, about a million pairs at a time.

    Parameters
    ----------
    left, right : ndarray, shapes (n,) and (m,)

    Yields
    ------
    (ndarray of int, ndarray of int)
        Rows of ``left`` and of ``right``, same length.
    """
    order = np.argsort(left, kind="stable")
    ordered = left[order]
    low, high = np.searchsorted(ordered, right, "left"), np.searchsorted(ordered, right, "right")
    count = high - low
    total = np.cumsum(count)
    first = 0
    while first < len(right):
        done = total[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(total, done + CHUNK, "right")))
        part = count[first:last]
        theirs = np.repeat(np.arange(first, last), part)
        within = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
        yield order[np.repeat(low[first:last], part) + within], theirs
        first = last


def popcount(values: np.ndarray) -> np.ndarray:
    """Number of set bits in each uint64 value."""
    return np.unpackbits(np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Row-wise correlation of thumbnails (n, 256); 0 if one of the two is flat and so carries no information."""
    out = np.zeros(len(first))
    for start in range(0, len(first), 1 << 16):
        a, b = (v[start : start + (1 << 16)].astype(np.float32) for v in (first, second))
        norm = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
        flat = norm < THUMB * THUMB
        out[start : start + (1 << 16)] = np.where(flat, 0, (a * b).sum(axis=1) / np.maximum(norm, 1))
    return out


def doubles(prints: Prints) -> int:
    """Number of byte-identical duplicates within one split."""
    return len(prints) - len({d.tobytes() for d in prints.digest})
