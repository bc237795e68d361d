"""95 % intervals over the draw of sources, by a jackknife that leaves out groups of them in turn.

Knows no metrics: only their values, and on which scale these lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring.rare_events import most_events
from vim_embed_client.scoring.student import quantile_95

GROUPS = 20

# A correlation lies from -1 to 1 and scatters the less the nearer it is to 1. A share counts
# sources.
Scale = Literal["plain", "correlation", "share"]

_NEAR_1 = 1 - 1e-15


@dataclass(frozen=True, kw_only=True)
class Jackknife:
    """A statistic's values (groups,) without each group of sources in turn.

    alternatives: values that another draw of the sources may jump to, which leaving few of them
    out does not show.
    """

    values: NDArray[np.float64]
    alternatives: Sequence[float] = ()


NO_JACKKNIFE = Jackknife(values=np.array([math.nan]))  # of too few sources


def groups(n: int, seed: int = 0) -> NDArray[np.int64]:
    """(n,) the group of each source, 0 to GROUPS - 1, drawn at random in equal shares."""
    return np.random.default_rng(seed).permutation(np.arange(n) % GROUPS)


def standard_error(values: NDArray[np.float64]) -> float:
    """The jackknife's standard error, from the values without each group."""
    count = len(values)
    return float(np.sqrt((count - 1) / count * np.square(values - values.mean()).sum()))


def half_width(values: NDArray[np.float64]) -> float:
    """Of a 95 % interval of Student's t, from the values without each group."""
    return quantile_95(max(1, len(values) - 1)) * standard_error(values)


def interval(
    value: float, jackknife: Jackknife, *, n: int, scale: Scale = "plain"
) -> tuple[float, float]:
    """A 95 % interval of a statistic's value for n sources.

    That of a correlation is one of its inverse hyperbolic tangent (Fisher 1915), which scatters
    alike whatever the value: on the value's own scale, intervals of few sources miss too many
    values. That of a share reaches what rare events leave open, of which the jackknife sees none.
    NaN for NO_JACKKNIFE.
    """
    without = jackknife.values
    if np.isnan(without).any():
        return math.nan, math.nan
    ends = np.array([value, *jackknife.alternatives])
    if scale == "correlation":
        ends, width = _fisher(ends), half_width(_fisher(without))
        return float(np.tanh(ends.min() - width)), float(np.tanh(ends.max() + width))
    width = half_width(without)
    low, high = float(ends.min() - width), float(ends.max() + width)
    if scale == "share":
        low = max(0.0, min(low, 1 - most_events((1 - value) * n) / n))
        high = max(high, most_events(value * n) / n)
    return low, min(1.0, high)


def _fisher(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.arctanh(np.clip(values, -_NEAR_1, _NEAR_1))
