"""The engine ray: the same bytes as one process, from any source, on one machine and on several, and through kills."""

import csv
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from infer_tools import make_model
from PIL import Image

import infer
from aidet import Detector, cli, distributed
from aidet.errors import UserError
from aidet.inference import results
from aidet.records import Record

pa = pytest.importorskip("pyarrow", reason="pip install 'aidet[parquet]'")
pq = pytest.importorskip("pyarrow.parquet")
# Not imported here: a process in which Ray comes before MindSpore needs what distributed.ray() sets.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="pip install 'aidet[ray]'")

ROOT = Path(__file__).resolve().parents[2]
COUNT = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With a rule on evidence, which some pictures do not meet."""
    return make_model(tmp_path_factory.mktemp("model") / "a.ckpt", evidence={"min_side": 32, "min_detail": 0.0})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small pictures of mixed sizes in a folder."""
    place, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for i in range(COUNT):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        small.resize(tuple(rng.integers(20, 90, 2).tolist()), Image.Resampling.BICUBIC).save(place / f"{i}.png")
    return place


@pytest.fixture(scope="module")
def shards(files, tmp_path_factory):
    """The pictures in a Parquet, a tar and a zip file; of each some are damaged, and one archive is cut off."""
    place = tmp_path_factory.mktemp("shards")
    data = [(files / f"{i}.png").read_bytes() for i in range(COUNT)]
    cells = [*data[:20], b"no image", None]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), place / "a.parquet", row_group_size=7)
    with tarfile.open(place / "b.tar", "w") as archive:
        for i in range(20, 40):
            archive.add(files / f"{i}.png", f"{i}.png")
    whole = (place / "b.tar").read_bytes()
    (place / "b.tar").write_bytes(whole[: len(whole) * 3 // 4])
    with zipfile.ZipFile(place / "c.zip", "w") as archive:
        for i in range(40, COUNT):
            archive.write(files / f"{i}.png", f"deep/{i}.png")
        archive.writestr("../x.png", b"")
    (place / "d.parquet").write_bytes(b"PAR1 nothing PAR1")
    return place


def call(*argv):
    """infer.py in this process; the exit code."""
    return infer.run([str(a) for a in argv]) or 0


def written(out):
    return {name: (out / name).read_bytes() for name in ("scores.csv", "result.txt")}


@pytest.fixture(scope="module")
def cluster():
    """One Ray cluster of two workers for the tests of this file: a process that is connected stays so."""
    with distributed.connected(workers=2) as workers:
        yield workers


# --- one machine ---------------------------------------------------------------------------------------------------
def test_archives_damage_and_resume_are_those_of_one_process(model, shards, cluster, tmp_path, monkeypatch):
    """A run of one process that was killed is continued by Ray; every file is that of one process alone."""
    monkeypatch.setattr(distributed.scoring, "SMALLEST", 4)
    argv = ["--ckpt", model, "--images", shards, "--votes", 3]
    assert call(*argv, "--out", tmp_path / "one") == cli.PARTIAL
    rows = list(csv.DictReader(open(tmp_path / "one" / "scores.csv", newline="")))
    assert {"", "shorter side under 32 pixels"} == {row["reason"] for row in rows}
    bad = [row["path"] for row in rows if row["status"] != "ok"]
    assert {"a.parquet#20", "a.parquet#21", "b.tar#", "c.zip#../x.png", "d.parquet#"} <= set(bad) and len(rows) > 55
    monkeypatch.setattr("aidet.inference.run.finish", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        call(*argv, "--out", tmp_path / "ray")
    monkeypatch.undo()
    monkeypatch.setattr(distributed.scoring, "SMALLEST", 4)
    kept = tmp_path / "ray" / "infer.journal"
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:12]))
    assert call(*argv, "--out", tmp_path / "ray", "--engine", "ray", "--workers", 2, "--resume") == cli.PARTIAL
    assert written(tmp_path / "ray") == written(tmp_path / "one")
    parts = pq.read_table(tmp_path / "ray" / "parts")
    assert parts.column("path").to_pylist() == [row["path"] for row in rows]
    assert [s or 0 for s in parts.column("score").to_pylist()] == pytest.approx([float(r["score"] or 0) for r in rows])
    assert parts.column("status").to_pylist() == [row["status"] for row in rows]


def test_a_data_set_is_scored_as_the_detector_scores_it(model, files, cluster):
    data = distributed.ray().data.read_binary_files(str(files), include_paths=True)
    found = {r.path: r for t in distributed.score(data, str(model), workers=1).iter_batches(batch_format="pyarrow")
             for r in distributed.from_table(t)}  # fmt: skip
    expected = Detector(model).score(sorted(found))
    assert len(expected) == COUNT
    for verdict in expected:
        one = found[verdict.path]
        assert (one.score, one.prob, one.label, one.decision, one.scores) == (
            verdict.score, verdict.prob, verdict.label, verdict.decision, verdict.scores
        )  # fmt: skip


