"""The recipe of the default detector, the part that needs PyTorch: going on from a run, and averaging runs."""

import numpy as np
import pytest

from aidet import files
from aidet.errors import UserError
from convert.training import average, detector

pytestmark = pytest.mark.parity


def run(folder, classes, seed):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    folder.mkdir()
    state = {
        "conv.weight": torch.randn(4, 3, 3, 3), "bn.num_batches_tracked": torch.tensor(7),
        "classifier.weight": torch.randn(len(classes), 4), "classifier.bias": torch.randn(len(classes)),
    }  # fmt: skip
    save_file(state, folder / "model.safetensors")
    files.write_json(folder / "config.json", {"label_names": classes})
    return state


def test_going_on_with_other_classes_keeps_their_rows(tmp_path):
    old = run(tmp_path / "old", ["real", "a", "b"], 0)
    new = run(tmp_path / "new", ["real", "b", "c"], 1)
    out = detector.continued(tmp_path / "old" / "model.safetensors", ["real", "b", "c"], new)
    assert out["conv.weight"].equal(old["conv.weight"])
    for key in ("classifier.weight", "classifier.bias"):
        assert out[key][0].equal(old[key][0]) and out[key][1].equal(old[key][2]) and out[key][2].equal(new[key][2])


def test_the_average_of_runs_is_their_mean_in_half_precision(tmp_path):
    from safetensors.torch import load_file

    states = [run(tmp_path / name, ["real", "a"], seed) for name, seed in (("x", 0), ("y", 1))]
    average.main([str(tmp_path / "x"), str(tmp_path / "y"), "--out", str(tmp_path / "out")])
    mean = load_file(tmp_path / "out" / "model.safetensors")
    wanted = (states[0]["conv.weight"].numpy() + states[1]["conv.weight"].numpy()) / 2
    np.testing.assert_allclose(mean["conv.weight"].float().numpy(), wanted, rtol=1e-3, atol=1e-6)
    assert str(mean["conv.weight"].dtype) == "torch.float16" and mean["bn.num_batches_tracked"].item() == 7
    run(tmp_path / "z", ["real", "b"], 2)
    with pytest.raises(UserError, match="other classes"):
        average.main([str(tmp_path / "x"), str(tmp_path / "z"), "--out", str(tmp_path / "out")])
