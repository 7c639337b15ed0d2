"""What the long tests tried and what happened: rows of results/reliability.csv, and the page made from them.

python tests/torture/record.py     # writes the table of docs/reliability.md anew
"""

import datetime
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench"))  # last: its convert.py is no package
import common  # noqa: E402
import tables  # noqa: E402

from aidet import files  # noqa: E402

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


def record(area, tried, count, seconds, outcome, seed=""):
    """Put one row in, in place of an earlier one of the same area and name."""
    row = {
        "area": area, "tried": tried, "count": str(count), "seconds": f"{seconds:.0f}", "seed": str(seed),
        "outcome": outcome, "date": datetime.date.today().isoformat(), "commit": common.commit(),
        "versions": common.versions("python", "mindspore", "onnxruntime", "pillow"),
        "device": f"CPU, {common.cores()}",
    }  # fmt: skip
    kept = common.replaced(common.rows(TABLE), [row], ("area", "tried"))
    common.write(TABLE, COLUMNS, sorted(kept, key=lambda r: AREAS.index(r["area"])))


@contextmanager
def measured(area, tried, seed=""):
    """Time a block and write its row when it ends well: the block fills ``count`` and ``outcome`` of what it gets."""
    said = {"count": 0, "outcome": ""}
    start = time.monotonic()
    yield said
    record(area, tried, said["count"], time.monotonic() - start, said["outcome"], seed)


def render(text):
    """The page with its table regenerated."""
    return tables.render(text)


if __name__ == "__main__":
    page = render(PAGE.read_text(encoding="utf-8"))
    with files.atomic(PAGE) as out:
        out.write(page)
    print(f"wrote {PAGE}")
