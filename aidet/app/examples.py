"""Example images: photographs from installed packages, and a neural decoder's reconstruction of one of them."""

import importlib.util
import shutil
from pathlib import Path
from typing import List, Optional, Union

from PIL import Image

from ..errors import UserError

# shown name -> file inside an installed package
PHOTOGRAPHS = {
    "cat": "skimage/data/chelsea.png",
    "coffee": "skimage/data/coffee.png",
    "rocket": "skimage/data/rocket.jpg",
    "china": "sklearn/datasets/images/china.jpg",
}
SIDE = 256  # of the decoded example, in pixels


def files(folder: Union[str, Path]) -> List[Path]:
    """Copy or make the examples that this installation can provide.

    Parameters
    ----------
    folder : str or Path
        The examples are put into its subfolder ``examples``.

    Returns
    -------
    list of Path
        The photographs and, if the project's own tiny autoencoder can be run, ``decoded.png``: its reconstruction of
        the middle of one of them. Empty if none of these packages is installed.
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


def decoded(source: Path, target: Path) -> Optional[Path]:
    """Save the tiny autoencoder's reconstruction of the middle of a photograph; None if it cannot be run here."""
    checkpoint = Path(__file__).resolve().parents[2] / "ckpt" / "aidet_tae.ckpt"
    if not checkpoint.is_file():
        return None
    import numpy as np

    from .. import cli
    from ..detector import rules

    image = Image.open(source).convert("RGB")
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    batch = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32).transpose(2, 0, 1)[None] / 255
    try:
        made = rules.Autoencoder(checkpoint, (SIDE, SIDE), say=cli.to_stderr)(batch)[0]
    except UserError:
        return None
    Image.fromarray((np.clip(made, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)).save(target)
    return target
