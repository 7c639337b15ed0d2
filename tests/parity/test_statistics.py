"""Statistics of batch normalisation computed anew: the mean over batches, and nothing else of a network changes."""

import numpy as np
import pytest
import torch

from convert.training import statistics

pytestmark = pytest.mark.parity


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
