"""Any metric of two embeddings with its interval, its permutation null and its calibrated value.

What each metric is stands in list_metrics.py and linear_metrics.py; METRICS names them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring import linear_metrics, list_metrics
from vim_embed_client.scoring.intervals import (
    NO_JACKKNIFE,
    Jackknife,
    Scale,
    groups,
    half_width,
    interval,
    standard_error,
)
from vim_embed_client.scoring.mknn import LEAST_SOURCES, PLATONIC_K
from vim_embed_client.scoring.moments import (
    FOLDS,
    KEPT_VARIANCE,
    MANY_SOURCES,
    Order,
    PairedRows,
)
from vim_embed_client.scoring.neighbour_lists import Lists, PairedLists
from vim_embed_client.scoring.neighbours import Embedding, Indices, NeighbourSearch

LEAST_FOR_LINEAR_R2 = 4 * FOLDS  # one fold of fewer can decide the mean
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class MetricScore:
    """A metric of `n` sources.

    k: of neighbour lists, None for metrics without. std_error: over the draw of sources, by the
    jackknife that leaves out a twentieth at a time, or one of fewer than 20 sources. low, high: a
    95 % interval (intervals.py). All three are NaN for fewer than mknn.LEAST_SOURCES, and for
    linear-r2 of fewer than LEAST_FOR_LINEAR_R2. permuted_*: mean, standard deviation and central
    95 % over random pairings. threshold: the value that unrelated embeddings exceed in 5 % of
    cases. calibrated: (value - threshold) / (1 - threshold), from 0 to 1, after arXiv 2602.14486;
    both NaN for fewer than 19 pairings. p_value: share of the random pairings, the true one among
    them, that score at least as high.
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


@dataclass(frozen=True, kw_only=True)
class Replicate:
    """A statistic without one group of sources. shares: as of ComponentStatistic, else empty."""

    value: float
    shares: tuple[float, ...] = ()


class Statistic(ABC):
    """A metric of two embeddings that can be had for other pairings and fewer sources.

    scale: of its values, for their interval. least_sources: of which an interval can be had.
    """

    k: int | None = None
    scale: Scale = "plain"
    least_sources: int = LEAST_SOURCES

    @abstractmethod
    def paired(self, order: Order) -> float:
        """The value with row i of the first and row order[i] of the second as one source."""

    @abstractmethod
    def without(self, left_out: NDArray[np.bool_]) -> float:
        """The value of the other sources alone."""

    def replicate(self, left_out: NDArray[np.bool_]) -> Replicate:
        """What the jackknife is to know of the other sources."""
        return Replicate(value=self.without(left_out))

    def jackknife(self, replicates: Sequence[Replicate]) -> Jackknife:
        """Of the replicates without each group in turn."""
        return Jackknife(values=np.array([each.value for each in replicates]))


class LinearStatistic(Statistic):
    """One of linear_metrics, of rows that it shares with others."""

    def __init__(self, function: linear_metrics.LinearFunction, rows: PairedRows) -> None:
        self._function, self._rows = function, rows
        if function is linear_metrics.linear_r2:  # which has no lower bound
            self.least_sources = LEAST_FOR_LINEAR_R2
        else:
            self.scale = "correlation"

    def paired(self, order: Order) -> float:
        return self._function(self._rows.paired(order))

    def without(self, left_out: NDArray[np.bool_]) -> float:
        return self._function(self._rows.without(left_out))


class ComponentStatistic(LinearStatistic):
    """One of the leading components: another draw of the sources may keep another number of them.

    A jackknife does not see that, since leaving a few sources out seldom changes the number.
    """

    def replicate(self, left_out: NDArray[np.bool_]) -> Replicate:
        """With the share of either's variance that as many components hold as are kept of all."""
        whole, rest = self._rows.paired(None), self._rows.without(left_out)
        sides = ((whole.first, rest.first), (whole.second, rest.second))
        shares = tuple(float(less.shares[all_.kept() - 1]) for all_, less in sides)
        return Replicate(value=self._function(rest), shares=shares)

    def jackknife(self, replicates: Sequence[Replicate]) -> Jackknife:
        """With the values of other numbers of components as alternatives.

        Of those that hold 99 %, give or take the error of the share that they hold. Twice its
        interval: of draws of which one in ten keeps another number, the nine have to reach the
        mean of all ten as well.
        """
        by_side = np.array([each.shares for each in replicates]).T
        reach = [2 * half_width(shares) for shares in by_side]
        first, second = ((KEPT_VARIANCE - each, KEPT_VARIANCE + each) for each in reach)
        whole = self._rows.paired(None)
        others = [self._function(replace(whole, kept=kept)) for kept in product(first, second)]
        return replace(super().jackknife(replicates), alternatives=others)


