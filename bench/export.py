"""Export each architecture to ONNX and MindIR, reload it and compare outputs: results/export.csv, docs/export.md.

    python bench/export.py [NAME ...]               # default: the list below; rows of other names are kept
    python bench/export.py --missing [--minutes M]  # only names without a row; starts no new one after M minutes

The weights are random, so the largest logits differ by orders of magnitude between architectures; the difference is
therefore given relative to the largest logit.
"""

import argparse
import multiprocessing
import os
import platform
import re
import tempfile
import time
from concurrent import futures
from pathlib import Path

import common
from common import ROOT

from aidet import cli, files, runtime
from aidet.errors import first_line

TABLE = ROOT / "results" / "export.csv"
NAMES = (
    "testing resnet18 resnet50 cifar_resnet20 cifake_cnn cifake_cnn_srm squeezenet1_0 mobilenet_v3_small_100 "
    "efficientnet_lite0 efficientnet_b0 convnext_tiny swin_tiny vit_t_16_224 deit_t_16_224 aidet_tae taesd_encoder "
    "taesd_decoder resnext50_32x4d mobilenet_v2_100 densenet121 shufflenet_v2_x1_0 googlenet "
    # the other sizes of the same families, small ones first
    "cifar_resnet32 cifar_resnet44 cifar_resnet56 cifar_resnet110 squeezenet1_1 taesana_encoder taesana_decoder "
    "mobilenet_v3_large_100 resnet34 efficientnet_lite1 efficientnet_lite2 efficientnet_b1 efficientnet_b2 "
    "vit_s_16_224 deit_s_16_224 vit_t_16_384 deit_t_16_384 efficientnet_b3 aekl_clf resnet101 resnet152 "
    "convnext_small swin_small efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 autoencoder_kl "
    "vit_s_16_384 deit_s_16_384 convnext_base swin_base vit_b_16_224 deit_b_16_224 vit_b_16_384 deit_b_16_384 "
    "swin_large "
    # detectors with a forward of their own
    "npr_resnet50 safe_resnet50 tiny_ladeda ladeda9 gramnet_resnet18 fredect_resnet18 fredect_resnet50 "
    "drct_convnext_tiny drct_convnext_base drct_clip rine d3 freqnet aide siglip_dinov2 fatformer "
    "partial_lite0 "
    # towers of any size, exported small, then the published sizes
    "clip_vit dinov2_vit siglip_vit vit deit clip_vit_b_32 clip_vit_b_16 dinov2_vit_s_14 dinov2_vit_b_14 "
    "siglip_vit_b_16 siglip_vit_b_32 clip_vit_l_14 clip_vit_l_14_336 dinov2_vit_l_14 siglip_vit_l_16 "
    "siglip_vit_so400m_14 siglip_vit_so400m_16 dinov2_vit_g_14 "
    # nets of published detectors
    "mobilenet_v2 resnest50d resnest resnet50_nodown convnext_v2_atto convnext_v2_femto convnext_v2_pico "
    "convnext_v2_nano efficientnetv2_b0 efficientnetv2_b1 efficientnetv2_b2 efficientnetv2_b3 efficientnetv2_s "
    "swin_v2_tiny swin_v2 convnext_v2_tiny swin_v2_small beit_b_16 beit efficientnetv2_m swin_v2_base "
    "convnext_v2_base efficientnetv2_l convnext_v2_large swin_v2_large beit_l_16 "
    # more architectures of MindCV's common families
    "resnext101_32x4d densenet169 densenet201 mobilenet_v1_100 mobilenet_v3_small_075 efficientnet_v2_s "
    "swinv2_tiny_window8 convnextv2_tiny vit_b_32_224"
).split()
SIZES = {
    "cifar_resnet20": 32,
    "cifake_cnn": 32,
    "cifake_cnn_srm": 32,
    "testing": 32,
    "aidet_tae": 64,
    "taesd_encoder": 64,
    "taesd_decoder": 8,
    "taesana_encoder": 64,
    "taesana_decoder": 4,
    "aekl_clf": 64,
    "autoencoder_kl": 64,
    "ladeda9": 128,
    "siglip_dinov2": 448,
    "safe_resnet50": 256,
    "freqnet": 256,
    "aide": 256,
    "partial_lite0": 256,
    "beit": 64,
    "resnest": 72,
    "resnet50_nodown": 64,
    "swin_v2": 64,
    "swin_v2_tiny": 256,
    "swinv2_tiny_window8": 256,
    "swin_v2_small": 256,
    "swin_v2_base": 256,
    "swin_v2_large": 256,
    "siglip_vit_b_32": 256,
    "siglip_vit_l_16": 256,
    "siglip_vit_so400m_14": 384,
    "siglip_vit_so400m_16": 384,
}
# The detectors on CLIP are exported on a small tower: its blocks are those of CLIP.
SMALL = {"width": 128, "depth": 2, "hidden": 512, "patch_size": 14, "image_size": 224}
# The head of aekl_clf has one weight per position of the latent: 8 x 8 for 64 pixels, 32 x 32 for AIGC-clf's own 256.
# Architectures of any size are exported small; their published sizes have rows of their own.
ARGUMENTS = {
    "aekl_clf": {"latent_size": 8},
    "aide": {"depths": (1, 1, 2, 1), "widths": (96, 192, 384, 768), "resnet": "resnet18"},
    "beit": {"width": 48, "depth": 2, "heads": 4, "image_size": 64},
    "resnest": {"depths": (1, 1, 1, 1)},
    "swin_v2": {"width": 24, "depths": (2, 2, 2), "heads": (2, 4, 8), "image_size": 64, "window_size": 4},
    "d3": SMALL,
    "drct_clip": SMALL,
    "rine": {**SMALL, "embedding": 64},
    "fatformer": {**SMALL, "adapted": (0, 1), "text_width": 192, "text_depth": 2},
    "siglip_dinov2": {
        "siglip": {**SMALL, "heads": 2},
        "dinov2": {"width": 128, "depth": 2, "hidden": 512, "grid": 16, "image_size": 224},
    },
    "clip_vit": SMALL,
    "dinov2_vit": {"width": 128, "depth": 2, "hidden": 512, "image_size": 224},
    "siglip_vit": {**SMALL, "heads": 2},
    "vit": {**SMALL, "heads": 2},
    "deit": {**SMALL, "heads": 2},
}
CHANNELS = {"taesd_decoder": 4, "taesana_decoder": 32}
# Architectures that take no num_classes argument.
WHOLE = "aidet_tae taesd_encoder taesd_decoder taesana_encoder taesana_decoder cifake_cnn cifake_cnn_srm autoencoder_kl"
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


