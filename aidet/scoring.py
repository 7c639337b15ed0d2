"""``evaluate.py score``: a scores file against labels, to metrics.json and report.html."""

import os
from pathlib import Path

import numpy as np

from . import cifar100, files, metrics, plots, report, runinfo, truth, worst
from .cli import OK, PARTIAL, printable
from .datasets import sources
from .errors import UserError
from .labels import GENERATED, NAMES, REAL, logit, sigmoid
from .records import natural_key

HEADLINE = (
    ("balanced_accuracy", "balanced accuracy"), ("auc", "AUC"), ("macro_f1", "macro-F1"), ("accuracy", "accuracy"),
    ("ap", "average precision"), ("eer", "equal error rate"), ("ece", "ECE"), ("balanced_ece", "ECE, classes balanced"),
    ("nll", "negative log-likelihood"), ("tpr_at_fpr_0.01", "TPR at 1% FPR"), ("tpr_at_fpr_0.05", "TPR at 5% FPR"),
    ("tpr_at_fpr_0.1", "TPR at 10% FPR"), ("real_recall", "recall of real"),
    ("generated_recall", "recall of generated"),
)  # fmt: skip
DERIVED = ("size", "format")
SIZES = 20  # most values that a table by size names one by one
# What needs scores of both classes; None in a file of decisions and in a set of one class.
RANKED = ("auc", "ap", "eer", "ece", "balanced_ece", "nll", "brier")
EXACT = ("path", "bytes", "pixels")  # levels of `evaluate.py leaks` that are beyond doubt


class Evaluation:
    """Labels and scores that belong together, and the decisions taken from them.

    Parameters
    ----------
    true : Truth
    scores : Scores
        Joined, same order.
    threshold : float, optional
        On the probability; None keeps the decision that each row carries (0.5 where it carries none).

    Notes
    -----
    A row whose image could not be read has no score: it is absent from AUC, AP, EER, ECE, NLL and TPR at FPR. It
    counts in accuracy, recall, F1 and the confusion matrix where it carries a label (``infer.py --on-error real`` or
    ``generated``), because a contest counts it too; without a label it counts nowhere. All three are counted and shown.
    """

    def __init__(self, true, scores, threshold=None):
        self.true, self.scores, self._headers = true, scores, None
        self.y = true.labels
        self.scored = np.isfinite(scores.score)
        fixed = np.where(self.scored, scores.prob > (0.5 if threshold is None else threshold), -1).astype(int)
        own = scores.label
        self.label = fixed if threshold is not None else np.where(own >= 0, own, fixed)
        if threshold is not None:
            self.label = np.where(self.scored, self.label, own)
        self.threshold, self.threshold_source = self._threshold(threshold)

    def _threshold(self, given):
        if self.scores.decisions_only:
            if given is not None:
                raise UserError(f"{self.scores.source} holds decisions and no scores; leave --threshold out")
            return None, "the decisions of the file itself, which holds no scores"
        if given is not None:
            return float(given), "--threshold"
        if not ((self.scores.label >= 0) & self.scored).any():
            return 0.5, "default"
        prob, label = self.scores.prob[self.scored], self.label[self.scored]
        if ((prob > 0.5) == (label == 1)).all():
            return 0.5, "the labels of the scores file"
        low = prob[label == 0].max(initial=0.0)
        high = prob[label == 1].min(initial=1.0)
        if low < high:
            return float((low + high) / 2), f"the labels of the scores file (between {low:.6f} and {high:.6f})"
        return None, "the labels of the scores file, which follow no single threshold of prob"

    @property
    def errors(self):
        """What became of rows that could not be scored: counts and the first paths."""
        bad = np.flatnonzero(self.scores.errors)
        decided = bad[self.label[bad] >= 0]
        return {
            "n": int(len(bad)),
            "counted_by_their_label": int(len(decided)),
            "left_out": int(len(bad) - len(decided)),
            "first": [{"path": self.scores.paths[i], "status": self.scores.status[i]} for i in bad[:10]],
        }

    @property
    def ranked(self):
        """Whether there are scores of both classes, which AUC, AP, EER, ECE, NLL and TPR at FPR need."""
        return len(set(self.y[self.scored].tolist())) == 2

    @property
    def independent(self):
        """Source images of the class that has fewer of them: crops of one photograph are one."""
        groups = metrics.group_numbers(self.true.groups(), len(self.y))
        return min(len(set(groups[self.y == side].tolist())) for side in set(self.y.tolist()))

    def measure(self, times=0, seed=42, one_class=False):
        """The metrics of contract and report as one dict; ``times`` draws for intervals.

        What needs scores of both classes is None where there are none. A set of one class is refused unless
        ``one_class`` allows it; macro-F1 and the other class's recall are None then.
        """
        y, label, score, prob = self.y, self.label, self.scores.score, self.scores.prob
        decided = label >= 0
        if not decided.any() and not self.scored.any():
            raise UserError(f"{self.scores.source}: no row has a score")
        sides = set(y[decided].tolist())
        if not (one_class and len(sides) == 1):
            self._check_both(y[decided])
        out = metrics.decision_metrics(y[decided], label[decided])
        if self.ranked:
            out.update(metrics.ranking_metrics(y[self.scored], score[self.scored], prob[self.scored]))
        else:
            out.update(dict.fromkeys(RANKED), tpr_at_fpr={f"{f:g}": None for f in metrics.FPRS})
        out["threshold"], out["threshold_source"] = self.threshold, self.threshold_source
        out["ci"] = metrics.intervals(y, label, score, prob, self.true.groups(), times, seed=seed)
        if len(sides) == 1:
            absent = f"{NAMES[1 - sides.pop()]}_recall"
            out.update(dict.fromkeys(("macro_f1", absent)))
            out["ci"] = {k: v for k, v in out["ci"].items() if k not in ("macro_f1", absent)}
        return out

    def _check_both(self, y):
        what = f"{self.scores.source} with {self.true.source}"
        try:
            metrics.check(y, what=what)
        except UserError as error:
            hint = "; for a set of one class add --one-class" if len(set(y.tolist())) == 1 else ""
            raise UserError(f"{error}{hint}") from None

    def tables(self, columns, times, seed):
        """By-value tables (dict of dict) of the named columns."""
        return {
            c: metrics.by_value(self.y, self.label, self.scores.score, self.column(c), self.true.groups(), times, seed)
            for c in columns
        }

    def column(self, name):
        """A column of the labels; ``size`` and ``format`` read from the images; CIFAR-100's two levels of classes."""
        if name in DERIVED and name not in self.true.columns:
            if self._headers is None:
                self._headers = [_header(path) for path in self.true.files()]
            values = [one[name] for one in self._headers]
            return _coarse_sizes(values) if name == "size" and len(set(values)) > SIZES else values
        return label_column(self.true, name)


