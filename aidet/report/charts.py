"""Charts of the report, as self-contained SVG. Lines differ by dash and marker, not by colour alone."""

import base64
import io
import warnings
from contextlib import contextmanager
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

from ..cli import printable

# Okabe & Ito's palette, safe for the common colour-vision deficiencies; always paired with a dash or a marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "x", "*")
NAME = 40  # longer names next to a chart are shortened to this many characters
# x (or a name), value, and the lower and upper ends of its interval, which may be None.
Row = Tuple[Any, float, Optional[float], Optional[float]]
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.35,
    "svg.hashsalt": "aidet",
    "text.parse_math": False,  # names come from files, so a "$" is a literal "$"
    "legend.frameon": False,
    "figure.dpi": 100,
}


def _short(name):
    """Cut the middle out of a long name to leave room for the chart; its end is more informative."""
    name = printable(name)
    name = f" {name}" if name.startswith("_") else name  # matplotlib leaves such names out of a legend
    return name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[-(NAME // 2) + 1 :]}"


@contextmanager
def _figure(size=(5.0, 4.0)):
    """A figure without a window system or global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.add_subplot()


def _svg(figure):
    """The figure as a data URI, without a date, so that the same input gives the same file."""
    import matplotlib

    # Text as outlines looks the same everywhere. Characters that matplotlib's own font lacks (Chinese, for example) are
    # left to the fonts of the reader's browser.
    kind = "path" if _covered(figure) else "none"
    buffer = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "svg.fonttype": kind}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _covered(figure):
    """Whether matplotlib's bundled font has every character in the figure."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return all(ord(c) in known or c.isspace() for text in figure.findobj(Text) for c in text.get_text())


def _thin(x, y, most=600):
    """At most ``most`` points of a curve, including its ends; 20,000 would look the same but take megabytes."""
    if len(x) <= most:
        return x, y
    keep = np.unique(np.linspace(0, len(x) - 1, most).astype(int))
    return np.asarray(x)[keep], np.asarray(y)[keep]


def roc(y: np.ndarray, scores: Dict[str, np.ndarray]) -> str:
    """ROC curves as a data URI. ``scores`` maps each name to (n,) scores."""
    from sklearn.metrics import roc_auc_score, roc_curve

    with _figure() as (figure, axes):
        for i, (name, score) in enumerate(scores.items()):
            fpr, tpr, _ = roc_curve(y, score)
            label = f"{_short(name)}: AUC {roc_auc_score(y, score):.3f}"
            axes.plot(*_thin(fpr, tpr), color=COLOURS[i % 7], linestyle=DASHES[i % 7], linewidth=2, label=label)
        axes.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=(0, (2, 3)), label="chance")
        axes.set(
            xlabel="real images called generated (FPR)",
            ylabel="generated images found (TPR)",
            xlim=(0, 1),
            ylim=(0, 1.01),
        )
        axes.legend(loc="lower right")
        return _svg(figure)


def precision_recall(y: np.ndarray, scores: Dict[str, np.ndarray]) -> str:
    """Precision-recall curves; arguments as in :func:`roc`."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    with _figure() as (figure, axes):
        for i, (name, score) in enumerate(scores.items()):
            precision, recall, _ = precision_recall_curve(y, score)
            label = f"{_short(name)}: AP {average_precision_score(y, score):.3f}"
            axes.plot(
                *_thin(recall, precision), color=COLOURS[i % 7], linestyle=DASHES[i % 7], linewidth=2, label=label
            )
        share = float(np.mean(y))
        axes.axhline(share, color="#777777", linewidth=1, linestyle=(0, (2, 3)), label=f"chance {share:.2f}")
        axes.set(xlabel="recall of generated", ylabel="precision of generated", xlim=(0, 1), ylim=(0, 1.01))
        axes.legend(loc="lower left")
        return _svg(figure)


def reliability(points: Sequence[Tuple[float, float, int]]) -> str:
    """Reliability diagram from :func:`aidet.metrics.reliability`; dot area is proportional to the number of images."""
    mean, share, count = (np.array(v) for v in zip(*points))
    with _figure() as (figure, axes):
        axes.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=(0, (2, 3)), label="perfect calibration")
        axes.plot(mean, share, color=COLOURS[0], linewidth=1.5, label="this detector")
        axes.scatter(
            mean, share, s=12 + 180 * count / count.max(), color=COLOURS[0], edgecolor="black", linewidth=0.6, zorder=3
        )
        axes.set(
            xlabel="stated probability", ylabel="share of generated images", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
        )
        axes.legend(loc="upper left")
        return _svg(figure)


def histogram(y: np.ndarray, score: np.ndarray, threshold: Optional[float]) -> str:
    """Histogram of both classes' scores, each with its own hatching; the threshold is a dashed line."""
    import matplotlib.colors

    low, high = np.percentile(score, [0.5, 99.5])
    low, high = (low - 1, high + 1) if low == high else (low, high)
    edges = np.linspace(low, high, 41)
    with _figure() as (figure, axes):
        for side, name, colour, hatch in ((0, "real", COLOURS[0], "///"), (1, "generated", COLOURS[1], "...")):
            own = np.clip(score[y == side], low, high)
            fill = matplotlib.colors.to_rgba(colour, 0.3)
            style = {"histtype": "stepfilled", "facecolor": fill, "edgecolor": colour, "linewidth": 1.5, "hatch": hatch}
            style["linestyle"] = "-" if side == 0 else "--"
            axes.hist(own, edges, label=f"{name} ({len(own)})", **style)
        if threshold is not None and low <= threshold <= high:
            axes.axvline(threshold, color="black", linestyle="--", linewidth=1.5, label="threshold")
        axes.set(xlabel="score (log-odds of generated)", ylabel="images")
        axes.legend()
        return _svg(figure)


def curves(
    lines: Mapping[str, Sequence[Row]],
    xlabel: str,
    ylabel: str,
    ylim: Optional[Tuple[float, float]] = None,
    chance: Optional[float] = None,
) -> str:
    """Lines with intervals.

    Parameters
    ----------
    lines : dict of str to list of (x, value, low, high)
        ``low`` and ``high`` may be None. If x is text, the points are evenly spaced.
    xlabel, ylabel : str
    ylim : (float, float), optional
    chance : float, optional
        The chance level, drawn as a dotted line.
    """
    with _figure() as (figure, axes):
        for i, (name, points) in enumerate(lines.items()):
            x = [p[0] for p in points]
            values = [p[1] for p in points]
            style = {"color": COLOURS[i % 7], "marker": MARKERS[i % 7], "linestyle": DASHES[i % 7], "label": name}
            if any(p[2] is not None for p in points):
                low, high = (np.array([p[k] for p in points], float) for k in (2, 3))
                spans = [values - low, high - values]
                axes.errorbar(x, values, np.maximum(spans, 0), capsize=3, linewidth=1.8, markersize=6, **style)
            else:
                axes.plot(x, values, linewidth=1.8, markersize=6, **style)
        if chance is not None:
            axes.axhline(chance, color="#777777", linewidth=1, linestyle=(0, (2, 3)))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if ylim:
            axes.set_ylim(*ylim)
        if any(isinstance(p[0], str) for points in lines.values() for p in points):
            axes.tick_params(axis="x", rotation=35)
        if len(lines) > 1:
            axes.legend()
        return _svg(figure)


def heat(matrix: ArrayLike, rows: Sequence[str], columns: Sequence[str], label: str) -> str:
    """A matrix as a grey heat map with the numbers in its cells; NaN cells stay empty."""
    values = np.asarray(matrix, float)
    with _figure((1.9 + 0.95 * len(columns), 1.5 + 0.5 * len(rows))) as (figure, axes):
        axes.grid(False)
        axes.imshow(np.ma.masked_invalid(values), cmap="Greys", vmin=0.4, vmax=1.2, aspect="auto")
        for r in range(values.shape[0]):
            for c in range(values.shape[1]):
                if np.isfinite(values[r, c]):
                    axes.text(
                        c,
                        r,
                        f"{values[r, c]:.3f}",
                        ha="center",
                        va="center",
                        color="white" if values[r, c] > 0.9 else "black",
                    )
        axes.set_xticks(range(len(columns)), [_short(c) for c in columns], rotation=30, ha="right")
        axes.set_yticks(range(len(rows)), [_short(r) for r in rows])
        axes.set_title(label, fontsize=11)
        return _svg(figure)


def bars(rows: Sequence[Row], xlabel: str, level: Optional[float] = None) -> str:
    """Horizontal bars. ``rows`` is a list of (name, value, low, high); ``level`` is drawn as a dashed line."""
    rows = rows[::-1]
    with _figure((5.0, 1.2 + 0.32 * len(rows))) as (figure, axes):
        values = [r[1] for r in rows]
        # Positioned by number: with names as positions, two bars of the same name would overlap.
        axes.barh(range(len(rows)), values, color="#9ecae1", edgecolor="black", linewidth=0.6)
        axes.set_yticks(range(len(rows)), [_short(r[0]) for r in rows])
        for i, (_, _value, low, high) in enumerate(rows):
            if low is not None:
                axes.plot([low, high], [i, i], color="black", linewidth=1.5, marker="|")
        if level is not None:
            axes.axvline(level, color="black", linestyle="--", linewidth=1)
        axes.set(xlabel=xlabel, xlim=(0, 1.0))
        axes.grid(axis="y", visible=False)
        return _svg(figure)
