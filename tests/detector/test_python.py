"""The Python interface: what Detector.score takes, what a verdict gives, pickling."""

import json
import pickle

import numpy as np
import pytest
from infer_tools import make_model
from PIL import Image

from aidet import Detector


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "a.ckpt")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path_factory.mktemp("image") / "1.png")
    return next(tmp_path_factory.getbasetemp().glob("image*/1.png"))


def test_one_source_of_any_kind_gives_one_verdict(model, path):
    detector = Detector(model)
    expected = detector.score([path])[0].score
    with Image.open(path) as image, open(path, "rb") as file:
        as_array = np.asarray(image.convert("RGB"))
        sources = (path, str(path), path.read_bytes(), file, image, as_array)
        assert [detector.score(source).score for source in sources] == [expected] * len(sources)
    assert [v.score for v in detector.score(np.stack([as_array, as_array]))] == [expected] * 2
    assert detector.score(b"no image").status == "error: not an image that Pillow can read"
    for wrong, what in ((5, "a int"), ([path, None], "item 1, a NoneType")):
        with pytest.raises(TypeError, match=f"cannot score {what}; wanted a path, bytes"):
            detector.score(wrong)


def test_a_verdict_as_dict_and_many_as_frame(model, tmp_path, path):
    verdicts = Detector(model, make_model(tmp_path / "b.ckpt", seed=1)).score([path, b"no image"])
    good, bad = verdicts
    assert json.loads(json.dumps(good.to_dict()))["prob"] == good.probability == good.prob and 0 < good.prob < 1
    assert bad.to_dict()["label"] is None and bad.probability is None
    pandas = pytest.importorskip("pandas")  # comes with gradio, so not on Python 3.9
    frame = verdicts.to_frame()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 2
    assert list(frame.columns[:6]) == ["path", "score", "prob", "label", "decision", "status"]
    assert list(frame.columns[6:]) == [f"score_{name}" for name in good.scores] and len(good.scores) == 2
    assert frame.label[0] == good.label and pandas.isna(frame.label[1]) and pandas.isna(frame.score[1])


def test_a_detector_is_pickled_as_the_files_and_arguments_that_made_it(model, path):
    detector = Detector(model, votes=3, threshold=0.9, seed=7)
    again = pickle.loads(pickle.dumps(detector))
    assert (again.votes, again.threshold) == (3, 0.9)
    assert again.score(path) == detector.score(path)
