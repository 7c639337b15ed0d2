"""Export to MindIR, ONNX or AIR, load the result again and compare it, and find the layer that cannot be exported."""

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional, Union

from .. import ckpt, files, runtime
from ..errors import UserError, nearest
from . import onnx_graph, substitutes
from .lite import emit_lite
from .mindir import _air, _mindir, _refuse_air, input_name
from .preprocessing import SCORE, _bytes, input_of, with_preprocessing

if TYPE_CHECKING:
    import mindspore as ms
    import numpy as np

MOST_OPSET = 30  # a typing error; which versions a graph can have, its conversion says
FORMATS = ("mindir", "onnx", "air")


def export(
    path: Union[str, Path],
    kind: str,
    out: Union[str, Path],
    batch: Union[int, str] = "dynamic",
    preprocess: bool = False,
    lite: bool = False,
    opset: Optional[int] = None,
) -> Dict[str, Any]:
    """Export a checkpoint, load the result again, compare it with the network, and write the verdict beside it.

    Parameters
    ----------
    path : str or Path
        Checkpoint with a sidecar.
    kind : {"mindir", "onnx", "air"}
    out : str or Path
        Folder.
    batch : int or "dynamic"
        Fixed batch size, or any batch size.
    preprocess : bool
        Put cast, normalisation and the score into the graph: uint8 (N, h, w, 3) in, float32 (N,) score out.
    lite : bool
        Write the files for MindSpore Lite, too; only with ``mindir``.
    opset : int, optional
        Version of ONNX's operators; only with ``onnx``. Default: that of MindSpore's exporter.

    Returns
    -------
    dict
        The verdict, as written to ``<name>.<kind>.json``.

    Raises
    ------
    UserError
        A wrong option, a model without a fixed input size, an operator that cannot be exported (its layer is named),
        or a result that differs (no file is left then).
    """
    if kind not in FORMATS:
        raise UserError(nearest(kind, FORMATS, "format"))
    if batch != "dynamic" and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise UserError(f"batch (={batch!r}) must be a whole number >= 1 or 'dynamic'")
    if lite and kind != "mindir":
        raise UserError(f"--emit-lite goes with --format mindir, not {kind}")
    if opset is not None and (kind != "onnx" or not 1 <= opset <= MOST_OPSET):
        raise UserError(f"--opset (={opset}) goes with --format onnx and lies between 1 and {MOST_OPSET}")
    if kind == "air":
        _refuse_air()
    sidecar = ckpt.Sidecar.read(path)
    size, pipeline = input_of(sidecar)
    runtime.setup("CPU" if kind != "air" else "Ascend", mode="graph")
    net = ckpt.load_network(sidecar)
    sample = onnx_graph.pixels(size, sidecar.channels)
    if preprocess:
        net = with_preprocessing(net, pipeline, sidecar.detector_order, sidecar.calibration)
        sample = _bytes(size)
    net.set_train(False)
    name = Path(path).stem + ("_uint8" if preprocess else "")
    target = Path(out) / f"{name}.{kind}"
    writers: Dict[str, Any] = {"mindir": _mindir, "onnx": functools.partial(_onnx, opset=opset), "air": _air}
    verdict: Dict[str, Any] = {
        "format": kind,
        "file": target.name,
        "checkpoint_sha256": sidecar.identity,
        "architecture": sidecar.architecture,
        "batch": batch,
        "input": {
            "name": onnx_graph.INPUT,
            "shape": ["batch" if batch == "dynamic" else batch, *sample(1).shape[1:]],
            "type": str(sample(1).dtype),
        },
        "output": SCORE if preprocess else onnx_graph.OUTPUT,
        **({"outputs": [onnx_graph.OUTPUT, onnx_graph.MAP]} if sidecar.localization and not preprocess else {}),
        # Decoding and geometry are outside the graph in every export.
        "geometry": pipeline.geometry.text,
        **writers[kind](net, sidecar, sample, batch, target, preprocess),
    }
    if kind == "mindir":
        verdict["input"]["name"] = input_name(target)
    verdict["versions"] = runtime.versions()
    files.write_json(target.with_name(target.name + ".json"), verdict)
    if lite:
        verdict["lite"] = emit_lite(net, size, pipeline, sample, batch, target, preprocess)
    return verdict


# --- formats ---------------------------------------------------------------------------------------------------------
def _onnx(net, sidecar, sample, batch, target, preprocess, opset):
    output = SCORE if preprocess else onnx_graph.OUTPUT
    batches = onnx_graph.VERIFIED if batch == "dynamic" else (batch,)
    try:
        model, verdict = onnx_graph.export(net, sidecar, sample, batches, output, opset)
    except onnx_graph.ExportError as error:
        raise UserError(f"{target.name}: {error}{_where(net, sample)}") from None
    if batch != "dynamic":
        for value in (model.graph.input[0], *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    # A graph with preprocessing takes bytes and returns scores; Detector needs the plain one.
    onnx_graph.stamp(model, "aidet.output", output)
    onnx_graph.save(model, target)
    return verdict


def _where(net, sample):
    layer = find_layer(net, sample(2))
    return f" (at {layer})" if layer else ""


# --- which layer cannot be exported ----------------------------------------------------------------------------------
def find_layer(net: "ms.nn.Cell", example: "np.ndarray") -> Optional[str]:
    """Name the innermost layer that cannot be exported by itself.

    Parameters
    ----------
    net : mindspore.nn.Cell
    example : numpy.ndarray

    Returns
    -------
    str or None
        For example ``layer1.0 (BasicBlock)``; None if every layer can be exported, so that the fault is between them.
    """
    seen = _inputs_of_cells(net, example)
    found: Optional[str] = None
    cell, prefix = net, ""
    with tempfile.TemporaryDirectory() as folder, substitutes.exportable(net, folder):
        while True:
            for name, child in cell.name_cells().items():
                full = f"{prefix}{name}"
                if full in seen and not _exports(child, seen[full]):
                    found, cell, prefix = f"{full} ({type(child).__name__})", child, f"{full}."
                    break
            else:
                return found


def _inputs_of_cells(net, example):
    """Run once in PyNative mode and record the input of every cell that takes one tensor."""
    import mindspore as ms

    seen, handles = {}, []

    def note(name):
        def hook(cell, inputs):
            if len(inputs) == 1 and isinstance(inputs[0], ms.Tensor):
                seen.setdefault(name, inputs[0].asnumpy())

        return hook

    for name, cell in net.cells_and_names():
        if name:
            handles.append(cell.register_forward_pre_hook(note(name)))
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        net(ms.Tensor(example))
    finally:
        for handle in handles:
            handle.remove()
        ms.set_context(mode=ms.GRAPH_MODE)
    return seen


def _exports(cell, example):
    with tempfile.TemporaryDirectory() as folder, onnx_graph.standing_in(folder):
        try:
            onnx_graph.trace(cell, example, Path(folder) / "x.onnx")
        except onnx_graph.ExportError:
            return False
    return True
