"""``evaluate.py sweep``: how a detector holds up under degradations, votes and thresholds.

Each image is decoded once; all its degraded versions, and the views that vote, are made from those pixels. Scores go to
``sweep.jsonl`` as they come, so that a killed run goes on where it stopped, and a later run with more points computes
those only.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import degrade, engine, files, images, metrics, plots, report, runinfo, scoring, truth
from .cli import OK, PARTIAL, to_stderr
from .errors import UserError
from .labels import sigmoid

MOST_VOTES = 15
TOGETHER = 16  # decoded images in memory where two detectors take turns
VOTES = "votes"


class Log:
    """Scores by (path, point) in a file of one JSON object a line, the first of which says what was measured.

    Parameters
    ----------
    path : str or Path
    header : dict
        Checkpoints, labels, seed ...; a file with another header is refused.
    """

    def __init__(self, path, header):
        self.path, self.scores = Path(path), {}
        if self.path.exists():
            self._read(header)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        self.file = open(self.path, "a", encoding="utf-8", newline="\n")
        if new:
            self.file.write(json.dumps(header) + "\n")

    def _read(self, header):
        lines = self.path.read_bytes().split(b"\n")
        whole = b"\n".join(lines[:-1]) + b"\n" if len(lines) > 1 else b""
        try:
            found = json.loads(lines[0])
        except ValueError:
            found = None
        if not whole or found != header:
            raise UserError(f"{self.path} holds a sweep of other checkpoints, labels or options; name a new --out")
        if whole != b"\n".join(lines):
            _cut(self.path, len(whole))  # a line that was being written when the run was killed
        for number, line in enumerate(lines[1:-1], 2):
            try:
                path, point, value = json.loads(line)
            except (ValueError, TypeError):
                raise UserError(
                    f"{self.path} line {number} is damaged; remove that line, or name a new --out"
                ) from None
            self.scores[path, point] = value

    def add(self, path, point, value):
        """Keep a score, a list of scores, or a text that says why there is none."""
        self.scores[path, point] = value
        self.file.write(json.dumps([path, point, value]) + "\n")

    def close(self):
        """Write what is left to disk."""
        self.file.close()


def _cut(path, length):
    """Cut a file to ``length`` bytes."""
    with open(path, "r+b") as file:
        file.truncate(length)


def measure(jobs, true, log, seed, label):
    """Score every image at every point that the log does not hold yet; each image is decoded once for all jobs.

    Parameters
    ----------
    jobs : list of (Detector, list of points)
        See :func:`aidet.degrade.points`.
    true : Truth
    log : Log
    seed : int
    label : str
        For the progress bar.

    Returns
    -------
    list of (int, float)
        For each job the versions scored, and its seconds.
    """
    todo = [[(p, [w for w in wanted if (p, w[0]) not in log.scores]) for p in true.paths] for _, wanted in jobs]
    total = sum(len(points) for work in todo for _, points in work)
    done, seconds = [0] * len(jobs), [0.0] * len(jobs)
    # One job streams; several take turns, and the images they share wait for them.
    step = max(1, len(true.paths)) if len(jobs) == 1 else TOGETHER
    with tqdm(total=total, desc=label, unit="image", file=sys.stderr, disable=total < 100) as bar:
        for start in range(0, len(true.paths), step):
            kept = {}
            for k, (detector, _) in enumerate(jobs):
                begin = time.perf_counter()
                part = todo[k][start : start + step]
                for _ in _scored(detector, part, true.root, log, seed, kept, k + 1 < len(jobs)):
                    done[k] += 1
                    bar.update()
                seconds[k] += time.perf_counter() - begin
    return list(zip(done, seconds))


def _scored(detector, work, root, log, seed, kept, keep):
    """Score the points of some images into the log; yields once a version. ``kept`` holds decoded images by path."""
    waiting = []

    def items():
        for path, points in work:
            if not points:
                continue
            try:
                image = kept[path] if path in kept else images.decode(root / path)
            except images.ImageError as error:
                for point in points:
                    log.add(path, point[0], f"error: {error}")
                continue
            if keep:
                kept[path] = image
            for point in points:
                waiting.append((path, point[0]))
                yield path, degrade.apply(point, image, seed, path)

    for verdict in detector.stream(items()):
        path, name = waiting.pop(0)
        log.add(path, name, _value(detector, verdict, name))
        yield


def _value(detector, verdict, name):
    if not verdict.ok:
        return verdict.status
    if name == VOTES:
        return [detector.score_of_first(verdict, k) for k in range(1, MOST_VOTES + 1)]
    return verdict.score


def evaluate(true, values, threshold, times, seed):
    """Metrics of one point: the contract's keys over the images that have a score."""
    score = np.array([v if isinstance(v, float) else np.nan for v in values])
    label = np.where(np.isfinite(score), sigmoid(score) > threshold, -1).astype(int)
    scored = np.isfinite(score)
    y = true.labels
    if not scored.any():
        raise UserError(f"{true.source}: no image could be scored, first {true.paths[0]}: {values[0]}")
    metrics.check(y[scored], what=f"{true.source}, images that could be scored")
    return {
        **metrics.decision_metrics(y[scored], label[scored]),
        **metrics.ranking_metrics(y[scored], score[scored]),
        "threshold": threshold,
        "by": {},
        "ci": metrics.intervals(y, label, score, None, true.groups(), times, seed=seed),
        "errors": int((~scored).sum()),
    }


