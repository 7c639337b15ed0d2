"""Training speed and memory: this project's engine, MindCV's own trainer, a PyTorch loop; same model, data, batch.

    python bench/train.py [--model resnet18] [--batch 16] [--size 224] [--images 96] [--epochs 3]
                          [--out results/train_speed.csv]

Each engine runs in a process of its own, one after the other. The first epoch (compiling, starting workers) is not
counted. `images_per_second` is wall time and means something on a quiet machine only; `cpu_ms_per_image` is processor
time of the process and its workers and is robust against other load. An engine that is not installed is left out.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
ENGINES = ("aidet", "mindcv", "torch")


def make_data(folder, images, size):
    """ImageFolder of noise over smooth colours; the pixels do not matter, the JPEG decoding does."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(images):
        place = Path(folder) / "train" / ("real", "fake")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        base = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((size + 32, size + 32), 3)
        noisy = np.asarray(base, np.int16) + rng.integers(-8, 9, (size + 32, size + 32, 3))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(place / f"{i}.jpg", quality=90)


def cpu():
    """Processor seconds of this process and of its finished children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class Clock:
    """Wall and processor time between the ends of the first and the last epoch."""

    def __init__(self):
        self.marks = []

    def mark(self):
        self.marks.append((time.perf_counter(), cpu()))

    def result(self, images_per_epoch):
        (w0, c0), (w1, c1) = self.marks[0], self.marks[-1]
        images = images_per_epoch * (len(self.marks) - 1)
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return {
            "images_per_second": round(images / (w1 - w0), 2), "cpu_ms_per_image": round((c1 - c0) / images * 1e3, 1),
            "peak_mb": round(peak / 1024),
        }  # fmt: skip


def run_aidet(o):
    from aidet import config, fit

    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        settings = config.load(None, {
            "model": o.model, "data_dir": o.data, "num_classes": 2, "image_resize": o.size, "batch_size": o.batch,
            "epoch_size": o.epochs, "color_jitter": 0, "opt": "momentum", "lr": 0.001,
            "val_while_train": False, "val_split": "",
            "ckpt_save_dir": out, "num_parallel_workers": o.workers, "ckpt_save_interval": 1000, "device_target": "CPU",
        })  # fmt: skip
        fit.train(settings, out=lambda text: clock.mark() if text.startswith("epoch ") else None)
    return clock


def run_mindcv(o):
    from aidet import runtime

    ms, _ = runtime.setup("CPU", seed=42)
    import mindcv
    from mindcv.utils import create_trainer

    transform = mindcv.create_transforms("imagenet", is_training=True, image_resize=o.size, color_jitter=None)
    data = mindcv.create_dataset(root=o.data, split="train", shuffle=True, num_parallel_workers=o.workers)
    loader = mindcv.create_loader(data, o.batch, drop_remainder=True, is_training=True, num_classes=2,
                                  transform=transform,
                                  num_parallel_workers=o.workers)  # fmt: skip
    net = mindcv.create_model(o.model, num_classes=2)
    optimizer = mindcv.create_optimizer(net.trainable_params(), "momentum", lr=0.001, momentum=0.9)
    trainer = create_trainer(net, mindcv.create_loss("CE"), optimizer, metrics={}, amp_level="O0",
                             amp_cast_list=None, loss_scale_type="fixed", loss_scale=1.0)  # fmt: skip
    clock = Clock()

    class Mark(ms.Callback):
        def on_train_epoch_end(self, context):
            clock.mark()

    trainer.train(o.epochs, loader, callbacks=[Mark()], dataset_sink_mode=False)
    return clock


def run_torch(o):
    import types

    # A torchvision built for CUDA registers operators that a CPU build of torch lacks; none of them is used here.
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("_meta_registrations")
    import torch
    import torchvision
    from torchvision import transforms as T

    torch.manual_seed(42)
    line = T.Compose(
        [T.RandomResizedCrop(o.size), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize([0.5] * 3, [0.5] * 3)]
    )
    data = torchvision.datasets.ImageFolder(str(Path(o.data) / "train"), line)
    loader = torch.utils.data.DataLoader(data, o.batch, shuffle=True, drop_last=True, num_workers=o.workers,
                                         persistent_workers=o.workers > 0)  # fmt: skip
    net = torchvision.models.get_model(o.model, num_classes=2)
    optimizer = torch.optim.SGD(net.parameters(), 0.001, momentum=0.9)
    clock = Clock()
    for _ in range(o.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        clock.mark()
    return clock


def main():
    """Run the engines, print a table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    for name, value in (("batch", 16), ("size", 224), ("images", 96), ("epochs", 3), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--out")
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.child:
        clock = globals()[f"run_{o.child}"](o)
        print("RESULT " + json.dumps(clock.result(o.images // o.batch * o.batch)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as data:
        make_data(data, o.images, o.size)
        for engine in o.engines.split(","):
            done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child", engine, "--data", data],
                                  capture_output=True, text=True)  # fmt: skip
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                print(f"{engine}: no result: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                continue
            rows.append(
                {"engine": engine, "model": o.model, "batch": o.batch, "size": o.size, **json.loads(lines[0][7:])}
            )
            print(rows[-1], flush=True)
    report(rows, o.out)


def report(rows, out):
    """Ratios of ours to the others; rows with commit and versions where a file is asked for."""
    from aidet import files, runtime

    ours = next((r for r in rows if r["engine"] == "aidet"), None)
    for r in rows:
        if ours is not None and r is not ours:
            wall = ours["images_per_second"] / r["images_per_second"]
            print(f"aidet / {r['engine']}: {wall:.2f} times the images a second, "
                  f"{r['cpu_ms_per_image'] / ours['cpu_ms_per_image']:.2f} by processor time")  # fmt: skip
    if out and rows:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
        versions = " ".join(f"{k}={v}" for k, v in runtime.versions().items() if k in ("mindspore", "mindcv", "torch"))
        with files.atomic(out) as file:
            writer = csv.DictWriter(file, [*rows[0], "commit", "versions"], lineterminator="\n")
            writer.writeheader()
            writer.writerows({**r, "commit": commit, "versions": versions} for r in rows)


if __name__ == "__main__":
    main()
