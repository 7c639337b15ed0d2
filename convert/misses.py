"""What a file that fits no layout is nearest to, for the error message: which layout, which keys, which option."""

import functools
import re
from typing import Any, Iterable, List, Mapping, NamedTuple, Sequence, Tuple

from . import rules
from .families import Family, Layout
from .prefixes import View, prefixes
from .reading import natural

FEWEST = 0.3  # share of a file's keys that a layout must know to be named


class Near(NamedTuple):
    """A layout, how many keys of a file it knows, which share of its marks they meet, and the keys it does not know."""

    family: Family
    layout: Layout
    prefix: str
    known: int
    marks: float
    odd: List[str]


@functools.cache
def pattern(layout: Layout) -> "re.Pattern[str]":
    """All source keys of a layout, whatever the size of the net, as one regular expression."""
    parts = [_regex(source) for _, source, _ in rules.compile_rules(layout.rules)]
    parts += [regex for regex, _ in (*layout.drop, *rules.COMMON_DROPS)]
    return re.compile("|".join(f"(?:{p})" for p in parts) or r"(?!)")


def _regex(template):
    text = ""
    for part in re.split(r"(\{[^}]+\}|\[[^]]+\])", template):
        if part.startswith("{"):
            text += r"[\w.]+?" if "(" in part else r"\d+"
        elif part.startswith("["):
            text += "(?:" + "|".join(map(re.escape, part[1:-1].split("|"))) + ")"
        else:
            text += re.escape(part)
    return text


def unknown(layout: Layout, keys: Iterable[str]) -> List[str]:
    """The keys that no rule of the layout mentions, in order."""
    known = pattern(layout)
    return sorted((k for k in keys if not known.fullmatch(k)), key=natural)


def advice(views: Sequence[View], candidates: Sequence[Tuple[Family, Layout]]) -> str:
    """The end of the message that no layout fits: an option that would make one fit, or the nearest layout.

    Parameters
    ----------
    views : list of View
        What was tried.
    candidates : list of (Family, Layout)
        Layouts that were tried.

    Returns
    -------
    str
        Empty if nothing is near.
    """
    tensors = views[0].tensors
    options = [(v.prefix, v.tensors) for v in views]
    options += [(p, _under(tensors, p)) for p, n in prefixes(tensors)[:16] if p not in [v.prefix for v in views]]
    for prefix, inside in options[len(views) :]:
        for family, layout in candidates:
            if layout.fits(inside):
                return (
                    f"; {len(inside)} are under {prefix!r}, without which they fit {family.name}/{layout.name}: "
                    f"--prefix {prefix[:-1]}"
                )
    near = [_near(f, x, p, inside) for f, x in candidates for p, inside in options]
    best = max(near, key=lambda n: (n.known, n.marks, -len(n.prefix)), default=None)
    if best is None or best.known < FEWEST * len(tensors):
        return ""
    return _told(best, dict(options)[best.prefix], len(tensors))


def _under(tensors: Mapping[str, Any], prefix: str) -> Any:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def _near(family, layout, prefix, inside):
    inside = _under(inside, layout.prefix) if layout.prefix else inside
    odd = unknown(layout, inside)
    met = len(layout.marks) - len(_missing(layout, inside))
    return Near(family, layout, prefix, len(inside) - len(odd), met / max(1, len(layout.marks)), odd)


def _missing(layout, inside):
    return [m for m in layout.marks if not any(re.fullmatch(m, k) for k in inside)]


def _told(best, inside, total):
    where = f" under {best.prefix!r}" if best.prefix else ""
    text = f"; nearest is {best.family.name}/{best.layout.name}, which knows {best.known} of {total} keys{where}"
    if best.odd:
        text += f" but not {', '.join(best.odd[:3])}" + (f" and {len(best.odd) - 3} more" if len(best.odd) > 3 else "")
    missing = _missing(best.layout, inside)
    if missing:
        text += f" and wants a key {_plain(missing[0])}"
    against = [k for k in inside if any(re.fullmatch(w, k) for w in best.layout.without)]
    if against:
        text += f" and is another net than one with {sorted(against, key=natural)[0]}"
    return text


def _plain(mark):
    """A regular expression on a key as people read it."""
    return re.sub(r"\\(.)", r"\1", mark.replace(r"\d+", "0"))
