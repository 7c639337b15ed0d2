"""kill -9 at random moments: nothing half-written has a final name, and a resumed run gives the undisturbed result."""

import json
import shutil
import time

import faults
import pytest
import tiny
from PIL import Image
from record import measured

pytestmark = pytest.mark.torture
SEED = 20261


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny data set, a checkpoint, its graph, and images to score."""
    return tiny.place(tmp_path_factory.mktemp("kills"), 120, bad=True)


def undisturbed(argv, out, expected=0):
    """Run once and give the seconds from its first file to its end."""
    process = faults.start(argv)
    first = None
    while process.poll() is None:
        if first is None and faults.anything(out):
            first = time.monotonic()
        time.sleep(0.003)
    end = time.monotonic()
    said = process.communicate()
    assert process.returncode == expected, said
    assert faults.whole(out) == [], "an undisturbed run leaves no temporary file"
    return max(0.05, end - (first or end))


def chain(argv, out, seed, kills, length, expected=0, least=1):
    """Kill one run again and again, each time going on where it stopped, then let it end."""
    rng, done, left = faults.generator(seed), 0, set()
    for _ in range(kills):
        done += faults.kill_at_random(argv, out, rng, length)
        left.update(faults.whole(out))
    faults.run(argv, expected)
    faults.whole(out)
    assert done >= least, "it always ended before it could be killed"
    return done, left


def test_train(place, tmp_path):
    reference = tmp_path / "reference"
    length = undisturbed(tiny.training(place / "data", reference), reference)
    total, left = 0, set()
    with measured("kill -9", "train.py, at random moments, resumed with --resume auto", SEED) as row:
        for chained in range(5):
            out = tmp_path / f"out{chained}"
            # The whole of a run is longer than what is left of it after a few kills: aim shorter.
            done, rest = chain(tiny.training(place / "data", out), out, SEED + chained, 7, 0.5 * length)
            total, left = total + done, left | rest
            assert faults.log(out) == faults.log(reference)
            for name in ("last.ckpt", "best.ckpt", "state.ckpt"):
                faults.same_weights(out / name, reference / name)
            assert (out / "steps.csv").read_bytes() == (reference / "steps.csv").read_bytes()
        assert total >= 25
        row.update(count=total, outcome="log, steps and weights bit-equal to the undisturbed run")


def test_infer(place, tmp_path):
    flags = [
        "infer.py",
        "--ckpt",
        place / "tiny.onnx",
        "--images",
        place / "in",
        "--votes",
        4,
        "--workers",
        1,
        "--resume",
    ]
    reference = tmp_path / "reference"
    length = undisturbed([*flags, "--out", reference], reference, 3)
    total = 0
    with measured("kill -9", "infer.py, at random moments, resumed with --resume", SEED) as row:
        for chained in range(6):
            out = tmp_path / f"out{chained}"
            done, _ = chain([*flags, "--out", out], out, SEED + chained, 6, 0.5 * length, 3)
            total += done
            for name in ("result.txt", "scores.csv"):
                assert (out / name).read_bytes() == (reference / name).read_bytes(), name
        assert total >= 20
        row.update(count=total, outcome="result.txt and scores.csv byte-equal to the undisturbed run")


def test_evaluate(place, tmp_path):
    scores = tmp_path / "scores"
    faults.run(["infer.py", "--ckpt", place / "tiny.onnx", "--images", place / "in", "--out", scores], 3)
    common = ["--labels", place / "in", "--bootstrap", 20]
    sweep = ["--ckpt", place / "tiny.onnx", "--points", "jpeg", "--workers", 1]
    commands = {
        "score": (["evaluate.py", "score", "--scores", scores / "scores.csv", *common], 3, 8),
        "sweep": (["evaluate.py", "sweep", *sweep, *common], 3, 10),
    }
    total = 0
    with measured("kill -9", "evaluate.py score and sweep, at random moments, run again", SEED) as row:
        for name, (argv, code, kills) in commands.items():
            reference, out = tmp_path / f"{name}-reference", tmp_path / name
            length = undisturbed([*argv, "--out", reference], reference, code)
            done, _ = chain([*argv, "--out", out], out, SEED, kills, length, code)
            total += done
            got, wanted = (json.loads((f / "metrics.json").read_text()) for f in (out, reference))
            assert faults.timeless(got) == faults.timeless(wanted)
        assert total >= 8
        row.update(count=total, outcome="metrics.json equal to the undisturbed run's")


def test_convert(place, tmp_path):
    argv = ["-m", "convert", place / "source.safetensors"]
    reference = tmp_path / "reference"
    length = undisturbed([*argv, reference / "x.ckpt"], reference)
    with measured("kill -9", "python -m convert, at random moments, run again", SEED) as row:
        out = tmp_path / "out"
        done, left = chain([*argv, out / "x.ckpt"], out, SEED, 18, 2 * length, least=8)
        for name in ("x.ckpt", "x.json"):
            assert (out / name).read_bytes() == (reference / name).read_bytes(), name
        assert all(name.startswith(".convert-") for name in left)
        row.update(count=done, outcome="x.ckpt and x.json byte-equal to the undisturbed run's")


@pytest.mark.parametrize("kind", ["onnx", "mindir"])
def test_export(place, tmp_path, kind):
    argv = ["export.py", "--ckpt", place / "tiny.ckpt", "--format", kind]
    argv += ["--emit-lite"] if kind == "mindir" else []
    reference = tmp_path / "reference"
    length = undisturbed([*argv, "--out", reference], reference)
    with measured("kill -9", f"export.py --format {kind}, at random moments, run again", SEED) as row:
        out = tmp_path / "out"
        done, left = chain([*argv, "--out", out], out, SEED, 10, 1.2 * length, least=4)
        files = sorted(p.relative_to(reference) for p in reference.rglob("*") if p.is_file())
        assert files == sorted(
            p.relative_to(out)
            for p in out.rglob("*")
            if p.is_file() and not p.relative_to(out).parts[0].startswith(".")
        )
        if kind == "onnx":
            assert (out / "tiny.onnx").read_bytes() == (reference / "tiny.onnx").read_bytes()
        row.update(count=done, outcome="the files of the undisturbed run, each whole")
        shutil.rmtree(out)


def test_first_use_of_a_checkpoint(place, tmp_path):
    """The cached graph beside a checkpoint: killed while it is made, it is made again and gives the same scores."""
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.open(place / "in" / ("real", "fake")[i % 2] / f"{i}.png").save(tmp_path / "in" / f"{i}.png")
    model = tmp_path / "model"
    model.mkdir()
    for name in ("tiny.ckpt", "tiny.json"):
        shutil.copy(place / name, model / name)
    flags = ["infer.py", "--ckpt", model / "tiny.ckpt", "--images", tmp_path / "in", "--out"]
    reference = tmp_path / "reference"
    faults.run([*flags, reference])
    rng, done = faults.generator(SEED), 0
    with measured("kill -9", "infer.py while it makes a checkpoint's ONNX graph", SEED) as row:
        for _ in range(6):
            for old in model.glob("*.onnx"):
                old.unlink()
            process = faults.start([*flags, tmp_path / "out"])
            time.sleep(1 + 4 * rng.random())
            faults.kill(process)
            process.communicate()
            done += process.returncode == -9
            for made in model.glob("[!.]*.onnx"):
                faults.check(made)
        faults.run([*flags, tmp_path / "out"])
        assert (tmp_path / "out" / "scores.csv").read_bytes() == (reference / "scores.csv").read_bytes()
        row.update(count=done, outcome="made again; scores.csv byte-equal")
