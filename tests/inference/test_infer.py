"""infer.py and Detector: the same bytes whatever the way, a row for every input, kill and resume, contest forms."""

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from infer_tools import make_model
from PIL import Image

import infer
from aidet import Detector, ckpt, files
from aidet.detector import backends, default
from aidet.detector.views import detail
from aidet.errors import UserError
from aidet.inference import journal

ROOT = Path(__file__).resolve().parents[2]


def test_calibration_moves_the_boundary_and_keeps_the_order(tmp_path, photo):
    images_ = [photo(i, (70, 60)) for i in range(5)]
    plain = Detector(make_model(tmp_path / "a.ckpt"), votes=5).score(images_)
    path = make_model(tmp_path / "b.ckpt", calibration={"scale": 0.5, "offset": 1.25})
    found = Detector(path, votes=5).score(images_)
    assert [r.score for r in found] == pytest.approx([0.5 * (r.score - 1.25) for r in plain], abs=1e-9)
    # The same decisions as with a threshold at the offset, and 0.5 is the boundary now.
    moved = Detector(tmp_path / "a.ckpt", votes=5, threshold=1 / (1 + np.exp(-1.25))).score(images_)
    assert [r.label for r in found] == [r.label for r in moved] == [int(r.prob > 0.5) for r in found]
    # A hard vote counts calibrated views.
    hard = Detector(path, votes=5, vote="hard").score(images_)
    for h, f in zip(hard, found):
        share = np.mean([v > 0 for v in f.view_scores["b"]])
        assert h.prob == pytest.approx(min(max(share, 1e-6), 1 - 1e-6))


@pytest.mark.parametrize("wrong", [{"scale": 0}, {"scale": -1}, {"offset": None}, {"scale": "2"}, 3, [1]])
def test_a_wrong_calibration_is_named(tmp_path, wrong):
    path = make_model(tmp_path / "m.ckpt")
    facts = files.read_json(path.with_suffix(".json"))
    files.write_json(path.with_suffix(".json"), {**facts, "calibration": wrong})
    with pytest.raises(UserError, match="calibration"):
        Detector(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "a.ckpt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty images of several formats and sizes in nested folders, named so that text order is not numeric order."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(20):
        size = (int(rng.integers(20, 90)), int(rng.integers(20, 90)))
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        image = small.resize(size, Image.Resampling.BICUBIC)
        where = root / ("deep/er" if i % 5 == 0 else "")
        where.mkdir(parents=True, exist_ok=True)
        image.save(where / f"{i}{('.jpg', '.png', '.webp', '.bmp')[i % 4]}")
    return root


def call(*argv):
    """infer.py in this process; the exit code."""
    return infer.run([str(a) for a in argv]) or 0


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def result_bytes(out):
    return (out / "result.txt").read_bytes(), (out / "scores.csv").read_bytes()


@pytest.fixture(scope="module")
def reference(model, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference")
    assert call("--ckpt", model, "--images", folder, "--out", out, "--votes", 3, "--workers", 1) == 0
    return out


def test_result_is_in_numeric_order_of_the_stem(reference):
    rows = table(reference / "scores.csv")
    assert len(rows) == 20 and {r["status"] for r in rows} == {"ok"}
    by_stem = sorted(rows, key=lambda r: int(Path(r["path"]).stem))
    text = (reference / "result.txt").read_bytes().decode()
    assert text == "".join(r["label"] + "\n" for r in by_stem)
    assert set(text) == {"0", "1", "\n"}, "a test model that says one word for all tests nothing"
    for r in rows:
        assert float(r["prob"]) == pytest.approx(1 / (1 + np.exp(-float(r["score"]))), abs=1e-8)
        assert (float(r["score"]) > 0) == (r["label"] == "1")
        # The unsure zone around the threshold is 0.5 wide in scores, to both sides.
        word = "unsure" if abs(float(r["score"])) < 0.5 else "generated" if r["label"] == "1" else "real"
        assert r["decision"] == word or abs(float(r["prob"]) - 0.5) == pytest.approx(0.122, abs=1e-3)


@pytest.mark.parametrize(
    "flags", [["--workers", 4, "--batch-size", 1], ["--workers", 2, "--batch-size", 7], ["--workers", 7]], ids=str
)
def test_same_bytes_for_any_workers_and_batch_size(model, folder, reference, tmp_path, flags):
    assert call("--ckpt", model, "--images", folder, "--out", tmp_path, "--votes", 3, *flags) == 0
    assert result_bytes(tmp_path) == result_bytes(reference)


@pytest.mark.parametrize("shards", [["0/3", "1/3", "2/3"], ["1/2", "2/2"]], ids=str)
def test_same_bytes_from_shards(model, folder, reference, tmp_path, shards):
    for shard in shards:
        assert call("--ckpt", model, "--images", folder, "--out", tmp_path, "--votes", 3, "--shard", shard) == 0
    assert call("merge", tmp_path) == 0
    assert result_bytes(tmp_path) == result_bytes(reference)


def test_merge_refuses_missing_and_foreign_shards(model, folder, tmp_path, capsys):
    with pytest.raises(UserError, match="holds no shard"):
        call("merge", tmp_path)
    common = ["--ckpt", model, "--images", folder, "--out", tmp_path]
    call(*common, "--shard", "1/2")
    assert "shard 1/2: " in capsys.readouterr().out
    with pytest.raises(UserError, match="shard 0/2 is missing"):
        call("merge", tmp_path)
    call(*common, "--shard", "2/2", "--votes", 2)
    assert "shard 2/2: " in capsys.readouterr().out, "as it was written, though it is number 0 inside"
    with pytest.raises(UserError, match="another votes"):
        call("merge", tmp_path)
    call(*common, "--shard", "2/2")
    half = tmp_path / "shard-0-of-2.journal"
    half.write_bytes(half.read_bytes()[:-40])
    with pytest.raises(UserError, match="shard-0-of-2.journal is not complete"):
        call("merge", tmp_path)
    assert not (tmp_path / "result.txt").exists()


def test_shards_of_another_sidecar_are_refused(folder, tmp_path):
    """The weights are the same, the scores are not."""
    path = make_model(tmp_path / "a.ckpt", calibration={"scale": 0.5, "offset": 0.1})
    common = ["--ckpt", path, "--images", folder, "--out", tmp_path / "o"]
    call(*common, "--shard", "1/2")
    facts = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**facts, "calibration": {"scale": 0.2, "offset": 0.1}}))
    call(*common, "--shard", "2/2")
    with pytest.raises(UserError, match="another stated"):
        call("merge", tmp_path / "o")


