"""What training programs put beside the weights: read or left out, never executed, never called dangerous."""

import argparse
import collections
import datetime
import decimal
import enum
import pathlib
import pickle
import struct
import sys
import types
import uuid
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))
import hostile

from aidet.errors import UserError
from convert import bystanders, float8, reading
from convert.unpickle import Cursor, Machine, Placeholder


class Config(dict):
    """Stands for a configuration class of another package."""


class Box:
    """Stands for an object of another package, with attributes and inner objects."""

    def __init__(self):
        self.inner, self.where = Config(a=[1, 2]), pathlib.PurePosixPath("runs/a")


class Mode(enum.Enum):
    ON = 1


def opcodes(value, protocol=2):
    """A value as pickled, without the frame around it."""
    data = pickle.dumps(value, protocol)
    if protocol < 4:
        return data[2:-1]
    return data[11:-1] if data[2:3] == b"\x95" else data[2:-1]


def load(payload):
    def persistent(pid):
        raise UserError("no storage")

    return Machine(persistent, "x").load(Cursor(b"\x80\x02" + payload + b"."))


BESIDE = {
    "arguments": argparse.Namespace(model="resnet18", lr=0.1, out=pathlib.PurePosixPath("x")),
    "a counter": collections.Counter({3: 1, 6: 1}),
    "a defaultdict": collections.defaultdict(list, {"loss": [1.0]}),
    "a deque": collections.deque([1.0, 2.0], maxlen=10),
    "bytes": b"\x00\xff\x80",
    "a bytearray": bytearray(b"abc"),
    "empty bytes": b"",
    "a complex number": 1 + 2j,
    "a date": datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc),
    "a duration": datetime.timedelta(seconds=3),
    "a path": pathlib.PurePosixPath("runs/a"),
    "a decimal": decimal.Decimal("0.5"),
    "an identifier": uuid.UUID(int=7),
    "a namespace": types.SimpleNamespace(a=1),
    "a NumPy scalar": np.float64(0.93),
    "a NumPy integer": np.int64(3),
    "a NumPy truth": np.bool_(True),
    "a NumPy type": np.float32,
    "a NumPy array": np.arange(6, dtype=">f4").reshape(2, 3),
    "texts of NumPy": np.array(["a", "b"]),
    "objects of NumPy": np.array([{}, None], dtype=object),
    "a state of NumPy's generator": np.random.RandomState(0).get_state(),
    "a configuration of another package": Config(lr=0.1, nested=Config()),
    "an object of another package": Box(),
    "a class of another package": Config,
    "a class as a key": {Config: {"best": 1.0}},
    "a float as a key": {0.5: 1, (1, (2, "a")): 2},
    "a frozen set": frozenset((1, 2)),
    "an enum": Mode.ON,
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("value", BESIDE.values(), ids=BESIDE.keys())
def test_what_stands_beside_the_weights_does_no_harm(tmp_path, value, protocol):
    payload = b"}" + hostile.text("v") + opcodes(value, protocol) + b"s"
    path = hostile.torch_zip(tmp_path / "x.pth", hostile.in_state_dict(payload))
    try:
        tensors = reading.read(path).tensors
    except UserError as error:
        # An enum is pickled as a call of getattr in some versions of Python: refused, but nothing is said against it.
        assert isinstance(value, enum.Enum) and "builtins.getattr" in str(error) and "Do not load" not in str(error)
        return
    assert all(np.array_equal(tensors[k].array(), a) for k, a in hostile.good_arrays().items())


def test_plain_data_keeps_its_values():
    assert load(opcodes(b"\x00\xff\x80")) == b"\x00\xff\x80"
    assert load(opcodes(bytearray(b"ab\xff"))) == b"ab\xff"
    assert load(opcodes(1 - 2j)) == 1 - 2j
    assert load(opcodes(collections.Counter("aab"))) == {"a": 2, "b": 1}
    assert load(opcodes(collections.defaultdict(list, a=[1]))) == {"a": [1]}
    assert load(opcodes(np.float64(0.93))) == 0.93 and load(opcodes(np.int16(-3))) == -3
    array = load(opcodes(np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3))))
    assert array.array().tolist() == [[0, 1, 2], [3, 4, 5]] and array.array().dtype == np.int16
    assert isinstance(load(opcodes(Box())), Placeholder)


def test_arrays_of_numpy_are_weights(tmp_path):
    arrays = hostile.good_arrays()
    for protocol in (2, 5):
        path = hostile.torch_zip(
            tmp_path / "x.pth", hostile.state_dict([(k, opcodes(v, protocol)) for k, v in arrays.items()])
        )
        got = reading.read(path).tensors
        assert {k: t.array().tobytes() for k, t in got.items()} == {k: a.tobytes() for k, a in arrays.items()}


