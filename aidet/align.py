"""Aligned fakes: reconstructions of real images by an autoencoder, equal to them in all but the decoder's traces.

    python -m aidet.align --images photos --ckpt ckpt/aidet_tae.ckpt --out data/pairs

Each fake has the content, size, format, JPEG quantisation tables, chroma subsampling and metadata of its original, so
that a detector cannot learn any of those (Rajan et al., "Aligned Datasets Improve Detection of Latent
Diffusion-Generated Images", ICLR 2025; Chen et al., "Dual Data Alignment", 2025). Writes ``real/<name>``,
``generated/<name>`` and ``labels.csv`` (path, label, generator, group: the pair) and ``align.json``. Exit code 3 if
some images could not be used; each is listed with its reason.
"""

import csv
import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import numpy as np
from PIL import Image, JpegImagePlugin

from . import archives, cli, files, images
from .datasets.archived import as_folders
from .datasets.sources import LABEL_COLUMNS, column_of, label_column, read_images
from .errors import UserError
from .labels import GENERATED, NAMES, REAL, of_cell

TILE, OVERLAP = 512, 64
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
PROBE = 64  # sides in pixels of the image that an autoencoder is tested with
FAINT = 15.0  # dB: below it the reconstruction does not resemble the image, mostly because of a wrong input range
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


