"""One reader for every command: the same files out of one source, whatever its columns and its form of a path."""

import csv
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

import evaluate
import infer
from aidet import config
from aidet.datasets import sources, truth
from aidet.datasets.samples import open_data
from aidet.errors import UserError

WANTED = [f"img/{i}.png" if i < 20 else f"img/sub/{i}.png" for i in range(40)]
ARTIFACT = ("filename", "image_path", "target", "category")
# How a table may write the files: its name, its header, its rows.
TABLES = {
    "artifact": ("metadata.csv", ARTIFACT, [(p.split("/")[-1], p, 6 * (i % 2), "c") for i, p in enumerate(WANTED)]),
    "image id": ("labels.csv", ("ImageId", "label"), [(p, i % 2) for i, p in enumerate(WANTED)]),
    "windows": ("labels.csv", ("path", "label"), [(".\\" + p.replace("/", "\\"), i % 2) for i, p in enumerate(WANTED)]),
    "here": ("labels.csv", ("label", "file"), [(i % 2, f"././{p.replace('/', '//')} ") for i, p in enumerate(WANTED)]),
    "name last": ("l.csv", ("name", "image", "class"), [("?", p, ("real", "ai")[i % 2]) for i, p in enumerate(WANTED)]),
}


@pytest.fixture(params=TABLES)
def table(request, tmp_path, photo):
    """Images under ``img/``, every second one generated and 512 pixels wide, and a table of them."""
    for i, path in enumerate(WANTED):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        photo(i, (512 if i % 2 else 500, 40)).save(tmp_path / path)
    name, header, rows = TABLES[request.param]
    with open(tmp_path / name, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return tmp_path / name


def read_by_infer(path):
    return [name for name, _ in sources.Inputs(path)], [file for _, file in sources.Inputs(path)]


def read_by_evaluate(path):
    read = truth.read_labels(path)
    assert read.labels.tolist() == [0, 1] * 20
    return read.paths, read.files()


def read_by_leaks(path):
    table = sources.read_images(path)
    return table.paths, table.files()


def read_by_train(path):
    train, val, classes = open_data(config.load(None, {"data_dir": str(path), "val_split": ""}))
    assert train.targets.tolist() == [0, 1] * 20 and val is None
    return train.paths, train.files()


@pytest.mark.parametrize("reader", [read_by_infer, read_by_evaluate, read_by_leaks, read_by_train])
def test_every_reader_finds_the_same_paths(table, reader):
    paths, found = reader(table)
    assert paths == WANTED
    assert [str(f) for f in found] == [str(table.parent / p) for p in WANTED]


@pytest.mark.parametrize("table", ["artifact", "windows"], indirect=True)
def test_every_command_finds_the_files(table):
    """infer.py, evaluate.py score, leaks and audit, from the command line on."""
    out = table.parent / "out"
    assert infer.run(["--ckpt", "rule:size", "--images", str(table), "--out", str(out / "infer")]) == 0
    scores = out / "infer" / "scores.csv"
    rows = rows_of(scores)
    assert [r["path"] for r in rows] == WANTED and [r["label"] for r in rows] == ["0", "1"] * 20
    evaluate.main(["score", "--scores", str(scores), "--labels", str(table), "--out", str(out), "--bootstrap", "0"])
    assert json.loads((out / "metrics.json").read_text())["balanced_accuracy"] == 1
    assert evaluate.main(["audit", "--labels", str(table), "--out", str(out / "audit")]) == 0  # 3: files not found
    leaks = ["leaks", "--train", str(table), "--test", str(table), "--out", str(out / "leaks"), "--workers", "1"]
    assert evaluate.main(leaks) == 0
    found = [(r["level"], r["path"], r["also_path"]) for r in rows_of(out / "leaks" / "leaks.csv")]
    assert found == [("path", path, path) for path in WANTED]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a.png", "a.png"),
        ("./a.png", "a.png"),
        (".//./a//b.png", "a/b.png"),
        (".\\a\\b.png", "a/b.png"),
        ("../a.png", "../a.png"),
        ("/data//a.png", "/data/a.png"),
        ("D:\\set\\a.png", "D:/set/a.png"),
        (".hidden/a.png", ".hidden/a.png"),
    ],
)
def test_normal_form_of_a_path(text, wanted):
    assert sources.normal_path(text) == wanted == sources.normal_path(wanted)


