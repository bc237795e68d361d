"""MKNN: how far two embeddings of the same sources agree on which sources are alike.

The mean overlap of cosine k-nearest neighbours, self excluded (Huh et al. 2024, "The Platonic
Representation Hypothesis"), and the number of `pu.metrics.mknn` of platonic-universe, ties and
all. (The release 0.1.0 scores arrays in the dtype they have; later versions convert to float64
first, which can part near-ties otherwise: pass float64 for their number.) Reading files is in
embedding_files.py, the command in cli/score.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vim_embed_client.scoring.neighbours import (
    Array,
    Embedding,
    Indices,
    Neighbours,
    NeighbourSearch,
)
from vim_embed_client.scoring.threads import in_threads

# platonic-universe's own k, and round steps around it.
PLATONIC_K = 10
DEFAULT_KS = (1, 2, 5, PLATONIC_K, 20, 50, 100)

# Fewer say next to nothing of other draws, and a jackknife of two gives an interval of no width.
LEAST_SOURCES = 10

PERMUTATIONS = 200

_NORMAL_95 = 1.96
_COMPARED_BYTES = 2**24
_MARKED_BYTES = 2**24
_MARKS_A_NEIGHBOUR = 32
_PERMUTED_TOGETHER = 20


@dataclass(frozen=True, kw_only=True)
class Score:
    """MKNN of `n` sources at `k`, beside what chance would give.

    std_error: of mknn over the draw of sources, by `jackknife_error`. low, high: mknn ± 1.96 of
    it, a 95 % interval; all three NaN for fewer than LEAST_SOURCES, and where k is n - 2 or more:
    once a source is left out, MKNN is 1 whatever the embeddings. chance: k / (n - 1). permuted_*:
    mean, standard deviation and central 95 % of MKNN over randomly permuted pairings. p_value:
    share of those, with the true one counted among them, that score at least as high. tied: share
    of the 2 n neighbour lists that end amid equal distances, so that the order of the rows decided
    who is in them.
    """

    mknn: float
    k: int
    n: int
    std_error: float
    low: float
    high: float
    chance: float
    permuted_mean: float
    permuted_std: float
    permuted_low: float
    permuted_high: float
    permutations: int
    p_value: float
    tied: float

    @property
    def has_interval(self) -> bool:
        """Whether the sources were enough for an interval; see LEAST_SOURCES."""
        return not math.isnan(self.std_error)

    def as_dict(self) -> dict[str, float | int | None]:
        """The fields under their names, for JSON; what there is none of is None."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


def mknn(z1: ArrayLike, z2: ArrayLike, k: int = PLATONIC_K) -> float:
    """Mean overlap of the k nearest neighbours in z1 (n, d1) and z2 (n, d2), from 0 to 1.

    Row i of both is the same source. k >= n counts as n - 1. Raises ValueError for arrays that
    are not 2-D, differ in length, have fewer than two rows or are not finite.
    """
    first, second = _checked_pair(z1, z2)
    k = _checked_k(k, len(first))
    return mean_overlap(first.at(k).indices, second.at(k).indices)


def overlaps(first: Indices, second: Indices) -> NDArray[np.int64]:
    """(n,) how many neighbours each row of two (n, k) neighbour lists shares."""
    both = np.sort(np.concatenate([first, second], axis=1), axis=1)
    shared: NDArray[np.int64] = np.count_nonzero(both[:, 1:] == both[:, :-1], axis=1)
    return shared


def mean_overlap(first: Indices, second: Indices) -> float:
    """MKNN of two (n, k) neighbour lists."""
    return float(np.mean(overlaps(first, second)) / first.shape[1])


def chance(n: int, k: int) -> float:
    """Expected MKNN of unrelated embeddings: two random k-subsets of n - 1 share k² / (n - 1)."""
    return k / (n - 1)


