"""Training with masks: the column `mask` of a table, the loss of the cells, what is said of bad masks, resuming."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_train import log, same_weights

from aidet import ckpt, config, models
from aidet.errors import UserError
from aidet.training.masks import localization, map_auc, sides_of
from aidet.training.run import train
from aidet.training.updates import Updater


@pytest.fixture(scope="module")
def tiny():
    """The architecture ``testing_map``: three convolutions, cells of 16 pixels."""
    import mindspore as ms
    from mindspore import nn, ops

    from aidet.models.partial import Pooling

    class TestingMap(nn.Cell):
        grid = 16

        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, 1, pad_mode="same", has_bias=True)
            self.mean = nn.AvgPool2d(16, 16)
            self.last = nn.Conv2d(8, 1, 1, has_bias=True)
            self.pool = Pooling()

        def construct(self, x):
            cells = self.last(self.mean(ops.relu(self.first(x))))
            score = self.pool(cells)
            return ops.concat((score * -0.5, score * 0.5), 1), cells.mean(1)

    def testing_map(num_classes=2, in_channels=3):
        ms.set_seed(1)
        return TestingMap()

    models._load_families()
    models.register(testing_map)
    yield "testing_map"
    models._REGISTRY.pop("testing_map")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Smooth pictures of 64 pixels; in half of them a box of two by two cells has a fine checkerboard."""
    root = tmp_path_factory.mktemp("partial")
    rng = np.random.default_rng(0)
    board = (np.indices((64, 64)).sum(0) % 2 * 80 - 40)[..., None]
    lines = ["path,label,split,group,mask,area"]
    for split, n in (("train", 16), ("val", 8)):
        for i in range(n):
            base = np.asarray(Image.fromarray(rng.integers(60, 196, (3, 3, 3), np.uint8)).resize((64, 64), 2), int)
            mask = np.zeros((64, 64), np.uint8)
            top, left = rng.integers(0, 3, 2) * 16
            mask[top : top + 32, left : left + 32] = 1
            for kind, pixels in (("r", base), ("p", base + board * mask[..., None])):
                name = f"{split}{i}_{kind}.png"
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / name)
                part = kind == "p"
                if part:
                    Image.fromarray(mask * np.uint8(255)).save(root / f"{split}{i}_mask.png")
                cell = f"{split}{i}_mask.png" if part else ""
                lines.append(f"{name},{int(part)},{split},{split}{i},{cell},{mask.mean() if part else 0}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def keys(data, out, **more):
    return {
        "model": "testing_map", "data_dir": str(data / "labels.csv"), "ckpt_save_dir": str(out), "batch_size": 8,
        "epoch_size": 6, "transform": "random_crop(32) | hflip | jpeg((95, 100), p=0.3) | normalize(half)",
        "transform_eval": "center_crop(64) | normalize(half)", "opt": "adamw", "lr": 0.05, "log_interval": 1,
        "num_parallel_workers": 0, "device_target": "CPU", "map_weight": 1.0, "image_weight": 0.3, "monitor": "map_auc",
        **more,
    }  # fmt: skip


def fitted(data, out, **more):
    said = []
    code = train(config.load(None, keys(data, out, **more)), out=said.append)
    return code, said


@pytest.fixture(scope="module")
def trained(tiny, data, tmp_path_factory):
    """Folder of a whole run, its exit code and what it said."""
    folder = tmp_path_factory.mktemp("trained")
    return (folder, *fitted(data, folder))


def test_the_cells_are_learnt_and_the_sidecar_says_how_to_read_them(trained):
    folder, code, said = trained
    rows = log(folder)
    assert code == 0 and said[-1].startswith("wrote ") and "map_auc" in said[-1]
    assert float(rows[-1]["train_loss"]) < 0.8 * float(rows[0]["train_loss"])
    assert float(rows[-1]["map_auc"]) > 0.95 and float(rows[-1]["auc"]) > 0.9
    facts = json.loads((folder / "best.json").read_text())
    where = facts["localization"]
    assert (where["grid"], where["tile"], facts["class_order"]) == (16, 64, ["real", "generated"])
    net = ckpt.load_model(folder / "best.ckpt")
    assert where == localization(net, 64)
    # The numbers of the sidecar give the image's score from the map.
    import mindspore as ms

    logits, cells = (out.asnumpy() for out in net(ms.Tensor(np.random.default_rng(0).normal(size=(2, 3, 64, 64)),
                                                             ms.float32)))  # fmt: skip
    r, a, b = (where["pooling"][name] for name in ("sharpness", "scale", "offset"))
    pooled = a * np.log(np.exp(r * cells.reshape(2, -1)).mean(1)) / r + b
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], pooled, atol=1e-4)


