"""Partly generated pictures with exact masks: a region of a photograph is repainted, all else stays as it was.

Each photograph gives two files: ``pictures/NAME_p.EXT``, in which a region is replaced by its reconstruction through an
autoencoder or by inpainting, and ``pictures/NAME_r.EXT``, the photograph itself. Both are encoded in the same way, so
that nothing but the region tells them apart. ``masks/NAME_p.png`` is 255 where more than half of a pixel was generated.
Repainting through an autoencoder leaves what an edit by latent diffusion leaves outside its new content (Rajan et al.,
ICLR 2025); the set therefore teaches traces, not implausible content.
"""

import hashlib
import io
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image, ImageFilter

from .. import cli, files, images
from ..datasets.masks import read_mask
from ..datasets.sources import GENERATOR_COLUMNS, column_of
from ..errors import UserError
from ..labels import GENERATED, REAL
from .pairs import NOT_UNICODE, real_images, unspeakable
from .regions import KINDS, ellipse, segmentation

COLUMNS = ("path", "label", "generator", "split", "group", "mask", "area", "kind", "builder")
FORMATS = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
METHODS = ("telea", "ns")  # of OpenCV
SMALLEST = 64  # pixels; no region is drawn in a picture whose shorter side is smaller
MARGIN = 32  # pixels around a region that a builder also sees
STEP = 32  # the part that a builder sees is a multiple of this, so that a network meets few shapes
# OpenCV's methods continue lines and colours from the rim. What they paint over more than this share is a smear.
MOST_INPAINTED = 0.2
INPAINT_RADIUS = 4.0  # pixels around a point that its value is made of
FEATHER = (0.5, 2.5)  # standard deviation in pixels of the blur at the region's edge
TRIES = 6  # to draw a region of the wanted kind
GENERATOR = "partial"  # of the partly generated pictures: a class of its own in multi-class training
SHARES = (("train", 0.8), ("val", 0.1), ("test", 0.1))  # where the source has no splits


@dataclass(frozen=True)
class Builder:
    """What repaints a region.

    Attributes
    ----------
    name : str
        As in the column ``builder``.
    repaint : callable
        uint8 (h, w, 3) and bool (h, w), True where it is to paint -> uint8 (h, w, 3).
    most : float
        Largest share of a picture that it can paint.
    """

    name: str
    repaint: Callable[[np.ndarray, np.ndarray], np.ndarray]
    most: float = 1.0


@dataclass(frozen=True)
class Settings:
    """How partly generated pictures are drawn.

    Attributes
    ----------
    seed : int
        With the name of a file, it decides every draw for that file.
    kinds : tuple of str
        Among :data:`aidet.align.regions.KINDS`; one is drawn for each picture.
    area : (float, float)
        Smallest and largest share of generated pixels; drawn evenly on a logarithmic scale.
    formats : tuple of str
        Among :data:`FORMATS`; one is drawn for each picture, more often one that is named more often.
    quality : (int, int)
        Of JPEG and WebP, drawn for each picture.

    Raises
    ------
    UserError
        A value out of range.
    """

    seed: int = 42
    kinds: Tuple[str, ...] = tuple(KINDS)
    area: Tuple[float, float] = (0.02, 0.6)
    formats: Tuple[str, ...] = ("jpeg",)
    quality: Tuple[int, int] = (75, 98)

    def __post_init__(self) -> None:
        low, high = self.area
        if not 0.001 <= low < high <= 0.9:
            raise UserError(f"--area {low:g} {high:g}: wanted two shares of the picture, 0.001 to 0.9, as in 0.02 0.6")
        first, last = self.quality
        if not 1 <= first <= last <= 100:
            raise UserError(f"--quality {first} {last}: two qualities from 1 to 100 are wanted, the lower one first")


def autoencoder(reconstruct: Callable[[np.ndarray], np.ndarray], name: str) -> Builder:
    """A builder that paints what an autoencoder makes of the picture itself."""
    return Builder(name, lambda pixels, region: reconstruct(pixels))