def label_column(true, name):
    """A column of the labels, or ``fine`` or ``superclass`` of CIFAR-100 derived from one."""
    if name in cifar100.COLUMNS and name not in true.columns:
        return cifar100.column(true.columns, name, true.source)
    return true.column(name)


def _header(path):
    """Size and format of an image file without decoding it; ``unreadable`` where that fails."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return {"size": f"{image.width}x{image.height}", "format": image.format}
    except Exception:  # noqa: BLE001 - Pillow raises nearly every type on damaged files
        return {"size": "unreadable", "format": "unreadable"}


def _coarse_sizes(values):
    """Sizes by their longer side, in steps of a factor of two: photographs come in hundreds of sizes."""

    def step(value):
        if "x" not in value:
            return value  # unreadable
        top = 1 << (max(map(int, value.split("x"))) - 1).bit_length()
        return f"longer side {top // 2 + 1} to {top}"

    return [step(value) for value in values]


def load(scores_path, labels_path, where=None, threshold=None):
    """Read and join; see :mod:`aidet.truth`.

    Returns
    -------
    Evaluation
    """
    return Evaluation(*truth.join(truth.read_labels(labels_path, where), truth.read_scores(scores_path)), threshold)


def columns_to_show(true, asked):
    """The columns of ``--by``, checked; without it ``generator`` and ``source`` where the labels have them."""
    if asked:
        for name in asked:
            if name not in DERIVED:
                label_column(true, name)
        return list(dict.fromkeys(asked))
    return [c for c in ("generator", "source") if len(set(true.columns.get(c, ()))) > 1]


def run(options):
    """Run ``evaluate.py score``.

    Parameters
    ----------
    options : argparse.Namespace
        ``scores, labels, out, by, where, bootstrap, seed, threshold, one_class, target_fpr, valid_scores,
        valid_labels, valid_where, against, leaks, explain, include, vip, thumbnails``.

    Returns
    -------
    int
        Exit code: 3 where some rows could not be scored.
    """
    if options.vip:
        return _run_vip(options)
    if len(options.labels) > 1:
        raise UserError(f"--labels names {len(options.labels)} sources; only --vip takes two")
    if (options.valid_labels or options.valid_where) and not options.valid_scores:
        raise UserError("--valid-labels and --valid-where go with --valid-scores, which is missing")
    evaluation = load(options.scores, options.labels[0], options.where, options.threshold)
    columns = columns_to_show(evaluation.true, options.by)
    result = {
        "command": "score",
        **evaluation.measure(options.bootstrap, options.seed, options.one_class),
        "n_groups": len(set(metrics.group_numbers(evaluation.true.groups(), len(evaluation.y)).tolist())),
        "errors": evaluation.errors,
        "by": evaluation.tables(columns, options.bootstrap, options.seed),
        "thresholds": [],
        "oracle": None,
        "models": {},
    }
    result["contest"] = {"pacc": result["accuracy"], "fake_or_real_macro_f1": result["macro_f1"]}
    if evaluation.ranked:
        kept = evaluation.scored
        result["thresholds"] = metrics.threshold_table(evaluation.y[kept], evaluation.scores.prob[kept])
        result["oracle"], result["models"] = _oracle(evaluation), _models(evaluation)
    inputs = {"scores": options.scores, "labels": options.labels[0], **_extras(options, evaluation, result)}
    result["run"], doubt = runinfo.read(options.scores)
    maps = worst.Maps(options.explain, result["run"])
    inputs.update({f"explained with {i + 1}": path for i, path in enumerate(maps.files)})
    from . import included  # which imports this module

    further, doubts, more = included.read(options.include, result["run"])
    inputs.update(more)
    facts, where_from = report.provenance(inputs)
    result.update(facts)
    out = Path(options.out)
    sections, cards, warnings = pages(evaluation, result, options, maps)
    page = out / "report.html"
    lead = f"{options.scores} against {options.labels[0]}: {_counts(evaluation)}"
    warnings += [*([doubt] if doubt else []), *doubts]
    report.write(page, "Detector evaluation", lead, [*sections, *further, where_from], cards, warnings)
    files.write_json(out / "metrics.json", result)
    _say(result, maps, page)
    return PARTIAL if evaluation.errors["n"] else OK


def _extras(options, evaluation, result):
    """What was asked for beyond the plain numbers, put into ``result``; gives the further input files."""
    inputs = {}
    if options.valid_scores:
        result["from_validation"] = _from_validation(options, evaluation)
        inputs.update(valid_scores=options.valid_scores, valid_labels=options.valid_labels)
    if options.against:
        result["paired"] = _against(options, evaluation)
        inputs["against"] = options.against
    if options.leaks:
        result["deduplicated"] = _deduplicated(options, evaluation)
        inputs["leaks"] = sources.split_source(options.leaks)[0]
    return inputs


def _deduplicated(options, evaluation):
    """The same numbers without the images that the leaks table says another split has, too."""
    levels = truth.read_leaks(options.leaks, evaluation.true)
    exact = np.array([level in EXACT for level in levels], bool)
    kept = np.flatnonzero(~exact)
    gone = set(evaluation.y.tolist()) - set(evaluation.y[kept].tolist())
    if gone:
        raise UserError(f"--leaks {options.leaks}: another split has every {NAMES[gone.pop()]} image; none is left")
    rest = Evaluation(evaluation.true.take(kept), evaluation.scores.take(kept), options.threshold)
    got = rest.measure(options.bootstrap, options.seed, options.one_class)
    names = [name for name, _ in HEADLINE if name in got]
    return {
        "n": int(len(kept)),
        "left_out": {level: int(sum(v == level for v in levels)) for level in EXACT},
        "kept_though_alike": int(sum(bool(v) for v in levels) - exact.sum()),
        **{name: got[name] for name in names},
        "ci": {name: v for name, v in got["ci"].items() if name in names},
    }


def _oracle(evaluation):
    threshold, balanced = metrics.oracle(evaluation.y[evaluation.scored], evaluation.scores.score[evaluation.scored])
    return {
        "threshold": float(sigmoid(threshold)),
        "balanced_accuracy": balanced,
        "note": "fitted on the very images it is judged on: an upper bound, not a result",
    }


def _models(evaluation):
    """AUC and balanced accuracy of each single model of an ensemble."""
    out = {}
    for name, score in evaluation.scores.models.items():
        own = np.isfinite(score) & evaluation.scored
        y = evaluation.y[own]
        if len(evaluation.scores.models) > 1 and len(set(y.tolist())) == 2:
            label = (score[own] > 0).astype(int)
            decided = metrics.decision_metrics(y, label)
            out[name] = {
                "auc": metrics.ranking_metrics(y, score[own])["auc"],
                "balanced_accuracy": decided["balanced_accuracy"],
                "macro_f1": decided["macro_f1"],
            }
    return out


def _from_validation(options, evaluation):
    """The threshold that holds the target FPR on the validation set's real images, applied to this set."""
    if not options.valid_labels:
        raise UserError("--valid-scores needs --valid-labels")
    if not evaluation.ranked:
        raise UserError(f"a threshold needs scores of both classes; {options.scores} has none")
    valid = load(options.valid_scores, options.valid_labels, options.valid_where)
    _refuse_shared(valid, evaluation, options)
    real = valid.scored & (valid.y == REAL)
    target = options.target_fpr
    threshold, reached = metrics.threshold_at_fpr(valid.scores.score[real], target)
    scored, y = evaluation.scored, evaluation.y
    label = (evaluation.scores.score[scored] > threshold).astype(int)
    decided = metrics.decision_metrics(y[scored], label)
    groups = evaluation.true.groups()
    ci = metrics.intervals(
        y[scored], label, evaluation.scores.score[scored], None,
        None if groups is None else np.array(groups, object)[scored], options.bootstrap, seed=options.seed,
    )  # fmt: skip
    return {
        "target_fpr": target,
        "threshold": float(sigmoid(threshold)),
        "score_threshold": threshold,
        "validation_reals": int(real.sum()),
        "validation_fpr": reached,
        "fpr": 1 - decided["real_recall"],
        "tpr": decided["generated_recall"],
        "balanced_accuracy": decided["balanced_accuracy"],
        "ci": {
            "fpr": [1 - v for v in reversed(ci["real_recall"])] if ci else [],
            "tpr": ci.get("generated_recall", []),
            "balanced_accuracy": ci.get("balanced_accuracy", []),
        },
    }


