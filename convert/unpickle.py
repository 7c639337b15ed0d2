"""Read the pickles inside PyTorch checkpoints without executing any code they ask for.

A pickle is a program. Here it runs on a small interpreter of our own that knows the data opcodes and a short list of
names (:mod:`.bystanders`): tensors and plain data are built here, objects that stand beside the weights become
placeholders, and any other import is refused with an error that gives its name. Nothing is executed, and Python's own
unpickler is not used. Sizes and depths are limited by what the file itself contains.
"""

import math
import pickletools
import re
from collections import OrderedDict
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union, cast

import numpy as np

from aidet.errors import UserError

from . import bystanders, float8
from .bystanders import Placeholder

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
    "QInt8Storage": ("<i1", "qint8"),
    "QUInt8Storage": ("<u1", "quint8"),
    "QInt32Storage": ("<i4", "qint32"),
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
    "qint8": "<i1",
    "quint8": "<u1",
    "qint32": "<i4",
    **dict.fromkeys(float8.NAMES, "<u1"),
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
MAX_STRING = 1 << 29  # bytes; an array of NumPy is one string
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
        """The values as a NumPy array in C order; bfloat16 and 8-bit floats are returned as float32 (exact)."""
        flat = self.storage.data
        if flat is None:
            raise UserError("a tensor's storage is missing: truncated file")
        if flat.dtype != self.stored:
            flat = flat.view(self.stored)
        steps = [s * flat.dtype.itemsize for s in self.stride]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps, writeable=False)
        if self.dtype == "bfloat16":
            return widen(view)
        if self.dtype in float8.NAMES:
            return float8.widen(view, self.dtype)
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


class ArrayRef:
    """A lazy tensor over an array that is already in memory: of MindSpore, or of NumPy inside a pickle.

    Parameters
    ----------
    array : numpy.ndarray or None
        None for an array of a pickle until its state is known, and for ever if it holds no numbers.
    """

    def __init__(self, array: Optional[np.ndarray]) -> None:
        self.fill(array)

    def fill(self, array: Optional[np.ndarray]) -> None:
        """Set the values."""
        self._array = array
        self.shape: Tuple[int, ...] = () if array is None else tuple(array.shape)
        self.dtype = "" if array is None else str(array.dtype)

    @property
    def usable(self) -> bool:
        """Whether it holds numbers."""
        return self._array is not None

    def array(self) -> np.ndarray:
        """The values, C order and the machine's byte order."""
        if self._array is None:
            raise UserError("an array of a pickle holds no numbers: damaged file")
        return np.ascontiguousarray(self._array, self._array.dtype.newbyteorder("=")).reshape(self.shape)


def is_tensor(value: Any) -> bool:
    """Whether a value of a checkpoint is a tensor, of torch or NumPy."""
    return isinstance(value, TensorRef) or (isinstance(value, ArrayRef) and value.usable)


class Dtype:
    """A type of NumPy inside a pickle; ``dtype`` is None if it is not one of numbers (objects, texts, records)."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any) -> None:
        good = isinstance(code, str) and re.fullmatch(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16|\?)", code)
        self.dtype = np.dtype(code) if good else None

    def order(self, sign: Any) -> None:
        """Set the byte order that the type's state names."""
        if self.dtype is not None and sign in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(sign)


def _known_type(module, name):
    return module == "torch" and (name in STORAGES or name in DTYPES) or (module == "torch.cuda" and name in STORAGES)


def _allowed(module, name):
    return _known_type(module, name) or bystanders.is_data(module, name) or bystanders.is_inert(module, name)


def _shown(value):
    """A value of the file for a message, always short: a list that contains itself would be endless as text."""
    if isinstance(value, str):
        return value[:200]
    return repr(value)[:200] if isinstance(value, (int, float, bytes, Global)) else f"a {type(value).__name__}"


def _refuse(module, name, where):
    module, name = _shown(module), _shown(name)
    text = f"{where}: refused, its pickle asks for {module}.{name}, which is not on the list of data types"
    if bystanders.is_dangerous(module, name):
        raise Blocked(text + " and could run code; nothing was executed. Do not load this file")
    raise Blocked(
        text + "; nothing was executed. A file that holds a whole model or training state has to be saved again "
        "where it is trusted, as weights only: torch.save(model.state_dict(), 'weights.pth')"
    )


def _call(function, args, where):
    """The value that a call in a pickle stands for."""
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise Blocked(f"{where}: refused, its pickle calls {_shown(function)}; nothing was executed")
    build = _BUILDERS.get(function.name) if bystanders.is_data(function.module, function.name) else None
    try:
        if build is not None:
            return build(args, where)
        if function.name == "Parameter" and args and is_tensor(args[0]):
            return args[0]
        if function.module in ("copyreg", "copy_reg"):
            return Placeholder(repr(args[0])) if isinstance(args[0], Global) else _no_sense()
        if bystanders.is_inert(function.module, function.name):
            return Placeholder(repr(function))
    except (AttributeError, IndexError, TypeError, ValueError, KeyError, OverflowError):
        pass
    raise Blocked(f"{where}: refused, its pickle calls {function!r} with arguments that make no tensor: damaged file")


