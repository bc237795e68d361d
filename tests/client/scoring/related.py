"""Two embeddings that have something in common."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def related(seed: int, n: int = 40) -> tuple[Array, Array]:
    """(n, 5) and (n, 6), the second a noisy mixture of the first."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 5))
    return z + 0.1, z @ rng.normal(size=(5, 6)) + 0.7 * rng.normal(size=(n, 6))
