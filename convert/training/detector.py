"""Train the default detector in PyTorch; it is then converted to a MindSpore checkpoint (needs the parity extra).

    python -m convert.training.detector --data A/labels.csv --data B/labels.csv \\
        --init EFFICIENTNET_LITE0.pth --autoencoder ENCODER.pth DECODER.pth --out runs/default
    python -m convert runs/default/collapsed ckpt/aidet_default.ckpt --dtype fp16 --verify logits

What it does, and where each idea comes from:

* crops at native resolution; the whole image is never resized (SAFE, Li et al. 2025; B-Free, Guillaro et al. 2025);
* a part of the photographs has aligned fakes: reconstructions by real autoencoders, encoded like the original, cropped
  at the same place and degraded with the same random draw (AlignedForensics, Rajan et al. 2025; DDA, Chen et al. 2025,
  which is also the source for mixing a photograph with its reconstruction);
* JPEG, WebP, rescaling, blur and noise with the same probabilities for both classes (CNNDetection, Wang et al. 2020);
* images that were never compressed, as most generated ones, get an earlier JPEG compression, because photographs have
  one (the column ``source_jpeg_quality`` tells, where a set has it);
* one class per generator, collapsed to real against the rest (awsaf49's VIP Cup entry, 2022);
* real sources and generators are drawn in proportion to the square root of their number of files;
* averaged weights (EMA).

With ``--weights`` the run goes on from earlier ones; the stem and the first two blocks then stay as they are.

The CSVs have the columns path, label, generator and split; only rows of split ``train`` are used.
"""

import argparse
import csv
import io
import queue
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image

from aidet import cli, files, images, records
from aidet.errors import UserError
from aidet.images import operations

if TYPE_CHECKING:
    import torch

Row = Dict[str, Any]  # a row of a labels.csv, see read()
Batch = Tuple[np.ndarray, np.ndarray]
# The same pipeline line for both classes. A quarter of the crops is not changed.
DEGRADE = (
    "color_jitter(0.2, 0.2, 0.2, p=0.25) | down_up((0.5, 0.95), p=0.1) | blur((0.2, 1.2), p=0.1)"
    " | noise((0.5, 5), p=0.12) | webp((50, 95), p=0.12) | jpeg((50, 98), p=0.5)"
)
# Which photographs are reconstructed: this part of the large ones (short side of 400 pixels and more) and of the rest,
# in a square of SIDE pixels. A reconstruction costs a second or more, so there are few.
PART = {"large": 0.16, "small": 0.1}
SIDE = 288
# Quality of the JPEG compression that may be applied to generated images before anything else.
HISTORY = (70, 98)
# Probability of that compression for images that were and were not compressed before. Of sets that do not say so,
# generated images count as never compressed, photographs as compressed.
OFTEN = {"compressed": 0.15, "never": 0.55, "real": 0.1, "generated": 0.5}
# Probability and range of downscaling, the same for both classes. Photographs are usually published at a fraction of
# the camera's size; without downscaling, the detector would learn that sharp at native size is generated.
SHRINK = (0.5, 0.38)
# Blocks of the network that stay as they are, with the stem: the steps take half the time.
FROZEN = 2


def read(sources: Sequence[Union[str, Path]]) -> List[Row]:
    """Rows of every CSV: dicts with path (absolute), label (int), generator, split, set (the folder's name)."""
    rows: List[Row] = []
    for source in map(Path, sources):
        table, _ = records.read_table(source)
        for r in table:
            generator = r.get("generator") or ("generated" if r["label"] == "1" else "real")
            path = source.parent / r["path"]
            rows.append(
                {**r, "path": path, "label": int(r["label"]), "generator": generator, "set": source.parent.name}
            )
    return rows


def halves(encoder: str, decoder: str) -> "torch.nn.Module":
    """PyTorch module of a pair of files of the TAESD family, read with the converter's own safe reader."""
    import torch

    from .. import reading
    from ..parity.torch_reference import torch_model
    from ..plan import make_plan

    parts = []
    for path in (encoder, decoder):
        source = reading.read(Path(path))
        parts.append(torch_model(make_plan(source), source))
    return torch.nn.Sequential(*parts).eval()


