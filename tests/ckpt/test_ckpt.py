"""Strict loading, atomic saving, sidecars, and the settings that MindSpore needs before it is imported."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from aidet import ckpt, models, runtime
from aidet.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SIDECAR = {
    "architecture": "testing",
    "arguments": {"num_classes": 2},
    "class_order": ["real", "generated"],
    "input": {"transform": "center_crop(32) | normalize(half)"},
}


@pytest.fixture(scope="module")
def net():
    runtime.setup("CPU", mode="pynative", seed=1)
    return models.create("testing", num_classes=2)


@pytest.fixture
def saved(net, tmp_path):
    path = tmp_path / "m.ckpt"
    ckpt.save(net, path, SIDECAR)
    return path


def arrays_of(net):
    return {p.name: p.asnumpy() for p in net.get_parameters()}


def test_a_checkpoint_comes_back_bit_equal(net, saved):
    again = ckpt.load_model(saved)
    want, got = arrays_of(net), arrays_of(again)
    assert list(want) == list(got)
    for name in want:
        np.testing.assert_array_equal(want[name], got[name])
    assert not again.training and again.sidecar["architecture"] == "testing"
    facts = json.loads(saved.with_suffix(".json").read_text())
    assert facts["output"]["parameters"] == sum(a.size for a in want.values())
    assert sorted(os.listdir(saved.parent)) == ["m.ckpt", "m.json"]


def test_half_precision_file_is_widened_on_loading(net, tmp_path):
    ckpt.save(net, tmp_path / "h.ckpt", SIDECAR, dtype="fp16")
    stored = ckpt.load_arrays(tmp_path / "h.ckpt")
    again = arrays_of(ckpt.load_model(tmp_path / "h.ckpt"))
    for name, value in stored.items():
        assert value.dtype != np.float32
        np.testing.assert_array_equal(again[name], value.astype(again[name].dtype))


def test_a_mismatch_lists_both_directions_and_loads_nothing(net):
    before = {n: a.copy() for n, a in arrays_of(net).items()}
    arrays = {n: a + 1 for n, a in before.items()}
    first, second = list(arrays)[:2]
    arrays["extra.weight"] = arrays.pop(first)
    arrays[second] = np.zeros((3, 1, 4), np.float32)
    with pytest.raises(UserError) as caught:
        ckpt.load_strict(net, arrays)
    text = str(caught.value)
    assert f"- in model, not in file: {first}" in text
    assert "+ in file, not in model: extra.weight" in text
    assert f"! shape of {second}" in text and "(3, 1, 4)" in text
    for name, value in arrays_of(net).items():
        np.testing.assert_array_equal(value, before[name])


def test_missing_and_foreign_files_are_refused(saved, tmp_path):
    with pytest.raises(UserError, match="is a folder; there is m.ckpt"):
        ckpt.load_model(saved.parent)
    with pytest.raises(UserError, match="m.json' is a sidecar; name the checkpoint that it describes, m.ckpt"):
        ckpt.load_model(saved.with_suffix(".json"))
    with pytest.raises(UserError, match="'.*absent.ckpt' does not exist; there is m.ckpt"):
        ckpt.load_model(tmp_path / "absent.ckpt")
    other = tmp_path / "other.ckpt"
    shutil.copy(saved, other)
    with pytest.raises(UserError, match="no sidecar 'other.json'"):
        ckpt.load_model(other)
    (tmp_path / "junk.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot be read as a MindSpore checkpoint"):
        ckpt.load_arrays(tmp_path / "junk.ckpt")
    damaged = bytearray(saved.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    saved.write_bytes(damaged)
    with pytest.raises(UserError, match="sha256 differs"):
        ckpt.load_model(saved)


def test_unknown_architecture_and_argument(net, saved):
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        models.create("resnet_18")
    with pytest.raises(UserError, match="architecture 'testing'.*num_clases"):
        models.create("testing", num_clases=2)


def test_saving_where_nothing_can_be_written_is_refused(net, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        ckpt.save(net, tmp_path / "file" / "m.ckpt", SIDECAR)
    with pytest.raises(UserError, match="must end in .ckpt"):
        ckpt.save(net, tmp_path / "m.pth", SIDECAR)


def test_the_shipped_autoencoder_reconstructs_a_photograph():
    import mindspore as ms
    from skimage import data

    net = ckpt.load_model(ROOT / "ckpt" / "aidet_tae.ckpt")
    x = data.chelsea()[100:228, 120:248].astype(np.float32).transpose(2, 0, 1)[None] / 255
    z = net.encode(ms.Tensor(x))
    y = net(ms.Tensor(x)).asnumpy()
    assert z.shape == (1, 4, 32, 32) and y.shape == x.shape
    np.testing.assert_allclose(net.decode(z).asnumpy(), y, atol=1e-5)
    psnr = -10 * np.log10(np.mean((np.clip(y, 0, 1) - x) ** 2))
    # It reached 29.0 dB on crops of photographs after training. An aligned fake must stay close to its original.
    assert psnr > 26


def test_reading_needs_the_memory_of_one_copy_of_the_arrays(tmp_path):
    arrays = {f"w{i}": np.full((1 << 20,), i, np.float32) for i in range(8)}
    ckpt.write_arrays(arrays, tmp_path / "x.ckpt")
    tracemalloc.start()
    got = ckpt.load_arrays(tmp_path / "x.ckpt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(np.array_equal(got[n], a) for n, a in arrays.items())
    assert peak < 1.2 * sum(a.nbytes for a in arrays.values())


# --- runtime ---------------------------------------------------------------------------------------------------------
def test_numpy_2_is_refused(monkeypatch):
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(UserError, match="NumPy 2.1.0 does not work with MindSpore; run: pip install 'numpy<2'"):
        runtime.prepare()


@pytest.mark.parametrize(("version", "want"), [("2.8.0", None), ("2.9.0", "AVX2"), ("2.10.0", "AVX2")])
def test_the_slow_convolution_of_newer_versions_is_avoided(monkeypatch, version, want):
    import sys

    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "")  # so that monkeypatch restores the variable after the test
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(runtime, "version_of", lambda name: version if name == "mindspore" else None)
    monkeypatch.delitem(sys.modules, "mindspore", raising=False)
    runtime.prepare()
    assert os.environ.get("ONEDNN_MAX_CPU_ISA") == want
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    runtime.prepare()
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE"


def test_unknown_device_names_the_choices():
    with pytest.raises(UserError, match="'NPU': choose one of auto, Ascend, GPU, CPU"):
        runtime.setup("NPU")


def test_a_program_that_computed_before_keeps_its_device(run):
    """As in a notebook: MindSpore's device can no longer be set, but it is the wanted one."""
    code = (
        "from aidet import runtime\nruntime.prepare()\nimport mindspore as ms\n(ms.Tensor([1.0]) + 1).asnumpy()\n"
        "print(runtime.setup('CPU')[1])"
    )
    done = run("-c", code)
    assert (done.returncode, done.stdout) == (0, "CPU\n"), done.stderr


def test_a_process_that_used_a_network_ends_quietly(run, saved):
    code = (
        f"from aidet import ckpt, runtime\nruntime.setup('CPU')\nnet = ckpt.load_model({str(saved)!r})\nprint('done')"
    )
    done = run("-c", code)
    assert done.stdout == "done\n" and done.returncode == 0
    assert "Exception ignored" not in done.stderr and "Traceback" not in done.stderr
