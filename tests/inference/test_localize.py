"""infer.py --localize: map files of the picture's size, three columns, resume, shards; without the flag no change."""

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from infer_tools import make_model
from localize_tools import GRID, make_localizer, scene
from PIL import Image

import infer
from aidet import Localizer
from aidet.datasets.map_names import LONGEST, MapNames, map_name
from aidet.detector import default
from aidet.errors import UserError
from aidet.inference import journal, maps

BOX = (32, 16, 96, 80)
OUTPUTS = ("result.txt", "scores.csv")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "a.ckpt")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return make_localizer(tmp_path_factory.mktemp("localizer") / "l.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures in folders, two with one stem, one partly, one mostly red; a broken file and a small one."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "deep").mkdir()
    scene((200, 120), BOX).save(root / "1.png")
    scene((150, 101)).save(root / "2.jpg")
    scene((130, 100), (0, 0, 130, 80)).save(root / "2.png")
    scene((90, 70)).save(root / "deep" / "3.webp")
    (root / "4.jpg").write_bytes(b"no picture")
    scene((80, 12)).save(root / "5.bmp")
    return root


def call(*argv):
    return infer.run([str(a) for a in argv]) or 0


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def files_of(out):
    return {
        p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "run.json"
    }


@pytest.fixture(scope="module")
def reference(model, local, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference")
    flags = ["--ckpt", model, "--images", folder, "--out", out]
    assert call(*flags, "--localize", "--localizer", local) == 3
    return out


def test_maps_have_the_pictures_size_and_the_localizers_values(reference, local, folder):
    found = sorted(p.relative_to(reference).as_posix() for p in (reference / "maps").rglob("*") if p.is_file())
    assert found == [
        "maps/1.png", "maps/2.jpg.png", "maps/2.png.png", "maps/5.png", "maps/deep/3.png",
    ]  # fmt: skip
    names, own = MapNames(["1.png", "2.jpg", "2.png"]), Localizer(local)
    for name in ("1.png", "2.jpg", "2.png"):
        with Image.open(reference / "maps" / names(name)) as image, Image.open(folder / name) as picture:
            assert image.size == picture.size and image.mode == "I;16" and image.format == "PNG"
            values = np.asarray(image)
        assert (values == np.rint(own.localize(folder / name).map * 65535)).all()
    assert values[8, 65] > 60000 and values[-1, 65] < 5000


def test_columns_say_how_much_and_where(reference, capsys):
    rows = table(reference / "scores.csv")
    assert list(rows["1.png"])[-3:] == list(maps.COLUMNS)
    assert rows["1.png"]["where"] == " ".join(map(str, BOX))
    assert float(rows["1.png"]["area"]) == pytest.approx(64 * 64 / (200 * 120))
    assert float(rows["1.png"]["local_score"]) > float(rows["2.jpg"]["local_score"]) + 3
    assert (rows["2.jpg"]["where"], rows["2.jpg"]["area"]) == ("", "0")
    assert abs(int(rows["2.png"]["where"].split()[3]) - 80) <= GRID and float(rows["2.png"]["area"]) > 0.5
    assert rows["4.jpg"]["status"].startswith("error: ") and not any(rows["4.jpg"][name] for name in maps.COLUMNS)
    about = json.loads((reference / "run.json").read_text())["localizer"]
    assert about["threshold"] == 0.5 and len(about["sha256"]) == 64


def test_the_summary_counts_in_words(model, local, folder, tmp_path, capsys):
    call("--ckpt", model, "--images", folder, "--out", tmp_path / "o", "--localize", "--localizer", local)
    assert (
        "localized: 1 mostly or wholly generated, 1 partly generated, 2 without a generated region, "
        f"1 with too little evidence; maps in {tmp_path / 'o' / 'maps'}"
    ) in capsys.readouterr().out


@pytest.mark.parametrize("out", [".", "deep/out"])
def test_maps_are_not_written_among_the_pictures(model, local, folder, out):
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match="lies inside --images; the maps would be taken for pictures next time"):
        call("--ckpt", model, "--images", folder, "--out", folder / out, "--localize", "--localizer", local)
    assert sorted(folder.rglob("*")) == before


def test_without_the_flag_nothing_changes(model, folder, reference, tmp_path):
    assert call("--ckpt", model, "--images", folder, "--out", tmp_path / "o") == 3
    plain = table(tmp_path / "o" / "scores.csv")
    assert set(files_of(tmp_path / "o")) == set(OUTPUTS)
    assert "localizer" not in json.loads((tmp_path / "o" / "run.json").read_text())
    # With it, all other columns and the contest's file are the same to the byte.
    assert (tmp_path / "o" / "result.txt").read_bytes() == (reference / "result.txt").read_bytes()
    for path, row in table(reference / "scores.csv").items():
        assert {k: v for k, v in row.items() if k not in maps.COLUMNS} == plain[path]
    header = (tmp_path / "o" / "scores.csv").read_text().splitlines()[0]
    assert header == "path,score,prob,label,decision,status,score:a"


