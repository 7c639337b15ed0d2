"""A linear layer on a frozen tower: the chain that both classes pass, the weights, the file."""

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file  # noqa: E402

from aidet import images  # noqa: E402
from aidet.errors import UserError  # noqa: E402
from convert.training import probe  # noqa: E402


def picture(seed, size=(320, 256)):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


class Tower(torch.nn.Module):
    """Mean and spread of the three channels: six features."""

    def forward(self, x):
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """Generated pictures are brighter; a row of split test must not be touched."""
    monkeypatch.setattr(probe, "tower", lambda source, drop=(): (Tower().eval(), images.Pipeline("decode | to_float")))
    lines = ["path,label,generator,split"]
    for i in range(28):
        fake, split = i % 2, "val" if i >= 24 else "train"
        image = picture(i).point(lambda v, up=fake: min(255, v // 2 + 120 * up))
        image.save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{fake},{'g' if fake else 'r'}{i % 4},{split}")
    lines.append("missing.png,1,g,test")
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_layer_separates_what_it_was_fitted_on_and_runs_again_from_its_features(labels, tmp_path, capsys):
    out, kept = tmp_path / "head.safetensors", tmp_path / "kept.npz"
    flags = ["tower", "--labels", str(labels), "--features", str(kept), "--out", str(out)]
    probe.main(flags)
    assert f"val {tmp_path.name}: AUC 1.0000" in capsys.readouterr().out
    arrays, first = load_file(out), out.read_bytes()
    assert {k: (v.shape, v.dtype.name) for k, v in arrays.items()} == {
        "classifier.weight": ((1, 6), "float32"),
        "classifier.bias": ((1,), "float32"),
    }
    labels.unlink()  # everything is in the file of features
    probe.main(flags)
    assert out.read_bytes() == first


def test_the_layer_takes_features_as_the_tower_gives_them():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = rng.normal(0, 1, (400, 3)) * [1, 50, 0.01] + [5, -300, 2]
    x[:, 1] += 100 * y
    layer, bias = probe.fit(x, y, np.where(y, "g", "r"), 0.1)
    found = x @ layer + bias
    assert ((found > 0) == (y == 1)).mean() > 0.75
    assert abs(layer[1] * 50) > 5 * abs(layer[0])
    with pytest.raises(UserError, match="needs real and generated"):
        probe.fit(x, np.ones(400, int), np.full(400, "g"), 0.1)


def test_a_frequent_source_does_not_outweigh_a_rare_one():
    """Ninety easy pictures and ten of a source that lies on the other side: with equal rows it would be given up."""
    x = np.r_[np.full(90, -1.0), np.full(10, 0.6), np.full(100, 0.5)][:, None]
    y = np.r_[np.zeros(100), np.ones(100)].astype(int)
    kinds = np.array(["a"] * 90 + ["b"] * 10 + ["g"] * 100)
    weighed, equal = (probe.fit(x, y, k, 1.0) for k in (kinds, np.array(["a"] * 100 + ["g"] * 100)))

    def at(found):
        return 0.6 * found[0][0] + found[1]

    assert at(weighed) < at(equal) - 0.2


def test_the_chain_is_reproducible_and_leaves_room_for_the_input():
    for seed in range(12):
        first, again = (probe.chain(picture(seed), np.random.default_rng(seed), True) for _ in range(2))
        assert np.array_equal(np.asarray(first), np.asarray(again)) and min(first.size) >= probe.SIDE - 8
    assert probe.shrunk(picture(1)).shape == (probe.SIDE, probe.SIDE, 3)
