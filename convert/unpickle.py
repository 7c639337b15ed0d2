"""Read the pickles inside PyTorch checkpoints without executing any code they ask for.

A pickle is a program. Here it runs on a small interpreter of our own that knows the data opcodes and a short list of
names; any other import is refused with an error that gives its name, and nothing is executed. Python's own unpickler is
not used. Sizes and depths are limited by what the file itself contains.
"""

import math
import pickletools
from collections import OrderedDict
from typing import Any, Callable, Dict, List, Optional, Sequence, Union, cast

import numpy as np

from aidet.errors import UserError

# torch storage class -> (NumPy type of the stored bytes, name of the type)
STORAGES = {
    "DoubleStorage": ("<f8", "float64"),
    "FloatStorage": ("<f4", "float32"),
    "HalfStorage": ("<f2", "float16"),
    "BFloat16Storage": ("<u2", "bfloat16"),
    "LongStorage": ("<i8", "int64"),
    "IntStorage": ("<i4", "int32"),
    "ShortStorage": ("<i2", "int16"),
    "CharStorage": ("<i1", "int8"),
    "ByteStorage": ("<u1", "uint8"),
    "BoolStorage": ("?", "bool"),
    "ComplexFloatStorage": ("<c8", "complex64"),
    "ComplexDoubleStorage": ("<c16", "complex128"),
    "UntypedStorage": ("<u1", "uint8"),
}
DTYPES = {
    "float64": "<f8",
    "double": "<f8",
    "float32": "<f4",
    "float": "<f4",
    "float16": "<f2",
    "half": "<f2",
    "bfloat16": "<u2",
    "int64": "<i8",
    "long": "<i8",
    "int32": "<i4",
    "int": "<i4",
    "int16": "<i2",
    "short": "<i2",
    "int8": "<i1",
    "uint8": "<u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "bool": "?",
    "complex64": "<c8",
    "complex128": "<c16",
}
_ALIASES = {
    "double": "float64",
    "float": "float32",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "short": "int16",
}

# A checkpoint of a thousand tensors takes about 30,000 steps.
MAX_OPCODES = 1_000_000
MAX_STRING = 1 << 26
MAX_NAME = 1 << 12  # of a key or a class, characters
MAX_BITS = 128  # of an integer; the largest that PyTorch writes has 77
MAX_DIMS = 32  # NumPy's limit
# How many more values a tensor may have, by repetition (stride 0), than the file contains: 1 GiB of float32.
MAX_REPEATED = 1 << 28


class Blocked(UserError):
    """A pickle asked for a name that is not in the list."""


class Storage:
    """A block of numbers in a checkpoint file, before it is read.

    Attributes
    ----------
    key : str
    stored : numpy.dtype
        Type of the bytes in the file (uint16 for bfloat16).
    dtype : str
        Name of the type.
    numel : int
    data : numpy.ndarray or None
        Flat view of the file, set by the reader.
    """

    def __init__(self, key: str, stored: Union[str, np.dtype], dtype: str, numel: int) -> None:
        self.key, self.stored, self.dtype, self.numel = key, np.dtype(stored), dtype, numel
        self.data: Optional[np.ndarray] = None


class TensorRef:
    """A strided view of a :class:`Storage`, turned into an array only on request.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
        The type in the file ("float32", "bfloat16", ...).
    """

    def __init__(
        self, storage: Storage, offset: int, shape: Sequence[int], stride: Sequence[int], dtype: Optional[str] = None
    ) -> None:
        numbers = (offset, *shape, *stride)
        if (
            not isinstance(storage, Storage)
            or len(shape) != len(stride)
            or len(shape) > MAX_DIMS
            or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 or n >> 62 for n in numbers)
        ):
            raise UserError(f"tensor of {len(shape)} dimensions, its sizes or strides make no sense: damaged file")
        self.storage, self.offset, self.shape, self.stride = storage, offset, tuple(shape), tuple(stride)
        self.dtype = dtype or storage.dtype
        self.stored = np.dtype(DTYPES[dtype]) if dtype else storage.stored
        room = storage.numel * storage.stored.itemsize // self.stored.itemsize
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride)) if 0 not in shape else offset - 1
        if last >= room:
            raise UserError(
                f"tensor of shape {self.shape} reaches past its storage ({last + 1} > {room}): damaged file"
            )
        numel = math.prod(self.shape)
        if numel > room + MAX_REPEATED:
            raise UserError(f"tensor of shape {self.shape} repeats {room} numbers {numel} times over: damaged file")

    def array(self) -> np.ndarray:
        """The values as a NumPy array in C order; bfloat16 is returned as float32 (exact)."""
        flat = self.storage.data
        if flat is None:
            raise UserError("a tensor's storage is missing: truncated file")
        if flat.dtype != self.stored:
            flat = flat.view(self.stored)
        steps = [s * flat.dtype.itemsize for s in self.stride]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps, writeable=False)
        if self.dtype == "bfloat16":
            return widen(view)
        kind = view.dtype.newbyteorder("=")
        return np.ascontiguousarray(view, kind).reshape(self.shape)


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns (uint16) to float32, exactly."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32).reshape(np.shape(bits))


