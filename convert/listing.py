"""The command ``list``."""

from typing import Callable

from .families import families
from .hub import KNOWN
from .published import all_recipes


def show(say: Callable[[str], None] = print) -> int:
    """Print architectures, layouts, recipes of published detectors and known repositories; returns the exit code."""
    for family in families():
        say(f"{family.name}: {', '.join(family.architectures)}")
        say(
            "    layouts: "
            + ", ".join(x.name + (f" (= {', '.join(x.aliases)})" if x.aliases else "") for x in family.layouts)
        )
    say("")
    say("recipes of published detectors: give the name or the hub id as SRC, or a file with --recipe NAME")
    for recipe in all_recipes():
        where = ("cannot be converted: " if recipe.unsupported else "") + (", ".join(recipe.repositories) or recipe.url)
        say(f"    {recipe.name:28s} {recipe.licence or 'licence: see its page':24s} {where}")
    say("")
    say("known repositories (architecture None: told from config.json; - : file not seen, so size and sha256 unknown)")
    for entry in KNOWN:
        size = f"{entry['megabytes']} MB" if entry["megabytes"] else "-"
        say(
            f"    {entry['repository']:44s} {str(entry['architecture']):20s} {entry['layout']:10s} {size:8s} "
            f"{entry['licence'] or 'licence: see its page':12s} {(entry['sha256'] or '-')[:16]}"
        )
    return 0
