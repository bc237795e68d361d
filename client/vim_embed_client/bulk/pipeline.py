"""From entries of sources to answers in the order of the sources, with a bounded number between.

Knows nothing of files written.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vim_embed_client.bulk.row_faults import Ready, RowSender, embedded_or_why, made_ready
from vim_embed_client.bulk.row_shape import Origin, RowShape
from vim_embed_client.bulk.sources.reader import Entry, Item, Reader, Skipped
from vim_embed_client.concurrency import Scope, run_each
from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array
from vim_embed_client.requests import MAX_CHUNK_BYTES

OpenReader = Callable[[str], Reader]

# Batches between the reader and the writer, for each request in flight.
_WINDOW = 4
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where reading goes on: source, row in it, and the digest of all that was read from."""

    source: int = 0
    row: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of one entry, and the cursor after it.

    row: (W,), flat (row_shape.py), or why there is none. fingerprint: of the bytes that were
    sent, 0 where there were none. note: what a user should know of this row. columns: of its
    Item.
    """

    cursor: Cursor
    id: str
    row: Array | Skipped
    fingerprint: int = 0
    note: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Batch:
    number: int
    entries: Sequence[tuple[Cursor, Entry]]


@dataclass(frozen=True, slots=True)
class _Outcome:
    results: list[RowResult]
    origins: list[Origin]


def digest_after(digest: str, reader: Reader) -> str:
    """The digest of everything up to and with this one."""
    return hashlib.sha256(
        f"{digest}\n{reader.stamp()}".encode(errors="surrogateescape")
    ).hexdigest()


def digest_of(sources: Sequence[str], open_reader: OpenReader, cursor: Cursor) -> str:
    """What `cursor.digest` must be if nothing that was read before it has changed."""
    digest = ""
    for source in sources[: cursor.source + (cursor.row > 0)]:
        digest = digest_after(digest, open_reader(source))
    return digest


def read_from(
    sources: Sequence[str], open_reader: OpenReader, start: Cursor
) -> Generator[tuple[Cursor, Entry]]:
    """Every entry from `start` on with the cursor after it.

    A source that cannot be read (any further) gives one Skipped with its name.
    """
    digest = start.digest
    for number in range(start.source, len(sources)):
        reader = open_reader(sources[number])
        row = start.row if number == start.source else 0
        try:
            if row == 0:
                digest = digest_after(digest, reader)
            for entry in reader.read(row):
                row += 1
                yield Cursor(number, row, digest), entry
        except InputError as error:
            yield Cursor(number + 1, 0, digest), Skipped(id=reader.name, reason=error.message)


class Window:
    """Keeps the reader from running away from the writer."""

    def __init__(self, batches: int, scope: Scope) -> None:
        self._free = threading.Semaphore(batches)
        self._scope = scope

    def enter(self) -> None:
        while not self._free.acquire(timeout=_POLL_S):
            self._scope.check()

    def leave(self) -> None:
        self._free.release()


def _batches(
    entries: Iterable[tuple[Cursor, Entry]], rows: int, window: Window
) -> Iterator[_Batch]:
    number = size = 0
    like: Any = None
    held: list[tuple[Cursor, Entry]] = []
    window.enter()
    for cursor, entry in entries:
        if isinstance(entry, Item):
            fits = size == 0 or (entry.like == like and size + entry.size <= MAX_CHUNK_BYTES)
        else:
            fits = True
        if held and (len(held) == rows or not fits):
            yield _Batch(number, held)
            number, size, held = number + 1, 0, []
            window.enter()
        if isinstance(entry, Item):
            like, size = entry.like, size + max(1, entry.size)
        held.append((cursor, entry))
    if held:
        yield _Batch(number, held)


def embedded_in_order(
    sender: RowSender,
    entries: Iterable[tuple[Cursor, Entry]],
    *,
    batch_rows: int,
    in_flight: int,
    first_shape: RowShape | None = None,
) -> Iterator[tuple[list[RowResult], list[Origin]]]:
    """What became of every entry, batch by batch in their order, with what the answers say.

    Rows with other numbers of tokens than the first, of images of another size, are left out.

    Raises VimEmbedError for faults of the service.
    """

    shape = first_shape

    def work(batch: _Batch) -> _Outcome:
        return _embed(sender, batch.entries)

    with Scope(None) as scope:
        window = Window(in_flight * _WINDOW, scope)
        batches = _batches(entries, batch_rows, window)
        waiting: dict[int, _Outcome] = {}
        turn = 0
        for batch, outcome in run_each(work, batches, workers=in_flight, scope=scope):
            waiting[batch.number] = outcome
            while turn in waiting:
                due = waiting.pop(turn)
                yield _of_shape(due, shape)
                shape = shape or next((origin.shape for origin in due.origins), None)
                window.leave()
                turn += 1


def _embed(sender: RowSender, entries: Sequence[tuple[Cursor, Entry]]) -> _Outcome:
    """Embed a batch; rows at fault are left out, the others are embedded."""
    ready = [made_ready(sender, entry) for _, entry in entries]
    rows = [one for one in ready if isinstance(one, Ready)]
    given, origins = embedded_or_why(sender, rows)
    embedded = iter(given)
    results = []
    for (cursor, entry), one in zip(entries, ready, strict=True):
        if isinstance(one, Skipped):
            results.append(RowResult(cursor, entry.id, one))
            continue
        found = next(embedded)
        row = Skipped(id=entry.id, reason=found) if isinstance(found, str) else found
        columns = entry.columns if isinstance(entry, Item) else {}
        results.append(RowResult(cursor, entry.id, row, one.fingerprint, one.note, columns))
    return _Outcome(results, origins)


def _of_shape(outcome: _Outcome, wanted: RowShape | None) -> tuple[list[RowResult], list[Origin]]:
    """The outcome, in which rows of images of another size than the first one's are left out."""
    if wanted is None or all(alike(origin.shape, wanted) for origin in outcome.origins):
        return outcome.results, outcome.origins
    (found,) = {origin.shape for origin in outcome.origins}  # a request has images of one size
    reason = (
        f"it has {found[0].shape[0]} tokens, and the first row {wanted[0].shape[0]}: one file "
        "takes images of one size (--resize brings uint8 arrays to the model's)"
    )
    results = [
        one if isinstance(one.row, Skipped) else replace(one, row=Skipped(id=one.id, reason=reason))
        for one in outcome.results
    ]
    return results, []


def alike(shape: RowShape, wanted: RowShape) -> bool:
    """Whether both have as many tokens; what else differs, the checkpoint refuses."""
    return shape == wanted or not all(len(one.shape) == 2 for one in (*shape, *wanted))
