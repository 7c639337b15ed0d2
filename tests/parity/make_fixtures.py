"""Write the small PyTorch files that the torch-free tests read: ``python tests/parity/make_fixtures.py``."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parents[1] / "data" / "convert"


def tensors():
    """Every storage type, strided and shared storages, scalars, empty tensors, a parameter, a wrapper."""
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    state = OrderedDict()
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        state[f"float.{str(dtype)[6:]}"] = torch.randn(3, 5).to(dtype)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        state[f"int.{str(dtype)[6:]}"] = torch.randint(0, 100, (2, 3)).to(dtype)
    state["bool"] = torch.tensor([True, False, True])
    state["complex"] = torch.randn(3, dtype=torch.complex64)
    state["shared.whole"], state["shared.transposed"] = base, base.t()
    state["shared.slice"], state["shared.step"] = base[1:3, 2:], base[:, ::2]
    state["shared.expanded"] = base[:1, :3].expand(4, 3)
    state["scalar"], state["empty"] = torch.tensor(7), torch.zeros(0, 3)
    state["parameter"] = torch.nn.Parameter(torch.ones(2))
    return state


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    state = tensors()
    wrapped = {
        "state_dict": state,
        "epoch": 3,
        "lr": 1e-3,
        "best": (0.5, None),
        "names": ["a", "b"],
        "flags": {True, False},
    }
    torch.save(wrapped, FOLDER / "zip.pth")
    torch.save(wrapped, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(state, FOLDER / "protocol4.pth", pickle_protocol=4)
    expected = {
        k: (v.float() if v.dtype == torch.bfloat16 else v).detach().contiguous().numpy() for k, v in state.items()
    }
    np.savez_compressed(FOLDER / "expected.npz", **expected)
    torch.save(torch.nn.Linear(2, 2), FOLDER / "whole_model.pth")


if __name__ == "__main__":
    main()
