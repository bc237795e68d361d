"""Two numbers for each embedding: principal components, or UMAP where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array

_BLOCK_ROWS = 8192
_UMAP_NEIGHBOURS = 15
_LEAST_UMAP = 8


@dataclass(frozen=True, kw_only=True)
class Projection:
    """coordinates: (n, 2). axes: what the two are called. about: how they were made."""

    coordinates: NDArray[np.float64]
    axes: tuple[str, str]
    about: str


def pca(z: Array, seed: int = 0) -> Projection:
    """The first two principal components of z (n, d), as it is; signs fixed, no chance involved.

    Raises InputError if all rows are the same.
    """
    mean = z.mean(axis=0, dtype=np.float64)
    d = z.shape[1]
    scatter = np.zeros((d, d))
    for start in range(0, len(z), _BLOCK_ROWS):
        part = z[start : start + _BLOCK_ROWS] - mean
        scatter += part.T @ part
    variances, directions = np.linalg.eigh(scatter)
    total = float(variances.sum())
    if total <= 0:
        raise InputError("all embeddings are the same, so that there is nothing to map")
    chosen = directions[:, ::-1][:, :2]
    chosen = chosen * np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(chosen.shape[1])])
    coordinates = np.zeros((len(z), 2))
    coordinates[:, : chosen.shape[1]] = z @ chosen - mean @ chosen
    shares = [*(np.clip(variances[::-1][:2], 0, None) / total), 0.0]
    first, second = (
        f"PC {i} ({100 * share:.1f} % of variance)" for i, share in enumerate(shares[:2], 1)
    )
    return Projection(
        coordinates=coordinates,
        axes=(first, second),
        about="principal components of the embeddings as they are, in their own units",
    )


def umap(z: Array, seed: int = 0) -> Projection:
    """UMAP (McInnes et al. 2018) by cosine distance, as MKNN has it; the same for the same seed.

    Raises ConfigurationError without umap-learn, and InputError for too few rows.
    """
    if find_spec("umap") is None:
        raise ConfigurationError(
            '--method umap needs umap-learn: pip install "vim-embed[umap]", or take --method pca'
        )
    if len(z) < _LEAST_UMAP:
        raise InputError(f"UMAP needs at least {_LEAST_UMAP} rows, got {len(z)}: --method pca")
    from umap import UMAP

    near = min(_UMAP_NEIGHBOURS, len(z) - 1)
    mapped = UMAP(
        n_neighbors=near, metric="cosine", random_state=seed, n_jobs=1, init=pca(z).coordinates
    ).fit_transform(z)
    return Projection(
        coordinates=np.asarray(mapped, np.float64),
        axes=("UMAP 1 (no unit)", "UMAP 2 (no unit)"),
        about=f"UMAP by cosine distance, {near} neighbours, seed {seed}: only who is near whom "
        "has a meaning",
    )


METHODS: dict[str, Callable[[Array, int], Projection]] = {"pca": pca, "umap": umap}
