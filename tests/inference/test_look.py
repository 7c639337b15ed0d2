"""infer.py photo.jpg ...: the answer on the screen, from every kind of place, and no files."""

import csv
import http.server
import io
import json
import threading
import zipfile

import numpy as np
import pytest
from infer_tools import make_model
from PIL import Image

import infer
from aidet import Detector
from aidet.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "a.ckpt")


@pytest.fixture
def files(tmp_path, photo, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for i in range(3):
        photo(i).save(tmp_path / "in" / f"{i}.png")
    return tmp_path


def look(*argv):
    return infer.run([str(a) for a in argv])


def test_a_line_for_each_image_in_the_order_given(model, files, capsys):
    (files / "bad.png").write_bytes(b"no image")
    assert look("--ckpt", model, "in/2.png", "in", "bad.png") == 3
    lines = capsys.readouterr().out.splitlines()
    names = ["in/2.png", "in/0.png", "in/1.png", "in/2.png"]
    expected = Detector(model).score(names)
    assert [line.split() for line in lines[:4]] == [[v.decision, f"{v.prob:.3f}", v.path] for v in expected]
    assert lines[4].split(None, 2) == ["unusable", "-", "bad.png: not an image that Pillow can read"]
    assert lines[5].startswith("5 images: ") and lines[5].endswith(", 1 could not be used") and len(lines) == 6
    assert sorted(p.name for p in files.iterdir()) == ["bad.png", "in"], "no result files"


def test_what_a_folder_holds_besides_and_how_a_file_was_read_is_said(model, files, capsys):
    (files / "in" / "notes.odt").write_text("no image")
    (files / "in" / "@eaDir").mkdir()
    grey = np.full((40, 40), 1000, np.int32)
    Image.fromarray(grey).save(files / "in" / "deep.tif")
    assert look("--ckpt", model, "in") == 0
    out, err = capsys.readouterr()
    assert "4 images: " in out and "1 file is left out" in err and "1 .odt" in err and "1 @eaDir" in err
    noted = [line for line in out.splitlines() if "deep.tif" in line]
    assert len(noted) == 1 and noted[0].endswith(")") and "deep.tif (" in noted[0]


def test_many_images_end_with_the_most_suspicious(model, files, photo, capsys):
    for i in range(3, 25):
        photo(i).save(files / "in" / f"{i}.png")
    assert look("--ckpt", model, "in") == 0
    out = capsys.readouterr().out
    listed = [line.split() for line in out.split("most likely generated, of 25:\n")[1].splitlines()[:10]]
    ranked = sorted(Detector(model).score([f"in/{i}.png" for i in range(25)]), key=lambda v: -v.prob)
    assert listed == [[f"{v.prob:.3f}", v.path] for v in ranked[:10]]


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_forms_for_programs(model, files, capsys, form):
    (files / "bad.png").touch()
    assert look("--ckpt", model, "--format", form, "in/0.png", "bad.png") == 3
    out = capsys.readouterr().out
    rows = {
        "json": lambda: json.loads(out),
        "jsonl": lambda: [json.loads(line) for line in out.splitlines()],
        "csv": lambda: list(csv.DictReader(io.StringIO(out))),
    }[form]()
    good = Detector(model).score("in/0.png")
    assert [r["path"] for r in rows] == ["in/0.png", "bad.png"]
    assert float(rows[0]["prob"]) == pytest.approx(good.prob, rel=1e-8) and int(rows[0]["label"]) == good.label
    assert rows[1]["status"] == "error: empty file" and rows[1]["prob"] in (None, "")
    if form != "csv":  # of the views the probabilities, as in the HTTP interface
        assert rows[0]["views"] == good.views and "view_scores" not in rows[0]
        ((name, (first, *_)),) = good.views.items()
        assert first == pytest.approx(1 / (1 + np.exp(-good.view_scores[name][0])), rel=1e-12)


def test_an_archive_is_read_in_place(model, files, capsys):
    with zipfile.ZipFile(files / "a.zip", "w") as archive:
        for name in ("b/10.png", "b/9.png", "__MACOSX/b/._9.png", "notes.txt"):
            archive.write(files / "in" / "0.png", name)
        archive.writestr("../../escape.png", b"no image")
    assert look("--ckpt", model, "--format", "jsonl", "a.zip") == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["path"] for r in rows] == ["a.zip#../../escape.png", "a.zip#b/9.png", "a.zip#b/10.png"]
    assert [r["status"] == "ok" for r in rows] == [False, True, True]
    assert sorted(p.name for p in files.iterdir()) == ["a.zip", "in"], "nothing is unpacked"


