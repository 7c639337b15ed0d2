"""The report of ``evaluate.py localize``, and its terminal output."""

from pathlib import Path
from typing import Any, Dict, List, Union

import numpy as np
from PIL import Image

from .. import images, labels, report
from ..cli import printable
from ..datasets.masks import mask_of
from ..detector.localization import WHITE
from ..errors import UserError
from .maps import Localized, Maps, overlap
from .sections import EMPTY
from .sentences import share

NAMES = {
    "local_score": "score of the localiser", "score": "score of the detector", "map": "highest 1 % of the map's pixels",
}  # fmt: skip
TITLES = {"area": "By area of the region", "kind": "By kind of region", "builder": "By what painted the region"}
FEW = 10  # pictures: a table's row of fewer says little


def write(
    path: Union[str, Path],
    evaluation: Localized,
    result: Dict[str, Any],
    maps: Maps,
    where_from: report.Section,
    thumbnails: int = 6,
) -> Path:
    """Write the report.

    Parameters
    ----------
    path : str or Path
    evaluation : Localized
    result : dict
        From :func:`aidet.evaluation.localize.summary`.
    maps : Maps
    where_from : Section
        See :func:`aidet.report.provenance`.
    thumbnails : int
        Number of worst pictures shown on each side; 0 leaves them out.

    Returns
    -------
    Path
    """
    parts = [*sections(result), *_worst(evaluation, maps, thumbnails), where_from]
    lead = f"{maps.folder} against {evaluation.true.source}"
    return report.write(
        path, "Where pictures are generated", lead, parts, _cards(result), _warnings(result), _told(result)
    )


def sections(result: Dict[str, Any]) -> List[report.Section]:
    """Tables and charts of a result, in the form of ``metrics.json``."""
    made = [_numbers(result)]
    made += [_by(name, rows, result) for name, rows in result["by"].items() if rows]
    return made


def _cards(result):
    pixels, alone, image = result["pixels"], result["untouched"], result["images"][result["image_score"]]
    limit = f"of {alone['n']} untouched photographs, mean"
    return [
        ("pixel AUC", report.number(pixels["auc"]), report.interval(pixels["ci"].get("auc"), 3)),
        ("F1 of pixels", report.number(pixels["f1"]), report.interval(pixels["ci"].get("f1"), 3)),
        ("image AUC", report.number(image["auc"]), report.interval(image["ci"].get("auc"), 3)),
        ("false area", report.number(alone["false_area"]), limit),
    ]


def _numbers(result):
    number, interval = report.number, report.interval
    pixels, alone = result["pixels"], result["untouched"]
    rows = [
        ["pixel AUC, pooled", number(pixels["auc"]), interval(pixels["ci"].get("auc"))],
        ["pixel AUC, mean of pictures", number(pixels["mean_auc"]), ""],
        [f"F1 at {result['threshold']:g}, pooled", number(pixels["f1"]), interval(pixels["ci"].get("f1"))],
        [f"F1 at {result['threshold']:g}, mean of pictures", number(pixels["mean_f1"]), ""],
        [f"F1 at the best threshold, {number(pixels.get('best_threshold'))}", number(pixels.get("best_f1")), ""],
        [f"IoU at {result['threshold']:g}, pooled", number(pixels["iou"]), interval(pixels["ci"].get("iou"))],
        [f"IoU at {result['threshold']:g}, mean of pictures", number(pixels["mean_iou"]), ""],
        ["false area of untouched photographs", number(alone["false_area"]), interval(alone["ci"].get("false_area"))],
        [f"untouched photographs with more than {alone['limit']:.0%} found", number(alone["alarms"]),
         interval(alone["ci"].get("alarms"))],
    ]  # fmt: skip
    tables = [report.Table("Pixels; in brackets the 95% bootstrap interval over source images", _HEAD, rows)]
    cells = [
        [NAMES.get(name, name), got["n"], *_image_cells(got), *(number(got.get(f"{n}_recall")) for n in labels.NAMES)]
        for name, got in result["images"].items()
    ]
    head = ["image score", "pictures", "AUC", "95% interval", "balanced accuracy", "95% interval"]
    head += ["untouched left alone", "generated found"]
    tables.append(report.Table("Whole pictures: partly generated against untouched", head, cells))
    text = (
        "Pixels are those of the partly generated pictures. The best threshold is chosen on the same pictures: an "
        "upper bound, not a result. A pixel near the edge of a region may be generated in part; the mask has it where "
        "more than half of it is."
    )
    return report.Section("Pixels and pictures", texts=[text], tables=tables)


_HEAD = ["metric", "value", "95% interval"]


def _image_cells(got):
    number, interval = report.number, report.interval
    return [
        number(got["auc"]), interval(got["ci"].get("auc"), 3), number(got["balanced_accuracy"]),
        interval(got["ci"].get("balanced_accuracy"), 3),
    ]  # fmt: skip


