"""Export every kind of architecture to ONNX and MindIR, load it again, compare: results/export.csv, docs/export.md.

    python bench/export.py [NAME ...]      # default: the list below; some 10 minutes on 2 cores

Weights are random, so largest logits differ by many orders; the difference is therefore given over the largest logit.
"""

import csv
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aidet import cli, files, runtime  # noqa: E402 - the repository's root comes first on the path

NAMES = (
    "testing resnet18 resnet50 cifar_resnet20 cifake_cnn cifake_cnn_srm squeezenet1_0 mobilenet_v3_small_100 "
    "efficientnet_lite0 efficientnet_b0 convnext_tiny swin_tiny vit_t_16_224 deit_t_16_224 aidet_tae taesd_encoder "
    "taesd_decoder resnext50_32x4d mobilenet_v2_100 densenet121 shufflenet_v2_x1_0 googlenet"
).split()
SIZES = {
    "cifar_resnet20": 32,
    "cifake_cnn": 32,
    "cifake_cnn_srm": 32,
    "testing": 32,
    "aidet_tae": 64,
    "taesd_encoder": 64,
    "taesd_decoder": 8,
}
CHANNELS = {"taesd_decoder": 4}
WHOLE = ("aidet_tae", "taesd_encoder", "taesd_decoder", "cifake_cnn", "cifake_cnn_srm")  # take no num_classes
COLUMNS = (
    "architecture",
    "from",
    "parameters",
    "input",
    "onnx",
    "onnx_difference",
    "opset",
    "mindir",
    "mindir_difference",
    "largest_logit",
    "seconds",
    "commit",
    "versions",
    "device",
)


def row_of(name, folder):
    """One line of the table; an export that fails is a line with its reason."""
    import mindspore as ms
    import numpy as np
    from mindspore import nn

    from aidet import models, onnx_export

    start = time.perf_counter()
    ms.set_seed(1)
    size, channels = SIZES.get(name, 224), CHANNELS.get(name, 3)
    net = models.create(name, **({} if name in WHOLE else {"num_classes": 2}))
    net.set_train(False)
    own = name in models.names(own_only=True)
    row = {
        "architecture": name,
        "from": "aidet" if own else "mindcv",
        "input": f"N x {channels} x {size} x {size}",
        "parameters": sum(p.size for p in net.trainable_params()),
    }
    sample = onnx_export.pixels({"input": {"channels": channels}}, (size, size))
    try:
        _, verdict = onnx_export.export(net, {"architecture": name}, sample)
        row.update(
            onnx="free batch",
            opset=verdict["opset"],
            largest_logit=f"{verdict['largest']:.2g}",
            onnx_difference=f"{verdict['difference'] / verdict['largest']:.1e}",
        )
    except onnx_export.ExportError as error:
        row["onnx"] = str(error)
    try:
        path = Path(folder) / f"{name}.mindir"
        x = ms.Tensor(sample(2))
        ms.export(net, x, file_name=str(path), file_format="MINDIR")
        again = nn.GraphCell(ms.load(str(path)))(x).asnumpy()
        row.update(mindir="yes", mindir_difference=f"{np.abs(again - net(x).asnumpy()).max():g}")
    except Exception as error:  # noqa: BLE001 - whatever MindSpore raises is the result
        row["mindir"] = onnx_export.first_line(error)
    row["seconds"] = f"{time.perf_counter() - start:.0f}"
    return row


def write(rows):
    """results/export.csv and the marked block of docs/export.md."""
    with files.atomic(ROOT / "results" / "export.csv") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    shown = [c for c in COLUMNS if c not in ("commit", "versions", "device", "seconds")]
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(str(r.get(c, "")) for c in shown) + " |" for r in rows]
    lines += ["", f"<sub>{rows[-1]['device']}; {rows[-1]['versions']}; commit {rows[-1]['commit']}</sub>"]
    page = ROOT / "docs" / "export.md"
    block = "<!-- table: export -->\n" + "\n".join(lines) + "\n<!-- end -->"
    text = re.sub(
        r"<!-- table: export -->\n.*?<!-- end -->", lambda _: block, page.read_text(encoding="utf-8"), flags=re.S
    )
    with files.atomic(page) as file:
        file.write(text)


def run(argv):
    """Export each name, print its line, write both files."""
    runtime.setup("CPU", mode="graph")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    about = {
        "commit": commit.strip(),
        "device": f"CPU {platform.machine()}",
        "versions": " ".join(f"{k} {v}" for k, v in runtime.versions().items() if k in ("mindspore", "onnxruntime")),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in argv or NAMES:
            rows.append({**row_of(name, folder), **about})
            print({k: v for k, v in rows[-1].items() if k not in about}, flush=True)
    if not argv:
        write(rows)
    return cli.OK


if __name__ == "__main__":
    cli.main(run)
