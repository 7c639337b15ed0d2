"""One self-contained offline HTML file: no script, no link to anything outside itself."""

import base64
import io
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from PIL import Image

from .. import __version__, files, images
from ..runtime import version_of

PACKAGES = ("mindspore", "mindcv", "onnxruntime", "openvino", "numpy", "pillow", "scikit-learn", "scipy")
THUMBNAIL = 320  # shown at half of it, so that it stays sharp in print


@dataclass
class Table:
    """A table: a caption, the names of its columns, and rows of text or numbers."""

    caption: str
    header: List[str]
    rows: List[list]


@dataclass
class Chart:
    """A chart: ``image`` is a data URI, ``caption`` is its text, and ``wide`` gives it a row of its own."""

    image: str
    caption: str
    wide: bool = False


@dataclass
class Shot:
    """Thumbnails (data URIs) side by side, a title, and a caption."""

    images: List[str]
    caption: str
    title: str = ""


@dataclass
class Section:
    """A heading followed by texts, charts, tables and thumbnails."""

    title: str
    texts: List[str] = field(default_factory=list)
    charts: List[Chart] = field(default_factory=list)
    tables: List[Table] = field(default_factory=list)
    shots: List[Shot] = field(default_factory=list)


def write(
    path: Union[str, Path],
    title: str,
    lead: str,
    sections: Sequence[Section],
    cards: Sequence[Tuple[str, Any, str]] = (),
    warnings: Sequence[str] = (),
    summary: Sequence[str] = (),
) -> Path:
    """Render the report.

    Parameters
    ----------
    path : str or Path
    title, lead : str
    sections : list of Section
    cards : list of (name, value, note)
        The headline metrics.
    warnings : list of str
        Warnings that the reader must see before the numbers.
    summary : list of str
        The result in a few plain sentences, for a reader who knows none of the metrics.

    Returns
    -------
    Path
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template("report.html.j2").render(
        title=title,
        lead=lead,
        sections=sections,
        cards=[{"name": n, "value": v, "note": t} for n, v, t in cards],
        warnings=list(warnings),
        summary=" ".join(summary),
    )
    with files.atomic(path) as file:
        # A path may contain bytes that are not UTF-8; they are shown as escapes.
        file.write(text.encode("utf-8", "backslashreplace").decode("utf-8"))
    return Path(path)


def number(value: Optional[float], digits: int = 4) -> str:
    """A number as text; an en dash if there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(ci: Optional[Sequence[float]], digits: int = 4) -> str:
    """``[low, high]`` as text; empty if there is none."""
    return "" if not ci else f"[{ci[0]:.{digits}f}, {ci[1]:.{digits}f}]"


def thumbnail(image: Union[str, Path, Image.Image], side: int = THUMBNAIL) -> Optional[str]:
    """A data URI of an image (PIL or file), at most ``side`` pixels per side; None if it cannot be decoded."""
    try:
        image = images.decode(image)
    except images.ImageError:
        return None
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    # Small images are saved as PNG, so that CIFAKE's 32-pixel images are shown without loss.
    kind = "png" if max(image.size) <= 64 else "jpeg"
    image.save(buffer, kind, **({} if kind == "png" else {"quality": 85}))
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def versions() -> Dict[str, str]:
    """Versions of AIDet, Python and the packages that the numbers depend on."""
    found = {"aidet": __version__, "python": platform.python_version()}
    installed = ((name, version_of(name)) for name in PACKAGES)
    found.update({name: version for name, version in installed if version})
    return found


def provenance(inputs: Mapping[str, Union[str, Path]]) -> Tuple[Dict[str, Any], Section]:
    """Provenance of a report: the SHA-256 of each input file (for a folder, only its name), and the versions.

    Parameters
    ----------
    inputs : dict of str to str or Path

    Returns
    -------
    (dict, Section)
        For ``metrics.json`` and for the report.
    """
    hashes = {}
    for name, path in inputs.items():
        path = Path(path)
        hashes[name] = {"path": str(path), "sha256": files.sha256(path) if path.is_file() else None}
    have = versions()
    rows = [[name, value["path"], value["sha256"] or "a folder"] for name, value in hashes.items()]
    section = Section(
        "Where the numbers come from",
        tables=[
            Table("Inputs", ["input", "path", "sha256"], rows),
            Table("Versions", ["package", "version"], [[k, v] for k, v in have.items()]),
        ],
    )
    return {"inputs": hashes, "versions": have}, section
