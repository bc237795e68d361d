"""Any metric of two embeddings with its interval, its permutation null and its calibrated value.

What each metric is stands in list_metrics.py and linear_metrics.py; METRICS names them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vim_embed_client.scoring import linear_metrics, list_metrics
from vim_embed_client.scoring.mknn import LEAST_SOURCES, PLATONIC_K
from vim_embed_client.scoring.neighbours import Array, Indices, checked, neighbours_for

GROUPS = 20
LEVEL = 0.05

T_95 = 2.093  # Student's t of GROUPS - 1 degrees of freedom
_SPARE = 12  # further neighbours, that move up where a group of sources is left out


@dataclass(frozen=True, kw_only=True)
class MetricScore:
    """A metric of `n` sources.

    k: of neighbour lists, None for metrics without. std_error: over the draw of sources, by the
    jackknife that leaves out a twentieth at a time. low, high: value ± 2.093 of it (Student's t of
    19), a 95 % interval; NaN for fewer than mknn.LEAST_SOURCES. permuted_*: mean, standard
    deviation and central 95 % over random pairings. threshold: the value that unrelated embeddings
    exceed in 5 % of cases. calibrated: (value - threshold) / (1 - threshold), from 0 to 1, after
    arXiv 2602.14486. p_value: share of the random pairings, the true one among them, that score
    at least as high.
    """

    metric: str
    value: float
    k: int | None
    n: int
    std_error: float
    low: float
    high: float
    permuted_mean: float
    permuted_std: float
    permuted_low: float
    permuted_high: float
    permutations: int
    threshold: float
    calibrated: float
    p_value: float

    @property
    def has_interval(self) -> bool:
        """Whether the sources were enough for one."""
        return not math.isnan(self.std_error)

    def as_dict(self) -> dict[str, str | float | int | None]:
        """The fields under their names, for JSON; what there is none of is None."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


class Statistic(ABC):
    """A metric of two embeddings that can be had for other pairings and fewer sources."""

    k: int | None = None

    @abstractmethod
    def paired(self, order: linear_metrics.Order) -> float:
        """The value with row i of the first and row order[i] of the second as one source."""

    @abstractmethod
    def without(self, left_out: NDArray[np.bool_]) -> float:
        """The value of the other sources alone."""


class LinearStatistic(Statistic):
    """One of linear_metrics."""

    def __init__(
        self, prepare: Callable[[Array, Array], linear_metrics.Paired], x: Array, y: Array
    ) -> None:
        self._prepare, self._x, self._y = prepare, x, y
        self._paired = prepare(x, y)

    def paired(self, order: linear_metrics.Order) -> float:
        return self._paired(order)

    def without(self, left_out: NDArray[np.bool_]) -> float:
        return self._prepare(self._x[~left_out], self._y[~left_out])(None)


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Neighbour lists of one embedding: (n, k), and (n, more) with those that follow.

    cosines: of the wider ones.
    """

    k: int
    wide: Indices
    cosines: Array

    @classmethod
    def of(cls, z: ArrayLike, k: int) -> Lists:
        array = checked(z)
        most = len(array) - 1
        if not 1 <= k <= most:
            raise ValueError(f"k must be from 1 to {most} among {len(array)} sources, got {k}")
        (found,) = neighbours_for(array, [min(most, k + max(_SPARE, k // 2))])
        return cls(k=k, wide=found.indices, cosines=1 - found.distances)

    @property
    def near(self) -> tuple[Indices, Array]:
        """(n, k) neighbours and their cosines."""
        return self.wide[:, : self.k], self.cosines[:, : self.k]

    def permuted(self, order: NDArray[np.int64]) -> Lists:
        """Those of the embedding with its rows in this order; -1 stays what it is."""
        place = np.append(np.argsort(order), -1).astype(np.int32)
        return Lists(k=self.k, wide=place[self.wide[order]], cosines=self.cosines[order])

    def without(self, left_out: NDArray[np.bool_]) -> Lists:
        """Those of the embedding without some rows; where too few follow, -1."""
        kept = np.flatnonzero(~left_out)
        place = np.append(np.cumsum(~left_out) - 1, -1).astype(np.int32)
        place[:-1][left_out] = -1
        lists, cosines = place[self.wide[kept]], self.cosines[kept]
        first = np.argsort(lists < 0, axis=1, kind="stable")[:, : self.k]
        return Lists(
            k=self.k,
            wide=np.take_along_axis(lists, first, axis=1),
            cosines=np.take_along_axis(cosines, first, axis=1),
        )


ListFunction = Callable[[Lists, Lists], float]


def _mean_of(values: Callable[[Indices, Indices], NDArray[np.float64]]) -> ListFunction:
    return lambda first, second: float(values(first.near[0], second.near[0]).mean())


def _cknna(first: Lists, second: Lists) -> float:
    return list_metrics.cknna(*first.near, *second.near)


class ListStatistic(Statistic):
    """One of list_metrics."""

    def __init__(self, function: ListFunction, first: Lists, second: Lists) -> None:
        self._function, self._first, self._second = function, first, second
        self.k = first.k

    def paired(self, order: linear_metrics.Order) -> float:
        second = self._second if order is None else self._second.permuted(order)
        return self._function(self._first, second)

    def without(self, left_out: NDArray[np.bool_]) -> float:
        return self._function(self._first.without(left_out), self._second.without(left_out))


LIST_METRICS: dict[str, ListFunction] = {
    "mutual-knn": _mean_of(list_metrics.mutual_knn),
    "cycle-knn": _mean_of(list_metrics.cycle_knn),
    "lcs-knn": _mean_of(list_metrics.lcs_knn),
    "edit-knn": _mean_of(list_metrics.edit_knn),
    "cknna": _cknna,
}
LINEAR_METRICS: dict[str, Callable[[Array, Array], linear_metrics.Paired]] = {
    "cka": linear_metrics.cka,
    "unbiased-cka": linear_metrics.unbiased_cka,
    "rsa": linear_metrics.rsa,
    "procrustes": linear_metrics.procrustes,
    "svcca": linear_metrics.svcca,
    "pwcca": linear_metrics.pwcca,
    "linear-r2": linear_metrics.linear_r2,
}
METRICS = (*LIST_METRICS, *LINEAR_METRICS)


def statistics(
    z1: ArrayLike, z2: ArrayLike, names: Sequence[str], *, k: int = PLATONIC_K
) -> Iterator[tuple[str, Statistic]]:
    """The metrics of these names, one after the other, for two embeddings of the same sources.

    Neighbours are found once for all of them; what a metric prepares goes with it, so that the
    memory is that of the largest. Raises ValueError as mknn.mknn does, for a name that is none of
    METRICS, and for an embedding without variance.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"no metric {', '.join(unknown)}: use {', '.join(METRICS)}")
    first, second = checked(z1), checked(z2)
    if len(first) != len(second):
        raise ValueError(f"the embeddings have {len(first)} and {len(second)} rows")
    lists: list[Lists] = []
    if any(name in LIST_METRICS for name in names):
        lists = [Lists.of(z, k) for z in (first, second)]
    for name in names:
        if name in LIST_METRICS:
            yield name, ListStatistic(LIST_METRICS[name], *lists)
        else:
            yield name, LinearStatistic(LINEAR_METRICS[name], first, second)