def test_what_a_worker_lacks_ends_the_run_in_one_line(model, files, cluster, tmp_path, monkeypatch):
    """The checkpoint is another file on the machine of the workers; or the images are not there."""
    monkeypatch.setattr(distributed.scoring, "facts", lambda detector: {"checkpoint": ["another"]})
    images = [(str(i), str(files / f"{i}.png")) for i in range(4)]
    with pytest.raises(UserError, match=r"^the machine \S+ has another checkpoint .*; install the same"):
        list(distributed.stream(images, 4, Detector(model), 1))
    worker = distributed.scoring.Worker([str(model)], {}, {}, root=str(tmp_path / "gone"))
    with pytest.raises(UserError, match="does not see .*gone'; the images must lie on a disk"):
        worker(pa.table({"path": ["x"]}))


# --- without a cluster ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--engine", "rya", "--out", "o"], "did you mean 'ray'"),
        (["--engine", "ray"], "--engine ray writes result files; add --out DIR"),
        (["--engine", "ray", "--out", "o", "--shard", "1/2"], "leave out --shard"),
        (["--ray-address", "auto", "--out", "o"], "--ray-address 'auto' goes with --engine ray"),
    ],
)
def test_options_that_do_not_go_together(argv, message, files):
    with pytest.raises(UserError, match=message):
        call("--images", files, *argv)


def test_a_missing_package_says_how_to_install_it(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'aidet\[ray\]'"):
        call("--images", files, "--out", "o", "--engine", "ray")


@pytest.mark.parametrize(
    ("address", "message"),
    [("127.0.0.1:1", "no Ray cluster answers at '127.0.0.1:1'"), ("ray://x:1", "must be HOST:PORT or auto")],
)
def test_an_address_without_a_cluster_is_one_line(address, message, monkeypatch):
    monkeypatch.setattr(distributed.ray(), "is_initialized", lambda: False)
    with pytest.raises(UserError, match=message):
        with distributed.connected(address):
            pass


def test_why_a_run_ended_is_one_line_of_the_workers_traceback():
    said = "the machine vm has another checkpoint; install the same"
    text = f"ray::MapWorker() (pid=1)\n  raise UserError(reason)\naidet.errors.UserError: {said}\n\nThe above exception"
    assert distributed.scoring._why(RuntimeError(text)) == said
    lost = distributed.scoring._why(RuntimeError("ray::MapWorker()\nThe actor is dead.\n"))
    assert lost == "Ray gave up: The actor is dead.; rows that were finished are kept, --resume continues"


def test_rows_survive_the_way_as_they_are():
    """A name that is no Unicode, a score without rounding, an image that could not be used."""
    rows = [
        Record("a\udcff#1.png", 0.1 + 0.2, 0.57, 1, "unsure", "ok", {"m": 0.3}, {"original": 0.5}, "a note \udcfe"),
        Record("b", status="error: empty file"),
    ]
    form = distributed.schema(["m"], stability=True, raw=True)
    names = pa.array([distributed.rows.packed(r.path) for r in rows], pa.binary())
    first, second = distributed.from_table(distributed.to_table(rows, form, names))
    assert second == rows[1]
    assert first == Record(**{**vars(rows[0]), "note": "a note \\udcfe"})
    plain = distributed.to_table(rows, distributed.schema(["m"]))
    assert plain.column("path").to_pylist() == ["a\\udcff#1.png", "b"]


def test_parts_hold_all_rows_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "PART", 6)
    monkeypatch.setattr(results, "GROUP", 3)
    rows = [Record(f"{i}.png", float(i), 0.5, 1, "generated", "ok", {"m": float(i)}) for i in range(14)]
    paths = results.write_parts(tmp_path / "parts", lambda: iter(rows), ["m"])
    assert [pq.read_metadata(path).num_rows for path in paths] == [6, 6, 2]
    assert [r for path in paths for r in distributed.from_table(pq.read_table(path))] == rows


@pytest.mark.parametrize(("total", "workers", "size"), [(3, 8, 1), (100, 2, 16), (10**5, 2, 196), (10**8, 4, 1024)])
def test_blocks_leave_work_for_all(total, workers, size):
    assert distributed.scoring.block_size(total, workers) == size


