"""Embeds rows of which some may be at fault: these are found, and the others are embedded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from vim_embed_client.bulk.row_shape import Origin, flat_rows
from vim_embed_client.bulk.sources.faults import NoSource
from vim_embed_client.bulk.sources.reader import Entry, Item, Skipped
from vim_embed_client.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    InputError,
    InternalServerError,
    InvalidInputError,
    MalformedRequestError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
    VimEmbedError,
    WorkerFailedError,
)
from vim_embed_client.formats import Array
from vim_embed_client.results import Embeddings, LayerEmbeddings

Given: TypeAlias = tuple[list[Array | str], list[Origin]]
Answer: TypeAlias = Embeddings | LayerEmbeddings

_PLACE = re.compile(r"^image 0( \(.*?\))?")
# Refusals of a row, which must not hurt the others.
_ROW_ERRORS = (
    InputError,
    InvalidInputError,
    MalformedRequestError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
)
# Failures that a row may be to blame for, or the service: a row whose numbers overflow the model,
# that takes too long, or that brings a worker down.
_SUSPECT: tuple[type[VimEmbedError], ...] = (
    InternalServerError,
    DeadlineExceededError,
    WorkerFailedError,
    ConnectionLostError,
)
# Of these, what is not worth waiting for before the row at fault is looked for.
_AT_ONCE: tuple[type[VimEmbedError], ...] = (InternalServerError,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A row as it is sent: encoded bytes, or a (3, H, W) array.

    fingerprint: of these bytes, never 0. note: what a user should know of the row.
    """

    data: bytes | Array
    fingerprint: int
    note: str = ""


class RowSender(Protocol):
    """Embeds rows; its methods are called from several threads."""

    def ready(self, item: Item) -> Ready:
        """The row as it is sent. Raises InputError or NoSource."""
        ...

    def send(
        self, rows: Sequence[Ready], *, give_up_on: tuple[type[VimEmbedError], ...] = ()
    ) -> Answer:
        """Embed rows that are alike. Raises VimEmbedError; those of `give_up_on` at once."""
        ...

    def probe(self, *, give_up_on: tuple[type[VimEmbedError], ...] = ()) -> Answer:
        """Embed a row that nothing is wrong with. Raises as `send`."""
        ...


def made_ready(sender: RowSender, entry: Entry) -> Ready | Skipped:
    """The entry as it is sent, or why it is left out."""
    if isinstance(entry, Skipped):
        return entry
    try:
        return sender.ready(entry)
    except InputError as error:
        return Skipped(id=entry.id, reason=error.message)
    except NoSource as passed:
        return Skipped(id=entry.id, reason=str(passed), fault=False)


def embedded_or_why(sender: RowSender, rows: Sequence[Ready]) -> Given:
    """A flat vector (W,) for each row, or why it has none; with what the answers say of them.

    Raises VimEmbedError for faults of the service.
    """
    return _sent(sender, rows, give_up_on=_AT_ONCE)


def _sent(
    sender: RowSender, rows: Sequence[Ready], *, give_up_on: tuple[type[VimEmbedError], ...]
) -> Given:
    """Where rows are refused, halves are sent until those at fault are found."""
    if not rows:
        return [], []
    try:
        return _rows_of(sender.send(rows, give_up_on=give_up_on))
    except _ROW_ERRORS as error:
        if len(rows) == 1:
            return [_of_one(error)], []
    except _SUSPECT as error:
        if len(rows) == 1:
            return _judged(sender, rows, error)
    half = len(rows) // 2
    left, before = _sent(sender, rows[:half], give_up_on=_SUSPECT)
    right, after = _sent(sender, rows[half:], give_up_on=_SUSPECT)
    return left + right, before + after


def _judged(sender: RowSender, row: Sequence[Ready], error: VimEmbedError) -> Given:
    """Whether the row or the service is at fault, after `error`.

    The row, if it fails a second time though a row that is sound was embedded in between. Raises
    VimEmbedError for the service.
    """
    try:
        sender.probe(give_up_on=_SUSPECT)
    except _SUSPECT:
        return _rows_of(sender.send(row))
    try:
        return _rows_of(sender.send(row, give_up_on=_SUSPECT))
    except _ROW_ERRORS as again:
        return [_of_one(again)], []
    except _SUSPECT:
        return [f"the service fails on this row, and not on others ({error.message})"], []


def _rows_of(answer: Answer) -> Given:
    rows, origin = flat_rows(answer)
    return list(rows), [origin]


def _of_one(error: VimEmbedError) -> str:
    """The reason without the row's place in a request of its own, which says nothing."""
    return _PLACE.sub("it", error.message)
