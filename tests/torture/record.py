"""What the long tests tried and what happened, as rows of results/reliability.csv, and the page made of them.

python tests/torture/record.py     # writes the table of docs/reliability.md anew
"""

import csv
import datetime
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
import tables  # noqa: E402

from aidet import files, runtime  # noqa: E402

TABLE = ROOT / "results" / "reliability.csv"
PAGE = ROOT / "docs" / "reliability.md"
COLUMNS = ("area", "tried", "count", "seconds", "seed", "outcome", "date", "commit", "versions", "device")
AREAS = (
    "weights",
    "configuration",
    "tables",
    "images",
    "kill -9",
    "faults",
    "distributed",
    "determinism",
    "network",
    "app",
)


def rows():
    """The table as it stands."""
    if not TABLE.is_file():
        return []
    with open(TABLE, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def record(area, tried, count, seconds, outcome, seed=""):
    """Put one row in, in place of an earlier one of the same area and name."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    found = runtime.versions()
    row = {
        "area": area, "tried": tried, "count": str(count), "seconds": f"{seconds:.0f}", "seed": str(seed),
        "outcome": outcome, "date": datetime.date.today().isoformat(), "commit": commit.strip(),
        "versions": " ".join(f"{n} {found[n]}" for n in ("python", "mindspore", "onnxruntime", "pillow") if n in found),
        "device": f"CPU, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
    }  # fmt: skip
    kept = [r for r in rows() if (r["area"], r["tried"]) != (area, tried)] + [row]
    kept.sort(key=lambda r: AREAS.index(r["area"]))
    with files.atomic(TABLE) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


@contextmanager
def measured(area, tried, seed=""):
    """Time a block and write its row when it ends well: the block fills ``count`` and ``outcome`` of what it gets."""
    said = {"count": 0, "outcome": ""}
    start = time.monotonic()
    yield said
    record(area, tried, said["count"], time.monotonic() - start, said["outcome"], seed)


def render(text):
    """The page with its table made anew."""
    return tables.render(text)


if __name__ == "__main__":
    page = render(PAGE.read_text(encoding="utf-8"))
    with files.atomic(PAGE) as out:
        out.write(page)
    print(f"wrote {PAGE}")