def run(options):
    """Run ``evaluate.py sweep``.

    Parameters
    ----------
    options : argparse.Namespace
        ``ckpt, labels, where, out, points, votes, limit, backend, workers, bootstrap, seed``.

    Returns
    -------
    int
        Exit code: 3 where some images could not be scored.
    """
    wanted = degrade.points(options.points)
    true = truth.read_labels(options.labels, options.where)
    if true.paths is None:
        raise UserError(f"sweep needs the image files; {options.labels} is a bare column of labels")
    true = true.take(degrade.even_sample(true.labels, options.limit, options.seed))
    metrics.check(true.labels, what=str(options.labels))
    settings = {"backend": options.backend, "workers": options.workers, "seed": options.seed, "say": to_stderr}
    detector = engine.Detector(*options.ckpt, votes=options.votes, **settings)
    header = {
        "sweep": 1, "checkpoints": [files.sha256(c) for c in options.ckpt], "votes": detector.votes,
        "seed": options.seed, "labels": str(options.labels), "threshold": detector.threshold,
    }  # fmt: skip
    log = Log(Path(options.out) / "sweep.jsonl", header)
    try:
        jobs = [(detector, wanted)]
        if not options.points or VOTES in options.points:
            # The first k of random views are those of k votes; a grid of k is another grid.
            voter = engine.Detector(*options.ckpt, votes=MOST_VOTES, views="random", **settings)
            jobs.append((voter, [(VOTES, VOTES, 0.0, wanted[0][3])]))
        done, seconds = measure(jobs, true, log, options.seed, "sweep")[0]
    finally:
        log.close()
    result = _result(true, wanted, log, detector, options)
    result["speed"] = {"images": done, "seconds": round(seconds, 2), "per_second": done / seconds if done else None}
    facts, where_from = report.provenance(
        {"labels": options.labels, **{f"checkpoint {i + 1}": c for i, c in enumerate(options.ckpt)}}
    )
    result.update(facts)
    page = _page(result, options, where_from)
    files.write_json(Path(options.out) / "metrics.json", result)
    _say(result, page)
    return PARTIAL if result["errors"] else OK


