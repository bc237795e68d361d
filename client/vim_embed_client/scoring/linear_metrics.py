"""Metrics of two whole embeddings by their inner products: CKA, RSA, CCA, Procrustes, linear R².

Each is a function of moments.Moments, and so takes n times d1 times d2 steps and no n x n matrix.
Raises ValueError where an embedding has no variance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring.moments import FOLDS, Cross, Matrix, Moments, Side

LinearFunction = Callable[[Moments], float]


def cka(m: Moments) -> float:
    """Linear CKA (Kornblith et al. 2019), from 0 to 1."""
    scale = np.linalg.norm(m.first.scatter) * np.linalg.norm(m.second.scatter)
    return float(np.square(m.covariance).sum() / scale)


def unbiased_cka(m: Moments) -> float:
    """CKA with the unbiased HSIC (Song et al. 2012, equation 5): near 0 for unrelated embeddings.

    Of the rows as they are: HSIC takes the means out by itself.
    """
    n = m.first.n
    if n < 4:
        raise ValueError(f"an unbiased HSIC needs at least 4 sources, got {n}")
    cross = m.cross
    shared = _hsic(m.first, m.second, cross.products, cross.squares, (cross.left, cross.right))
    own = [
        _hsic(side, side, side.products, side.fourths, (side.cubes, side.cubes))
        for side in (m.first, m.second)
    ]
    if min(own) <= 0:
        raise ValueError("one embedding has no variance once its bias is taken out")
    return shared / float(np.sqrt(own[0] * own[1]))


def _hsic(
    a: Side, b: Side, products: Matrix, squares: float, cubes: tuple[Matrix, Matrix]
) -> float:
    """Unbiased HSIC of the kernels z z' less their diagonals, from the sums that it needs."""
    n = a.n
    trace = float(np.square(products).sum()) - squares
    total = (float(a.total @ a.total) - a.squares) * (float(b.total @ b.total) - b.squares)
    by_row = float(a.total @ products @ b.total) + squares
    by_row -= float(a.total @ cubes[0]) + float(b.total @ cubes[1])
    return (trace + total / ((n - 1) * (n - 2)) - 2 * by_row / (n - 2)) / (n * (n - 3))


def rsa(m: Moments) -> float:
    """RSA: Pearson correlation of the cosines of all pairs of sources, from -1 to 1.

    Of moments of directions.
    """
    n = m.first.n
    pairs = n * (n - 1)
    (mean1, same1), (mean2, same2) = (_cosines(side) for side in (m.first, m.second))
    variances = [
        (_cosine_products(side.products) - n * same**2) / pairs - mean**2
        for side, mean, same in ((m.first, mean1, same1), (m.second, mean2, same2))
    ]
    alike = (variances[0] <= 1e-12 * mean1**2, variances[1] <= 1e-12 * mean2**2)
    if any(alike) or min(same1, same2) <= 1e-24:
        raise ValueError("the cosines of one embedding are all alike: it has no geometry")
    shared = (_cosine_products(m.cross.products) - n * same1 * same2) / pairs
    return (shared - mean1 * mean2) / float(np.sqrt(variances[0] * variances[1]))


def _cosines(side: Side) -> tuple[float, float]:
    """Mean cosine of two sources, and that of a source with itself, both less a constant."""
    n, d = side.n, len(side.products) - 2
    along, squares = 2 * float(side.total[d]), float(np.trace(side.products[:d, :d]))
    every = n * along + float(np.square(side.total[:d]).sum())
    return (every - along - squares) / (n * (n - 1)), (along + squares) / n


def _cosine_products(products: Matrix) -> float:
    """Sum over all pairs, sources with themselves among them, of the products of their cosines.

    The cosines, less a constant, are f_i' J f_j of the rows f of moments.of_directions, where J
    swaps the last two numbers.
    """
    swapped = products.copy()
    swapped[[-2, -1]] = swapped[[-1, -2]]
    swapped[:, [-2, -1]] = swapped[:, [-1, -2]]
    return float((products * swapped).sum())


def procrustes(m: Moments) -> float:
    """Orthogonal Procrustes similarity, from 0 to 1: the nuclear norm of X'Y at unit norms.

    The Procrustes distance after the best rotation is the root of 2 (1 - this).
    """
    lengths = np.sqrt(np.trace(m.first.scatter) * np.trace(m.second.scatter))
    return float(np.linalg.svd(m.covariance, compute_uv=False).sum() / lengths)


def svcca(m: Moments) -> float:
    """SVCCA (Raghu et al. 2017): mean canonical correlation of the leading components.

    As many components as hold 99 % of the variance.
    """
    _, correlations = m.canonical
    return float(correlations.mean())


def pwcca(m: Moments) -> float:
    """PWCCA (Morcos et al. 2018): canonical correlations, weighted by what they say of x.

    The weight of a canonical variable is the sum of its absolute products with the columns of x.
    Of the same components as SVCCA.
    """
    left, correlations = m.canonical
    weights = np.abs(left.T @ (m.whitenings[0].T @ m.first.scatter)).sum(axis=1)
    return float(correlations @ weights / weights.sum())


def linear_r2(m: Moments) -> float:
    """Cross-validated R² of y from x by ridge regression, mean over columns of y and five folds.

    At most 1, below 0 where it predicts worse than the mean. Folds take every fifth row; one of a
    single source is left out. The penalty is 1, as in scikit-learn's Ridge, for columns of x and y
    as they are.
    """
    if not _varying(m.cross, m.first.n).any():
        raise ValueError("one embedding has no variance: all its rows are alike")
    return float(np.mean([_fold_r2(m, fold) for fold in range(FOLDS) if m.first_folds[fold].n > 1]))


def _varying(cross: Cross, n: int) -> NDArray[np.bool_]:
    """(d2,) which columns of y vary over the n sources of a cross sum."""
    varies: NDArray[np.bool_] = _about_mean(cross, n) > 1e-12 * cross.column_squares
    return varies


def _about_mean(cross: Cross, n: int) -> Matrix:
    """(d2,) sums of squares of y about its mean."""
    found: Matrix = cross.column_squares - cross.total**2 / n
    return found


def _fold_r2(m: Moments, fold: int) -> float:
    """R² on one fold of what the others predict, mean over the columns that vary in both."""
    test, train, cross = m.first_folds[fold], m.training[fold], m.crosses[fold]
    others = m.cross - cross
    x, y = train.total / train.n, others.total / train.n  # means of the training sources
    weights = train.ridge_inverse @ (others.products - np.outer(train.total, y))
    # Products of the tested sources about these means.
    xx = test.products - np.outer(x, test.total) - np.outer(test.total - test.n * x, x)
    xy = cross.products - np.outer(x, cross.total) - np.outer(test.total - test.n * x, y)
    yy = cross.column_squares - 2 * y * cross.total + test.n * y**2
    residual = yy - 2 * np.einsum("ij,ij->j", weights, xy)
    residual += np.einsum("ij,ij->j", weights, xx @ weights)
    known = _varying(cross, test.n) & _varying(m.cross, m.first.n)
    if not known.any():
        return 0.0
    return float(np.mean(1 - residual[known] / _about_mean(cross, test.n)[known]))
