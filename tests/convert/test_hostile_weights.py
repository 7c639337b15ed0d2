"""Untrusted weights, through the real command line: refused in one line, in bounded memory, and no file left behind.

The long part (thousands of mutations, coverage-guided fuzzing) is in tests/torture.
"""

import io
import json
import os
import signal
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))
import hostile

import infer
from aidet import ckpt, cli, models, runtime
from aidet.errors import UserError
from convert import __main__ as command
from convert import reading

MEMORY = 384 << 20  # bytes that Python and NumPy may allocate on any of these files
SECONDS = 60  # far more than a busy machine needs; a reader that hangs is stopped after this time


class TooLong(BaseException):
    """Raised by the timer; no handler of the product catches it."""


def convert(capsys, *argv):
    """Run ``python -m convert`` in this process: exit code, lines on stderr, peak bytes allocated."""

    def stop(*_):
        raise TooLong(f"over {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    tracemalloc.start()
    try:
        with pytest.raises(SystemExit) as end:
            cli.main(command.run, [str(a) for a in argv])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return end.value.code, capsys.readouterr().err, peak


@pytest.fixture
def refused(tmp_path, capsys):
    """Convert a source and check everything that must be true of a refusal; returns the message."""

    def check(source, *flags, memory=MEMORY):
        out = tmp_path / "out"
        code, said, peak = convert(capsys, source, out / "x.ckpt", *flags)
        assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, (code, said)
        assert len(said) < 6000 and "Traceback" not in said
        assert peak < memory, f"{peak >> 20} MiB for {source}"
        assert not out.exists() or not any(out.iterdir()), "something was left behind"
        return said

    return check


def test_the_well_formed_files_convert(tmp_path, capsys):
    """Otherwise a refusal in the tests below would prove nothing."""
    makers = {"a.safetensors": hostile.safetensors, "a.pth": hostile.torch_zip, "a.npz": hostile.npz}
    for name, make in makers.items():
        code, said, _ = convert(capsys, make(tmp_path / name), tmp_path / f"{name}.ckpt")
        assert code == 0, said
        got = ckpt.load_arrays(tmp_path / f"{name}.ckpt")
        assert all(np.array_equal(got[n], a) for n, a in hostile.good_arrays().items())


# --- pickles ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", hostile.attacks("x"))
def test_code_in_a_pickle_is_not_run(tmp_path, refused, name):
    marker = tmp_path / "executed"
    value = hostile.attacks(marker)[name]
    said = refused(hostile.torch_zip(tmp_path / "x.pth", hostile.in_state_dict(value)))
    assert "nothing was executed" in said
    legacy = b"".join(hostile.pickle.dumps(v, 2) for v in (reading.LEGACY_MAGIC, 1001, {"little_endian": True}))
    (tmp_path / "x.bin").write_bytes(legacy + hostile.in_state_dict(value))
    assert "nothing was executed" in refused(tmp_path / "x.bin")
    assert not marker.exists()


HARMLESS = {
    "lists in lists",
    "tuples in tuples",
    "a doubling list as a device",
    "a memo number of two thousand million",
}


@pytest.mark.parametrize("name", hostile.bombs())
def test_a_bomb_in_a_pickle_stays_small(tmp_path, capsys, refused, name):
    """Refused; or, if the nested value is an entry that is not a tensor, left out, and the weights are correct."""
    path = hostile.torch_zip(tmp_path / "x.pth", hostile.in_state_dict(hostile.bombs()[name]))
    if name not in HARMLESS:
        refused(path)
        return
    code, said, peak = convert(capsys, path, tmp_path / "x.ckpt")
    assert code == 0 and peak < MEMORY, said
    got = ckpt.load_arrays(tmp_path / "x.ckpt")
    assert all(np.array_equal(got[n], a) for n, a in hostile.good_arrays().items())


def test_doubled_names_in_torch_files(tmp_path, refused):
    items, _ = hostile.good_pickle()
    path = tmp_path / "x.pth"
    assert "'fc3.bias' stands twice" in refused(hostile.torch_zip(path, hostile.state_dict([*items, items[-1]])))
    with pytest.warns(UserWarning, match="Duplicate name"):
        hostile.torch_zip(path, extra=[("archive/data/0", b"\0" * 1800)])
    assert "two members of one name" in refused(path)


def test_names_that_would_write_to_the_terminal(tmp_path, refused):
    for name in ("\x1b[2Jweight", "a\nb", "\ud800", "x" * 5000):
        arrays = {**hostile.good_arrays(), name: np.zeros(1, np.float32)}
        said = refused(hostile.safetensors(tmp_path / "x.safetensors", arrays))
        assert "is no name of a tensor" in said and said.isprintable() is False and said[:-1].isprintable()


# --- safetensors ------------------------------------------------------------------------------------------------------
def _set(name, **values):
    return lambda header: header[name].update(values)


HEADERS = {
    "terabytes": (_set("fc1.weight", shape=[1 << 40, 400]), "damaged"),
    "terabytes, offsets too": (_set("fc1.weight", shape=[1 << 40], data_offsets=[0, 1 << 42]), "truncated"),
    "negative sizes": (_set("fc3.weight", shape=[-1, -84]), "no counts"),
    "a size that is no whole number": (_set("fc3.weight", shape=[1.0, 84]), "no counts"),
    "infinite size": (_set("fc3.weight", shape=[float("inf"), 84]), "no counts"),
    "true as a size": (_set("fc3.weight", shape=[True, 84]), "no counts"),
    "a number too large for 64 bits": (_set("fc3.weight", shape=[10**30, 0]), "no counts"),
    "offsets turned round": (_set("fc3.bias", data_offsets=[8, 4]), "damaged"),
    "three offsets": (_set("fc3.bias", data_offsets=[0, 4, 8]), "no counts"),
    "overlap": (
        lambda h: h["fc3.bias"].update(data_offsets=h["fc2.bias"]["data_offsets"], shape=[84]),
        "starts at byte",
    ),
    "a thousand dimensions": (_set("fc3.bias", shape=[1] * 1000), "dimensions"),
    "unknown type": (_set("fc3.bias", dtype="F4"), "'F4' is not one"),
    "type that is a list": (_set("fc3.bias", dtype=[]), "cannot be read"),
    "no type": (lambda h: h["fc3.bias"].pop("dtype"), "'dtype'"),
    "an entry that is a list": (lambda h: h.update({"fc3.bias": []}), "cannot be read"),
    "values nobody owns": (lambda h: h.pop("fc3.bias"), "bytes of values"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_safetensors_headers(tmp_path, refused, name):
    change, wanted = HEADERS[name]
    assert wanted in refused(hostile.safetensors(tmp_path / "x.safetensors", change=change))


def test_safetensors_doubled_nested_and_long(tmp_path, refused):
    path = tmp_path / "x.safetensors"
    twice = hostile.safetensors(
        path, raw=lambda t: t[:-1] + ', "fc3.bias": ' + json.dumps(json.loads(t)["fc3.bias"]) + "}"
    )
    assert "appears twice" in refused(twice)
    assert "cannot be read" in refused(hostile.safetensors(path, raw=lambda t: '{"a":' + "[" * 100_000))
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{" + b" " * 100)
    assert "truncated" in refused(path)
    with open(path, "wb") as file:  # a sparse file: a header of a gigabyte that takes no space
        file.write(struct.pack("<Q", 1 << 30) + b"{")
        file.truncate(1 << 31)
    assert "header of 1073741824 bytes" in refused(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path, refused, value):
    arrays = hostile.good_arrays()
    arrays["fc1.weight"][5, 7] = value
    for path in (hostile.safetensors(tmp_path / "x.safetensors", arrays), tmp_path / "x.npz"):
        if path.suffix == ".npz":
            np.savez(path, **arrays)
        for level in ("none", "tensors"):
            assert "NaN or infinity, for example fc1.weight" in refused(path, "--verify", level)


# --- npz --------------------------------------------------------------------------------------------------------------
def test_npz_with_objects(tmp_path, refused):
    marker = tmp_path / "executed"
    attack = np.array([hostile.Call(os.system, f"touch {marker}")], dtype=object)
    for name in ("conv1.weight", "other"):
        path = hostile.npz(tmp_path / "x.npz", replace=hostile.bare(attack, name))
        assert "pickled Python objects: refused" in refused(path)
    fields = np.zeros(3, [("a", "f4"), ("b", object)])
    assert "pickled Python objects: refused" in refused(hostile.npz(path, replace=hostile.bare(fields)))
    assert not marker.exists()


NPY = {
    "terabytes": (hostile.npy((1 << 20, 1 << 20)), "claims 4398046511104 bytes"),
    "negative": (hostile.npy((-1, 432)), "no array of numbers"),
    "text": (hostile.npy((1,), b"\0" * 400, "<U100"), "no array of numbers"),
    "void": (hostile.npy((1,), b"\0" * 400, "|V400"), "no array of numbers"),
    "a type that is code": (hostile.npy((1,), b"", "__import__('os')"), "cannot be read as an npz"),
    "no magic": (b"hello", "cannot be read as an npz"),
    "empty": (b"", "cannot be read as an npz"),
    "deep header": (b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000, "cannot be read as an npz"),
    "a header of four gigabytes": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFF0) + b"{", "cannot be read"),
    "version 9": (b"\x93NUMPY\x09\x00" + b"\0" * 50, "cannot be read as an npz"),
    "half": (hostile.npy((6, 3, 5, 5), b"\0" * 800), "truncated"),
}


@pytest.mark.parametrize("name", NPY)
def test_npz_members(tmp_path, refused, name):
    data, wanted = NPY[name]
    assert wanted in refused(hostile.npz(tmp_path / "x.npz", replace={"conv1.weight": data}))


@pytest.mark.parametrize("name", ["conv1.weight", "fc3.weight", "other"])
def test_zip_bomb(tmp_path, refused, name):
    """A gigabyte of zeros in a file of a few megabytes, also as the classifier, whose size sets the network's size."""
    path = hostile.zeros_bomb(tmp_path / "x.npz", name)
    assert path.stat().st_size < 8 << 20
    assert "refused as a zip bomb" in refused(path)


def test_damaged_compressed_members(tmp_path, refused):
    """Flipped bits in compressed data, a wrong method, a password, two members of the same name."""
    whole = hostile.npz(tmp_path / "x.npz", method=zipfile.ZIP_DEFLATED).read_bytes()
    for at in (120, 1000, len(whole) // 2, len(whole) - 5000):
        broken = bytearray(whole)
        broken[at] ^= 0x55
        (tmp_path / "x.npz").write_bytes(broken)
        refused(tmp_path / "x.npz")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert "damaged" in refused(hostile.npz(tmp_path / "x.npz", method=method))
    locked = bytearray(hostile.npz(tmp_path / "x.npz").read_bytes())
    at = locked.rindex(b"PK\x01\x02")
    locked[at + 8] |= 1
    (tmp_path / "x.npz").write_bytes(locked)
    refused(tmp_path / "x.npz")


# --- MindSpore checkpoints --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A checkpoint of this project, as bytes."""
    runtime.setup(seed=1)
    path = tmp_path_factory.mktemp("own") / "a.ckpt"
    ckpt.save(models.create("testing", num_classes=2), path, {"architecture": "testing"})
    return path.read_bytes()


def test_checkpoint_whose_shape_asks_for_more_than_it_holds(tmp_path, own):
    """MindSpore 2.8.0 corrupts the heap on this file, so this project reads the file itself."""
    path = tmp_path / "x.ckpt"
    at = own.index(b"\x08\x08\x08\x03\x08\x03\x08\x03\x12\x07Float32")  # the dimensions (8, 3, 3, 3)
    for dimensions in (b"\x08\x08\x08\x03\x08\x03\x08\x7f", b"\x08\x00\x08\x03\x08\x03\x08\x03"):
        path.write_bytes(own[:at] + dimensions + own[at + 8 :])
        with pytest.raises(UserError, match="has 216 values: truncated or damaged file"):
            ckpt.load_arrays(path)
    path.write_bytes(own + own[: own.index(b"conv1.bias") - 4])
    with pytest.raises(UserError, match="'conv1.weight' appears twice"):
        ckpt.load_arrays(path)


def test_own_reader_gives_what_mindspore_gives(tmp_path):
    ms, _ = runtime.setup()

    arrays = {"scalar": np.float32(3), "half": np.float16([[1, 2]]), "whole": np.arange(5), "truth": np.array([True])}
    entries = [{"name": n, "data": ms.Tensor(a)} for n, a in arrays.items()]
    entries.append({"name": "brain", "data": ms.Tensor(np.float32([1, 2.5])).astype(ms.bfloat16)})
    for crc in (False, True):
        path = tmp_path / f"{crc}.ckpt"
        ms.save_checkpoint(entries, str(path), crc_check=crc)
        got, wanted = ckpt.load_arrays(path), ms.load_checkpoint(str(path))
        assert list(got) == list(wanted)
        for name, value in wanted.items():
            value = (value.float() if value.dtype == ms.bfloat16 else value).asnumpy()
            assert got[name].shape == value.shape and got[name].dtype == value.dtype
            assert np.array_equal(got[name], value)
    # What this project writes is, byte for byte, what MindSpore writes.
    ms.save_checkpoint(entries[1:], str(tmp_path / "theirs.ckpt"))  # versions differ in how they write a scalar
    ckpt.write_arrays({e["name"]: e["data"] for e in entries[1:]}, tmp_path / "ours.ckpt")
    ckpt.write_arrays({n: a for n, a in arrays.items() if n != "scalar"}, tmp_path / "part.ckpt")
    part = (tmp_path / "part.ckpt").read_bytes()
    assert (tmp_path / "theirs.ckpt").read_bytes()[: len(part)] == part
    assert (tmp_path / "ours.ckpt").read_bytes() == (tmp_path / "theirs.ckpt").read_bytes()
    broken = bytearray(path.read_bytes())
    broken[60] ^= 1
    path.chmod(0o600)
    path.write_bytes(broken)
    with pytest.raises(UserError, match="checksum differs|damaged"):
        ckpt.load_arrays(path)


def test_every_truncation_and_many_flips_of_a_checkpoint(tmp_path, own):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.ckpt"
    boundaries = 0
    for end in range(0, len(own), 37):
        path.write_bytes(own[:end])
        try:
            boundaries += len(ckpt.load_arrays(path)) < 10
        except UserError:
            pass
    assert boundaries <= 1, "a file cut between two tensors can only be told by its sidecar's hash"
    for _ in range(400):
        broken = bytearray(own)
        broken[rng.integers(len(own))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            ckpt.load_arrays(path)
        except UserError:
            pass


SIDECARS = {
    "a list": ([], "not of format 1"),
    "no architecture": ({"architecture": None}, "needs 'format' and 'architecture'"),
    "an architecture of another kind": ({"architecture": ["testing"]}, "needs 'format' and 'architecture'"),
    "arguments that are a list": ({"arguments": [2]}, "'arguments' is a list"),
    "a billion classes": ({"arguments": {"num_classes": 10**9}}, "arguments hold 1000000000"),
    "infinitely many classes": ({"arguments": {"num_classes": float("inf")}}, "arguments hold inf"),
    "classes as a text": ({"arguments": {"num_classes": "2"}}, "cannot be built"),
    "a negative number of classes": ({"arguments": {"num_classes": -2}}, "cannot be built|do not fit"),
    "an argument that is none": ({"arguments": {"code": "x"}}, "cannot be built|it takes"),
    "an order of numbers": ({"class_order": [0, 1]}, "'class_order' must be texts"),
    "an order that is a text": ({"class_order": "real"}, "'class_order' is a str"),
    "no order": ({"class_order": None}, "is no detector"),
    "an input that is a text": ({"input": "x"}, "'input' is a str"),
    "a pipeline that is code": ({"input": {"transform": "__import__('os').system('x')"}}, "transform"),
    "a pipeline of a million pixels": ({"input": {"transform": "resize((1000000, 1000000))"}}, "size"),
    "a threshold of text": ({"threshold": "0.5"}, "threshold"),
    "a threshold of two": ({"threshold": 2}, "threshold"),
    "another hash": ({"output": {"sha256": "0" * 64}}, "sha256 differs"),
    "a hash that is a list": ({"output": []}, "'output' is a list"),
}


@pytest.mark.parametrize("name", SIDECARS)
def test_hostile_sidecars(tmp_path, own, photo, name):
    """An untrusted detector is two files; the second one, the sidecar, is not trusted either."""
    change, wanted = SIDECARS[name]
    photo(1).save(tmp_path / "1.png")
    (tmp_path / "x.ckpt").write_bytes(own)
    order = ["real", "generated"]
    facts = {"format": 1, "architecture": "testing", "arguments": {"num_classes": 2}, "classes": order}
    facts.update(class_order=order, input={"transform": "decode | resize((32, 32)) | normalize(half)"})
    facts = change if isinstance(change, list) else {**facts, **change}
    (tmp_path / "x.json").write_text(json.dumps(facts))
    flags = ["--ckpt", tmp_path / "x.ckpt", "--images", tmp_path / "1.png", "--out", tmp_path / "o"]
    with pytest.raises(UserError, match=wanted):
        infer.run([str(f) for f in [*flags, "--backend", "mindspore"]])
    assert not (tmp_path / "o").exists()


# --- damaged files of the other formats, and paths that are not files -------------------------------------------------
@pytest.mark.parametrize("make", [hostile.safetensors, hostile.npz, hostile.torch_zip], ids=lambda m: m.__name__)
def test_every_truncation_is_noticed(tmp_path, make):
    path = make(tmp_path / "x.bin")
    whole = path.read_bytes()
    ends = [*range(0, 2500, 41), *range(2500, len(whole), len(whole) // 40), len(whole) - 1]
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(UserError):
            for tensor in reading.read(path).tensors.values():
                tensor.array()


@pytest.mark.parametrize("make", [hostile.safetensors, hostile.npz, hostile.torch_zip], ids=lambda m: m.__name__)
def test_flipped_bits_end_in_values_or_one_error(tmp_path, make):
    path = make(tmp_path / "x.bin")
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    places = [
        *rng.integers(0, 1200, 150),
        *rng.integers(len(whole) - 1500, len(whole), 150),
        *rng.integers(0, len(whole), 20),
    ]
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            tensors = reading.read(path).tensors
            assert sum(t.array().nbytes for t in tensors.values()) < 8 << 20
        except UserError:
            pass


def test_links_pipes_and_devices(tmp_path, refused):
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    (tmp_path / "nowhere.pth").symlink_to(tmp_path / "absent")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "process.pth").symlink_to("/proc/self/mem")
    for name in ("loop", "nowhere", "zero", "pipe", "process"):
        refused(tmp_path / f"{name}.pth")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to("/dev/zero")
    assert "no known weights file" in refused(folder)
    os.mkfifo(folder / "model.pth")
    assert "no known weights file" in refused(folder)
    outside = {"weight_map": {"conv1.weight": "../x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(outside))
    assert "outside its folder" in refused(folder)


def test_a_linked_output_is_replaced_and_not_followed(tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("x.ckpt", "x.json"):
        (tmp_path / name).symlink_to(precious)
    code, said, _ = convert(capsys, hostile.safetensors(tmp_path / "x.safetensors"), tmp_path / "x.ckpt")
    assert code == 0, said
    assert precious.read_text() == "mine" and not (tmp_path / "x.ckpt").is_symlink()
    (tmp_path / "y.ckpt").mkdir()
    code, said, _ = convert(capsys, tmp_path / "x.safetensors", tmp_path / "y.ckpt")
    assert code == 2 and said.count("\n") == 1
    assert not any(p.name.startswith(".convert") for p in tmp_path.iterdir())


SIDE_FILES = {
    "deep": "[" * 100_000,
    "doubled": '{"id2label": {"0": "real"}, "id2label": {"0": "fake"}}',
    "list": "[1]",
    "labels": '{"id2label": {"a": 1}}',
    "bytes": b"\xff\xfe\0\0",
    "labels of another number": '{"id2label": {"0": "a", "1": "b", "2": "c"}}',
    "wrong types": '{"id2label": 5, "model_type": [1], "architecture": {"a": 1}, "image_size": "x"}',
}


@pytest.mark.parametrize("name", SIDE_FILES)
def test_a_hostile_config_beside_the_weights(tmp_path, capsys, name):
    """Refused or ignored, never a traceback."""
    hostile.safetensors(tmp_path / "x.safetensors")
    content = SIDE_FILES[name]
    for side in ("config.json", "preprocessor_config.json"):
        path = tmp_path / side
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        code, said, _ = convert(capsys, tmp_path / "x.safetensors", tmp_path / "x.ckpt")
        assert code in (0, 2) and said.count("\n") == (code == 2), said
        path.unlink()


def test_a_reference_file_is_held_to_the_same(tmp_path, capsys):
    """``--reference`` is an npz from outside too."""
    hostile.safetensors(tmp_path / "x.safetensors")
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.array([hostile.Call(os.system, f"touch {tmp_path / 'executed'}")], dtype=object))
    packed = hostile.npz(tmp_path / "p.npz", method=zipfile.ZIP_DEFLATED).read_bytes()
    broken = packed[:200] + b"\xff" * 50 + packed[250:]
    for content in (buffer.getvalue(), b"PK\x03\x04", broken, b"\x80\x02N.", packed):
        (tmp_path / "r.npz").write_bytes(content)
        argv = (
            tmp_path / "x.safetensors",
            tmp_path / "x.ckpt",
            "--verify",
            "logits",
            "--reference",
            tmp_path / "r.npz",
        )
        code, said, _ = convert(capsys, *argv)
        assert code == 2 and said.count("\n") == 1, said
    assert not (tmp_path / "executed").exists() and not (tmp_path / "x.ckpt").exists()
