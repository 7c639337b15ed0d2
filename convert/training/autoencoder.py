"""Train the tiny autoencoder of `aidet/models/tae.py` on real photographs (needs torch, see requirements/parity.txt).

    python -m convert.training.autoencoder --images PHOTOS [--images labels.csv] --out ckpt/aidet_tae.ckpt

Loss: mean absolute error of the pixels plus that of their horizontal and vertical differences, which keeps edges.
Every image is decoded once and kept in memory; random 128-pixel crops and flips; Adam, warm-up and cosine decay to
zero. The result is written as a MindSpore checkpoint in half precision and then compared with the PyTorch network.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from aidet import ckpt, cli, images, records, runtime
from aidet.errors import UserError

CROP = 128
TOLERANCE = 2e-3  # largest pixel difference (range 0..1): the file is in half precision, PyTorch trained in single


def load(sources: Sequence[str]) -> List[np.ndarray]:
    """Decode every image of the folders or CSV files (rows with label 0 and split train); list of uint8 (h, w, 3)."""
    result = []
    for source in map(Path, sources):
        if source.suffix == ".csv":
            rows, _ = records.read_table(source)
            rows = [r for r in rows if r.get("label", "0") == "0" and r.get("split", "train") == "train"]
            paths = [source.parent / r["path"] for r in rows]
        else:
            paths = [images.require_folder(source) / p for p in images.walk(source)]
        for path in paths:
            try:
                array = np.asarray(images.decode(path))
            except images.ImageError as error:
                print(f"left out {path}: {error}", file=sys.stderr)
                continue
            if min(array.shape[:2]) >= CROP:
                result.append(array)
    if not result:
        raise UserError(f"no image of at least {CROP} pixels a side in {', '.join(sources)}")
    return result


def batch(pool: Sequence[np.ndarray], rng: np.random.Generator, size: int) -> np.ndarray:
    """Random crops as float32 (size, 3, CROP, CROP) in [0, 1]."""
    crops = np.empty((size, CROP, CROP, 3), np.uint8)
    for i in range(size):
        image = pool[int(rng.integers(len(pool)))]
        y, x = (int(rng.integers(0, n - CROP + 1)) for n in image.shape[:2])
        crop = image[y : y + CROP, x : x + CROP]
        crops[i] = crop[:, ::-1] if rng.random() < 0.5 else crop
    return np.ascontiguousarray(crops.transpose(0, 3, 1, 2)).astype(np.float32) / 255


def network(latent_channels: int = 4, widths: Tuple[int, ...] = (32, 64)) -> Any:
    """The PyTorch twin of ``aidet.models.tae.TinyAutoencoder``, with the same parameter names."""
    import torch
    from torch import nn

    def conv(inputs, outputs, stride=1):
        return nn.Conv2d(inputs, outputs, 3, stride, 1)

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv1, self.conv2 = conv(width, width), conv(width, width)

        def forward(self, x):
            return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))

    encoder: List[nn.Module] = []
    decoder: List[nn.Module] = []
    for before, width in zip((3, *widths), widths):
        encoder += [conv(before, width, 2), nn.ReLU(), Block(width)]
    encoder += [Block(widths[-1]), conv(widths[-1], latent_channels)]
    decoder += [conv(latent_channels, widths[-1]), nn.ReLU(), Block(widths[-1])]
    for width, after in zip(widths[::-1], (*widths[-2::-1], widths[0] // 2)):
        decoder += [Block(width), nn.Upsample(scale_factor=2), conv(width, after), nn.ReLU()]
    decoder += [conv(widths[0] // 2, 3)]
    net: Any = nn.Module()
    net.encoder, net.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
    return net


def train(pool: Sequence[np.ndarray], args: argparse.Namespace) -> Tuple[Any, float]:
    """Run the training; returns the PyTorch network and the mean loss of the last 100 steps."""
    import torch

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    net = network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), args.lr)
    warm = max(1, args.steps // 40)
    start = time.time()
    recent: List[float] = []
    for i in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (i + 1) / warm) * 0.5 * (1 + np.cos(np.pi * i / args.steps))
        x = torch.from_numpy(batch(pool, rng, args.batch_size)).contiguous(memory_format=torch.channels_last)
        d = net.decoder(net.encoder(x)) - x
        edges = (d[:, :, 1:] - d[:, :, :-1]).abs().mean() + (d[..., 1:] - d[..., :-1]).abs().mean()
        loss = d.abs().mean() + edges
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent = recent[-99:] + [loss.item()]
        if (i + 1) % 200 == 0:
            print(f"step {i + 1}/{args.steps}  loss {np.mean(recent):.5f}  {time.time() - start:.0f} s", flush=True)
    return net, float(np.mean(recent))


def main(argv: Sequence[str]) -> None:
    """Train, write the checkpoint and compare it with the PyTorch network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", action="append", required=True, help="folder of photographs, or a labels.csv")
    parser.add_argument("--out", default="ckpt/aidet_tae.ckpt")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    pool = load(args.images)
    net, loss = train(pool, args)
    arrays = {name: value.detach().numpy().copy() for name, value in net.state_dict().items()}
    sidecar: Dict[str, Any] = {
        "architecture": "aidet_tae", "arguments": {}, "role": "autoencoder", "num_outputs": None, "classes": [],
        "class_order": None, "input": {"size": None, "multiple": 4, "channels": "RGB", "range": [0, 1]},
        "source": {"repository": "trained for this project", "licence": "Apache-2.0"},
        "training": {
            "script": "python -m convert.training.autoencoder", "photographs": len(pool), "crop": CROP,
            "steps": args.steps, "batch_size": args.batch_size, "lr": args.lr, "seed": args.seed,
            "loss": round(loss, 6),
        },
        "versions": runtime.versions(),
    }  # fmt: skip
    ckpt.save(arrays, args.out, sidecar, dtype="fp16")
    check(net, args.out, pool, args.seed)


def check(net: Any, path: str, pool: Sequence[np.ndarray], seed: int) -> None:
    """Compare the written file, run in MindSpore, with the PyTorch network; fail, but keep the file, if they differ."""
    import torch

    ms, _ = runtime.setup(mode="pynative")
    x = batch(pool, np.random.default_rng(seed + 1), 8)
    with torch.no_grad():
        want = net.decoder(net.encoder(torch.from_numpy(x))).numpy()
    got = ckpt.load_model(path)(ms.Tensor(x)).asnumpy()
    difference = float(np.abs(want - got).max())
    psnr = float(-10 * np.log10(np.mean((np.clip(got, 0, 1) - x) ** 2)))
    print(f"largest difference to PyTorch {difference:.2e} (tolerance {TOLERANCE}); PSNR on 8 crops {psnr:.2f} dB")
    if difference > TOLERANCE:
        raise UserError(f"{path}: differs from PyTorch by {difference:.2e}, more than {TOLERANCE}")


if __name__ == "__main__":
    cli.main(main)
