"""The folders for Xihe: the platform's rules, and the packed entry points started as the platform starts them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from app_tools import make_onnx

from aidet import xihe
from aidet.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(
        "model: testing\nnum_classes: 2\nnum_parallel_workers: 0\nepoch_size: 1\nbatch_size: 4\n"
        "train_split: train\nval_split: val\n"
        'transform: "decode | resize(40) | random_crop(32) | normalize(half)"\n'
        'transform_eval: "decode | resize(40) | center_crop(32) | normalize(half)"\n'
    )
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory, recipe):
    folder = tmp_path_factory.mktemp("xihe")
    make_onnx(folder)
    xihe.pack(folder / "tiny.ckpt", folder / "out", "someone/my_model", recipe=recipe)
    return folder / "out"


def test_the_layout(packed):
    train, inference = packed / "train" / "aidet", packed / "inference"
    assert {p.name for p in train.iterdir()} == {"train.py", "pip-requirements.txt", "recipe.yaml", "aidet"}
    assert {p.name for p in inference.iterdir()} == {"app.py", "config.json", "requirements.txt", "aidet"}
    assert json.loads((inference / "config.json").read_text()) == {"model_path": ["someone/my_model/tiny.onnx"]}
    assert (packed / "model" / "tiny.onnx").is_file()
    lines = (inference / "requirements.txt").read_text().splitlines()
    assert {"gradio==3.21.0", "numpy==1.23.5", "pandas==1.5.3", "matplotlib==3.7.1"} <= set(lines)
    wanted = (train / "pip-requirements.txt").read_text()
    assert not any(line.startswith("mindspore") for line in wanted.splitlines())
    assert not list(packed.rglob("__pycache__"))


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda p: (p / "inference/aidet/x.ckpt").write_bytes(b"x"), "kept in git-LFS"),
        (lambda p: (p / "inference/a.png").write_bytes(xihe.POINTER + b"\noid"), "is a git-LFS pointer"),
        (lambda p: (p / "train/.gitattributes").write_text("*.x filter=lfs"), "turns git-LFS on"),
        (lambda p: (p / "train/aidet/data.csv").write_bytes(bytes(6 << 20)), "larger than 5 MB"),
        (lambda p: (p / "train/aidet/pip-requirements.txt").unlink(), "pip-requirements.txt is missing"),
        (lambda p: (p / "train/aidet").rename(p / "train/my-net"), "letters, digits or underscores"),
        (lambda p: (p / "inference/config.json").write_text('{"model_path": ["x.ckpt"]}'), "config.json must be"),
    ],
)
def test_what_the_platform_would_refuse(packed, tmp_path, change, text):
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy, ignore=shutil.ignore_patterns("*.py"))
    for path in ("train/aidet/train.py", "inference/app.py"):
        shutil.copy(packed / path, copy / path)
    assert xihe.check(copy)
    change(copy)
    with pytest.raises(UserError, match=text):
        xihe.check(copy)


@pytest.mark.parametrize(
    "more, text",
    [
        ({"name": "ab"}, "--name 'ab'"),
        ({"name": "my-net"}, "--name 'my-net'"),
        ({"repo": "nobody"}, "--repo 'nobody'"),
        ({"repo": "me/a model"}, "--repo"),
        ({"checkpoint": "missing.ckpt"}, "does not exist"),
        ({"recipe": "missing.yaml"}, "does not exist"),
    ],
)
def test_wrong_arguments(tmp_path, recipe, more, text):
    given = {"checkpoint": tmp_path / "x.onnx", "repo": "me/my_model", "recipe": recipe, **more}
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=text):
        xihe.pack(out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_what_the_packed_app_could_not_open_is_refused(tmp_path, recipe):
    from aidet import ckpt, models

    net = models.create("testing", num_classes=3)
    arrays = {p.name: p.asnumpy() for p in net.get_parameters()}
    line = "decode | resize(40) | center_crop(32) | normalize(half)"
    facts = {"architecture": "testing", "arguments": {"num_classes": 3}, "num_outputs": 3}
    ckpt.save(arrays, tmp_path / "three.ckpt", {**facts, "input": {"size": 32, "channels": 3, "transform": line}})
    (tmp_path / "fused.yaml").write_text("models: [three.ckpt]\n")
    for name, text in (("three.ckpt", "no detector"), ("fused.yaml", "neither a .ckpt nor an exported .onnx")):
        with pytest.raises(UserError, match=text):
            xihe.pack(tmp_path / name, tmp_path / "out", "me/my_model", recipe=recipe)
        assert not (tmp_path / "out").exists()


def test_a_wrong_flag_names_the_nearest():
    with pytest.raises(UserError, match="did you mean '--repo'"):
        xihe.run(["pack", "--ckpt", "a.ckpt", "--out", "o", "--repo", "me/my_model", "--rep", "x"])


def test_only_unknown_flags_are_left_out():
    argv = ["-c", "x.yaml", "--lr", "0.1", "--aim_repo", "r", "--grampus_code_file_name", "a", "b", "--no-pretrained"]
    kept, dropped = xihe.without_unknown([*argv, "--betas", "0.9", "0.99", "--new_flag=3"])
    assert dropped == ["--grampus_code_file_name", "a", "b", *(["--betas", "0.9", "0.99"] if "betas" not in
                       xihe.config.SCHEMA else []), "--new_flag=3"]  # fmt: skip
    assert kept[:6] == argv[:6]


def platform(packed, tmp_path):
    """Environment variables and working folder of a job, outside the repository."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, tmp_path


