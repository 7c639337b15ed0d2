"""Masks of partly generated pictures: which pixels a generator made.

A partial set (``python -m aidet.align --partial`` writes one) has a column ``mask`` beside ``label`` and ``area``. Its
cell is the path, relative to the folder of the table, of an 8-bit grey PNG of the picture's size: 255 generated, 0
untouched. An untouched picture needs no mask; a wholly generated one needs none if its ``area`` is 1.
"""

import os
from pathlib import Path
from typing import Tuple, Union

import numpy as np

from .. import images
from ..errors import UserError, first_line
from ..labels import GENERATED, REAL

MODES = ("1", "L", "P", "RGB")  # what is read; anything with transparency could mean either of two things
WHOLE = 0.9999  # a share of generated pixels that counts as all of them


def read_mask(path: Union[str, Path], size: Tuple[int, int], empty: bool = False) -> np.ndarray:
    """Read one mask and check it.

    Parameters
    ----------
    path : str or Path
        Lossless file: 255 (or, in a 1-bit image, 1) is generated, 0 untouched; no other values.
    size : (int, int)
        Width and height of its picture, as ``PIL.Image.Image.size`` gives them.
    empty : bool
        Whether a mask that marks nothing is right, as for an untouched picture.

    Returns
    -------
    ndarray (height, width) of uint8
        1 generated, 0 untouched.

    Raises
    ------
    UserError
        One line: missing, damaged, of another size, not binary, or empty.
    """
    named = f"mask {str(path)!r}"
    if not os.path.isfile(path):
        raise UserError(f"{named} does not exist; name it relative to the table's folder, or leave the cell empty")
    try:
        with images.opened(path) as image:
            mode, found = image.mode, image.size
            grey = np.asarray(image.convert("L")) if mode in MODES and found == tuple(size) else None
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly every type of error on damaged files
        raise UserError(f"{named} cannot be read: {first_line(error, 200)}; write it again as an 8-bit PNG") from None
    if found != tuple(size):
        raise UserError(
            f"{named} is {found[0]}x{found[1]} pixels, its picture {size[0]}x{size[1]}; save it at the picture's size"
        )
    if grey is None:
        raise UserError(f"{named} is of mode {mode}; save it as 8-bit grey, 255 generated and 0 untouched")
    other = grey[(grey != 0) & (grey != 255)]
    if other.size:
        raise UserError(
            f"{named} is not binary: {other.size} pixels are neither 0 nor 255, such as {int(other[0])}; "
            "threshold it, and save it without loss (PNG)"
        )
    if not empty and not grey.any():
        raise UserError(f"{named} is empty; mark the generated pixels with 255, or set the label to 0")
    return (grey != 0).astype(np.uint8)


def mask_of(
    folder: Union[str, Path], cell: str, label: int, area: str, size: Tuple[int, int], name: str = ""
) -> np.ndarray:
    """The mask of one row of a partial set.

    Parameters
    ----------
    folder : str or Path
        Folder of the table.
    cell : str
        The row's ``mask``, possibly empty.
    label : int
        0 real, 1 generated, at least in part.
    area : str
        The row's ``area``, 0-1; read only where there is no mask.
    size : (int, int)
        Width and height of the picture.
    name : str
        The picture, for messages.

    Returns
    -------
    ndarray (height, width) of uint8
        1 generated, 0 untouched.

    Raises
    ------
    UserError
        As :func:`read_mask`; a generated picture without a mask whose area is not 1; a real one whose mask is not
        empty.
    """
    width, height = size
    if cell:
        mask = read_mask(Path(folder) / cell, size, empty=label == REAL)
        if label == REAL and mask.any():
            raise UserError(f"mask {cell!r} marks {int(mask.sum())} pixels, but its picture {name!r} is labelled real")
        return mask
    if label == GENERATED and not _all(area):
        raise UserError(f"{name!r} is labelled generated and has no mask; name one, or set its area to 1")
    return np.full((height, width), label == GENERATED, np.uint8)


def _all(area: str) -> bool:
    try:
        return WHOLE <= float(area) <= 1
    except ValueError:
        return False
