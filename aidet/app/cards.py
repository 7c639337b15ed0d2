"""Results as HTML. Everything that a user or a file supplies is escaped."""

import base64
import csv
import html
import io
import re
from typing import Any, Iterable, List, Mapping, Optional, Sequence, Tuple

from .. import records
from ..detector import Verdict
from ..detector.localization import share
from ..detector.wording import percent, percent_beside, setting
from ..labels import decide
from .metadata import Finding
from .words import say

Row = Sequence[str]  # time or "", file, decision, probability, status


def _left(p):
    return f"left:{100 * min(max(p, 0), 1):.2f}%"


def reason(language: str, record: Verdict, threshold: float, unsure: Tuple[float, float]) -> str:
    """The sentence that derives the decision; HTML.

    From the probability, the threshold and the unsure zone; of a detector that states its prior, as
    :attr:`aidet.detector.Verdict.statement`; of an image with too little evidence, the reason.
    """
    if record.reason:
        return html.escape(lacking(language, record.reason))
    assert record.prob is not None  # as in every row that is ok
    low, high = unsure
    if record.prior is not None:
        p = html.escape(percent_beside(record.prob, (threshold,)))
        return say(language, "likely", p=p, odds=_odds(language, record.prior), threshold=setting(threshold))
    p = percent_beside(record.prob, (low, high) if record.decision == "unsure" else (threshold,))
    if record.decision == "unsure":
        return say(language, "within", p=html.escape(p), low=setting(low), high=setting(high))
    side = "above" if record.prob > threshold else "below" if record.prob < threshold else "level"
    return say(language, side, p=html.escape(p), **({} if side == "level" else {"threshold": setting(threshold)}))


def lacking(language: str, reason: str) -> str:
    """Why an image holds too little evidence (``Verdict.reason``), as a sentence."""
    least = re.search(r"under (\d+) pixels", reason)
    return say(language, "lacking_small", least=least.group(1)) if least else say(language, "lacking_plain")


def _odds(language, prior):
    return say(language, "odds_equal") if prior == 0.5 else say(language, "odds_other", share=setting(prior))


def verdict(
    language: str,
    record: Verdict,
    threshold: float,
    unsure: Tuple[float, float],
    findings: Iterable[Finding] = (),
    part: str = "",
    checking: bool = False,
) -> str:
    """The card with the decision, the sentence that derives it, and a warning.

    Parameters
    ----------
    language : {"en", "zh"}
    record : Verdict
    threshold : float
    unsure : (float, float)
    findings : iterable of Finding
        Of the file's metadata.
    part : str
        The part of the image whose re-saved versions were scored, if not the whole image; see :func:`stability`.
    checking : bool
        The re-saved versions are still being scored.
    """
    name = html.escape(record.path)
    if not record.ok:
        why = html.escape(record.status[len("error: ") :])
        return (
            f'<div class="aidet-card aidet-error"><h2>{say(language, "error")}</h2><p>{why}</p>'
            f'<p class="aidet-file">{name}</p></div>'
        )
    assert record.prob is not None  # as in every row that is ok
    low, high = unsure
    scale = say(language, "scale", threshold=setting(threshold), low=setting(low), high=setting(high))
    resaved = _stable(language, record, threshold, unsure, part)
    if checking and not record.reason:
        resaved = f'<p class="aidet-wait">{say(language, "checking")}</p>'
    return (
        f'<div class="aidet-card aidet-{record.decision}" data-decision="{record.decision}">'
        f"<h2>{say(language, record.decision)}</h2>"
        f"<p>{say(language, 'say_' + record.decision)}</p><p>{reason(language, record, threshold, unsure)}</p>"
        f'<div class="aidet-bar" role="img" aria-label="{percent(record.prob)}; {scale}">'
        f'<span class="aidet-zone" style="{_left(low)};width:{100 * (high - low):.2f}%"></span>'
        f'<span class="aidet-tick" style="{_left(threshold)}"></span>'
        f'<span class="aidet-mark" style="{_left(record.prob)}"></span></div>'
        f'<div class="aidet-ends"><span>{say(language, "real")} 0%</span>'
        f"<span>{say(language, 'generated')} 100%</span></div>"
        f'<p class="aidet-file">{scale[0].upper()}{scale[1:]}.</p>'
        f"{resaved}{_said_by_the_file(language, findings)}{_noted(record)}"
        f'<p class="aidet-file">{name}</p><p class="aidet-note">{say(language, "not")}</p></div>'
    )


