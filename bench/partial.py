"""Measure a localizer on a partial set, as it is and after JPEG 80: results/partial.csv.

    python bench/partial.py --labels SET/labels.csv [--ckpt ckpt/aidet_partial.ckpt] [--each 2]

Runs the real command lines (`infer.py --localize`, `evaluate.py localize`) on the split. Two baselines are measured on
the same pictures, both with the default detector: its mean over views, which `infer.py` computes beside the maps, and
its Grad-CAM on tiles of 224 pixels that overlap by half, joined as the localizer joins its own. The image score of a
Grad-CAM is the mean of the highest 1 % of the map.
"""

import argparse
import io
import json
import tempfile
from pathlib import Path

import common
import numpy as np
from common import ROOT
from PIL import Image

from aidet import cli, files, images, records
from aidet.detector import localizer
from aidet.detector.localization import Localization
from aidet.errors import UserError
from aidet.labels import sigmoid

COLUMNS = [
    "change", "part", "pictures", "pixel AUC", "pixel AUC, mean of pictures", "F1", "IoU", "image AUC",
    "image balanced accuracy", "false area of untouched photographs", "untouched photographs over 2 %",
    "image AUC, mean of views", "pixel AUC, Grad-CAM", "image AUC, Grad-CAM",
]  # fmt: skip
TILE, STRIDE = 224, 32  # pixels of the default detector's view and of one position of its last map
CHANGES = {"none": None, "JPEG 80": 80}


def copied(labels, split, quality, folder, each):
    """The pictures of a split, compressed if a quality is given, with masks; the path of their labels."""
    table, columns = records.read_table(labels, "labels")
    base, kept = Path(labels).resolve().parent, []
    rows = [row for row in table if row["split"] == split]
    if not rows:
        raise UserError(f"{labels} has no row of split {split!r}")
    groups = sorted({row["group"] for row in rows})[::each]
    for i, row in enumerate(row for row in rows if row["group"] in set(groups)):
        path = base / row["path"]
        target = folder / f"{i:05d}{'.jpg' if quality else path.suffix}"
        if quality:
            buffer = io.BytesIO()
            images.decode(path).save(buffer, "JPEG", quality=quality, subsampling=2)
            target.write_bytes(buffer.getvalue())
        else:
            target.write_bytes(path.read_bytes())
        mask = ""
        if row.get("mask"):
            mask = f"{i:05d}_mask.png"
            with Image.open(base / row["mask"]) as image:
                image.save(folder / mask)
        kept.append({**row, "path": target.name, "mask": mask})
    common.write(folder / "labels.csv", columns, kept)
    return folder / "labels.csv"


