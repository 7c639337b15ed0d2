"""Example images: two pictures that were really generated, and photographs from installed packages."""

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import List, Union

from PIL import Image

SAMPLES = Path(__file__).resolve().parent / "samples"  # origin and licence of each: SOURCES.md there
# name -> file inside an installed package; copied for this run, not shipped
PHOTOGRAPHS = {
    "cat": "skimage/data/chelsea.png",
    "coffee": "skimage/data/coffee.png",
    "rocket": "skimage/data/rocket.jpg",
    "china": "sklearn/datasets/images/china.jpg",
    "flower": "sklearn/datasets/images/flower.jpg",
}
MOST = 6
SIDE = 160  # of a thumbnail, in pixels


@dataclass(frozen=True)
class Example:
    """An example: its file, its thumbnail, and the key of its caption in :mod:`aidet.app.words`."""

    path: Path
    thumbnail: Path
    caption: str


def found(folder: Union[str, Path]) -> List[Example]:
    """Copy the examples that this installation can provide, the generated ones first.

    Parameters
    ----------
    folder : str or Path
        They are put into its subfolder ``examples``.

    Returns
    -------
    list of Example
        At most six.
    """
    where = Path(folder) / "examples"
    where.mkdir(parents=True, exist_ok=True)
    sources = [(path.stem, path) for path in sorted(SAMPLES.iterdir()) if path.suffix in (".png", ".webp")]
    sources += [(name, path) for name, path in map(_installed, PHOTOGRAPHS) if path.is_file()]
    made = []
    for name, source in sources[:MOST]:
        path, thumbnail = where / f"{name}{source.suffix}", where / f"{name}_small.jpg"
        shutil.copy(source, path)
        with Image.open(source) as image:
            small = image.convert("RGB")
        small.thumbnail((2 * SIDE, SIDE))
        small.save(thumbnail, quality=85)
        made.append(Example(path, thumbnail, f"example_{name}"))
    return made


def _installed(name):
    """(name, file); the file does not exist if its package is not installed."""
    package, rest = PHOTOGRAPHS[name].split("/", 1)
    spec = importlib.util.find_spec(package)
    return name, Path(spec.origin).parent / rest if spec and spec.origin else Path(rest)
