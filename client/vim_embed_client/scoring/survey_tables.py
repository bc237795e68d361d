"""Two Parquet files of embeddings side by side, as platonic-universe keeps two surveys.

Its `compare` and `calibrate` read columns `{model}_{size}_{survey}`, of which there are two, and
what its `extract-layers` writes, `{layer}_{survey}`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.bulk.output_checks import is_embedding_table, refuse_foreign
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.scoring.embedding_files import read_embeddings, vector_names
from vim_embed_client.scoring.pairing import pair
from vim_embed_client.scoring.parquet import LAYERS, MODE, PROVENANCE

_GROUP_ROWS, _GROUP_BYTES = 4096, 32 << 20


@dataclass(frozen=True, kw_only=True)
class SurveyTable:
    """What was written: rows, the names of the columns but `id`, and how rows were paired."""

    rows: int
    columns: tuple[str, ...]
    paired: str


def join_surveys(
    first: Path,
    second: Path,
    output: Path,
    *,
    modes: tuple[str, str] | None = None,
    by_row: bool = False,
    common: bool = False,
) -> SurveyTable:
    """Write the embeddings, or all layers, of two Parquet files side by side, and the first's ids.

    modes: names of the two surveys; by default those that `embed --layers --mode` gave the files.
    by_row, common: as of `pair`. Rows that both files have in one order are read a few thousand
    at a time, else all of the second file are in memory. Raises InputError, and
    ConfigurationError also for an output that is another's file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_foreign(output, is_embedding_table, "vim-embed join")
    ends = [read_embeddings(vector_names(str(path))[-1], by_row=by_row) for path in (first, second)]
    paired = pair(*ends, by_row=by_row, common=common, offered=("--common", "--by-row"))
    files = [_Survey(path, pq.ParquetFile(path)) for path in (first, second)]
    names = _columns(files, modes)
    fields = [
        (new, one.schema.field(old).type)
        for one, renamed in zip(files, names, strict=True)
        for old, new in renamed.items()
    ]
    about = json.dumps([one.provenance for one in files])
    schema = pa.schema([*fields, ("id", pa.string())], metadata={PROVENANCE + b"s": about})
    width = sum(kind.list_size * kind.value_type.bit_width // 8 for _, kind in fields)
    step = max(1, min(_GROUP_ROWS, _GROUP_BYTES // width))
    parts = [
        one.rows(list(renamed), side.numbers, step)
        for one, renamed, side in zip(files, names, (paired.first, paired.second), strict=True)
    ]
    ids = paired.first.ids or list(map(str, paired.first.numbers))
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with pq.ParquetWriter(unfinished, schema, use_dictionary=["id"]) as writer:
            for place, (left, right) in enumerate(zip(*parts, strict=True)):
                texts = pa.array(ids[place * step : place * step + len(left)], pa.string())
                arrays = [*left.combine_chunks().columns, *right.combine_chunks().columns, texts]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        os.replace(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)
    return SurveyTable(rows=len(ids), columns=tuple(n for n, _ in fields), paired=paired.how)


class _Survey:
    """One of the files. layers: its layers' names, in the order of its columns."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file, self.schema = path, file, file.schema_arrow
        about = self.schema.metadata or {}
        self.layers: list[str] = json.loads(about.get(LAYERS, b"[]"))
        self.mode: str = json.loads(about.get(MODE, b'""'))
        self.provenance: dict[str, Any] = json.loads(about.get(PROVENANCE, b"{}"))

    @property
    def model(self) -> str:
        """`{model}_{size}` of the model's name: vim_tiny of vim-tiny."""
        base, dash, size = str(self.provenance.get("model", "")).replace("_", "-").rpartition("-")
        if not (base and dash and size):
            return f"{size or 'model'}_all"
        return f"{base}_{size}"

    def rows(self, columns: Sequence[str], numbers: NDArray[np.int64], step: int) -> Iterator[Any]:
        """Tables of `step` rows, which are those of these numbers in their order."""
        if (np.diff(numbers) > 0).all():
            return self._streamed(columns, numbers, step)
        whole = self._file.read(columns)
        return (whole.take(numbers[at : at + step]) for at in range(0, len(numbers), step))

    def _streamed(
        self, columns: Sequence[str], numbers: NDArray[np.int64], step: int
    ) -> Iterator[Any]:
        import pyarrow as pa

        held: Any = None
        first = 0
        for batch in self._file.iter_batches(step, columns=columns):
            wanted = numbers[(numbers >= first) & (numbers < first + len(batch))] - first
            first += len(batch)
            table = pa.Table.from_batches([batch]).take(wanted)
            held = table if held is None else pa.concat_tables([held, table])
            while len(held) >= step:
                yield held.slice(0, step)
                held = held.slice(step)
        if held is not None and len(held):
            yield held


def _columns(files: Sequence[_Survey], modes: tuple[str, str] | None) -> list[dict[str, str]]:
    """Of each file, its columns and what they are called in the table."""
    first, second = files
    if bool(first.layers) != bool(second.layers):
        raise InputError(f"only one of {first.path} and {second.path} has layers: embed both alike")
    if first.layers != second.layers:
        raise InputError(f"{first.path} and {second.path} have other layers: embed both alike")
    named = modes or (first.mode, second.mode)
    if not all(named) or named[0] == named[1]:
        raise ConfigurationError(
            f"the two surveys need names that differ, not {named[0]!r} and {named[1]!r}: see "
            "--modes"
        )
    if not first.layers:
        return [{"embedding": f"{first.model}_{mode}"} for mode in named]
    return [
        {f"{layer}_{one.mode}": f"{layer}_{mode}" for layer in one.layers}
        for one, mode in zip(files, named, strict=True)
    ]
