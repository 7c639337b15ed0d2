"""``evaluate.py``: numbers and sentences of a report that must be those of the rows they speak of."""

import json

import numpy as np
import pytest
from sklearn.metrics import log_loss

import evaluate
from aidet.errors import UserError


def score(folder, header, rows, labels, *more, columns="path,label"):
    """``score`` of rows without their names against labels; gives (metrics.json, report.html)."""
    lines = [",".join(map(str, (f"{i}.png", *row))) for i, row in enumerate(rows)]
    (folder / "s.csv").write_text(f"path,{header}\n" + "\n".join(lines))
    (folder / "l.csv").write_text(f"{columns}\n" + "\n".join(f"{i}.png,{y}" for i, y in enumerate(labels)))
    given = ["--scores", folder / "s.csv", "--labels", folder / "l.csv", "--out", folder / "o", *more]
    evaluate.main(["score", "--thumbnails", "0", "--bootstrap", "20", *map(str, given)])
    page = (folder / "o/report.html").read_text(encoding="utf-8")
    return json.loads((folder / "o/metrics.json").read_text()), page


def test_a_rounded_probability_beside_a_score_is_no_certainty(tmp_path):
    """Score 8 is written as 1.000 by a file of three digits, and 25 as 1 by one of nine."""
    y = np.arange(20) % 2
    for wrong, digits in ((8.0, 3), (25.0, 9)):
        logit = np.where(y == 1, 2.0, -2.0)
        logit[2] = wrong
        exact = 1 / (1 + np.exp(-logit))
        found, _ = score(tmp_path, "score,prob", [(s, f"{p:.{digits}g}") for s, p in zip(logit, exact)], y)
        assert found["nll"] == pytest.approx(log_loss(y, exact))


def test_a_result_without_errors_has_no_interval_in_words(tmp_path):
    _, page = score(tmp_path, "score", [(3 if i % 2 else -3,) for i in range(40)], [i % 2 for i in range(40)])
    assert "right 100% of the time if both are equally frequent. " in page and "95% confidence" not in page
    assert "rule of three" in page  # what it means is said by the warning


def test_the_weakest_group_is_told_by_its_decisions(tmp_path):
    """Of twelve images of X two could not be scored; half of the other ten are found."""
    labels = [f"1,{'X' if i < 12 else 'Y'}" if i < 24 else "0,camera" for i in range(48)]
    rows = [("", "error: x") if i < 2 else (-1 if i < 12 and i % 2 or i >= 24 else 1, "ok") for i in range(48)]
    found, page = score(tmp_path, "score,status", rows, labels, columns="path,label,generator")
    assert "Of the 10 generated images with generator X, it found only 50%" in page
    assert found["by"]["generator"]["X"]["n"] == 12 and found["by"]["generator"]["X"]["decided"] == 10


def test_a_number_in_a_row_that_failed_counts_nowhere(tmp_path):
    rows = [(9 if i % 2 == 0 else -9, "error: half a file") if i < 8 else (2 * (i % 2) - 1, "ok") for i in range(40)]
    found, _ = score(tmp_path, "score,status", rows, [i % 2 for i in range(40)])
    assert found["auc"] == 1.0 and found["accuracy"] == 1.0 and found["n"] == 32
    assert found["errors"]["left_out"] == 8 and found["errors"]["counted_by_their_label"] == 0


def test_an_empty_cell_has_a_name(tmp_path):
    """Half of the twelve photographs whose camera nobody knows are called generated."""
    labels = [f"0,{'' if i < 12 else 'phone'}" if i < 30 else "1,sdxl" for i in range(60)]
    rows = [(1 if i < 6 or i >= 30 else -1,) for i in range(60)]
    _, page = score(tmp_path, "score", rows, labels, columns="path,label,generator")
    assert "Of the 12 real images without generator, it called 50% generated" in page
    assert "minimum 0.5000 (not said)" in page and "<td>not said</td>" in page


def test_scores_of_one_class_in_a_set_of_two_are_not_called_a_set_of_one(tmp_path):
    rows = [("", 1, "error: x") if i % 2 else (-2, 0, "ok") for i in range(20)]
    found, page = score(tmp_path, "score,label,status", rows, [i % 2 for i in range(20)])
    assert found["auc"] is None and found["confusion"] == [[10, 0], [0, 10]]
    assert "All images with a score are of one class, so there is no AUC" in page


@pytest.fixture
def vip(tmp_path):
    """Runs ``score --vip`` of two files with twelve images each; gives metrics.json."""
    rows = [(f"{k}{i}.png", i % 2, 1.0 if i in (1, 3) else 3 * (i % 2) - 1.5) for k in "ab" for i in range(12)]
    (tmp_path / "l.csv").write_text("path,label\n" + "".join(f"{name},{y}\n" for name, y, _ in rows))

    def run(*more, keep=lambda name, y: True):
        for k in "ab":
            own = [f"{name},{logit}\n" for name, y, logit in rows if name[0] == k and keep(name, y)]
            (tmp_path / f"{k}.csv").write_text("filename,logit\n" + "".join(own))
        given = ["--vip", tmp_path / "a.csv", tmp_path / "b.csv", "--labels", tmp_path / "l.csv", *more]
        evaluate.main(["score", "--bootstrap", "0", "--out", str(tmp_path / "o"), *map(str, given)])
        return json.loads((tmp_path / "o/metrics.json").read_text())

    return run


def test_vip_states_the_threshold_that_it_used(vip):
    """Two of six generated images of each file have a logit of 1, a probability of .73."""
    assert vip()["threshold"] == 0.5 and vip()["confusion"] == [[12, 0], [0, 12]]
    found = vip("--threshold", 0.8)
    assert found["threshold"] == 0.8 and found["threshold_source"] == "--threshold"
    assert found["confusion"] == [[12, 0], [4, 8]] and found["contest"]["vip"] == pytest.approx((1 + 4 / 6) / 2)


def test_vip_of_a_file_of_one_class_gives_no_advice_that_it_refuses(vip):
    with pytest.raises(UserError, match="b.csv: all its images are real; both classes are needed$"):
        vip(keep=lambda name, y: name[0] == "a" or y == 0)
