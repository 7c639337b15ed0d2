"""Sample submissions as contests hand them out: what is written, and which image an identifier means."""

import csv

import pytest

import infer
from aidet.datasets import read_labels
from aidet.errors import UserError
from aidet.evaluation.evaluation import Evaluation
from aidet.evaluation.scores import join, read_scores
from aidet.inference import results, submission
from aidet.records import Record

NAMES = ["rocket", "chelsea", "coffee"]
MADE = [
    Record("set/rocket.png", 2.0, 0.880797078, 1, "generated"),
    Record("set/chelsea.png", -1.0, 0.268941421, 0, "real"),
    Record("set/coffee.png", status="error: no such file"),
]
PROB, REALS, SCORE, LABEL = (
    ["0.880797078", "0.268941421", "0.5"], ["0.119202922", "0.731058579", "0.5"], ["2", "-1", "0"], ["1", "0", "0"],
)  # fmt: skip


def sample(root, header, cells, names=NAMES, separator=","):
    lines = [separator.join(header)] + [separator.join((name, *cells)) for name in names]
    (root / "sample.csv").write_text("\n".join(lines) + "\n")
    return root / "sample.csv"


def written(root, path, answer="auto", separator=","):
    submission.write_submission(root / "out.csv", lambda: iter(MADE), path, answer)
    with open(root / "out.csv", newline="") as file:
        header, *rows = csv.reader(file, delimiter=separator)
    return header, [list(column) for column in zip(*rows)]


@pytest.mark.parametrize(
    "header, cells, wanted",
    [
        (("id", "label"), ("0",), [LABEL]),
        (("id", "label"), ("1",), [LABEL]),
        (("filename", "label"), ("0.5",), [PROB]),
        (("filename", "label"), ("0.0",), [PROB]),
        (("filename", "probability"), ("0",), [PROB]),
        (("filename", "prob_fake"), ("0",), [PROB]),
        (("filename", "prob_real"), ("1",), [REALS]),
        (("id", "prob_fake", "prob_real"), ("0.5", "0.5"), [PROB, REALS]),
        (("id", "real", "fake"), ("0", "1"), [REALS, PROB]),
        (("id", "score"), ("0",), [PROB]),
        (("id", "score"), ("-3.5",), [SCORE]),
        (("id", "logit"), ("0",), [SCORE]),
        (("id", "is_real"), ("0",), [["0", "1", "1"]]),
        (("id", "label"), ("real",), [["fake", "real", "real"]]),
        (("id", "label"), ("FAKE",), [["FAKE", "REAL", "REAL"]]),
        (("id", "label"), ("hum",), [["ai", "hum", "hum"]]),
        (("id", "is_fake"), ("False",), [["True", "False", "False"]]),
        (("id", "label"), ("",), [LABEL]),
    ],
)
def test_the_sample_says_what_is_wanted(tmp_path, header, cells, wanted):
    found, columns = written(tmp_path, sample(tmp_path, header, cells))
    assert tuple(found) == header and columns == [NAMES, *wanted]


@pytest.mark.parametrize("answer, wanted", [("label", LABEL), ("probability", PROB), ("score", SCORE)])
def test_the_option_decides(tmp_path, answer, wanted):
    for cell in ("0", "0.5"):
        assert written(tmp_path, sample(tmp_path, ("id", "label"), (cell,)), answer)[1][1] == wanted


def test_the_sample_keeps_its_separator_and_its_other_columns(tmp_path):
    path = sample(tmp_path, ("usage", "id", "label"), ("x",), separator=";")
    path.write_text("usage;id;label\n" + "".join(f"public;{name};0\n" for name in NAMES))
    assert written(tmp_path, path, separator=";") == (["usage", "id", "label"], [["public"] * 3, NAMES, LABEL])


@pytest.mark.parametrize(
    "header, cells, said",
    [
        (("id", "label"), ("0.5",), "'label' holds the probability of generated; --answer label|score"),
        (("id", "label"), ("0",), "'label' holds labels (1 is generated, 0 is not); --answer probability|score"),
        (("id", "prob_real"), ("0",), "'prob_real' holds the probability of real"),
        (("id", "logit"), ("0",), "'logit' holds the score (above 0 is generated)"),
    ],
)
def test_it_is_said_what_is_written(tmp_path, header, cells, said):
    assert said in submission.read_sample(sample(tmp_path, header, cells)).says()


@pytest.mark.parametrize(
    "change",
    [
        lambda n: f"test_data_v2/{n}.png", lambda n: f"test_data_v2/set/{n}", lambda n: f"set\\{n}.png",
        lambda n: f"{n}.jpg", lambda n: f"D:/contest/set/{n}.JPEG", lambda n: f"./{n}.png",
    ],
)  # fmt: skip
def test_identifiers_of_other_folders_and_extensions(tmp_path, change):
    path = sample(tmp_path, ("id", "label"), ("0",), [change(name) for name in NAMES])
    assert written(tmp_path, path)[1][1] == LABEL


