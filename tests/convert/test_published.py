"""Recipes of published detectors: the data files, how one is found, and what a conversion takes from it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch_files
from test_convert import arrays_of, source_file

from aidet import ckpt
from aidet.detector.network import Network
from aidet.errors import UserError
from aidet.images import Pipeline
from convert import conversion, hub, published, reading, reverse
from convert.__main__ import run as command
from convert.families import families
from convert.parity.torch_detectors import AUTHORS
from convert.plan import build

OWN = """\
name: mine
url: https://example.org/mine
prefix: net.body.
architecture: cifar_resnet20
layout: akamaster
transform: decode | resize(40, bicubic) | center_crop(32) | normalize(half)
voting: {votes: 3, views: native}
evidence: {min_side: 64}
classes: [sdxl, photo]
order: [generated, real]
licence: MIT
paper: A paper
"""


def recipe(folder, text=OWN, name="mine"):
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """CIFAR ResNet-20 with two outputs under a prefix of its own."""
    folder = tmp_path_factory.mktemp("weights")
    path, arrays = source_file(folder, "cifar_resnet20", "akamaster", {"num_classes": 2})
    tensors = {f"net.body.{k}": t.array() for k, t in reading.read(path).tensors.items()}
    reverse.write_safetensors(folder / "w.safetensors", tensors, {})
    return folder / "w.safetensors", arrays


# --- the files of the project ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", published.names())
def test_every_recipe_is_sound(name):
    found = published.load(name)
    known = [a for f in families() for a in f.architectures]
    assert found.architecture in (None, *known)
    assert found.layout is None or any(found.layout in f.layout_names() for f in families())
    assert found.classes or found.repositories, "a file without config.json does not name its classes"
    if found.unsupported:
        with pytest.raises(UserError, match=f"{name} .*cannot be converted: "):
            published.resolve(name)
    elif found.transform:
        assert Pipeline(found.transform).affine() is not None
    else:
        assert found.repositories or found.notes, "nothing says how its images are prepared"


def test_no_two_recipes_claim_one_repository():
    every = [r for recipe in published.all_recipes() for r in recipe.repositories]
    assert len(every) == len(set(every))


def test_the_references_know_the_same_preprocessing():
    """AUTHORS was written from the authors' code, the recipes are compared with it: no row may be left without one."""
    for name, (resize, crop, (mean, std)) in AUTHORS.items():
        line = Pipeline(published.load(name).transform)
        scale, offset = line.affine()
        assert np.allclose(scale, 1 / np.array(std)) and np.allclose(offset, -np.array(mean) / std, atol=1e-6), name
        sizes = [s for s in (crop, resize and resize[0]) if s]
        size = sizes[0] if sizes else None
        assert line.size() == ((size, size) if isinstance(size, int) else size), name


# --- finding one -----------------------------------------------------------------------------------------------------
def test_a_recipe_is_found_by_name_and_by_hub_id(monkeypatch, tmp_path):
    asked = []

    def locate(src, patterns=()):
        asked.append((str(src), tuple(patterns)))
        return tmp_path, {"repository": str(src)}

    monkeypatch.setattr(hub, "locate", locate)
    assert published.resolve("commfor-384")[0].name == "commfor-384"
    assert published.resolve("OwensLab/commfor-model-384")[0].name == "commfor-384"
    assert published.resolve("Dafilab/ai-image-detector")[0].name == "dafilab"
    assert published.resolve("someone/else")[0] is None
    assert published.resolve("commfor-384", sources=["x.pt"])[1] == [tmp_path]
    ids = ["OwensLab/commfor-model-384"] * 2 + ["Dafilab/ai-image-detector", "someone/else", "x.pt"]
    assert [src for src, _ in asked] == ids and asked[2][1] == ("*.pth",)


def test_what_is_not_on_the_hub_says_where_it_is():
    with pytest.raises(UserError, match="cnnspot are not on the hub: fetch .*CNNDetection.*name it with --source"):
        published.resolve("cnnspot")
    with pytest.raises(UserError, match="unknown recipe 'cnnspt'; did you mean 'cnnspot'"):
        published.load("cnnspt")
    with pytest.raises(UserError, match="--source goes with the name of a recipe"):
        published.resolve("a.pth", sources=["b.pth"])


def test_a_path_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("npr").mkdir()
    assert published.resolve("npr")[0] is None