@pytest.mark.parametrize("kind", ["onnx", "mindir"])
def test_both_outputs_are_exported_and_compared(trained, tmp_path, kind):
    import onnxruntime

    from aidet.export import exporter, onnx_graph

    path = trained[0] / "best.ckpt"
    verdict = exporter.export(path, kind, tmp_path)
    assert verdict["outputs"] == ["logits", "map"] and verdict["difference"] <= verdict["tolerance"] * max(
        1, verdict.get("largest", 1)
    )
    if kind == "mindir":
        return
    x = onnx_graph.pixels((64, 64))(3)
    session = onnxruntime.InferenceSession(tmp_path / "best.onnx")
    assert [o.name for o in session.get_outputs()] == ["logits", "map"]
    for theirs, ours in zip(session.run(None, {"image": x}), onnx_graph.outputs_of(ckpt.load_model(path), x)):
        np.testing.assert_allclose(theirs, ours, atol=1e-4)
    # A map that is not the network's is found.
    import onnx

    model = onnx.load(tmp_path / "best.onnx")
    for weight in model.graph.initializer:
        if weight.dims == [1, 8, 1, 1]:
            weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * 1.01).tobytes()
    sample = onnx_graph.pixels((64, 64))
    with pytest.raises(onnx_graph.ExportError, match="differs from MindSpore"):
        onnx_graph.compare(onnx_graph.reference(ckpt.load_model(path), sample, (2,)), model, sample)


def test_a_cut_run_resumes_bit_for_bit(tiny, data, tmp_path, monkeypatch):
    """As without masks: a crop and its mask depend on seed, epoch and file only."""
    more = {"epoch_size": 2, "save_every_steps": 1, "ema": True}
    fitted(data, tmp_path / "whole", **more)
    step = Updater.update

    def stops(self, batch, progress):
        if batch.epoch == 1 and batch.number == 2:
            raise KeyboardInterrupt
        return step(self, batch, progress)

    monkeypatch.setattr(Updater, "update", stops)
    with pytest.raises(KeyboardInterrupt):
        fitted(data, tmp_path / "cut", **more)
    monkeypatch.undo()
    said = fitted(data, tmp_path / "cut", resume="auto", **more)[1]
    assert any("resumed" in line and ": 6 updates" in line for line in said), said
    assert log(tmp_path / "cut") == log(tmp_path / "whole")
    assert same_weights(tmp_path / "cut" / "last.ckpt", tmp_path / "whole" / "last.ckpt")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "val3_mask.png").unlink(), "val3_mask.png' does not exist"),
        (lambda root: Image.new("L", (64, 60)).save(root / "train2_mask.png"), "is 64x60 pixels, its picture 64x64"),
        (lambda root: Image.new("L", (64, 64)).save(root / "train2_mask.png"), "train2_mask.png' is empty"),
        (lambda root: Image.new("L", (64, 64), 7).save(root / "train2_mask.png"), "is not binary"),
    ],
)
def test_a_bad_mask_is_one_line_before_the_first_step(tiny, data, tmp_path, monkeypatch, spoil, said):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    spoil(copy)
    monkeypatch.setattr(Updater, "update", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(UserError, match=said) as found:
        fitted(copy, tmp_path / "out")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model": "testing"}, "testing has none"),
        ({"mixup": 0.2}, "set mixup to its default"),
        ({"transform": "random_crop(32) | cutout | normalize(half)"}, "cannot follow 'cutout'"),
        ({"transform": "random_crop(40) | normalize(half)", "transform_eval": "center_crop(40) | normalize(half)"},
         "multiples of 32"),
        ({"map_weight": 0.0}, "map_auc"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_masks(tiny, data, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        fitted(data, tmp_path, **more)


def test_masks_need_their_column(tiny, data, tmp_path):
    table = tmp_path / "labels.csv"
    lines = [",".join(line.split(",")[:4]) for line in (data / "labels.csv").read_text().splitlines()]
    table.write_text("\n".join([lines[0], *(f"{data}/{line}" for line in lines[1:])]) + "\n")
    with pytest.raises(UserError, match="needs a column 'mask'"):
        fitted(tmp_path, tmp_path / "out")


def test_a_crop_that_missed_the_region_is_real_and_cells_are_judged_at_half():
    shares = np.zeros((3, 2, 2), np.float32)
    shares[1, 0, 0], shares[2] = 0.01, 1
    np.testing.assert_array_equal(sides_of(np.array([1, 1, 0]), shares), [0, 0, 0])
    shares[1, 0, 0] = 0.6
    np.testing.assert_array_equal(sides_of(np.array([1, 1, 1]), shares), [0, 1, 1])
    assert map_auc(shares - 0.5, shares) == 1.0 and np.isnan(map_auc(shares, shares * 0))


def test_the_net_starts_from_the_default_detectors_backbone(tmp_path):
    from types import SimpleNamespace

    from aidet.training.start import load_backbone, read_initial

    path = Path(__file__).resolve().parents[2] / "ckpt" / "aidet_default.ckpt"
    settings = SimpleNamespace(model="partial_lite0", init_from=str(path))
    arrays, sidecar = read_initial(settings)
    net, said = models.create("partial_lite0"), []
    load_backbone(net, arrays, settings, said.append)
    own = {p.name: p.asnumpy() for p in net.get_parameters()}
    assert said == [f"backbone from {path}: 165 of 221 tensors; the others are initialised anew"]
    for name in ("features.0.weight", "features.7.2.block.8.moving_variance"):
        np.testing.assert_array_equal(own[name], arrays[name].astype(np.float32))
    settings.model = "resnet18"
    with pytest.raises(UserError, match="holds 'efficientnet_lite0', model says 'resnet18'"):
        read_initial(settings)