@pytest.mark.parametrize(
    "names, images, said",
    [
        (["a/1", "b/1"], ["1.png", "2.png"], "two identifiers fit one image: a/1 and b/1|fits no image"),
        (["1.jpg"], ["1.png", "1.webp"], "'1.jpg' fits 2 images"),
        (["x.png"], ["1.png"], "'x.png' fits no image; give as --images the folder"),
        (["1.png"], ["1.png", "2.png"], "1 of 2 images are not in it"),
    ],
)
def test_identifiers_that_do_not_fit(names, images, said):
    with pytest.raises(UserError, match=said):
        submission.match_sample(names, images, "s")


def test_members_of_an_archive_are_named_without_it():
    rows = ["set.zip#rocket.png", "set.zip#deep/coffee.png"]
    for names in (["rocket", "coffee"], ["rocket.png", "deep/coffee.jpg"], rows):
        assert list(submission.match_sample(names, rows, "s.csv").values()) == rows
    with pytest.raises(UserError, match="'1' fits no image"):  # the number of a row is no name
        submission.match_sample(["1"], ["train.parquet#1"], "s.csv")


def test_folders_of_the_sample_tell_equal_names_apart():
    images = ["real/1.png", "fake/1.png"]
    assert submission.match_sample(["x/fake/1.png", "x/real/1.png"], images, "s")["x/fake/1.png"] == "fake/1.png"


def test_columns_that_say_nothing_are_refused(tmp_path):
    path = sample(tmp_path, ("id", "one", "two"), ("0", "0"))
    with pytest.raises(UserError, match="has 3 columns .id, one, two.; expected an identifier and one answer"):
        submission.read_sample(path)


# --- what a run says of unusable images -------------------------------------------------------------------------------
@pytest.fixture
def pictures(tmp_path, photo):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(2):
        photo(i, (500 + 12 * i, 40)).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"")
    (folder / "3.png").write_bytes(b"")
    (folder / "4.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize(
    "options, fate",
    [
        ([], "3 unusable images ARE WRITTEN AS real (0) in result.txt"),
        (["--on-error", "generated"], "3 unusable images ARE WRITTEN AS generated (1) in result.txt"),
        (["--on-error", "skip"], "3 unusable images ARE LEFT OUT, so later lines move up in result.txt"),
        (["--format", "logit"], "3 unusable images ARE WRITTEN AS 0 (undecided) in logits.csv"),
        (["--format", "csv"], "3 unusable images have no label in scores.csv"),
        (
            ["--format", "submission", "--answer", "probability"],
            "3 unusable images ARE WRITTEN AS 0.5 in submission.csv",
        ),
        (["--format", "submission"], "3 unusable images ARE WRITTEN AS 0 in submission.csv"),
    ],
)
def test_the_fate_of_unusable_images_ends_the_run(pictures, tmp_path, capsys, options, fate):
    if "submission" in options:
        options = [*options, "--sample-submission", sample(tmp_path, ("id", "label"), ("0",), map(str, range(5)))]
    out = ["--ckpt", "rule:size", "--images", pictures, "--out", tmp_path / "out", *options]
    assert infer.run([str(word) for word in out]) == 3
    *_, reasons, warning = capsys.readouterr().err.strip().split("\n")
    assert reasons == "could not be used, by reason: 2 empty file; 1 not an image that Pillow can read"
    assert warning == f"WARNING: {fate}; --on-error real|generated|skip decides otherwise"


def test_the_answer_goes_with_a_submission(pictures, tmp_path):
    words = ["--ckpt", "rule:size", "--images", str(pictures), "--out", str(tmp_path / "o"), "--answer", "score"]
    with pytest.raises(UserError, match="--answer 'score' goes with --format submission, not with 'result'"):
        infer.run(words)
    with pytest.raises(UserError, match="unknown answer 'logits'"):
        submission.read_sample(sample(tmp_path, ("id", "label"), ("0",)), "logits")


def test_the_check_reads_scores_of_any_dialect(tmp_path):
    results.write(tmp_path, lambda: iter(MADE[:2]), [])
    text = (tmp_path / "scores.csv").read_text()
    (tmp_path / "scores.csv").write_text(text.replace(",", ";"), encoding="utf-16")
    assert "labels and order agree with scores.csv" in results.check(tmp_path / "result.txt")


@pytest.mark.parametrize(
    "header, cell, ranked",
    [(("id", "label"), "0.5", True), (("id", "prob_real"), "0", True), (("id", "label"), "0", False),
     (("id", "is_real"), "0", False), (("id", "label"), "fake", False)],
)  # fmt: skip
def test_what_was_handed_in_can_be_measured(tmp_path, header, cell, ranked):
    made = [Record(f"set/{i}.png", s, 1 / (1 + 2.718281828**-s), int(s > 0)) for i, s in enumerate((-2, -1, 0.5, 3))]
    path = sample(tmp_path, header, (cell,), map(str, range(4)))
    submission.write_submission(tmp_path / "out.csv", lambda: iter(made), path)
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"set/{i}.png,{int(i > 1)}\n" for i in range(4)))
    true, given = join(read_labels(tmp_path / "labels.csv"), read_scores(tmp_path / "out.csv"))
    found = Evaluation(true, given)
    assert found.label.tolist() == true.labels.tolist() == [0, 0, 1, 1] and found.ranked is ranked
