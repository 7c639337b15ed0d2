"""A linear layer on a frozen tower: crops, features that are kept, the weights, the file, and its conversion."""

import json

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file  # noqa: E402

from aidet import ckpt, images, runtime  # noqa: E402
from aidet.errors import UserError  # noqa: E402
from convert import conversion  # noqa: E402
from convert.parity.torch_imports import without_broken_ops  # noqa: E402
from convert.training import probe  # noqa: E402

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1, "intermediate_size": 256, "patch_size": 56,
    "image_size": 224, "projection_dim": 32,
}  # fmt: skip


def picture(seed, size=(320, 256)):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


class Tower(torch.nn.Module):
    """Mean and spread of the three channels: six features."""

    def forward(self, x):
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


@pytest.fixture
def labels(tmp_path):
    """Generated pictures are brighter; a row of split test must not be touched."""
    lines = ["path,label,generator,split"]
    for i in range(28):
        fake, split = i % 2, "val" if i >= 24 else "train"
        image = picture(i).point(lambda v, up=fake: min(255, v // 2 + 120 * up))
        image.save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{fake},{'g' if fake else 'r'}{i % 4},{split}")
    lines.append("missing.png,1,g,test")
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_layer_separates_what_it_was_fitted_on_and_runs_again_from_its_features(
    labels, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(probe, "tower", lambda *a: Tower().eval())
    out, kept = tmp_path / "head.safetensors", tmp_path / "kept"
    flags = ["tower", "--labels", str(labels), "--draws", "2", "--features", str(kept), "--out", str(out)]
    probe.main(flags)
    said = capsys.readouterr().out
    assert f"val {tmp_path.name}: AUC 1.0000" in said and "6 weights from 48 crops of 24 pictures" in said
    arrays, first = load_file(out), out.read_bytes()
    assert {k: (v.shape, v.dtype.name) for k, v in arrays.items()} == {
        "classifier.weight": ((1, 6), "float32"),
        "classifier.bias": ((1,), "float32"),
    }
    monkeypatch.setattr(probe, "tower", lambda *a: pytest.fail("the features are kept"))
    probe.main(flags)
    assert out.read_bytes() == first
    (tmp_path / "small").mkdir()
    small = tmp_path / "small" / "labels.csv"
    small.write_text("path,label,generator,split\n" + "".join(f"../{i}.png,{i % 2},s,train\n" for i in range(4)))
    monkeypatch.setattr(probe, "tower", lambda *a: Tower().eval())
    probe.main([*flags, "--once", str(small)])
    assert "6 weights from 52 crops of 28 pictures" in capsys.readouterr().out
    assert len(np.load(kept / "train_once.npy")) == 4 and out.read_bytes() != first
    labels.write_text("\n".join(labels.read_text().splitlines()[:-8]) + "\n")
    with pytest.raises(UserError, match="has 24 rows, not 21: it belongs to other pictures"):
        probe.main(flags)


def test_crops_differ_by_draw_and_are_the_same_again(labels):
    rows = [r for r in probe.read([labels]) if r["split"] == "train"][:6]
    first, again, other = (np.stack(list(probe.crops(rows, draw))) for draw in (0, 0, 1))
    assert first.shape == (6, 224, 224, 3) and np.array_equal(first, again)
    assert all(not np.array_equal(a, b) for a, b in zip(first, other))


def test_views_of_a_picture_are_the_middle_at_half_size_and_five_native_crops():
    image = picture(3, (600, 500))
    found, array = probe.views(image), np.asarray(image)
    assert len(found) == 6 and all(v.shape == (224, 224, 3) for v in found)
    assert np.array_equal(found[2], array[:224, :224]) and np.array_equal(found[5], array[-224:, -224:])
    half = np.asarray(image.resize((300, 250), Image.Resampling.BICUBIC))
    assert np.array_equal(found[0], half[13:237, 38:262])
    assert np.array_equal(*probe.views(picture(3, (224, 224)))[:2])  # no smaller than a view


def test_the_layer_takes_features_as_the_tower_gives_them():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = rng.normal(0, 1, (400, 3)) * [1, 50, 0.01] + [5, -300, 2]
    x[:, 1] += 100 * y
    layer, bias = probe.fit(x, y, np.where(y, "g", "r"), 0.1)
    found = x @ layer + bias
    assert ((found > 0) == (y == 1)).mean() > 0.75
    assert abs(layer[1] * 50) > 5 * abs(layer[0])
    with pytest.raises(UserError, match="needs real and generated"):
        probe.fit(x, np.ones(400, int), np.full(400, "g"), 0.1)


def test_a_frequent_source_does_not_outweigh_a_rare_one():
    """Ninety easy pictures and ten of a source that lies on the other side: with equal rows it would be given up."""
    x = np.r_[np.full(90, -1.0), np.full(10, 0.6), np.full(100, 0.5)][:, None]
    y = np.r_[np.zeros(100), np.ones(100)].astype(int)
    kinds = np.array(["a"] * 90 + ["b"] * 10 + ["g"] * 100)
    weighed, equal = (probe.fit(x, y, k, 1.0) for k in (kinds, np.array(["a"] * 100 + ["g"] * 100)))

    def at(found):
        return 0.6 * found[0][0] + found[1]

    assert at(weighed) < at(equal) - 0.2
    # The same by hand: the rare source's pictures weigh as much together as the frequent one's.
    parts = np.r_[np.full(90, 1 / 9), np.full(10, 1.0), np.full(100, 1.0)]
    by_hand = probe.fit(x, y, np.array(["a"] * 100 + ["g"] * 100), 1.0, parts)
    assert at(by_hand) < at(weighed)


@pytest.mark.parametrize("features", ["levels", "levels_avg"])
def test_a_layer_on_every_block_of_clip_becomes_a_detector(features, labels, tmp_path):
    without_broken_ops()
    import transformers

    torch.manual_seed(0)
    net = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**SMALL))
    net.save_pretrained(tmp_path / "tower")
    weights, head = str(tmp_path / "tower/model.safetensors"), str(tmp_path / "head.safetensors")
    flags = ["--arg", f"features={features}", "--labels", str(labels), "--out", head, "--strength", "0.1"]
    probe.main([str(tmp_path / "tower"), *flags])
    layer = load_file(head)
    assert layer["classifier.weight"].shape == (1, 64 * 3 * (2 if features == "levels_avg" else 1))

    (tmp_path / "recipe.yaml").write_text(
        "name: recipe\nurl: https://example.org\nparts:\n- {file: head.safetensors}\n- {file: model.safetensors}\n"
        f"arguments: {json.dumps({'features': features})}\nclasses: [fake]\n"
    )
    recipe = str(tmp_path / "recipe.yaml")
    conversion.convert(weights, tmp_path / "a.ckpt", recipe=recipe, sources=[head], say=lambda line: None)
    ms, _ = runtime.setup("CPU", mode="pynative")
    line = images.Pipeline("decode | normalize(clip)")
    x = np.stack([line(Image.fromarray(v)) for v in probe.views(picture(50))]).astype(np.float32)
    with torch.no_grad():
        seen = probe.tower(str(tmp_path / "tower"), (), {"features": features})(torch.from_numpy(x)).numpy()
    expected = seen @ layer["classifier.weight"].T + layer["classifier.bias"]
    found = ckpt.load_model(tmp_path / "a.ckpt")(ms.Tensor(x)).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert np.ptp(expected) > 0.01 * np.abs(expected).max()