def own_autoencoder(path: str) -> "torch.nn.Module":
    """The project's tiny autoencoder as a PyTorch module."""
    import torch

    from aidet import ckpt

    from .autoencoder import network as tiny

    net = tiny()
    net.load_state_dict({k: torch.from_numpy(v.astype(np.float32)) for k, v in ckpt.load_arrays(path).items()})
    return torch.nn.Sequential(net.encoder, net.decoder).eval()


def reconstruct(net: Any, array: np.ndarray) -> np.ndarray:
    """Pass uint8 (h, w, 3) through an autoencoder that works on [0, 1]; grey photographs stay grey."""
    import torch

    x = torch.from_numpy(array.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    with torch.inference_mode():
        y = net(x)[0].numpy().transpose(1, 2, 0)
    y = np.clip(np.rint(y * 255), 0, 255).astype(np.uint8)
    if (array == array[..., :1]).all():
        y = np.repeat(np.asarray(Image.fromarray(y).convert("L"))[..., None], 3, 2)
    return y


def plan(rows: Sequence[Row], names: Sequence[str]) -> List[Tuple[Row, str]]:
    """Which reconstructions to make: (row, autoencoder), drawn by the name of the file; see ``PART``."""
    jobs: List[Tuple[Row, str]] = []
    for r in (r for r in rows if not r["label"]):
        with Image.open(r["path"]) as image:
            kind = "large" if min(image.size) >= 400 else "small"
        rng = np.random.default_rng(int.from_bytes(r["path"].stem[-5:].encode(), "big") % (1 << 31))
        name = names[int(rng.integers(len(names)))]
        if rng.random() < PART[kind]:
            jobs.append((r, name))
    return jobs


def twin(row: Row, name: str, nets: Mapping[str, "torch.nn.Module"], cache: Union[str, Path]) -> List[np.ndarray]:
    """A part of a photograph and its reconstruction, uint8 arrays of the same size; cached in ``cache`` as PNG."""
    key = f"{row['set']}_{row['path'].stem}_{name}"
    real, fake = (Path(cache) / f"{key}_{kind}.png" for kind in "rf")
    if not fake.is_file():
        array = np.asarray(images.decode(row["path"]))
        rng = np.random.default_rng(array.size + int(array[0, 0, 0]))
        # On the 8x8 grid of the photograph's compression, so that the twin can have the same.
        top, left = (int(rng.integers(max(1, n - SIDE + 1))) // 8 * 8 for n in array.shape[:2])
        array = array[top : top + SIDE, left : left + SIDE]
        h, w = (n // 16 * 16 for n in array.shape[:2])
        array = array[:h, :w]
        for path, pixels in ((real, array), (fake, reconstruct(nets[name], array))):
            with files.atomic(path, "wb") as file:
                Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    pair = [np.asarray(Image.open(path)) for path in (real, fake)]
    # The original was compressed as JPEG once, so its twin is, too, with the same tables: JPEG traces must not reveal
    # the class.
    pair[1] = jpeg_like(pair[1], row["path"])
    return pair


def jpeg_like(array: np.ndarray, path: Path) -> np.ndarray:
    """The pixels after JPEG compression with the quantisation tables of a file, 4:2:0."""
    with Image.open(path) as original:
        if original.format != "JPEG":
            return array
        tables = original.quantization  # type: ignore[attr-defined] # JPEG files have it
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", qtables=tables, subsampling="4:2:0")
    return np.asarray(Image.open(buffer))


class Pool:
    """Decoded images of the training part, by group: real sources, generators, twins (name, real, fake).

    ``earlier`` has the probability of an earlier compression of each image, in the same order.
    """

    def __init__(self, rows: Sequence[Row], nets: Mapping[str, "torch.nn.Module"], cache: Union[str, Path]) -> None:
        self.real: Dict[str, List[np.ndarray]] = {}
        self.fake: Dict[str, List[np.ndarray]] = {}
        self.earlier: Dict[Tuple[int, str], List[float]] = {}
        for r in rows:
            group = self.fake if r["label"] else self.real
            group.setdefault(r["generator"], []).append(np.asarray(images.decode(r["path"])))
            self.earlier.setdefault((r["label"], r["generator"]), []).append(earlier(r))
        jobs = plan(rows, list(nets))
        self.twins: List[Tuple[str, np.ndarray, np.ndarray]] = []
        for i, (row, name) in enumerate(jobs):
            real, fake = twin(row, name, nets, cache)
            self.twins.append((name, real, fake))
            if i % 200 == 0:
                print(f"  {i}/{len(jobs)} reconstructions", flush=True)

    def classes(self) -> List[str]:
        """Class names: real first, then one per generator and one per autoencoder."""
        return ["real", *sorted(map(called, self.fake)), *sorted({called(t[0]) for t in self.twins})]


def earlier(row: Row) -> float:
    """Probability that this image is compressed once before anything else; see ``OFTEN``."""
    if "source_jpeg_quality" in row:
        return OFTEN["compressed" if row["source_jpeg_quality"] else "never"]
    return OFTEN["generated" if row["label"] else "real"]


def called(generator: str) -> str:
    """The class name of a generator: ``generated`` and one word, so that no word in it is mistaken for a class."""
    return "generated_" + "".join(c for c in generator if c.isalnum())


def compressed_before(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """A JPEG-compressed crop a little larger than ``side``, so that a crop of it can have any offset on the 8x8 grid.

    Cameras save photographs as JPEG; generated images are mostly PNG. Without this, an earlier compression would mean
    real.
    """
    outer = min(side + 8, *image.size)
    return operations.jpeg(HISTORY)(operations.random_crop(outer)(image, rng), rng)


def view(array: np.ndarray, crop: int, seed: int, shrink: Tuple[float, float], history: float = 0.0) -> np.ndarray:
    """A degraded crop, uint8 (crop, crop, 3). The same seed gives the same place, scale and degradations.

    ``history`` is the probability of an earlier JPEG compression.
    """
    rng = np.random.default_rng(seed)
    image = Image.fromarray(array)
    often, least = shrink
    scale = rng.uniform(least, 1.0) if rng.random() < often else rng.uniform(1.0, 1.6) if rng.random() < 0.1 else 1.0
    side = min(round(crop / scale), *array.shape[:2])
    if history and rng.random() < history:
        image = compressed_before(image, side, rng)
    image = operations.hflip()(operations.random_crop(side)(image, rng), rng)
    filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    resample = filters[rng.integers(3)]
    if side != crop:
        image = image.resize((crop, crop), resample)
    turns = int(rng.integers(4)) if rng.random() < 0.2 else 0
    if turns:
        image = image.transpose(
            (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)[turns]
        )
    if rng.random() < 0.8:
        image = images.applied(DEGRADE_STEPS, image, rng)
    return np.asarray(image)


DEGRADE_STEPS = images.Pipeline(DEGRADE).steps


def draw(pool: Pool, classes: Sequence[str], rng: np.random.Generator, size: int, crop: int, twins: float) -> Batch:
    """One batch: uint8 crops (size, crop, crop, 3) and class indices.

    A fraction ``twins`` of the batch consists of pairs of a real crop and its reconstruction, with all else equal; the
    rest is half real and half generated.
    """

    def pick(groups, label):
        names = sorted(groups)
        weights = np.sqrt([len(groups[n]) for n in names])
        name = names[rng.choice(len(names), p=weights / weights.sum())]
        i = int(rng.integers(len(groups[name])))
        return name, groups[name][i], pool.earlier[label, name][i]

    x: List[np.ndarray] = []
    y: List[int] = []
    while len(x) < size:
        seed = int(rng.integers(1 << 62))
        if rng.random() < twins:
            name, real, fake = pool.twins[int(rng.integers(len(pool.twins)))]
            if rng.random() < 0.3:
                part = rng.uniform(0.5, 1.0)
                fake = np.rint(real + part * (fake.astype(np.float32) - real)).astype(np.uint8)
            x += [view(array, crop, seed, SHRINK) for array in (real, fake)]
            y += [0, classes.index(called(name))]
        else:
            name, fake, of_fake = pick(pool.fake, 1)
            _, real, of_real = pick(pool.real, 0)
            x.append(view(real, crop, seed, SHRINK, of_real))
            x.append(view(fake, crop, seed + 1, SHRINK, of_fake))
            y += [0, classes.index(called(name))]
    return np.stack(x[:size]), np.array(y[:size])


def batches(pool: Pool, classes: Sequence[str], args: argparse.Namespace) -> Iterator[Batch]:
    """The same batches in the same order, prepared ahead by a thread."""
    todo: queue.Queue[Optional[Batch]] = queue.Queue(maxsize=6)

    def work():
        for step in range(args.steps):
            rng = np.random.default_rng([args.seed, step])
            todo.put(draw(pool, classes, rng, args.batch_size, args.crop, args.twins))
        todo.put(None)

    threading.Thread(target=work, daemon=True).start()
    return iter(todo.get, None)


def network_without_weights(outputs: int = 1000) -> Any:
    """timm's tf_efficientnet_lite0 with random weights."""
    from ..parity.torch_imports import without_broken_ops

    without_broken_ops()
    import timm

    return timm.create_model(
        "tf_efficientnet_lite0", pretrained=False, num_classes=outputs, drop_rate=0.2, drop_path_rate=0.1
    )


def network(init: str, outputs: int) -> Any:
    """timm's tf_efficientnet_lite0 with the packaged ImageNet weights and a new head."""
    import torch

    from .. import reading

    net = network_without_weights()
    source = reading.read(Path(init))
    # The packaged file uses lukemelas' names; both list the same tensors in the same order (difference from timm: 0).
    state = dict(zip(net.state_dict(), (torch.from_numpy(np.array(t.array())) for t in source.tensors.values())))
    net.load_state_dict(state)
    net.reset_classifier(outputs)
    return net


def earlier_weights(path: str) -> Tuple[Dict[str, "torch.Tensor"], List[str]]:
    """timm's tensors and the class names of an earlier run (.safetensors) or of a checkpoint of the project (.ckpt)."""
    import torch

    if Path(path).suffix != ".ckpt":
        from safetensors.torch import load_file

        return load_file(path), files.read_json(Path(path).parent / "config.json", "configuration")["label_names"]
    from aidet import ckpt

    from ..families import family_of
    from ..reverse import to_layout

    sidecar = ckpt.Sidecar.read(path)
    family = family_of(sidecar.architecture)
    arrays = to_layout(
        ckpt.load_arrays(path), family, family.layout("timm-tf"), sidecar.architecture, sidecar.arguments
    )
    tensors = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in arrays.items()}
    return tensors, list(sidecar.classes or ())


def continued(path: str, classes: Sequence[str], state: Mapping[str, "torch.Tensor"]) -> Dict[str, "torch.Tensor"]:
    """Weights to go on from; classes that they do not have keep their rows from ``state``."""
    loaded, names = earlier_weights(path)
    loaded = {**{k: v for k, v in state.items() if k.endswith("num_batches_tracked")}, **loaded}
    for key in ("classifier.weight", "classifier.bias"):
        rows = state[key].clone()
        for i, name in enumerate(classes):
            if name in names:
                rows[i] = loaded[key][names.index(name)]
        loaded[key] = rows
    return loaded


def freeze(net: Any) -> Any:
    """Keep the stem and the first ``FROZEN`` blocks of a network as they are, running statistics too."""
    fixed = [net.conv_stem, net.bn1, *net.blocks[:FROZEN]]
    for module in fixed:
        module.eval().requires_grad_(False)
    return net


def collapsed(logits: "torch.Tensor") -> "torch.Tensor":
    """Score (N,) of logits (N, C) whose first class is real."""
    import torch

    return torch.logsumexp(logits[:, 1:], 1) - logits[:, 0]


def normalise(x: np.ndarray) -> "torch.Tensor":
    """uint8 (N, h, w, 3) -> float32 (N, 3, h, w) in [-1, 1], channels last."""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


def follow(average: Mapping[str, "torch.Tensor"], net: "torch.nn.Module", decay: float) -> None:
    """Move averaged weights towards those of the network; whole numbers are copied."""
    import torch

    with torch.no_grad():
        for k, v in net.state_dict().items():
            if v.dtype.is_floating_point:
                average[k].lerp_(v, 1 - decay)
            else:
                average[k].copy_(v)


def train(pool: Pool, classes: Sequence[str], args: argparse.Namespace, out: Path) -> None:
    """Train with AdamW, warm-up, one cosine decay and averaged weights."""
    import torch

    torch.manual_seed(args.seed)
    net = network(args.init, len(classes)).to(memory_format=torch.channels_last).train()
    if args.weights:
        net.load_state_dict(continued(args.weights, classes, net.state_dict()))
        freeze(net)
    ema = {k: v.clone() for k, v in net.state_dict().items()}
    head = [p for n, p in net.named_parameters() if n.startswith("classifier")]
    body = [p for n, p in net.named_parameters() if not n.startswith("classifier")]
    optimizer = torch.optim.AdamW(
        [{"params": body, "m": 1.0}, {"params": head, "m": 5.0}], weight_decay=args.weight_decay
    )
    start = time.time()
    recent: List[Tuple[float, float, float]] = []
    log: List[List[float]] = []
    for i, (x, y) in enumerate(batches(pool, classes, args)):
        rate = args.lr * min(1, (i + 1) / 100) * 0.5 * (1 + np.cos(np.pi * i / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["m"]
        logits, target = net(normalise(x)), torch.from_numpy(y)
        # Two losses: which generator it is, and whether the image is real.
        binary = torch.nn.functional.binary_cross_entropy_with_logits(collapsed(logits), (target > 0).float())
        loss = 0.5 * torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.05) + binary
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(0.998, (i + 1) / (i + 10))
        follow(ema, net, decay)
        right = ((collapsed(logits) > 0) == (target > 0)).float().mean().item()
        recent = recent[-99:] + [(loss.item(), binary.item(), right)]
        if (i + 1) % 100 == 0 or i + 1 == args.steps:
            log.append([i + 1, *np.mean(recent, 0).round(4), round(time.time() - start)])
            print("step {}  loss {}  binary {}  accuracy {}  {} s".format(*log[-1]), flush=True)
        if (i + 1) % 500 == 0 or i + 1 == args.steps:
            write(ema, classes, out, log)


def write(
    state: Mapping[str, "torch.Tensor"], classes: Sequence[str], out: Path, log: Sequence[Sequence[float]]
) -> None:
    """Weights in timm's names, the class names, and the training log."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, out / "model.safetensors")
    facts = {"architecture": "tf_efficientnet_lite0", "num_classes": len(classes), "label_names": classes}
    files.write_json(out / "config.json", facts)
    with files.atomic(out / "log.csv") as file:
        rows = [["step", "loss", "binary", "accuracy", "seconds"], *log]
        csv.writer(file, lineterminator="\n").writerows(rows)


def main(argv: Sequence[str]) -> None:
    """Reconstruct the photographs and train the detector."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data", action="append", required=True, help="labels.csv with path, label, generator, split")
    add("--init", required=True, help="efficientnet-lite0-57934424.pth")
    add("--autoencoder", nargs=2, required=True, metavar=("ENCODER", "DECODER"), help="files of the TAESD family")
    add("--own-autoencoder", default="ckpt/aidet_tae.ckpt", help="the second source of aligned fakes")
    add("--twins", type=float, default=0.25, help="part of a batch that are pairs of real and reconstruction")
    add("--cache", default="runs/reconstructions")
    add("--out", default="runs/default")
    add("--weights", help="model.safetensors of an earlier run, or a .ckpt, to go on from with a new schedule")
    add("--steps", type=int, default=4000)
    add("--batch-size", type=int, default=24)
    add("--crop", type=int, default=160)
    add("--lr", type=float, default=4e-4)
    add("--weight-decay", type=float, default=0.02)
    add("--threads", type=int, help="CPU threads of PyTorch")
    add("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    rows = [r for r in read(args.data) if r.get("split", "train") == "train"]
    if not rows:
        raise UserError("no row of split train in " + ", ".join(args.data))
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    nets = {"taef2": halves(*args.autoencoder), "tae": own_autoencoder(args.own_autoencoder)}
    pool = Pool(rows, nets, args.cache)
    classes = pool.classes()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / "training.json", {k: v if v is None else str(v) for k, v in vars(args).items()})
    train(pool, classes, args, out)


if __name__ == "__main__":
    cli.main(main)
