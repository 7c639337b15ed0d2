"""Fakes made of your own photographs, equal to them in all but the traces of a generator.

    python -m aidet.align --images photos --ckpt ckpt/aidet_tae.ckpt --out data/pairs
    python -m aidet.align --partial --images photos --ckpt ckpt/aidet_tae.ckpt --inpaint telea --out data/partial

The first form makes whole reconstructions by an autoencoder. Each has the content, size, format, JPEG quantisation
tables, chroma subsampling and metadata of its original, so that a detector cannot learn any of those (Rajan et al.,
"Aligned Datasets Improve Detection of Latent Diffusion-Generated Images", ICLR 2025; Chen et al., "Dual Data
Alignment", 2025). Writes real/NAME, generated/NAME and labels.csv (path, label, generator, group: that of the
source, else the pair; split, if the source has it).

With --partial only a region of each photograph is repainted, by an autoencoder or by OpenCV. Writes
pictures/NAME_p.jpg, its untouched twin pictures/NAME_r.jpg, both compressed alike, the mask masks/NAME_p.png (255
generated, 0 untouched), and labels.csv (path, label, generator, split, group, mask, area, kind, builder). See
docs/localize.md.

Both write align.json, what was made and how. Exit code 3 if some images could not be used; each is listed with its
reason.
"""

import csv
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from .. import cli, files
from ..datasets.sources import read_images
from ..errors import UserError
from . import partial
from .pairs import COLUMNS, build, real_images
from .reconstruct import TILE, Reconstructor
from .regions import KINDS

FAINT = 15.0  # dB: below it the reconstruction does not resemble the image, mostly because of a wrong input range
DRAWN = {"kinds": "kinds", "area": "area", "formats": "format", "quality": "quality", "seed": "seed"}


def parser() -> cli.Parser:
    """The command-line options."""
    p = cli.Parser(prog="python -m aidet.align", description=__doc__)
    p.add_argument(
        "--images", required=True, metavar="DIR|LIST.csv", help="real images; of a table with labels the real ones"
    )
    p.add_argument(
        "--ckpt",
        action="append",
        metavar="AE.ckpt",
        help="any converted autoencoder, or its encoder; with --partial several, or none",
    )
    p.add_argument(
        "--decoder",
        action="append",
        metavar="DEC.ckpt",
        help="the decoder, if --ckpt is an encoder alone (TAESD); of several, in the order of their encoders",
    )
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument(
        "--tile", type=int, default=TILE, metavar="PIXELS", help=f"larger images are processed in tiles ({TILE})"
    )
    p.add_argument("--device", default="auto", metavar="auto|Ascend|GPU|CPU")
    p.add_argument("--resume", action="store_true", help="continue an interrupted run")
    whole = p.add_argument_group("whole reconstructions")
    whole.add_argument(
        "--originals", choices=("copy", "reference"), help="copy them to OUT/real (default), or only refer to them"
    )
    whole.add_argument("--metadata", choices=("copy", "drop"), help="EXIF and colour profile of the fakes (copy)")
    _add_partial(p.add_argument_group("partly generated pictures"))
    return p


def _add_partial(group):
    base = partial.Settings()
    group.add_argument("--partial", action="store_true", help="repaint only a region of each photograph")
    group.add_argument(
        "--inpaint",
        nargs="+",
        choices=partial.METHODS,
        default=[],
        help=f"also repaint by OpenCV, regions of up to {partial.MOST_INPAINTED:.0%} of a picture".replace("%", "%%"),
    )
    group.add_argument("--kinds", nargs="+", choices=tuple(KINDS), help="of regions (default: all)")
    group.add_argument(
        "--area",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="share of the picture that is repainted ({:g} {:g})".format(*base.area),
    )
    group.add_argument(
        "--format",
        nargs="+",
        choices=tuple(partial.FORMATS),
        help=f"of both pictures, drawn for each pair ({' '.join(base.formats)}); name one twice to draw it more often",
    )
    group.add_argument(
        "--quality",
        nargs=2,
        type=int,
        metavar=("LOW", "HIGH"),
        help="of JPEG and WebP, drawn for each pair ({} {})".format(*base.quality),
    )
    group.add_argument("--seed", type=int, help=f"of all draws, with the name of the file ({base.seed})")


