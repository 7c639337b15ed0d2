"""Results as HTML. Everything that a user or a file supplies is escaped."""

import base64
import csv
import html
import io
import re
from typing import Any, Iterable, List, Sequence, Tuple

from .. import records
from ..detector import Verdict
from .metadata import Finding
from .service import flips
from .words import say

COLOURS = {"real": "#146edc", "generated": "#c24e00", "unsure": "#6b5a00", "error": "#b00020"}
CSS = """
.aidet-card {border: 1px solid var(--border-color-primary); border-left-width: 8px; border-radius: 10px;
  padding: 14px 18px; background: var(--background-fill-primary); color: var(--body-text-color)}
.aidet-card h2 {margin: 0 0 2px; font-size: 1.9rem; line-height: 1.2}
.aidet-card p {margin: 4px 0} .aidet-file {overflow-wrap: anywhere; opacity: .75; font-size: .9rem}
.aidet-bar {position: relative; height: 22px; border-radius: 6px; margin: 8px 0 4px; overflow: hidden;
  background: linear-gradient(90deg, #146edc33, #146edc18 40%, #c24e0018 60%, #c24e0044)}
.aidet-zone {position: absolute; top: 0; bottom: 0; background: repeating-linear-gradient(45deg, #b8960055 0 6px,
  #b8960022 6px 12px)}
.aidet-tick {position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: var(--body-text-color);
  opacity: .55}
.aidet-mark {position: absolute; top: 3px; width: 14px; height: 16px; margin-left: -7px; border-radius: 5px;
  border: 2px solid var(--background-fill-primary)}
.aidet-ends {display: flex; justify-content: space-between; font-size: .8rem; opacity: .8}
.aidet-note {font-size: .85rem; opacity: .85; border-top: 1px solid var(--border-color-primary); padding-top: 6px;
  margin-top: 10px !important}
.aidet-warn {font-weight: 600}
.aidet-rows {display: grid; grid-template-columns: fit-content(45%) 1fr 3.2em; gap: 6px 12px;
  align-items: center; overflow-wrap: anywhere}
.aidet-line {position: relative; height: 12px; border-radius: 4px; background: var(--border-color-primary)}
.aidet-line i {position: absolute; left: 0; top: 0; bottom: 0; border-radius: 4px; opacity: .8}
.aidet-dot {position: absolute; top: 1px; width: 10px; height: 10px; margin-left: -5px; border-radius: 50%;
  border: 1px solid var(--background-fill-primary)}
.aidet-table {width: 100%; border-collapse: collapse; overflow-wrap: anywhere}
.aidet-table, .aidet-table tr {border: 0 !important}
.aidet-table td {padding: 5px 8px 5px 0 !important; vertical-align: top; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important}
.aidet-table td:nth-child(-n+2) {overflow-wrap: normal; word-break: keep-all}
.aidet-badge {border-radius: 6px; padding: 1px 7px; color: #fff; font-size: .8rem; background: #666}
.aidet-link {display: inline-block; padding: 6px 14px; border-radius: 8px; text-decoration: none !important;
  border: 1px solid var(--border-color-primary); background: var(--button-secondary-background-fill);
  color: var(--button-secondary-text-color) !important}
@media (max-width: 480px) {button[role=tab] {padding-left: 9px; padding-right: 9px}}
footer {display: none !important}
"""


def percent(p: float) -> str:
    """A probability as text that is never rounded to certainty: ``93%``, ``99.7%``, ``>99.9%``."""
    if p < 0.001:
        return "<0.1%"
    if p > 0.999:
        return ">99.9%"
    return f"{100 * p:.0f}%" if 0.01 <= p <= 0.99 else f"{100 * p:.1f}%"


def setting(p: float) -> str:
    """A setting as text: ``37.8%``, ``100%``."""
    return f"{round(100 * p, 1):g}%"


def _left(p):
    return f"left:{100 * min(max(p, 0), 1):.2f}%"


