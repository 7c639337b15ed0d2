"""Metrics of a detector, with intervals and thresholds."""

from .bootstrap import Resampler, by_value, group_numbers, intervals, paired, spread, wilson
from .points import (
    CI_NAMES,
    DECISIONS,
    FPRS,
    METRICS,
    auc,
    check,
    class_metrics,
    decision_metrics,
    ece,
    eer,
    ranking_metrics,
    reliability,
    vip,
)
from .thresholds import best_threshold, oracle, threshold_at_fpr, threshold_table

__all__ = [
    "CI_NAMES", "DECISIONS", "FPRS", "METRICS", "Resampler", "auc", "best_threshold", "by_value", "check",
    "class_metrics", "decision_metrics", "ece", "eer", "group_numbers", "intervals", "oracle", "paired",
    "ranking_metrics", "reliability", "spread", "threshold_at_fpr", "threshold_table", "vip", "wilson",
]  # fmt: skip
