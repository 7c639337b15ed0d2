"""The long part of bad weights and bad images: many mutations, and the memory of whole processes."""

import csv
import os
import subprocess
import sys

import corpus
import hostile
import numpy as np
import pytest
import tiny
from record import measured

from aidet import ckpt
from aidet.datasets.sources import Inputs
from aidet.errors import UserError
from convert import reading

pytestmark = pytest.mark.torture
SEED = 20263
MUTATIONS = int(os.environ.get("AIDET_MUTATIONS", "6000"))


def mutated(whole, rng):
    """One sound file with something wrong: cut, bits, a piece moved, doubled, put in or replaced by extremes."""
    data = bytearray(whole)
    for _ in range(int(rng.integers(1, 4))):
        # Half of the changes go to the first kilobyte, where the headers are.
        high = min(len(data), 1024) if rng.random() < 0.5 else len(data)
        at, size = int(rng.integers(max(1, high))), int(rng.integers(1, 65))
        kind = int(rng.integers(6))
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            data[at : at + size] = rng.bytes(size)
        elif kind == 3:
            data[at:at] = data[at : at + size]
        elif kind == 4:
            data[at : at + 8] = (b"\xff" * 8, bytes(8), b"\xff" * 7 + b"\x7f", b"\x7f" + bytes(7))[int(rng.integers(4))]
        else:
            del data[at : at + size]
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("name", ["safetensors", "npz", "torch zip", "torch legacy", "npz compressed", "mindspore"])
def test_mutations_of_weights(name, tmp_path):
    path = tmp_path / "x.ckpt"
    if name == "mindspore":
        whole = tiny.checkpoint(path).read_bytes()
    elif name == "torch legacy":
        whole = (tiny.ROOT / "tests/data/convert/legacy.pth").read_bytes()
    else:
        make = {"safetensors": hostile.safetensors, "torch zip": hostile.torch_zip, "npz": hostile.npz}
        options = {"method": hostile.zipfile.ZIP_DEFLATED} if name.endswith("compressed") else {}
        whole = make.get(name, hostile.npz)(path, **options).read_bytes()
    rng = np.random.default_rng(SEED)
    with measured("weights", f"random mutations: {name}", SEED) as row:
        refused = 0
        for _ in range(MUTATIONS):
            path.write_bytes(mutated(whole, rng))
            try:
                if name == "mindspore":
                    size = sum(a.nbytes for a in ckpt.load_arrays(path).values())
                else:
                    size = sum(t.array().nbytes for t in reading.read(path).tensors.values())
                assert size < 16 * len(whole) + (1 << 20)
            except UserError:
                refused += 1
        row.update(count=MUTATIONS, outcome=f"{refused} refused in one line, the rest read; no other exception")


WORKER = """
import contextlib, io, json, os, pathlib, sys, resource
sys.path[:0] = [{root!r}, {root!r} + "/tests/torture"]
import hostile
import convert.__main__ as command
from aidet import cli
folder = pathlib.Path({folder!r})
marker, codes = folder / "executed", {{}}
files = {{n: hostile.in_state_dict(v) for n, v in {{**hostile.attacks(marker), **hostile.bombs()}}.items()}}
for name, payload in files.items():
    hostile.torch_zip(folder / "x.pth", payload)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main(command.run, [str(folder / "x.pth"), str(folder / "out" / "x.ckpt"), "--verify", "none"])
        except SystemExit as end:
            codes[end.code] = codes.get(end.code, 0) + 1
hostile.zeros_bomb(folder / "bomb.npz", gigabytes=16)
for argv in (["bomb.npz"],):
    try:
        cli.main(command.run, [str(folder / argv[0]), str(folder / "out" / "y.ckpt")])
    except SystemExit as end:
        codes[end.code] = codes.get(end.code, 0) + 1
print(json.dumps([codes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, marker.exists()]))
"""


def test_memory_of_a_process_that_meets_every_bomb(tmp_path):
    """All attacks and bombs, and a zip bomb of 16 GiB, one after the other in one process."""
    with measured("weights", "pickles with code, bombs, a zip bomb of 16 GiB: one process") as row:
        script = WORKER.format(root=str(tiny.ROOT), folder=str(tmp_path))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
        import json

        codes, kilobytes, executed = json.loads(done.stdout.strip().splitlines()[-1])
        assert not executed and set(codes) <= {"0", "2"}
        assert kilobytes < 1200 << 10, f"{kilobytes >> 10} MiB"
        # What ends in 0 is a sound file with a harmless nest beside its weights.
        row.update(
            count=sum(codes.values()),
            outcome=f"{codes['2']} refused, {codes.get('0', 0)} harmless; nothing executed; peak {kilobytes >> 10} MiB",
        )


def test_many_bad_images(tmp_path):
    """A larger corpus with images near the limit of pixels, in one process of infer.py."""
    folder = tmp_path / "in"
    usable, bad, good = corpus.write(folder, cuts=40, flips=120, seed=SEED)
    for name, size in (("large.jpg", (9000, 9000)), ("wide.png", (60000, 1500))):
        corpus.photo(7, (300, 300)).resize(size).save(folder / f"zz {name}", quality=80, compress_level=1)
    model = tiny.graph(tmp_path)
    with measured("images", "formats, cuts, flipped bits, giants, links, pipes through infer.py", SEED) as row:
        argv = [sys.executable, tiny.ROOT / "infer.py", "--ckpt", model, "--images", folder, "--out", tmp_path / "out"]
        argv += ["--workers", 2]
        with open(tmp_path / "said", "w+b") as said:
            process = subprocess.Popen([str(a) for a in argv], stdout=subprocess.DEVNULL, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
            said.seek(0)
            text = said.read().decode(errors="replace")
        assert process.returncode == 3 and "Traceback" not in text, text[-3000:]
        with open(tmp_path / "out" / "scores.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [r["path"] for r in rows] == [name for name, _ in Inputs(folder)]
        state = {r["path"]: r["status"] for r in rows}
        assert all(state[n] == "ok" for n in [*usable, *good, "zz large.jpg", "zz wide.png"])
        assert all(state[n].startswith("error: ") for n in bad)
        assert len((tmp_path / "out" / "result.txt").read_text().splitlines()) == len(rows)
        assert usage.ru_maxrss < 2500 << 10, f"{usage.ru_maxrss >> 10} MiB"
        errors = sum(s != "ok" for s in state.values())
        row.update(
            count=len(rows),
            outcome=f"{errors} error rows, {len(rows) - errors} scored, none missing or moved; "
            f"peak {usage.ru_maxrss >> 10} MiB with two threads",
        )
