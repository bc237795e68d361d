"""How many nearest neighbours two runs over the same images have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vim_embed.types.certificate import Kept
from vim_embed_client.scoring.mknn import LEAST_SOURCES, PLATONIC_K, score_curve
from vim_embed_client.scoring.rare_events import most_events

LEAST_IMAGES = LEAST_SOURCES + PLATONIC_K  # so that a jackknife has a choice of neighbours


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of one pooling. kept: at k = 10, which is MKNN of the two runs; first: at k = 1.

    permuted: MKNN of randomly paired rows. tied: share of lists that end amid equal distances.
    """

    kept: Kept
    first: float
    permuted: float
    tied: float


def agreement(
    pooling: str, reference: NDArray[np.float32], found: NDArray[np.float32]
) -> Agreement:
    """Compare embeddings (n, D) of the same images.

    Rows that are not finite in `found` keep none of their neighbours, and are nobody's.
    """
    finite = np.isfinite(found).all(axis=1)
    share = float(finite.mean())
    if finite.sum() < LEAST_IMAGES:
        none = Kept(pooling=pooling, kept=0.0, std_error=0.0, low=0.0, high=1.0)
        return Agreement(kept=none, first=0.0, permuted=0.0, tied=0.0)
    pair = reference[finite].astype(np.float64), found[finite].astype(np.float64)
    one, ten = score_curve(*pair, [1, PLATONIC_K], permutations=50)
    low, high = interval(ten.mknn, ten.std_error, ten.n, PLATONIC_K)
    kept = Kept(
        pooling=pooling,
        kept=share * ten.mknn,
        std_error=share * ten.std_error,
        low=share * low,
        high=share * high,
    )
    return Agreement(kept=kept, first=share * one.mknn, permuted=ten.permuted_mean, tied=ten.tied)


def interval(kept: float, std_error: float, n: int, k: int) -> tuple[float, float]:
    """A 95 % interval of the share kept: the jackknife's, but never narrower than what rare losses
    leave open.

    Where few neighbours are lost the jackknife sees too little scatter, and where none is, none at
    all. The losses are then counted as by a Poisson law, two lost places an event, and the lower
    end is at its 97.5 % bound. `benchmarks/interval_coverage.py --precision` simulates both.
    """
    low, high = kept - 1.96 * std_error, kept + 1.96 * std_error
    places = n * k
    most = most_events((1 - kept) * places / 2)
    return max(0.0, min(low, 1 - 2 * most / places)), min(1.0, high)
