"""ResNet 18 to 152: torchvision and timm (one naming), Hugging Face (also as AIGC-clf's npz), MindCV, and other heads.

``grip`` is the ResNet-50 without early downsampling of GRIP-UNINA's detectors. Its keys and shapes are torchvision's,
so nothing in a file tells the two apart: it has to be chosen.
"""

import re
from typing import List, Optional, Sequence, Tuple, Union

from aidet.errors import UserError
from aidet.models.resnet import SIZES

from . import Arguments, Config, Family, Layout, Lookups, Taps, Tensors, count, mindcv, shape

TORCH = {"padding": "symmetric"}
NODOWN = "resnet50_nodown"
TRUNK = (
    ("w", "conv1", "conv1"),
    ("bn", "bn1", "bn1"),
    ("w", "layer{s}.{b}.conv{c}", "layer{s}.{b}.conv{c}"),
    ("bn", "layer{s}.{b}.bn{c}", "layer{s}.{b}.bn{c}"),
    ("w", "layer{s}.{b}.down_sample.0", "layer{s}.{b}.downsample.0"),
    ("bn", "layer{s}.{b}.down_sample.1", "layer{s}.{b}.downsample.1"),
)
TORCHVISION = TRUNK + (("wb", "classifier", "fc"),)
# The head is an nn.Sequential: our layers have its numbers, and the last one is the classifier.
MLP = TRUNK + (("wb", "head.{n}", "fc.{n}"), ("bn", "head.{n}", "fc.{n}"), ("wb", "classifier", "fc.{last()}"))
# Two linear layers without an activation between them: the backbone's own "fc", and the detector's.
DRCT = tuple((kind, target, "model." + source) for kind, target, source in TRUNK) + (
    ("wb", "head.0", "model.fc"),
    ("wb", "classifier", "fc"),
)
_STAGE = "resnet.encoder.stages.{s-1}.layers.{b}."
HF = (
    ("w", "conv1", "resnet.embedder.embedder.convolution"),
    ("bn", "bn1", "resnet.embedder.embedder.normalization"),
    ("w", "layer{s}.{b}.conv{c}", _STAGE + "layer.{c-1}.convolution"),
    ("bn", "layer{s}.{b}.bn{c}", _STAGE + "layer.{c-1}.normalization"),
    ("w", "layer{s}.{b}.down_sample.0", _STAGE + "shortcut.convolution"),
    ("bn", "layer{s}.{b}.down_sample.1", _STAGE + "shortcut.normalization"),
    ("wb", "classifier", "classifier.1"),
)
_MARKS = (r"conv1\.weight", r"layer1\.0\.conv1\.weight", r"layer4\.0\.conv1\.weight", r"bn1\.running_mean")
_SEQUENCE = r"fc\.\d+\.weight"
_OTHERS = (r"dct_mean", r"conv2\.weight", r"fcnewr\..*")  # FreDect, LaDeDa and Gram-Net have a ResNet's names, too
LAYOUTS = (
    Layout("torchvision", _MARKS, TORCHVISION, without=(_SEQUENCE, *_OTHERS), arguments=TORCH, aliases=("timm",)),
    Layout("torchvision-mlp", (*_MARKS, _SEQUENCE), MLP, arguments=TORCH),
    Layout(
        "grip",
        _MARKS,
        TORCHVISION,
        without=(_SEQUENCE, *_OTHERS),
        arguments={**TORCH, "stem_stride": 1, "pool_stride": 1},
        only=NODOWN,
    ),
    Layout("drct", tuple(r"model\." + m for m in _MARKS) + (r"fc\.weight",), DRCT, arguments=TORCH),
    Layout(
        "hf",
        (r"resnet\.embedder\.embedder\.convolution\.weight",),
        HF,
        arguments=TORCH,
        aliases=("aigc-clf",),
        stated={
            "hidden_act": ("relu",),
            "downsample_in_bottleneck": (False,),
            "downsample_in_first_stage": (False,),
        },
    ),
    mindcv(r"conv1\.weight", r"layer4\.0\.conv1\.weight", r"bn1\.moving_mean"),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Size from the blocks of each stage and the number of convolutions in a block."""
    named = str((config or {}).get("architecture"))
    if re.match(r"resnet(blur|aa)\d", named):
        raise UserError(
            f"config.json: architecture (={named!r}) filters before its strides, which no network here does"
        )
    if layout.name == "hf":
        depths = tuple(count(tensors, rf"resnet\.encoder\.stages\.{s}\.layers\.(\d+)\..*") for s in range(4))
        convs = count(tensors, r"resnet\.encoder\.stages\.0\.layers\.0\.layer\.(\d)\..*")
    else:
        depths = tuple(count(tensors, rf"(?:model\.)?layer{s}\.(\d+)\..*") for s in range(1, 5))
        convs = count(tensors, r"(?:model\.)?layer1\.0\.conv(\d)\..*")
    wanted = ("basic" if convs == 2 else "bottleneck", depths)
    if layout.only:
        if wanted != SIZES["resnet50"]:
            raise UserError(f"{layout.only} is a ResNet-50; the file has {depths} blocks of {convs} convolutions")
        return layout.only, dict(layout.arguments)
    head = _head(layout, tensors)
    for name, size in SIZES.items():
        if size == wanted:
            return name, {**layout.arguments, **({"head": head} if head else {})}
    raise UserError(f"a ResNet with {depths} blocks of {convs} convolutions is not one of {', '.join(SIZES)}")


def _head(layout: Layout, tensors: Tensors) -> List[Union[int, str]]:
    """The layers before the classifier, as ``head`` of the architecture takes them."""
    if layout.name == "drct":
        return [shape(tensors, "model.fc.weight")[0]]
    if layout.name != "torchvision-mlp":
        return []
    spec: List[Union[int, str]] = []
    for n in range(_last(tensors)):
        have = shape(tensors, f"fc.{n}.weight")
        if have is None:
            # The first layer without weights behind a layer with some is its activation, any other is a Dropout.
            spec.append("relu" if spec and spec[-1] not in ("relu", "dropout") else "dropout")
        elif len(have) == 2:
            spec.append(have[0])
        elif f"fc.{n}.running_mean" in tensors:
            spec.append("norm")
        else:
            raise UserError(f"fc.{n}.weight {have} is neither a linear layer nor a BatchNorm: no head known here")
    return spec


def _last(tensors: Tensors) -> int:
    return max(int(k.split(".")[1]) for k in tensors if re.fullmatch(_SEQUENCE, k))


def lookups(architecture: str, arguments: Arguments) -> Lookups:
    """``last``: number of the classifier in a head that is a sequence."""
    return {"last": {(): len(arguments.get("head", ()))}}


def notes(architecture: str, layout: Layout, arguments: Arguments, outputs: Optional[int]) -> Sequence[str]:
    """What the keys do not say: strides, and layers of a head that have no weights."""
    if layout.only:
        return [
            f"{architecture} has stride 1 in the first convolution and the max-pool; the keys are those of resnet50, "
            "so this is what you chose, not what the file says"
        ]
    if layout.name == "torchvision-mlp":
        head = ", ".join(str(item) for item in arguments["head"])
        return [f"the head's layers without weights are assumed: {head}, then {outputs} outputs"]
    if layout.name == "torchvision" and architecture == "resnet50" and outputs == 1:
        return [
            "stride 2 in the first convolution and the max-pool is assumed, as in torchvision; GRIP-UNINA's detectors "
            f"have stride 1 under the same keys: if this is one, add --arch {NODOWN}"
        ]
    return []


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """torchvision's and Hugging Face's published evaluation; GRIP-UNINA's detectors take the image as it is."""
    if architecture == NODOWN:
        return "decode | normalize(imagenet)"
    return "decode | resize(256, bilinear) | center_crop(224) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Stem and four stages."""

    def named(torchvision, huggingface):
        return {
            **dict.fromkeys(("torchvision", "torchvision-mlp", "grip"), torchvision),
            "drct": "model." + torchvision,
            "hf": huggingface,
        }

    rows = [("bn1", named("bn1", "resnet.embedder.embedder.normalization"))]
    return rows + [(f"layer{s}", named(f"layer{s}", f"resnet.encoder.stages.{s - 1}")) for s in range(1, 5)]


FAMILY = Family(
    "resnet",
    (*SIZES, NODOWN),
    LAYOUTS,
    infer,
    transform,
    lookups,
    ("classifier.weight", "classifier.bias"),
    taps,
    notes,
)
