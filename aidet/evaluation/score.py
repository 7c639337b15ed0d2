"""``evaluate.py score``: compare a scores file with labels and write metrics.json and report.html."""

import argparse
from pathlib import Path

from .. import files, images, report, runinfo
from ..cli import OK, PARTIAL
from ..datasets.sources import split_source
from ..errors import UserError
from . import included, sentences, vip, worst
from .comparisons import compared, deduplicated, from_validation
from .evaluation import columns_to_show, load, summary
from .score_page import pages, say


def main(options: argparse.Namespace) -> int:
    """Run ``evaluate.py score``.

    Parameters
    ----------
    options : argparse.Namespace
        ``scores, labels, out, by, where, bootstrap, seed, threshold, one_class, target_fpr, valid_scores,
        valid_labels, valid_where, against, leaks, explain, include, vip, thumbnails, max_pixels,
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
    if options.vip:
        return vip.main(options)
    if len(options.labels) > 1:
        raise UserError(f"--labels names {len(options.labels)} sources; only --vip takes two")
    if (options.valid_labels or options.valid_where) and not options.valid_scores:
        raise UserError("--valid-labels and --valid-where go with --valid-scores, which is missing")
    if options.valid_scores and not options.valid_labels:
        raise UserError("--valid-scores needs --valid-labels")
    labels, times, seed = options.labels[0], options.bootstrap, options.seed
    evaluation = load(options.scores, labels, options.where, options.threshold)
    columns = columns_to_show(evaluation.true, options.by)
    result = summary(evaluation, columns, times, seed, options.one_class)
    inputs = {"scores": options.scores, "labels": labels}
    if options.valid_scores:
        valid = load(options.valid_scores, options.valid_labels, options.valid_where)
        result["from_validation"] = from_validation(evaluation, valid, options.target_fpr, times, seed)
        inputs.update(valid_scores=options.valid_scores, valid_labels=options.valid_labels)
    if options.against:
        other = load(options.against, labels, options.where, options.threshold)
        result["paired"] = compared(evaluation, other, times, seed)
        inputs["against"] = options.against
    if options.leaks:
        result["deduplicated"] = deduplicated(evaluation, options.leaks, times, seed, options.one_class)
        inputs["leaks"] = split_source(options.leaks)[0]
    result["run"], doubt = runinfo.read(options.scores)
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
