"""MKNN of every layer of one embedding with every layer of another, as a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vim_embed_client.errors import InputError
from vim_embed_client.scoring.embedding_files import (
    EmbeddingFile,
    read_embeddings,
    split_argument,
    vector_names,
)
from vim_embed_client.scoring.mknn import PLATONIC_K, chance, mean_overlap
from vim_embed_client.scoring.neighbours import Indices, nearest_neighbours
from vim_embed_client.scoring.pairing import pair, usable_rows


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """MKNN of layers: values[i, j] of layer first_layers[i] with layer second_layers[j].

    values: (n1, n2), from 0 to 1; each is what `mknn` gives for the two layers. k: neighbours; n:
    sources; chance: the value of unrelated layers. paired: how rows were brought together. first,
    second: the files, with the embeddings of their first layers.
    """

    first: EmbeddingFile
    second: EmbeddingFile
    first_layers: tuple[str, ...]
    second_layers: tuple[str, ...]
    values: NDArray[np.float64]
    k: int
    n: int
    paired: str

    @property
    def chance(self) -> float:
        return chance(self.n, self.k)

    @property
    def others(self) -> NDArray[np.bool_]:
        """(n1, n2) where the two are not one and the same layer of one file."""
        same = np.array([[a == b for b in self.second_layers] for a in self.first_layers])
        other: NDArray[np.bool_] = ~(same & (self.first.path == self.second.path))
        return other if other.any() else np.ones_like(other)

    def as_dict(self) -> dict[str, Any]:
        """Layers, values (nested lists), k, n, chance, and how rows were paired, for JSON."""
        return {
            "first_layers": list(self.first_layers),
            "second_layers": list(self.second_layers),
            "mknn": self.values.tolist(),
            "k": self.k,
            "n": self.n,
            "chance": self.chance,
            "paired": self.paired,
        }


def mknn_matrix(
    first: Mapping[str, ArrayLike], second: Mapping[str, ArrayLike], k: int = PLATONIC_K
) -> NDArray[np.float64]:
    """(len(first), len(second)) MKNN of each layer with each, as of `embed_layers`.

    Row i of all layers is the same source. k >= n counts as n - 1. Raises ValueError as `mknn`
    does.
    """
    lengths = {len(np.asarray(z)) for z in (*first.values(), *second.values())}
    if len(lengths) != 1:
        raise ValueError(f"the layers have {sorted(lengths)} rows: row i must be the same source")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    k = min(k, lengths.pop() - 1)
    return _matrix(*([nearest_neighbours(z, k) for z in one.values()] for one in (first, second)))


def score_layers(
    first: str,
    second: str,
    *,
    k: int = PLATONIC_K,
    by_row: bool = False,
    drop_invalid: bool = False,
    **pairing: Any,
) -> LayerScores:
    """MKNN of every layer of one file with every layer of another.

    first, second: files as `vim-embed embed --layers` writes them; FILE:NAME is one layer, and
    the same file twice compares a model's layers among themselves. pairing: keywords of `pair`,
    as by_row is. drop_invalid: as of `usable_rows`; a row is dropped where any layer of either
    file has no direction for it. Layers are read one at a time; of each, its neighbour lists stay.
    Raises InputError and ConfigurationError as `read_embeddings` and `pair`.
    """
    columns = [vector_names(argument) for argument in (first, second)]
    one, two = (read_embeddings(some[0], by_row=by_row) for some in columns)
    paired = pair(one, two, by_row=by_row, **pairing)
    rows = [paired.first.numbers, paired.second.numbers]
    good = np.logical_and.reduce(
        [
            _usable(_layers(some, at, by_row), drop=drop_invalid)
            for some, at in zip(columns, rows, strict=True)
        ]
    )
    n = int(good.sum())
    if not 1 <= k < n:
        raise InputError(f"k = {k} needs more than {k} sources, and there are {n}")
    lists = [
        [nearest_neighbours(file.embeddings, k) for file in _layers(some, at[good], by_row)]
        for some, at in zip(columns, rows, strict=True)
    ]
    return LayerScores(
        first=replace(paired.first.take(good), label=first),
        second=replace(paired.second.take(good), label=second),
        first_layers=_names(columns[0]),
        second_layers=_names(columns[1]),
        values=_matrix(*lists),
        k=k,
        n=n,
        paired=paired.how,
    )


def _names(arguments: Sequence[str]) -> tuple[str, ...]:
    """The layers' names; a file of one array goes by its own."""
    return tuple(split_argument(one)[1] or one for one in arguments)


def _layers(
    arguments: Sequence[str], rows: NDArray[np.int64], by_row: bool
) -> Iterator[EmbeddingFile]:
    for argument in arguments:
        yield read_embeddings(argument, by_row=by_row).take(rows)


def _usable(files: Iterator[EmbeddingFile], *, drop: bool) -> NDArray[np.bool_]:
    """Which rows have a direction in every layer. Raises InputError for others, unless `drop`."""
    masks = []
    for file in files:
        (kept,) = usable_rows(file, drop=drop)
        masks.append(np.isin(file.numbers, kept.numbers))
    good: NDArray[np.bool_] = np.logical_and.reduce(masks)
    return good


def _matrix(first: Sequence[Indices], second: Sequence[Indices]) -> NDArray[np.float64]:
    return np.array([[mean_overlap(one, other) for other in second] for one in first])
