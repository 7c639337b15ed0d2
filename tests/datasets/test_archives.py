"""Images in Parquet, Arrow, tar and zip files and MindRecord: the same as from a folder, from every command."""

import csv
import io
import json
import os
import re
import shutil
import struct
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

import evaluate
import infer
from aidet import archives, config, data, images
from aidet.datasets import archived, read_images, read_labels, sources
from aidet.datasets.samples import open_data
from aidet.errors import UserError
from aidet.training.loader import epoch_order
from aidet.training.run import Run

pa = pytest.importorskip("pyarrow", reason="pip install 'aidet[parquet]'")
pq = pytest.importorskip("pyarrow.parquet")

# Every second image is generated and 512 pixels wide, which the rule `rule:size` calls generated.
NAMES = [f"{'train' if i < 30 else 'val'}/{('real', 'fake')[i % 2]}/{i}.png" for i in range(40)]
SIDES = [int("fake" in name) for name in NAMES]
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": ["fake", "real"]},
    "made_by": {"_type": "Value", "dtype": "string"},
}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NOTED = {"huggingface": json.dumps({"info": {"features": FEATURES}})}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The images as files."""
    place = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for name, side in zip(NAMES, SIDES):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 512 if side else 500, 3), np.uint8)
        images.operations.Image.fromarray(pixels).save(place / name)
    return place


def table(folder, names, kind=IMAGE):
    cells = [{"bytes": (folder / n).read_bytes(), "path": n} for n in names]
    return pa.table(
        {
            "image": pa.array(cells if kind is IMAGE else [c["bytes"] for c in cells], kind),
            "label": [int("real" in n) for n in names],
            "made_by": ["camera" if "real" in n else "generator" for n in names],
        }
    )


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


# --- one maker for each form in which data sets are published ------------------------------------------------------
def as_zip(folder, place):
    with zipfile.ZipFile(place / "set.zip", "w") as archive:
        for name in NAMES:
            archive.write(folder / name, name)
        archive.writestr("__MACOSX/train/real/._0.png", b"litter")
        archive.writestr("readme.txt", b"no image")
    return place / "set.zip"


def as_tar(folder, place):
    with tarfile.open(place / "set.tar", "w") as archive:
        for name in NAMES:
            archive.add(folder / name, name)
    return place / "set.tar"


def as_webdataset(folder, place):
    for split in ("train", "val"):
        with tarfile.open(place / f"{split}-000000.tar", "w") as archive:
            for i, name in enumerate(n for n in NAMES if n.startswith(split)):
                add(archive, f"{i:04d}.png", (folder / name).read_bytes())
                add(archive, f"{i:04d}.cls", b"%d" % ("fake" in name))
                add(archive, f"{i:04d}.json", json.dumps({"made_by": "x", "size": [1, 2]}).encode())
    return place


def as_parquet(folder, place):
    """As the hub has it: class numbers, whose names are in the schema, and shards named by split."""
    for split in ("train", "val"):
        rows = table(folder, [n for n in NAMES if n.startswith(split)]).replace_schema_metadata(NOTED)
        (place / "data").mkdir(exist_ok=True)
        pq.write_table(rows, place / "data" / f"{split}-00000-of-00001.parquet", row_group_size=7)
    return place


def as_arrow(folder, place):
    """As ``datasets`` saves it: a folder for each split, and a cache that is no data."""
    (place / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "val"]}))
    for split in ("train", "val"):
        rows = table(folder, [n for n in NAMES if n.startswith(split)]).replace_schema_metadata(NOTED)
        (place / split).mkdir()
        (place / split / "state.json").write_text(json.dumps({"_indices_files": None}))
        for name in ("data-00000-of-00001.arrow", "cache-0123456789abcdef.arrow"):
            with pa.OSFile(str(place / split / name), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_table(rows, max_chunksize=4)
    return place


def as_mindrecord(folder, place):
    from mindspore.mindrecord import FileWriter

    for split in ("train", "val"):
        writer = FileWriter(str(place / f"{split}.mindrecord"), 1)
        writer.add_schema({"image": {"type": "bytes"}, "label": {"type": "int32"}}, "images")
        names = [n for n in NAMES if n.startswith(split)]
        writer.write_raw_data([{"image": (folder / n).read_bytes(), "label": int("fake" in n)} for n in names])
        writer.commit()
    return place


FORMS = {f.__name__[3:]: f for f in (as_zip, as_tar, as_webdataset, as_parquet, as_arrow, as_mindrecord)}


@pytest.fixture(scope="module", params=FORMS)
def source(request, folder, tmp_path_factory):
    return FORMS[request.param](folder, tmp_path_factory.mktemp(request.param))


# --- the same from every form --------------------------------------------------------------------------------------
def test_images_and_classes_are_those_of_the_folder(source, folder):
    expected = {(folder / name).read_bytes(): side for name, side in zip(NAMES, SIDES)}
    true = read_labels(source)
    found = {archives.read(file): side for file, side in zip(true.files(), true.labels.tolist())}
    assert found == expected
    streamed = list(sources.Inputs(source))
    assert [key for key, _ in streamed] == read_images(source).paths == true.paths
    assert [str(file) for file in true.files()] == [path for _, path in streamed]
    assert sources.Inputs(source).count() == len(NAMES)
    image = images.decode(true.files()[0])
    assert image.size[0] == (512 if true.labels[0] else 500)


def test_training_finds_splits_and_classes(source):
    train, val, classes = open_data(config.load(None, {"data_dir": str(source), "val_split": "val"}))
    assert (len(train), len(val), classes) == (30, 10, ["real", "generated"])
    for part in (train, val):
        widths = [images.decode(file).size[0] for file in part.files()]
        assert widths == [512 if target else 500 for target in part.targets]
    for epoch in range(2):
        assert sorted(epoch_order(train, epoch, seed=1)[:, 0].tolist()) == list(range(30))
    assert not np.array_equal(epoch_order(train, 0, seed=1), epoch_order(train, 1, seed=1))


def test_processes_that_train_together_share_no_image(source):
    """Every image of an epoch is in a batch of exactly one of them."""
    train, _, _ = open_data(config.load(None, {"data_dir": str(source), "val_split": "val"}))
    settings = config.load(None, {"batch_size": 4, "seed": 1})
    plan = SimpleNamespace(data=SimpleNamespace(train_set=train), batches=3, updates_per_epoch=3)
    loader = SimpleNamespace(
        run_masked=lambda order, epoch: ((None, rows[:, 0], None) for rows in np.split(order, len(order) // 4))
    )
    for epoch in range(2):
        seen = []
        for rank in range(3):
            one = SimpleNamespace(
                config=settings, plan=plan, loader=loader, progress=SimpleNamespace(batches=0),
                processes=SimpleNamespace(rank=rank, world=3),
            )  # fmt: skip
            seen += [row for batch in Run._batches(one, epoch) for row in batch.rows.tolist() if row >= 0]
        assert sorted(seen) == list(range(30)), f"epoch {epoch}"


def test_commands_score_the_same_as_from_the_folder(source, folder, tmp_path):
    assert infer.run(["--ckpt", "rule:size", "--images", str(source), "--out", str(tmp_path / "infer")]) == 0
    rows = list(csv.DictReader(open(tmp_path / "infer" / "scores.csv", newline="")))
    assert [row["path"] for row in rows] == read_images(source).paths
    true = read_labels(source)
    assert [int(row["label"]) for row in rows] == true.labels.tolist()
    scored = ["score", "--scores", str(tmp_path / "infer" / "scores.csv"), "--labels", str(source)]
    evaluate.main([*scored, "--out", str(tmp_path / "score"), "--bootstrap", "0"])
    assert json.loads((tmp_path / "score" / "metrics.json").read_text())["balanced_accuracy"] == 1
    assert evaluate.main(["audit", "--labels", str(source), "--out", str(tmp_path / "audit")]) == 0
    leaks = ["leaks", "--train", str(folder), "--test", str(source), "--out", str(tmp_path / "leaks"), "--workers", "1"]
    assert evaluate.main(leaks) == 0
    found = list(csv.DictReader(open(tmp_path / "leaks" / "leaks.csv", newline="")))
    assert len(found) == len(NAMES) and {row["level"] for row in found} == {"bytes"}


@pytest.mark.parametrize("form", sorted(data.SHARDS))
def test_packed_shards_hold_the_same_bytes(source, folder, form, tmp_path):
    out = tmp_path / "out"
    assert data.main(["pack", str(source), "--out", str(out), "--format", form, "--shard-mb", "1"]) == 0
    assert sorted(p.name.split("-")[0] for p in out.iterdir()) == ["train", "val"]
    true = read_labels(out)
    expected = {(folder / name).read_bytes(): side for name, side in zip(NAMES, SIDES)}
    assert {archives.read(file): side for file, side in zip(true.files(), true.labels.tolist())} == expected


def test_the_note_on_shuffling_names_a_command_that_helps(folder, tmp_path):
    """It once named ``pack`` without a format: Parquet again."""
    said = []
    assert data.main(["pack", str(folder), "--out", str(tmp_path / "set")]) == 0
    open_data(config.load(None, {"data_dir": str(tmp_path / "set")}), said.append)
    (named,) = re.findall(r"`python -m aidet.data (.*)` makes shards that can be read in any order", " ".join(said))
    assert data.main([*named.split(), str(tmp_path / "set"), "--out", str(tmp_path / "again")]) == 0
    again = []
    open_data(config.load(None, {"data_dir": str(tmp_path / "again")}), again.append)
    assert not re.search("shuffled", " ".join(again))


def test_shards_end_at_their_size(folder, tmp_path, capsys):
    part = data.opened(str(folder))
    count, shards, lost = data.pack(part, tmp_path / "out", "tar", 100_000)
    sizes = [(folder / name).stat().st_size for name in NAMES]
    assert (count, lost) == (40, []) and shards == len(list((tmp_path / "out").iterdir())) > 5
    assert max(p.stat().st_size for p in (tmp_path / "out").iterdir()) < 100_000 + 40 * 1024 + max(sizes)
    assert data.main(["info", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"40 images in {shards} archives" in said and "label: 20 generated, 20 real" in said


def test_splits_whose_names_make_one_stem_lose_nothing(folder, tmp_path):
    rows = [
        f"{folder / name},{side},{('', 'data', 'a b', 'a_b')[i % 4]}"
        for i, (name, side) in enumerate(zip(NAMES, SIDES))
    ]
    (tmp_path / "l.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    for kind in ("tar", "parquet"):
        count, shards, lost = data.pack(data.opened(str(tmp_path / "l.csv")), tmp_path / kind, kind, 1 << 30)
        assert (count, shards, lost) == (len(NAMES), 4, []) and len(list((tmp_path / kind).iterdir())) == 4
        assert len(read_labels(tmp_path / kind).paths) == len(NAMES)


@pytest.mark.parametrize("form", sorted(data.SHARDS))
def test_a_folder_with_tables_is_packed_as_it_is_trained_on(folder, form, tmp_path, capsys):
    """ArtiFact's folders, and beside them a set with masks and another name of the classes' column."""
    tables = {
        "coco": ["image_path,target,category", "0.png,0,scene", "1.png,0,scene"],
        "ddpm": ["image_path,target,category", "0.png,5,face", "1.png,5,face"],
        "partial": ["path,label,mask", "0.png,1,masks/0.png", "1.png,0,"],
    }
    for place, (name, rows) in enumerate(tables.items()):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(2):
            shutil.copy(folder / NAMES[2 * place + i], tmp_path / "set" / name / f"{i}.png")
        (tmp_path / "set" / name / "metadata.csv").write_text("\n".join([rows[0], *rows[1:]]) + "\n")
    assert data.main(["pack", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--format", form]) == 0
    assert "the column 'mask' is left out" in capsys.readouterr().err
    keys = {"multiclass_to_binary": True, "val_while_train": False}
    made, _, classes = open_data(config.load(None, {"data_dir": str(tmp_path / "out"), **keys}), print)
    plain, _, expected = open_data(config.load(None, {"data_dir": str(tmp_path / "set"), **keys}), print)
    assert classes == expected == ["real", "ddpm", "partial"] and "mask" not in made.columns
    packed = {archives.read(file): target for file, target in zip(made.files(), made.targets.tolist())}
    assert packed == {file.read_bytes(): target for file, target in zip(plain.files(), plain.targets.tolist())}
    assert len(packed) == 6


@pytest.mark.parametrize("form", sorted(data.SHARDS))
@pytest.mark.parametrize("cells", [("cat", "dog"), ("real", "")])
def test_classes_that_are_no_sides_are_packed_as_words(folder, form, cells, tmp_path):
    rows = "".join(f"{folder / name},{cell}\n" for name, cell in zip(NAMES, cells))
    (tmp_path / "l.csv").write_text("path,label\n" + rows)
    assert data.main(["pack", str(tmp_path / "l.csv"), "--out", str(tmp_path / "out"), "--format", form]) == 0
    assert read_images(tmp_path / "out").columns["label"] == list(cells)


def test_the_class_of_the_content_stays_beside_the_side(folder, tmp_path):
    (tmp_path / "l.csv").write_text(f"path,label,is_fake\n{folder / NAMES[0]},cat,0\n{folder / NAMES[1]},dog,1\n")
    made = data.opened(str(tmp_path / "l.csv"))
    assert made.columns["label"] == ["real", "generated"] and made.columns["source_label"] == ["cat", "dog"]


@pytest.mark.parametrize("form", sorted(data.SHARDS))
def test_names_that_are_not_unicode_and_splits_with_dots(folder, form, tmp_path):
    (tmp_path / "set" / "real").mkdir(parents=True)
    shutil.copy(folder / NAMES[0], os.fsencode(tmp_path / "set" / "real") + b"/odd\xff.png")
    assert data.main(["pack", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--format", form]) == 0
    assert images.decode(read_images(tmp_path / "out").files()[0]).size == (500, 20)
    (tmp_path / "l.csv").write_text(f"path,label,split\n{folder / NAMES[0]},0,../x\n{folder / NAMES[1]},1,..\n")
    assert data.main(["pack", str(tmp_path / "l.csv"), "--out", str(tmp_path / "more"), "--format", form]) == 0
    assert len(read_images(tmp_path / "more")) == 2


@pytest.mark.parametrize("kind, column", [("parquet", "image"), ("tar", "name")])
def test_a_column_that_a_shard_calls_its_own_is_refused(folder, tmp_path, kind, column):
    (tmp_path / "l.csv").write_text(f"path,label,{column}\n{folder / NAMES[0]},0,a\n")
    with pytest.raises(UserError, match=f"column '{column}' is what a {kind} shard calls its own"):
        data.pack(data.opened(str(tmp_path / "l.csv")), tmp_path / "out", kind, 1 << 20)


def test_a_test_archive_beside_one_without_a_split_is_not_trained_on(folder, tmp_path):
    for name in ("train", "test", "extra"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for i, path in enumerate(NAMES[:6]):
                archive.write(folder / path, f"{('real', 'fake')[i % 2]}/{name}{i}.png")
    with pytest.raises(UserError, match="'test.zip#.*' is of a test split and 'extra.zip#.*' of none"):
        open_data(config.load(None, {"data_dir": str(tmp_path), "val_fraction": 0.2}), print)


# --- what is one source and what is another ------------------------------------------------------------------------
def test_archives_beside_images_are_left_out_and_counted(folder, tmp_path):
    shutil.copytree(folder / "val", tmp_path / "val")
    as_zip(folder, tmp_path)
    inputs = sources.Inputs(tmp_path)
    assert len(list(inputs)) == 10 and inputs.left.extensions[".zip"] == 1


def test_a_file_with_such_a_name_is_that_file(folder, tmp_path):
    as_zip(folder, tmp_path)
    name = f"set.zip#{NAMES[0].replace('/', '-')}"
    shutil.copy(folder / NAMES[1], tmp_path / name)
    assert images.decode(tmp_path / name).size[0] == 512
    assert archives.parted(tmp_path / name) is None and archives.parted(tmp_path / "gone.zip#x.png") is None


def test_classes_of_several_zips_are_told_by_their_folders(folder, tmp_path):
    """GenImage: a zip for each generator, with ai and nature inside."""
    for generator in ("ADM", "glide"):
        with zipfile.ZipFile(tmp_path / f"{generator}.zip", "w") as archive:
            for i, name in enumerate(NAMES[:6]):
                archive.write(folder / name, f"val/{('nature', 'ai')[i % 2]}/{i}.png")
    true = read_labels(tmp_path)
    assert true.labels.tolist() == [1, 1, 1, 0, 0, 0] * 2
    assert true.columns["generator"] == ["ADM"] * 6 + ["glide"] * 6


@pytest.mark.parametrize("rows", [range(40), range(17, 40), range(1, 40, 2)], ids=["all", "last half", "odd"])
def test_rows_that_are_read_forwards_are_not_kept(folder, tmp_path, monkeypatch, rows):
    """So that a long run's memory does not grow with every shard; a jump back still finds its row."""
    pq.write_table(table(folder, NAMES, pa.binary()), tmp_path / "x.parquet", row_group_size=11)
    monkeypatch.setattr("aidet.archives.parquet.BATCH", 3)
    archive = archives.open_archive(tmp_path / "x.parquet")
    for row in [*rows, *range(40)]:  # a second pass from the start keeps no more
        assert archive.read(str(row)) == (folder / NAMES[row]).read_bytes()
        assert len(archive._kept._batches) <= 4
    for row in (20, 2, 39, 5):
        assert archive.read(str(row)) == (folder / NAMES[row]).read_bytes()
    assert len(archive._kept._batches) > 4