class Global:
    """A name that a pickle may import: a marker, never the imported object."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __repr__(self) -> str:
        return f"{self.module}.{self.name}"


_CALLS = set(
    "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state".split()
)
# Modules whose functions could run code; the error message says so.
_DANGEROUS = "os posix nt subprocess builtins __builtin__ sys shutil socket".split()


def _allowed(module, name):
    if module == "collections" and name == "OrderedDict":
        return True
    if module in ("builtins", "__builtin__"):
        return name == "set"
    if module == "torch._utils":
        return name in _CALLS
    if module == "torch":
        return name in STORAGES or name in DTYPES or name in ("Size", "device")
    if module == "torch.storage":
        return name in ("UntypedStorage", "TypedStorage")
    return module in ("torch.serialization",) and name == "_get_layout"


def _shown(value):
    """A value of the file for a message, always short: a list that contains itself would be endless as text."""
    if isinstance(value, str):
        return value[:200]
    return repr(value)[:200] if isinstance(value, (int, float, bytes, Global)) else f"a {type(value).__name__}"


def _refuse(module, name, where):
    module, name = _shown(module), _shown(name)
    text = f"{where}: refused, its pickle asks for {module}.{name}, which is not on the list of data types"
    if module.split(".")[0] in _DANGEROUS:
        raise Blocked(text + " and could run code; nothing was executed. Do not load this file")
    raise Blocked(
        text + "; nothing was executed. A file that holds a whole model or training state has to be saved again "
        "where it is trusted, as weights only: torch.save(model.state_dict(), 'weights.pth')"
    )


def _call(function, args, where):
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise Blocked(f"{where}: refused, its pickle calls {_shown(function)}; nothing was executed")
    name = function.name
    try:
        if name == "OrderedDict":
            pairs = args[0] if args else ()
            return _fill(OrderedDict(), [k for k, _ in pairs], [v for _, v in pairs], where)
        if name == "set":
            return {_key(v, where) for v in args[0]} if args else set()
        if name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return TensorRef(args[0], args[1], tuple(args[2]), tuple(args[3]))
        if name == "_rebuild_tensor_v3":
            dtype = args[6].name
            return TensorRef(args[0], args[1], tuple(args[2]), tuple(args[3]), _ALIASES.get(dtype, dtype))
        if name in ("_rebuild_parameter", "_rebuild_parameter_with_state") and isinstance(args[0], TensorRef):
            return args[0]
        if name == "Size" and len(args[0]) <= MAX_DIMS:
            return tuple(args[0])
        if name == "device":
            return _shown(args[0])
    except (AttributeError, IndexError, TypeError, ValueError, KeyError):
        pass
    raise Blocked(f"{where}: refused, its pickle calls {function!r} with arguments that make no tensor: damaged file")


def _key(value, where):
    """Check a key of a dictionary or set: text or a number. Hashing deeply nested tuples could hang or overflow."""
    parts = value if isinstance(value, tuple) and len(value) <= 8 else (value,)
    for part in parts:
        if isinstance(part, (str, bytes)) and len(part) > MAX_NAME:
            raise Blocked(f"{where}: refused, a key of {len(part)} characters: damaged file")
        if part is not None and not isinstance(part, (str, bytes, int)):
            raise Blocked(f"{where}: refused, a {type(part).__name__} as a key: damaged file")
    return value


def _fill(target, keys, values, where):
    """Put items into a dictionary; refuse duplicate keys, with which two readers could see different weights."""
    for key, value in zip(keys, values):
        if _key(key, where) in target and isinstance(key, str):
            raise Blocked(f"{where}: refused, its key {_shown(key)!r} stands twice: damaged file")
        target[key] = value
    return target


_MARK = object()
# Exceptions that a damaged pickle can cause in the machine.
_DAMAGE = (IndexError, KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError, MemoryError)
_PLAIN = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8".split()
)
_EMPTY: Dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
_CONSTANTS: Dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_SMALL_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}


class Cursor:
    """Reads a buffer like a file, in bounded steps, so that a forged length cannot exhaust the memory."""

    def __init__(self, buffer: Any) -> None:
        self.buffer, self.position = buffer, 0

    def read(self, size: int) -> bytes:
        if size > MAX_STRING:
            raise UserError(f"a string of {size} bytes inside a pickle: damaged or hostile file")
        piece = self.buffer[self.position : self.position + size]
        self.position += len(piece)
        return piece

    def readline(self) -> bytes:
        end = self.buffer.find(b"\n", self.position, self.position + (1 << 16))
        return self.read(end + 1 - self.position) if end >= 0 else b""

    def tell(self) -> int:
        return self.position


class Machine:
    """Run one pickle.

    Parameters
    ----------
    persistent : callable
        Turns a persistent id (a tuple) into an object; refuses others.
    where : str
        Name of the file for messages.
    """

    def __init__(self, persistent: Callable[[Any], Any], where: str) -> None:
        self.persistent, self.where = persistent, where
        self.stack: List[Any] = []
        self.memo: Dict[Any, Any] = {}
        self.copied = 0

    def load(self, cursor: Cursor) -> Any:
        """Run the pickle that starts at the cursor, and leave the cursor after its end."""
        try:
            for count, (opcode, arg, _) in enumerate(pickletools.genops(cast(Any, cursor))):
                if count > MAX_OPCODES:
                    raise UserError(f"{self.where}: a pickle of over {MAX_OPCODES} steps")
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._step(opcode.name, arg)
        except UserError:
            raise
        except _DAMAGE as error:
            raise UserError(f"{self.where}: cannot be read as a PyTorch checkpoint ({error}): damaged file") from None
        raise UserError(f"{self.where}: its pickle has no end: truncated file")

    def _marked(self):
        items = []
        while self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]

    def _step(self, name, arg):
        stack = self.stack
        if name in _PLAIN:
            if isinstance(arg, int) and arg.bit_length() > MAX_BITS:
                raise Blocked(f"{self.where}: refused, a number of {arg.bit_length()} bits: damaged file")
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _PUTS:
            self.memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in _GETS:
            stack.append(self.memo[arg])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _SMALL_TUPLES:
            size = _SMALL_TUPLES[name]
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._global(arg if name == "GLOBAL" else None)
        else:
            self._structure(name)

    def _structure(self, name):
        stack = self.stack
        if name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name == "LIST":
            stack.append(self._marked())
        elif name in ("DICT", "SETITEMS", "SETITEM"):
            if name == "SETITEM":
                value, key = stack.pop(), stack.pop()
                items = [key, value]
            else:
                items = self._marked()
            if name == "DICT":
                stack.append({})
            _fill(self._expect(stack[-1], dict), items[::2], items[1::2], self.where)
        elif name == "APPEND":
            value = stack.pop()
            self._expect(stack[-1], list).append(value)
        elif name == "APPENDS":
            items = self._marked()
            self._expect(stack[-1], list).extend(items)
        elif name == "ADDITEMS":
            items = self._marked()
            self._expect(stack[-1], set).update(_key(v, self.where) for v in items)
        elif name in ("REDUCE", "NEWOBJ"):
            args, function = stack.pop(), stack.pop()
            self._charge(args)
            stack.append(_call(function, args, self.where))
        elif name == "BUILD":
            # Only attributes of an OrderedDict (`_metadata` of a state_dict) arrive here; they are not needed.
            stack.pop()
            self._expect(stack[-1], (OrderedDict, TensorRef))
        elif name == "BINPERSID":
            stack.append(self.persistent(stack.pop()))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._marked()
        elif name not in ("PROTO", "FRAME"):
            raise Blocked(f"{self.where}: refused, its pickle uses the step {name}; nothing was executed")

    def _global(self, arg):
        if arg is None:
            name, module = self.stack.pop(), self.stack.pop()
        else:
            module, name = arg.split(" ", 1)
        if not _allowed(module, name):
            _refuse(module, name, self.where)
        self.stack.append(Global(module, name))

    def _charge(self, args):
        """Count the items that calls copy as steps, because one long list may be the argument of many calls."""
        if isinstance(args, tuple):
            self.copied += sum(len(a) for a in args if isinstance(a, (tuple, list, set, dict)))
        if self.copied > MAX_OPCODES:
            raise Blocked(f"{self.where}: refused, a pickle of over {MAX_OPCODES} steps")

    def _expect(self, value, kind):
        if not isinstance(value, kind):
            raise Blocked(f"{self.where}: refused, its pickle changes a {type(value).__name__}; nothing was executed")
        return value
