"""Wrappers, keys beside the net, heads under other names, classes and preprocessing: what a real file brings along."""

import json
import re

import numpy as np
import pytest

from aidet import ckpt, runtime
from aidet.errors import UserError
from convert import __main__ as command
from convert import prefixes, reading, reverse
from convert.families import family_of
from convert.plan import build, make_plan


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.fixture(scope="module")
def net():
    """Keys and random weights of a CIFAR ResNet-20 with two outputs, whose classifier is `linear`."""
    runtime.setup(device="CPU", mode="pynative")
    rng = np.random.default_rng(0)
    arrays = {
        p.name: rng.normal(0, 0.1, p.shape).astype(np.float32) for p in build("cifar_resnet20", {}, 2).get_parameters()
    }
    family = family_of("cifar_resnet20")
    return reverse.to_layout(arrays, family, family.layout("akamaster"), "cifar_resnet20", {})


def under(prefix, arrays):
    return {prefix + k: a for k, a in arrays.items()}


def plan_of(arrays, **options):
    source = reading.Source({k: reading.ArrayRef(a) for k, a in arrays.items()}, ["x.pth"], "torch")
    return make_plan(source, **options), source


def same(plan, arrays):
    """Whether the plan has the net's tensors and no others."""
    return {k: t.array().tobytes() for k, t in plan.tensors.items()} == {k: a.tobytes() for k, a in arrays.items()}


# --- prefixes
WRAPPED = (
    "module. vit. netC. detector.backbone. module._orig_mod. model.model.backbone. _fsdp_wrapped_module. "
    "_forward_module. _forward_module.module._fsdp_wrapped_module.model. module.detector._orig_mod.net."
).split()


@pytest.mark.parametrize("prefix", WRAPPED)
def test_wrappers_come_off_in_any_nesting(net, prefix):
    plan, source = plan_of(under(prefix, net))
    assert same(plan, net) and not plan.beside
    assert all(part in " ".join(source.notes) for part in prefix.split("."))


def test_wrappers_of_single_modules_come_out(net):
    """FSDP and activation checkpointing wrap blocks; torch.compile may be on one part only."""
    inside = {
        re.sub(r"^(layer\d)\.(\d)\.", r"\1._fsdp_wrapped_module.\2._checkpoint_wrapped_module.", k): a
        for k, a in net.items()
    }
    inside = {k.replace("linear.", "_orig_mod.linear."): a for k, a in inside.items()}
    assert same(plan_of(inside)[0], net)
    clash = {**net, "linear._orig_mod.weight": zeros(1)}  # would become a second linear.weight
    with pytest.raises(UserError, match=r"\+ in file, not in model: linear._orig_mod.weight"):
        plan_of(clash)


BESIDE = {
    "criterion.pos_weight": "loss",
    "loss_fn.weight": "loss",
    "pos_weight": "loss",
    "train_acc.tp": "metric",
    "val_metrics.BinaryAccuracy.tp": "metric",
    "test_auroc.preds.0": "metric",
    "train_loss.mean_value": "loss",
    "mean": "preprocessing",
    "std": "preprocessing",
    "normalize.mean": "preprocessing",
    "n_averaged": "counter",
    "ema_model.linear.bias": "--weights ema",
}


@pytest.mark.parametrize("prefix", ["", "model.", "module.detector.backbone."])
def test_keys_beside_the_net_are_dropped_with_their_reason(net, prefix):
    plan, _ = plan_of({**under(prefix, net), **{k: zeros(3) for k in BESIDE}})
    assert same(plan, net if prefix else {**net, **{k: zeros(3) for k in BESIDE}})
    assert plan.beside.keys() == BESIDE.keys()
    for key, word in BESIDE.items():
        assert word in plan.beside[key] and plan.report["dropped"][key] == plan.beside[key]


KEEP = (
    "avg_pool.weight average.weight accelerator.weight lossless.weight mean_head.weight apex.tp.weight fc.std.weight"
).split()


@pytest.mark.parametrize("key", KEEP)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_key_that_may_belong_to_the_net_is_never_dropped(net, prefix, key):
    with pytest.raises(UserError, match=rf"1 difference.*\+ in file.*{re.escape(key)}.*--drop"):
        plan_of({**under(prefix, net), key: zeros(3)})
    plan, _ = plan_of({**under(prefix, net), key: zeros(3)}, drop=[key[:4] + "*"])
    assert plan.beside == {key: f"--drop {key[:4]}*"}


