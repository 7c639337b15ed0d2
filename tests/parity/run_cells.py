"""Measure one cell: build the original, run the real command line, compare the loaded checkpoint with the original."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments):
    """Run ``python -m convert`` as a user would."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "convert", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def measure(cell, folder, apart=True):
    """Convert and compare.

    Parameters
    ----------
    cell : cells.Cell
    folder : Path
        Empty.
    apart : bool
        Run the command in its own process, as a user does; otherwise call the same entry point in this process.

    Returns
    -------
    dict
        As :func:`convert.parity.compare.compare`, plus the detected ``architecture`` and ``layout``, the checkpoint's
        path, and ``own``: the error of PyTorch's own float32 result against float64, relative to the same scale.
    """
    from cells import inputs, output, own_inputs

    from aidet import ckpt, runtime
    from convert.parity import compare

    (folder / "source").mkdir()
    model, path = cell.make(folder / "source")
    destination = folder / "out.ckpt"
    arguments = [str(path), str(destination), "--verify", "tensors", *cell.flags]
    if apart:
        done = command(*arguments)
        assert done.returncode == 0, done.stderr[-1500:]
    else:
        from convert.__main__ import run

        with contextlib.redirect_stdout(io.StringIO()):
            run(arguments)
    x = inputs(cell)
    theirs = output(model, x)
    runtime.setup(device="CPU", mode="pynative")
    net = ckpt.load_model(destination)
    sidecar = ckpt.read_sidecar(destination)
    ours, _ = compare.run(net, own_inputs(cell, sidecar["input"]["transform"]) if cell.recipe else x)
    exact = output(model.double(), x.astype(np.float64))
    spread = float(np.abs(theirs - theirs.mean(axis=0, keepdims=True)).max()) if len(theirs) > 1 else None
    return {
        **compare.compare(ours, theirs),
        "architecture": sidecar["architecture"],
        "layout": sidecar["source"]["layout"],
        "classes": sidecar["class_order"],
        "path": destination,
        "source": path,
        "spread": spread,
        "own": float(np.abs(theirs - exact).max() / np.abs(exact).max()),
        "std": float(theirs.std()),
    }
