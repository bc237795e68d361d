"""Whether an embedding's neighbours agree in a property that a catalogue gives: z, mass, a class.

Knows no catalogues: the values come in the order of the rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring.metrics import MetricScore, Statistic, score_statistics
from vim_embed_client.scoring.mknn import PLATONIC_K
from vim_embed_client.scoring.moments import Order
from vim_embed_client.scoring.neighbour_lists import Lists
from vim_embed_client.scoring.neighbours import Embedding, NeighbourSearch

Values = NDArray[Any]


class PropertyStatistic(Statistic):
    """Agreement of the k nearest in a property: 0 for random neighbours, 1 for the same values.

    Of numbers: 1 less the mean absolute difference to the neighbours over that of all pairs. Of
    texts: the share of neighbours of the same class less that of all pairs, over 1 less the
    latter (as Cohen's kappa takes chance out). NaN for values that are all alike.
    """

    scale = "correlation"

    def __init__(self, lists: Lists, values: Values) -> None:
        self._lists, self._values = lists, values
        self._is_number = values.dtype.kind in "fiu"
        self.k = lists.k

    def paired(self, order: Order) -> float:
        return self._agreement(self._lists, self._values if order is None else self._values[order])

    def without(self, left_out: NDArray[np.bool_]) -> float:
        return self._agreement(self._lists.without(left_out), self._values[~left_out])

    def _agreement(self, lists: Lists, values: Values) -> float:
        near, _ = lists.near
        there = near >= 0
        neighbours, own = values[near], np.broadcast_to(values[:, None], near.shape)
        if self._is_number:
            apart, usual = np.abs(neighbours - own)[there].mean(), mean_difference(values)
            return 1 - float(apart) / usual if usual else math.nan
        alike, by_chance = float((neighbours == own)[there].mean()), same_class(values)
        return (alike - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan


def mean_difference(values: Values) -> float:
    """Mean absolute difference of all pairs of numbers (Gini's)."""
    n = len(values)
    weights = 2 * np.arange(n) - n + 1
    return float(weights @ np.sort(values.astype(np.float64))) * 2 / (n * (n - 1))


def same_class(values: Values) -> float:
    """Share of all pairs that are of one class."""
    _, counts = np.unique(values, return_counts=True)
    n = len(values)
    return float((counts * (counts - 1)).sum() / (n * (n - 1)))


def property_agreement(
    z: Embedding,
    values: Values,
    *,
    name: str = "property",
    k: int = PLATONIC_K,
    permutations: int | None = None,
    seed: int = 0,
) -> MetricScore:
    """The agreement with its interval, null (values dealt out at random) and calibrated value.

    values: (n,) numbers, NaN where there is none, or texts, empty where there is none; such rows
    are left out. There is no interval where so few values differ that all others may be alike.
    Raises ValueError where all values are alike, and as metrics.statistics does.
    """
    search = NeighbourSearch.of(z)
    if len(search) != len(values):
        raise ValueError(f"there are {len(search)} rows and {len(values)} values")
    known = ~np.isnan(values) if values.dtype.kind == "f" else values != ""
    values = values[known]
    if len(np.unique(values)) < 2:
        raise ValueError(f"{name} has fewer than two different values")
    if not known.all():
        search = search.of_rows(known)
    statistic = PropertyStatistic(Lists.of(search, k), values)
    (found,) = score_statistics(
        {name: statistic}, len(search), permutations=permutations, seed=seed
    )
    return found
