"""Scores files, and how their rows are matched with labels."""

import os
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from .. import labels, records
from ..cli import to_stderr
from ..datasets import sources
from ..datasets.table import has_extension
from ..datasets.truth import Truth
from ..errors import UserError, nearest

# Columns of submissions, besides prob.
PROBABILITIES = ("probability", "prob_fake", "prob_generated", "prob_ai", "prob_real")

EXACT = ("path", "bytes", "pixels")  # levels of `evaluate.py leaks` at which an image is certainly a duplicate


@dataclass
class Scores:
    """Scores as written by ``infer.py``.

    Attributes
    ----------
    paths : list of str or None
        None for a bare column of decisions.
    score, prob : ndarray of float, shape (n,)
        NaN if the row is an error, and in a file of decisions.
    label : ndarray of int, shape (n,)
        The row's own decision, -1 if it has none.
    status : list of str
        ``ok`` or ``error: reason``.
    models : dict of str to ndarray
        Score of each single model.
    source : str
    unsure : ndarray of bool, shape (n,), optional
        The rows whose own decision is *unsure*; their label is that of their side of the threshold.
    """

    paths: Optional[List[str]]
    score: np.ndarray
    prob: np.ndarray
    label: np.ndarray
    status: List[str]
    models: Dict[str, np.ndarray]
    source: str
    unsure: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: Union[Sequence[int], np.ndarray]) -> "Scores":
        """The rows of ``index`` (integers), in that order."""
        rows = np.asarray(index, np.intp)
        return Scores(
            None if self.paths is None else [self.paths[i] for i in rows],
            self.score[rows],
            self.prob[rows],
            self.label[rows],
            [self.status[i] for i in rows],
            {name: values[rows] for name, values in self.models.items()},
            self.source,
            None if self.unsure is None else self.unsure[rows],
        )

    @property
    def errors(self) -> np.ndarray:
        """Mask of the rows whose image could not be scored."""
        return np.array([s != "ok" for s in self.status], bool)

    @property
    def decisions_only(self) -> bool:
        """Whether the file contains decisions and no scores, as a contest submission does."""
        return bool(not np.isfinite(self.score).any() and (self.label >= 0).all())


def read_scores(path: Union[str, Path]) -> Scores:
    """Read scores (``path,score,prob,label,decision,status,score:<model>`` or ``filename,logit``) or decisions.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Scores

    Raises
    ------
    UserError
        Missing columns, non-finite scores in rows that are ``ok``, or duplicate paths.
    """
    header, columns = sources.read_columns(path, "scores")
    if header is None:
        return _decisions(None, columns["label"], path)
    name = sources.require_column(header, sources.PATH_COLUMNS, "path", path)
    keys = [sources.normal_path(p) for p in columns[name]]
    sources.refuse_doubles(keys, f"scores {str(path)!r}")
    value = {h: _floats(columns[h]) for h in ("score", "logit", "prob") if h in columns}
    answer = sources.column_of(header, (*PROBABILITIES, *sources.LABEL_COLUMNS))
    if not value and answer is not None and _is_probability(answer, columns[answer]):
        prob = _floats(columns.pop(answer))
        value = {"prob": 1 - prob if labels.side(answer, numbers=False) == labels.REAL else prob}
    if not value:
        if answer is None:
            raise UserError(f"scores {str(path)!r} has neither score, logit nor prob; it has {', '.join(header)}")
        return _decisions(keys, columns[answer], path, answer)
    status = columns.get("status") or ["ok"] * len(keys)
    status = [s or "ok" for s in status]
    score = value.get("score", value.get("logit"))
    if score is None:
        outside = [f"{k} ({p:g})" for k, p in zip(keys, value["prob"]) if not 0 <= p <= 1 and p == p]
        if outside:
            raise UserError(f"scores {str(path)!r}: prob outside 0..1: {sources.examples(outside)}")
        score = np.where(np.isnan(value["prob"]), np.nan, labels.logit(value["prob"]))
    prob = value["prob"] if "prob" in value else labels.sigmoid(score)
    apart = np.abs(labels.sigmoid(score) - prob) > 1e-3
    if apart.any():
        wrong = [f"{keys[i]} (score {score[i]:g}, prob {prob[i]:g})" for i in np.flatnonzero(apart)]
        raise UserError(
            f"scores {str(path)!r}: prob is not sigmoid(score), though score must be logit(generated) - logit(real); "
            f"remove one of the two columns: {sources.examples(wrong)}"
        )
    bad = [k for k, s, a, b in zip(keys, status, score, prob) if s == "ok" and not (np.isfinite(a) and np.isfinite(b))]
    if bad:
        raise UserError(
            f"scores {str(path)!r}: {len(bad)} rows are ok but have no finite score: {sources.examples(bad)}"
        )
    usable = np.array([s == "ok" for s in status], bool)  # another tool may leave a number in a row that failed
    score = np.where(np.isfinite(score) & np.isfinite(prob) & usable, score, np.nan)
    if "score" in value or "logit" in value:
        prob = labels.sigmoid(score)  # a file rounds prob: 1.000 of a real image would count as certainty in the NLL
    own = [-1 if v == "" else labels.of_cell(v) for v in columns.get("label", [""] * len(keys))]
    wrong = [f"{k} ({v!r})" for k, v, side in zip(keys, columns.get("label", ()), own) if side is None]
    if wrong:
        raise UserError(f"scores {str(path)!r}: label must be the decision (0, 1 or empty): {sources.examples(wrong)}")
    label = np.array(own)
    models = {h[6:]: _floats(columns[h]) for h in header if h.startswith("score:")}
    unsure = np.array([v == "unsure" for v in columns["decision"]], bool) if "decision" in columns else None
    return Scores(keys, score, np.where(np.isnan(score), np.nan, prob), label, status, models, str(path), unsure)