def _no_sense():
    raise ValueError


# ---- data that calls stand for: f(args, where) -> value; arguments that make no sense raise


def _ordered(args, where):
    pairs = args[0] if args else ()
    return _fill(OrderedDict(), [k for k, _ in pairs], [v for _, v in pairs], where)


def _counter(args, where):
    return _fill(OrderedDict(), list(args[0]), list(args[0].values()), where) if args else OrderedDict()


def _defaultdict(args, where):
    """Its factory, a class, is not needed."""
    return _counter(args[1:], where)


def _set(args, where):
    return {_key(v, where) for v in args[0]} if args else set()


_ENCODINGS = ("latin1", "latin-1", "ascii", "utf-8", "utf8")


def _bytes(args, where):
    """``bytes``, ``bytearray`` and ``_codecs.encode``: from bytes, or from a text and its encoding."""
    if not args:
        return b""
    if isinstance(args[0], (bytes, bytearray)) and len(args) == 1:
        return bytes(args[0])
    return args[0].encode(args[1]) if args[1] in _ENCODINGS else _no_sense()


def _complex(args, where):
    return complex(*args) if all(isinstance(a, (int, float)) for a in args) and len(args) < 3 else _no_sense()


def _size(args, where):
    return tuple(args[0]) if len(args[0]) <= MAX_DIMS else _no_sense()


def _tensor(args, where):
    if len(args) > 6 and isinstance(args[6], dict) and (args[6].get("conj") or args[6].get("neg")):
        return Placeholder("a tensor that is conjugated or negated on reading")
    return TensorRef(args[0], args[1], tuple(args[2]), tuple(args[3]))


def _tensor_of_type(args, where):
    dtype = args[6].name
    return TensorRef(args[0], args[1], tuple(args[2]), tuple(args[3]), _ALIASES.get(dtype, dtype))


def _first(args, where):
    """Calls around a tensor: a parameter, a copy for another device."""
    return args[0] if isinstance(args[0], (TensorRef, ArrayRef, Placeholder)) else _no_sense()


def _from_type(args, where):
    """A tensor with attributes, or of a subclass: ``(function, type, arguments, state)``."""
    if _name(args[0]) in _AROUND or not _name(args[0]).startswith("_rebuild"):
        return _no_sense()
    return _call(args[0], args[2], where)


def _without_values(kind):
    return lambda args, where: Placeholder(kind)


def _dtype(args, where):
    return Dtype(args[0])


def _numpy_array(args, where):
    return ArrayRef(None)


def _numpy_scalar(args, where):
    dtype = args[0].dtype
    if dtype is None:
        return Placeholder("a scalar of NumPy")
    data = args[1].encode("latin1") if isinstance(args[1], str) else args[1]
    return np.frombuffer(data, dtype, 1)[0].item() if len(data) == dtype.itemsize else _no_sense()


def _numpy_buffer(args, where):
    data, dtype, shape, order = args
    return ArrayRef(_numbers(data, dtype, shape, order == "F"))


