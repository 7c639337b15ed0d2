"""Verdicts: networks and rules, views, votes, fusion, thresholds, and explanations of them."""

from .detector import Detector, Verdict
from .network import Network
from .scorer import Scorer
from .views import Views
from .vote import Fusion

__all__ = ["Detector", "Fusion", "Network", "Scorer", "Verdict", "Views"]
