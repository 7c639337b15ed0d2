"""Result files from rows, and the check before the upload."""

import csv

import pytest

from aidet import records
from aidet.datasets import sources
from aidet.errors import UserError
from aidet.inference import journal, results, submission
from aidet.records import Record


def rows_of(*paths, labels=None):
    made = [
        Record(
            p, 1.0 if one else -1.0, 0.73 if one else 0.27, int(one), "generated" if one else "real", "ok", {"m": 1.0}
        )
        for p, one in zip(paths, labels or [i % 2 for i in range(len(paths))])
    ]
    return lambda: iter(made)


@pytest.mark.parametrize(
    "paths, order",
    [
        (["1.jpg", "2.jpg", "10.jpg"], [0, 1, 2]),
        (["10.jpg", "2.jpg", "1.png"], [2, 1, 0]),
        (["b/1.jpg", "a/2.jpg", "a/10.jpg"], [0, 1, 2]),  # the stem counts, not the folder
        (["img10.jpg", "img9.jpg", "3.jpg"], [2, 1, 0]),  # not all are numbers: natural order
        (["a b/1.jpg", "a/1x.jpg"], None),
    ],
)
def test_result_order(tmp_path, paths, order):
    from aidet.records import stem_order

    labels = [1, 0, 0][: len(paths)]
    path = results.write_result(tmp_path / "result.txt", rows_of(*paths, labels=labels))
    order = stem_order(paths) if order is None else order
    assert path.read_bytes() == b"".join(b"%d\n" % labels[i] for i in order)


def test_skip_leaves_only_good_rows(tmp_path):
    made = [
        Record("1.jpg", 1.0, 0.7, 1, "generated"),
        Record("2.jpg", status="error: empty file"),
        Record("3.jpg", label=0),
    ]
    for skip, text in ((False, "1\n0\n0\n"), (True, "1\n0\n")):
        assert results.write_result(tmp_path / "r.txt", lambda: iter(made), skip).read_text() == text
    results.write_logits(tmp_path / "l.csv", lambda: iter(made))
    assert (tmp_path / "l.csv").read_text() == "filename,logit\n1.jpg,1\n2.jpg,0\n3.jpg,-1\n"


def test_sample_matching():
    paths = ["a/1.jpg", "b/1.jpg", "b/2.jpg", "3.png"]
    assert submission.match_sample(["a/1", "b/1.jpg", "2", "3.png"], paths, "s")["2"] == "b/2.jpg"
    for sample, text in ((["1"], "'1' fits 2 images"), (["9"], "fits no image"), (["2", "2"], "appears twice")):
        with pytest.raises(UserError, match=text):
            submission.match_sample(sample, paths, "s")


@pytest.mark.parametrize(
    "data, text",
    [
        (b"0\n1\n2\n", "line 3: '2' is neither 0 nor 1"),
        (b"0\n\n1\n", "line 2: '' is neither"),
        (b"0\r\n1\r\n", "line 1 has a Windows line end"),
        (b"\xef\xbb\xbf0\n", "byte-order mark"),
        (b"0\nTrue\n", "'True' is neither"),
        (b"0 \n", "'0 ' is neither"),
        (b"", "is empty"),
        (b"0\n1\n", "has 2 lines, --count wants 3"),
    ],
)
def test_check_finds_what_the_server_would_refuse(tmp_path, data, text):
    path = tmp_path / "result.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=text):
        results.check(path, count=3 if data == b"0\n1\n" else None)


def test_check_of_a_good_file_and_of_a_shifted_one(tmp_path, photo, monkeypatch):
    (tmp_path / "in").mkdir()
    for i in (1, 2, 10):
        photo(i).save(tmp_path / "in" / f"{i}.jpg")
    rows = rows_of("1.jpg", "2.jpg", "10.jpg", labels=[1, 0, 0])
    results.write(tmp_path, rows, ["m"])
    listed, names = [], sources.Inputs._names
    monkeypatch.setattr(sources.Inputs, "_names", lambda own: listed.append(own) or names(own))
    said = results.check(tmp_path / "result.txt", tmp_path / "in", 3)
    assert len(listed) == 1, "a large set takes minutes to list"
    assert said == ["3 lines: 2 real (0), 1 generated (1)", "labels and order agree with scores.csv"]
    (tmp_path / "in" / "10.jpg").rename(tmp_path / "in" / "3.jpg")
    said = results.check(tmp_path / "result.txt", tmp_path / "in", 3)
    assert said[-1] == "warning: scores.csv is for other images than --images: 3.jpg is not in it"
    (tmp_path / "in" / "3.jpg").rename(tmp_path / "in" / "10.jpg")
    (tmp_path / "result.txt").write_text("0\n0\n1\n")  # text order instead of numeric order
    with pytest.raises(UserError, match="line 1 says 0, scores.csv says 1 for '1.jpg'"):
        results.check(tmp_path / "result.txt")
    photo(4).save(tmp_path / "in" / "4.jpg")
    with pytest.raises(UserError, match="has 3 lines, the images are 4"):
        results.check(tmp_path / "result.txt", tmp_path / "in")
    (tmp_path / "my result.txt").write_text("0\n")
    with pytest.raises(UserError, match="has no space"):
        results.check(tmp_path / "my result.txt")


