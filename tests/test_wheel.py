"""The wheel: small, without a framework, with the command ``aidet``; and a clean environment that serves an export."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from app_tools import make_onnx

from aidet import __version__, command
from aidet.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("train", "infer", "evaluate", "export", "app")


def sources(folder):
    """The tracked sources that a wheel is built from, copied, so that nothing is built inside the repository."""
    for name in ("aidet", "convert"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", *(f"{s}.py" for s in SCRIPTS)):
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(folder):
    """Build the wheel with the setuptools that is installed; nothing is downloaded."""
    code = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    return build(sources(tmp_path_factory.mktemp("source")))


def test_what_is_in_the_wheel(wheel):
    assert wheel.name == f"aidet-{__version__}-py3-none-any.whl" and wheel.stat().st_size < 3 << 20
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        metadata = file.read(f"aidet-{__version__}.dist-info/METADATA").decode()
        entries = file.read(f"aidet-{__version__}.dist-info/entry_points.txt").decode()
    assert {n.split("/")[0] for n in names} == {"aidet", "convert", f"aidet-{__version__}.dist-info"}
    assert {f"aidet/scripts/{s}.py" for s in SCRIPTS} <= set(names)
    assert {"aidet/app/page.py", "aidet/xihe/boot_app.py"} <= set(names)
    assert any(n.startswith("aidet/templates/") for n in names)
    assert "aidet = aidet.command:main" in entries
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert needed and not any(word in line for line in needed for word in ("mindspore", "torch", "onnx"))


def test_the_command_finds_the_scripts_from_the_wheel(wheel, tmp_path):
    """Unpacked somewhere else, with no repository in sight."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def aidet(*argv):
        return subprocess.run(
            [sys.executable, "-m", "aidet.command", *argv],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    for name in (*SCRIPTS, "xihe"):
        done = aidet(name, "--help")
        assert done.returncode == 0 and "usage" in done.stdout, (name, done.stderr)
    assert aidet("--version").stdout == f"aidet {__version__}\n"
    done = aidet("infer", "--images", "x")
    assert done.returncode == 2 and "--out is missing" in done.stderr
    code = "import aidet.command as c; print(c.script('infer').__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == str(tmp_path / "aidet" / "scripts" / "infer.py")


def test_unknown_commands():
    with pytest.raises(UserError, match="did you mean 'infer'"):
        command.run(["inferr"])
    assert command.entry("evaluate").__name__ in ("run", "main")
    assert command.entry("convert").__module__ == "convert.__main__"


@pytest.mark.matrix
def test_a_clean_environment_serves_an_export(wheel, tmp_path, photo):
    """``pip install aidet[onnx]`` in a new venv: no framework there; infer, evaluate and the application work."""
    folder = tmp_path / "in"
    for i in range(6):
        (folder / ("real" if i % 2 else "fake")).mkdir(parents=True, exist_ok=True)
        photo(i).save(folder / ("real" if i % 2 else "fake") / f"{i}.png")
    model = make_onnx(tmp_path)
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin" / "pip", "install", "-q", f"aidet[onnx] @ {wheel.as_uri()}"], check=True)
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def aidet(*argv):
        done = subprocess.run(
            [venv / "bin" / "aidet", *map(str, argv)], cwd=tmp_path, env=clean, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = subprocess.run([venv / "bin" / "pip", "list"], capture_output=True, text=True).stdout.lower()
    assert not any(word in listed for word in ("mindspore", "torch", "tensorflow"))
    aidet("infer", "--ckpt", model, "--images", folder, "--out", tmp_path / "o", "--votes", 3)
    aidet("evaluate", "score", "--scores", tmp_path / "o/scores.csv", "--labels", folder, "--out", tmp_path / "e")
    assert (tmp_path / "o" / "result.txt").is_file() and (tmp_path / "e" / "report.html").is_file()
    code = (
        "import tempfile, sys; from pathlib import Path; from aidet.app import server\n"
        "folder = server.prepare()\n"
        "from aidet.app.service import Service\n"
        "page = server.launch(Service([sys.argv[1]], votes=3), folder, port=0)\n"
        "from gradio_client import Client, handle_file\n"
        "answer = Client(page.local_url, verbose=False).predict(handle_file(sys.argv[2]), api_name='/verdict')\n"
        "print(answer['status'], answer['score']); page.close(verbose=False)\n"
    )
    done = subprocess.run(
        [venv / "bin" / "python", "-c", code, model, folder / "real" / "1.png"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("ok "), done.stderr
