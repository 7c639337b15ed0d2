"""The PyTorch twin of ``aidet/models/partial.py``: the same layers under the same numbers, so that names translate.

MindSpore calls the four tensors of a batch normalisation ``gamma, beta, moving_mean, moving_variance``; all other
names are equal. :func:`to_arrays` and :func:`load_arrays` translate, and both are strict.
"""

from typing import Any, Dict, List, Mapping, Sequence

import numpy as np

from aidet.errors import UserError

# expand ratio, kernel, stride, output width, repeats of the five stages of EfficientNet-Lite0 down to stride 16
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3))
EPS = 1e-3


def network() -> Any:
    """PyTorch module with random weights; (N, 3, H, W) in [-1, 1] -> logits (N, 2), map (N, H / 16, W / 16)."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Same(nn.Conv2d):
        """Convolution with TensorFlow's padding."""

        def forward(self, x):
            pads: List[int] = []
            for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1]):
                total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
                pads += [total // 2, total - total // 2]
            if pads[0] == pads[1] == pads[2] == pads[3]:
                return F.conv2d(x, self.weight, self.bias, self.stride, pads[0], self.dilation, self.groups)
            return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def unit(cin, cout, kernel=1, stride=1, group=1, act=True):
        cells = [Same(cin, cout, kernel, stride, groups=group, bias=False), nn.BatchNorm2d(cout, eps=EPS)]
        return cells + ([nn.ReLU6(True)] if act else [])

    class Residual(nn.Module):
        def __init__(self, block, residual):
            super().__init__()
            self.block, self.residual = nn.Sequential(*block), residual

        def forward(self, x):
            return x + self.block(x) if self.residual else self.block(x)

    def mbconv(cin, cout, expand, kernel, stride):
        mid = cin * expand
        cells = unit(cin, mid) if expand != 1 else []
        cells += unit(mid, mid, kernel, stride, mid) + [nn.Identity()] + unit(mid, cout, act=False)
        return Residual(cells, stride == 1 and cin == cout)

    class Residue(nn.Module):
        def __init__(self):
            super().__init__()
            self.high_pass = Same(3, 9, 5, groups=3, bias=False)
            self.layers = nn.Sequential(
                *unit(9, 24, 3, 2), *unit(24, 32, 3, 2), *unit(32, 48, 3, 2), *unit(48, 64, 3, 2)
            )
            self.high_pass.weight.requires_grad_(False)

        def forward(self, x):
            r = F.relu6(self.high_pass(x) + 3.0) - 3.0
            return self.layers(r), torch.log(F.avg_pool2d(r.abs(), 16) + 0.01)

    class Partial(nn.Module):
        def __init__(self):
            super().__init__()
            cells, width = unit(3, 32, 3, 2), 32
            for expand, kernel, stride, cout, repeats in STAGES:
                stage = []
                for i in range(repeats):
                    stage.append(mbconv(width, cout, expand, kernel, stride if i == 0 else 1))
                    width = cout
                cells.append(nn.Sequential(*stage))
            self.features = nn.Sequential(*cells)
            self.residue = Residue()
            self.fine = nn.Sequential(*unit(24, 32))
            self.middle = nn.Sequential(*unit(40, 48))
            self.coarse = nn.Sequential(*unit(112, 64))
            self.local = nn.Conv2d(217, 96, 1)
            self.whole = nn.Conv2d(217, 96, 1, bias=False)
            self.join = nn.Sequential(nn.BatchNorm2d(96, eps=EPS), nn.ReLU6(True), *unit(96, 96, 3), *unit(96, 96, 3))
            self.cell = nn.Conv2d(96, 1, 1)
            self.pooling = nn.Parameter(torch.tensor([0.6931472, 1.0, 2.0]))

        def maps(self, x):
            """Logits of the cells, and of the images."""
            frozen = torch.no_grad() if not self.features[4][0].block[0].weight.requires_grad else torch.enable_grad()
            with frozen:
                fine = self.features[:5](x)
            middle = self.features[5](fine)
            coarse = self.features[6:](middle)
            traces, energy = self.residue(x)
            y = torch.cat(
                [
                    F.avg_pool2d(self.fine(fine), 4),
                    F.avg_pool2d(self.middle(middle), 2),
                    self.coarse(coarse),
                    traces,
                    energy,
                ],
                1,
            )
            y = self.local(y) + self.whole(y.mean((2, 3), keepdim=True))
            cells = self.cell(self.join(y))[:, 0]
            return cells, self.pooled(cells)

        def pooled(self, cells):
            sharpness = self.pooling[0].exp()
            flat = cells.flatten(1) * sharpness
            value = (torch.logsumexp(flat, 1) - float(np.log(flat.shape[1]))) / sharpness
            return value * self.pooling[1] + self.pooling[2]

        def forward(self, x):
            cells, score = self.maps(x)
            return torch.stack([-score / 2, score / 2], 1), cells

    net = Partial()
    net.residue.high_pass.weight.data.copy_(torch.from_numpy(high_pass()))
    return net


def high_pass() -> np.ndarray:
    """The fixed kernels: float32 (9, 1, 5, 5), three second differences per colour, scaled for input in [-1, 1]."""
    kernels = np.zeros((3, 5, 5), np.float32)
    kernels[0, 1:4, 1:4] = [[-1, 2, -1], [2, -4, 2], [-1, 2, -1]]
    kernels[0] *= 8.0
    kernels[1, 2, 1:4] = kernels[2, 1:4, 2] = [16, -32, 16]
    return np.tile(kernels, (3, 1, 1))[:, None]


_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_OWN = {"pooling": "pool.pooling"}


def names(net: Any) -> Dict[str, str]:
    """MindSpore's name of every tensor of the module, by PyTorch's."""
    import torch

    norms = {n for n, m in net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    result = {}
    for key in net.state_dict():
        layer, _, kind = key.rpartition(".")
        if kind != "num_batches_tracked":
            result[key] = f"{layer}.{_NORM[kind]}" if layer in norms else _OWN.get(key, key)
    return result


def to_arrays(net: Any, dtype: Any = np.float32) -> Dict[str, np.ndarray]:
    """The tensors under MindSpore's names."""
    state = net.state_dict()
    return {new: state[old].detach().cpu().numpy().astype(dtype) for old, new in names(net).items()}


def load_arrays(net: Any, arrays: Mapping[str, np.ndarray], only: Sequence[str] = ("",)) -> None:
    """Load tensors under MindSpore's names; of the names that start with one of ``only`` none may be missing.

    Raises
    ------
    UserError
        A tensor is missing, or has another shape.
    """
    import torch

    state = net.state_dict()
    for old, new in names(net).items():
        if not new.startswith(tuple(only)):
            continue
        if new not in arrays or tuple(arrays[new].shape) != tuple(state[old].shape):
            raise UserError(
                f"tensor {new!r} of shape {tuple(state[old].shape)} is missing in the weights to start from"
            )
        state[old].copy_(torch.from_numpy(np.array(arrays[new], np.float32)))
