"""Row-level batching across requests, between HTTP and the engine.

No timer: a batch is taken when the device is free, from the rows that wait then, up to the row
budget; while the device is busy, one full batch is prepared ahead. The queue is bounded and
refuses. Rows whose client left or whose deadline passed never reach the engine. Requests are served
in order, but large ones do not hold up small ones, and groups of rows that cannot share a batch
(another model, size or option) take turns.

Two threads: one takes and stages, one runs and delivers. Knows neither HTTP nor asyncio; callers
get a `concurrent.futures.Future`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vim_embed.engine import Engine, Outputs, Staged
from vim_embed.errors import (
    DeadlineExceeded,
    Draining,
    InternalError,
    PayloadTooLarge,
    QueueFull,
    ServiceError,
)
from vim_embed.models.info import EmbedOptions
from vim_embed.pixels import PixelArray

_LOG = logging.getLogger(__name__)
_RATE_SMOOTHING = 0.2


@dataclass(frozen=True)
class BatchKey:
    """Rows with equal keys may share a batch."""

    model: str
    options: EmbedOptions
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Embedded:
    """A finished request: named (rows, D) arrays, and seconds spent waiting and computing."""

    outputs: Outputs
    queue_seconds: float
    forward_seconds: float


@dataclass(eq=False)
class Ticket:
    """One request in the queue. `future` gives an Embedded, or the error it failed with."""

    key: BatchKey
    pixels: PixelArray
    deadline: float | None
    submitted: float = field(default_factory=time.monotonic)
    future: Future[Embedded] = field(default_factory=Future)
    taken: int = 0
    done: int = 0
    outputs: Outputs = field(default_factory=dict)
    started: float | None = None
    forward_seconds: float = 0.0

    @property
    def rows(self) -> int:
        return len(self.pixels)

    @property
    def waiting(self) -> int:
        return self.rows - self.taken

    @property
    def open(self) -> bool:
        return not self.future.done()

    def cancel(self) -> None:
        """Drop the rows that still wait; nobody reads the answer any more."""
        self.future.cancel()


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of a ticket within a batch."""

    ticket: Ticket
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def pixels(self) -> PixelArray:
        return self.ticket.pixels[self.start : self.stop]


@dataclass(frozen=True)
class Prepared:
    """A batch on its way to the engine."""

    key: BatchKey
    slices: tuple[Slice, ...]
    staged: Staged


class Observer(Protocol):
    """Hears of what the batcher does; metrics implement it."""

    def staged(self, key: BatchKey, seconds: float) -> None: ...

    def batch(self, key: BatchKey, rows: int, requests: int, seconds: float) -> None: ...

    def dropped(self, key: BatchKey, rows: int, reason: str) -> None: ...


class SilentObserver:
    """Hears and forgets."""

    def staged(self, key: BatchKey, seconds: float) -> None:
        return None

    def batch(self, key: BatchKey, rows: int, requests: int, seconds: float) -> None:
        return None

    def dropped(self, key: BatchKey, rows: int, reason: str) -> None:
        return None