class Reconstructor:
    """An autoencoder as a function from pixels to pixels, of any size.

    Parameters
    ----------
    path : str or Path
        Checkpoint of a whole autoencoder (AutoencoderKL, the project's own), or of an encoder (TAESD).
    tile : int
        Largest side that the network processes at once; larger images are tiled with 64 pixels of overlap, blended
        linearly.
    device : str
    decoder : str or Path, optional
        Checkpoint of the decoder that belongs to an encoder.

    Attributes
    ----------
    multiple : int
        Sides are padded to a multiple of this: the sidecar's ``input.multiple``, else the network's reduction factor.

    Raises
    ------
    UserError
        The model is not an autoencoder, the two halves do not match, or the tile is not a multiple of the factor.
    """

    def __init__(
        self, path: Union[str, Path], tile: int = TILE, device: str = "auto", decoder: Optional[Union[str, Path]] = None
    ) -> None:
        from . import ckpt, runtime

        halves = [ckpt.Sidecar.read(p) for p in (path, decoder) if p is not None]
        runtime.setup(device=device, mode="pynative")
        nets = [ckpt.load_network(half) for half in halves]
        self.encode, self.decode = _coder(nets, halves, path, decoder)
        self.low, self.high = halves[0].value_range
        self.multiple = halves[0].multiple or self._reduction()
        if tile < 4 * OVERLAP or tile % self.multiple:
            raise UserError(f"--tile (={tile}) must be a multiple of {self.multiple} and at least {4 * OVERLAP}")
        self.name, self.tile = halves[0].architecture, tile
        self.sha256, self.decoder_sha256 = halves[0].sha256, None if decoder is None else halves[1].sha256
        self._check(path, decoder)

    def _reduction(self):
        """Pixels per side of one latent position."""
        import mindspore as ms

        return PROBE // self.encode(ms.Tensor(np.zeros((1, 3, PROBE, PROBE), np.float32))).shape[2]

    def _check(self, path, decoder):
        """Check that an image comes back in its own shape, before hours are spent on it."""
        x = np.zeros((3, PROBE, PROBE), np.float32)
        try:
            shape = self._run(x).shape
        except Exception as error:  # noqa: BLE001 - MindSpore raises several types for shapes that do not fit
            shape = str(error).strip().splitlines()[0][:160]
        if shape != x.shape:
            what = f"--ckpt {str(path)!r}" + (f" with --decoder {str(decoder)!r}" if decoder else "")
            raise UserError(f"{what} does not give an image of {PROBE} pixels back in its shape: {shape}")

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> uint8 (H, W, 3). Sides are padded by mirroring to a multiple, then cropped."""
        height, width = pixels.shape[:2]
        pad = [(0, -height % self.multiple), (0, -width % self.multiple), (0, 0)]
        x = np.pad(pixels, pad, mode="symmetric").transpose(2, 0, 1).astype(np.float32)
        y = tiled(self._run, x / 255 * (self.high - self.low) + self.low, self.tile, OVERLAP)
        y = (y[:, :height, :width] - self.low) / (self.high - self.low) * 255
        return np.clip(np.rint(y), 0, 255).astype(np.uint8).transpose(1, 2, 0)

    def _run(self, x):
        import mindspore as ms

        return self.decode(self.encode(ms.Tensor(np.ascontiguousarray(x[None])))).asnumpy()[0]


def _coder(nets, halves, path, decoder):
    """The encoding and decoding functions of an autoencoder in one checkpoint or in two."""
    first = halves[0].architecture
    whole = hasattr(nets[0], "encode") and hasattr(nets[0], "decode")
    if decoder is not None:
        second = halves[1].architecture
        if whole or "encoder" not in first or "decoder" not in second:
            raise UserError(f"--ckpt is {first!r} and --decoder {second!r}; wanted an encoder and its decoder")
        return nets
    if whole:
        return nets[0].encode, nets[0].decode
    if "encoder" in first:
        raise UserError(f"--ckpt {str(path)!r} is {first!r}, half an autoencoder; name the other with --decoder B.ckpt")
    raise UserError(f"--ckpt {str(path)!r} is {first!r}, not an autoencoder")


def tiled(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, tile: int, overlap: int) -> np.ndarray:
    """Apply a function from (C, H, W) to the same shape tile by tile, blending overlapping edges linearly.

    Parameters
    ----------
    function : callable
    x : ndarray (C, H, W)
    tile, overlap : int
        In pixels. An image that fits into a tile is processed whole.

    Returns
    -------
    ndarray (C, H, W), float32
    """
    height, width = x.shape[1:]
    if height <= tile and width <= tile:
        return function(x)
    total, weight = np.zeros_like(x, np.float32), np.zeros((height, width), np.float32)
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = x[:, top : top + tile, left : left + tile]
            ramp = _ramp(part.shape[1], overlap)[:, None] * _ramp(part.shape[2], overlap)[None]
            total[:, top : top + tile, left : left + tile] += function(part) * ramp
            weight[top : top + tile, left : left + tile] += ramp
    return total / weight


def _starts(length, tile, overlap):
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def _ramp(length, overlap):
    """Weight 1 in the middle, decreasing linearly towards both ends over the overlap."""
    away = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1
    return np.minimum(away / (overlap + 1), 1).astype(np.float32)


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


def originals(place: Union[str, Path]) -> List[Tuple[str, Path]]:
    """The real images of a folder, a table or a list; of a table with labels, those that it calls real.

    Parameters
    ----------
    place : str or Path
        A source of :func:`aidet.datasets.read_images`.

    Returns
    -------
    list of (str, Path)
        The name in the output, a relative path without ``..``, and the file.

    Raises
    ------
    UserError
        No such source, no images, none that is real, or two files that would get one name.
    """
    table = read_images(place)
    if column_of(table.columns, LABEL_COLUMNS) is not None:
        column = label_column(table.columns, table.source)
        real = [i for i, cell in enumerate(table.columns[column]) if of_cell(cell, column) == REAL]
        if not real:
            raise UserError(f"--images {str(place)!r}: its column {column!r} calls no image real")
        table = table.take(real)
    named: Dict[str, Path] = {}
    for path, file in zip(table.located() or (), table.files()):
        parts = [part for part in as_folders(path).split("/") if part not in ("", ".", "..") and not part.endswith(":")]
        name = "/".join(parts)
        if name in named:
            raise UserError(f"--images {str(place)!r}: {named[name]} and {file} would both become {name!r}; rename one")
        named[name] = file
    return list(named.items())


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
        Rows of labels.csv, (path, reason) of the images that could not be used, and the PSNR of the new fakes.
    """
    from tqdm import tqdm

    out, rows, lost, likeness = Path(out), [], [], []
    for name, source in tqdm(originals(folder), desc="pairs", unit="image", file=sys.stderr):
        fake = out / NAMES[GENERATED] / name
        if any("\ud800" <= c <= "\udfff" for c in name):
            lost.append((cli.printable(name), "its name is not Unicode, so labels.csv cannot name it; rename it"))
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
        rows.append([real, REAL, "original", name])
        rows.append([f"{NAMES[GENERATED]}/{name}", GENERATED, generator, name])
    return rows, lost, likeness


