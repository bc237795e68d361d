"""Embedding files as `vim-embed embed` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vim_embed_client.bulk.outputs import Contents, write_output
from vim_embed_client.bulk.row_shape import EMBEDDING, vector
from vim_embed_client.results import Provenance


def write_embeddings(
    path: Path,
    embeddings: NDArray[Any],
    ids: Sequence[str],
    provenance: Provenance,
    columns: Mapping[str, list[Any]] | None = None,
) -> None:
    """The rows (B, D) with their ids, in the format of the path's ending. columns: beside them."""
    contents = Contents(
        rows=len(embeddings),
        shape=vector(embeddings.shape[1]),
        dtype=embeddings.dtype,
        provenance=provenance,
        blocks=lambda: iter([(list(ids), {EMBEDDING: embeddings})]),
        columns=lambda: [(len(ids), columns or {})],
    )
    write_output(path, contents)
