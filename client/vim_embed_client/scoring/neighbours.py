"""Cosine nearest neighbours, by the operations that scikit-learn does, so that even ties agree.

`pu.metrics.mknn` of platonic-universe has scikit-learn find them: same array, same neighbours.
Knows nothing of scores and files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vim_embed_client.scoring.threads import in_threads

Array = NDArray[Any]
Indices = NDArray[np.int32]

# As scikit-learn: a matrix product over other rows may round, and so break ties, differently.
_BLOCK_BYTES = 2**30
_SELECT_BYTES = 2**24  # of products: so few that they are in a core's cache
_SAMPLE_STEP = 16
_MANY_COLUMNS = 2 * _SAMPLE_STEP  # for each neighbour


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Each of n rows' nearest other rows, nearest first: indices (n, k), distances (n, k).

    Distances are 1 - cosine, from 0 (same direction) to 2.
    """

    indices: Indices
    distances: Array


def nearest_neighbours(z: ArrayLike, k: int) -> Indices:
    """(n, k) indices of each row's k nearest other rows of z (n, d) by cosine, nearest first.

    float32 is computed in float32 and all else in float64, as scikit-learn does. Takes up to a
    GiB for the distances, whatever n is. Raises ValueError unless 1 <= k < n.
    """
    return neighbours_for(checked(z), [k])[0].indices


def neighbours_for(z: Array, ks: Sequence[int]) -> list[Neighbours]:
    """The neighbours at each k; the distances are computed once for all of them.

    z: (n, d), as `checked` gives it. Raises ValueError unless 1 <= k < n for each k.
    """
    n = len(z)
    if not all(1 <= k < n for k in ks):
        raise ValueError(f"k must be from 1 to {n - 1} among {n} sources, got {list(ks)}")
    found = [
        Neighbours(indices=np.empty((n, k), np.int32), distances=np.empty((n, k), z.dtype))
        for k in ks
    ]
    for start, products in _cosine_blocks(z):
        _select_block(found, ks, products, start)
    return found