def test_a_list_of_paths_is_read_by_infer_and_by_leaks(tmp_path):
    (tmp_path / "list.txt").write_text("./b.png\n\nimg\\a.png\n")
    assert [name for name, _ in sources.Inputs(tmp_path / "list.txt")] == ["b.png", "img/a.png"]
    assert sources.read_images(tmp_path / "list.txt").paths == ["b.png", "img/a.png"]
    (tmp_path / "list.txt").write_text("path,label\na.png,1\n")
    table = sources.read_images(tmp_path / "list.txt")
    assert (table.paths, table.root, table.columns) == (["a.png"], tmp_path, {"label": ["1"]})
    assert [name for name, _ in sources.Inputs(tmp_path / "list.txt")] == ["a.png"]
    (tmp_path / "list.txt").write_text("0\n1\n")
    with pytest.raises(UserError, match="bare column of labels; images are needed"):
        sources.read_images(tmp_path / "list.txt")


def test_names_in_a_folder_stay_as_they_are(tmp_path):
    """On Linux a file name may hold a backslash."""
    (tmp_path / "real").mkdir()
    name = "real/a\\b.png"
    Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert [n for n, _ in sources.Inputs(tmp_path)] == sources.read_images(tmp_path).paths == [name]


def test_a_part_is_chosen_by_the_columns_of_the_table(tmp_path):
    (tmp_path / "l.csv").write_text("path,label,split\na.png,fake,train\nb.png,real,train\nc.png,fake,test\n")
    table = sources.read(tmp_path / "l.csv")
    assert table.where(["split=train", "label=fake"]).paths == ["a.png"] and len(table) == 3
    assert table.take([2, 0]).columns == {"label": ["fake", "fake"], "split": ["test", "train"]}
    assert sources.read_images(f"{tmp_path / 'l.csv'}@label=fake").paths == ["a.png", "c.png"]
    with pytest.raises(UserError, match="did you mean 'split'"):
        table.where(["spilt=train"])


def test_tables_with_other_columns_are_joined(tmp_path):
    one = sources.Table(["a"], {"label": ["0"], "group": ["g"]}, tmp_path)
    two = sources.Table(["b", "c"], {"label": ["1", "0"]}, tmp_path)
    both = sources.joined([one, two])
    assert both.paths == ["a", "b", "c"] and both.columns == {"label": ["0", "1", "0"], "group": ["g", "", ""]}


def test_a_million_files_are_a_stream(tmp_path):
    """A list of twenty times the rows needs no more memory."""
    peaks = []
    for rows in (1_000, 20_000):
        text = "".join(f"{i},images/{i:09}.png\n" for i in range(rows))
        (tmp_path / "l.csv").write_text("id,path\n" + text)
        inputs = sources.Inputs(tmp_path / "l.csv")
        tracemalloc.start()
        assert inputs.count() == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


# --- equal names in class folders -------------------------------------------------------------------------------------
def numbered(root, rng, *folders, n=4):
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(root / folder / f"{i}.png")


def opened(place, said=None, **keys):
    return open_data(config.load(None, {"data_dir": str(place), **keys}), (said if said is not None else []).append)


@pytest.mark.parametrize(
    "classes", [("real", "fake"), ("biggan/0_real", "biggan/1_fake", "stylegan/0_real", "stylegan/1_fake"), ("a", "b")]
)
def test_files_numbered_anew_in_every_folder_are_no_leak(tmp_path, classes):
    numbered(tmp_path, np.random.default_rng(0), *(f"{s}/{c}" for s in ("train", "val") for c in classes))
    said = []
    train, val, _ = opened(tmp_path, said)
    assert len(train) == len(val) == 4 * len(classes)
    assert not any("split" in text or "byte" in text or "names" in text for text in said)


