"""Training speed and memory: this project, MindCV's own trainer and PyTorch loops; same model, data and batch size.

    python bench/train.py --once --models resnet18,efficientnet_b0 --size 64 --images 320 --out results/train.csv
    python bench/train.py --models cifake_cnn --size 32 --batch 32 --images 640 --out results/train.csv

Every engine runs in a separate process, and each round runs all engines in turn, so that other load affects all of
them; the best round of each engine counts. The first epoch (compiling, starting workers) is not timed. At the end of an
epoch this project's engine writes weights (twice: last and best) and state; MindCV's trainer writes the two checkpoints
of its StateMonitor (network with optimizer, and optimizer; without the SummaryRecord, which starts a process that would
be counted); the PyTorch loops write nothing. ``torch_bf16`` is autocast to bfloat16, channels last; it needs a
processor that has bfloat16 to be fast.

``cpu_ms_per_image`` is the processor time of the process and its workers and is robust against other load;
``images_per_second`` is based on wall time and is meaningful only on a quiet machine. Without ``--once`` every model
also runs on ten times as many images: costs that grow with the data then show in the time per image and in the memory.
A model that MindCV lacks (cifake_cnn) runs in its trainer with this project's implementation. ``step_share`` is the
fraction of this project's processor time spent in MindSpore's compiled step; the rest is reading, Python and saving.
An engine that is not installed is left out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

ENGINES = ("aidet", "mindcv", "torch", "torch_bf16")
KEY = ("model", "size", "batch", "images")


def make_data(folder, images, size):
    """Write an ImageFolder of noise over smooth colours; only the cost of JPEG decoding matters, not the content."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(images):
        place = Path(folder) / "train" / ("real", "fake")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        base = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((size + 32, size + 32), 3)
        noisy = np.asarray(base, np.int16) + rng.integers(-8, 9, (size + 32, size + 32, 3))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(place / f"{i}.jpg", quality=90)


def children():
    """Ids of all descendant processes, from /proc; empty if there are none."""
    parent = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent[int(entry.parent.name)] = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
    found = [os.getpid()]
    for pid in found:
        found += [p for p, its in parent.items() if its == pid]
    return found[1:]


def cpu():
    """Processor seconds of this process and of its finished and running children."""
    seconds = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    for pid in children():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        seconds += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return seconds


def peak_mb():
    """Peak resident memory in MB: of this process, and of its running workers in total."""
    workers = 0
    for pid in children():
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        workers += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), round(workers / 1024)


class Clock:
    """Wall time and processor time from the end of the first epoch to the end of the last."""

    def __init__(self):
        self.marks, self.step, self.peak = [], 0.0, (0, 0)

    def mark(self):
        self.marks.append((time.perf_counter(), cpu(), self.step))
        self.peak = peak_mb()

    def result(self, images_per_epoch):
        (w0, c0, s0), (w1, c1, s1) = self.marks[0], self.marks[-1]
        images = images_per_epoch * (len(self.marks) - 1)
        return {
            "images_per_second": round(images / (w1 - w0), 2), "cpu_ms_per_image": round((c1 - c0) / images * 1e3, 2),
            "step_share": round((s1 - s0) / (c1 - c0), 3) if s1 else "", "peak_mb": self.peak[0],
            "workers_mb": self.peak[1],
        }  # fmt: skip


def run_aidet(o):
    from aidet import config
    from aidet.training.run import train

    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        settings = config.load(None, {
            "model": o.model, "data_dir": o.data, "num_classes": 2, "image_resize": o.size, "batch_size": o.batch,
            "epoch_size": o.epochs, "color_jitter": 0, "opt": "momentum", "lr": 0.001, "weight_decay": 0.0,
            "val_while_train": False, "val_split": "", "ckpt_save_dir": out, "num_parallel_workers": o.workers,
            "device_target": "CPU",
        })  # fmt: skip
        from aidet.training import cells

        plain = cells.TrainStep.__call__

        def timed(self, *inputs):
            began = time.process_time()
            loss = plain(self, *inputs)
            loss.asnumpy()
            clock.step += time.process_time() - began
            return loss

        cells.TrainStep.__call__ = timed
        train(settings, out=lambda text: clock.mark() if text.startswith("epoch ") else None)
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
    net = mindcv.create_model(o.model, num_classes=2) if o.model in mindcv.list_models() else own_model(o.model)
    optimizer = mindcv.create_optimizer(net.trainable_params(), "momentum", lr=0.001, momentum=0.9)
    trainer = create_trainer(net, mindcv.create_loss("CE"), optimizer, metrics={}, amp_level="O0",
                             amp_cast_list=None, loss_scale_type="fixed", loss_scale=1.0)  # fmt: skip
    clock = Clock()

    with tempfile.TemporaryDirectory() as out:

        class Mark(ms.Callback):
            def on_train_epoch_end(self, context):
                ms.save_checkpoint(context.original_args().train_network, f"{out}/network.ckpt")
                ms.save_checkpoint(optimizer, f"{out}/optimizer.ckpt")
                clock.mark()

        trainer.train(o.epochs, loader, callbacks=[Mark()], dataset_sink_mode=False)
    return clock


