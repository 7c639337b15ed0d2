"""The real command lines one after another on a tiny set, as a user would type them."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from aidet.errors import UserError
from data import make_sample


@pytest.fixture(scope="module")
def demo(run, tmp_path_factory):
    """Photographs -> aligned sample -> two-class training of the `testing` architecture -> scores of the test part."""
    folder = tmp_path_factory.mktemp("e2e")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        small = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
    sample = run("data/make_sample.py", "--images", folder / "photos", "--out", folder / "sample")
    assert sample.returncode == 0, sample.stderr
    config = folder / "tiny.yaml"
    config.write_text(
        "model: testing\nnum_classes: 2\nbatch_size: 8\nepoch_size: 12\nlr: 0.01\nopt: adamw\nscheduler: cosine_decay\n"
        'transform: "decode | random_crop(96) | hflip | normalize(half)"\n'
        'transform_eval: "decode | center_crop(96) | normalize(half)"\n'
        'views: "decode | random_crop(96) | normalize(half)"\n'
        "seed: 1\nnum_parallel_workers: 1\n"
    )
    data = ["--data_dir", folder / "sample", "--ckpt_save_dir", folder / "run"]
    train = run("train.py", "-c", config, *data)
    assert train.returncode == 0, train.stderr
    images = folder / "sample" / "test"
    infer = run(
        "infer.py", "--ckpt", folder / "run" / "best.ckpt", "--images", images, "--out", folder / "out", "--votes", 3
    )
    assert infer.returncode == 0, infer.stderr
    return folder, sample, train, infer


def test_only_an_earlier_sample_is_replaced(demo, tmp_path, photo):
    """--out is deleted before the new sample takes its place."""
    mine = tmp_path / "mine"
    (mine / "train").mkdir(parents=True)
    photo(1, (140, 140)).save(mine / "train" / "a.png")
    for header in ("path,label", ",".join(make_sample.COLUMNS)):
        (mine / "labels.csv").write_text(f"{header}\ntrain/b.png,0{',' * (header.count(',') - 1)}\n")
        with pytest.raises(UserError, match="holds something else than an earlier sample"):
            make_sample.main(["--images", str(mine / "train"), "--out", str(mine)])
    (mine / "labels.csv").unlink()
    with pytest.raises(UserError, match="name a new folder"):
        make_sample.main(["--images", str(mine / "train"), "--out", str(mine / "train")])
    assert (mine / "train" / "a.png").is_file()
    assert make_sample.is_sample(demo[0] / "sample")


def test_photographs_of_one_name_are_two_scenes(tmp_path, photo):
    for name in ("a.png", "a.jpg", "b.png"):
        photo(1).save(tmp_path / name)
    assert sorted(scene for scene, *_ in make_sample.own(tmp_path)) == ["a-jpg", "a-png", "b"]


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_sample_is_aligned_and_split_by_photograph(demo):
    rows = table(demo[0] / "sample" / "labels.csv")
    splits = {}
    for row in rows:
        splits.setdefault(row["group"], set()).add(row["split"])
    assert all(len(s) == 1 for s in splits.values()) and {s for v in splits.values() for s in v} == {
        "train",
        "val",
        "test",
    }
    pairs = {}
    for row in rows:
        pairs.setdefault(row["path"].rsplit("/", 1)[1], []).append(row)
    for pair in pairs.values():
        assert sorted(r["label"] for r in pair) == ["0", "1"]
        real, fake = (Image.open(demo[0] / "sample" / r["path"]) for r in sorted(pair, key=lambda r: r["label"]))
        assert real.size == fake.size == (128, 128)
        assert real.quantization == fake.quantization and real.info.keys() == fake.info.keys()
        assert np.abs(np.asarray(real, float) - np.asarray(fake, float)).mean() > 0.5


def test_training_leaves_what_the_contract_names(demo):
    made = {p.name for p in (demo[0] / "run").iterdir()}
    assert {"best.ckpt", "best.json", "last.ckpt", "state.ckpt", "config.yaml", "log.csv", "curves.png"} <= made
    facts = json.loads((demo[0] / "run" / "best.json").read_text())
    assert facts["architecture"] == "testing" and facts["class_order"] == ["real", "generated"]
    assert len(table(demo[0] / "run" / "log.csv")) == 12


def test_every_image_has_its_row_and_line(demo):
    rows = table(demo[0] / "out" / "scores.csv")
    images = sorted(
        str(p.relative_to(demo[0] / "sample" / "test")) for p in (demo[0] / "sample" / "test").rglob("*.jpg")
    )
    assert sorted(r["path"] for r in rows) == images
    lines = (demo[0] / "out" / "result.txt").read_bytes().decode().split("\n")
    assert lines[-1] == "" and len(lines) == len(images) + 1 and set(lines[:-1]) <= {"0", "1"}
    for r in rows:
        assert r["status"] == "ok" and r["label"] == str(int(float(r["prob"]) > 0.5))
        np.testing.assert_allclose(float(r["prob"]), 1 / (1 + np.exp(-float(r["score"]))), rtol=1e-5)


def test_evaluation_agrees_with_the_rows(demo, run):
    folder = demo[0]
    out = folder / "eval"
    done = run(
        "evaluate.py",
        "score",
        "--scores",
        folder / "out" / "scores.csv",
        "--labels",
        folder / "sample" / "test",
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    wanted = "n accuracy balanced_accuracy macro_f1 auc ap eer ece nll tpr_at_fpr threshold confusion by ci".split()
    assert set(wanted) <= set(metrics)
    rows = table(folder / "out" / "scores.csv")
    right = [("generated/" in r["path"]) == (r["label"] == "1") for r in rows]
    assert metrics["n"] == len(rows)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(right), atol=1e-6)
    assert "<html" in (out / "report.html").read_text(encoding="utf-8").lower()
    for word in ("balanced accuracy", "AUC", "macro-F1", "report.html"):
        assert word.lower() in done.stdout.lower()


def test_a_truncated_image_is_a_row_and_exit_3(demo, run, tmp_path):
    source = sorted((demo[0] / "sample" / "test").rglob("*.jpg"))[:3]
    for i, path in enumerate(source):
        content = path.read_bytes()
        (tmp_path / f"{i}.jpg").write_bytes(content[: len(content) // 3] if i == 1 else content)
    done = run("infer.py", "--ckpt", demo[0] / "run" / "best.ckpt", "--images", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 3, done.stderr
    rows = table(tmp_path / "out" / "scores.csv")
    assert [r["path"] for r in rows] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [r["status"] == "ok" for r in rows] == [True, False, True] and rows[1]["status"].startswith(
        "error: truncated"
    )
    assert "1.jpg" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train.py -c absent.yaml", ["absent.yaml"]),
        ("train.py -c TINY --epoch_sze 3", ["epoch_sze", "epoch_size"]),
        ("train.py -c TINY --model efficientnet_lite00", ["efficientnet_lite00", "efficientnet_lite0"]),
        ("train.py -c TINY --data_dir no/such/folder", ["no/such/folder"]),
        ("train.py -c TINY --init_from no/such.ckpt", ["no/such.ckpt"]),
        ("train.py -c TINY --num_classes 0", ["num_classes", "0"]),
        ("train.py -c TINY --num_classes 7", ["num_classes", "7"]),
        ("infer.py --ckpt no/such.ckpt --images SAMPLE/test --out OUT", ["no/such.ckpt"]),
        ("infer.py --ckpt RUN/best.ckpt --images no/such/folder --out OUT", ["no/such/folder"]),
        ("evaluate.py score --scores no/such.csv --labels SAMPLE/test --out OUT", ["no/such.csv"]),
        ("-m convert no/such.pth OUT/x.ckpt", ["no/such.pth"]),
    ],
)
def test_wrong_arguments_exit_2_with_one_line_and_write_nothing(demo, run, tmp_path, line, words):
    places = {
        "TINY": demo[0] / "tiny.yaml",
        "SAMPLE": demo[0] / "sample",
        "RUN": demo[0] / "run",
        "OUT": tmp_path / "out",
    }
    arguments = line.split()
    if arguments[0] == "train.py":
        arguments += ["--ckpt_save_dir", "OUT"] + ([] if "--data_dir" in arguments else ["--data_dir", "SAMPLE"])
    for name, place in places.items():
        arguments = [a.replace(name, str(place)) for a in arguments]
    done = run(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    last = [text for text in done.stderr.splitlines() if text.strip()]
    assert len(last) == 1, done.stderr
    assert all(w in last[0] for w in words), last[0]
    assert not (tmp_path / "out").exists()