def _refuse_shared(valid, evaluation, options):
    """A threshold chosen on the images it is judged on is an oracle, whatever the two files are called."""
    here = {os.path.realpath(path) for path in evaluation.true.files()}
    shared = [str(path) for path in valid.true.files() if os.path.realpath(path) in here and path.is_file()]
    if os.path.realpath(options.valid_scores) == os.path.realpath(options.scores):
        shared = [str(options.valid_scores)]
    if shared:
        raise UserError(
            f"--valid-scores: the threshold would be chosen on images that it is judged on, first {shared[0]}; give "
            "the scores of other images"
        )


def _against(options, evaluation):
    """Paired comparison with a second scores file over the same labels."""
    other = load(options.against, options.labels[0], options.where, options.threshold)
    place = {p: i for i, p in enumerate(other.true.paths)}
    lone = [p for p in evaluation.true.paths if p not in place]
    if lone:
        raise UserError(f"{options.against} has no row for {', '.join(lone[:5])}; both must score the same images")
    order = [place[p] for p in evaluation.true.paths]
    other = Evaluation(other.true.take(order), other.scores.take(order), options.threshold)
    both = (evaluation.label >= 0) & (other.label >= 0)
    for one in (evaluation, other):
        both &= one.scored | one.scores.decisions_only
    if not both.any():
        raise UserError(f"{options.scores} and {options.against} have no image that both could score")
    groups = evaluation.true.groups()
    one, two = ((e.label[both], e.scores.score[both], e.scores.prob[both]) for e in (evaluation, other))
    rows = None if groups is None else np.array(groups, object)[both]
    found = metrics.paired(evaluation.y[both], one, two, rows, max(options.bootstrap, 100), options.seed)
    if len(set(evaluation.y[both].tolist())) == 1:
        del found["differences"]["macro_f1"]  # the F1 of a class without images is no number
    return {"n": int(both.sum()), "second": str(options.against), **found}


