"""What runs a network: ONNX Runtime or OpenVINO from a verified export, or MindSpore.

On a CPU, ONNX Runtime is several times faster, so it is the default there. MindSpore exports its graph from the
checkpoint, the outputs of the two are compared, and the graph is cached beside the checkpoint. The name of the cached
file contains a hash of everything the graph was made from. On Ascend and GPU, MindSpore runs the network. OpenVINO runs
the same graph.

Messages for the user go to the callable ``say``, or to the logger ``aidet`` if there is none.
"""

import contextlib
import glob
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple, Type, TypeVar, Union

import numpy as np

from .. import ckpt, runtime
from ..errors import UserError, nearest
from ..export import onnx_graph
from ..runtime import has_ascend
from . import openvino_session
from .batches import in_rows
from .cascade import stated
from .openvino_session import OpenVino

BACKENDS = ("auto", "onnxruntime", "openvino", "mindspore")
PRECISIONS = ("float32", "bfloat16", "int8")
# Largest batch of views, to bound memory. It is fixed because the batch size affects the last digits of a score.
PIECE = 8
Say = Optional[Callable[[str], None]]
LOGGER = logging.getLogger("aidet")


def tell(say: Say, line: str, level: int = logging.INFO) -> None:
    """Hand a message to ``say``, or to the logger ``aidet`` at ``level`` if ``say`` is None."""
    if say is None:
        LOGGER.log(level, "%s", line)
    else:
        say(line)


class OnnxRuntime:
    """A session on the CPU that any thread may call.

    Parameters
    ----------
    model : str, Path or bytes
        An ONNX file, or its content.
    """

    threadsafe = True
    name, device = "onnxruntime", "CPU"

    def __init__(self, model: Union[str, Path, bytes]) -> None:
        import onnxruntime

        self.model = model = model if isinstance(model, bytes) else str(model)
        self.session = onnxruntime.InferenceSession(model, onnx_graph.session_options(), onnx_graph.PROVIDERS)
        first = self.session.get_inputs()[0].shape[0]
        self.rows = first if isinstance(first, int) and first > 0 else None  # images in a call, if fixed
        self.precision = precision_of(self)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, C, h, w) -> logits (N, K)."""
        return self._run([onnx_graph.OUTPUT], batch)[0]

    def every(self, batch: np.ndarray) -> Dict[str, np.ndarray]:
        """float32 (N, C, h, w) -> all outputs by name."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self._run(names, batch)))

    def _run(self, names, batch):
        return in_rows(batch, self.rows, lambda part: self.session.run(names, {onnx_graph.INPUT: part}))

    def metadata(self) -> Dict[str, str]:
        """The model's metadata."""
        return self.session.get_modelmeta().custom_metadata_map


AnySession = TypeVar("AnySession", bound=OnnxRuntime)