def alone(name):
    """One row of the table, made in a process of its own: MindSpore keeps the memory of a net after its use."""
    with tempfile.TemporaryDirectory() as folder:
        with futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                return pool.submit(row_of, name, folder).result()
            except futures.process.BrokenProcessPool:
                memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
                lost = f"not measured: the process was ended, as it is for lack of memory ({memory} GB here)"
                return {"architecture": name, "from": "aidet", "onnx": lost, "mindir": lost}


def row_of(name, folder):
    """One row of the table; if the export fails, the row gives the reason."""
    import mindspore as ms
    import numpy as np
    from mindspore import nn

    from aidet import ckpt, models
    from aidet.export import mindir, onnx_graph

    start = time.perf_counter()
    runtime.setup("CPU", mode="graph")
    ms.set_seed(1)
    last = name.rpartition("_")[2]  # of siglip_vit_b_16_512 the side of its images
    plain = int(last) if last.isdigit() and len(last) == 3 else 32 if name.startswith("cifar_") else 224
    size, channels = SIZES.get(name, plain), CHANNELS.get(name, 3)
    arguments = {} if name in WHOLE.split() else {"num_classes": 2}
    net = models.create(name, **arguments, **ARGUMENTS.get(name, {}))
    net.set_train(False)
    own = name in models.names(own_only=True)
    row = {
        "architecture": name,
        "from": "aidet" if own else "mindcv",
        "input": f"N x {channels} x {size} x {size}",
        "parameters": sum(p.size for p in net.trainable_params()),
    }
    sample = onnx_graph.pixels((size, size), channels)
    try:
        _, verdict = onnx_graph.export(net, ckpt.Sidecar({"architecture": name}, name), sample)
        row.update(
            onnx="free batch",
            opset=verdict["opset"],
            largest_logit=f"{verdict['largest']:.2g}",
            onnx_difference=f"{verdict['difference'] / verdict['largest']:.1e}",
        )
    except onnx_graph.ExportError as error:
        row["onnx"] = str(error)
    try:
        path = Path(folder) / f"{name}.mindir"
        x = sample(2)
        ms.export(net, ms.Tensor(x), file_name=str(path), file_format="MINDIR")
        mindir.joined(path)
        again = nn.GraphCell(ms.load(str(path)))
        pairs = zip(onnx_graph.outputs_of(again, x), onnx_graph.outputs_of(net, x))
        row.update(mindir="yes", mindir_difference=f"{max(np.abs(a - b).max() for a, b in pairs):g}")
    except Exception as error:  # noqa: BLE001 - any exception from MindSpore is recorded as the result
        row["mindir"] = first_line(error, 300)
    row["seconds"] = f"{time.perf_counter() - start:.0f}"
    return row


def known():
    """Rows of results/export.csv by architecture."""
    return {row["architecture"]: row for row in common.rows(TABLE)}


def write(rows):
    """Write results/export.csv and the marked block of docs/export.md, in the order of NAMES."""
    missing = [name for name in NAMES if name not in rows]
    rows = sorted(rows.values(), key=lambda r: NAMES.index(r["architecture"]))
    common.write(TABLE, COLUMNS, rows)
    shown = [c for c in COLUMNS if c not in ("commit", "versions", "device", "seconds")]
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(str(r.get(c, "")) for c in shown) + " |" for r in rows]
    about = ("; ".join(dict.fromkeys(r[c] for r in rows)) for c in ("device", "versions"))
    commits = ", ".join(dict.fromkeys(r["commit"] for r in rows))
    lines += ["", f"<sub>{'; '.join(about)}; commit {commits}</sub>"]
    lines += ["", f"Not exported yet, but of families with a row above: {', '.join(missing)}."] if missing else []
    page = ROOT / "docs" / "export.md"
    block = "<!-- table: export -->\n" + "\n".join(lines) + "\n<!-- end -->"
    text = re.sub(
        r"<!-- table: export -->\n.*?<!-- end -->", lambda _: block, page.read_text(encoding="utf-8"), flags=re.S
    )
    with files.atomic(page) as file:
        file.write(text)


def run(argv):
    """Export each architecture, print its row, and write both files after each."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME")
    p.add_argument("--missing", action="store_true")
    p.add_argument("--minutes", type=float, default=60)
    args = p.parse_args(argv)
    about = {
        "commit": common.commit(),
        "device": f"CPU {platform.machine()}",
        "versions": common.versions("mindspore", "onnxruntime"),
    }
    end = time.monotonic() + 60 * args.minutes
    for name in args.names or NAMES:
        if (args.missing and name in known()) or time.monotonic() > end:
            continue
        row = {**alone(name), **about}
        print({k: v for k, v in row.items() if k not in about}, flush=True)
        write({**known(), name: row})
    return cli.OK


if __name__ == "__main__":
    cli.main(run)