def permutation_baseline(
    first: Indices, second: Indices, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> NDArray[np.float64]:
    """(permutations,) MKNN after pairing the rows of two neighbour lists at random.

    Permuting the rows of an embedding relabels its neighbour lists, so no distance is computed
    again.
    """
    n, k = first.shape
    rng = np.random.default_rng(seed)
    shared: list[int] = []
    while len(shared) < permutations:
        count = min(_PERMUTED_TOGETHER, permutations - len(shared))
        shared += _shared_when_permuted(first, second, [rng.permutation(n) for _ in range(count)])
    scores: NDArray[np.float64] = np.array(shared) / (n * k)
    return scores


def _shared_when_permuted(
    first: Indices, second: Indices, orders: Sequence[NDArray[np.int64]]
) -> list[int]:
    """How many neighbours all rows share at each pairing.

    A table for each row marks the neighbours' last bits, so that few pairs must be looked at.
    """
    n, k = first.shape
    size = 1 << (_MARKS_A_NEIGHBOUR * k).bit_length()
    places = [np.argsort(order).astype(np.int32) for order in orders]
    step = max(1, _MARKED_BYTES // size)

    def shared_in(start: int) -> NDArray[np.int64]:
        block = first[start : start + step]
        rows = np.arange(len(block))[:, None]
        marked = np.zeros((len(block), size), bool)
        marked[rows, block & (size - 1)] = True
        shared = np.zeros(len(orders), np.int64)
        for i, (order, place) in enumerate(zip(orders, places, strict=True)):
            others = place[second[order[start : start + step]]]
            row, column = np.nonzero(marked[rows, others & (size - 1)])
            shared[i] = np.count_nonzero(block[row] == others[row, column][:, None])
        return shared

    return [int(count) for count in np.sum(in_threads(shared_in, range(0, n, step)), axis=0)]


def jackknife_error(
    first: Indices, second: Indices, wider_first: Indices, wider_second: Indices
) -> float:
    """Standard error of MKNN over the draw of sources: the delete-one jackknife.

    Efron and Stein 1981 (Annals of Statistics 9, 586): it is too large rather than too small on
    average, whatever the statistic. Sources are not independent here, since each is a neighbour
    of others; what it would be to lose one is computed exactly, from the neighbour that moves up.
    The bootstrap is no alternative: Abadie and Imbens 2008 (Econometrica 76, 1537) show that it
    fails for estimators that match nearest neighbours.

    first, second: (n, k) neighbour lists. wider_first, wider_second: (n, k + 1).
    """
    n, k = first.shape
    gains = np.zeros(n)
    for rows in _row_blocks(n, k):
        one, two = first[rows], second[rows]
        up, down = _additional(wider_first[rows], one), _additional(wider_second[rows], two)
        _add_gains(gains, one, two, up, down)
    shared = overlaps(first, second)
    without = (shared.sum() - shared + gains) / ((n - 1) * k)
    return float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))


def _additional(wider: Indices, lists: Indices) -> Indices:
    """(n,) the first neighbour of the wider lists that the narrower ones lack."""
    added = (wider[:, :, None] != lists[:, None, :]).all(axis=2).argmax(axis=1)
    chosen: Indices = wider[np.arange(len(wider)), added]
    return chosen


def _add_gains(gains: Array, first: Indices, second: Indices, up: Indices, down: Indices) -> None:
    """Add to gains[j] what the rows' overlaps change by when j is taken out of their lists.

    up, down: the neighbours that follow in `first` and `second`.
    """
    common = first[:, :, None] == second[:, None, :]
    up_fits = (second == up[:, None]).any(axis=1).astype(np.float64)
    down_fits = (first == down[:, None]).any(axis=1).astype(np.float64)
    in_both = up_fits + down_fits + (up == down) - 1
    of_first = np.where(common.any(axis=2), in_both[:, None], up_fits[:, None])
    of_second = np.where(common.any(axis=1), 0.0, down_fits[:, None])
    np.add.at(gains, first, of_first)
    np.add.at(gains, second, of_second)