def test_run_json_says_how_it_was_fused_and_at_which_point(model, folder, tmp_path):
    other = make_model(tmp_path / "b.ckpt", seed=2, operating_points={"few-misses": {"threshold": 0.2}},
                       operating_point="few-misses")  # fmt: skip
    (tmp_path / "f.yaml").write_text(f"models: [{model}, b.ckpt]\nfuse: hard\nweights: {{a: 0.75, b: 0.25}}\n")
    call("--ckpt", tmp_path / "f.yaml", "--images", folder, "--out", tmp_path / "o")
    said = json.loads((tmp_path / "o" / "run.json").read_text())["options"]
    assert said["fuse"] == "hard" and said["weights"] == {"a": 0.75, "b": 0.25}
    hard = ["--vote", "hard", "--operating-point", "few-misses"]
    call("--ckpt", other, "--images", folder, "--out", tmp_path / "p", *hard)
    assert json.loads((tmp_path / "p" / "run.json").read_text())["options"]["operating_point"] == "few-misses"


def test_under_msrun_the_rank_is_the_shard(model, folder, tmp_path, monkeypatch):
    root = tmp_path / "in"
    root.mkdir()
    for i in range(5):
        (root / f"{i}.png").write_bytes((folder / "1.png").read_bytes() if i else b"nothing")
    monkeypatch.setenv("RANK_SIZE", "2")
    with monkeypatch.context() as scheduler:  # a third process that msrun starts, and that must not score
        scheduler.setenv("MS_ROLE", "MS_SCHED")
        scheduler.setenv("RANK_ID", "0")
        assert call("--ckpt", model, "--images", root, "--out", tmp_path / "o") == 0
    assert not (tmp_path / "o").exists()
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK_ID", rank)
        # Not 3: msrun would kill the other worker.
        assert call("--ckpt", model, "--images", root, "--out", tmp_path / "o") == 0
    assert call("merge", tmp_path / "o") == 3
    assert [r["path"] for r in table(tmp_path / "o/scores.csv")] == [f"{i}.png" for i in range(5)]


def test_list_of_files_gives_the_same_rows(model, folder, reference, tmp_path):
    rows = table(reference / "scores.csv")
    listing = folder / "list.csv"
    listing.write_text("path,other\n" + "".join(f"{r['path']},x\n" for r in reversed(rows)))
    try:
        assert call("--ckpt", model, "--images", listing, "--out", tmp_path, "--votes", 3) == 0
    finally:
        listing.unlink()
    assert table(tmp_path / "scores.csv") == rows[::-1]
    assert (tmp_path / "result.txt").read_bytes() == (reference / "result.txt").read_bytes()


def test_backends_agree(model, folder, reference, tmp_path):
    assert call("--ckpt", model, "--images", folder, "--out", tmp_path, "--votes", 3, "--backend", "mindspore") == 0
    pairs = list(zip(table(reference / "scores.csv"), table(tmp_path / "scores.csv")))
    assert all(a["path"] == b["path"] and a["decision"] == b["decision"] for a, b in pairs)
    assert max(abs(float(a["score"]) - float(b["score"])) for a, b in pairs) <= 1e-4
    assert (tmp_path / "result.txt").read_bytes() == (reference / "result.txt").read_bytes()


def test_backends_agree_on_published_weights(shared, run, tmp_path):
    """CIFAKE_CNN of jshrdt/aics-project on CIFAKE's own test images."""
    source = shared / "weights/aics/SRM_model.pth"
    assert run("-m", "convert", source, tmp_path / "a.ckpt", "--verify", "none").returncode == 0
    with tarfile.open(shared / "data/cifake_test.tar.gz") as archive:
        members = [m for _, m in zip(range(60), (m for m in archive if m.isfile()))]
        images = [Image.open(archive.extractfile(m)).convert("RGB") for m in members]
    fast, slow = (Detector(tmp_path / "a.ckpt", backend=b).score(images) for b in ("onnxruntime", "mindspore"))
    assert max(abs(a.score - b.score) for a, b in zip(fast, slow)) <= 1e-4
    assert [a.decision for a in fast] == [b.decision for b in slow] and len({a.label for a in fast}) == 2


def test_detector_and_command_line_agree(model, folder, reference):
    rows = table(reference / "scores.csv")
    detector = Detector(model, votes=3)
    found = detector.score([folder / r["path"] for r in rows], root=folder)
    assert [f"{r.score:.9g}" for r in found] == [r["score"] for r in rows]
    one = Detector(model)
    path = folder / rows[0]["path"]
    with Image.open(path) as image:
        as_array = np.asarray(image.convert("RGB"))
        scores = [r.score for r in one.score([path, str(path), image, as_array])]
    assert len(set(scores)) == 1
    assert one.score([]) == []


