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
    n, k = first.shape
    back = np.zeros(n)
    step = max(1, _BLOCK // k**2)
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        returned = first[second[rows]] == rows[:, None, None]
        returned &= (second[rows] >= 0)[:, :, None]
        back[rows] = returned.any(axis=(1, 2))
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
    return _sparse_hsic(len(lists), *_shared_pairs(lists, cosines, lists, cosines))


def _shared_pairs(
    first: Indices, near: Array, second: Indices, beside: Array
) -> tuple[NDArray[np.int64], NDArray[np.int64], Values, Values]:
    """The pairs (row, neighbour) of both lists with their two cosines."""
    n = len(first)
    rows = np.arange(n)[:, None]
    sides = []
    for lists, cosines in ((first, near), (second, beside)):
        there = lists >= 0
        codes = (rows * n + lists)[there]
        order = np.argsort(codes)
        sides.append((codes[order], cosines[there][order].astype(np.float64)))
    (codes1, values1), (codes2, values2) = sides
    codes, at1, at2 = np.intersect1d(codes1, codes2, assume_unique=True, return_indices=True)
    return codes // n, codes % n, values1[at1], values2[at2]


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
