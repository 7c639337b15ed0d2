"""Finding the generated parts of a picture: a network with a dense head, run on overlapping tiles at native resolution.

The traces of generators and of inpainting are in the finest detail, which resizing destroys. So the picture is never
resized: it is cut into tiles that overlap by half, and the result for a cell is the mean over the tiles that
contain it, weighted by how far the cell is from their edges. All tiles start at a multiple of the grid, so that JPEG's
blocks of 8 pixels have the same position in every tile as in the picture.
"""

import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image

from .. import ckpt as checkpoints
from .. import files, images, labels
from ..errors import UserError, nearest
from ..export import onnx_graph
from ..parallel import cpus, in_order
from . import backends, default
from .localization import Localization
from .scorer import PLAIN
from .views import Views

Place = Tuple[int, int]  # (x, y) of a tile's left upper pixel
POOLINGS = {
    "logsumexp": {"sharpness": 1.0, "scale": 1.0, "offset": 0.0},
    "topk": {"share": 0.05, "scale": 1.0, "offset": 0.0},
}


@dataclass(frozen=True)
class Settings:
    """What the sidecar of a localizer says under ``localization``.

    Attributes
    ----------
    grid : int
        Pixels along each side of a cell of the map.
    tile : int
        Pixels along each side of the network's input, a multiple of ``grid``.
    threshold : float
        Cells with a probability above it count as generated; above 0 and below 1.
    min_area : float
        Share of the picture under which no region is reported; at least 0 and below 1.
    pooling : mapping
        How the cells' logits become one score, see :func:`pooled`.
    background : mapping, optional
        How the logits are compared with the picture's own background, see :func:`levelled`; None: they are not.
    """

    grid: int
    tile: int
    threshold: float
    min_area: float
    pooling: Mapping[str, Any]
    background: Optional[Mapping[str, float]] = None

    @classmethod
    def read(cls, sidecar: checkpoints.Sidecar) -> "Settings":
        """The settings of a sidecar.

        Raises
        ------
        UserError
            The model is no localizer, or a value is out of range; the message names it.
        """
        own, what = sidecar.localization, f"sidecar of {str(sidecar.path)!r}"
        if own is None:
            raise UserError(
                f"{str(sidecar.path)!r} is no localizer: its sidecar has no 'localization' (docs/localize.md)"
            )
        if not isinstance(own, dict):
            raise UserError(f"{what}: localization (={own!r}) must be a mapping")
        values = {"grid": 16, "tile": 256, "threshold": 0.5, "min_area": 0.005, **own}
        grid, tile = values["grid"], values["tile"]
        for name in ("grid", "tile"):
            if isinstance(values[name], bool) or not isinstance(values[name], int) or values[name] < 1:
                raise UserError(f"{what}: localization.{name} (={values[name]!r}) must be a whole number >= 1")
        if tile % grid or tile < 2 * grid:
            raise UserError(
                f"{what}: localization.tile (={tile}) must be a multiple of grid ({grid}), at least twice it"
            )
        for name, least in (("threshold", 0), ("min_area", -1e-9)):
            if not _is_number(values[name]) or not least < values[name] < 1:
                raise UserError(f"{what}: localization.{name} (={values[name]!r}) must be between 0 and 1")
        pooling = _pooling(values.get("pooling", "logsumexp"), what)
        background = _background(values.get("background"), what)
        return cls(grid, tile, float(values["threshold"]), float(values["min_area"]), pooling, background)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)


def _pooling(own, what):
    given = {"kind": own} if isinstance(own, str) else own
    if not isinstance(given, dict) or not isinstance(given.get("kind"), str):
        raise UserError(f"{what}: localization.pooling (={own!r}) must be a name, or a mapping with the key 'kind'")
    if given["kind"] not in POOLINGS:
        raise UserError(f"{what}: {nearest(given['kind'], POOLINGS, 'pooling')}")
    usual = POOLINGS[given["kind"]]
    for name, value in given.items():
        if name != "kind" and (name not in usual or not _is_number(value) or (name != "offset" and value <= 0)):
            raise UserError(
                f"{what}: localization.pooling has {name} (={value!r}); it takes numbers {', '.join(usual)}"
            )
    return {**usual, **given}


def _background(own, what):
    if own is None:
        return None
    if not isinstance(own, dict) or set(own) != {"quantile", "part", "level"} or not all(map(_is_number, own.values())):
        raise UserError(
            f"{what}: localization.background (={own!r}) must be a mapping with the numbers quantile, part and level"
        )
    for name in ("quantile", "part"):
        if not 0 <= own[name] <= 1:
            raise UserError(f"{what}: localization.background.{name} (={own[name]!r}) must be between 0 and 1")
    return {name: float(value) for name, value in own.items()}


