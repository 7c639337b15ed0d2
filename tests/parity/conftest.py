"""The parity tests need torch and the original libraries; without torch they are not collected."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
collect_ignore = []
try:
    import torch  # noqa: F401
except ImportError:
    collect_ignore = [p.name for p in Path(__file__).parent.glob("test_*.py")]


@pytest.fixture(autouse=True)
def _threads():
    import torch

    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _memory():
    """Return the memory of each test's networks to the system; freed weights in small pieces would stay allocated."""
    yield
    import ctypes
    import gc

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