def parser() -> cli.Parser:
    """The command-line options."""
    p = cli.Parser(prog="python -m aidet.align", description=__doc__)
    p.add_argument(
        "--images", required=True, metavar="DIR|LIST.csv", help="real images; of a table with labels the real ones"
    )
    p.add_argument("--ckpt", required=True, metavar="AE.ckpt", help="any converted autoencoder, or its encoder")
    p.add_argument("--decoder", metavar="DEC.ckpt", help="the decoder, if --ckpt is an encoder alone (TAESD)")
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument(
        "--tile", type=int, default=TILE, metavar="PIXELS", help=f"larger images are processed in tiles ({TILE})"
    )
    p.add_argument(
        "--originals",
        choices=("copy", "reference"),
        default="copy",
        help="copy them to OUT/real, or only refer to them",
    )
    p.add_argument("--metadata", choices=("copy", "drop"), default="copy", help="EXIF and colour profile of the fakes")
    p.add_argument("--device", default="auto", metavar="auto|Ascend|GPU|CPU")
    p.add_argument("--resume", action="store_true", help="continue an interrupted run")
    return p


def main(argv: List[str]) -> int:
    """Parse the command line and build the pairs; gives the exit code."""
    options = parser().parse_args(argv)
    folder, out = Path(options.images), Path(options.out)
    if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
        raise UserError(f"--out {options.out!r} lies inside --images; the fakes would be taken for originals next time")
    read_images(folder, "--images")
    if out.exists() and any(out.iterdir()) and not options.resume:
        raise UserError(f"--out {options.out!r} is not empty; name a new folder, or add --resume")
    reconstruct = Reconstructor(options.ckpt, options.tile, options.device, options.decoder)
    rows, lost, likeness = build(
        folder, out, reconstruct, options.originals, options.metadata, options.resume, reconstruct.name
    )
    for name, why in lost:
        print(cli.printable(f"left out {name}: {why}"), file=sys.stderr)
    if not rows:
        raise UserError(f"none of the {len(lost)} images of {options.images} could be used")
    with files.atomic(out / "labels.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["path", "label", "generator", "group"], *rows])
    finite = [p for p in likeness if np.isfinite(p)]
    psnr = float(np.mean(finite)) if finite else None
    facts = {
        "autoencoder": reconstruct.name, "sha256": reconstruct.sha256, "decoder_sha256": reconstruct.decoder_sha256,
        "pairs": len(rows) // 2, "psnr": psnr,
        "tile": options.tile, "metadata": options.metadata,
        "left_out": [{"path": name, "reason": why} for name, why in lost],
    }  # fmt: skip
    files.write_json(out / "align.json", facts)
    shown = f", mean PSNR {psnr:.1f} dB" if psnr is not None else ""
    print(f"{len(rows) // 2} pairs in {out}{shown}; labels in {out / 'labels.csv'}")
    if psnr is not None and psnr < FAINT:
        print(
            f"warning: below {FAINT:g} dB the fakes do not resemble the originals; is the sidecar's input.range right?",
            file=sys.stderr,
        )
    return cli.PARTIAL if lost else cli.OK


if __name__ == "__main__":
    cli.main(main)
