"""Files made to break a reader. Every maker takes a path and writes one file; nothing here needs torch."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np

# --- weights that are well-formed: a CIFAKE_CNN, whose ten tensors make the smallest file that converts ---------------
SHAPES = {
    "conv1.weight": (6, 3, 5, 5),
    "conv1.bias": (6,),
    "conv2.weight": (16, 6, 5, 5),
    "conv2.bias": (16,),
    "fc1.weight": (120, 400),
    "fc1.bias": (120,),
    "fc2.weight": (84, 120),
    "fc2.bias": (84,),
    "fc3.weight": (1, 84),
    "fc3.bias": (1,),
}


def good_arrays(seed=0):
    """Weights that convert."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}


def safetensors(path, arrays=None, change=None, raw=None):
    """A safetensors file; ``change`` edits the header (a dict) before it is written, ``raw`` its text."""
    header, start, blob = {}, 0, b""
    for name, array in (good_arrays() if arrays is None else arrays).items():
        blob += array.tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [start, len(blob)]}
        start = len(blob)
    if change is not None:
        change(header)
    text = json.dumps(header).encode() if raw is None else raw(json.dumps(header)).encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)
    return path


# --- PyTorch's pickles, written by hand -------------------------------------------------------------------------------
def text(value):
    """BINUNICODE."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    """BININT, or LONG1 if the number does not fit."""
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return pickle.dumps(value, 2)[2:-1]


def tensor(key, shape, stride, numel, offset=0):
    """The call that torch.save writes for one float tensor."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(numel) + b"tQ"

    def numbers(values):
        return b"(" + b"".join(number(v) for v in values) + b"t"

    inside = storage + number(offset) + numbers(shape) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + inside + b"tR"


def state_dict(items):
    """An OrderedDict of key to already pickled value."""
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + b"".join(text(k) + v for k, v in items) + b"u."


