"""Calibrate a detector: a probability at equal odds, and thresholds for three purposes, written into the sidecar.

    python -m convert.training.calibrate --ckpt ckpt/aidet_default.ckpt --labels A/labels.csv --labels B/labels.csv \\
        --scores runs/scores.csv
    python -m convert.training.calibrate --ckpt ckpt/aidet_default.ckpt --labels A/labels.csv --split test --check

Only rows of split ``val`` (``--split``) and folders of further photographs (``--photos``) are used. Every picture is
scored as it is and ``--draws`` times as the web would have it (``convert/training/web.py``); both classes pass the same
chain. ``convert/training/points.py`` says how scale, offset and thresholds follow from the scores.

``--scores`` keeps the scores: a killed run goes on where it was, and with all rows there a second run only calculates.
Without ``--labels`` the rows of that file are used as they are. ``--check`` measures the detector as its sidecar has
it, calibration error and every operating point, and writes no sidecar.

``--ckpt LARGE.yaml``, a fusion file that names its models, is calibrated as one detector: the entries on probability
and thresholds are written into that file.

The sidecar is written once, at the end: ``calibration`` (``scale``, ``offset``, ``prior``, and what they were fitted
on), ``operating_points``, ``operating_point``, ``threshold``, ``voting`` and ``evidence``. Every other entry stays.
"""

import argparse
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Sequence

from aidet import ckpt, cli, files
from aidet.detector import Detector, views
from aidet.detector.vote import check_fusion, is_fusion_file
from aidet.errors import UserError

from . import points, scored

PRIOR = 0.5
# Of detectors whose views have at least so many pixels a side; smaller views are for smaller pictures.
MIN_SIDE = 128
# In grey levels (aidet.detector.views.fine_detail). Chosen on 3,048 crops of 448 pixels of two sets, ten views of each:
# 32 of 1,322 crops of photographs are below it (2.4 %) and 1 of 1,726 of generated pictures. They were looked at: plain
# skies, walls and backdrops, and crops out of focus. A whole picture shows more than a crop and is less often below it.
MIN_DETAIL = 1.0


def parser() -> cli.Parser:
    """The options."""
    p = cli.Parser(prog=f"python -m {__package__}.calibrate", description=__doc__)
    p.add_argument("--ckpt", required=True)
    p.add_argument("--labels", action="append", default=[], metavar="labels.csv", help="path, label, generator, split")
    p.add_argument("--photos", action="append", default=[], help="folder of photographs")
    p.add_argument("--split", default="val", help="rows of the labels (default val)")
    p.add_argument("--scores", metavar="CSV", help="where the scores are kept, and taken from if they are there")
    p.add_argument("--draws", type=int, default=2, help="versions from the web of each picture (default 2)")
    p.add_argument("--votes", type=int, help="default: the sidecar's")
    p.add_argument("--views", help="default: the sidecar's")
    p.add_argument("--weights", choices=views.WEIGHTS, help="of the views (default: the sidecar's)")
    p.add_argument("--operating-point", default="balanced", choices=ckpt.POINTS, help="the detector's own (balanced)")
    p.add_argument("--min-side", type=int, help=f"of the evidence (default: the sidecar's, else {MIN_SIDE})")
    p.add_argument("--min-detail", type=float, help=f"of the evidence (default: the sidecar's, else {MIN_DETAIL:g})")
    p.add_argument("--facts", metavar="FACTS.json", help="sections whose entries replace those of the sidecar first")
    p.add_argument("--check", action="store_true", help="measure only; write nothing but --scores")
    p.add_argument("--seed", type=int, default=42)
    p.add_argument("--workers", type=int, help="threads (default: the CPUs this process may use)")
    return p