# --- long: every source, several machines, kills -------------------------------------------------------------------
@pytest.mark.matrix
def test_every_source_through_one_list(model, files, shards, cluster, tmp_path):
    """Files, and images in archives of each format, named in one list."""
    from mindspore.mindrecord import FileWriter

    data = [(files / f"{i}.png").read_bytes() for i in range(COUNT)]
    shutil.copytree(shards, tmp_path / "in")
    shutil.copytree(files, tmp_path / "in" / "files")
    cells = pa.table({"image": pa.array(data[:8], pa.binary())})
    with pa.OSFile(str(tmp_path / "in" / "e.arrow"), "wb") as sink, pa.ipc.new_stream(sink, cells.schema) as writer:
        writer.write_table(cells)
    record = FileWriter(str(tmp_path / "in" / "f.mindrecord"), 1)
    record.add_schema({"image": {"type": "bytes"}}, "images")
    record.write_raw_data([{"image": picture} for picture in data[8:16]])
    record.commit()
    names = [f"files/{i}.png" for i in range(8)] + [f"a.parquet#{i}" for i in range(22)] + ["c.zip#deep/41.png"]
    names += [f"b.tar#{i}.png" for i in range(20, 28)] + [
        f"{f}#{i}" for f in ("e.arrow", "f.mindrecord") for i in range(8)
    ]
    (tmp_path / "in" / "list.txt").write_text("\n".join(names) + "\n")
    argv = ["--ckpt", model, "--images", tmp_path / "in" / "list.txt", "--stability", "--format", "logit"]
    codes = [call(*argv, "--out", tmp_path / out, *more) for out, more in (("one", []), ("ray", ["--engine", "ray"]))]
    assert codes == [cli.PARTIAL] * 2
    for name in ("scores.csv", "stability.csv", "logits.csv"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.matrix
def test_an_image_that_kills_its_process_ends_the_run(model, files, cluster, monkeypatch):
    package = distributed.ray()

    class Killed(distributed.scoring.Worker):
        def __call__(self, table):
            if b"5.png" in table.column("name").to_pylist():
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(table)

    package.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(distributed.scoring, "Worker", Killed)
    monkeypatch.setattr(distributed.scoring, "RETRIES", 1)
    monkeypatch.setattr(distributed.scoring, "SMALLEST", 2)
    images = [(f"{i}.png", str(files / f"{i}.png")) for i in range(8)]
    rows = distributed.stream(images, 8, Detector(model), 1)
    with pytest.raises(UserError, match="^Ray gave up: .*--resume continues"):
        for number, row in enumerate(rows):
            assert row.path == f"{number}.png" and number < 4
    package.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def below(process):
    """A process and all below it."""
    found = [process]
    for one in found:
        try:
            found += [int(p) for t in Path(f"/proc/{one}/task").iterdir() for p in (t / "children").read_text().split()]
        except OSError:
            continue
    return found


def scoring_at(node):
    """The processes of a node that score."""
    (raylet,) = node.all_processes["raylet"]
    lines = {p: Path(f"/proc/{p}/cmdline") for p in below(raylet.process.pid)}
    return [p for p, line in lines.items() if line.exists() and b"ray::MapWorker" in line.read_bytes()]


@pytest.mark.matrix
@pytest.mark.parametrize("victim", ["worker", "node"])
def test_a_kill_loses_nothing_and_scores_nothing_twice(victim, tmp_path):
    """A cluster of three nodes; with SIGKILL one process that scores, or one node, ends in the middle."""
    rng, pictures = np.random.default_rng(0), tmp_path / "in"
    pictures.mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (1200, 1200, 3), np.uint8)).save(tmp_path / f"{i}.png")
    for i in range(160):  # large, so that there is a middle
        (pictures / f"{i}.png").symlink_to(tmp_path / f"{i % 6}.png")
    argv = ["--ckpt", ROOT / "ckpt" / "aidet_cifake.ckpt", "--images", pictures, "--votes", 3]
    assert call(*argv, "--out", tmp_path / "one") == 0
    distributed.ray()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        command = [sys.executable, "infer.py", *argv, "--out", tmp_path / "ray", "--engine", "ray", "--ray-address"]
        run = subprocess.Popen([*map(str, command), cluster.address], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        kept = tmp_path / "ray" / "infer.journal"
        while run.poll() is None and (not kept.exists() or kept.read_bytes().count(b"\n") < 20):
            time.sleep(0.05)
        assert run.poll() is None, run.stderr.read()
        scoring = scoring_at(nodes[0])
        assert scoring, "no process of this node scores"
        if victim == "worker":
            os.kill(scoring[0], signal.SIGKILL)
        else:
            cluster.remove_node(nodes[0], allow_graceful=False)
        rows = kept.read_bytes().count(b"\n")
        said = run.communicate(timeout=600)[1]
        assert run.returncode == 0, said
        assert rows < 150, "it was not in the middle"
    finally:
        cluster.shutdown()
    assert written(tmp_path / "ray") == written(tmp_path / "one")
