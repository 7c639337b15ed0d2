"""From the weights of ``convert.training.partial`` to a checkpoint: half precision, verified, with its lines.

    python -m convert.training.partial_finish runs/partial ckpt/aidet_partial.ckpt --data SET/labels.csv
    python -m convert.training.partial_finish ckpt/aidet_partial.ckpt ckpt/aidet_partial.ckpt --data OTHER/labels.csv

``--mean RUN`` averages the weights with those of another run that went on from the first: that keeps most of what the
first found, and most of what the second learnt (Wortsman et al. 2022; LOG.md, 2026-11-30).

MindSpore's results are compared with PyTorch's on the same rounded weights. Four things are then chosen on the
pictures of split ``val`` of the sets, through :class:`aidet.Localizer` as it is used; the second form of the command,
from a checkpoint, only chooses these again:

* the level of ``background``: the median over untouched photographs of the quantile of their cells;
* ``threshold``: of those with a false area of at most ``--false-area`` on untouched photographs, the one with
  the best F1 of the cells;
* ``min_area``: the area that at most one untouched photograph in twenty exceeds, at least .005;
* the calibration of the image's score (Platt 1999).
"""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np

from aidet import ckpt, cli, files, images, labels, records, runtime
from aidet.datasets.masks import mask_of
from aidet.errors import UserError

from . import partial_net

TILE, GRID = 256, 16
LINE = "decode | center_crop(256) | normalize(half)"
TOLERANCE = 1e-4
BACKGROUND = {"quantile": 0.25, "part": 0.5}  # chosen on validation pictures (LOG.md, 2026-11-30)


class Found(NamedTuple):
    """What the net says of the pictures of a set.

    Attributes
    ----------
    cells : list of ndarray (h, w)
        Probability of every cell.
    shares : list of ndarray (h, w)
        Generated share of every cell.
    scores : ndarray (n,)
        Log-odds of the pictures, before calibration.
    sides : ndarray of int (n,)
    rows : list of dict
        Their rows in the table.
    """

    cells: List[np.ndarray]
    shares: List[np.ndarray]
    scores: np.ndarray
    sides: np.ndarray
    rows: List[Dict[str, str]]


