"""Speed of inference against transformers and a plain PyTorch loop, on this machine: results/infer.csv.

    python bench/infer.py [--files 500] [--vip 5000] [--cifake DIR] [--small]

Same weights (random, made by this script), same files, same number of threads (all CPUs of this process). Contenders
take turns on slices of the files, so that a disturbance meets both. Loading of models is not counted except where said.
"""

import argparse
import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aidet import cli, files, runtime  # noqa: E402 - the repository's root comes first on the path

COLUMNS = ("what", "model", "value", "unit", "target", "met", "note", "load", "commit", "versions", "device")
LINE = "decode | resize((224, 224), {how}) | normalize(imagenet)"
# Multiply-adds of one 224x224 image, from the papers' tables.
GMACS = {"resnet18": 1.82, "swin_tiny": 4.5}


def make_images(folder, count, sizes=(200, 1200), seed=0):
    """Crops of scikit-image's photographs in many sizes, half JPEG, half PNG."""
    import numpy as np
    from PIL import Image
    from skimage import data

    photos = [Image.fromarray(p()) for p in (data.astronaut, data.coffee, data.chelsea, data.rocket)]
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        photo = photos[i % len(photos)]
        size = tuple(int(s) for s in rng.integers(sizes[0], sizes[1] + 1, 2))
        left, top = (int(rng.integers(0, s // 2)) for s in photo.size)
        box = (left, top, left + photo.width // 2, top + photo.height // 2)
        image = photo.resize(size, Image.Resampling.BICUBIC, box=box)
        image.save(folder / f"{i}.jpg", quality=90) if i % 2 else image.save(folder / f"{i}.png", compress_level=1)
    return sorted(folder.iterdir(), key=lambda p: int(p.stem))


def make_models(folder):
    """Hugging Face folders with random weights, and our checkpoints converted from them."""
    # torchvision's wheel is built for CUDA and registers operators that a CPU torch does not have; nothing uses them.
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    import torch
    import transformers

    names = {"id2label": {0: "real", 1: "fake"}, "label2id": {"real": 0, "fake": 1}}
    torch.manual_seed(0)
    nets = {
        "resnet18": transformers.ResNetForImageClassification(
            transformers.ResNetConfig(
                layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], embedding_size=64, **names
            )
        ),
        "swin_tiny": transformers.SwinForImageClassification(transformers.SwinConfig(**names)),
    }
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    made = {}
    for name, net in nets.items():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        where = folder / name
        net.eval().save_pretrained(where)
        processor = transformers.ViTImageProcessor(
            size={"height": 224, "width": 224}, resample=2, image_mean=mean, image_std=std
        )
        processor.save_pretrained(where)
        ckpt = folder / f"{name}.ckpt"
        subprocess.run(
            [sys.executable, "-m", "convert", where, ckpt, "--verify", "none"],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        sidecar = files.read_json(ckpt.with_suffix(".json"))
        sidecar["input"].update(
            transform=LINE.format(how="bilinear"),
            views="decode | random_resized_crop(224, scale=(0.8, 1.0)) | hflip | normalize(imagenet)",
        )
        files.write_json(ckpt.with_suffix(".json"), sidecar)
        made[name] = (where, ckpt)
    return made


def in_turns(paths, contenders, slices=5):
    """Seconds of each contender over all files, and its results; they alternate on slices."""
    seconds, results = [0.0] * len(contenders), [[] for _ in contenders]
    step = -(-len(paths) // slices)
    for start in range(0, len(paths), step):
        for i, contender in enumerate(contenders):
            begin = time.perf_counter()
            results[i] += contender(paths[start : start + step])
            seconds[i] += time.perf_counter() - begin
    return seconds, results


def against_pipeline(name, hub, ckpt, paths):
    """(a): transformers.pipeline on the same files."""
    import transformers

    from aidet import Detector

    pipe = transformers.pipeline("image-classification", model=str(hub), device="cpu")
    detector = Detector(ckpt, backend="onnxruntime")

    def theirs(some):
        found = pipe([str(p) for p in some], batch_size=8)
        return [next(x["score"] for x in f if x["label"] == "fake") for f in found]

    def ours(some):
        return [r.prob for r in detector.score(some)]

    theirs(paths[:8]), ours(paths[:8])
    (t, o), (p, q) = in_turns(paths, (theirs, ours))
    same = sum((a > 0.5) == (b > 0.5) for a, b in zip(p, q)) / len(p)
    worst = max(abs(a - b) for a, b in zip(p, q))
    note = f"decisions equal {same:.4f}, largest difference of probability {worst:.1e}"
    yield {"what": "(a) transformers.pipeline", "model": name, "value": len(paths) / t, "unit": "images/s"}
    yield {"what": "(a) aidet", "model": name, "value": len(paths) / o, "unit": "images/s"}
    yield {"what": "(a) ratio", "model": name, "value": t / o, "unit": "x", "target": ">= 2", "note": note}


def against_loop(hub, ckpt, paths, votes=7):
    """(b): one file at a time, one view at a time in PyTorch, as the seed project does."""
    import numpy as np
    import torch
    import transformers
    from PIL import Image

    from aidet import Detector

    net = transformers.ResNetForImageClassification.from_pretrained(hub).eval()
    detector = Detector(ckpt, votes=votes, vote="hard", backend="onnxruntime")
    views = detector.models[0].views

    @torch.inference_mode()
    def theirs(some):
        found = []
        for path in some:
            image = Image.open(path).convert("RGB")
            ones = [net(torch.from_numpy(v[None])).logits.argmax(1).item() for v in views(image, str(path))]
            found.append(int(np.mean(ones) > 0.5))
        return found

    def ours(some):
        return [r.label for r in detector.score(some)]

    theirs(paths[:2]), ours(paths[:2])
    (t, o), (p, q) = in_turns(paths, (theirs, ours))
    note = f"decisions equal {sum(a == b for a, b in zip(p, q)) / len(p):.4f}"
    yield {"what": f"(b) PyTorch loop, {votes} votes", "model": "resnet18", "value": len(paths) / t, "unit": "images/s"}
    yield {"what": f"(b) aidet, {votes} votes", "model": "resnet18", "value": len(paths) / o, "unit": "images/s"}
    yield {"what": "(b) ratio", "model": "resnet18", "value": t / o, "unit": "x", "target": ">= 3", "note": note}


def command_line(ckpt, folder, out, *flags):
    """Seconds, seconds to the first row, and peak memory of infer.py as a user runs it."""
    command = [sys.executable, ROOT / "infer.py", "--ckpt", ckpt, "--images", folder, "--out", out, *flags]
    start = time.perf_counter()
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first, journal, memory = None, Path(out) / "infer.journal", []
    while process.poll() is None:
        if first is None and journal.is_file() and journal.read_bytes().count(b"\n") > 1:
            first = time.perf_counter() - start
        memory.append((time.perf_counter() - start, _resident(process.pid)))
        time.sleep(0.05 if first is None else 0.5)
    if process.returncode:
        raise SystemExit(f"infer.py ended with {process.returncode}")
    return time.perf_counter() - start, first, memory


def _resident(pid):
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        return 0.0


def ceiling():
    """Billions of multiply-adds a second of a float32 matrix product with all threads."""
    import numpy as np

    a = np.random.default_rng(0).random((2048, 2048), np.float32)
    a @ a
    best = min(_timed(lambda: a @ a) for _ in range(5))
    return 2048**3 / best / 1e9


def _timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def network_rate(ckpt):
    """Images a second of the network alone, threads as in use."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from aidet import Detector
    from aidet.engine import cpus

    backend = Detector(ckpt, backend="onnxruntime").models[0].backend
    x = np.zeros((1, 3, 224, 224), np.float32)
    backend(x)
    count = 60
    with ThreadPoolExecutor(cpus()) as pool:
        return count / _timed(lambda: list(pool.map(lambda _: backend(x), range(count))))


def measure(args, folder):
    """Yield the rows."""
    help_ = min(
        _timed(lambda: subprocess.run([sys.executable, ROOT / "infer.py", "--help"], capture_output=True))
        for _ in range(3)
    )
    yield {"what": "--help", "value": help_, "unit": "s", "target": "< 1"}
    paths = make_images(folder / "mixed", args.files)
    models = make_models(folder)
    for name, (hub, ckpt) in models.items():
        yield from against_pipeline(name, hub, ckpt, paths)
    hub, ckpt = models["resnet18"]
    yield from against_loop(hub, ckpt, paths[: max(10, args.files // 5)])
    peak = ceiling()
    yield {"what": "matrix-product ceiling", "value": peak, "unit": "GMAC/s"}
    for name, (_, path) in models.items():
        rate = network_rate(path)
        yield {
            "what": "network alone",
            "model": name,
            "value": rate,
            "unit": "images/s",
            "note": f"{rate * GMACS[name] / peak:.0%} of the ceiling",
        }
    make_images(folder / "vip", args.vip, (200, 200), seed=1)
    total, first, memory = command_line(ckpt, folder / "vip", folder / "o1")
    yield {
        "what": f"(c) {args.vip} files of 200x200",
        "model": "resnet18",
        "value": total,
        "unit": "s",
        "target": "< 300",
        "note": "whole command line",
    }
    yield {"what": "start to first result", "model": "resnet18", "value": first, "unit": "s", "target": "< 6"}
    yield {
        "what": "peak memory",
        "model": "resnet18",
        "value": max(m for _, m in memory),
        "unit": "MB",
        "target": "< 1500",
    }
    if args.cifake:
        yield from flat(folder, args.cifake)


def flat(folder, images):
    """Memory and rate in the first and the last fifth of a large folder."""
    subprocess.run([sys.executable, "-c", _TINY, folder / "tiny.ckpt"], cwd=ROOT, check=True)
    total, _, memory = command_line(folder / "tiny.ckpt", images, folder / "o2")
    early = [m for t, m in memory if 0.1 * total < t < 0.3 * total]
    late = [m for t, m in memory if 0.8 * total < t < 0.95 * total]
    with open(folder / "o2" / "scores.csv", encoding="utf-8") as file:
        rows = sum(1 for _ in file) - 1
    yield {
        "what": f"{rows} CIFAKE files",
        "model": "testing",
        "value": rows / total,
        "unit": "images/s",
        "note": f"memory {sum(early) / len(early):.0f} MB early, {sum(late) / len(late):.0f} MB late",
    }


_TINY = """
import sys
from aidet import ckpt, models, runtime
runtime.setup("CPU", seed=1)
line = "decode | resize((32, 32)) | normalize(half)"
ckpt.save(models.create("testing", num_classes=2), sys.argv[1], {"architecture": "testing",
    "arguments": {"num_classes": 2}, "classes": ["real", "fake"], "class_order": ["real", "generated"],
    "input": {"size": [32, 32], "channels": 3, "transform": line}})
"""


def run(argv):
    """Measure, print, write results/infer.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--vip", type=int, default=5000)
    parser.add_argument("--cifake", metavar="DIR", help="the 100,000 unpacked training images; left out without it")
    parser.add_argument("--small", action="store_true", help="try the script out; writes nothing")
    args = parser.parse_args(argv)
    if args.small:
        args.files, args.vip = 20, 50
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    wanted = ("mindspore", "onnxruntime", "torch", "pillow")
    versions = {**runtime.versions(), "transformers": runtime.version_of("transformers")}
    about = {
        "commit": commit.strip(),
        "device": f"CPU {platform.machine()}, {os.cpu_count()} cores",
        "versions": " ".join(f"{k} {versions[k]}" for k in (*wanted, "transformers") if versions.get(k)),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(args, Path(folder)):
            sign, _, limit = row.get("target", "").partition(" ")
            if limit:
                row["met"] = (
                    "yes" if (row["value"] >= float(limit) if ">" in sign else row["value"] < float(limit)) else "no"
                )
            row["value"] = f"{row['value']:.4g}"
            rows.append({**row, "load": f"{os.getloadavg()[0]:.1f}", **about})
            print({k: v for k, v in rows[-1].items() if k not in about}, flush=True)
    if not args.small:
        with files.atomic(ROOT / "results" / "infer.csv") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return cli.OK


if __name__ == "__main__":
    cli.main(run)
