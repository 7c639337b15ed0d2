"""Train the default detector in PyTorch and bring it back as a MindSpore checkpoint (needs torch and timm).

    python -m convert.training.detector --data A/labels.csv --data B/labels.csv \\
        --init EFFICIENTNET_LITE0.pth --autoencoder ENCODER.pth DECODER.pth --out runs/default

What it does, and where each idea comes from:

* crops of native pixels, never a resize of the whole image (SAFE, B-Free);
* every real photograph of the training part has an aligned fake: its own reconstruction by an autoencoder, cropped at
  the same place and put through the same random draw of degradations (AlignedForensics, DDA);
* JPEG, WebP, rescaling, blur and noise with the same probabilities for both classes (CNNDetection);
* one class a generator, collapsed to real against the rest at the end (awsaf49/vip-cup-2022);
* real sources and generators drawn evenly, not by their number of files.

The CSVs have the columns path, label, generator and split; only rows of split ``train`` are used. Writes a folder as
timm publishes models, ``model.safetensors`` and ``config.json``, with ``training.json`` and ``log.csv``; it comes back by

    python -m convert runs/default ckpt/aidet_default.ckpt --dtype fp16 --verify logits
"""

import argparse
import csv
import json
import queue
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from aidet import cli, files, images, records, transforms
from aidet.errors import UserError

REGION = 320  # largest side of the part of a photograph that is reconstructed and trained on
DEGRADE = (
    "color_jitter(0.15, 0.15, 0.15, p=0.2) | down_up((0.5, 0.95), p=0.15) | blur((0.2, 1.2), p=0.1)"
    " | noise((0.5, 5), p=0.1) | webp((50, 95), p=0.15) | jpeg((50, 98), p=0.6)"
)


def read(sources):
    """Rows of every CSV: dicts with path (absolute), label (int), generator (prefixed by set), split."""
    rows = []
    for source in map(Path, sources):
        table, _ = records.read_table(source)
        for r in table:
            generator = r.get("generator") or ("generated" if r["label"] == "1" else "real")
            rows.append({**r, "path": source.parent / r["path"], "label": int(r["label"]), "generator": generator})
    return rows


