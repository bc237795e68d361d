"""Approximate neighbours of very many sources by faiss, with the share of true ones measured.

An inverted file: the rows are in about 4 √n cells, and a row is compared with those in the cells
next to it. How many cells that must be is found out on a sample of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from vim_embed_client.errors import ConfigurationError
from vim_embed_client.scoring.neighbours import Array, Neighbours, neighbours_of, unit_rows

DEFAULT_RECALL = 0.99

_SAMPLE = 1000
_SAMPLE_BLOCK = 50
_BLOCK_ROWS = 10_000
_TRAINED_A_CELL = 64
_LEAST_A_CELL = 39  # faiss warns of fewer
_SAME = 1e-6


@dataclass(frozen=True, kw_only=True)
class Recall:
    """recall: share of the k nearest that were found, on `sample` rows. wanted: of it, at least.

    cells, searched: of the inverted file, and of these for each row.
    """

    recall: float
    wanted: float
    k: int
    sample: int
    cells: int
    searched: int

    def as_dict(self) -> dict[str, float | int]:
        """The fields under their names, for JSON."""
        return asdict(self)


class ApproximateSearch:
    """What NeighbourSearch finds neighbours with. recalls: of each search that it did.

    Raises ConfigurationError where faiss is not installed.
    """

    def __init__(self, wanted: float = DEFAULT_RECALL, *, seed: int = 0) -> None:
        if find_spec("faiss") is None:
            raise ConfigurationError(
                'approximate neighbours need faiss: pip install "vim-embed[approximate]"'
            )
        self.recalls: list[Recall] = []
        self._wanted, self._seed = wanted, seed

    def __call__(self, z: Array, ks: Sequence[int]) -> list[Neighbours]:
        """The neighbours at each k, as `neighbours_for` finds them exactly."""
        k, unit = max(ks), np.ascontiguousarray(unit_rows(z), np.float32)
        cells = max(1, min(round(4 * math.sqrt(len(z))), len(z) // _LEAST_A_CELL))
        index = _index(unit, cells, self._seed)
        rows = np.random.default_rng(self._seed).permutation(len(z))[:_SAMPLE]
        limits = _kth_distances(z, rows, k)
        searched, recall = 1, 0.0
        while True:
            index.nprobe = searched
            _, apart = _search(index, unit, rows, k)
            recall = float(np.mean(apart <= limits[:, None] + _SAME))
            if recall >= self._wanted or searched == cells:
                break
            searched = min(2 * searched, cells)
        self.recalls.append(
            Recall(
                recall=recall,
                wanted=self._wanted,
                k=k,
                sample=len(rows),
                cells=cells,
                searched=searched,
            )
        )
        indices, distances = _search_all(index, z, unit, k)
        return [Neighbours(indices=indices[:, :k], distances=distances[:, :k]) for k in ks]


def _index(unit: Array, cells: int, seed: int) -> Any:
    import faiss

    form = f"IVF{cells},Flat"
    index: Any = faiss.index_factory(unit.shape[1], form, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed + 1
    chosen = np.random.default_rng(seed).permutation(len(unit))[: cells * _TRAINED_A_CELL]
    index.train(unit[np.sort(chosen)])
    index.add(unit)
    return index


def _kth_distances(z: Array, rows: Array, k: int) -> Array:
    """(len(rows),) exact distance of each row's k-th nearest."""
    found = [
        neighbours_of(z, rows[start : start + _SAMPLE_BLOCK].tolist(), k).distances[:, -1]
        for start in range(0, len(rows), _SAMPLE_BLOCK)
    ]
    return np.concatenate(found)


def _search_all(index: Any, z: Array, unit: Array, k: int) -> tuple[Array, Array]:
    n = len(z)
    indices, distances = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    for start in range(0, n, _BLOCK_ROWS):
        rows = np.arange(start, min(start + _BLOCK_ROWS, n))
        indices[rows], distances[rows] = _search(index, unit, rows, k)
    # Cells with fewer than k rows: such rows are compared with all others.
    short = np.flatnonzero((indices < 0).any(axis=1))
    for start in range(0, len(short), _SAMPLE_BLOCK):
        rows = short[start : start + _SAMPLE_BLOCK]
        exact = neighbours_of(z, rows.tolist(), k)
        indices[rows], distances[rows] = exact.indices, exact.distances
    return indices, distances


def _search(index: Any, unit: Array, rows: Array, k: int) -> tuple[Array, Array]:
    """Indices and distances (len(rows), k) of the nearest others; -1 and inf for none."""
    cosines, found = index.search(unit[rows], k + 1)
    keep = found != rows[:, None]
    keep[keep.all(axis=1), -1] = False
    indices = found[keep].reshape(len(rows), k)
    distances = np.clip(1 - cosines[keep].reshape(len(rows), k), 0, 2)
    distances[indices < 0] = np.inf
    return indices, distances