def test_an_array_whose_state_lies_is_refused():
    good = opcodes(np.arange(4, dtype=np.float32))
    for bad in (good.replace(b"K\x04\x85", b"K\x05\x85"), good.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85")):
        assert bad != good
        with pytest.raises(UserError, match="does not fit its shape"):
            load(bad)


def test_a_text_copied_over_and_over_is_stopped():
    call = b"c_codecs\nencode\n(h\x01" + hostile.text("latin1") + b"tR0"
    with pytest.raises(UserError, match="copied over and over"):
        load(hostile.text("x" * 100_000) + b"q\x010" + call * 50 + b"N")


def test_attributes_and_subclasses_of_tensors(tmp_path):
    """``torch._tensor._rebuild_from_type_v2(function, type, arguments, state)``."""
    inside = hostile.tensor("0", (4,), (1,), 450)
    function, arguments = (
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        inside[len(b"ctorch._utils\n_rebuild_tensor_v2\n") : -1],
    )
    head = b"ctorch._tensor\n_rebuild_from_type_v2\n("
    for kind in (b"ctorch\nTensor\n", b"cfastai.torch_core\nTensorImage\n"):
        value = head + function + kind + arguments + b"}" + hostile.text("tag") + hostile.text("stem") + b"stR"
        path = hostile.torch_zip(tmp_path / "x.pth", hostile.in_state_dict(value))
        wanted = hostile.good_arrays()["conv1.weight"].reshape(-1)[:4]
        assert np.array_equal(reading.read(path).tensors["extra"].array(), wanted)
    for other in (b"c_codecs\nencode\n", b"ctorch._tensor\n_rebuild_from_type_v2\n", b"cos\nsystem\n"):
        value = head + other + b"ctorch\nTensor\n" + arguments + b"}tR"
        with pytest.raises(UserError, match="refused"):
            reading.read(hostile.torch_zip(tmp_path / "x.pth", hostile.in_state_dict(value)))


@pytest.mark.parametrize(
    "module, name",
    [
        ("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("subprocess", "Popen"), ("ctypes", "CDLL"),
        ("types", "FunctionType"), ("functools", "partial"), ("importlib", "import_module"), ("runpy", "run_path"),
        ("numpy", "load"), ("numpy.testing._private.utils", "runstring"), ("torch", "load"), ("torch.hub", "load"),
        ("torch.storage", "_load_from_bytes"), ("torch._dynamo.guards", "GuardBuilder"), ("pandas", "eval"),
        ("collections", "namedtuple"), ("code", "InteractiveInterpreter"), ("tempfile", "SpooledTemporaryFile"),
        ("logging", "FileHandler"), ("zipimport", "Loader"), ("a.b", "Class.method"), ("", "Class"), ("a b", "Class"),
        ("pip._internal", "Main"), ("commands", "Getoutput"), ("torch.nn.functional", "relu"),
    ],
)  # fmt: skip
def test_functions_and_pythons_own_classes_stay_refused(module, name):
    assert not bystanders.is_data(module, name) and not bystanders.is_inert(module, name)
    with pytest.raises(UserError) as error:
        load(f"c{module}\n{name}\n)R".encode())
    accused = module in ("os", "subprocess", "runpy", "commands") or (module, name) == ("builtins", "eval")
    assert ("Do not load this file" in str(error.value)) == accused


def test_a_whole_object_is_told_from_a_dictionary(tmp_path):
    for payload in (opcodes(Box()), b"}" + hostile.text("model") + opcodes(Box()) + b"s"):
        path = hostile.torch_zip(tmp_path / "x.pth", b"\x80\x02" + payload + b".")
        with pytest.raises(UserError, match=r"Box.*torch\.save\(model\.state_dict\(\)"):
            reading.read(path)


# --- sets of weights
def nested(items):
    """A dictionary of already pickled values."""
    return b"}(" + b"".join(hostile.text(k) + v for k, v in items) + b"u"


def weights(shift):
    """The pickle of an OrderedDict of the good weights; with ``shift`` its first bias is another one, of shape (1,)."""
    items = dict(hostile.good_pickle()[0])
    if shift:
        items["conv1.bias"] = hostile.tensor("9", (1,), (1,), 1)
    return hostile.state_dict(items.items())[2:-1]


def checkpoint(path, items):
    return hostile.torch_zip(path, b"\x80\x02" + nested(items) + b".")


@pytest.mark.parametrize(
    "name", ["state_dict_ema", "model_ema", "ema_state_dict", "averaged_model", "swa_model_state_dict"]
)
def test_a_choice_of_averaged_weights(tmp_path, name):
    path = checkpoint(tmp_path / "x.pth", [("epoch", b"K\x01"), ("state_dict", weights(0)), (name, weights(1))])
    source = reading.read(path)
    assert source.tensors["conv1.bias"].shape == (6,)
    assert source.notes[0].startswith("took 'state_dict'") and f"in {name!r}: --weights ema" in source.notes[0]
    for choice in ("ema", name):
        source = reading.read(path, choice)
        assert source.tensors["conv1.bias"].shape == (1,) and source.notes[0].startswith(f"took {name!r}")
    assert reading.read(path, "state_dict").tensors["conv1.bias"].shape == (6,)
    with pytest.raises(UserError, match="--weights 'teacher': the file holds no such set"):
        reading.read(path, "teacher")


def test_averaged_weights_inside_and_beside(tmp_path):
    inner = nested([("decay", hostile.number(1)), ("module", weights(1))])
    path = checkpoint(tmp_path / "x.pth", [("model", weights(0)), ("ema", inner)])
    assert reading.read(path, "ema").tensors["conv1.bias"].shape == (1,)
    arrays = hostile.good_arrays()
    flat = {**{"model." + k: a for k, a in arrays.items()}, **{"ema_model." + k: a + 1 for k, a in arrays.items()}}
    source = reading.read(hostile.safetensors(tmp_path / "x.safetensors", flat), "ema")
    assert np.array_equal(source.tensors["fc3.bias"].array(), arrays["fc3.bias"] + 1)
    assert len(source.dropped) == 10 and "--weights ema" in source.dropped["model.fc3.bias"]


def test_one_set_under_any_name_and_several_that_nobody_chose(tmp_path):
    path = checkpoint(tmp_path / "x.pth", [("epoch", b"K\x01"), ("netC", weights(0))])
    assert reading.read(path).tensors["conv1.bias"].shape == (6,)
    path = checkpoint(tmp_path / "x.pth", [("generator", weights(0)), ("critic", weights(1))])
    with pytest.raises(UserError, match=r"several sets of tensors: 'generator' \(10\), 'critic' \(10\); take one with"):
        reading.read(path)
    assert reading.read(path, "critic").tensors["conv1.bias"].shape == (1,)


# --- 8-bit floats
# Bit pattern -> value, as torch 2.13 and ml_dtypes 0.5 give it.
FP8 = {
    "F8_E4M3": (
        [0x00, 0x01, 0x07, 0x08, 0x38, 0x39, 0x7E, 0x7F, 0x80, 0x81, 0xB8, 0xFE, 0xFF],
        [0.0, 2.0**-9, 7 * 2.0**-9, 2.0**-6, 1.0, 1.125, 448.0, np.nan, -0.0, -(2.0**-9), -1.0, -448.0, np.nan],
    ),
    "F8_E5M2": (
        [0x00, 0x01, 0x03, 0x04, 0x3C, 0x3D, 0x7B, 0x7C, 0x7D, 0x80, 0xBC, 0xFB, 0xFC, 0xFF],
        [0.0, 2.0**-16, 3 * 2.0**-16, 2.0**-14, 1, 1.25, 57344, np.inf, np.nan, -0.0, -1, -57344, -np.inf, np.nan],
    ),
    "F8_E4M3FNUZ": ([0x01, 0x40, 0x7F, 0x80, 0xFF], [2.0**-10, 1.0, 240.0, np.nan, -240.0]),
    "F8_E5M2FNUZ": ([0x01, 0x40, 0x7F, 0x80, 0xFF], [2.0**-17, 1.0, 57344.0, np.nan, -57344.0]),
    "F8_E8M0": ([0x00, 0x7F, 0x80, 0xFE, 0xFF], [2.0**-127, 1.0, 2.0, 2.0**127, np.nan]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FP8)
def test_8_bit_floats_are_exact(tmp_path, kind):
    bits, values = FP8[kind]
    header = {"x": {"dtype": kind, "shape": [len(bits), 1], "data_offsets": [0, len(bits)]}}
    text = reading.json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(bits))
    got = reading.read(tmp_path / "x.safetensors").tensors["x"].array()
    assert got.dtype == np.float32 and got.shape == (len(bits), 1)
    wanted = np.float32(values)
    assert np.array_equal(got[:, 0], wanted, equal_nan=True)
    finite = ~np.isnan(wanted)
    assert np.array_equal(np.signbit(got[finite, 0]), np.signbit(wanted[finite]))


@pytest.mark.parametrize("name", float8.NAMES)
def test_8_bit_floats_are_those_of_ml_dtypes(name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    theirs = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, name)).astype(np.float32)
    assert np.array_equal(float8.table(name), theirs, equal_nan=True)
