"""Scoring on several machines, with Ray Data as the engine: ``infer.py --engine ray`` and :func:`score`."""

from .cluster import connected, ray
from .rows import from_table, schema, to_table
from .scoring import score, stream

__all__ = ["connected", "from_table", "ray", "schema", "score", "stream", "to_table"]
