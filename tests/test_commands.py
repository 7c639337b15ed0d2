"""The command lines together: one name for one thing, and the default detector where none is named."""

import argparse
import importlib
import re
from pathlib import Path

import pytest

import app
import evaluate
import export
import infer
from aidet import cli, command, rules
from aidet.detector import default
from aidet.errors import UserError
from aidet.evaluation import transfer
from aidet.export import exporter

DETECTOR = "votes vote views fuse threshold unsure seed positive real transform backend device workers".split()


def helped(capsys, run, *argv):
    """What ``--help`` prints."""
    try:
        run([*argv, "--help"])
    except SystemExit as done:
        assert not done.code
    return capsys.readouterr().out


@pytest.mark.parametrize("name", command.COMMANDS)
def test_help_names_the_command_as_it_was_called(name, capsys):
    text = helped(capsys, command.run, name)
    assert re.match(rf"usage: aidet {name}\b", text)
    assert not re.search(r"(?<!/)\b(infer|evaluate|export|app|train)\.py\b", text.replace("config.py", ""))


@pytest.mark.parametrize("module", [infer, evaluate, export, app])
def test_help_of_a_script_names_the_script(module, capsys):
    run = getattr(module, "run", None) or module.main
    assert helped(capsys, run).startswith(f"usage: {module.__name__}.py ")


def test_messages_name_the_command_as_it_was_called():
    with pytest.raises(UserError, match="see aidet infer --help"):
        command.run(["infer", "--out", "x", "--test_data_path", "", "--model_path", "a.ckpt"])
    with pytest.raises(UserError, match="see python infer.py --help"):
        infer.run(["--out", "x", "--test_data_path", "", "--model_path", "a.ckpt"])
    with cli.installed_command():
        kept = "'infer.py' and work/infer.py"  # names of files
        assert cli.as_called(kept) == kept and cli.as_called("run evaluate.py leaks") == "run aidet evaluate leaks"
    assert cli.as_called("run evaluate.py leaks") == "run evaluate.py leaks"


@pytest.mark.parametrize("command", ["score --scores s.csv", "sweep", "audit", "leaks --train a --test b"])
def test_a_missing_package_is_said_before_the_work(command, tmp_path, monkeypatch):
    name = "imagehash" if command.startswith("leaks") else "sklearn"
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted, *_: None if wanted == name else object())
    labels = [] if name == "imagehash" else ["--labels", str(tmp_path)]
    with pytest.raises(UserError, match=f"the package {cli.REQUIRED[name]} is not installed.*pip install 'aidet.onnx"):
        evaluate.main([*command.split(), *labels, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_package_that_turns_out_to_be_missing_is_one_line(capsys):
    def run(argv):
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn.metrics")

    with pytest.raises(SystemExit) as stop:
        cli.main(run, [])
    error = capsys.readouterr().err
    assert stop.value.code == cli.WRONG and error.startswith("error: the package scikit-learn is not installed")
    assert error.count("\n") == 1


def parsers():
    found = {"infer": infer.parser(), "app": app.parser()}
    commands = next(a for a in evaluate._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {**found, **{f"evaluate {name}": p for name, p in commands.choices.items()}}


def test_an_option_of_a_detector_is_the_same_in_every_command():
    seen = {}
    for name, parser in parsers().items():
        for action in parser._actions:
            if action.dest in DETECTOR and not (name.startswith("evaluate") and action.dest in ("threshold", "seed")):
                facts = (action.option_strings, action.type, action.metavar, action.default)
                if name != "evaluate leaks":  # its workers are processes
                    seen.setdefault(action.dest, facts)
                    assert facts == seen[action.dest], (name, action.dest)
    assert set(DETECTOR) == set(seen)
    reading = [n for n, p in parsers().items() if {"--max-pixels", "--truncated"} <= set(p.flags())]
    assert reading == [n for n in parsers() if n != "evaluate localize"]  # reads maps, no pictures


@pytest.mark.parametrize(
    "module, words, wanted",
    [
        ("infer", ["chek", "result.txt", "--images", "in"], "check"),
        ("infer", ["mrege", "out"], "merge"),
        ("convert.__main__", ["chek", "x.ckpt"], "check"),
        ("convert.__main__", ["revers", "x.ckpt", "y.safetensors", "--layout", "timm"], "reverse"),
        ("convert.__main__", ["lsit"], "list"),
    ],
    ids=str,
)
def test_a_misspelt_sub_command_is_no_file(module, words, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = importlib.import_module(module).run
    said = f"{words[0]!r} is neither a file nor a sub-command; did you mean {wanted!r}"
    with pytest.raises(UserError, match=said):
        run(words)
    (tmp_path / words[0]).mkdir()  # a place of that name is meant as such
    cli.refuse_misspelt(words, [wanted])


def test_an_option_may_be_written_with_underscores():
    parser = infer.parser()
    words = "--batch_size 7 --max_pixels=200M --sample_submission a_b.csv --out o_o".split()
    args = parser.parse_args(words)
    assert (args.batch_size, args.max_pixels, args.sample_submission, args.out) == (7, 200_000_000, "a_b.csv", "o_o")
    given = infer.parse(["--model_path", "a.ckpt", "--test_data_path", "d", "--output_path", "o"])
    assert (given.ckpt, given.images, given.out) == (["a.ckpt"], "d", "o")
    assert evaluate._parser().parse_args(["audit", "--labels", "l", "--out", "o", "--max_pixels", "5"]).max_pixels == 5
    with pytest.raises(UserError, match="did you mean '--batch-size'"):
        parser.parse_args(["--batch_sise", "7"])


def test_without_a_checkpoint_the_default_detector_is_exported_and_transferred(monkeypatch, tmp_path, capsys):
    given = []
    found = {"file": "x.onnx", "difference": None, "note": "as asked"}
    monkeypatch.setattr(exporter, "export", lambda path, *_: given.append(path) or found)
    export.run(["--format", "onnx", "--out", str(tmp_path)])
    monkeypatch.setattr(transfer, "named", lambda paths, what: given.append(paths[0]) or pytest.fail("stop"))
    with pytest.raises(pytest.fail.Exception):
        evaluate.main(["transfer", "--sets", "a=b", "--out", str(tmp_path)])
    assert given == [default.path()] * 2 and Path(given[0]).name == "aidet_default.ckpt"
    assert capsys.readouterr().err.count("no --ckpt given: using the default detector") == 2


def test_without_a_default_detector_the_message_says_what_to_name(monkeypatch, tmp_path):
    monkeypatch.setattr(default, "CKPT", tmp_path / "aidet_default.ckpt")
    with pytest.raises(UserError, match="name a detector: --ckpt"):
        export.run(["--format", "onnx", "--out", str(tmp_path / "o")])


def test_help_is_plain_text_and_names_only_options_of_its_command(capsys):
    texts = {name: parser.format_help() for name, parser in parsers().items()}
    for name in command.COMMANDS:
        texts[f"aidet {name}"] = helped(capsys, command.run, name)
    texts["aidet"] = helped(capsys, command.run)
    texts["rules"] = helped(capsys, rules.run, "fit")
    assert not [name for name, text in texts.items() if "``" in text]
    for name, parser in parsers().items():
        known = {"--int8", "--bf16", *parser.flags()}  # of export.py, named by --cascade
        named = {w for a in parser._actions for w in re.findall(r"--[a-z][\w-]+", a.help or "")}
        assert named <= known, (name, named - known)
