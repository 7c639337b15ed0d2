"""The pages show the measured results, and the files that they name exist."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "bench"))  # last, because its convert.py would hide the package
import common  # noqa: E402
import tables  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "README_CN.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", tables.PAGES)
def test_tables_are_those_of_the_results(name):
    """python bench/tables.py writes the tables."""
    page = (ROOT / name).read_text(encoding="utf-8")
    assert tables.BLOCK.search(page), "a page without a table needs no entry in PAGES"
    assert tables.render(page) == page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page):
    """Recipes, results, scripts and modules in backquotes."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:mindcv_cfg|results|bench|convert|aidet|data|tests|requirements)/[\w./-]*\w)`", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("row", common.rows(ROOT / "results" / "recipes.csv"), ids=lambda row: row["recipe"])
def test_a_recipe_says_in_its_header_what_was_measured(row):
    header = (ROOT / "mindcv_cfg" / f"{row['recipe']}.yaml").read_text(encoding="utf-8").partition("\nbatch_size")[0]
    assert f"AUC {row['AUC'].split()[0]} on 894 test images" in header
    assert f"epoch{'s' * (row['epochs'] != '1')} of {row['seconds an epoch']} s" in header


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_alone_lists_every_target_and_installs_nothing():
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # `make test` sets some
    made = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=60, env=plain)
    said = made.stdout.splitlines()
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert phony and sorted(f"make {name}" for name in phony.group(1).split() if name != "help") == sorted(
        " ".join(line.split()[:2]) for line in said
    )


def test_the_table_of_proofs_has_every_profile():
    shown = tables.proofs([{"recipe": "resnet_ft", "AUC": "0.960"}], ["recipe", "AUC"])
    names = sorted(p.stem for p in (ROOT / "mindcv_cfg" / "proof").glob("*.yaml"))
    assert [row["recipe"] for row in shown] == names
    assert {row["AUC"] for row in shown if row["recipe"] != "resnet_ft"} == {"not measured"}
    assert {"recipe": "resnet_ft", "AUC": "0.960"} in shown


@pytest.mark.parametrize("path", sorted((ROOT / "bench").glob("*.py")), ids=lambda path: path.name)
def test_a_benchmark_takes_from_another_only_what_it_has(path):
    """Their imports of each other are first read when somebody runs them, which no other test does."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        other = path.with_name(f"{node.module}.py") if isinstance(node, ast.ImportFrom) and not node.level else path
        if other == path or not other.is_file() or (ROOT / other.stem).is_dir():  # the package convert
            continue
        names = set()
        for part in ast.parse(other.read_text(encoding="utf-8")).body:
            if isinstance(part, (ast.FunctionDef, ast.ClassDef)):
                names.add(part.name)
            elif isinstance(part, ast.Assign):
                names.update(t.id for t in part.targets if isinstance(t, ast.Name))
            elif isinstance(part, (ast.Import, ast.ImportFrom)):
                names.update((a.asname or a.name).split(".")[0] for a in part.names)
        missing = [alias.name for alias in node.names if alias.name not in names]
        assert not missing, f"{path.name} imports {missing} from {other.name}"
