"""Exports that are loaded again and compared: MindIR, ONNX, AIR, and what MindSpore Lite needs beside them."""

import tempfile
from pathlib import Path
from typing import Tuple

import numpy as np

from . import ckpt, exportable, files, labels, onnx_export, runtime
from .errors import UserError, first_line, nearest
from .transforms import Pipeline

FORMATS = ("mindir", "onnx", "air")
SCORE = "score"


def export(path, kind, out, batch="dynamic", preprocess=False, lite=False):
    """Export a checkpoint, load the result again, compare, and write the verdict beside it.

    Parameters
    ----------
    path : str or Path
        Checkpoint with its sidecar.
    kind : {"mindir", "onnx", "air"}
    out : str or Path
        Folder.
    batch : int or "dynamic"
        Fixed batch size, or a free batch dimension.
    preprocess : bool
        Put cast, normalisation and the score into the graph: uint8 (N, h, w, 3) in, float32 (N,) score out.
    lite : bool
        Write the files for MindSpore Lite too; needs ``mindir``.

    Returns
    -------
    dict
        The verdict, as written to ``<name>.<kind>.json``.

    Raises
    ------
    UserError
        A wrong option, a model without a fixed input size, an operator that cannot be exported (its layer is named),
        or a result that differs (nothing is left behind then).
    """
    if kind not in FORMATS:
        raise UserError(nearest(kind, FORMATS, "format"))
    if batch != "dynamic" and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise UserError(f"batch (={batch!r}) must be a whole number >= 1 or 'dynamic'")
    if lite and kind != "mindir":
        raise UserError(f"--emit-lite goes with --format mindir, not {kind}")
    if kind == "air":
        _refuse_air()
    sidecar = ckpt.Sidecar.read(path)
    size, pipeline = input_of(sidecar)
    runtime.setup("CPU" if kind != "air" else "Ascend", mode="graph")
    net = ckpt.load_network(sidecar)
    sample = onnx_export.pixels(size, sidecar.channels)
    if preprocess:
        net = with_preprocessing(net, pipeline, sidecar.detector_order, sidecar.calibration)
        sample = _bytes(size)
    net.set_train(False)
    name = Path(path).stem + ("_uint8" if preprocess else "")
    target = Path(out) / f"{name}.{kind}"
    write = {"mindir": _mindir, "onnx": _onnx, "air": _air}[kind]
    verdict = {
        "format": kind,
        "file": target.name,
        "checkpoint_sha256": sidecar.identity,
        "architecture": sidecar.architecture,
        "batch": batch,
        "input": {
            "name": onnx_export.INPUT,
            "shape": ["batch" if batch == "dynamic" else batch, *sample(1).shape[1:]],
            "type": str(sample(1).dtype),
        },
        "output": SCORE if preprocess else onnx_export.OUTPUT,
        # What stays outside the graph in every export.
        "geometry": pipeline.geometry.text,
        **write(net, sidecar, sample, batch, target, preprocess),
    }
    if kind == "mindir":
        verdict["input"]["name"] = input_name(target)
    verdict["versions"] = runtime.versions()
    files.write_json(target.with_name(target.name + ".json"), verdict)
    if lite:
        verdict["lite"] = emit_lite(net, size, pipeline, sample, batch, target, preprocess)
    return verdict


def input_of(sidecar: ckpt.Sidecar) -> Tuple[Tuple[int, int], Pipeline]:
    """((height, width), evaluation pipeline) of a model; :class:`UserError` if the size is not fixed."""
    path, line = sidecar.path, sidecar.transform
    if not line:
        raise UserError(f"the sidecar of {str(path)!r} names no input.transform, so its input size is unknown")
    pipeline = Pipeline(line)
    if pipeline.size() is None:
        raise UserError(f"{str(path)!r} takes images of any size ({line}); an export needs a fixed one")
    return pipeline.size(), pipeline


def _bytes(size):
    return lambda n: np.random.default_rng(n).integers(0, 256, (n, *size, 3), dtype=np.uint8)