def main(argv: Sequence[str]) -> None:
    """Score, calibrate and write the sidecar."""
    args = parser().parse_args(argv)
    if not args.labels and not (args.scores and Path(args.scores).is_file()):
        raise UserError("name the pictures with --labels labels.csv, or a file of scores with --scores")
    if args.photos and not args.labels:
        raise UserError(
            f"--photos {args.photos[0]!r} goes with --labels; without them the rows of --scores are used as they are"
        )
    if Path(args.ckpt).suffix == ".onnx" and not args.check:
        raise UserError(
            f"--ckpt {args.ckpt!r}: an exported file has no sidecar; calibrate its .ckpt and export it again"
        )
    fused = is_fusion_file(args.ckpt)
    alone = [
        n for n in ("weights", "min_side", "min_detail", "facts", "votes", "views") if getattr(args, n) is not None
    ]
    if fused and alone:
        raise UserError(f"--{alone[0].replace('_', '-')} is for one model; a fusion file's models have their own")
    if args.draws < 0:
        raise UserError(f"--draws (={args.draws}) must be 0 or more")
    rows, opened = scores_of(args)
    if args.check:
        rows = points.calibrated(rows, *opened.calibrated)
        say_errors(rows, opened.prior)
        for name, threshold in (opened.points or {"the threshold": opened.threshold}).items():
            point = {"threshold": threshold, **points.measured(rows, threshold)}
            print("\n".join(points.lines(name, point)))
        return
    if fused:
        write_fusion(args.ckpt, calibration(rows, args))
        return
    facts = facts_of(args)
    found = calibration(rows, args)
    facts.update(found, voting=voting_of(opened), evidence=evidence_of(args, opened))
    if facts["evidence"] is None:
        del facts["evidence"]
    ckpt.check_facts(facts, "the new sidecar")
    new = ckpt.Sidecar(facts, args.ckpt)
    assert new.threshold == found["threshold"] and new.prior == PRIOR  # reads and checks every new entry
    files.write_json(ckpt.sidecar_path(args.ckpt), facts)
    print(f"wrote {ckpt.sidecar_path(args.ckpt)}; exported files of this checkpoint must be made again")


def scores_of(args: argparse.Namespace) -> Any:
    """(rows with scores that are not calibrated, the detector)."""
    opened = Detector(args.ckpt, votes=args.votes, views=args.views, workers=args.workers, say=cli.to_stderr)
    model = opened.models[0]
    if model.views is None:
        raise UserError(f"--ckpt {args.ckpt!r} is a rule, which has no scores to calibrate")
    stamp = {"weights": " ".join(m.identity[:12] for m in opened.models)}
    if len(opened.models) > 1:
        rule = {"min_side": MIN_SIDE}
        stamp.update(views="of each model", evidence="of each model")
    else:
        if args.weights:
            model.views.weights = args.weights
        rule = evidence_of(args, opened)
        model.evidence = ckpt.Evidence(**rule) if rule else None
        for column, entry in (("views", voting_of(opened)), ("evidence", rule or {})):
            stamp[column] = " ".join(map(str, entry.values()))
    sheet = scored.Sheet(args.scores, stamp)
    if not args.labels:
        rows = sheet.scored()
        scored.require_both(rows.label.tolist(), args.scores)
        return rows, opened
    wanted = scored.versions(scored.pictures(args.labels, args.photos, args.split), args.draws)
    scored.score(opened, wanted, sheet, rule["min_side"] if rule else 8, args.seed)
    return sheet.scored(wanted), opened


def voting_of(opened: Detector) -> Dict[str, Any]:
    """The entry ``voting`` of the sidecar: the views with which the detector is calibrated."""
    made = opened.models[0].views
    assert made is not None  # scores_of refuses a rule
    return {"votes": made.votes, "views": made.kind, "weights": made.weights}


def evidence_of(args: argparse.Namespace, opened: Detector) -> Any:
    """The entry ``evidence``: what is asked for, else the sidecar's, else the defaults; None without any rule."""
    model, own = opened.models[0], opened.models[0].evidence
    large = model.views is None or model.views.size is None or min(model.views.size) >= MIN_SIDE
    base = own or (ckpt.Evidence(MIN_SIDE, MIN_DETAIL) if large else ckpt.Evidence())
    side = base.min_side if args.min_side is None else args.min_side
    detail = base.min_detail if args.min_detail is None else args.min_detail
    rule = {"min_side": side, "min_detail": detail} if side or detail else None
    return rule if ckpt.Sidecar({"evidence": rule}, args.ckpt).evidence else None  # reading it checks it


