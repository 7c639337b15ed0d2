"""Convolutions as matrix products, and GELU: the same numbers and gradients, for every geometry."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from test_train import data, fitted, rows  # noqa: F401 - data is a fixture

from aidet import models, runtime
from aidet.training import activations, convolutions


class Gradients(nn.Cell):
    """Gradients by the input and by every weight, for a given one of the output."""

    def __init__(self, net):
        super().__init__()
        self.net, self.weights = net, ms.ParameterTuple(net.trainable_params())
        self.gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)

    def construct(self, x, by):
        return self.gradient(self.net, self.weights)(x, by)


def conv(size, bias, channels=6, out=6, group=6, **settings):
    ms.set_seed(0)
    random = {"weight_init": "normal", "bias_init": "ones"}
    return nn.Conv2d(channels, out, group=group, kernel_size=size, has_bias=bias, **random, **settings)


def pair(size, bias, kind, **settings):
    """The same convolution twice, the second one sped up; its weights keep their names."""
    plain, fast = (conv(size, bias, **settings) for _ in range(2))
    names = [p.name for p in fast.get_parameters()]
    assert convolutions.speed_up(fast) == {"depthwise": 0, "full": 0, kind: 1}
    assert [p.name for p in fast.get_parameters()] == names
    return plain, fast


def same(plain, fast, image):
    """The two networks give the same output and the same gradients by input and weights, to rounding."""
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((3, plain.in_channels, *image)).astype(np.float32))
    want, found = plain(x).asnumpy(), fast(x).asnumpy()
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, atol=2e-6 * np.abs(want).max())
    by = Tensor(rng.standard_normal(want.shape).astype(np.float32))
    (want_x, want_w), (found_x, found_w) = (Gradients(net)(x, by) for net in (plain, fast))
    assert len(found_w) == len(want_w) == 1 + plain.has_bias
    for a, b in zip((*found_x, *found_w), (*want_x, *want_w)):
        np.testing.assert_allclose(a.asnumpy(), b.asnumpy(), atol=2e-6 * np.abs(b.asnumpy()).max())


@pytest.mark.parametrize(
    "image, size, settings, taken",
    [
        ((8, 8), 3, {"pad_mode": "pad", "padding": 1}, 8),  # the whole map
        ((7, 9), 3, {"pad_mode": "pad", "padding": 1, "stride": 2}, 4),
        ((5, 5), 5, {"pad_mode": "pad", "padding": 2}, 5),
        ((1, 1), 5, {"pad_mode": "pad", "padding": 2}, 1),
        ((5, 5), 3, {"pad_mode": "same", "stride": 2}, 3),
        ((6, 4), (1, 3), {"pad_mode": "valid"}, 6),
        ((12, 20), 5, {"pad_mode": "pad", "padding": 2}, 2),  # two rows at a time
        ((14, 14), 7, {"pad_mode": "pad", "padding": 3}, 2),
        ((16, 16), 3, {"pad_mode": "same"}, 2),
        ((20, 14), (3, 5), {"pad_mode": "valid"}, 2),
        ((16, 16), 4, {"pad_mode": "pad", "padding": (1, 2, 0, 3)}, 2),
        ((9, 16), 2, {"pad_mode": "valid"}, 2),
        ((13, 13), 3, {"pad_mode": "same"}, 0),  # the convolution itself: an odd number of rows
        ((32, 32), 3, {"pad_mode": "pad", "padding": 1, "stride": 2}, 0),  # stride
        ((10, 60), 3, {"pad_mode": "pad", "padding": 1}, 0),  # width
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_products_give_the_convolutions_numbers_and_gradients(image, size, settings, taken, bias):
    runtime.setup("CPU", mode="graph")
    plain, fast = pair(size, bias, "depthwise", **settings)
    assert convolutions._geometry(image, fast.kernel_size, fast.stride, fast.edges)[2] == taken
    same(plain, fast, image)


@pytest.mark.parametrize(
    "image, size, settings, few",
    [
        ((2, 2), 3, {"pad_mode": "pad", "padding": 1}, True),
        ((1, 1), 3, {"pad_mode": "same"}, True),
        ((1, 1), 1, {"pad_mode": "pad"}, True),
        ((2, 2), 1, {"pad_mode": "valid"}, True),
        ((4, 3), 1, {"pad_mode": "valid", "stride": 2}, True),
        ((4, 4), 3, {"pad_mode": "pad", "padding": 1, "stride": 2}, True),
        ((3, 4), 3, {"pad_mode": "same", "stride": 2}, True),
        ((7, 7), 7, {"pad_mode": "valid"}, True),
        ((5, 2), (3, 1), {"pad_mode": "pad", "padding": (1, 0, 0, 1), "stride": (2, 3)}, True),
        ((3, 3), 3, {"pad_mode": "pad", "padding": 1}, False),  # nine places
        ((32, 32), 16, {"pad_mode": "valid", "stride": 16}, False),  # few, but of a large map: ViT's patches
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_few_places_give_the_convolutions_numbers_and_gradients(image, size, settings, few, bias):
    runtime.setup("CPU", mode="graph")
    plain, fast = pair(size, bias, "full", out=10, group=1, **settings)
    assert convolutions._outputs(image, fast.kernel_size, fast.stride, fast.edges)[2] == few
    same(plain, fast, image)


@pytest.mark.parametrize(
    "image, size, settings, turned",
    [
        ((9, 12), 3, {"pad_mode": "pad", "padding": 1}, True),
        ((9, 12), 4, {"pad_mode": "same"}, True),
        ((9, 12), 5, {"pad_mode": "valid"}, True),
        ((12, 9), (2, 5), {"pad_mode": "pad", "padding": (0, 1, 4, 2)}, True),
        ((9, 12), 2, {"pad_mode": "pad", "padding": 2}, False),  # more padding than kernel
        ((9, 12), 3, {"pad_mode": "same", "stride": 2}, False),
        ((9, 12), 1, {"pad_mode": "valid"}, False),
        ((9, 12), 3, {"pad_mode": "same", "channels": 6}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_the_gradient_by_the_input_as_a_convolution_is_the_same(image, size, settings, turned, bias):
    runtime.setup("CPU", mode="graph")
    plain, fast = pair(size, bias, "full", **{"channels": 16, "out": 20, "group": 1, **settings})
    assert isinstance(fast.conv, convolutions.Turned) == turned
    same(plain, fast, image)


def test_only_these_convolutions_are_taken():
    def make(channels, out, group, **settings):
        return nn.Conv2d(channels, out, 3, group=group, pad_mode="same", **settings)

    others = [make(6, 6, 3), make(6, 12, 6), make(6, 6, 6, dilation=2), make(6, 6, 1, dilation=2)]
    others.append(nn.Conv2d(6, 6, 1, group=6))
    net = nn.SequentialCell([*others, make(6, 6, 6), make(6, 6, 1), make(1, 1, 1)])
    assert convolutions.speed_up(net) == {"depthwise": 1, "full": 2}
    kinds = [nn.Conv2d] * len(others) + [convolutions.Depthwise, convolutions.Full, convolutions.Full]
    assert [type(cell) for cell in net] == kinds
    assert convolutions.speed_up(net) == {"depthwise": 0, "full": 0}
    for name, count in (("efficientnet_b0", 16), ("convnext_tiny", 18), ("efficientnet_lite0", 16), ("resnet18", 0)):
        assert convolutions.speed_up(models.create(name, num_classes=2))["depthwise"] == count


def test_gelu_and_its_gradient_are_exact():
    x = np.array([[-40.0, -6.0, -1.0, -1e-3, 0.0, 1e-3, 0.5, 1.0, 6.0, 40.0]], np.float32)
    cdf = np.array([[math.erfc(-v / math.sqrt(2)) / 2 for v in x[0].astype(float)]])
    slope = cdf + x * np.exp(-(x.astype(float) ** 2) / 2) / math.sqrt(2 * math.pi)
    net = nn.SequentialCell([nn.GELU(approximate=False), nn.GELU(approximate=True)])
    assert activations.speed_up(net) == 1  # the approximation by tanh stays
    fast = net[0]
    by = np.linspace(-2, 2, 10, dtype=np.float32)[None]
    found = ops.GradOperation(sens_param=True)(fast)(Tensor(x), Tensor(by)).asnumpy()
    np.testing.assert_allclose(fast(Tensor(x)).asnumpy(), x * cdf, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found, by * slope, rtol=1e-6, atol=1e-6)


def test_a_training_run_has_the_same_curve_with_and_without(data, tmp_path, monkeypatch):  # noqa: F811
    # A network without batch normalisation: statistics of a few places make a thousand times as much of rounding.
    settings = {"model": "convnext_v2_atto", "epoch_size": 1, "opt": "momentum", "lr": 0.01}
    settings["transform"] = "random_crop(16) | resize((64, 64)) | normalize(half)"
    settings["transform_eval"] = "resize((64, 64)) | normalize(half)"
    taken = []
    for module in (convolutions, activations):
        plain = module.speed_up
        monkeypatch.setattr(module, "speed_up", lambda net, plain=plain: taken.append(plain(net)))
    fitted(data, tmp_path / "fast", **settings)
    for module in (convolutions, activations):
        monkeypatch.setattr(module, "speed_up", lambda net: taken.append(0))
    fitted(data, tmp_path / "plain", **settings)
    assert taken == [{"depthwise": 12, "full": 4}, 12, 0, 0]
    a, b = (np.array([float(r["loss"]) for r in rows(tmp_path / n / "steps.csv")]) for n in ("fast", "plain"))
    assert len(a) > 3 and np.allclose(a, b, atol=1e-5) and np.ptp(a) > 0.1
