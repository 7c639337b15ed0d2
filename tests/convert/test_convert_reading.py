"""The reader gives the same values as torch for every kind of tensor, and is safe. These tests do not need torch.

``tests/parity/make_fixtures.py`` wrote the files with torch; ``tests/parity/test_reading.py`` compares live.
"""

import builtins
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aidet.errors import UserError
from convert import reading

DATA = Path(__file__).parents[1] / "data" / "convert"


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "protocol4.pth"])
def test_equal_to_what_torch_reads(name):
    source = reading.read(DATA / name)
    expected = np.load(DATA / "expected.npz")
    assert list(source.tensors) == list(expected.files)
    for key in expected.files:
        array = source.tensors[key].array()
        assert array.dtype == expected[key].dtype and array.shape == expected[key].shape, key
        assert array.tobytes() == expected[key].tobytes(), key
    assert source.tensors["float.bfloat16"].dtype == "bfloat16"


def test_safetensors_npz_and_sharded_index_agree(tmp_path):
    from convert.reverse import write_safetensors

    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float16([1, 2]), "n": np.array(3)}
    write_safetensors(tmp_path / "x.safetensors", arrays, {"format": "pt"})
    np.savez(tmp_path / "x.npz", **arrays)
    write_safetensors(tmp_path / "s1.safetensors", {"a.weight": arrays["a.weight"]}, {})
    write_safetensors(tmp_path / "s2.safetensors", {k: arrays[k] for k in ("b", "n")}, {})
    index = {"weight_map": {"a.weight": "s1.safetensors", "b": "s2.safetensors", "n": "s2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("x.safetensors", "x.npz", "model.safetensors.index.json"):
        got = reading.read(tmp_path / name).tensors
        assert set(got) == set(arrays), name
        assert all(np.array_equal(got[k].array(), arrays[k]) for k in arrays), name
    (tmp_path / "s2.safetensors").unlink()
    with pytest.raises(UserError, match="1 of 2 shards are missing: s2.safetensors"):
        reading.read(tmp_path / "model.safetensors.index.json")
    write_safetensors(tmp_path / "s2.safetensors", {"b": arrays["b"]}, {})
    with pytest.raises(UserError, match="1 tensors of the index are in no shard, for example 'n'"):
        reading.read(tmp_path / "model.safetensors.index.json")


def test_bfloat16_in_safetensors_is_exact(tmp_path):
    bits = np.array([0x3F80, 0xC000, 0x0001], "<u2")
    header = json.dumps({"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bits.tobytes())
    got = reading.read(tmp_path / "x.safetensors").tensors["x"].array()
    assert got.tolist() == [1.0, -2.0, float(np.uint32(0x10000).view(np.float32))]


# ---- hostile files -------------------------------------------------------------------------------------------------


class Call:
    """An object that is pickled as a call of any given function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def zipped(path, payload):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")


def legacy(path, payload):
    start = b"".join(pickle.dumps(v, 2) for v in (reading.LEGACY_MAGIC, 1001, {"little_endian": True}))
    path.write_bytes(start + payload + pickle.dumps([], 2))


ATTACKS = [
    (os.system, "posix.system|nt.system"),
    (os.popen, "os.popen"),
    (builtins.eval, "builtins.eval|__builtin__.eval"),
    (builtins.exec, "builtins.exec|__builtin__.exec"),
    (builtins.getattr, "builtins.getattr|__builtin__.getattr"),
    (builtins.__import__, "builtins.__import__|__builtin__.__import__"),
    (io.open, "io.open"),
    (np.load, "numpy.load"),
]


@pytest.mark.parametrize("write", [zipped, legacy])
@pytest.mark.parametrize("function, shown", ATTACKS, ids=[s.split("|")[0] for _, s in ATTACKS])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_malicious_pickle_is_refused_by_name_and_not_run(tmp_path, write, function, shown, protocol):
    marker = tmp_path / "executed"
    payload = pickle.dumps({"weight": Call(function, f"touch {marker}")}, protocol)
    write(tmp_path / "bad.pth", payload)
    with pytest.raises(UserError, match="refused, its pickle asks for") as error:
        reading.read(tmp_path / "bad.pth").tensors["weight"].array()
    assert any(name in str(error.value) for name in shown.split("|")) or "numpy" in str(error.value)
    assert "nothing was executed" in str(error.value)
    assert not marker.exists()


RAW = {
    "attribute of an allowed module": b"ctorch._utils\n__builtins__\n.",
    "dotted name": b"\x80\x04\x8c\x0ctorch._utils\x8c\x1a_rebuild_tensor_v2.__globals__\x93.",
    "loader inside torch": b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.",
    "change of an allowed function": b"ctorch._utils\n_rebuild_tensor_v2\n}S'__defaults__'\nNsb.",
    "call of a number": b"K\x01)R.",
    "instance": b"(iposix\nsystem\n.",
    "object": b"(cposix\nsystem\no.",
    "extension registry": b"\x82\x01.",
    "append to a dictionary": b"}K\x01a.",
    "out of band buffer": b"\x97.",
    "tensor from nothing": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00)))\x89}tR.",
    "stack underflow": b"0000.",
    "unknown memo": b"h\x07.",
    "huge string length": b"\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "no end": b"]K\x01a",
    "not a pickle": b"\xff\xfe\xfd",
    "unhashable key": b"}]K\x01s.",
}


@pytest.mark.parametrize("payload", RAW.values(), ids=RAW.keys())
@pytest.mark.parametrize("write", [zipped, legacy])
def test_crafted_pickles_end_in_one_clear_error(tmp_path, write, payload):
    write(tmp_path / "bad.pth", payload)
    with pytest.raises(UserError):
        reading.read(tmp_path / "bad.pth")


def test_nesting_and_memo_bombs_stay_bounded(tmp_path):
    """Deep nesting, a memo index of two billion, and a list that doubles itself sixty times."""
    doubling = (
        b"]q\x00" + b"".join(b"(h" + bytes([i]) + b"h" + bytes([i]) + b"lq" + bytes([i + 1]) for i in range(60)) + b"."
    )
    for payload in (b"]" * 100_000 + b"a" * 99_999 + b".", b"]r\xff\xff\xff\x7f.", doubling):
        zipped(tmp_path / "bad.pth", payload)
        with pytest.raises(UserError, match="holds a list, not a dictionary"):
            reading.read(tmp_path / "bad.pth")


def test_whole_models_are_refused_with_the_way_out():
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear.*torch\.save\(model\.state_dict\(\)"):
        reading.read(DATA / "whole_model.pth")


def test_object_arrays_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([Call(os.system, "true")], dtype=object))
    with pytest.raises(UserError, match="pickled Python objects: refused"):
        reading.read(tmp_path / "x.npz")


FILES = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
    "page": (b"<!DOCTYPE html><html>404</html>", "a web page"),
    "empty": (b"", "an empty file"),
    "text": (b"hello", "neither safetensors"),
    "plain pickle": (pickle.dumps({"a": 1}, 2), "not a PyTorch checkpoint"),
    "tensor past its end": (
        struct.pack("<Q", 58) + b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}   ' + b"12",
        "truncated",
    ),
}


@pytest.mark.parametrize(
    "member, text",
    [
        ("m/models/model.json", r"a program of torch.export.*torch.save\(torch.export.load\(FILE\).state_dict"),
        ("serialized_exported_program.json", "a program of torch.export"),  # before PyTorch 2.8
        ("weights/model.bin", "unpack it and name their file"),
    ],
)
def test_a_zip_file_of_another_kind_says_what_to_do(tmp_path, member, text):
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as archive:
        archive.writestr("m/data/weights/weight_0", b"\0" * 8)
        archive.writestr(member, "{}")
    with pytest.raises(UserError, match=text):
        reading.read(tmp_path / "x.pt2")


@pytest.mark.parametrize("content, text", FILES.values(), ids=FILES.keys())
def test_what_is_no_checkpoint_says_so(tmp_path, content, text):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(UserError, match=text):
        reading.read(tmp_path / "x.bin")


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_every_truncation_is_noticed(tmp_path, name):
    whole = (DATA / name).read_bytes()
    for end in range(1, len(whole), 97):
        (tmp_path / "x.pth").write_bytes(whole[:end])
        with pytest.raises(UserError):
            for tensor in reading.read(tmp_path / "x.pth").tensors.values():
                tensor.array()


def test_damaged_bytes_never_crash(tmp_path):
    """With any single byte changed, the file is read, or the error says what is wrong."""
    rng = np.random.default_rng(0)
    for name in ("zip.pth", "legacy.pth", "protocol4.pth"):
        whole = bytearray((DATA / name).read_bytes())
        for _ in range(150):
            broken = bytearray(whole)
            broken[rng.integers(len(broken))] = rng.integers(256)
            (tmp_path / "x.pth").write_bytes(broken)
            try:
                for tensor in reading.read(tmp_path / "x.pth").tensors.values():
                    tensor.array()
            except UserError:
                pass
