"""Recompute the batch-normalisation statistics on the views that `infer.py` feeds to the network.

    python -m convert.training.statistics runs/z --data FULL/labels.csv 300 --data DEV/labels.csv 80 --part 0.7 \\
        --out runs/default

Training uses degraded crops of 160 pixels, among them pairs of a photograph and its reconstruction; `infer.py` uses
crops of 224 pixels of images at full and at half size. Statistics of the latter (Li et al., "Revisiting batch
normalization for practical domain adaptation", 2016) improve results on sources and generators that were not in the
training data and worsen them on those that were; interpolating between the two sets of statistics keeps most of both
benefits (LOG.md). No weight changes. The output is in half precision, so that the converted file can be compared with
its source to the usual tolerance.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Sequence, Tuple

import numpy as np

from aidet import cli, images
from aidet.detector.views import Views

from . import detector

if TYPE_CHECKING:
    import torch

VIEWS, BATCH, SEED = 4, 48, 5
TRANSFORM = "decode | center_crop(224) | normalize(half)"


def chosen(sources: Iterable[Tuple[str, int]]) -> List[detector.Row]:
    """Training rows in random order; of each class, each source contributes as many rows as its number says."""
    rng = np.random.default_rng(SEED)
    rows: List[detector.Row] = []
    for path, count in sources:
        classes: Dict[int, List[detector.Row]] = {}
        for row in detector.read([path]):
            if row["split"] == "train":
                classes.setdefault(row["label"], []).append(row)
        for group in classes.values():
            rows += [group[i] for i in rng.permutation(len(group))[:count]]
    return [rows[i] for i in rng.permutation(len(rows))]


def measure(net: "torch.nn.Module", batches: Iterable[Sequence[np.ndarray]]) -> None:
    """Replace the network's means and variances with those over all batches; every batch has the same weight."""
    import torch

    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over batches
            module.train()
    with torch.no_grad():
        for batch in batches:
            net(torch.from_numpy(np.stack(batch)).contiguous(memory_format=torch.channels_last))


def mixed(old: Mapping[str, Any], new: Mapping[str, Any], part: float) -> Dict[str, Any]:
    """``old`` with its running statistics interpolated towards ``new``: 0 keeps ``old``, ``part`` = 1 takes ``new``."""
    return {k: old[k] + part * (new[k] - old[k]) if k.split(".")[-1].startswith("running_") else old[k] for k in old}


def main(argv: Sequence[str]) -> None:
    """Measure the statistics and write the weights with the interpolated statistics."""
    p = cli.Parser(prog=f"python -m {__package__}.statistics", description=__doc__)
    p.add_argument("run", help="folder with model.safetensors and config.json")
    p.add_argument("--data", nargs=2, action="append", required=True, metavar=("LABELS", "COUNT"),
                   help="a labels.csv, and how many of its training images of each class")  # fmt: skip
    p.add_argument("--part", type=float, default=1.0, help="of the way from the run's own statistics to the new")
    p.add_argument("--out", required=True)
    args = p.parse_args(argv)
    from ..parity.torch_imports import without_broken_ops

    without_broken_ops()
    import timm
    from safetensors.torch import load_file, save_file

    run, out = Path(args.run), Path(args.out)
    old = load_file(run / "model.safetensors")
    net = timm.create_model("tf_efficientnet_lite0", num_classes=len(old["classifier.bias"])).eval()
    net.load_state_dict(old)
    views = Views(TRANSFORM, VIEWS, "pyramid")

    def batches():
        waiting = []
        for row in chosen([(path, int(count)) for path, count in args.data]):
            waiting += views(images.decode(row["path"]), "")
            if len(waiting) >= BATCH:
                yield waiting
                waiting = []

    measure(net, batches())
    state = mixed(old, net.state_dict(), args.part)
    out.mkdir(parents=True, exist_ok=True)
    state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in state.items()}, out / "model.safetensors")
    shutil.copy(run / "config.json", out / "config.json")


if __name__ == "__main__":
    cli.main(main)
