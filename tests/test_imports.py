"""Import rules: which room may import which, no cycles, no framework before it is needed, no file that is too large.

A room is a folder of ``aidet/``; its ``__init__.py`` is its face. A file directly in ``aidet/`` is either ground, which
every room may import, or a tool. A new folder, or a new file outside the rooms, must be added to the tables below.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each layer may import the layers before it.
GROUND = (
    {"errors"},
    {"labels", "files", "cli", "dialect", "parallel", "runtime"},
    {"records", "runinfo"},
)
# Room -> the rooms that it may import besides the ground.
ROOMS = {
    "archives": set(),
    "config": set(),
    "images": {"archives"},
    "models": set(),
    "metrics": set(),
    "ckpt": {"models"},
    "datasets": {"archives", "images"},
    "report": {"images"},
    "export": {"ckpt", "images", "models"},
    "detector": {"ckpt", "datasets", "export", "images", "metrics"},
    "distributed": {"archives", "detector"},
    "training": {"ckpt", "config", "datasets", "images", "metrics", "models"},
    "inference": {"archives", "datasets", "detector", "distributed", "images"},
    "evaluation": {"archives", "datasets", "detector", "images", "metrics", "report"},
    "audit": {"archives", "datasets", "evaluation", "images", "metrics", "report"},
    "app": {"detector", "images"},
    "xihe": {"app", "config", "export", "images", "training"},
    "align": {"archives", "ckpt", "datasets", "images"},
}
# Files directly in aidet/ that are run, not imported.
TOOLS = {
    "data": {"archives", "datasets", "images"},
    "rules": {"datasets", "detector", "images"},
    "command": {"convert", "xihe"},
}
CONVERT = {
    "convert": {"ckpt", "images", "models"},
    "convert.training": {"ckpt", "convert", "datasets", "detector", "images", "metrics", "models"},
}
CONVERT_FOLDERS = {"families": "convert", "parity": "convert", "training": "convert.training"}
# A script may import its own room, and the detector for the default checkpoint.
SCRIPTS = {
    "train.py": {"config", "training"},
    "infer.py": {"detector", "inference"},
    "evaluate.py": {"audit", "evaluation"},
    "export.py": {"detector", "export"},
    "app.py": {"app", "detector"},
    "setup.py": set(),
}
ALLOWED = {**ROOMS, **TOOLS, **CONVERT, **SCRIPTS}
# What aidet/__init__.py imports on first use.
LAZY = {"aidet.Detector": "aidet.detector", "aidet.Localizer": "aidet.detector"}

TORCH = {"torch", "torchvision", "timm", "transformers", "diffusers"}
MINDSPORE = {"mindspore", "mindcv", "onnxruntime", "onnx", "openvino"}
HEAVY = MINDSPORE | TORCH | {"pyarrow", "ray", "sklearn", "scipy", "matplotlib", "gradio"}
# Compiled cells and the page itself; they are imported when a network is built or the application is started.
COMPILED = ("cells", "losses", "optim", "convolutions", "activations", "lora")
EARLY = [f"aidet/training/{name}.py" for name in COMPILED] + ["aidet/app/layout.py", "aidet/app/page.py"]
USES_MINDSPORE = {"archives", "models", "ckpt", "export", "detector", "training", "runtime", "align", *CONVERT}
USES_TORCH = ("convert/parity/", "convert/training/")
# Written out, because sys.stdlib_module_names is missing in Python 3.9.
STANDARD = set(
    "__future__ abc argparse array ast asyncio atexit base64 bisect calendar codecs collections concurrent contextlib "
    "copy csv ctypes dataclasses datetime decimal difflib enum errno fnmatch fractions functools gc getpass glob gzip "
    "hashlib heapq hmac html importlib inspect io itertools json linecache locale logging math mimetypes mmap "
    "multiprocessing numbers operator os pathlib pickle pkgutil platform pprint queue random re reprlib resource "
    "runpy secrets select shlex shutil signal socket sqlite3 stat statistics string struct subprocess sys sysconfig "
    "tarfile tempfile textwrap threading time timeit tokenize traceback types typing unicodedata urllib uuid warnings "
    "weakref zipfile zlib".split()
)
MOST_LINES, MOST_CLASS_LINES, MOST_FACE_LINES = 450, 300, 40
# The registry of architectures, and a tool that is run as `python -m aidet.xihe`.
NO_FACE = ("aidet/models/__init__.py", "aidet/xihe/__init__.py")


# --- places ----------------------------------------------------------------------------------------------------------
def place(path):
    """The room, ground file, tool or script that a path relative to the root belongs to.

    Raises
    ------
    AssertionError
        It belongs to none of these.
    """
    parts = Path(path).parts
    stem = Path(path).stem
    if parts == ("aidet", "__init__.py"):
        return "aidet"
    if len(parts) == 2 and parts[0] == "aidet" and (layer(stem) is not None or stem in TOOLS):
        return stem
    if len(parts) == 3 and parts[0] == "aidet" and parts[1] in ROOMS:
        return parts[1]
    if len(parts) == 2 and parts[0] == "convert":
        return "convert"
    if len(parts) == 3 and parts[0] == "convert" and parts[1] in CONVERT_FOLDERS:
        return CONVERT_FOLDERS[parts[1]]
    if len(parts) == 1 and parts[0] in SCRIPTS:
        return parts[0]
    raise AssertionError(f"{path} is in no room: put it into one, or enter it in the tables of {Path(__file__).name}")


def layer(name):
    """Index of the layer of the ground that a name is in, else None."""
    return next((i for i, names in enumerate(GROUND) if name in names), None)


def may_import(mine, other):
    """Whether a file of one place may import a file of another."""
    if other == "aidet":
        return True  # the version
    if mine == "aidet":
        return False
    if layer(mine) is not None:
        return layer(other) is not None and layer(other) < layer(mine)
    return other == mine or layer(other) is not None or other in ALLOWED[mine]


def files():
    """All Python files of the product, as paths relative to the root."""
    found = [*ROOT.glob("*.py"), *(ROOT / "aidet").rglob("*.py"), *(ROOT / "convert").rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


# --- imports ---------------------------------------------------------------------------------------------------------
def imports(source, path):
    """What a source file imports, anywhere in it.

    Returns
    -------
    list of (str, str, bool, int)
        The module imported from, the full name of what is imported, whether this happens when the file itself is
        imported, and the line number.
    """
    package = Path(path).parts[:-1]
    tree = ast.parse(source)
    early = set(map(id, module_level(tree)))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, alias.name, id(node) in early, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found += [(stem, f"{stem}.{alias.name}", id(node) in early, node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.append((name.value, name.value, False, node.lineno))
    return found


def module_level(tree):
    """The nodes that run when a file is imported: outside functions and outside ``if TYPE_CHECKING``."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for child in ast.iter_child_nodes(node):
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            if not function and not typing_only:
                waiting.append(child)