class Batcher:
    """Owns the queue of one engine. `submit` may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        *,
        queue_rows: int,
        queue_bytes: int,
        observer: Observer | None = None,
    ) -> None:
        self.engine = engine
        self.queue_rows = queue_rows
        self.queue_bytes = queue_bytes
        self.observer = observer or SilentObserver()
        self._changed = threading.Condition()
        self._waiting: OrderedDict[BatchKey, deque[Ticket]] = OrderedDict()
        self._prepared: Prepared | None = None
        self._staging = False
        self._running = False
        self._accepting = True
        self._stopped = False
        self._rows_per_second = 0.0
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the two threads."""
        for name, step in (("stage", self._stage_next), ("run", self._run_next)):
            thread = threading.Thread(
                target=self._forever, args=(step,), name=f"vim-embed-{name}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    @property
    def alive(self) -> bool:
        """Whether both threads are at work."""
        return len(self._threads) == 2 and all(thread.is_alive() for thread in self._threads)

    @property
    def waiting_rows(self) -> int:
        with self._changed:
            return sum(ticket.waiting for ticket in self._tickets() if ticket.open)

    @property
    def waiting_bytes(self) -> int:
        with self._changed:
            return sum(ticket.pixels.nbytes for ticket in self._tickets() if ticket.open)

    def submit(
        self,
        model: str,
        pixels: PixelArray,
        options: EmbedOptions,
        *,
        deadline: float | None = None,
    ) -> Ticket:
        """Queue rows (n, 3, H, W) that passed `check_pixels`. deadline: in `time.monotonic()`.

        Raises QueueFull, PayloadTooLarge or Draining at once; never waits.
        """
        key = BatchKey(model, options, pixels.shape[1:], str(pixels.dtype))
        ticket = Ticket(key, pixels, deadline)
        with self._changed:
            self._admit(ticket)
            self._waiting.setdefault(key, deque()).append(ticket)
            self._changed.notify_all()
        ticket.future.add_done_callback(lambda _: self._wake())
        return ticket

    def stop_accepting(self) -> None:
        """Refuse new rows with Draining; what is queued goes on."""
        with self._changed:
            self._accepting = False

    def drain(self, timeout: float) -> bool:
        """Refuse new rows, wait for the rest, then end the threads. False if time ran out."""
        self.stop_accepting()
        with self._changed:
            empty = self._changed.wait_for(lambda: not self._busy(), timeout)
            self._stopped = True
            left = list(self._tickets())
            if self._prepared is not None:
                left += [part.ticket for part in self._prepared.slices]
                self._prepared = None
            self._changed.notify_all()
        for ticket in left:
            _fail(ticket, Draining("the service stopped before this request was computed"))
        for thread in self._threads:
            thread.join(timeout=5)
        return empty

    # admission

    def _admit(self, ticket: Ticket) -> None:
        if not self._accepting:
            raise Draining("the service is shutting down: retry against another, or later")
        if ticket.rows > self.queue_rows or ticket.pixels.nbytes > self.queue_bytes:
            raise PayloadTooLarge(
                f"{ticket.rows} rows of {ticket.pixels.nbytes / 1e6:.0f} MB are more than the "
                f"whole queue holds ({self.queue_rows} rows, {self.queue_bytes / 1e6:.0f} MB): "
                f"send fewer rows per request"
            )
        tickets = [t for t in self._tickets() if t.open]
        rows = sum(t.waiting for t in tickets)
        held = sum(t.pixels.nbytes for t in tickets)
        if rows + ticket.rows > self.queue_rows or held + ticket.pixels.nbytes > self.queue_bytes:
            raise QueueFull(
                f"{rows} rows are waiting already: retry after the time in Retry-After",
                retry_after=self._retry_after(rows),
            )

    def _retry_after(self, rows: int) -> int:
        """Seconds until half of the waiting rows are done at the measured rate, 1 to 60."""
        if not self._rows_per_second:
            return 1
        return int(min(60, max(1, rows / 2 / self._rows_per_second)))

    def _tickets(self) -> Iterator[Ticket]:
        for tickets in self._waiting.values():
            yield from tickets

    def _busy(self) -> bool:
        waiting = any(ticket.open for ticket in self._tickets())
        return waiting or self._staging or self._running or self._prepared is not None

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # the two threads

    def _forever(self, step: Step) -> None:
        while not self._stopped:
            try:
                step()
            except Exception:
                _LOG.exception("the batcher recovered from a fault of its own")

    def _stage_next(self) -> None:
        with self._changed:
            self._changed.wait_for(self._may_stage)
            if self._stopped:
                return
            key, slices = self._take()
            self._staging = bool(slices)
        if not slices:
            return
        begin = time.monotonic()
        try:
            staged = self.engine.stage(key.model, [s.pixels for s in slices], key.options)
            self.observer.staged(key, time.monotonic() - begin)
            prepared = Prepared(key, tuple(slices), staged)
        except Exception as error:
            prepared = None
            _fail_all(slices, error)
        with self._changed:
            self._prepared, self._staging = prepared, False
            self._changed.notify_all()

    def _run_next(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._prepared is not None or self._stopped)
            prepared, self._prepared = self._prepared, None
            if prepared is None:
                return
            self._running = True
            self._changed.notify_all()
        try:
            self._run(prepared)
        except Exception as error:
            _fail_all(prepared.slices, error)
        finally:
            with self._changed:
                self._running = False
                self._changed.notify_all()

    # taking

    def _may_stage(self) -> bool:
        if self._stopped:
            return True
        if self._prepared is not None or not self._waiting:
            return False
        return not self._running or any(self._fills_batch(key) for key in self._waiting)

    def _fills_batch(self, key: BatchKey) -> bool:
        waiting = sum(ticket.waiting for ticket in self._waiting[key] if ticket.open)
        return waiting >= self.engine.batch_rows(key.model, key.shape)

    def _take(self) -> tuple[BatchKey, list[Slice]]:
        """The next group's rows, up to the budget; the group goes to the back of the line."""
        key = next(iter(self._waiting))
        if self._running:
            key = next(k for k in self._waiting if self._fills_batch(k))
        tickets = self._waiting[key]
        self._drop_closed(key)
        shares = shares_of_batch(
            [ticket.waiting for ticket in tickets], self.engine.batch_rows(key.model, key.shape)
        )
        slices = [_take_rows(ticket, share) for ticket, share in zip(tickets, shares, strict=True)]
        left = deque(ticket for ticket in tickets if ticket.waiting)
        if left:
            self._waiting[key] = left
            self._waiting.move_to_end(key)
        else:
            del self._waiting[key]
        return key, [s for s in slices if s.rows]

    def _drop_closed(self, key: BatchKey) -> None:
        now = time.monotonic()
        tickets = self._waiting[key]
        for ticket in list(tickets):
            late = ticket.deadline is not None and ticket.deadline < now
            if ticket.open and not late:
                continue
            tickets.remove(ticket)
            self.observer.dropped(key, ticket.waiting, "deadline" if late else "cancelled")
            if late:
                waited = now - ticket.submitted
                _fail(ticket, DeadlineExceeded(f"not computed after {waited:.1f} s in the queue"))

    # running

    def _run(self, prepared: Prepared) -> None:
        begin = time.monotonic()
        try:
            outputs = self.engine.run(prepared.staged)
        except Exception as error:
            self._run_apart(prepared, error)
            return
        seconds = time.monotonic() - begin
        rows = sum(s.rows for s in prepared.slices)
        self._measure(rows, seconds)
        self.observer.batch(prepared.key, rows, len(prepared.slices), seconds)
        self._deliver(prepared.slices, outputs, begin, seconds)

    def _run_apart(self, prepared: Prepared, error: Exception) -> None:
        """One item's failure is that item's alone: run the requests of a failed batch singly."""
        _LOG.error("a batch failed", extra={"model": prepared.key.model, "error": repr(error)})
        if len(prepared.slices) == 1:
            _fail_all(prepared.slices, error)
            return
        for part in prepared.slices:
            begin = time.monotonic()
            try:
                staged = self.engine.stage(prepared.key.model, [part.pixels], prepared.key.options)
                outputs = self.engine.run(staged)
            except Exception as own:
                _fail_all([part], own)
            else:
                self._deliver([part], outputs, begin, time.monotonic() - begin)

    def _measure(self, rows: int, seconds: float) -> None:
        rate = rows / max(seconds, 1e-9)
        old = self._rows_per_second or rate
        self._rows_per_second = old + _RATE_SMOOTHING * (rate - old)

    def _deliver(
        self, slices: Sequence[Slice], outputs: Outputs, begin: float, seconds: float
    ) -> None:
        expected = sum(part.rows for part in slices)
        if any(len(array) != expected for array in outputs.values()):
            raise RuntimeError(f"the engine did not return {expected} rows")
        first = 0
        for part in slices:
            rows = {name: array[first : first + part.rows] for name, array in outputs.items()}
            first += part.rows
            _give(part, rows, begin, seconds)


class Step(Protocol):
    """One round of a thread."""

    def __call__(self) -> None: ...


def shares_of_batch(wanted: Sequence[int], budget: int) -> list[int]:
    """Rows of the next batch for each waiting request, in order of arrival.

    First come, first served, whole requests one after the other: cutting all of them up would
    make all wait for the last. Requests larger than a batch get half of it while smaller ones
    wait, so that a small one is not stuck behind 512 rows: [512, 1, 4] with 32 gives [27, 1, 4],
    and [8, 8] with 8 gives [8, 0].
    """
    large = [want > budget for want in wanted]
    of_large = sum(want for want, is_large in zip(wanted, large, strict=True) if is_large)
    of_small = sum(wanted) - of_large
    for_large = min(of_large, max(-(-budget // 2), budget - of_small))
    left = {True: for_large, False: budget - for_large}
    shares = []
    for want, is_large in zip(wanted, large, strict=True):
        shares.append(min(want, left[is_large]))
        left[is_large] -= shares[-1]
    return shares


def _take_rows(ticket: Ticket, rows: int) -> Slice:
    start = ticket.taken
    ticket.taken += rows
    return Slice(ticket, start, ticket.taken)


def _give(part: Slice, rows: Outputs, begin: float, seconds: float) -> None:
    ticket = part.ticket
    if any(not np.isfinite(array).all() for array in rows.values()):
        _fail(
            ticket,
            InternalError(
                "the model gave NaN or infinite values for these pixels: check that they are "
                "normalised, or use a server with --dtype float32"
            ),
        )
        return
    ticket.started = ticket.started or begin
    ticket.forward_seconds += seconds
    if part.rows == ticket.rows:
        ticket.outputs = rows
    else:
        for name, array in rows.items():
            whole = ticket.outputs.setdefault(
                name, np.full((ticket.rows, *array.shape[1:]), np.nan, array.dtype)
            )
            whole[part.start : part.stop] = array
    ticket.done += part.rows
    if ticket.done == ticket.rows:
        waited = ticket.started - ticket.submitted
        _resolve(ticket, Embedded(ticket.outputs, waited, ticket.forward_seconds))


def _resolve(ticket: Ticket, result: Embedded) -> None:
    try:
        ticket.future.set_result(result)
    except InvalidStateError:  # cancelled meanwhile
        return


def _fail(ticket: Ticket, error: Exception) -> None:
    if not isinstance(error, ServiceError):
        error = InternalError(f"the model failed on this request ({type(error).__name__}): retry")
    try:
        ticket.future.set_exception(error)
    except InvalidStateError:  # cancelled, or failed with another of its slices
        return


def _fail_all(slices: Sequence[Slice], error: Exception) -> None:
    _LOG.error("requests failed", exc_info=error)
    for part in slices:
        _fail(part.ticket, error)
