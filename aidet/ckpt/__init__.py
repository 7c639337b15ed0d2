"""Checkpoints: the file format, the sidecar beside them, strict loading, atomic saving."""

from .format import META, load_arrays, write_arrays
from .points import POINTS, Evidence, OperatingPoint
from .sidecar import Sidecar, Voting, check_facts, read_sidecar, sidecar_path
from .weights import compare_names, copy_checkpoint, load_model, load_network, load_strict, save, save_arrays

__all__ = [
    "META", "POINTS", "Evidence", "OperatingPoint", "Sidecar", "Voting", "check_facts", "compare_names",
    "copy_checkpoint", "load_arrays", "load_model", "load_network", "load_strict", "read_sidecar", "save",
    "save_arrays", "sidecar_path", "write_arrays",
]  # fmt: skip