def main(argv: List[str]) -> int:
    """Parse the command line and build the pairs; gives the exit code."""
    options = parser().parse_args(argv)
    _check(options)
    folder, out = Path(options.images), Path(options.out)
    if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
        raise UserError(f"--out {options.out!r} lies inside --images; the fakes would be taken for originals next time")
    read_images(folder, "--images")
    if out.exists() and any(out.iterdir()) and not options.resume:
        raise UserError(f"--out {options.out!r} is not empty; name a new folder, or add --resume")
    return _partial(options, out) if options.partial else _whole(options, out)


def _check(options):
    """Refuse options of the other form, and none or too many builders."""
    if options.partial:
        wrong = [name for name in ("originals", "metadata") if getattr(options, name) is not None]
        if wrong:
            raise UserError(
                f"--{wrong[0]} has no meaning with --partial, which writes both pictures anew; leave it out"
            )
        if not options.ckpt and not options.inpaint:
            raise UserError("--partial needs something that paints: --ckpt AE.ckpt, --inpaint telea, or both")
        return
    wrong = [name for name in DRAWN.values() if getattr(options, name) is not None] + ["inpaint"] * bool(
        options.inpaint
    )
    if wrong:
        raise UserError(f"--{wrong[0]} goes with --partial, which is missing")
    for name in ("ckpt", "decoder"):
        if len(getattr(options, name) or ()) > 1:
            raise UserError(f"several --{name} need --partial; whole pictures are reconstructed by one autoencoder")
    if not options.ckpt:
        raise UserError("--ckpt is missing; give a converted autoencoder, such as ckpt/aidet_tae.ckpt")


def _left_out(lost, options, rows, out):
    for name, why in lost:
        print(cli.printable(f"left out {name}: {why}"), file=sys.stderr)
    if not rows:
        if [path.name for path in out.iterdir()] == ["align.json"]:  # nothing was made, now or before
            (out / "align.json").unlink()
            out.rmdir()
        raise UserError(f"none of the {len(lost)} images of {options.images} could be used")
    return [{"path": name, "reason": why} for name, why in lost]


