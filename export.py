"""Export a checkpoint to MindIR, ONNX or AIR; the result is loaded again and compared.

python export.py --ckpt A.ckpt --format mindir|onnx|air --out DIR [--batch N|dynamic] [--preprocess-in-graph]
"""

from pathlib import Path
from typing import Any, List

from aidet import cli
from aidet.errors import UserError


def run(argv: List[str]) -> None:
    """The command line."""
    p = cli.Parser(prog="export.py", description=__doc__)
    p.add_argument(
        "--ckpt",
        action="append",
        metavar="A.ckpt",
        help="checkpoint with its sidecar (default: aidet_default, which comes with AIDet)",
    )
    p.add_argument("--format", required=True, metavar="mindir|onnx|air")
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--batch", default="dynamic", metavar="N|dynamic", help="batch size (default: free)")
    p.add_argument("--opset", type=int, metavar="N", help="with onnx: version of its operators")
    p.add_argument("--preprocess-in-graph", action="store_true", help="uint8 (N, h, w, 3) in, score (N,) out")
    p.add_argument("--emit-lite", action="store_true", help="files and commands for MindSpore Lite (with mindir)")
    p.add_argument("--int8", metavar="DIR", help="with onnx: an eight-bit model too, calibrated on these images")
    p.add_argument(
        "--bf16", metavar="DIR", help="with onnx: a model for bfloat16 on OpenVINO too, compared on these images"
    )
    p.add_argument("--labels", metavar="DIR|CSV", help="true labels of these images: accuracy before and after")
    args = p.parse_args(argv)
    batch = int(args.batch) if args.batch.isdecimal() else args.batch
    from aidet.export import exporter

    if args.ckpt and len(args.ckpt) > 1:
        raise UserError(f"--ckpt {args.ckpt[1]!r}: one checkpoint is exported at a time; call export.py for each")
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise UserError(f"--out {args.out!r} is a file; give a folder")
    if args.labels and not (args.int8 or args.bf16):
        raise UserError("--labels goes with --int8 DIR or --bf16 DIR: they are the true labels of its images")
    for flag in ("int8", "bf16"):
        if getattr(args, flag) and (args.format != "onnx" or batch != "dynamic" or args.preprocess_in_graph):
            raise UserError(f"--{flag} goes with --format onnx, a dynamic batch and preprocessing outside the graph")
    options = (batch, args.preprocess_in_graph, args.emit_lite, args.opset)
    from aidet.detector import default

    ckpt = default.checkpoints(args.ckpt)[0]
    chosen = {}
    for flag, precision in (("int8", "int8"), ("bf16", "bfloat16")):
        if getattr(args, flag):  # what is wrong with these images is said before anything is written
            from aidet.detector import int8

            chosen[precision] = int8.check(ckpt, getattr(args, flag), args.labels, precision=precision)
    verdict = exporter.export(ckpt, args.format, args.out, *options)
    where = Path(args.out) / verdict["file"]
    if verdict["difference"] is None:
        print(f"wrote {where}; {verdict['note']}")
        return
    print(
        f"wrote {where}: batch {verdict['batch']}, loaded again, largest difference {verdict['difference']:.2g} "
        f"(limit {verdict['tolerance']:g}) at batch {', '.join(map(str, verdict['batches']))}"
    )
    for precision, images in chosen.items():
        report_faster(where, images, precision)
    if "lite" in verdict:
        print(f"wrote {verdict['lite']}: converter.ini, commands.sh, check.py, golden input and output")


def report_faster(path: Path, images: Any, precision: str) -> None:
    """Make the faster model of an exported one with the images that were checked, and print what that costs."""
    from aidet.detector import int8

    found = int8.made(path, images, precision)
    kept = " kept out of calibration" if precision == "int8" else ""
    print(
        f"wrote {path.with_name(found['file'])}: on {found['images']} images{kept}, "
        f"mean change of score {found['score_change']:.3g}, decisions changed {found['decisions_changed']:.2%}, "
        f"{found['speedup']:.2f} times as fast"
    )
    print(
        f"for infer.py --cascade: margin of a view's score {found['margin']:.3g}, of an image's "
        f"{found['score_margin']:.3g}; {found['scored_twice']:.0%} of these images scored twice, "
        f"{found['cascade_speedup']:.2f} times as fast as float32 alone"
    )
    if "balanced_accuracy" in found:
        print(f"balanced accuracy {found['balanced_accuracy']:.4f}, {precision} {found['balanced_accuracy_int8']:.4f}")


if __name__ == "__main__":
    cli.main(run)
