"""``submission.csv``: a contest's sample filled in, with labels, probabilities or scores as the sample wants them.

Contests that rank by log loss or AUC want a probability in the column that others call ``label``. The names of the
sample's columns and its placeholders say which.
"""

import os
import re
import unicodedata
from pathlib import Path
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

from .. import dialect, files, labels, records
from ..datasets.archived import as_folders
from ..datasets.sources import LABEL_COLUMNS, PATH_COLUMNS, column_of, examples, normal_path
from ..datasets.table import has_extension
from ..errors import UserError, nearest
from ..labels import GENERATED, REAL
from ..records import Record, number

NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE]-?[0-9]+)?")
ANSWERS = ("auto", "label", "probability", "score")
Rows = Callable[[], Iterable[Record]]
# Words in a column's name that say what it holds; "score" alone is a probability if the placeholders are in 0..1.
PROBABILITY = frozenset("prob probability probabilities probs proba likelihood confidence conf percentage".split())
SCORE = frozenset("logit logits score scores".split())
ANSWER = frozenset("pred prediction predictions predicted prob_label output result".split())
# Words that contests use for the two labels.
WORDS = (
    ("real", "fake"), ("real", "generated"), ("human", "ai"), ("nature", "ai"), ("hum", "ai"),
    ("authentic", "synthetic"), ("real", "synthetic"), ("real", "ai"), ("real", "deepfake"),
)  # fmt: skip


class Answer(NamedTuple):
    """One answer column of a sample.

    Attributes
    ----------
    place : int
        Number of the column.
    name : str
    kind : str
        ``label``, ``probability`` or ``score``.
    side : int
        The side that a high value means: 1 generated, 0 real.
    words : (str, str) or None
        What is written for a label that is not / is of ``side``; None: ``0`` and ``1``.
    """

    place: int
    name: str
    kind: str
    side: int = GENERATED
    words: Optional[Tuple[str, str]] = None

    def value(self, record: Record, threshold: float = 0.5) -> str:
        """The cell of a record; an unusable image is real or, where numbers are wanted, undecided.

        A score is counted from the ``threshold`` of the probability, see :func:`aidet.labels.above`.
        """
        if self.kind == "label":
            label = REAL if record.label is None else record.label
            return (self.words or ("0", "1"))[int(label == self.side)]
        score = record.score
        if score is None:
            score = {None: 0.0, REAL: -1.0, GENERATED: 1.0}[record.label]
        prob = float(labels.sigmoid(score)) if record.prob is None else record.prob
        if self.kind == "score":
            score = score if record.score is None else labels.above(score, threshold)
            return number(score if self.side == GENERATED else -score)
        return number(prob if self.side == GENERATED else 1 - prob)


class Sample(NamedTuple):
    """A sample submission: its rows, the columns of the identifiers and of the answers, and its separator."""

    path: str
    header: List[str]
    rows: List[List[str]]
    identifier: int
    answers: List[Answer]
    separator: str

    @property
    def names(self) -> List[str]:
        """The identifiers."""
        return [row[self.identifier].strip() for row in self.rows]

    def says(self) -> str:
        """One line: what is written into each answer column."""
        text = []
        for answer in self.answers:
            side = labels.NAMES[answer.side]
            if answer.kind == "label":
                words = answer.words or ("0", "1")
                text.append(f"{answer.name!r} holds labels ({words[1]} is {side}, {words[0]} is not)")
            elif answer.kind == "probability":
                text.append(f"{answer.name!r} holds the probability of {side}")
            else:
                text.append(f"{answer.name!r} holds the score (above 0 is {side})")
        kinds = {answer.kind for answer in self.answers}
        others = "|".join(kind for kind in ANSWERS[1:] if kind not in kinds)
        return f"submission: {' and '.join(text)}; --answer {others} writes something else"