def good_pickle():
    """The pickle of :func:`good_arrays` and its storages."""
    items, storages = [], []
    for i, (name, array) in enumerate(good_arrays().items()):
        stride = [s // 4 for s in array.strides]
        items.append((name, tensor(str(i), array.shape, stride, array.size)))
        storages.append((str(i), array.tobytes()))
    return items, storages


def torch_zip(path, payload=None, storages=None, extra=()):
    """A file as torch.save writes it."""
    items, given = good_pickle()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", state_dict(items) if payload is None else payload)
        archive.writestr("archive/version", "3\n")
        for key, data in given if storages is None else storages:
            archive.writestr(f"archive/data/{key}", data)
        for name, data in extra:
            archive.writestr(name, data)
    return path


def in_state_dict(value):
    """A pickled value as one more entry of an otherwise sound state dictionary."""
    return state_dict([*good_pickle()[0], ("extra", value)])


class Call:
    """An object that is pickled as a call of any given function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def call(module, name, *args):
    """Opcodes of ``module.name(*args)``, whatever it is."""
    inside = b"".join(text(a) if isinstance(a, str) else a for a in args)
    return f"c{module}\n{name}\n".encode() + b"(" + inside + b"tR"


def attacks(marker):
    """Pickled values that would run code, by name. ``marker`` is the file that they would make."""
    touch, code = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    nested = call("builtins", "getattr", b"cbuiltins\n__import__\n" + b"(" + text("os") + b"tR", "system")
    return {
        "os.system": call("os", "system", touch),
        "posix.system": call("posix", "system", touch),
        "subprocess": call("subprocess", "check_output", b"]" + text("touch") + b"a" + text(str(marker)) + b"a"),
        "eval": call("builtins", "eval", code),
        "exec": call("builtins", "exec", code),
        "eval in nested containers": b"]}" + text("a") + b"(" + call("builtins", "eval", code) + b"K\x01tsa",
        "eval as a key": b"}" + call("builtins", "eval", code) + b"K\x01s",
        "eval inside a tensor's call": b"ctorch._utils\n_rebuild_tensor_v2\n(" + call("builtins", "eval", code) + b"tR",
        "eval inside a storage's name": b"(" + text("storage") + call("builtins", "eval", code) + b"tQ",
        "getattr of an import": nested + b"(" + text(touch) + b"tR",
        "compile": call("builtins", "compile", code, "x", "exec"),
        "open for writing": call("io", "open", str(marker), "w"),
        "pickle inside a pickle": call("_pickle", "loads", b"C\x04\x80\x02N."),
        "numpy's own loader": call("numpy", "load", str(marker)),
        "torch's loader": call("torch", "load", str(marker)),
        "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes", b"C\x04\x80\x02N."),
        "code through types": call("types", "FunctionType", b"N", b"}"),
        "functools.partial": call("functools", "partial", b"cos\nsystem\n", touch),
        "operator.methodcaller": call("operator", "methodcaller", "system", touch),
        "runpy": call("runpy", "run_path", str(marker)),
        "webbrowser": call("webbrowser", "open", "http://127.0.0.1:9"),
        "importlib": call("importlib", "import_module", "antigravity"),
        "instance opcode": b"(" + text(touch) + b"ios\nsystem\n",
        "object opcode": b"(cos\nsystem\n" + text(touch) + b"o",
        "newobj opcode": b"csubprocess\nPopen\n(" + text(touch) + b"t\x81",
        "stack global with a dotted name": b"\x8c\x0ctorch._utils\x8c\x1e_rebuild_tensor_v2.__globals__\x93",
        "extension registry": b"\x82\x01",
        "state of an allowed function": b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__defaults__") + b"Nsb",
        "state of the dictionary's class": b"ccollections\nOrderedDict\n}" + text("update") + b"Nsb",
    }


def doubling(n=60, kind=b"l"):
    """A list (``l``) or tuple (``t``) that holds the last one twice, n times over: 2**n leaves in 8 n bytes."""
    steps = (b"(h" + bytes([i]) + b"h" + bytes([i]) + kind + b"q" + bytes([i + 1]) + b"0" for i in range(n))
    return b"K\x00q\x000" + b"".join(steps) + b"h" + bytes([n])


def bombs():
    """Pickled values that ask for much: depth, memory or time."""
    deep, storage = 100_000, b"ctorch\nFloatStorage\n"
    many = b"](" + b"K\x01" * 300_000 + b"eq\x01"
    rebuild, head = b"ctorch._utils\n_rebuild_tensor_v2\n", text("storage") + storage
    million, ones = b"\x8b" + struct.pack("<i", 125_000) + b"\x7f" * 125_000, b"(" + b"K\x01" * 1000 + b"t"
    good = b"(" + head + text("0") + text("cpu") + number(450) + b"tQ"
    return {
        "lists in lists": b"]" * deep + b"a" * (deep - 1),
        "tuples in tuples": b")" + b"\x85" * deep,
        "tuples in tuples as a key": b"})" + b"\x85" * deep + b"K\x01s",
        "a doubling tuple as a key": b"}" + doubling(60, b"t") + b"K\x01s",
        "a doubling tuple in a set": b"\x8f(" + doubling(60, b"t") + b"\x90",
        "a doubling list as a storage": doubling() + b"Q",
        "a doubling list as the name of a storage": b"(" + head + doubling() + text("cpu") + b"K\x04tQ",
        "a doubling list is called": doubling() + b")R",
        "a doubling list as a shape": rebuild + b"(" + good + b"K\x00" + b"(" + doubling() + b"t(K\x01t\x89NtR",
        "a doubling list as a device": b"ctorch\ndevice\n(" + doubling() + b"tR",
        "one list copied over and over": many + b"0" + b"ctorch\nSize\n(h\x01tR0" * 100_000 + b"N",
        "one set made over and over": many + b"0" + b"cbuiltins\nset\n(h\x01tR0" * 100_000 + b"N",
        "three million steps": b"N0" * 1_500_000 + b"N",
        "a number of a million bits": rebuild + b"(" + good + million + b"(t(t\x89NtR",
        "a text of an exabyte": b"\x8d" + struct.pack("<Q", 1 << 60) + b"x",
        "bytes of two gigabytes": b"B" + struct.pack("<I", (1 << 31) - 1) + b"x",
        "a memo number of two thousand million": b"]r\xff\xff\xff\x7f",
        "a thousand dimensions": rebuild + b"(" + good + b"K\x00" + ones + ones + b"\x89NtR",
        "a storage of 2**60 numbers": tensor("0", (4,), (1,), 1 << 60),
        "a shape of terabytes over four numbers": tensor("0", (1 << 20, 1 << 20), (0, 0), 450),
        "a negative offset": tensor("0", (4,), (1,), 450, offset=-4),
        "a stride past the end": tensor("0", (4,), (1 << 40,), 450),
        "no storage at all": rebuild + b"(K\x01K\x00(t(t\x89NtR",
        "a storage that is not there": tensor("missing", (4,), (1,), 4),
        "a number as the name of a tensor": b"0K\x05" + tensor("0", (4,), (1,), 450),
    }  # fmt: skip


# --- npz --------------------------------------------------------------------------------------------------------------
def npy(shape, data=b"", descr="<f4"):
    """A .npy whose header says what it likes."""
    head = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


def npz(path, members=None, method=zipfile.ZIP_STORED, replace=None):
    """An npz of the good weights with some members replaced or added (name to bytes of a .npy)."""
    if members is None:
        members = {}
        for name, array in good_arrays().items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            members[name] = buffer.getvalue()
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in {**members, **(replace or {})}.items():
            archive.writestr(f"{name}.npy", data)
    return path


def zeros_bomb(path, name="conv1.weight", gigabytes=1):
    """An npz of a few megabytes whose one array unpacks to gigabytes of zeros."""
    side = gigabytes << 14
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            member.write(npy((side, 1 << 14)))
            piece = bytes(1 << 20)
            for _ in range(gigabytes << 10):
                member.write(piece)
    return path


def bare(value, name="x"):
    """One array as the bytes of a .npy, object arrays included."""
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return {name: buffer.getvalue()}