ListFunction = Callable[[Lists, Lists], float]


def _mean_of(values: Callable[[Indices, Indices], NDArray[np.float64]]) -> ListFunction:
    """The mean of shares of k: of whole numbers, so that no rounding adds up."""

    def mean(first: Lists, second: Lists) -> float:
        counts = np.rint(first.k * values(first.near[0], second.near[0]))
        return float(counts.mean() / first.k)

    return mean


def _cknna(first: Lists, second: Lists) -> float:
    return list_metrics.cknna(*first.near, *second.near, (first.own_hsic, second.own_hsic))


class ListStatistic(Statistic):
    """One of list_metrics, of lists that it shares with others."""

    def __init__(self, function: ListFunction, lists: PairedLists) -> None:
        self._function, self._lists = function, lists
        self.k = lists.k
        self.scale = "share" if function is LIST_METRICS["cycle-knn"] else "plain"

    def paired(self, order: Order) -> float:
        return self._function(*self._lists.paired(order))

    def without(self, left_out: NDArray[np.bool_]) -> float:
        return self._function(*self._lists.without(left_out))


LIST_METRICS: dict[str, ListFunction] = {
    "mutual-knn": _mean_of(list_metrics.mutual_knn),
    "cycle-knn": _mean_of(list_metrics.cycle_knn),
    "lcs-knn": _mean_of(list_metrics.lcs_knn),
    "edit-knn": _mean_of(list_metrics.edit_knn),
    "cknna": _cknna,
}
LINEAR_METRICS: dict[str, linear_metrics.LinearFunction] = {
    "cka": linear_metrics.cka,
    "unbiased-cka": linear_metrics.unbiased_cka,
    "rsa": linear_metrics.rsa,
    "procrustes": linear_metrics.procrustes,
    "svcca": linear_metrics.svcca,
    "pwcca": linear_metrics.pwcca,
    "linear-r2": linear_metrics.linear_r2,
}
OF_DIRECTIONS = ("rsa",)
OF_COMPONENTS = ("svcca", "pwcca")
METRICS = (*LIST_METRICS, *LINEAR_METRICS)


