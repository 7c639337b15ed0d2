"""The parts of a detector: the interface of every model, early exit without a network, where messages go."""

import ast
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from infer_tools import make_model

from aidet import Detector
from aidet.detector import backends, detector, rules
from aidet.detector.cascade import Cascade
from aidet.detector.network import Network
from aidet.detector.scorer import Scorer
from aidet.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = make_model(tmp_path_factory.mktemp("detector") / "a.ckpt", calibration={"scale": 0.5, "offset": 0.25})
    Detector(path)  # makes its graph
    return path


# --- devices ---------------------------------------------------------------------------------------------------------
def test_an_unknown_device_is_refused(model):
    with pytest.raises(UserError, match="unknown device 'cuda'; choose from: Ascend, CPU, GPU, auto"):
        Detector(model, device="cuda")


@pytest.mark.parametrize("options", [{"backend": "onnxruntime"}, {"backend": "openvino"}, {"precision": "bfloat16"}])
@pytest.mark.parametrize("device", ["Ascend", "GPU"])
def test_what_runs_on_the_cpu_only_is_refused_with_another_device(model, options, device):
    with pytest.raises(UserError, match=f"device '{device}' runs a .ckpt on MindSpore, .*leave out --device"):
        Detector(model, device=device, **options)
    with pytest.raises(UserError, match="an .onnx file"):
        backends.open_model(SimpleNamespace(path=Path("a.onnx")), device=device)


def test_without_onnx_runtime_and_mindspore_the_extra_is_named(model, monkeypatch):
    monkeypatch.setattr("aidet.runtime.version_of", lambda package: None)
    with pytest.raises(
        UserError, match=r"a.ckpt cannot be run: .*pip install 'aidet\[onnx\]'.*, and neither is MindSpore"
    ):
        Detector(model)


# --- models ----------------------------------------------------------------------------------------------------------
def test_every_model_offers_the_same(model, photo):
    network, rule = Detector(model, "rule:size:40", votes=2).models
    assert isinstance(network, Network) and isinstance(rule, rules.SizeRule)
    assert issubclass(rules.Reconstruction, Scorer)
    for one, count in ((network, 2), (rule, 1)):
        assert isinstance(one, Scorer)
        versions = one.prepare(photo(1, (40, 50)), "a", stability=True)
        assert [len(v) for v in versions] == [count] * 7 and len(one.prepare(photo(1, (40, 50)), "a")) == 1
        scores = one.run(sum(versions, []))
        assert scores.shape == (7 * count,) and np.isfinite(scores).all()
        assert one.weigh(versions[0]) is None
        assert one.uncalibrate(one.calibrate(scores)) == pytest.approx(scores)
    assert (rule.path, rule.views, rule.order) == (None, None, None)
    assert (network.path, network.views.count, network.order) == (Path(model), 2, ["real", "generated"])
    assert network.calibrate(1.0) == 0.375 and rule.calibrate(1.0) == 1.0


def test_a_common_value_or_all_of_them():
    assert detector.common_value([3, 3]) == 3
    assert detector.common_value(iter([3, 4])) == [3, 4]
    assert detector.common_value([]) is None


def test_stability_of_a_stream_is_asked_for_or_the_detectors(model, photo):
    items = [("a", photo(1))]
    plain, stable = Detector(model, votes=2), Detector(model, votes=2, stability=True)
    for opened, asked, versions in (
        (plain, None, 0), (plain, True, 7), (plain, False, 0), (stable, None, 7), (stable, False, 0),
    ):  # fmt: skip
        (found,) = opened.stream(items, stability=asked)
        assert len(found.stability) == versions
        assert found.score == pytest.approx(next(plain.stream(items)).score, abs=1e-6)
    assert next(stable.stream(items, stability=False)) == next(plain.stream(items)), "to the last bit"
    with pytest.raises(UserError, match="stability mode needs every view's score"):
        list(Detector(model, votes=3, early_exit=True).stream(items, stability=True))


# --- the cascade -----------------------------------------------------------------------------------------------------
class Given(Scorer):
    """A scorer whose scores are the views themselves."""

    def __init__(self, error=0.0):
        self.error, self.seen = error, 0

    def run(self, views, piece=None):
        self.seen += len(views)
        return np.array(views, float) + self.error


def majority(scores, weights):
    """More than half of the (weighted) views above 0."""
    return np.average(scores > 0, weights=weights) > 0.5


def later(*scores):
    return [lambda s=s: s for s in scores]


