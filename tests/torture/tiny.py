"""The smallest detector and the smallest data: everything that the fault tests run takes seconds."""

from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
LINES = {
    "size": [32, 32],
    "channels": 3,
    "transform": "decode | resize(40) | center_crop(32) | normalize(half)",
    "views": "decode | random_crop(32) | hflip | normalize(half)",
}


def checkpoint(path, seed=1):
    """A network of 1442 weights with a large random classifier, so that its scores differ."""
    from aidet import ckpt, models, runtime

    runtime.setup("CPU", seed=seed)
    net = models.create("testing", num_classes=2)
    arrays = {p.name: p.asnumpy() for p in net.get_parameters()}
    weight = np.random.default_rng(seed).normal(0, 4, arrays["classifier.weight"].shape).astype(np.float32)
    arrays["classifier.weight"] = weight - weight.mean(axis=1, keepdims=True)
    order = ["real", "generated"]
    facts = {"architecture": "testing", "arguments": {"num_classes": 2}, "num_outputs": 2, "classes": order}
    ckpt.save(arrays, path, {**facts, "class_order": order, "input": LINES, "threshold": None})
    return Path(path)


def graph(folder, seed=1):
    """The same as a verified ONNX file, which starts without MindSpore."""
    from aidet.export import exporter

    exporter.export(checkpoint(folder / "tiny.ckpt", seed), "onnx", folder)
    return folder / "tiny.onnx"


def photo(rng, size=(20, 20), board=0):
    """A smooth image, with a fine checkerboard where it is to look generated."""
    small = Image.fromarray(rng.integers(60, 196, (3, 3, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pattern = np.indices(size[::-1]).sum(0) % 2 * board - board // 2
    noisy = np.asarray(small, int) + pattern[..., None] + rng.integers(-4, 5, (*size[::-1], 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def training_set(root, train=24, val=10, size=(20, 20)):
    """An ImageFolder that a tiny network learns."""
    rng = np.random.default_rng(0)
    for split, n in (("train", train), ("val", val)):
        for i in range(n):
            for name, board in (("real", 0), ("fake", 80)):
                place = root / split / name
                place.mkdir(parents=True, exist_ok=True)
                photo(rng, size, board).save(place / f"{split}{i}.png")
    return root


def place(root, count, sizes=(300, 300), kinds=("png",), bad=False):
    """What every command works on: ``data`` to train on, ``tiny.ckpt`` and its graph, ``source.safetensors``, ``in``.

    Parameters
    ----------
    root : Path
    count : int
        Images of ``in/real`` and ``in/fake`` together.
    sizes : (int, int)
        Their sides are drawn from this range.
    kinds : sequence of str
        Their extensions, in turn.
    bad : bool
        Put a file that is no image among them.
    """
    from hostile import safetensors

    training_set(root / "data")
    graph(root)
    rng = np.random.default_rng(0)
    for i in range(count):
        folder = root / "in" / ("real", "fake")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        size = tuple(int(n) for n in rng.integers(sizes[0], sizes[1] + 1, 2))
        photo(rng, size, 80 * (i % 2)).save(folder / f"{i}.{kinds[i % len(kinds)]}")
    if bad:
        (root / "in" / "real" / "bad.jpg").write_bytes(b"x")
    safetensors(root / "source.safetensors")
    return root


def training(data, out, **more):
    """The command line of a training of three epochs that saves its state every second step."""
    keys = {
        "model": "testing", "data_dir": data, "ckpt_save_dir": out, "batch_size": 8, "epoch_size": 3,
        "transform": "random_crop(16) | hflip | normalize(half)", "transform_eval": "center_crop(16) | normalize(half)",
        "opt": "adamw", "lr": 0.03, "log_interval": 1, "num_parallel_workers": 0, "device_target": "CPU",
        "save_every_steps": 2, "resume": "auto", **more,
    }  # fmt: skip
    return ["train.py", *[str(word) for name, value in keys.items() for word in (f"--{name}", value)]]
