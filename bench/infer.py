"""Speed of inference against transformers and a plain PyTorch loop, on this machine: results/infer.csv.

    python bench/infer.py [--files 500] [--vip 5000] [--cifake DIR] [--small]
                          [--detector A.ckpt --labels CSV|DIR [--only-detector]]

All contenders use the same weights, files and number of threads (all CPUs of this process). The weights are random,
made by this script, with the decision boundary moved between the images so that both decisions occur. Contenders take
turns on slices of the files, so that other load on the machine affects all of them. "early exit" and "cascade" are
options of infer.py that keep the decisions but not the scores; the eight-bit model of the cascade is calibrated on
separate images. Loading of models is not counted unless stated.
The eight-bit rows need a trained detector and labelled images (--detector, --labels) to measure the loss of accuracy;
without them they compare speed and decisions of the random ResNet-18.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import speed
from common import ROOT

from aidet import cli
from aidet.errors import UserError

COLUMNS = ("what", "model", "value", "unit", "target", "met", "note", "load", "commit", "versions", "device")
# Multiply-adds of one 224x224 image, from the papers' tables.
GMACS = {"resnet18": 1.82, "swin_tiny": 4.5}


def against_pipeline(name, hub, ckpt, paths, small=None):
    """(a): compare with transformers.pipeline on the same files; if an eight-bit model is given, also the cascade."""
    import transformers

    from aidet import Detector

    pipe = transformers.pipeline("image-classification", model=str(hub), device="cpu")
    detector = Detector(ckpt, backend="onnxruntime", unsure="none", say=cli.to_stderr)

    def theirs(some):
        found = pipe([str(p) for p in some], batch_size=8)
        return [next(x["score"] for x in f if x["label"] == "fake") for f in found]

    def ours(some):
        return [r.prob for r in detector.score(some)]

    contenders = [theirs, ours]
    if small:
        cascade = Detector(ckpt, cascade=small, backend="onnxruntime", unsure="none")
        contenders.append(lambda some: [r.prob for r in cascade.score(some)])
    for contender in contenders:
        contender(paths[:8])
    (t, o, *c), (p, q, *r) = speed.in_turns(paths, contenders)
    same = speed.agreement(p, q, 0.5)
    worst = max(abs(a - b) for a, b in zip(p, q))
    note = f"decisions equal {same:.4f}, largest difference of probability {worst:.1e}"
    yield {"what": "(a) transformers.pipeline", "model": name, "value": len(paths) / t, "unit": "images/s"}
    yield {"what": "(a) aidet", "model": name, "value": len(paths) / o, "unit": "images/s"}
    yield {"what": "(a) ratio", "model": name, "value": t / o, "unit": "x", "target": ">= 2", "note": note}
    if small:
        twice = f"{cascade.cascade.twice} of {len(paths)} images scored twice"
        note = f"decisions equal {speed.agreement(p, r[0], 0.5):.4f}, {twice}"
        shared = {"model": name, "unit": "x", "target": ">= 2", "note": note}
        yield {"what": "(a) ratio, cascade", "value": t / c[0], **shared}


def against_loop(hub, ckpt, paths, small, votes=7):
    """(b): compare with PyTorch on one file and one view at a time, as the seed project does."""
    import numpy as np
    import torch
    import transformers
    from PIL import Image

    from aidet import Detector

    net = transformers.ResNetForImageClassification.from_pretrained(hub).eval()
    ways = {"": {}, ", early exit": {"early_exit": True}, ", cascade": {"cascade": small}}
    ways[", both"] = {"early_exit": True, "cascade": small}
    shared = {"votes": votes, "vote": "hard", "unsure": "none", "backend": "onnxruntime"}
    detectors = {what: Detector(ckpt, say=cli.to_stderr, **shared, **more) for what, more in ways.items()}
    views = detectors[""].models[0].views

    @torch.inference_mode()
    def theirs(some):
        found = []
        for path in some:
            image = Image.open(path).convert("RGB")
            ones = [net(torch.from_numpy(v[None])).logits.argmax(1).item() for v in views(image, str(path))]
            found.append(int(np.mean(ones) > 0.5))
        return found

    def ours(detector):
        return lambda some: [r.label for r in detector.score(some)]

    contenders = [theirs, *map(ours, detectors.values())]
    for contender in contenders:
        contender(paths[:2])
    (t, *o), (p, *q) = speed.in_turns(paths, contenders)
    name = {"model": "resnet18"}
    yield {"what": f"(b) PyTorch loop, {votes} votes", **name, "value": len(paths) / t, "unit": "images/s"}
    yield {"what": f"(b) aidet, {votes} votes", **name, "value": len(paths) / o[0], "unit": "images/s"}
    for what, seconds, found in zip(detectors, o, q):
        note = f"decisions equal {speed.agreement(p, found):.4f}"
        yield {"what": f"(b) ratio{what}", **name, "value": t / seconds, "unit": "x", "target": ">= 3", "note": note}


def ceiling(side=2048):
    """Billions of multiply-adds per second in float32 matrix products on all CPUs, by library.

    The libraries of NumPy and PyTorch reach only half the speed of some processors, so ONNX Runtime is measured too.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import torch

    from aidet.detector.backends import OnnxRuntime
    from aidet.export.onnx_graph import INPUT, OUTPUT
    from aidet.parallel import cpus

    a = np.random.default_rng(0).random((side, side), np.float32)
    t, session, n = torch.from_numpy(a), OnnxRuntime(_product(side, INPUT, OUTPUT)), cpus()
    with ThreadPoolExecutor(n) as pool:
        works = {
            "NumPy": (1, lambda: a @ a),
            "PyTorch": (1, lambda: t @ t),
            "ONNX Runtime": (n, lambda: list(pool.map(session, [a] * n))),
        }
        return {k: side**3 * m / min(speed.timed(work) for _ in range(10)) / 1e9 for k, (m, work) in works.items()}


