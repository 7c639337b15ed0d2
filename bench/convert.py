"""Time and memory of a conversion (without imports): ResNet-50 and the Stable Diffusion autoencoder.

    python bench/convert.py

Each conversion runs in a fresh process. Memory is the peak minus what the interpreter and MindSpore use before the
first file is opened. Writes ``results/convert_bench.csv``. This script writes the source files from random arrays,
without torch.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import common
from common import ROOT

CASES = {
    "resnet50": ("torchvision", {"padding": "symmetric"}, 5.0),
    "autoencoder_kl": ("diffusers", {"widths": [128, 256, 512, 512], "depth": 2, "latent_channels": 4}, 15.0),
}


def source(folder, architecture):
    """Make a safetensors file of random weights in the original layout."""
    import numpy as np

    from aidet import runtime

    runtime.setup(device="CPU", mode="pynative")
    from convert import reverse
    from convert.families import family_of
    from convert.plan import build

    layout, arguments, _ = CASES[architecture]
    rng, family = np.random.default_rng(0), family_of(architecture)
    net = build(architecture, arguments, 1000 if family.head(architecture) else None)
    arrays = {p.name: rng.standard_normal(p.shape, np.float32) for p in net.get_parameters()}
    path = Path(folder) / "model.safetensors"
    reverse.write_safetensors(
        path, reverse.to_layout(arrays, family, family.layout(layout), architecture, arguments), {}
    )
    return path


def one(path, destination):
    """Convert in this process; print the seconds and the peak bytes above those at the start."""
    import resource
    import time

    from aidet import runtime

    runtime.setup(device="CPU", mode="pynative")
    from aidet import models
    from convert.conversion import convert
    from convert.families import families

    models.names()
    families()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    convert(path, destination, level="tensors", say=lambda text: None)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak - before}))


def main():
    if len(sys.argv) == 3:
        return one(*sys.argv[1:])
    from aidet.runtime import version_of

    table = []
    for architecture, (layout, _, limit) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = source(folder, architecture)
            done = subprocess.run(
                [sys.executable, __file__, str(path), str(Path(folder) / "out.ckpt")],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            result, size = json.loads(done.stdout.strip().splitlines()[-1]), path.stat().st_size
        table.append(
            {
                "architecture": architecture,
                "layout": layout,
                "megabytes": round(size / 1e6, 1),
                "seconds": round(result["seconds"], 2),
                "limit_seconds": limit,
                "peak_over_weights": round(result["peak"] / size, 2),
                "limit_peak": 2.5,
                "mindspore": version_of("mindspore"),
                "device": "CPU",
            }
        )
        print(table[-1])
    common.write(ROOT / "results" / "convert_bench.csv", list(table[0]), table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
