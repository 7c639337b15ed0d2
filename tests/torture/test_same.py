"""The same command twice, and with other workers, batches, shards and engines; and without any network."""

import csv
import shutil
import subprocess
import sys

import faults
import pytest
import tiny
from record import measured

pytestmark = pytest.mark.torture


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tiny.place(tmp_path_factory.mktemp("same"), 60, sizes=(40, 299), kinds=("png", "jpg", "webp"), bad=True)


def decisions(out):
    with open(out / "scores.csv", encoding="utf-8", newline="") as file:
        return [(r["path"], r["decision"], r["status"]) for r in csv.DictReader(file)]


def test_infer(place, tmp_path):
    base = ["infer.py", "--ckpt", place / "tiny.onnx", "--images", place / "in", "--votes", 3]
    with measured("determinism", "infer.py: workers, batches, shards, hash seeds") as row:
        faults.run([*base, "--out", tmp_path / "a", "--workers", 1], 3)
        variants = [
            ["--workers", 1],
            ["--workers", 5],
            ["--workers", 2, "--batch-size", 1],
            ["--workers", 3, "--batch-size", 17],
        ]
        for i, more in enumerate(variants):
            faults.run([*base, "--out", tmp_path / str(i), *more], 3, env={"PYTHONHASHSEED": str(i)})
        for shards in (2, 5):
            out = tmp_path / f"shards{shards}"
            for shard in range(shards):
                faults.run([*base, "--out", out, "--shard", f"{shard}/{shards}", "--workers", shard + 1], (0, 3))
            faults.run(["infer.py", "merge", out], 3)
        made = [tmp_path / n for n in ("0", "1", "2", "3", "shards2", "shards5")]
        for out in made:
            for name in ("result.txt", "scores.csv"):
                assert (out / name).read_bytes() == (tmp_path / "a" / name).read_bytes(), (out, name)
        row.update(count=len(made), outcome="result.txt and scores.csv byte-equal")


def test_engines(place, tmp_path):
    base = ["infer.py", "--images", place / "in", "--votes", 3]
    with measured("determinism", "infer.py: ONNX Runtime, exported ONNX, MindSpore") as row:
        runs = {
            "onnxruntime": ["--ckpt", place / "tiny.ckpt", "--backend", "onnxruntime"],
            "exported": ["--ckpt", place / "tiny.onnx"],
            "mindspore": ["--ckpt", place / "tiny.ckpt", "--backend", "mindspore"],
        }
        for name, more in runs.items():
            faults.run([*base, *more, "--out", tmp_path / name], 3)
        assert (
            decisions(tmp_path / "onnxruntime") == decisions(tmp_path / "mindspore") == decisions(tmp_path / "exported")
        )
        row.update(count=len(runs), outcome="the same decisions")


def test_train(place, tmp_path):
    with measured("determinism", "train.py: twice, with 0 and 2 worker processes") as row:
        for name, workers in (("a", 0), ("b", 0), ("c", 2)):
            faults.run(tiny.training(place / "data", tmp_path / name, num_parallel_workers=workers))
        for name in ("b", "c"):
            assert faults.log(tmp_path / name) == faults.log(tmp_path / "a")
            for file in ("last.ckpt", "best.ckpt"):
                assert (tmp_path / name / file).read_bytes() == (tmp_path / "a" / file).read_bytes()
        row.update(count=3, outcome="checkpoints byte-equal, logs equal")


def test_convert_export_evaluate(place, tmp_path):
    with measured("determinism", "convert, export.py, evaluate.py: twice") as row:
        faults.run(["infer.py", "--ckpt", place / "tiny.onnx", "--images", place / "in", "--out", tmp_path / "s"], 3)
        score = ["evaluate.py", "score", "--scores", tmp_path / "s" / "scores.csv", "--labels", place / "in"]
        for i, name in enumerate("ab"):
            seed = {"PYTHONHASHSEED": str(i)}
            faults.run(["-m", "convert", place / "source.safetensors", tmp_path / name / "x.ckpt"], env=seed)
            for kind in ("onnx", "mindir"):
                argv = ["export.py", "--ckpt", place / "tiny.ckpt", "--format", kind, "--out", tmp_path / name]
                faults.run(argv, env=seed)
            faults.run([*score, "--out", tmp_path / name / "e", "--bootstrap", 50], 3, env=seed)
        for file in ("x.ckpt", "x.json", "tiny.onnx", "tiny.onnx.json"):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
        import json

        first, second = (json.loads((tmp_path / n / "e" / "metrics.json").read_text()) for n in "ab")
        assert faults.timeless(first) == faults.timeless(second)
        row.update(count=2, outcome="checkpoint, sidecar and ONNX byte-equal, metrics equal")


def test_no_network(place, tmp_path):
    """Every command in a namespace that has no network at all, not even a loopback that is up."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("this user may not take the network away from a process (unshare -n)")
    commands = [
        (tiny.training(place / "data", tmp_path / "t"), 0),
        (["-m", "convert", place / "source.safetensors", tmp_path / "x.ckpt"], 0),
        (["export.py", "--ckpt", tmp_path / "t" / "last.ckpt", "--format", "onnx", "--out", tmp_path], 0),
        (["infer.py", "--ckpt", tmp_path / "t" / "last.ckpt", "--images", place / "in", "--out", tmp_path / "s"], 3),
        (
            [
                "evaluate.py",
                "score",
                "--scores",
                tmp_path / "s/scores.csv",
                "--labels",
                place / "in",
                "--out",
                tmp_path / "e",
            ],
            3,
        ),
    ]
    with measured("network", "train, convert, export, infer, evaluate under unshare -n") as row:
        for argv, code in commands:
            done = subprocess.run(
                ["unshare", "-n", sys.executable, *map(str, argv)], cwd=tiny.ROOT, capture_output=True, text=True
            )
            assert done.returncode == code, (argv, done.stderr[-3000:])
        row.update(count=len(commands), outcome="all finish without a network")
