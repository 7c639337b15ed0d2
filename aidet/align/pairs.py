"""Pairs of a photograph and its reconstruction, encoded alike."""

import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple, Union

import numpy as np
from PIL import Image, JpegImagePlugin

from .. import archives, cli, files, images
from ..datasets.archived import as_folders
from ..datasets.folders import is_class_folder
from ..datasets.sources import LABEL_COLUMNS, Table, column_of, image_tables, joined, label_column
from ..errors import UserError
from ..labels import GENERATED, NAMES, REAL, of_cell, side

COLUMNS = ["path", "label", "generator", "group", "split"]
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
NOT_UNICODE = "its name is not Unicode, so labels.csv cannot name it; rename it"


def twin(
    source: Union[str, Path], reconstruct: Callable[[np.ndarray], np.ndarray], metadata: str = "copy"
) -> Tuple[bytes, float]:
    """The fake of one file, encoded like that file.

    Parameters
    ----------
    source : str or Path
    reconstruct : callable
        uint8 (H, W, 3) -> uint8 (H, W, 3).
    metadata : {"copy", "drop"}
        Whether the fake carries the EXIF block and colour profile of its original.

    Returns
    -------
    (bytes, float)
        The encoded file, and the reconstruction's PSNR in dB (infinite if nothing changed).

    Raises
    ------
    ImageError
        With the reason: unreadable, or in a format or mode that cannot be written in the same way.
    """
    pixels = np.asarray(images.decode(source))
    with images.opened(source) as original:
        if original.format not in FORMATS:
            raise images.ImageError(f"format {original.format} cannot be written alike; only {', '.join(FORMATS)}")
        if original.mode not in ("RGB", "L") or "transparency" in original.info:
            raise images.ImageError(f"mode {original.mode} or transparency cannot be kept; only RGB and L")
        made = reconstruct(pixels)
        error = np.mean((made.astype(np.float64) - pixels) ** 2)
        fake = Image.fromarray(made)
        if (pixels == pixels[..., :1]).all():
            # A tint on a grey photograph would by itself distinguish the fake from its original.
            fake = fake.convert("L").convert("RGB")
        orientation = original.getexif().get(0x0112, 1)
        if orientation in UNDO:
            fake = fake.transpose(UNDO[orientation])
        data = encode_like(fake.convert(original.mode), original, source, metadata)
    return data, float(10 * np.log10(255**2 / error)) if error else float("inf")


def encode_like(image: Image.Image, original: Image.Image, source: Union[str, Path], metadata: str = "copy") -> bytes:
    """Encode an image like another file: format, JPEG tables, subsampling, progressive, EXIF, profile.

    A WebP file does not state its quality; the quality whose file is nearest in size to the original is searched for.
    """
    kept = {}
    if metadata == "copy":
        kept = {k: original.info[k] for k in ("exif", "icc_profile") if original.info.get(k)}
    if original.format == "JPEG" and isinstance(original, JpegImagePlugin.JpegImageFile):
        sampling = JpegImagePlugin.get_sampling(original)
        if sampling >= 0 and image.mode == "RGB":
            kept["subsampling"] = sampling
        kept["progressive"] = bool(original.info.get("progressive"))
        return _save(image, "JPEG", qtables=original.quantization, **kept)
    if original.format != "WEBP":
        return _save(image, original.format, **(kept if original.format == "PNG" else {}))
    with images.binary(source) as file:
        head = file.read(4096)
    if b"VP8L" in head:
        return _save(image, "WEBP", lossless=True, **kept)
    return _nearest_size(lambda q: _save(image, "WEBP", quality=q, **kept), archives.size(source))


