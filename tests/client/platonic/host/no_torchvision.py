"""Imported in place of torchvision, which has no CPU wheel beside torch's: the names alone."""

import sys
import types


class _Compose(list):  # type: ignore[type-arg]
    """AstroPT's transforms are made when the host is imported, and never called here."""


for name in ("torchvision", "torchvision.io", "torchvision.transforms"):
    sys.modules[name] = types.ModuleType(name)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, sys.modules[name])
sys.modules["torchvision.transforms"].Compose = _Compose  # type: ignore[attr-defined]