def test_numbered_folders_train(run, tmp_path):
    folders = [f"{split}/{name}" for split in ("train", "val") for name in ("real", "fake")]
    numbered(tmp_path / "data", np.random.default_rng(0), *folders)
    done = run("train.py", "--model", "testing", "--data_dir", tmp_path / "data", "--ckpt_save_dir", tmp_path / "out",
               "--batch_size", 4, "--epoch_size", 1, "--transform", "center_crop(16) | normalize(half)",
               "--transform_eval", "center_crop(16) | normalize(half)", "--num_parallel_workers", 0,
               "--device_target", "CPU")  # fmt: skip
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    assert (tmp_path / "out" / "best.ckpt").is_file()


def labels_csv(root, header, rows):
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def pairs_of(*numbers):
    return [(f"{side}/{i}.png", y) for i in numbers for y, side in enumerate(("real", "generated"))]


def test_aligned_pairs_share_their_draws(tmp_path):
    """``python -m aidet.align`` writes real/<name> and generated/<name> with the pair as ``group``."""
    for split, numbers in (("train", (0, 1, 2)), ("val", (3, 4))):
        rows = [(*row, "vae", f"source{row[0].split('/')[1]}") for row in pairs_of(*numbers)]
        labels_csv(tmp_path / split, ("path", "label", "generator", "group"), rows)
    said = []
    train, val, _ = opened(tmp_path, said)
    assert said == [] and [train.key(i) for i in range(6)] == ["0.png", "0.png", "1.png", "1.png", "2.png", "2.png"]
    assert train.units() == [f"source{k}.png" for k in (0, 0, 1, 1, 2, 2)]
    # Both sides of a pair are held out together.
    train, val, _ = opened(tmp_path / "train", val_split="", val_fraction=0.5, seed=3)
    assert len(train) + len(val) == 6 and not set(train.pairs) & set(val.pairs)
    # The same pairs in both splits are a leak, which the group tells.
    labels_csv(tmp_path / "val", ("path", "label", "group"), [(*row, "source1.png") for row in pairs_of(4)])
    with pytest.raises(
        UserError, match="1 groups are in .* 'source1.png'; give all images of one group the same split"
    ):
        opened(tmp_path)


def test_pairs_of_a_column_are_never_on_both_sides(tmp_path):
    for split, numbers in (("train", (0, 1)), ("val", (1, 2))):
        rows = [(*row, row[0].split("/")[1]) for row in pairs_of(*numbers)]
        labels_csv(tmp_path / split, ("path", "label", "pair"), rows)
    with pytest.raises(UserError, match="1 pairs are in .* '1.png'; give all images of one pair the same split"):
        opened(tmp_path)


def test_names_that_two_splits_of_a_table_share_are_a_warning(tmp_path):
    """real/1.png in training and generated/1.png in validation: a pair torn apart, or chance."""
    rows = [(*row, split) for row, split in zip(pairs_of(0, 1, 2), ("train", "train", "train", "val", "val", "train"))]
    labels_csv(tmp_path, ("path", "label", "split"), rows)
    said = []
    opened(tmp_path, said)
    assert said == []  # no picture says that these are pairs
    rng = np.random.default_rng(0)
    for i in range(3):
        image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8))
        for side, quality in (("real", 95), ("generated", 90)):
            (tmp_path / side).mkdir(exist_ok=True)
            image.save(tmp_path / side / f"{i}.png", "JPEG", quality=quality)
    train, val, _ = opened(tmp_path, said)
    assert (len(train), len(val)) == (4, 2)
    assert len(said) == 1 and "2 names have one class in training and another in validation, such as '1.png'" in said[0]
    labels_csv(
        tmp_path, ("path", "label", "split"), [(*row[:2], ("train", "val")[k > 3]) for k, row in enumerate(rows)]
    )
    said.clear()
    opened(tmp_path, said)
    assert said == []