# --- the report ------------------------------------------------------------------------------------------------------
def _counts(evaluation):
    real, generated = (int((evaluation.y == side).sum()) for side in (REAL, GENERATED))
    return f"{real} real and {generated} generated images"


def pages(evaluation, result, options, maps):
    """Sections, headline cards and warnings of the report of one evaluation."""
    number, interval = report.number, report.interval
    flat = {**result, **{f"tpr_at_fpr_{k}": v for k, v in result["tpr_at_fpr"].items()}}
    cards = [
        (label, number(flat[key]), interval(result["ci"].get(key), 3))
        for key, label in HEADLINE[:4]
        if flat[key] is not None
    ]
    cards += _run_cards(result["run"])
    sections = [
        report.Section(
            "All numbers",
            texts=[_explain(evaluation, result, options)],
            tables=[
                report.Table(
                    "Metrics; in brackets the 95% bootstrap interval over source images",
                    ["metric", "value", "95% interval"],
                    [[label, number(flat[key]), interval(result["ci"].get(key))] for key, label in HEADLINE],
                ),
                report.Table(
                    f"Confusion at threshold {number(result['threshold'])}",
                    ["truth", "called real", "called generated"],
                    [[name, *row] for name, row in zip(NAMES, result["confusion"])],
                ),
                report.Table(
                    "Per class",
                    ["class", "images", "precision", "recall", "F1"],
                    [
                        [name, row["n"], *(number(row[k]) for k in ("precision", "recall", "f1"))]
                        for name, row in result["classes"].items()
                    ],
                ),
            ],
        ),
    ]
    if evaluation.ranked:
        sections.append(_curves(evaluation, result))
    if result.get("deduplicated"):
        sections.append(_deduplicated_section(result))
    sections += [by_section(column, table) for column, table in result["by"].items()]
    if evaluation.ranked:
        sections.append(_thresholds(result))
    if result.get("paired"):
        sections.append(_paired_section(result["paired"], options))
    if result["models"]:
        rows = [
            [name, *(number(row[k]) for k in ("auc", "balanced_accuracy", "macro_f1"))]
            for name, row in result["models"].items()
        ]
        sections.append(
            report.Section(
                "Single models",
                tables=[report.Table("At threshold 0.5", ["model", "AUC", "balanced accuracy", "macro-F1"], rows)],
            )
        )
    sections.append(worst.section(evaluation, options.thumbnails, maps, result["run"]))
    sections.append(_run_section(result["run"]))
    sections = [s for s in sections if s]
    return sections, cards, _warnings(evaluation, result)


