"""Profiles: overlays of a recipe, such as the small run that shows that it learns (``mindcv_cfg/proof/NAME.yaml``)."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Tuple

from ..errors import UserError, nearest
from ..files import read_mapping

LONGEST = 60  # characters of a value that the line about a profile shows


@dataclass
class Profile:
    """An overlay that was applied to a recipe.

    Attributes
    ----------
    name : str
        As given with ``--profile``.
    file : str
        Path of the overlay.
    changes : dict
        Value of each key that differs from the recipe because of the overlay. A key that the command line sets is not
        among them.
    """

    name: str
    file: str
    changes: Dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """What the overlay changes, in one line; a value that is too long for it is left out."""
        texts = {name: " ".join(str(value).split()) for name, value in self.changes.items()}
        shown = [name + (f" {text}" if len(text) <= LONGEST else "") for name, text in texts.items()]
        return f"profile {self.name} ({self.file}) changes " + ("; ".join(shown) or "nothing")


def overlay_path(recipe: Path, name: str) -> Path:
    """The overlay of a recipe: ``FOLDER/NAME/RECIPE.yaml`` for ``FOLDER/RECIPE.yaml``.

    Raises
    ------
    UserError
        There is no such profile, or it has no overlay for the recipe; lists those that exist.
    """
    folder = recipe.parent / name
    if not re.fullmatch(r"\w[\w-]{0,63}", name) or not folder.is_dir():
        raise UserError(nearest(name, profiles(recipe.parent), "profile") + f" (profiles are folders beside {recipe})")
    path = folder / f"{recipe.stem}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise UserError(f"profile {name!r} has no overlay for {recipe.stem!r} ({path}); it has: {there}")
    return path


def profiles(folder: Path) -> List[str]:
    """Names of the profiles beside the recipes of a folder."""
    return sorted({path.parent.name for path in folder.glob("*/*.yaml")})


def read_overlay(recipe: Path, name: str) -> Tuple[Path, Dict[str, Any]]:
    """Path and keys of the overlay of a recipe; raises as :func:`overlay_path` and ``files.read_mapping`` do."""
    path = overlay_path(recipe, name)
    return path, read_mapping(path)
