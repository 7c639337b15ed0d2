"""LoRA: the layer starts as it was, only the products and the head move, checkpoints are of the plain architecture."""

import csv

import numpy as np
import pytest
from PIL import Image

from aidet import ckpt, config, images, models, runtime
from aidet.errors import UserError
from aidet.training import lora, saving
from aidet.training.run import train

SIZES = {"image_size": 28, "grid": 2, "depth": 2, "width": 64, "hidden": 128}
GLOBS = ["blocks.*.attn.*", "blocks.*.mlp.fc1"]
ADAPTED = {f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1")}
LINE = "decode | resize((28, 28)) | normalize(half)"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes, told apart by colour."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = ["path,label,split"]
    for i in range(16):
        tint = [200, 60, 60] if i % 2 else [60, 60, 200]
        noise = rng.integers(0, 50, (28, 28, 3))
        Image.fromarray((noise + tint).astype(np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{i % 2},{'val' if i >= 12 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    runtime.setup("CPU", seed=3)
    path = tmp_path_factory.mktemp("tower") / "tower.ckpt"
    ckpt.save_arrays({p.name: p.asnumpy() for p in models.create("dinov2_vit", **SIZES).get_parameters()}, path)
    return path


def settings(pictures, tower, out, **more):
    return {
        "model": "dinov2_vit", "model_args": SIZES, "data_dir": str(pictures), "ckpt_save_dir": str(out),
        "init_from": str(tower), "lora": {"rank": 2, "layers": GLOBS}, "train_split": "train", "val_split": "val",
        "freeze": ["cls_token", "pos_embed", "patch_embed.*", "blocks.*", "norm.*"], "transform": LINE,
        "transform_eval": LINE, "batch_size": 4, "epoch_size": 4, "opt": "adamw", "lr": 0.01, "scheduler": "constant",
        "num_parallel_workers": 1, "weight_decay": 0.0, "seed": 1, **more,
    }  # fmt: skip


def run(pictures, tower, out, **more):
    said = []
    assert train(config.load(None, settings(pictures, tower, out, **more)), out=said.append) == 0
    return said


def test_the_net_is_the_same_until_a_step_is_made(tower):
    import mindspore as ms

    net = models.create("dinov2_vit", **SIZES)
    before = {p.name: p.asnumpy().copy() for p in net.get_parameters()}
    x = ms.Tensor(np.random.default_rng(0).standard_normal((2, 3, 28, 28)).astype(np.float32))
    old = net(x).asnumpy()
    keys = config.load(None, {"model": "dinov2_vit", "data_dir": "x", "init_from": "y",
                              "lora": {"rank": 2, "layers": GLOBS}})  # fmt: skip
    assert lora.adapt(net, keys) == len(ADAPTED)
    assert np.array_equal(net(x).asnumpy(), old)
    now = {p.name: p for p in net.get_parameters()}
    assert set(now) == {*before, *(f"{n}.lora_A" for n in ADAPTED), *(f"{n}.lora_B" for n in ADAPTED)}
    assert {n for n in before if not now[n].requires_grad} == {f"{n}.{w}" for n in ADAPTED for w in ("weight", "bias")}
    assert now["blocks.0.attn.qkv.lora_A"].shape == (2, 64) and now["blocks.0.attn.qkv.lora_B"].shape == (192, 2)
    assert lora.parameters_of(list(now.values())) == sum(a.size for a in before.values())


def test_products_and_head_are_trained_and_folded(pictures, tower, tmp_path):
    said = run(pictures, tower, tmp_path)
    before, after = ckpt.load_arrays(tower), ckpt.load_arrays(tmp_path / "last.ckpt")
    assert set(after) == {*before, "head.weight", "head.bias"}
    moved = {n for n in before if not np.array_equal(before[n], after[n])}
    assert moved == {f"{n}.weight" for n in ADAPTED}
    change = after["blocks.1.attn.qkv.weight"] - before["blocks.1.attn.qkv.weight"]
    assert np.linalg.matrix_rank(change, tol=1e-5) == 2
    count = sum(a.size for a in after.values())
    trained = 2 * sum(sum(before[f"{n}.weight"].shape) for n in ADAPTED) + 2 * 65
    assert any(f"{trained:,} of {count:,} parameters" in line for line in said)
    # The folded weights are the net that was validated.
    with open(tmp_path / "log.csv", newline="", encoding="utf-8") as file:
        logged = float(list(csv.DictReader(file))[-1]["val_loss"])
    import mindspore as ms

    pipeline = images.parsed(LINE)
    made = [pipeline(images.decode(pictures / f"{i}.png"), None) for i in range(12, 16)]
    z = ckpt.load_model(tmp_path / "last.ckpt")(ms.Tensor(np.stack(made))).asnumpy().astype(np.float64)
    truth = np.array([i % 2 for i in range(12, 16)])
    loss = np.log(np.exp(z).sum(1)) - z[np.arange(4), truth]
    assert loss.mean() == pytest.approx(logged, abs=1e-5)


def test_a_new_head_is_trained_as_a_whole_though_its_name_matches(pictures, tower, tmp_path):
    """It has no pretrained weights, and its bias would stay zero."""
    said = run(pictures, tower, tmp_path, lora={"rank": 2, "layers": ["*"]}, epoch_size=1, mode=1)
    after = ckpt.load_arrays(tmp_path / "last.ckpt")
    assert after["head.bias"].all()
    dense = [*ADAPTED, "blocks.0.mlp.fc2", "blocks.1.mlp.fc2"]
    trained = 2 * sum(sum(after[f"{n}.weight"].shape) for n in dense) + 2 * 65
    assert any(f"{trained:,} of" in line for line in said)
    state = ckpt.load_arrays(tmp_path / "state.ckpt")
    assert "net.blocks.1.mlp.fc2.lora_A" in state and "net.head.lora_A" not in state
    # The same head in a second run is a pretrained layer.
    run(pictures, tmp_path / "last.ckpt", tmp_path / "again", lora={"layers": ["head"]}, epoch_size=1, mode=1)
    assert "net.head.lora_A" in ckpt.load_arrays(tmp_path / "again" / "state.ckpt")


@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_mixed_precision_trains_the_same_products(pictures, tower, tmp_path, monkeypatch, level):
    monkeypatch.chdir(tmp_path)  # where MindSpore writes the networks that it rewrites
    run(pictures, tower, tmp_path / "half", amp_level=level, epoch_size=1)
    run(pictures, tower, tmp_path / "full", epoch_size=1)
    before, half, full = (ckpt.load_arrays(p) for p in (tower, *(tmp_path / n / "last.ckpt" for n in ("half", "full"))))
    assert set(half) == set(full) == {*before, "head.weight", "head.bias"}
    assert {n for n in before if not np.array_equal(before[n], half[n])} == {f"{n}.weight" for n in ADAPTED}
    assert half["head.weight"].dtype == np.float32
    losses = [list(csv.DictReader(open(tmp_path / n / "log.csv", newline="")))[0] for n in ("half", "full")]
    assert float(losses[0]["val_loss"]) == pytest.approx(float(losses[1]["val_loss"]), abs=0.02)


def test_a_resumed_run_is_the_run_that_was_not_interrupted(pictures, tower, tmp_path):
    run(pictures, tower, tmp_path / "whole")
    run(pictures, tower, tmp_path / "parts", epoch_size=2)
    state = ckpt.load_arrays(tmp_path / "parts" / "state.ckpt")
    assert any(n.endswith("attn.qkv.lora_B") for n in state)
    run(pictures, tower, tmp_path / "parts", resume="auto")
    a, b = (ckpt.load_arrays(tmp_path / name / "last.ckpt") for name in ("whole", "parts"))
    assert all(np.array_equal(a[n], b[n]) for n in a)


def test_dense_layers_of_a_sequence_are_adapted_in_any_network():
    """MindSpore's own assignment to a SequentialCell fails where names of parameters differ in depth."""
    pytest.importorskip("mindcv")
    net = models.create("mobilevit_xx_small", num_classes=2)
    before = [p.name for p in net.get_parameters()]
    keys = config.load(None, {"data_dir": "x", "init_from": "y", "lora": {"rank": 1, "layers": ["*"]}})
    count = lora.adapt(net, keys)
    now = [p.name for p in net.get_parameters()]
    assert count > 1 and set(before) < set(now) and len(set(now)) == len(now) == len(before) + 2 * count
    holders = [cell for _, cell in net.cells_and_names() if hasattr(cell, "cell_list")]
    assert all(list(cell.cell_list) == list(cell.name_cells().values()) for cell in holders)


def test_a_network_without_dense_layers_is_named():
    import mindspore as ms

    keys = config.load(None, {"model": "flat", "init_from": "y", "lora": {"rank": 1, "layers": ["*"]}})
    with pytest.raises(UserError, match="lora adapts dense layers, of which model 'flat' has none"):
        lora.adapt(ms.nn.Conv2d(3, 2, 1), keys)


def test_weights_of_a_state_are_folded():
    rng = np.random.default_rng(0)
    weight, down, up = rng.random((3, 4)), rng.random((1, 4)), rng.random((3, 1))
    state = {"net.fc.weight": weight, "net.fc.lora_A": down, "net.fc.lora_B": up, "optimizer.mean.fc.lora_A": down,
             ckpt.META: np.zeros(2, np.uint8)}  # fmt: skip
    found = saving.weights_only(state)
    assert set(found) == {"fc.weight"} and found["fc.weight"] == pytest.approx(weight + up @ down)


@pytest.mark.parametrize(
    "more, text",
    [
        ({"lora": {"rank": 2, "layers": ["block.*.attn.qkv"]}}, "'block.*.attn.qkv' matches no dense layer; .*blocks"),
        ({"lora": {"rank": 0, "layers": GLOBS}}, "rank .=0. must be a whole number of at least 1"),
        ({"lora": {"rank": True, "layers": GLOBS}}, "rank .=True. must be"),
        ({"lora": {"layers": "blocks"}}, "layers .='blocks'. must be a list of patterns"),
        ({"lora": {"layers": ["head"]}}, r"layers .=\['head'\]. names no pretrained layer: head is new"),
        ({"lora": {}}, "layers .=None. must be a list of patterns"),
        ({"lora": {"layers": GLOBS, "alpha": 16}}, "unknown key 'alpha'; it takes rank and layers"),
        ({"init_from": None, "freeze": []}, "set init_from to their weights"),
        ({"val_amp_level": "O2"}, "val_amp_level .='O2'. must be amp_level, 'O0'"),
        ({"val_amp_level": "O0", "amp_cast_list": ["Dense"]}, "must be amp_level, 'O0', without amp_cast_list"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_one_line(pictures, tower, tmp_path, more, text):
    with pytest.raises(UserError, match=text):
        train(config.load(None, settings(pictures, tower, tmp_path, **more)), out=lambda line: None)
