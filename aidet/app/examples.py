"""Example images: photographs that installed packages carry, and the same through a neural decoder."""

import importlib.util
import shutil
from pathlib import Path

from PIL import Image

from ..errors import UserError

# shown name -> files inside installed packages, the first that is there
PHOTOGRAPHS = {
    "cat": "skimage/data/chelsea.png",
    "coffee": "skimage/data/coffee.png",
    "rocket": "skimage/data/rocket.jpg",
    "china": "sklearn/datasets/images/china.jpg",
}
SIDE = 256  # of the decoded example


def files(folder):
    """Put the examples that can be made into a folder.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    list of Path
        Photographs as they are shipped, and ``decoded.png``: the middle of one of them after the project's own tiny
        autoencoder, where that can be run. Empty where no such package is installed.
    """
    where = Path(folder) / "examples"
    where.mkdir(parents=True, exist_ok=True)
    found = []
    for name, inside in PHOTOGRAPHS.items():
        package, rest = inside.split("/", 1)
        spec = importlib.util.find_spec(package)
        source = Path(spec.origin).parent / rest if spec and spec.origin else None
        if source is not None and source.is_file():
            found.append(Path(shutil.copy(source, where / f"{name}{source.suffix}")))
    if found:
        made = decoded(found[0], where / "decoded.png")
        found += [made] if made else []
    return found


def decoded(source, target):
    """The middle of a photograph through the tiny autoencoder; None where there is none, or nothing to run it."""
    checkpoint = Path(__file__).resolve().parents[2] / "ckpt" / "aidet_tae.ckpt"
    if not checkpoint.is_file():
        return None
    import numpy as np

    from .. import cli, rules

    image = Image.open(source).convert("RGB")
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    batch = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32).transpose(2, 0, 1)[None] / 255
    try:
        made = rules.Autoencoder(checkpoint, (SIDE, SIDE), say=cli.to_stderr)(batch)[0]
    except UserError:
        return None
    Image.fromarray((np.clip(made, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)).save(target)
    return target
