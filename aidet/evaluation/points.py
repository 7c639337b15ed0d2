"""Scoring of images at points of degradation, the log that allows a killed run to resume, and one point's metrics."""

import json
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from tqdm import tqdm

from .. import images, metrics
from ..datasets.truth import Truth
from ..detector import Detector
from ..errors import UserError
from ..labels import sigmoid
from . import degrade

MOST_VOTES = 15
TOGETHER = 16  # decoded images kept in memory when several detectors take turns
VOTES = "votes"
# A score, the scores of the first 1, 2, ... votes, or the reason why there is no score.
Value = Union[float, List[float], str]


class Log:
    """Scores by (path, point) in a file with one JSON object per line; the first line is the header.

    Parameters
    ----------
    path : str or Path
    header : dict
        What is measured: checkpoints, labels, seed and so on.

    Attributes
    ----------
    scores : dict of (str, str) to float, list of float or str
        Keys: path and name of the point.

    Raises
    ------
    UserError
        The file has a different header, or a damaged line.
    """

    def __init__(self, path: Union[str, Path], header: Dict[str, Any]) -> None:
        self.path = Path(path)
        self.scores: Dict[Any, Any] = {}
        if self.path.exists():
            self._read(header)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        self.file = open(self.path, "a", encoding="utf-8", newline="\n")
        if new:
            self.file.write(json.dumps(header) + "\n")

    def _read(self, header):
        lines = self.path.read_bytes().split(b"\n")
        whole = b"\n".join(lines[:-1]) + b"\n" if len(lines) > 1 else b""
        try:
            found = json.loads(lines[0])
        except ValueError:
            found = None
        if not whole or found != header:
            raise UserError(f"{self.path} holds a sweep of other checkpoints, labels or options; name a new --out")
        if whole != b"\n".join(lines):
            _cut(self.path, len(whole))  # a line that was being written when the run was killed
        for number, line in enumerate(lines[1:-1], 2):
            try:
                path, point, value = json.loads(line)
            except (ValueError, TypeError):
                raise UserError(
                    f"{self.path} line {number} is damaged; remove that line, or name a new --out"
                ) from None
            self.scores[path, point] = value

    def add(self, path: str, point: str, value: Value) -> None:
        """Log a score, a list of scores, or the reason why there is no score."""
        self.scores[path, point] = value
        self.file.write(json.dumps([path, point, value]) + "\n")

    def close(self) -> None:
        """Write buffered lines to disk and close the file."""
        self.file.close()


def _cut(path, length):
    """Truncate a file to ``length`` bytes."""
    with open(path, "r+b") as file:
        file.truncate(length)


def measure(
    jobs: Sequence[Tuple[Detector, Sequence[degrade.Point]]],
    true: Truth,
    log: Log,
    seed: int,
    label: str,
    reading: Optional[images.Reading] = None,
) -> List[Tuple[int, float]]:
    """Score every image at every point that is not yet in the log; each image is decoded once for all jobs.

    Parameters
    ----------
    jobs : list of (Detector, list of points)
        See :func:`aidet.evaluation.degrade.points`.
    true : Truth
    log : Log
    seed : int
        For the random numbers of the points.
    label : str
        For the progress bar.
    reading : aidet.images.Reading, optional
        How images are read.

    Returns
    -------
    list of (int, float)
        For each job: the number of image versions scored, and the seconds taken.
    """
    todo = [[(p, [w for w in wanted if (p, w[0]) not in log.scores]) for p in true.paths] for _, wanted in jobs]
    total = sum(len(points) for work in todo for _, points in work)
    done, seconds = [0] * len(jobs), [0.0] * len(jobs)
    # A single job streams its images. Several jobs take turns, and decoded images are kept until all have used them.
    read = images.decode if reading in (None, images.Reading()) else reading.decode
    step = max(1, len(true.paths)) if len(jobs) == 1 else TOGETHER
    with tqdm(total=total, desc=label, unit="image", file=sys.stderr, disable=total < 100) as bar:
        for start in range(0, len(true.paths), step):
            kept: Dict[Any, Any] = {}
            for k, (detector, _) in enumerate(jobs):
                begin = time.perf_counter()
                part = todo[k][start : start + step]
                for _ in _scored(detector, part, true, log, seed, kept, k + 1 < len(jobs), read):
                    done[k] += 1
                    bar.update()
                seconds[k] += time.perf_counter() - begin
    return list(zip(done, seconds))


def _scored(detector, work, true, log, seed, kept, keep, read):
    """Score the points of some images into the log; yields once per version. ``kept``: decoded images by path."""
    waiting = []

    def items():
        for path, points in work:
            if not points:
                continue
            try:
                image = kept[path] if path in kept else read(true.file(path))
            except images.ImageError as error:
                for point in points:
                    log.add(path, point[0], f"error: {error}")
                continue
            if keep:
                kept[path] = image
            for point in points:
                waiting.append((path, point[0]))
                yield path, degrade.apply(point, image, seed, path)

    for verdict in detector.stream(items()):
        path, name = waiting.pop(0)
        log.add(path, name, _value(detector, verdict, name))
        yield


def _value(detector, verdict, name):
    if not verdict.ok:
        return verdict.status
    if name == VOTES:
        return [detector.score_of_first(verdict, k) for k in range(1, MOST_VOTES + 1)]
    return verdict.score


def decided(values: Sequence[Value], threshold: float) -> Tuple[np.ndarray, np.ndarray]:
    """Scores and decisions from the log entries of a set's images.

    Parameters
    ----------
    values : sequence of float or str, length n
    threshold : float
        On the probability.

    Returns
    -------
    (ndarray of float, ndarray of int), each of shape (n,)
        NaN and -1 if an image could not be scored.
    """
    score = np.array([v if isinstance(v, float) else np.nan for v in values])
    return score, np.where(np.isfinite(score), sigmoid(score) > threshold, -1).astype(int)


def require_some(true: Truth, values: Sequence[Value]) -> None:
    """Raise :class:`UserError` if no image of a set could be scored."""
    if not any(isinstance(v, float) for v in values):
        raise UserError(f"{true.source}: no image could be scored, first {true.paths[0]}: {values[0]}")


def evaluate(true: Truth, values: Sequence[Value], threshold: float, times: int = 0, seed: int = 42) -> Dict[str, Any]:
    """Metrics of one point over the images that have a score.

    Parameters
    ----------
    true : Truth
    values : sequence of float or str
        The log entry of each image.
    threshold : float
        On the probability.
    times, seed : int
        Bootstrap draws of the intervals; 0 gives no intervals.

    Returns
    -------
    dict
        The keys of ``metrics.json`` that all commands share.

    Raises
    ------
    UserError
        No image could be scored, or only images of one class.
    """
    require_some(true, values)
    score, label = decided(values, threshold)
    scored, y = np.isfinite(score), true.labels
    metrics.check(y[scored], what=f"{true.source}, images that could be scored")
    return {
        **metrics.decision_metrics(y[scored], label[scored]),
        **metrics.ranking_metrics(y[scored], score[scored]),
        "threshold": threshold,
        "by": {},
        "ci": metrics.intervals(y, label, score, None, true.groups(), times, seed=seed),
        "errors": int((~scored).sum()),
    }