def read_sample(path: Union[None, str, Path], answer: str = "auto") -> Sample:
    """Read a contest's sample submission and decide what its answer columns hold.

    Parameters
    ----------
    path : str or Path
        A table in any dialect that :mod:`aidet.dialect` knows.
    answer : {"auto", "label", "probability", "score"}
        ``auto``: a column whose name says probability, two columns that name both sides, and placeholders with a
        decimal point (0.5, 0.0) want probabilities; a column called logit wants scores; otherwise labels.

    Returns
    -------
    Sample

    Raises
    ------
    UserError
        No path, a file that cannot be read, no rows, or no way to tell the identifier and the answer.
    """
    if path is None:
        raise UserError("format 'submission' needs --sample-submission S.csv")
    if answer not in ANSWERS:
        raise UserError(nearest(answer, ANSWERS, "answer"))
    stream = records.stream_table(path, "sample submission")
    header = next(stream)
    rows = [[cell.strip() for cell in row] for row in stream]
    if not rows:
        raise UserError(f"sample submission {str(path)!r} has no rows")
    named = column_of(header, PATH_COLUMNS)
    identifier = header.index(named) if named is not None and len(header) > 1 else 0
    others = [i for i in range(len(header)) if i != identifier]
    places = others if len(others) == 1 else [i for i in others if _is_answer(header[i])]
    sides = [_side_of(header[i]) for i in places]
    if not places or (len(places) > 1 and set(sides) != {REAL, GENERATED}) or len(places) > 2:
        raise UserError(
            f"sample submission {str(path)!r} has {len(header)} columns ({', '.join(header)}); expected an identifier "
            "and one answer, or two that name both sides, such as prob_real and prob_fake"
        )
    answers = [_answer(i, header[i], [row[i] for row in rows], answer, len(places)) for i in places]
    with dialect.opened(path, "sample submission") as file:
        separator = dialect.separator_of(file.read(dialect.SAMPLE))
    return Sample(str(path), header, rows, identifier, answers, separator)


def _words(name: str) -> List[str]:
    text = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    return [word for word in re.split(r"[^a-z0-9]+", text) if word]


def _side_of(name: str) -> Optional[int]:
    return labels.side(name, numbers=False)


def _is_answer(name: str) -> bool:
    return (
        column_of([name], LABEL_COLUMNS) is not None
        or _side_of(name) is not None
        or bool((PROBABILITY | SCORE | ANSWER) & set(_words(name)))
    )


def _answer(place: int, name: str, cells: List[str], wanted: str, columns: int) -> Answer:
    said = _side_of(name)
    side = GENERATED if said is None else said
    words, numbers = set(_words(name)), [float(c) for c in cells if NUMBER.fullmatch(c)]
    unit = all(0 <= value <= 1 for value in numbers)
    kind = wanted
    if wanted == "auto":
        if words & PROBABILITY or columns > 1:
            kind = "probability"
        elif words & SCORE:
            kind = "probability" if unit and "logit" not in words and "logits" not in words else "score"
        else:
            kind = "probability" if numbers and unit and any("." in cell for cell in cells) else "label"
    return Answer(place, name, kind, side, _label_words(cells, side) if kind == "label" else None)


def _label_words(cells: Sequence[str], side: int) -> Optional[Tuple[str, str]]:
    """The words of the sample for (another side, ``side``); None if it has numbers, or words that say neither."""
    seen: Dict[int, str] = {}
    for cell in cells:
        meant = labels.side(cell, numbers=False)
        if meant is not None:
            seen.setdefault(meant, cell)
    if {c.lower() for c in cells} <= {"true", "false"} and cells:
        small = cells[0].islower()
        return ("false", "true") if small else ("False", "True")
    if not seen:
        return None
    if len(seen) == 1:
        (meant, word), *_ = seen.items()
        partner = next((pair[1 - meant] for pair in WORDS if pair[meant] == word.lower()), ("real", "fake")[1 - meant])
        seen[1 - meant] = partner.upper() if word.isupper() else partner.title() if word.istitle() else partner
    return seen[1 - side], seen[side]


