"""Measure the cells of the converter's table and write ``results/convert.csv`` and the table of ``docs/convert.md``.

    python bench/convert_table.py [--only TEXT ...] [--small] [--missing] [--minutes M] [--table]

For each row, the original library's own network with random weights is saved in its real layout and converted with the
command line, and the outputs are compared on real photos. Rows measured before are kept; ``--table`` only rewrites the
page.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import common
from common import ROOT

CSV = ROOT / "results" / "convert.csv"
PAGE = ROOT / "docs" / "convert.md"
FIELDS = (
    "cell",
    "architecture",
    "layout",
    "input",
    "largest",
    "scale",
    "relative",
    "pytorch_from_float64",
    "deviation",
    "commit",
    "mindspore",
    "torch",
    "library",
    "device",
)
BEGIN, END = "<!-- table: begin (bench/convert_table.py) -->", "<!-- table: end -->"


def rows():
    """The rows measured so far, by cell."""
    return {row["cell"]: row for row in common.rows(CSV)}


def write(table):
    """Write the CSV, in the order of the cells' names."""
    common.write(CSV, FIELDS, [table[k] for k in sorted(table)])


def measure_cells(cells, minutes=None, say=print):
    """Measure each cell, keep existing rows and write after every cell; start no new cell after ``minutes``."""
    import time

    from run_cells import measure

    from aidet.runtime import version_of

    commit = common.commit()
    start = time.monotonic()
    for cell in cells:
        if minutes is not None and time.monotonic() - start > 60 * minutes:
            break
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = measure(cell, Path(folder), apart=False)
                assert result["spread"] is None or result["spread"] > 1e-3 * result["scale"], "the same for every image"
            except Exception as error:  # noqa: BLE001 - a failed cell must appear in the table, not end the run
                say(f"{cell.name}: FAILED {error}", flush=True)
                continue
        libraries = {
            "timm": "timm",
            "hf": "transformers",
            "torchvision": "torchvision",
            "diffusers": "diffusers",
            "ldm": "diffusers",
        }
        library = next((v for k, v in libraries.items() if cell.layout.startswith(k)), "")
        table = rows()
        table[cell.name] = {
            "cell": cell.name,
            "architecture": result["architecture"],
            "layout": cell.layout,
            "input": cell.size or "latents",
            "largest": f"{result['largest']:.2e}",
            "scale": f"{result['scale']:.3g}",
            "relative": f"{result['relative']:.2e}",
            "pytorch_from_float64": f"{result['own']:.2e}",
            "deviation": f"{result['std']:.3g}",
            "commit": commit,
            "mindspore": version_of("mindspore"),
            "torch": version_of("torch"),
            "library": f"{library} {version_of(library)}" if library else "",
            "device": "CPU",
        }
        write(table)
        say(
            f"{cell.name}: largest {result['largest']:.2e}, scale {result['scale']:.3g}, "
            f"relative {result['relative']:.2e}, PyTorch from float64 {result['own']:.2e}",
            flush=True,
        )


def page(cells):
    """Write the table between the markers in docs/convert.md: measured rows, and the cells not yet measured."""
    from aidet.files import atomic

    table = rows()
    lines = [
        "| cell | input | largest difference | scale of the output | relative | PyTorch from float64 |",
        "|---|---|---|---|---|---|",
    ]
    for key in sorted(table):
        row = table[key]
        cells_of_row = (row[k] for k in ("input", "largest", "scale", "relative", "pytorch_from_float64"))
        lines.append(f"| {key} | {' | '.join(cells_of_row)} |")
    within = sum(float(row["relative"]) <= 1e-4 for row in table.values())
    lines += ["", f"{within} of {len(table)} measured cells are within 1e-4; the table has {len(cells)} cells."]
    missing = [c.name for c in cells if c.name not in table]
    if missing:
        lines += ["", f"Not measured yet ({len(missing)} of {len(cells)}): {', '.join(missing)}."]
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    with atomic(PAGE) as file:
        file.write(head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="TEXT", help="cells whose name holds one of these")
    parser.add_argument("--small", action="store_true", help="the cells of `make parity`")
    parser.add_argument("--missing", action="store_true", help="only cells that have no row yet")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no cell after so many minutes")
    parser.add_argument("--table", action="store_true", help="only rewrite docs/convert.md")
    args = parser.parse_args()
    sys.path.insert(1, str(ROOT / "tests" / "parity"))
    from cells import CELLS

    chosen = [
        c for c in CELLS if (not args.only or any(t in c.name for t in args.only)) and (not args.small or c.small)
    ]
    if args.missing:
        done = rows()
        chosen = [c for c in chosen if c.name not in done]
    if not args.table:
        measure_cells(chosen, args.minutes)
    page(CELLS)


if __name__ == "__main__":
    main()
