"""Reports: one self-contained HTML file with tables and charts."""

from .charts import bars, curves, heat, histogram, precision_recall, reliability, roc
from .page import THUMBNAIL, Chart, Section, Shot, Table, interval, number, provenance, thumbnail, write

__all__ = [
    "Chart", "Section", "Shot", "THUMBNAIL", "Table", "bars", "curves", "heat", "histogram", "interval",
    "number", "precision_recall", "provenance", "reliability", "roc", "thumbnail", "write",
]  # fmt: skip
