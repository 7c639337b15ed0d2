"""The parity tests need torch and the libraries; where they are missing every test here is skipped with the reason."""

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
    """Give each test's networks back to the system: hundreds of millions of weights in small pieces stay otherwise."""
    yield
    import ctypes
    import gc

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
