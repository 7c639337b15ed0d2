"""Maps of what a network uses: with planted evidence, they peak at the evidence."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops
from PIL import Image

from aidet import Detector, ckpt, models, runtime
from aidet.detector import explain
from aidet.images import ImageError, Pipeline, reading
from aidet.models import vit

BOTH = ("real", "generated")


@pytest.fixture(autouse=True)
def eager():
    runtime.setup("CPU", mode="pynative", seed=0)


class Planted(nn.Cell):
    """Looks for red (generated) and for blue (real), patch by patch."""

    def __init__(self, head="mean", outputs=2, last=False):
        super().__init__()
        weight = np.zeros((2, 3, 4, 4), np.float32)
        weight[0, 0], weight[0, 1], weight[1, 2], weight[1, 1] = 1, -1, 1, -1
        self.conv = nn.Conv2d(3, 2, 4, 4, pad_mode="valid", weight_init=ms.Tensor(weight))
        self.relu, self.flatten, self.last = nn.ReLU(), nn.Flatten(), last
        self.same = nn.Identity()
        places = 1 if head == "mean" else 64
        dense = np.zeros((outputs, 2 * places), np.float32)
        dense[-1, :places] = 1  # red: generated
        if outputs > 1:
            dense[0, places:] = 1  # blue: real
        else:
            dense[0, places:] = -1
        self.head, self.dense = head, nn.Dense(2 * places, outputs, weight_init=ms.Tensor(dense))

    def construct(self, x):
        x = self.relu(self.conv(x))
        if self.last:
            x = self.same(ops.transpose(x, (0, 2, 3, 1)))
            return self.dense(x.mean((1, 2)))
        return self.dense(x.mean((2, 3)) if self.head == "mean" else self.flatten(x))


def picture():
    """Grey, with a red patch in row 1, column 6 and a blue one in row 5, column 2 of 8 x 8 patches."""
    x = np.full((3, 32, 32), 0.5, np.float32)
    x[:, 4:8, 24:28] = [[[1]], [[0]], [[0]]]
    x[:, 20:24, 8:12] = [[[0]], [[0]], [[1]]]
    return x


def peaks(heat):
    return np.unravel_index(heat.argmax(), heat.shape), np.unravel_index(heat.argmin(), heat.shape)


@pytest.mark.parametrize(
    ("net", "order"),
    [
        ({}, BOTH),
        ({"head": "flat"}, BOTH),
        ({"last": True}, BOTH),  # channels last, as in Swin
        ({"outputs": 1}, ("generated",)),
        ({"outputs": 3}, ("real", "real", "generated")),
    ],
)
def test_grad_cam_peaks_at_the_planted_patches(net, order):
    heat, method = explain.Explainer(Planted(**net).set_train(False), order)(picture())
    assert method == "Grad-CAM" and heat.shape == (8, 8)
    assert peaks(heat) == ((1, 6), (5, 2))
    others = np.delete(heat.reshape(-1), [14, 42])
    assert heat[1, 6] > 0 > heat[5, 2] and np.abs(others).max() < 1e-6


def test_the_sign_follows_the_class_order():
    turned, _ = explain.Explainer(Planted().set_train(False), BOTH[::-1])(picture())
    assert peaks(turned) == ((5, 2), (1, 6))


def test_grad_cam_is_gradient_times_map():
    net = models.create("testing", num_classes=2).set_train(False)
    x = np.random.default_rng(0).normal(size=(3, 24, 24)).astype(np.float32)
    heat, _ = explain.Explainer(net, BOTH)(x)
    # The head is linear after a mean over positions, so the map adds up to the score without the biases.
    logits = net(ms.Tensor(x[None])).asnumpy()[0].astype(float)
    bias = net.classifier.bias.asnumpy().astype(float)
    assert heat.shape == (6, 6)
    assert heat.sum() == pytest.approx((logits[1] - bias[1]) - (logits[0] - bias[0]), rel=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "squeezenet1_0", "convnext_tiny", "swin_tiny"])
@pytest.mark.torture
def test_architectures_have_a_map(name):
    heat, method = explain.Explainer(models.create(name, num_classes=2).set_train(False), BOTH)(
        np.random.default_rng(0).normal(size=(3, 224, 224)).astype(np.float32)
    )
    assert method == "Grad-CAM" and min(heat.shape) >= 6 and np.isfinite(heat).all() and np.ptp(heat) > 0


# --- roll-out --------------------------------------------------------------------------------------------------------
@pytest.fixture
def looking(monkeypatch):
    """A vision transformer in which all tokens attend to bright patches: 64 pixels, 4 x 4 patches, width 192."""

    def make(distilled=None):
        net = vit.ViT("t", image_size=64, num_classes=2, distilled=distilled).set_train(False)
        for p in net.get_parameters():
            value = np.zeros(p.shape, np.float32)
            if p.name.endswith("gamma"):
                value += 1
            elif p.name == "patch_embed.proj.weight":
                value[0] = 1 / value[0].size  # the first channel is the patch's brightness
            elif p.name.endswith("qkv.bias"):
                value[:192:64] = 1  # every query looks for brightness, in every head
            elif p.name.endswith("qkv.weight"):
                value[192:384:64, 0] = 1  # and the keys contain it
            p.set_data(ms.Tensor(value))
        return net

    return make


@pytest.mark.parametrize("distilled", [None, "token", "heads"])
def test_rollout_peaks_where_the_tokens_look(looking, distilled):
    x = np.zeros((3, 64, 64), np.float32)
    x[:, 32:48, 16:32] = 1
    heat, method = explain.Explainer(looking(distilled), BOTH)(x)
    assert method == "attention roll-out" and heat.shape == (4, 4)
    assert np.unravel_index(heat.argmax(), heat.shape) == (2, 1)
    others = np.delete(heat.reshape(-1), 9)
    assert others.max() < 0.1 * heat.max() and heat.min() == 0


def test_rollout_by_hand():
    """Two layers over a class token and 2 x 1 patches."""
    first = np.array([[[0, 1, 0], [0, 1, 0], [0, 0, 1]]], float)  # the class token takes patch 1
    second = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1]]], float)
    assert explain.rollout([first, second], [(2, 1)]).tolist() == [[0.5], [0.0]]
    late = np.array([[[0, 0, 1], [0, 1, 0], [0, 1, 0]]], float)  # patch 2, which has taken half of patch 1 before
    earlier = np.array([[[1, 0, 0], [0, 1, 0], [0, 1, 0]]], float)
    assert explain.rollout([earlier, late], [(9, 9), (2, 1)]).reshape(-1) == pytest.approx([0, 0])
    with pytest.raises(explain.NoMap, match="3 tokens"):
        explain.rollout([first], [(9, 9)])


# --- over the whole image, and through a detector --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "size", "least"),
    [
        ("resize((32, 32)) | normalize(half)", (200, 100), 0.95),
        ("resize(40) | center_crop(32) | normalize(half)", (100, 100), 0.95),
        ("center_crop(32) | to_float", (128, 96), 0.95),
        ("pad(8) | to_float", (61, 45), 0.95),
    ],
)
def test_a_map_lies_where_the_view_was_taken_from(line, size, least):
    """With the view's own brightness as the map, the map over the image must be bright where the image is bright."""
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    image = blobs.convert("RGB")
    pipeline = Pipeline(line)
    laid = explain.lay(pipeline(image)[0].astype(float) + 2, pipeline, image.size)
    want = np.asarray(image.convert("L").resize(laid.shape[::-1], Image.Resampling.BOX), float)
    seen = laid != 0
    assert seen.mean() == pytest.approx(1 if "crop" not in line else 0.64 if "resize" in line else 0.09, abs=0.06)
    assert np.corrcoef(laid[seen], want[seen])[0, 1] > least


