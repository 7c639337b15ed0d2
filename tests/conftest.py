"""Shared fixtures. Reference material outside the repository is optional: tests that need it skip with a reason."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aidet import runtime

# Before any test module imports MindSpore: set the environment as the command lines do, to get the same numbers.
runtime.prepare()

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared():
    """Folder with real data and weights, which exists on the development machines but not on a user's."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the shared reference material (../shared) is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def run():
    """Run a command line of the project as a user would; returns the finished process (returncode, stdout, stderr)."""

    def call(*arguments, cwd=ROOT, env=None, timeout=600):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, timeout=timeout, capture_output=True, text=True)

    return call


@pytest.fixture
def photo():
    """A function that makes a textured RGB image: seed and size in, PIL image out."""

    def make(seed=0, size=(96, 80)):
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize(size, Image.Resampling.BICUBIC), np.int16)
        grain = rng.integers(-12, 13, smooth.shape)
        return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))

    return make
