"""``evaluate.py leaks``: find images that the splits of a data set share."""

import argparse
import csv
import functools
import itertools
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from .. import files, images, report
from ..cli import OK, PARTIAL, by_reason, printable
from ..datasets import sources
from ..errors import UserError
from ..parallel import spread
from . import crops, fingerprints

SPLITS = ("train", "valid", "test")
SHOWN = 12  # the report shows at most a third of this many leaks of each level


def read_prints(
    name: str, table: sources.Table, workers: Optional[int] = None, reading: Optional[images.Reading] = None
) -> fingerprints.Prints:
    """Fingerprints of all images of a split, each decoded once, in several processes.

    Parameters
    ----------
    name : str
        For the progress bar.
    table : aidet.datasets.Table
    workers : int, optional
        Default: the number of CPUs.
    reading : aidet.images.Reading, optional
        How images are read.

    Returns
    -------
    Prints

    Raises
    ------
    UserError
        No image can be read.
    """
    full = [str(file) for file in table.files()]
    work = functools.partial(fingerprints.fingerprint, reading=reading or images.Reading())
    found = fingerprints.collect(table.paths or [], full, spread(work, full, name, workers))
    if found.lost and not len(found):
        path, why = found.lost[0]
        raise UserError(f"{name}: none of its {len(full)} images can be read, first {path}: {why}")
    return found


def main(options: argparse.Namespace) -> int:
    """Run ``evaluate.py leaks``.

    Parameters
    ----------
    options : argparse.Namespace
        ``train, valid, test, out, distance, crops, workers, max_pixels, truncated``.

    Returns
    -------
    int
        Exit code: 3 if some images could not be read. A leak is a finding, not an error.

    Raises
    ------
    UserError
        Fewer than two splits, a distance outside 0..12, workers below 1, a split that cannot be read, or ``--crops``
        without OpenCV.
    """
    out, distance, with_crops, workers = Path(options.out), options.distance, options.crops, options.workers
    given = {name: getattr(options, name) for name in SPLITS if getattr(options, name)}
    if len(given) < 2:
        raise UserError("leaks compares splits: give at least two of --train, --valid, --test")
    if not 0 <= distance <= 12:
        raise UserError(f"--distance (={distance}) must be between 0 and 12")
    if workers is not None and workers < 1:
        raise UserError(f"--workers (={workers}) must be >= 1")
    if with_crops:
        crops.require()
    # Check all sources before spending up to an hour on the first.
    read = {name: sources.read_images(source) for name, source in given.items()}
    reading = images.Reading.of(options)
    prints = {name: read_prints(name, table, workers, reading) for name, table in read.items()}
    pairs = compare(prints, distance)
    if with_crops:
        _add_crops(prints, pairs, workers, reading)
    _write_rows(out / "leaks.csv", prints, pairs)
    result = _result(prints, pairs, distance, with_crops)
    facts, where_from = report.provenance({name: sources.split_source(source)[0] for name, source in given.items()})
    page = _page(out / "report.html", prints, pairs, result, where_from)
    files.write_json(out / "metrics.json", {**result, **facts})
    _say(result, prints, pairs, out)
    print(f"report: {page}")
    lost = [why for p in prints.values() for _, why in p.lost]
    if lost:
        print(f"not read, by reason: {by_reason(lost)}")
    return PARTIAL if any(p.lost for p in prints.values()) else OK


def compare(prints: Dict[str, fingerprints.Prints], distance: int) -> Dict[Tuple[str, str], List[fingerprints.Leak]]:
    """Run :func:`aidet.audit.fingerprints.compare` on every pair of splits.

    Parameters
    ----------
    prints : dict of str to Prints
        By split name. In each pair, the first split is the known one.
    distance : int
        See :func:`aidet.audit.fingerprints.compare`.

    Returns
    -------
    dict of (str, str) to list
        Keys: names of the known split and of the other split.
    """
    return {
        (first, second): fingerprints.compare(prints[first], prints[second], distance)
        for first, second in itertools.combinations(prints, 2)
    }


def _add_crops(prints, pairs, workers, reading):
    """Search for crops among the images that were not found at another level."""
    work = functools.partial(crops.corners, reading=reading)
    found = {n: crops.collect(spread(work, p.files, f"{n}, corners", workers)) for n, p in prints.items()}
    for (first, second), rows in pairs.items():
        done = {j for _, j, _, _ in rows}
        rows += crops.compare(found[first], found[second], prints[first].files, prints[second].files, done, reading)
        rows.sort(key=lambda row: row[1])


