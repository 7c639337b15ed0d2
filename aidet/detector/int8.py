"""Faster ONNX models for the first stage of a cascade, what they cost, and the margin that a cascade needs.

Eight bits by ONNX Runtime's static quantisation, calibrated on images; or the same graph for bfloat16 on OpenVINO.
"""

import collections
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Union

import numpy as np

from .. import images, metrics
from ..datasets import truth
from ..datasets.sources import Inputs
from ..errors import UserError
from ..export import onnx_graph
from ..labels import sigmoid
from . import openvino_session
from .cascade import STAMP, voting
from .detector import Detector

CALIBRATION = 128
# The margin is this many times the largest measured change, because the scores of other images may change more.
SAFETY_FACTOR = 1.5
MIN_VOTES = 4


def quantize(
    path: Union[str, Path],
    where: Union[str, Path],
    labels: Union[None, str, Path] = None,
    limit: int = CALIBRATION,
    precision: str = "int8",
) -> Dict[str, Any]:
    """Make a faster model of an exported one and compare the two.

    Parameters
    ----------
    path : str or Path
        A plain ``.onnx`` of :func:`aidet.export.exporter.export` with a free batch size.
    where : str or Path
        Images. Every second one is used for calibration (at most ``limit``) and the others for comparison; no image is
        used for both.
    labels : str or Path, optional
        Labels as :func:`aidet.datasets.truth.read_labels` takes them, for the balanced accuracy before and after.
    limit : int
        Maximum number of images to calibrate on.
    precision : {"int8", "bfloat16"}
        ``bfloat16``: the same graph, marked for OpenVINO in that precision; all images are used for comparison. The
        processor must have it, because the margin is measured.

    Returns
    -------
    dict
        ``file``, ``images`` (compared), ``score_change`` (mean absolute), ``decisions_changed`` (share), ``speedup``,
        ``margin`` (1.5 times the largest change of a single view's score) and ``score_margin`` (of an image's score, by
        the model's own soft vote), which are stored in the file for ``infer.py --cascade``, ``cascade_speedup`` and
        ``scored_twice`` (share) of such a cascade, and, if labels are given, ``balanced_accuracy`` and
        ``balanced_accuracy_int8`` (of the faster model, whatever its precision).

    Raises
    ------
    UserError
        Fewer than 16 usable images, or a processor or installation without that precision.
    """
    path = Path(path)
    sidecar = onnx_graph.sidecar_of(path)
    known = _labels(labels)
    inputs = list(Inputs(where))
    eight = precision == "int8"
    calibrating, comparing = (inputs[::2][:limit], inputs[1::2]) if eight else ([], inputs)
    if len(comparing) < 8:
        raise UserError(f"images {str(where)!r}: {len(inputs)} are too few to calibrate and compare; give at least 16")
    final = path.with_name(f"{path.stem}_{'int8' if eight else 'bf16'}.onnx")
    target = path.with_name(f"{final.stem}.partial.onnx")  # until everything that it states is known
    try:
        found = _made(path, target, sidecar, precision, calibrating, comparing, known)
        os.replace(target, final)
    finally:
        target.unlink(missing_ok=True)
    return {"file": final.name, **found}