def _explain(evaluation, result, options):
    groups = evaluation.true.groups()
    what = (
        f"{result['n_groups']} source images (column group)"
        if groups
        else "single images; the labels have no group column"
    )
    return (
        f"Score above 0 means generated. Decisions: threshold {report.number(result['threshold'])} from "
        f"{result['threshold_source']}. Intervals: {options.bootstrap} bootstrap draws of {what}."
    )


def _warnings(evaluation, result):
    out = []
    errors = result["errors"]
    if errors["n"]:
        out.append(
            f"{errors['n']} images could not be scored. {errors['counted_by_their_label']} of them carry a label "
            "and count in "
            f"accuracy, recall and F1; {errors['left_out']} count nowhere. No score, no place in AUC, AP, EER, ECE "
            "or NLL. First: " + "; ".join(f"{e['path']} ({e['status']})" for e in errors["first"][:3])
        )
    fewest = evaluation.independent
    if not evaluation.ranked:
        why = "decisions and no scores" if evaluation.scores.decisions_only else "images of one class only"
        out.append(f"The set holds {why}: there is no AUC, AP, EER, ECE, NLL or TPR at FPR.")
    if fewest < 100:
        few = " With fewer than ten, the intervals are too narrow as well." if fewest < 10 and result["ci"] else ""
        out.append(
            f"Only {fewest} independent source images of the rarer class: read the intervals, not the numbers.{few}"
        )
    flat = [name for name, (low, high) in result["ci"].items() if high == low]
    if flat:
        out.append(
            f"No spread in the draws of {', '.join(flat)}: an interval of width 0 says that these images show no "
            "error of that "
            f"kind, not that there is none. With {fewest} independent source images of the rarer class an error rate "
            f"below {min(1, 3 / fewest):.1%} can go unseen there (rule of three)."
        )
    if result["auc"] is not None and result["auc"] < 0.4:
        out.append(
            f"AUC {result['auc']:.3f} is below chance: the scores may be turned round (a score above 0 must mean "
            "generated), "
            "or the labels are."
        )
    return out


def _run_cards(run):
    """Speed as a headline, where infer.py left its run.json."""
    if not run or not run["images_per_second"]:
        return []
    rate = run["images_per_second"]
    load = max(p.get("load_seconds") or 0 for p in run["processes"])
    return [("images a second", f"{rate:.1f}", f"5,000 in an hour: {runinfo.hour(rate, load)}")]