def test_scores_from_the_class_order(tmp_path, folder):
    """The sidecar's order decides the sign; with more classes the sides are summed."""
    forward = Detector(make_model(tmp_path / "f.ckpt")).score([folder / "1.png"])[0].score
    backward = Detector(make_model(tmp_path / "b.ckpt", order=("generated", "real"))).score([folder / "1.png"])[0].score
    assert forward == pytest.approx(-backward) and abs(forward) > 1e-3
    with pytest.raises(UserError, match="is no detector.*--positive NAME"):
        Detector(make_model(tmp_path / "n.ckpt", class_order=None, classes=["cat", "dog"]))


def test_the_options_say_which_class_means_what(tmp_path, folder):
    """A converted file whose classes say nothing is scored with --positive or --real, with the sign they name."""
    plain = make_model(tmp_path / "n.ckpt", class_order=None, classes=["cat", "dog"])
    image = [folder / "1.png"]
    wanted = Detector(make_model(tmp_path / "f.ckpt")).score(image)[0].score
    for sides in ({"positive": "dog"}, {"real": "cat"}, {"positive": "1"}):
        assert Detector(plain, **sides).score(image)[0].score == wanted
    assert Detector(plain, positive="cat").score(image)[0].score == pytest.approx(-wanted)
    # Among several models only those whose sidecars do not say it take the option.
    both = Detector(tmp_path / "f.ckpt", plain, positive="dog")
    assert both.models[0].order == both.models[1].order == ["real", "generated"]
    with pytest.raises(UserError, match=r"n\.ckpt': --positive 'cow' is neither one of the classes \['cat', 'dog'\]"):
        Detector(plain, positive="cow")
    infer.run(["--ckpt", str(plain), "--images", str(image[0]), "--out", str(tmp_path / "o"), "--real", "cat"])
    rows = list(csv.DictReader(open(tmp_path / "o" / "scores.csv")))
    assert float(rows[0]["score"]) == pytest.approx(wanted, rel=1e-6)
    again = ["--ckpt", str(plain), "--images", str(image[0]), "--out", str(tmp_path / "o")]
    with pytest.raises(UserError, match="is no detector"):
        infer.run(again)


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.fixture
def damaged(tmp_path, photo):
    """Three good images and every kind of bad one, some under names that break careless writers."""
    root = tmp_path / "in"
    root.mkdir()
    for i in (1, 3, 10):
        photo(i).save(root / f"{i}.jpg")
    whole = (root / "1.jpg").read_bytes()
    (root / "2.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "4.png").write_bytes(b"")
    (root / "5.jpg").write_text("not an image at all")
    (root / "6.png").write_bytes(whole)  # a JPEG by another name is fine
    Image.new("1", (12000, 12000)).save(root / "7.png")  # a bomb: 144 million pixels in a small file
    (root / "8.jpg").symlink_to(root / "nowhere.jpg")
    return root


REASONS = {"2": "truncated", "4": "empty", "5": "not an image", "7": "144000000|pixels", "8": "no such file"}


def test_bad_files_are_rows_with_reasons(model, damaged, tmp_path, capsys):
    assert call("--ckpt", model, "--images", damaged, "--out", tmp_path / "o") == 3
    said = capsys.readouterr().err
    rows = {Path(r["path"]).stem: r for r in table(tmp_path / "o" / "scores.csv")}
    assert len(rows) == 9
    for stem, row in rows.items():
        if stem in REASONS:
            assert row["status"].startswith("error: ") and row["label"] == row["score"] == row["decision"] == ""
            assert any(word in row["status"] for word in REASONS[stem].split("|")), row["status"]
            assert f"  {row['path']}: {row['status'][7:]}" in said
        else:
            assert row["status"] == "ok"
    lines = (tmp_path / "o" / "result.txt").read_text().splitlines()
    assert len(lines) == 9 and [lines[i] for i in (1, 3, 4, 6, 7)] == ["0"] * 5


@pytest.mark.parametrize("choice, lines, label", [("generated", 9, "1"), ("real", 9, "0"), ("skip", 4, "")])
def test_on_error(model, damaged, tmp_path, choice, lines, label):
    assert call("--ckpt", model, "--images", damaged, "--out", tmp_path / "o", "--on-error", choice) == 3
    text = (tmp_path / "o" / "result.txt").read_text().splitlines()
    bad = [r for r in table(tmp_path / "o" / "scores.csv") if r["status"] != "ok"]
    assert len(text) == lines and len(bad) == 5 and {r["label"] for r in bad} == {label}
    if choice == "generated":
        assert [text[i] for i in (1, 3, 4, 6, 7)] == ["1"] * 5


def test_any_file_name(model, tmp_path, photo):
    root = tmp_path / "in"
    names = ["a b.jpg", "line\nbreak.jpg", 'quo"te,comma.jpg', "图片.jpg", "-dash.jpg"]
    root.mkdir()
    for name in names:
        photo(1).save(root / name)
    with open(os.fsencode(root) + b"/odd\xff.jpg", "wb") as file:
        photo(1).save(file, "JPEG")
    (root / "loop").symlink_to(root)
    assert call("--ckpt", model, "--images", root, "--out", tmp_path / "o") == 0
    paths = [r["path"] for r in table(tmp_path / "o" / "scores.csv")]
    assert set(paths) == {*names, "odd\\udcff.jpg"} and len(paths) == 6
    assert len((tmp_path / "o" / "result.txt").read_text().splitlines()) == 6


def test_not_a_number_is_an_error_row(tmp_path, folder):
    path = make_model(tmp_path / "nan.ckpt")
    arrays = ckpt.load_arrays(path)
    arrays["classifier.bias"] = np.array([np.nan, 0], np.float32)
    ckpt.save(arrays, path, ckpt.read_sidecar(path))
    row = Detector(path, backend="mindspore").score([folder / "1.png"])[0]
    assert "not a finite number" in row.status and row.score is None


# --- wrong arguments -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "flags, text",
    [
        (["--ckpt", "none.ckpt"], "'none.ckpt' does not exist"),
        (["--images", "nowhere"], "images 'nowhere' does not exist"),
        (["--vots", "3"], "unknown argument '--vots'; did you mean '--votes'"),
        (["--votes", "0"], r"votes \(=0\) must be a whole number >= 1"),
        (["--votes", "many"], "argument --votes: invalid int value: 'many'"),
        (["--workers", "0"], r"workers \(=0\)"),
        (["--format", "results"], "did you mean 'result'"),
        (["--format", "submission"], "needs --sample-submission"),
        (["--backend", "onnx"], "unknown backend 'onnx'; choose from: auto, mindspore, onnxruntime"),
        (["--fuse", "sofft"], "neither one of soft, hard"),
        (["--threshold", "1.5"], r"threshold \(=1.5\) must be between 0 and 1"),
        (["--unsure", "0.4"], "LOW,HIGH"),
        (["--shard", "3/2"], r"shard \(='3/2'\)"),
        (["--on-error", "relax"], "unknown on_error 'relax'"),
        (["--views", "gird"], "did you mean 'grid'"),
    ],
)
def test_wrong_arguments_say_name_and_value_and_write_nothing(model, folder, tmp_path, flags, text):
    given = {"--ckpt": model, "--images": folder, "--out": tmp_path / "o", flags[0]: flags[1]}
    with pytest.raises(UserError, match=text):
        call(*[a for pair in given.items() for a in pair])
    assert not (tmp_path / "o").exists()


