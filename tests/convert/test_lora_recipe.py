"""LoRA trained in PyTorch: the saved adapters on the frozen tower, converted, compute what the trained net computes."""

import argparse

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file  # noqa: E402

from aidet import ckpt, runtime  # noqa: E402
from aidet.errors import UserError  # noqa: E402
from convert import conversion  # noqa: E402
from convert.parity.torch_imports import without_broken_ops  # noqa: E402
from convert.training import lora  # noqa: E402

CLASSES = ["real", "generated_a", "generated_b"]
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 56, "patch_size": 14}


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A folder with a small DINOv2 of random weights, as transformers saves it."""
    without_broken_ops()
    import transformers

    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)).save_pretrained(folder)
    return folder


def batches(steps):
    """Generated crops are brighter, those of the second generator bluer."""
    for step in range(steps):
        rng = np.random.default_rng(step)
        y = rng.integers(0, 3, 16)
        x = rng.integers(0, 100, (16, 56, 56, 3)) + 80 * (y > 0)[:, None, None, None]
        x[..., 2] += 60 * (y == 2)[:, None, None]
        yield x.astype(np.uint8), y


def settings(tower, steps, **more):
    chosen = {"source": str(tower), "rank": 4, "weights": None, "steps": steps, "lr": 0.01, "weight_decay": 0.02}
    return argparse.Namespace(**{**chosen, "seed": 1, **more})


def test_the_adapters_of_a_run_are_a_detector(tower, tmp_path):
    lora.train(batches(40), CLASSES, settings(tower, 40), tmp_path)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0] == "step,loss,binary,accuracy,seconds" and float(rows[-1].split(",")[3]) > 0.8
    saved = load_file(tmp_path / "adapters.safetensors")
    assert saved["encoder.layer.1.attention.attention.query.lora_A.weight"].shape == (4, 64)
    assert saved["encoder.layer.0.mlp.fc1.lora_B.weight"].shape == (256, 4) and len(saved) == 2 * 2 * 6 + 2

    # The net that was trained, with the saved values, against the converted one.
    net, found = lora.network(str(tower), 3, 4)
    lora.restore(found, net[1], str(tmp_path / "adapters.safetensors"), CLASSES)
    x = next(iter(batches(1)))[0]
    with torch.no_grad():
        expected = net.eval()(lora.normalise(x)).numpy()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: recipe\nurl: https://example.org\nparts:\n- {file: adapters.safetensors}\n- {file: model.safetensors}\n"
        f"classes: [{', '.join(CLASSES)}]\nlora_alpha: 4\narguments: {{image_size: 56}}\n"
    )
    files = str(tower / "model.safetensors"), str(tmp_path / "adapters.safetensors")
    conversion.convert(files[0], tmp_path / "a.ckpt", recipe=str(recipe), sources=files[1:])
    ms, _ = runtime.setup("CPU", mode="pynative")
    loaded = ckpt.load_model(tmp_path / "a.ckpt")
    np.testing.assert_allclose(
        loaded(ms.Tensor(lora.normalise(x).numpy())).asnumpy(), expected, atol=1e-4 * np.abs(expected).max()
    )
    assert ckpt.Sidecar.read(tmp_path / "a.ckpt").source_adapters["ranks"] == [4]


def test_a_run_goes_on_from_an_earlier_one_of_the_same_shape_only(tower, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    lora.train(batches(4), CLASSES, settings(tower, 4), first)
    weights = str(first / "adapters.safetensors")
    lora.train(batches(1), CLASSES, settings(tower, 1, weights=weights, lr=0.0), second)
    before, after = (load_file(folder / "adapters.safetensors") for folder in (first, second))
    assert all(np.allclose(before[k], after[k], atol=1e-7) for k in before)
    with pytest.raises(UserError, match="was it trained with another --rank"):
        lora.train(batches(1), CLASSES, settings(tower, 1, weights=weights, rank=2), second)
    with pytest.raises(UserError, match="has 3 other classes than these data"):
        lora.train(batches(1), CLASSES[:2], settings(tower, 1, weights=weights), second)


def test_another_network_is_refused():
    with pytest.raises(UserError, match="no DINOv2 of transformers"):
        lora.adapters(torch.nn.Sequential(torch.nn.Linear(3, 2)), 4)
