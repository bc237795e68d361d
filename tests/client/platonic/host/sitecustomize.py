"""Put on PYTHONPATH by tests that run the real host where its data cannot be downloaded.

`datasets.load_dataset` gives simulated galaxies, and torchvision, which has no CPU wheel beside
torch's, is replaced by the names that the host imports. Nothing else of the host is touched.
"""

import sys
import types

import datasets
import transformers

import galaxies

# Resolved first: transformers would take the empty torchvision below for the real one.
for name in ("ViTModel", "AutoModel", "AutoImageProcessor", "AutoVideoProcessor"):
    getattr(transformers, name)


class _Compose(list):  # type: ignore[type-arg]
    """AstroPT's transforms are made when the host is imported, and never called here."""


for name in ("torchvision", "torchvision.io", "torchvision.transforms"):
    sys.modules[name] = types.ModuleType(name)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, sys.modules[name])
sys.modules["torchvision.transforms"].Compose = _Compose  # type: ignore[attr-defined]

datasets.load_dataset = galaxies.load_dataset
