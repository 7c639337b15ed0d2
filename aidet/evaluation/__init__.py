"""Measuring a detector: scores against labels, robustness, transfer between data sets, and the report pages."""
