"""Reconstructions by random little autoencoders: many decoders' traces, for a net that must find one it never saw.

    python -m convert.training.decoders --images PHOTOS [--images labels.csv] --out PAIRS --count 8

A net trained with one autoencoder learns that decoder's traces (LOG.md, 2026-11-30). So each of ``--count`` nets gets a
stride, a latent width, a way of upsampling, an activation, a loss and a bottleneck by lot, is trained for some hundred
steps and reconstructs its share of the photographs. Written are pairs ``NAME_COUNT_r.png`` and ``NAME_COUNT_f.png`` for
``python -m convert.training.partial --pairs``, and ``decoders.csv`` with what was drawn. The nets are not kept.

Stride 4 with nearest-neighbour upsampling is not drawn: that is ``ckpt/aidet_tae.ckpt``, which tests are made with.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np
from PIL import Image

from aidet import cli, files

from .autoencoder import batch, load

CHOICES: Dict[str, Sequence[Any]] = {
    "stride": (2, 2, 4, 4, 4, 8),
    "upsampling": ("nearest", "bilinear", "shuffle", "transposed"),
    "activation": ("ReLU", "SiLU", "LeakyReLU"),
    "loss": ("absolute", "squared", "edges"),
    "bottleneck": ("plain", "noise", "rounded"),
    "width": (12, 16, 24),
}
LATENTS = {2: (2, 3, 4), 4: (4, 8, 12), 8: (16, 24, 32)}
COLUMNS = (*CHOICES, "latent_channels", "steps", "photographs", "psnr")


def drawn(rng: np.random.Generator) -> Dict[str, Any]:
    """Settings of one net by lot; never stride 4 with nearest-neighbour upsampling."""
    while True:
        chosen = {name: values[int(rng.integers(len(values)))] for name, values in CHOICES.items()}
        if (chosen["stride"], chosen["upsampling"]) != (4, "nearest"):
            latents = LATENTS[chosen["stride"]]
            return {**chosen, "latent_channels": latents[int(rng.integers(len(latents)))]}


def network(chosen: Dict[str, Any]) -> Any:
    """PyTorch autoencoder of these settings: (N, 3, H, W) in [0, 1] to the same, H and W multiples of the stride."""
    import torch
    from torch import nn

    width, latent = chosen["width"], chosen["latent_channels"]
    act = getattr(nn, chosen["activation"])

    def conv(inputs, outputs, stride=1):
        return nn.Conv2d(inputs, outputs, 3, stride, 1)

    class Block(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.layers = nn.Sequential(act(), conv(n, n), act(), conv(n, n))

        def forward(self, x):
            return x + self.layers(x)

    def up(inputs, outputs):
        kind = chosen["upsampling"]
        if kind == "transposed":
            return [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)]
        if kind == "shuffle":
            return [conv(inputs, 4 * outputs), nn.PixelShuffle(2)]
        return [nn.Upsample(scale_factor=2, mode=kind), conv(inputs, outputs)]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            widths = [width, 2 * width, 2 * width][: int(np.log2(chosen["stride"]))]
            encoder: List[nn.Module] = []
            for before, after in zip([3, *widths], widths):
                encoder += [conv(before, after, 2), Block(after)]
            decoder: List[nn.Module] = [conv(latent, widths[-1]), Block(widths[-1])]
            for before, after in zip(widths[:0:-1], widths[-2::-1]):
                decoder += [*up(before, after), Block(after)]
            self.encoder = nn.Sequential(*encoder, act(), conv(widths[-1], latent))
            self.decoder = nn.Sequential(*decoder, act(), *up(width, width // 2), act(), conv(width // 2, 3))

        def forward(self, x):
            z = self.encoder(x * 2 - 1)
            if chosen["bottleneck"] == "noise":
                z = z + 0.1 * torch.randn_like(z)
            elif chosen["bottleneck"] == "rounded":  # straight through (van den Oord et al. 2017)
                z = 4 * torch.tanh(z / 4)
                z = z + ((z * 2).round() / 2 - z).detach()
            return self.decoder(z) + 0.5

    return Net()


def trained(chosen: Dict[str, Any], pool: Sequence[np.ndarray], steps: int, lr: float, seed: int) -> Any:
    """The net after ``steps`` of Adam on eight random crops each."""
    import torch

    torch.manual_seed(seed)
    rng, net = np.random.default_rng(seed), network(chosen).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (i + 1) / 30) * 0.5 * (1 + np.cos(np.pi * i / steps))
        x = torch.from_numpy(batch(pool, rng, 8)).contiguous(memory_format=torch.channels_last)
        d = net(x) - x
        loss = d.square().mean() * 10 if chosen["loss"] == "squared" else d.abs().mean()
        if chosen["loss"] == "edges":
            loss = loss + (d[:, :, 1:] - d[:, :, :-1]).abs().mean() + (d[..., 1:] - d[..., :-1]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.eval()


def reconstructed(net: Any, photograph: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3), both multiples of 8, to the net's reconstruction."""
    import torch

    with torch.inference_mode():
        x = torch.from_numpy(photograph.transpose(2, 0, 1)[None].astype(np.float32) / 255)
        y = net(x)[0].numpy().transpose(1, 2, 0)
    return np.rint(np.clip(y, 0, 1) * 255).astype(np.uint8)


def main(argv: Sequence[str]) -> None:
    """Draw, train, reconstruct."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--images", action="append", required=True, help="folder of photographs, or a labels.csv (split train)")
    add("--out", required=True, help="folder of the pairs")
    add("--count", type=int, default=8, help="number of autoencoders")
    add("--each", type=int, default=60, help="photographs that each reconstructs")
    add("--side", type=int, default=512, help="longest side: a random crop of a photograph that is larger")
    add("--steps", type=int, default=600)
    add("--lr", type=float, default=2e-3)
    add("--threads", type=int, help="CPU threads of PyTorch")
    add("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    pool, out, table = load(args.images), Path(args.out), []
    out.mkdir(parents=True, exist_ok=True)
    for k in range(args.count):
        rng, start = np.random.default_rng([args.seed, k]), time.time()
        chosen = drawn(rng)
        net, errors = trained(chosen, pool, args.steps, args.lr, args.seed + k), []
        for n in rng.permutation(len(pool))[: args.each]:
            h, w = (min(side, args.side) // 8 * 8 for side in pool[n].shape[:2])
            top, left = (int(rng.integers(side - part + 1)) for side, part in zip(pool[n].shape, (h, w)))
            real = pool[n][top : top + h, left : left + w]
            fake = reconstructed(net, real)
            errors.append(float(np.mean((real.astype(np.float32) - fake) ** 2)))
            for letter, pixels in (("r", real), ("f", fake)):
                Image.fromarray(pixels).save(out / f"{n:05d}_{k}_{letter}.png")
        chosen.update(steps=args.steps, photographs=len(errors))
        chosen["psnr"] = round(float(np.mean(10 * np.log10(255**2 / np.array(errors)))), 2)
        table.append([chosen[c] for c in COLUMNS])
        print(f"{k + 1}/{args.count} {chosen} {time.time() - start:.0f} s", flush=True)
        with files.atomic(out / "decoders.csv") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *table])


if __name__ == "__main__":
    cli.main(main)
