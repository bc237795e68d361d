"""Second moments of two embeddings of the same sources, of any pairing and of any share of them.

All that linear_metrics needs of an embedding are sums of products over its sources. They are added
up a block of sources at a time, so that the memory is that of the embeddings and of some d x d
matrices. Sums of fewer sources are the whole ones less those of the sources that are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring.neighbours import Array

Order = NDArray[np.int64] | None
Matrix = NDArray[np.float64]
View = Literal["centred", "directions"]

FOLDS = 5
# From so many sources on, random pairings are summed in float32: a block's rounding is far below
# what one pairing differs from the next by.
MANY_SOURCES = 20_000

_BLOCK_ROWS = 8192
_KEPT_BYTES = 2**30
KEPT_VARIANCE = 0.99
_RIDGE = 1.0
_NO_VARIANCE = "one embedding has no variance: all its rows are alike"


@dataclass(frozen=True, eq=False)
class Side:
    """Sums over n sources of one embedding z (n, d).

    total: z. products: z z', (d, d). cubes: z |z|², (d,). fourths: |z|⁴.
    """

    n: int
    total: Matrix
    products: Matrix
    cubes: Matrix
    fourths: float

    def __add__(self, other: Side) -> Side:
        return Side(*(a + b for a, b in zip(_fields(self), _fields(other), strict=True)))

    def __sub__(self, other: Side) -> Side:
        return Side(*(a - b for a, b in zip(_fields(self), _fields(other), strict=True)))

    @cached_property
    def squares(self) -> float:
        """Of |z|²."""
        return float(np.trace(self.products))

    @cached_property
    def scatter(self) -> Matrix:
        """(d, d) products about the mean. Raises ValueError where there is no variance."""
        found: Matrix = self.products - np.outer(self.total, self.total / self.n)
        if np.trace(found) <= 1e-12 * self.squares:
            raise ValueError(_NO_VARIANCE)
        return found

    @cached_property
    def components(self) -> tuple[Matrix, Matrix]:
        """Variances of the components, largest first (d,), and their directions (d, d)."""
        powers, directions = np.linalg.eigh(self.scatter)
        return np.maximum(powers[::-1], 0), directions[:, ::-1]

    @cached_property
    def shares(self) -> Matrix:
        """(d,) of the variance that the first component holds, the first two, and so on."""
        powers, _ = self.components
        found: Matrix = np.cumsum(powers) / powers.sum()
        return found

    def kept(self, variance: float = KEPT_VARIANCE) -> int:
        """How many components hold that share of the variance."""
        count = int(np.searchsorted(self.shares, variance)) + 1
        return min(count, self.n - 1, len(self.shares))

    def whitening(self, variance: float) -> Matrix:
        """(d, r) from centred rows to the orthonormal components that hold so much variance."""
        powers, directions = self.components
        kept = self.kept(variance)
        white: Matrix = directions[:, :kept] / np.sqrt(powers[:kept])
        return white

    @cached_property
    def ridge_inverse(self) -> Matrix:
        """(d, d) of the products about the mean and the penalty of ridge regression."""
        about_mean = self.products - np.outer(self.total, self.total / self.n)
        return np.asarray(np.linalg.inv(about_mean + _RIDGE * np.eye(len(about_mean))), np.float64)


@dataclass(frozen=True, eq=False)
class Cross:
    """Sums over paired sources of x (n, d1) and y (n, d2).

    products: x y', (d1, d2). squares: |x|² |y|². left: x |y|², (d1,). right: |x|² y, (d2,). total
    (d2,) and column_squares (d2,): y and its squares, of those paired with the sources of a fold.
    """

    products: Matrix
    squares: float
    left: Matrix
    right: Matrix
    total: Matrix
    column_squares: Matrix

    def __add__(self, other: Cross) -> Cross:
        return Cross(*(a + b for a, b in zip(_fields(self), _fields(other), strict=True)))

    def __sub__(self, other: Cross) -> Cross:
        return Cross(*(a - b for a, b in zip(_fields(self), _fields(other), strict=True)))


@dataclass(frozen=True, eq=False)
class Moments:
    """All sums of one pairing, by fold and whole.

    training: of x outside of each fold. kept: the share of the variance of each embedding that its
    leading components are to hold.
    """

    first: Side
    second: Side
    crosses: Sequence[Cross]
    first_folds: Sequence[Side]
    training: Sequence[Side]
    kept: tuple[float, float] = (KEPT_VARIANCE, KEPT_VARIANCE)

    @cached_property
    def whitenings(self) -> tuple[Matrix, Matrix]:
        """From centred rows of each embedding to its orthonormal leading components."""
        return self.first.whitening(self.kept[0]), self.second.whitening(self.kept[1])

    @cached_property
    def cross(self) -> Cross:
        """Of all folds."""
        whole = self.crosses[0]
        for fold in self.crosses[1:]:
            whole = whole + fold
        return whole

    @cached_property
    def covariance(self) -> Matrix:
        """(d1, d2) products of x and y about their means."""
        found: Matrix = self.cross.products - np.outer(
            self.first.total, self.second.total / self.first.n
        )
        return found

    @cached_property
    def canonical(self) -> tuple[Matrix, Matrix]:
        """Left canonical directions (r1, r) of the whitened embeddings, and correlations (r,)."""
        first, second = self.whitenings
        white = first.T @ self.covariance @ second
        left, correlations, _ = np.linalg.svd(white, full_matrices=False)
        return left, np.clip(correlations, 0, 1)


class PairedRows:
    """Two embeddings of the same n sources, and their moments for any pairing of the rows.

    view: `centred` rows less their mean, or `directions` (see `of_directions`). folds: (n,) the
    fold of each source, every fifth if not given. What was asked for last is kept, so that several
    metrics of one pairing share it.
    """

    def __init__(
        self, x: Array, y: Array, view: View = "centred", folds: NDArray[np.int64] | None = None
    ) -> None:
        self._x, self._y = _Rows(x, view), _Rows(y, view)
        self._view, self.n = view, len(x)
        self._folds = np.arange(self.n) % FOLDS if folds is None else folds
        self._last: tuple[object, Moments] | None = None

    @cached_property
    def _whole(self) -> Moments:
        every = np.arange(self.n)
        sides = [self._x.sides(self._split(every)), self._y.sides(self._split(every))]
        first, second = _sum(sides[0]), _sum(sides[1])
        return Moments(
            first=first,
            second=second,
            crosses=self._crosses(every, None, np.float64),
            first_folds=sides[0],
            training=[first - fold for fold in sides[0]],
        )

    def paired(self, order: Order) -> Moments:
        """Row i of the first with row order[i] of the second; None: as they are."""
        if order is None:
            return self._whole
        if self._last is None or self._last[0] is not order:
            whole = self._whole
            dtype = np.float32 if self.n >= MANY_SOURCES else np.float64
            crosses = self._crosses(np.arange(self.n), order, dtype)
            found = Moments(whole.first, whole.second, crosses, whole.first_folds, whole.training)
            self._last = (order, found)
        return self._last[1]

    def without(self, left_out: NDArray[np.bool_]) -> Moments:
        """The moments of the other sources; these keep their folds."""
        if self._last is None or self._last[0] is not left_out:
            self._last = (left_out, self._remaining(left_out))
        return self._last[1]

    def _remaining(self, left_out: NDArray[np.bool_]) -> Moments:
        whole, rows = self._whole, np.flatnonzero(left_out)
        gone = [side.sides(self._split(rows)) for side in (self._x, self._y)]
        first, second = whole.first - _sum(gone[0]), whole.second - _sum(gone[1])
        sides = ((whole.first, first), (whole.second, second))
        if self._view == "centred" and any(_cancels(*pair) for pair in sides):
            kept = ~left_out
            others = self._x.values[kept], self._y.values[kept]
            return PairedRows(*others, self._view, self._folds[kept]).paired(None)
        folds = [a - b for a, b in zip(whole.first_folds, gone[0], strict=True)]
        crosses = self._crosses(rows, None, np.float64)
        return Moments(
            first=first,
            second=second,
            crosses=[a - b for a, b in zip(whole.crosses, crosses, strict=True)],
            first_folds=folds,
            training=[first - fold for fold in folds],
        )

    def _split(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [rows[self._folds[rows] == fold] for fold in range(FOLDS)]

    def _crosses(self, rows: NDArray[np.int64], order: Order, dtype: type) -> list[Cross]:
        return [self._cross(fold, order, dtype) for fold in self._split(rows)]

    def _cross(self, rows: NDArray[np.int64], order: Order, dtype: type) -> Cross:
        d1, d2 = self._x.width, self._y.width
        products, left, right = np.zeros((d1, d2)), np.zeros(d1), np.zeros(d2)
        total, column_squares, squares = np.zeros(d2), np.zeros(d2), 0.0
        others = rows if order is None else order[rows]
        for block in _blocks(len(rows)):
            x, y = self._x.block(rows[block], dtype), self._y.block(others[block], dtype)
            powers = [np.einsum("ij,ij->i", z, z) for z in (x, y)]
            products += x.T @ y
            squares += float(powers[0] @ powers[1])
            left += powers[1] @ x
            right += powers[0] @ y
            total += y.sum(axis=0)
            column_squares += np.einsum("ij,ij->j", y, y)
        return Cross(products, squares, left, right, total, column_squares)


def of_directions(directions: Matrix, mean: Matrix) -> Matrix:
    """(n, d + 2) of rows u of length one: v, v m and 1, where u = m + v, of which m is the mean.

    The cosine of two rows is |m|² + (v_i m + v_j m + v_i v_j). What is in brackets keeps its digits
    where all rows are nearly parallel, as mean-pooled tokens are.
    """
    apart = directions - mean
    along = apart @ mean
    return np.column_stack([apart, along, np.ones(len(apart))])


class _Rows:
    """The rows of one embedding in blocks of a view. width: of a row."""

    def __init__(self, z: Array, view: View) -> None:
        self.values = z
        self._directions = view == "directions"
        self.width = z.shape[1] + 2 * self._directions
        most, least = z.max(axis=0).astype(np.float64), z.min(axis=0).astype(np.float64)
        reach = np.maximum(most, -least)
        largest = float(reach.max())
        # Where squares would overflow or vanish, in units of the largest number.
        usual = 1e-100 < largest < 1e100 or largest == 0
        self._scale = 1.0 if usual else 1 / largest
        blocks = (self._plain(np.arange(len(z))[part]) for part in _blocks(len(z)))
        self._mean: Matrix = np.sum([block.sum(axis=0) for block in blocks], axis=0) / len(z)
        apart = most * self._scale - least * self._scale
        self._constant = np.flatnonzero(apart <= 1e-12 * reach * self._scale)

    def block(self, rows: NDArray[np.int64], dtype: type) -> Array:
        """(len(rows), d) in float64 or float32."""
        if dtype == np.float32 and self._float32 is not None:
            kept: Array = self._float32[rows]
            return kept
        return self._viewed(rows).astype(dtype, copy=False)

    @cached_property
    def _float32(self) -> Array | None:
        """All rows, for many pairings of them; None where they would take too much memory."""
        if 4 * self.values.size > _KEPT_BYTES:
            return None
        kept = np.empty((len(self.values), self.width), np.float32)
        for part in _blocks(len(kept)):
            kept[part] = self._viewed(np.arange(len(kept))[part])
        return kept

    def _viewed(self, rows: NDArray[np.int64]) -> Matrix:
        values = self._plain(rows)
        if self._directions:
            return of_directions(values, self._mean)
        values -= self._mean
        values[:, self._constant] = 0
        return values

    def _plain(self, rows: NDArray[np.int64]) -> Matrix:
        """Rows of length one, or in units that can be squared."""
        values: Matrix = self.values[rows].astype(np.float64)
        if not self._directions:
            values *= self._scale
            return values
        largest = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
        if not largest.all():
            raise ValueError(f"row {rows[largest.argmin()]} is zero: it has no direction")
        values /= largest
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        return values

    def sides(self, folds: Sequence[NDArray[np.int64]]) -> list[Side]:
        return [self._side(rows) for rows in folds]

    def _side(self, rows: NDArray[np.int64]) -> Side:
        d = self.width
        total, products, cubes, fourths = np.zeros(d), np.zeros((d, d)), np.zeros(d), 0.0
        for part in _blocks(len(rows)):
            block = self.block(rows[part], np.float64)
            powers = np.einsum("ij,ij->i", block, block)
            total += block.sum(axis=0)
            products += block.T @ block
            cubes += powers @ block
            fourths += float(powers @ powers)
        return Side(len(rows), total, products, cubes, fourths)


def _fields(one: Side | Cross) -> list[Any]:
    return [getattr(one, name) for name in one.__dataclass_fields__]


def _sum(sides: Sequence[Side]) -> Side:
    whole = sides[0]
    for side in sides[1:]:
        whole = whole + side
    return whole


def _cancels(whole: Side, rest: Side) -> bool:
    """Whether so little variance is left that a difference of sums has lost its digits."""
    about_mean = rest.squares - float(rest.total @ rest.total) / rest.n
    return about_mean < 1e-6 * whole.squares


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK_ROWS) for start in range(0, n, _BLOCK_ROWS))