def test_exit_code_and_one_line(run, tmp_path):
    done = run(ROOT / "infer.py", "--ckpt", "none.ckpt", "--images", tmp_path, "--out", tmp_path / "o", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


def test_empty_folder_and_no_default_checkpoint(model, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="holds no image file"):
        call("--ckpt", model, "--images", tmp_path / "in", "--out", tmp_path / "o")
    Image.new("RGB", (9, 9)).save(tmp_path / "in" / "a.png")
    monkeypatch.setattr(default, "CKPT", tmp_path / "absent.ckpt")
    with pytest.raises(UserError, match="no --ckpt given"):
        call("--images", tmp_path / "in", "--out", tmp_path / "o")
    monkeypatch.setattr(default, "CKPT", Path(model))
    assert call("--images", tmp_path / "in", "--out", tmp_path / "o") == 0


# --- kill and resume -------------------------------------------------------------------------------------------------
def test_resume_after_kill_gives_the_same_file(model, tmp_path, photo):
    root, out, straight = tmp_path / "in", tmp_path / "o", tmp_path / "straight"
    root.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    for i in range(150):
        Image.fromarray(np.roll(noise, i, axis=1)).save(root / f"{i}.jpg", quality=95)
    (root / "7.jpg").write_bytes(b"x")
    flags = ["--ckpt", model, "--images", root, "--votes", 4, "--workers", 1]
    command = [sys.executable, ROOT / "infer.py", *flags, "--out", out]
    process = subprocess.Popen([str(c) for c in command], stderr=subprocess.DEVNULL)
    journal = out / "infer.journal"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.is_file() and journal.read_bytes().count(b"\n") > 10):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not (out / "result.txt").exists() and not (out / "scores.csv").exists()
    with open(journal, "ab") as file:  # as if the kill had come in the middle of a line
        file.write(b'{"path": "1')
    rows_before = journal.read_bytes().count(b"\n") - 1
    assert 10 <= rows_before < 150
    with pytest.raises(UserError, match="another votes"):
        call(*flags, "--out", out, "--resume", "--votes", 5)
    assert call(*flags, "--out", out, "--resume") == 3
    assert call(*flags, "--out", straight) == 3
    assert result_bytes(out) == result_bytes(straight)
    assert not journal.exists()


def test_a_checkpoint_that_was_moved_is_still_the_same_run(tmp_path):
    header = {"models": {"a": "c0ffee"}, "total": 1, "files": {"a": "/here/a.ckpt"}}
    journal.Journal(tmp_path / "x.journal", header).close()
    journal.Journal(tmp_path / "x.journal", {**header, "files": {"a": "/there/a.ckpt"}}, resume=True).close()
    with pytest.raises(UserError, match="another models"):
        journal.Journal(tmp_path / "x.journal", {**header, "models": {"a": "beef"}}, resume=True)