def test_files_read_in_any_order_share_one_memory(folder, tmp_path, monkeypatch):
    """Many open shards of a training need no more than one; a closed one needs nothing."""
    monkeypatch.setattr("aidet.archives.parquet.BATCH", 3)
    monkeypatch.setattr("aidet.archives.parquet.KEPT", 200_000)
    opened = []
    for name in "abc":
        pq.write_table(table(folder, NAMES, pa.binary()), tmp_path / f"{name}.parquet", row_group_size=11)
        opened.append(archives.open_archive(tmp_path / f"{name}.parquet"))
    for row in np.random.default_rng(0).permutation(40).tolist():
        for archive in opened:
            assert archive.read(str(row)) == (folder / NAMES[row]).read_bytes()
    kept = opened[0]._kept
    assert all(archive._kept is kept for archive in opened) and 0 < kept._size <= 200_000
    for archive in opened:
        archive.close()
    assert kept._size == 0 and not kept._batches


def test_rows_are_read_in_any_order_and_within_bounds(folder, tmp_path, monkeypatch):
    """Of a row group what was read last is kept, up to a limit."""
    pq.write_table(table(folder, NAMES, pa.binary()), tmp_path / "x.parquet", row_group_size=11)
    monkeypatch.setattr("aidet.archives.parquet.BATCH", 3)
    monkeypatch.setattr("aidet.archives.parquet.KEPT", 200_000)
    archive = archives.open_archive(tmp_path / "x.parquet")
    assert archive.chunks == [11, 11, 11, 7]
    for row in np.random.default_rng(0).permutation(40).tolist():
        assert archive.read(str(row)) == (folder / NAMES[row]).read_bytes()
        assert archive._kept._size <= 200_000
    found = archived.chunks(read_images(tmp_path / "x.parquet"))
    assert found.tolist() == [0] * 11 + [1] * 11 + [2] * 11 + [3] * 7


