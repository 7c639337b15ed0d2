"""What the measurements of speed share: images, networks, and contenders that take turns."""

import contextlib
import subprocess
import sys
import time
import types
from pathlib import Path

from common import ROOT

from aidet import files

LINE = "decode | resize((224, 224), {how}) | normalize(imagenet)"


def make_images(folder, count, sizes=(200, 1200), seed=0):
    """Write crops of scikit-image's photographs in many sizes, half JPEG and half PNG."""
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


NETWORKS = ("resnet18", "swin_tiny", "efficientnet_b0", "dinov2_vit_s_14", "clip_vit_b_16")


def network(name):
    """A two-class network of transformers with random weights, one of ``NETWORKS``."""
    import transformers as t

    ends = {"id2label": {0: "real", 1: "fake"}, "label2id": {"real": 0, "fake": 1}}
    if name == "resnet18":
        sizes = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "embedding_size": 64}
        return t.ResNetForImageClassification(t.ResNetConfig(layer_type="basic", **sizes, **ends))
    if name == "swin_tiny":
        return t.SwinForImageClassification(t.SwinConfig(**ends))
    if name == "efficientnet_b0":
        sizes = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "image_size": 224, "hidden_dim": 1280}
        return t.EfficientNetForImageClassification(t.EfficientNetConfig(**sizes, **ends))
    if name == "dinov2_vit_s_14":
        sizes = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 224, "patch_size": 14}
        return t.Dinov2ForImageClassification(t.Dinov2Config(**sizes, **ends))
    return t.CLIPForImageClassification(t.CLIPConfig(vision_config={"patch_size": 16, "projection_dim": 512}, **ends))


def make_models(folder, paths, names=("resnet18", "swin_tiny")):
    """Make Hugging Face folders with random weights, and this project's checkpoints converted from them.

    The decision boundary splits the images in ``paths`` in half, so that equal decisions are a meaningful result.

    Returns
    -------
    dict of str to (Path, Path)
        The folder and the checkpoint of each network.
    """
    # torchvision's wheel is built for CUDA and registers operators that a CPU torch lacks; none of them is used here.
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    import torch
    import transformers

    torch.manual_seed(0)
    nets = {name: network(name) for name in names}
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    made = {}
    for name, net in nets.items():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            if isinstance(module, torch.nn.Conv2d) and name.startswith("efficientnet"):
                torch.nn.init.kaiming_normal_(module.weight)  # transformers' own start lets the signal die out
        where = folder / name
        processor = transformers.ViTImageProcessor(
            size={"height": 224, "width": 224}, resample=2, image_mean=mean, image_std=std
        )
        processor.save_pretrained(where)
        balance(net.eval(), processor, paths)
        net.save_pretrained(where)
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


def balance(net, processor, paths):
    """Shift the last bias so that the decision boundary lies between the two images with the middle scores."""
    import torch
    from PIL import Image

    last = [m for m in net.modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.inference_mode():
        seen = [net(**processor(Image.open(p).convert("RGB"), return_tensors="pt")).logits[0] for p in paths]
    with torch.no_grad():
        gaps = sorted(float(z[1] - z[0]) for z in seen)
        last.bias[1] -= (gaps[(len(gaps) - 1) // 2] + gaps[(len(gaps) - 1) // 2 + 1]) / 2


def in_turns(paths, contenders, slices=5, rest=0.0):
    """Seconds of each contender over all files, and its results; the contenders alternate on slices of the files.

    ``rest`` is a pause in seconds before each, for the threads of the one before: OpenMP's and ONNX Runtime's keep
    computing for a while when their work is done.
    """
    seconds, results = [0.0] * len(contenders), [[] for _ in contenders]
    step = -(-len(paths) // slices)
    for start in range(0, len(paths), step):
        for i, contender in enumerate(contenders):
            time.sleep(rest)
            begin = time.perf_counter()
            results[i] += contender(paths[start : start + step])
            seconds[i] += time.perf_counter() - begin
    return seconds, results


def agreement(p, q, threshold=0):
    """Fraction of equal decisions."""
    return sum((a > threshold) == (b > threshold) for a, b in zip(p, q)) / len(p)


def reading_rate(ckpt, paths):
    """Images per second of decoding and transforming alone, on all CPUs."""
    from concurrent.futures import ThreadPoolExecutor

    from aidet import Detector, images
    from aidet.parallel import cpus

    model = Detector(ckpt, backend="onnxruntime", say=lambda line: None).models[0]
    with ThreadPoolExecutor(cpus()) as pool:

        def read():
            return list(pool.map(lambda p: model.prepare(images.decode(p), str(p)), paths))

        return len(paths) / min(timed(read) for _ in range(2))


def timed(work):
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def network_rate(path, backend="onnxruntime"):
    """Images per second of the network alone, with the usual threads; the best of five rounds, as for the ceiling."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from aidet import Detector
    from aidet.parallel import cpus

    model = Detector(path, backend=backend, say=lambda line: None).models[0]
    x = np.random.default_rng(0).standard_normal((1, 3, *model.views.size)).astype(np.float32)
    model.backend(x)
    count = 16
    with ThreadPoolExecutor(cpus()) as pool:
        return count / min(timed(lambda: list(pool.map(lambda _: model.backend(x), range(count)))) for _ in range(5))


class Run:
    """Run infer.py as a user does, and monitor it from outside.

    Attributes
    ----------
    seconds, first : float
        Seconds of the whole command, and until the first row is on disk.
    peak : float
        Peak resident memory in MB (the kernel's high-water mark).
    samples : list of (float, float, int)
        Seconds since the start, resident memory in MB, size of the journal in bytes.
    """

    def __init__(self, ckpt, folder, out, *flags):
        command = [sys.executable, ROOT / "infer.py", "--ckpt", ckpt, "--images", folder, "--out", out, *flags]
        start = time.perf_counter()
        process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.first, self.peak, self.samples, journal = None, 0.0, [], Path(out) / "infer.journal"
        while process.poll() is None:
            now = time.perf_counter() - start
            if self.first is None and journal.is_file() and journal.read_bytes().count(b"\n") > 1:
                self.first = now
            self.peak = max(self.peak, _memory(process.pid, "VmHWM"))
            size = journal.stat().st_size if journal.is_file() else 0
            self.samples.append((now, _memory(process.pid, "VmRSS"), size))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02 if self.first is None else 0.5)  # not a sleep: its end is noticed at once
        if process.returncode not in (0, 3):
            raise SystemExit(f"infer.py ended with {process.returncode}")
        self.seconds = time.perf_counter() - start
        self.first = self.first or self.seconds  # few images: the journal was deleted before it was seen

    def between(self, low, high):
        """Mean memory (MB) and journal bytes per second between two fractions of the rows."""
        last = max(s[2] for s in self.samples)
        some = [s for s in self.samples if low * last <= s[2] <= high * last]
        if len(some) < 2 or some[-1][0] == some[0][0]:
            return float("nan"), float("nan")
        return sum(s[1] for s in some) / len(some), (some[-1][2] - some[0][2]) / (some[-1][0] - some[0][0])


def _memory(pid, field):
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        return int(text.partition(f"{field}:")[2].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        return 0.0