# --- preprocessing inside the graph ----------------------------------------------------------------------------------
def with_preprocessing(net, pipeline, order, calibration=(1.0, 0.0)):
    """A cell that takes uint8 (N, h, w, 3) and gives the score (N,), around a network that gives logits.

    ``calibration`` is of :func:`aidet.engine.calibration_of`.

    Raises
    ------
    UserError
        The pipeline ends in something else than an affine map of single pixels (``high_pass``).
    """
    import mindspore as ms
    from mindspore import nn, ops

    affine = pipeline.affine(white=255)
    if affine is None:
        tail = pipeline.numbers.text
        raise UserError(f"--preprocess-in-graph: {tail!r} is no map of single pixels; export without it")
    scale, offset = (values.astype(np.float32) for values in affine)
    generated = np.array([o == labels.NAMES[1] for o in order])

    class Scored(nn.Cell):
        """Cast, normalise, network, log-odds of the two sides."""

        def __init__(self):
            super().__init__()
            self.net = net
            self.scale = ms.Tensor(scale.reshape(1, 3, 1, 1))
            self.offset = ms.Tensor(offset.reshape(1, 3, 1, 1))
            self.single = len(order) == 1
            self.sign = ms.Tensor(np.float32(1 if generated.all() else -1))
            self.top = ops.ReduceMax(keep_dims=True)
            self.generated = ms.Tensor(generated.astype(np.float32).reshape(-1, 1))
            self.real = ms.Tensor((~generated).astype(np.float32).reshape(-1, 1))
            # With two classes the log-odds is a difference; in general the sides are summed as probabilities.
            self.difference = ms.Tensor((generated * 2.0 - 1.0).astype(np.float32).reshape(-1, 1))
            self.two = len(order) == 2
            self.calibrated = tuple(calibration) != (1.0, 0.0)
            self.slope, self.shift = (ms.Tensor(np.float32(v)) for v in calibration)

        def construct(self, x):
            score = self.plain(x)
            return self.slope * (score - self.shift) if self.calibrated else score

        def plain(self, x):
            x = ops.transpose(ops.cast(x, ms.float32), (0, 3, 1, 2)) * self.scale + self.offset
            y = self.net(x)
            if self.single:
                return ops.squeeze(y * self.sign, 1)
            if self.two:
                return ops.squeeze(ops.matmul(y, self.difference), 1)
            e = ops.exp(y - self.top(y, 1))
            return ops.squeeze(ops.log(ops.matmul(e, self.generated)) - ops.log(ops.matmul(e, self.real)), 1)

    return Scored()


# --- formats ---------------------------------------------------------------------------------------------------------
def _onnx(net, sidecar, sample, batch, target, preprocess):
    output = SCORE if preprocess else onnx_export.OUTPUT
    batches = onnx_export.VERIFIED if batch == "dynamic" else (batch,)
    try:
        model, verdict = onnx_export.export(net, sidecar, sample, batches, output)
    except onnx_export.ExportError as error:
        raise UserError(f"{target.name}: {error}{_where(net, sample)}") from None
    if batch != "dynamic":
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    # A graph with preprocessing takes bytes and gives scores; Detector wants the plain one.
    onnx_export.stamp(model, "aidet.output", output)
    onnx_export.save(model, target)
    return verdict


def _where(net, sample):
    layer = find_layer(net, sample(2))
    return f" (at {layer})" if layer else ""


def _mindir(net, sidecar, sample, batch, target, preprocess):
    import mindspore as ms
    from mindspore import nn

    from .models.layers import native_sigmoid

    x = sample(2 if batch == "dynamic" else batch)
    kind = ms.uint8 if x.dtype == np.uint8 else ms.float32
    example = ms.Tensor(shape=(None, *x.shape[1:]), dtype=kind) if batch == "dynamic" else ms.Tensor(x)
    with native_sigmoid(net), files.atomic_path(target) as made:
        try:
            with onnx_export.standing_in(made.parent):
                ms.export(net, example, file_name=str(made), file_format="MINDIR")
                graph = nn.GraphCell(ms.load(str(made)))
        except Exception as error:  # noqa: BLE001 - MindSpore raises RuntimeError, TypeError, ValueError alike
            raise UserError(f"{target.name}: MindSpore cannot export it: {first_line(error, 300)}") from None
        batches = onnx_export.VERIFIED if batch == "dynamic" else (batch,)
        worst = 0.0
        for n in batches:
            x = ms.Tensor(sample(n))
            worst = max(worst, float(np.abs(graph(x).asnumpy() - net(x).asnumpy()).max()))
        if worst != 0:
            raise UserError(f"{target.name}: reloaded, it differs from the network by {worst:.2g}, wanted 0")
    return {"difference": worst, "tolerance": 0.0, "batches": list(batches)}