def levelled(cells: np.ndarray, background: Optional[Mapping[str, float]]) -> np.ndarray:
    """Logits of cells, shifted so that every picture's background lies at nearly the same level.

    Photographs differ: noise, sharpening or an earlier compression shift the logits of all their cells, often by more
    than a repainted region shifts its own. The background is a low quantile of the cells; it lies outside of a region
    unless that is most of the picture.

    Parameters
    ----------
    cells : numpy.ndarray
        Logits, any shape.
    background : mapping or None
        ``cells - part * (quantile of cells - level)``: ``quantile`` in [0, 1], ``part`` in [0, 1] of the difference to
        take away, and ``level``, the usual quantile of untouched photographs. None: nothing is moved.

    Returns
    -------
    numpy.ndarray
    """
    if background is None:
        return cells
    moved: np.ndarray = cells - background["part"] * (np.quantile(cells, background["quantile"]) - background["level"])
    return moved


def pooled(cells: np.ndarray, pooling: Mapping[str, Any]) -> float:
    """One score of a picture from the logits of its cells.

    Parameters
    ----------
    cells : numpy.ndarray
        Logits, any shape.
    pooling : mapping
        ``kind`` is ``logsumexp``: ``scale * log(mean(exp(sharpness * m))) / sharpness + offset``, which lies between
        the mean and the largest logit (Pinheiro and Collobert, CVPR 2015); or ``topk``: ``scale * mean of the largest
        share of the logits + offset``. Both take a mean, so that a score does not grow with the size of the picture.

    Returns
    -------
    float
    """
    values = np.asarray(cells, np.float64).ravel()
    if pooling["kind"] == "topk":
        count = max(1, int(np.ceil(pooling["share"] * values.size)))
        value = np.sort(values)[-count:].mean()
    else:
        scaled = values * pooling["sharpness"]
        most = scaled.max()
        value = (most + np.log(np.exp(scaled - most).mean())) / pooling["sharpness"]
    return float(value * pooling["scale"] + pooling["offset"])


