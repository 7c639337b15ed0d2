"""Measure one checkpoint on the splits of a labels.csv, by generator: results/NAME.csv.

    python bench/measure_set.py --ckpt ckpt/aigen/best.ckpt --labels PATH/labels.csv --name aigen_dev --votes 6

Runs the real command lines (`infer.py`, `evaluate.py score`) on each split. Records the balanced accuracy and AUC of
the whole split and, for each generator, the recall and the AUC against all real images, with bootstrap intervals.
"""

import argparse
import json
import tempfile
from pathlib import Path

import common
from common import ROOT

from aidet import ckpt, cli, files, records
from aidet.errors import UserError

COLUMNS = ["split", "generator or source", "images", "balanced accuracy (whole split) or recall", "AUC"]


def measure(args, split, folder):
    """Yield (name, metrics.json) of one split and, if unseen generators are given, of its seen and unseen parts."""
    rows, _ = records.read_table(args.labels, "labels")
    base = Path(args.labels).resolve().parent
    rows = [{**r, "path": str(base / r["path"])} for r in rows if r["split"] == split]
    if not rows:
        raise UserError(f"{args.labels} has no row of split {split!r}")
    listing = folder / f"{split}.csv"
    common.write(listing, list(rows[0]), rows)
    out = folder / split
    common.run("infer.py", "--ckpt", args.ckpt, "--images", listing, "--out", out, *chosen(args))
    yield split, judge(out / "scores.csv", listing, out, "--by", "generator")
    if args.unseen:
        # Two parts: generators and real sources that were not trained on, and all others.
        alone = all(r["label"] == "1" for r in rows if r["generator"] in args.unseen)
        for kind, wanted in (("unseen", True), ("seen", False)):
            keep = {
                r["path"] for r in rows if (r["generator"] in args.unseen) == wanted or (alone and r["label"] == "0")
            }
            parts = []
            for source in (out / "scores.csv", listing):
                table_, columns = records.read_table(source)
                parts.append(folder / f"{kind}-{source.name}")
                common.write(parts[-1], columns, [r for r in table_ if r["path"] in keep])
            yield f"{split}, {kind}", judge(*parts, out / kind)


def chosen(args):
    """The options of infer.py that are not the detector's own."""
    given = {"--votes": args.votes, "--operating-point": args.operating_point}
    return [part for name, value in given.items() if value for part in (name, value)]


def judge(scores, labels, out, *more):
    """metrics.json of one scores file."""
    common.run("evaluate.py", "score", "--scores", scores, "--labels", labels, "--out", out, *more)
    return files.read_json(out / "metrics.json")


def table(split, metrics):
    """Rows of the results file."""
    n, ci = metrics["n"], metrics["ci"]

    whole = [common.shown(metrics[name], ci[name]) for name in ("balanced_accuracy", "auc")]
    yield [split, "all", n, *whole]
    for name, row in metrics["by"].get("generator", {}).items():
        recall = common.shown(row["accuracy"], row.get("ci", {}).get("accuracy"))
        yield [split, name, row["n"], recall, common.shown(row.get("auc"))]


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--labels", required=True, help="CSV with path, label, generator, split")
    parser.add_argument("--splits", nargs="+", default=["val", "test"])
    parser.add_argument("--unseen", nargs="+", default=[], help="generators and real sources that were not trained on")
    parser.add_argument("--name", required=True, help="results/NAME.csv")
    parser.add_argument("--votes", type=int, help="default: what the sidecar says")
    parser.add_argument("--operating-point", choices=ckpt.POINTS, help="default: the sidecar's")
    args = parser.parse_args(argv)
    facts = common.facts(" ".join(map(str, chosen(args))) or "defaults")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for split in args.splits:
            for name, metrics in measure(args, split, Path(folder)):
                rows = list(table(name, metrics))
                lines += [[*row, *facts] for row in (rows if name == split else rows[:1])]
    columns = [*COLUMNS, *common.FACTS]
    common.write(ROOT / "results" / f"{args.name}.csv", columns, [dict(zip(columns, line)) for line in lines])
    print(json.dumps([line[:5] for line in lines], indent=0))


if __name__ == "__main__":
    cli.main(main)
