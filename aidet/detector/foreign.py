"""ONNX files from elsewhere as detectors: the caller says what their input and their outputs are."""

import mmap
from pathlib import Path
from typing import Any, Tuple, Union

import numpy as np

from .. import ckpt, labels
from ..ckpt import format as wire
from ..ckpt.sidecar import FORMAT
from ..errors import UserError
from ..export import onnx_graph
from ..images import Pipeline
from . import backends
from .batches import in_rows

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
SMALLEST = 1e-7  # a probability that is nearer to 0 or 1 is read as this: single precision knows no nearer one


class Session(backends.OnnxRuntime):
    """A session whose input may be NHWC, of a fixed batch or in half precision, and whose output may be probabilities.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    UserError
        Not a model with one image as input and one score or several for each image.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        super().__init__(path)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        shape = list(inputs[0].shape)
        if len(inputs) != 1 or len(shape) != 4 or inputs[0].type not in TYPES or 3 not in (shape[1], shape[3]):
            given = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise UserError(f"{str(path)!r} takes {given}; wanted one input of floats, (N, 3, h, w) or (N, h, w, 3)")
        self.feed, self.answer, self.type = inputs[0].name, outputs[0].name, TYPES[inputs[0].type]
        self.last = shape[1] != 3
        self.sides = [s if isinstance(s, int) else None for s in (shape[1:3] if self.last else shape[2:])]
        self.ends_in = _last_operation(path, self.answer)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, 3, h, w) -> logits (N, K)."""
        x = (batch.transpose(0, 2, 3, 1) if self.last else batch).astype(self.type, copy=False)

        def run(part):
            out = self.session.run([self.answer], {self.feed: np.ascontiguousarray(part)})[0]
            return [np.asarray(out, np.float64).reshape(len(part), -1)]

        values = in_rows(x, self.rows, run)[0]
        if self.ends_in == "Softmax":
            return np.log(np.clip(values, SMALLEST, None))
        return labels.logit(np.clip(values, SMALLEST, 1 - SMALLEST)) if self.ends_in == "Sigmoid" else values


def is_foreign(path: Union[str, Path]) -> bool:
    """Whether a file is an ONNX model that this project did not export; also True for one that cannot be read."""
    if not str(path).endswith(".onnx"):
        return False
    try:
        onnx_graph.sidecar_of(path)
    except UserError:
        return True
    return False


def _last_operation(path: Union[str, Path], output: str) -> str:
    """``Softmax``, ``Sigmoid`` or another operation: what gives an output, shape changes aside; ``""`` if unknown.

    The package onnx is not used: after it, MindSpore cannot be imported. Read are ModelProto.graph (field 7), its nodes
    (1), and their inputs (1), outputs (2) and types (4), of onnx.proto.
    """
    makers = {}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            graphs = [place for number, place in wire._fields(data, 0, len(data)) if number == 7]
            nodes = [place for graph in graphs for number, place in wire._fields(data, *graph) if number == 1]
            for node in nodes:
                fields = [(n, wire._text(data, v)) for n, v in wire._fields(data, *node) if n in (1, 2, 4)]
                kind = "".join(text for n, text in fields if n == 4)
                first = next((text for n, text in fields if n == 1), "")
                makers.update({text: (kind, first) for n, text in fields if n == 2})
        except (ValueError, TypeError):
            return ""
    for _ in range(len(makers)):
        kind, before = makers.get(output, ("", ""))
        if kind not in ("Identity", "Flatten", "Squeeze", "Reshape", "Cast"):
            return kind
        output = before
    return ""


def opened(
    path: Union[str, Path], transform: str, positive: Union[None, int, str], real: Union[None, int, str] = None
) -> Tuple[ckpt.Sidecar, Session]:
    """The facts of an ONNX file from elsewhere, and its session.

    Parameters
    ----------
    path : str or Path
    transform : str
        Pipeline line that makes its input, for example ``resize(256) | center_crop(224) | normalize(imagenet)``.
    positive, real : int or str, optional
        Indices of the outputs that mean *generated*, or *real*, see :func:`aidet.labels.class_order`; one of the two is
        needed.

    Raises
    ------
    UserError
        Neither is given, or one does not fit the model.
    """
    if positive is None and real is None:
        raise UserError(f"{str(path)!r}: an ONNX file from elsewhere needs --positive INDEX or --real INDEX, too")
    line, session = Pipeline(transform), backends.open_session(path, Session)
    given = line.size() or (None, None)
    if any(side is not None and side != own for side, own in zip(session.sides, given)):
        shown = " x ".join(str(side or "any") for side in session.sides)
        made = "images of any size" if given[0] is None else f"{given[0]} x {given[1]}"
        raise UserError(f"{str(path)!r} takes {shown} pixels, --transform {line.text!r} gives {made}")
    example = np.zeros((1, 3, *(side or 224 for side in session.sides)), np.float32)
    names = [str(i) for i in range(session(example).shape[1])]
    try:
        order = labels.class_order(names, positive, real)
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from None
    facts: Any = {
        "format": FORMAT, "architecture": "onnx", "classes": None, "class_order": order,
        "input": {"transform": line.text, "views": None},
    }  # fmt: skip
    return ckpt.Sidecar.from_facts(facts, path, f"--transform of {str(path)!r}"), session