def _save(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _nearest_size(encode, size):
    """Encoded bytes of the quality (1..100) whose length is nearest to ``size``, by bisection."""
    low, high, best = 1, 100, None
    while low <= high:
        middle = (low + high) // 2
        data = encode(middle)
        if best is None or abs(len(data) - size) < abs(len(best) - size):
            best = data
        low, high = (middle + 1, high) if len(data) < size else (low, middle - 1)
    return best


def real_images(place: Union[str, Path]) -> Tuple[Table, List[str]]:
    """The real images of a folder, a table or a list; of tables with labels, in a folder too, those they call real.

    Parameters
    ----------
    place : str or Path
        A source of :func:`aidet.datasets.read_images`.

    Returns
    -------
    (Table, list of str)
        The rows, and for each its name in the output: a relative path without ``..``.

    Raises
    ------
    UserError
        No such source, no images, none that is real, folders that say of images that they are generated, or two files
        that would get one name.
    """
    parts = [_real(table) for table in image_tables(place, "--images")]
    table = joined([part for part in parts if len(part)] or parts)
    if not len(table):
        raise UserError(f"--images {str(place)!r}: no image is called real there")
    named: Dict[str, Path] = {}
    for path, file in zip(table.located() or (), table.files()):
        parts = [part for part in as_folders(path).split("/") if part not in ("", ".", "..") and not part.endswith(":")]
        name = "/".join(parts)
        if name in named:
            raise UserError(f"--images {str(place)!r}: {named[name]} and {file} would both become {name!r}; rename one")
        named[name] = file
    return table, list(named)


def _real(table):
    """The rows of a table that it calls real; all of them if it says nothing."""
    if column_of(table.columns, LABEL_COLUMNS) is not None:
        column = label_column(table.columns, table.source)
        return table.take([i for i, cell in enumerate(table.columns[column]) if of_cell(cell, column) == REAL])
    for path in table.paths:
        for folder in as_folders(path).split("/")[:-1]:
            if is_class_folder(folder) and side(folder, numbers=False) == GENERATED:
                raise UserError(
                    f"--images {table.source!r}: the folder {folder!r} of {path!r} says generated, and the originals "
                    "are labelled real; give the folder of the real images, or a table path,label"
                )
    return table


def originals(place: Union[str, Path]) -> List[Tuple[str, Path]]:
    """Name in the output and file of each of :func:`real_images`; raises as that does."""
    table, names = real_images(place)
    return list(zip(names, table.files()))


def unspeakable(name: str) -> bool:
    """Whether a file name is not Unicode, so that no table can hold it."""
    return any("\ud800" <= c <= "\udfff" for c in name)


def build(
    folder: Union[str, Path],
    out: Union[str, Path],
    reconstruct: Callable[[np.ndarray], np.ndarray],
    keep: str = "copy",
    metadata: str = "copy",
    resume: bool = False,
    generator: str = "autoencoder",
) -> Tuple[List[List[Any]], List[Tuple[str, str]], List[float]]:
    """Make the pairs of a folder.

    Parameters
    ----------
    folder : str or Path
        A folder, or another source of :func:`originals`.
    out : str or Path
    reconstruct : callable
    keep : {"copy", "reference"}
        Copy the originals to the output byte for byte, or refer to them in place.
    metadata : {"copy", "drop"}
    resume : bool
        Keep fakes that an earlier, interrupted run has written.
    generator : str
        Name of the fakes' generator in the labels.

    Returns
    -------
    (list of list, list of (str, str), list of float)
        Rows of labels.csv (:data:`COLUMNS`; without the last one if the source has no splits), (path, reason) of the
        images that could not be used, and the PSNR of the new fakes.
    """
    from tqdm import tqdm

    out, rows, lost, likeness = Path(out), [], [], []
    table, names = real_images(folder)
    # Crops of one photograph stay in one group, and what the source keeps for tests stays there.
    kept = _inherited(table, names)
    work = zip(names, table.files(), kept)
    for name, source, columns in tqdm(work, desc="pairs", unit="image", total=len(names), file=sys.stderr):
        fake = out / NAMES[GENERATED] / name
        if unspeakable(name):
            lost.append((cli.printable(name), NOT_UNICODE))
            continue
        if not (resume and fake.is_file()):
            try:
                data, psnr = twin(source, reconstruct, metadata)
            except images.ImageError as error:
                lost.append((name, str(error)))
                continue
            likeness.append(psnr)
            with files.atomic(fake, "wb") as file:
                file.write(data)
        real = os.path.relpath(source, out).replace(os.sep, "/")
        if keep == "copy":
            real = f"{NAMES[REAL]}/{name}"
            with files.atomic(out / real, "wb") as file, images.binary(source) as original:
                shutil.copyfileobj(original, file)
        rows.append([real, REAL, "original", *columns])
        rows.append([f"{NAMES[GENERATED]}/{name}", GENERATED, generator, *columns])
    return rows, lost, likeness


def _inherited(table, names):
    """For each image its group, which is the image itself where the source names none, and its split if there are."""
    groups = [group or name for group, name in zip(table.groups() or [""] * len(names), names)]
    splits = table.columns.get("split")
    return list(zip(groups)) if splits is None else list(zip(groups, splits))
