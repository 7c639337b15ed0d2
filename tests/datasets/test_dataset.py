"""Data sources, splits, orders, loading."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aidet import config, images
from aidet.datasets import truth
from aidet.datasets.samples import open_data
from aidet.errors import UserError
from aidet.training import loader, workers
from aidet.training.loader import Loader, epoch_order
from aidet.training.targets import mix
from aidet.training.workers import Workers


def save(photo, path, seed=0, size=(40, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(seed, size).save(path, quality=90)


@pytest.fixture
def folder(tmp_path, photo):
    """ImageFolder with pairs: 6 a class in train, 3 in val."""
    number = 0
    for split, n in (("train", 6), ("val", 3)):
        for i in range(n):
            for name in ("REAL", "FAKE"):
                number += 1
                save(photo, tmp_path / split / name / f"{split}{i}.jpg", number)
    return tmp_path


def opened(place, **keys):
    return open_data(config.load(None, {"data_dir": str(place), **keys}))


def table(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_image_folder_labels_by_name_not_by_alphabet(folder):
    train, val, classes = opened(folder)
    assert classes == ["real", "generated"] and (len(train), len(val)) == (12, 6)
    for path, target in zip(train.paths, train.targets):
        assert target == path.startswith("FAKE")


def test_pairs_share_their_draw(folder):
    for real in folder.rglob("REAL/*.jpg"):
        with Image.open(real) as image:
            image.save(real.parent.parent / "FAKE" / real.name, quality=60)
    train, _, _ = opened(folder)
    twins = [i for i, p in enumerate(train.paths) if p.endswith("train3.jpg")]
    assert len(twins) == 2 and len({train.key(i) for i in twins}) == 1
    line = "random_crop(16) | hflip | normalize(half)"
    loader = Loader(train, line, (16, 16), 2, 1, workers.Workers(0))
    order = np.array([[i, 0] for i in twins])
    ((x, rows),) = loader.run(order, epoch=5)
    for place, row in enumerate(rows):
        image = images.decode(train.root / train.paths[row])
        wanted = images.Pipeline(line)(image, images.generator(1, "train3.jpg", 5))
        assert np.array_equal(x[place], wanted)


def test_other_names_are_plain_classes(tmp_path, photo):
    for split in ("train", "val"):
        for k, name in enumerate(("dog", "cat", "10", "9")):
            save(photo, tmp_path / split / name / f"{split}{name}.png", k)
    train, _, classes = opened(tmp_path)
    assert classes == ["9", "10", "cat", "dog"] and (train.sides == -1).all()
    assert [classes[t] for t in train.targets] == train.texts


@pytest.mark.parametrize("names", [("sdv4/nature", "sdv4/ai", "adm/nature", "adm/ai"), ("nature", "ai/sdv4", "ai/adm")])
def test_a_folder_means_the_same_in_training_and_in_evaluation(tmp_path, photo, names):
    """GenImage has a folder per generator above its class folders; the first level would make generators classes."""
    for split in ("train", "val"):
        for k, name in enumerate(names):
            for i in range(2):
                save(photo, tmp_path / split / name / f"{split}{k}{i}.png", 10 * k + i)
    train, val, classes = opened(tmp_path)
    assert classes == ["real", "generated"]
    for samples, split in ((train, "train"), (val, "val")):
        read = truth.read_labels(tmp_path / split)
        assert dict(zip(samples.paths, samples.targets)) == dict(zip(read.paths, read.labels))
        assert {g for g, y in zip(samples.generators, samples.sides) if y} == {"sdv4", "adm"}
        wanted = {p: g for p, g, y in zip(read.paths, read.column("generator"), read.labels) if y}
        assert {p: g for p, g, y in zip(samples.paths, samples.generators, samples.sides) if y} == wanted


def test_equal_names_in_class_folders_are_no_pairs(folder):
    """Other pictures under the same names: numbered anew in every folder."""
    train, _, _ = opened(folder)
    assert set(train.pairs) == {""} and len({train.key(i) for i in range(12)}) == 12


@pytest.mark.parametrize(
    "column, cells", [("label", ("0.0", "1.0")), ("target", ("0.0", "4.0")), ("class", ("Real", "1"))]
)
def test_a_table_means_the_same_in_training_and_in_evaluation(tmp_path, photo, column, cells):
    """pandas writes 1.0 where a column has gaps: that is generated, not a class called 1.0."""
    rows = [(f"{i}.png", cells[i % 2]) for i in range(4)]
    for i, row in enumerate(rows):
        save(photo, tmp_path / row[0], i)
    table(tmp_path / "labels.csv", ("ImageId", column), rows)
    train, _, classes = opened(tmp_path / "labels.csv", val_while_train=False)
    assert classes == ["real", "generated"] and train.targets.tolist() == [0, 1, 0, 1]
    assert truth.read_labels(tmp_path / "labels.csv").labels.tolist() == [0, 1, 0, 1]


def test_csv_with_splits_generators_and_groups(tmp_path, photo):
    rows = [(f"{i}.png", i % 2, f"g{i % 4}", "train" if i < 8 else "valid", f"s{i}") for i in range(12)]
    for i, row in enumerate(rows):
        save(photo, tmp_path / row[0], i)
    table(tmp_path / "labels.csv", ("path", "label", "generator", "split", "group"), rows)
    train, val, _ = opened(tmp_path)
    assert (len(train), len(val)) == (8, 4) and train.generators[1] == "g1"
    train, val, classes = opened(tmp_path, multiclass_to_binary=True)
    assert classes == ["real", "g1", "g3"] and train.targets[:4].tolist() == [0, 1, 0, 2]


def test_a_group_on_both_sides_is_refused(tmp_path, photo):
    rows = [(f"{i}.png", i % 2, "train" if i < 4 else "val", f"s{i % 5}") for i in range(8)]
    for i, row in enumerate(rows):
        save(photo, tmp_path / row[0], i)
    table(tmp_path / "labels.csv", ("path", "label", "split", "group"), rows)
    with pytest.raises(UserError, match="groups are in the training and the validation split"):
        opened(tmp_path)


def test_one_file_or_pair_on_both_sides_is_refused(tmp_path, photo):
    rows = [(f"{i}.png", i % 2, "train" if i < 4 else "val", f"p{i // 2}") for i in range(8)]
    for i, row in enumerate(rows):
        save(photo, tmp_path / row[0], i)
    (tmp_path / "4.png").unlink()
    (tmp_path / "4.png").symlink_to(tmp_path / "0.png")
    table(tmp_path / "labels.csv", ("path", "label", "split"), [r[:3] for r in rows])
    with pytest.raises(UserError, match="1 images are in the training and the validation split.*'4.png'"):
        opened(tmp_path)
    rows[5] = (*rows[5][:3], "p1")
    table(tmp_path / "labels.csv", ("path", "label", "split", "pair"), rows)
    with pytest.raises(UserError, match="1 pairs are in the training and the validation split.*'p1'"):
        opened(tmp_path)


def test_hold_out_keeps_groups_whole_and_is_stable(tmp_path, photo):
    rows = [(f"{i}.png", i % 2, f"s{i // 2}") for i in range(80)]
    for row in rows:
        save(photo, tmp_path / row[0], 1, (8, 8))
    table(tmp_path / "labels.csv", ("path", "label", "group"), rows)
    with pytest.raises(UserError, match="val_fraction"):
        opened(tmp_path)
    train, val, _ = opened(tmp_path, val_fraction=0.3)
    assert not set(train.groups()) & set(val.groups()) and len(train) + len(val) == 80 and 10 < len(val) < 40
    assert opened(tmp_path, val_fraction=0.3)[1].paths == val.paths


def test_pairs_of_different_groups_are_held_out_together(tmp_path, photo):
    """A photograph and the picture made from it may be of two sources: the pair still stays on one side."""
    rows = [(f"{i}.png", i % 2, f"{'ab'[i % 2]}{i // 4}", f"p{i // 2}") for i in range(80)]
    for row in rows:
        save(photo, tmp_path / row[0], 1, (8, 8))
    table(tmp_path / "labels.csv", ("path", "label", "group", "pair"), rows)
    train, val, _ = opened(tmp_path, val_fraction=0.3)
    for column in ("group", "pair"):
        assert not set(train.columns[column]) & set(val.columns[column])
    assert len(train) + len(val) == 80 and 10 < len(val) < 50


def test_artifact_metadata(tmp_path, photo):
    for name, target in (("coco", 0), ("ddpm", 5)):
        for i in range(3):
            save(photo, tmp_path / name / "img" / f"{i}.jpg", i)
        table(tmp_path / name / "metadata.csv", ("filename", "image_path", "target", "category"),
              [(f"{i}.jpg", f"img/{i}.jpg", target, name) for i in range(3)])  # fmt: skip
    train, _, _ = opened(tmp_path, val_while_train=False)
    assert train.paths[0] == "coco/img/0.jpg" and train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert set(train.generators) == {"coco", "ddpm"}


def test_numbered_files_with_a_truth_file(tmp_path, photo):
    for i in (2, 10, 1):
        save(photo, tmp_path / "train" / f"{i}.jpg", i)
    (tmp_path / "train.txt").write_text("0\n1\n1\n")
    train, _, _ = opened(tmp_path, val_while_train=False)
    assert train.paths == ["1.jpg", "2.jpg", "10.jpg"] and train.targets.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train_split": "trian"}, "unknown split 'trian'; did you mean 'train'?"),
        ({"val_split": "nothing"}, "unknown split 'nothing'; choose from: train, val; or set val_fraction"),
        ({"data_dir": "/nowhere"}, "data_dir '/nowhere' does not exist"),
    ],
)
def test_errors_name_the_value(folder, keys, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        opened(folder, **keys) if "data_dir" not in keys else opened(keys["data_dir"])


def test_class_folders_without_splits_are_read_as_a_table_without_them(tmp_path, photo):
    for i in range(20):
        save(photo, tmp_path / ("real" if i % 2 else "fake") / f"{i}.png", i, (8, 8))
    with pytest.raises(UserError, match="the data name no splits, so there is no 'val'; set val_fraction"):
        opened(tmp_path)
    train, val, classes = opened(tmp_path, val_fraction=0.3)
    assert len(train) + len(val) == 20 and classes == ["real", "generated"] and not set(train.paths) & set(val.paths)
    assert all((path.split("/")[0] == "fake") == bool(t) for path, t in zip(train.paths, train.targets))
    save(photo, tmp_path / "fake" / "test" / "x.png", 1, (8, 8))
    with pytest.raises(UserError, match="unknown split 'train'; choose from: fake, real"):
        opened(tmp_path, val_fraction=0.3)  # its test images would be trained on


def test_images_without_any_folder_are_told_which_are_wanted(tmp_path, photo):
    save(photo, tmp_path / "1.png", 1, (8, 8))
    with pytest.raises(UserError, match="neither labels.csv nor folders such as train/real and train/fake"):
        opened(tmp_path)


def test_one_class_only_is_refused(tmp_path, photo):
    for split in ("train", "val"):
        save(photo, tmp_path / split / "real" / f"{split}.jpg")
    with pytest.raises(UserError, match="one class only"):
        opened(tmp_path)


def test_equal_bytes_in_both_splits_are_said(folder):
    first = folder / "train" / "REAL" / "train0.jpg"
    (folder / "val" / "REAL" / "copy.jpg").write_bytes(first.read_bytes())
    (folder / "val" / "FAKE" / "copy.jpg").write_bytes((folder / "train" / "FAKE" / "train1.jpg").read_bytes())
    said = []
    open_data(config.load(None, {"data_dir": str(folder)}), said.append)
    assert "2 validation images are byte for byte in the training set" in said[0]


def test_order_is_a_permutation_that_changes_by_epoch(folder):
    train, _, _ = opened(folder)
    first, second = (loader.epoch_order(train, e, seed=3) for e in (0, 1))
    assert sorted(first[:, 0]) == list(range(12)) and not np.array_equal(first, second)
    assert np.array_equal(first, loader.epoch_order(train, 0, seed=3))
    assert loader.epoch_order(train, 0, seed=3, shuffle=False)[:, 0].tolist() == list(range(12))
    repeated = loader.epoch_order(train, 0, seed=3, repeats=3)
    assert repeated[:3, 0].tolist() == [first[0, 0]] * 3 and repeated[:3, 1].tolist() == [0, 1, 2]
    # The epoch keeps its length, as with MindCV's RepeatAugSampler.
    assert len(repeated) == 12 and len(set(repeated[:, 0].tolist())) == 4


def test_samplers_balance_classes_and_generators(tmp_path, photo):
    rows = [(f"{i}.png", int(i >= 90), ("a" if i < 85 else "b") if i < 90 else "c") for i in range(100)]
    save(photo, tmp_path / "0.png")
    table(tmp_path / "labels.csv", ("path", "label", "generator"), rows)
    train, _, _ = opened(tmp_path, val_while_train=False)
    by_class = loader.epoch_order(train, 0, 1, sampler="class", length=4000)[:, 0]
    assert abs((by_class >= 90).mean() - 0.5) < 0.04
    by_generator = loader.epoch_order(train, 0, 1, sampler="generator", length=4000)[:, 0]
    assert abs(((by_generator >= 85) & (by_generator < 90)).mean() - 0.25) < 0.04


@pytest.mark.parametrize(
    "line",
    [
        "to_float",
        "resize((32, 40)) | center_crop((32, 40)) | normalize(half)",
        "resize((32, 40), lanczos) | center_crop(30) | resize((32, 40)) | normalize(half)",
        "hflip | jpeg((60, 90)) | normalize(imagenet)",
    ],
)
def test_every_way_of_loading_gives_the_same_pixels(folder, line, monkeypatch):
    train, _, _ = opened(folder)
    order = epoch_order(train, 2, seed=7)[:10]
    order = np.concatenate([order, [[-1, 0]] * 2])
    wanted = None
    for count, cache, mapped in (
        (0, 0, True),
        (0, 64, True),
        (0, 64, False),
        (2, 0, True),
        (2, 64, True),
        (2, 64, False),
    ):
        if not mapped:
            monkeypatch.delattr("os.memfd_create", raising=False)
        else:
            monkeypatch.undo()
        workers = Workers(count)
        loader = Loader(train, line, (32, 40), 6, 7, workers, cache)
        batches = list(loader.run(order, 2))
        workers.close()
        assert [r.tolist() for _, r in batches] == [order[:6, 0].tolist(), order[6:, 0].tolist()]
        x = np.concatenate([b for b, _ in batches])
        assert (x[10:] == 0).all()
        wanted = x if wanted is None else wanted
        assert np.array_equal(x, wanted)


def test_pixels_of_a_gone_loader_are_neither_kept_open_nor_mistaken_for_others(tmp_path, photo):
    """The second set gets the file number of the first; the worker is the same."""
    seen, before, workers = [], None, Workers(1)
    for seed in range(2):
        for name in ("REAL", "FAKE"):
            save(photo, tmp_path / str(seed) / "train" / name / "a.jpg", seed)
        train, _, _ = opened(tmp_path / str(seed), val_while_train=False, val_split="")
        loader = Loader(train, "hflip(0) | to_float", (32, 40), 2, 0, workers)
        ((x, _),) = loader.run(np.array([[0, 0], [1, 0]]), 0)
        wanted = np.asarray(photo(seed, (40, 32)), np.float32).transpose(2, 0, 1) / 255
        assert np.abs(x[0] - wanted).mean() < 0.05
        seen.append(x)
        del loader
        count = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else None
        assert before in (None, count)
        before = count
    workers.close()
    assert not np.array_equal(*seen)


def test_splits_are_one_crop_without_and_with_the_policy(folder):
    train, _, _ = opened(folder)
    line = "random_crop(16) | hflip | auto_augment('trivialaugwide') | normalize(half)"
    order, batches = loader.epoch_order(train, 0, seed=3)[:4], []
    for count in (0, 2):
        workers = Workers(count)
        batches.append(next(loader.Loader(train, line, (16, 16), 4, 3, workers, splits=3).run(order, 0)))
        workers.close()
    assert all(np.array_equal(a, b) for a, b in zip(*batches))
    x, rows = batches[0]
    plain = loader.Loader(train, line.replace("auto_augment('trivialaugwide') | ", ""), (16, 16), 4, 3,
                           Workers(0))  # fmt: skip
    clean, same = next(plain.run(order, 0))
    assert x.shape == (12, 3, 16, 16) and np.array_equal(x[:4], clean) and np.array_equal(rows, same)
    assert not np.array_equal(x[4:8], clean) and not np.array_equal(x[4:8], x[8:])


@pytest.mark.parametrize("cache", [0, 64])
def test_an_unreadable_image_is_left_out_by_name(folder, cache):
    broken = folder / "train" / "REAL" / "train2.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    train, _, _ = opened(folder)
    loader = Loader(train, "to_float", (32, 40), 12, 7, workers.Workers(0), cache)
    ((x, rows),) = loader.run(epoch_order(train, 0, seed=7), 0)
    assert (rows == -1).sum() == 1 and (x[rows == -1] == 0).all()
    assert list(loader.failed) == ["REAL/train2.jpg"] and "truncated" in loader.failed["REAL/train2.jpg"]


def test_mixing_keeps_weights_and_mass():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 3, 8, 8)).astype(np.float32)
    targets, weights = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 1, 0]], np.array([1, 1, 1, 1, 1, 0], np.float32) / 5
    for keys in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}):
        settings = config.load(None, keys)
        a, t, w = mix(x, targets, weights, images.generator(1, "m"), settings)
        assert np.allclose(w.sum(), 1) and w[5] == 0 and np.array_equal(a[5], x[5]) and np.allclose(t.sum(1), 1)
        assert not np.array_equal(a, x) and np.allclose((t * w[:, None]).sum(0), (targets * weights[:, None]).sum(0))
        again = mix(x, targets, weights, images.generator(1, "m"), settings)[0]
        assert np.array_equal(a, again)
    off = mix(x, targets, weights, rng, config.load(None, {"mixup": 0.4, "cutmix_prob": 0}))
    assert off[0] is x


def test_random_erasing_covers_a_box():
    array = np.ones((3, 32, 32), np.float32)
    p = images.parsed("to_float | random_erasing(1.0, scale=(0.1, 0.2), value=7)")
    out = p.steps[-1][1](array, np.random.default_rng(0))
    assert 0.05 < (out == 7).mean() < 0.3 and (array == 1).all()


@pytest.mark.parametrize(
    "line, left",
    [
        ("center_crop(16) | normalize(half)", "decode | normalize(half)"),
        ("center_crop(16) | to_float(-1, 1)", "decode | to_float(-1, 1)"),
        ("center_crop(16)", None),
        ("center_crop(16) | high_pass(3)", None),  # looks at neighbours, which a batch stacked to one image changes
        ("center_crop(16) | normalize(half) | random_erasing", None),
    ],
)
def test_workers_leave_numbers_to_the_batch_where_pixels_count_one_by_one(line, left):
    found = workers.to_numbers(line)
    assert (found and found.text) == left
