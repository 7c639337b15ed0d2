"""FreqNet, as its authors save it: the first convolution of every step is a bare parameter."""

from typing import Tuple

from . import Arguments, Config, Family, Layout, Taps, Tensors
from .resnet import TRUNK

RULES = (
    *(line for line in TRUNK if line[1].startswith("layer")),
    *(("one", f"conv{n}.weight", f"weight{n}") for n in range(1, 5)),
    *(("one", f"conv{n}.bias", f"bias{n}") for n in range(1, 5)),
    ("w", "spectral{n}.real", "realconv{n}"),
    ("w", "spectral{n}.imaginary", "imagconv{n}"),
    ("wb", "fc1", "fc1"),
)
LAYOUTS = (Layout("freqnet", (r"weight1", r"realconv4\.weight", r"layer2\.3\.conv3\.weight", r"fc1\.weight"), RULES),)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """There is one size."""
    return "freqnet", {}


def transform(architecture: str, layout: Layout, arguments: Arguments) -> str:
    """The authors' evaluation on images of different sizes."""
    return "decode | resize((256, 256), bilinear) | normalize(imagenet)"


def taps(architecture: str) -> Taps:
    """Both stages."""
    return [(name, {"freqnet": name}) for name in ("layer1", "layer2")]


FAMILY = Family("freqnet", ("freqnet",), LAYOUTS, infer, transform, head=("fc1.weight", "fc1.bias"), taps=taps)
