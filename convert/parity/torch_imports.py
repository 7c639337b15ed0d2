"""What has to be done before torchvision and timm are imported."""

import importlib
import sys
import types


def without_broken_ops() -> None:
    """Make torchvision and timm importable even if torchvision's compiled operators do not fit the build of torch."""
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, ImportError):
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
