"""Eight-bit ONNX models: ONNX Runtime's static quantisation, calibrated on images, with what it costs measured."""

import collections
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from . import images, onnx_export, truth
from .engine import Detector
from .errors import UserError
from .output import Inputs
from .transforms import Pipeline

CALIBRATION = 128


def quantize(path, where, labels=None, limit=CALIBRATION):
    """Quantise an exported model and compare the two.

    Parameters
    ----------
    path : str or Path
        Plain ``.onnx`` of :func:`aidet.exporter.export`, free batch.
    where : str or Path
        Images: every other one calibrates (at most ``limit``), the rest compare, so that no image does both.
    labels : str or Path, optional
        What :func:`aidet.truth.read_labels` takes, for balanced accuracy before and after on the comparing images.
    limit : int

    Returns
    -------
    dict
        ``file``, ``images`` (compared), ``score_change`` (mean absolute), ``decisions_changed`` (share), ``speedup``,
        and with labels ``balanced_accuracy`` and ``balanced_accuracy_int8``.

    Raises
    ------
    UserError
        Fewer than 16 usable images.
    """
    path = Path(path)
    facts = onnx_export.facts_from_file(path)
    known = _labels(labels)
    inputs = list(Inputs(where))
    calibrating, comparing = inputs[::2][:limit], inputs[1::2]
    if len(comparing) < 8:
        raise UserError(f"images {str(where)!r}: {len(inputs)} are too few to calibrate and compare; give at least 16")
    target = path.with_name(f"{path.stem}_int8.onnx")
    model = _quantized(path, Pipeline(facts["input"]["transform"]), calibrating)
    onnx_export.describe(model, facts)
    onnx_export.stamp(model, "aidet.quantized", json.dumps({"calibration_images": len(calibrating)}))
    onnx_export.save(model, target)
    before, slow = _scores(path, comparing)
    after, fast = _scores(target, comparing)
    return {"file": target.name, "speedup": slow / fast, **_compared(before, after, known)}


def _compared(before, after, known=None):
    """What became of the scores: path -> score or None, before and after; ``known`` as of :func:`_labels`."""
    pairs = [(k, before[k], after[k]) for k in before if before[k] is not None and after[k] is not None]
    if not pairs:
        raise UserError(f"none of the {len(before)} images to compare on can be used; give others")
    x, y = (np.array(column) for column in list(zip(*pairs))[1:])
    found = {
        "images": len(pairs),
        "score_change": float(np.abs(x - y).mean()),
        "decisions_changed": float(((x > 0) != (y > 0)).mean()),
    }
    if known is not None:
        truths = np.array([_label_of(k, known) for k, _, _ in pairs])
        if len(set(truths.tolist())) < 2:
            raise UserError(f"the {len(pairs)} images to compare on are all of one class; give labelled images of both")
        for name, scores in (("balanced_accuracy", x), ("balanced_accuracy_int8", y)):
            found[name] = float(np.mean([((scores > 0) == c)[truths == c].mean() for c in (0, 1)]))
    return found


def _labels(where):
    """Path -> label, and file name -> label where no other file has that name; None without labels."""
    if where is None:
        return None
    table = truth.read_labels(where)
    if table.paths is None:
        raise UserError(f"labels {str(where)!r} name no files")
    names = [Path(p).name for p in table.paths]
    count = collections.Counter(names)
    known = {n: label for n, label in zip(names, table.labels.tolist()) if count[n] == 1}
    return {**known, **dict(zip(table.paths, table.labels.tolist()))}


def _label_of(path, known):
    found = known.get(path, known.get(Path(path).name))
    if found is None:
        raise UserError(f"the labels say nothing of {path!r}; paths in both must agree, or file names be distinct")
    return found


def _scores(path, inputs):
    detector = Detector(path, backend="onnxruntime", say=lambda line: None)
    start = time.perf_counter()
    found = {r.path: r.score for r in detector.stream(inputs)}
    return found, time.perf_counter() - start


def _quantized(path, pipeline, inputs):
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        """One image at a time, as the network sees it."""

        def __init__(self):
            self.items = iter(inputs)

        def get_next(self):
            for _, file in self.items:
                try:
                    return {onnx_export.INPUT: pipeline(images.decode(file))[None]}
                except images.ImageError:
                    continue
            return None

    with tempfile.TemporaryDirectory() as folder:
        newer, ready, made = (str(Path(folder) / n) for n in ("newer.onnx", "ready.onnx", "made.onnx"))
        # A scale for each channel needs opset 13; the exporter writes 11.
        onnx.save(onnx.version_converter.convert_version(onnx.load(str(path)), 13), newer)
        quant_pre_process(newer, ready, skip_symbolic_shape=True)  # folds batch norms into convolutions
        quantization.quantize_static(
            ready, made, Reader(), per_channel=True, reduce_range=False,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(made)
