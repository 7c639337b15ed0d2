"""``evaluate.py score``: compare a scores file with labels and write metrics.json and report.html."""

import argparse
from pathlib import Path
from typing import Union

from .. import files, images, report, runinfo
from ..cli import OK, PARTIAL
from ..datasets.sources import read_columns, split_source
from ..errors import UserError
from . import included, sentences, vip, worst
from .comparisons import compared, deduplicated, from_validation
from .evaluation import columns_to_show, load, summary
from .score_page import pages, say

TARGET_FPR = 0.05  # of the threshold from validation images, unless --target-fpr says another


def main(options: argparse.Namespace) -> int:
    """Run ``evaluate.py score``.

    Parameters
    ----------
    options : argparse.Namespace
        ``scores, labels, out, by, where, bootstrap, seed, threshold, operating_point, one_class, target_fpr,
        valid_scores, valid_labels, valid_where, against, leaks, explain, include, vip, thumbnails, max_pixels,
        truncated``.

    Returns
    -------
    int
        Exit code: 3 if some rows could not be scored.

    Raises
    ------
    UserError
        Arguments that cannot be combined, or files that do not match.
    """
    named = getattr(options, "operating_point", None)
    if named is not None and (options.vip or options.threshold is not None):
        excluded = "--vip" if options.vip else "--threshold"
        raise UserError(f"--operating-point {named!r} and {excluded} exclude each other; give one of them")
    if options.target_fpr is not None and not options.valid_scores:
        raise UserError(f"--target-fpr {options.target_fpr} chooses a threshold on --valid-scores, which is missing")
    if options.vip:
        return vip.main(options)
    if len(options.labels) > 1:
        raise UserError(f"--labels names {len(options.labels)} sources; only --vip takes two")
    if (options.valid_labels or options.valid_where) and not options.valid_scores:
        raise UserError("--valid-labels and --valid-where go with --valid-scores, which is missing")
    if options.valid_scores and not options.valid_labels:
        raise UserError("--valid-scores needs --valid-labels")
    labels, times, seed = options.labels[0], options.bootstrap, options.seed
    threshold = options.threshold if named is None else threshold_at(named, options.scores)
    evaluation = load(options.scores, labels, options.where, threshold)
    if named is not None:
        evaluation.threshold_source = f"operating point {named}"
    run, doubt = runinfo.read(options.scores)
    if threshold is None:
        evaluation.believe(run)
    columns = columns_to_show(evaluation.true, options.by)
    result = summary(evaluation, columns, times, seed, options.one_class)
    inputs = {"scores": options.scores, "labels": labels}
    if options.valid_scores:
        valid = load(options.valid_scores, options.valid_labels, options.valid_where)
        rate = TARGET_FPR if options.target_fpr is None else options.target_fpr
        result["from_validation"] = from_validation(evaluation, valid, rate, times, seed)
        inputs.update(valid_scores=options.valid_scores, valid_labels=options.valid_labels)
    if options.against:
        line = options.threshold if named is None else threshold_at(named, options.against)
        other = load(options.against, labels, options.where, line)
        result["paired"] = compared(evaluation, other, times, seed)
        inputs["against"] = options.against
    if options.leaks:
        result["deduplicated"] = deduplicated(evaluation, options.leaks, times, seed, options.one_class)
        inputs["leaks"] = split_source(options.leaks)[0]
    result["run"] = run
    maps = worst.Maps(options.explain, result["run"], images.Reading.of(options))
    inputs.update({f"explained with {i + 1}": path for i, path in enumerate(maps.files)})
    further, doubts, included_files = included.read(options.include, result["run"])
    facts, where_from = report.provenance({**inputs, **included_files})
    result.update(facts)
    sections, cards, warnings = pages(evaluation, result, maps, times, options.thumbnails)
    warnings += [*([doubt] if doubt else []), *doubts]
    out = Path(options.out)
    page = out / "report.html"
    lead = f"{options.scores} against {labels}"
    told = sentences.summary(evaluation, result)
    report.write(page, "Detector evaluation", lead, [*sections, *further, where_from], cards, warnings, told)
    files.write_json(out / "metrics.json", result)
    say(result, maps, page)
    return PARTIAL if evaluation.errors["n"] else OK


def threshold_at(point: str, scores: Union[str, Path]) -> float:
    """The threshold at a named operating point of the detector that made the scores.

    Parameters
    ----------
    point : str
        For example ``balanced``.
    scores : str or Path
        Beside it lies the ``run.json`` of ``infer.py``, which states the thresholds.

    Raises
    ------
    UserError
        There is no such file, the detector has no such point, or the scores are logits of a contest.
    """
    run, doubt = runinfo.read(scores)
    if run is None:
        why = doubt or f"there is no {runinfo.NAME} of infer.py beside {scores}, which states the thresholds"
        raise UserError(f"--operating-point {point!r}: {why.rstrip('.')}; give --threshold instead")
    header = read_columns(scores, "scores")[0] or []
    if "prob" not in header and {"score", "logit"} & set(header):
        raise UserError(
            f"--operating-point {point!r}: the logits of {scores} are counted from the threshold of their run; "
            "name the scores.csv beside it"
        )
    known = run.get("options", {}).get("thresholds") or {}
    if point not in known:
        has = f"it has {', '.join(known)}" if known else "it has none; give --threshold"
        raise UserError(f"--operating-point {point!r}: the detector of {scores} has no such point; {has}")
    return float(known[point])