def _result(true, wanted, log, detector, options):
    rows, clean = [], None
    for name, family, x, _ in wanted:
        values = [log.scores[p, name] for p in true.paths]
        got = evaluate(true, values, detector.threshold, options.bootstrap, options.seed)
        rows.append({"point": name, "family": family, "x": x, **got})
        if name == "clean":
            clean = values
    if (true.paths[0], VOTES) in log.scores:
        for k in range(1, MOST_VOTES + 1):
            values = [log.scores[p, VOTES] for p in true.paths]
            values = [v[k - 1] if isinstance(v, list) else v for v in values]
            got = evaluate(true, values, detector.threshold, options.bootstrap, options.seed)
            rows.append({"point": f"votes {k}", "family": VOTES, "x": float(k), **got})
    scored = np.array([isinstance(v, float) for v in clean])
    score = np.array([v for v in clean if isinstance(v, float)])
    return {
        "command": "sweep",
        "votes": detector.votes,
        **{k: v for k, v in rows[0].items() if k not in ("point", "family", "x")},
        "thresholds": metrics.threshold_table(true.labels[scored], sigmoid(score)),
        "points": rows,
    }


def sections(result):
    """A section with chart and table for each family of points of a result, as it stands in ``metrics.json``."""
    number, interval = report.number, report.interval
    out = []
    families = list(dict.fromkeys(r["family"] for r in result["points"] if r["family"] != "clean"))
    for family in families:
        rows = [r for r in result["points"] if r["family"] == family]
        place = degrade.clean_x(family)
        drawn = ([{**result["points"][0], "x": place}] if place is not None else []) + rows
        if not isinstance(drawn[0]["x"], str):
            drawn = sorted(drawn, key=lambda r: r["x"])
        lines = {
            label: [(r["x"], r[key], *(r["ci"].get(key) or (None, None))) for r in drawn]
            for key, label in (("auc", "AUC"), ("balanced_accuracy", "balanced accuracy"))
        }
        low = min(0.4, min(p[1] for points in lines.values() for p in points) - 0.05)
        chart = report.Chart(
            plots.curves(lines, degrade.axis(family), "value", (low, 1.02), 0.5),
            f"{family}: 95% intervals, dotted: chance.",
        )
        table = [
            [r["point"], *sum(([number(r[k]), interval(r["ci"].get(k), 3)] for k in ("balanced_accuracy", "auc")), []),
             number(r["real_recall"]), number(r["generated_recall"]), number(r["ece"])]
            for r in [result["points"][0], *rows]
        ]  # fmt: skip
        header = [
            "point",
            "balanced accuracy",
            "95% interval",
            "AUC",
            "95% interval",
            "recall of real",
            "recall of generated",
            "ECE",
        ]
        out.append(report.Section(family, charts=[chart], tables=[report.Table(family, header, table)]))
    return out


def _page(result, options, where_from):
    number, interval = report.number, report.interval
    parts = [*sections(result), scoring.threshold_section(result["thresholds"]), where_from]
    cards = [(label, number(result[key]), interval(result["ci"].get(key), 3)) for key, label in scoring.HEADLINE[:3]]
    worst = min(result["points"], key=lambda r: r["auc"])
    cards.append(("lowest AUC", number(worst["auc"]), f"at {worst['point']}"))
    if result["speed"]["per_second"]:
        rate = result["speed"]["per_second"]
        cards.append(("images a second", f"{rate:.1f}", f"with degrading; 5,000 in an hour: {runinfo.hour(rate)}"))
    lead = f"{', '.join(map(str, options.ckpt))} on {options.labels}: {result['n']} images, {result['votes']} votes"
    warnings = [f"{result['errors']} images could not be scored and are left out."] if result["errors"] else []
    page = Path(options.out) / "report.html"
    return report.write(page, "Robustness sweep", lead, parts, cards, warnings)


def _say(result, page):
    for row in result["points"]:
        cells = [f"{row[k]:.4f} {report.interval(row['ci'].get(k), 3)}" for k in ("balanced_accuracy", "auc")]
        print(f"{row['point']:<12} balanced accuracy {cells[0]}  AUC {cells[1]}")
    if result["speed"]["per_second"]:
        print(f"{result['speed']['per_second']:.1f} images a second, degrading included")
    if result["errors"]:
        print(f"{result['errors']} images could not be scored and are left out")
    print(f"report: {page}")
