"""Files for MindSpore Lite: the conversion script, AIPP configuration and a check of the result."""

from pathlib import Path
from typing import TYPE_CHECKING, Callable, Tuple, Union

import numpy as np

from .. import files
from ..images import Pipeline
from . import onnx_graph
from .mindir import input_name
from .preprocessing import _bytes

if TYPE_CHECKING:
    import mindspore as ms


def emit_lite(
    net: "ms.nn.Cell",
    size: Tuple[int, int],
    pipeline: Pipeline,
    sample: Callable[[int], np.ndarray],
    batch: Union[int, str],
    target: Path,
    preprocess: bool,
) -> str:
    """Write the files for Ascend: converter INI, AIPP, commands, golden input and output, and their comparison.

    Parameters
    ----------
    net : mindspore.nn.Cell
        The network that was exported.
    size : (int, int)
        Height and width of its input.
    pipeline : aidet.images.Pipeline
        The evaluation pipeline.
    sample : callable
        Number of images -> an input array of that batch size.
    batch : int or "dynamic"
    target : Path
        The MindIR file.
    preprocess : bool
        Whether the preprocessing is in the graph.

    Returns
    -------
    str
        The folder. Its commands are untested: they need MindSpore Lite and a 310-class device.
    """
    goal = target.with_suffix(".lite")
    with files.atomic_path(goal) as folder:
        folder.mkdir()
        _lite_files(folder, net, size, pipeline, sample, batch, target, preprocess)
    return str(goal)


def _lite_files(folder, net, size, pipeline, sample, batch, target, preprocess):
    n = 1 if batch == "dynamic" else batch
    x = sample(n)
    golden = {"": (x, _run(net, x))}
    affine = None if preprocess else pipeline.affine(white=255)
    aipp = None
    if affine:
        scale, offset = (values.astype(np.float32) for values in affine)
        aipp = _aipp(scale, offset, size)
        pixels = _bytes(size)(n)
        golden["_aipp"] = pixels, _run(net, (pixels * scale + offset).transpose(0, 3, 1, 2))
    for end, (given, wanted) in golden.items():
        given.tofile(folder / f"input{end}.bin")
        wanted.tofile(folder / f"output{end}.bin")
    shapes = {end: [list(a.shape) for a in pair] for end, pair in golden.items()}
    _lite_texts(folder, target, aipp, shapes, input_name(target), batch == "dynamic", str(x.dtype))


def _run(net, x):
    return onnx_graph.outputs_of(net, np.ascontiguousarray(x))[0].astype(np.float32)


def _lite_texts(folder, target, aipp, shapes, name, free, kind):
    """Write converter.ini, aipp.cfg, commands.sh and check.py.

    ``shapes`` are those of golden input and output; ``free`` says whether the batch size is.
    """
    given = shapes[""][0]
    ini = ["[ascend_context]", f"input_shape={name}:[{','.join(map(str, [-1 if free else given[0], *given[1:]]))}]"]
    ini += ["dynamic_dims=[1],[2],[4],[8],[16],[32]"] if free else []
    ini += ["precision_mode=enforce_origin"]
    if aipp:
        ini += [
            "# For uint8 RGB images instead of normalised floats, uncomment the next line:",
            "# insert_op_config_file_path=aipp.cfg",
        ]
    values = {
        "model": target.name, "stem": target.stem, "name": name, "shape": ",".join(map(str, given)),
        "kinds": {"": kind, "_aipp": "uint8"}, "shapes": shapes,
        "aipp": "# With aipp.cfg: python3 check.py _aipp, and input_aipp.bin and its shape below.\n" if aipp else "",
    }  # fmt: skip
    texts = {
        "converter.ini": "\n".join(ini) + "\n", "aipp.cfg": aipp,
        "commands.sh": _LITE.format(**values), "check.py": _CHECK.format(**values),
    }  # fmt: skip
    for file_name, text in texts.items():
        if text:
            with files.atomic(folder / file_name) as file:
                file.write(text)


_LITE = """#!/bin/sh
# Run in this folder, on a machine with MindSpore Lite. Untested: the project has no such device.
# enforce_origin keeps float32; enforce_fp16, Lite's default, is faster: compare with the golden output before use.
set -e
converter_lite --fmk=MINDIR --saveType=MINDIR --optimize=ascend_oriented \\
    --modelFile=../{model} --outputFile={stem}_ascend --configFile=converter.ini
# Compares with the golden output and writes golden.txt, because benchmark needs text and Lite's name of the output.
{aipp}python3 check.py
benchmark --modelFile={stem}_ascend.mindir --device=Ascend --inDataFile=input.bin --inputShapes={name}:{shape} \\
    --benchmarkDataFile=golden.txt --accuracyThreshold=1
"""
_CHECK = '''"""Run the converted model on the golden input and compare with the golden output: python3 check.py [_aipp]

Needs mindspore_lite and its device. Exit code 1 if an output differs by more than a hundredth of the largest one.
"""

import sys

import mindspore_lite as lite
import numpy as np

KIND = {kinds!r}
SHAPES = {shapes!r}

end = sys.argv[1] if len(sys.argv) > 1 else ""
given, wanted = SHAPES[end]
x = np.fromfile("input" + end + ".bin", KIND[end]).reshape(given)
expected = np.fromfile("output" + end + ".bin", "float32").reshape(wanted)
context = lite.Context()
context.target = ["ascend"]
model = lite.Model()
model.build_from_file("{stem}_ascend.mindir", lite.ModelType.MINDIR, context)
inputs = model.get_inputs()
if list(inputs[0].shape) != given:  # a free batch size has to be set first
    model.resize(inputs, [given])
    inputs = model.get_inputs()
inputs[0].set_data_from_numpy(x)
output = model.predict(inputs)[0]
with open("golden.txt", "w") as file:
    print(output.name, len(wanted), *wanted, file=file)
    print(*map(float, expected.reshape(-1)), file=file, end="")
worst = float(np.abs(output.get_data_to_numpy() - expected).max())
print("output", output.name + ": largest difference", worst, "of", float(np.abs(expected).max()))
sys.exit(worst > 0.01 * float(np.abs(expected).max()))
'''


def _aipp(scale, offset, size):
    """AIPP configuration for a scale and offset per channel: uint8 RGB in, (x - mean) * var_reci out."""
    lines = [
        "aipp_op {",
        "    aipp_mode: static",
        "    input_format: RGB888_U8",
        "    csc_switch: false",
        "    rbuv_swap_switch: false",
        f"    src_image_size_w: {size[1]}",
        f"    src_image_size_h: {size[0]}",
    ]
    for i, (s, o) in enumerate(zip(scale, offset)):
        lines += [f"    min_chn_{i}: {-float(o) / float(s):.6f}", f"    var_reci_chn_{i}: {float(s):.9f}"]
    return "\n".join(lines) + "\n}\n"