# --- damage and bad input ------------------------------------------------------------------------------------------
def score(source, tmp_path, expected):
    code = infer.run(["--ckpt", "rule:size", "--images", str(source), "--out", str(tmp_path / "scored")])
    assert code == expected
    rows = list(csv.DictReader(open(tmp_path / "scored" / "scores.csv", newline="")))
    return [row for row in rows if row["status"] != "ok"], len(rows)


def test_a_damaged_shard_is_a_row_and_the_others_are_scored(folder, tmp_path):
    (tmp_path / "a").mkdir()
    as_parquet(folder, tmp_path / "a")
    as_tar(folder, tmp_path / "a")
    whole = (tmp_path / "a" / "set.tar").read_bytes()
    (tmp_path / "a" / "set.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "no.parquet").write_bytes(b"PAR1 nothing PAR1")
    bad, rows = score(tmp_path / "a", tmp_path, 3)
    by_file = {row["path"].partition("#")[0]: row["status"] for row in bad}
    assert sorted(by_file) == ["no.parquet", "set.tar"] and 40 + 10 < rows < 80
    assert "not a Parquet file" in by_file["no.parquet"]
    assert "damaged after" in by_file["set.tar"] or "cut off" in by_file["set.tar"]
    with pytest.raises(UserError, match=r"no\.parquet.*fetch it again"):
        read_labels(tmp_path / "a")


def test_a_tar_that_ends_between_two_members_is_cut_off(folder, tmp_path):
    as_tar(folder, tmp_path)
    with tarfile.open(tmp_path / "set.tar") as archive:
        third = archive.getmembers()[2].offset
    (tmp_path / "set.tar").write_bytes((tmp_path / "set.tar").read_bytes()[:third])
    bad, rows = score(tmp_path / "set.tar", tmp_path, 3)
    assert rows == 3 and bad[0]["path"] == "set.tar#" and "cut off after 2 members" in bad[0]["status"]


def test_damaged_members_are_rows_with_their_reason(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("aidet.archives.zips.MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / NAMES[0], "0.png")
        archive.write(folder / NAMES[0], "1.png", zipfile.ZIP_STORED)
        archive.writestr("2.png", bytes(3 << 20))
        archive.writestr("../../3.png", b"no image")
        archive.writestr("4.png", b"")
        archive.write(folder / NAMES[0], "5.png")
    raw = bytearray((tmp_path / "set.zip").read_bytes())
    place = raw.index((folder / NAMES[0]).read_bytes()) + 40
    raw[place] ^= 255
    entry = raw.index(b"PK\1\2")
    raw[entry + 8] |= 1  # the first entry of the directory: encrypted
    (tmp_path / "set.zip").write_bytes(raw)
    bad, rows = score(tmp_path / "set.zip", tmp_path, 3)
    reasons = {row["path"]: row["status"] for row in bad}
    assert (rows, len(bad)) == (6, 5)
    for name, reason in (
        ("0.png", "encrypted in the archive; unpack it first"), ("1.png", "damaged in the archive"),
        ("2.png", "unpacks to more than 1 MB"), ("../../3.png", "not an image"), ("4.png", "empty file"),
    ):  # fmt: skip
        assert reason in reasons[f"set.zip#{name}"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scored", "set.zip"], "nothing is unpacked"


def test_links_in_a_tar_are_no_images(folder, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "real.png", (folder / NAMES[0]).read_bytes())
        link = tarfile.TarInfo("secret.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert [key for key, _ in sources.Inputs(tmp_path / "x.tar")] == ["x.tar#real.png"]


def test_rows_without_bytes_name_files_beside_the_archive(folder, tmp_path):
    shutil.copy(folder / NAMES[1], tmp_path / "there.png")
    shutil.copytree(folder / "val", tmp_path / "set")
    cells = [{"bytes": None, "path": p} for p in ("val/real/30.png", "../there.png", "gone.png", None)]
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE)}), tmp_path / "set" / "x.parquet")
    shutil.move(tmp_path / "set" / "real", tmp_path / "set" / "val" / "real")
    bad, rows = score(tmp_path / "set" / "x.parquet", tmp_path, 3)
    assert rows == 4 and [row["path"][-1] for row in bad] == ["1", "2", "3"]
    for row, reason in zip(bad, ("lies outside its folder", "no file 'gone.png' beside it", "has no image")):
        assert reason in row["status"]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"text": ["a"], "label": [1]}, r"no column of images; it has text \(string\), label \(int64\); wanted"),
        ({"image": [b"x"], "label": ["maybe"]}, "neither 0/1 nor real/generated: x.parquet#0 .'maybe'"),
        ({"image": [b"x"], "caption": ["a cat"]}, "no folder name says real or generated for 1 of 1 images"),
    ],
)
def test_a_schema_that_does_not_fit_says_what_it_has(columns, reason, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=reason):
        read_labels(tmp_path / "x.parquet")