def statistic(z1: ArrayLike, z2: ArrayLike, name: str, *, k: int = PLATONIC_K) -> Statistic:
    """One metric; errors as `statistics`."""
    ((_, found),) = statistics(z1, z2, [name], k=k)
    return found


def measure(
    z1: ArrayLike,
    z2: ArrayLike,
    names: Sequence[str] = METRICS,
    *,
    k: int = PLATONIC_K,
    permutations: int = 200,
    seed: int = 0,
) -> list[MetricScore]:
    """Each metric with its interval, null and calibrated value; errors as `statistics`."""
    n = len(np.asarray(z1))
    return [
        score_statistic(name, found, n, permutations=permutations, seed=seed)
        for name, found in statistics(z1, z2, names, k=k)
    ]


def score_statistic(
    name: str, statistic: Statistic, n: int, *, permutations: int, seed: int
) -> MetricScore:
    """A statistic of n sources with its interval, null and calibrated value."""
    value = statistic.paired(None)
    rng = np.random.default_rng(seed)
    permuted = np.array([statistic.paired(rng.permutation(n)) for _ in range(permutations)])
    error = group_jackknife(statistic.without, n, seed=seed) if n >= LEAST_SOURCES else math.nan
    threshold = null_threshold(value, permuted)
    low, high = np.percentile(permuted, [2.5, 97.5])
    return MetricScore(
        metric=name,
        value=value,
        k=statistic.k,
        n=n,
        std_error=error,
        low=value - T_95 * error,
        high=float(np.minimum(1.0, value + T_95 * error)),
        permuted_mean=float(permuted.mean()),
        permuted_std=float(permuted.std()),
        permuted_low=float(low),
        permuted_high=float(high),
        permutations=permutations,
        threshold=threshold,
        calibrated=float(np.clip((value - threshold) / max(1 - threshold, 1e-12), 0, 1)),
        p_value=(1 + int(np.count_nonzero(permuted >= value))) / (1 + permutations),
    )


def groups(n: int, seed: int = 0) -> NDArray[np.int64]:
    """(n,) the group of each source, 0 to GROUPS - 1, drawn at random in equal shares."""
    return np.random.default_rng(seed).permutation(np.arange(n) % GROUPS)


def group_jackknife(
    without: Callable[[NDArray[np.bool_]], float], n: int, *, seed: int = 0
) -> float:
    """Standard error over the draw of sources, by leaving out a group at a time."""
    return jackknife_spread(left_out(without, n, seed=seed))


def left_out(
    without: Callable[[NDArray[np.bool_]], float], n: int, *, seed: int = 0
) -> NDArray[np.float64]:
    """The value without each group of sources in turn."""
    group = groups(n, seed)
    used = [g for g in range(GROUPS) if (group == g).any()]
    return np.array([without(group == g) for g in used])


def jackknife_spread(values: NDArray[np.float64]) -> float:
    """The standard error from the values without each group."""
    count = len(values)
    return float(np.sqrt((count - 1) / count * np.square(values - values.mean()).sum()))


def null_threshold(value: float, permuted: NDArray[np.float64]) -> float:
    """The 1 - LEVEL quantile of the null and the value together, an order statistic."""
    combined = np.sort(np.append(permuted, value))
    return float(combined[math.ceil((1 - LEVEL) * len(combined)) - 1])
