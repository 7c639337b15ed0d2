"""Adapters are folded into the weights that they belong to: the result computes what the adapted model computes."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from aidet.errors import UserError
from convert import adapters, conversion, reading
from convert.reading import ArrayRef
from convert.reverse import write_safetensors

RNG = np.random.default_rng(0)
IN, OUT, RANK = 12, 8, 3
BASE, BIAS = RNG.normal(size=(OUT, IN)).astype(np.float32), RNG.normal(size=OUT).astype(np.float32)
A, B = RNG.normal(size=(RANK, IN)).astype(np.float32), RNG.normal(size=(OUT, RANK)).astype(np.float32)
X = RNG.normal(size=(5, IN)).astype(np.float32)


def lazy(arrays):
    return {key: ArrayRef(np.asarray(a, np.float32)) for key, a in arrays.items()}


def with_adapter(scale):
    """What the adapted layer computes, unmerged, in float64."""
    return X @ BASE.T.astype(np.float64) + scale * (X @ A.T.astype(np.float64)) @ B.T


def check(folded, key, expected):
    got = X.astype(np.float64) @ folded[key].array().T.astype(np.float64)
    assert folded[key].shape == (OUT, IN) and folded[key].array().dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert not np.allclose(got, X @ BASE.T, atol=0.1)  # the adapter is no small correction


PEFT = {
    "whole model": ("base_model.model.q.base_layer", "base_model.model.q", ".default"),
    "older peft": ("base_model.model.q", "base_model.model.q", ".default"),
    "inside another model": ("tower.base_model.model.q.base_layer", "tower.base_model.model.q", ".default"),
}


@pytest.mark.parametrize("frozen, module, name", PEFT.values(), ids=PEFT.keys())
def test_peft(frozen, module, name):
    tensors = lazy(
        {
            f"{frozen}.weight": BASE,
            f"{frozen}.bias": BIAS,
            f"{module}.lora_A{name}.weight": A,
            f"{module}.lora_B{name}.weight": B,
            "head.weight": BASE,
        }
    )
    folded, record = adapters.fold(tensors, {"lora_alpha": 16, "r": 3})
    key = ("tower." if module.startswith("tower") else "") + "q"
    check(folded, f"{key}.weight", with_adapter(16 / RANK))
    assert set(folded) == {f"{key}.weight", f"{key}.bias", "head.weight"}
    assert np.array_equal(folded[f"{key}.bias"].array(), BIAS) and np.array_equal(folded["head.weight"].array(), BASE)
    assert asdict(record) == {"kind": "peft", "count": 1, "ranks": [3], "scales": [16 / 3], "alpha": 16.0}
    assert record.line() == "folded 1 LoRA, rank 3, scale 5.33333"


def test_peft_alone_with_its_base_and_a_head_of_its_own():
    tensors = lazy(
        {
            "base_model.model.q.lora_A.weight": A,
            "base_model.model.q.lora_B.weight": B,
            "base_model.model.head.modules_to_save.default.weight": A,
        }
    )
    base = lazy({"q.weight": BASE, "q.bias": BIAS, "head.weight": BASE})
    folded, _ = adapters.fold(tensors, {"lora_alpha": 6}, base=base)
    check(folded, "q.weight", with_adapter(2.0))
    assert set(folded) == {"q.weight", "q.bias", "head.weight"} and np.array_equal(folded["head.weight"].array(), A)
    with pytest.raises(UserError, match="'q' has no weight to be added to.*--base SRC"):
        adapters.fold(tensors, {"lora_alpha": 6})


def test_modules_trained_as_a_whole_replace_the_frozen_ones():
    tensors = lazy(
        {
            "base_model.model.q.base_layer.weight": BASE,
            "base_model.model.q.lora_A.default.weight": A,
            "base_model.model.q.lora_B.default.weight": B,
            "base_model.model.head.original_module.weight": BASE,
            "base_model.model.head.modules_to_save.default.weight": A,
        }
    )
    folded, _ = adapters.fold(tensors, alpha=3)
    assert set(folded) == {"q.weight", "head.weight"} and np.array_equal(folded["head.weight"].array(), A)


@pytest.mark.parametrize(
    "config, alpha, scale",
    [
        ({"lora_alpha": 6}, None, 2.0),
        ({"lora_alpha": 6}, 12.0, 4.0),
        ({"lora_alpha": 6, "use_rslora": True}, None, 6 / math.sqrt(3)),
        ({"lora_alpha": 6, "alpha_pattern": {"q": 9}}, None, 3.0),
        ({"lora_alpha": 6, "alpha_pattern": {"other": 9}}, None, 2.0),
    ],
)
def test_the_scale_of_peft(config, alpha, scale):
    tensors = lazy({"m.q.base_layer.weight": BASE, "m.q.lora_A.a.weight": A, "m.q.lora_B.a.weight": B})
    folded, record = adapters.fold(tensors, config, alpha)
    check(folded, "m.q.weight", with_adapter(scale))
    assert record.scales == [scale]


def test_dora_rescales_the_rows():
    length = RNG.uniform(0.5, 2, OUT)
    tensors = lazy(
        {
            "q.base_layer.weight": BASE,
            "q.lora_A.default.weight": A,
            "q.lora_B.default.weight": B,
            "q.lora_magnitude_vector.default.weight": length,
        }
    )
    folded, _ = adapters.fold(tensors, alpha=3)
    assert set(folded) == {"q.weight"}
    whole = BASE.astype(np.float64) + B.astype(np.float64) @ A
    expected = whole * (length / np.linalg.norm(whole, axis=1))[:, None]
    np.testing.assert_allclose(folded["q.weight"].array(), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(folded["q.weight"].array(), axis=1), length, rtol=1e-5)


def test_a_convolution():
    kernel, down = RNG.normal(size=(4, 2, 3, 3)), RNG.normal(size=(2, 2, 3, 3))
    up = RNG.normal(size=(4, 2, 1, 1))
    tensors = lazy({"c.base_layer.weight": kernel, "c.lora_A.default.weight": down, "c.lora_B.default.weight": up})
    folded, _ = adapters.fold(tensors, alpha=4)
    expected = kernel + 2 * np.einsum("orxy,rikl->oikl", up, down)
    np.testing.assert_allclose(folded["c.weight"].array(), expected, atol=1e-5)


def test_dda_with_its_authors_alpha():
    stem = "base_model.model.blocks.0.attn.qkv"
    tensors = lazy(
        {
            f"{stem}.original_layer.weight": BASE,
            f"{stem}.original_layer.bias": BIAS,
            f"{stem}.lora.lora_A": A,
            f"{stem}.lora.lora_B": B,
            "base_model.fc.weight": BASE,
        }
    )
    folded, record = adapters.fold(tensors)
    check(folded, f"{stem}.weight", with_adapter(1 / RANK))
    assert set(folded) == {f"{stem}.weight", f"{stem}.bias", "base_model.fc.weight"}
    assert (record.kind, record.count, record.alpha) == ("dda", 1, 1.0)
    check(adapters.fold(tensors, alpha=6)[0], f"{stem}.weight", with_adapter(2))


def test_layers_that_a_detector_wrapped_itself_beside_those_of_peft():
    tensors = lazy(
        {
            "siglip.base_model.model.q.base_layer.weight": BASE,
            "siglip.base_model.model.q.lora_A.default.weight": A,
            "siglip.base_model.model.q.lora_B.default.weight": B,
            "dinov2.qkv.original.weight": BASE,
            "dinov2.qkv.original.bias": BIAS,
            "dinov2.qkv.lora_A.weight": A,
            "dinov2.qkv.lora_B.weight": B,
        }
    )
    folded, record = adapters.fold(tensors, alpha=6)
    assert set(folded) == {"siglip.q.weight", "dinov2.qkv.weight", "dinov2.qkv.bias"}
    check(folded, "siglip.q.weight", with_adapter(2))
    check(folded, "dinov2.qkv.weight", with_adapter(2))
    assert (record.kind, record.count) == ("peft", 2)


@pytest.mark.parametrize("leaf", ["weight_main", "weight_r"])
def test_effort(leaf):
    u, s, v = np.linalg.svd(BASE.astype(np.float64), full_matrices=False)
    keep, trained = 5, RNG.normal(size=3)
    stem = "backbone.encoder.layers.0.self_attn.q_proj"
    tensors = lazy(
        {
            f"{stem}.{leaf}": (u[:, :keep] * s[:keep]) @ v[:keep],
            f"{stem}.bias": BIAS,
            f"{stem}.U_residual": u[:, keep:],
            f"{stem}.S_residual": trained,
            f"{stem}.V_residual": v[keep:],
            f"{stem}.U_r": u[:, :keep],
            f"{stem}.S_r": s[:keep],
            f"{stem}.V_r": v[:keep],
            "head.weight": BASE,
        }
    )
    folded, record = adapters.fold(tensors)
    assert set(folded) == {f"{stem}.weight", f"{stem}.bias", "head.weight"}
    expected = u @ np.diag([*s[:keep], *trained]) @ v
    np.testing.assert_allclose(folded[f"{stem}.weight"].array(), expected, atol=1e-5)
    assert record.line() == "folded 1 SVD residuals (Effort), rank 3"


WRONG = {
    "no alpha": ({"q.weight": BASE, "q.lora_A.weight": A, "q.lora_B.weight": B}, "--lora-alpha"),
    "half": ({"q.weight": BASE, "q.lora_A.weight": A}, "'q.lora_A.weight' has no 'q.lora_B.weight'"),
    "shapes": ({"q.weight": BASE, "q.lora_A.weight": A, "q.lora_B.weight": A}, "'q' does not fit"),
    "two": (
        {"q.weight": BASE, **{f"q.lora_{p}.{n}.weight": A if p == "A" else B for p in "AB" for n in ("x", "y")}},
        r"2 adapters \(x, y\)",
    ),
    "another kind": ({"q.weight": BASE, "q.hada_w1_a": A}, "'q.hada_w1_a'; merge them"),
    "an embedding": (
        {"q.weight": BASE, "q.lora_A.a.weight": A, "q.lora_B.a.weight": B, "e.lora_embedding_A.a": A},
        "'e.lora_embedding_A.a'; merge them",
    ),
    "a bias of its own": (
        {"q.weight": BASE, "q.lora_A.weight": A, "q.lora_B.weight": B, "q.lora_B.bias": BIAS},
        "'q.lora_B.bias'; merge them",
    ),
    "another half": (
        {"q.weight": BASE, "q.lora_A.weight": A, "q.lora_B.weight": B, "k.lora_B.weight": B},
        "'k.lora_B.weight'; merge them",
    ),
    "part of a residual": ({"q.weight_main": BASE, "q.U_residual": A}, "only some of U_residual"),
    "residual of another shape": (
        {"q.weight_main": BASE, "q.U_residual": BASE, "q.S_residual": BIAS, "q.V_residual": A},
        "residual of 'q' does not fit",
    ),
}


@pytest.mark.parametrize("arrays, text", WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_folded_says_why(arrays, text):
    config = {} if "alpha" in text else {"lora_alpha": 3}
    with pytest.raises(UserError, match=text):
        adapters.fold(lazy(arrays), config)


def test_a_model_without_adapters_stays_as_it_is():
    tensors = lazy({"q.weight": BASE})
    folded, record = adapters.fold(tensors)
    assert folded == tensors and record is None
    with pytest.raises(UserError, match="--base: the source holds no adapters"):
        adapters.fold(tensors, base=tensors)


def test_the_command_folds_and_says_so(tmp_path):
    """A ViT of transformers with peft's LoRA in its queries, adapters and base in two files: report, sidecar, check."""
    from test_convert import source_file

    from aidet import ckpt
    from convert.check import check as check_again

    arguments = {"num_classes": 2}
    path, _ = source_file(tmp_path, "vit_t_16_224", "hf", arguments)
    base = reading.read(path).tensors
    target = "vit.encoder.layer.0.attention.attention.query"
    weight = base[f"{target}.weight"].array()
    rng = np.random.default_rng(1)
    low, up = rng.normal(size=(2, len(weight))), rng.normal(size=(len(weight), 2))
    folder = tmp_path / "adapter"
    folder.mkdir()
    part = {f"base_model.model.{target}.lora_A.weight": np.float32(low), f"base_model.model.{target}.lora_B.weight": up}
    write_safetensors(folder / "adapter_model.safetensors", {k: np.float32(v) for k, v in part.items()}, {})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    said = []
    result = conversion.convert(folder, tmp_path / "x.ckpt", level="tensors", say=said.append, base=str(path))
    assert any("folded 1 LoRA, rank 2, scale 2" in line for line in said)
    assert result.report["adapters"]["count"] == 1
    name = next(t for t, used in result.report["used"].items() if used[0] == f"{target}.weight")
    expected = weight.astype(np.float64) + 2 * np.float32(up).astype(np.float64) @ np.float32(low)
    got = np.asarray(ckpt.load_arrays(tmp_path / "x.ckpt")[name])[: len(weight)]  # the query is first in qkv
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    check_again(str(tmp_path / "x.ckpt"), str(folder), say=said.append)
    assert any("equal to the source bit by bit" in line for line in said)
    with pytest.raises(UserError, match="--base SRC"):
        conversion.convert(folder, tmp_path / "y.ckpt", level="tensors", say=said.append)
    assert not (tmp_path / "y.ckpt").exists()