def _is_probability(column, cells):
    """Whether the answers of a submission are probabilities."""
    return column in PROBABILITIES or any("." in cell and cell not in ("0.0", "1.0") for cell in cells)


def _decisions(keys, cells, path, column="label"):
    """Labels without scores: a result.txt (``keys`` None) or a submission."""
    # A result.txt is checked as the contest's server would; the words of a submission are those of its sample.
    sides = [labels.of_cell(cell, column) if keys or cell in ("0", "1") else None for cell in cells]
    wrong = [f"{keys[i] if keys else f'line {i + 1}'} ({c!r})" for i, c in enumerate(cells) if sides[i] is None]
    if wrong:
        raise UserError(f"scores {str(path)!r}: decisions must be 0 or 1: {sources.examples(wrong)}")
    none = np.full(len(cells), np.nan)
    return Scores(keys, none, none, np.array(sides), ["ok"] * len(cells), {}, str(path))


def _floats(cells):
    def one(cell):
        try:
            return float(cell)
        except ValueError:
            return np.nan

    return np.array([one(c) for c in cells], np.float64)


def join(truth: Truth, scores: Scores) -> Tuple[Truth, Scores]:
    """Match scores to labels by path, strictly: every row of one has exactly one counterpart in the other.

    Paths are compared as written; if that fails, as files on disk, then without regard to the form of Unicode, and
    to the extension where the labels have none; and if ``infer.py`` was run on a subfolder of the labels (or on a
    folder above them), after removing one common leading folder that makes the two sets equal. The identifiers of a
    submission may also be file names or stems. A file without paths is matched by its rows: labels follow the rows of
    the scores; a ``result.txt`` follows the images by the number in their stems, or, without numbers, in natural order
    (:func:`aidet.records.stem_order`).

    Parameters
    ----------
    truth : Truth
    scores : Scores

    Returns
    -------
    (Truth, Scores)
        Both in the order of the scores, same length.

    Raises
    ------
    UserError
        Rows without a counterpart; the message lists the first of each file.
    """
    if truth.paths is None or scores.paths is None:
        return _join_by_row(truth, scores)
    found = [order for order in (_match(left, right) for left, right in _plain(truth, scores)) if order is not None][:1]
    if not found:
        found = _below_a_folder(truth.paths, scores.paths) or _below_a_folder(truth.located() or [], scores.paths)
    if len(found) > 1:
        raise UserError(
            f"{scores.source} matches {len(found)} folders of {truth.source} equally well, for example "
            f"{truth.paths[found[0][0]]} and {truth.paths[found[1][0]]}; choose one with --where COLUMN=VALUE"
        )
    if found:
        return truth.take(found[0]), scores
    known, given = set(truth.paths), set(scores.paths)
    lone = [k for k in scores.paths if k not in known]
    unscored = [k for k in truth.paths if k not in given]
    text = []
    if lone:
        text.append(f"{len(lone)} scored paths have no label: {sources.examples(lone)}")
    if unscored:
        text.append(f"{len(unscored)} labels have no score: {sources.examples(unscored)}")
    hint = "; choose a part of the labels with --where COLUMN=VALUE" if unscored and not lone else ""
    raise UserError(f"{scores.source} and {truth.source} do not match: " + "; ".join(text) + hint)


def _join_by_row(truth, scores):
    """Join a file without image names by row."""
    if len(truth) != len(scores):
        raise UserError(f"{truth.source} has {len(truth)} labels, {scores.source} has {len(scores)} rows")
    if truth.paths is not None:
        truth = truth.take(records.stem_order(truth.paths))
    paths = truth.paths or scores.paths or [f"line {i + 1}" for i in range(len(truth))]
    truth = replace(truth, paths=list(paths))
    return truth, scores if scores.paths else replace(scores, paths=list(paths))