def _product(side, x, y):
    """An ONNX model that multiplies its input by a constant matrix."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    value = np.random.default_rng(1).random((side, side), np.float32)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in (x, y)]
    node = helper.make_node("MatMul", [x, "constant"], [y])
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [numpy_helper.from_array(value, "constant")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def measure(args, folder):
    """Yield the table rows."""
    if not args.only_detector:
        yield from engines(args, folder)
    if args.detector:
        yield from eight_bits(folder, args.detector, args.labels, args.labels, args.quantised)


def engines(args, folder):
    """Yield rows that compare the engines with each other, with random weights."""
    help_ = min(
        speed.timed(lambda: subprocess.run([sys.executable, ROOT / "infer.py", "--help"], capture_output=True))
        for _ in range(3)
    )
    yield {"what": "--help", "value": help_, "unit": "s", "target": "< 1"}
    paths = speed.make_images(folder / "mixed", args.files)
    models = speed.make_models(folder, paths[::8])
    hub, ckpt = models["resnet18"]
    speed.make_images(folder / "calibration", 2 * args.quantised, seed=2)
    small = eight_bit_model(folder, ckpt, folder / "calibration", None, args.quantised)[0]
    for name, (hub_, ckpt_) in models.items():
        yield from against_pipeline(name, hub_, ckpt_, paths, small if ckpt_ == ckpt else None)
    yield from against_loop(hub, ckpt, paths[: max(10, args.files // 5)], small)
    peaks = ceiling()
    peak = max(peaks.values())
    note = ", ".join(f"{name} {value:.0f}" for name, value in peaks.items())
    yield {"what": "matrix-product ceiling", "value": peak, "unit": "GMAC/s", "note": note}
    reading = speed.reading_rate(ckpt, paths[:100])
    yield {"what": "decoding and transforming alone", "value": reading, "unit": "images/s", "note": "files of (a)"}
    for name, (_, path) in models.items():
        rate = speed.network_rate(path)
        note = f"{rate * GMACS[name] / peak:.0%} of the ceiling"
        yield {"what": "network alone", "model": name, "value": rate, "unit": "images/s", "note": note}
        if common.versions("openvino"):  # as many streams of one thread as there are CPUs: its way for throughput
            other = speed.network_rate(path, "openvino")
            note = f"float32; {rate / other:.2f} times as fast on ONNX Runtime"
            yield {"what": "network alone, openvino", "model": name, "value": other, "unit": "images/s", "note": note}
        bound = 1 / (1 / rate + 1 / reading)
        yield {"what": "(a) both, one after the other", "model": name, "value": bound, "unit": "images/s"}
    yield from as_a_user(folder, ckpt, args.vip)
    yield from eight_bits(folder, ckpt, folder / "mixed", None, args.quantised)
    if args.cifake:
        yield from flat(folder, args.cifake)


def as_a_user(folder, ckpt, count):
    """(c): the whole command line with and without a cached graph: speed, time to the first result, and memory."""
    speed.make_images(folder / "vip", count, (200, 200), seed=1)
    done = speed.Run(ckpt, folder / "vip", folder / "o1")
    common = {"model": "resnet18"}
    what, note = f"(c) {count} files of 200x200", f"whole command line, {count / done.seconds:.1f} images/s"
    yield {**common, "what": what, "value": done.seconds, "unit": "s", "target": "< 300", "note": note}
    yield {**common, "what": "start to first result", "value": done.first, "unit": "s", "target": "< 6"}
    yield {**common, "what": "peak memory", "value": done.peak, "unit": "MB", "target": "< 1500"}
    for graph in folder.glob("resnet18.*.onnx"):
        graph.unlink()
    (folder / "few").mkdir()
    for path in sorted((folder / "vip").iterdir())[:4]:
        (folder / "few" / path.name).write_bytes(path.read_bytes())
    new = speed.Run(ckpt, folder / "few", folder / "o3")
    note = "the first run ever: MindSpore makes and verifies the ONNX graph"
    yield {**common, "what": "start to first result, no graph yet", "value": new.first, "unit": "s", "note": note}
    yield {**common, "what": "peak memory, no graph yet", "value": new.peak, "unit": "MB", "note": note}


def flat(folder, images):
    """Memory and speed early and late in a run on a large folder."""
    subprocess.run([sys.executable, "-c", _TINY, folder / "tiny.ckpt"], cwd=ROOT, check=True)
    # The first run makes the graph, which needs MindSpore and its memory.
    speed.Run(folder / "tiny.ckpt", folder / "few", folder / "o4")
    # Three runs: on a shared machine, the speed can change by a fifth within the minute that one run takes.
    runs = [speed.Run(folder / "tiny.ckpt", images, folder / f"flat{i}") for i in range(3)]
    with open(folder / "flat0" / "scores.csv", encoding="utf-8") as file:
        rows = sum(1 for _ in file) - 1
    ends = [(done.between(0.1, 0.3), done.between(0.75, 0.95)) for done in runs]
    common = {"model": "testing"}
    rate = rows / min(done.seconds for done in runs)
    yield {**common, "what": f"{rows} CIFAKE files", "value": rate, "unit": "images/s", "note": "whole command line"}
    (m, _), (n, _) = max(ends, key=lambda end: end[1][0] / end[0][0])
    note = f"{m:.0f} MB early, {n:.0f} MB late; peak {max(done.peak for done in runs):.0f} MB; the worst of three runs"
    yield {**common, "what": "memory late / early", "value": n / m, "unit": "x", "target": "< 1.05", "note": note}
    ratios = sorted(late[1] / early[1] for early, late in ends)
    note = "median of " + ", ".join(f"{ratio:.3f}" for ratio in ratios)
    yield {**common, "what": "rate late / early", "value": ratios[1], "unit": "x", "target": ">= 0.9", "note": note}


def eight_bit_model(folder, detector, images, labels, limit):
    """The eight-bit model, the float32 model, and the results of :func:`aidet.detector.int8.quantize`."""
    from aidet.detector import int8
    from aidet.export import exporter

    exporter.export(detector, "onnx", folder / "q")
    plain = folder / "q" / f"{Path(detector).stem}.onnx"
    found = int8.quantize(plain, images, labels, limit)
    return plain.with_name(found["file"]), plain, found


def eight_bits(folder, detector, images, labels, limit):
    """Compare ONNX Runtime's eight-bit network with float32: speed and, if there are labels, the loss of accuracy."""
    name = Path(detector).stem
    small, plain, found = eight_bit_model(folder, detector, images, labels, limit)
    note = (
        f"{found['decisions_changed']:.2%} of the decisions on {found['images']} images changed; calibrated on others"
    )
    if labels:
        cost = found["balanced_accuracy_int8"] - found["balanced_accuracy"]
        shown = f"{found['balanced_accuracy']:.4f} to {found['balanced_accuracy_int8']:.4f}; {note}"
        yield {"what": "int8: balanced accuracy", "model": name, "value": cost, "unit": "difference", "note": shown}
    yield {"what": "int8: images/s over float32", "model": name, "value": found["speedup"], "unit": "x", "note": note}
    ratio = speed.network_rate(small) / speed.network_rate(plain)
    yield {"what": "int8: network alone over float32", "model": name, "value": ratio, "unit": "x"}
    sizes = [p.stat().st_size / 2**20 for p in (small, plain)]
    note = f"float32 {sizes[1]:.1f} MB"
    yield {"what": "int8: file", "model": name, "value": sizes[0], "unit": "MB", "note": note}


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
    """Measure, print and write results/infer.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--vip", type=int, default=5000)
    parser.add_argument("--cifake", metavar="DIR", help="the 100,000 unpacked training images; left out without it")
    parser.add_argument("--detector", metavar="A.ckpt", help="a trained detector for the eight-bit rows")
    parser.add_argument("--labels", metavar="CSV|DIR", help="labelled images for it")
    parser.add_argument("--quantised", type=int, default=128, metavar="N", help="images that calibrate (128)")
    parser.add_argument("--only-detector", action="store_true", help="only its rows; the others stay as they are")
    parser.add_argument("--small", action="store_true", help="try the script out; writes nothing")
    args = parser.parse_args(argv)
    if bool(args.detector) != bool(args.labels):
        raise UserError("--detector and --labels go together")
    if args.only_detector and not args.detector:
        raise UserError("--only-detector needs --detector")
    if args.small:
        args.files, args.vip = 20, 50
    about = {
        "commit": common.commit(),
        "device": f"CPU {platform.machine()}, {os.cpu_count()} cores",
        "versions": common.versions("mindspore", "onnxruntime", "openvino", "torch", "pillow", "transformers"),
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
            rows.append({"model": "", **row, "load": f"{os.getloadavg()[0]:.1f}", **about})
            print({k: v for k, v in rows[-1].items() if k not in about}, flush=True)
    if not args.small:
        table = ROOT / "results" / "infer.csv"
        known = common.rows(table) if args.only_detector else []
        common.write(table, COLUMNS, common.replaced(known, rows, ("what", "model")))
    return cli.OK


if __name__ == "__main__":
    cli.main(run)