def test_a_set_saved_with_an_order_of_its_own_is_refused(folder, tmp_path):
    as_arrow(folder, tmp_path)
    (tmp_path / "train" / "state.json").write_text(json.dumps({"_indices_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(UserError, match="call flatten_indices"):
        list(sources.Inputs(tmp_path))


def test_damage_inside_a_row_group_costs_its_rows_only(folder, tmp_path):
    pq.write_table(table(folder, NAMES), tmp_path / "x.parquet", row_group_size=10, compression="NONE")
    first = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(1).column(0)
    raw = bytearray((tmp_path / "x.parquet").read_bytes())
    at = first.data_page_offset
    raw[at : at + 64] = struct.pack("64s", b"\xff" * 64)
    (tmp_path / "x.parquet").write_bytes(raw)
    bad, rows = score(tmp_path / "x.parquet", tmp_path, 3)
    assert rows == 40 and [row["path"] for row in bad] == [f"x.parquet#{i}" for i in range(10, 20)]
    assert all("damaged in row group 1" in row["status"] for row in bad)


# --- at an address -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def elsewhere(folder, tmp_path_factory):
    """Sets of files and of archives, with names that an address would have to quote."""
    place = tmp_path_factory.mktemp("else where")
    shutil.copytree(folder, place / "files")
    shutil.copy(folder / NAMES[0], place / "files" / "a%20b #1?.png")
    (place / "files" / "notes.txt").write_text("no image")
    for form in ("zip", "tar", "parquet"):
        (place / form).mkdir()
        FORMS[form](folder, place / form)
    whole = (place / "tar" / "set.tar").read_bytes()
    (place / "tar" / "set.tar").write_bytes(whole[: len(whole) // 2])
    (place / "zip" / "bad.zip").write_bytes(b"no zip" * 100)
    return place


@pytest.mark.parametrize("name", ["files", "zip", "tar", "parquet", "tar/set.tar", "files/train/fake/1.png"])
def test_an_address_gives_what_the_disk_gives(name, elsewhere, tmp_path):
    """file:// is read by pyarrow's file systems, as s3:// and gs:// are."""
    argv = ["--ckpt", "rule:size", "--images"]
    codes = [
        infer.run([*argv, where + str(elsewhere / name), "--out", str(tmp_path / out)])
        for where, out in (("", "disk"), ("file://", "address"))
    ]
    assert codes[0] == codes[1]
    for result in ("scores.csv", "result.txt"):
        assert (tmp_path / "address" / result).read_bytes() == (tmp_path / "disk" / result).read_bytes()


def test_an_address_that_cannot_be_read_says_so(elsewhere, tmp_path):
    with pytest.raises(UserError, match="gone' does not exist"):
        sources.Inputs(f"file://{elsewhere}/gone")
    with pytest.raises(UserError, match="tables and lists are read from disks only"):
        sources.Inputs(f"file://{elsewhere}/files/notes.txt")
    for path, reason in ((f"{elsewhere}/gone.png", "no such file"), (f"{elsewhere}/x.arrow#1", "from disks only")):
        with pytest.raises(images.ImageError, match=reason):
            images.decode(f"file://{path}")


def test_an_address_without_a_bucket_is_one_line(tmp_path):
    for address in ("s3://", "gs:///"):
        with pytest.raises(UserError, match=f"address '{address}' names no bucket; give {address[:5]}BUCKET/FOLDER"):
            sources.Inputs(address)


def test_commands_that_read_from_disks_say_so_of_an_address(tmp_path):
    """Path() makes one slash of two: the message must show the address as it was given."""
    for address in ("s3://bucket/set", "s3://bucket/a.parquet", "file:///sets/labels.csv"):
        text = f"{address!r}: addresses are read by infer.py only"
        for what in (read_images, read_labels, data.opened, lambda place: open_data(SimpleNamespace(data_dir=place))):
            with pytest.raises(UserError, match=re.escape(text)):
                what(address)


def test_the_split_of_a_folder_can_be_chosen_as_that_of_its_archive(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in NAMES:
            archive.write(folder / name, name)
    for place, front in ((folder, ""), (tmp_path / "set.zip", "set.zip#")):
        wanted = sorted(front + name for name in NAMES if name.startswith("val/"))
        assert sorted(read_labels(place, ["split=val"]).paths) == wanted
        for read in (read_images, data.opened):
            assert sorted(read(f"{place}@split=val").paths) == wanted


def test_a_part_of_a_folder_with_a_table_keeps_its_classes(tmp_path, photo):
    for i in range(4):
        photo(i).save(tmp_path / f"{i}.png")
    rows = "".join(f"{i}.png,{i % 2},{'train' if i < 2 else 'val'}\n" for i in range(4))
    (tmp_path / "labels.csv").write_text("path,label,split\n" + rows)
    part = data.opened(f"{tmp_path}@split=val")
    assert part.paths == ["2.png", "3.png"] and part.columns["label"] == ["real", "generated"]


def test_a_folder_of_shards_is_scored_on_the_screen_too(folder, tmp_path, capsys):
    (tmp_path / "shards").mkdir()
    with zipfile.ZipFile(tmp_path / "shards" / "a.zip", "w") as archive:
        for name in NAMES[:4]:
            archive.write(folder / name, name)
    assert infer.run(["--ckpt", "rule:size", str(tmp_path / "shards")]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = sorted(NAMES[:4])
    for line, name in zip(lines, names):
        decision, _, shown = line.split(None, 2)
        assert shown == f"{tmp_path}/shards/a.zip#{name}"
        assert decision == ("generated" if "fake" in name else "real")
    assert lines[4].startswith("4 images: ")


def test_an_address_in_a_table_is_a_name(tmp_path):
    """Only what the user names is fetched."""
    (tmp_path / "list.csv").write_text("path\nfile:///etc/passwd\n")
    ((_, path),) = sources.Inputs(tmp_path / "list.csv")
    assert path == str(tmp_path / "file:/etc/passwd")