def _numbers(data, dtype, shape, fortran):
    """The array that NumPy's pickle describes; None if its elements are not numbers."""
    if dtype.dtype is None:
        return None
    data = data.encode("latin1") if isinstance(data, str) else data
    shape = tuple(shape)
    if len(shape) > MAX_DIMS or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError("an array of NumPy whose shape makes no sense")
    if len(data) != math.prod(shape) * dtype.dtype.itemsize:
        raise ValueError("an array of NumPy whose size does not fit its shape")
    flat = np.frombuffer(data, dtype.dtype) if data else np.empty(0, dtype.dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


_AROUND = ("_rebuild_from_type", "_rebuild_from_type_v2")
_COPY_TEXT = ("encode", "bytes", "bytearray", "scalar")


def _name(function):
    return function.name if isinstance(function, Global) else ""


_BUILDERS: Dict[str, Callable[[Any, str], Any]] = {
    "OrderedDict": _ordered,
    "Counter": _counter,
    "defaultdict": _defaultdict,
    "set": _set,
    "frozenset": _set,
    "bytes": _bytes,
    "bytearray": _bytes,
    "encode": _bytes,
    "complex": _complex,
    "Size": _size,
    "device": lambda args, where: _shown(args[0]),
    "_get_layout": lambda args, where: _shown(args[0]),
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _tensor_of_type,
    "_rebuild_parameter": _first,
    "_rebuild_parameter_with_state": _first,
    "_rebuild_device_tensor_from_numpy": _first,
    "_rebuild_device_tensor_from_cpu_tensor": _first,
    "_rebuild_from_type": _from_type,
    "_rebuild_from_type_v2": _from_type,
    "_rebuild_qtensor": _without_values("a quantised tensor"),
    "_rebuild_sparse_tensor": _without_values("a sparse tensor"),
    "_rebuild_nested_tensor": _without_values("a nested tensor"),
    "_rebuild_meta_tensor_no_storage": _without_values("a tensor without values"),
    "_rebuild_wrapper_subclass": _without_values("a tensor of a subclass"),
    "dtype": _dtype,
    "_reconstruct": _numpy_array,
    "scalar": _numpy_scalar,
    "_frombuffer": _numpy_buffer,
}


_KEYS = (str, bytes, int, float, complex, Global, Placeholder, TensorRef)  # an optimizer has tensors as keys


def _key(value, where, depth=0):
    """Check a key of a dictionary or set. Hashing deeply nested tuples could hang or overflow, so they are refused."""
    if isinstance(value, tuple) and depth < 3 and len(value) <= 8:
        for part in value:
            _key(part, where, depth + 1)
    elif isinstance(value, (str, bytes)) and len(value) > MAX_NAME:
        raise Blocked(f"{where}: refused, a key of {len(value)} characters: damaged file")
    elif value is not None and not isinstance(value, _KEYS):
        raise Blocked(f"{where}: refused, a {type(value).__name__} as a key: damaged file")
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
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8".split()
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
        self.encoded, self.room = 0, 0

    def load(self, cursor: Cursor) -> Any:
        """Run the pickle that starts at the cursor, and leave the cursor after its end."""
        self.room = 2 * len(cursor.buffer)
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
            if not isinstance(stack[-1], Placeholder):
                _fill(self._expect(stack[-1], dict), items[::2], items[1::2], self.where)
        elif name == "APPEND":
            value = stack.pop()
            self._extend([value])
        elif name == "APPENDS":
            self._extend(self._marked())
        elif name == "ADDITEMS":
            items = self._marked()
            if not isinstance(stack[-1], Placeholder):
                self._expect(stack[-1], set).update(_key(v, self.where) for v in items)
        elif name == "FROZENSET":
            stack.append({_key(v, self.where) for v in self._marked()})
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            if name == "NEWOBJ_EX":
                self._expect(stack.pop(), dict)  # arguments by name: only objects of other packages have them
            args, function = stack.pop(), stack.pop()
            self._charge(function, args)
            stack.append(_call(function, args, self.where))
        elif name == "BUILD":
            self._state(stack.pop())
        elif name == "BINPERSID":
            stack.append(self.persistent(stack.pop()))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._marked()
        elif name not in ("PROTO", "FRAME"):
            raise Blocked(f"{self.where}: refused, its pickle uses the step {name}; nothing was executed")

    def _extend(self, items):
        if not isinstance(self.stack[-1], Placeholder):
            self._expect(self.stack[-1], list).extend(items)

    def _state(self, state):
        """The state of an object: only that of NumPy's types and arrays is needed.

        Others are attributes: of an OrderedDict (``_metadata`` of a state_dict), of a tensor, of a placeholder.
        """
        target = self._expect(self.stack[-1], (OrderedDict, TensorRef, ArrayRef, Dtype, Placeholder))
        if isinstance(target, Dtype):
            target.order(state[1])
        elif isinstance(target, ArrayRef) and not target.usable:
            target.fill(_numbers(state[4], state[2], state[1], state[3]))

    def _global(self, arg):
        if arg is None:
            name, module = self.stack.pop(), self.stack.pop()
        else:
            module, name = arg.split(" ", 1)
        if not _allowed(module, name):
            _refuse(module, name, self.where)
        self.stack.append(Global(module, name))

    def _charge(self, function, args):
        """Count the items that calls copy as steps, because one long list may be the argument of many calls."""
        if not isinstance(args, tuple):
            return
        inner = [args] + ([a for a in args if isinstance(a, tuple)] if _name(function) in _AROUND else [])
        for some in inner:
            self.copied += sum(len(a) for a in some if isinstance(a, (tuple, list, set, dict)))
            if self.copied > MAX_OPCODES:
                raise Blocked(f"{self.where}: refused, a pickle of over {MAX_OPCODES} steps")
        if _name(function) in _COPY_TEXT:
            self.encoded += sum(len(a) for a in args if isinstance(a, (str, bytes)))
        # In a sound file every such text is the argument of one call, so that all of them are no longer than the file.
        if self.encoded > self.room:
            raise Blocked(f"{self.where}: refused, its texts are copied over and over: damaged file")

    def _expect(self, value, kind):
        if not isinstance(value, kind):
            raise Blocked(f"{self.where}: refused, its pickle changes a {type(value).__name__}; nothing was executed")
        return value
