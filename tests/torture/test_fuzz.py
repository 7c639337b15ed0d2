"""Each reader under atheris for a stated time (AIDET_FUZZ_SECONDS, default 180 a target)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
from record import measured

pytestmark = pytest.mark.torture
SECONDS = int(os.environ.get("AIDET_FUZZ_SECONDS", "180"))
SEED = 20261
LIBRARY = fuzz.HERE.parents[1] / ".venv-torture"
AREA = {"yaml": "configuration", "line": "configuration", "csv": "tables", "image": "images"}


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_coverage_guided(target, tmp_path):
    if not (LIBRARY / "atheris").is_dir():
        pytest.fail("atheris is missing; run: make torture")
    fuzz.seeds(target, tmp_path / "seeds")
    (tmp_path / "corpus").mkdir()
    argv = [sys.executable, Path(fuzz.__file__), target, tmp_path / "corpus", tmp_path / "seeds", f"-seed={SEED}"]
    argv += [
        f"-max_total_time={SECONDS}",
        "-timeout=20",
        "-rss_limit_mb=2500",
        "-max_len=65536",
        "-print_final_stats=1",
    ]
    argv += [f"-artifact_prefix={tmp_path}/crash-"]
    environment = {**os.environ, "PYTHONPATH": str(LIBRARY)}
    with measured(AREA.get(target, "weights"), f"atheris, target {target}", SEED) as row:
        done = subprocess.run(
            [str(a) for a in argv], env=environment, capture_output=True, text=True, cwd=tmp_path, errors="replace"
        )
        said = done.stdout + done.stderr
        crashes = list(tmp_path.glob("crash-*"))
        assert done.returncode == 0 and not crashes, said[-4000:]
        runs = int(re.search(r"stat::number_of_executed_units:\s*(\d+)", said).group(1))
        memory = int(re.search(r"stat::peak_rss_mb:\s*(\d+)", said).group(1))
        assert runs > 100
        row.update(count=runs, outcome=f"no crash, no hang; peak {memory} MiB")


CASES = sorted((fuzz.HERE.parent / "data" / "hostile").glob("*/*"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_kept_cases(path):
    """What fuzzing found once and was mended: tests/data/hostile/<target>/."""
    fuzz.TARGETS[path.parent.name](path.read_bytes())
