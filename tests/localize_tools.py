"""What the tests of the localizer share: a network in ONNX whose answer is known, and pictures for it."""

import json

import numpy as np
from PIL import Image

from aidet import runtime
from aidet.export import onnx_graph

TILE, GRID, GAIN = 64, 16, 8.0
POOLING = {"kind": "logsumexp", "sharpness": 2.0, "scale": 1.5, "offset": -0.25}


def make_localizer(path, order=("real", "generated"), tile=TILE, grid=GRID, gain=GAIN, facts=None, settings=None):
    """A cell's logit is ``gain`` times its mean red minus its mean green, each in [-1, 1]: red parts are generated.

    The score is the pooling :data:`POOLING` of the cells, computed in the graph, at any batch size.
    """
    runtime.setup()  # MindSpore cannot be imported after the package onnx
    from onnx import TensorProto, checker, helper, numpy_helper

    def constant(name, value):
        return numpy_helper.from_array(np.asarray(value, np.float32), name)

    sign = 1 if tuple(order) == ("real", "generated") else -1
    kernel = np.zeros((1, 3, grid, grid), np.float32)
    kernel[0, 0], kernel[0, 1] = gain / grid**2, -gain / grid**2
    count, sharp = (tile // grid) ** 2, POOLING["sharpness"]
    weights = [
        constant("kernel", kernel),
        constant("sharpness", sharp),
        constant("slope", POOLING["scale"] / sharp),
        constant("base", POOLING["offset"] - POOLING["scale"] / sharp * np.log(count)),
        constant("sides", [[-0.5 * sign, 0.5 * sign]]),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["cells"], strides=[grid, grid]),
        helper.make_node("Squeeze", ["cells", "one"], ["map"]),
        helper.make_node("Flatten", ["cells"], ["flat"]),
        helper.make_node("Mul", ["flat", "sharpness"], ["sharp"]),
        helper.make_node("ReduceLogSumExp", ["sharp"], ["sum"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["sum", "slope"], ["scaled"]),
        helper.make_node("Add", ["scaled", "base"], ["score"]),
        helper.make_node("Mul", ["score", "sides"], ["logits"]),
    ]
    shapes = {"image": ["batch", 3, tile, tile], "logits": ["batch", 2], "map": ["batch", tile // grid, tile // grid]}
    values = {k: helper.make_tensor_value_info(k, TensorProto.FLOAT, shape) for k, shape in shapes.items()}
    graph = helper.make_graph(nodes, "localizer", [values["image"]], [values["logits"], values["map"]], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    checker.check_model(model)
    sidecar = {
        "format": 1, "architecture": "testing", "num_outputs": 2, "classes": list(order), "class_order": list(order),
        "input": {"size": [tile, tile], "channels": 3, "transform": f"decode | center_crop({tile}) | normalize(half)"},
        "localization": {
            "grid": grid, "tile": tile, "threshold": 0.5, "min_area": 0.005, "pooling": POOLING, **(settings or {}),
        },
        "evidence": {"min_side": 20, "min_detail": 0.0},
        **(facts or {}),
    }  # fmt: skip
    onnx_graph.stamp(model, "aidet.sidecar", json.dumps(sidecar))
    path.write_bytes(model.SerializeToString())
    return path


def scene(size, *boxes, ground=(90, 140, 120), colour=(200, 60, 50)):
    """A plain picture with red boxes (x0, y0, x1, y1), which :func:`make_localizer` takes for generated."""
    image = Image.new("RGB", size, ground)
    for box in boxes:
        image.paste(colour, box)
    return image
