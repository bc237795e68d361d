"""What a bulk run on a cluster writes: one Parquet a part, a manifest of those that are finished,
and at the end one file or the folder of parts.

Columns and metadata are those of `vim-embed embed`: `id`, `embedding`, `vim_embed.provenance`,
`vim_embed.options`, `vim_embed.skipped`. A part is complete on disk before the manifest names it;
what it does not name is computed again, so no row is lost or doubled wherever a process stops.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

_FORMAT = 1
_MANIFEST = "_manifest.jsonl"  # readers of a folder of Parquet pass over it
_RESTART = "; --restart throws the finished parts away and begins anew"
_DEVICE = ("device",)  # may differ between parts: several GPUs of one kind give the same


class ResumeError(ValueError):
    """Finished parts that do not belong to this run."""


@dataclass(frozen=True)
class Skipped:
    """A row that was left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Done:
    """A finished part, as the manifest holds it."""

    number: int
    rows: int
    crc32: int
    provenance: dict[str, Any]
    skipped: list[dict[str, str]]


def write_part(
    folder: Path,
    number: int,
    ids: Sequence[str],
    embeddings: NDArray[np.float32],
    provenance: Mapping[str, Any],
    skipped: Sequence[Skipped],
    options: Mapping[str, Any],
) -> Done:
    """Write rows (n, D) durably under the part's name; an older file of that name goes.

    options: what was asked for, as the metadata tells it.
    """
    left_out = [asdict(one) for one in skipped]
    schema = _schema(embeddings.shape[1], provenance, left_out, options)
    flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1))
    lists = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    table = pa.Table.from_arrays([pa.array(ids, pa.string()), lists], schema=schema)
    with _replacing(part_path(folder, number)) as temporary:
        pq.write_table(table, temporary)
        crc = zlib.crc32(temporary.read_bytes())
    return Done(number, len(ids), crc, dict(provenance), left_out)


def part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


class Manifest:
    """The finished parts of one output.

    output: `NAME.parquet`, whose parts are in `NAME.parquet.parts` until they are joined, or a
    folder, in which they stay. Raises ResumeError where the parts found are of other options.
    """

    def __init__(self, output: Path, options: Mapping[str, Any], *, restart: bool) -> None:
        self.output = output
        self.joins = output.suffix == ".parquet"
        self.folder = output.with_name(output.name + ".parts") if self.joins else output
        if restart:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.done: dict[int, Done] = {}
        self._path = self.folder / _MANIFEST
        self._begin(json.loads(json.dumps({"format": _FORMAT, **options})))

    def add(self, done: Done) -> None:
        """Name a part as finished; durable when this returns. Raises ResumeError."""
        self._check(done)
        self.done[done.number] = done
        self._append(asdict(done))

    def finish(self, parts: int) -> None:
        """Join the parts, where one file was asked for."""
        if self.joins:
            self._join(parts)
            shutil.rmtree(self.folder)

    def _begin(self, options: dict[str, Any]) -> None:
        lines = self._lines()
        if not lines:
            self._path.unlink(missing_ok=True)
            self._append(options)
            return
        changed = [k for k in {**options, **lines[0]} if options.get(k) != lines[0].get(k)]
        if changed:
            raise ResumeError(
                f"{self.folder} holds parts of a run with other {', '.join(sorted(changed))}: "
                f"run it as before{_RESTART}"
            )
        for line in lines[1:]:
            done = Done(**line)
            if _sound(part_path(self.folder, done.number), done.crc32):
                self.done[done.number] = done

    def _lines(self) -> list[dict[str, Any]]:
        """Of the manifest; one that was cut short is dropped."""
        if not self._path.exists():
            return []
        whole, _, _ = self._path.read_text().rpartition("\n")
        with self._path.open("r+") as file:
            file.truncate(len(whole.encode()) + bool(whole))
        return [json.loads(line) for line in whole.splitlines()]

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _check(self, done: Done) -> None:
        first = next(iter(self.done.values()), done)
        mine, theirs = first.provenance, done.provenance
        changed = [k for k in mine if k not in _DEVICE and mine[k] != theirs.get(k)]
        if changed:
            raise ResumeError(
                f"part {done.number} comes from another model ({', '.join(changed)} differ): do "
                f"all nodes have the same weights and settings?{_RESTART}"
            )

    def _join(self, parts: int) -> None:
        every = [self.done[number] for number in range(parts)]
        skipped = [one for done in every for one in done.skipped]
        first = pq.read_schema(part_path(self.folder, 0))
        options = json.loads(first.metadata[b"vim_embed.options"])
        dim = first.field("embedding").type.list_size
        schema = _schema(dim, every[0].provenance, skipped, options)
        with _replacing(self.output) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for done in every:
                table = pq.read_table(part_path(self.folder, done.number))
                writer.write_table(table.replace_schema_metadata(schema.metadata))


def _schema(
    dim: int,
    provenance: Mapping[str, Any],
    skipped: list[dict[str, str]],
    options: Mapping[str, Any],
) -> Any:
    about = {
        "vim_embed.provenance": json.dumps(dict(provenance)),
        "vim_embed.options": json.dumps(dict(options)),
        "vim_embed.skipped": json.dumps(skipped[:1000]),
    }
    columns = [("id", pa.string()), ("embedding", pa.list_(pa.float32(), dim))]
    return pa.schema(columns, metadata=about)


def _sound(path: Path, crc32: int) -> bool:
    return path.exists() and zlib.crc32(path.read_bytes()) == crc32


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` that takes its place when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
