"""AIDet: detection of AI-generated images on MindSpore.

>>> from aidet import Detector
>>> detector = Detector()  # the one that ships with the package; or Detector("ckpt/demo/best.ckpt")
>>> detector.score("photo.jpg").decision
'real'

Messages of the library go to the logger ``aidet`` of :mod:`logging`, which is silent until an application configures
it; the command lines print them.
"""

import logging

logging.getLogger("aidet").addHandler(logging.NullHandler())

__version__ = "0.1.0"
__all__ = ["Detector", "Localizer", "__version__"]


def __getattr__(name):
    # Lazy, so that `import aidet` stays free of frameworks.
    if name == "Detector":
        from .detector import Detector

        return Detector
    if name == "Localizer":
        from .detector import Localizer

        return Localizer
    raise AttributeError(f"module 'aidet' has no attribute {name!r}")
