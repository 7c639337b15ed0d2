"""Train the net that finds partly generated pictures in PyTorch; it is then saved as a MindSpore checkpoint.

    python -m convert.training.partial --data SET/labels.csv --pairs RECONSTRUCTIONS --out runs/partial
    python -m convert.training.partial_finish runs/partial ckpt/aidet_partial.ckpt --data SET/labels.csv

``train.py --config mindcv_cfg/partial_lite0.yaml`` trains the same net in MindSpore.  This script exists because a step
takes longer there on a CPU, and because it can draw new regions in every step (``--pairs``).

* It starts from the first five stages of ``ckpt/aidet_default.ckpt``; the stem and two stages stay as they are.
* A batch consists of pairs: the same crop of the partly generated picture and of its untouched twin, at native
  resolution, degraded with the same random draw, so that neither content nor compression tells them apart.
* ``--pairs`` is a folder of ``NAME_r.png`` and ``NAME_f.png``, a photograph and its whole reconstruction (the cache of
  ``convert.training.detector``, or what ``convert.training.decoders`` writes). Random regions of the one are blended
  into the other, anew in every step.
* ``--made``: a part of these regions gets traces that are made up, such as a coarser grid, a faint period, other noise,
  so that the net learns to see a difference and not one decoder.
* Loss: binary cross-entropy of the cells against the generated share of each, and of the image score.
"""

import argparse
import csv
import queue
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from aidet import ckpt, cli, files, images, records
from aidet.datasets.masks import read_mask
from aidet.errors import UserError
from aidet.metrics import auc

from . import partial_net
from .detector import follow, normalise

GRID = 16
FROZEN = 5  # cells of `features` that are not trained: stem (three cells) and two stages
DEGRADE = images.Pipeline(
    "color_jitter(0.2, 0.2, 0.2, p=0.2) | down_up((0.6, 0.95), p=0.05) | blur((0.2, 1.0), p=0.08)"
    " | noise((0.5, 4), p=0.08) | webp((60, 95), p=0.1) | jpeg((60, 98), p=0.55)"
).steps
SHRINK = (0.2, 0.6)  # probability and least factor of downscaling the crop
Item = Tuple[np.ndarray, np.ndarray, Optional[np.ndarray]]  # untouched, generated, mask (None: draw one)


def read_set(source: str, split: str) -> List[Item]:
    """The pairs of one split of a partial set: (untouched, partly generated, mask), uint8 arrays."""
    table, _ = records.read_table(Path(source))
    root = Path(source).parent
    result: List[Item] = []
    for row in table:
        if row.get("split", "train") != split or row["label"] != "1" or not row.get("mask"):
            continue
        path = root / row["path"]
        stem = path.stem
        twin = path.with_name(stem[:-2] + "_r" + path.suffix)
        if not stem.endswith("_p") or not twin.is_file():
            continue
        touched = np.asarray(images.decode(path))
        mask = read_mask(root / row["mask"], (touched.shape[1], touched.shape[0]))
        result.append((np.asarray(images.decode(twin)), touched, mask))
    return result


def read_pairs(folder: str) -> List[Item]:
    """Photographs and their whole reconstructions, by name."""
    result: List[Item] = []
    for real in sorted(Path(folder).glob("*_r.png")):
        fake = real.with_name(real.name[:-6] + "_f.png")
        if fake.is_file():
            result.append((np.asarray(images.decode(real)), np.asarray(images.decode(fake)), None))
    return result


