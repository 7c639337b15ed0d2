"""The class Sidecar: its values, its errors, and that no other code reads the dict behind it."""

import ast
import dataclasses
import inspect
import json
import os
from pathlib import Path

import pytest
from infer_tools import LINES, make_model
from PIL import Image

from aidet import Detector, ckpt, files
from aidet.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# Keys that only a sidecar has; "input" or "size" would also be found in verdicts and settings.
KEYS = {"class_order", "arguments", "calibration", "voting", "operating_points", "evidence"}
# The package that contains the class.
READER = ("aidet/ckpt/",)
# Modules that write sidecars or the metadata of an ONNX file need the whole dict.
WRITERS = {
    "aidet/training/saving.py",
    "aidet/export/onnx_graph.py",
    "convert/conversion.py",
    "convert/training/calibrate.py",
    "convert/training/partial_finish.py",
}


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "m.ckpt")


@pytest.fixture
def counted(monkeypatch):
    """Names of the files that are hashed, and of the JSON files that are read, in this process."""
    seen = {"sha256": [], "read_json": []}

    def watch(name):
        real = getattr(files, name)

        def counting(path, *args):
            seen[name].append(Path(path).name)
            return real(path, *args)

        monkeypatch.setattr(files, name, counting)

    watch("sha256")
    watch("read_json")
    return seen


def start(seen, path, **options):
    """Open a detector; return it with the names of the files that it hashed and read."""
    for names in seen.values():
        names.clear()
    detector = Detector(path, say=lambda line: None, **options)
    return detector, {k: list(v) for k, v in seen.items()}


def test_a_start_hashes_the_checkpoint_once_and_reads_its_sidecar_once(model, counted):
    once = {"sha256": ["m.ckpt"], "read_json": ["m.json"]}
    first, seen = start(counted, model)
    assert first.models[0].backend_name == "onnxruntime" and seen == once
    assert len(list(model.parent.glob("m.*.onnx"))) == 1  # the graph was made in this start
    again, seen = start(counted, model)
    assert again.models[0].identity == first.models[0].identity and seen == once
    other, seen = start(counted, model, backend="mindspore")
    assert other.models[0].backend_name == "mindspore" and seen == once


def test_a_checkpoint_whose_sidecar_states_no_hash_is_hashed_once(model, counted):
    facts = ckpt.read_sidecar(model)
    stated = facts.pop("output")["sha256"]
    files.write_json(ckpt.sidecar_path(model), facts)
    detector, seen = start(counted, model)
    assert seen["sha256"] == ["m.ckpt"] and detector.models[0].identity == stated


def test_facts_of_a_detector(model):
    sidecar = ckpt.Sidecar.read(model)
    assert sidecar.architecture == "testing" and sidecar.arguments == {"num_classes": 2}
    assert sidecar.detector_order == sidecar.class_order == sidecar.classes == ["real", "generated"]
    assert (sidecar.threshold, sidecar.calibration, sidecar.voting) == (0.5, (1.0, 0.0), ckpt.Voting())
    assert (sidecar.transform, sidecar.views_line) == (LINES["transform"], LINES["views"])
    assert (sidecar.channels, sidecar.value_range, sidecar.multiple) == (3, (0, 1), None)
    assert sidecar.sha256 == sidecar.identity == files.sha256(model)
    assert sidecar.raw == ckpt.read_sidecar(model) == json.loads(ckpt.sidecar_path(model).read_text())
    with pytest.raises(dataclasses.FrozenInstanceError):
        sidecar.path = "other.ckpt"


def test_settings_that_are_not_given_come_from_the_sidecar():
    own = ckpt.Sidecar({"voting": {"votes": 6, "views": "grid"}}, "m.ckpt").voting
    assert own.settings() == {"votes": 6, "kind": "grid", "weights": "equal"}
    assert own.settings(votes=2, kind=None, seed=1) == {"votes": 2, "kind": "grid", "weights": "equal", "seed": 1}


