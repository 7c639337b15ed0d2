"""The eight-bit option: how images and labels are matched (the quantisation itself: test_export.py)."""

import pytest

from aidet import quantize
from aidet.errors import UserError


def test_labels_are_matched_by_path_then_by_a_name_that_is_distinct(tmp_path):
    (tmp_path / "l.csv").write_text("path,label\ntrain/1.jpg,0\ntest/1.jpg,1\ntest/2.jpg,1\n")
    known = quantize._labels(tmp_path / "l.csv")
    assert [quantize._label_of(p, known) for p in ("train/1.jpg", "test/1.jpg", "2.jpg", "a/2.jpg")] == [0, 1, 1, 1]
    with pytest.raises(UserError, match="say nothing of '1.jpg'"):
        quantize._label_of("1.jpg", known)
    assert quantize._labels(None) is None
