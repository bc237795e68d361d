"""Student's t, of which scipy is not needed for so little."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

_STEPS = 20_000
_HALVINGS = 60


def two_sided_p(t: float, freedom: int) -> float:
    """Probability of Student's t beyond ± t.

    By summing the density over the angle whose tangent is t / sqrt(freedom), where it is the
    cosine to the power of freedom - 1: to about 1e-4 of the value.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    return _tail(angle, freedom) / _tail(0.0, freedom)


@lru_cache
def quantile_95(freedom: int) -> float:
    """The t beyond which, on both sides, lie 5 %: 2.093 of 19 degrees of freedom."""
    low, high = 0.0, 100.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, freedom) > 0.05 else (low, middle)
    return low


def _tail(angle: float, freedom: int) -> float:
    middles = angle + (math.pi / 2 - angle) * (np.arange(_STEPS) + 0.5) / _STEPS
    return float(np.mean(np.cos(middles) ** (freedom - 1)) * (math.pi / 2 - angle))