def _noted(record):
    return f'<p class="aidet-warn">{html.escape(record.note)}</p>' if record.note else ""


def row(record: Verdict) -> List[str]:
    """File, decision, probability and status of a record.

    With the status the note on how its file was read, and the reason of too little evidence.
    """
    said = [record.status, record.note, (record.statement or "") if record.reason else ""]
    status = ": ".join(filter(None, said))
    return [record.path, record.decision, "" if record.prob is None else percent(record.prob), status]


def _stable(language, record, threshold, unsure, part):
    """Whether the re-saved versions get the decision that stands above; empty if that is not by the probability."""
    values = [p for name, p in record.stability.items() if name != "original"]
    if not values or record.reason:
        return ""
    others = sum(decide(p, threshold, unsure)[1] != record.decision for p in values)
    bounds = (threshold, *unsure)
    facts = {k: html.escape(percent_beside(p, bounds)) for k, p in (("low", min(values)), ("high", max(values)))}
    text = (
        say(language, "unstable", count=others, of=len(values), **facts) if others else say(language, "stable", **facts)
    )
    more = f" {say(language, 'middle', size=part)}" if part else ""
    return f"<p{' class=aidet-warn' if others else ''}>{text}{more}</p>"


def _said_by_the_file(language, findings):
    """A line for a file whose metadata names its generator; the verdict itself depends only on the pixels."""
    named = any(f.kind == "generator" for f in findings)
    return f'<p class="aidet-warn">{say(language, "file_says")}</p>' if named else ""


def _side(p, threshold):
    return "aidet-generated" if p > threshold else "aidet-real"


def _line(p, threshold, dots=()):
    marks = "".join(f'<span class="aidet-dot {_side(d, threshold)}" style="{_left(d)}"></span>' for d in dots)
    bar = "" if dots else f'<i class="{_side(p, threshold)}" style="width:{100 * p:.2f}%"></i>'
    return f'<div class="aidet-line">{bar}<span class="aidet-tick" style="{_left(threshold)}"></span>{marks}</div>'


def votes(language: str, record: Verdict, lines: Mapping[str, float]) -> str:
    """The probability given by each model, and a dot for each of its views; ``lines``: threshold of each model."""
    from ..labels import sigmoid

    if not record.ok:
        return ""
    rows = []
    for name, score in record.scores.items():
        p, views, threshold = float(sigmoid(score)), record.views.get(name, []), lines[name]
        said = say(language, "views", generated=sum(v > threshold for v in views), count=len(views))
        rows.append(f"<b>{html.escape(name)}</b>{_line(p, threshold)}<span>{percent(p)}</span>")
        rows.append(f'<span class="aidet-file">{said}</span>{_line(p, threshold, views)}<span></span>')
    return f'<p>{say(language, "votes_help")}</p><div class="aidet-rows">{"".join(rows)}</div>'


def change_name(language: str, line: str) -> str:
    """``jpeg(quality=(90, 90))`` -> ``JPEG quality 90``."""
    if line == "original":
        return say(language, "original")
    match = re.match(r"(\w+)\(\w+=\(([\d.]+)", line)
    assert match is not None, line  # one of STABILITY
    kind, value = match.groups()
    return say(language, kind, value=value if kind != "rescale" else f"{100 * float(value):.0f}%")


