"""Architectures: exact parameter counts, names shared with MindCV, and code that exports."""

import ast
from pathlib import Path

import mindcv_check
import pytest

from aidet import models
from aidet.errors import UserError
from convert.plan import build

# Trainable parameters with the default arguments. For a published network this is the published number (model tables of
# torchvision and timm; AutoencoderKL: diffusers; CLIP: transformers' image tower with projection).
COUNTS = {
    "aekl_clf": 35_245_650,
    "aide": 893_734_732,
    "aidet_tae": 380_007,
    "autoencoder_kl": 83_653_863,
    "beit": 86_530_984,
    "beit_b_16": 86_530_984,
    "beit_l_16": 304_430_568,
    "cifake_cnn": 61_241,
    "cifake_cnn_srm": 61_265,
    "cifar_resnet110": 1_727_962,
    "cifar_resnet20": 269_722,
    "cifar_resnet32": 464_154,
    "cifar_resnet44": 658_586,
    "cifar_resnet56": 853_018,
    "clip_vit": 86_192_640,
    "clip_vit_b_16": 86_192_640,
    "clip_vit_b_32": 87_849_216,
    "clip_vit_l_14": 303_966_208,
    "clip_vit_l_14_336": 304_293_888,
    "convnext_base": 88_591_464,
    "convnext_small": 50_223_688,
    "convnext_tiny": 28_589_128,
    "convnext_v2_atto": 3_708_400,
    "convnext_v2_base": 88_717_800,
    "convnext_v2_femto": 5_233_240,
    "convnext_v2_large": 197_956_840,
    "convnext_v2_nano": 15_623_800,
    "convnext_v2_pico": 9_066_280,
    "convnext_v2_tiny": 28_635_496,
    "d3": 306_330_625,
    "deit": 22_436_432,
    "deit_b_16_224": 87_338_192,
    "deit_b_16_384": 87_630_032,
    "deit_s_16_224": 22_436_432,
    "deit_s_16_384": 22_582_352,
    "deit_t_16_224": 5_910_800,
    "deit_t_16_384": 5_983_760,
    "dinov2_vit": 22_056_192,
    "dinov2_vit_b_14": 86_579_712,
    "dinov2_vit_g_14": 1_136_479_232,
    "dinov2_vit_l_14": 304_367_616,
    "dinov2_vit_s_14": 22_056_192,
    "drct_clip": 304_755_714,
    "drct_convnext_base": 88_618_114,
    "drct_convnext_tiny": 28_609_634,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "efficientnetv2_b0": 7_139_704,
    "efficientnetv2_b1": 8_141_052,
    "efficientnetv2_b2": 10_096_086,
    "efficientnetv2_b3": 14_358_406,
    "efficientnetv2_l": 118_515_272,
    "efficientnetv2_m": 54_139_356,
    "efficientnetv2_s": 21_458_488,
    "fatformer": 454_645_700,
    "fredect_resnet18": 11_478_081,
    "fredect_resnet50": 23_811_137,
    "freqnet": 1_850_433,
    "gramnet_resnet18": 11_734_210,
    "ladeda9": 13_641_793,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large_100": 5_483_032,
    "mobilenet_v3_small_100": 2_542_856,
    "npr_resnet50": 1_437_761,
    "partial_lite0": 969_900,
    "resnest": 27_483_240,
    "resnest50d": 27_483_240,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet50_nodown": 23_510_081,
    "rine": 313_701_377,
    "safe_resnet50": 1_438_274,
    "siglip_dinov2": 733_244_737,
    "siglip_vit": 85_797_120,
    "siglip_vit_b_16": 85_797_120,
    "siglip_vit_b_32": 87_465_216,
    "siglip_vit_l_16": 303_361_024,
    "siglip_vit_so400m_14": 412_987_248,
    "siglip_vit_so400m_16": 413_018_352,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "swin_base": 87_768_224,
    "swin_large": 196_532_476,
    "swin_small": 49_606_258,
    "swin_tiny": 28_288_354,
    "swin_v2": 28_347_154,
    "swin_v2_base": 87_918_816,
    "swin_v2_large": 196_739_932,
    "swin_v2_small": 49_728_418,
    "swin_v2_tiny": 28_347_154,
    "taesana_decoder": 8_301_763,
    "taesana_encoder": 1_256_288,
    "taesd_decoder": 1_222_531,
    "taesd_encoder": 1_222_532,
    "testing": 1_442,
    "tiny_ladeda": 1_297,
    "vit": 22_050_664,
    "vit_b_16_224": 86_567_656,
    "vit_b_16_384": 86_859_496,
    "vit_s_16_224": 22_050_664,
    "vit_s_16_384": 22_196_584,
    "vit_t_16_224": 5_717_416,
    "vit_t_16_384": 5_790_376,
}
# One size of each family; tests/parity/test_mindcv.py has all sizes.
MINDCV = (
    "resnet18",
    "efficientnet_b0",
    "squeezenet1_1",
    "swin_tiny",
    "mobilenet_v3_small_100",
    "convnext_tiny",
)