def verdict(
    language: str, record: Verdict, threshold: float, unsure: Tuple[float, float], findings: Iterable[Finding] = ()
) -> str:
    """The card with the decision, the probability and a warning; ``findings`` come from the file's metadata."""
    name = html.escape(record.path)
    if not record.ok:
        reason = html.escape(record.status[len("error: ") :])
        colour = COLOURS["error"]
        return (
            f'<div class="aidet-card" role="status" style="border-left-color:{colour}"><h2 style="color:{colour}">'
            f'{say(language, "error")}</h2><p>{reason}</p><p class="aidet-file">{name}</p></div>'
        )
    assert record.prob is not None  # as in every row that is ok
    colour = COLOURS[record.decision]
    low, high = unsure
    scale = say(language, "scale", threshold=setting(threshold), low=setting(low), high=setting(high))
    return (
        f'<div class="aidet-card" role="status" style="border-left-color:{colour}" data-decision="{record.decision}">'
        f'<h2 style="color:{colour}">{say(language, record.decision)}</h2>'
        f"<p>{say(language, 'say_' + record.decision)}</p>"
        f"<p><b>{say(language, 'probability')}: {percent(record.prob)}</b> "
        f'<span class="aidet-file">({scale})</span></p>'
        f'<div class="aidet-bar"><span class="aidet-zone" style="{_left(low)};width:{100 * (high - low):.2f}%"></span>'
        f'<span class="aidet-tick" style="{_left(threshold)}"></span>'
        f'<span class="aidet-mark" style="{_left(record.prob)};background:{colour}"></span></div>'
        f'<div class="aidet-ends"><span>{say(language, "real")} 0%</span>'
        f"<span>{say(language, 'generated')} 100%</span></div>"
        f"{_stable(language, record, threshold)}{_said_by_the_file(language, findings)}"
        f"{_noted(record)}"
        f'<p class="aidet-file">{name}</p><p class="aidet-note">{say(language, "not")}</p></div>'
    )


def _noted(record):
    return f'<p class="aidet-warn">{html.escape(record.note)}</p>' if record.note else ""


def row(record: Verdict) -> List[str]:
    """File, decision, probability and status of a record; with the status the note on how its file was read."""
    status = f"{record.status}: {record.note}" if record.note else record.status
    return [record.path, record.decision, "" if record.prob is None else percent(record.prob), status]


def _stable(language, record, threshold):
    if not record.stability:
        return ""
    values, changed = record.stability.values(), flips(record, threshold)
    facts = {"low": percent(min(values)), "high": percent(max(values))}
    if not changed:
        return f"<p>{say(language, 'stable', **facts)}</p>"
    text = say(language, "unstable", count=len(changed), of=len(values) - 1, **facts)
    return f'<p class="aidet-warn">{text}</p>'


def _said_by_the_file(language, findings):
    """A line for a file whose metadata names its generator; the verdict itself depends only on the pixels."""
    named = any(f.kind == "generator" for f in findings)
    return f'<p class="aidet-warn">{say(language, "file_says")}</p>' if named else ""


def _line(p, threshold, dots=()):
    colour = COLOURS["generated" if p > threshold else "real"]
    marks = "".join(
        f'<span class="aidet-dot" style="{_left(d)};background:{COLOURS["generated" if d > threshold else "real"]}">'
        "</span>"
        for d in dots
    )
    bar = "" if dots else f'<i style="width:{100 * p:.2f}%;background:{colour}"></i>'
    return f'<div class="aidet-line">{bar}<span class="aidet-tick" style="{_left(threshold)}"></span>{marks}</div>'


def votes(language: str, record: Verdict, threshold: float) -> str:
    """The probability given by each model, and a dot for each of its views."""
    from ..labels import sigmoid

    if not record.ok:
        return ""
    rows = []
    for name, score in record.scores.items():
        p, views = float(sigmoid(score)), record.views.get(name, [])
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


def stability(language: str, record: Verdict, threshold: float) -> str:
    """One bar for the image and each changed version."""
    rows = "".join(
        f"<span>{change_name(language, name)}</span>{_line(p, threshold)}<span>{percent(p)}</span>"
        for name, p in record.stability.items()
    )
    return f'<p>{say(language, "stability_help")}</p><div class="aidet-rows">{rows}</div>' if rows else ""


def metadata(language: str, findings: Sequence[Finding]) -> str:
    """A table of the file's metadata."""
    head = f"<p>{say(language, 'metadata_help')}</p>"
    if not findings:
        return f"{head}<p><b>{say(language, 'metadata_none')}</b></p>"
    shade = {"generator": COLOURS["generated"], "credentials": COLOURS["real"]}
    rows = "".join(
        f'<tr><td><span class="aidet-badge" style="background:{shade.get(f.kind, "#666")}">'
        f"{say(language, 'kind_' + f.kind)}</span></td>"
        f"<td>{html.escape(f.name)}</td><td>{html.escape(f.text)}</td></tr>"
        for f in findings
    )
    return f'{head}<table class="aidet-table">{rows}</table>'


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


def score_rows(found: Iterable[Verdict]) -> List[list]:
    """Records as rows of ``scores.csv`` (:data:`aidet.records.COLUMNS`)."""
    text = records.number
    return [
        [r.path, text(r.score), text(r.prob), "" if r.label is None else r.label, r.decision, r.status] for r in found
    ]