class GradCam:
    """The default detector's Grad-CAM of a whole picture, as a map that `evaluate.py localize` reads.

    Its last map is averaged over all positions before the dense layer, so the gradient of the score is the same at each
    of them and follows from the logits. That makes the map a second output of the ONNX graph, some hundred times faster
    than :class:`aidet.detector.explain.Explainer`, with which the first tile is compared.
    """

    def __init__(self):
        from aidet import ckpt, runtime
        from aidet.detector import default, explain
        from aidet.detector.views import Views
        from aidet.export import onnx_graph

        sidecar = ckpt.Sidecar.read(default.path())
        runtime.setup("CPU", mode="graph")
        net, self.order = ckpt.load_network(sidecar), np.array(sidecar.detector_order)
        import onnx  # after MindSpore, whose generated protobuf code is older
        import onnxruntime

        model, _ = onnx_graph.export(net, sidecar, onnx_graph.pixels((TILE, TILE)))
        pool = next(node for node in model.graph.node[::-1] if node.op_type == "ReduceMean")
        model.graph.output.append(onnx.helper.make_tensor_value_info(pool.input[0], onnx.TensorProto.FLOAT, None))
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.weight = next(p.asnumpy() for p in net.get_parameters() if p.name == "mlp_head.weight")
        self.numbers = Views(sidecar.detector_transform).first.numbers
        x = np.random.default_rng(0).standard_normal((1, 3, TILE, TILE)).astype(np.float32)
        expected, found = explain.Explainer(net, sidecar.detector_order)(x[0])[0], self.heat(x)[0] / 49
        if np.abs(found - expected).max() > 1e-3 * np.abs(expected).max():
            raise UserError("the fast Grad-CAM differs from aidet.detector.explain's")

    def heat(self, batch):
        """float32 (N, 3, 224, 224) -> what each position says, (N, 7, 7); its mean is the score but for a constant."""
        logits, features = self.session.run(None, {"image": batch})
        generated = self.order == "generated"
        share = np.exp(logits[:, generated] - logits[:, generated].max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        slope = share @ self.weight[generated] - self.weight[~generated].sum(0)
        return np.einsum("nchw,nc->nhw", features, slope)

    def write(self, picture, path):
        """Write the map of one picture: 16-bit grey, its size."""
        image = images.decode(picture)
        across = localizer.starts(image.width, TILE, STRIDE)
        lines = [[(x, y) for x in across] for y in localizer.starts(image.height, TILE, STRIDE)]
        cut = (np.stack([self.numbers(localizer.cut(image, *place, TILE)) for place in line]) for line in lines)
        cells = localizer.joined(image.size, TILE, STRIDE, zip(lines, map(self.heat, cut)))
        path.parent.mkdir(parents=True, exist_ok=True)
        Localization(sigmoid(cells).astype(np.float32), STRIDE, image.size, 0.0).picture().save(path)


def measured(args, quality, cam):
    """metrics.json of one version of the pictures, of the localizer and of Grad-CAM."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "set").mkdir()
        labels = copied(args.labels, args.split, quality, folder / "set", args.each)
        out = folder / "out"
        common.run("infer.py", "--images", labels, "--out", out, "--localize", "--localizer", args.ckpt)
        threshold = files.read_json(Path(args.ckpt).with_suffix(".json"))["localization"]["threshold"]
        common.run(
            "evaluate.py", "localize", "--maps", out / "maps", "--labels", labels, "--scores", out / "scores.csv",
            "--threshold", threshold, "--out", folder / "report", "--bootstrap", args.bootstrap,
        )  # fmt: skip
        for row in records.read_table(labels, "labels")[0]:
            cam.write(folder / "set" / row["path"], folder / "cam" / f"{Path(row['path']).stem}.png")
        common.run("evaluate.py", "localize", "--maps", folder / "cam", "--labels", labels,
            "--out", folder / "cam_report", "--bootstrap", args.bootstrap)  # fmt: skip
        return [files.read_json(folder / name / "metrics.json") for name in ("report", "cam_report")]


def table(change, own, cam):
    """Rows of the results file: all pictures, then by area, kind and builder."""
    alone, score = own["untouched"], own["image_score"]

    def auc(part):
        return common.shown(part.get("auc"), part.get("ci", {}).get("auc"))

    def row(name, pixels, image, alone, views, cam_pixels, cam_image):
        return [
            change, name, pixels["n"], auc(pixels), common.shown(pixels["mean_auc"]),
            common.shown(pixels["f1"]), common.shown(pixels["iou"]), auc(image),
            common.shown(image.get("balanced_accuracy")), *alone, auc(views), auc(cam_pixels), auc(cam_image),
        ]  # fmt: skip

    falsely = [common.shown(alone[name], alone["ci"].get(name)) for name in ("false_area", "alarms")]
    cams = cam["pixels"], cam["images"][cam["image_score"]]
    yield row("all", own["pixels"], own["images"][score], falsely, own["images"].get("score", {}), *cams)
    for by, values in own["by"].items():
        for value, found in values.items():
            other = cam["by"][by][value]
            views = found["images"].get("score", {})
            yield row(f"{by}: {value}", found, found["image"], ["", ""], views, other, other["image"])


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", required=True, help="labels.csv of a partial set")
    parser.add_argument("--ckpt", default=str(ROOT / "ckpt" / "aidet_partial.ckpt"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--each", type=int, default=1, help="only every n-th source image")
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--name", default="partial", help="results/NAME.csv")
    args = parser.parse_args(argv)
    facts = common.facts("defaults" if args.each == 1 else f"every {args.each}th source image")
    lines, cam = [], GradCam()
    for change, quality in CHANGES.items():
        lines += [[*row, *facts] for row in table(change, *measured(args, quality, cam))]
    columns = [*COLUMNS, *common.FACTS]
    common.write(ROOT / "results" / f"{args.name}.csv", columns, [dict(zip(columns, line)) for line in lines])
    print(json.dumps([line[: len(COLUMNS)] for line in lines], indent=0))


if __name__ == "__main__":
    cli.main(main)