def read_leaks(text: Union[str, Path], truth: Truth) -> List[str]:
    """Read the table of ``evaluate.py leaks`` for the rows of the labels.

    Parameters
    ----------
    text : str
        ``leaks.csv``, or ``leaks.csv@split=test`` if it covers several splits.
    truth : Truth

    Returns
    -------
    list of str
        For every row of ``truth``, the level at which the image occurs in another split; ``""`` if it does not.

    Raises
    ------
    UserError
        Several splits to choose from, or paths that are not in the labels.
    """
    path, conditions = sources.split_source(text)
    rows, header = records.read_table(path, "leaks")
    if truth.paths is None or {"level", "split", "path"} - set(header):
        raise UserError(f"leaks {str(path)!r}: give the leaks.csv of evaluate.py leaks, and labels with paths")
    for name, _, value in (c.partition("=") for c in conditions):
        if name not in header:
            raise UserError(f"leaks {str(path)!r}: {nearest(name, header, 'column')}")
        kept = [r for r in rows if r[name] == value]
        if rows and not kept:  # a split without leaks, or a name that is none
            there = ", ".join(sorted({r[name] for r in rows}))
            to_stderr(f"note: {path} has no row of {name} {value!r}, so nothing is left out; it has {there}")
        rows = kept
    splits = sorted({r["split"] for r in rows})
    if len(splits) > 1:
        raise UserError(f"leaks {str(path)!r} covers {', '.join(splits)}; choose one split: {path}@split={splits[0]}")
    found: Dict[str, str] = {}
    # An image may be there several times, once for each other split; the surest level counts.
    for row in sorted(rows, key=lambda r: EXACT.index(r["level"]) if r["level"] in EXACT else len(EXACT)):
        found.setdefault(sources.normal_path(row["path"].strip()), row["level"])
    known = set(truth.paths)
    first = next(iter(found), "")
    moves = {("", 0), *((p, 0) for p in _prefixes(truth.paths, first))}
    moves |= {("", len(first) - len(t)) for t in known if first.endswith("/" + t)}
    fits = [m for m in sorted(moves) if all(m[0] + key[m[1] :] in known for key in found)]
    if len(fits) > 1 and ("", 0) not in fits:
        raise UserError(
            f"leaks {str(path)!r} fits {len(fits)} folders of {truth.source} equally well, for example "
            f"{fits[0][0]}{first} and {fits[1][0]}{first}; run leaks on the same folder as the labels"
        )
    if fits:
        before, cut = ("", 0) if ("", 0) in fits else fits[0]
        moved = {before + key[cut:]: level for key, level in found.items()}
        return [moved.get(p, "") for p in truth.paths]
    lone = [key for key in found if key not in known]
    raise UserError(f"leaks {str(path)!r}: {len(lone)} images are not in {truth.source}: {sources.examples(lone)}")


def _match(left, right):
    """For each key of ``right``, its row in ``left``; None if the sets differ (None in ``left`` is ignored)."""
    place = {key: i for i, key in enumerate(left) if key is not None}
    if len(place) != len(right) or not all(key in place for key in right):
        return None
    return [place[key] for key in right]


def _plain(truth, scores):
    """Pairs of key lists: as written, then as files on disk."""
    # On Linux a file name need not be valid Unicode; infer.py writes invalid bytes as \udcXX.
    shown = [p.encode("utf-8", "backslashreplace").decode("utf-8") for p in truth.paths]
    yield [sources.normal_path(p.strip()) for p in shown], scores.paths
    here = Path(scores.source).parent
    yield [os.path.realpath(f) for f in truth.files()], [os.path.realpath(here / p) for p in scores.paths]
    # The labels may spell an accented letter otherwise than the disk, or leave out the extension.
    plain = [unicodedata.normalize("NFC", p) for p in scores.paths]
    yield [unicodedata.normalize("NFC", p) for p in truth.paths], plain
    yield [unicodedata.normalize("NFC", p) for p in truth.located()], plain
    if not any(map(has_extension, truth.paths)):
        yield truth.paths, [os.path.splitext(p)[0] for p in plain]
        yield truth.paths, [os.path.splitext(p.rsplit("/", 1)[-1])[0] for p in plain]
    if scores.decisions_only or not any(map(has_extension, scores.paths)):
        names = [p.rsplit("/", 1)[-1] for p in truth.paths]
        yield names, scores.paths
        yield [os.path.splitext(n)[0] for n in names], scores.paths


def _below_a_folder(labelled, scored):
    """Every row order found by removing one common leading folder from either side so that the sets become equal."""
    found = []
    for prefix in _prefixes(labelled, scored[0]):
        order = _match([k[len(prefix) :] if k.startswith(prefix) else None for k in labelled], scored)
        if order is not None:
            found.append(order)
    for prefix in _prefixes(scored, labelled[0]):
        if all(k.startswith(prefix) for k in scored):
            order = _match(labelled, [k[len(prefix) :] for k in scored])
            if order is not None:
                found.append(order)
    return found


def _prefixes(keys, one):
    return sorted({key[: -len(one)] for key in keys if key.endswith("/" + one)})