def write_fusion(path: str, found: Dict[str, Any]) -> None:
    """Write new entries into a fusion file; comments at its top stay."""
    import yaml

    text = Path(path).read_text(encoding="utf-8")
    top = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    found = {key: value for key, value in found.items() if key != "threshold"}  # that of the operating point
    facts = {**files.read_mapping(Path(path), "fusion file"), **found}
    check_fusion(facts, Path(path))
    with files.atomic(path) as file:
        file.write(top + yaml.safe_dump(facts, sort_keys=False, width=118, allow_unicode=True))
    print(f"wrote {path}")


def facts_of(args: argparse.Namespace) -> Dict[str, Any]:
    """The sidecar, with the entries of ``--facts``."""
    facts = ckpt.read_sidecar(args.ckpt)
    for section, entries in (files.read_json(args.facts, "facts") if args.facts else {}).items():
        facts[section] = {**(facts.get(section) or {}), **entries}
    return facts


def calibration(rows: scored.Scored, args: argparse.Namespace) -> Dict[str, Any]:
    """The new entries of the sidecar on probability and thresholds, which are also printed."""
    scale, offset = (round(value, 4) for value in points.fit(rows))
    fitted = points.calibrated(rows, scale, offset)
    print(f"scale {scale}, offset {offset}: probabilities at equal odds")
    errors = say_errors(fitted, PRIOR)
    apart = dict(points.parts(points.left_out(rows, args.seed)))
    crossed = {name: round(points.ece(part), 4) for name, part in apart.items()}
    print("ECE of pictures left out of the fit: " + ", ".join(f"{name} {value:.3f}" for name, value in crossed.items()))
    data = [f"{name} {args.split}" for name in sorted(set(fitted.set))]
    table = {}
    for name, threshold in points.thresholds(fitted).items():
        table[name] = {
            "threshold": threshold, "rule": points.RULES[name], **points.measured(fitted, threshold), "data": data,
        }  # fmt: skip
        print("\n".join(points.lines(name, table[name])))
    own = {
        "scale": scale, "offset": offset, "prior": PRIOR, "ece": errors, "ece_left_out": crossed,
        "images": images_of(fitted), "versions": f"clean and {points.draws(fitted)} from the web", "seed": args.seed,
        "script": "convert.training.calibrate", "commit": commit(),
    }  # fmt: skip
    chosen = args.operating_point
    return {
        "calibration": own, "operating_points": table, "operating_point": chosen,
        "threshold": table[chosen]["threshold"],
    }  # fmt: skip


def say_errors(rows: scored.Scored, prior: Any) -> Dict[str, float]:
    """ECE at equal odds of each set, as it is and from the web; printed beside what exact probabilities would give."""
    if prior != PRIOR:
        print(f"the sidecar states {'no prior' if prior is None else f'a prior of {prior}'}; ECE is at equal odds")
    found = {}
    for name, part in points.parts(rows):
        found[name] = round(points.ece(part), 4)
        least = points.ece_by_chance(part)
        print(f"ECE {found[name]:.3f} ({name}, {len(part.score)} rows; exact probabilities would have {least:.3f})")
    lacking = rows.take(rows.lacking & rows.clean)
    if len(lacking.label):
        real = int((lacking.label == 0).sum())
        print(f"too little evidence: {real} real pictures, {len(lacking.label) - real} generated")
    return found


def images_of(rows: scored.Scored) -> Dict[str, Dict[str, int]]:
    """Pictures of each class in each set."""
    out: Dict[str, Dict[str, int]] = {}
    for name in sorted(set(rows.set)):
        counts: List[int] = [len(set(rows.picture[(rows.set == name) & (rows.label == side)])) for side in (0, 1)]
        out[name] = dict(zip(("real", "generated"), counts))
    return out


def commit() -> str:
    """Short hash of this repository's commit, with ``+`` if files differ from it; empty without git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=20)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


if __name__ == "__main__":
    cli.main(main)