def starts(length: int, tile: int, grid: int) -> List[int]:
    """Where the tiles along one side begin: every half tile, the last at the end; multiples of ``grid``.

    ``length`` is counted up to a multiple of ``grid``; of a shorter side than a tile there is one tile, at 0.
    """
    last = max(0, -(-length // grid) * grid - tile)
    step = max(1, tile // 2 // grid) * grid
    return [*range(0, last, step), last]


def window(cells: int) -> np.ndarray:
    """Weights of the cells of a tile, float64 (cells, cells): largest in the middle, small but above 0 at its edges."""
    line = np.sin(np.pi * (np.arange(cells) + 0.5) / cells) ** 2
    return np.outer(line, line)


def joined(size: Tuple[int, int], tile: int, grid: int, pieces: Iterable[Tuple[Sequence[Place], Any]]) -> np.ndarray:
    """The values of a picture's cells from overlapping tiles: the mean over the tiles, weighted by :func:`window`.

    Parameters
    ----------
    size : (int, int)
        Width and height of the picture in pixels.
    tile, grid : int
        Pixels along each side of a tile, a multiple of ``grid``, and of a cell.
    pieces : iterable of (places, maps)
        Left upper pixels (x, y) of some tiles, multiples of ``grid``, and the values of their cells, (n, tile / grid,
        tile / grid). Together they cover the picture.

    Returns
    -------
    numpy.ndarray, float64, shape (rows, columns)
    """
    count = tile // grid
    rows, columns = (-(-side // grid) for side in size[::-1])
    shape = max(rows, count), max(columns, count)
    total, weight, one = np.zeros(shape), np.zeros(shape), window(count)
    for places, maps in pieces:
        for (x, y), found in zip(places, maps):
            part = np.s_[y // grid : y // grid + count, x // grid : x // grid + count]
            total[part] += one * found
            weight[part] += one
    return (total / weight)[:rows, :columns]


def cut(image: Image.Image, x: int, y: int, tile: int) -> Image.Image:
    """The tile whose left upper pixel is (x, y); what lies outside of the picture is its reflection."""
    part = image.crop((x, y, min(x + tile, image.width), min(y + tile, image.height)))
    down, across = tile - part.height, tile - part.width
    if not down and not across:
        return part
    return Image.fromarray(np.pad(np.asarray(part), ((0, down), (0, across), (0, 0)), mode="reflect"))


class Localizer:
    """A network with a dense head that is ready to say which parts of a picture are generated.

    Parameters
    ----------
    ckpt : str or Path, optional
        A checkpoint whose sidecar has ``localization``, or its exported ``.onnx``. Default: the one that comes with the
        project, ``ckpt/aidet_partial.ckpt``.
    backend, device, say, precision :
        See :func:`aidet.detector.backends.open_model`.
    workers : int, optional
        Threads that score the tiles of one picture, on ONNX Runtime and OpenVINO; default: the CPUs this process may
        use. The map does not depend on it.
    max_pixels, truncated :
        See :class:`aidet.images.Reading`.

    Attributes
    ----------
    settings : Settings
    threadsafe : bool
        Whether :meth:`localize` may be called from any thread.
    identity : str
        SHA-256 of the file.

    Raises
    ------
    UserError
        There is no such file, it is no localizer, or it cannot be run.

    Examples
    --------
    >>> found = Localizer().localize("photo.jpg")
    >>> found.words
    'partly generated: 12% of the picture, the largest region 96 x 80 pixels at (32, 0)'
    >>> found.map.shape  # probabilities, of the picture's size
    (480, 640)
    """

    def __init__(
        self,
        ckpt: Union[None, str, Path] = None,
        backend: str = "auto",
        device: str = "auto",
        say: backends.Say = None,
        precision: Optional[str] = None,
        workers: Optional[int] = None,
        max_pixels: int = images.MAX_PIXELS,
        truncated: str = "error",
    ) -> None:
        self.path = Path(default.localizer_path() if ckpt is None else ckpt)
        onnx = self.path.suffix == ".onnx"
        self.reading = images.Reading(max_pixels, truncated)
        self.workers = workers or cpus()
        self.sidecar = onnx_graph.sidecar_of(self.path) if onnx else checkpoints.Sidecar.read(self.path)
        self.settings = settings = Settings.read(self.sidecar)
        self.order = self.sidecar.detector_order
        self.scale, self.offset = self.sidecar.calibration
        self.evidence = self.sidecar.evidence or checkpoints.Evidence(min_side=settings.tile // 2)
        views = Views(self.sidecar.detector_transform)
        self._numbers, self._fine_detail = views.first.numbers, views.fine_detail
        size = (settings.tile, settings.tile)
        self.backend = backends.open_model(self.sidecar, backend, size, device, say, precision)
        self.threadsafe, self.device, self.backend_name = (
            self.backend.threadsafe, self.backend.device, self.backend.name,
        )  # fmt: skip
        self.identity = files.sha256(self.path) if onnx else self.sidecar.identity

    def localize(self, source: Any) -> Localization:
        """Say which parts of a picture are generated.

        Parameters
        ----------
        source : str, Path, bytes, binary file, PIL.Image.Image or uint8 array
            See :func:`aidet.images.decode`.

        Returns
        -------
        Localization

        Raises
        ------
        aidet.images.ImageError
            The picture cannot be used.

        Notes
        -----
        Besides the decoded picture, 3 bytes a pixel, it holds eight tiles per worker and a few numbers per cell.
        """
        image = self.reading.decode(io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else source)
        own = self.settings
        logits, detail = self._logits(image)
        if not np.isfinite(logits).all():
            raise images.ImageError("the localizer gives values that are not finite")
        logits = levelled(logits, own.background)
        score = self.scale * (pooled(logits, own.pooling) - self.offset)
        cells = labels.sigmoid(logits).astype(np.float32)
        reason = self._lacking(image, detail)
        return Localization(cells, own.grid, image.size, float(score), own.threshold, own.min_area, reason)

    def _lacking(self, image, detail):
        if min(image.size) < self.evidence.min_side:
            return f"shorter side under {self.evidence.min_side} pixels"
        return PLAIN if detail < self.evidence.min_detail else ""

    def _logits(self, image: Image.Image) -> Tuple[np.ndarray, float]:
        """Logits of the picture's cells, float64 (rows, columns), and the fine detail of the tile that has most."""
        grid, tile = self.settings.grid, self.settings.tile
        places = [(x, y) for y in starts(image.height, tile, grid) for x in starts(image.width, tile, grid)]
        some = [places[i : i + backends.PIECE] for i in range(0, len(places), backends.PIECE)]
        run = functools.partial(self._seen, image)
        seen = in_order(run, some, self.workers) if self.threadsafe and self.workers > 1 else map(run, some)
        details = [0.0]

        def pieces():
            for batch, (maps, most) in zip(some, seen):
                details.append(most)
                yield batch, maps

        return joined(image.size, tile, grid, pieces()), max(details)

    def _seen(self, image: Image.Image, places: Sequence[Place]) -> Tuple[np.ndarray, float]:
        """What the network says of the tiles at these places, and the fine detail of the one that has most."""
        batch = np.stack([self._numbers(cut(image, x, y, self.settings.tile)) for x, y in places])
        detail = max(map(self._fine_detail, batch)) if self.evidence.min_detail else 0.0
        return self._maps(batch), float(detail)

    def _maps(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, 3, tile, tile) -> logits of the cells (N, tile / grid, tile / grid)."""
        found, count = self.backend.every(batch).get(onnx_graph.MAP), self.settings.tile // self.settings.grid
        wanted = (len(batch), count, count)
        if found is None or found.shape != wanted:
            shown = "none" if found is None else f"one of shape {found.shape}"
            raise UserError(f"{str(self.path)!r} must give an output 'map' of shape {wanted}, it gives {shown}")
        return found
