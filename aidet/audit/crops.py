"""Crops of one image in several splits, found by local features.

Corners with ORB descriptors (Rublee et al., ICCV 2011) are matched between images. If a pair has several matches, one
image is aligned with the other by the shift, scale and rotation that most matches agree on. The pair counts as a crop
only if the aligned pixels agree as well. Needs OpenCV. Images without corners or below 64 pixels are not searched.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Collection, Dict, Iterable, List, Sequence, Tuple, Union

import numpy as np

from .. import images
from ..errors import UserError
from . import fingerprints

SIDE = 512  # longer side at which features are found
SMALLEST = 64
CORNERS = 250
BANDS = 8  # a descriptor's 256 bits form 8 bands of 32; descriptors that are equal in one band are compared
COMMON = 60  # a band value is ignored if more corners of the known split have it
BITS = 48  # descriptors that differ in more of their 256 bits do not match
MATCHES, AGREEING = 6, 6
TRIED = 5  # known images compared with each image
OVERLAP = 0.4  # fraction of the smaller image that must lie inside the other
COMPARED = 32  # the overlap is compared at this many pixels per side
_READING = images.Reading()
NOTHING = (np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8))


@dataclass
class Corners:
    """Corners of the images of one split.

    Attributes
    ----------
    owner : ndarray of int, shape (n,)
        Row of the image.
    place : ndarray of float32, shape (n, 2)
        Position (x, y) in pixels of the reduced image.
    code : ndarray of uint8, shape (n, 32)
        ORB descriptors.
    """

    owner: np.ndarray
    place: np.ndarray
    code: np.ndarray


def _cv2():
    try:
        import cv2
    except ImportError:
        raise UserError("--crops needs OpenCV; run: pip install 'aidet[train]'") from None
    return cv2


def require() -> None:
    """Raise :class:`UserError` if OpenCV is missing."""
    _cv2()


def _grey(path, reading):
    """Grey pixels, longer side at most 512; None if the file cannot be decoded or is too small."""
    try:
        image = reading.decode(path).convert("L")
    except images.ImageError:
        return None
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image) if min(image.size) >= SMALLEST else None


def corners(path: Union[str, Path], reading: images.Reading = _READING) -> Tuple[np.ndarray, np.ndarray]:
    """Corners of one file.

    Parameters
    ----------
    path : str or Path
    reading : aidet.images.Reading
        How images are read.

    Returns
    -------
    (ndarray (k, 2) float32, ndarray (k, 32) uint8)
        Positions and descriptors; empty if there are none.
    """
    cv2, grey = _cv2(), _grey(path, reading)
    found = [] if grey is None else cv2.ORB_create(nfeatures=CORNERS, fastThreshold=4).detectAndCompute(grey, None)
    if not len(found) or not found[0]:
        return NOTHING
    return np.array([p.pt for p in found[0]], np.float32), found[1]


def collect(results: Iterable[Tuple[np.ndarray, np.ndarray]]) -> Corners:
    """Combine the results of :func:`corners`, in the order of the images, into one :class:`Corners`."""
    results = [*results, NOTHING]
    places, codes = zip(*results)
    return Corners(
        np.repeat(np.arange(len(results)), list(map(len, places))), np.concatenate(places), np.concatenate(codes)
    )


def candidates(known: Corners, other: Corners) -> Dict[int, List[Tuple[int, np.ndarray, np.ndarray]]]:
    """Pairs of images with at least six matching corners.

    Parameters
    ----------
    known, other : Corners

    Returns
    -------
    dict of int to list of (int, ndarray, ndarray)
        For each row of ``other``, at most five rows of ``known``, most matches first, each with the matching
        positions (m, 2) in ``other`` and in ``known``.
    """
    met = []
    for band in range(BANDS):
        one, two = (np.ascontiguousarray(c.code[:, 4 * band : 4 * band + 4]).view(np.uint32).reshape(-1)
                    for c in (known, other))  # fmt: skip
        values, count = np.unique(one, return_counts=True)
        rare = np.flatnonzero(~np.isin(one, values[count > COMMON]))
        for i, j in fingerprints.equal_pairs(one[rare], two):
            i = rare[i]
            bits = np.unpackbits(known.code[i] ^ other.code[j], axis=1).sum(axis=1)
            met.append(np.stack([i, j], 1)[bits <= BITS])
    pairs = np.unique(np.concatenate(met), axis=0) if met else np.zeros((0, 2), int)
    by_images: Dict[Any, Any] = {}
    for i, j in pairs.tolist():
        by_images.setdefault((int(other.owner[j]), int(known.owner[i])), []).append((j, i))
    found: Dict[Any, Any] = {}
    for (row, mine), rows in by_images.items():
        if len({j for j, _ in rows}) >= MATCHES:
            j, i = np.array(rows).T
            found.setdefault(row, []).append((mine, other.place[j], known.place[i]))
    return {row: sorted(some, key=lambda s: -len(s[1]))[:TRIED] for row, some in found.items()}


def agree(
    known: Union[str, Path],
    other: Union[str, Path],
    here: np.ndarray,
    there: np.ndarray,
    reading: images.Reading = _READING,
) -> float:
    """How well the pixels of two images agree after alignment by their matching corners.

    Parameters
    ----------
    known, other : str or Path
    here, there : ndarray (m, 2)
        Matching positions in ``other`` and in ``known``.
    reading : aidet.images.Reading
        How images are read.

    Returns
    -------
    float
        Correlation of the overlap; 0 if the corners do not agree on an alignment or the images hardly overlap.
    """
    cv2 = _cv2()
    move, inside = cv2.estimateAffinePartial2D(there, here, method=cv2.RANSAC, ransacReprojThreshold=4)
    if move is None or len({tuple(p) for p in here[inside.reshape(-1) == 1]}) < AGREEING:
        return 0.0
    one, two = _grey(known, reading), _grey(other, reading)
    if one is None or two is None:
        return 0.0
    size = (two.shape[1], two.shape[0])
    laid = cv2.warpAffine(one, move, size, flags=cv2.INTER_AREA).astype(np.float32)
    cover = cv2.warpAffine(np.full(one.shape, 255, np.uint8), move, size, flags=cv2.INTER_NEAREST)
    # The overlap is relative to the smaller image: the other image, or the known one after alignment.
    zoom = abs(np.linalg.det(move[:, :2]))
    if not 1 / 64 < zoom < 64 or (cover > 0).sum() < OVERLAP * min(two.size, one.size * zoom):
        return 0.0
    rows, columns = (np.flatnonzero((cover > 0).any(axis=a)) for a in (1, 0))
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    small = [cv2.resize(np.where(cover > 0, v, 0)[part].astype(np.float32), (COMPARED, COMPARED),
                        interpolation=cv2.INTER_AREA) for v in (laid, two)]  # fmt: skip
    seen = cv2.resize(cover[part], (COMPARED, COMPARED), interpolation=cv2.INTER_AREA) == 255
    if seen.sum() < COMPARED or min(v[seen].std() for v in small) < 2:
        return 0.0
    return float(np.corrcoef(small[0][seen], small[1][seen])[0, 1])


def compare(
    known: Corners,
    other: Corners,
    known_files: Sequence[str],
    other_files: Sequence[str],
    skip: Collection[int] = (),
    reading: images.Reading = _READING,
) -> List[fingerprints.Leak]:
    """Which images of ``other`` share a part with an image of ``known``.

    Parameters
    ----------
    known, other : Corners
    known_files, other_files : sequence of str
        The image files; they are decoded again for the final pixel comparison.
    skip : collection of int
        Rows of ``other`` to leave out of the search.
    reading : aidet.images.Reading
        How images are read.

    Returns
    -------
    list of (str, int, int, int)
        ``("crop", row in other, row in known, matching corners)``.
    """
    out = []
    for row, tried in sorted(candidates(known, other).items()):
        if row in skip:
            continue
        for mine, here, there in tried:
            if agree(known_files[mine], other_files[row], here, there, reading) >= fingerprints.CORRELATION:
                out.append(("crop", row, mine, len(here)))
                break
    return out
