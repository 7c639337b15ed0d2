"""OpenVINO on the CPU, for a graph that ONNX Runtime has opened and that was verified against its network.

``float32`` is an engine like ONNX Runtime: the same graph, the precision stated, because OpenVINO's own default is
bfloat16 on processors that have it. It is compared with ONNX Runtime on one view whenever it is opened.
``bfloat16`` changes scores in the third digit; it is for the first stage of a cascade, or asked for by hand.

Property names are those of OpenVINO's documentation ("CPU Device", "Precision Control").
"""

import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List, Union

import numpy as np

from .. import runtime
from ..errors import UserError, first_line
from ..export import onnx_graph
from ..parallel import cpus
from .batches import in_rows

MISSING = "openvino is not installed; run: pip install 'aidet[openvino]'"
TELEMETRY = "openvino_telemetry"
HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # of what an eight-bit graph leaves in float
# Plain vision transformers. On processors with AVX-512 OpenVINO took 8 % to 40 % less time for CLIP ViT-B/16 than ONNX
# Runtime; for other families the two were within 5 %, or ONNX Runtime was faster (LOG.md, 2026-11-30).
TRANSFORMERS = ("clip", "deit", "dinov2", "siglip", "vit")


class OpenVino:
    """A compiled graph that any thread may call.

    Each image is computed on one thread, as with ONNX Runtime, so a result does not depend on other images or on the
    number of workers.

    Parameters
    ----------
    model : str, Path or bytes
        An ONNX file, or its content.
    metadata : dict of str to str
        The model's metadata, which OpenVINO does not keep.
    precision : {"float32", "bfloat16", "int8"}
        ``int8`` for graphs that are quantised already.

    Raises
    ------
    UserError
        OpenVINO is not installed, cannot run the graph, or the processor has no bfloat16.
    """

    threadsafe = True
    name, device = "openvino", "CPU"

    def __init__(self, model: Union[str, Path, bytes], metadata: Dict[str, str], precision: str = "float32") -> None:
        core = library().Core()
        require(precision)
        self.precision, self._metadata = precision, metadata
        streams = cpus()
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": streams,
            "NUM_STREAMS": streams,  # so that each has one thread
            "ENABLE_CPU_PINNING": False,
        }
        try:
            read = core.read_model(model) if isinstance(model, bytes) else core.read_model(str(model))
            self.compiled = core.compile_model(read, "CPU", settings)
            first = read.inputs[0].partial_shape[0]
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot run the graph: {first_line(error, 200)}") from None
        self.rows = first.get_length() if first.is_static else None  # images in a call, if fixed
        self._own = threading.local()

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, C, h, w) -> logits (N, K)."""
        return in_rows(batch, self.rows, lambda part: [self._copied(self._run(part), onnx_graph.OUTPUT)])[0]

    def every(self, batch: np.ndarray) -> Dict[str, np.ndarray]:
        """float32 (N, C, h, w) -> all outputs by name."""
        outputs = self.compiled.outputs

        def run(part):
            found = self._run(part)
            return [self._copied(found, output) for output in outputs]

        return dict(zip((output.any_name for output in outputs), in_rows(batch, self.rows, run)))

    @staticmethod
    def _copied(found, output):
        return np.array(found[output])  # the request writes its next result over this one

    def _run(self, batch):
        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self.compiled.create_infer_request()
        return request.infer({onnx_graph.INPUT: np.ascontiguousarray(batch)})

    def metadata(self) -> Dict[str, str]:
        """The model's metadata."""
        return self._metadata


def library() -> ModuleType:
    """The package openvino, imported without its telemetry.

    At import it reports to Google Analytics if the package openvino-telemetry is found, and does without if it is not;
    here it never finds it.

    Raises
    ------
    UserError
        It is not installed.
    """
    if runtime.version_of("openvino") is None:
        raise UserError(MISSING)
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    before: Any = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # an import of it raises ImportError
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise UserError(f"openvino cannot be imported ({first_line(error, 200)}); install it again") from None
    finally:
        del sys.modules[TELEMETRY]
        if before is not None:
            sys.modules[TELEMETRY] = before
    return openvino


def abilities() -> List[str]:
    """What the processor computes at full speed, as OpenVINO names it: ``FP32``, ``BF16``, ``INT8`` ..."""
    found = library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [name for name in found if name in ("FP32", "FP16", "BF16", "INT8")]


def require(precision: str) -> None:
    """Raise :class:`UserError` if OpenVINO is not installed, or the processor does not compute in that precision."""
    library()
    if precision == "bfloat16" and "BF16" not in abilities():
        raise UserError(
            "precision bfloat16 needs a processor with bfloat16 instructions (AVX-512 BF16 or AMX); OpenVINO finds "
            f"{', '.join(abilities())} on this one; use --precision float32"
        )


def is_faster(architecture: str) -> bool:
    """Whether ``--backend auto`` takes OpenVINO: it is installed, and was measured to be faster on such a processor.

    The rule is fixed, so that the same command gives the same scores on every run: plain vision transformers, on a
    processor with AVX-512.
    """
    if not architecture.startswith(TRANSFORMERS) or runtime.version_of("openvino") is None:
        return False
    return "avx512f" in _flags()


def _flags():
    """The processor's flags, as Linux lists them; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return []


def difference(ours: Any, theirs: Any, sample: np.ndarray) -> float:
    """Largest difference of two sessions' outputs for a batch, over the largest value of that output (at least 1)."""
    found, expected = ours.every(sample), theirs.every(sample)
    worst = 0.0
    for name, output in expected.items():
        a, b = np.asarray(found[name], np.float64), np.asarray(output, np.float64)
        if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
            return float("inf")
        worst = max(worst, float(np.abs(a - b).max() / max(1.0, np.abs(b).max())))
    return worst
