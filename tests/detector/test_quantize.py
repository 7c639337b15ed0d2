"""The eight-bit option: how images and labels are matched (the quantisation itself: test_export.py)."""

import pytest

from aidet.detector import int8
from aidet.errors import UserError


def test_labels_are_matched_by_path_then_by_a_name_that_is_distinct(tmp_path):
    (tmp_path / "l.csv").write_text("path,label\ntrain/1.jpg,0\ntest/1.jpg,1\ntest/2.jpg,1\n")
    known = int8._labels(tmp_path / "l.csv")
    assert [int8._label_of(p, known) for p in ("train/1.jpg", "test/1.jpg", "2.jpg", "a/2.jpg")] == [0, 1, 1, 1]
    with pytest.raises(UserError, match="no label for '1.jpg'"):
        int8._label_of("1.jpg", known)
    assert int8._labels(None) is None


def test_what_cannot_be_compared_is_one_line():
    before, after = {"a": 1.0, "b": -1.0, "c": None}, {"a": 0.5, "b": 0.5, "c": None}
    found = int8._compared(before, after, {"a": 1, "b": 0})
    assert found == {
        "images": 2, "score_change": 1.0, "decisions_changed": 0.5, "balanced_accuracy": 1.0,
        "balanced_accuracy_int8": 0.5,
    }  # fmt: skip
    line = int8._compared(before, after, {"a": 1, "b": 0}, threshold=0.7)  # .73 and .27 before, .62 twice after
    assert (line["decisions_changed"], line["balanced_accuracy"], line["balanced_accuracy_int8"]) == (0.5, 1.0, 0.5)
    with pytest.raises(UserError, match="none of the 1 images"):
        int8._compared({"c": None}, {"c": None})
    with pytest.raises(UserError, match="the 2 images to compare on are all of one class"):
        int8._compared(before, after, {"a": 1, "b": 1})
