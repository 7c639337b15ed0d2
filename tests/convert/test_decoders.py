"""Random little autoencoders: what is drawn, and the pairs that are written."""

import csv

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from convert.training import decoders, partial


def smooth(seed, side=144):
    """A picture with structure of several sizes, uint8 (side, side, 3)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def test_every_kind_is_drawn_but_the_one_that_tests_are_made_with():
    drawn = [decoders.drawn(np.random.default_rng([3, k])) for k in range(300)]
    kinds = {(d["stride"], d["upsampling"]) for d in drawn}
    assert (4, "nearest") not in kinds
    assert kinds == {(s, u) for s in (2, 4, 8) for u in decoders.CHOICES["upsampling"]} - {(4, "nearest")}


@pytest.mark.parametrize("k", range(4))
def test_a_net_keeps_the_size_and_bottlenecks_by_its_stride(k):
    import torch

    chosen = {**decoders.drawn(np.random.default_rng(k)), "upsampling": decoders.CHOICES["upsampling"][k], "stride": 8}
    net = decoders.network(chosen).eval()
    x = torch.rand(1, 3, 64, 48)
    assert net(x).shape == x.shape
    assert net.encoder(x).shape == (1, chosen["latent_channels"], 8, 6)


def test_training_brings_the_reconstruction_closer():
    chosen = {
        "stride": 2, "upsampling": "shuffle", "activation": "SiLU", "loss": "absolute", "bottleneck": "rounded",
        "width": 12, "latent_channels": 4,
    }  # fmt: skip
    pool = [smooth(k) for k in range(3)]

    def error(net):
        return np.mean([np.abs(decoders.reconstructed(net, p).astype(int) - p).mean() for p in pool])

    start = error(decoders.trained(chosen, pool, 0, 2e-3, 1))
    assert error(decoders.trained(chosen, pool, 40, 1e-2, 1)) < 0.7 * start


def test_the_pairs_are_read_by_the_localizer_s_training(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(3):
        Image.fromarray(smooth(k, 150)).save(photos / f"{k}.png")
    out = tmp_path / "pairs"
    decoders.main(["--images", str(photos), "--out", str(out), "--count", "2", "--each", "2", "--steps", "2"])
    pairs = partial.read_pairs(str(out))
    assert len(pairs) == 4
    originals = [np.asarray(Image.open(photos / f"{k}.png")) for k in range(3)]
    for real, fake, mask in pairs:
        assert mask is None and real.shape == fake.shape == (144, 144, 3)
        assert not np.array_equal(real, fake)
        windows = [o[y : y + 144, x : x + 144] for o in originals for y in range(7) for x in range(7)]
        assert any(np.array_equal(real, w) for w in windows)  # the photograph's own pixels
    with open(out / "decoders.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["photographs"] for row in table] == ["2", "2"]