def test_every_architecture_has_a_row():
    assert set(models.names(own_only=True)) == set(COUNTS)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_exact_parameter_count(name):
    net = build(name, {}, None)
    assert sum(p.size for p in net.trainable_params()) == COUNTS[name]
    names = [p.name for p in net.get_parameters()]
    assert len(names) == len(set(names))


def test_every_name_shared_with_mindcv_is_checked():
    mindcv = pytest.importorskip("mindcv")
    assert set(mindcv.list_models()) & set(COUNTS) == set(mindcv_check.SHARED)


@pytest.mark.parametrize("name", MINDCV)
def test_a_checkpoint_loads_strictly_into_mindcv_and_computes_the_same(tmp_path, name):
    pytest.importorskip("mindcv")
    as_it_is, with_ours = mindcv_check.compare(name, tmp_path)
    assert with_ours < 1e-5
    # MindCV's tanh approximation of GELU and some of its epsilons explain the rest.
    assert as_it_is == with_ours or as_it_is < 2e-2


def test_vit_has_the_parameters_of_mindcv():
    """Names and shapes only: MindCV's smallest ViT has 86 million parameters; `make matrix` loads and runs it."""
    mindcv = pytest.importorskip("mindcv")
    ours = {p.name: tuple(p.shape) for p in build("vit_b_16_224", {}, None).get_parameters()}
    assert ours == {p.name: tuple(p.shape) for p in mindcv.create_model("vit_b_16_224").get_parameters()}


def test_no_construct_works_in_place():
    """`x += y` and `unstack` cannot be exported to ONNX from MindSpore 2.8 on."""
    found = []
    for path in Path(models.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef) and function.name == "construct":
                for node in ast.walk(function):
                    if isinstance(node, ast.AugAssign) or getattr(node, "attr", "") in ("unstack", "unbind"):
                        found.append(f"{path.name}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize("arguments", [{"image_size": 256}, {"image_size": 384, "window_size": 7}])
def test_swin_refuses_sizes_that_do_not_divide(arguments):
    with pytest.raises(UserError, match=f"image_size .={arguments['image_size']}. does not divide"):
        models.create("swin_tiny", **arguments)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("swin_v2_tiny", {"image_size": 224, "window_size": 8}, "image_size .=224. does not divide into windows of 8"),
        ("resnet18", {"pool_stride": 3}, "pool_stride .=3. must be 1 or 2"),
        ("resnet18", {"head": ["gelu"]}, "head: 'gelu': a width, 'norm', 'relu' or 'dropout'"),
        ("beit", {"pooling": "max"}, "pooling: 'max': one of mean, token"),
    ],
)
def test_arguments_that_make_no_net_are_refused(name, arguments, message):
    with pytest.raises(UserError, match=message):
        models.create(name, **arguments)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("clip_vit", {"features": "pooled"}, "unknown features .pooled.; "),
        ("dinov2_vit", {"pool": "max"}, "unknown pool .max.; "),
        ("dinov2_vit", {"act": "relu"}, "unknown act .relu."),
        ("siglip_vit", {"pool": "token"}, "unknown pool .token.; choose from: avg, map"),
        ("vit", {"heads": 5}, r"heads \(=5\) must divide the width 384"),
        ("vit", {"image_size": 15}, r"image_size \(=15\) must be at least the patch of 16 pixels"),
    ],
)
def test_a_tower_refuses_what_does_not_fit(name, arguments, message):
    with pytest.raises(UserError, match=message):
        build(name, arguments, 2)


