"""EfficientNet B0-B7 and Lite0-Lite2: torchvision, timm, lukemelas and Hugging Face names."""

from typing import Tuple

from aidet.errors import UserError
from aidet.models.efficientnet import SIZES, depths

from . import Arguments, Config, Family, Layout, Lookups, Taps, Tensors, count, mindcv, shape

TF = {"padding": "same", "bn_eps": 1e-3}
TORCH = {"padding": "symmetric"}

# Target names: features.0/1 stem, features.3 the stage without expansion, features.4-9, features.10/11 head.
TORCHVISION = (
    ("w", "features.0", "features.0.0"),
    ("bn", "features.1", "features.0.1"),
    ("w", "features.3.{j}.block.0", "features.1.{j}.block.0.0"),
    ("bn", "features.3.{j}.block.1", "features.1.{j}.block.0.1"),
    ("wb", "features.3.{j}.block.3.conv_reduce", "features.1.{j}.block.1.fc1"),
    ("wb", "features.3.{j}.block.3.conv_expand", "features.1.{j}.block.1.fc2"),
    ("w", "features.3.{j}.block.4", "features.1.{j}.block.2.0"),
    ("bn", "features.3.{j}.block.5", "features.1.{j}.block.2.1"),
    ("w", "features.{f}.{j}.block.0", "features.{f-2}.{j}.block.0.0"),
    ("bn", "features.{f}.{j}.block.1", "features.{f-2}.{j}.block.0.1"),
    ("w", "features.{f}.{j}.block.3", "features.{f-2}.{j}.block.1.0"),
    ("bn", "features.{f}.{j}.block.4", "features.{f-2}.{j}.block.1.1"),
    ("wb", "features.{f}.{j}.block.6.conv_reduce", "features.{f-2}.{j}.block.2.fc1"),
    ("wb", "features.{f}.{j}.block.6.conv_expand", "features.{f-2}.{j}.block.2.fc2"),
    ("w", "features.{f}.{j}.block.7", "features.{f-2}.{j}.block.3.0"),
    ("bn", "features.{f}.{j}.block.8", "features.{f-2}.{j}.block.3.1"),
    ("w", "features.10", "features.8.0"),
    ("bn", "features.11", "features.8.1"),
)
TIMM = (
    ("w", "features.0", "conv_stem"),
    ("bn", "features.1", "bn1"),
    ("w", "features.3.{j}.block.0", "blocks.0.{j}.conv_dw"),
    ("bn", "features.3.{j}.block.1", "blocks.0.{j}.bn1"),
    ("wb", "features.3.{j}.block.3.conv_reduce", "blocks.0.{j}.se.conv_reduce"),
    ("wb", "features.3.{j}.block.3.conv_expand", "blocks.0.{j}.se.conv_expand"),
    ("w", "features.3.{j}.block.4", "blocks.0.{j}.conv_pw"),
    ("bn", "features.3.{j}.block.5", "blocks.0.{j}.bn2"),
    ("w", "features.{f}.{j}.block.0", "blocks.{f-3}.{j}.conv_pw"),
    ("bn", "features.{f}.{j}.block.1", "blocks.{f-3}.{j}.bn1"),
    ("w", "features.{f}.{j}.block.3", "blocks.{f-3}.{j}.conv_dw"),
    ("bn", "features.{f}.{j}.block.4", "blocks.{f-3}.{j}.bn2"),
    ("wb", "features.{f}.{j}.block.6.conv_reduce", "blocks.{f-3}.{j}.se.conv_reduce"),
    ("wb", "features.{f}.{j}.block.6.conv_expand", "blocks.{f-3}.{j}.se.conv_expand"),
    ("w", "features.{f}.{j}.block.7", "blocks.{f-3}.{j}.conv_pwl"),
    ("bn", "features.{f}.{j}.block.8", "blocks.{f-3}.{j}.bn3"),
    ("w", "features.10", "conv_head"),
    ("bn", "features.11", "bn2"),
    ("wb", "mlp_head", "classifier"),
)
LUKEMELAS = (
    ("w", "features.0", "_conv_stem"),
    ("bn", "features.1", "_bn0"),
    ("w", "features.3.{j}.block.0", "_blocks.{j}._depthwise_conv"),
    ("bn", "features.3.{j}.block.1", "_blocks.{j}._bn1"),
    ("wb", "features.3.{j}.block.3.conv_reduce", "_blocks.{j}._se_reduce"),
    ("wb", "features.3.{j}.block.3.conv_expand", "_blocks.{j}._se_expand"),
    ("w", "features.3.{j}.block.4", "_blocks.{j}._project_conv"),
    ("bn", "features.3.{j}.block.5", "_blocks.{j}._bn2"),
    ("w", "features.{f}.{j}.block.0", "_blocks.{flat(f,j)}._expand_conv"),
    ("bn", "features.{f}.{j}.block.1", "_blocks.{flat(f,j)}._bn0"),
    ("w", "features.{f}.{j}.block.3", "_blocks.{flat(f,j)}._depthwise_conv"),
    ("bn", "features.{f}.{j}.block.4", "_blocks.{flat(f,j)}._bn1"),
    ("wb", "features.{f}.{j}.block.6.conv_reduce", "_blocks.{flat(f,j)}._se_reduce"),
    ("wb", "features.{f}.{j}.block.6.conv_expand", "_blocks.{flat(f,j)}._se_expand"),
    ("w", "features.{f}.{j}.block.7", "_blocks.{flat(f,j)}._project_conv"),
    ("bn", "features.{f}.{j}.block.8", "_blocks.{flat(f,j)}._bn2"),
    ("w", "features.10", "_conv_head"),
    ("bn", "features.11", "_bn1"),
    ("wb", "mlp_head", "_fc"),
)
_HF = "efficientnet.encoder.blocks."
HF = (
    ("w", "features.0", "efficientnet.embeddings.convolution"),
    ("bn", "features.1", "efficientnet.embeddings.batchnorm"),
    ("w", "features.3.{j}.block.0", _HF + "{j}.depthwise_conv.depthwise_conv"),
    ("bn", "features.3.{j}.block.1", _HF + "{j}.depthwise_conv.depthwise_norm"),
    ("wb", "features.3.{j}.block.3.conv_reduce", _HF + "{j}.squeeze_excite.reduce"),
    ("wb", "features.3.{j}.block.3.conv_expand", _HF + "{j}.squeeze_excite.expand"),
    ("w", "features.3.{j}.block.4", _HF + "{j}.projection.project_conv"),
    ("bn", "features.3.{j}.block.5", _HF + "{j}.projection.project_bn"),
    ("w", "features.{f}.{j}.block.0", _HF + "{flat(f,j)}.expansion.expand_conv"),
    ("bn", "features.{f}.{j}.block.1", _HF + "{flat(f,j)}.expansion.expand_bn"),
    ("w", "features.{f}.{j}.block.3", _HF + "{flat(f,j)}.depthwise_conv.depthwise_conv"),
    ("bn", "features.{f}.{j}.block.4", _HF + "{flat(f,j)}.depthwise_conv.depthwise_norm"),
    ("wb", "features.{f}.{j}.block.6.conv_reduce", _HF + "{flat(f,j)}.squeeze_excite.reduce"),
    ("wb", "features.{f}.{j}.block.6.conv_expand", _HF + "{flat(f,j)}.squeeze_excite.expand"),
    ("w", "features.{f}.{j}.block.7", _HF + "{flat(f,j)}.projection.project_conv"),
    ("bn", "features.{f}.{j}.block.8", _HF + "{flat(f,j)}.projection.project_bn"),
    ("w", "features.10", "efficientnet.encoder.top_conv"),
    ("bn", "features.11", "efficientnet.encoder.top_bn"),
    ("wb", "mlp_head", "classifier"),
)
STACKED = tuple((kind, target, "0." + source) for kind, target, source in TORCHVISION) + (
    ("wb", "mlp_head", "0.classifier.1"),
    ("wb", "classifier", "2"),
)

