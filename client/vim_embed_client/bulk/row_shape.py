"""What a row of a bulk run consists of: one vector, one of each layer, or a vector of each token.

A row travels through a run as one flat vector, and its shape beside it. In the files of a part the
values of an array lie together, so that one layer of all rows is read without the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

from vim_embed_client.formats import Array
from vim_embed_client.results import Embeddings, LayerEmbeddings, Provenance

EMBEDDING = "embedding"


class NamedShape(NamedTuple):
    """One array of a row: (D,), or (L, D) for tokens."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


RowShape = tuple[NamedShape, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """What an answer says of its rows."""

    provenance: Provenance
    shape: RowShape


def vector(dim: int) -> RowShape:
    """The shape of a row that is one embedding."""
    return (NamedShape(EMBEDDING, (dim,)),)


def row_size(shape: RowShape) -> int:
    """Numbers in a row."""
    return sum(one.size for one in shape)


def is_layers(shape: RowShape) -> bool:
    return [one.name for one in shape] != [EMBEDDING]


def of_json(found: Iterable[Sequence[Any]]) -> RowShape:
    """The shape that JSON holds as [[name, [sizes]], …]."""
    return tuple(NamedShape(name, tuple(sizes)) for name, sizes in found)


def flat_rows(answer: Embeddings | LayerEmbeddings) -> tuple[Array, Origin]:
    """(B, W) rows of an answer, and what it says of them."""
    if isinstance(answer, LayerEmbeddings):
        arrays: Mapping[str, Array] = answer.layers
    else:
        arrays = {EMBEDDING: answer.embeddings}
    shape = tuple(NamedShape(name, array.shape[1:]) for name, array in arrays.items())
    flat = [array.reshape(len(array), -1) for array in arrays.values()]
    rows = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
    return rows, Origin(answer.provenance, shape)


def by_array(rows: Array, shape: RowShape) -> Array:
    """(n, W) rows as a part stores them: of several arrays one behind the other, flat."""
    if len(shape) < 2:
        return rows
    return np.concatenate([rows[:, start:stop].ravel() for start, stop in _ranges(shape)])


def arrays_of(stored: Array, shape: RowShape, rows: int) -> dict[str, Array]:
    """The arrays (rows, …) of what a part stores, by name, without a copy."""
    flat = stored.reshape(-1)
    return {
        one.name: flat[rows * start : rows * stop].reshape(rows, *one.shape)
        for one, (start, stop) in zip(shape, _ranges(shape), strict=True)
    }


def _ranges(shape: RowShape) -> list[tuple[int, int]]:
    ends = list(accumulate((one.size for one in shape), initial=0))
    return list(pairwise(ends))