@pytest.mark.parametrize("stop", [0, 2, 5])
def test_a_killed_run_resumes_to_the_same_bytes(model, local, folder, reference, tmp_path, monkeypatch, stop):
    flags = ["--ckpt", model, "--images", folder, "--out", tmp_path, "--localize", "--localizer", local]
    real, done = journal.Journal.append, []

    def append(self, record):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(record)
        real(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "append", append)
        with pytest.raises(KeyboardInterrupt):
            call(*flags)
    assert not (tmp_path / "scores.csv").exists()
    with pytest.raises(UserError, match="was written with another localizer"):
        call(*flags[:-3], "--resume")
    assert call(*flags, "--resume") == 3
    assert files_of(tmp_path) == files_of(reference)


def test_shards_and_workers_give_the_same_bytes(model, local, folder, reference, tmp_path):
    flags = ["--ckpt", model, "--images", folder, "--out", tmp_path, "--localize", "--localizer", local]
    for shard in ("1/2", "2/2"):
        call(*flags, "--shard", shard, "--workers", 3)
    assert call("merge", tmp_path) == 3
    found = {name: data for name, data in files_of(tmp_path).items() if not name.endswith(".journal")}
    assert found == files_of(reference)


def test_members_of_an_archive_have_maps(model, local, folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("1.png", "deep/3.webp"):
            archive.write(folder / name, name)
    out = tmp_path / "o"
    assert call("--ckpt", model, "--images", tmp_path / "a.zip", "--out", out, "--localize", "--localizer", local) == 0
    assert sorted(files_of(out)) == ["maps/a.zip#1.png", "maps/a.zip#deep/3.png", *OUTPUTS]


def test_an_unusable_picture_keeps_no_map_of_an_earlier_run(model, local, tmp_path):
    root, out = tmp_path / "in", tmp_path / "o"
    root.mkdir()
    flags = ["--ckpt", model, "--images", root, "--out", out, "--localize", "--localizer", local]
    for name in ("a.png", "b.png"):
        scene((70, 70)).save(root / name)
    assert call(*flags) == 0 and (out / "maps" / "a.png").is_file()
    (root / "a.png").write_bytes(b"")
    assert call(*flags) == 3 and sorted(files_of(out / "maps")) == ["b.png"]


def test_a_file_that_only_the_localizer_cannot_read_has_a_note(model, local, tmp_path, monkeypatch):
    scene((70, 70)).save(tmp_path / "a.png")
    monkeypatch.setattr(Localizer, "_maps", lambda self, batch: np.full((len(batch), 4, 4), np.nan, np.float32))
    out = tmp_path / "o"
    flags = ["--ckpt", model, "--images", tmp_path / "a.png", "--out", out]
    assert call(*flags, "--localize", "--localizer", local) == 0
    row = table(out / "scores.csv")["a.png"]
    assert row["note"] == "no map: the localizer gives values that are not finite" and row["area"] == ""
    assert row["status"] == "ok" and not (out / "maps").exists()


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--localizer", "x.ckpt"], "--localizer 'x.ckpt' goes with --localize"),
        (
            ["--localize", "--engine", "ray"],
            "--localize does not run with --engine ray; divide the images with --shard",
        ),
        (["--localize"], "default localizer, .*gone.ckpt, does not exist here; name one with --localizer"),
    ],
)
def test_wrong_arguments_are_one_line(model, folder, tmp_path, monkeypatch, flags, text):
    monkeypatch.setattr(default, "LOCALIZER", Path("gone.ckpt"))
    with pytest.raises(UserError, match=text):
        call("--ckpt", model, "--images", folder, "--out", tmp_path / "o", *flags)
    assert not (tmp_path / "o").exists()


def test_maps_need_a_folder(model, folder, local):
    with pytest.raises(UserError, match="--localize writes maps; add --out DIR"):
        call("--ckpt", model, folder / "1.png", "--localize", "--localizer", local)


# --- names -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path, name",
    [
        ("a/b.jpg", "a/b.png"),
        ("a.b.JPEG", "a.b.png"),
        ("noext", "noext.png"),
        ("v1.5", "v1.5.png"),
        ("data.parquet#12", "data.parquet#12.png"),
        ("../x/a.png", "_/x/a.png"),
        ("/abs/a.png", "abs/a.png"),
        ("C:/x/a.png", "x/a.png"),
        ("./a//b.png", "a/b.png"),
        ("line\nbreak.png", "line_break.png"),
        ("图片.jpg", "图片.png"),
        ("", "image.png"),
    ],
)
def test_names_of_maps(path, name):
    assert map_name(path) == name


def test_no_two_rows_share_a_map():
    long = "x" * 260
    paths = [
        "a.jpg", "a.png", "a.jpg.png", "b", "b.jpg", "../c.jpg", "_/c.jpg", "d.jpg", "d.png/e.jpg", f"{long}1.jpg",
        f"{long}2.jpg", "f.jpg",
    ]  # fmt: skip
    names = MapNames(paths)
    found = [names(path) for path in paths]
    assert len(set(found)) == len(paths) and found[-1] == "f.png"
    folders = {str(parent) for name in found for parent in Path(name).parents}
    assert not folders & set(found)  # a file that is in the way of a folder
    assert all(len(part.encode()) <= LONGEST + 5 for name in found for part in Path(name).parts)
    assert [MapNames(paths[::-1])(path) for path in paths] == found
