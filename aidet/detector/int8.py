"""Faster ONNX models for the first stage of a cascade, what they cost, and the margin that a cascade needs.

Eight bits by ONNX Runtime's static quantisation, calibrated on images; or the same graph for bfloat16 on OpenVINO.
"""

import collections
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import numpy as np

from .. import ckpt, images, metrics
from ..datasets import truth
from ..datasets.sources import Inputs
from ..errors import UserError
from ..export import onnx_graph
from ..labels import sigmoid
from . import openvino_session
from .cascade import STAMP, voting
from .detector import Detector
from .views import Views

CALIBRATION = 128
# The margin is this many times the largest measured change, because the scores of other images may change more.
SAFETY_FACTOR = 1.5
MIN_VOTES = 4
LEAST = 8  # images to compare on


class Chosen(NamedTuple):
    """Images to calibrate on and to compare on, as :class:`aidet.datasets.sources.Inputs` gives them; their labels."""

    calibrating: List[Tuple[str, str]]
    comparing: List[Tuple[str, str]]
    known: Optional[Dict[str, int]]


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
        Not a detector, fewer than 16 images (8 for bfloat16), or a processor or installation without that precision.
    """
    return made(path, check(path, where, labels, limit, precision), precision)


def made(path: Union[str, Path], chosen: Chosen, precision: str = "int8") -> Dict[str, Any]:
    """:func:`quantize` with the images that :func:`check` chose for the same detector and precision."""
    path = Path(path)
    sidecar = onnx_graph.sidecar_of(path)
    final = path.with_name(f"{path.stem}_{'int8' if precision == 'int8' else 'bf16'}.onnx")
    target = path.with_name(f"{final.stem}.partial.onnx")  # until everything that it states is known
    try:
        found = _made(path, target, sidecar, precision, *chosen)
        os.replace(target, final)
    finally:
        target.unlink(missing_ok=True)
    return {"file": final.name, **found}


def check(
    path: Union[str, Path],
    where: Union[str, Path],
    labels: Union[None, str, Path] = None,
    limit: int = CALIBRATION,
    precision: str = "int8",
) -> Chosen:
    """Whether a faster model can be made, before anything is written.

    Parameters and errors are those of :func:`quantize`; ``path`` may also be the checkpoint that is to be exported.

    Returns
    -------
    Chosen
    """
    sidecar = onnx_graph.sidecar_of(path) if str(path).endswith(".onnx") else ckpt.Sidecar.read(path)
    sidecar.detector_order  # noqa: B018  (reading it checks it)
    eight = precision == "int8"
    if not eight:
        openvino_session.require(precision)
    known = _labels(labels)
    inputs = list(Inputs(where))
    calibrating, comparing = (inputs[::2][:limit], inputs[1::2]) if eight else ([], inputs)
    if len(comparing) < LEAST:
        least = LEAST * (2 if eight else 1)
        raise UserError(f"images {str(where)!r}: {len(inputs)} are too few to compare on; give at least {least}")
    return Chosen(calibrating, comparing, known)


def _made(path, target, sidecar, precision, calibrating, comparing, known):
    """Write the faster model to ``target`` and compare it; gives what :func:`quantize` does but for the name."""
    eight = precision == "int8"
    votes = _votes(sidecar)
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


def _votes(sidecar):
    """Views of each image: several even if the detector uses one, because other crops have other values."""
    votes = max(MIN_VOTES, sidecar.voting.votes)
    try:
        Views(sidecar.detector_transform, line=sidecar.views_line, **sidecar.voting.settings(votes=votes))
    except UserError:
        return sidecar.voting.votes  # of an input that has no other views, as of two sizes of the picture
    return votes


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
        raise UserError(
            f"no label for {path!r}; the labels must name it by the same path, or by a file name that is unique"
        )
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
        model = onnx.load(str(path))
        try:
            onnx.save(onnx_graph.of_version(model, max(13, model.opset_import[0].version)), newer)
        except onnx_graph.ExportError as error:
            raise UserError(f"{path.name}: {error}") from None
        quant_pre_process(newer, ready, skip_symbolic_shape=True)  # folds batch norms into convolutions
        quantization.quantize_static(
            ready, made, Reader(), per_channel=True, reduce_range=False,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(made)
