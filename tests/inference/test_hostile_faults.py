"""Faults that need no long run: a kill at every file operation, a full disk, dead workers. The rest: make torture."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))
import hostile

from aidet import ckpt, cli, files, parallel, records
from aidet.datasets.samples import Samples
from aidet.errors import UserError
from aidet.inference import results
from aidet.inference.journal import Journal, read_journal
from aidet.training.loader import Loader
from aidet.training.workers import Workers

ROOT = Path(__file__).resolve().parents[2]

# --- a kill at every operation on files -------------------------------------------------------------------------------
OPERATIONS = ("replace", "rename", "unlink", "rmdir", "mkdir", "chmod", "fsync", "open", "truncate")


def killed_at(number, work):
    """Run ``work`` in a forked process that kills itself before its n-th operation on files.

    Returns
    -------
    bool
        False if it ended before its n-th operation.
    """
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    count = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    try:
        work()
    finally:
        os._exit(0)


def every_kill(folder, work, check, limit=80):
    """Kill at every operation in turn and check what is left; returns the number of kills."""
    for number in range(1, limit):
        if not killed_at(number, lambda: work(folder)):
            work(folder)
            check(folder)
            return number - 1
        check(folder)
    raise AssertionError(f"over {limit} operations")


def test_a_file_is_the_old_or_the_new_one_at_every_moment(tmp_path):
    goal = tmp_path / "x.json"
    files.write_json(goal, {"old": 1})
    seen = set()

    def check(_):
        value = files.read_json(goal)
        assert value in ({"old": 1}, {"new": [2] * 1000})
        seen.add(*value)

    assert every_kill(tmp_path, lambda _: files.write_json(goal, {"new": [2] * 1000}), check) >= 4
    assert seen == {"old", "new"}
    assert all(p.name.endswith(".tmp") and p.name.startswith(".") for p in tmp_path.iterdir() if p != goal)


def test_a_checkpoint_never_carries_the_facts_of_another(tmp_path):
    """Weights and sidecar are two files: after a kill at any point they match, or they are refused."""
    pytest.importorskip("mindspore")
    path, arrays = tmp_path / "x.ckpt", hostile.good_arrays()
    ckpt.save(arrays, path, {"architecture": "a", "mark": "old"})
    new = {n: a + 1 for n, a in arrays.items()}
    states = set()

    def check(_):
        try:
            facts = ckpt.read_sidecar(path)
        except UserError as error:
            assert "has no sidecar" in str(error)
            states.add("refused")
            return
        got = ckpt.load_arrays(path)["fc1.weight"]
        assert np.array_equal(got, (arrays if facts["mark"] == "old" else new)["fc1.weight"])
        states.add(facts["mark"])

    kills = every_kill(tmp_path, lambda _: ckpt.save(new, path, {"architecture": "a", "mark": "new"}), check)
    assert kills >= 6 and states == {"old", "refused", "new"}


def test_results_are_whole_at_every_moment(tmp_path):
    rows = [records.Record(f"{i}.png", 1.0, 0.73, 1, "generated", "ok", {"m": 1.0}) for i in range(500)]
    whole = None

    def work(folder):
        journal = Journal(folder / "infer.journal", {"models": ["m"], "total": 500}, resume=True)
        for row in rows[journal.done :]:
            journal.append(row)
            if row.path.endswith("77.png"):
                journal.flush()
                os.fsync(journal.file.fileno())
        journal.close(len(rows))
        results.write(folder, lambda: read_journal([folder / "infer.journal"]), ["m"])

    def check(folder):
        for name in ("result.txt", "scores.csv"):
            if (folder / name).exists():
                assert (folder / name).read_bytes() == whole[name]

    (tmp_path / "a").mkdir()
    work(tmp_path / "a")
    whole = {name: (tmp_path / "a" / name).read_bytes() for name in ("result.txt", "scores.csv")}
    (tmp_path / "b").mkdir()
    assert every_kill(tmp_path / "b", work, check) >= 8


def test_a_damaged_line_of_a_training_log_is_dropped(tmp_path):
    from aidet.training import log

    lines = [b"update,epoch,loss,lr", b"1,1,0.5,0.1", bytes(9), b"\xff\xfe,1", b"2,1,0.4,0.1", b"3,1,0.3,0.1", b"4,1"]
    (tmp_path / "steps.csv").write_bytes(b"\n".join(lines))
    kept = log.Journal(tmp_path)._kept(tmp_path / "steps.csv", 2)
    assert kept == ["update,epoch,loss,lr\n", "1,1,0.5,0.1\n", "2,1,0.4,0.1\n"]
    assert log.Journal(tmp_path)._kept(tmp_path / "steps.csv", 4)[-1] == "3,1,0.3,0.1\n", "half a line is none"


# --- no space, no right, no memory ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES"])
def test_what_the_machine_refuses_is_one_line(tmp_path, monkeypatch, capsys, kind):
    def full(*_):
        raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)), str(tmp_path / "x"))

    def work(argv):
        with files.atomic(tmp_path / "result.txt") as file:
            file.write("1\n")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as end:
        cli.main(work, [])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and os.strerror(getattr(errno, kind)) in said
    assert not any(tmp_path.iterdir())


def test_other_errors_of_the_system_stay_visible():
    def work(argv):
        raise OSError(errno.EBADF, "a defect of ours")

    with pytest.raises(OSError, match="a defect"):
        cli.main(work, [])


def test_no_memory_is_one_line(capsys):
    def work(argv):
        np.empty(1 << 60, np.uint8)

    with pytest.raises(SystemExit) as end:
        cli.main(work, [])
    assert end.value.code == 2 and capsys.readouterr().err.startswith("error: not enough memory")


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    """A file where a folder is wanted, and a path below it."""
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "x.ckpt", Path("/proc/nowhere/x.ckpt")):
        with pytest.raises(UserError, match="cannot write|folder"):
            ckpt.save(hostile.good_arrays(), place, {"architecture": "a"})
    from convert import __main__ as command

    with pytest.raises(SystemExit) as end:
        cli.main(command.run, [str(hostile.safetensors(tmp_path / "s.safetensors")), str(tmp_path / "file" / "x.ckpt")])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_is_130_and_one_line():
    # In a process of its own: once MindSpore has compiled a graph, it answers SIGINT by ending the process it is in.
    code = (
        "import os, signal, time\nfrom aidet import cli\n"
        "def work(argv):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(5)\n"
        "cli.main(work, [])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by Ctrl-C\n")


# --- dead workers -----------------------------------------------------------------------------------------------------
def die(item):
    """Work that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_said_and_nobody_waits_for_ever(tmp_path, photo):
    with pytest.raises(UserError, match="worker process was killed"):
        parallel.spread(die, list(range(400)), "x", workers=2)
    for i in range(16):
        photo(i, (200, 160)).save(tmp_path / f"{i}.png")
    workers = Workers(1)
    names = [f"{i}.png" for i in range(16)]
    blank = [""] * 16
    samples = Samples(names, {}, tmp_path, texts=blank, sides=np.zeros(16, int), generators=blank, pairs=blank)
    loader = Loader(samples, "center_crop(32) | normalize(half)", (32, 32), 2, 1, workers)
    batches = loader.run(np.stack([np.arange(16), np.zeros(16, int)], 1), 0)
    try:
        next(batches)
        for process in workers._pool._processes.values():
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="worker process was killed.*--resume auto"):
            list(batches)
            list(loader.run(np.stack([np.arange(16), np.zeros(16, int)], 1), 1))
    finally:
        workers.close()