def _by(name, rows, result):
    number, interval = report.number, report.interval
    cells = [
        [value or EMPTY, got["n"], number(got["auc"]), interval(got["ci"].get("auc"), 3), number(got["f1"]),
         number(got["iou"]), *_image_cells(got["image"])]
        for value, got in rows.items()
    ]  # fmt: skip
    head = [name, "pictures", "pixel AUC", "95% interval", "F1", "IoU", "image AUC", "95% interval"]
    head += ["balanced accuracy", "95% interval"]
    score = NAMES.get(result["image_score"], result["image_score"])
    text = f"Whole pictures ({score}): those of a row against all {result['untouched']['n']} untouched photographs."
    few = [value or EMPTY for value, got in rows.items() if got["n"] < FEW]
    if few:
        text += f" Fewer than {FEW} pictures: {', '.join(few)}."
    return report.Section(TITLES.get(name, f"By {name}"), [text], tables=[report.Table(f"By {name}", head, cells)])


def _warnings(result):
    lost = result["errors"]
    return [f"{lost['n']} pictures could not be measured and are left out: {lost['reasons']}."] if lost["n"] else []


def _told(result):
    pixels, alone, image = result["pixels"], result["untouched"], result["images"][result["image_score"]]
    said = [f"{pixels['n']} partly generated pictures and {alone['n']} untouched photographs were measured."]
    if pixels["auc"] is not None:
        said.append(f"A generated pixel has a higher value than an untouched one {share(pixels['auc'])} of the time.")
    if alone["false_area"] is not None:
        said.append(
            f"Of an untouched photograph {alone['false_area']:.1%} is called generated on average, "
            f"and more than {alone['limit']:.0%} in {share(alone['alarms'])} of them."
        )
    if image["auc"] is not None:
        said.append(f"As whole pictures, generated ones rank above untouched ones {share(image['auc'])} of the time.")
    return said


# --- pictures ---------------------------------------------------------------------------------------------------------
def _worst(evaluation, maps, count):
    """The regions that were found worst, and the untouched photographs with the largest false area."""
    if not count:
        return []
    f1 = np.array([_f1(row) for row in evaluation.rows])
    found = np.array([row.found for row in evaluation.rows])
    missed = [i for i in np.argsort(f1, kind="stable") if evaluation.generated[i]][:count]
    false = [i for i in np.argsort(-found, kind="stable") if evaluation.untouched[i] and found[i] > 0][:count]
    made = []
    for title, rows, said in (
        ("Regions found worst", missed, lambda i: f"area {evaluation.area[i]:.1%}, F1 {f1[i]:.2f}"),
        ("False alarms on untouched photographs", false, lambda i: f"{found[i]:.1%} called generated"),
    ):
        shots = [shot for shot in (_shot(evaluation, maps, i, said(i)) for i in rows) if shot is not None]
        if shots:
            text = "The picture, its mask (white: generated) and the map (white: probability 1)."
            made.append(report.Section(title, [text], shots=shots))
    return made


def _f1(row):
    return float(overlap(np.array(row.counts, np.float64))["f1"]) if row.ok else np.nan


def _shot(evaluation, maps, i, said):
    true, row = evaluation.true, evaluation.rows[i]
    try:
        picture = images.decode(true.files()[i])
        area = true.columns.get("area", [""] * len(evaluation.rows))[i]
        mask = mask_of(true.root, true.column("mask")[i], row.label, area, picture.size, row.path)
        values = maps.read(row.path, picture.size)
    except (images.ImageError, UserError):
        return None
    shown = [picture, Image.fromarray(mask * 255), Image.fromarray((values / WHITE * 255).round().astype(np.uint8))]
    return report.Shot([uri for uri in map(report.thumbnail, shown) if uri], said, printable(row.path))


def say(result: Dict[str, Any], page: Union[str, Path]) -> None:
    """Print the headline numbers."""
    for line in _lines(result):
        print(line)
    print(f"report: {page}")
    if result["errors"]["n"]:
        print(f"not measured: {result['errors']['n']} pictures, by reason: {result['errors']['reasons']}")


def _lines(result: Dict[str, Any]) -> List[str]:
    number = report.number
    pixels, alone = result["pixels"], result["untouched"]
    lines = [
        f"pixels of {pixels['n']} partly generated pictures: AUC {_with(pixels, 'auc')}, "
        f"F1 {_with(pixels, 'f1')}, IoU {_with(pixels, 'iou')} at threshold {result['threshold']:g}",
    ]
    if "best_f1" in pixels:
        lines.append(f"F1 at the best threshold ({number(pixels['best_threshold'])}): {number(pixels['best_f1'])}")
    lines += [
        f"pictures by {NAMES.get(name, name)}: AUC {_with(got, 'auc')}, "
        f"balanced accuracy {_with(got, 'balanced_accuracy')}"
        for name, got in result["images"].items()
    ]
    rows = [f"{value} {number(got['image']['auc'], 3)} ({got['n']})" for value, got in result["by"]["area"].items()]
    lines.append(f"image AUC by area: {', '.join(rows)}" if rows else "no partly generated picture")
    if alone["n"]:
        lines.append(
            f"{alone['n']} untouched photographs: false area {_with(alone, 'false_area')}, "
            f"more than {alone['limit']:.0%} in {number(alone['alarms'])} of them"
        )
    return lines


def _with(got: Dict[str, Any], key: str) -> str:
    """A value with its interval."""
    return " ".join(filter(None, (report.number(got.get(key)), report.interval(got["ci"].get(key), 3))))
