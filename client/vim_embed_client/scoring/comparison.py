"""Models on the same sources: the difference of a metric, with a paired interval and a test.

A model is scored by a pair of embeddings, of two surveys for instance. The same twentieth of the
sources is left out for all models at a time, so that what sources have in common (some are easy
and some hard for every model) cancels in the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vim_embed_client.scoring.intervals import NO_JACKKNIFE, half_width, interval, standard_error
from vim_embed_client.scoring.metrics import OF_COMPONENTS, jackknives, statistic
from vim_embed_client.scoring.mknn import PLATONIC_K
from vim_embed_client.scoring.student import two_sided_p


def remark(metric: str) -> str | None:
    """What makes the paired interval of a metric say less than it seems to."""
    if metric not in OF_COMPONENTS:
        return None
    return (
        f"The paired interval and p of {metric} are too short where another draw of sources would "
        "keep another number of components, as with a few very bright sources or with clusters: "
        "prefer unbiased-cka."
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of one model, and by how much it exceeds that of the first model.

    value_low, value_high: the value's own 95 % interval. difference, low, high: value less the
    first model's, and its paired 95 % interval, over the draw of sources. p_value: of Student's t
    test that there is no difference (19 degrees of freedom, or one less than the sources); it is
    not corrected for the number of models. NaN for the first model, and intervals for fewer than
    mknn.LEAST_SOURCES.
    """

    model: str
    metric: str
    k: int | None
    n: int
    value: float
    value_low: float
    value_high: float
    difference: float
    low: float
    high: float
    p_value: float

    def as_dict(self) -> dict[str, str | float | int | None]:
        """The fields under their names, for JSON; what there is none of is None."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """A model's value, its values without each group of sources, and its interval; NaN for few."""

    model: str
    k: int | None
    value: float
    without: NDArray[np.float64]
    interval: tuple[float, float]

    def minus(self, other: _Measured | None) -> tuple[float, NDArray[np.float64]]:
        """The difference to another model, and the differences without each group."""
        if other is None:
            return math.nan, np.array([math.nan])
        return self.value - other.value, self.without - other.without


def compare(
    models: Sequence[tuple[str, ArrayLike, ArrayLike]],
    metric: str = "mutual-knn",
    *,
    k: int = PLATONIC_K,
    seed: int = 0,
) -> list[Difference]:
    """Each model's metric, and its difference to the first model's.

    models: (name, z1, z2), all with the same sources in the same rows. Raises ValueError as
    metrics.statistics does, and where the models have different numbers of sources.
    """
    lengths = sorted({len(np.asarray(z)) for _, *pair in models for z in pair})
    if len(lengths) != 1:
        raise ValueError(f"the models have {' and '.join(map(str, lengths)) or 'no'} sources")
    (n,) = lengths
    measured = [_measured(*model, metric, k=k, seed=seed) for model in models]
    found = []
    for place, one in enumerate(measured):
        low, high = one.interval
        gap, without = one.minus(measured[0] if place else None)
        gap_width = half_width(without)
        found.append(
            Difference(
                model=one.model,
                metric=metric,
                k=one.k,
                n=n,
                value=one.value,
                value_low=low,
                value_high=high,
                difference=gap,
                low=gap - gap_width,
                high=gap + gap_width,
                p_value=difference_p(gap, without),
            )
        )
    return found


def _measured(
    name: str, z1: ArrayLike, z2: ArrayLike, metric: str, *, k: int, seed: int
) -> _Measured:
    try:
        found = statistic(z1, z2, metric, k=k)
        value = found.paired(None)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    n = len(np.asarray(z1))
    few = n < found.least_sources
    jackknife = NO_JACKKNIFE if few else jackknives({name: found}, n, seed=seed)[name]
    return _Measured(
        model=name,
        k=found.k,
        value=value,
        without=jackknife.values,
        interval=interval(value, jackknife, n=n, scale=found.scale),
    )


def difference_p(difference: float, without: NDArray[np.float64]) -> float:
    """Of Student's t test that there is no difference; NaN where there is no error.

    without: the differences without each group of sources.
    """
    std_error = standard_error(without)
    if math.isnan(difference) or math.isnan(std_error):
        return math.nan
    if std_error == 0:
        return 1.0 if difference == 0 else 0.0
    return two_sided_p(difference / std_error, len(without) - 1)
