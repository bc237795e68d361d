"""Put on PYTHONPATH by tests that run the real host where its data cannot be downloaded.

`datasets.load_dataset` gives simulated galaxies, and torchvision, which has no CPU wheel beside
torch's, is replaced by the names that the host imports. Nothing else of the host is touched.
"""

import datasets
import transformers

import galaxies

# Resolved first: transformers would take the empty torchvision below for the real one.
for name in ("ViTModel", "AutoModel", "AutoImageProcessor", "AutoVideoProcessor"):
    getattr(transformers, name)

import no_torchvision  # noqa: E402, F401

datasets.load_dataset = galaxies.load_dataset
