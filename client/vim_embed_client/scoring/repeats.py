"""Finds rows that equal another row bit for bit: empty cut-outs, files that were copied."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.neighbours import Array

_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Rows of one file that equal others of it.

    first: (n,) for each row, the first row that equals it: itself, where no earlier one does.
    """

    first: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """How many rows equal another one, the first of each group among them."""
        return int(np.isin(self.first, self._repeated()).sum())

    @property
    def groups(self) -> int:
        """How many groups they form."""
        return len(self._repeated())

    @property
    def extra(self) -> NDArray[np.bool_]:
        """(n,) the rows that an earlier one equals."""
        found: NDArray[np.bool_] = self.first != np.arange(len(self.first))
        return found

    def largest(self) -> list[int]:
        """The rows of the largest group, or none."""
        repeated, times = np.unique(self.first[self.extra], return_counts=True)
        if not len(repeated):
            return []
        return [int(row) for row in np.flatnonzero(self.first == repeated[times.argmax()])]

    def _repeated(self) -> NDArray[np.int64]:
        return np.unique(self.first[self.extra])


def find_repeats(z: Array) -> Repeats:
    """The rows of z (n, d) that equal others; 0 and -0 are equal."""
    seen: dict[bytes, int] = {}
    first = np.empty(len(z), np.int64)
    for row, values in enumerate(z):
        first[row] = seen.setdefault((values + 0).tobytes(), row)
    return Repeats(first=first)


def without_repeats(files: tuple[EmbeddingFile, ...]) -> tuple[EmbeddingFile, ...]:
    """Paired files with the sources only that no earlier row equals in any of them.

    Gives back `files` themselves where there are none.
    """
    extra = np.logical_or.reduce([find_repeats(file.embeddings).extra for file in files])
    return tuple(file.take(~extra) for file in files) if extra.any() else files


def describe(file: EmbeddingFile, repeats: Repeats) -> str:
    """`a.npy: 50 rows equal another one bit for bit, in 2 groups; the largest: x, y, z, …`."""
    largest = repeats.largest()
    names = ", ".join(file.name(row) for row in largest[:_EXAMPLES])
    more = ", …" if len(largest) > _EXAMPLES else ""
    groups = "1 group" if repeats.groups == 1 else f"{repeats.groups:,} groups, the largest"
    return (
        f"{file.label}: {repeats.rows:,} rows equal another one bit for bit, in {groups}: "
        f"{names}{more} ({len(largest):,} rows)"
    )