def test_drop_and_prefix_that_fit_nothing_say_what_there_is(net):
    with pytest.raises(UserError, match=r"--drop 'x\*' matches none of the \d+ keys \(bn1.bias"):
        plan_of(net, drop=["x*"])
    with pytest.raises(UserError, match=r"--prefix 'foo': no key begins with it; there are 'bar.net.' \(\d+\)"):
        plan_of(under("bar.net.", net), prefix="foo")


def test_any_prefix_by_option(net):
    arrays = {**under("bar.deep.", net), "generator.weight": zeros(2)}
    with pytest.raises(UserError, match="fit cifar_resnet/akamaster: --prefix bar.deep;"):
        plan_of(arrays)
    for prefix in ("bar.deep", "bar.deep."):
        plan, source = plan_of(arrays, prefix=prefix)
        assert same(plan, net) and plan.beside == {"generator.weight": "not under --prefix bar.deep."}
        assert "took the prefix 'bar.deep.'" in source.notes[0]
    assert same(plan_of(under("bar.deep.module.", net), prefix="bar.deep")[0], net)


# --- near misses
@pytest.fixture(scope="module")
def resnet():
    """Keys and shapes of a torchvision ResNet-18 with two outputs."""
    runtime.setup(device="CPU", mode="pynative")
    family = family_of("resnet18")
    arrays = {p.name: zeros(*p.shape) for p in build("resnet18", {"padding": "symmetric"}, 2).get_parameters()}
    return reverse.to_layout(arrays, family, family.layout("torchvision"), "resnet18", {})


def test_a_near_miss_names_layout_counts_and_keys(net, resnet):
    half = {k: a for k, a in resnet.items() if not k.startswith("layer4")}
    wanted = r"nearest is resnet/torchvision, which knows 77 of 78 keys but not odd.weight and wants .* layer4.0.conv1"
    with pytest.raises(UserError, match=wanted):
        plan_of({**half, "odd.weight": zeros(2, 64)})
    with pytest.raises(UserError, match=r"fit no known layout as layout 'hf' \(without the option: akamaster\)"):
        plan_of(net, layout="hf")
    with pytest.raises(UserError, match="fit no known layout; `python -m convert list`"):
        plan_of({"a.b": zeros(1), "c": zeros(2)})


@pytest.mark.parametrize("name", ["head.fc", "head", "classifier.1", "classifier", "last_linear", "decision"])
def test_heads_under_other_names(resnet, name):
    plan, source = plan_of({re.sub(r"^fc\b", name, k): a for k, a in resnet.items()})
    assert plan.num_classes == 2 and set(plan.tensors) == set(resnet)
    assert source.notes == [
        f"read {name!r} as the classifier 'fc': what stands before it must do nothing, as a Dropout"
    ]


@pytest.mark.parametrize("name", ["fc.1", "fc.0"])
def test_a_head_behind_a_dropout_is_a_head_of_one_layer(resnet, name):
    plan, _ = plan_of({re.sub(r"^fc\b", name, k): a for k, a in resnet.items()})
    assert plan.layout.name == "torchvision-mlp" and plan.num_classes == 2
    assert {f"{name}.weight", f"{name}.bias"} <= set(plan.tensors)


def test_heads_that_cannot_be_read_say_why(resnet):
    body = {k: a for k, a in resnet.items() if not k.startswith("fc.")}
    shapes = {"head.1.weight": (8, 512), "head.1.bias": (8,), "head.4.weight": (2, 8), "head.4.bias": (2,)}
    chain = {name: zeros(*shape) for name, shape in shapes.items()}
    with pytest.raises(
        UserError, match=r"chain of 2 layers \(head.1.weight \(8, 512\), head.4.weight \(2, 8\)\).*--head init"
    ):
        plan_of({**body, **chain})
    with pytest.raises(
        UserError, match=r"no classifier \(fc.weight\); of no layer of the net are proj.weight \(2, 512\)"
    ):
        plan_of({**body, "proj.weight": zeros(2, 512)})
    with pytest.raises(UserError, match="without the prefix of the net are other.fc.weight"):
        plan_of({**under("model.", body), "other.fc.weight": zeros(2, 512)})


# --- the whole command
@pytest.fixture
def converted(net, tmp_path, capsys):
    """Convert the net with files beside it; returns the sidecar, the report and the screen."""

    def run(*flags, arrays=None, config=None, **others):
        reverse.write_safetensors(tmp_path / "model.safetensors", arrays or net, {})
        for name, content in {"config.json": config, **others}.items():
            (tmp_path / name).unlink(missing_ok=True)
            if content is not None:
                (tmp_path / name).write_text(json.dumps(content))
        argv = [tmp_path / "model.safetensors", tmp_path / "x.ckpt", "--report", tmp_path / "r.json"]
        argv += ["--verify", "none", *flags]
        assert command.run([str(a) for a in argv]) == 0
        return (
            ckpt.Sidecar.read(tmp_path / "x.ckpt"),
            json.loads((tmp_path / "r.json").read_text()),
            capsys.readouterr().out,
        )

    return run


