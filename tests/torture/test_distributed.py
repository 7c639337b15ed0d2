"""If one of two training processes is killed, the other stops and says why; resuming gives the undisturbed result."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import faults
import numpy as np
import pytest
import tiny
from record import measured

from aidet import ckpt

pytestmark = pytest.mark.torture
LIMIT = 150  # seconds until the rest of a broken group must have stopped


def msrun(argv, log):
    """Start a command in two processes."""
    binary = Path(sys.executable).parent / "msrun"
    if not binary.exists():
        pytest.skip("this MindSpore brings no msrun")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{binary.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tiny.ROOT),
    }
    command = [
        binary,
        "--worker_num=2",
        "--local_worker_num=2",
        f"--master_port={port}",
        f"--log_dir={log}",
        "--join=True",
    ]
    return subprocess.Popen(
        [str(a) for a in [*command, *argv]], cwd=tiny.ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def ranks(out):
    """Process ids of the training that writes to ``out``, by rank; msrun and its scheduler are none."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            variables = (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        named = dict(v.split(b"=", 1) for v in variables if b"=" in v)
        if str(out).encode() in words and named.get(b"MS_ROLE") == b"MS_WORKER":
            found[int(named[b"MS_NODE_ID"])] = int(place.name)
    return found


# No batch statistics: those are computed per process. More steps than the kill needs.
LINE = "resize((32,32)) | normalize(half)"
KEYS = {"model": "cifake_cnn", "transform": LINE, "transform_eval": LINE, "epoch_size": 6, "batch_size": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The undisturbed run of two processes; gives its data and its folder."""
    root = tmp_path_factory.mktemp("whole")
    data = tiny.training_set(root / "data")
    undisturbed = msrun(tiny.training(data, root / "out", **KEYS), root / "log")
    said = undisturbed.communicate(timeout=300)[0]
    assert undisturbed.returncode == 0, said[-3000:]
    return data, root / "out"


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_killed(tmp_path, whole, victim):
    data, reference = whole
    argv = tiny.training(data, tmp_path / "out", **KEYS)
    with measured("distributed", f"rank {victim} of two (msrun) killed, then resumed") as row:
        process = msrun(argv, tmp_path / "log1")
        steps = tmp_path / "out" / "steps.csv"
        while process.poll() is None and not (steps.is_file() and steps.read_text().count("\n") > 8):
            time.sleep(0.01)
        alive = ranks(tmp_path / "out")
        assert set(alive) == {0, 1}, alive
        os.kill(alive[victim], signal.SIGKILL)
        killed = time.monotonic()
        try:
            said = process.communicate(timeout=LIMIT)[0]
        finally:
            faults.kill(process)
        waited = time.monotonic() - killed
        assert process.returncode != 0
        assert not ranks(tmp_path / "out"), "a process was left behind"
        logs = said + "".join(p.read_text(errors="replace") for p in (tmp_path / "log1").glob("worker_*.log"))
        assert any(word in logs for word in ("exit", "disconnect", "killed", "heartbeat")), logs[-3000:]
        faults.whole(tmp_path / "out")
        again = msrun(argv, tmp_path / "log2")
        said = again.communicate(timeout=300)[0]
        assert again.returncode == 0, said[-3000:]
        # MindSpore sums over the processes in float32, whose last bit was seen to differ between runs.
        worst = 0.0
        for row_of, wanted in zip(faults.log(tmp_path / "out"), faults.log(reference)):
            worst = max(worst, *(abs(float(row_of[k]) - float(wanted[k])) for k in wanted))
        first, second = (ckpt.load_arrays(f / "last.ckpt") for f in (tmp_path / "out", reference))
        worst = max(worst, *(float(np.abs(first[n] - second[n]).max()) for n in second))
        assert worst < 1e-5
        row.update(
            count=1, outcome=f"the other stopped after {waited:.0f} s; resumed: log and weights within {worst:.0e}"
        )
