"""The console command ``aidet``: the root scripts under one name, wherever the package is installed.

aidet infer      score images                   (infer.py)
aidet evaluate   measure a detector             (evaluate.py)
aidet app        the application in a browser   (app.py)
aidet export     MindIR, ONNX                   (export.py; needs MindSpore)
aidet train      train or finetune              (train.py; needs MindSpore)
aidet convert    PyTorch weights to MindSpore   (python -m convert; needs MindSpore)
aidet xihe       folders for the Xihe platform  (python -m aidet.xihe)
"""

import importlib
import importlib.util
import sys
from pathlib import Path

from . import __version__, cli
from .errors import UserError, nearest

SCRIPTS = ("infer", "evaluate", "app", "export", "train")
COMMANDS = (*SCRIPTS, "convert", "xihe")


def main(argv=None):
    """Entry point of the wheel; leaves with the exit code of the script."""
    cli.main(run, argv)


def run(argv):
    """``aidet COMMAND ...``; gives the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: aidet COMMAND [--help] ...\n\n" + __doc__.strip())
        return cli.OK
    if argv[0] in ("-V", "--version"):
        print(f"aidet {__version__}")
        return cli.OK
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        raise UserError(nearest(name, COMMANDS, "command"))
    return entry(name)(rest)


def entry(name):
    """The function behind a command; it takes the arguments and gives the exit code."""
    if name == "xihe":
        from . import xihe

        return xihe.run
    if name == "convert":
        # By name: nothing in aidet depends on the converter, which is a package of its own.
        return importlib.import_module("convert.__main__").run
    module = script(name)
    return getattr(module, "run", None) or module.main


def script(name):
    """A root script as a module: from the wheel, else from the root of the repository."""
    if importlib.util.find_spec("aidet.scripts") is not None:
        return importlib.import_module(f"aidet.scripts.{name}")
    path = Path(__file__).resolve().parents[1] / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"aidet_script_{name}", path)
    if not path.is_file():
        raise UserError(f"{name}.py is missing from this installation; install the wheel, or run in the repository")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