def input_name(path):
    """What MindSpore and MindSpore Lite call the input of a MindIR file: what stands behind the colon of its name."""
    from mindspore.train.mind_ir_pb2 import ModelProto

    model = ModelProto()
    model.ParseFromString(Path(path).read_bytes())
    return model.graph.input[0].name.rpartition(":")[2]


def _refuse_air():
    from . import backends

    if not backends.has_ascend():
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
    return {"difference": None, "note": "AIR cannot be loaded again by MindSpore; not compared"}


# --- which layer cannot be exported ----------------------------------------------------------------------------------
def find_layer(net, example):
    """Name the innermost layer that cannot be exported by itself.

    Parameters
    ----------
    net : mindspore.nn.Cell
    example : numpy.ndarray

    Returns
    -------
    str or None
        For example ``layer1.0 (BasicBlock)``; None where every layer can, so that the fault lies between them.
    """
    seen = _inputs_of_cells(net, example)
    found, cell, prefix = None, net, ""
    with tempfile.TemporaryDirectory() as folder, exportable.exportable(net, folder):
        while True:
            for name, child in cell.name_cells().items():
                full = f"{prefix}{name}"
                if full in seen and not _exports(child, seen[full]):
                    found, cell, prefix = f"{full} ({type(child).__name__})", child, f"{full}."
                    break
            else:
                return found


def _inputs_of_cells(net, example):
    """Run once without a graph and note what goes into every cell that takes one tensor."""
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
    with tempfile.TemporaryDirectory() as folder, onnx_export.standing_in(folder):
        try:
            onnx_export.trace(cell, example, Path(folder) / "x.onnx", onnx_export.OUTPUT)
        except onnx_export.ExportError:
            return False
    return True


# --- MindSpore Lite --------------------------------------------------------------------------------------------------
def emit_lite(net, size, pipeline, sample, batch, target, preprocess):
    """Write what the Ascend hand-over needs: converter INI, AIPP, commands, golden input and output, their comparison.

    Returns
    -------
    str
        The folder. Its commands were not run by this project: MindSpore Lite and a 310-class device are needed.
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
    import mindspore as ms

    return net(ms.Tensor(np.ascontiguousarray(x))).asnumpy().astype(np.float32)


def _lite_texts(folder, target, aipp, shapes, name, free, kind):
    """converter.ini, aipp.cfg, commands.sh and check.py; ``shapes`` of golden input and output, ``free`` batch size."""
    given = shapes[""][0]
    ini = ["[ascend_context]", f"input_shape={name}:[{','.join(map(str, [-1 if free else given[0], *given[1:]]))}]"]
    ini += ["dynamic_dims=[1],[2],[4],[8],[16],[32]"] if free else []
    ini += ["precision_mode=enforce_origin"]
    if aipp:
        ini += [
            "# For uint8 RGB images in place of normalised floats, take the next line in:",
            "# insert_op_config_file_path=aipp.cfg",
        ]
    values = {
        "model": target.name, "stem": target.stem, "name": name, "shape": ",".join(map(str, given)),
        "kinds": {"": kind, "_aipp": "uint8"}, "shapes": shapes,
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
# enforce_origin keeps float32; enforce_fp16 is Lite's default and faster: compare with the golden output before use.
set -e
converter_lite --fmk=MINDIR --saveType=MINDIR --optimize=ascend_oriented \\
    --modelFile=../{model} --outputFile={stem}_ascend --configFile=converter.ini
# Compares with the golden output, and writes golden.txt: benchmark wants text, and the name that Lite gave the output.
# Where aipp.cfg was taken in: python3 check.py _aipp, and input_aipp.bin and its shape below.
python3 check.py
benchmark --modelFile={stem}_ascend.mindir --device=Ascend --inDataFile=input.bin --inputShapes={name}:{shape} \\
    --benchmarkDataFile=golden.txt --accuracyThreshold=1
"""

_CHECK = '''"""The converted model on the golden input, beside the golden output: python3 check.py [_aipp]

Needs mindspore_lite and its device. Exit code 1 where an output is further away than a hundredth of the largest one.
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
if list(inputs[0].shape) != given:  # a free batch size has to be set
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
    """AIPP text of a pipeline's scale and offset per channel: uint8 RGB in, (x - mean) * var_reci out."""
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