def _run_section(run):
    """Weights, back end, options and speed of the run that made the scores; None without a run.json."""
    if not run:
        return None
    models = [[m["name"], m["sha256"], m["backend"]] for m in run["models"]]
    options = [[k, "–" if v is None else str(v)] for k, v in run["options"].items()]
    speed = [
        [p.get("device", "–"), p["rows"], p.get("scored", "–"), report.number(p.get("seconds"), 1),
         report.number(p["scored"] / p["seconds"] if p.get("scored") and p.get("seconds") else None, 1),
         report.number(p.get("load_seconds"), 1)]
        for p in run["processes"]
    ]  # fmt: skip
    header = ["device", "images", "scored by it", "seconds", "images a second", "seconds before the first"]
    rows = [[k, v] for k, v in run["versions"].items()]
    return report.Section(
        "How the scores were made",
        ["From run.json beside the scores. A resumed run has scored fewer images in its last process than it has."],
        tables=[
            report.Table("Weights", ["model", "sha256", "back end"], models),
            report.Table("Speed", header, speed),
            report.Table("Options", ["option", "value"], options),
            report.Table("Versions at that time", ["package", "version"], rows),
        ],
    )


def _deduplicated_section(result):
    found = result["deduplicated"]
    gone = ", ".join(f"{n} by {level}" for level, n in found["left_out"].items())
    rows = [
        [label, report.number(result[key]), report.interval(result["ci"].get(key)), report.number(found[key]),
         report.interval(found["ci"].get(key))]
        for key, label in HEADLINE if key in found
    ]  # fmt: skip
    header = ["metric", f"all {result['n']}", "95% interval", f"without leaks {found['n']}", "95% interval"]
    text = f"Left out, because another split has the same image: {gone}."
    if found["kept_though_alike"]:
        text += f" {found['kept_though_alike']} that are only alike (near-duplicates) were kept."
    return report.Section("Without leaked images", [text], tables=[report.Table("Raw and deduplicated", header, rows)])


def _curves(evaluation, result):
    y, score, prob = (v[evaluation.scored] for v in (evaluation.y, evaluation.scores.score, evaluation.scores.prob))
    models = {n: evaluation.scores.models[n][evaluation.scored] for n in list(result["models"])[:5]}
    lines = {
        "detector" if not models else "all together": score,
        **{n: s for n, s in models.items() if np.isfinite(s).all()},
    }
    threshold = None if result["threshold"] is None else float(logit(result["threshold"]))
    return report.Section(
        "Curves",
        charts=[
            report.Chart(
                plots.roc(y, lines),
                "ROC: what share of generated images is found at each share of falsely accused real ones.",
            ),
            report.Chart(plots.precision_recall(y, lines), "Precision and recall of the class generated."),
            report.Chart(
                plots.reliability(metrics.reliability(y, prob)),
                f"Reliability: on the diagonal, a stated 80% is right in 80% of cases. ECE {result['ece']:.3f}, "
                f"with both classes weighted equally {result['balanced_ece']:.3f}.",
            ),
            report.Chart(plots.histogram(y, score, threshold), "Distribution of the scores of both classes."),
        ],
    )


def by_section(column, table):
    """Chart and table of :func:`aidet.metrics.by_value`."""
    number, interval = report.number, report.interval
    rows = [
        [
            name,
            r["classes"],
            r["n"],
            number(r["accuracy"]),
            interval(r["ci"].get("accuracy"), 3),
            number(r["auc"]),
            interval(r["ci"].get("auc"), 3),
        ]
        for name, r in sorted(table.items(), key=lambda item: (item[1]["classes"], natural_key(item[0])))
    ]
    texts = [
        "A value with images of one class only is ranked against all images of the other class; its accuracy is "
        "that class's recall."
    ]
    for side in ("generated", "real"):
        for key in ("accuracy", "auc"):
            found = metrics.spread(table, side, key)
            if found and found["values"] > 1:
                texts.append(
                    f"{key.replace('auc', 'AUC')} over {found['values']} {side} values: average "
                    f"{found['average']:.4f}, "
                    f"minimum {found['minimum']:.4f} ({found['worst']})."
                )
    header = [column, "class", "images", "accuracy", "95% interval", "AUC", "95% interval"]
    bars = [
        (f"{name} ({r['n']})", r["accuracy"], *(r["ci"].get("accuracy") or (None, None)))
        for name, r in table.items()
        if r["accuracy"] is not None
    ]
    charts = [
        report.Chart(
            plots.bars(sorted(bars, key=lambda b: b[1])[:40], "accuracy"),
            f"Accuracy by {column}, with 95% intervals (the 40 lowest).",
            True,
        )
    ]
    return report.Section(
        f"By {column}", texts, charts if len(bars) > 1 else [], [report.Table(f"By {column}", header, rows)]
    )


