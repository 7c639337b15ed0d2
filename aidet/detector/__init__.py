"""Verdicts: networks and rules, views, votes, fusion, thresholds, and explanations of them."""

from .detector import Detector
from .localization import Localization
from .localizer import Localizer
from .network import Network
from .scorer import Scorer
from .verdict import Verdict, Verdicts
from .views import Views
from .vote import Fusion

__all__ = ["Detector", "Fusion", "Localization", "Localizer", "Network", "Scorer", "Verdict", "Verdicts", "Views"]
