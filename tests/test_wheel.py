"""The wheel: one package with the default detector and no framework; and a clean environment that runs it."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from app_tools import make_onnx

from aidet import __version__, command
from aidet.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("train", "infer", "evaluate", "export", "app")


def shipped():
    """The default detector and the localizer."""
    found = [*ROOT.glob("ckpt/aidet_default.*"), *ROOT.glob("ckpt/aidet_partial.*")]
    return [path for path in found if not path.suffixes[:-1]]  # a cached graph has a hash before its extension


def sources(folder):
    """The tracked sources that a wheel is built from, copied, so that nothing is built inside the repository."""
    for name in ("aidet", "convert"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", *(f"{s}.py" for s in SCRIPTS)):
        shutil.copy(ROOT / name, folder / name)
    (folder / "ckpt").mkdir()
    for path in shipped():
        shutil.copy(path, folder / "ckpt")
    shutil.copytree(ROOT / "mindcv_cfg", folder / "mindcv_cfg")
    return folder


def build(folder, kind="wheel"):
    """Build the wheel or the sdist with the installed setuptools; nothing is downloaded."""
    code = f"import setuptools.build_meta as b, sys; print(b.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    return build(sources(tmp_path_factory.mktemp("source")))


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    """The unpacked wheel, and a process environment in which the wheel is found and the repository is not."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder, {**os.environ, "PYTHONPATH": str(folder)}


def test_what_is_in_the_wheel(wheel):
    assert wheel.name == f"aidet-{__version__}-py3-none-any.whl" and wheel.stat().st_size < 25 << 20
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        metadata = file.read(f"aidet-{__version__}.dist-info/METADATA").decode()
        entries = file.read(f"aidet-{__version__}.dist-info/entry_points.txt").decode()
        top = file.read(f"aidet-{__version__}.dist-info/top_level.txt").decode()
    assert {n.split("/")[0] for n in names} == {"aidet", f"aidet-{__version__}.dist-info"} and top.split() == ["aidet"]
    assert {f"aidet/scripts/{s}.py" for s in SCRIPTS} <= set(names)
    assert {"aidet/app/page.py", "aidet/xihe/boot_app.py", "aidet/py.typed"} <= set(names)
    assert not in_the_repository("aidet", "aidet") - set(names)
    assert not in_the_repository("convert", "aidet/convert") - set(names)
    assert any(n.endswith(".j2") for n in names), "the report's template"
    detector = {f"aidet/shipped/aidet_default.{kind}" for kind in ("ckpt", "json", "md", "onnx")}
    localizer = {name.replace("aidet_default", "aidet_partial") for name in detector}
    assert detector | localizer == {n for n in names if n.startswith("aidet/shipped/aidet_")}
    recipes = {f"aidet/shipped/{p.relative_to(ROOT).as_posix()}" for p in ROOT.glob("mindcv_cfg/**/*.yaml")}
    assert recipes == {n for n in names if n.startswith("aidet/shipped/mindcv_cfg/")} and recipes
    assert "aidet = aidet.command:main" in entries
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert needed and not any(word in line for line in needed for word in ("mindspore", "torch", "onnx"))


def in_the_repository(folder, name):
    """All files that git would track under a folder, with their names in the wheel."""
    found = [p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return {f"{name}/{p.relative_to(ROOT / folder).as_posix()}" for p in found}


def test_the_source_distribution_gives_the_same_wheel(wheel, tmp_path):
    sdist = build(sources(tmp_path), "sdist")
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    again = build(tmp_path / f"aidet-{__version__}")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


IMPORT_ALL = """
import importlib, sys
from pathlib import Path

root, optional, absent = Path(sys.argv[1]), set(sys.argv[2].split()), {}
names = [".".join(p.relative_to(root).with_suffix("").parts) for p in sorted(root.glob("aidet/**/*.py"))]
for name in (n[: -len(".__init__")] if n.endswith(".__init__") else n for n in names):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] not in optional:
            raise
        absent[name] = error.name
        continue
    assert Path(module.__file__).is_relative_to(root), module.__file__
print(len(names) - len(absent), "of", len(names), absent)
"""
# What the extras of pyproject.toml install.
OPTIONAL = (
    "onnx onnxruntime sklearn scipy matplotlib jinja2 imagehash gradio gradio_client mindspore mindcv tensorboardX "
    "albumentations cv2 skimage torch torchvision timm transformers diffusers safetensors"
)


def test_every_module_imports_from_the_wheel(unpacked):
    """No folder was forgotten, and nothing imports a module that exists only in the repository."""
    folder, environment = unpacked
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_ALL, str(folder), OPTIONAL],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    imported, total = map(int, done.stdout.split()[:3:2])
    assert total == len(list(folder.glob("aidet/**/*.py"))) and imported > total // 2, done.stdout


def test_the_converter_in_the_wheel(unpacked):
    """Its messages show the command that the user has to type, and it finds the shipped reference."""
    folder, environment = unpacked

    def python(*argv):
        return subprocess.run(
            [sys.executable, *argv], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )

    for argv in (("-m", "aidet.command", "convert"), ("-m", "aidet.convert")):
        done = python(*argv, "--help")
        assert done.returncode == 0 and done.stdout.startswith("usage: aidet convert "), done.stderr
        assert "python -m aidet.convert.make_reference" in " ".join(done.stdout.split())
    done = python("-m", "aidet.convert.make_reference", "--help")
    assert done.stdout.startswith("usage: python -m aidet.convert.make_reference "), done.stderr
    code = (
        "from aidet.convert.hub import KNOWN\n"
        "from aidet.convert.parity.compare import stored_reference\n"
        "print(stored_reference(KNOWN[0]['sha256']).meta['architecture'])"
    )
    assert python("-c", code).stdout == "efficientnet_lite0\n"


def test_the_command_finds_the_scripts_from_the_wheel(unpacked, tmp_path):
    """Unpacked in another folder, without the repository."""
    folder, environment = unpacked

    def aidet(*argv):
        return subprocess.run(
            [sys.executable, "-m", "aidet.command", *argv],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )

    for name in (*SCRIPTS, "xihe"):
        done = aidet(name, "--help")
        assert done.returncode == 0 and "usage" in done.stdout, (name, done.stderr)
    assert aidet("--version").stdout == f"aidet {__version__}\n"
    done = aidet("infer", "x.png")  # by the detector in the wheel
    assert done.returncode == 2 and done.stdout == "unusable       -  x.png: no such file\n", done.stderr
    done = aidet("xihe", "pack", "--ckpt", make_onnx(tmp_path), "--repo", "me/models", "--out", tmp_path / "x")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x" / "train" / "aidet" / "recipe.yaml").is_file(), "a recipe of the wheel"
    assert not list((tmp_path / "x").rglob("shipped")), "no weights in the project's folders"
    code = "import aidet.command as c; print(c.script('infer').__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == str(folder / "aidet" / "scripts" / "infer.py")


def test_unknown_commands():
    with pytest.raises(UserError, match="did you mean 'infer'"):
        command.run(["inferr"])
    assert command.entry("evaluate").__name__ in ("run", "main")
    assert command.entry("convert").__module__ == "aidet.convert.__main__"


def test_the_converter_in_the_repository(tmp_path):
    """The same command, from the folder at the root, even if something else is called convert."""
    (tmp_path / "convert.py").write_text("raise SystemExit('another project')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    code = "from aidet import command; command.main(['convert', 'check', '--help'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: aidet convert check "), done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "convert", "check", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m convert check "), done.stderr


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
