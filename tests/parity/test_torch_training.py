"""The part of the default detector's recipe that needs PyTorch: continuing a run, and new BatchNorm statistics."""

import numpy as np
import pytest
import torch
from PIL import Image

from aidet import files
from convert.training import detector, statistics

pytestmark = pytest.mark.parity


def run(folder, classes, seed):
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


def test_continuing_with_other_classes_keeps_the_rows_of_those_in_common(tmp_path):
    old = run(tmp_path / "old", ["real", "a", "b"], 0)
    new = run(tmp_path / "new", ["real", "b", "c"], 1)
    out = detector.continued(tmp_path / "old" / "model.safetensors", ["real", "b", "c"], new)
    assert out["conv.weight"].equal(old["conv.weight"])
    for key in ("classifier.weight", "classifier.bias"):
        assert out[key][0].equal(old[key][0]) and out[key][1].equal(old[key][2]) and out[key][2].equal(new[key][2])


def test_the_shipped_checkpoint_can_be_gone_on_from():
    net = detector.network_without_weights(3)
    state = detector.continued("ckpt/aidet_default.ckpt", ["real", "generated_SDXL", "new"], net.state_dict())
    net.load_state_dict(state)
    head = detector.earlier_weights("ckpt/aidet_default.ckpt")[0]["classifier.weight"]
    assert net.classifier.weight[0].equal(head[0]) and net.classifier.weight[2].equal(state["classifier.weight"][2])
    detector.freeze(net.train())
    assert not net.bn1.training and net.blocks[detector.FROZEN][0].bn1.training
    assert not next(net.blocks[1].parameters()).requires_grad and next(net.blocks[2].parameters()).requires_grad


def test_statistics_are_the_mean_over_batches():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5)).eval()
    net[1].running_mean.fill_(7.0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    rng = np.random.default_rng(0)
    batches = [[rng.normal(size=(3, 5, 5)).astype(np.float32) for _ in range(n)] for n in (4, 6)]
    statistics.measure(net, batches)
    with torch.no_grad():
        outputs = [net[0](torch.from_numpy(np.stack(b))) for b in batches]
    mean = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    variance = torch.stack([o.var((0, 2, 3), unbiased=True) for o in outputs]).mean(0)
    assert torch.allclose(net[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(net[1].running_var, variance, atol=1e-6)
    for key, value in net.state_dict().items():
        if "running" not in key and "tracked" not in key:
            assert torch.equal(value, before[key])
    assert not net[2].training  # dropout stays off


def test_a_reconstruction_is_part_of_its_photograph_on_the_grid_of_its_compression(tmp_path):
    rng = np.random.default_rng(5)
    small = Image.fromarray(rng.integers(60, 190, (6, 6, 3), dtype=np.uint8)).resize((420, 420), 3)
    array = np.clip(np.asarray(small, np.int16) + rng.integers(-20, 21, (420, 420, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    row = {"path": tmp_path / "a.png", "label": 0, "set": "s"}
    seen = []

    def lighter(x):
        seen.append(x.shape)
        return x + 0.01

    real, fake = detector.twin(row, "tae", {"tae": lighter}, tmp_path)
    assert real.shape == fake.shape == (detector.SIDE, detector.SIDE, 3) and len(seen) == 1
    places = [(y, x) for y in range(0, 136, 8) for x in range(0, 136, 8) if (array[y, x] == real[0, 0]).all()]
    assert any(np.array_equal(array[y : y + detector.SIDE, x : x + detector.SIDE], real) for y, x in places)
    assert 0 < np.abs(fake.astype(int) - real).mean() < 4
    again = detector.twin(row, "tae", {}, tmp_path)  # from the cache
    assert np.array_equal(again[1], fake)
