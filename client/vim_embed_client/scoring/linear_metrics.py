"""Metrics of two whole embeddings by their inner products: CKA, RSA, CCA, Procrustes, linear R².

Each function prepares two embeddings of the same n sources and gives a function of the order in
which the rows of the second are paired with those of the first: None as they are, or a
permutation. It takes n times d1 times d2 steps and no n x n matrix. Raises ValueError where an
embedding has no variance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring.neighbours import Array

Order = NDArray[np.int64] | None
Paired = Callable[[Order], float]
Matrix = NDArray[np.float64]

_KEPT_VARIANCE = 0.99
_FOLDS = 5
_RIDGE = 1.0


def cka(x: Array, y: Array) -> Paired:
    """Linear CKA (Kornblith et al. 2019), from 0 to 1."""
    a, b = _centred(x), _centred(y)
    scale = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return lambda order: float(np.square(_cross(a, b, order)).sum() / scale)


def unbiased_cka(x: Array, y: Array) -> Paired:
    """CKA with the unbiased HSIC (Song et al. 2012, equation 5): near 0 for unrelated embeddings.

    Of the rows as they are: HSIC takes the means out by itself.
    """
    a, b = _scaled(x), _scaled(y)
    sides = [_Off.of(z) for z in (a, b)]
    own = [
        _hsic(float(np.square(z.T @ z).sum()), side, side)
        for z, side in zip((a, b), sides, strict=True)
    ]

    def paired(order: Order) -> float:
        there = sides[1] if order is None else sides[1].permuted(order)
        cross = float(np.square(_cross(a, b, order)).sum())
        return _hsic(cross, sides[0], there) / float(np.sqrt(own[0] * own[1]))

    return paired


class _Off:
    """Of a kernel z z': its diagonal (n,), and its row sums without it (n,)."""

    def __init__(self, diagonal: Matrix, sums: Matrix) -> None:
        self.diagonal, self.sums = diagonal, sums

    @classmethod
    def of(cls, z: Matrix) -> _Off:
        diagonal = np.einsum("ij,ij->i", z, z)
        return cls(diagonal, z @ z.sum(axis=0) - diagonal)

    def permuted(self, order: NDArray[np.int64]) -> _Off:
        return _Off(self.diagonal[order], self.sums[order])


def _hsic(trace: float, first: _Off, second: _Off) -> float:
    """Unbiased HSIC of two kernels, from the trace of their product and what lies off diagonals."""
    n = len(first.sums)
    if n < 4:
        raise ValueError(f"an unbiased HSIC needs at least 4 sources, got {n}")
    off = trace - float(first.diagonal @ second.diagonal)
    total = float(first.sums.sum() * second.sums.sum()) / ((n - 1) * (n - 2))
    return (off + total - 2 * float(first.sums @ second.sums) / (n - 2)) / (n * (n - 3))


def rsa(x: Array, y: Array) -> Paired:
    """RSA: Pearson correlation of the cosines of all pairs of sources, from -1 to 1."""
    a, b = _unit_rows(x), _unit_rows(y)
    n = len(a)
    pairs = n * (n - 1)
    means = [float(np.square(z.sum(axis=0)).sum() - n) / pairs for z in (a, b)]
    variances = [
        (float(np.square(z.T @ z).sum()) - n) / pairs - mean**2
        for z, mean in zip((a, b), means, strict=True)
    ]
    if min(variances) <= 1e-14:
        raise ValueError("the cosines of one embedding are all alike: it has no geometry")

    def paired(order: Order) -> float:
        product = (float(np.square(_cross(a, b, order)).sum()) - n) / pairs
        return (product - means[0] * means[1]) / float(np.sqrt(variances[0] * variances[1]))

    return paired


def procrustes(x: Array, y: Array) -> Paired:
    """Orthogonal Procrustes similarity, from 0 to 1: the nuclear norm of X'Y at unit norms.

    The Procrustes distance after the best rotation is the root of 2 (1 - this).
    """
    a, b = _centred(x), _centred(y)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return lambda order: float(np.linalg.norm(_cross(a, b, order), "nuc"))


def svcca(x: Array, y: Array) -> Paired:
    """SVCCA (Raghu et al. 2017): mean canonical correlation of the leading components.

    As many components as hold 99 % of the variance.
    """
    a, b = _whitened(x), _whitened(y)
    return lambda order: float(_correlations(a, b, order).mean())


