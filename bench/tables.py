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
NAMES = "convert default_detector detectors evaluate infer quickstart quickstart_CN recipes train"
PAGES = tuple(f"docs/{name}.md" for name in NAMES.split())
HIDDEN = {"commit", "versions", "device", "command", "date", "load", "sha256"}  # in the CSV only: too wide for a page


def table(name):
    """The text of a block: a Markdown table of one CSV, or the demo's recorded output."""
    if name == "demo":
        return "```\n" + (ROOT / "docs" / "demo.txt").read_text(encoding="utf-8").rstrip("\n") + "\n```\n"
    path = ROOT / "results" / f"{name}.csv"
    if not path.is_file():
        raise UserError(f"no results/{name}.csv for the table {name!r}")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [c for c in rows[0] if c not in HIDDEN]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row[c] for c in columns) + " |" for row in rows]
    # Rows of one table may have been measured at different commits; all of them are listed.
    kinds = {k: list(dict.fromkeys(r[k] for r in rows if r.get(k))) for k in ("device", "versions", "commit")}
    facts = [f"{k} {' / '.join(v)}" for k, v in kinds.items() if v]
    return "\n".join(lines) + "\n" + (f"\n<sub>{'; '.join(facts)}</sub>\n" if facts else "")


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