def test_images_that_come_or_go_meanwhile_are_noticed(model, folder, tmp_path, monkeypatch, photo):
    """Never a result with a row too few, or one whose rows stand for other files than in the other shards."""
    for change in ("gone", "new", "renamed"):
        root, out = tmp_path / change, tmp_path / f"{change} out"
        (root / "b").mkdir(parents=True)
        for i in range(30):
            photo(i).save(root / "b" / f"{i}.png")
        flags = ["--ckpt", model, "--images", root, "--out", out]

        def spoil(self, items, change=change, root=root, original=Detector.stream):
            if change == "new":
                photo(99).save(root / "b" / "99.png")
            else:
                (root / "b" / "29.png").rename(root / "b" / ("x.png" if change == "renamed" else "29.txt"))
            return list(original(self, items))

        with monkeypatch.context() as context:
            context.setattr(Detector, "stream", spoil)
            with pytest.raises(UserError, match="the images changed while they were scored"):
                call(*flags)
        assert not (out / "result.txt").exists()
        with pytest.raises(UserError, match="written for other images or another order"):
            call(*flags, "--resume")
        assert call(*flags) == 0
        assert len((out / "result.txt").read_text().splitlines()) == len(list((root / "b").glob("*.png")))


def test_shards_of_other_images_are_not_joined(model, tmp_path, photo):
    root, out = tmp_path / "in", tmp_path / "o"
    root.mkdir()
    for i in range(4):
        photo(i).save(root / f"{i}.png")
    call("--ckpt", model, "--images", root, "--out", out, "--shard", "0/2")
    (root / "2.png").rename(root / "7.png")
    call("--ckpt", model, "--images", root, "--out", out, "--shard", "1/2")
    with pytest.raises(UserError, match="was made from other images"):
        call("merge", out)


def test_a_run_is_not_resumed_with_another_fusion_file_or_line(model, folder, tmp_path):
    fusion, out = tmp_path / "f.yaml", tmp_path / "o"
    fusion.write_text("fuse: soft\nunsure: [0.3, 0.6]\n")
    flags = ["--ckpt", model, "--images", folder, "--out", out, "--fuse", fusion, "--shard", "0/1", "--resume"]
    assert call(*flags) == call(*flags) == 0
    fusion.write_text("fuse: soft\nunsure: [0.4, 0.6]\n")
    with pytest.raises(UserError, match="another unsure"):
        call(*flags)
    fusion.write_text("fuse: soft\nunsure: [0.3, 0.6]\nweights: {a: 2}\n")
    with pytest.raises(UserError, match="another weights"):
        call(*flags)


def test_an_exported_file_is_known_by_its_own_hash(model, tmp_path):
    """An eight-bit graph holds what its checkpoint's sidecar said, the checkpoint's hash among it."""
    from aidet.export import exporter

    exporter.export(model, "onnx", tmp_path)
    path = tmp_path / "a.onnx"
    assert Detector(path).models[0].identity == files.sha256(path) != Detector(model).models[0].identity


