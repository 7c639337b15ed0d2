"""Tables as people have them, read alike by every command: columns, separators, encodings, paths of other machines."""

import json
import unicodedata

import pytest
from PIL import Image

from aidet import align, config, dialect, records
from aidet.datasets import sources, truth
from aidet.datasets.samples import open_data
from aidet.errors import UserError

FILES = ["train_data/astronaut.png", "train_data/chelsea.png", "train_data/größe.png", "train_data/真实.png"]
LABELS = [0, 1, 0, 1]


def rows(header, separator=",", path=str, label=str):
    lines = [f"{path(p)}{separator}{label(y)}" for p, y in zip(FILES, LABELS)]
    return "\n".join([header, *lines]) + "\n"


def windows(path):
    return "D:\\sets\\" + path.replace("/", "\\")


def bare(path):
    return path.split("/")[-1]


def stem(path):
    return bare(path).split(".")[0]


def composed(path):
    return unicodedata.normalize("NFC", path)


def json_lines(path=str, **names):
    return "".join(json.dumps({"file_name": path(p), "label": y}, ensure_ascii=False) + "\n"
                   for p, y in zip(FILES, LABELS))  # fmt: skip


PLAIN = rows("path,label")
# name of the file -> its text, and its encoding
TABLES = {
    "kaggle.csv": (",file_name,label\n" + "".join(f"{i},{p},{y}\n" for i, (p, y) in enumerate(zip(FILES, LABELS)))),
    "image_id.csv": rows("Image ID,Label"),
    "capitals.csv": rows("FILENAME,LABEL"),
    "id.csv": rows("id,label", path=stem),
    "id_and_folder.csv": rows("id,label", path=lambda p: p.split(".")[0]),
    "backslash.csv": rows("path,label", path=lambda p: p.replace("/", "\\")),
    "drive.csv": rows("path,label", path=windows),
    "absolute.csv": rows("path,label", path=lambda p: "/home/someone/sets/" + p),
    "drive_and_no_folder.csv": rows("path,label", path=lambda p: "D:\\pictures\\" + bare(p)),
    "extra_folder.csv": rows("path,label", path=lambda p: "contest/" + p),
    "missing_folder.csv": rows("path,label", path=bare),
    "semicolon.csv": rows("path;label", ";"),
    "tab.tsv": rows("path\tlabel", "\t"),
    "tab.csv": rows("path\tlabel", "\t"),
    "tab.txt": rows("path\tlabel", "\t"),
    "pipe.csv": rows("path|label", "|"),
    "sep.csv": "sep=;\n" + rows("path;label", ";"),
    "mark.csv": (PLAIN, "utf-8-sig"),
    "utf16.csv": (PLAIN, "utf-16"),
    "utf16_tab.txt": (rows("path\tlabel", "\t"), "utf-16"),
    "utf16_no_mark.csv": (PLAIN, "utf-16-le"),
    "gbk.csv": (PLAIN.replace("größe.png", "gr%C3%B6.png"), "gbk"),
    "crlf.csv": PLAIN.replace("\n", "\r\n"),
    "blank_rows.csv": "\n" + PLAIN + ",\n\n , \n",
    "decomposed.csv": rows("path,label", path=composed),
    "is_fake.csv": rows("path,is_fake", label=lambda y: str(bool(y))),
    "is_real.csv": rows("path,is_real", label=lambda y: str(1 - y)),
    "fake_yes.csv": rows("path,AI generated", label=lambda y: ("no", "yes")[y]),
    "y.csv": rows("path,y"),
    "words.csv": rows("image,class", label=lambda y: ("hum", "ai")[y]),
    "two_columns.csv": rows("path,class,is_fake", label=lambda y: f"airplane,{y}"),
    "no_header.csv": rows("", path=str).lstrip("\n"),
    "no_header.txt": rows("", " ").lstrip("\n"),
    "lines.jsonl": json_lines(),
    "windows.jsonl": json_lines(windows),
    "list.json": "[" + ",".join(json_lines().splitlines()) + "]",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images, one with a decomposed name, and all tables."""
    root = tmp_path_factory.mktemp("tables")
    (root / "train_data").mkdir()
    for i, name in enumerate(FILES):
        Image.new("RGB", (8 + i, 8)).save(root / unicodedata.normalize("NFD", name))
    Image.new("RGB", (10, 8)).save(root / "train_data" / "gr%C3%B6.png")
    for name, text in TABLES.items():
        text, encoding = text if isinstance(text, tuple) else (text, "utf-8")
        (root / name).write_bytes(text.encode(encoding))
    return root


def by_infer(path):
    return [file for _, file in sources.Inputs(path)], None


def by_evaluate(path):
    read = truth.read_labels(path)
    return read.files(), read.labels.tolist()


def by_leaks(path):
    return sources.read_images(path).files(), None


def by_train(path):
    train, _, classes = open_data(config.load(None, {"data_dir": str(path), "val_split": ""}))
    assert classes == ["real", "generated"]
    return train.files(), train.targets.tolist()


def by_align(path):
    return [file for _, file in align.originals(path)], "real"


@pytest.mark.parametrize("reader", [by_infer, by_evaluate, by_leaks, by_train, by_align])
@pytest.mark.parametrize("name", TABLES)
def test_every_command_reads_every_table(folder, name, reader):
    files, labels = reader(folder / name)
    wanted = [8, 9, 10, 11] if labels != "real" else [8, 10]
    assert [Image.open(file).size[0] for file in files] == wanted
    assert labels in (None, "real", LABELS)


def test_the_row_keeps_the_name_that_the_table_gives(folder):
    """``IN.csv OUT.csv`` answers with the identifiers of the question."""
    assert [key for key, _ in sources.Inputs(folder / "drive.csv")][0] == "D:/sets/train_data/astronaut.png"
    assert [key for key, _ in sources.Inputs(folder / "id.csv")] == [stem(p) for p in FILES]


def test_scores_are_read_in_every_dialect(tmp_path):
    text = "path,score,prob,label,decision,status\na.png,1.5,0.817574476,1,generated,ok\n"
    (tmp_path / "plain.csv").write_text(text)
    wanted = records.read_scores(tmp_path / "plain.csv")
    for separator, encoding in ((";", "utf-8-sig"), ("\t", "utf-16")):
        (tmp_path / "other.csv").write_text(text.replace(",", separator), encoding=encoding)
        assert records.read_scores(tmp_path / "other.csv") == wanted


def test_a_list_with_several_columns_of_numbers(tmp_path):
    """path, 2 classes, 3 classes, 16 classes: the images are found, but nobody knows which number is the label."""
    place = table(tmp_path, "a/0.png 1 1 15\nb/0.png 0 0 16\n", "a/0.png", "b/0.png", name="list.txt")
    assert [key for key, _ in sources.Inputs(place)] == sources.read_images(place).paths == ["a/0.png", "b/0.png"]
    with pytest.raises(UserError, match="no label column; it has path, column 2, column 3, column 4"):
        truth.read_labels(place)


# --- what is not guessed ----------------------------------------------------------------------------------------------
def table(root, text, *files, name="labels.csv"):
    for i, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + i, 8)).save(root / file)
    (root / name).write_text(text)
    return root / name


@pytest.mark.parametrize(
    "path, there",
    [(path, there) for path in ("real/0.png", "D:/sets/real/0.png", "train/0.png")
     for there in (["fake/0.png"], ["fake/0.png", "test/0.png"], ["a/0.png", "b/0.png"])]
    + [("0.png", ["fake/0.png"]), ("0.png", ["a/0.png", "b/0.png"])],
)  # fmt: skip
def test_another_folder_is_not_taken_for_a_missing_one(tmp_path, there, path):
    """The reals were not unpacked: their names must not lead to the fakes, nor those of one split to another."""
    read = truth.read_labels(table(tmp_path, f"path,label\n{path},0\n", *there))
    assert not read.files()[0].is_file()


def test_a_folder_is_taken_off_all_rows_or_none(tmp_path):
    """Rows of two folders are not thrown together."""
    text = "path,label\nset/real/0.png,0\nset/fake/0.png,1\n"
    read = truth.read_labels(table(tmp_path, text, "real/0.png", "fake/0.png"))
    assert [f.relative_to(tmp_path).as_posix() for f in read.files()] == ["real/0.png", "fake/0.png"]


def test_of_two_folders_the_one_named_like_the_table_is_taken(tmp_path):
    place = table(tmp_path, "id,label\n1,0\n2,1\n", "test/1.jpg", "test/2.jpg", "train/1.jpg", "train/2.jpg",
                  name="train_labels.csv")  # fmt: skip
    assert [f.parent.name for f in truth.read_labels(place).files()] == ["train", "train"]


def test_columns_that_contradict_each_other_are_refused(tmp_path):
    place = table(tmp_path, "path,label,is_real\na.png,1,1\nb.png,0,0\n")
    with pytest.raises(UserError, match="'label' and 'is_real' say different classes .row 1: 1 and 1, row 2"):
        truth.read_labels(place)


def test_true_in_a_column_that_names_no_side_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither 0/1 nor real/generated: a.png .'True'"):
        truth.read_labels(table(tmp_path, "path,label\na.png,True\n"))


@pytest.mark.parametrize(
    "data, said",
    [
        (b"PK\x03\x04 workbook", "Excel workbook"),
        (b"PAR1", "Parquet"),
        (b"path,label\na\x81.png,1\n", "cannot be read as UTF-8, UTF-16, GB18030 or Windows-1252.*save it as UTF-8"),
        ("path,label\n圖片/貓咪一.png,0\n圖片/狗狗二.png,1\n".encode("big5"), "save it as UTF-8"),
        ("path,label\n写真/猫.png,0\n".encode("cp932"), "save it as UTF-8"),
        (b"path,label\na.png\n", "line 2: 1 fields, the header has 2"),
        (b"colour,label\na,1\n", "has no path column; it has colour, label; wanted one of path,"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path, data, said):
    (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises(UserError, match=said):
        truth.read_labels(tmp_path / "x.csv")


@pytest.mark.parametrize("text, said", [("[1]", "is no JSON object"), ("{", "cannot be read as JSON"), ("", "no rows")])
def test_broken_json_lines(tmp_path, text, said):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match=said):
        truth.read_labels(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    "text, encoding",
    [
        ("path,label\n猫/图片1.png,假\n", "gb18030"),
        ("path\na – b, c’s.png\n", "cp1252"),
        ("path\nfotos/übergröße.png\ncafé.png\nseñor Ñandú.png\n", "cp1252"),
        ("path\nplain.png\n", "utf-8-sig"),
    ],
)
def test_the_encoding_is_told_by_the_content(tmp_path, text, encoding):
    (tmp_path / "x.csv").write_text(text, encoding=encoding.replace("-sig", ""))
    assert dialect.encoding_of(tmp_path / "x.csv") == encoding


def test_names_written_in_the_code_page_of_the_list(tmp_path):
    """``ls > list.txt`` on a disk whose names are Windows-1252: the bytes of the list are those of the name."""
    name = b"caf\xe9.png"
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    try:
        (tmp_path / "x.png").rename(tmp_path / name.decode("utf-8", "surrogateescape"))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    (tmp_path / "list.txt").write_bytes(name + b"\n")
    ((key, file),) = sources.Inputs(tmp_path / "list.txt")
    assert key == "café.png" and Image.open(file).size == (8, 8)


def test_captions_of_an_image_folder_are_not_taken_for_labels(tmp_path):
    """metadata.csv with file_name and text beside class folders."""
    for split in ("train", "val"):
        table(tmp_path / split, "file_name,text\nreal/0.png,a cat\n", "real/0.png", "fake/0.png", name="metadata.csv")
    train, val, classes = open_data(config.load(None, {"data_dir": str(tmp_path)}), lambda text: None)
    assert classes == ["real", "generated"] and len(train) == len(val) == 2


def test_all_spellings_of_a_split_are_one_split(tmp_path, photo):
    words = ("train", "training", "Train", "val", "validation", "valid")
    lines = ["path,label,split"]
    for i, word in enumerate(words * 2):
        photo(i).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{i // len(words)},{word}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    train, val, _ = open_data(config.load(None, {"data_dir": str(tmp_path)}), print)
    assert (len(train), len(val)) == (6, 6)


def test_beside_a_table_without_splits_no_test_image_is_trained_on(tmp_path, photo):
    for folder, split in (("a", ",split"), ("b", "")):
        (tmp_path / folder).mkdir()
        lines = [f"path,label{split}"]
        for i in range(6):
            photo(i + 10 * (folder == "b")).save(tmp_path / folder / f"{i}.png")
            lines.append(f"{i}.png,{i % 2}" + (",test" if i > 3 else ",train") * bool(split))
        (tmp_path / folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    said = []
    train, _, _ = open_data(config.load(None, {"data_dir": str(tmp_path), "val_fraction": 0.2}), said.append)
    assert not {"a/4.png", "a/5.png"} & set(train.paths) and any("2 test images are left out" in line for line in said)


def test_rows_without_a_split_are_counted(tmp_path, photo):
    lines = ["path,label,split"]
    for i in range(6):
        photo(i).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{i % 2},{'train' if i < 4 else ''}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    said = []
    train, _, _ = open_data(config.load(None, {"data_dir": str(tmp_path), "val_while_train": False}), said.append)
    assert len(train) == 4 and any(line.startswith("note: 2 of 6 images name no split") for line in said)


def test_masks_of_a_table_in_a_subfolder_are_found(tmp_path, photo):
    """They are named from the table's own folder, as the pictures are."""
    for name in ("a", "b"):
        table(tmp_path / name, "path,label,mask\n0.png,1,m/0.png\n1.png,0,\n", "0.png", "1.png", name="metadata.csv")
    train, _, _ = open_data(config.load(None, {"data_dir": str(tmp_path), "val_while_train": False}), print)
    assert train.columns["mask"] == ["a/m/0.png", "", "b/m/0.png", ""]
    assert truth.read_labels(tmp_path).columns["mask"] == train.columns["mask"]


def test_a_metadata_table_in_every_split(tmp_path):
    """The image folder of Hugging Face: train/metadata.jsonl and test/metadata.jsonl with classes."""
    for split in ("train", "test"):
        text = "".join(json.dumps({"file_name": f"{i}.png", "label": i % 2}) + "\n" for i in range(4))
        table(tmp_path / split, text, *(f"{i}.png" for i in range(4)), name="metadata.jsonl")
    train, val, classes = open_data(config.load(None, {"data_dir": str(tmp_path), "val_split": "test"}), print)
    assert classes == ["real", "generated"]
    assert train.paths == [f"train/{i}.png" for i in range(4)] and val.paths == [f"test/{i}.png" for i in range(4)]
    assert len(set(train.generators)) == 2  # the classes, not the splits
