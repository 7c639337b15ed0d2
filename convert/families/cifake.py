"""CIFAKE_CNN of jshrdt/aics-project.

Its class always has the attention's parameters, so both variants save the same keys. The counter of the attention's
BatchNorm tells them apart: it is zero if the attention never ran.
"""

from typing import Tuple

from . import Arguments, Config, Family, Layout, Taps, Tensors

AICS = (
    ("wb", "conv{i}", "conv{i}"),
    ("wb", "fc{i}", "fc{i}"),
    ("w", "attend.cfc", "attend.cfc"),
    ("bn", "attend.bn", "attend.bn"),
)
LAYOUTS = (
    Layout(
        "aics",
        (r"conv1\.weight", r"conv2\.weight", r"fc1\.weight", r"fc3\.weight"),
        AICS,
        without=(r"layer\d.*", r"features.*"),
        classes=("REAL",),
        drop=((r"attend\..*", "attention that never ran in this model (0 batches seen)"),),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """With attention if its BatchNorm has seen a batch."""
    counter = tensors.get("attend.bn.num_batches_tracked")
    used = "attend.cfc.weight" in tensors and (counter is None or int(counter.array()) > 0)
    return ("cifake_cnn_srm" if used else "cifake_cnn"), {}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """32x32, mean and deviation 0.5."""
    return "decode | resize((32, 32), bilinear) | normalize(half)"


def taps(architecture: str) -> Taps:
    """Every layer with weights."""
    names = ["conv1"] + (["attend"] if architecture.endswith("srm") else []) + ["conv2", "fc1", "fc2"]
    return [(name, {"aics": name}) for name in names]


FAMILY = Family(
    "cifake", ("cifake_cnn", "cifake_cnn_srm"), LAYOUTS, infer, transform, head=("fc3.weight", "fc3.bias"), taps=taps
)
