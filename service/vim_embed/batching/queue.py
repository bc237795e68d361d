"""Row-level batching across requests, between HTTP and the engines.

No timer: a batch is taken when a device is free, from the rows that wait then, up to the row
budget; while every device is busy, one batch each is staged ahead, once a full one waits. The
queue is bounded (admission.py) and refuses, also one client that would take all of it. Rows whose
client left or whose deadline passed never reach an engine. Requests are served in order, but large
ones do not hold up small ones, and groups of rows that cannot share a batch (another model, size or
option) take turns (fairness.py).

One worker for each engine, all from one queue. Knows neither HTTP nor asyncio; callers get a
`concurrent.futures.Future`.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from vim_embed.batching.admission import QueueLimits, refusal, seconds_until_half
from vim_embed.batching.fairness import next_group, shares_of_batch
from vim_embed.batching.observer import Observer, SilentObserver
from vim_embed.batching.request import BatchKey, EmbedRequest, Slice
from vim_embed.batching.supervisor import RestartPolicy, Supervisor
from vim_embed.batching.worker import Worker
from vim_embed.engines.interface import Engine
from vim_embed.errors import DeadlineExceeded, Draining, NotReady
from vim_embed.types.model_info import CheckReport

_RATE_SMOOTHING = 0.2


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
        self.limits = QueueLimits(queue_rows, queue_bytes, client_share)
        self.observer = observer or SilentObserver()
        # One lock for queue and workers: a batch is taken, staged ahead or given back by looking at
        # both. It is held for a few lines of Python each time, never while an engine computes.
        self.lock = threading.RLock()
        self.settled = threading.Condition(self.lock)
        self._waiting: OrderedDict[BatchKey, deque[EmbedRequest]] = OrderedDict()
        self._accepting = True
        self._rows_per_second = 0.0  # of one worker that has rows
        self.workers = [
            Worker(
                engine,
                self,
                observer=self.observer,
                on_failed=lambda worker: self._supervisor.worker_failed(worker),
            )
            for engine in (engines if isinstance(engines, Sequence) else [engines])
        ]
        self._supervisor = Supervisor(
            self.workers,
            policy or RestartPolicy(),
            after_each_look=self._fail_unserved,
            on_all_lost=on_lost,
        )

    def start(self) -> None:
        """Start the workers and who looks after them."""
        for worker in self.workers:
            worker.start()
        self._supervisor.start()

    @property
    def up(self) -> bool:
        """Whether some worker is at work."""
        return any(worker.up for worker in self.workers)

    @property
    def problems(self) -> dict[str, str]:
        """By device, why its worker is not at work."""
        return {w.engine.device: w.reason or w.status for w in self.workers if w.status != "up"}

    def degraded(self, model: str) -> dict[str, str]:
        """By device, why it does not run the model now, or that a forward of it takes long."""
        found = {worker.engine.device: self._shortcoming(worker, model) for worker in self.workers}
        return {device: reason for device, reason in found.items() if reason}

    @property
    def devices(self) -> dict[str, str]:
        """The state of every device's worker."""
        return {worker.engine.device: worker.status for worker in self.workers}

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
        """Let every worker that is up and has the model compare its golden sample."""
        having = ("ready", "failed_check")
        up = [worker for worker in self.workers if worker.status == "up"]
        return [worker.check(model) for worker in up if worker.availability(model) in having]

    def why_unavailable(self, model: str) -> str | None:
        """Why no worker runs the model, now or after its restart; None if one does."""
        if any(worker.availability(model) in ("ready", "restarting") for worker in self.workers):
            return None
        reasons = [worker.failed_checks.get(model, "") or worker.reason for worker in self.workers]
        return next(filter(None, reasons), "it is not loaded")

    def busy_with(self, model: str) -> bool:
        """Whether rows of the model wait or are in a batch."""
        with self.lock:
            waiting = any(each.open for each in self._requests() if each.key.model == model)
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
        self._supervisor.stop()  # first: what is stopped now must not begin anew
        for worker in self.workers:
            left += [part.request for part in worker.stop(timeout=5)]
        for request in left:
            request.fail(Draining("the service stopped before this request was computed"))
        return empty

    def _admit(self, request: EmbedRequest) -> None:
        if not self._accepting:
            raise Draining("the service is shutting down: retry against another, or later")
        waiting = [each for each in self._requests() if each.open]
        refused = refusal(request, waiting, self.limits, self._retry_after)
        if refused is not None:
            raise refused

    def _shortcoming(self, worker: Worker, model: str) -> str | None:
        availability = worker.availability(model)
        if availability == "ready":
            return self._supervisor.slow(worker)
        if availability == "not_loaded":
            status = worker.engine.status().get(model)
            why = f" ({status.reason})" if status is not None and status.reason else ""
            return f"{model} is not loaded here{why}"
        words = availability.replace("_", " ")
        return f"{words}: {worker.failed_checks.get(model) or worker.reason}"

    def _retry_after(self, rows: int) -> int:
        up = sum(worker.status == "up" for worker in self.workers)
        return seconds_until_half(rows, self._rows_per_second * up)

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

    def _fail_unserved(self) -> None:
        """Rows that nobody may run any more are answered at once."""
        with self.lock:
            models = {key.model for key in self._waiting}
            reasons = {model: self.why_unavailable(model) for model in models}
            left = [each for each in self._requests() if reasons[each.key.model] is not None]
            for key in [key for key in self._waiting if reasons[key.model] is not None]:
                del self._waiting[key]
        for request in left:
            model = request.key.model
            request.fail(NotReady(f"model {model!r} is not ready: {reasons[model]}", retry_after=2))

    # what workers call, with the lock held

    def wake(self) -> None:
        """There may be rows that a worker can stage now."""
        for worker in self.workers:
            worker.wake()

    def available(self, worker: Worker) -> bool:
        """Whether there are rows for this worker; enough of some group, if to be staged ahead."""
        return self._next_key(worker) is not None

    def take(self, worker: Worker) -> tuple[BatchKey, list[Slice]]:
        """The next group's rows, up to the budget; the group goes to the back of the line."""
        key = self._next_key(worker)
        assert key is not None, "asked only when something is available"
        self._drop_late(key)
        requests = self._waiting[key]
        budget = worker.engine.batch_rows(key.model, key.shape)
        shares = shares_of_batch([request.waiting for request in requests], budget)
        slices = [
            part
            for request, share in zip(requests, shares, strict=True)
            for part in request.take(share)
        ]
        left = deque(request for request in requests if request.waiting)
        if left:
            self._waiting[key] = left
            self._waiting.move_to_end(key)
        else:
            del self._waiting[key]
        return key, slices

    def give_back(self, slices: Sequence[Slice]) -> None:
        """Rows of a batch that a failed worker did not run: their group is first in line again."""
        for part in reversed(slices):
            request = part.request
            request.give_back(part)
            if not request.open:
                continue  # its client left meanwhile, and `_left` was here already
            requests = self._waiting.setdefault(request.key, deque())
            if request not in requests:
                requests.appendleft(request)
            self._waiting.move_to_end(request.key, last=False)

    def delivered(self, rows: int, seconds: float) -> None:
        """Rows that a worker finished, for the rate."""
        rate = rows / max(seconds, 1e-9)
        old = self._rows_per_second or rate
        self._rows_per_second = old + _RATE_SMOOTHING * (rate - old)

    def _next_key(self, worker: Worker) -> BatchKey | None:
        return next_group(
            [key for key in self._waiting if worker.availability(key.model) == "ready"],
            ahead=worker.running,
            fills_batch=lambda key: self._fills_batch(key, worker),
            idle_elsewhere=lambda key: self._idle_elsewhere(key, worker),
        )

    def _fills_batch(self, key: BatchKey, worker: Worker) -> bool:
        waiting = sum(request.waiting for request in self._waiting[key] if request.open)
        return waiting >= worker.engine.batch_rows(key.model, key.shape)

    def _idle_elsewhere(self, key: BatchKey, worker: Worker) -> bool:
        others = [other for other in self.workers if other is not worker and other.idle]
        return any(other.availability(key.model) == "ready" for other in others)

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