def _write_rows(path, prints, pairs):
    # On Linux a file name need not be valid Unicode; invalid bytes are written as \udcXX, as in infer.py's files.
    with files.atomic(path, errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["level", "split", "path", "also_in", "also_path", "bits"])
        for (first, second), found in pairs.items():
            for level, j, i, bits in found:
                writer.writerow([level, second, prints[second].paths[j], first, prints[first].paths[i], bits])


def _result(prints, pairs, distance, with_crops):
    counts = []
    for (first, second), found in pairs.items():
        by_level = {level: sum(row[0] == level for row in found) for level in fingerprints.LEVELS}
        counts.append({"known": first, "split": second, "leaked": len(found), "of": len(prints[second]), **by_level})
    return {
        "command": "leaks",
        "n": sum(map(len, prints.values())),
        "splits": {
            name: {"images": len(p), "doubles_by_bytes": fingerprints.doubles(p), "unreadable": len(p.lost)}
            for name, p in prints.items()
        },
        "leaks": counts,
        "distance": distance,
        "crops": with_crops,
        "errors": [{"split": n, "path": path, "status": why} for n, p in prints.items() for path, why in p.lost[:10]],
    }


def _page(path, prints, pairs, result, where_from):
    sections = [_counts_section(result)]
    for (first, second), found in pairs.items():
        shots = _shots((first, second), found, prints)
        if shots:
            sections.append(report.Section(f"{second} in {first}", shots=shots))
    warnings = [
        f"{c['leaked']} of {c['of']} images of {c['split']} are in {c['known']}."
        for c in result["leaks"]
        if c["leaked"]
    ]
    cards = [(f"{c['split']} in {c['known']}", c["leaked"], f"of {c['of']} images") for c in result["leaks"]]
    return report.write(path, "Leaks between splits", ", ".join(prints), [*sections, where_from], cards, warnings)


def _counts_section(result):
    rows = [
        [c["split"], c["known"], c["of"], c["leaked"], *(c[level] for level in fingerprints.LEVELS)]
        for c in result["leaks"]
    ]
    header = ["images of", "also in", "images", "leaked", "same path", "same bytes", "same pixels", "near-duplicates",
              "mirrored or turned", "crops"]  # fmt: skip
    inside = [[n, s["images"], s["doubles_by_bytes"], s["unreadable"]] for n, s in result["splits"].items()]
    cropped = "Crops share corners and the pixels between them." if result["crops"] else "Crops were not searched for."
    text = (
        "Each image is counted once, at its strongest level. Near-duplicates differ in at most "
        f"{result['distance']} of the 64 bits of a perceptual hash, and their thumbnails correlate by "
        f"{fingerprints.CORRELATION} or more; the same holds for mirrored or turned copies once they are turned back. "
        f"Look at them before you delete any. {cropped} All leaks are listed in leaks.csv."
    )
    tables = [
        report.Table("Images that are in two splits", header, rows),
        report.Table("Within each split", ["split", "images", "byte-identical duplicates", "unreadable"], inside),
    ]
    return report.Section("Leaks", [text], tables=tables)


def _shots(names, found, prints):
    """The first leaks of each level, both images side by side; ``names``: the known split and the other split."""
    known, other = names
    shots = []
    for level in fingerprints.LEVELS:
        for _, j, i, bits in [row for row in found if row[0] == level][: SHOWN // 3]:
            paths = {other: prints[other].paths[j], known: prints[known].paths[i]}
            small = [report.thumbnail(Path(file)) for file in (prints[other].files[j], prints[known].files[i])]
            what = f"{level} ({bits} {'corners' if level == 'crop' else 'bits'})"
            said = f"{what}: {other} {paths[other]} = {known} {paths[known]}"
            shots.append(report.Shot([s for s in small if s], said))
    return shots


def _say(result, prints, pairs, out):
    for count, ((first, second), found) in zip(result["leaks"], pairs.items()):
        if not found:
            print(f"no leak: {second} ({count['of']} images) shares no image with {first}")
            continue
        levels = ", ".join(f"{count[v]} by {v}" for v in fingerprints.LEVELS if v != "crop" or result["crops"])
        print(f"leak: {count['leaked']} of {count['of']} images of {second} are in {first} ({levels})")
        for level, j, i, _ in found[:3]:
            print(printable(f"  {level}: {prints[second].paths[j]} = {prints[first].paths[i]}"))
    for name, split in result["splits"].items():
        if split["doubles_by_bytes"]:
            print(f"duplicates: {split['doubles_by_bytes']} files of {name} are byte-identical to another of {name}")
        if split["unreadable"]:
            path, why = prints[name].lost[0]
            print(printable(f"not read: {split['unreadable']} files of {name}, first {path}: {why}"))
    print(f"all leaks: {out / 'leaks.csv'}")
