"""``evaluate.py`` where something went wrong before it: scores the wrong way round, images that could not be used."""

import json

import numpy as np
import pytest
from PIL import Image

import evaluate
from aidet.errors import UserError

RNG = np.random.default_rng(0)


def score(folder, rows, labels, *more):
    (folder / "s.csv").write_text(
        "path,score,status\n" + "".join(f"{i}.png,{s},{w}\n" for i, (s, w) in enumerate(rows))
    )
    (folder / "l.csv").write_text("path,label\n" + "".join(f"{i}.png,{y}\n" for i, y in enumerate(labels)))
    given = ["--scores", folder / "s.csv", "--labels", folder / "l.csv", "--out", folder / "o", "--bootstrap", 0, *more]
    return evaluate.main(["score", *map(str, given), "--thumbnails", "0"])


@pytest.mark.parametrize("count, told", [(12, True), (9, False)])
def test_inverted_scores_are_said_on_the_screen_and_in_the_report(tmp_path, capsys, count, told):
    labels = [0, 1] * count
    assert score(tmp_path, [(3 - 6 * y, "ok") for y in labels], labels) == 0
    assert ("far below chance" in capsys.readouterr().out) == told
    page = (tmp_path / "o/report.html").read_text(encoding="utf-8")
    assert "the scores may be inverted" in page and ("1 - AUC would be 1.000" in page) == told
    assert json.loads((tmp_path / "o/metrics.json").read_text())["auc"] == 0


def test_an_auc_by_chance_is_no_reason(tmp_path, capsys):
    labels = [0, 1] * 30
    score(tmp_path, [(RNG.normal(), "ok") for _ in labels], labels)
    assert "below chance" not in capsys.readouterr().out


def test_none_scored_and_one_class_left_end_with_no_report(tmp_path):
    labels = [0, 1] * 12
    with pytest.raises(UserError, match="none of its 24 images could be scored|no row has a score"):
        score(tmp_path, [("", "error: empty file")] * 24, labels)
    with pytest.raises(UserError, match="both classes are needed; the others could not be scored$"):
        score(tmp_path, [("", "error: x") if y else (1.0, "ok") for y in labels], labels, "--one-class")
    assert not (tmp_path / "o").exists()


def test_leaks_of_a_split_that_cannot_be_read(tmp_path):
    for split in ("a", "b"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "1.png").write_bytes(b"no image")
    Image.fromarray(RNG.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "a" / "2.png")
    given = ["--train", tmp_path / "a", "--valid", tmp_path / "b", "--out", tmp_path / "o", "--workers", "1"]
    with pytest.raises(UserError, match="valid: none of its 1 images can be read, first 1.png: not an image"):
        evaluate.main(["leaks", *map(str, given)])
    assert not (tmp_path / "o").exists()
