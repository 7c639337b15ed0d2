"""Random initial weights: the deviations that training from scratch relies on."""

import numpy as np
import pytest

from aidet import models


def layers(net, *kinds):
    from mindspore import nn

    return [cell for _, cell in net.cells_and_names() if isinstance(cell, tuple(getattr(nn, kind) for kind in kinds))]


@pytest.mark.parametrize(
    ("name", "arguments", "kinds"),
    [
        ("swin_tiny", {"image_size": 32, "window_size": 4}, ("Dense",)),
        ("swin_v2_tiny", {"image_size": 64, "window_size": 4}, ("Dense",)),
        ("vit", {"width": 64, "depth": 2, "image_size": 32}, ("Dense",)),
        ("convnext_v2_atto", {}, ("Dense", "Conv2d")),
    ],
)
def test_transformers_and_convnext_start_as_timms(name, arguments, kinds):
    for cell in layers(models.create(name, num_classes=64, **arguments), *kinds):
        weight = cell.weight.asnumpy()
        if weight.size >= 1000:
            assert 0.017 < weight.std() < 0.023, cell
        assert not cell.has_bias or not cell.bias.asnumpy().any(), cell


def test_a_head_of_two_classes_starts_small():
    """As wide as 1 / sqrt(outputs), the first logits of two classes were some ten units apart."""
    head = models.create("efficientnet_lite0", num_classes=2).mlp_head.weight.asnumpy()
    assert np.abs(head).max() <= 1 / np.sqrt(head.shape[1])
    wide = models.create("cifake_cnn", num_classes=1, start="he")
    last = layers(wide, "Dense")[-1].weight.asnumpy()
    assert np.abs(last).max() > 2 / np.sqrt(last.shape[1])


def test_the_latents_of_a_random_encoder_tell_pictures_apart():
    import mindspore as ms

    net = models.create("aekl_clf", num_classes=2, latent_size=4, widths=(32, 32, 64, 64), depth=1)
    net.set_train(False)
    x = ms.Tensor(np.random.default_rng(0).random((4, 3, 32, 32)).astype(np.float32))
    latent = net.quant_conv(net.encoder(x))
    assert 0.5 < np.sqrt((latent.asnumpy() ** 2).mean()) < 2
    features = net.flatten(latent[:, :4])
    for cell in list(net.clf)[:-1]:
        features = cell(features)
    assert features.asnumpy().std(0).mean() > 0.05
    # Logits of a random head, half a unit apart, took hundreds of updates to unlearn (LOG.md, 2026-12-01).
    logits = net(x).asnumpy()
    assert 0 < np.abs(logits).max() < 0.1
