"""Training with masks: which pixels of a picture were generated, as a target beside its class (``map_weight``)."""

from pathlib import Path
from typing import Any, List, NamedTuple, Tuple

import numpy as np

from .. import images, metrics
from ..datasets.masks import mask_of
from ..datasets.samples import Samples
from ..errors import UserError
from ..labels import REAL

LEAST = 0.005  # generated share of a crop from which on the crop counts as generated
METRIC = "map_auc"  # of the validation, beside those of aidet.metrics


class MaskCell(NamedTuple):
    """What a table says about the mask of one picture; the arguments of :func:`aidet.datasets.masks.mask_of`.

    Attributes
    ----------
    folder, cell : str
        Folder of the table, and path of the mask relative to it; ``cell`` may be empty.
    side : int
        0 real, 1 generated.
    area : str
    name : str
        The picture.
    """

    folder: str
    cell: str
    side: int
    area: str
    name: str

    def read(self, size: Tuple[int, int]) -> np.ndarray:
        """uint8 (height, width) of 0 and 1 for a picture of that width and height; :class:`UserError` if it is bad."""
        return mask_of(self.folder, self.cell, self.side, self.area, size, self.name)


def cells_of(samples: Samples) -> List[MaskCell]:
    """The mask of every row.

    Raises
    ------
    UserError
        The data have no column ``mask``, or classes that say neither real nor generated.
    """
    if "mask" not in samples.columns:
        raise UserError(
            f"map_weight needs a column 'mask' in {samples.source!r} (docs/localize.md); set map_weight 0 to train "
            "without masks"
        )
    if (samples.sides < 0).any():
        raise UserError("map_weight needs the classes real and generated; others have no generated pixels")
    source = Path(samples.source)
    folder = str(source.parent if source.is_file() else samples.root)
    masks, areas = samples.columns["mask"], samples.columns.get("area") or [""] * len(samples)
    return [MaskCell(folder, *row) for row in zip(masks, samples.sides.tolist(), areas, samples.paths)]


def require_masks(config: Any, data: Any, lines: Any) -> None:
    """Check everything about masks before the network is built: keys, pipelines, and every file.

    Parameters
    ----------
    config : aidet.config.Config
    data : aidet.training.checks.Data
    lines : aidet.training.checks.Lines

    Raises
    ------
    UserError
        One line: a key that contradicts masks, an operation that they cannot follow, or a bad mask.
    """
    if not config.map_weight:
        return
    taken = [
        name for name in ("mixup", "cutmix", "aug_splits", "distill", "multiclass_to_binary") if getattr(config, name)
    ]
    if taken:
        raise UserError(
            f"map_weight trains with masks, which {taken[0]} does not support; set {taken[0]} to its default"
        )
    for text in (lines.text, lines.text_eval):
        images.refuse_unmasked(images.parsed(text))
    for part in (data.train_set, data.val_set):
        if part is not None:
            for path, cell in zip(part.paths, cells_of(part)):
                size = _size(part.root / path)
                if size is not None:
                    cell.read(size)


def _size(path):
    """Width and height of a picture, upright; None if its header cannot be read, which the loader reports."""
    try:
        return images.upright_size(path)
    except Exception:  # noqa: BLE001 - Pillow raises nearly every type of error on damaged files
        return None


def require_map(net: Any, name: str, size: Tuple[int, int]) -> int:
    """Side of a cell of the network's map, in pixels.

    Raises
    ------
    UserError
        The network has no map, or the input is no multiple of its cells.
    """
    grid = getattr(net, "grid", None)
    if grid is None:
        raise UserError(f"map_weight needs a model with a map, such as partial_lite0; {name} has none")
    if any(side % (2 * grid) for side in size):
        raise UserError(f"model {name} takes sides that are multiples of {2 * grid}, the pipeline gives {size}")
    return int(grid)


def sides_of(index: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Classes of crops: a crop of a partly generated picture that missed the region is real.

    Parameters
    ----------
    index : ndarray of int, shape (n,)
        0 real, 1 generated, of the whole pictures.
    shares : ndarray of float, shape (n, h, w)
        Generated share of the cells.

    Returns
    -------
    ndarray of int, shape (n,)
    """
    return np.where(shares.mean((1, 2)) < LEAST, REAL, index)


def map_auc(cells: np.ndarray, shares: np.ndarray) -> float:
    """AUC of the cells over all pictures; a cell is generated from a share of half on. NaN without both kinds.

    Parameters
    ----------
    cells, shares : ndarray (n, h, w)
        Logits, and generated shares.
    """
    found = metrics.auc((shares >= 0.5).astype(int).ravel(), cells.astype(np.float64).ravel())
    return float("nan") if found is None else float(found)


def localization(net: Any, tile: int) -> Any:
    """The sidecar's entry ``localization`` of a network with a map; the two lines in it are first guesses."""
    numbers = net.pool.pooling.asnumpy().astype(np.float64)
    pooling = {"kind": "logsumexp", "sharpness": float(np.exp(numbers[0])), "scale": float(numbers[1])}
    pooling["offset"] = float(numbers[2])
    return {"grid": net.grid, "tile": tile, "threshold": 0.5, "min_area": 0.005, "pooling": pooling}