# --- forms and formats -----------------------------------------------------------------------------------------------
def test_vip_form(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(default, "CKPT", Path(model))
    names = ["deep/er/10.webp", "1.png", "2.webp", "13.png"]
    listing = folder / "in.csv"
    listing.write_text("filename\n" + "\n".join(names) + "\n")
    try:
        assert call(listing, tmp_path / "out.csv") == 0
    finally:
        listing.unlink()
    rows = table(tmp_path / "out.csv")
    assert list(rows[0]) == ["filename", "logit"] and [r["filename"] for r in rows] == names
    expected = Detector(model).score([folder / n for n in names])
    assert [float(r["logit"]) for r in rows] == pytest.approx([r.score for r in expected], rel=1e-8)
    with pytest.raises(UserError, match="writes logits"):
        call(listing, tmp_path / "out.csv", "--format", "csv")


@pytest.mark.parametrize("threshold", ["0.2", "0.5", "0.9", "1"])
def test_above_zero_means_generated_at_any_threshold(model, folder, tmp_path, threshold):
    """The contests' servers know no other threshold than 0."""
    sample = tmp_path / "sample.csv"
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*.*")]
    sample.write_text("id,logit\n" + "".join(f"{name},0\n" for name in names))
    flags = ["--ckpt", model, "--images", folder, "--threshold", threshold]
    assert call(*flags, "--out", tmp_path / "a", "--format", "logit") == 0
    assert call(*flags, "--out", tmp_path / "b", "--format", "submission", "--sample-submission", sample) == 0
    expected = {r["path"]: r["label"] for r in table(tmp_path / "a" / "scores.csv")}
    for path, key in ((tmp_path / "a" / "logits.csv", "filename"), (tmp_path / "b" / "submission.csv", "id")):
        assert {r[key]: str(int(float(r["logit"]) > 0)) for r in table(path)} == expected
    if threshold == "0.9":
        assert {r["label"] for r in table(tmp_path / "a" / "scores.csv") if float(r["score"]) > 0} == {"0", "1"}


def test_no_result_replaces_another_or_what_the_run_reads(model, folder, tmp_path):
    listing = tmp_path / "scores.csv"
    listing.write_text(f"filename\n{folder / '1.png'}\n")
    sample = tmp_path / "submission.csv"
    sample.write_text("id,label\n1,0\n")
    (tmp_path / "o.csv").mkdir()
    own, other = tmp_path / "in.csv", tmp_path / "LIST.CSV"
    own.write_text(listing.read_text())
    other.write_text("path\n1.png\n")
    before = sorted(tmp_path.iterdir()), listing.read_text()
    for arguments, said in (
        ([own, own], "in.csv' is read by this run"),
        ([listing, tmp_path / "out.csv"], "scores.csv' is read by this run"),
        ([listing, tmp_path / "new" / "scores.csv"], "writes scores.csv of its own"),
        ([listing, tmp_path / "o.csv"], "is a folder"),
        ([own, other], "is no earlier result .its first line is 'path'. and would be replaced"),
        (["--images", folder / "1.png", "--out", tmp_path, "--format", "submission", "--sample-submission", sample],
         "submission.csv' is read by this run"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            call("--ckpt", model, *arguments)
    assert (sorted(tmp_path.iterdir()), listing.read_text()) == before


def test_contest_form_tolerates_the_platforms_flags(model, folder, tmp_path, reference, capsys):
    base = ["--model_path", model, "--test_data_path", folder, "--votes", 3, "--aim_repo", "x", "--device_id=0"]
    assert call(*base, "--output_path", tmp_path / "o") == 0
    assert "ignored" in capsys.readouterr().err
    assert result_bytes(tmp_path / "o") == result_bytes(reference)
    assert call(*base, "--output_path", tmp_path / "p" / "result.txt") == 0
    assert (tmp_path / "p" / "result.txt").read_bytes() == (reference / "result.txt").read_bytes()
    assert call(*base, "--output_path", tmp_path / "p" / "out.csv", "--format", "logit") == 0
    assert list(table(tmp_path / "p" / "out.csv")[0]) == ["filename", "logit"]
    assert call(*base, "--output_path", tmp_path / "p" / "scores.csv") == 0
    assert "decision" in table(tmp_path / "p" / "scores.csv")[0]
    with pytest.raises(UserError, match="--format csv writes a .csv file"):
        call(*base, "--output_path", tmp_path / "p" / "result.txt", "--format", "csv")
    with pytest.raises(UserError, match="unknown argument '--aim_repo'"):
        call("--ckpt", model, "--images", folder, "--out", tmp_path / "q", "--aim_repo", "x")


def test_submission(model, folder, reference, tmp_path):
    rows = table(reference / "scores.csv")
    ids = [Path(r["path"]).stem for r in rows][::-1]
    sample = tmp_path / "sample.csv"
    sample.write_text("ImageId,answer\n" + "".join(f"{i},0\n" for i in ids))
    flags = ["--ckpt", model, "--images", folder, "--votes", 3, "--format", "submission", "--sample-submission", sample]
    assert call(*flags, "--out", tmp_path / "o") == 0
    expected = {Path(r["path"]).stem: r["label"] for r in rows}
    assert (tmp_path / "o" / "submission.csv").read_text() == (
        "ImageId,answer\n" + "".join(f"{i},{expected[i]}\n" for i in ids)
    )
    for text, message in (("ImageId,answer\n77,0\n", "'77' fits no image"), ("ImageId,answer\n1,0\n", "not in it")):
        sample.write_text(text)
        with pytest.raises(UserError, match=message):
            call(*flags, "--out", tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_ensemble(model, folder, tmp_path):
    other = make_model(tmp_path / "b.ckpt", seed=2, threshold=0.3)
    flags = ["--images", folder, "--out", tmp_path / "o", "--format", "csv"]
    assert call("--ckpt", model, "--ckpt", other, *flags) == 0
    rows = table(tmp_path / "o" / "scores.csv")
    a, b = (Detector(p).score([folder / r["path"] for r in rows]) for p in (model, other))
    moved = np.array([r.score for r in b]) - np.log(0.3 / 0.7)
    p = (1 / (1 + np.exp(-np.array([r.score for r in a]))) + 1 / (1 + np.exp(-moved))) / 2
    assert [float(r["prob"]) for r in rows] == pytest.approx(p, abs=1e-8)
    assert [float(r["score:b"]) for r in rows] == pytest.approx([r.score for r in b], rel=1e-8)
    assert not (tmp_path / "o" / "result.txt").exists()
    # Alone, a model is judged by its own threshold, and the command line's wins.
    assert Detector(other).threshold == 0.3 and Detector(other, threshold=0.6).threshold == 0.6
    fusion = tmp_path / "f.yaml"
    fusion.write_text("fuse: hard\nweights: {a: 1, b: 2}\nthresholds: {b: 0.5}\nunsure: [0.2, 0.4]\n")
    found = Detector(model, other, fuse=str(fusion)).score([folder / r["path"] for r in rows])
    for mine, x, y in zip(found, a, b):
        share = ((x.score > 0) + 2 * (y.score > 0)) / 3
        assert mine.prob == pytest.approx(share, abs=1e-5)
        assert mine.decision == ("generated" if share > 0.5 else "unsure" if share > 0.2 else "real")


@pytest.mark.parametrize(
    "settings",
    [
        {"vote": "hard"},
        {"vote": "hard", "unsure": "none"},
        {"vote": "hard", "threshold": 0.7, "flips": True, "unsure": "none"},
        {"vote": "soft"},
        {"vote": "soft", "threshold": 0.9},
        {"vote": "soft", "unsure": (0.3, 0.7)},
        {"vote": "soft", "unsure": "none"},
        {"vote": "soft", "threshold": 1.0},
        {"vote": "hard", "views": "grid"},
        {"vote": "soft", "views": "grid", "weights": "detail"},
        {"vote": "hard", "flips": True, "weights": "detail"},
    ],
    ids=str,
)
def test_an_early_exit_takes_fewer_views_and_every_decision_stays(tmp_path, photo, settings):
    settings = dict(settings)
    weights = settings.pop("weights", "equal")
    voting = {"weights": weights}
    path = make_model(tmp_path / "m.ckpt", calibration={"scale": 0.5, "offset": 0.4}, voting=voting)
    images_ = [photo(i, (40 + 4 * i, 90)) for i in range(24)]
    full = Detector(path, votes=7, **settings).score(images_)
    early = Detector(path, votes=7, early_exit=True, **settings).score(images_)
    assert [(r.label, r.decision) for r in early] == [(r.label, r.decision) for r in full]
    counts = [len(r.views["m"]) for r in early]
    assert sum(counts) < sum(len(r.views["m"]) for r in full)
    for a, b in zip(early, full):
        # The first views, to rounding: fewer views in one call of the network add up in another order.
        assert 1 <= len(a.views["m"]) <= len(b.views["m"])
        assert a.views["m"] == pytest.approx(b.views["m"][: len(a.views["m"])], abs=1e-5)
    if settings.get("unsure") == "none" and settings["vote"] == "hard":
        most = 14 if settings.get("flips") else 7
        threshold = settings.get("threshold", 0.5)
        for r in early:  # nothing less would have been enough: without the last view both outcomes were open
            votes = [v > 0 for v in r.view_scores["m"]][:-1]  # a view counts by the model's own threshold
            assert sum(votes) / most <= threshold < (sum(votes) + most - len(votes)) / most
    if settings.get("threshold") == 1.0:
        assert counts == [1] * 24 and {r.label for r in early} == {0}


@pytest.mark.parametrize("how", ["soft", "hard"])
def test_views_count_by_the_sidecars_weights(tmp_path, photo, how):
    facts = {"calibration": {"scale": 0.5, "offset": 0.1}}
    voting = {"votes": 6, "views": "grid", "weights": "detail"}
    plain = make_model(tmp_path / "plain.ckpt", **facts)
    path = make_model(tmp_path / "m.ckpt", **facts, voting=voting)
    pictures = [photo(i, (90, 70)) for i in range(3)]
    detector = Detector(path, vote=how)
    for image, r in zip(pictures, detector.score(pictures)):
        views = detector.models[0].views(image, "")
        weights = np.array([detail(v) + 1 / 127.5 for v in views]) ** 2
        assert r.weights["m"] == pytest.approx(weights)
        each = np.array(r.view_scores["m"])  # calibrated
        if how == "hard":
            assert r.prob == pytest.approx((weights * (each > 0)).sum() / weights.sum(), abs=1.1e-6)
            continue
        mean = (weights / (1 + np.exp(-(each / 0.5 + 0.1)))).sum() / weights.sum()
        assert r.score == pytest.approx(0.5 * (np.log(mean / (1 - mean)) - 0.1), abs=1e-6)
    alike = Detector(plain, votes=6, views="grid", vote=how).score(pictures)
    assert all(not r.weights for r in alike)
    changed = Detector(path, vote=how, stability=True).score(pictures[:1])[0]  # each version by its own weights
    assert changed.score == detector.score(pictures[:1])[0].score and len(changed.stability) == 7


@pytest.mark.parametrize("weights", ["equal", "detail"])
def test_the_score_of_the_first_views_is_that_of_a_detector_with_so_many(tmp_path, photo, weights):
    facts = {"calibration": {"scale": 0.5, "offset": 0.4}, "voting": {"weights": weights}}
    paths = [make_model(tmp_path / f"{n}.ckpt", seed=n, **facts) for n in (1, 2)]
    pictures = [photo(i, (90, 70)) for i in range(3)]
    detector = Detector(*paths, votes=6)
    verdicts = detector.score(pictures)
    for votes in (1, 4, 6):
        fewer = [r.score for r in Detector(*paths, votes=votes).score(pictures)]
        assert [detector.score_of_first(r, votes) for r in verdicts] == pytest.approx(fewer, abs=1e-5)


def test_an_early_exit_is_the_same_from_the_command_line_and_refuses_what_needs_all_views(model, folder, tmp_path):
    flags = ["--ckpt", model, "--images", folder, "--votes", 7]
    assert call(*flags, "--out", tmp_path / "full") == call(*flags, "--out", tmp_path / "early", "--early-exit") == 0
    assert (tmp_path / "early/result.txt").read_bytes() == (tmp_path / "full/result.txt").read_bytes()
    assert (tmp_path / "early/scores.csv").read_bytes() != (tmp_path / "full/scores.csv").read_bytes()
    for shard in ("0/2", "1/2"):
        assert call(*flags, "--out", tmp_path / "parts", "--early-exit", "--shard", shard, "--workers", 3) == 0
    assert call("merge", tmp_path / "parts") == 0
    assert result_bytes(tmp_path / "parts") == result_bytes(tmp_path / "early")
    for more, text in (
        (["--ckpt", model], "takes one model"),
        (["--stability"], "no stability mode"),
    ):
        with pytest.raises(UserError, match=text):
            call(*flags, "--out", tmp_path / "x", "--early-exit", *more)
    with pytest.raises(UserError, match="is a rule"):
        Detector("rule:size", early_exit=True)


def test_stability_mode(model, folder, tmp_path):
    flags = ["--ckpt", model, "--images", folder, "--votes", 2]
    assert call(*flags, "--out", tmp_path / "o", "--stability") == 0
    assert call(*flags, "--out", tmp_path / "p") == 0
    assert result_bytes(tmp_path / "o") == result_bytes(tmp_path / "p"), "it changes no score"
    for row in table(tmp_path / "o" / "stability.csv"):
        values = [float(v) for k, v in row.items() if k not in ("path", "spread")]
        assert len(values) == 7 and float(row["spread"]) == pytest.approx(max(values) - min(values), abs=1e-8)
    record = Detector(model, stability=True).score([folder / "1.png"])[0]
    assert record.spread > 0 and record.stability["original"] == pytest.approx(record.prob)


# --- backends --------------------------------------------------------------------------------------------------------
def test_cache_is_made_once_and_again_for_other_weights(tmp_path, folder):
    said = []
    path = make_model(tmp_path / "c.ckpt", seed=3)
    first = Detector(path, say=said.append).score([folder / "1.png"])[0].score
    graphs = list(tmp_path.glob("c.*.onnx"))
    assert len(graphs) == 1 and len(said) == 2 and "verified" in said[1]
    Detector(path, say=said.append)
    assert len(said) == 2
    graphs[0].write_bytes(graphs[0].read_bytes()[:500])  # a damaged graph is made again
    assert Detector(path, say=said.append).score([folder / "1.png"])[0].score == first and len(said) == 4
    make_model(path, seed=4)
    second = Detector(path, say=said.append).score([folder / "1.png"])[0].score
    assert second != first and list(tmp_path.glob("c.*.onnx")) != graphs and len(list(tmp_path.glob("c.*.onnx"))) == 1


def test_of_several_that_start_at_once_one_makes_the_graph(tmp_path, folder, monkeypatch):
    import onnx

    path, made = make_model(tmp_path / "s.ckpt", seed=8), []
    expected = Detector(path, say=made.append).score([folder / "1.png"])[0].score
    graph = next(tmp_path.glob("s.*.onnx"))
    model = onnx.load(str(graph))
    graph.unlink()
    made.clear()

    def slowly(*_):
        made.append(1)
        time.sleep(0.5)
        return model, {"difference": 0.0}

    monkeypatch.setattr(backends, "make", slowly)
    with ThreadPoolExecutor(3) as pool:
        detectors = list(pool.map(lambda _: Detector(path, say=lambda line: None), range(3)))
    assert len(made) == 1
    assert {d.score([folder / "1.png"])[0].score for d in detectors} == {expected}


def test_a_cached_graph_beside_one_still_to_be_made(tmp_path, folder, run):
    """In a fresh process: reading the first graph must not spoil MindSpore, which makes the second."""
    known, new = make_model(tmp_path / "k.ckpt", seed=5), make_model(tmp_path / "n.ckpt", seed=6)
    Detector(known, say=lambda line: None)
    given = ("--ckpt", known, "--ckpt", new, "--images", folder, "--out", tmp_path / "o")
    done = run(ROOT / "infer.py", *given)
    assert done.returncode == 0 and "n.ckpt: verified" in done.stderr and "k.ckpt" not in done.stderr, done.stderr


def test_fallback_says_why(model, folder, monkeypatch):
    said = []
    monkeypatch.setattr(backends.runtime, "version_of", lambda name: None if name == "onnxruntime" else "9")
    detector = Detector(model, say=said.append)
    assert detector.models[0].backend_name == "mindspore"
    assert len(said) == 1 and "onnxruntime are not installed" in said[0]
    with pytest.raises(UserError, match="use --backend mindspore"):
        Detector(model, backend="onnxruntime")


def test_native_size_model_runs(tmp_path, folder):
    """A transform without a fixed size: every image at its own."""
    lines = {"size": None, "channels": 3, "transform": "decode | normalize(half)"}
    path = make_model(tmp_path / "n.ckpt", input=lines)
    said = []
    detector = Detector(path, votes=2, say=said.append)
    rows = detector.score([folder / "1.png", folder / "2.webp"])
    assert all(r.ok for r in rows) and "any size" in said[0]


def test_memory_does_not_grow_with_the_number_of_inputs(model, folder):
    """Inputs are taken a few at a time: at no moment is more than the window ahead of the results."""
    taken, given, ahead = 0, 0, 0
    detector = Detector(model, workers=2)

    def items():
        nonlocal taken
        for i in range(300):
            taken += 1
            yield str(i), folder / "1.png"

    for _ in detector.stream(items()):
        given += 1
        ahead = max(ahead, taken - given)
    assert given == 300 and ahead <= 8


# --- run.json --------------------------------------------------------------------------------------------------------
def test_run_json_tells_weights_speed_and_counts(model, folder, tmp_path):
    root, out = tmp_path / "in", tmp_path / "o"
    root.mkdir()
    for i in range(6):
        (root / f"{i}.png").write_bytes((folder / "1.png").read_bytes() if i else b"nothing")
    for shard in ("1/2", "2/2"):
        call("--ckpt", model, "--images", root, "--out", out, "--shard", shard)
    assert call("merge", out) == 3
    found = files.read_json(out / "run.json")
    where = {"backend": "onnxruntime", "precision": "float32", "file": str(Path(model).resolve())}
    order = ["real", "generated"]
    assert found["models"] == [{"name": "a", "sha256": files.sha256(model), **where, "order": order}]
    assert [p["rows"] for p in found["processes"]] == [p["scored"] for p in found["processes"]] == [3, 3]
    assert found["counts"]["error"] == 1 and sum(found["counts"].values()) == 6
    assert found["images_per_second"] > 0 and found["versions"]["aidet"] and "CPU" in found["processes"][0]["device"]
    for name in ("scores.csv", "result.txt"):
        assert found["outputs"][name] == files.sha256(out / name)


@pytest.mark.torture
def test_msrun_splits_the_work(model, folder, reference, tmp_path):
    command = ["msrun", "--worker_num=2", "--local_worker_num=2", "--master_port=8163", f"--log_dir={tmp_path / 'log'}"]
    command += ["--join=True", ROOT / "infer.py", "--ckpt", model, "--images", folder, "--out", tmp_path / "o"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [str(c) for c in [*command, "--votes", 3]], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert call("merge", tmp_path / "o") == 0
    assert result_bytes(tmp_path / "o") == result_bytes(reference)
