"""Speed beside the engines and libraries that people use on a CPU: results/peers.csv.

    python bench/peers.py [--files 96] [--only resnet18,swin_tiny] [--detector A.ckpt --images DIR]

Five two-class networks with random weights (`speed.NETWORKS`), the same weights and files for all; contenders take
turns on slices of the files, all with the CPUs of this process:

- *transformers.pipeline*, float32, eight images a batch: the reference, 1.0;
- *PyTorch, bfloat16*: the same network and preprocessing, channels last, autocast;
- *timm's loader*: timm's network of the same architecture (its own random weights) behind `create_loader` and
  `create_transform`, as in its validate script, float32 and channels last;
- *ONNX Runtime, plain script*: one session over all CPUs, one image after the other;
- *OpenVINO and decoding*: the network alone at OpenVINO's own throughput setting (as its benchmark_app), and decoding
  and transforming alone on all CPUs, one after the other: 1 / (1/network + 1/decoding). Its best at this work;
- *aidet*, float32 with `--backend auto`, and *aidet, cascade*, whose first stage is the eight-bit file of
  `export.py --int8` or, where the processor has bfloat16, that of `--bf16`, with its margin measured on other images.

*process* rows are whole commands: a script of transformers.pipeline, and `infer.py`, both with their start.
With --detector, a trained one is measured on real pictures too: float32, bfloat16 alone, and the cascade.
"""

import argparse
import datetime
import itertools
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

COLUMNS = (
    "model", "what", "images/s", "times the first row", "decisions equal", "note", "load", "commit", "versions",
    "device", "date",
)  # fmt: skip
TIMM = {
    "resnet18": "resnet18", "swin_tiny": "swin_tiny_patch4_window7_224", "efficientnet_b0": "efficientnet_b0",
    "dinov2_vit_s_14": "vit_small_patch14_dinov2", "clip_vit_b_16": "vit_base_patch16_clip_224",
}  # fmt: skip
FREE = ("vit_small_patch14_dinov2",)  # its own size is 518 pixels
PIPELINE = """
import sys, types
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
import transformers
pipe = transformers.pipeline("image-classification", model=sys.argv[1], device="cpu")
pipe(sys.argv[2:], batch_size=8)
"""


def pipeline(hub):
    """transformers.pipeline: paths -> probabilities of *generated*."""
    import transformers

    pipe = transformers.pipeline("image-classification", model=str(hub), device="cpu")

    def score(some):
        found = pipe([str(p) for p in some], batch_size=8)
        return [next(x["score"] for x in f if x["label"] == "fake") for f in found]

    return score


def torch_bfloat16(hub):
    """The same network and processor by hand: channels last, bfloat16 autocast, batches of eight."""
    import torch
    import transformers
    from PIL import Image

    net = transformers.AutoModelForImageClassification.from_pretrained(hub).eval()
    net = net.to(memory_format=torch.channels_last)
    prepare = transformers.AutoImageProcessor.from_pretrained(hub)

    @torch.inference_mode()
    def score(some):
        found = []
        for start in range(0, len(some), 8):
            batch = [Image.open(p).convert("RGB") for p in some[start : start + 8]]
            pixels = prepare(batch, return_tensors="pt")["pixel_values"].to(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = net(pixels).logits.float()
            found += logits.softmax(1)[:, 1].tolist()
        return found

    return score


def timm_loader(name):
    """timm's network behind timm's loader; its weights are others, so its decisions are not compared."""
    import timm
    import torch
    from timm.data import ImageDataset, create_loader, resolve_data_config

    more = {"img_size": 224} if TIMM[name] in FREE else {}
    net = timm.create_model(TIMM[name], pretrained=False, num_classes=2, **more).eval()
    net = net.to(memory_format=torch.channels_last)
    config = resolve_data_config({}, model=net)

    class Listed:
        """A reader of timm over a list of files."""

        def __init__(self, paths):
            self.paths = paths

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, i):
            return open(self.paths[i], "rb"), 0

        def filename(self, i, basename=False, absolute=False):
            return str(self.paths[i])

    @torch.inference_mode()
    def score(some):
        loader = create_loader(
            ImageDataset("", reader=Listed(list(some))), input_size=(3, 224, 224), batch_size=16,
            use_prefetcher=False, interpolation=config["interpolation"], mean=config["mean"], std=config["std"],
            num_workers=0, crop_pct=1.0, device=torch.device("cpu"),
        )  # fmt: skip
        return [x for batch, _ in loader for x in net(batch.to(memory_format=torch.channels_last))[:, 1].tolist()]

    return score