def pwcca(x: Array, y: Array) -> Paired:
    """PWCCA (Morcos et al. 2018): canonical correlations, weighted by what they say of x.

    The weight of a canonical variable is the sum of its absolute products with the columns of x.
    Of the same components as SVCCA.
    """
    a, b = _whitened(x), _whitened(y)
    columns = _centred(x)

    def paired(order: Order) -> float:
        left, correlations, _ = np.linalg.svd(_cross(a, b, order), full_matrices=False)
        weights = np.abs((a @ left).T @ columns).sum(axis=1)
        return float(np.clip(correlations, 0, 1) @ weights / weights.sum())

    return paired


def linear_r2(x: Array, y: Array) -> Paired:
    """Cross-validated R² of y from x by ridge regression, mean over columns of y and five folds.

    At most 1, below 0 where it predicts worse than the mean. Folds take every fifth row; the
    penalty is 1, as in scikit-learn's Ridge, for columns of x and y as they are.
    """
    a, b = _scaled(x, 1.0), _scaled(y, 1.0)
    n = len(a)
    if n < 2 * _FOLDS:
        raise ValueError(f"{_FOLDS} folds need at least {2 * _FOLDS} sources, got {n}")
    folds = [np.arange(n) % _FOLDS == fold for fold in range(_FOLDS)]
    fits = [_Ridge(a, test) for test in folds]
    spread = b.std(axis=0) > 1e-12 * max(1.0, float(np.abs(b).max()))
    if not spread.any():
        raise ValueError("one embedding has no variance: all its rows are alike")
    b = b[:, spread]

    def paired(order: Order) -> float:
        target = b if order is None else b[order]
        return float(np.mean([fit.r2(target) for fit in fits]))

    return paired


class _Ridge:
    """Ridge regression on the rows of x (n, d) outside of `test`, judged on those in it.

    Solved once for all targets; x is not copied.
    """

    def __init__(self, x: Matrix, test: NDArray[np.bool_]) -> None:
        self._x, self._test = x, test
        train = x[~test]
        self._mean = train.mean(axis=0)
        train = train - self._mean
        self._inverse = np.linalg.inv(train.T @ train + _RIDGE * np.eye(x.shape[1]))

    def r2(self, y: Matrix) -> float:
        train, test = y[~self._test], y[self._test]
        mean = train.mean(axis=0)
        weights = self._inverse @ ((self._x[~self._test] - self._mean).T @ (train - mean))
        residual = test - mean - (self._x[self._test] - self._mean) @ weights
        total = np.square(test - test.mean(axis=0)).sum(axis=0)
        known = total > 0
        return float(np.mean(1 - np.square(residual).sum(axis=0)[known] / total[known]))


def _cross(a: Matrix, b: Matrix, order: Order) -> Matrix:
    product: Matrix = a.T @ (b if order is None else b[order])
    return product


def _correlations(a: Matrix, b: Matrix, order: Order) -> Matrix:
    return np.clip(np.linalg.svd(_cross(a, b, order), compute_uv=False), 0, 1)


def _scaled(z: Array, to: float = 0.0) -> Matrix:
    """float64, and where squares would overflow, divided by the largest number."""
    values = np.asarray(z, np.float64)
    largest = float(np.abs(values).max(initial=0.0))
    usual = 1e-100 < largest < 1e100
    return values if usual or largest == 0 else values / largest * (to or 1.0)


def _centred(z: Array) -> Matrix:
    values = _scaled(z)
    centred: Matrix = values - values.mean(axis=0)
    if np.abs(centred).max() <= 1e-12 * np.abs(values).max():
        raise ValueError("one embedding has no variance: all its rows are alike")
    return centred


def _unit_rows(z: Array) -> Matrix:
    values = np.asarray(z, np.float64)
    largest = np.abs(values).max(axis=1, keepdims=True)
    values = values / np.where(largest > 0, largest, 1)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: Matrix = values / np.where(lengths > 0, lengths, 1)
    return unit


def _whitened(z: Array) -> Matrix:
    """The leading principal components, orthonormal: (n, r) with r for 99 % of the variance."""
    centred = _centred(z)
    powers, directions = np.linalg.eigh(centred.T @ centred)
    powers, directions = np.maximum(powers[::-1], 0), directions[:, ::-1]
    shares = np.cumsum(powers) / powers.sum()
    kept = min(int(np.searchsorted(shares, _KEPT_VARIANCE)) + 1, len(centred) - 1, len(powers))
    white: Matrix = centred @ (directions[:, :kept] / np.sqrt(powers[:kept]))
    return white