def test_check_of_a_file_that_leaves_unusable_images_out(tmp_path):
    made = [
        Record("1.jpg", 1.0, 0.7, 1, "generated"),
        Record("2.jpg", status="error: empty"),
        Record("3.jpg", -1.0, 0.3, 0),
    ]
    results.write(tmp_path, lambda: iter(made), [], on_error="skip")
    said = results.check(tmp_path / "result.txt")
    assert "labels and order agree with scores.csv" in said
    assert said[-1] == "warning: 1 images could not be used and are left out, the first is 2.jpg: error: empty"
    (tmp_path / "result.txt").write_text("0\n1\n")
    with pytest.raises(UserError, match="line 1 says 0, scores.csv says 1 for '1.jpg'"):
        results.check(tmp_path / "result.txt")


@pytest.mark.parametrize("text, expected", [("0/4", (0, 4)), ("1/4", (1, 4)), ("4/4", (0, 4)), ("1/1", (0, 1))])
def test_shards_count_from_zero_or_one(text, expected):
    assert journal.shard_of(text) == expected


@pytest.mark.parametrize("text", ["5/4", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_wrong_shards(text):
    with pytest.raises(UserError, match="must be I/N"):
        journal.shard_of(text)


def test_lists(tmp_path, photo):
    photo(1).save(tmp_path / "a b.jpg")
    (tmp_path / "l.txt").write_text("a b.jpg\n\nmissing.jpg\n")
    assert [k for k, _ in sources.Inputs(tmp_path / "l.txt")] == ["a b.jpg", "missing.jpg"]
    (tmp_path / "l.csv").write_text("\ufeffid,image_path\n1,a b.jpg\n", encoding="utf-8")
    assert list(sources.Inputs(tmp_path / "l.csv")) == [("a b.jpg", str(tmp_path / "a b.jpg"))]
    assert [k for k, _ in sources.Inputs(tmp_path / "a b.jpg")] == ["a b.jpg"]
    for text, message in (
        ("number,x\n1,2\n", "none of the columns"),
        ("path\n", "no image"),
        ("n,path\n1\n", "line 2: no value"),
    ):
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            sources.Inputs(tmp_path / "l.csv").count()
    (tmp_path / "l.csv").write_bytes(b"path\n\xff\xfe\n")
    with pytest.raises(UserError, match="UTF-8"):
        sources.Inputs(tmp_path / "l.csv").count()


def test_any_character_of_a_name_stays_in_its_field(tmp_path):
    """A bare carriage return ends a row for csv.reader, and before Python 3.13 csv.writer leaves it bare."""
    names = ["a\rb.png", "a\nb.png", 'a"b,c.png', "\r", " a ", "a\r\nb"]
    rows = rows_of(*names)
    results.write(tmp_path, rows, ["m"], "logit")
    for name in ("scores.csv", "logits.csv"):
        with open(tmp_path / name, encoding="utf-8", newline="") as file:
            assert [r[0] for r in csv.reader(file, strict=True)][1:] == names, name
    assert [r.path for r in records.read_scores(tmp_path / "scores.csv")] == names
    assert (tmp_path / "scores.csv").read_bytes().startswith(b"path,score,prob,label,decision,status,score:m\n")


def test_a_broken_list_is_one_line_wherever_it_is_read(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"a.png\n\xff\n")
    (tmp_path / "l.csv").write_text('path\na.png\n"b.png\n')
    for name in ("l.txt", "l.csv"):
        with pytest.raises(UserError, match="cannot be read"):
            list(sources.Inputs(tmp_path / name))


def test_the_survey_tells_other_names_and_another_order(tmp_path):
    seen = set()
    for text in ("a\nb\n", "b\na\n", "ab\n", "a\n", "a\nb\nb\n"):
        (tmp_path / "l.txt").write_text(text)
        number, digest = sources.Inputs(tmp_path / "l.txt").survey()
        assert number == len(text.split()) and digest not in seen
        seen.add(digest)


# --- the journal -----------------------------------------------------------------------------------------------------
HEADER = {"votes": 1, "zone": (0.4, 0.6), "total": 3, "names": "abc"}


def test_two_processes_do_not_write_one_journal(tmp_path):
    path = tmp_path / "x.journal"
    first = journal.Journal(path, HEADER)
    first.append(Record("1.png", 1.0, 0.7, 1, "generated"))
    first.flush()
    whole = path.read_bytes()
    for resume in (False, True):
        with pytest.raises(UserError, match="another process is writing .*x.journal"):
            journal.Journal(path, HEADER, resume)
        assert path.read_bytes() == whole
    first.close()
    again = journal.Journal(path, HEADER, resume=True)
    assert again.done == 1
    again.close()
    assert path.read_bytes() == whole


def test_a_journal_of_other_images_is_not_continued(tmp_path):
    path = tmp_path / "x.journal"
    journal.Journal(path, HEADER).close()
    whole = path.read_bytes()
    for change, text in (
        ({"names": "abd"}, "written for other images or another order"),
        ({"total": 4}, "3 then, 4 now"),
        ({"zone": (0.4, 0.7)}, "another zone"),
    ):
        with pytest.raises(UserError, match=text):
            journal.Journal(path, {**HEADER, **change}, resume=True)
        assert path.read_bytes() == whole
    journal.Journal(path, HEADER, resume=True).close()
