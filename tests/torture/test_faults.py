"""System faults during a run: disk full, no write permission, a folder that disappears, a dead worker, Ctrl-C."""

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import faults
import pytest
import tiny
from record import measured

pytestmark = pytest.mark.torture
SEED = 20262


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny data set, a checkpoint, its graph, images to score, and scores of them."""
    root = tiny.place(tmp_path_factory.mktemp("faults"), 60)
    faults.run(["infer.py", "--ckpt", root / "tiny.onnx", "--images", root / "in", "--out", root / "scores"])
    return root


def commands(place, out):
    """Every command that writes, into ``out``: name -> (argv, files of its result)."""
    infer = ["infer.py", "--ckpt", place / "tiny.onnx", "--images", place / "in", "--votes", 4, "--workers", 1]
    labels = ["--labels", place / "in", "--bootstrap", 20]
    return {
        "train": (tiny.training(place / "data", out), ["last.ckpt", "best.ckpt", "state.ckpt"]),
        "infer": ([*infer, "--out", out, "--resume"], ["result.txt", "scores.csv"]),
        "convert": (["-m", "convert", place / "source.safetensors", out / "x.ckpt"], ["x.ckpt", "x.json"]),
        "export": (["export.py", "--ckpt", place / "tiny.ckpt", "--format", "onnx", "--out", out], ["tiny.onnx"]),
        "evaluate": (
            ["evaluate.py", "score", "--scores", place / "scores" / "scores.csv", *labels, "--out", out],
            ["report.html", "metrics.json"],
        ),
    }


@pytest.fixture(scope="module")
def reference(place, tmp_path_factory):
    """What every command gives undisturbed, and how long it takes."""
    root, seconds = tmp_path_factory.mktemp("reference"), {}
    for name in commands(place, root):
        began = time.monotonic()
        faults.run(commands(place, root / name)[name][0])
        seconds[name] = time.monotonic() - began
    return root, seconds


def equal(out, reference, name, place):
    """The files of a result are those of the undisturbed run."""
    for file in commands(place, out)[name][1]:
        if file.endswith(".ckpt") and name == "train":
            faults.same_weights(out / file, reference / name / file)
        elif file.endswith((".html", ".json")) and name == "evaluate":
            faults.check(out / file)
        else:
            assert (out / file).read_bytes() == (reference / name / file).read_bytes(), (name, file)


# --- no space ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of two megabytes; None if it cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    yield folder if mounted.returncode == 0 else None
    if mounted.returncode == 0:
        subprocess.run(["umount", "-l", folder], capture_output=True)


NAMES = ("train", "infer", "convert", "export", "evaluate")


@pytest.mark.parametrize("name", NAMES)
def test_full_disk(place, reference, small_disk, tmp_path, name):
    """One line and exit code 2, whatever the moment; when there is space again, the undisturbed result."""
    how = "tmpfs of 2 MiB" if small_disk else "RLIMIT_FSIZE"
    with measured("faults", f"disk full ({how}): {name}") as row:
        stopped = 0
        for kilobytes in (0, 4, 12, 48):
            out = (small_disk or tmp_path) / f"out{kilobytes}"
            argv = commands(place, out)[name][0]
            if small_disk:
                filler = small_disk / "filler"
                free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
                filler.write_bytes(bytes(max(0, free - (kilobytes << 10))))
                process = faults.start(argv)
            else:
                limit = (kilobytes << 10) + 1
                process = faults.start(
                    argv, preexec_fn=lambda n=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
                )
            said = process.communicate(timeout=300)[1]
            faults.whole(out)
            if process.returncode != 0:
                stopped += 1
                assert process.returncode == 2, said[-3000:]
                assert faults.one_line(said).startswith("error: ")
            if small_disk:
                filler.unlink()
            faults.run(argv)
            equal(out, reference[0], name, place)
            shutil.rmtree(out)
        assert stopped >= 1
        row.update(count=stopped, outcome="exit 2, one line, nothing half-written; then the undisturbed result")


@pytest.mark.parametrize("name", NAMES)
def test_read_only_output(place, reference, tmp_path, name):
    """A read-only file system or, if none can be mounted, a folder without write permission."""
    out = tmp_path / "closed"
    out.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", out], capture_output=True).returncode == 0
    )
    if not mounted:
        out.chmod(0o555)
        if os.access(out, os.W_OK):
            pytest.skip("this user writes everywhere and may mount nothing")
    try:
        with measured("faults", f"read-only output: {name}") as row:
            for target in (out, out / "deeper"):
                said = faults.run(commands(place, target)[name][0], expected=2)
                assert "Read-only" in faults.one_line(said) or "Permission" in said
            row.update(count=2, outcome="exit 2, one line")
    finally:
        if mounted:
            subprocess.run(["umount", "-l", out], capture_output=True)


@pytest.mark.parametrize("name", NAMES)
def test_output_folder_removed(place, reference, tmp_path, name):
    """The run succeeds or ends with one line; run again, it gives the undisturbed result."""
    rng = faults.generator(SEED)
    with measured("faults", f"output folder removed while running: {name}", SEED) as row:
        codes = []
        for i in range(4):
            out = tmp_path / f"out{i}"
            process = faults.start(commands(place, out)[name][0])
            while process.poll() is None and not faults.anything(out):
                time.sleep(0.003)
            time.sleep(rng.random() * 0.3 * reference[1][name])
            shutil.rmtree(out, ignore_errors=True)
            said = process.communicate(timeout=300)[1]
            codes.append(process.returncode)
            assert process.returncode in (0, 2), said[-3000:]
            if process.returncode == 2:
                assert faults.one_line(said).startswith("error: ")
            faults.whole(out)
            faults.run(commands(place, out)[name][0])
            equal(out, reference[0], name, place)
        row.update(
            count=4,
            outcome=f"{codes.count(2)} ended in one line, {codes.count(0)} finished; then the undisturbed result",
        )


# --- processes --------------------------------------------------------------------------------------------------------
def children(pid):
    """Process ids of the children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def workers_of(pid):
    """The worker processes of a training; multiprocessing's own resource tracker is not one."""
    found = []
    for child in children(pid):
        try:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
        except OSError:
            continue
    return found