def stability(language: str, record: Verdict, threshold: float, part: str = "") -> str:
    """One bar for the image and each changed version; ``part`` is the size of the part that was changed, or empty."""
    rows = "".join(
        f"<span>{change_name(language, name)}</span>{_line(p, threshold)}<span>{percent(p)}</span>"
        for name, p in record.stability.items()
    )
    more = f" {say(language, 'middle', size=part)}" if part else ""
    return f'<p>{say(language, "stability_help")}{more}</p><div class="aidet-rows">{rows}</div>' if rows else ""


def heat_map(language: str, picture: str, without: float, prob: float) -> str:
    """The image with its heat map and a legend.

    Parameters
    ----------
    language : {"en", "zh"}
    picture : str
        Data URI.
    without : float
        The probability if the strongest part is covered.
    prob : float
        The probability of the whole image.
    """
    if without == prob:
        said, side = say(language, "heat_none"), "–"
    else:
        was, p = (html.escape(percent_beside(*pair)) for pair in ((prob, (without,)), (without, (prob,))))
        said = say(language, "heat_help", was=was, p=p)
        side = say(language, "heat_mostly_generated" if without < prob else "heat_mostly_real")
    ends = "".join(f"<span>{say(language, key)}</span>" for key in ("heat_real", "heat_generated"))
    return (
        f'<figure class="aidet-map"><img src="{picture}" alt="{say(language, "heat_alt", side=side)}">'
        f'<figcaption><div class="aidet-scale"></div><div class="aidet-ends">{ends}</div>'
        f"<p>{said}</p></figcaption></figure>"
    )


def where(language: str, image: str, layer: str, found: str, area: float, reason: str = "") -> str:
    """The image with a localizer's map over it, a legend, and a slider for the strength of the map's colour.

    Parameters
    ----------
    language : {"en", "zh"}
    image, layer : str
        Data URIs of two pictures of the same size.
    found, area, reason :
        Of :class:`aidet.detector.Localization`.
    """
    said = lacking(language, reason) if reason else say(language, f"where_{found}", area=share(area))
    move = "this.closest('figure').querySelector('.aidet-layer').style.opacity = this.value / 100"
    ends = "".join(f"<span>{say(language, key)}</span>" for key in ("where_low", "where_high"))
    return (
        f'<figure class="aidet-map" data-found="{found}"><div class="aidet-stack">'
        f'<img src="{image}" alt="{html.escape(say(language, "where_alt", said=said.rstrip(".。")))}">'
        f'<img class="aidet-layer" src="{layer}" alt="" style="opacity: 0.7"></div>'
        f'<figcaption><b>{html.escape(said)}</b><div class="aidet-likely"></div><div class="aidet-ends">{ends}</div>'
        f'<label>{say(language, "where_opacity")} <input type="range" min="0" max="100" value="70" oninput="{move}">'
        f"</label><p>{say(language, 'where_help')}</p></figcaption></figure>"
    )


def traces(language: str, spectrum: str, residual: str) -> str:
    """Spectrum and noise side by side; both are data URIs."""
    shown = "".join(
        f'<figure class="aidet-map"><img src="{uri}" alt=""><figcaption>{say(language, key)}</figcaption></figure>'
        for key, uri in (("spectrum", spectrum), ("residual", residual))
    )
    return f'<p>{say(language, "traces_help")}</p><div class="aidet-pair">{shown}</div>'


def blank(language: str, key: str) -> str:
    """The place of the heat map while there is none; ``key`` is the text that stands there."""
    return f'<div class="aidet-map aidet-blank"><p>{say(language, key)}</p></div>'


def metadata(language: str, findings: Sequence[Finding]) -> str:
    """A table of the file's metadata."""
    head = f"<p>{say(language, 'metadata_help')}</p>"
    if not findings:
        return f"{head}<p><b>{say(language, 'metadata_none')}</b></p>"
    shade = {"generator": "aidet-generated", "credentials": "aidet-real"}
    rows = "".join(
        f'<tr><td class="aidet-once"><span class="aidet-badge {shade.get(f.kind, "")}">'
        f"{say(language, 'kind_' + f.kind)}</span></td>"
        f'<td class="aidet-once">{html.escape(f.name)}</td><td class="aidet-name">{html.escape(f.text)}</td></tr>'
        for f in findings
    )
    return f'{head}<table class="aidet-table aidet-facts">{rows}</table>'