def _table(path, header, rows):
    with files.atomic(path) as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _whole(options, out):
    reconstruct = Reconstructor(options.ckpt[0], options.tile, options.device, (options.decoder or [None])[0])
    metadata = options.metadata or "copy"
    begun = {
        "autoencoder": reconstruct.name, "sha256": reconstruct.sha256, "decoder_sha256": reconstruct.decoder_sha256,
        "tile": options.tile, "metadata": metadata,
    }  # fmt: skip
    real_images(options.images)
    _same(out / "align.json", begun)
    files.write_json(out / "align.json", begun)
    rows, lost, likeness = build(
        options.images, out, reconstruct, options.originals or "copy", metadata, options.resume, reconstruct.name
    )
    left_out = _left_out(lost, options, rows, out)
    _table(out / "labels.csv", COLUMNS[: len(rows[0])], rows)
    finite = [p for p in likeness if np.isfinite(p)]
    psnr = float(np.mean(finite)) if finite else None
    files.write_json(out / "align.json", {**begun, "pairs": len(rows) // 2, "psnr": psnr, "left_out": left_out})
    shown = f", mean PSNR {psnr:.1f} dB" if psnr is not None else ""
    print(f"{len(rows) // 2} pairs in {out}{shown}; labels in {out / 'labels.csv'}")
    if psnr is not None and psnr < FAINT:
        print(
            f"warning: below {FAINT:g} dB the fakes do not resemble the originals; is the sidecar's input.range right?",
            file=sys.stderr,
        )
    return cli.PARTIAL if lost else cli.OK


# --- partly generated pictures ----------------------------------------------------------------------------------------
def _partial(options, out):
    given = {name: getattr(options, option) for name, option in DRAWN.items() if getattr(options, option) is not None}
    settings = partial.Settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    builders, about = autoencoders(options.ckpt or [], options.decoder or [], options.tile, options.device)
    builders += [partial.inpainting(method) for method in dict.fromkeys(options.inpaint)]
    partial.check(builders, settings)
    real_images(options.images)
    facts = {"partial": partial.facts(settings, builders), "autoencoders": about, "tile": options.tile}
    _same(out / "align.json", facts)
    files.write_json(out / "align.json", facts)
    rows, lost = partial.build(options.images, out, builders, settings, options.resume)
    left_out = _left_out(lost, options, rows, out)
    _table(out / "labels.csv", partial.COLUMNS, [[row[name] for name in partial.COLUMNS] for row in rows])
    made = [row for row in rows if row["label"]]
    counts = {name: _counted(made, name) for name in ("kind", "builder", "split")}
    files.write_json(out / "align.json", {**facts, "pairs": len(made), "counts": counts, "left_out": left_out})
    shown = "; ".join(f"{name} {', '.join(f'{k} {n}' for k, n in found.items())}" for name, found in counts.items())
    print(f"{len(made)} partly generated pictures and as many untouched ones in {out}: {shown}")
    print(f"labels in {out / 'labels.csv'}")
    for group, splits in _torn(made):
        print(cli.printable(f"warning: group {group} lies in several splits: {', '.join(splits)}"), file=sys.stderr)
    return cli.PARTIAL if lost else cli.OK


def autoencoders(
    checkpoints: List[str], decoders: List[str], tile: int = TILE, device: str = "auto"
) -> Tuple[List[partial.Builder], List[Dict[str, Any]]]:
    """Builders of several autoencoders, and what ``align.json`` says about each.

    Parameters
    ----------
    checkpoints, decoders : list of str
        Whole autoencoders and encoders; the decoders in the order of their encoders.
    tile : int
    device : str

    Returns
    -------
    (list of Builder, list of dict)

    Raises
    ------
    UserError
        No autoencoder, two of one name, or not as many decoders as encoders.
    """
    from .. import ckpt

    rest = list(decoders)
    builders: List[partial.Builder] = []
    about: List[Dict[str, Any]] = []
    for path in checkpoints:
        half = ckpt.Sidecar.read(path).architecture.endswith("_encoder")
        decoder = rest.pop(0) if half and rest else None
        reconstruct = Reconstructor(path, tile, device, decoder)
        name = Path(path).stem
        name = name[: -len("_encoder")] if half and name.endswith("_encoder") else name
        if name in [builder.name for builder in builders]:
            raise UserError(f"--ckpt {path!r}: there is another autoencoder {name!r}; rename the file")
        builders.append(partial.autoencoder(reconstruct, name))
        hashes = {"sha256": reconstruct.sha256, "decoder_sha256": reconstruct.decoder_sha256}
        about.append({"name": name, "architecture": reconstruct.name, **hashes})
    if rest:
        raise UserError(f"--decoder {rest[0]!r} has no encoder; name it with --ckpt")
    return builders, about


def _same(path, facts):
    """Refuse to go on with a set that was begun otherwise."""
    if not path.is_file():
        return
    before = files.read_json(path, "align.json")
    for name, value in facts.items():
        if before.get(name) != value:
            old, new = before.get(name) or {}, value
            if isinstance(old, dict) and isinstance(new, dict):
                name = next((key for key in new if old.get(key) != new[key]), name)
                old, new = old.get(name), new.get(name)
            raise UserError(f"--resume: {str(path)!r} was begun with {name} {old}, now it is {new}; name a new folder")


def _counted(rows, name):
    found: Dict[str, int] = {}
    for row in rows:
        found[row[name]] = found.get(row[name], 0) + 1
    return dict(sorted(found.items()))


def _torn(rows):
    """Groups whose pictures the source puts into several splits."""
    splits: Dict[str, set] = {}
    for row in rows:
        splits.setdefault(row["group"], set()).add(row["split"])
    return [(group, sorted(found)) for group, found in splits.items() if len(found) > 1]
