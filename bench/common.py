"""Facts that every measurement records with its numbers, and reading and writing of the result tables.

This module puts the repository's root on the import path, so every script in this folder must import it first.
"""

import csv
import datetime
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aidet import cli, files, runtime  # noqa: E402 - the repository's root comes first on the path
from aidet.errors import UserError  # noqa: E402 - as above


def commit():
    """Short hash of the checked-out commit; empty outside a repository."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def versions(*names, sign=" "):
    """Names and versions of the installed packages among ``names``, such as ``"mindspore 2.8.0 pillow 12.3.0"``."""
    known = runtime.versions()
    found = {name: known.get(name) or runtime.version_of(name) for name in names}
    return " ".join(f"{name}{sign}{version}" for name, version in found.items() if version)


FACTS = ("commit", "versions", "device", "command", "date")


def facts(command):
    """The facts recorded with a detector's numbers: the values of the columns ``FACTS``."""
    known = runtime.versions()
    engines = f"MindSpore {known['mindspore']}, ONNX Runtime {known.get('onnxruntime', 'absent')}"
    return [commit(), engines, f"CPU, {cores()}", command, datetime.date.today().isoformat()]


def shown(value, interval=None):
    """A value with its interval as text, such as ``"0.893 [0.854, 0.923]"``; empty if there is no value."""
    text = "" if value is None else f"{value:.3f}"
    return text + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def cores():
    """Text such as ``"1 of 2 cores"``: the cores this process may use, and the cores of the machine."""
    from aidet.parallel import cpus

    return f"{cpus()} of {os.cpu_count()} cores"


def run(*arguments, accepted=(cli.OK, cli.PARTIAL)):
    """Run one command line of the project, its output left out; another exit code than these is an error."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in accepted:
        raise UserError(f"{arguments[0]} ended with exit code {done.returncode}")


def rows(path):
    """Rows of a table as dicts of text; an empty list if the file does not exist."""
    if not Path(path).is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path, columns, table):
    """Write a table atomically; a column that is missing from a row is left empty.

    Parameters
    ----------
    path : str or Path
    columns : sequence of str
    table : iterable of dict
        A key that is not a column is an error.
    """
    with files.atomic(path) as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def replaced(known, new, key):
    """The rows ``new`` appended to ``known``, after removing known rows with the same values in the ``key`` columns."""
    taken = {tuple(str(row[k]) for k in key) for row in new}
    return [row for row in known if tuple(row[k] for k in key) not in taken] + list(new)