def test_the_screen_the_report_and_the_sidecar_say_what_was_done(net, converted, tmp_path, capsys):
    arrays = {**under("deep.er.", net), "criterion.pos_weight": zeros(1), "mean": zeros(3), "odd": zeros(2)}
    sidecar, report, said = converted("--prefix", "deep.er", "--drop", "od*", "--positive", "1", arrays=arrays)
    assert (
        "drop    odd: --drop od*" in said and "drop    criterion.pos_weight, mean: not under --prefix deep.er." in said
    )
    assert "took the prefix 'deep.er.'" in said and "note    mean in the file is [0.0, 0.0, 0.0]" in said
    assert report["dropped"]["odd"] == "--drop od*"
    assert sidecar.source_options == {"prefix": "deep.er", "drop": ["od*"]}
    # A later check reads the source in the same way.
    assert command.run(["check", str(tmp_path / "x.ckpt"), "--source", str(tmp_path / "model.safetensors")]) == 0
    assert "97 of 97 equal" in capsys.readouterr().out


def test_averaged_weights_by_option(net, converted, tmp_path, capsys):
    arrays = {**under("model.", net), **{"model_ema." + k: a + 1 for k, a in net.items()}}
    _, report, said = converted("--weights", "ema", arrays=arrays)
    assert "took the 97 tensors under 'model_ema.' (--weights ema)" in said and len(report["dropped"]) == 97
    assert np.allclose(ckpt.load_arrays(tmp_path / "x.ckpt")["classifier.bias"], net["linear.bias"] + 1)
    assert command.run(["check", str(tmp_path / "x.ckpt"), "--source", str(tmp_path / "model.safetensors")]) == 0
    _, _, said = converted(arrays=arrays)
    assert "averaged weights beside the net's own; --weights ema takes them" in said
    assert np.array_equal(ckpt.load_arrays(tmp_path / "x.ckpt")["classifier.bias"], net["linear.bias"])


# --- classes
NAMES = {
    "placeholders": ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None),
    "realism": ({"id2label": {"0": "Realism", "1": "Deepfake"}}, ["real", "generated"]),
    "chinese": ({"id2label": {"0": "真", "1": "假"}}, ["real", "generated"]),
    "longer chinese": ({"id2label": {"0": "AI生成", "1": "真实照片"}}, ["generated", "real"]),
    "only label2id": ({"label2id": {"human": "0", "artificial": 1}}, ["real", "generated"]),
    "label2id beside placeholders": (
        {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"fake": 0, "real": 1}},
        ["generated", "real"],
    ),
    "generators": ({"id2label": {"0": "midjourney", "1": "nature"}}, ["generated", "real"]),
    "two that are generated": ({"id2label": {"0": "AI", "1": "Deepfake"}}, None),
}


@pytest.mark.parametrize("config, order", NAMES.values(), ids=NAMES.keys())
def test_class_names(converted, config, order):
    sidecar, report, said = converted(config=config)
    assert sidecar.class_order == report["class_order"] == order
    if order is None:
        assert "no detector yet" in said and "--positive NAME[,NAME...] or --real NAME[,NAME...]" in said
        with pytest.raises(UserError, match="is no detector.*--positive NAME"):
            sidecar.detector_order  # noqa: B018
    else:
        assert f"{sidecar.classes[0]} {order[0]}, {sidecar.classes[1]} {order[1]}" in said


def test_names_that_the_options_complete(converted):
    config = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    for flags in (("--positive", "LABEL_0"), ("--real", "LABEL_1"), ("--positive", "0"), ("--real", "1")):
        assert converted(*flags, config=config)[0].class_order == ["generated", "real"]