def table(language: str, rows: Sequence[Row], pictures: Optional[Sequence[str]] = None, label: str = "tab_many") -> str:
    """Results as a table that scrolls by itself; empty without rows.

    Parameters
    ----------
    language : {"en", "zh"}
    rows : sequence of (time or "", file, decision, probability, status)
    pictures : sequence of str, optional
        Data URI of each row's thumbnail, or "".
    label : str
        Key of the table's name in :mod:`aidet.app.words`.
    """
    if not rows:
        return ""
    timed = any(r[0] for r in rows)
    names = [*["picture"] * (pictures is not None), *["time"] * timed, "file", "verdict", "probability", "status"]
    head = "".join(f'<th scope="col">{say(language, "column_" + n)}</th>' for n in names)
    body = []
    for i, (when, name, decision, probability, status) in enumerate(rows):
        word = say(language, decision) if decision else ""
        badge = f'<span class="aidet-badge aidet-{decision}">{word}</span>' if decision else ""
        image = f'<img src="{pictures[i]}" alt="">' if pictures is not None and pictures[i] else ""
        body.append(
            "<tr>"
            + f"<td>{image}</td>" * (pictures is not None)
            + f'<td class="aidet-once">{html.escape(when)}</td>' * timed
            + f'<td class="aidet-name">{html.escape(name)}</td><td class="aidet-once">{badge}</td>'
            f'<td class="aidet-number">{html.escape(probability)}</td>'
            f'<td class="aidet-name">{html.escape(status)}</td></tr>'
        )
    return (
        f'<div class="aidet-scroll" role="region" tabindex="0" aria-label="{say(language, label)}">'
        f'<table class="aidet-table"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def plain(text: str) -> str:
    """A text that a user or a file supplies as Markdown: neither HTML nor markup."""
    return re.sub(r"([\\`*_\[\]#~|])", r"\\\1", html.escape(text, quote=False))


def left_out(language: str, left: Sequence[Tuple[str, str]], most: int = 5) -> str:
    """One sentence that counts and names what archives contain beside images; empty if there is nothing.

    Parameters
    ----------
    language : {"en", "zh"}
    left : sequence of (str, str)
        Name, and why it was left out: ``kind``, ``hidden`` or ``link``.
    most : int
        How many are named.
    """
    if not left:
        return ""
    names = [say(language, f"left_{why}", name=plain(name)) for name, why in left[:most]]
    if len(left) > most:
        names.append(say(language, "left_more", count=len(left) - most))
    return say(language, "left_out", count=len(left), names=("、" if language == "zh" else ", ").join(names))


def inert(value: Any) -> Any:
    """A cell that no spreadsheet treats as a formula; needed because whoever made an archive chose its file names."""
    text = str(value)
    if text[:1] not in "=+-@\t\r" or not text:
        return value
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return value


def csv_link(language: str, rows: Sequence[Sequence[Any]], columns: Sequence[str], name: str) -> str:
    """A link that contains the whole CSV, so that no file is kept on the server; empty if there are no rows."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([inert(v) for v in row] for row in rows)
    # The byte-order mark makes Excel read the file as UTF-8.
    data = base64.b64encode(("\ufeff" + text.getvalue()).encode()).decode()
    return (
        f'<a class="aidet-link" download="{name}" href="data:text/csv;charset=utf-8;base64,{data}">'
        f"{say(language, 'download')}</a>"
    )


def score_rows(found: Sequence[Verdict]) -> List[list]:
    """Records as rows of ``scores.csv``, whose columns :func:`score_columns` gives."""
    ruled = _ruled(found)
    return [records.cells(r, ruled) for r in found]


def score_columns(found: Iterable[Verdict]) -> List[str]:
    """The columns of :func:`score_rows`, see :func:`aidet.records.columns`."""
    return records.columns(_ruled(found))


def _ruled(found):
    return any(r.reason is not None for r in found)