@pytest.mark.parametrize(
    "line, message",
    [
        ("licens: MIT", "unknown field 'licens'; did you mean 'licence'"),
        ("classes: [1, 0]", "must be texts; put quotes"),
        ("order: [fake, real]", "must say real or generated for each of classes"),
        ("transform: decode | squash(3)", "unknown operation 'squash'"),
        ("arguments: [1]", r"arguments \(=\[1\]\) must be a dict"),
        ("parts: [{file: a, form: b}]", "unknown field of a part 'form'"),
        ("url: ''\nrepositories: []", "needs the url of its authors, or repositories"),
        ("name: other", "must be that of the file, 'mine'"),
        ("classes: [a, b]\norder: []", "do not say which one means generated.*or write an order"),
        ("a: {", "cannot be read"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, line, message):
    keys = {part.split(":")[0] for part in line.splitlines()}
    rest = [each for each in OWN.splitlines() if each.split(":")[0] not in keys]
    path = recipe(tmp_path, "\n".join([*rest, line]))
    with pytest.raises(UserError, match=message):
        published.load(path)


# --- converting with one ---------------------------------------------------------------------------------------------
def test_the_sidecar_takes_what_the_recipe_knows(tmp_path, weights, capsys):
    path, arrays = weights
    command([str(path), str(tmp_path / "x.ckpt"), "--recipe", str(recipe(tmp_path))])
    said = capsys.readouterr().out
    assert "took the prefix 'net.body.'" in said and "recipe  mine: https://example.org/mine" in said
    facts = ckpt.read_sidecar(tmp_path / "x.ckpt")
    assert facts["class_order"] == ["generated", "real"] and facts["classes"] == ["sdxl", "photo"]
    assert facts["input"]["transform"] == "decode | resize(40, bicubic) | center_crop(32) | normalize(half)"
    assert facts["input"]["size"] == [32, 32] and facts["voting"] == {"votes": 3, "views": "native"}
    assert ckpt.Sidecar(facts, "x").evidence == ckpt.Evidence(min_side=64)
    assert facts["recipe"]["name"] == "mine" and facts["recipe"]["paper"] == "A paper"
    assert facts["source"]["licence"] == "MIT"
    got = ckpt.load_arrays(tmp_path / "x.ckpt")
    assert all(np.array_equal(got[n], arrays[n]) for n in arrays)
    assert command(["check", str(tmp_path / "x.ckpt")]) == 0


def test_other_classes_than_the_recipe_are_refused(tmp_path, weights):
    path, _ = weights
    mine = str(recipe(tmp_path))
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "model.safetensors").write_bytes(path.read_bytes())
    (tmp_path / "w" / "config.json").write_text(json.dumps({"id2label": {"0": "photo", "1": "sdxl"}}))
    with pytest.raises(UserError, match=r"classes \(photo, sdxl\) are not those of the recipe mine \(sdxl, photo\)"):
        conversion.convert(tmp_path / "w", tmp_path / "x.ckpt", recipe=mine, level="none")
    assert not (tmp_path / "x.ckpt").exists()
    # Names that transformers made up say nothing against the recipe, and the user's word is the last.
    (tmp_path / "w" / "config.json").write_text(json.dumps({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    made = conversion.convert(tmp_path / "w", tmp_path / "x.ckpt", recipe=mine, dry_run=True, say=lambda line: None)
    assert made.sidecar["class_order"] == ["generated", "real"]
    made = conversion.convert(
        tmp_path / "w", tmp_path / "x.ckpt", recipe=mine, positive="1", dry_run=True, say=lambda line: None
    )
    assert made.sidecar["class_order"] == ["real", "generated"]


def test_the_alpha_of_adapters_comes_from_the_recipe(tmp_path, weights):
    path, arrays = weights
    tensors = {k: t.array() for k, t in reading.read(path).tensors.items()}
    tensors["net.body.linear.original.weight"] = tensors.pop("net.body.linear.weight")
    tensors["net.body.linear.original.bias"] = tensors.pop("net.body.linear.bias")
    low, up = np.full((2, 64), 0.5, np.float32), np.full((2, 2), 0.25, np.float32)
    tensors.update({"net.body.linear.lora_A.weight": low, "net.body.linear.lora_B.weight": up})
    reverse.write_safetensors(tmp_path / "lora.safetensors", tensors, {})
    mine = str(recipe(tmp_path, OWN + "lora_alpha: 8\n"))
    conversion.convert(
        tmp_path / "lora.safetensors", tmp_path / "x.ckpt", recipe=mine, level="none", say=lambda line: None
    )
    got = ckpt.load_arrays(tmp_path / "x.ckpt")
    name = next(n for n, a in arrays.items() if a.shape == (2, 64))
    np.testing.assert_allclose(got[name], arrays[name] + 8 / 2 * (up @ low), atol=1e-6)
    with pytest.raises(UserError, match="lora_alpha .=True. must be a float"):
        published.load(recipe(tmp_path, OWN.replace("mine", "other") + "lora_alpha: true\n", "other"))


def test_the_recipes_names_of_classes_may_be_used(tmp_path, weights):
    path, _ = weights
    for option in ({"positive": "photo"}, {"real": "SDXL"}, {"positive": "1"}):
        made = conversion.convert(
            path, tmp_path / "x.ckpt", recipe=str(recipe(tmp_path)), dry_run=True, say=lambda line: None, **option
        )
        assert made.sidecar["classes"] == ["sdxl", "photo"] and made.sidecar["class_order"] == ["real", "generated"]
    with pytest.raises(UserError, match="'sora' is neither one of the classes .'sdxl', 'photo'."):
        conversion.convert(path, tmp_path / "x.ckpt", recipe=str(recipe(tmp_path)), positive="sora", dry_run=True)


def test_a_recipe_takes_the_set_of_weights_that_is_asked_for(tmp_path, weights):
    path, arrays = weights
    tensors = {k: t.array() for k, t in reading.read(path).tensors.items()}
    both = {f"{s}.{k}": a + n for n, s in enumerate(("net", "ema_model")) for k, a in tensors.items()}
    reverse.write_safetensors(tmp_path / "both.safetensors", both, {})
    mine = str(recipe(tmp_path))
    conversion.convert(
        tmp_path / "both.safetensors", tmp_path / "x.ckpt", recipe=mine, weights="ema", level="none", say=lambda _: None
    )
    got = ckpt.load_arrays(tmp_path / "x.ckpt")
    assert all(np.array_equal(got[n], arrays[n] + 1) for n in arrays)
    assert (
        command(["check", str(tmp_path / "x.ckpt"), "--source", str(tmp_path / "both.safetensors"), "--recipe", mine])
        == 0
    )
    with pytest.raises(UserError, match="--weights ema chooses among the sets of one file; univfd is fc_weights"):
        published.load("univfd").read([tmp_path], "ema")


def test_a_recipe_of_ones_own_is_named_again_to_check(tmp_path, weights, capsys):
    path, _ = weights
    made, mine = str(tmp_path / "x.ckpt"), str(recipe(tmp_path))
    command([str(path), made, "--recipe", mine])
    with pytest.raises(UserError, match="made by the recipe 'mine', a file of your own: name it with --recipe"):
        command(["check", made, "--source", str(path)])
    capsys.readouterr()
    assert command(["check", made, "--source", str(path), "--recipe", mine]) == 0
    said = capsys.readouterr().out
    assert "equal to the source bit by bit" in said and "outputs not compared; --reference REF.npz would prove" in said
    with pytest.raises(UserError, match="--arch, --layout and --recipe say how to read"):
        command(["check", made, "--recipe", mine])


@pytest.mark.parametrize("filled, end", [(4, 2), (2, 4), (1, 6), (0, 6)])
def test_a_prompt_ends_in_front_of_what_fills_its_rest(filled, end):
    from convert.families.fatformer import _end

    rows = np.random.default_rng(0).normal(size=(7, 3))
    rows[7 - filled :] = rows[-1]
    assert _end(rows) == end


def test_a_detector_of_other_images_scores_no_photograph(tmp_path, weights):
    path, _ = weights
    mine = recipe(tmp_path, OWN + "refuse: it looks at spectra\n")
    conversion.convert(path, tmp_path / "x.ckpt", recipe=str(mine), level="none", say=lambda line: None)
    assert ckpt.read_sidecar(tmp_path / "x.ckpt")["input"]["refuse"] == "it looks at spectra"
    with pytest.raises(UserError, match="x.ckpt' scores no photograph: it looks at spectra"):
        Network(tmp_path / "x.ckpt", "x")
    assert all(published.load(name).refuse for name in ("dire", "lgrad"))


def test_keys_are_renamed(tmp_path, weights):
    path, arrays = weights
    text = OWN.replace("prefix: net.body.", r"rename: {'net\.body\.(.*)': '\1'}")
    source = published.load(recipe(tmp_path, text)).read([path])
    assert "linear.weight" in source.tensors and len(source.tensors) == len(arrays)
    text = OWN.replace("prefix: net.body.", "rename: {'.*': x}")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="and another key are both 'x'"):
        published.load(recipe(tmp_path / "other", text)).read([path])
    (tmp_path / "third").mkdir()
    with pytest.raises(UserError, match=r"rename '\('"):
        published.load(recipe(tmp_path / "third", OWN + "rename: {'(': x}\n"))


def test_a_detector_of_several_files(tmp_path):
    """FreDect: the network in one file, and two maps of coefficients that are bare tensors."""
    arrays = arrays_of("fredect_resnet18", {"image_size": 32, "num_classes": 1})
    family = next(f for f in families() if f.name == "fredect")
    tensors = reverse.to_layout(arrays, family, family.layout("fredect"), "fredect_resnet18", {"image_size": 32})
    maps = {name: tensors.pop(name) for name in ("dct_mean", "dct_var")}
    reverse.write_safetensors(tmp_path / "net.safetensors", tensors, {})
    for name, array in maps.items():
        torch_files.bare(tmp_path / name, array)
    text = (published.FOLDER / "fredect.yaml").read_text().replace("FreDect*.pth", "net.safetensors")
    text = text.replace("name: fredect", "name: mine").replace("resnet50", "resnet18").replace("224}", "32}")
    mine = published.load(recipe(tmp_path, text))
    source = mine.read([tmp_path])
    assert all(np.array_equal(source.tensors[n].array(), maps[n]) for n in maps)
    named = mine.read([tmp_path / n for n in ("dct_var", "net.safetensors", "dct_mean")])
    assert {k: t.shape for k, t in named.tensors.items()} == {k: t.shape for k, t in source.tensors.items()}
    three = [str(tmp_path / n) for n in ("net.safetensors", "dct_mean", "dct_var")]
    own = ["--recipe", str(tmp_path / "mine.yaml")]
    assert command([three[0], str(tmp_path / "x.ckpt"), *own, "--source", three[1], "--source", three[2]]) == 0
    again = [word for path in three for word in ("--source", path)]
    assert command(["check", str(tmp_path / "x.ckpt"), *again, *own]) == 0
    with pytest.raises(UserError, match="made of 3 files, 1 given: net.safetensors, the ResNet-50.*--source"):
        mine.read([tmp_path / "net.safetensors"])
    (tmp_path / "dct_var").unlink()
    with pytest.raises(UserError, match="holds 0 files 'dct_var', which mine needs"):
        mine.read([tmp_path])
    with pytest.raises(UserError, match="holds no single tensor"):
        reading.read_bare(tmp_path / "mine.yaml", "x")
    whole = (tmp_path / "dct_mean").read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 10):
        (tmp_path / "dct_mean").write_bytes(whole[:length])
        with pytest.raises(UserError, match="truncated file"):
            reading.read_bare(tmp_path / "dct_mean", "x")


@pytest.mark.parametrize("name", ["none", "x", "left_diagonal"])
def test_ladeda_looks_through_the_filter_that_it_is_given(name):
    import mindspore as ms

    from aidet import runtime

    runtime.setup(device="CPU", mode="pynative")
    x = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    net = build("tiny_ladeda", {"input_filter": name}, 1, weights=True).set_train(False)
    seen = net.filter(ms.Tensor(x)).asnumpy()
    if name == "none":
        assert np.array_equal(seen, x)
    elif name == "x":
        row = x[:, :, 5, 2:5] * [-1, 0, 1] + 2 * x[:, :, 6, 2:5] * [-1, 0, 1] + x[:, :, 7, 2:5] * [-1, 0, 1]
        assert np.allclose(seen[:, :, 6, 3], row.sum(-1), atol=1e-5)
    else:
        assert np.allclose(seen, -np.swapaxes(seen_of(x), 2, 3), atol=1e-5)
    with pytest.raises(UserError, match="unknown input_filter 'xx'"):
        build("tiny_ladeda", {"input_filter": "xx"}, 1)


def seen_of(x):
    """The left diagonal of the transposed image: the kernel is antisymmetric about its diagonal."""
    import mindspore as ms

    from aidet.models.ladeda import Gradient

    return Gradient("left_diagonal")(ms.Tensor(np.ascontiguousarray(np.swapaxes(x, 2, 3)))).asnumpy()
