"""Reads embeddings from the columns of a Parquet file, one column at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array
from vim_embed_client.scoring.ids import counted

PROVENANCE = b"vim_embed.provenance"
LAYERS = b"vim_embed.layers"
MODE = b"vim_embed.mode"
OPTIONS = b"vim_embed.options"


class ParquetColumns(Mapping[str, Array]):
    """Columns of lists or tensors of numbers, by name, each read as (n, d) when it is taken.

    A null row becomes NaN, so that it is treated as any row without an embedding.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise ConfigurationError(
                'reading .parquet needs pyarrow: pip install "vim-embed[parquet]"'
            ) from None
        self._path = path
        self._file = pyarrow.parquet.ParquetFile(path)
        self._schema = self._file.schema_arrow
        names = [f.name for f in self._schema if f.name != "id" and _holds_vectors(f.type)]
        # Of layers, also under the name without platonic-universe's `_hsc` behind it.
        layers: list[str] = json.loads((self._schema.metadata or {}).get(LAYERS, b"[]"))
        self._names = names if len(names) != len(layers) else layers
        self._columns = dict(zip(self._names, names, strict=True)) | {name: name for name in names}

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Array:
        """The column. Raises InputError, naming a row, where the rows are of unequal length."""
        if name not in self._columns:
            raise KeyError(name)
        name = self._columns[name]
        where = f"{self._path}, column {name}"
        _check_vector(self._schema.field(name).type, where)
        chunks = self._read(name).chunks
        present = np.concatenate([_valid(chunk) for chunk in chunks] or [np.zeros(0, bool)])
        rows = np.flatnonzero(present)
        blocks, start = [], 0
        for chunk in chunks:
            good = chunk.filter(chunk.is_valid())
            blocks.append(_Block(good, rows[start : start + len(good)]))
            start += len(good)
        return _joined(blocks, present, where)

    def ids(self) -> list[Any] | None:
        """The values of the column `id`, if there is one."""
        if "id" not in self._schema.names:
            return None
        values: list[Any] = self._read("id").to_pylist()
        return values

    def about(self) -> dict[str, Any]:
        """What `vim-embed embed` wrote of the rows: `provenance`, `mode`, and `options` as JSON."""
        told = self._schema.metadata or {}
        return {
            "provenance": json.loads(told.get(PROVENANCE, b"{}")),
            "mode": json.loads(told.get(MODE, b'""')),
            "options": told.get(OPTIONS),
        }

    def others(self) -> list[str]:
        """The columns that hold no vectors, with their types."""
        return [f"{f.name} ({f.type})" for f in self._schema if f.name not in self._columns]

    def _read(self, name: str) -> Any:
        return self._file.read([name], use_threads=False)[name]


class _Block:
    """Rows that are not null. numbers: where they stand in the file."""

    def __init__(self, rows: Any, numbers: NDArray[np.int64]) -> None:
        self.numbers = numbers
        self.lengths, self.values = _flattened(rows)


def _joined(blocks: list[_Block], present: NDArray[np.bool_], where: str) -> Array:
    lengths = np.concatenate([block.lengths for block in blocks] or [np.zeros(0, np.int64)])
    numbers = np.concatenate([block.numbers for block in blocks] or [np.zeros(0, np.int64)])
    if not len(lengths):
        raise InputError(f"{where}: no row has an embedding")
    odd = np.flatnonzero(lengths != lengths[0])
    if len(odd):
        others = [int(number) for number in numbers[odd]]
        raise InputError(
            f"{where}: {counted(others)} {lengths[odd[0]]} numbers where row {numbers[0]} has "
            f"{lengths[0]}: embeddings of one file have one length; embed again, or leave out "
            "what differs"
        )
    flat = np.concatenate([block.values for block in blocks]).reshape(len(lengths), -1)
    if present.all():
        return flat
    whole = np.full((len(present), flat.shape[1]), np.nan, np.result_type(flat, np.float16))
    whole[present] = flat
    return whole


def _holds_vectors(kind: Any) -> bool:
    """Whether a column of this type has lists of numbers, or tensors of them."""
    import pyarrow.types as is_

    kind = _storage(kind)
    if not _is_list(kind):
        return False
    while _is_list(kind):
        kind = _storage(kind.value_type)
    return bool(is_.is_integer(kind) or is_.is_floating(kind))


def _check_vector(kind: Any, where: str) -> None:
    """Refuse tensors with more than one long axis: tokens or images, not embeddings."""
    shape = getattr(kind, "shape", ())
    if sum(size > 1 for size in shape) > 1:
        raise InputError(
            f"{where} holds tensors of shape {tuple(shape)}: an embedding is one vector a row"
        )


def _storage(kind: Any) -> Any:
    import pyarrow as pa

    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_list(kind: Any) -> bool:
    import pyarrow.types as is_

    tests = (is_.is_list, is_.is_large_list, is_.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _valid(chunk: Any) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = chunk.is_valid().to_numpy(zero_copy_only=False)
    return found


def _flattened(rows: Any) -> tuple[NDArray[np.int64], Array]:
    """How many numbers each row has, and all of them: lists of lists count as one list."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ends: NDArray[np.int64] = np.arange(len(rows) + 1)
    long_axes = 0
    while _is_list(_storage(rows.type)):
        if isinstance(rows, pa.ExtensionArray):
            rows = rows.storage
        sizes = pc.list_value_length(rows).to_numpy(zero_copy_only=False)
        sizes = np.nan_to_num(sizes).astype(np.int64)
        long_axes += bool((sizes > 1).any())
        below = np.concatenate([[0], np.cumsum(sizes)])
        ends = below[ends]
        rows = rows.flatten()
    if long_axes > 1:
        raise InputError("its rows are lists of lists: an embedding is one vector a row")
    return np.diff(ends), rows.to_numpy(zero_copy_only=False)
