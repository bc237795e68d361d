"""Row-level batching across requests, between HTTP and the engines.

No timer: a batch is taken when a device is free, from the rows that wait then, up to the row
budget; while every device is busy, one batch each is prepared ahead, once a full one waits. The
queue is bounded and refuses, also one client that would take all of it. Rows whose client left or
whose deadline passed never reach an engine. Requests are served in order, but large ones do not
hold up small ones, and groups of rows that cannot share a batch (another model, size or option)
take turns.

One worker for each engine, all from one queue. Knows neither HTTP nor asyncio; callers get a
`concurrent.futures.Future`.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from vim_embed.batching.observer import Observer, SilentObserver
from vim_embed.batching.request import BatchKey, EmbedRequest, Slice
from vim_embed.batching.worker import RestartPolicy, Worker
from vim_embed.engines.interface import Engine
from vim_embed.errors import (
    DeadlineExceeded,
    Draining,
    NotReady,
    PayloadTooLarge,
    QueueFull,
)
from vim_embed.types.model_info import CheckReport

_LOG = logging.getLogger(__name__)
_RATE_SMOOTHING = 0.2
_SUPERVISION = 0.1  # seconds between two looks at the workers


class BatchQueue:
    """Owns the queue of one or several engines. `submit` may be called from any thread."""

    def __init__(
        self,
        engines: Engine | Sequence[Engine],
        *,
        queue_rows: int,
        queue_bytes: int,
        client_share: float = 1.0,
        observer: Observer | None = None,
        policy: RestartPolicy | None = None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """engines: one for each device, all with the same models. client_share: of the queue,
        how much one client may fill. on_lost: called when no worker is left.
        """
        self.queue_rows = queue_rows
        self.queue_bytes = queue_bytes
        self.client_share = client_share
        self.observer = observer or SilentObserver()
        self.lock = threading.RLock()
        self.settled = threading.Condition(self.lock)
        self._on_lost = on_lost
        self._waiting: OrderedDict[BatchKey, deque[EmbedRequest]] = OrderedDict()
        self._accepting = True
        self._stopping = threading.Event()
        self._rows_per_second = 0.0  # of one worker that has rows
        self._supervisor: threading.Thread | None = None
        self.workers = [
            Worker(
                engine,
                self,
                observer=self.observer,
                policy=policy or RestartPolicy(),
                on_lost=self._lost,
            )
            for engine in (engines if isinstance(engines, Sequence) else [engines])
        ]

    def start(self) -> None:
        """Start the workers and who looks after them."""
        for worker in self.workers:
            worker.start()
        self._supervisor = threading.Thread(
            target=self._supervise, name="vim-embed-supervise", daemon=True
        )
        self._supervisor.start()

    @property
    def alive(self) -> bool:
        """Whether some worker is at work."""
        return any(worker.alive for worker in self.workers)

    @property
    def problems(self) -> dict[str, str]:
        """By device, why its worker is not at work."""
        return {w.engine.device: w.reason or w.state for w in self.workers if w.state != "up"}

    @property
    def devices(self) -> dict[str, str]:
        """The state of every device's worker."""
        return {worker.engine.device: worker.state for worker in self.workers}

    @property
    def waiting_rows(self) -> int:
        with self.lock:
            return sum(request.waiting for request in self._requests() if request.open)

    @property
    def waiting_bytes(self) -> int:
        with self.lock:
            return sum(request.pixels.nbytes for request in self._requests() if request.open)

    @property
    def retry_after(self) -> int:
        """Seconds until half of the waiting rows are done at the measured rate, 1 to 60."""
        return self._retry_after(self.waiting_rows)

    def submit(self, request: EmbedRequest) -> EmbedRequest:
        """Queue a request, and give it back.

        Raises QueueFull, PayloadTooLarge or Draining at once; never waits.
        """
        key = request.key
        with self.lock:
            self._admit(request)
            self._waiting.setdefault(key, deque()).append(request)
            self.observer.entered(key)
            self.wake()
        known = weakref.ref(request)  # a cycle would keep the pixels until a garbage collection
        request.future.add_done_callback(lambda _: self._left(key, known()))
        return request

    def check(self, model: str) -> list[Future[CheckReport]]:
        """Let every worker at work that holds the model compare its golden sample."""
        up = [worker for worker in self.workers if worker.state == "up"]
        return [w.probe(model) for w in up if w.knows(model) or model in w.unfit]

    def unfit(self, model: str) -> str | None:
        """Why no worker may run the model, or None if one may."""
        if any(worker.serves(model) for worker in self.workers):
            return None
        reasons = [worker.unfit.get(model, "") or worker.reason for worker in self.workers]
        return next(filter(None, reasons), "it is not loaded")

    def busy_with(self, model: str) -> bool:
        """Whether rows of the model wait or are in a batch."""
        with self.lock:
            waiting = any(t.open for t in self._requests() if t.key.model == model)
            return waiting or any(worker.holds(model) for worker in self.workers)

    def stop_accepting(self) -> None:
        """Refuse new rows with Draining; what is queued goes on."""
        with self.lock:
            self._accepting = False

    def drain(self, timeout: float) -> bool:
        """Refuse new rows, wait for the rest, then end the threads. False if time ran out."""
        self.stop_accepting()
        with self.lock:
            empty = self.settled.wait_for(lambda: not self._busy(), timeout)
            left = list(self._requests())
            self._waiting.clear()
        for worker in self.workers:
            left += [part.request for part in worker.stop(timeout=5)]
        self._stopping.set()
        for request in left:
            request.fail(Draining("the service stopped before this request was computed"))
        if self._supervisor is not None:
            self._supervisor.join(timeout=5)
        return empty

    # admission

    def _admit(self, request: EmbedRequest) -> None:
        if not self._accepting:
            raise Draining("the service is shutting down: retry against another, or later")
        if request.rows > self.queue_rows or request.pixels.nbytes > self.queue_bytes:
            raise PayloadTooLarge(
                f"{request.rows} rows of {request.pixels.nbytes / 1e6:.0f} MB are more than the "
                f"whole queue holds ({self.queue_rows} rows, {self.queue_bytes / 1e6:.0f} MB): "
                f"send fewer rows per request"
            )
        requests = [t for t in self._requests() if t.open]
        if self._over(requests, request, 1.0):
            rows = sum(t.waiting for t in requests)
            raise QueueFull(
                f"{rows} rows are waiting already: retry after the time in Retry-After",
                retry_after=self._retry_after(rows),
            )
        own = [t for t in requests if request.client and t.client == request.client]
        if own and self._over(own, request, self.client_share):
            rows = sum(t.waiting for t in own)
            raise QueueFull(
                f"{rows} rows of this client are waiting already, its share of the queue: retry "
                "after the time in Retry-After",
                retry_after=self._retry_after(rows),
            )

    def _over(self, requests: Sequence[EmbedRequest], new: EmbedRequest, share: float) -> bool:
        """Whether `new` beside these would fill more than a share of the queue."""
        rows = sum(t.waiting for t in requests) + new.rows
        held = sum(t.pixels.nbytes for t in requests) + new.pixels.nbytes
        return rows > share * self.queue_rows or held > share * self.queue_bytes

    def _retry_after(self, rows: int) -> int:
        rate = self._rows_per_second * sum(worker.state == "up" for worker in self.workers)
        return int(min(60, max(1, rows / 2 / rate))) if rate else 1

    def _requests(self) -> Iterator[EmbedRequest]:
        for requests in self._waiting.values():
            yield from requests

    def _busy(self) -> bool:
        waiting = any(request.open for request in self._requests())
        return waiting or any(worker.held for worker in self.workers)

    def _left(self, key: BatchKey, request: EmbedRequest | None) -> None:
        """A request is answered, or nobody waits for it: its pixels are let go at once."""
        self.observer.left(key)
        with self.lock:
            requests = self._waiting.get(key)
            if requests and request is not None and request in requests:
                requests.remove(request)
                if not requests:
                    del self._waiting[key]
                self.observer.dropped(key, request.waiting, "cancelled")
            self.settled.notify_all()

    # looking after the workers

    def _supervise(self) -> None:
        while not self._stopping.wait(_SUPERVISION):
            try:
                for worker in self.workers:
                    worker.supervise()
                self._fail_unserved()
            except Exception:
                _LOG.exception("the supervision recovered from a fault of its own")

    def _fail_unserved(self) -> None:
        """Rows that nobody may run any more are answered at once."""
        with self.lock:
            models = {key.model for key in self._waiting}
            reasons = {model: self.unfit(model) for model in models}
            left = [t for t in self._requests() if reasons[t.key.model] is not None]
            for key in [key for key in self._waiting if reasons[key.model] is not None]:
                del self._waiting[key]
        for request in left:
            model = request.key.model
            request.fail(NotReady(f"model {model!r} is not ready: {reasons[model]}", retry_after=2))

    def _lost(self, worker: Worker) -> None:
        if all(other.state == "lost" for other in self.workers):
            self._on_lost()

    # what workers call, with the lock held

    def wake(self) -> None:
        """There may be rows that a worker can stage now."""
        for worker in self.workers:
            worker.wake()

    def available(self, worker: Worker) -> bool:
        """Whether there are rows for this worker; enough of some group, if to be prepared ahead."""
        return self._next_key(worker) is not None

    def take(self, worker: Worker) -> tuple[BatchKey, list[Slice]]:
        """The next group's rows, up to the budget; the group goes to the back of the line."""
        key = self._next_key(worker)
        assert key is not None, "asked only when something is available"
        self._drop_late(key)
        requests = self._waiting[key]
        budget = worker.engine.batch_rows(key.model, key.shape)
        shares = shares_of_batch([request.waiting for request in requests], budget)
        slices = [request.take(share) for request, share in zip(requests, shares, strict=True)]
        left = deque(request for request in requests if request.waiting)
        if left:
            self._waiting[key] = left
            self._waiting.move_to_end(key)
        else:
            del self._waiting[key]
        return key, [s for s in slices if s.rows]

    def delivered(self, rows: int, seconds: float) -> None:
        """Rows that a worker finished, for the rate."""
        rate = rows / max(seconds, 1e-9)
        old = self._rows_per_second or rate
        self._rows_per_second = old + _RATE_SMOOTHING * (rate - old)

    def _next_key(self, worker: Worker) -> BatchKey | None:
        known = [key for key in self._waiting if worker.knows(key.model)]
        if worker.running:
            known = [key for key in known if not self._idle_other(key, worker)]
            if not any(self._fills_batch(key, worker) for key in known):
                return None  # more rows may come until the device is free
        return known[0] if known else None  # not the full one: others would wait for its end

    def _fills_batch(self, key: BatchKey, worker: Worker) -> bool:
        waiting = sum(request.waiting for request in self._waiting[key] if request.open)
        return waiting >= worker.engine.batch_rows(key.model, key.shape)

    def _idle_other(self, key: BatchKey, worker: Worker) -> bool:
        return any(w is not worker and w.idle and w.knows(key.model) for w in self.workers)

    def _drop_late(self, key: BatchKey) -> None:
        now = time.monotonic()
        requests = self._waiting[key]
        for request in list(requests):
            if request.deadline is None or request.deadline >= now:
                continue
            requests.remove(request)
            self.observer.dropped(key, request.waiting, "deadline")
            waited = now - request.submitted
            request.fail(DeadlineExceeded(f"not computed after {waited:.1f} s in the queue"))


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