def made_up(real: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same pixels with traces such as a decoder leaves: one or two of :data:`TRACES`, of random strength."""
    image, kinds = Image.fromarray(real), rng.permutation(len(TRACES))[: int(rng.integers(1, 3))]
    for kind in kinds:
        image = TRACES[kind](image, rng)
    part = rng.uniform(0.6, 1.0)
    return np.rint(real + part * (np.asarray(image, np.float32) - real)).astype(np.uint8)


def _coarse(image, rng):
    """Shrunk and enlarged again by any two filters, repeated pixels among them."""
    filters = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    factor = rng.choice([0.5, rng.uniform(0.4, 0.9)])
    small = image.resize([max(8, int(n * factor)) for n in image.size], Image.Resampling.BOX)
    return small.resize(image.size, filters[rng.integers(4)])


def _pattern(image, rng):
    """A faint periodic pattern, as transposed convolutions leave it (Odena et al. 2016)."""
    period, h, w = int(rng.choice([2, 4, 8])), image.height, image.width
    tile = rng.standard_normal((period, period, 3)) * rng.uniform(0.5, 3.0)
    whole = np.tile(tile, (-(-h // period), -(-w // period), 1))[:h, :w]
    return Image.fromarray(np.clip(np.rint(np.asarray(image, np.float32) + whole), 0, 255).astype(np.uint8))


def _smooth(image, rng):
    """Without its noise."""
    kinds = (ImageFilter.MedianFilter(3), ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3)), ImageFilter.ModeFilter(3))
    return image.filter(kinds[int(rng.choice(3, p=(0.45, 0.45, 0.1)))])


def _renoised(image, rng):
    """With noise of another kind: smooth first, then white."""
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.0))), np.float32)
    pixels = pixels + rng.standard_normal(pixels.shape).astype(np.float32) * rng.uniform(1.0, 5.0)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _sharpened(image, rng):
    """Blurred, and sharpened beyond what it was."""
    soft = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.2)))
    return soft.filter(ImageFilter.UnsharpMask(rng.uniform(0.5, 2.0), int(rng.integers(80, 220)), 0))


TRACES = (_coarse, _pattern, _smooth, _renoised, _sharpened)


def region(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    """A random region as uint8 (h, w) of 0 and 1: a box, an ellipse, a stroke or a blob, 2 to 60 % of the area."""
    for _ in range(8):
        kind, canvas = int(rng.integers(4)), Image.new("L", (w, h))
        draw = ImageDraw.Draw(canvas)
        if kind == 3:
            cells = Image.fromarray((rng.random((int(rng.integers(3, 8)),) * 2) * 255).astype(np.uint8))
            smooth = np.asarray(cells.resize((w, h), Image.Resampling.BICUBIC))
            mask = (smooth > np.quantile(smooth, rng.uniform(0.5, 0.95))).astype(np.uint8)
        else:
            bw, bh = (int(n * rng.uniform(0.15, 0.8)) for n in (w, h))
            x, y = int(rng.integers(0, w - bw + 1)), int(rng.integers(0, h - bh + 1))
            if kind == 0:
                draw.rectangle((x, y, x + bw, y + bh), fill=1)
            elif kind == 1:
                draw.ellipse((x, y, x + bw, y + bh), fill=1)
            else:
                points = [(int(rng.integers(w)), int(rng.integers(h))) for _ in range(int(rng.integers(2, 6)))]
                draw.line(points, fill=1, width=int(min(h, w) * rng.uniform(0.06, 0.2)), joint="curve")
            mask = np.asarray(canvas)
        if 0.02 <= mask.mean() <= 0.6:
            return mask
    return mask


def blended(real: np.ndarray, fake: np.ndarray, mask: np.ndarray, radius: float) -> np.ndarray:
    """``fake`` inside the mask, ``real`` outside, mixed over some ``radius`` pixels at the edge."""
    soft = Image.fromarray(mask * np.uint8(255))
    if radius:
        soft = soft.filter(ImageFilter.GaussianBlur(radius))
    part = np.asarray(soft, np.float32)[..., None] / 255
    return np.rint(real + part * (fake.astype(np.float32) - real)).astype(np.uint8)


def crops(
    item: Item, size: int, rng: np.random.Generator, made: float = 0.0
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same degraded crop of both pictures, uint8 (size, size, 3), and the generated share of the cells.

    ``made`` is the probability that a region without a mask gets traces that are made up.
    """
    real, fake, mask = item
    often, least = SHRINK
    scale = rng.uniform(least, 1.0) if rng.random() < often else 1.0
    side = min(round(size / scale), *real.shape[:2])
    for _ in range(3):  # a crop that holds some of the region, if that is easy to hit
        top, left = (int(rng.integers(n - side + 1)) for n in real.shape[:2])
        box = (slice(top, top + side), slice(left, left + side))
        if mask is None or mask[box].mean() > 0.01:
            break
    real, fake = real[box], fake[box]
    if mask is None:
        inside = region(side, side, rng)
        if fake is real or rng.random() < made:
            fake = made_up(real, rng)
        elif rng.random() < 0.4:  # fainter than the decoder left them
            fake = np.rint(real + rng.uniform(0.5, 1.0) * (fake.astype(np.float32) - real)).astype(np.uint8)
        fake = blended(real, fake, inside, float(rng.uniform(0.0, 3.0)))
    else:
        inside = mask[box]
        if rng.random() < 0.3:  # a part of the region only
            part = region(side, side, rng) & inside
            if part.mean() > 0.02:
                inside, fake = part, blended(real, fake, part, float(rng.uniform(0.0, 2.0)))
    turn, flip = int(rng.integers(4)) if rng.random() < 0.3 else 0, rng.random() < 0.5
    resample, seed = (
        (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)[rng.integers(3)],
        (int(rng.integers(1 << 62))),
    )

    def moved(array):
        array = np.rot90(array, turn)
        return np.ascontiguousarray(array[:, ::-1] if flip else array)

    def view(array):
        image = Image.fromarray(moved(array))
        if side != size:
            image = image.resize((size, size), resample)
        return np.asarray(images.applied(DEGRADE, image, np.random.default_rng(seed)))

    share = Image.fromarray(moved(inside) * np.uint8(255)).convert("F")
    share = share.resize((size // GRID, size // GRID), Image.Resampling.BOX)
    return view(real), view(fake), np.asarray(share, np.float32) / 255


def batches(pools: Sequence[List[Item]], odds: Sequence[float], args: argparse.Namespace) -> Iterator[Any]:
    """Batches (pictures uint8 (N, s, s, 3), shares (N, s / 16, s / 16)), prepared ahead by a thread."""
    todo: queue.Queue[Any] = queue.Queue(maxsize=4)

    def work():
        for step in range(args.steps):
            rng, x, y = np.random.default_rng([args.seed, step]), [], []
            for _ in range(args.batch_size // 2):
                pool = pools[int(rng.choice(len(pools), p=odds))]
                real, fake, share = crops(pool[int(rng.integers(len(pool)))], args.crop, rng, args.made)
                x += [real, fake]
                y += [np.zeros_like(share), share]
            todo.put((np.stack(x), np.stack(y)))
        todo.put(None)

    threading.Thread(target=work, daemon=True).start()
    return iter(todo.get, None)


def freeze(net: Any) -> None:
    """Keep the first cells as they are, running statistics too."""
    for module in net.features[:FROZEN]:
        module.eval().requires_grad_(False)


def train(pools: Sequence[List[Item]], odds: Sequence[float], held: List[Item], args: argparse.Namespace) -> None:
    """Train with AdamW, warm-up, one cosine decay and averaged weights."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as entropy

    torch.manual_seed(args.seed)
    net, out = partial_net.network(), Path(args.out)
    own = args.weights and "cell.weight" in ckpt.load_arrays(args.weights)
    partial_net.load_arrays(net, ckpt.load_arrays(args.weights), ("",) if own else ("features.",))
    net = net.to(memory_format=torch.channels_last).train()
    freeze(net)
    trained = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    body = [p for n, p in trained if n.startswith("features.")]
    head = [p for n, p in trained if not n.startswith(("features.", "pooling"))]
    groups = [{"params": body, "m": args.body}, {"params": head, "m": 1.0}]
    # Three numbers of their own size, which the decay of weights would pull to 0.
    groups.append({"params": [net.pooling], "m": 10.0, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02)
    average = {k: v.clone() for k, v in net.state_dict().items()}
    start = time.time()
    recent: List[Tuple[float, float]] = []
    log: List[List[float]] = []
    for i, (x, share) in enumerate(batches(pools, odds, args)):
        done = min(1.0, (time.time() - start) / (60 * args.minutes)) if args.minutes else i / args.steps
        rate = args.lr * min(1, (i + 1) / 60) * 0.5 * (1 + np.cos(np.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["m"]
        target = torch.from_numpy(share)
        cells, score = net.maps(normalise(x))
        local = entropy(cells, target)
        whole = entropy(score, (target.flatten(1).mean(1) > 0.005).float())
        loss = local + args.image_weight * whole
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(body + head, 2.0)
        optimizer.step()
        decay = min(0.996, (i + 1) / (i + 10))
        follow(average, net, decay)
        recent = recent[-99:] + [(local.item(), whole.item())]
        last = i + 1 == args.steps or bool(args.minutes and time.time() - start > 60 * args.minutes)
        if (i + 1) % 50 == 0 or last:
            log.append([i + 1, *np.mean(recent, 0).round(4), round(time.time() - start)])
            print("step {}  cells {}  image {}  {} s".format(*log[-1]), flush=True)
            write(net, average, out, log)
        if (i + 1) % 250 == 0 or last:
            found = validate(net, average, held)
            print("  validation " + "  ".join(f"{k} {v:.4f}" for k, v in found.items()), flush=True)
        if last:
            break


def validate(net: Any, average: Dict[str, Any], held: List[Item]) -> Dict[str, float]:
    """AUC of the cells and of the images of the averaged weights; regions are drawn where there is no mask."""
    import torch

    def rank(sides, values):
        return auc(sides, values) or float("nan")

    other = partial_net.network()
    other.load_state_dict(average)
    other = other.to(memory_format=torch.channels_last).eval()
    cells, shares, scores, sides = [], [], [], []
    for k, (real, fake, mask) in enumerate(held):
        h, w = (n // 32 * 32 for n in real.shape[:2])
        real, fake = real[:h, :w], fake[:h, :w]
        if mask is None:
            mask = region(h, w, np.random.default_rng(k))
            fake = blended(real, fake, mask, 1.0)
        share = images.shares(mask[:h, :w], GRID)
        if not share.any():
            continue
        with torch.inference_mode():
            found, score = other.maps(normalise(np.stack([real, fake])))
        cells += [found[0].numpy().ravel(), found[1].numpy().ravel()]
        shares += [np.zeros(share.size), share.ravel()]
        scores += score.tolist()
        sides += [0, 1]
    flat, truth = np.concatenate(cells), np.concatenate(shares)
    clear = (truth < 0.05) | (truth > 0.5)
    untouched = np.concatenate(cells[::2])
    return {
        "cells": rank((truth[clear] > 0.5).astype(int), flat[clear]),
        "images": rank(np.array(sides), np.array(scores)),
        "false area": float((untouched > 0).mean()),
        "found area": float((flat[truth > 0.5] > 0).mean()),
    }


def write(net: Any, average: Dict[str, Any], out: Path, log: Sequence[Sequence[float]]) -> None:
    """The averaged weights under MindSpore's names (model.ckpt), and log.csv."""
    own = {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(average)
    arrays = partial_net.to_arrays(net)
    net.load_state_dict(own)
    out.mkdir(parents=True, exist_ok=True)
    ckpt.save_arrays(arrays, out / "model.ckpt")
    with files.atomic(out / "log.csv") as file:
        csv.writer(file, lineterminator="\n").writerows([["step", "cells", "image", "seconds"], *log])


def main(argv: Sequence[str]) -> None:
    """Read the pairs and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data", action="append", default=[], help="labels.csv of a partial set: splits train and val")
    add("--pairs", action="append", default=[], help="folder of NAME_r.png and NAME_f.png: photographs, reconstructed")
    add("--share", type=float, default=0.25, help="part of a batch that comes from --pairs")
    add("--made", type=float, default=0.0, help="part of the pairs of --pairs whose traces are made up instead")
    add("--weights", default="ckpt/aidet_default.ckpt", help="the default detector, or model.ckpt of an earlier run")
    add("--out", default="runs/partial")
    add("--steps", type=int, default=1500)
    add("--minutes", type=float, help="length of the run in place of --steps; the schedule follows the clock")
    add("--batch-size", type=int, default=16)
    add("--crop", type=int, default=192)
    add("--lr", type=float, default=1.5e-3)
    add("--body", type=float, default=0.25, help="factor of the learning rate of the backbone")
    add("--image-weight", type=float, default=0.3)
    add("--threads", type=int, help="CPU threads of PyTorch")
    add("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    pools, odds, held = [], [], []
    sets = [item for source in args.data for item in read_set(source, "train")]
    for source in args.data:
        held += read_set(source, "val")
    drawn = [item for folder in args.pairs for item in read_pairs(folder)]
    if not sets and drawn:
        held, drawn, args.share = drawn[::10], [d for k, d in enumerate(drawn) if k % 10], 1.0
    for pool, part in ((sets, 1 - args.share if drawn else 1.0), (drawn, args.share)):
        if pool:
            pools.append(pool)
            odds.append(part)
    if not pools or not held:
        raise UserError("no pairs to train with, or none held out: give --data SET/labels.csv or --pairs FOLDER")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    # For the sidecar: the settings without the places of this machine.
    given = {k: v for k, v in vars(args).items() if k not in ("data", "pairs", "out", "threads")}
    given["weights"] = Path(args.weights).name
    files.write_json(out / "training.json", {**given, "pairs_of_sets": len(sets), "whole_pairs": len(drawn)})
    print(f"{len(sets)} pairs of the sets, {len(drawn)} whole reconstructions, {len(held)} held out", flush=True)
    train(pools, odds, held, args)


if __name__ == "__main__":
    cli.main(main)