@pytest.mark.parametrize(
    ("scores", "weights", "seen"),
    [
        ([1, 1, 1, 1, 1], None, 3),
        ([-1, -1, -1, 1, 1], None, 3),  # three of five have already decided: the last two cannot change the majority
        ([1, -1, 1, -1, 1], None, 5),
        ([-1, 1, 1, 1, 1], [4, 1, 1, 1, 1], 1),  # half of the weight cannot be outvoted
        ([np.nan, 1, 1], None, None),
    ],
)
def test_views_are_scored_until_the_decision_is_certain(scores, weights, seen):
    network = Given()
    found = Cascade(network, majority, early_exit=True).scores(later(*scores), weights)
    if seen is None:
        assert np.isnan(found[0]), "stops at what is no number, which settles nothing"
        return
    assert network.seen == len(found) == seen and found.tolist() == scores[:seen]
    assert majority(found, None if weights is None else weights[:seen]) == majority(np.array(scores), weights)
    assert len(Cascade(Given(), majority).scores(later(*scores), weights)) == len(scores), "without early exit all"


@pytest.mark.parametrize(("score", "twice"), [(1.0, 0), (0.3, 1), (0.5, 1), (-0.4, 1), (-0.6, 0)])
def test_the_exact_network_decides_within_the_margin(score, twice):
    exact, first = Given(), Given(error=0.25)
    cascade = Cascade(exact, majority, first=first, margin=0.5)
    found = cascade.scores(later(score - 0.25))
    assert (cascade.twice, first.seen, exact.seen) == (twice, 1, twice)
    assert found[0] == (score - 0.25 if twice else score)


def test_a_view_that_was_not_scored_may_have_any_score():
    """Votes that only large scores win, as after a calibration with a small scale."""
    network = Given()
    found = Cascade(network, lambda s, w: majority(s - 70, w), early_exit=True).scores(later(200, 200, 200))
    assert found.tolist() == [200, 200]


# --- messages --------------------------------------------------------------------------------------------------------
def test_messages_of_the_library_go_to_its_logger(tmp_path, caplog, capfd, monkeypatch):
    path = make_model(tmp_path / "n.ckpt", seed=2)
    with caplog.at_level(logging.INFO, logger="aidet"):
        Detector(path)
        made, verified = caplog.records
        assert made.getMessage() == "n.ckpt: making its ONNX graph (once) ..."
        assert "n.ckpt: verified" in verified.getMessage()
        monkeypatch.setattr(backends.runtime, "version_of", lambda name: None if name == "onnxruntime" else "9")
        Detector(path)
    levels = [(r.name, r.levelno) for r in caplog.records]
    assert levels == [("aidet", logging.INFO), ("aidet", logging.INFO), ("aidet", logging.WARNING)]
    assert caplog.records[2].getMessage().startswith("note: running n.ckpt on mindspore, slower than onnxruntime")
    said = []
    Detector(path, say=said.append)
    assert len(caplog.records) == 3 and said == [caplog.records[2].getMessage()], "one or the other, not both"
    assert "n.ckpt" not in capfd.readouterr().err


def test_the_library_prints_nothing_unless_the_application_shows_its_logger(tmp_path):
    """Run in new processes, without pytest's own log handlers."""
    path = make_model(tmp_path / "q.ckpt", seed=3)
    code = "import sys, logging, aidet; {}; aidet.Detector(sys.argv[1])"
    for setting, shown in (("pass", False), ("logging.basicConfig(level=logging.INFO)", True)):
        for graph in tmp_path.glob("q.*.onnx"):
            graph.unlink()
        command = [sys.executable, "-c", code.format(setting), str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and done.stdout == "" and list(tmp_path.glob("q.*.onnx")), done.stderr
        assert ("INFO:aidet:q.ckpt: making its ONNX graph" in done.stderr) == shown
        assert shown or "q.ckpt" not in done.stderr


def test_a_command_prints_them(tmp_path, photo, run):
    path = make_model(tmp_path / "c.ckpt", seed=4)
    photo(1).save(tmp_path / "1.png")
    flags = ("--ckpt", path, "--images", tmp_path / "1.png", "--out", tmp_path / "o")
    done = run(ROOT / "infer.py", *flags)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert "c.ckpt: making its ONNX graph (once) ..." in lines
    assert sum(line.startswith("c.ckpt: verified, largest logit difference") for line in lines) == 1


# --- the command line ------------------------------------------------------------------------------------------------
def test_infer_py_only_parses():
    text = (ROOT / "infer.py").read_text(encoding="utf-8")
    functions = {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    assert functions == {"parser", "parse", "run", "run_merge", "run_check"} and len(text.splitlines()) < 160
