"""Writing MindIR and AIR, and reading MindIR back."""

import os
import shutil
from pathlib import Path
from typing import Union

import numpy as np

from .. import files
from ..errors import UserError, first_line
from . import onnx_graph


def _mindir(net, sidecar, sample, batch, target, preprocess):
    import mindspore as ms
    from mindspore import nn

    from ..models.layers import native_sigmoid

    x = sample(2 if batch == "dynamic" else batch)
    kind = ms.uint8 if x.dtype == np.uint8 else ms.float32
    example = ms.Tensor(shape=(None, *x.shape[1:]), dtype=kind) if batch == "dynamic" else ms.Tensor(x)
    with native_sigmoid(net), files.atomic_path(target) as made:
        try:
            with onnx_graph.standing_in(made.parent):
                ms.export(net, example, file_name=str(made), file_format="MINDIR")
                joined(made)
                graph = nn.GraphCell(ms.load(str(made)))
        except Exception as error:  # noqa: BLE001 - MindSpore raises RuntimeError, TypeError, ValueError alike
            raise UserError(f"{target.name}: MindSpore cannot export it: {first_line(error, 300)}") from None
        batches = onnx_graph.VERIFIED if batch == "dynamic" else (batch,)
        worst = 0.0
        for n in batches:
            pairs = zip(onnx_graph.outputs_of(graph, sample(n)), onnx_graph.outputs_of(net, sample(n)))
            worst = max(worst, *(float(np.abs(theirs - ours).max()) for theirs, ours in pairs))
        if worst != 0:
            raise UserError(f"{target.name}: reloaded, it differs from the network by {worst:.2g}, expected 0")
        apart = variables(made).is_dir()
        shutil.rmtree(variables(target), ignore_errors=True)
        if apart:
            os.replace(variables(made), variables(target))
    verdict = {"difference": worst, "tolerance": 0.0, "batches": list(batches)}
    return {**verdict, "variables": variables(target).name} if apart else verdict


def variables(path: Path) -> Path:
    """The folder beside a MindIR file that has its weights if they are more than 1 GB."""
    return path.with_name(f"{path.stem}_variables")


def joined(path: Path) -> None:
    """Give the graph of a network of more than 1 GB the name that was asked for.

    ``mindspore.export`` then writes ``NAME_graph.mindir`` and the folder ``NAME_variables``, to which the graph refers
    by name, and no ``NAME.mindir``.
    """
    graph = path.with_name(f"{path.stem}_graph.mindir")
    if graph.is_file():
        os.replace(graph, path)


def input_name(path: Union[str, Path]) -> str:
    """Name of the input of a MindIR file in MindSpore and MindSpore Lite: the part after the colon."""
    from mindspore.train.mind_ir_pb2 import ModelProto

    model = ModelProto()
    model.ParseFromString(Path(path).read_bytes())
    return model.graph.input[0].name.rpartition(":")[2]


def _refuse_air():
    from .. import runtime

    if not runtime.has_ascend():
        raise UserError(
            "format 'air' can only be written on an Ascend device, and is deprecated: export mindir and use "
            "converter_lite (--emit-lite writes the commands), or export onnx and use atc --framework=5"
        )


def _air(net, sidecar, sample, batch, target, preprocess):
    import mindspore as ms

    if batch == "dynamic":
        raise UserError("format 'air' has no free batch dimension; give --batch N")
    with files.atomic_path(target) as made:
        ms.export(net, ms.Tensor(sample(batch)), file_name=str(made), file_format="AIR")
    return {"difference": None, "note": "MindSpore cannot load AIR again; not compared"}
