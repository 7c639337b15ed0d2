"""The import direction of docs/design.md, and that nothing heavy is imported before it is needed."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = {
    0: {"errors", "labels", "records", "config", "files", "cli"},
    1: {"images", "transforms", "vote", "metrics", "audit", "leaks", "truth", "output", "augment", "datasets"},
    2: {"runtime", "dataset", "models", "ckpt", "losses", "optim", "onnx_export", "exportable"},
    3: {"training", "engine", "report"},
}
ROOT_SCRIPTS = ("train", "infer", "evaluate", "export", "app")
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


def level(module):
    """Level of ``aidet.<module>``; what is not listed is of the top level, where everything below may be used."""
    return next((n for n, names in LEVELS.items() if module in names), 3)


def imports(path):
    """(full module name, is it at module level) of every import statement in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT).with_suffix("").parts
    top = {id(n) for n in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: -node.level]) if node.level else []
            if path.name == "__init__.py" and node.level:
                base = list(package[: len(package) - node.level])
            stem = ".".join(base + ([node.module] if node.module else []))
            for alias in node.names:
                yield (f"{stem}.{alias.name}" if stem else alias.name), id(node) in top


def product_files():
    folders = [ROOT / "aidet", ROOT / "convert"]
    return [p for f in folders for p in sorted(f.rglob("*.py"))] + [
        p for n in ROOT_SCRIPTS if (p := ROOT / f"{n}.py").exists()
    ]


@pytest.mark.parametrize("path", product_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    for name, _ in imports(path):
        words = name.split(".")
        if parts[0] == "aidet":
            assert words[0] not in ("convert", *ROOT_SCRIPTS), f"{path}: imports {name}"
            assert words[0] != "torch", f"{path}: imports torch"
            mine = level(parts[1]) if len(parts) > 1 and parts[1] != "__init__" else 3
            if words[0] == "aidet" and len(words) > 1 and words[1] != "__version__":
                assert level(words[1]) <= mine, f"{path} (level {mine}) imports {name} (level {level(words[1])})"
            if mine < 2:
                assert words[0] not in ("mindspore", "mindcv", "onnxruntime"), f"{path}: imports {name}"
            if mine == 0:
                assert words[0] in STANDARD | {"numpy", "yaml", "aidet", "tqdm"}, f"{path}: imports {name}"
        elif parts[0] in ROOT_SCRIPTS:
            assert words[0] not in ROOT_SCRIPTS, f"{path}: imports {name}"
            assert words[0] != "torch", f"{path}: imports torch"


@pytest.mark.parametrize("path", product_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_frameworks_are_imported_late(path):
    parts = path.relative_to(ROOT).parts
    if parts[:2] == ("aidet", "models"):
        return  # architectures are MindSpore code; aidet.models imports them on the first create()
    if parts == ("aidet", "app", "page.py"):
        return  # the page itself; aidet.app.server imports it when the application starts
    if parts in (("aidet", "convolutions.py"), ("aidet", "optim.py"), ("aidet", "steps.py")):
        return  # cells that are compiled, like architectures; aidet.training imports them when a run starts
    heavy = (
        "mindspore",
        "mindcv",
        "torch",
        "onnxruntime",
        "onnx",
        "sklearn",
        "scipy",
        "matplotlib",
        "transformers",
        "gradio",
    )
    early = [name for name, top in imports(path) if top and name.split(".")[0] in heavy]
    assert not early, f"{path}: imports {early} at module level"


@pytest.mark.parametrize("script", [n for n in ROOT_SCRIPTS if (ROOT / f"{n}.py").exists()])
def test_help_loads_no_framework(run, script):
    code = (
        "import runpy, sys\n"
        "sys.argv = [sys.argv[1], '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as e:\n    assert not e.code, e.code\n"
        "bad = {'mindspore', 'mindcv', 'torch', 'onnxruntime', 'sklearn', 'matplotlib', 'gradio'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = run("-c", code, ROOT / f"{script}.py")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
