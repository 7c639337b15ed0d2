"""Write the tables in docs/ from results/*.csv and docs/demo.txt.

    python bench/tables.py            # rewrite the marked blocks
    python bench/tables.py --check    # exit 2 if a block is out of date

A block is the text between ``<!-- table: NAME -->`` and ``<!-- end -->``. NAME is a file of results/ without ``.csv``,
or ``demo`` for the recorded output of `make demo`.
"""

import argparse
import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aidet import cli, files  # noqa: E402 - the repository's root comes first on the path
from aidet.errors import UserError  # noqa: E402

BLOCK = re.compile(r"(<!-- table: ([a-z0-9_]+) -->\n).*?(<!-- end -->)", re.S)
NAMES = "convert default_detector detectors evaluate infer localize quickstart quickstart_CN recipes scale train"
PAGES = tuple(f"docs/{name}.md" for name in NAMES.split())
HIDDEN = {"commit", "versions", "device", "command", "date", "load", "sha256"}  # in the CSV only: too wide for a page


def table(name):
    """The text of a block: a Markdown table of one CSV, or the demo's recorded output."""
    if name == "demo":
        return "```\n" + (ROOT / "docs" / "demo.txt").read_text(encoding="utf-8").rstrip("\n") + "\n```\n"
    source = "scale" if name == "scale_100m" else name
    path = ROOT / "results" / f"{source}.csv"
    if not path.is_file() and source == "scale":
        return "Not measured yet; `python bench/scale.py` does it.\n"
    if not path.is_file():
        raise UserError(f"no results/{name}.csv for the table {name!r}")
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if name == "recipes_proof":
        rows = proofs(rows, reader.fieldnames)
    shapes = {"scale": engines, "scale_100m": hundred_million, "partial": localizers, "peers": peers}
    rows = shapes.get(name, list)(rows)
    columns = [c for c in rows[0] if c not in HIDDEN]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row[c] for c in columns) + " |" for row in rows]
    # Rows of one table may have been measured at different commits; all of them are listed.
    kinds = {k: list(dict.fromkeys(r[k] for r in rows if r.get(k))) for k in ("device", "versions", "commit")}
    facts = [f"{k} {' / '.join(v)}" for k, v in kinds.items() if v]
    return "\n".join(lines) + "\n" + (f"\n<sub>{'; '.join(facts)}</sub>\n" if facts else "")


FACTS = ("commit", "versions", "device")


def proofs(rows, columns):
    """A row for every recipe that has a proof profile, measured or not."""
    measured = {row["recipe"]: row for row in rows}
    names = sorted(path.stem for path in (ROOT / "mindcv_cfg" / "proof").glob("*.yaml"))
    empty = dict.fromkeys(columns, "")
    return [measured.get(name, {**empty, "recipe": name, "AUC": "not measured"}) for name in names]


def engines(rows):
    """The rows of results/scale.csv with the columns that a page has room for, and what each engine costs.

    The cost is the part of the time that n processes need beyond an n-th of that of one process.
    """
    shown = "pictures source engine images", "images a second", "start s", "peak MB", "last tenth / first"
    columns = [*shown[0].split(), *shown[1:]]
    result = []
    for row in rows:
        one = next(r for r in rows if _same(r, row, "pictures", "source", "images") and r["processes"] == "1")
        ideal = float(one["seconds"]) / int(row["processes"])
        cost = "" if row is one else f"{1 - ideal / float(row['seconds']):.1%}"
        result.append({**{name: row[name] for name in columns[:5]}, "cost": cost,
                       **{name: row[name] for name in (*columns[5:], *FACTS)}})  # fmt: skip
    return result


def localizers(rows):
    """The rows and columns of results/partial.csv that a page has room for."""
    narrow = {"F1", "IoU", "image balanced accuracy"}
    return [{k: v for k, v in row.items() if k not in narrow} for row in rows if not row["part"].startswith("kind")]


def peers(rows):
    """The networks of results/peers.csv side by side: times the first row, images a second, and images scored twice.

    A trained detector, which has its own first row, is left out; the page states its numbers in words.
    """
    first = rows[0]["what"]
    models = [row["model"] for row in rows if row["what"] == first]
    shared = [row for row in rows if row["model"] in models]
    result = []
    for what in dict.fromkeys(row["what"].partition(" (")[0] for row in shared):
        own = {row["model"]: row for row in shared if row["what"].partition(" (")[0] == what}
        cells = {}
        for model in models:
            row = own.get(model)
            twice = row["note"].partition(" images scored twice") if row else ("", "")
            end = f"; {twice[0]})" if twice[1] else ")"
            cells[model] = f"{row['times the first row']} ({row['images/s']}{end}" if row else "not measured"
        result.append({"what": what, **cells})
    facts = {name: " / ".join(dict.fromkeys(row[name] for row in shared)) for name in FACTS}
    return [{**row, **facts} for row in result]


def _same(first, second, *columns):
    return all(first[name] == second[name] for name in columns)


def hundred_million(rows):
    """What 100 million pictures take by the measured rates of Ray: arithmetic, see docs/scale.md."""
    result = []
    for row in rows:
        if not row["engine"].startswith("Ray"):
            continue
        busy = float(row["seconds"]) - float(row["start s"])
        rate = int(row["images"]) / busy / int(row["processes"])
        hours = 1e8 / rate / 3600
        sizes = {f"{name}, GB": float(row[f"{name} bytes a row"]) / 10 for name in ("journal", "CSV", "Parquet")}
        result.append({
            "pictures": row["pictures"], "detector": row["detector"], "images a second and core": f"{rate:.3g}",
            "core hours": f"{hours:,.0f}", "hours on 32 cores": f"{hours / 32:,.1f}",
            "hours on 320 cores": f"{hours / 320:,.2f}", "pictures, GB": f"{float(row['bytes an image']) / 10:,.0f}",
            **{name: f"{value:,.1f}" for name, value in sizes.items()}, **{name: row[name] for name in FACTS},
        })  # fmt: skip
    return result


def render(text):
    """The text of a page with every block regenerated."""
    return BLOCK.sub(lambda m: m.group(1) + table(m.group(2)) + m.group(3), text)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a page is stale")
    args = parser.parse_args(argv)
    for page in PAGES:
        old = (ROOT / page).read_text(encoding="utf-8")
        new = render(old)
        if args.check and new != old:
            raise UserError(f"{page} is not what results/ says; run: make tables")
        if not args.check and new != old:
            with files.atomic(ROOT / page) as file:
                file.write(new)
            print(f"wrote {page}")


if __name__ == "__main__":
    cli.main(main)
