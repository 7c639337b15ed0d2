"""The net of partly generated pictures in PyTorch and MindSpore: one function under two sets of names."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aidet import ckpt, models
from aidet.errors import UserError

torch = pytest.importorskip("torch")
from convert.training import partial, partial_finish, partial_net  # noqa: E402 - needs torch


@pytest.fixture(scope="module")
def net():
    """Random weights, statistics and pooling included."""
    torch.manual_seed(0)
    made = partial_net.network().eval()
    for key, value in made.state_dict().items():
        if key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
            value.uniform_(0.5, 1.5)
        elif key.endswith("running_mean"):
            value.normal_(0, 0.1)
    with torch.no_grad():
        made.pooling.copy_(torch.tensor([0.7, 1.2, -0.3]))
    return made


def test_both_give_the_same_logits_and_map(net):
    import mindspore as ms

    own = models.create("partial_lite0")
    ckpt.load_strict(own, partial_net.to_arrays(net))
    own.set_train(False)
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 96)).astype(np.float32)
    with torch.inference_mode():
        expected = net(torch.from_numpy(x))
    for ours, theirs in zip(own(ms.Tensor(x)), expected):
        np.testing.assert_allclose(ours.asnumpy(), theirs.numpy(), atol=1e-5)
    assert own.grid == 16 and expected[1].shape == (2, 4, 6)


def test_names_are_strict(net):
    arrays = partial_net.to_arrays(net)
    other = partial_net.network()
    partial_net.load_arrays(other, arrays)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values()))
    missing = {n: a for n, a in arrays.items() if n != "cell.bias"}
    with pytest.raises(UserError, match="'cell.bias'"):
        partial_net.load_arrays(other, missing)
    default = ckpt.load_arrays("ckpt/aidet_default.ckpt")
    partial_net.load_arrays(other, default, ("features.",))
    np.testing.assert_array_equal(other.features[0].weight.detach().numpy(), default["features.0.weight"])


def test_a_pair_is_cropped_and_degraded_alike():
    """Outside of the region the two crops are equal up to compression, and the shares say where they differ."""
    rng = np.random.default_rng(0)
    real = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((256, 256), 2))
    fake = np.clip(real.astype(int) + 60, 0, 255).astype(np.uint8)
    for seed in range(6):
        one, two, share = partial.crops((real, fake, None), 128, np.random.default_rng(seed))
        assert one.shape == two.shape == (128, 128, 3) and share.shape == (8, 8)
        apart = np.abs(one.astype(int) - two).mean(2).reshape(8, 16, 8, 16).mean((1, 3))
        assert np.corrcoef(apart.ravel(), share.ravel())[0, 1] > 0.8
    mask = np.zeros((256, 256), np.uint8)
    assert 0.02 <= partial.region(256, 256, rng).mean() <= 0.6 and not mask.any()


def test_lines_are_chosen_within_the_false_area_allowed():
    rng = np.random.default_rng(0)
    cells, shares, sides = [], [], []
    for k in range(40):
        share = np.zeros((8, 8))
        if k % 2:
            share[2:5, 2:6] = 1
        cells.append(np.clip(0.6 * share + rng.uniform(0, 0.5, (8, 8)), 0, 1))
        shares.append(share)
        sides.append(k % 2)
    found = partial_finish.Found(cells, shares, np.array([c.max() for c in cells]), np.array(sides), [{}] * 40)
    chosen = partial_finish.threshold_of(found, 0.01)
    assert chosen["threshold"] >= 0.49 and chosen["false_area"] <= 0.01 and chosen["f1"] > 0.95
    assert partial_finish.min_area_of(found, 0.25) > partial_finish.min_area_of(found, 0.5) == 0.005
    calibration = partial_finish.calibration_of(found)
    assert calibration["scale"] > 0 and 0.4 < calibration["offset"] < 0.8
    # The level is the photographs' own: pictures with a region, which are brighter, do not move it.
    low = np.median([np.quantile(c, 0.25) for c, side in zip(cells, sides) if not side])
    assert partial_finish.level_of(found) == pytest.approx(np.log(low / (1 - low)), abs=1e-4)
    with pytest.raises(UserError, match="no threshold"):
        partial_finish.threshold_of(found._replace(cells=[np.ones((8, 8))] * 40), 0.01)
    mask = np.zeros((20, 40), np.uint8)
    mask[16:, :8] = 1
    np.testing.assert_allclose(partial_finish.cells_of(mask), [[0, 0, 0], [0.5, 0, 0]])


def test_the_mean_of_two_runs_is_that_of_their_weights(tmp_path):
    arrays = [{"a": np.full((2, 3), v, np.float32), "b": np.full(1, -v, np.float32)} for v in (1.0, 2.0)]
    for name, part in zip("xy", arrays):
        (tmp_path / name).mkdir()
        ckpt.save_arrays(part, tmp_path / name / "model.ckpt")
    found = partial_finish.mean_of([tmp_path / "x", tmp_path / "y"])
    assert found["a"].dtype == np.float16 and (found["a"] == 1.5).all() and found["b"] == -1.5
    ckpt.save_arrays({"a": np.zeros((2, 2), np.float32), "b": np.zeros(1, np.float32)}, tmp_path / "y" / "model.ckpt")
    with pytest.raises(UserError, match="other names or shapes"):
        partial_finish.mean_of([tmp_path / "x", tmp_path / "y"])


def test_lines_of_a_checkpoint_are_chosen_again_and_its_weights_stay(tmp_path, monkeypatch):
    """On twelve pictures of noise and their twins with a plain region; only the sidecar's lines may change."""
    rng, lines = np.random.default_rng(0), ["path,label,split,group,mask,area"]
    for i in range(12):
        array = rng.integers(60, 190, (160, 160, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"{i}_r.png")
        array[32:96, 32:112] = 128
        Image.fromarray(array).save(tmp_path / f"{i}_p.png")
        mask = np.zeros((160, 160), np.uint8)
        mask[32:96, 32:112] = 255
        Image.fromarray(mask).save(tmp_path / f"{i}.png")
        lines += [f"{i}_r.png,0,val,{i},,", f"{i}_p.png,1,val,{i},{i}.png,0.2"]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(partial_finish, "calibration_of", lambda found: {"scale": 1.0, "offset": 0.5, "prior": 0.5})
    monkeypatch.setattr(partial_finish, "threshold_of", lambda *a: {"threshold": 0.4, "f1": 0.5, "false_area": 0.01})
    shipped, out = Path("ckpt/aidet_partial.ckpt"), tmp_path / "again.ckpt"
    partial_finish.main([str(shipped), str(out), "--data", str(tmp_path / "labels.csv")])
    before, after = ckpt.load_arrays(shipped), ckpt.load_arrays(out)
    assert all(after[n].dtype == a.dtype and np.array_equal(after[n], a) for n, a in before.items())
    old, new = ckpt.read_sidecar(shipped), ckpt.read_sidecar(out)
    own = new["localization"]
    assert own["background"]["quantile"] == 0.25 and own["background"]["level"] < 0 and own["threshold"] == 0.4
    assert new["calibration"]["offset"] == 0.5 and own["pooling"] == old["localization"]["pooling"]
    assert all(new[k] == old[k] for k in ("architecture", "source", "parity", "training", "input"))
    with pytest.raises(UserError, match="--mean is for runs"):
        partial_finish.main([str(shipped), str(out), "--data", "x", "--mean", "y"])