# --- identifiers --------------------------------------------------------------------------------------------------
def match_sample(sample: Sequence[str], rows: Iterable[str], where: str) -> Dict[str, str]:
    """Find the image of every row of a sample submission.

    An identifier may be a path or its end, with or without the extension, with another extension if only one image has
    that name, and below one folder that all identifiers share and the images lack.

    Parameters
    ----------
    sample : sequence of str
        Identifiers.
    rows : iterable of str
        Paths of the images.
    where : str
        Name of the sample, for the message.

    Returns
    -------
    dict of str to str
        Path by identifier.

    Raises
    ------
    UserError
        An identifier matches no image or several, or appears twice; or the sample does not name an image.
    """
    known: Dict[str, List[str]] = {}
    total = 0
    for path in rows:
        total += 1
        plain = _plain(path)
        # A member of an archive has a name, a row of Parquet only a number.
        inside = as_folders(plain) if has_extension(plain) else plain
        ends = [plain, *(inside[i + 1 :] for i, c in enumerate(inside) if c == "/")]
        for name in {form for end in ends for form in (end, os.path.splitext(end)[0])}:
            known.setdefault(name, []).append(path)
    plain_names = {name: _plain(name) for name in sample}
    fronts = _fronts(list(plain_names.values()))
    off = next((f for f in fronts if all(_matches(n[len(f) :], known) for n in plain_names.values())), "")
    found: Dict[str, str] = {}
    for name in sample:
        matches = _matches(plain_names[name][len(off) :], known)
        if len(matches) != 1:
            many = f"{len(matches)} images ({', '.join(matches[:3])})" if matches else "no image"
            advice = "give as --images the folder that its identifiers are relative to"
            raise UserError(f"sample submission {where!r}: {name!r} fits {many}; {advice}")
        if name in found:
            raise UserError(f"sample submission {where!r}: {name!r} appears twice")
        found[name] = matches[0]
    named = set(found.values())
    if len(named) < len(found):
        first: Dict[str, str] = {}
        doubles = [f"{first[path]} and {name}" for name, path in found.items() if first.setdefault(path, name) != name]
        raise UserError(f"sample submission {where!r}: two identifiers fit one image: {examples(doubles)}")
    left = total - len(named)
    if left:
        raise UserError(f"sample submission {where!r} has {len(found)} rows; {left} of {total} images are not in it")
    return found


def _matches(name: str, known: Dict[str, List[str]]) -> List[str]:
    """The images that a name fits: exactly, else by its end, else by its stem if it has an image's extension."""
    matches = known.get(name, [])
    exact = [path for path in matches if _plain(path) == name]
    if matches:
        return exact[:1] or matches
    return known.get(_without_extension(name), []) if has_extension(name) else []


def _plain(path: str) -> str:
    return unicodedata.normalize("NFC", normal_path(path))


def _without_extension(path: str) -> str:
    return path.rpartition(".")[0] if has_extension(path) else path


def _fronts(names: Sequence[str]) -> List[str]:
    """The leading folders that all names share, from none to all."""
    shared = min(names)
    last = max(names)
    size = next((i for i, (a, b) in enumerate(zip(shared, last)) if a != b), min(len(shared), len(last)))
    return ["", *(shared[: i + 1] for i in range(size) if shared[i] == "/")]


# --- writing ------------------------------------------------------------------------------------------------------
def write_submission(
    path: Union[str, Path],
    rows: Rows,
    sample: Union[None, str, Path],
    answer: str = "auto",
    threshold: float = 0.5,
) -> Path:
    """``submission.csv``: the sample's rows and columns in its order and with its separator, with our answers."""
    form = read_sample(sample, answer)
    answers: Dict[str, List[str]] = {r.path: [c.value(r, threshold) for c in form.answers] for r in rows()}
    found = match_sample(form.names, answers, form.path)
    # On Linux a file name need not be valid Unicode; other bytes are written as \\udcXX.
    with files.atomic(path, errors="backslashreplace") as file:
        writer = records.csv_writer(file, form.separator)
        writer.writerow(form.header)
        for name, row in zip(form.names, form.rows):
            filled = list(row)
            for column, value in zip(form.answers, answers[found[name]]):
                filled[column.place] = value
            writer.writerow(filled)
    return Path(path)
