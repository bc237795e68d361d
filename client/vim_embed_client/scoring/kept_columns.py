"""The columns that `vim-embed embed` wrote beside the embeddings, as a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vim_embed_client.bulk.outputs import METADATA, read_sidecar
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.sky.tables import Table, read_table


def kept_table(file: EmbeddingFile) -> Table:
    """What is beside the embeddings of a file, a row for each of *its* rows.

    `file.numbers` are the places of the rows that are left of them.
    """
    if file.path.suffix == ".parquet":
        return read_table(file.path)
    return Table.of(file.path, _READERS[file.path.suffix](file.path))


def _of_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        about = json.loads(str(arrays[METADATA])) if METADATA in arrays else {}
    return dict(about.get("columns", {}))


def _of_safetensors(path: Path) -> dict[str, Any]:
    from vim_embed_client.scoring.embedding_files import safetensors_metadata

    metadata = safetensors_metadata(path)
    if "columns" in metadata:
        return dict(json.loads(metadata["columns"]))
    return _of_sidecar(path)


def _of_sidecar(path: Path) -> dict[str, Any]:
    return dict(read_sidecar(path).get("columns", {}))


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npy": _of_sidecar, ".npz": _of_npz, ".safetensors": _of_safetensors,
}  # fmt: skip
