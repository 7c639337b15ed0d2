"""What every measurement writes beside its numbers, and the tables it writes them to.

The repository's root is put on the path here, so that a script of this folder imports this module first.
"""

import csv
import datetime
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aidet import files, runtime  # noqa: E402 - the repository's root comes first on the path


def commit():
    """Short hash of the checked-out commit; empty outside a repository."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def versions(*names, sign=" "):
    """``"mindspore 2.8.0 pillow 12.3.0"`` of those that are installed, in the order given; ``python`` is one."""
    known = runtime.versions()
    found = {name: known.get(name) or runtime.version_of(name) for name in names}
    return " ".join(f"{name}{sign}{version}" for name, version in found.items() if version)


FACTS = ("commit", "versions", "device", "command", "date")


def facts(command):
    """What stands beside a detector's numbers: the values of the columns ``FACTS``."""
    known = runtime.versions()
    engines = f"MindSpore {known['mindspore']}, ONNX Runtime {known.get('onnxruntime', 'absent')}"
    return [commit(), engines, f"CPU, {cores()}", command, datetime.date.today().isoformat()]


def shown(value, interval=None):
    """``"0.893 [0.854, 0.923]"``; empty where there is no value."""
    text = "" if value is None else f"{value:.3f}"
    return text + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def cores():
    """``"1 of 2 cores"``: those that this process may use, of those that there are."""
    from aidet.parallel import cpus

    return f"{cpus()} of {os.cpu_count()} cores"


def rows(path):
    """Rows of a table as dicts of text; none where there is no such file."""
    if not Path(path).is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path, columns, table):
    """Write a table, whole or not at all; a row that lacks a column has an empty field there.

    Parameters
    ----------
    path : str or Path
    columns : sequence of str
    table : iterable of dict
        A key that is no column is an error.
    """
    with files.atomic(path) as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def replaced(known, new, key):
    """Rows ``known`` without those that have the ``key`` columns of a new one, then the new ones."""
    taken = {tuple(str(row[k]) for k in key) for row in new}
    return [row for row in known if tuple(row[k] for k in key) not in taken] + list(new)
