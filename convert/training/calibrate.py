"""Calibrate a detector on validation images and write calibration and voting settings into the sidecar.

    python -m convert.training.calibrate --ckpt ckpt/aidet_default.ckpt --labels A/labels.csv --labels B/labels.csv \\
        --votes 10 --views pyramid --weights detail --fpr 0.1

Only rows of split ``val`` and folders of further photographs are used. Every image is scored in three conditions: as it
is, after JPEG at quality 70 and, if a whole crop still fits, at half its size. The threshold is the lowest one at which
the false-positive rate of every real source is at most the given value in each condition; sources of fewer than ten
images are pooled into one. Generated images do not affect the threshold; only their recall is printed.

The sidecar gets the threshold as an offset of the score, so that the boundary is at score 0, probability 0.5. It also
gets the scale that minimises the log loss over all these scores, with equal weight for the two classes (Platt 1999, but
with the boundary fixed by the photographs).
"""

from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np

from aidet import ckpt, cli, files, images, labels
from aidet.detector import Detector, detector, views
from aidet.errors import UserError

CONDITIONS = {"clean": None, "JPEG 70": "jpeg((70, 70))", "half size": "rescale((0.5, 0.5), bicubic)"}
FEW = 10


def rows_of(labels: Sequence[str], photos: Sequence[str]) -> List[Tuple[Path, str, int]]:
    """(path, source, label) of the validation rows and of the folders of photographs."""
    from .detector import read

    rows = [(r["path"], f"{r['set']}/{r['generator']}", r["label"]) for r in read(labels) if r["split"] == "val"]
    for folder in photos:
        rows += [(Path(folder) / name, Path(folder).name, 0) for name in images.walk(images.require_folder(folder))]
    if not any(r[2] == 0 for r in rows):
        raise UserError("no real image of split val in " + ", ".join(labels))
    return rows


def scores(detector: detector.Detector, path: Path, line: Optional[str]) -> float:
    """Probability of one image after the operations of a line; nan if the result is smaller than a crop."""
    image = images.decode(path)
    if line:
        image = images.applied(images.Pipeline(line).steps, image, images.generator(0, str(path)))
    made = detector.models[0].views
    # A network without a fixed size takes an image of any size.
    height, width = (made.size if made is not None else None) or (0, 0)
    if line and (image.height < height or image.width < width):
        return np.nan
    record = detector.score([image])[0]
    if record.prob is None:
        raise UserError(f"{path}: {record.status}; the detector cannot be calibrated on it")
    return record.prob


def choose(probs: np.ndarray, sources: Sequence[str], fpr: float) -> Tuple[float, str, int]:
    """The lowest threshold, and the source and condition that determine it.

    Parameters
    ----------
    probs : ndarray (N, C)
        Probability of *generated* for real images in each condition; nan if there is none.
    sources : sequence of str, length N
    fpr : float

    Returns
    -------
    (float, str, int)
    """
    names, counts = np.unique(sources, return_counts=True)
    small = set(names[counts < FEW])
    grouped = np.array(["small sources" if s in small else s for s in sources])
    found = []
    for name in np.unique(grouped):
        for c in range(probs.shape[1]):
            ordered = np.sort(probs[grouped == name, c])
            ordered = ordered[~np.isnan(ordered)]
            if not len(ordered):
                continue
            allowed = int(fpr * len(ordered))  # this many may be above the threshold
            found.append((float(ordered[len(ordered) - 1 - allowed]), str(name), c))
    return max(found)


def slope(margins: np.ndarray, made: np.ndarray) -> float:
    """The scale that minimises the balanced log loss: ``P(generated) = sigmoid(scale * margin)``.

    Parameters
    ----------
    margins : ndarray (n,)
        Score minus the score at the boundary.
    made : ndarray of bool (n,)

    Returns
    -------
    float
    """
    from scipy.optimize import minimize_scalar

    weights = np.where(made, 0.5 / made.sum(), 0.5 / (~made).sum())
    signed = np.where(made, margins, -margins)
    found = minimize_scalar(lambda k: weights @ np.logaddexp(0, -np.exp(k) * signed), bounds=(-5, 5), method="bounded")
    return float(np.exp(found.x))


def main(argv: Sequence[str]) -> None:
    """Choose threshold and scale and write them into the sidecar."""
    p = cli.Parser(prog=f"python -m {__package__}.calibrate", description=__doc__)
    p.add_argument("--ckpt", required=True)
    p.add_argument("--labels", action="append", required=True)
    p.add_argument("--photos", action="append", default=[], help="folder of photographs")
    p.add_argument("--votes", type=int, default=10)
    p.add_argument("--views", default="pyramid")
    p.add_argument("--weights", default="equal", choices=views.WEIGHTS, help="of the views")
    p.add_argument("--fpr", type=float, default=0.1)
    p.add_argument("--facts", metavar="FACTS.json", help="sections whose entries replace those of the sidecar first")
    args = p.parse_args(argv)
    facts = ckpt.read_sidecar(args.ckpt)
    for section, entries in (files.read_json(args.facts, "facts") if args.facts else {}).items():
        facts[section] = {**(facts.get(section) or {}), **entries}
    facts.pop("calibration", None)  # use the network's raw scores
    facts["voting"] = {"votes": args.votes, "views": args.views, "weights": args.weights}
    files.write_json(ckpt.sidecar_path(args.ckpt), facts)
    rows = rows_of(args.labels, args.photos)
    detector = Detector(args.ckpt, say=cli.to_stderr)
    probs = np.array([[scores(detector, path, line) for line in CONDITIONS.values()] for path, _, _ in rows])
    real = np.array([label == 0 for _, _, label in rows])
    threshold, source, condition = choose(probs[real], [s for _, s, label in rows if not label], args.fpr)
    print(f"threshold {threshold:.4f}, needed by {source} ({list(CONDITIONS)[condition]})")
    for name in sorted({s for _, s, _ in rows}):
        own = np.array([s == name for _, s, _ in rows])
        there = [probs[own, c][~np.isnan(probs[own, c])] for c in range(len(CONDITIONS))]
        shares = ", ".join(f"{c} {100 * (p > threshold).mean():.0f} %" for c, p in zip(CONDITIONS, there) if len(p))
        print(f"  {name} ({'real' if real[own].all() else 'generated'}, {own.sum()}): called generated {shares}")
    offset = round(float(labels.logit(threshold)), 4)
    there = ~np.isnan(probs)
    made = np.broadcast_to(~real[:, None], probs.shape)[there]
    scale = round(slope(labels.logit(probs[there]) - offset, made), 4)
    print(f"score 0 lies at {offset}, scale {scale}")
    facts["threshold"] = 0.5
    facts["calibration"] = {
        "scale": scale, "offset": offset, "target_fpr": args.fpr, "real_images": int(real.sum()),
        "conditions": list(CONDITIONS),
        "decided_by": f"{source} ({list(CONDITIONS)[condition]})",
    }  # fmt: skip
    files.write_json(ckpt.sidecar_path(args.ckpt), facts)


if __name__ == "__main__":
    cli.main(main)