def plain_session(path, size=224):
    """ONNX Runtime as a short script uses it: the default session, one image after the other."""
    import numpy as np
    import onnxruntime
    from PIL import Image

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    mean, std = (np.array(v, np.float32) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    def score(some):
        found = []
        for path in some:
            image = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            x = (np.asarray(image, np.float32) / 255 - mean) / std
            z = session.run(None, {name: x.transpose(2, 0, 1)[None]})[0][0]
            found.append(float(1 / (1 + np.exp(z[0] - z[1]))))
        return found

    return score


def openvino_alone(path, precision, seconds=4):
    """Images per second of the network alone at OpenVINO's own setting for throughput, a batch of one a request."""
    import time

    import numpy as np

    from aidet.detector import openvino_session
    from aidet.export.onnx_graph import INPUT

    openvino = openvino_session.library()
    core = openvino.Core()
    hint = openvino_session.HINTS[precision]
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": hint}
    graph = core.read_model(str(path))
    graph.reshape({INPUT: [1, 3, 224, 224]})
    queue = openvino.AsyncInferQueue(core.compile_model(graph, "CPU", settings))
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    best = 0.0
    for _ in range(3):
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds / 3:
            queue.start_async({INPUT: x})
            count += 1
        queue.wait_all()
        best = max(best, count / (time.perf_counter() - start))
    return best


def compared(name, hub, ckpt, paths, others, folder):
    """Rows of one network."""
    from aidet import Detector
    from aidet.detector import int8, openvino_session
    from aidet.export import exporter

    exporter.export(ckpt, "onnx", folder / "x")
    graph = folder / "x" / f"{name}.onnx"
    exact = Detector(ckpt, unsure="none", say=cli.to_stderr)
    contenders = {
        "transformers.pipeline": pipeline(hub), "PyTorch, bfloat16": torch_bfloat16(hub),
        "timm's loader": timm_loader(name), "ONNX Runtime, plain script": plain_session(graph),
        f"aidet, float32 ({exact.models[0].backend_name})": lambda some: [r.prob for r in exact.score(some)],
    }  # fmt: skip
    able, cascades = "BF16" in openvino_session.abilities(), {}
    for precision in ("int8", *(["bfloat16"] if able else [])):
        made = int8.quantize(graph, others, precision=precision)
        what = f"aidet, cascade from {precision}"
        cascades[what] = Detector(ckpt, cascade=graph.with_name(made["file"]), unsure="none", say=cli.to_stderr)
        contenders[what] = lambda some, own=cascades[what]: [r.prob for r in own.score(some)]
    for contender in contenders.values():
        contender(paths[:8])
    before = {what: detector.cascade.twice for what, detector in cascades.items()}
    seconds, results = speed.in_turns(paths, list(contenders.values()), slices=3, rest=0.5)
    reading = speed.reading_rate(ckpt, paths)
    for what, took, found in zip(contenders, seconds, results):
        equal = "" if what.startswith("timm") else f"{speed.agreement(results[0], found, 0.5):.4f}"
        note = ""
        if what in cascades:
            note = f"{cascades[what].cascade.twice - before[what]} of {len(paths)} images scored twice"
        yield row(name, what, len(paths) / took, seconds[0] / took, equal, note)
    for precision in ("float32", *(["bfloat16"] if able else [])):
        alone = openvino_alone(graph, precision)
        rate = 1 / (1 / alone + 1 / reading)
        note = f"network alone {alone:.1f}, decoding alone {reading:.0f} images/s"
        yield row(name, f"OpenVINO {precision} and decoding", rate, rate * seconds[0] / len(paths), "", note)
    listed = [str(p) for p in paths]
    theirs = speed.timed(lambda: subprocess.run([sys.executable, "-c", PIPELINE, hub, *listed], check=True))
    command = [sys.executable, ROOT / "infer.py", "--ckpt", ckpt, "--images", paths[0].parent, "--out", folder / "o"]
    ours = speed.timed(lambda: subprocess.run(command, check=False, stdout=subprocess.DEVNULL))
    yield row(name, "process: transformers.pipeline", len(paths) / theirs, 1.0, "", f"{theirs:.1f} s")
    yield row(name, "process: infer.py", len(paths) / ours, theirs / ours, "", f"{ours:.1f} s")


def row(model, what, rate, times, equal="", note=""):
    """A row of the table."""
    return {
        "model": model, "what": what, "images/s": f"{rate:.3g}", "times the first row": f"{times:.2f}",
        "decisions equal": equal, "note": note, "load": f"{os.getloadavg()[0]:.1f}",
    }  # fmt: skip


def trained(ckpt, images, folder, limit):
    """Rows of a trained detector on real pictures; the margin is measured on half of them, the speed on the others."""
    from aidet import Detector
    from aidet.detector import int8
    from aidet.export import exporter

    found = sorted(p for p in Path(images).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    found = found[:: max(1, len(found) // (2 * limit))][: 2 * limit]
    if len(found) < 32:
        raise UserError(f"--images {images!r} has {len(found)} pictures; give at least 32")
    (folder / "margin").mkdir()
    for i, path in enumerate(found[1::2]):
        (folder / "margin" / f"{i}{path.suffix}").symlink_to(path.resolve())
    paths = found[::2]
    exporter.export(ckpt, "onnx", folder)
    made = int8.quantize(folder / f"{Path(ckpt).stem}.onnx", folder / "margin", precision="bfloat16")
    small = folder / made["file"]
    detectors = {
        "aidet, float32": Detector(ckpt), "aidet, bfloat16": Detector(small),
        "aidet, cascade from bfloat16": Detector(ckpt, cascade=small),
    }  # fmt: skip
    seconds, results = speed.in_turns(paths, [d.score for d in detectors.values()], slices=3, rest=0.5)
    for (what, detector), took, some in zip(detectors.items(), seconds, results):
        equal = sum(a.decision == b.decision for a, b in zip(results[0], some)) / len(paths)
        note = f"{len(paths)} pictures, as the detector is set"
        if detector.cascade:
            note += f"; margin {made['score_margin']:.2f}; {detector.cascade.twice} scored twice"
        yield row(Path(ckpt).stem, what, len(paths) / took, seconds[0] / took, f"{equal:.4f}", note)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=96)
    parser.add_argument("--only", default=",".join(speed.NETWORKS), help="networks, separated by commas; '' for none")
    parser.add_argument("--detector", metavar="A.ckpt", help="a trained detector")
    parser.add_argument("--images", metavar="DIR", help="pictures for it")
    args = parser.parse_args(argv)
    names = [name for name in args.only.split(",") if name]
    wrong = [name for name in names if name not in speed.NETWORKS]
    if wrong:
        raise UserError(f"--only {wrong[0]!r} is none of {', '.join(speed.NETWORKS)}")
    if bool(args.detector) != bool(args.images):
        raise UserError("--detector and --images go together")
    about = {
        "commit": common.commit(), "date": datetime.date.today().isoformat(),
        "device": f"CPU {platform.machine()}, {common.cores()}",
        "versions": common.versions("onnxruntime", "openvino", "torch", "timm", "transformers", "pillow"),
    }  # fmt: skip
    table = ROOT / "results" / "peers.csv"
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        paths = speed.make_images(folder / "mixed", args.files)
        speed.make_images(folder / "others", 40, seed=2)
        made = speed.make_models(folder, paths[::4], names)
        rows = [compared(name, *made[name], paths, folder / "others", folder) for name in names]
        if args.detector:
            rows.append(trained(args.detector, args.images, folder, args.files))
        for found in itertools.chain.from_iterable(rows):
            print(found, flush=True)
            known = common.replaced(common.rows(table), [{**found, **about}], ("model", "what"))
            common.write(table, COLUMNS, known)


if __name__ == "__main__":
    cli.main(main)