# Every size has four blocks in the sixth stage; MobileNetV2 has three, and the same names.
_TIMM_MARKS = (
    r"conv_stem\.weight", r"blocks\.1\.0\.conv_pwl\.weight", r"blocks\.5\.3\.conv_pwl\.weight", r"bn2\.weight"
)  # fmt: skip
LAYOUTS = (
    Layout(
        "torchvision",
        (r"features\.0\.0\.weight", r"features\.8\.0\.weight", r"features\.2\.0\.block\.2\.fc1\.weight"),
        TORCHVISION + (("wb", "mlp_head", "classifier.1"),),
        arguments=TORCH,
    ),
    Layout(
        "timm",
        _TIMM_MARKS,
        TIMM,
        without=(r"blocks\.\d+\.\d+\.conv\.weight",),
        arguments=TORCH,
        configured=r"efficientnet_(b\d|lite\d).*",
    ),
    Layout(
        "timm-tf",
        _TIMM_MARKS,
        TIMM,
        without=(r"blocks\.\d+\.\d+\.conv\.weight",),
        arguments=TF,
        configured=r"tf_efficientnet_.*",
    ),
    Layout("lukemelas", (r"_conv_stem\.weight", r"_blocks\.\d+\._expand_conv\.weight"), LUKEMELAS, arguments=TF),
    Layout(
        "hf",
        (r"efficientnet\.encoder\.top_conv\.weight",),
        HF,
        arguments=TF,
        configured="efficientnet",
        stated={"hidden_act": ("swish", "silu"), "pooling_type": ("mean",)},
    ),
    mindcv(r"features\.0\.weight", r"mlp_head\.weight", r"features\.4\.0\.block\.8\.gamma"),
    Layout(
        "stacked",
        (r"0\.features\.0\.0\.weight", r"0\.features\.8\.0\.weight", r"2\.weight"),
        STACKED,
        arguments={**TORCH, "head": "stacked"},
        head=("classifier.weight", "classifier.bias"),
    ),
)

