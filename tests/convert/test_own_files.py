"""The converter names files that this project made, and networks that only this project has."""

import json

import numpy as np
import pytest

from aidet import ckpt
from aidet.errors import UserError
from convert import reading, reverse
from convert.plan import build, make_plan

AUTOENCODER = {"widths": [4, 4], "latent_channels": 4}


def save(folder, architecture, arguments, outputs):
    path = folder / "x.ckpt"
    facts = {"architecture": architecture, "arguments": arguments, "num_outputs": outputs}
    ckpt.save(build(architecture, arguments, outputs, weights=True), path, facts)
    return path


def test_a_checkpoint_without_a_layout_is_named(tmp_path):
    path = save(tmp_path, "aidet_tae", AUTOENCODER, None)
    with pytest.raises(
        UserError, match=r"x.ckpt is a checkpoint of this project \(aidet_tae\): it needs no conversion"
    ):
        make_plan(reading.read(path))
    (tmp_path / "x.json").unlink()
    with pytest.raises(UserError, match="fit no known layout"):
        make_plan(reading.read(path))


def test_the_state_of_a_training_run_is_named(tmp_path):
    """Also that of a run with LoRA, whose adapters no other library could merge."""
    arrays = {f"net.fc.{name}": np.zeros((2, 2), np.float32) for name in ("weight", "lora_A", "lora_B")}
    ckpt.save_arrays({**arrays, ckpt.META: np.zeros(2, np.uint8)}, tmp_path / "state.ckpt")
    with pytest.raises(UserError, match="the state of a training run, .*; name its best.ckpt or last.ckpt"):
        reading.read(tmp_path / "state.ckpt")


def test_a_sidecar_that_is_not_read_is_a_note(tmp_path):
    source = reading.read(save(tmp_path, "cifake_cnn", {}, 1))
    assert source.notes == ["x.json beside it is not read: with it this checkpoint needs no conversion"]
    (tmp_path / "x.json").write_text(json.dumps({"another": "file"}))
    assert reading.read(tmp_path / "x.ckpt").notes == []


def test_an_exported_graph_is_named(tmp_path):
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.ones((2, 3), np.float32), "fc.weight")
    values = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [1, 3]), ("y", [1, 2]))]
    node = onnx.helper.make_node("Gemm", ["x", "fc.weight"], ["y"], transB=1)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight]))
    onnx.save(model, tmp_path / "other.onnx")
    assert list(reading.read(tmp_path / "other.onnx").tensors) == ["fc.weight"]
    onnx.helper.set_model_props(model, {"aidet.architecture": "resnet18"})
    onnx.save(model, tmp_path / "own.onnx")
    with pytest.raises(UserError, match=r"own.onnx was exported by this project \(resnet18\): it needs no conversion"):
        reading.read(tmp_path / "own.onnx")


def test_reverse_of_a_network_without_layouts_is_named(tmp_path):
    path = save(tmp_path, "aidet_tae", AUTOENCODER, None)
    with pytest.raises(UserError, match="'aidet_tae': no layout of a PyTorch library is known for this network"):
        reverse.reverse(path, tmp_path / "y.safetensors", "timm")