def region(array, most=REGION):
    """The middle of an image, at most ``most`` pixels a side, sides a multiple of 8."""
    h, w = (min(n, most) // 8 * 8 for n in array.shape[:2])
    y, x = (array.shape[0] - h) // 2, (array.shape[1] - w) // 2
    return array[y : y + h, x : x + w]


def autoencoder(encoder, decoder):
    """PyTorch module of a TAESD-family pair of files (read by the converter's own safe reader)."""
    import torch

    from convert import detect, live, reading

    halves = []
    for path in (encoder, decoder):
        source = reading.read(Path(path))
        halves.append(live.torch_model(detect.make(source), source))
    return torch.nn.Sequential(*halves)


def reconstruct(net, array):
    """uint8 (h, w, 3) through an autoencoder on [0, 1]; grey photographs stay grey."""
    import torch

    x = torch.from_numpy(array.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    with torch.inference_mode():
        y = net(x)[0].numpy().transpose(1, 2, 0)
    y = np.clip(np.rint(y * 255), 0, 255).astype(np.uint8)
    if (array == array[..., :1]).all():
        y = np.repeat(np.asarray(Image.fromarray(y).convert("L"))[..., None], 3, 2)
    return y


class Pool:
    """Decoded images of the training part, by group: real sources, generators, reconstructions beside their reals."""

    def __init__(self, rows, nets, cache, share):
        self.real, self.fake, self.twins = {}, {}, []
        for i, r in enumerate(rows):
            try:
                array = np.asarray(images.decode(r["path"]))
            except images.ImageError as error:
                print(f"left out {r['path']}: {error}")
                continue
            if r["label"]:
                self.fake.setdefault(r["generator"], []).append(array)
                continue
            self.real.setdefault(r["generator"], []).append(array)
            for name, (net, part) in nets.items():
                key = f"{name}-{r['path'].parents[1].name}-{r['path'].stem}"
                if transforms.generator(0, key).random() >= share * part:
                    continue
                kept = Path(cache) / f"{key}.png"
                own = region(array)
                if not kept.is_file():
                    with files.atomic(kept, "wb") as file:
                        Image.fromarray(reconstruct(net, own)).save(file, "PNG", compress_level=1)
                self.twins.append((name, own, np.asarray(Image.open(kept))))
            if i % 200 == 0:
                print(f"  {i}/{len(rows)} decoded, {len(self.twins)} reconstructions", flush=True)

    def classes(self):
        """Class names: real first, then one a generator and one an autoencoder."""
        return [
            "real",
            *sorted(f"generated:{g}" for g in self.fake),
            *sorted({f"generated:{t[0]}" for t in self.twins}),
        ]


def draw(pool, classes, rng, size, crop, twins):
    """One batch: uint8 crops (size, crop, crop, 3) and class indices.

    A part ``twins`` of the batch are pairs of a real crop and its reconstruction, same place, same degradations; the
    rest is half real and half generated, groups drawn with the square root of their size.
    """
    first, degrade = transforms.Pipeline(f"random_crop({crop}) | hflip"), transforms.Pipeline(DEGRADE)

    def prepare(array, seed):
        own = np.random.default_rng(seed)
        image = Image.fromarray(array)
        for _, step in first.steps + degrade.steps:
            image = step(image, own)
        return np.asarray(image)

    def pick(groups):
        names = sorted(groups)
        weights = np.sqrt([len(groups[n]) for n in names])
        name = names[rng.choice(len(names), p=weights / weights.sum())]
        return name, groups[name][int(rng.integers(len(groups[name])))]

    x, y = [], []
    while len(x) < size:
        seed = int(rng.integers(1 << 62))
        if rng.random() < twins and pool.twins:
            name, real, fake = pool.twins[int(rng.integers(len(pool.twins)))]
            x += [prepare(real, seed), prepare(fake, seed)]
            y += [0, classes.index(f"generated:{name}")]
        else:
            name, fake = pick(pool.fake)
            x += [prepare(pick(pool.real)[1], seed), prepare(fake, seed + 1)]
            y += [0, classes.index(f"generated:{name}")]
    return np.stack(x[:size]), np.array(y[:size])


def batches(pool, classes, args):
    """The same batches in the same order, made ahead by two threads."""
    todo = queue.Queue(maxsize=6)

    def work():
        for step in range(args.steps):
            rng = np.random.default_rng([args.seed, step])
            todo.put(draw(pool, classes, rng, args.batch_size, args.crop, args.twins))
        todo.put(None)

    threading.Thread(target=work, daemon=True).start()
    return iter(todo.get, None)


def network(init, outputs):
    """timm's tf_efficientnet_lite0 with the packaged ImageNet weights and a new head."""
    from convert import live, reading

    live.without_broken_ops()
    import timm
    import torch

    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    source = reading.read(Path(init))
    # The packaged file has lukemelas' names; both list the same tensors in the same order (difference 0 to timm).
    state = dict(zip(net.state_dict(), (torch.from_numpy(np.array(t.array())) for t in source.tensors.values())))
    net.load_state_dict(state)
    net.reset_classifier(outputs)
    return net


def collapsed(logits):
    """Score of (N, C) logits whose first class is real."""
    import torch

    return torch.logsumexp(logits[:, 1:], 1) - logits[:, 0]


def normalise(x):
    """uint8 (N, h, w, 3) -> float32 (N, 3, h, w) in [-1, 1], channels last."""
    import torch

    x = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def train(pool, classes, args, out):
    """AdamW, warm-up and one cosine, averaged weights (EMA); gives the averaged network."""
    import torch

    torch.manual_seed(args.seed)
    net = network(args.init, len(classes)).to(memory_format=torch.channels_last).train()
    ema = {k: v.clone() for k, v in net.state_dict().items()}
    head = [p for n, p in net.named_parameters() if n.startswith("classifier")]
    body = [p for n, p in net.named_parameters() if not n.startswith("classifier")]
    optimizer = torch.optim.AdamW(
        [{"params": body, "m": 1.0}, {"params": head, "m": 5.0}], weight_decay=args.weight_decay
    )
    weights = torch.ones(len(classes))
    start, recent, log = time.time(), [], []
    for i, (x, y) in enumerate(batches(pool, classes, args)):
        rate = args.lr * min(1, (i + 1) / 50) * 0.5 * (1 + np.cos(np.pi * i / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["m"]
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits = net(normalise(x))
        logits, target = logits.float(), torch.from_numpy(y)
        # Which generator it is, and, at half the weight of that, the question itself: real or not.
        binary = torch.nn.functional.binary_cross_entropy_with_logits(collapsed(logits), (target > 0).float())
        loss = 0.5 * torch.nn.functional.cross_entropy(logits, target, weights, label_smoothing=0.05) + binary
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(0.995, (i + 1) / (i + 10))
        for k, v in net.state_dict().items():
            ema[k] = ema[k] * decay + v * (1 - decay) if v.dtype.is_floating_point else v.clone()
        recent = recent[-49:] + [
            (loss.item(), binary.item(), ((collapsed(logits) > 0) == (target > 0)).float().mean().item())
        ]
        if (i + 1) % 50 == 0:
            log.append([i + 1, *np.mean(recent, 0).round(4), round(time.time() - start)])
            print(
                f"step {i + 1}/{args.steps}  loss {log[-1][1]}  binary {log[-1][2]}  acc {log[-1][3]}  {log[-1][4]} s",
                flush=True,
            )
        if (i + 1) % 300 == 0 or i + 1 == args.steps:
            write(ema, classes, args, out, log)
    net.load_state_dict(ema)
    return net.eval()


def write(state, classes, args, out, log):
    """Weights in timm's names, the class names, and the training log."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, out / "model.safetensors")
    facts = {"architecture": "tf_efficientnet_lite0", "num_classes": len(classes), "label_names": classes}
    files.write_json(out / "config.json", facts)
    files.write_json(
        out / "training.json", {k: v if not isinstance(v, list) else [str(x) for x in v] for k, v in vars(args).items()}
    )
    with files.atomic(out / "log.csv") as file:
        csv.writer(file, lineterminator="\n").writerows([["step", "loss", "binary", "accuracy", "seconds"], *log])


def score(net, rows, crop=224, grid=3):
    """Mean score of a fixed grid of native crops of each image; array in the rows' order."""
    import torch

    result = []
    for r in rows:
        array = np.asarray(images.decode(r["path"]))
        h, w = array.shape[:2]
        ys = sorted({int(v) for v in np.linspace(0, max(0, h - crop), grid)})
        xs = sorted({int(v) for v in np.linspace(0, max(0, w - crop), grid)})
        cut = np.stack([array[y : y + crop, x : x + crop] for y in ys for x in xs])
        with torch.inference_mode():
            result.append(float(collapsed(net(normalise(cut))).mean()))
    return np.array(result)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", required=True, help="labels.csv with path, label, generator, split")
    parser.add_argument("--init", required=True, help="efficientnet-lite0-57934424.pth")
    parser.add_argument("--autoencoder", nargs=2, action="append", default=[], metavar=("ENCODER", "DECODER"))
    parser.add_argument("--own-autoencoder", help="ckpt/aidet_tae.ckpt as a second source of aligned fakes")
    parser.add_argument("--share", type=float, default=0.5, help="part of the real images that get a reconstruction")
    parser.add_argument(
        "--twins", type=float, default=0.4, help="part of a batch that are pairs of real and reconstruction"
    )
    parser.add_argument("--cache", default="runs/reconstructions")
    parser.add_argument("--out", default="runs/default")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--crop", type=int, default=160)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    rows = [r for r in read(args.data) if r.get("split", "train") == "train"]
    if not rows:
        raise UserError("no row of split train in " + ", ".join(args.data))
    nets = {f"taesd{i}": (autoencoder(*pair), 1.0) for i, pair in enumerate(args.autoencoder)}
    if args.own_autoencoder:
        nets["aidet_tae"] = (own_autoencoder(args.own_autoencoder), 1.0)
    pool = Pool(rows, nets, args.cache, args.share)
    classes = pool.classes()
    print(json.dumps(classes))
    train(pool, classes, args, Path(args.out))


def own_autoencoder(path):
    """The project's tiny autoencoder as a PyTorch module."""
    import torch

    from aidet import ckpt

    from .autoencoder import network as tiny

    net = tiny()
    net.load_state_dict({k: torch.from_numpy(v.astype(np.float32)) for k, v in ckpt.load_arrays(path).items()})
    return torch.nn.Sequential(net.encoder, net.decoder).eval()


if __name__ == "__main__":
    cli.main(main)
