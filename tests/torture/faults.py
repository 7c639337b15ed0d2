"""Run the command lines as a user would, interrupt them, and check what is left."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import tiny

from aidet import ckpt

ROOT = tiny.ROOT
CLOCK = {"seconds", "images_per_second", "speed", "created", "date", "time", "per_second", "provenance"}


def start(argv, **more):
    """Start a command line in its own process group, with its output in a pipe."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, *map(str, argv)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True, **more,
    )  # fmt: skip


def run(argv, expected=0, **more):
    """Run to the end; returns what it wrote to stderr."""
    process = start(argv, **more)
    out, err = process.communicate(timeout=300)
    wanted = expected if isinstance(expected, tuple) else (expected,)
    assert process.returncode in wanted, (argv, process.returncode, out[-1500:], err[-3000:])
    return err


def kill(process, sig=signal.SIGKILL):
    """Signal the whole group; a process that has ended by itself is no error."""
    try:
        os.killpg(process.pid, sig)
    except ProcessLookupError:
        pass


def anything(folder):
    """Whether a run has begun to write."""
    return folder.is_dir() and any(folder.iterdir())


def kill_at_random(argv, out, rng, length, late=0.85):
    """Start a command and kill -9 it at a random moment.

    Most kills come after the first file appears in ``out``: before that, only library imports can be interrupted.

    Parameters
    ----------
    argv : list
    out : Path
    rng : random.Random
    length : float
        Seconds from the first file to the end of an undisturbed run.
    late : float
        Share of the kills that wait for the first file.

    Returns
    -------
    bool
        Whether it was killed; False if it had already ended.
    """
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} if out.is_dir() else {}
    process = start(argv)
    if rng.random() < late:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if {p: _time(p) for p in out.rglob("*") if p.is_file()} != before:
                break
            time.sleep(0.003)
        time.sleep(rng.random() * length)
    else:
        time.sleep(rng.random() * 2.0)
    kill(process)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def _time(path):
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


# --- what is left ----------------------------------------------------------------------------------------------------
def whole(folder):
    """Check that every file with a final name is whole; gives the names of temporary ones that were left behind."""
    left = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts):
            left.append(relative.as_posix())
            continue
        if path.is_file():
            check(path)
    return left


def check(path):
    """One file with a final name."""
    name, data = path.name, path.read_bytes()
    if name.endswith(".ckpt"):
        arrays = ckpt.load_arrays(path)
        if name != "state.ckpt" and path.with_suffix(".json").is_file():
            facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            if facts["output"]["sha256"] == _sha256(data):
                assert len(arrays) == facts["output"]["tensors"], path
    elif name.endswith(".json"):
        json.loads(data)
    elif name.endswith((".journal", ".jsonl")) or "tfevents" in name or name == "steps.csv":
        pass  # logs that grow line by line; a reader of them takes whole lines
    elif name.endswith(".csv"):
        rows = list(csv.reader(data.decode().splitlines()))
        assert data.endswith(b"\n") and len({len(r) for r in rows}) == 1, path
    elif name.endswith(".txt"):
        assert set(data) <= set(b"01\n") and data.endswith(b"\n"), path
    elif name.endswith(".onnx"):
        import onnx

        onnx.checker.check_model(onnx.load_from_string(data))
    elif name.endswith(".html"):
        assert data.rstrip().endswith(b"</html>"), path
    elif name.endswith(".png"):
        from PIL import Image

        with Image.open(path) as image:
            image.load()
    elif name.endswith(".yaml"):
        import yaml

        assert isinstance(yaml.safe_load(data), dict), path
    elif path.parent.suffix == ".lite":
        # commands.sh is written last: a folder of that name has everything
        assert {"input.bin", "output.bin", "converter.ini", "commands.sh"} <= {p.name for p in path.parent.iterdir()}
    elif name.endswith(".mindir"):
        assert len(data) > 1000, path
    else:
        raise AssertionError(f"{path}: a file that no check knows")


def _sha256(data):
    import hashlib

    return hashlib.sha256(data).hexdigest()


def same_weights(a, b):
    """Two checkpoints, bit by bit."""
    first, second = ckpt.load_arrays(a), ckpt.load_arrays(b)
    assert first.keys() == second.keys()
    for name in first.keys() - {"__meta__"}:  # a training state's counters, and how long its epochs took
        assert np.array_equal(first[name], second[name]), (a, name)


def timeless(value):
    """A JSON value without what depends on the clock or on where it was written."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in CLOCK}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def log(folder):
    """A training's log without the clock."""
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def one_line(said):
    """What a user sees of a stopped run: one line that says why, no traceback.

    Notes of the run (which begin with a path, ``note:`` or a progress bar) may come before it.
    """
    assert "Traceback" not in said and "Error:" not in said, said[-3000:]
    lines = [line for line in said.replace("\r", "\n").split("\n") if line.startswith(("error: ", "stopped by Ctrl-C"))]
    assert len(lines) == 1, said[-3000:]
    return lines[0]


def generator(seed):
    """The random generator of the moments."""
    return random.Random(seed)
