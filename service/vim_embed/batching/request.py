"""One request on its way through the batches: what it asked for, and the rows that came back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vim_embed.engines.interface import Outputs, Staged
from vim_embed.errors import InternalError, InvalidInput, ServiceError
from vim_embed.types.model_info import EmbedOptions, ModelInfo, joined
from vim_embed.types.pixels import PixelArray

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
_ORDINARY = 100.0  # magnitude of a normalised pixel; with the usual mean and std it is below 3


@dataclass(frozen=True)
class BatchKey:
    """Rows with equal keys may share a batch."""

    model: str
    options: EmbedOptions
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Embedded:
    """A finished request: named (rows, D) arrays, and seconds spent waiting and computing.

    load_seconds: spent before all that, until an idle model was loaded again. info: of the model
    that answered, on the device or devices that did; None if it was unloaded.
    """

    outputs: Outputs
    queue_seconds: float
    forward_seconds: float
    info: ModelInfo | None = None
    load_seconds: float = 0.0


@dataclass(eq=False)
class EmbedRequest:
    """Rows (n, 3, H, W) that passed `check_pixels`, and how they are to be embedded.

    `future` gives an Embedded, or the error it failed with. deadline: in `time.monotonic()`.
    client: whose share of the queue it takes; "" counts for nobody. request_id: for the log.
    """

    model: str
    pixels: PixelArray
    options: EmbedOptions
    _: KW_ONLY
    deadline: float | None = None
    client: str = ""
    request_id: str = ""
    submitted: float = field(default_factory=time.monotonic)
    future: Future[Embedded] = field(default_factory=Future)
    done: int = 0
    outputs: Outputs = field(default_factory=dict)
    started: float | None = None
    forward_seconds: float = 0.0
    infos: dict[str, ModelInfo] = field(default_factory=dict)  # of who answered, by device
    lock: threading.Lock = field(default_factory=threading.Lock)  # slices come from many threads
    unclaimed: list[range] = field(init=False)  # rows that wait

    def __post_init__(self) -> None:
        self.unclaimed = [range(len(self.pixels))]

    @cached_property
    def key(self) -> BatchKey:
        """Rows of requests with equal keys may share a batch."""
        return BatchKey(self.model, self.options, self.pixels.shape[1:], str(self.pixels.dtype))

    @property
    def rows(self) -> int:
        return len(self.pixels)

    @property
    def waiting(self) -> int:
        """Rows that no batch has taken."""
        return sum(map(len, self.unclaimed))

    @property
    def open(self) -> bool:
        return not self.future.done()

    def cancel(self) -> None:
        """Drop the rows that still wait; nobody reads the answer any more."""
        self.future.cancel()

    def take(self, rows: int) -> list[Slice]:
        """The next `rows` that wait: one slice, or more where some were given back."""
        slices = []
        while rows:
            first = self.unclaimed.pop(0)
            part, rest = first[:rows], first[rows:]
            if rest:
                self.unclaimed.insert(0, rest)
            slices.append(Slice(self, part.start, part.stop))
            rows -= len(part)
        return slices

    def give_back(self, part: Slice) -> None:
        """The rows of a slice that was not run come first again."""
        self.unclaimed.insert(0, range(part.start, part.stop))

    def fail(self, error: Exception) -> None:
        """Answer with `error`; one that is no ServiceError is not shown to the caller."""
        if not isinstance(error, ServiceError):
            kind = type(error).__name__
            error = InternalError(f"the model failed on this request ({kind}): retry")
        fail(self.future, error)


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of a request within a batch."""

    request: EmbedRequest
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def pixels(self) -> PixelArray:
        return self.request.pixels[self.start : self.stop]

    def give(
        self, rows: Outputs, begin: float, seconds: float, info: ModelInfo | None = None
    ) -> None:
        """Hand the rows' embeddings to the request, which is answered with its last slice.

        begin: of the forward, in `time.monotonic()`; seconds: that it took. info: of the model on
        the device that computed them.
        """
        request = self.request
        bad = sorted({row for array in rows.values() for row in _not_finite(array)})
        if bad:
            request.fail(self._overflow(bad))
            return
        with request.lock:
            request.started = request.started or begin
            request.forward_seconds += seconds
            if info is not None:
                request.infos[info.device] = info
            self._keep(rows)
            request.done += self.rows
            whole = request.done == request.rows
        if whole:
            assert request.started is not None
            waited, info = request.started - request.submitted, joined(request.infos.values())
            settle(request.future, Embedded(request.outputs, waited, request.forward_seconds, info))

    def _overflow(self, bad: list[int]) -> ServiceError:
        """Of rows whose embeddings are not finite: whose fault it is decides who tries again."""
        numbers = [self.start + row for row in bad[:10]]
        told = f"the model gives NaN or infinite values for rows {numbers}"
        if len(bad) == self.rows and self._ordinary(bad):
            return InternalError(f"{told}, though their pixels are ordinary: retry")
        return InvalidInput(
            f"{told}: their pixels are too large for its dtype. Check that they are normalised, "
            "or use a server with --dtype float32"
        )

    def _ordinary(self, rows: list[int]) -> bool:
        """Whether no pixel of these rows is far from what the models were trained with."""
        options = self.request.options
        if options.mean is not None or options.std is not None:
            return False
        pixels = self.pixels
        return pixels.dtype == np.uint8 or all(
            max(pixels[row].max(), -pixels[row].min()) <= _ORDINARY for row in rows
        )

    def _keep(self, rows: Outputs) -> None:
        request = self.request
        if self.rows == request.rows:
            request.outputs = rows
            return
        for name, array in rows.items():
            whole = request.outputs.setdefault(
                name, np.full((request.rows, *array.shape[1:]), np.nan, array.dtype)
            )
            whole[self.start : self.stop] = array


@dataclass(frozen=True)
class StagedBatch:
    """A batch on its way to the engine."""

    key: BatchKey
    slices: tuple[Slice, ...]
    staged: Staged


def _not_finite(array: NDArray[np.float32]) -> list[int]:
    """The rows of (n, D) that hold NaN or infinite values."""
    finite = np.isfinite(array)
    return [] if finite.all() else np.flatnonzero(~finite.all(axis=1)).tolist()


def request_ids(slices: Iterable[Slice]) -> list[str]:
    """Of the requests that the slices belong to, to find them in the log."""
    return sorted({part.request.request_id for part in slices if part.request.request_id})


def fail_all(slices: Sequence[Slice], error: Exception) -> None:
    """Fail the requests that the slices belong to."""
    _LOG.error("requests failed", exc_info=error, extra={"request_ids": request_ids(slices)})
    for part in slices:
        part.request.fail(error)


def settle(future: Future[T], result: T) -> None:
    """Give a future its result, unless it was cancelled, or failed with its worker."""
    with suppress(InvalidStateError):
        future.set_result(result)


def fail(future: Future[T], error: Exception) -> None:
    """Fail a future, unless it was cancelled, or failed with its worker or another slice."""
    with suppress(InvalidStateError):
        future.set_exception(error)
