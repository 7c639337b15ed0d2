"""``infer.py`` on folders as people have them: notes, options of reading, files left out, nothing usable."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))
import tiny

import infer
from aidet import Detector, cli
from aidet.errors import UserError

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 256, (40, 48, 3), np.uint8))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.graph(tmp_path_factory.mktemp("model"))


def run(model, folder, *more):
    out = folder.parent / "out"
    code = infer.run(["--ckpt", str(model), "--images", str(folder), "--out", str(out), *more])
    with open(out / "scores.csv", encoding="utf-8", newline="") as file:
        return code, list(csv.DictReader(file))


def test_notes_are_a_last_column_only_where_there_are_any(model, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    PHOTO.save(folder / "a.jpg")
    assert "note" not in run(model, folder)[1][0]
    (folder / "b.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-2])
    code, rows = run(model, folder)
    assert code == 3 and "--truncated score" in rows[1]["status"] and "note" not in rows[0]
    code, rows = run(model, folder, "--truncated", "score")
    assert code == 0 and list(rows[0])[-1] == "note" and rows[0]["note"] == ""
    assert rows[1]["status"] == "ok" and rows[1]["note"].startswith("truncated file: scored")
    assert "note: b.jpg: truncated file: scored" in capsys.readouterr().err
    # The same options in Python, and the same score.
    (record,) = Detector(model, truncated="score").score([folder / "b.jpg"], root=folder)
    assert record.note == rows[1]["note"] and f"{record.score:.9g}" == rows[1]["score"]


def test_files_left_out_and_the_limit_of_pixels(model, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "@eaDir").mkdir(parents=True)
    for name in ("a.png", "noext.png"):
        PHOTO.save(folder / name)
    (folder / "noext.png").rename(folder / "noext")
    (folder / "b.xyz").write_text("no image")
    code, rows = run(model, folder)
    assert code == 0 and [r["path"] for r in rows] == ["a.png", "noext"]
    said = capsys.readouterr().err
    assert "1 file is left out, no image by name or content: 1 .xyz" in said and "skipped 1 @eaDir" in said
    with pytest.raises(UserError, match="none of the 2 images could be used"):
        run(model, folder, "--max-pixels", "1000")
    assert "48x40 pixels, more than the limit of 1000; --max-pixels 1M" in capsys.readouterr().err
    with pytest.raises(UserError, match="'many' must be a number of pixels"):
        run(model, folder, "--max-pixels", "many")
    assert [cli.pixels(t) for t in ("200M", "1.5m", "5000")] == [200_000_000, 1_500_000, 5000]


@pytest.mark.parametrize("on_error", ["fail", "real", "skip"])
def test_none_usable_gives_no_verdicts(model, tmp_path, capsys, on_error):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(b"no image")
    argv = ["--ckpt", str(model), "--images", str(folder), "--out", str(tmp_path / "out"), "--on-error", on_error]
    with pytest.raises(SystemExit) as ended:
        cli.main(infer.run, argv)
    assert ended.value.code == 2 and list((tmp_path / "out").iterdir()) == []
    said = capsys.readouterr().err
    assert (
        "a.jpg: not an image" in said
        and "error: none of the 2 images could be used, so nothing is written; by reason: " in said
    )
    # Two shards without one: merge says it, too.
    for i in (0, 1):
        assert infer.run([*argv, "--shard", f"{i}/2"]) == 3
    with pytest.raises(UserError, match="none of the 2"):
        infer.run(["merge", str(tmp_path / "out")])
