"""Neighbour lists of one or two embeddings, also for other pairings and fewer sources.

Lists are searched for once, a little longer than asked: what is left out of them makes room.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring import list_metrics
from vim_embed_client.scoring.moments import Order
from vim_embed_client.scoring.neighbours import (
    Array,
    Embedding,
    Indices,
    Neighbours,
    NeighbourSearch,
)

_COMPARED = 2**24
_SPARE = 12  # further neighbours, that move up where a group of sources is left out


def wide_k(k: int, n: int) -> int:
    """How many neighbours `Lists` asks for among n sources."""
    return min(n - 1, k + max(_SPARE, k // 2))


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Neighbour lists of one embedding: (n, k), and (n, more) with those that follow.

    cosines: of the wider ones.
    """

    k: int
    wide: Indices
    cosines: Array

    @classmethod
    def of(cls, z: Embedding, k: int) -> Lists:
        search = NeighbourSearch.of(z)
        n = len(search)
        if not 1 <= k < n:
            raise ValueError(f"k must be from 1 to {n - 1} among {n} sources, got {k}")
        search.find({k, wide_k(k, n)})
        found = _following(search.at(k), search.at(wide_k(k, n)))
        return cls(k=k, wide=found.indices, cosines=1 - found.distances)

    @property
    def near(self) -> tuple[Indices, Array]:
        """(n, k) neighbours and their cosines."""
        return self.wide[:, : self.k], self.cosines[:, : self.k]

    @cached_property
    def own_hsic(self) -> float:
        """What CKNNA divides by, of this side; no order of the rows changes it."""
        return list_metrics.own_hsic(*self.near)

    def permuted(self, order: NDArray[np.int64]) -> Lists:
        """The k nearest of the embedding with its rows in this order; -1 stays what it is."""
        place = np.append(np.argsort(order), -1).astype(np.int32)
        near, cosines = self.near
        return _Permuted(k=self.k, wide=place[near[order]], cosines=cosines[order], unpermuted=self)

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


@dataclass(frozen=True, kw_only=True)
class _Permuted(Lists):
    unpermuted: Lists

    @property
    def own_hsic(self) -> float:
        return self.unpermuted.own_hsic


def _following(near: Neighbours, wide: Neighbours) -> Neighbours:
    """The wide neighbours with the near ones first: amid ties, the near ones may be others."""
    k = near.indices.shape[1]
    rows = np.flatnonzero((near.indices != wide.indices[:, :k]).any(axis=1))
    if not len(rows):
        return wide
    indices, distances = wide.indices.copy(), wide.distances.copy()
    width = indices.shape[1]
    for part in np.array_split(rows, 1 + len(rows) * width * k // _COMPARED):
        known = (indices[part, :, None] == near.indices[part, None, :]).any(axis=2)
        others = np.argsort(known, axis=1, kind="stable")[:, : width - k]
        for found, first in ((indices, near.indices), (distances, near.distances)):
            after = np.take_along_axis(found[part], others, axis=1)
            found[part] = np.concatenate([first[part], after], axis=1)
    return Neighbours(indices=indices, distances=distances)


class PairedLists:
    """Neighbour lists of two embeddings of the same sources, for any pairing of the rows.

    What was asked for last is kept, so that several metrics of one pairing share it.
    """

    def __init__(self, first: Lists, second: Lists) -> None:
        self._lists = first, second
        self._last: tuple[object, tuple[Lists, Lists]] | None = None

    @property
    def k(self) -> int:
        return self._lists[0].k

    def paired(self, order: Order) -> tuple[Lists, Lists]:
        """Row i of the first with row order[i] of the second; None: as they are."""
        first, second = self._lists
        if order is None:
            return first, second
        return self._kept(order, lambda: (first, second.permuted(order)))

    def without(self, left_out: NDArray[np.bool_]) -> tuple[Lists, Lists]:
        """The lists of the other sources alone."""
        first, second = self._lists
        return self._kept(left_out, lambda: (first.without(left_out), second.without(left_out)))

    def _kept(self, asked: object, make: Callable[[], tuple[Lists, Lists]]) -> tuple[Lists, Lists]:
        if self._last is None or self._last[0] is not asked:
            self._last = (asked, make())
        return self._last[1]
