"""Metrics of two sets of neighbour lists, as a value for each row.

A list has the indices of a row's nearest other rows, nearest first, as neighbours.py gives them;
-1 stands for none. The definitions are those of Huh et al. 2024 ("The Platonic Representation
Hypothesis"); lengths and distances are divided by k, so that all lie between 0 and 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring.neighbours import Array, Indices

Values = NDArray[np.float64]

_BLOCK = 2**22


def mutual_knn(first: Indices, second: Indices) -> Values:
    """(n,) share of the k neighbours that both lists have: MKNN."""
    both = np.sort(np.concatenate([first, second], axis=1), axis=1)
    same = (both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)
    shares: Values = same.sum(axis=1) / first.shape[1]
    return shares


def cycle_knn(first: Indices, second: Indices) -> Values:
    """(n,) 1 where a row is a first-list neighbour of one of its second-list neighbours, else 0."""
    n = len(first)
    back, rows = np.zeros(n), np.arange(n)
    for block in _row_blocks(second):
        returned = first[second[block]] == rows[block, None, None]
        returned &= (second[block] >= 0)[:, :, None]
        back[block] = returned.any(axis=(1, 2))
    return back


def lcs_knn(first: Indices, second: Indices) -> Values:
    """(n,) length of the longest common subsequence of the two lists, over k."""
    n, k = first.shape
    above: list[NDArray[np.int32]] = [np.zeros(n, np.int32)] * (k + 1)
    for i in range(k):
        row = [np.zeros(n, np.int32)]
        for j in range(k):
            same = (first[:, i] == second[:, j]) & (first[:, i] >= 0)
            row.append(np.where(same, above[j] + 1, np.maximum(above[j + 1], row[j])))
        above = row
    shares: Values = above[k] / k
    return shares


def edit_knn(first: Indices, second: Indices) -> Values:
    """(n,) 1 less the Levenshtein distance of the two lists over k."""
    n, k = first.shape
    above = [np.full(n, j, np.int32) for j in range(k + 1)]
    for i in range(k):
        row = [np.full(n, i + 1, np.int32)]
        for j in range(k):
            other = (first[:, i] != second[:, j]) | (first[:, i] < 0)
            changed = np.minimum(above[j + 1], row[j]) + 1
            row.append(np.minimum(changed, above[j] + other))
        above = row
    shares: Values = 1 - above[k] / k
    return shares


def cknna(
    first: Indices, near: Array, second: Indices, beside: Array, own: tuple[float, float]
) -> float:
    """CKNNA: unbiased kernel alignment over the pairs that are neighbours in both lists.

    near, beside: (n, k) cosines of the lists' neighbours. own: `own_hsic` of each. The unbiased
    HSIC (Song et al. 2012, equation 5) of the kernels, which are zero but for such pairs.
    """
    numerator = _sparse_hsic(len(first), *_shared_pairs(first, near, second, beside))
    denominator = float(np.sqrt(abs(own[0])) * np.sqrt(abs(own[1])))
    return numerator / denominator if denominator else float("nan")


def own_hsic(lists: Indices, cosines: Array) -> float:
    """Unbiased HSIC of the kernel of one embedding's neighbours with itself."""
    rows, places = np.nonzero(lists >= 0)
    values = cosines[rows, places].astype(np.float64)
    return _sparse_hsic(len(lists), rows, lists[rows, places].astype(np.int64), values, values)


def _shared_pairs(
    first: Indices, near: Array, second: Indices, beside: Array
) -> tuple[NDArray[np.int64], NDArray[np.int64], Values, Values]:
    """The pairs (row, neighbour) of both lists with their two cosines."""
    found = [_shared_places(first[block], second[block]) for block in _row_blocks(first)]
    starts = (block.start for block in _row_blocks(first))
    rows = np.concatenate([row + start for (row, _, _), start in zip(found, starts, strict=True)])
    at, other = (np.concatenate([each[side] for each in found]) for side in (1, 2))
    columns = first[rows, at].astype(np.int64)
    values = near[rows, at].astype(np.float64), beside[rows, other].astype(np.float64)
    return rows, columns, *values


def _shared_places(first: Indices, second: Indices) -> tuple[Array, Array, Array]:
    """Row, place in the first list, place in the second, of each neighbour that is in both."""
    same = (first[:, :, None] == second[:, None, :]) & (first >= 0)[:, :, None]
    row, at, other = np.nonzero(same)
    return row, at, other


def _row_blocks(lists: Indices) -> list[slice]:
    n, k = lists.shape
    step = max(1, _BLOCK // k**2)
    return [slice(start, start + step) for start in range(0, n, step)]


def _sparse_hsic(
    n: int, rows: NDArray[np.int64], columns: NDArray[np.int64], k: Values, other: Values
) -> float:
    """Unbiased HSIC of two kernels that are zero but at (rows, columns), without a diagonal."""
    codes, transposed = rows * n + columns, columns * n + rows
    _, at, back = np.intersect1d(codes, transposed, assume_unique=True, return_indices=True)
    trace = float((k[at] * other[back]).sum())
    sums = float(k.sum() * other.sum()) / ((n - 1) * (n - 2))
    by_column = np.bincount(columns, k, minlength=n)
    by_row = np.bincount(rows, other, minlength=n)
    return (trace + sums - 2 * float(by_column @ by_row) / (n - 2)) / (n * (n - 3))