class MindSpore:
    """A network in MindSpore, to be called from one thread only.

    Parameters
    ----------
    net : mindspore.nn.Cell
    device : str
    compiled : bool
        Graph mode: one graph is compiled for each image size, and smaller batches are padded to the first batch's size.
    """

    threadsafe = False
    name, precision = "mindspore", "float32"

    def __init__(self, net: Any, device: str, compiled: bool = True) -> None:
        self.net, self.device = net, device
        self.seen: Any = {} if compiled else None  # image shape -> batch size that its graph was compiled for

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, C, h, w) -> logits (N, K)."""
        return self.every(batch)[onnx_graph.OUTPUT]

    def every(self, batch: np.ndarray) -> Dict[str, np.ndarray]:
        """float32 (N, C, h, w) -> all outputs by name."""
        if self.seen is None:  # not compiled, because every image may have another size
            return self._named(onnx_graph.outputs_of(self.net, batch))
        rows = self.seen.setdefault(batch.shape[1:], batch.shape[0])
        return self._named(in_rows(batch, rows, lambda part: onnx_graph.outputs_of(self.net, part)))

    @staticmethod
    def _named(found):
        return dict(zip((onnx_graph.OUTPUT, onnx_graph.MAP), found))


def open_model(
    sidecar: ckpt.Sidecar,
    backend: str = "auto",
    size: Optional[Tuple[int, int]] = None,
    device: str = "auto",
    say: Say = None,
    precision: Optional[str] = None,
) -> Union[OnnxRuntime, OpenVino, MindSpore]:
    """Open a checkpoint, or an exported ``.onnx``, for inference.

    Parameters
    ----------
    sidecar : aidet.ckpt.Sidecar
        Sidecar of the model: of a ``.ckpt``, or of an ``.onnx`` made by ``export.py``.
    backend : {"auto", "onnxruntime", "openvino", "mindspore"}
        ``auto``: MindSpore if an Ascend device is present or if Ascend or GPU is requested; otherwise ONNX Runtime, or
        OpenVINO where :func:`aidet.detector.openvino_session.is_faster` says so. If neither can be used: MindSpore,
        with one message that gives the reason.
    size : (int, int), optional
        Input height and width. None: the network takes images of any size, which the cached graph does not.
    device : {"auto", "Ascend", "GPU", "CPU"}
    say : callable, optional
        Takes a message, one line of text. Default: the logger ``aidet``, at INFO when a graph is made and at WARNING
        when the slower back end is used.
    precision : {"float32", "bfloat16", "int8"}, optional
        ``bfloat16``: OpenVINO, on a processor that has it. ``int8``: of files of ``export.py --int8`` only. Default:
        what the file states, else float32.

    Returns
    -------
    OnnxRuntime, OpenVino or MindSpore

    Raises
    ------
    UserError
        Unknown back end, device or precision, a file that does not exist or cannot be run, a back end that cannot run
        it, or one that does not run on the device.
    """
    path = sidecar.path
    check(backend, device, precision)
    if str(path).endswith(".onnx"):
        if backend == "mindspore":
            raise UserError(f"{str(path)!r} is an ONNX model, which MindSpore does not run; give the .ckpt")
        _refuse_device(device, "an .onnx file")
        return _engine(open_session(path, OnnxRuntime), sidecar, backend, precision, say, size)
    ascend = device in ("Ascend", "GPU") or has_ascend(device)
    if backend == "mindspore" or (backend == "auto" and precision != "bfloat16" and ascend):
        _refuse_eight_bits(precision, path)
        return _mindspore(sidecar, size, device)
    reason = None
    has_onnx = None not in (runtime.version_of("onnxruntime"), runtime.version_of("onnx"))
    if size is None:
        reason = "the model takes images of any size"
    elif not has_onnx:
        reason = "onnx and onnxruntime are not installed (pip install 'aidet[onnx]')"
    else:
        try:
            return _engine(cached(sidecar, size, say), sidecar, backend, precision, say, size)
        except onnx_graph.ExportError as error:
            reason = str(error)
    if backend != "auto" or precision == "bfloat16":
        name = "openvino" if backend == "auto" else backend
        raise UserError(f"backend {name!r} cannot run {str(path)!r}: {reason}; use --backend mindspore")
    _refuse_eight_bits(precision, path)
    if size is not None and not has_onnx and runtime.mindspore_version() is None:
        raise UserError(f"{Path(path).name} cannot be run: {reason}, and neither is MindSpore")
    note = f"note: running {Path(path).name} on mindspore, slower than onnxruntime, because: {reason}"
    tell(say, note, logging.WARNING)
    return _mindspore(sidecar, size, device)


def check(backend: str, device: str, precision: Optional[str] = None) -> None:
    """Refuse an unknown back end, device or precision, and those that do not go together; see :func:`open_model`.

    Raises
    ------
    UserError
    """
    for name, value, known in (("backend", backend, BACKENDS), ("device", device, runtime.DEVICES)):
        if value not in known:
            raise UserError(nearest(str(value), known, name))
    if precision is not None and precision not in PRECISIONS:
        raise UserError(nearest(precision, PRECISIONS, "precision"))
    if precision == "bfloat16" and backend not in ("auto", "openvino"):
        raise UserError(f"precision bfloat16 is for --backend openvino, not {backend!r}")
    engine = "openvino" if precision == "bfloat16" else backend
    if engine not in ("auto", "mindspore"):
        _refuse_device(device, engine)


def _refuse_device(device, what):
    if device in ("Ascend", "GPU"):
        raise UserError(
            f"device {device!r} runs a .ckpt on MindSpore, but {what} runs on the CPU; leave out --device, or what "
            "asks for the CPU (--backend, --precision, an .onnx file)"
        )


def precision_of(session: Union[OnnxRuntime, OpenVino]) -> str:
    """The precision that a file states it is for: ``float32`` unless ``export.py --int8`` or ``--bf16`` made it."""
    about = stated(session)
    return "bfloat16" if about.get("precision") == "bfloat16" else "int8" if about else "float32"


def _refuse_eight_bits(precision, path):
    if precision == "int8":
        raise UserError(
            f"precision int8: {str(path)!r} is not an eight-bit model; make one with "
            "export.py --format onnx --int8 DIR, and give it as --ckpt, or as --cascade"
        )


def _engine(session, sidecar, backend, precision, say, size):
    """The session itself, or OpenVINO for its graph."""
    own = session.precision
    if own != "int8":
        _refuse_eight_bits(precision, sidecar.path)
    elif precision not in (None, "int8"):
        raise UserError(f"{str(sidecar.path)!r} is an eight-bit model; leave --precision out, or give the float32 one")
    precision = precision or own
    wanted = backend == "openvino" or precision == "bfloat16"
    if precision == "bfloat16" and backend == "onnxruntime":
        raise UserError(f"{str(sidecar.path)!r} is for bfloat16; use --backend openvino, or --precision float32")
    preferred = backend == "auto" and precision == "float32" and openvino_session.is_faster(sidecar.architecture)
    if not (wanted or preferred):
        session.precision, session.model = precision, ""  # not to keep a second copy of a graph made just now
        return session
    try:
        return _openvino(session, precision, sidecar, size)
    except UserError as error:
        if wanted:
            raise
        tell(say, f"note: running {Path(sidecar.path).name} on onnxruntime, because: {error}", logging.WARNING)
        return session


def _openvino(session, precision, sidecar, size):
    """OpenVINO for the graph of a session, compared with it."""
    path, made = sidecar.path, OpenVino(session.model, session.metadata(), precision)
    free = (1, sidecar.channels, *(size or (224, 224)))  # what a graph for any size is compared at
    shape = [n if isinstance(n, int) else m for n, m in zip(session.session.get_inputs()[0].shape, free)]
    sample = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    apart = openvino_session.difference(made, session, sample)
    limit = onnx_graph.TOLERANCE if precision == "float32" else np.inf
    if not apart <= limit or not np.isfinite(apart):
        raise UserError(
            f"OpenVINO's outputs for {str(path)!r} differ from ONNX Runtime's by {apart:.1e} of the largest "
            f"(limit {limit:g}); use --backend onnxruntime"
        )
    return made


def open_session(path: Union[str, Path], kind: Type[AnySession]) -> AnySession:
    """A session of an ONNX file.

    Parameters
    ----------
    path : str or Path
    kind : type
        :class:`OnnxRuntime` or a class derived from it.

    Raises
    ------
    UserError
        ONNX Runtime is not installed, or there is no such file, or it cannot be run.
    """
    if runtime.version_of("onnxruntime") is None:
        raise UserError("onnxruntime is not installed; run: pip install 'aidet[onnx]'")
    if not Path(path).is_file():
        raise UserError(f"model {str(path)!r} does not exist")
    try:
        return kind(path)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - onnxruntime raises its own types, one for each status code
        raise UserError(f"{str(path)!r} cannot be run by ONNX Runtime: {str(error).splitlines()[0][:200]}") from None


def _mindspore(sidecar, size, device):
    # A graph is compiled for one shape. If every image has a different shape, compiling costs more than it saves.
    ms, chosen = runtime.setup(device, mode="pynative" if size is None else "graph")
    net = ckpt.load_network(sidecar)
    return MindSpore(net, chosen, compiled=size is not None)


# --- the cache -------------------------------------------------------------------------------------------------------
def cache_key(sidecar: ckpt.Sidecar, size: Tuple[int, int]) -> str:
    """Hash of everything an exported graph depends on: weights, architecture, input size, the exporter's version."""
    value = [
        sidecar.identity,
        sidecar.architecture,
        sidecar.arguments,
        list(size),
        onnx_graph.FORMAT,
    ]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def cached(sidecar: ckpt.Sidecar, size: Tuple[int, int], say: Say = None) -> OnnxRuntime:
    """The checkpoint's ONNX graph; it is made and verified now if it is not cached yet.

    Parameters
    ----------
    path : str or Path
        The checkpoint. The graph is kept beside it, or in the user's cache folder if that folder is not writable.
    size : (int, int)
        Input height and width.
    say : callable, optional
        See :func:`open_model`.

    Returns
    -------
    OnnxRuntime

    Raises
    ------
    onnx_export.ExportError
        The network cannot be exported, or the graph's outputs differ from the network's.
    UserError
        The checkpoint cannot be read.
    """
    path = Path(sidecar.path)
    key = cache_key(sidecar, size)
    places = [path.parent, Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aidet"]
    name = f"{path.stem}.{key[:16]}.onnx"
    # A graph that ships with its checkpoint has the checkpoint's name; it is used only if it was made from it.
    kept = _kept(places, name, key) or _intact(path.with_suffix(".onnx"), key)
    if kept is not None:
        return kept
    with _alone(path):
        return _kept(places, name, key) or _made(sidecar, size, places, name, key, say)


def _kept(places, name, key):
    for place in places:
        kept = _intact(place / name, key)
        if kept is not None:
            return kept
    return None


@contextlib.contextmanager
def _alone(path):
    """Lock the checkpoint: if several processes (shards) open it, one makes the graph and the others wait."""
    with open(path, "rb") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass  # a system without locks: each process makes its own graph and writes it atomically
        yield


def _made(sidecar, size, places, name, key, say):
    path = Path(sidecar.path)
    tell(say, f"{path.name}: making its ONNX graph (once) ...")
    model, verdict = make(sidecar, size)
    onnx_graph.stamp(model, "aidet.key", key)
    for place in places:
        if place.is_dir() and not os.access(place, os.W_OK):
            continue
        try:
            onnx_graph.save(model, place / name)
        except UserError:
            continue
        _forget(place, path.stem, keep=name)
        tell(
            say, f"{path.name}: verified, largest logit difference {verdict['difference']:.1e}; kept as {place / name}"
        )
        break
    # Loaded from memory: another process, with other weights under the same name, may have removed the file by now.
    return OnnxRuntime(model.SerializeToString())


def make(sidecar: ckpt.Sidecar, size: Tuple[int, int]) -> Tuple[Any, Dict[str, Any]]:
    """Load a checkpoint into MindSpore on the CPU and export it; see :func:`aidet.export.onnx_graph.export`."""
    runtime.setup("CPU", mode="graph")
    net = ckpt.load_network(sidecar)
    return onnx_graph.export(net, sidecar, onnx_graph.pixels(size, sidecar.channels))


def _intact(path, key):
    """The cached graph, or None if it is missing, damaged or made from something else.

    Only ONNX Runtime reads it: the package onnx would load protobuf's compiled classes, and a later import of MindSpore
    would then fail ("Descriptors cannot be created directly").
    """
    if not path.is_file():
        return None
    try:
        session = OnnxRuntime(path)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is made again
        return None
    return session if session.metadata().get("aidet.key") == key else None


def _forget(place, stem, keep):
    """Remove cached graphs of earlier weights that had the same checkpoint name."""
    for old in place.glob(f"{glob.escape(stem)}.*.onnx"):
        middle = old.name[len(stem) + 1 : -len(".onnx")]
        if old.name != keep and len(middle) == 16 and set(middle) <= set("0123456789abcdef"):
            try:
                old.unlink()
            except OSError:
                pass
