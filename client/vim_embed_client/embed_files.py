"""Embeds files in bulk: several requests in flight, bad files named or skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np

from vim_embed_client.calls import cut
from vim_embed_client.client import Client
from vim_embed_client.errors import (
    InputError,
    InvalidInputError,
    MalformedRequestError,
    PayloadTooLargeError,
    ProvenanceChangedError,
    UnsupportedMediaTypeError,
    VimEmbedError,
)
from vim_embed_client.files import Row, load_rows, rows_of
from vim_embed_client.results import Embeddings, Provenance
from vim_embed_client.threads import Scope, run_each
from vim_embed_client.wire import Array

OnError = Literal["fail", "skip"]

# What may be the fault of a single row, and then must not hurt the others.
_ROW_ERRORS = (
    InputError,
    InvalidInputError,
    MalformedRequestError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file or row that was left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class FileEmbeddings:
    """embeddings: (rows, D), row i that of `ids[i]` (`path`, or `path#row` in an array)."""

    ids: list[str]
    embeddings: Array
    provenance: Provenance
    skipped: list[Skipped]


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Rows that one request can carry; first: the place of the first among all rows."""

    first: int
    rows: Sequence[Row]

    def halves(self) -> tuple[_Batch, _Batch]:
        half = len(self.rows) // 2
        return (
            _Batch(first=self.first, rows=self.rows[:half]),
            _Batch(first=self.first + half, rows=self.rows[half:]),
        )


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What became of a batch: the embeddings of its parts, by the place of their first row."""

    parts: list[tuple[int, Embeddings]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def embed_files(
    client: Client,
    files: Sequence[str],
    *,
    batch_rows: int = 64,
    in_flight: int = 4,
    on_error: OnError = "fail",
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> FileEmbeddings:
    """Embed every row of `files`, in their order; arrays are read as they are sent.

    batch_rows: rows per request. on_error: `skip` leaves out what cannot be read or embedded,
    `fail` raises InputError naming it. on_progress: called with (rows done, all rows).
    options: as of Client.embed, but wire.
    Raises InputError too where nothing is left, and VimEmbedError for faults of the service.
    """
    rows, skipped = _list_rows(files, on_error)
    table = _Table(rows)
    if on_progress:
        on_progress(0, len(rows))

    def work(batch: _Batch) -> _Outcome:
        return _embed_batch(client, batch, on_error, options)

    with Scope(None) as scope:
        batches = _batches(rows, batch_rows)
        for batch, outcome in run_each(work, batches, workers=in_flight, scope=scope):
            table.add(batch, outcome)
            skipped += outcome.skipped
            if on_progress:
                on_progress(table.done, len(rows))
    return table.result(skipped)


def _list_rows(files: Sequence[str], on_error: OnError) -> tuple[list[Row], list[Skipped]]:
    rows: list[Row] = []
    skipped: list[Skipped] = []
    for path in files:
        try:
            rows += rows_of(path)
        except InputError as error:
            skipped.append(_skip(path, error, on_error))
    return rows, skipped


def _skip(row_id: str, error: VimEmbedError, on_error: OnError) -> Skipped:
    if on_error == "fail":
        raise InputError(f"{row_id}: {error.message}", request_id=error.request_id) from error
    return Skipped(id=row_id, reason=error.message)


def _batches(rows: Sequence[Row], batch_rows: int) -> Iterator[_Batch]:
    first = 0
    for _, group in groupby(rows, key=lambda row: row.like):
        alike = list(group)
        for start, stop in cut([row.size for row in alike], rows=batch_rows):
            yield _Batch(first=first + start, rows=alike[start:stop])
        first += len(alike)


def _embed_batch(
    client: Client, batch: _Batch, on_error: OnError, options: dict[str, Any]
) -> _Outcome:
    """Embed a batch; where it is refused, halve it until the rows at fault are found."""
    try:
        return _Outcome(parts=[(batch.first, _send(client, batch.rows, options))])
    except _ROW_ERRORS as error:
        if len(batch.rows) == 1:
            return _Outcome(skipped=[_skip(batch.rows[0].id, error, on_error)])
    left, right = (_embed_batch(client, half, on_error, options) for half in batch.halves())
    return _Outcome(parts=left.parts + right.parts, skipped=left.skipped + right.skipped)


def _send(client: Client, rows: Sequence[Row], options: dict[str, Any]) -> Embeddings:
    if rows[0].like is None:
        return client.embed_images([row.path for row in rows], **options)
    return client.embed(load_rows(rows), **options)


class _Table:
    """One array for all rows, filled as batches come back."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._kept = np.zeros(len(rows), bool)
        self._array: Array | None = None
        self._provenance: Provenance | None = None
        self.done = 0

    def add(self, batch: _Batch, outcome: _Outcome) -> None:
        for first, part in outcome.parts:
            self._check(part.provenance)
            if self._array is None:
                shape = (len(self._rows), part.embeddings.shape[1])
                self._array = np.empty(shape, part.embeddings.dtype)
            self._array[first : first + len(part)] = part.embeddings
            self._kept[first : first + len(part)] = True
        self.done += len(batch.rows)

    def _check(self, provenance: Provenance) -> None:
        self._provenance = self._provenance or provenance
        changed = self._provenance.differences(provenance)
        if changed:
            raise ProvenanceChangedError(
                f"the service changed meanwhile ({', '.join(changed)}): was it restarted with "
                "other weights or settings? Nothing was written; start again"
            )

    def result(self, skipped: list[Skipped]) -> FileEmbeddings:
        if self._array is None or self._provenance is None:
            first = f": {skipped[0].id}: {skipped[0].reason}" if skipped else ""
            raise InputError(f"none of the files could be embedded{first}")
        ids = [row.id for row, kept in zip(self._rows, self._kept, strict=True) if kept]
        embeddings = self._array if self._kept.all() else self._array[self._kept]
        return FileEmbeddings(
            ids=ids, embeddings=embeddings, provenance=self._provenance, skipped=skipped
        )