def test_worker_killed(place, reference, tmp_path):
    """One line that says so; resumed, the undisturbed result."""
    argv = tiny.training(place / "data", tmp_path / "out", num_parallel_workers=2, epoch_size=3)
    with measured("faults", "a worker process of train.py killed", SEED) as row:
        hit = 0
        for delay in (0.0, 0.3, 0.8):
            process = faults.start(argv)
            victims = []
            while process.poll() is None and not victims:
                victims = workers_of(process.pid)
                time.sleep(0.01)
            time.sleep(delay)
            for victim in victims[:1]:
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            said = process.communicate(timeout=300)[1]
            if process.returncode:
                hit += 1
                assert process.returncode == 2, said[-3000:]
                assert "worker process" in faults.one_line(said)
            faults.whole(tmp_path / "out")
        faults.run(argv)
        equal(tmp_path / "out", reference[0], "train", place)
        assert hit >= 1
        row.update(count=hit, outcome="exit 2, one line; resumed: bit-equal")


@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c(place, reference, tmp_path, name):
    """Exit code 130 and one line, at any moment after the first import; then the undisturbed result."""
    rng = faults.generator(SEED)
    with measured("faults", f"Ctrl-C at random moments: {name}", SEED) as row:
        hit = 0
        out = tmp_path / "out"
        for _ in range(7):
            process = faults.start(commands(place, out)[name][0])
            time.sleep(0.2 + rng.random() * max(0.3, 0.9 * reference[1][name] - 0.2))
            faults.kill(process, signal.SIGINT)
            said = process.communicate(timeout=120)[1]
            if process.returncode == 0 or (process.returncode == -signal.SIGINT and not said):
                continue  # it had ended, or Python itself was still starting
            hit += 1
            assert process.returncode == 130, (process.returncode, said[-3000:])
            assert faults.one_line(said) == "stopped by Ctrl-C"
            assert faults.whole(out) == [], "Ctrl-C leaves time to tidy up"
        assert hit >= 1, "it always ended before Ctrl-C came"
        faults.run(commands(place, out)[name][0])
        equal(out, reference[0], name, place)
        row.update(count=hit, outcome="exit 130, one line, no temporary file left; then the undisturbed result")