def test_maps_of_a_detector(tmp_path):
    sidecar = {
        "architecture": "testing", "arguments": {"num_classes": 2}, "classes": list(BOTH), "class_order": list(BOTH),
        "input": {"size": 32, "transform": "decode | resize((32, 32)) | normalize(half)"},
    }  # fmt: skip
    net = models.create("testing", num_classes=2)
    ckpt.save(net, tmp_path / "a.ckpt", sidecar)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    detector = Detector(tmp_path / "a.ckpt", "rule:size", say=lambda line: None)
    found = explain.maps(detector, image)
    assert [(name, method) for name, _, method in found] == [("a", "Grad-CAM"), ("detector", "occlusion")]
    assert found[0][1].shape == (32, 32) and found[1][1].shape == (8, 8) and np.ptp(found[0][1]) > 0
    # With another back end the map is the same, and computing it does not change the scores.
    slow = Detector(tmp_path / "a.ckpt", backend="mindspore")
    before = slow.score([image])[0].score
    assert np.array_equal(explain.maps(slow, image)[0][1], found[0][1])
    assert slow.score([image])[0].score == before


@pytest.mark.parametrize("views, least", [("grid", 1.0), ("pyramid", 0.95), ("five", 1.0)])
def test_occlusion_of_crops_is_that_of_the_covered_image(tmp_path, views, least):
    """Only the crops that a cell reaches are scored again; at a pyramid's second scale the cell's edges differ."""
    sidecar = {
        "architecture": "testing", "arguments": {"num_classes": 2}, "classes": list(BOTH), "class_order": list(BOTH),
        "input": {"size": 32, "transform": "decode | resize((32, 32)) | normalize(half)"},
    }  # fmt: skip
    ckpt.save(models.create("testing", num_classes=2), tmp_path / "a.ckpt", sidecar)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 100, 3), dtype=np.uint8))
    detector = Detector(tmp_path / "a.ckpt", views=views, votes=8, backend="mindspore")
    assert explain._cut_from(detector, image) and not explain._cut_from(detector, image.crop((0, 0, 100, 31)))
    fast = explain.occlusion(detector, image, grid=3)
    detector.models[0].views.flips = True  # then every covered image is scored whole
    assert not explain._cut_from(detector, image)
    detector.models[0].views.flips = False
    fill = tuple(int(round(v)) for v in np.asarray(image).reshape(-1, 3).mean(axis=0))
    x, y = ([0, 33, 67, 100], [0, 23, 47, 70])
    boxes = [(x[c], y[r], x[c + 1], y[r + 1]) for r in range(3) for c in range(3)]
    scores = np.array(explain._covered_images(detector, image, boxes, fill, "a"))
    slow = (scores[0] - scores[1:]).reshape(3, 3)
    assert np.ptp(slow) > 0 and np.corrcoef(fast.ravel(), slow.ravel())[0, 1] >= least - 1e-6
    if least == 1:
        assert fast == pytest.approx(slow, abs=1e-4 * np.abs(slow).max() + 1e-6)


def test_pictures_are_read_with_the_detectors_limits(photo, monkeypatch):
    image = photo(1, (96, 80))
    detector = Detector("rule:size:40", max_pixels=96 * 80)
    monkeypatch.setattr(reading, "MAX_PIXELS", 100)
    monkeypatch.setattr(reading.decode, "__defaults__", (100, "error"))
    assert detector.score(image).ok
    assert explain.occlusion(detector, image, grid=2).shape == (2, 2)
    assert [name for name, _, _ in explain.maps(detector, image)] == ["detector"]
    with pytest.raises(ImageError, match="more than the limit"):
        explain.occlusion(Detector("rule:size:40", max_pixels=96 * 80 - 1), image)