def _row_blocks(n: int, k: int) -> list[slice]:
    step = max(1, _COMPARED_BYTES // k**2)
    return [slice(start, start + step) for start in range(0, n, step)]


def score(
    z1: ArrayLike,
    z2: ArrayLike,
    k: int = PLATONIC_K,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Score:
    """MKNN with its interval and its baselines; arguments and errors as `mknn`."""
    return score_curve(z1, z2, [k], permutations=permutations, seed=seed)[0]


def score_curve(
    z1: Embedding,
    z2: Embedding,
    ks: Sequence[int] | None = None,
    *,
    permutations: int | None = None,
    seed: int = 0,
) -> list[Score]:
    """`score` at each k, in rising order (default: `default_ks`).

    The distances are computed once for all of them. k >= n counts as n - 1; errors as `mknn`.
    """
    first, second = _checked_pair(z1, z2)
    n = len(first)
    ks = default_ks(n) if ks is None else sorted({_checked_k(k, n) for k in ks})
    for search in (first, second):
        search.find(searched_ks(ks, n))
    scores = []
    for k in ks:
        wider = None if k == n - 1 else (first.at(k + 1), second.at(k + 1))
        lists = first.at(k).indices, second.at(k).indices
        permuted = permutation_baseline(
            *lists, permutations=permutations or PERMUTATIONS, seed=seed
        )
        error = math.nan
        if wider and n >= LEAST_SOURCES and k < n - 2:
            error = jackknife_error(*lists, wider[0].indices, wider[1].indices)
        tied = float(np.mean([ends_amid_ties(w) for w in wider])) if wider else 0.0
        scores.append(_score(mean_overlap(*lists), error, permuted, tied, n, k))
    return scores


def searched_ks(ks: Sequence[int], n: int) -> set[int]:
    """Which neighbours `score_curve` asks for, at these k among n sources."""
    return {*ks, *(min(k + 1, n - 1) for k in ks)}


def ends_amid_ties(wider: Neighbours) -> float:
    """Share of rows whose last two of the k + 1 nearest are equally far."""
    return float(np.mean(wider.distances[:, -1] == wider.distances[:, -2]))


def _score(
    value: float, error: float, permuted: NDArray[np.float64], tied: float, n: int, k: int
) -> Score:
    low, high = np.percentile(permuted, [2.5, 97.5])
    return Score(
        mknn=value,
        k=k,
        n=n,
        std_error=error,
        low=float(np.maximum(0.0, value - _NORMAL_95 * error)),
        high=float(np.minimum(1.0, value + _NORMAL_95 * error)),
        chance=chance(n, k),
        permuted_mean=float(permuted.mean()),
        permuted_std=float(permuted.std()),
        permuted_low=float(low),
        permuted_high=float(high),
        permutations=len(permuted),
        tied=tied,
        p_value=(1 + int(np.count_nonzero(permuted >= value))) / (1 + len(permuted)),
    )


def default_ks(n: int) -> list[int]:
    """DEFAULT_KS as far as n sources have so many neighbours."""
    return [k for k in DEFAULT_KS if k < n]


def curve_ks(n: int) -> list[int]:
    """About a dozen k from 1 to 100, evenly spread on a logarithmic scale, all below n / 2."""
    most = max(1, min(100, n // 2))
    return sorted({round(k) for k in np.geomspace(1, most, 13)})


def _checked_pair(z1: Embedding, z2: Embedding) -> tuple[NeighbourSearch, NeighbourSearch]:
    first, second = NeighbourSearch.of(z1), NeighbourSearch.of(z2)
    if len(first) != len(second):
        raise ValueError(
            f"the embeddings have {len(first)} and {len(second)} rows: row i of both must be "
            "the same source"
        )
    return first, second


def _checked_k(k: int, n: int) -> int:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return min(k, n - 1)