def statistics(
    z1: Embedding, z2: Embedding, names: Sequence[str], *, k: int = PLATONIC_K
) -> dict[str, Statistic]:
    """The metrics of these names for two embeddings of the same sources.

    What several metrics need is found once. Raises ValueError as mknn.mknn does, for a name that
    is none of METRICS, and where an embedding has no variance.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"no metric {', '.join(unknown)}: use {', '.join(METRICS)}")
    first, second = NeighbourSearch.of(z1), NeighbourSearch.of(z2)
    if len(first) != len(second):
        raise ValueError(f"the embeddings have {len(first)} and {len(second)} rows")
    if "linear-r2" in names and len(first) < 2 * FOLDS:
        raise ValueError(
            f"{FOLDS} folds of linear-r2 need at least {2 * FOLDS} sources, got {len(first)}"
        )
    for place, search in (("first", first), ("second", second)):
        if not (search.z != search.z[0]).any():
            raise ValueError(f"the {place} embedding has no variance: all its rows are alike")
    lists = _once(lambda: PairedLists(*(Lists.of(z, k) for z in (first, second))))
    centred = _once(lambda: PairedRows(first.z, second.z))
    directions = _once(lambda: PairedRows(first.z, second.z, "directions"))
    found: dict[str, Statistic] = {}
    for name in names:
        if name in LIST_METRICS:
            found[name] = ListStatistic(LIST_METRICS[name], lists())
        else:
            rows = directions if name in OF_DIRECTIONS else centred
            kind = ComponentStatistic if name in OF_COMPONENTS else LinearStatistic
            found[name] = kind(LINEAR_METRICS[name], rows())
    return found


T = TypeVar("T")


def _once(make: Callable[[], T]) -> Callable[[], T]:
    """`make`, called once, and only if it is needed."""
    return lru_cache(maxsize=1)(make)


def statistic(z1: Embedding, z2: Embedding, name: str, *, k: int = PLATONIC_K) -> Statistic:
    """One metric; errors as `statistics`."""
    return statistics(z1, z2, [name], k=k)[name]


def default_permutations(n: int) -> int:
    """200, and 39 (p is at least 1 / 40) where so many sources make each of them costly."""
    return 200 if n < MANY_SOURCES else 39


def measure(
    z1: Embedding,
    z2: Embedding,
    names: Sequence[str] = METRICS,
    *,
    k: int = PLATONIC_K,
    permutations: int | None = None,
    seed: int = 0,
) -> list[MetricScore]:
    """Each metric with its interval, null and calibrated value; errors as `statistics`.

    permutations: `default_permutations` if not given.
    """
    found = statistics(z1, z2, names, k=k)
    n = len(z1) if isinstance(z1, NeighbourSearch) else len(np.asarray(z1))
    return score_statistics(found, n, permutations=permutations, seed=seed)


def score_statistics(
    statistics: Mapping[str, Statistic], n: int, *, permutations: int | None = None, seed: int = 0
) -> list[MetricScore]:
    """Statistics of n sources, each with its interval, null and calibrated value.

    All of them see the same random pairings and leave out the same groups of sources.
    """
    values = {name: each.paired(None) for name, each in statistics.items()}
    count = default_permutations(n) if permutations is None else permutations
    rng = np.random.default_rng(seed)
    permuted: dict[str, list[float]] = {name: [] for name in statistics}
    for _ in range(count):
        order = rng.permutation(n)
        for name, each in statistics.items():
            permuted[name].append(each.paired(order))
    found = jackknives(statistics, n, seed=seed) if n >= LEAST_SOURCES else {}
    return [
        _scored(
            name,
            each,
            values[name],
            np.array(permuted[name]),
            found[name] if found and n >= each.least_sources else NO_JACKKNIFE,
            n=n,
        )
        for name, each in statistics.items()
    ]


def _scored(
    name: str,
    statistic: Statistic,
    value: float,
    permuted: NDArray[np.float64],
    jackknife: Jackknife,
    *,
    n: int,
) -> MetricScore:
    threshold = null_threshold(value, permuted)
    permuted_low, permuted_high = np.percentile(permuted, [2.5, 97.5])
    low, high = interval(value, jackknife, n=n, scale=statistic.scale)
    return MetricScore(
        metric=name,
        value=value,
        k=statistic.k,
        n=n,
        std_error=standard_error(jackknife.values),
        low=low,
        high=high,
        permuted_mean=float(permuted.mean()),
        permuted_std=float(permuted.std()),
        permuted_low=float(permuted_low),
        permuted_high=float(permuted_high),
        permutations=len(permuted),
        threshold=threshold,
        calibrated=float(np.clip((value - threshold) / max(1 - threshold, 1e-12), 0, 1)),
        p_value=(1 + int(np.count_nonzero(permuted >= value))) / (1 + len(permuted)),
    )


def jackknives(
    statistics: Mapping[str, Statistic], n: int, *, seed: int = 0
) -> dict[str, Jackknife]:
    """Of each statistic of n sources. All of them leave out the same groups."""
    group = groups(n, seed)
    replicates: dict[str, list[Replicate]] = {name: [] for name in statistics}
    for one in np.unique(group):
        mask = group == one  # one after the other, so that statistics share what is left
        for name, each in statistics.items():
            replicates[name].append(each.replicate(mask))
    return {name: each.jackknife(replicates[name]) for name, each in statistics.items()}


def null_threshold(value: float, permuted: NDArray[np.float64]) -> float:
    """The 1 - LEVEL quantile of the null and the value together, an order statistic.

    NaN for so few random pairings that it would be the value itself.
    """
    combined = np.sort(np.append(permuted, value))
    place = math.ceil((1 - LEVEL) * len(combined)) - 1
    return float(combined[place]) if place < len(permuted) else math.nan