def file_of(module):
    """The file of a module of the project; None if it is not a module."""
    stem = module.replace(".", "/")
    return next((p for p in (f"{stem}.py", f"{stem}/__init__.py") if (ROOT / p).is_file()), None)


def own(path):
    """The files of the project that a file imports: list of (path, line)."""
    found = []
    for stem, name, _, line in imports((ROOT / path).read_text(encoding="utf-8"), path):
        if stem.split(".")[0] not in ("aidet", "convert") and f"{stem.split('.')[0]}.py" not in SCRIPTS:
            continue
        if path == "aidet/__init__.py" and name.replace(f"{stem}.", "aidet.") in LAZY:
            continue
        if name.startswith("aidet.convert."):  # its name in the wheel
            name, stem = name[len("aidet.") :], stem[len("aidet.") :]
        target = file_of(LAZY.get(name, name)) or file_of(stem)
        assert target is not None, f"{path}:{line} imports {name}, which is not there"
        found.append((target, line))
    return found


def cycle(graph):
    """A cycle in a graph {node: nodes}: its nodes, with the first one repeated at the end; None if there is none."""
    done, way = set(), []

    def visit(node):
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return None
        way.append(node)
        found = next(filter(None, map(visit, sorted(graph.get(node, ())))), None)
        way.pop()
        done.add(node)
        return found

    return next(filter(None, map(visit, sorted(graph))), None)


# --- the checks themselves can fail ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path",
    ["aidet/extra.py", "aidet/extra/__init__.py", "aidet/images/deep/file.py", "convert/extra/file.py", "extra.py"],
)
def test_what_is_not_listed_is_found(path):
    with pytest.raises(AssertionError, match="is in no room"):
        place(path)


@pytest.mark.parametrize(
    "mine, other, allowed",
    [
        ("detector", "images", True),
        ("images", "detector", False),
        ("models", "images", False),
        ("images", "errors", True),
        ("images", "align", False),
        ("records", "labels", True),
        ("labels", "files", False),
        ("errors", "labels", False),
        ("files", "images", False),
        ("convert", "detector", False),
        ("convert.training", "detector", True),
        ("convert", "convert.training", False),
        ("training", "convert", False),
        ("app.py", "app", True),
        ("app.py", "export.py", False),
        ("runtime", "aidet", True),
    ],
)
def test_the_table_is_read_right(mine, other, allowed):
    assert may_import(mine, other) is allowed


def test_every_way_to_import_is_seen():
    source = (
        "import aidet.files, numpy\n"
        "from . import pipeline\n"
        "from ..errors import UserError\n"
        "try:\n    import torch\nexcept ImportError:\n    pass\n"
        "if TYPE_CHECKING:\n    import mindspore\n"
        "class A:\n    import gradio\n    def f(self):\n        from aidet import ckpt\n"
        "importlib.import_module('convert.hub')\n"
    )
    found = {name: early for _, name, early, _ in imports(source, "aidet/images/reading.py")}
    assert found == {
        "aidet.files": True, "numpy": True, "aidet.images.pipeline": True, "aidet.errors.UserError": True,
        "torch": True, "mindspore": False, "gradio": True, "aidet.ckpt": False, "convert.hub": False,
    }  # fmt: skip
    face = imports("from .reading import decode\nfrom .. import files", "aidet/images/__init__.py")
    assert [name for _, name, _, _ in face] == ["aidet.images.reading.decode", "aidet.files"]