def inpainting(method: str) -> Builder:
    """OpenCV's inpainting: ``telea`` (Telea 2004) or ``ns`` (Bertalmio et al., Navier-Stokes, 2001).

    Raises
    ------
    UserError
        OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise UserError("--inpaint needs OpenCV: pip install 'aidet[partial]' (opencv-python-headless)") from None
    flag = {"telea": cv2.INPAINT_TELEA, "ns": cv2.INPAINT_NS}[method]

    def repaint(pixels, region):
        return cv2.inpaint(np.ascontiguousarray(pixels), region.astype(np.uint8), INPAINT_RADIUS, flag)

    return Builder(f"opencv-{method}", repaint, MOST_INPAINTED)


# --- one picture ------------------------------------------------------------------------------------------------------
@dataclass
class Draw:
    """What was drawn for one picture: its region, who paints it, and how both files are written.

    Attributes
    ----------
    kind : str
    builder : Builder
    alpha : ndarray (H, W) of uint8
        Share of the painted pixel in the result, 255 all of it.
    format : str
    options : dict
        Of Pillow's ``save``.
    """

    kind: str
    builder: Builder
    alpha: np.ndarray
    format: str
    options: Dict[str, Any]

    @property
    def mask(self) -> np.ndarray:
        """uint8 (H, W): 255 where more than half is painted, else 0."""
        return np.where(self.alpha > 127, np.uint8(255), np.uint8(0))


def draw(pixels: np.ndarray, name: str, builders: Sequence[Builder], settings: Settings) -> Draw:
    """Draw all that is random about one picture.

    Parameters
    ----------
    pixels : ndarray (H, W, 3) of uint8
    name : str
        Its name, which with the seed decides every draw.
    builders : sequence of Builder
    settings : Settings

    Raises
    ------
    ImageError
        The picture is too small, or no region of the wanted size was found.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < SMALLEST:
        raise images.ImageError(f"{width}x{height} pixels; both sides must have {SMALLEST} for a region to be drawn")
    digest = hashlib.sha256(f"{settings.seed}\0{name}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, np.uint32))
    builder = builders[int(rng.integers(len(builders)))]
    kind = settings.kinds[int(rng.integers(len(settings.kinds)))]
    form = settings.formats[int(rng.integers(len(settings.formats)))]
    options = _encoding(form, int(rng.integers(settings.quality[0], settings.quality[1] + 1)), rng.random() < 0.3)
    low, high = settings.area[0], min(settings.area[1], builder.most)
    blur = rng.uniform(*FEATHER) * min(1.0, min(height, width) / 256)
    # A picture of one colour has no segments, and a thin stroke can be lost in its soft edge: an ellipse always fits.
    for attempt in [kind] * TRIES + ["ellipse"] * 2:
        wanted = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        region = (ellipse if attempt == "ellipse" else KINDS[attempt])(pixels, wanted, rng)
        if region is None or not region.any():
            continue
        soft = Image.fromarray(region.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(blur))
        made = Draw(attempt, builder, np.asarray(soft), form, options)
        if low <= (made.mask > 0).mean() <= high:
            return made
    raise images.ImageError(f"no region of {low:g} to {high:g} of its area was found in {TRIES + 2} tries")


def _encoding(form, quality, full):
    """Options of Pillow's ``save``; the colours of a JPEG file are kept in full or at half the resolution."""
    if form == "png":
        return {}
    return {"quality": quality, **({"subsampling": "4:4:4" if full else "4:2:0"} if form == "jpeg" else {})}


def repainted(pixels: np.ndarray, made: Draw) -> np.ndarray:
    """The picture with its region painted; only the neighbourhood of the region goes through the builder.

    Parameters
    ----------
    pixels : ndarray (H, W, 3) of uint8
    made : Draw

    Returns
    -------
    ndarray (H, W, 3) of uint8
        Equal to ``pixels`` wherever ``made.alpha`` is 0.
    """
    rows, columns = (_span(np.flatnonzero(made.alpha.any(axis)), n) for axis, n in zip((1, 0), made.alpha.shape))
    part, alpha = pixels[rows, columns], made.alpha[rows, columns]
    painted = made.builder.repaint(part, alpha > 0)
    if (part == part[..., :1]).all():
        # A tint on a grey photograph would by itself give the region away.
        painted = np.asarray(Image.fromarray(painted).convert("L").convert("RGB"))
    share = alpha[..., None].astype(np.float32) / 255
    out = pixels.copy()
    out[rows, columns] = np.rint(part + share * (painted.astype(np.float32) - part)).astype(np.uint8)
    return out


def _span(inside, length):
    """The rows (or columns) of a region with a margin, their number a multiple of STEP where the picture allows it."""
    first, last = max(0, int(inside[0]) - MARGIN), min(length, int(inside[-1]) + 1 + MARGIN)
    size = min(length, -(-(last - first) // STEP) * STEP)
    first = min(first, length - size)
    return slice(first, first + size)


def encoded(pixels: np.ndarray, made: Draw) -> bytes:
    """A picture as a file, written as ``made`` says, without metadata; :class:`ImageError` if its format cannot."""
    buffer = io.BytesIO()
    try:
        Image.fromarray(pixels).save(buffer, made.format.upper(), **made.options)
    except (OSError, ValueError) as error:  # WebP takes 16,383 pixels a side
        height, width = pixels.shape[:2]
        raise images.ImageError(f"{width}x{height} pixels cannot be written as {made.format}: {error}") from None
    return buffer.getvalue()


def check(builders: Sequence[Builder], settings: Settings) -> None:
    """Refuse, before any work, what could only fail later.

    Raises
    ------
    UserError
        An area that a builder cannot paint, or segments without scikit-image.
    """
    for builder in builders:
        if builder.most <= settings.area[0]:
            raise UserError(
                f"--area {settings.area[0]:g} {settings.area[1]:g}: {builder.name} paints at most {builder.most:g} of "
                "a picture; lower the first number, or leave this builder out"
            )
    if "segment" in settings.kinds:
        segmentation()


# --- a set ------------------------------------------------------------------------------------------------------------
def build(
    place: Union[str, Path],
    out: Union[str, Path],
    builders: Sequence[Builder],
    settings: Optional[Settings] = None,
    resume: bool = False,
) -> Tuple[List[Dict[str, Any]], List[Tuple[str, str]]]:
    """Make a partly generated version, and an untouched twin, of every photograph of a source.

    Parameters
    ----------
    place : str or Path
        A source of :func:`aidet.align.pairs.real_images`; ``TABLE@split=train`` takes a part.
    out : str or Path
        Gets ``pictures/`` and ``masks/``.
    builders : sequence of Builder
        One is drawn for each picture.
    settings : Settings, optional
    resume : bool
        Keep what an earlier, interrupted run with the same settings has written.

    Returns
    -------
    (list of dict, list of (str, str))
        Rows with :data:`COLUMNS`, two per photograph, and (path, reason) of the photographs that could not be used.

    Raises
    ------
    UserError
        As :func:`aidet.align.pairs.real_images` and :func:`check`.
    """
    from tqdm import tqdm

    settings = settings or Settings()
    check(builders, settings)
    table, names = real_images(place)
    kept = _columns(table, names, settings.seed)
    out, rows, lost = Path(out), [], []
    work = zip(names, _stems(names), table.files(), kept)
    for name, stem, source, columns in tqdm(work, desc="pictures", unit="image", total=len(names), file=sys.stderr):
        if unspeakable(name):
            lost.append((cli.printable(name), NOT_UNICODE))
            continue
        mask = f"masks/{stem}_p.png"
        try:
            pixels = np.asarray(images.decode(source))
            made = draw(pixels, name, builders, settings)
            paths = [f"pictures/{stem}_{kind}{FORMATS[made.format]}" for kind in "pr"]
            if not (resume and _finished([out / path for path in paths], out / mask, made)):
                _write(pixels, made, [out / path for path in paths], out / mask)
        except images.ImageError as error:
            lost.append((name, str(error)))
            continue
        share = f"{(made.mask > 0).mean():.6f}"
        new = {"label": GENERATED, "mask": mask, "area": share, "kind": made.kind, "builder": made.builder.name}
        rows.append({**columns, "path": paths[0], **new, "generator": GENERATOR})
        old = {"label": REAL, "mask": "", "area": "0", "kind": "none", "builder": "none"}
        rows.append({**columns, "path": paths[1], **old})
    return rows, lost


def _write(pixels, made, pictures, mask):
    """Write the three files of a photograph, the partly generated one last: where it is, the others are."""
    buffer = io.BytesIO()
    Image.fromarray(made.mask).save(buffer, "PNG", optimize=True)
    plain = encoded(pixels, made)  # before the costly part, in case its format cannot hold it
    painted = encoded(repainted(pixels, made), made)
    for path, data in ((mask, buffer.getvalue()), (pictures[1], plain), (pictures[0], painted)):
        with files.atomic(path, "wb") as file:
            file.write(data)


def _finished(pictures, mask, made):
    """Whether an earlier run has written these files."""
    if not all(path.is_file() for path in pictures):
        return False
    try:
        return bool((read_mask(mask, made.alpha.shape[::-1]) == made.mask // 255).all())
    except UserError:
        return False


def _stems(names):
    """The names without extension, or with it where two would be the same."""
    plain = [name.rpartition(".")[0] if "." in name.rpartition("/")[2] else name for name in names]
    times = Counter(stem.casefold() for stem in plain)
    stems = [stem if times[stem.casefold()] == 1 else name.replace(".", "-") for name, stem in zip(names, plain)]
    doubled = [stem for stem, count in Counter(stems).items() if count > 1]
    if doubled:
        raise UserError(f"several photographs would become {doubled[0]!r}; rename one")
    return stems


def _columns(table, names, seed):
    """For each photograph the columns that both of its pictures inherit: generator, split and group."""
    count = len(names)
    column = column_of(table.columns, GENERATOR_COLUMNS)
    makers = table.columns[column] if column is not None else [""] * count
    groups = [group or name for group, name in zip(table.groups() or [""] * count, names)]
    splits = table.columns.get("split", [""] * count)
    return [
        {"generator": maker or "original", "split": split or _split(group, seed), "group": group}
        for maker, split, group in zip(makers, splits, groups)
    ]


def _split(group, seed):
    """The split of a source image, where the source names none: by its group, so that all descendants share it."""
    digest = hashlib.sha256(f"{seed}\0split\0{group}".encode("utf-8", "surrogatepass")).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    for name, share in SHARES:
        at -= share
        if at < 0:
            return name
    return SHARES[-1][0]


def facts(settings: Settings, builders: Sequence[Builder]) -> Dict[str, Any]:
    """What decides the result, for ``align.json``; an interrupted run goes on only under the same."""
    made = {**asdict(settings), "builders": [builder.name for builder in builders]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in made.items()}
