"""One engine at work: threads that take, stage, run and deliver, and what if they fail.

Each thread stages a batch and runs it. One may stage while another runs; where the engine takes two
forwards at once, the next is launched before the last one's rows are handed out, and the device
never waits for that.

A failure that is one request's stays that request's: the requests of a failed batch run singly,
and the golden sample tells whether the engine still works. A worker that fails (an exception that
the golden sample shares, a thread that ends, a forward that hangs) fails at once what it held, with
an error that may be retried, loads its engine anew and goes on; after too many failures in a row it
is lost. Threads that hang cannot be ended: they are left behind, and deliver nothing any more.

Knows neither HTTP nor how the queue is ordered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

from vim_embed.batching.observer import Observer
from vim_embed.batching.request import (
    BatchKey,
    Prepared,
    Slice,
    fail,
    fail_all,
    request_ids,
    settle,
)
from vim_embed.batching.worker_state import Shift, deliver
from vim_embed.engines.interface import Engine, EngineFailed
from vim_embed.errors import WorkerFailed
from vim_embed.types.model_info import EMBEDDING, CheckReport, EmbedOptions

_LOG = logging.getLogger(__name__)
State = Literal["up", "restarting", "lost"]
Cause = Literal["exception", "hang", "thread", "check"]


@dataclass(frozen=True)
class RestartPolicy:
    """What a worker is given: seconds for one forward, failures in a row, seconds between them."""

    forward: float = 120.0
    failures: int = 5
    first_pause: float = 0.1
    longest_pause: float = 10.0
    restart: float = 600.0

    def pause(self, failures: int) -> float:
        """Seconds before the restart that follows this many failures in a row."""
        return min(self.longest_pause, self.first_pause * 2.0 ** (failures - 1))


class Work(Protocol):
    """Where workers take rows from. Called with the lock held.

    settled: rows that were held are no more.
    """

    lock: threading.RLock
    settled: threading.Condition

    def wake(self) -> None:
        """Call `wake` of every worker: one of them may have become able to stage something."""
        ...

    def available(self, worker: Worker) -> bool:
        """Whether there is something that this worker should stage now."""
        ...

    def take(self, worker: Worker) -> tuple[BatchKey, list[Slice]]:
        """Its next rows; none of them if all were dropped."""
        ...

    def delivered(self, rows: int, seconds: float) -> None:
        """Rows that came out of a batch, and the seconds of its forward."""
        ...


class Worker:
    """Keeps one engine at work. State changes happen under the lock of `work`."""

    def __init__(
        self,
        engine: Engine,
        work: Work,
        *,
        observer: Observer,
        policy: RestartPolicy,
        on_lost: Callable[[Worker], None],
    ) -> None:
        self.engine = engine
        self.state: State = "up"
        self.reason = ""
        self.unfit: dict[str, str] = {}
        self._work = work
        self._settled = work.settled
        self._wanted = threading.Condition(work.lock)  # an idle thread has something to do
        self._may_run = threading.Condition(work.lock)  # a prepared batch may be run, or never will
        self._observer = observer
        self._patience = policy
        self._on_lost = on_lost
        self._shift = Shift()
        self._probes: deque[tuple[str, Future[CheckReport]]] = deque()
        self._failures = 0
        self._restarting_since = 0.0
        self._stopping = threading.Event()

    # what others ask

    @property
    def alive(self) -> bool:
        """Whether all threads are at work."""
        threads = self._shift.threads
        return self.state == "up" and bool(threads) and all(t.is_alive() for t in threads)

    @property
    def idle(self) -> bool:
        return self.state == "up" and not self.held

    @property
    def running(self) -> bool:
        return any(list(self._shift.running.values()))

    @property
    def held(self) -> list[Slice]:
        """What is being staged, prepared or run."""
        return [] if self._shift.over else self._shift.held

    def holds(self, model: str) -> bool:
        """Whether rows of the model are among them."""
        return any(part.request.key.model == model for part in self.held)

    def knows(self, model: str) -> bool:
        """Whether the model is loaded here and passed its last check."""
        status = self.engine.status().get(model)
        return status is not None and status.state == "ready" and model not in self.unfit

    def serves(self, model: str) -> bool:
        """Whether this worker may run the model, now or after its restart."""
        return self.state != "lost" and self.knows(model)

    # from outside

    def start(self) -> None:
        with self._work.lock:
            self._begin_shift()

    def probe(self, model: str) -> Future[CheckReport]:
        """Embed the model's golden sample between two batches, and compare.

        A difference makes the model unfit here until a later probe succeeds.
        """
        future: Future[CheckReport] = Future()
        with self._work.lock:
            if self.state != "up":
                future.set_exception(_failure(self.reason))
            else:
                self._probes.append((model, future))
                self.wake()
        return future

    def wake(self) -> None:
        """Wake one idle thread, if there is something for it: waking for nothing costs more."""
        if self._may_work(self._shift):
            self._wanted.notify()

    def supervise(self) -> None:
        """Notice threads that ended or hang; called a few times a second."""
        now = time.monotonic()
        with self._work.lock:
            shift, state = self._shift, self.state
            overdue = [what for what, since in shift.since.items() if self._is_late(now - since)]
            dead = any(not thread.is_alive() for thread in shift.threads)
        if state == "restarting" and now - self._restarting_since > self._patience.restart:
            self._lose(f"its restart did not end within {self._patience.restart:.0f} s")
        elif state == "up" and overdue:
            self._fail(shift, "hang", f"no end of a forward within {self._patience.forward:g} s")
        elif state == "up" and dead and not shift.ending:
            self._fail(shift, "thread", "a worker thread ended")

    def stop(self, timeout: float) -> list[Slice]:
        """End the threads; what runs may finish in time. Gives what was prepared and will not."""
        self._stopping.set()
        with self._work.lock:
            shift = self._shift
            shift.ending = True
            left = list(shift.prepared.slices) if shift.prepared is not None else []
            shift.prepared = None
            self._wake_all()
        end = time.monotonic() + timeout
        for thread in shift.threads:
            thread.join(max(0.0, end - time.monotonic()))
        return left

    # the threads

    def _begin_shift(self) -> None:
        shift = self._shift = Shift()
        for number in range(self.engine.at_once + 1):
            name = f"vim-embed-work-{number}"
            thread = threading.Thread(target=self._repeat, args=(shift,), name=name, daemon=True)
            shift.threads.append(thread)
        for thread in shift.threads:
            thread.start()

    def _repeat(self, shift: Shift) -> None:
        while not (shift.over or shift.ending):
            try:
                self._step(shift)
            except Exception as error:
                _LOG.exception("a worker's own fault")
                self._fail(shift, "thread", f"{type(error).__name__} in a worker thread")

    def _step(self, shift: Shift) -> None:
        with self._work.lock:
            self._wanted.wait_for(lambda: self._may_work(shift))
            task = self._next_task(shift)
        if task is not None:
            task()

    def _next_task(self, shift: Shift) -> Callable[[], None] | None:
        """What this thread does now: answer a probe, else embed rows; None if there is nothing."""
        if shift.over or shift.ending:
            return None
        if self._may_probe(shift):
            model, future = self._probes.popleft()
            shift.probing[threading.get_ident()] = future
            self._occupy(shift, ())
            return partial(self._answer_probe, shift, model, future)
        key, slices = self._work.take(self)
        if not slices:
            return None
        shift.staging = slices
        shift.since[threading.get_ident()] = time.monotonic()
        return partial(self._embed, shift, key, slices)

    def _embed(self, shift: Shift, key: BatchKey, slices: list[Slice]) -> None:
        prepared = self._staged(shift, key, slices)
        if prepared is not None and self._wait_to_run(shift, prepared):
            self._run(shift, prepared)
            self._vacate(shift)

    def _may_work(self, shift: Shift) -> bool:
        return shift.over or shift.ending or self._may_probe(shift) or self._may_stage(shift)

    def _may_probe(self, shift: Shift) -> bool:
        return bool(self._probes) and self._has_room(shift)

    def _may_stage(self, shift: Shift) -> bool:
        ahead = shift.staging or shift.prepared is not None or len(shift.running) > 1
        return not ahead and self._work.available(self)

    def _has_room(self, shift: Shift) -> bool:
        return len(shift.running) < self.engine.at_once

    def _staged(self, shift: Shift, key: BatchKey, slices: list[Slice]) -> Prepared | None:
        """The batch, ready to run; None if it failed."""
        prepared = None
        try:
            begin = time.monotonic()
            staged = self.engine.stage(key.model, [s.pixels for s in slices], key.options)
            self._observer.staged(key, time.monotonic() - begin)
            prepared = Prepared(key, tuple(slices), staged)
        except EngineFailed as error:
            self._fail(shift, "exception", str(error))
        except Exception as error:
            fail_all(slices, error)
        with self._work.lock:
            shift.prepared, shift.staging = prepared, ()
            shift.since.pop(threading.get_ident(), None)
            if prepared is None:
                self._work.wake()
                self._settled.notify_all()
        return prepared

    def _wait_to_run(self, shift: Shift, prepared: Prepared) -> bool:
        """Wait until the engine takes the batch; False if it was taken back meanwhile."""
        with self._work.lock:
            self._may_run.wait_for(
                lambda: (
                    shift.over
                    or shift.prepared is not prepared
                    or (self._has_room(shift) and not self._probes)
                )
            )
            if shift.over or shift.prepared is not prepared:
                return False
            shift.prepared = None
            self._occupy(shift, prepared.slices)
            return True

    def _occupy(self, shift: Shift, slices: Sequence[Slice]) -> None:
        """From now on this thread runs something."""
        own = threading.get_ident()
        shift.running[own] = slices
        shift.since[own] = time.monotonic()
        self._work.wake()

    def _vacate(self, shift: Shift) -> None:
        own = threading.get_ident()
        with self._work.lock:
            for kept in (shift.running, shift.probing, shift.since):
                kept.pop(own, None)
            if shift.prepared is not None:
                self._may_run.notify_all()
            self._work.wake()
            self._settled.notify_all()

    def _wake_all(self) -> None:
        for condition in (self._wanted, self._may_run, self._settled):
            condition.notify_all()

    # running

    def _run(self, shift: Shift, prepared: Prepared) -> None:
        begin = time.monotonic()
        try:
            outputs = self.engine.run(prepared.staged)
            end = time.monotonic()
            begin = shift.forward_began(begin, end)
            seconds = end - begin
            deliver(shift, prepared.slices, outputs, begin, seconds)
        except EngineFailed as error:
            self._fail(shift, "exception", str(error))
        except Exception as error:
            self._run_apart(shift, prepared, error)
        else:
            rows = sum(part.rows for part in prepared.slices)
            self._failures = 0
            self._work.delivered(rows, seconds)
            self._observer.batch(prepared.key, rows, len(prepared.slices), seconds)

    def _run_apart(self, shift: Shift, prepared: Prepared, error: Exception) -> None:
        """One item's failure is that item's alone: run the requests of a failed batch singly."""
        model = prepared.key.model
        ids = request_ids(prepared.slices)
        _LOG.error(
            "a batch failed", extra={"model": model, "error": repr(error), "request_ids": ids}
        )
        failed = [p for p in prepared.slices if not self._run_alone(shift, prepared, p, error)]
        if len(failed) == len(prepared.slices) and not shift.over:
            self._suspect(shift, model, error)

    def _run_alone(self, shift: Shift, prepared: Prepared, part: Slice, error: Exception) -> bool:
        if shift.over:
            return False
        if len(prepared.slices) == 1:
            fail_all([part], error)
            return False
        begin = time.monotonic()
        try:
            key = prepared.key
            outputs = self.engine.run(self.engine.stage(key.model, [part.pixels], key.options))
            deliver(shift, [part], outputs, begin, time.monotonic() - begin)
        except EngineFailed as own:
            self._fail(shift, "exception", str(own))
        except Exception as own:
            fail_all([part], own)
        else:
            return True
        return False

    def _suspect(self, shift: Shift, model: str, error: Exception) -> None:
        """Nothing of a batch came out: was it the rows, or is it the engine?"""
        try:
            self._compare(shift, model)
        except Exception as own:
            _LOG.error("the golden sample failed too", extra={"model": model, "error": repr(own)})
            self._fail(shift, "exception", f"{type(error).__name__} in the model: {error}")

    def _compare(self, shift: Shift, model: str) -> CheckReport:
        golden = self.engine.golden(model)
        staged = self.engine.stage(model, [golden.pixels], EmbedOptions())
        report = golden.compare(self.engine.run(staged)[EMBEDDING])
        if shift.over:  # too late: another shift is at work, perhaps with the model loaded anew
            return report
        self._observer.checked(model, report.ok)
        with self._work.lock:
            self.unfit.pop(model, None)
            if not report.ok:
                self.unfit[model] = f"self-check failed: {report.problem}"
                _LOG.error("model unfit", extra={"model": model, "reason": self.unfit[model]})
            self._work.wake()
        return report

    def _answer_probe(self, shift: Shift, model: str, future: Future[CheckReport]) -> None:
        if future.set_running_or_notify_cancel():
            self._probe_now(shift, model, future)
        self._vacate(shift)

    def _probe_now(self, shift: Shift, model: str, future: Future[CheckReport]) -> None:
        try:
            settle(future, self._compare(shift, model))
        except KeyError:  # unloaded meanwhile
            fail(future, _failure(f"{model} is not loaded"))
        except Exception as error:
            reason = f"{type(error).__name__} on the golden sample: {error}"
            fail(future, _failure(reason))
            self._fail(shift, "check", reason)

    # failing and beginning anew

    def _is_late(self, seconds: float) -> bool:
        return seconds > self._patience.forward

    def _fail(self, shift: Shift, cause: Cause, reason: str) -> None:
        with self._work.lock:
            if shift.over or self._stopping.is_set():
                return
            shift.over = True
            self.state, self.reason = "restarting", reason
            self._restarting_since = time.monotonic()
            held, probes = shift.held, [future for _, future in self._probes]
            probes += shift.probing.values()
            self._probes.clear()
            self._wake_all()
        device = self.engine.device
        _LOG.error(
            "worker failed",
            extra={
                "device": device,
                "cause": cause,
                "reason": reason,
                "request_ids": request_ids(held),
            },
        )
        for part in held:
            part.request.fail(_failure(reason))
        for future in probes:
            fail(future, _failure(reason))
        self._observer.worker_failed(device, cause)
        threading.Thread(target=self._restart, name="vim-embed-restart", daemon=True).start()

    def _restart(self) -> None:
        while self.state == "restarting":
            self._failures += 1
            if self._failures > self._patience.failures:
                self._lose(f"{self.reason}; it failed {self._failures} times in a row")
                return
            if self._stopping.wait(self._patience.pause(self._failures)):
                return
            try:
                self.engine.restart()
            except EngineFailed as error:
                self._lose(f"{self.reason}; {error}")
            except Exception as error:
                _LOG.exception("restart failed")
                self.reason = f"{type(error).__name__} while loading anew: {error}"
            else:
                self._return_to_work()

    def _return_to_work(self) -> None:
        with self._work.lock:
            if self.state == "lost" or self._stopping.is_set():
                return
            self.unfit.clear()
            self._begin_shift()
            self.state, self.reason = "up", ""
            self._work.wake()
        _LOG.info("worker back at work", extra={"device": self.engine.device})

    def _lose(self, reason: str) -> None:
        with self._work.lock:
            if self.state == "lost":
                return
            self.state, self.reason = "lost", reason
            self._wake_all()
        _LOG.error("worker lost", extra={"device": self.engine.device, "reason": reason})
        self._on_lost(self)


def _failure(reason: str) -> WorkerFailed:
    return WorkerFailed(f"the worker failed ({reason}) and is loading anew: retry", retry_after=1)