# (head outputs, head inputs, blocks, with squeeze-excite) -> size
_KNOWN = {}
for _size, (_width, _, _, _) in SIZES.items():
    _last = {"lite2": 352}.get(_size, 320 if _size.startswith("lite") else None)
    if _last is None:
        _last = {"b0": 320, "b1": 320, "b2": 352, "b3": 384, "b4": 448, "b5": 512, "b6": 576, "b7": 640}[_size]
    _lite = _size.startswith("lite")
    _KNOWN[(1280 if _lite else 4 * _last, _last, sum(depths(_size)), not _lite)] = _size


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size from the head's shape, the number of blocks and whether there is a squeeze-excite."""
    head = shape(
        tensors,
        "features.8.0.weight",
        "conv_head.weight",
        "_conv_head.weight",
        "efficientnet.encoder.top_conv.weight",
        "0.features.8.0.weight",
        "features.10.weight",
    )
    blocks = max(
        count(tensors, r"(?:0\.)?features\.([1-9]\.\d+)\.block\..*"),
        count(tensors, r"blocks\.(\d+\.\d+)\..*"),
        count(tensors, r"(?:efficientnet\.encoder\.|_)blocks\.(\d+)\..*"),
    )
    gated = any(
        "squeeze_excite" in k or ".se." in k or "_se_" in k or ".fc1." in k or "conv_reduce" in k for k in tensors
    )
    size = _KNOWN.get((head[0], head[1], blocks, gated)) if head else None
    if size is None:
        raise UserError(f"an EfficientNet with head {head} and {blocks} blocks is not one of {', '.join(SIZES)}")
    arguments = dict(layout.arguments)
    if layout.name == "hf":
        arguments["bn_eps"] = float((config or {}).get("batch_norm_eps") or arguments["bn_eps"])
    if arguments.get("padding") == "symmetric":
        arguments["bn_eps"] = 1e-3 if size in ("b5", "b6", "b7") and layout.name != "timm" else 1e-5
    return "efficientnet_" + size, arguments


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """``flat``: (feature, block in it) -> number of the block in the whole net."""
    table, n = {}, 0
    for stage, repeats in enumerate(depths(architecture.split("_")[1])):
        for j in range(repeats):
            table[(stage + 3, j)] = n
            n += 1
    return {"flat": table}


# torchvision's presets: (resize, crop).
_PRESETS = {
    "b0": (256, 224),
    "b1": (256, 240),
    "b2": (288, 288),
    "b3": (320, 300),
    "b4": (384, 380),
    "b5": (456, 456),
    "b6": (528, 528),
    "b7": (600, 600),
}
# timm's crop_pct of the TensorFlow ports.
_CROPS = {"b1": 0.882, "b2": 0.89, "b3": 0.904, "b4": 0.922, "b5": 0.934, "b6": 0.942, "b7": 0.949}
_CROPS.update(lite2=0.89, lite1=0.882)


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """Published evaluation of the library: short edge, central crop."""
    name = architecture.split("_")[1]
    size = SIZES[name][3]
    if layout.name in ("torchvision", "stacked"):
        edge, size = _PRESETS[name]
    else:
        edge = int(size / _CROPS.get(name, 0.875))
    # The TensorFlow ports of Lite; timm's own has ImageNet's.
    statistics = "half" if "lite" in name and layout.name != "timm" else "imagenet"
    return f"decode | resize({edge}, bicubic) | center_crop({size}) | normalize({statistics})"


def taps(architecture: str) -> Taps:
    """Stem, seven stages, head convolution."""
    ends, n = [], -1
    for repeats in depths(architecture.split("_")[1]):
        n += repeats
        ends.append(f"efficientnet.encoder.blocks.{n}")
    stem = {"torchvision": "features.0.1", "timm": "bn1.drop", "hf": "efficientnet.embeddings.batchnorm"}
    rows = [("features.1", stem)]
    for i, end in enumerate(ends):
        rows.append((f"features.{i + 3}", {"torchvision": f"features.{i + 1}", "timm": f"blocks.{i}", "hf": end}))
    top = {"torchvision": "features.8.0", "timm": "conv_head", "hf": "efficientnet.encoder.top_conv"}
    rows.append(("features.10", top))
    return [(cell, {**names, "stacked": "0." + names["torchvision"]}) for cell, names in rows]


FAMILY = Family(
    "efficientnet",
    ["efficientnet_" + s for s in SIZES],
    LAYOUTS,
    infer,
    transform,
    lookups,
    ("mlp_head.weight", "mlp_head.bias"),
    taps,
)