def cells_of(mask: np.ndarray, grid: int = GRID) -> np.ndarray:
    """Generated share of the cells of a mask (height, width) of 0 and 1; those at two edges may be cut."""
    h, w = (-(-n // grid) * grid for n in mask.shape)
    inside = np.zeros((2, h, w), np.float64)
    inside[0, : mask.shape[0], : mask.shape[1]] = mask
    inside[1, : mask.shape[0], : mask.shape[1]] = 1
    sums = inside.reshape(2, h // grid, grid, w // grid, grid).sum((2, 4))
    return sums[0] / sums[1]


def rows_of(sources: Sequence[str], split: str) -> List[Dict[str, Any]]:
    """Rows of one split of partial sets, with the folder of each."""
    found = []
    for source in sources:
        table, _ = records.read_table(Path(source))
        found += [{**row, "folder": str(Path(source).parent)} for row in table if row.get("split") == split]
    if not found:
        raise UserError(f"no row of split {split!r} in {', '.join(sources)}")
    return found


def found_in(localizer: Any, rows: Sequence[Dict[str, Any]], change: Any = None) -> Found:
    """Run a localizer on the pictures of a table; ``change`` takes and returns a PIL image, such as a compression."""
    cells, shares, scores, sides = [], [], [], []
    for row in rows:
        image = images.decode(Path(row["folder"]) / row["path"])
        side = int(row["label"])
        mask = mask_of(row["folder"], row.get("mask", ""), side, row.get("area", ""), image.size, row["path"])
        result = localizer.localize(change(image) if change else image)
        cells.append(result.cells)
        shares.append(cells_of(mask))
        scores.append(result.score / localizer.scale + localizer.offset)
        sides.append(side)
    return Found(cells, shares, np.array(scores), np.array(sides), list(rows))


def level_of(found: Found) -> float:
    """The usual background of untouched photographs: the median of the quantiles of their cells' log-odds."""
    low = [np.quantile(cells, BACKGROUND["quantile"]) for cells, side in zip(found.cells, found.sides) if side == 0]
    return round(float(labels.logit(np.median(low), 1e-7)), 4)


def threshold_of(found: Found, false_area: float) -> Dict[str, float]:
    """The threshold, and what it gives: F1 of the cells, false area of untouched photographs."""
    flat, truth = np.concatenate([c.ravel() for c in found.cells]), np.concatenate([s.ravel() for s in found.shares])
    real = [cells for cells, side in zip(found.cells, found.sides) if side == 0]
    best: Dict[str, float] = {}
    for line in np.round(np.arange(0.05, 0.96, 0.01), 2):
        wrong = float(np.mean([(cells > line).mean() for cells in real]))
        if wrong > false_area:
            continue
        called, right = flat > line, truth >= 0.5
        f1 = 2 * float((called & right).sum()) / max(1, int(called.sum() + right.sum()))
        if not best or f1 > best["f1"]:
            best = {"threshold": float(line), "f1": round(f1, 4), "false_area": round(wrong, 4)}
    if not best:
        raise UserError(f"no threshold up to .95 has a false area of at most {false_area} on the untouched photographs")
    return best


def min_area_of(found: Found, threshold: float) -> float:
    """The area that at most a twentieth of the untouched photographs exceed."""
    areas = [float((cells > threshold).mean()) for cells, side in zip(found.cells, found.sides) if side == 0]
    return round(max(0.005, float(np.quantile(areas, 0.95))), 4)


def calibration_of(found: Found) -> Dict[str, Any]:
    """Platt's calibration of the image's score, both sides weighing the same."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e3, class_weight="balanced").fit(found.scores[:, None], found.sides)
    scale = float(model.coef_[0, 0])
    if scale <= 0:
        raise UserError("the score of the image does not rise with generated area on the validation pictures")
    return {"scale": round(scale, 4), "offset": round(-float(model.intercept_[0]) / scale, 4), "prior": 0.5}


def facts_of(net: Any, folder: Path, args: argparse.Namespace) -> Dict[str, Any]:
    """The sidecar before anything is chosen."""
    sharpness, scale, offset = net.pooling.detach().numpy().astype(np.float64)
    pooling = {
        "kind": "logsumexp",
        "sharpness": float(np.exp(sharpness)),
        "scale": float(scale),
        "offset": float(offset),
    }
    runs = [run / "training.json" for run in (folder, *map(Path, args.mean))]
    told = [files.read_json(path) if path.is_file() else {} for path in runs]
    return {
        "architecture": "partial_lite0", "arguments": {"num_classes": 2, "padding": "same", "bn_eps": 1e-3},
        "num_outputs": 2, "classes": list(labels.NAMES), "class_order": list(labels.NAMES),
        "input": {"size": [TILE, TILE], "transform": LINE, "channels": 3, "range": [0.0, 1.0]},
        "source": {"repository": "trained for this project", "file": "model.ckpt", "licence": "Apache-2.0",
                   "sha256": files.sha256(folder / "model.ckpt"), "started_from": "ckpt/aidet_default.ckpt"},
        "localization": {"grid": GRID, "tile": TILE, "threshold": 0.5, "min_area": 0.005, "pooling": pooling},
        "training": {"script": "convert/training: partial, partial_finish", **told[0],
                     **({"mean_with": told[1:]} if args.mean else {})},
        "threshold": 0.5,
    }  # fmt: skip


def compared(path: Path, net: Any) -> Dict[str, Any]:
    """Compare the checkpoint in MindSpore with the PyTorch net; :class:`UserError` if they differ."""
    import mindspore as ms
    import torch

    x = np.random.default_rng(0).uniform(-1, 1, (4, 3, TILE, TILE)).astype(np.float32)
    with torch.inference_mode():
        expected = [out.numpy() for out in net.eval()(torch.from_numpy(x))]
    found = [out.asnumpy() for out in ckpt.load_model(path)(ms.Tensor(x))]
    worst = [float(np.abs(a - b).max()) for a, b in zip(expected, found)]
    if max(worst) > TOLERANCE:
        raise UserError(f"MindSpore differs from PyTorch by {max(worst):.2g}, more than {TOLERANCE:g}")
    made_by = {"made_by": "convert.training.partial_net", "versions": {"torch": torch.__version__}}
    return {
        "level": "logits",
        "reference": made_by,
        "tolerance": TOLERANCE,
        "logits": worst[0],
        "map": worst[1],
        "ok": True,
    }


def mean_of(runs: Sequence[Path]) -> Dict[str, np.ndarray]:
    """Mean of the weights of runs, float16; :class:`UserError` if they are not of one network."""
    read = [ckpt.load_arrays(run / "model.ckpt") for run in runs]
    for run, arrays in zip(runs, read):
        if {n: a.shape for n, a in arrays.items()} != {n: a.shape for n, a in read[0].items()}:
            raise UserError(f"{run}: its weights have other names or shapes than those of {runs[0]}")
    return {n: np.mean([arrays[n].astype(np.float64) for arrays in read], 0).astype(np.float16) for n in read[0]}


def main(argv: Sequence[str]) -> None:
    """Convert, verify, choose, and write the checkpoint and its sidecar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="folder of convert.training.partial, or a checkpoint")
    parser.add_argument("ckpt", help="the checkpoint to write")
    parser.add_argument("--data", action="append", required=True, help="labels.csv with split val")
    parser.add_argument("--mean", action="append", default=[], help="a run whose weights are averaged with the first's")
    parser.add_argument("--false-area", type=float, default=0.01, help="most on untouched validation photographs")
    args = parser.parse_args(argv)
    from aidet import Localizer

    runtime.setup("CPU", mode="graph")
    folder, path = Path(args.run), Path(args.ckpt)
    if folder.suffix == ".ckpt":
        if args.mean:
            raise UserError(
                f"--mean is for runs; {str(folder)!r} is a checkpoint, of which only the lines are chosen again"
            )
        facts, arrays = ckpt.read_sidecar(folder), ckpt.load_arrays(folder)
    else:
        net = partial_net.network()
        arrays = mean_of([folder, *map(Path, args.mean)])
        partial_net.load_arrays(net, arrays)
        facts = facts_of(net, folder, args)
        ckpt.save(arrays, path, facts)
        facts["parity"] = compared(path, net)
    facts = {**facts, "localization": {**facts["localization"], "background": None}}
    ckpt.save(arrays, path, facts)
    rows = rows_of(args.data, "val")
    facts["localization"]["background"] = {**BACKGROUND, "level": level_of(found_in(Localizer(path), rows))}
    ckpt.save(arrays, path, facts)
    found = found_in(Localizer(path), rows)
    chosen = threshold_of(found, args.false_area)
    facts["localization"]["threshold"] = chosen["threshold"]
    facts["localization"]["min_area"] = min_area_of(found, chosen["threshold"])
    facts["localization"]["chosen"] = {**chosen, "pictures": len(found.rows), "false_area_allowed": args.false_area}
    calibration = calibration_of(found)
    ckpt.save(arrays, path, {**facts, "calibration": calibration})
    print(json.dumps({**facts["localization"], "calibration": calibration, "parity": facts["parity"]}, indent=1))


if __name__ == "__main__":
    cli.main(main)
