"""Regression tests for what fuzzing found, and a check that the page about it is generated from its table."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "torture"))
import fuzz
import record

from aidet import records
from aidet.inference import results

HERE = Path(__file__).resolve().parent
CASES = sorted((HERE / "data" / "hostile").glob("*/*"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_a_case_ends_well_or_in_one_error(path):
    """tests/data/hostile/<target>/: the target of tests/torture/fuzz.py raises nothing but the project's own errors."""
    fuzz.TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_the_seeds_of_every_target_pass(target, tmp_path):
    fuzz.seeds(target, tmp_path / "seeds")
    made = sorted((tmp_path / "seeds").iterdir())
    assert made
    for path in made[:60]:
        fuzz.TARGETS[target](path.read_bytes())


def test_names_of_many_digits_are_ordered_as_numbers(tmp_path):
    """Python refuses to parse numbers of over 4300 digits; a file name in a list of images may contain one."""
    names = ["2.png", "10.png", "9" * 5000 + ".png", "010.png", "1" + "0" * 5000 + ".png"]
    order = records.stem_order(names)
    assert [names[i][:3] for i in order] == ["2.p", "010", "10.", "999", "100"]
    rows = [records.Record(name, label=k % 2) for k, name in enumerate(names)]
    results.write_result(tmp_path / "result.txt", lambda: iter(rows))
    assert (tmp_path / "result.txt").read_text() == "".join(f"{i % 2}\n" for i in order)


def test_the_page_shows_the_table():
    """docs/reliability.md agrees with results/reliability.csv; python tests/torture/record.py updates it."""
    page = record.PAGE.read_text(encoding="utf-8")
    assert record.render(page) == page
    shown = {row["area"] for row in record.common.rows(record.TABLE)}
    wanted = {"weights", "configuration", "tables", "images", "kill -9", "faults", "distributed"}
    wanted |= {"determinism", "network", "app"}
    assert wanted <= shown
    # At least a hundred kills, none of them of a run that had already ended by itself.
    assert sum(int(row["count"]) for row in record.common.rows(record.TABLE) if row["area"] == "kill -9") >= 100