def threshold_section(rows):
    """Table and plot of :func:`aidet.metrics.threshold_table`."""
    number = report.number
    names = ("threshold", *metrics.DECISIONS)
    lines = {n.replace("_", " "): [(r["threshold"], r[n], None, None) for r in rows] for n in names[2:]}
    chart = plots.curves(lines, "threshold of the probability", "value", (0, 1.02))
    header = ["threshold", "accuracy", "balanced accuracy", "macro-F1", "recall of real", "recall of generated"]
    cells = [[number(row[n], 1 if n == "threshold" else 4) for n in names] for row in rows]
    return report.Section(
        "Thresholds",
        charts=[report.Chart(chart, "How decisions change with the threshold.")],
        tables=[report.Table("Decisions at fixed thresholds of the probability", header, cells)],
    )


def _thresholds(result):
    section = threshold_section(result["thresholds"])
    chosen = result.get("from_validation")
    if chosen:
        section.texts.append(
            f"Chosen on validation: threshold {chosen['threshold']:.4f} gives {chosen['validation_fpr']:.2%} false "
            "positives on "
            f"{chosen['validation_reals']} real validation images (target {chosen['target_fpr']:.1%}). Here it "
            "gives FPR "
            f"{chosen['fpr']:.4f} {report.interval(chosen['ci']['fpr'], 3)}, TPR {chosen['tpr']:.4f} "
            f"{report.interval(chosen['ci']['tpr'], 3)}, balanced accuracy {chosen['balanced_accuracy']:.4f} "
            f"{report.interval(chosen['ci']['balanced_accuracy'], 3)}."
        )
    best = result["oracle"]
    section.texts.append(
        f"Oracle, not a result: fitted on these very images, threshold {best['threshold']:.4f} would reach balanced "
        "accuracy "
        f"{best['balanced_accuracy']:.4f}. TPR at a given FPR is read off this set's own ROC curve in the same way."
    )
    return section


def _paired_section(found, options):
    number = report.number
    rows = [
        [
            name.replace("_", " "),
            number(r["first"]),
            number(r["second"]),
            f"{r['difference']:+.4f}",
            report.interval(r.get("ci")),
            number(r.get("p")),
        ]
        for name, r in found["differences"].items()
    ]
    test = found["mcnemar"]
    return report.Section(
        "Paired comparison",
        [
            f"First: {options.scores}; second: {options.against}; {found['n']} images. Only the first is right on "
            f"{test['only_first']}, "
            f"only the second on {test['only_second']}; McNemar's exact p = {test['p']:.4g} (takes images as "
            "independent). The intervals "
            "and p values below resample source images."
        ],
        tables=[
            report.Table("First minus second", ["metric", "first", "second", "difference", "95% interval", "p"], rows)
        ],
    )


def _say(result, maps, page):
    """The lines a user sees in the terminal."""
    for key, label in HEADLINE[:3] if result["macro_f1"] is not None else HEADLINE[3:4]:
        if result[key] is None:
            continue
        print(f"{label:<18} {result[key]:.4f} {report.interval(result['ci'].get(key))}".rstrip())
    if result.get("from_validation"):
        chosen = result["from_validation"]
        print(
            f"threshold {chosen['threshold']:.4f} from validation reals: FPR {chosen['fpr']:.4f}, TPR "
            f"{chosen['tpr']:.4f}"
        )
    if result.get("deduplicated"):
        row = result["deduplicated"]
        print(
            f"without leaks      {row['n']} images: accuracy {row['accuracy']:.4f} "
            f"{report.interval(row['ci'].get('accuracy'))}, all {result['n']}: {result['accuracy']:.4f}"
        )
    if result.get("paired"):
        name = "auc" if "auc" in result["paired"]["differences"] else "accuracy"
        row, label = result["paired"]["differences"][name], {"auc": "AUC"}.get(name, name) + " difference"
        print(f"{label:<18} {row['difference']:+.4f} {report.interval(row.get('ci'))} p={row['p']:.4g}")
    if result["errors"]["n"]:
        errors = result["errors"]
        print(
            f"not scored         {errors['n']} images, {errors['counted_by_their_label']} counted by their label, "
            f"{errors['left_out']} left out"
        )
        for row in errors["first"]:
            print(printable(f"  {row['path']}: {row['status']}"))
    if maps.shown and not maps.asked:
        names = ", ".join(Path(path).name for path in maps.files)
        print(f"maps               of {maps.shown} shown errors, by {names} (run.json); --explain none leaves them out")
    print(f"report             {page}")