def test_several_generated_classes_are_summed(net, converted):
    three = {**net, "linear.weight": zeros(3, 64), "linear.bias": zeros(3)}
    config = {"id2label": {"0": "dalle", "1": "real", "2": "sd"}}
    for flags in ((), ("--positive", "dalle"), ("--positive", "0,sd"), ("--real", "real")):
        sidecar, _, said = converted(*flags, arrays=three, config=config)
        assert sidecar.class_order == ["generated", "real", "generated"], flags
        assert "classes dalle generated, real real, sd generated" in said
    from aidet import labels

    logits = np.log([[0.3, 0.4, 0.3], [0.1, 0.8, 0.1]])
    assert np.allclose(labels.score_from_logits(logits, sidecar.class_order), np.log([0.6 / 0.4, 0.2 / 0.8]))
    config = {"id2label": {"0": "A", "1": "B", "2": "C"}}
    with pytest.raises(UserError, match="class 'B' is neither in --positive nor in --real"):
        converted("--positive", "A", arrays=three, config=config)
    assert converted("--real", "B", arrays=three, config=config)[0].class_order == ["generated", "real", "generated"]


def test_one_output(net, converted):
    one = {**net, "linear.weight": zeros(1, 64), "linear.bias": zeros(1)}
    sidecar, _, said = converted(arrays=one)
    assert sidecar.class_order is None
    remedy = "--positive 0 if a high value means generated, --real 0 if it means real"
    assert "no detector yet" in said and remedy in said
    with pytest.raises(UserError, match=remedy):
        converted("--positive", "1", arrays=one)
    assert converted("--positive", "0", arrays=one)[0].class_order == ["generated"]
    assert converted("--real", "0", arrays=one)[0].class_order == ["real"]
    sidecar, report, _ = converted("--positive", "0", arrays=one, config={"id2label": {"0": "real", "1": "fake"}})
    assert sidecar.class_order == ["generated"] and "two classes (real, fake) for one output" in str(report["notes"])


@pytest.mark.parametrize("config", [{"id2label": {"1": "a", "2": "b"}}, {"label2id": {"a": 0, "b": 0}}])
def test_class_numbers_that_make_no_sense(converted, config):
    with pytest.raises(UserError, match="config.json"):
        converted(config=config)


# --- preprocessing
def test_a_guess_is_called_a_guess(converted):
    sidecar, report, said = converted()
    assert sidecar.transform_is_guess and report["preprocessing"]["guess"] is True
    assert f"input   {sidecar.transform}: a guess, no file says it" in said and "--transform LINE sets it" in said
    line = "decode | resize(40) | center_crop(32) | normalize(half)"
    sidecar, report, said = converted("--transform", line)
    assert sidecar.transform == line and not sidecar.transform_is_guess and sidecar.size == (32, 32)
    assert f"input   {line} (--transform)" in said and report["preprocessing"]["from"] == "--transform"
    processor = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    sidecar, _, said = converted(**{"preprocessor_config.json": processor})
    assert not sidecar.transform_is_guess and "(preprocessor_config.json)" in said
    assert sidecar.raw["input"]["transform_from"] == "preprocessor_config.json"
    with pytest.raises(UserError, match="--transform 'decode | rezise.8.'"):
        converted("--transform", "decode | rezise(8)")


# --- what was compared with what
def test_the_report_says_what_was_compared(converted):
    _, report, _ = converted("--verify", "tensors")
    assert report["compared_with"] == "the tensors of the source file; the outputs were not compared"
    _, report, _ = converted()
    assert report["compared_with"] == "nothing"


def test_stored_outputs_name_their_maker_and_twins_are_named(net, converted, tmp_path):
    from convert.parity import compare

    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    converted()
    logits, _ = compare.run(ckpt.load_model(tmp_path / "x.ckpt"), x)
    meta = {"made_by": "timm.models.resnet.ResNet", "versions": {"timm": "1.0"}}
    compare.Reference(meta, x, logits, {}).save(tmp_path / "ref.npz")
    _, report, said = converted("--verify", "logits", "--reference", str(tmp_path / "ref.npz"))
    assert report["compared_with"] == "stored outputs of timm.models.resnet.ResNet (timm 1.0)"
    assert f"against {report['compared_with']}" in said


def test_a_forward_that_keys_do_not_show_is_named(resnet):
    from convert.parity import compare, statement

    plan, source = plan_of(resnet)
    text = statement.caveat(plan, source)
    assert "strides" in text and "torchvision" in text
    source.config = {"model_type": "resnet"}
    assert statement.caveat(plan, source) is None
    row = {"largest": 0.0, "mean": 0.0, "scale": 1.0, "cosine": 1.0, "ok": True}
    said = compare.lines({"logits": row, "tolerance": 1e-4, "not_proven": text, "compared_with": "a net"})
    assert said[0] == "against a net" and said[-1].endswith(text)


def test_reasons_are_for_whole_keys():
    assert prefixes.reason("criterion.pos_weight") and prefixes.reason("train_acc.tp")
    assert not prefixes.reason("layer1.mean.weight") and not prefixes.reason("emaciated.weight")
