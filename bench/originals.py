"""Train the recipes as they were written: published initial weights, original data, the full schedule.

    python bench/originals.py --dry-run              # what is missing, and where to get it
    python bench/originals.py [RECIPE ...]           # the same check, then training; `make recipes`

The lines ``# Weights: FILE, ...`` and ``# Data: FOLDER, ...`` in the header of a recipe name what it needs. Every file
and folder is looked at before the first step of the first recipe. A finished training is not repeated.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from common import ROOT

from aidet import cli, config
from aidet.errors import UserError

FOLDER = ROOT / "mindcv_cfg"


def needs(recipe):
    """What a recipe needs: {"Weights": (path, where to get it), "Data": ...}; an entry that it lacks is left out."""
    lines = (FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
    found = {}
    for name in ("Weights", "Data"):
        line = next((line for line in lines if line.startswith(f"# {name}: ")), None)
        if line:
            path, _, where = line.partition(": ")[2].partition(", ")
            found[name] = (path, where)
    return found


def recipes():
    """Names of the recipes that state their weights and data."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml") if len(needs(p.stem)) == 2)


def teachers(recipe, given):
    """Teachers that are named but missing; for a recipe of distillation without any, a line that says so."""
    if not recipe.startswith("distill"):
        return []
    if not given:
        return ['teachers    missing: --distill "{teachers: [A.ckpt, B.ckpt], ...}", see the recipe\'s header']
    named = config.load(FOLDER / f"{recipe}.yaml", {"distill": given}).distill.get("teachers", [])
    return [f"teachers    {path} missing" for path in named if not Path(path).is_file()]


def check(recipe, root, distill=None):
    """Lines about what a recipe needs, and how many of them say that something is missing."""
    lines, missing = [], 0
    for name, (path, where) in needs(recipe).items():
        there = (
            (root / path).is_file() if name == "Weights" else (root / path).is_dir() and any((root / path).iterdir())
        )
        lines.append(f"{name.lower():<11} {path} " + ("found" if there else f"missing: {where}"))
        missing += not there
    more = teachers(recipe, distill)
    return [*lines, *more], missing + len(more)


def command(recipe, root, distill=None):
    """The command line that trains a recipe."""
    needed = needs(recipe)
    words = ["train.py", "-c", f"mindcv_cfg/{recipe}.yaml", "--init_from", str(root / needed["Weights"][0]),
             "--data_dir", str(root / needed["Data"][0]), "--resume", "auto"]  # fmt: skip
    return words + (["--distill", distill] if distill and recipe.startswith("distill") else [])


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = recipes()
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=", ".join(known) + "; default: all")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what is there and what is missing; exit 2 if anything is"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of ckpt/ and data/ (default: the repository)")
    parser.add_argument("--distill", metavar="{teachers: [...]}", help="for the recipe of distillation, as in train.py")
    options = parser.parse_args(argv)
    wrong = [name for name in options.recipes if name not in known]
    if wrong:
        raise UserError(f"no recipe {wrong[0]!r} that states its weights and data; there are: {', '.join(known)}")
    chosen, short = options.recipes or known, []
    for recipe in chosen:
        lines, missing = check(recipe, options.root, options.distill)
        print(recipe, *(f"  {line}" for line in lines), sep="\n", flush=True)
        short += [recipe] if missing else []
    if short:
        raise UserError(f"{len(short)} of {len(chosen)} recipes lack weights or data: {', '.join(short)}")
    for recipe in chosen:
        words = command(recipe, options.root, options.distill) + (["--dry_run"] if options.dry_run else [])
        done = subprocess.run([sys.executable, *words], cwd=ROOT, check=False)
        if done.returncode not in (cli.OK, cli.PARTIAL):
            raise UserError(f"{recipe} ended with exit code {done.returncode}")


if __name__ == "__main__":
    cli.main(main)