# --- VIP Cup ---------------------------------------------------------------------------------------------------------
def _run_vip(options):
    """0.7 * balanced accuracy of the first file + 0.3 * of the second (IEEE VIP Cup 2022)."""
    if options.scores:
        raise UserError("--vip takes its two score files itself; leave --scores out")
    beside = [
        n for n in ("by", "valid_scores", "against", "leaks", "explain", "include", "one_class") if getattr(options, n)
    ]
    if beside:
        raise UserError(f"--vip is measured by itself; leave --{beside[0].replace('_', '-')} out")
    if len(options.labels) > 2:
        raise UserError(f"--vip takes one or two sources of --labels, not {len(options.labels)}")
    labels_of = options.labels if len(options.labels) == 2 else options.labels * 2
    parts = [_vip_part(scores, path, options) for scores, path in zip(options.vip, labels_of)]
    evaluations, results = zip(*parts)
    score = metrics.vip(*(r["balanced_accuracy"] for r in results))
    both = _together(evaluations)
    result = {
        "command": "score",
        **both.measure(options.bootstrap, options.seed),
        "errors": both.errors,
        "by": {"vip_file": {f"P{i + 1}": r for i, r in enumerate(results)}},
        "contest": {"vip": score, "vip_balanced_accuracy": [r["balanced_accuracy"] for r in results]},
    }
    inputs = {
        "P1": options.vip[0],
        "P2": options.vip[1],
        **{f"labels {i + 1}": p for i, p in enumerate(options.labels)},
    }
    facts, where_from = report.provenance(inputs)
    result.update(facts)
    rows = [
        [
            f"P{i + 1}",
            r["n"],
            report.number(r["balanced_accuracy"]),
            report.interval(r["ci"].get("balanced_accuracy"), 3),
            report.number(r["auc"]),
        ]
        for i, r in enumerate(results)
    ]
    table = report.Table("Both files", ["file", "images", "balanced accuracy", "95% interval", "AUC"], rows)
    charts = [
        report.Chart(plots.roc(e.y[e.scored], {f"P{i + 1}": e.scores.score[e.scored]}), f"ROC of P{i + 1}")
        for i, e in enumerate(evaluations)
    ]
    page = Path(options.out) / "report.html"
    report.write(
        page, "VIP Cup score", f"{options.vip[0]} and {options.vip[1]}",
        [report.Section("Score", ["0.7 x balanced accuracy of P1 + 0.3 x that of P2."], charts, [table]), where_from],
        [("VIP Cup score", report.number(score), "of 1")],
    )  # fmt: skip
    files.write_json(Path(options.out) / "metrics.json", result)
    print(
        f"VIP Cup score      {score:.4f} = 0.7 * {results[0]['balanced_accuracy']:.4f} + 0.3 * "
        f"{results[1]['balanced_accuracy']:.4f}"
    )
    print(f"report             {page}")
    return PARTIAL if both.errors["n"] else OK


def _vip_part(scores, path, options):
    """One of the two files. With one labels file for both, its rows are those that the scores name."""
    true, given = truth.read_labels(path, options.where), truth.read_scores(scores)
    if given.decisions_only:
        raise UserError(f"--vip {scores}: decisions alone; the VIP Cup's form is filename,logit")
    if len(options.labels) == 1 and true.paths is not None:
        known = set(given.paths)
        true = true.take([i for i, p in enumerate(true.paths) if p in known])
    evaluation = Evaluation(*truth.join(true, given), options.threshold)
    result = evaluation.measure(options.bootstrap, options.seed)
    return evaluation, result


def _together(evaluations):
    """Two evaluations as one, for the numbers over all images."""
    first, second = evaluations
    true = truth.Truth(
        [*(f"P1/{p}" for p in first.true.paths), *(f"P2/{p}" for p in second.true.paths)],
        {}, first.true.root, first.true.source, np.concatenate([first.y, second.y]),
    )  # fmt: skip
    parts = {
        name: np.concatenate([getattr(first.scores, name), getattr(second.scores, name)])
        for name in ("score", "prob", "label")
    }
    scores = truth.Scores(
        true.paths, **parts, status=[*first.scores.status, *second.scores.status], models={}, source=first.scores.source
    )
    out = Evaluation(true, scores)
    out.label = np.concatenate([first.label, second.label])
    return out