def test_circles_are_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle({"a": {"a"}}) == ["a", "a"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


# --- the house -------------------------------------------------------------------------------------------------------
def test_everything_listed_exists():
    names = {*ROOMS, *TOOLS, *(name for names in GROUND for name in names)}
    missing = [name for name in sorted(names) if file_of(f"aidet.{name}") is None]
    missing += [script for script in SCRIPTS if not (ROOT / script).is_file()]
    missing += [path for path in (*EARLY, *NO_FACE) if not (ROOT / path).is_file()]
    assert not missing
    assert all((ROOT / "convert" / folder / "__init__.py").is_file() for folder in CONVERT_FOLDERS)


@pytest.mark.parametrize("path", files())
def test_a_room_imports_what_the_table_allows(path):
    mine = place(path)
    wrong = [f"line {line}: {target}" for target, line in own(path) if not may_import(mine, place(target))]
    assert not wrong, f"{path} ({mine}) may not import {wrong}"


def test_no_circles_of_files():
    found = cycle({path: {target for target, _ in own(path)} for path in files()})
    assert found is None, " -> ".join(found)


def test_no_circles_of_rooms():
    assert cycle(ALLOWED) is None
    graph = {}
    for path in files():
        others = {place(target) for target, _ in own(path)}
        graph.setdefault(place(path), set()).update(others - {place(path)})
    found = cycle(graph)
    assert found is None, " -> ".join(found)


@pytest.mark.parametrize("path", files())
def test_third_parties(path):
    """torch only in parity code, MindSpore not below the models, and almost no dependencies in the ground."""
    mine = place(path)
    used = {name.split(".")[0] for _, name, _, _ in imports((ROOT / path).read_text(encoding="utf-8"), path)}
    if not path.startswith(USES_TORCH):
        assert not used & TORCH, f"{path} imports {used & TORCH}"
    if mine not in USES_MINDSPORE:
        assert not used & MINDSPORE, f"{path} imports {used & MINDSPORE}"
    if (layer(mine) is not None and mine != "runtime") or mine == "config":
        assert used <= STANDARD | {"aidet", "numpy", "tqdm", "yaml"}, f"{path} imports {used - STANDARD}"


@pytest.mark.parametrize("path", files())
def test_frameworks_are_imported_late(path):
    if path.startswith("aidet/models/") or path in EARLY:
        return
    found = imports((ROOT / path).read_text(encoding="utf-8"), path)
    early = [f"line {line}: {name}" for _, name, now, line in found if now and name.split(".")[0] in HEAVY]
    assert not early, f"{path} imports at module level: {early}"


def test_faces_and_workers_load_no_framework():
    """A face must not import its compiled cells, or a worker process would load MindSpore needlessly."""
    modules = [f"aidet.{room}" for room in ROOMS] + ["aidet.training.workers", "convert"]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "    bad = set(sys.argv[1].split()) & set(sys.modules)\n"
        "    assert not bad, (name, bad)\n"
    )
    command = [sys.executable, "-c", code, " ".join(sorted(HEAVY)), *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", files())
def test_docstrings_name_modules_that_exist(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    text = "\n".join(ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds))
    there = {p.stem for p in (ROOT / "aidet").iterdir()} | {"convert", "scripts", "Detector", "Localizer"}
    named = set(re.findall(r"(?<![\w./-])aidet\.(\w+)", text))
    assert named <= there, named - there


def test_the_design_page_shows_these_tables():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `aidet/(\w+)/` \|.*\| ([^|]*) \|$", page, re.M)
    assert {name: set(re.findall(r"\w+", cell)) - {"nothing"} for name, cell in shown} == ROOMS
    rules = page.partition("The same test checks")[2].partition("\n\nThe other folders")[0]
    places, early = rules.partition("ONNX are imported only in")[2].split("No framework")
    assert set(re.findall(r"`(\w+)`", places)) == {name.split(".")[0] for name in USES_MINDSPORE}
    early = re.findall(r"`(\w+)`", early.partition("`aidet/models/`")[2].partition("`--help`")[0])
    assert sorted(early) == sorted(Path(path).stem for path in EARLY)


@pytest.mark.parametrize("path", [path for path in files() if path.startswith("aidet/")])
def test_nothing_outgrows_its_room(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    lines = len(source.splitlines())
    assert lines <= MOST_LINES, f"{path} has {lines} lines"
    if path.endswith("/__init__.py") and path not in NO_FACE:
        assert lines <= MOST_FACE_LINES, f"{path}, a face, has {lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            size = node.end_lineno - node.lineno + 1
            assert size <= MOST_CLASS_LINES, f"class {node.name} of {path} has {size} lines"


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "setup.py"])
def test_help_loads_no_framework(run, script):
    code = (
        "import runpy, sys\n"
        "heavy = set(sys.argv.pop(1).split())\n"
        "sys.argv = [sys.argv[1], '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as e:\n    assert not e.code, e.code\n"
        "bad = heavy & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = run("-c", code, " ".join(sorted(HEAVY)), ROOT / script)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
