"""The folders that the Xihe platform expects: ``python -m aidet.xihe pack``; see docs/xihe.md.

``train/<name>/`` holds the boot file ``train.py``, ``pip-requirements.txt`` beside it, the recipe and this package;
``inference/`` holds ``app.py`` for Gradio 3.21.0, ``config.json`` and ``requirements.txt``; ``model/`` holds the files
for the model repository that ``config.json`` names. Only ``train/`` and ``inference/`` go into the project, and none of
their files may be kept in git-LFS, because scheduling fails then.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

from .. import cli, config, files
from ..errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
# The recipes of the wheel, or those of the repository.
_SHIPPED = files.SHIPPED / "mindcv_cfg"
RECIPES = _SHIPPED if _SHIPPED.is_dir() else PACKAGE.parent / "mindcv_cfg"
NAME = re.compile(r"[a-zA-Z0-9_]{5,50}")
BOOT_FILE = re.compile(r"[a-zA-Z0-9_/]+\.py")
# Files that hosts usually keep in git-LFS; weights go into the model repository instead.
WEIGHTS = frozenset(".ckpt .onnx .mindir .air .safetensors .bin .pt .pth .npz .h5 .zip .tar .gz .7z .msgpack".split())
LARGEST = 5 << 20
POINTER = b"version https://git-lfs.github.com/spec/v1"
# Training images contain MindSpore (2.2.10 to 2.7.1) on Python 3.9: it is not listed here, so that it is not replaced.
TRAIN_REQUIREMENTS = """\
# Installed by the platform before the job starts. MindSpore comes with the image and is not listed.
numpy>=1.22,<2
pillow>=9.5
pyyaml>=6
tqdm>=4.64
mindcv==0.3.0
scikit-learn>=1.3
scipy>=1.10
matplotlib>=3.7
jinja2>=3.1
imagehash>=4.3
tensorboardX>=2.6
"""
# The inference image: CPU, Python 3.9. The lines after Gradio pin its dependencies to versions of its time.
INFERENCE_REQUIREMENTS = """\
gradio==3.21.0
numpy==1.23.5
pandas==1.5.3
matplotlib==3.7.1
pillow==9.5.0
pyyaml==6.0.1
tqdm==4.66.4
onnxruntime==1.16.3
pydantic==1.10.17
fastapi==0.103.2
starlette==0.27.0
uvicorn==0.23.2
httpx==0.24.1
httpcore==0.17.3
websockets==11.0.3
aiohttp==3.9.5
aiofiles==23.2.1
altair==4.2.2
huggingface_hub==0.17.3
jinja2==3.1.4
markupsafe==2.1.5
markdown-it-py==2.2.0
mdit-py-plugins==0.3.3
orjson==3.9.15
python-multipart==0.0.9
requests==2.31.0
"""


# --- pack ------------------------------------------------------------------------------------------------------------
def pack(
    checkpoint: Union[str, Path],
    out: Union[str, Path],
    repo: str,
    name: str = "aidet",
    recipe: Union[None, str, Path] = None,
) -> Dict[str, Any]:
    """Write ``train/``, ``inference/`` and ``model/``.

    Parameters
    ----------
    checkpoint : str or Path
        A detector: ``.ckpt`` with its sidecar (exported to ONNX here), or an exported ``.onnx``.
    out : str or Path
        New or empty folder.
    repo : str
        ``user/repository`` of the model repository for the weights.
    name : str
        Folder below ``train/``; 5 to 50 letters, digits and underscores.
    recipe : str or Path, optional
        Configuration of a job without ``-c``; default: ``mindcv_cfg/efficientnet_lite0_aigen.yaml``.

    Returns
    -------
    dict
        ``code_dir``, ``boot_file``, ``model`` (files for the model repository).

    Raises
    ------
    UserError
        A name that the platform refuses, a missing checkpoint or recipe, a checkpoint that is no detector, or a folder
        that is not empty.
    """
    out, checkpoint = Path(out), Path(checkpoint)
    _check_names(name, repo)
    recipe = Path(recipe) if recipe else RECIPES / "efficientnet_lite0_aigen.yaml"
    config.load(recipe)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {str(out)!r} exists and is not an empty folder; give a new one")
    if not checkpoint.is_file():
        raise UserError(f"--ckpt {str(checkpoint)!r} does not exist")
    if checkpoint.suffix not in (".ckpt", ".onnx"):
        raise UserError(f"--ckpt {str(checkpoint)!r} is neither a .ckpt nor an exported .onnx; give one detector")
    try:
        return _pack(checkpoint, out, repo, name, recipe)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _pack(checkpoint, out, repo, name, recipe):
    from ..app.service import Service

    model = _model(checkpoint, out / "model")
    Service([model])  # as the packed app opens it: refuses what is no detector
    train, inference = out / "train" / name, out / "inference"
    for folder, boot in ((train, "train.py"), (inference, "app.py")):
        left = shutil.ignore_patterns("__pycache__", "*.pyc", "convert", "shipped")
        shutil.copytree(PACKAGE, folder / "aidet", ignore=left)
        shutil.copy(Path(__file__).with_name(f"boot_{boot}"), folder / boot)
    shutil.copy(recipe, train / "recipe.yaml")
    _write(train / "pip-requirements.txt", TRAIN_REQUIREMENTS)
    _write(inference / "requirements.txt", INFERENCE_REQUIREMENTS)
    files.write_json(inference / "config.json", {"model_path": [f"{repo}/{model.name}"]})
    check(out)
    names = sorted(p.name for p in model.parent.iterdir())
    return {"code_dir": f"train/{name}/", "boot_file": "train.py", "model": names}


def _check_names(name, repo):
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name!r} must be 5 to 50 letters, digits or underscores")
    user, _, repository = repo.partition("/")
    if not re.fullmatch(r"[a-zA-Z0-9_.-]+", user) or not NAME.fullmatch(repository):
        raise UserError(f"--repo {repo!r} must be user/repository, the latter 5 to 50 letters, digits or underscores")


def _model(checkpoint, folder):
    """Export or copy the detector to ``model/``, under a name that the platform accepts."""
    stem = re.sub(r"[^a-zA-Z0-9_]", "_", checkpoint.stem)
    target = folder / f"{stem}.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint.suffix == ".onnx":
        shutil.copy(checkpoint, target)
        return target
    from ..export import exporter

    verdict = exporter.export(checkpoint, "onnx", folder)
    made = folder / verdict["file"]
    made.with_name(made.name + ".json").rename(target.with_name(target.name + ".json"))
    return made.rename(target)


def _write(path, text):
    with files.atomic(path) as file:
        file.write(text)


# --- check -----------------------------------------------------------------------------------------------------------
def check(out: Union[str, Path]) -> List[str]:
    """Check the folders for what the platform would refuse.

    Parameters
    ----------
    out : str or Path
        Folder with ``train/`` and ``inference/``.

    Returns
    -------
    list of str
        The checks that passed.

    Raises
    ------
    UserError
        At the first fault.
    """
    out = Path(out)
    for path in _wanted(out):
        if not path.is_file():
            raise UserError(f"{path.relative_to(out)} is missing")
    for path in sorted(p for top in ("train", "inference") for p in (out / top).rglob("*") if p.is_file()):
        fault = _fault(path)
        if fault:
            raise UserError(f"{path.relative_to(out)}: {fault}; no file of the project may be kept in git-LFS")
    listed = files.read_json(out / "inference" / "config.json", "config.json")
    paths = listed.get("model_path") if isinstance(listed, dict) else None
    if (
        not isinstance(paths, list)
        or not paths
        or not all(re.fullmatch(r"[^/\s]+/[^/\s]+/[^\s]+", str(p)) for p in paths)
    ):
        raise UserError("inference/config.json must be {'model_path': ['user/repository/file']}")
    return ["names", "no git-LFS", "config.json"]


def _wanted(out):
    """The files that must exist."""
    folders = sorted(p for p in (out / "train").glob("*") if p.is_dir())
    if not folders:
        raise UserError(f"{str(out)!r} has no folder below train/; make one with: python -m aidet.xihe pack")
    for folder in folders:
        boot = f"train/{folder.name}/train.py"
        if not NAME.fullmatch(folder.name) or not BOOT_FILE.fullmatch(boot):
            raise UserError(f"train/{folder.name}: the name must be 5 to 50 letters, digits or underscores")
        yield from (folder / n for n in ("train.py", "pip-requirements.txt"))
    yield from (out / "inference" / n for n in ("app.py", "config.json", "requirements.txt"))


def _fault(path):
    if path.name == ".gitattributes" and b"filter=lfs" in path.read_bytes():
        return "turns git-LFS on"
    if path.suffix.lower() in WEIGHTS:
        return f"{path.suffix} files are usually kept in git-LFS; put this one into the model repository"
    if path.stat().st_size > LARGEST:
        return f"larger than {LARGEST >> 20} MB"
    with open(path, "rb") as file:
        return "is a git-LFS pointer" if file.read(len(POINTER)) == POINTER else None


# --- what the packed boot file calls ---------------------------------------------------------------------------------
def without_unknown(argv: List[str]) -> Tuple[List[str], List[str]]:
    """Split a command line into the flags that a configuration knows, and those that it does not.

    Platforms add flags of their own to every job, different ones each year, so an unknown flag must not stop a job.

    Parameters
    ----------
    argv : list of str

    Returns
    -------
    (list of str, list of str)
    """
    known = {*config.SCHEMA, *config.ALIASES, "config", "dry_run"}
    kept: List[str] = []
    dropped: List[str] = []
    keep = True
    for word in argv:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            keep = name in known or (name.startswith("no_") and name[3:] in config.SCHEMA)
        elif word == "-c":
            keep = True
        (kept if keep else dropped).append(word)
    return kept, dropped


def train(argv: List[str], recipe: Union[str, Path]) -> int:
    """Train as ``train.py`` does, with the packed recipe if there is no ``-c``; unknown flags are ignored."""
    argv, dropped = without_unknown(argv)
    if dropped:
        print(f"note: ignored, no key of a configuration: {' '.join(dropped)}", file=sys.stderr)
    path, overrides, flags = config.parse_args(argv, flags=("dry_run",))
    settings = config.load(path or recipe, overrides)
    from ..training import run

    return run.train(settings, dry_run="dry_run" in flags)


# --- command line ----------------------------------------------------------------------------------------------------
def run(argv: List[str]) -> int:
    """``python -m aidet.xihe pack|check``."""
    p = cli.Parser(prog="python -m aidet.xihe", description=__doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="pack|check")
    c = commands.add_parser("pack", help="write train/, inference/ and model/")
    c.add_argument("--ckpt", required=True, metavar="A.ckpt", help="detector: a checkpoint, or an exported .onnx")
    c.add_argument("--out", required=True, metavar="DIR")
    c.add_argument("--repo", required=True, metavar="USER/MODEL", help="the model repository for the weights")
    c.add_argument("--name", default="aidet", help="folder below train/ (default aidet)")
    c.add_argument("--config", metavar="X.yaml", help="recipe of a job without -c")
    c = commands.add_parser("check", help="check for what the platform would refuse")
    c.add_argument("out", metavar="DIR")
    args = p.parse_args(argv)
    if args.command == "check":
        print("ok: " + ", ".join(check(args.out)))
        return cli.OK
    made = pack(args.ckpt, args.out, args.repo, args.name, args.config)
    print(
        f"wrote {args.out}: put train/ and inference/ into the project, {', '.join(made['model'])} from model/ into "
        f"{args.repo}\ntraining form: code_dir {made['code_dir']}, boot_file {made['boot_file']}; inputs data_url, "
        f"pretrain_url"
    )
    return cli.OK


def model_files(here: Union[str, Path]) -> List[Path]:
    """Models of ``config.json`` in the folder of the packed ``app.py``; the platform puts them there by base name."""
    listed = json.loads((Path(here) / "config.json").read_text(encoding="utf-8"))["model_path"]
    found = [Path(here) / p.rsplit("/", 1)[-1] for p in listed]
    missing = [p.name for p in found if not p.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is not beside app.py; the platform puts the files of config.json there")
    return [p for p in found if p.suffix in (".onnx", ".ckpt")]