def test_what_is_no_archive_or_too_large_says_so(model, files, monkeypatch, capsys):
    (files / "no.zip").write_bytes(b"PK no")
    with zipfile.ZipFile(files / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", bytes(3 << 20))
    monkeypatch.setattr("aidet.archives.zips.MAX_BYTES", 1 << 20)
    assert look("--ckpt", model, "no.zip", "bomb.zip", "clip.MP4", "in/7*.png", "gone.png") == 2
    lines = capsys.readouterr().out.splitlines()
    for line, reason in zip(
        lines, ("not a zip archive", "unpacks to more than 1 MB", "a video; take its frames out first",
                "the pattern fits no file", "no such file")
    ):  # fmt: skip
        assert line.startswith("unusable ") and reason in line


def test_a_list_that_cannot_be_read_costs_its_row_only(model, files, capsys):
    (files / "empty.csv").touch()
    (files / "other.csv").write_text("colour\nred\n")
    assert look("--ckpt", model, "in/0.png", "empty.csv", "other.csv", "in/1.png") == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] == "unusable" for line in lines[:4]] == [False, True, True, False]
    assert "empty.csv: list 'empty.csv' is empty" in lines[1] and "has none of the columns path" in lines[2]
    assert lines[4].endswith("2 could not be used")


def test_no_image_at_all_names_the_place(model, files):
    (files / "none").mkdir()
    with pytest.raises(UserError, match="no image in 'none'; name an image"):
        look("--ckpt", model, "none")


class Site(http.server.SimpleHTTPRequestHandler):
    """The current folder, and redirections."""

    def do_GET(self):
        """Answer ``/to?ADDRESS`` with a redirection to it."""
        if not self.path.startswith("/to?"):
            return super().do_GET()
        self.send_response(302)
        self.send_header("Location", self.path[len("/to?") :])
        return self.end_headers()

    def log_message(self, *args):
        """Print nothing."""


def test_addresses_are_fetched_with_limits(model, files, capsys, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    try:
        names = [f"{here}/in/0.png", f"{here}/to?/in/1.png", f"{here}/none.png", f"{here}/to?file://{files}/in/0.png"]
        assert look("--ckpt", model, "--format", "jsonl", *names) == 3
    finally:
        server.shutdown()
        server.server_close()
    good, moved, missing, local = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    expected = Detector(model).score(["in/0.png", "in/1.png"])
    assert [good["score"], moved["score"]] == [v.score for v in expected]
    assert missing["status"].startswith("error: the address answers 404")
    assert local["status"].startswith("error: the address "), "an address never opens a local file"


def test_the_standard_input(model, files, capsys, monkeypatch):
    data = (files / "in" / "1.png").read_bytes()
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": io.BytesIO(data)}))
    assert look("--ckpt", model, "--format", "jsonl", "-") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["path"] == "-" and row["score"] == Detector(model).score(data).score


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("in --format result", "--format result is a result file; add --out DIR"),
        ("in --out o --format json", "--format json is for the screen; leave out --out o"),
        ("in in --out o", "'in': result files need one folder, table or list; name it with --images"),
        ("in --images in", "got 'in' and --images 'in'; name the images in one way"),
        ("in --resume", "--resume continues or divides result files; add --out DIR"),
        ("in --format jso", "did you mean 'json'"),
    ],
)
def test_wrong_combinations(model, files, line, message):
    with pytest.raises(UserError) as error:
        look("--ckpt", model, *line.split())
    assert message in str(error.value)


@pytest.mark.parametrize("flags", [["--stability"], ["--answer", "label"], ["--sample-submission", "s.csv"]])
def test_an_option_that_the_screen_has_no_use_for_is_refused(model, files, flags):
    with pytest.raises(UserError, match="add --out DIR"):
        look("--ckpt", model, "in/0.png", *flags)
