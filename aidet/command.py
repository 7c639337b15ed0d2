"""The console command ``aidet``: the root scripts under one name, wherever the package is installed.

aidet infer      score images                   (infer.py)
aidet evaluate   measure a detector             (evaluate.py)
aidet app        the application in a browser   (app.py)
aidet export     MindIR, ONNX                   (export.py; needs MindSpore)
aidet train      train or finetune              (train.py; needs MindSpore)
aidet convert    PyTorch weights to MindSpore   (python -m convert in the repository; needs MindSpore)
aidet xihe       folders for the Xihe platform  (python -m aidet.xihe)
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Callable, List, Optional, Sequence

from . import __version__, cli
from .errors import UserError, nearest

SCRIPTS = ("infer", "evaluate", "app", "export", "train")
COMMANDS = (*SCRIPTS, "convert", "xihe")
# The root of the repository, if the package is inside one; in the wheel everything is below aidet.
ROOT = Path(__file__).resolve().parents[1]


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Entry point of the wheel; exits with the exit code of the script."""
    cli.main(run, None if argv is None else list(argv))


def run(argv: List[str]) -> int:
    """Run ``aidet COMMAND ...`` and return the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: aidet COMMAND [--help] ...\n\n" + cli.plain((__doc__ or "").strip()))
        return cli.OK
    if argv[0] in ("-V", "--version"):
        print(f"aidet {__version__}")
        return cli.OK
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        raise UserError(nearest(name, COMMANDS, "command"))
    with cli.installed_command():
        try:
            return entry(name)(rest)
        except UserError as error:
            raise UserError(cli.as_called(str(error))) from None


def entry(name: str) -> Callable[[List[str]], int]:
    """The function that runs a command; it takes the arguments and returns the exit code."""
    if name == "xihe":
        from . import xihe

        return xihe.run
    if name == "convert":
        return converter().run
    module = script(name)
    return getattr(module, "run", None) or module.main


def converter() -> ModuleType:
    """The module of the converter's command line, from the wheel or else from the root of the repository.

    The wheel contains the repository's folder ``convert`` as ``aidet.convert``. Nothing in aidet depends on it, so it
    is imported by name.
    """
    if importlib.util.find_spec("aidet.convert") is None:
        _load("aidet.convert", ROOT / "convert" / "__init__.py")
    return importlib.import_module("aidet.convert.__main__")


def script(name: str) -> ModuleType:
    """A root script as a module, from the wheel or else from the root of the repository."""
    if importlib.util.find_spec("aidet.scripts") is not None:
        return importlib.import_module(f"aidet.scripts.{name}")
    return _load(f"aidet_script_{name}", ROOT / f"{name}.py")


def _load(name: str, path: Path) -> ModuleType:
    """Import a repository file under a name; an ``__init__.py`` is imported as a package with the files next to it."""
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        shown = path.relative_to(ROOT).as_posix()
        raise UserError(f"{shown} is missing from this installation; install the wheel, or run in the repository")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