def _select_block(
    found: Sequence[Neighbours], ks: Sequence[int], products: Array, start: int
) -> None:
    """Write the neighbours of the rows from `start` on, whose cosines with all rows these are."""

    def select(offset: int) -> None:
        distances = _as_distances(products[offset : offset + step])
        rows = np.arange(start + offset, start + offset + len(distances))
        for neighbours, chosen in zip(found, _select_all(distances, rows, ks), strict=True):
            neighbours.indices[rows], neighbours.distances[rows] = chosen

    step = max(1, _SELECT_BYTES // (8 * products.shape[1]))
    in_threads(select, range(0, len(products), step))


class NeighbourSearch:
    """The neighbours of one embedding z (n, d), found once for all who ask.

    find: what finds them, `neighbours_for` if not given.
    """

    def __init__(self, z: ArrayLike, find: Find | None = None) -> None:
        self.z = checked(z)
        self._find = find or neighbours_for
        self._found: dict[int, Neighbours] = {}

    @classmethod
    def of(cls, z: Embedding) -> NeighbourSearch:
        """z itself, if it is one."""
        return z if isinstance(z, cls) else cls(z)  # type: ignore[arg-type]

    def find(self, ks: Iterable[int]) -> None:
        """Find the neighbours at each k in one pass. Raises ValueError unless 1 <= k < n."""
        missing = sorted(set(ks) - set(self._found))
        if missing:
            self._found |= dict(zip(missing, self._find(self.z, missing), strict=True))

    def of_rows(self, rows: Array) -> NeighbourSearch:
        """A search among some of the rows, by the same means. rows: indices or a mask."""
        return NeighbourSearch(self.z[rows], self._find)

    def at(self, k: int) -> Neighbours:
        """The k nearest of each row; errors as `find`."""
        self.find([k])
        return self._found[k]

    def __len__(self) -> int:
        return len(self.z)


Find = Callable[[Array, Sequence[int]], list[Neighbours]]
Embedding = ArrayLike | NeighbourSearch


def neighbours_of(z: ArrayLike, rows: Sequence[int], k: int) -> Neighbours:
    """The neighbours of some rows only, in the order of `rows`: indices, distances (len(rows), k).

    For pictures: where others are equally near, `neighbours_for` may choose other ones of them.
    """
    array = checked(z)
    if not 1 <= k < len(array):
        raise ValueError(f"k must be from 1 to {len(array) - 1} among {len(array)} sources")
    at, unit = np.asarray(rows, np.int64), unit_rows(array)
    ((indices, apart),) = _select_all(_as_distances(unit[at] @ unit.T), at, [k])
    return Neighbours(indices=indices.astype(np.int32), distances=apart)


def checked(z: ArrayLike) -> Array:
    """z as a float array (n, d); raises ValueError if it has another shape or is not finite."""
    array = np.asarray(z)
    if array.dtype != np.float32:
        array = array.astype(np.float64)
    if array.ndim != 2:
        raise ValueError(f"embeddings must have the shape (n, d), got {array.shape}")
    if len(array) < 2:
        raise ValueError(f"neighbours need at least two sources, got {len(array)}")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ValueError(f"{len(bad)} rows are not finite, the first is row {bad[0]}")
    return np.ascontiguousarray(array)


def _cosine_blocks(z: Array) -> Iterator[tuple[int, Array]]:
    """Cosines of a block of rows with all rows, and the block's first row."""
    n, unit = len(z), unit_rows(z)
    step = max(1, _BLOCK_BYTES // (8 * n))
    for start in range(0, n, step):
        products: Array = (unit if step >= n else unit[start : start + step]) @ unit.T
        if step >= n:
            np.fill_diagonal(products, 1.0)
        yield start, products


def unit_rows(z: Array) -> Array:
    """Rows of length one, zero rows as they are.

    Rows so long or short that scikit-learn would lose their direction (it takes short ones as
    they are, and squares of long ones overflow) are scaled in float64 first.
    """
    with np.errstate(over="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", z, z))
    usual = (norms >= 10 * np.finfo(z.dtype).eps) & np.isfinite(norms)
    unit: Array = z / np.where(usual, norms, 1)[:, None]
    odd = np.flatnonzero(~usual)
    if len(odd):
        rows = z[odd].astype(np.float64)
        largest = np.abs(rows).max(axis=1, keepdims=True)
        rows /= np.where(largest > 0, largest, 1)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        unit[odd] = rows / np.where(lengths > 0, lengths, 1)
    return unit


def _as_distances(cosines: Array) -> Array:
    """1 - cosine from 0 to 2, in the place of the cosines."""
    np.subtract(1, cosines, out=cosines)
    return np.clip(cosines, 0.0, 2.0, out=cosines)


def _select_all(
    distances: Array, rows: NDArray[np.int64], ks: Sequence[int]
) -> Iterator[tuple[Array, Array]]:
    """Indices and distances of the nearest at each k, less the row itself.

    One selection serves all ks where no tie makes the neighbours a matter of choice; elsewhere
    each k selects for itself, as scikit-learn would.
    """
    widest = min(max(ks) + 1, distances.shape[1] - 1)
    nearest, apart = _sorted_nearest(distances, widest)
    is_self = nearest == rows[:, None]
    for k in ks:
        clear = is_self[:, : k + 1].any(axis=1)
        if k < widest:
            clear &= apart[:, k] < apart[:, k + 1]
        indices = np.empty((len(rows), k), nearest.dtype)
        keep = ~is_self[clear, : k + 1]
        indices[clear] = nearest[clear, : k + 1][keep].reshape(-1, k)
        tied = np.flatnonzero(~clear)
        if len(tied):
            indices[tied] = _select(distances[tied], rows[tied], k)
        yield indices, np.take_along_axis(distances, indices, axis=1)


def _sorted_nearest(distances: Array, k: int) -> tuple[Array, Array]:
    """The k + 1 nearest columns of each row, nearest first, and their distances."""
    if distances.shape[1] >= _MANY_COLUMNS * (k + 1):
        return _sorted(distances, _nearest_of_many(distances, k))
    return _sorted(distances, _nearest_as_sklearn(distances, k))


def _sorted(distances: Array, nearest: Array) -> tuple[Array, Array]:
    apart = np.take_along_axis(distances, nearest, axis=1)
    order = np.argsort(apart, axis=1)
    return np.take_along_axis(nearest, order, axis=1), np.take_along_axis(apart, order, axis=1)


def _nearest_as_sklearn(distances: Array, k: int) -> Array:
    """The k + 1 nearest columns of each row in any order: of equally near ones, the same."""
    return np.argpartition(distances, k, axis=1)[:, : k + 1]


def _nearest_of_many(distances: Array, k: int) -> Array:
    """The k + 1 nearest columns of each row, in any order.

    The k + 1 nearest of a sample of the columns are no nearer than those of all, so that only
    columns within their reach need to be partitioned: a few thousand of a hundred thousand.
    """
    limits = np.partition(distances[:, ::_SAMPLE_STEP], k, axis=1)[:, k]
    nearest = np.empty((len(distances), k + 1), np.int64)
    for row, limit in enumerate(limits):
        within = np.flatnonzero(distances[row] <= limit)
        nearest[row] = within[np.argpartition(distances[row, within], k)[: k + 1]]
    return nearest


def _select(distances: Array, rows: NDArray[np.int64], k: int) -> Array:
    """The k nearest columns of each row, less the row itself.

    Where more than k others coincide with a row, it may be missing among its own k + 1 nearest:
    then the first of them is left out in its place.
    """
    nearest, _ = _sorted(distances, _nearest_as_sklearn(distances, k))
    keep = nearest != rows[:, None]
    keep[keep.all(axis=1), 0] = False
    others: Array = nearest[keep].reshape(len(distances), k)
    return others