def test_the_packed_training_entry_runs_with_the_platforms_flags(packed, tmp_path, photo):
    data = tmp_path / "data"
    for split, count in (("train", 4), ("val", 2)):
        for word in ("real", "generated"):
            folder = data / split / word
            folder.mkdir(parents=True)
            for i in range(count):
                photo(i, (48, 48)).save(folder / f"{split}_{word}_{i}.png")
    environment, where = platform(packed, tmp_path)
    flags = ["--data_url", data, "--output_path", tmp_path / "result", "--aim_repo", "someone/logs"]
    flags += ["--device_target", "CPU", "--grampus_code_file_name", "x.zip", "--new_platform_flag=7"]
    done = subprocess.run(
        [sys.executable, str(packed / "train/aidet/train.py"), *map(str, flags)],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "note: ignored, no key of a configuration: --grampus_code_file_name x.zip" in done.stderr
    assert (tmp_path / "result" / "best.ckpt").is_file() and (tmp_path / "result" / "best.json").is_file()


def test_the_packed_app_scores_with_the_files_of_config_json(packed, tmp_path, photo):
    """Everything but Gradio 3.21.0 itself, which needs an environment of its own (next test)."""
    beside = tmp_path / "inference"
    shutil.copytree(packed / "inference", beside)
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from aidet import xihe; from aidet.app.service import Service\n"
        "served = Service(xihe.model_files('.'), votes=5)\n"
        "print(served.verdict(sys.argv[1], 'a.png').decision)"
    )
    photo(1).save(tmp_path / "a.png")
    environment, _ = platform(packed, tmp_path)

    def call():
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a.png")],
            cwd=beside,
            env=environment,
            capture_output=True,
            text=True,
        )

    assert "tiny.onnx is not beside app.py" in call().stderr
    shutil.copy(packed / "model" / "tiny.onnx", beside)
    done = call()
    assert done.returncode == 0 and done.stdout.strip() in ("real", "generated", "unsure"), done.stderr


def test_the_packed_app_shows_an_image_and_a_broken_one_in_both_languages(packed, tmp_path, photo):
    beside = tmp_path / "inference"
    shutil.copytree(packed / "inference", beside)
    shutil.copy(packed / "model" / "tiny.onnx", beside)
    code = (
        "import json, sys; sys.path.insert(0, '.')\n"
        "import app; from aidet import xihe; from aidet.app.service import Service\n"
        "served = Service(xihe.model_files('.'))\n"
        "shown = [app.examined(served, path or None, 0.3) for path in sys.argv[1:]]\n"
        "print(json.dumps([[*one[:3], *(i and i.size for i in one[3:])] for one in shown]))"
    )
    photo(1, (80, 60)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    environment, _ = platform(packed, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png"), str(tmp_path / "b.png"), ""],
        cwd=beside, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    fine, broken, none = json.loads(done.stdout)
    assert fine[0].count("data-decision") == 2 and "30%" in fine[0] and fine[3:] == [[80, 60], [80, 60]]
    assert "tiny" in fine[1] and "JPEG" in fine[2]
    assert broken[0].count("aidet-error") == 2 and "无法使用该文件" in broken[0] and broken[1:] == ["", "", None, None]
    assert none == ["", "", "", None, None]


@pytest.mark.matrix
def test_the_packed_app_under_the_platforms_versions(packed, tmp_path, photo):
    """A venv with the packed requirements; above Python 3.9 theirs of ONNX Runtime does not go with NumPy 1.23."""
    import time
    import urllib.request

    beside = tmp_path / "inference"
    shutil.copytree(packed / "inference", beside)
    shutil.copy(packed / "model" / "tiny.onnx", beside)
    lines = (beside / "requirements.txt").read_text()
    if sys.version_info >= (3, 10):
        lines = lines.replace("onnxruntime==1.16.3", "onnxruntime")
    (tmp_path / "requirements.txt").write_text(lines)
    if sys.version_info >= (3, 12):
        pytest.skip("NumPy 1.23 has no wheel for this Python")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", tmp_path / "requirements.txt"], check=True)
    environment, _ = platform(packed, tmp_path)
    environment.update(GRADIO_SERVER_NAME="127.0.0.1", GRADIO_SERVER_PORT="7899")
    process = subprocess.Popen([python, "./app.py"], cwd=beside, env=environment)
    try:
        for _ in range(120):
            try:
                config = json.load(urllib.request.urlopen("http://127.0.0.1:7899/config", timeout=5))
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.5)
        assert config["version"].strip() == "3.21.0"
        assert answer_of("http://127.0.0.1:7899", photo(1))["data"][0].count("data-decision") == 2
    finally:
        process.terminate()
        process.wait(20)


def answer_of(url, image):
    """Send an image in base64 to the HTTP interface of Gradio 3.21; return the answer."""
    import base64
    import io
    import urllib.request

    out = io.BytesIO()
    image.save(out, "PNG")
    body = json.dumps({"data": ["data:image/png;base64," + base64.b64encode(out.getvalue()).decode(), 0.5]}).encode()
    request = urllib.request.Request(f"{url}/run/verdict", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=60))
