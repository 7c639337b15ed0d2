"""Is the converted model the same model? Tensors, logits, and layer by layer.

The reference is PyTorch itself if it is installed, or a small file of stored activations that ``make_reference`` wrote
with PyTorch, so that a machine without torch (an Ascend image) can verify, too.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from aidet.errors import UserError

from .. import reading, rules
from ..plan import Plan

if TYPE_CHECKING:
    from mindspore import nn

Facts = Dict[str, Any]

TOLERANCE = 1e-4  # of the largest reference value
STORED = Path(__file__).parents[1] / "references"
SAMPLES = 256


class Reference:
    """Stored activations of one model on a few inputs.

    Attributes
    ----------
    meta : dict
        architecture, arguments, source_sha256, layout, photos, transform, versions.
    x : numpy.ndarray, float32, (N, C, H, W)
        The input, exactly as the reference model saw it.
    logits : numpy.ndarray, float32, (N, ...)
    taps : dict
        Cell name -> (N, samples) values at evenly spaced places of the activation.
    pixels : numpy.ndarray or None
        uint8 (N, H, W, 3): the photos after the source's own preprocessing, before normalisation.
    """

    def __init__(
        self,
        meta: Facts,
        x: np.ndarray,
        logits: np.ndarray,
        taps: Dict[str, np.ndarray],
        pixels: Optional[np.ndarray] = None,
    ) -> None:
        self.meta, self.x, self.logits, self.taps, self.pixels = meta, x, logits, taps, pixels

    @classmethod
    def load(cls, path: Union[str, Path]) -> "Reference":
        """Read an ``.npz`` written by :meth:`save`."""
        try:
            data = reading.arrays_of_npz(path)
            meta = json.loads(str(data["meta"]))
            if "pixels" in data:
                x = normalised(data["pixels"], meta["mean"], meta["std"])
            else:
                x = data["x"].astype(np.float32)
            taps = {k[4:]: v for k, v in data.items() if k.startswith("tap:")}
            return cls(meta, x, data["logits"], taps, data.get("pixels"))
        except UserError as error:
            raise UserError(f"reference: {error}") from None
        except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"reference {str(path)!r} cannot be read: {error}") from None

    def save(self, path: Union[str, Path]) -> None:
        """Write the file; pixels are stored as bytes, a float input unchanged."""
        from aidet.files import atomic

        data = {"tap:" + k: v for k, v in self.taps.items()}
        data["meta"] = np.array(json.dumps(self.meta, sort_keys=True))
        data["logits"] = self.logits
        if self.pixels is None:
            data["x"] = self.x
        else:
            data["pixels"] = self.pixels
        with atomic(path, "wb") as file:
            np.savez_compressed(file, **data)


def normalised(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W), normalised."""
    x = pixels.astype(np.float32) / np.float32(255)
    x = (x - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def stored_reference(sha256: Optional[str]) -> Optional[Reference]:
    """The shipped reference for a source file, or None."""
    for path in sorted(STORED.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            if json.loads(str(file["meta"])).get("source_sha256") == sha256:
                return Reference.load(path)
    return None


def sample(activation: np.ndarray) -> np.ndarray:
    """(N, ...) to (N, at most 256): values at evenly spaced places, float32."""
    flat = np.asarray(activation, np.float32).reshape(len(activation), -1)
    places = np.linspace(0, flat.shape[1] - 1, min(SAMPLES, flat.shape[1])).astype(np.int64)
    return flat[:, places]


def compare(ours: Any, theirs: Any, tolerance: float = TOLERANCE) -> Facts:
    """Measure how far two arrays are apart.

    Returns
    -------
    dict
        ``largest``, ``mean`` (absolute differences), ``scale`` (largest reference value), ``relative``
        (largest / scale), ``cosine``, ``ok`` (relative at most ``tolerance``), ``shape``.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return {
            "shape": [list(ours.shape), list(theirs.shape)],
            "largest": None,
            "mean": None,
            "scale": None,
            "relative": None,
            "cosine": None,
            "ok": False,
        }
    difference = np.abs(ours - theirs)
    scale = float(np.abs(theirs).max()) if theirs.size else 0.0
    norm = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    largest = float(difference.max()) if difference.size else 0.0
    relative = largest / scale if scale else (0.0 if largest == 0 else float("inf"))
    return {
        "shape": list(ours.shape),
        "largest": largest,
        "mean": float(difference.mean()) if difference.size else 0.0,
        "scale": scale,
        "relative": relative,
        "cosine": float((ours * theirs).sum() / norm) if norm else 1.0,
        "ok": bool(np.isfinite(ours).all() and relative <= tolerance),
    }


def tensors(plan: Plan, path: Union[str, Path], dtype: Any) -> Facts:
    """Compare every tensor of the written file with the source, bit by bit.

    Raises
    ------
    UserError
        Some tensors differ; the message names them.
    """
    from aidet import ckpt

    arrays = ckpt.load_arrays(path)
    wrong = [
        name
        for name, array in rules.gather(plan.entries, plan.tensors, plan.shapes, dtype)
        if name not in arrays or not np.array_equal(np.asarray(arrays[name]), array)
    ]
    extra = sorted(set(arrays) - set(plan.shapes))
    if wrong or extra:
        raise UserError(
            f"the written file differs from its source in {len(wrong)} tensors: {', '.join((wrong + extra)[:6])}"
        )
    return {"checked": len(plan.entries), "equal": True}


def run(
    net: "nn.Cell", x: np.ndarray, taps: Sequence[str] = (), batch: int = 4
) -> Tuple[np.ndarray, Dict[str, np.ndarray]]:
    """Run a net on (N, C, H, W) and record the sampled outputs of some of its cells.

    Returns
    -------
    (numpy.ndarray, dict)
        The output, and cell name -> (N, samples).
    """
    import mindspore as ms

    seen: Dict[str, List[np.ndarray]] = {name: [] for name in taps}
    cells = dict(net.cells_and_names())
    missing = [n for n in taps if n not in cells]
    if missing:
        raise UserError(f"the reference names a cell the net does not have: {missing[0]!r}")
    handles = []
    for name in taps:

        def record(cell, inputs, output, name=name):
            seen[name].append(sample(output.asnumpy()))

        handles.append(cells[name].register_forward_hook(record))
    outputs = []
    try:
        for i in range(0, len(x), batch):
            outputs.append(net(ms.Tensor(x[i : i + batch])).asnumpy())
    finally:
        for handle in handles:
            handle.remove()
    return np.concatenate(outputs), {k: np.concatenate(v) for k, v in seen.items()}


def activations(net: "nn.Cell", reference: Reference, level: str) -> Facts:
    """Compare a net with a reference.

    Parameters
    ----------
    net : mindspore.nn.Cell
        In inference mode; runs in PyNative mode.
    reference : Reference
    level : {"logits", "layers"}

    Returns
    -------
    dict
        ``logits`` (see :func:`compare`, plus ``argmax``: agreement), ``layers`` (list), ``first_over`` (name or None).
    """
    taps = list(reference.taps) if level == "layers" else []
    output, seen = run(net, reference.x, taps)
    logits = compare(output, reference.logits)
    result: Facts = {"reference": _describe(reference), "tolerance": TOLERANCE, "logits": logits}
    if output.ndim == 2 and output.shape == reference.logits.shape and output.shape[1] > 1:
        logits["argmax"] = [int((output.argmax(1) == reference.logits.argmax(1)).sum()), len(output)]
    layers = [{"cell": name, **compare(seen[name], reference.taps[name])} for name in taps]
    if level == "layers":
        result["layers"] = layers
        result["first_over"] = next((row["cell"] for row in layers if not row["ok"]), None)
    result["ok"] = logits["ok"]
    return result


def _describe(reference):
    keep = ("made_by", "compared_with", "versions", "photos", "source_sha256", "integer_graph")
    return {k: reference.meta[k] for k in keep if k in reference.meta}


def preprocessing(transform: Optional[str], reference: Reference) -> Optional[Facts]:
    """Compare our pipeline with the source's own on the same photos, without any model.

    Returns
    -------
    dict or None
        ``largest`` and ``mean`` difference in grey levels; None if the photos are not available, or if the reference's
        pixels were not made by the source's own code (``pixels_by``).
    """
    photos = reference.meta.get("photos") or []
    paths = [path for path in map(photo_path, photos) if path is not None]
    if transform is None or not reference.meta.get("pixels_by") or reference.pixels is None or len(paths) < len(photos):
        return None
    from aidet.images import Pipeline, decode

    pipeline = Pipeline(transform)
    geometry, affine = pipeline.geometry, pipeline.affine()
    if affine is not None and "std" in reference.meta:
        scale = 1 / np.asarray(reference.meta["std"], np.float64)
        theirs = scale, -scale * np.asarray(reference.meta["mean"], np.float64)
        if any(np.abs(a - b).max() > 1e-4 * np.abs(b).max(initial=1.0) for a, b in zip(affine, theirs)):
            text = pipeline.numbers.text
            return {"ok": False, "largest": None, "mean": None, "by": reference.meta["pixels_by"], "statistics": text}
    if pipeline.size() is None:  # as the reference does: images of any size are cut to one that all photographs have
        return _differences(np.stack([np.asarray(decode(p).crop((0, 0, 256, 256))) for p in paths]), reference)
    ours = np.stack([geometry(decode(p)) for p in paths]).transpose(0, 2, 3, 1) * 255
    return _differences(ours, reference)


def _differences(ours, reference):
    if ours.shape != reference.pixels.shape:
        return {"ok": False, "largest": None, "mean": None, "shape": [list(ours.shape), list(reference.pixels.shape)]}
    difference = np.abs(ours - reference.pixels.astype(np.float64))
    return {
        "ok": bool(difference.max() <= 1.01),
        "largest": float(difference.max()),
        "mean": float(difference.mean()),
        "by": reference.meta["pixels_by"],
    }


def photo_path(name: str) -> Optional[Path]:
    """Path of a photo in scikit-image's wheel (``skimage:chelsea.png``); None if it is not installed."""
    from importlib import util

    if not name.startswith("skimage:"):
        return None
    spec = util.find_spec("skimage")
    path = Path(spec.origin).parent / "data" / name[8:] if spec and spec.origin else None
    return path if path and path.is_file() else None


def bit_by_bit(count: int, half: bool) -> str:
    """The line that ``count`` tensors are those of the source; ``half``: as far as float16 can hold them."""
    return f"tensors {count} of {count} equal to the source bit by bit" + (", rounded to float16" if half else "")


# What follows a comparison of outputs that float16 puts over the tolerance.
HALF = "note    the weights are rounded to float16, so that the difference of the outputs is for information"


def lines(result: Facts) -> List[str]:
    """The result of :func:`activations` as lines for a terminal."""
    row = result["logits"]
    text = [f"against {result['compared_with']}"] if result.get("compared_with") else []
    line = f"logits  {_numbers(row)}"
    if "argmax" in row:
        line += f", argmax {row['argmax'][0]}/{row['argmax'][1]} agree"
    text.append(line + f", tolerance {result['tolerance']:g} of the scale: {'ok' if row['ok'] else 'OVER'}")
    integers = result.get("reference", {}).get("integer_graph")
    if integers and integers["largest"] is not None:
        text.append(f"integers  the quantised graph as it was: {_numbers(integers)} (for information)")
    for layer in result.get("layers", []):
        text.append(f"layer   {layer['cell']:28s} {_numbers(layer)}{'' if layer['ok'] else '  OVER'}")
    if "first_over" in result:
        text.append(f"first layer over tolerance: {result['first_over'] or 'none'}")
    if result.get("preprocessing"):
        row = result["preprocessing"]
        what = "the guessed line against" if row.get("guess") else "against"
        text.append(
            f"preprocessing  largest difference {row['largest']} grey levels, mean {row['mean']}: "
            f"{'ok' if row['ok'] else 'DIFFERENT'} ({what} {row.get('by', 'the stored pixels')})"
        )
    if result.get("not_proven"):
        text.append(f"note    equal outputs do not prove the forward of its authors: {result['not_proven']}")
    return text


def _numbers(row):
    if row["largest"] is None:
        return f"shapes differ: {row['shape'][0]} against {row['shape'][1]}"
    return (
        f"largest difference {row['largest']:.2e}, mean {row['mean']:.2e}, scale {row['scale']:.3g}, "
        f"cosine {row['cosine']:.7f}"
    )