def test_a_backbone_can_be_read_but_is_refused_as_a_detector(tmp_path):
    path = make_model(tmp_path / "b.ckpt", class_order=None, classes=["cat", "dog"], input=None)
    sidecar = ckpt.Sidecar.read(path)
    assert sidecar.class_order is None and sidecar.transform is None and sidecar.size is None
    with pytest.raises(UserError, match=r"b\.ckpt' is no detector: its classes \(cat, dog\) do not mean real and gen"):
        sidecar.detector_order  # noqa: B018 - the property is what is tested
    with pytest.raises(UserError, match=r"b\.ckpt' names no input\.transform; convert or train it again"):
        sidecar.detector_transform  # noqa: B018


def test_a_checkpoint_without_a_sidecar_names_those_that_have_one(tmp_path):
    for name in ("best", "last"):
        make_model(tmp_path / f"{name}.ckpt")
    (tmp_path / "state.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes())
    with pytest.raises(
        UserError, match=r"no sidecar 'state.json'; .*, or name a checkpoint that has one: best.ckpt, last.ckpt$"
    ):
        ckpt.Sidecar.read(tmp_path / "state.ckpt")


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("threshold", 1.0, r"threshold \(=1\.0\) must be between 0 and 1"),
        ("threshold", True, r"threshold \(=True\) must be between"),
        ("calibration", {"scale": 0}, "must have a scale above 0 and an offset"),
        ("calibration", [1, 0], "must have a scale above 0 and an offset"),
        ("calibration", {"scale": 1, "offset": "0"}, "must have a scale above 0 and an offset"),
        ("voting", {"vote": 3}, "must be a mapping with the keys votes, views, weights"),
        ("voting", [3], "must be a mapping with the keys votes, views, weights"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_value(name, value, said):
    sidecar = ckpt.Sidecar({"format": 1, "architecture": "x", name: value}, "m.ckpt")
    with pytest.raises(UserError, match=rf"sidecar of 'm\.ckpt': .*{said}"):
        getattr(sidecar, name)


def test_a_replaced_checkpoint_is_noticed_before_it_is_explained(model):
    from aidet.detector import explain

    detector = Detector(model, say=lambda line: None)
    make_model(model, seed=2)
    with pytest.raises(UserError, match="is not the file its sidecar describes"):
        explain.maps(detector, Image.new("RGB", (40, 40)))


# --- whole or absent -------------------------------------------------------------------------------------------------
def test_a_file_appears_only_when_its_block_has_succeeded(tmp_path):
    target = tmp_path / "new" / "x.bin"
    with files.atomic_path(target) as made:
        made.write_text("one")
        assert made.is_absolute() and made.name == "x.bin" and not target.exists()
    assert target.read_text() == "one" and os.listdir(target.parent) == ["x.bin"]


def test_a_block_that_fails_keeps_the_old_file(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(ValueError), files.atomic_path(tmp_path / "x") as made:
        made.write_text("new")
        raise ValueError
    assert (tmp_path / "x").read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_a_folder_replaces_the_old_one(tmp_path):
    for name in ("a", "b"):
        with files.atomic_path(tmp_path / "f") as made:
            made.mkdir()
            (made / name).write_text(name)
    assert os.listdir(tmp_path) == ["f"] and os.listdir(tmp_path / "f") == ["b"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*choose another place"), files.atomic_path(tmp_path / "file/x"):
        pass


# --- the fence -------------------------------------------------------------------------------------------------------
def accesses(tree):
    """Yield (line, name) of every access to the dict of a sidecar."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("read_sidecar", "raw", "check_facts"):
            yield node.lineno, node.attr
        key = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            key = node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            key = node.args[0] if node.args else None
        if isinstance(key, ast.Constant) and key.value in KEYS:
            yield node.lineno, key.value


def product():
    return [p for folder in ("aidet", "convert") for p in sorted((ROOT / folder).rglob("*.py"))] + [
        ROOT / f"{name}.py" for name in ("train", "infer", "evaluate", "export", "app")
    ]


def test_only_the_class_and_the_writers_read_the_dict_of_a_sidecar():
    found = {}
    for path in product():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(READER) or name in WRITERS:
            continue
        seen = list(accesses(ast.parse(path.read_text(encoding="utf-8"))))
        if seen:
            found[name] = seen
    assert not found
    # The search works: it finds the accesses in the class itself.
    assert len(list(accesses(ast.parse(inspect.getsource(ckpt.Sidecar))))) > 5