def test_levels_are_the_first_tokens_behind_every_second_norm():
    import mindspore as ms
    import numpy as np

    small = {"width": 64, "depth": 3, "hidden": 96, "patch_size": 8, "image_size": 16, "projection": 8}
    net = models.create("clip_vit", **small).set_train(False)
    seen = []
    hooks = [
        block.norm2.register_forward_hook(lambda cell, x, y: seen.append(y.asnumpy()[:, 0])) for block in net.blocks
    ]
    x = ms.Tensor(np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32))
    features = net(x).asnumpy()
    for hook in hooks:
        hook.remove()
    levels = net.levels(x).asnumpy()
    assert features.shape == (2, 8) and levels.shape == (2, 3, 64)
    assert np.abs(levels - np.stack(seen, 1)).max() < 1e-6
    # The sequence, normalised and projected, is the features.
    first = net.projection(net.norm(net.tokens(x)[:, 0])).asnumpy()
    assert np.abs(first - features).max() < 1e-6


def test_the_paddings_differ_and_a_lite_net_has_no_gates():
    """Both paddings give maps of the same size but with different values; a lite net has no squeeze-and-excitation."""
    import mindspore as ms
    import numpy as np

    x = ms.Tensor(np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32))
    from aidet.models.layers import conv

    same, symmetric = conv(3, 4, 3, 2, padding="same"), conv(3, 4, 3, 2)
    symmetric.weight.set_data(same.weight)
    a, b = same(x).asnumpy(), symmetric(x).asnumpy()
    assert a.shape == b.shape == (1, 4, 32, 32)
    assert np.allclose(a[:, :, :-1, :-1][:, :, 0, 0], b[:, :, 0, 0]) is False
    names = [p.name for p in build("efficientnet_lite0", {}, None).get_parameters()]
    assert not any("conv_reduce" in n for n in names)


def test_sigmoid_is_as_exact_as_float32_and_falls_back_to_the_operator():
    """MindSpore's CPU kernel has a relative error of up to 5e-6; training and exports still use it."""
    import mindspore as ms
    import numpy as np

    from aidet.models.layers import Sigmoid, Swish, native_sigmoid

    x = np.concatenate([np.linspace(-30, 30, 4001), [-1e4, -200, -89, 0, 89, 200, 1e4]]).astype(np.float32)
    exact = np.exp(-np.logaddexp(0, -x.astype(np.float64)))
    gate, swish = Sigmoid().set_train(False), Swish().set_train(False)
    inside = np.abs(x) <= 30
    assert np.abs(gate(ms.Tensor(x)).asnumpy()[inside] / exact[inside] - 1).max() < 4e-7
    assert np.abs(swish(ms.Tensor(x)).asnumpy() - x * exact).max() < 2e-6
    for cell in (gate, swish):
        assert np.isfinite(ms.grad(cell)(ms.Tensor(x)).asnumpy()).all()
    kernel = ms.ops.sigmoid(ms.Tensor(x)).asnumpy()
    with native_sigmoid(gate):
        assert np.array_equal(gate(ms.Tensor(x)).asnumpy(), kernel)
    assert not np.array_equal(gate(ms.Tensor(x)).asnumpy(), kernel)
    assert np.array_equal(gate.set_train(True)(ms.Tensor(x)).asnumpy(), kernel)


def test_cifake_cnn_starts_as_in_pytorch_or_with_he_weights():
    """torch.nn.Linear draws weights and biases within 1 / sqrt(fan_in); the last layer has 84 inputs."""
    start = models.create("cifake_cnn").fc3
    assert 0.9 / 84**0.5 < abs(start.weight.asnumpy()).max() <= 1 / 84**0.5
    assert 0 < abs(models.create("cifake_cnn").fc1.bias.asnumpy()).max() <= 1 / 400**0.5
    wider = models.create("cifake_cnn_srm", start="he").fc3
    assert abs(wider.weight.asnumpy()).max() > 0.5
    assert not wider.bias.asnumpy().any()
    with pytest.raises(UserError, match="start: 'xavier': one of torch, he"):
        models.create("cifake_cnn", start="xavier")
