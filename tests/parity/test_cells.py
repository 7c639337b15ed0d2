"""Every family and layout: the original library's own net with random weights, its real file, the real command line."""

import pytest
from cells import CELLS
from run_cells import measure

from convert.families import family_of

# `make parity` runs a small cell of each family, `make matrix` all of them. The default suite compares every layout
# with stored outputs (tests/convert/test_convert_logits.py).
FIRST = {family_of(c.architecture).name: c.name for c in reversed(CELLS) if c.small}
PARAMETERS = [
    pytest.param(c, id=c.name, marks=[pytest.mark.matrix] + ([pytest.mark.parity] if c.name in FIRST.values() else []))
    for c in CELLS
]
# A cell's name for a layout -> the name that the converter detects; both stand for the same table of rules.
SAME = {("timm", "resnet"): "torchvision", ("npz", "resnet"): "hf", ("npz", "swin"): "hf"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cell", PARAMETERS)
def test_cell(cell, tmp_path):
    result = measure(cell, tmp_path)
    assert result["architecture"] == cell.architecture
    same = [
        to for (layout, family), to in SAME.items() if layout == cell.layout and cell.architecture.startswith(family)
    ]
    assert result["layout"] == (same[0] if same else cell.layout)
    # If the logits did not depend on the image, the comparison would prove nothing.
    assert result["spread"] is None or result["spread"] > 1e-3 * result["scale"]
    assert result["relative"] <= 1e-4, result
    # A state dict saved from a model in memory has no config.json, so no class names.
    if cell.layout.startswith("hf") and result["source"].is_dir():
        # id2label {0: artificial, 1: human}: the class order follows the names.
        assert result["classes"] == ["generated", "real"]
