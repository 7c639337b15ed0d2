"""Graphs of a fixed batch size, run on any number of images."""

from typing import Callable, List, Optional

import numpy as np


def in_rows(batch: np.ndarray, rows: Optional[int], run: Callable[[np.ndarray], List[np.ndarray]]) -> List[np.ndarray]:
    """Outputs of a graph for a batch; the last call is filled up with zeros.

    Parameters
    ----------
    batch : numpy.ndarray, shape (N, ...)
    rows : int or None
        Images in a call; None: any number, so that one call takes all.
    run : callable
        Takes an array of ``rows`` images and gives the outputs, each with the images as first dimension.

    Returns
    -------
    list of numpy.ndarray
        One for each output, N rows each.
    """
    if rows is None or rows == len(batch):
        return run(batch)
    pieces = []
    for start in range(0, len(batch), rows):
        part = batch[start : start + rows]
        missing = rows - len(part)
        if missing:
            part = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
        pieces.append([found[: rows - missing] for found in run(part)])
    return [np.concatenate(same) for same in zip(*pieces)]
