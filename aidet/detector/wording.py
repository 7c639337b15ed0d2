"""Probabilities and verdicts in words, the same on the screen, in the application and in its HTTP interface."""

from typing import Iterable, Optional, Tuple

import numpy as np


def percent(p: float) -> str:
    """A probability as text that is never rounded to certainty: ``93%``, ``99.7%``, ``>99.9%``."""
    if p < 0.001:
        return "<0.1%"
    if p > 0.999:
        return ">99.9%"
    return f"{100 * p:.0f}%" if 0.01 <= p <= 0.99 else f"{100 * p:.1f}%"


def setting(p: float) -> str:
    """A setting as text, with all its digits: ``37.8%``, ``100%``."""
    return f"{100 * p:.10g}%"


def percent_beside(p: float, bounds: Iterable[float]) -> str:
    """A probability as text that lies on the same side of every bound as the probability itself.

    0.4996 beside a threshold of 0.5 is not ``50%`` but ``49.96%``.

    Parameters
    ----------
    p : float
    bounds : iterable of float
        As :func:`setting` shows them.
    """
    bounds, text = list(bounds), percent(p)
    shown = 0.0005 if text[0] == "<" else 0.9995 if text[0] == ">" else float(text[:-1]) / 100
    for digits in range(13):
        if all(np.sign(round(shown - b, 15)) == np.sign(p - b) for b in bounds):
            break
        text = f"{100 * p:.{digits}f}%"
        shown = float(text[:-1]) / 100
    return text


def odds(prior: float) -> str:
    """For which share of generated images a probability holds: ``at equal odds``, ``if 1% of images are generated``."""
    return "at equal odds" if prior == 0.5 else f"if {setting(prior)} of images are generated"


def statement(prob: float, threshold: float, prior: float) -> str:
    """``71% likely generated (at equal odds); called generated above 80%``.

    Parameters
    ----------
    prob : float
        Of *generated*, calibrated for the prior.
    threshold : float
        On ``prob``.
    prior : float
        Share of generated images, above 0 and below 1.
    """
    shown = percent_beside(prob, (threshold,))
    return f"{shown} likely generated ({odds(prior)}); called generated above {setting(threshold)}"


def meaning(threshold: float, prior: float, zone: Optional[Tuple[float, float]] = None) -> str:
    """What the percentages of a list mean.

    Parameters
    ----------
    threshold, prior : float
        As for :func:`statement`.
    zone : (float, float), optional
        Probabilities of the decision *unsure*; None: there are none.
    """
    said = f"percentages: how likely generated, {odds(prior)}; called generated above {setting(threshold)}"
    if zone is None:
        return said
    around = zone[0] <= threshold <= zone[1] and 0 < threshold < 1
    return said + (", unsure near it" if around else f", unsure from {setting(zone[0])} to {setting(zone[1])}")
