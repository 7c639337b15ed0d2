"""Untrusted images through infer.py: one row for each, in the right place, in bounded memory."""

import csv
import io
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))
import corpus
import tiny

import infer
from aidet import Detector, images
from aidet.datasets.sources import Inputs
from aidet.errors import UserError
from aidet.images import opening

ROOT = Path(__file__).resolve().parents[2]
MEGABYTES = 900  # peak of the whole process, of which the libraries take some 200


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.graph(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "in"
    return (folder, *corpus.write(folder))


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_every_file_in_its_place(model, made, tmp_path, capsys):
    folder, usable, bad, good = made
    assert infer.run(["--ckpt", str(model), "--images", str(folder), "--out", str(tmp_path), "--votes", "2"]) == 3
    capsys.readouterr()
    rows = table(tmp_path / "scores.csv")
    assert [r["path"] for r in rows] == [name for name, _ in Inputs(folder)] and len(rows) > 250
    lines = (tmp_path / "result.txt").read_bytes().decode().split("\n")
    assert lines[-1] == "" and len(lines) == len(rows) + 1
    by_name = dict(zip([r["path"] for r in rows], zip(rows, lines)))
    for name in bad:
        row, line = by_name[name]
        assert row["status"].startswith("error: ") and len(row["status"]) < 300 and line == "0", name
        assert row["score"] == row["prob"] == row["label"] == row["decision"] == "", name
    for name in [*usable, *good]:
        row, line = by_name[name]
        assert row["status"] == "ok" and line == row["label"], (name, row["status"])
    # Scored alone, the good ones between the bad have the same score: no row took its neighbour's.
    alone = Detector(model, votes=2).score([folder / n for n in good], root=folder)
    assert [by_name[n][0]["score"] for n in good] == [f"{r.score:.9g}" for r in alone]
    assert len({r.score for r in alone}) == len(good)


def test_every_format_is_read_or_refused_by_name():
    """Lossless formats return the original pixels."""
    for name, data in corpus.formats().items():
        try:
            image = images.decode(io.BytesIO(data))
        except images.ImageError as error:
            assert str(error) and not name.startswith(("png", "jpeg-", "bmp", "tiff-RGB", "gif", "webp")), (name, error)
            continue
        assert image.mode == "RGB" and image.size[0] >= 1, name
        if name in ("png-RGB", "bmp-RGB", "tiff-RGB", "ppm-RGB", "tga-RGB"):
            assert image.tobytes() == corpus.photo(1).tobytes(), name


def test_no_program_is_run_for_an_image(tmp_path, monkeypatch):
    """EPS is PostScript, which Pillow gives to Ghostscript."""
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: pytest.fail("ran a program"))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("ran a program"))
    (tmp_path / "a.jpg").write_bytes(corpus.hopeless()["program.jpg"])
    with pytest.raises(images.ImageError, match="Ghostscript"):
        images.decode(tmp_path / "a.jpg")


# Runs a script and writes down the most memory that this process took. A parent learns it wrongly: for wait4 a child
# begins with the size of the process that started it.
WATCHED = """
import atexit, runpy, sys
peak, sys.argv = sys.argv[1], sys.argv[2:]
def note():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    open(peak, "w").write(lines["VmHWM"].split()[0])
atexit.register(note)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_memory_is_bounded(model, made, tmp_path):
    """The whole corpus in a process of its own; what it took at most, from the system's own account."""
    argv = [tmp_path / "peak", ROOT / "infer.py", "--ckpt", model, "--images", made[0], "--out", tmp_path / "out"]
    command = [sys.executable, "-c", WATCHED, *map(str, argv), "--workers", "2"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, text=True, timeout=300)
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr[-2000:]
    kilobytes = int((tmp_path / "peak").read_text())
    assert kilobytes < MEGABYTES << 10, f"{kilobytes >> 10} MiB"


def test_decoding_in_threads_keeps_warnings_to_itself():
    """Where warnings are errors, one let out by a neighbour that ends would make a good image unusable."""
    inside, gates = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    class Slow(io.BytesIO):
        def __init__(self, number):
            super().__init__(corpus.encoded(corpus.photo(number), "PNG"))
            self.number = number

        def read(self, *size):
            inside[self.number].set()
            assert gates[self.number].wait(60)
            warnings.warn("as Pillow does of damaged EXIF")
            return super().read(*size)

    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        errors = list(warnings.filters)
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.submit(images.decode, Slow(0)), pool.submit(images.decode, Slow(1))
            assert all(event.wait(60) for event in inside)
            gates[0].set()
            assert first.result().mode == "RGB"
            gates[1].set()
            assert second.result().mode == "RGB"
        assert warnings.filters == errors, "left as they were"
    assert warnings.filters == before


def test_an_image_that_is_handed_over_is_never_given_back_itself():
    mine = corpus.photo(1)
    made = images.decode(mine)
    assert made is not mine and made.tobytes() == mine.tobytes()
    made.putpixel((0, 0), (1, 2, 3))
    assert made.tobytes() != mine.tobytes()


def test_turned_and_upright_files_decode_as_pillow_turns_them():
    for value in range(10):
        exif = Image.Exif()
        exif[0x0112] = value
        data = io.BytesIO(corpus.encoded(corpus.photo(3), "JPEG", exif=exif))
        with Image.open(io.BytesIO(data.getvalue())) as image:
            wanted = ImageOps.exif_transpose(image).convert("RGB")
        made = images.decode(data)
        assert (made.size, made.tobytes()) == (wanted.size, wanted.tobytes()), value


def test_a_folder_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    """Its images would otherwise be missing from the result without a word."""
    (tmp_path / "closed").mkdir()
    corpus.photo(1).save(tmp_path / "1.png")
    scandir = os.scandir

    def refused(where):
        if os.fspath(where).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(where))
        return scandir(where)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UserError, match="folder '.*closed' cannot be read .Permission denied."):
        Inputs(tmp_path).count()


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    """By a stand-in: root reads every file."""
    corpus.photo(1).save(tmp_path / "1.png")

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(opening, "pillow", refused)
    with pytest.raises(images.ImageError, match="^no permission to read it$"):
        images.decode(tmp_path / "1.png")