def _made(path, target, sidecar, precision, calibrating, comparing, known):
    """Write the faster model to ``target`` and compare it; gives what :func:`quantize` does but for the name."""
    eight = precision == "int8"
    # Calibrate on voting views even if the detector uses one view: they are different crops with different values.
    votes = max(MIN_VOTES, sidecar.voting.votes)
    views = Detector(path, votes=votes, backend="onnxruntime").models[0].views
    assert views is not None  # an exported network has views; only a rule has none
    if eight:
        model = _quantized(path, views, calibrating)
        onnx_graph.describe(model, sidecar)
    else:
        model = _same(path, precision)
    onnx_graph.save(model, target)
    engine = "onnxruntime" if eight else "auto"  # what the new file is for
    before, slow, detector = _verdicts(path, comparing)
    after, fast, _ = _verdicts(target, comparing, engine)
    exact, rounded = ({k: r.score for k, r in some.items()} for some in (before, after))
    found = _compared(exact, rounded, known, detector.threshold)
    contenders = [(path, "onnxruntime"), (target, engine)]
    pairs = zip(*(_verdicts(p, comparing, on, votes=votes)[0].values() for p, on in contenders))
    margin = SAFETY_FACTOR * max(_change(x, y) for x, y in pairs if x.ok and y.ok)
    about = {"calibration_images": len(calibrating), "compared_images": found["images"]}
    about.update({} if eight else {"precision": precision}, margin=margin, views=sorted(views.lines()))
    # Views that are averaged err less than one of them; this holds for the views that are averaged here alone.
    voted = SAFETY_FACTOR * max(abs(exact[k] - rounded[k]) for k in exact if None not in (exact[k], rounded[k]))
    about.update(score_margin=voted, score_voting=voting(detector.models[0].views))
    onnx_graph.stamp(model, STAMP, json.dumps(about))
    onnx_graph.save(model, target)
    _, both, cascaded = _verdicts(path, comparing, cascade=target)
    found.update(
        speedup=slow / fast, margin=margin, score_margin=voted, cascade_speedup=slow / both,
        scored_twice=cascaded.cascade.twice / len(comparing),
    )  # fmt: skip
    return found


def _change(before, after):
    """Largest absolute change of a view's score."""
    pairs = zip(before.view_scores.values(), after.view_scores.values())
    return max(float(np.abs(np.subtract(x, y)).max()) for x, y in pairs)


def _compared(before, after, known=None, threshold=0.5):
    """How much the scores (path -> score or None) changed.

    ``known`` is what :func:`_labels` returns; ``threshold`` is on the probability.
    """
    pairs = [(k, before[k], after[k]) for k in before if before[k] is not None and after[k] is not None]
    if not pairs:
        raise UserError(f"none of the {len(before)} images to compare on can be used; give others")
    x, y = (np.array(column) for column in list(zip(*pairs))[1:])
    old, new = ((sigmoid(scores) > threshold).astype(int) for scores in (x, y))
    found = {
        "images": len(pairs),
        "score_change": float(np.abs(x - y).mean()),
        "decisions_changed": float((old != new).mean()),
    }
    if known is not None:
        truths = np.array([_label_of(k, known) for k, _, _ in pairs])
        if len(set(truths.tolist())) < 2:
            raise UserError(f"the {len(pairs)} images to compare on are all of one class; give labelled images of both")
        for name, decided in (("balanced_accuracy", old), ("balanced_accuracy_int8", new)):
            found[name] = metrics.decision_metrics(truths, decided)["balanced_accuracy"]
    return found


def _labels(where):
    """Path -> label, and file name -> label for names that occur once; None without labels."""
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


def _verdicts(path, inputs, backend="onnxruntime", **settings):
    """Path -> verdict, the scoring time in seconds, and the detector."""
    detector = Detector(path, backend=backend, say=lambda line: None, **settings)
    start = time.perf_counter()
    found = {r.path: r for r in detector.stream(inputs)}
    return found, time.perf_counter() - start, detector


def _same(path, precision):
    """The graph itself, marked for that precision."""
    import onnx

    openvino_session.OpenVino(path, {}, precision)  # whether it can be used here is said before anything is written
    model = onnx.load(str(path))
    onnx_graph.stamp(model, STAMP, json.dumps({"precision": precision}))
    return model


def _quantized(path, views, inputs):
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        """One view at a time, as the network sees it."""

        def __init__(self):
            self.items = self.each()

        def each(self):
            for key, file in inputs:
                try:
                    yield from views(images.decode(file), key)
                except images.ImageError:
                    continue

        def get_next(self):
            view = next(self.items, None)
            return None if view is None else {onnx_graph.INPUT: view[None]}

    with tempfile.TemporaryDirectory() as folder:
        newer, ready, made = (str(Path(folder) / n) for n in ("newer.onnx", "ready.onnx", "made.onnx"))
        # Per-channel scales need opset 13; the exporter writes opset 11.
        onnx.save(onnx.version_converter.convert_version(onnx.load(str(path)), 13), newer)
        quant_pre_process(newer, ready, skip_symbolic_shape=True)  # folds batch norms into convolutions
        quantization.quantize_static(
            ready, made, Reader(), per_channel=True, reduce_range=False,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(made)
