"""Verdicts: networks and rules, views, votes, fusion, thresholds, and explanations of them."""

from .detector import Detector
from .network import Network
from .scorer import Scorer
from .verdict import Verdict, Verdicts
from .views import Views
from .vote import Fusion

__all__ = ["Detector", "Fusion", "Network", "Scorer", "Verdict", "Verdicts", "Views"]