def own_model(name):
    """An architecture of this project."""
    from aidet import models

    return models.create(name, num_classes=2)


def torch_model(name):
    """The same architecture in PyTorch."""
    import torchvision
    from torch import nn

    if name != "cifake_cnn":
        return torchvision.models.get_model({"swin_tiny": "swin_t"}.get(name, name), num_classes=2)
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 2),
    )  # fmt: skip


def run_torch(o, bfloat16=False):
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
    layout = torch.channels_last if bfloat16 else torch.contiguous_format
    net = torch_model(o.model).to(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), 0.001, momentum=0.9)
    clock = Clock()
    for _ in range(o.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = torch.nn.functional.cross_entropy(net(x.contiguous(memory_format=layout)), y)
            loss.backward()
            optimizer.step()
        clock.mark()
    return clock


def run_torch_bf16(o):
    """PyTorch's best on a processor with bfloat16: autocast, channels last."""
    return run_torch(o, bfloat16=True)


def options():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="cifake_cnn")
    for name, value in (("batch", 32), ("size", 32), ("images", 640), ("epochs", 3), ("workers", 1), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--once", action="store_true", help="without the run on ten times the data")
    parser.add_argument("--out")
    for name in ("child", "data", "model"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    """Run the engines, print a table and write the rows."""
    o = options()
    if o.child:
        clock = globals()[f"run_{o.child}"](o)
        print("RESULT " + json.dumps(clock.result(o.images // o.batch * o.batch)), flush=True)
        return
    rows = []
    for model in o.models.split(","):
        for images in (o.images,) if o.once else (o.images, 10 * o.images):
            with tempfile.TemporaryDirectory() as data:
                make_data(data, images, o.size)
                rows += measure(o, model, images, data)
    if o.out and rows:
        write(rows, o.out)


def measure(o, model, images, data):
    """The best round of each engine on one set of images."""
    best = {}
    for _ in range(o.rounds):
        for engine in o.engines.split(","):
            arguments = {"child": engine, "data": data, "model": model, "images": images}
            arguments.update({n: getattr(o, n) for n in ("batch", "size", "epochs", "workers")})
            words = [str(w) for n, v in arguments.items() for w in (f"--{n}", v)]
            done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                print(f"{engine} {model}: no result: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                continue
            found = json.loads(lines[0][7:])
            print(f"{engine} {model}, {images} images: {found}", file=sys.stderr, flush=True)
            if engine not in best or found["cpu_ms_per_image"] < best[engine]["cpu_ms_per_image"]:
                best[engine] = found
    ours = best.get("aidet")
    rows = []
    for engine, found in best.items():
        row = {"engine": engine, "model": model, "size": o.size, "batch": o.batch, "images": images, **found}
        if ours:
            row["aidet_times_faster_cpu"] = round(found["cpu_ms_per_image"] / ours["cpu_ms_per_image"], 3)
            row["aidet_times_faster_wall"] = round(ours["images_per_second"] / found["images_per_second"], 3)
        rows.append(row)
        print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)
    return rows


def write(rows, out):
    """Write the rows with commit and versions; rows with the same model, size, batch and images are replaced."""
    about = {"commit": common.commit(), "versions": common.versions("mindspore", "mindcv", "torch", sign="=")}
    rows = [{**r, **about} for r in rows]
    columns = list(rows[-1])
    known = [{c: r.get(c, "") for c in columns} for r in common.rows(out)]
    common.write(out, columns, common.replaced(known, rows, KEY))


if __name__ == "__main__":
    main()
