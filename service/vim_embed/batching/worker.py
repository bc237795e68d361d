"""One engine at work: threads that take, stage, run and deliver.

Each thread stages a batch and runs it (worker_state.py draws the phases). One may stage while
another runs; where the engine takes two forwards at once, the next is launched before the last
one's rows are handed out, and the device never waits for that.

A worker fails by an exception that is not one request's (execution.py), a thread that ends, or a
forward that hangs. Then what was in the engine is answered at once, with an error that may be
retried; a batch that was only staged goes back to the queue; and the supervisor lets the engine
begin anew.

Knows neither HTTP nor how the queue is ordered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Literal, Protocol

from vim_embed.batching.execution import Execution
from vim_embed.batching.observer import Observer
from vim_embed.batching.request import (
    BatchKey,
    Slice,
    StagedBatch,
    fail,
    fail_all,
    request_ids,
    settle,
)
from vim_embed.batching.worker_state import AHEAD, IN_ENGINE, Job, WorkerState
from vim_embed.engines.interface import Engine, EngineFailed
from vim_embed.errors import WorkerFailed
from vim_embed.types.model_info import CheckReport

_LOG = logging.getLogger(__name__)
WorkerStatus = Literal["up", "restarting", "lost"]
Cause = Literal["exception", "hang", "thread", "check"]
# Of a model on a worker. ready: rows run now. restarting: they will. The others: they never will,
# unless the model is loaded, or a later check finds it sound.
Availability = Literal["ready", "restarting", "failed_check", "not_loaded", "lost"]


class BatchSource(Protocol):
    """Where workers take rows from. Called with the lock held.

    settled: notified when rows that were held are no more.
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

    def give_back(self, slices: Sequence[Slice]) -> None:
        """Rows that were taken and not run: they come first again."""
        ...

    def delivered(self, rows: int, seconds: float) -> None:
        """Rows that came out of a batch, and the seconds of its forward."""
        ...


class Worker:
    """Keeps one engine at work. State changes happen under the lock of its source."""

    def __init__(
        self,
        engine: Engine,
        source: BatchSource,
        *,
        observer: Observer,
        on_failed: Callable[[Worker], None],
    ) -> None:
        """on_failed: sees to it that the worker returns to work, or is lost."""
        self.engine = engine
        self.status: WorkerStatus = "up"
        self.reason = ""  # why it is not up
        self.state = WorkerState()
        self.failures = 0  # in a row; the next batch that succeeds forgets them
        self.failed_at = 0.0
        self.failed_checks: dict[str, str] = {}  # by model, how its golden sample differed
        self._source = source
        self._execution = Execution(
            engine, observer, succeeded=self._succeeded, checked=self._checked
        )
        self._wanted = threading.Condition(source.lock)  # an idle thread has something to do
        self._may_run = threading.Condition(source.lock)  # a staged batch may run, or never will
        self._observer = observer
        self._on_failed = on_failed
        self._checks: deque[tuple[str, Future[CheckReport]]] = deque()
        self._stopping = False

    # what others ask

    @property
    def up(self) -> bool:
        """Whether all threads are at work."""
        return self.status == "up" and self.state.threads_alive

    @property
    def idle(self) -> bool:
        """Whether it could take rows at once."""
        return self.status == "up" and not self.state.held

    @property
    def running(self) -> bool:
        """Whether rows are in the engine."""
        return bool(self.state.in_phase("running"))

    @property
    def held(self) -> list[Slice]:
        """Rows that are being staged, staged or run."""
        return self.state.held

    def holds(self, model: str) -> bool:
        """Whether rows of the model are among them, or a check of it waits or runs."""
        checked = [name for name, _ in self._checks]
        checked += [job.model for job in self.state.in_phase("checking")]
        return model in checked or any(part.request.key.model == model for part in self.held)

    def availability(self, model: str) -> Availability:
        """Whether the model's rows run here."""
        if self.status == "lost":
            return "lost"
        status = self.engine.status().get(model)
        if status is None or status.state != "ready":
            return "not_loaded"
        if model in self.failed_checks:
            return "failed_check"
        return "ready" if self.status == "up" else "restarting"

    # from outside

    def start(self) -> None:
        with self._source.lock:
            self._begin()

    def check(self, model: str) -> Future[CheckReport]:
        """Embed the model's golden sample between two batches, and compare.

        Where it differs, the model runs here no more until a later check finds it sound.
        """
        future: Future[CheckReport] = Future()
        with self._source.lock:
            if self.status != "up":
                future.set_exception(_failure(self.reason))
            else:
                self._checks.append((model, future))
                self.wake()
        return future

    def wake(self) -> None:
        """Wake one idle thread, if there is something for it: waking for nothing costs more."""
        if self._may_work(self.state):
            self._wanted.notify()

    def fail(self, state: WorkerState, cause: Cause, reason: str) -> None:
        """End this state for good: answer what was in the engine, and give back what was not.

        Only the first failure of a state counts.
        """
        with self._source.lock:
            if state.over or self._stopping:
                return
            lost, kept = self._parted(state, cause)
            state.over = True
            self.status, self.reason, self.failed_at = "restarting", reason, time.monotonic()
            checks = [future for _, future in self._checks]
            checks += [job.check for job in state.in_phase("checking") if job.check is not None]
            self._checks.clear()
            self._source.give_back(kept)  # before others are woken: they may take it now
            self._wake_all()
            self._source.wake()
        device, ids = self.engine.device, request_ids(lost)
        about = {"device": device, "cause": cause, "reason": reason, "request_ids": ids}
        _LOG.error("worker failed", extra=about)
        for part in lost:
            part.request.fail(_failure(reason))
        for future in checks:
            fail(future, _failure(reason))
        self._observer.worker_failed(device, cause)
        self._on_failed(self)

    def return_to_work(self) -> None:
        """The engine was loaded anew."""
        with self._source.lock:
            if self.status == "lost" or self._stopping:
                return
            self.failed_checks.clear()
            self._begin()
            self.status, self.reason = "up", ""
            self._source.wake()
        _LOG.info("worker back at work", extra={"device": self.engine.device})

    def lose(self, reason: str) -> None:
        """Give the worker up: nothing runs here any more."""
        with self._source.lock:
            if self.status == "lost":
                return
            self.status, self.reason = "lost", reason
            self._wake_all()
        _LOG.error("worker lost", extra={"device": self.engine.device, "reason": reason})

    def stop(self, timeout: float) -> list[Slice]:
        """End the threads; what runs may finish in time. Gives what was staged and will not run."""
        with self._source.lock:
            self._stopping = True
            state = self.state
            state.ending = True
            left = self._take_back(state)
            self._wake_all()
        end = time.monotonic() + timeout
        for thread in state.threads:
            thread.join(max(0.0, end - time.monotonic()))
        return left

    def _parted(self, state: WorkerState, cause: Cause) -> tuple[list[Slice], list[Slice]]:
        """Rows that fail with the worker, and rows that had no part in it and wait again.

        Whatever was in the engine may be why it failed. So may be what was being staged, if a
        thread ended or hangs; else its thread finds the state over, and runs it no more.
        """
        guilty = IN_ENGINE if cause in ("exception", "check") else (*IN_ENGINE, "staging")
        lost = [part for job in state.in_phase(*guilty) for part in job.slices]
        return lost, [part for part in state.held if part not in lost]

    def _take_back(self, state: WorkerState) -> list[Slice]:
        """The staged batch, if there is one, is nobody's job any more."""
        left: list[Slice] = []
        for thread, job in list(state.jobs.items()):
            if job.phase == "staged":
                left += job.slices
                del state.jobs[thread]
        return left

    # the threads

    def _begin(self) -> None:
        state = WorkerState()
        for number in range(self.engine.at_once + self.engine.stages_ahead):
            name = f"vim-embed-work-{number}"
            thread = threading.Thread(target=self._repeat, args=(state,), name=name, daemon=True)
            state.threads.append(thread)
        for thread in state.threads:
            thread.start()
        self.state = state

    def _repeat(self, state: WorkerState) -> None:
        while not (state.over or state.ending):
            try:
                self._step(state)
            except Exception as error:
                _LOG.exception("a worker's own fault")
                self.fail(state, "thread", f"{type(error).__name__} in a worker thread")

    def _step(self, state: WorkerState) -> None:
        with self._source.lock:
            self._wanted.wait_for(lambda: self._may_work(state))
            task = self._next_task(state)
        if task is not None:
            task()

    def _next_task(self, state: WorkerState) -> Callable[[], None] | None:
        """What this thread does now: answer a check, else embed rows; None if there is nothing."""
        if state.over or state.ending:
            return None
        if self._may_check(state):
            model, future = self._checks.popleft()
            state.begin(Job("checking", check=future, model=model))
            self._source.wake()
            return partial(self._answer_check, state, model, future)
        key, slices = self._source.take(self)
        if not slices:
            return None
        job = Job("staging", slices)
        state.begin(job)
        return partial(self._embed, state, job, key)

    def _embed(self, state: WorkerState, job: Job, key: BatchKey) -> None:
        batch = self._staged(state, job, key)
        if batch is not None and self._wait_to_run(state, job):
            self._run(state, batch)
        self._end(state)

    def _may_work(self, state: WorkerState) -> bool:
        return state.over or state.ending or self._may_check(state) or self._may_stage(state)

    def _may_check(self, state: WorkerState) -> bool:
        return bool(self._checks) and self._has_room(state)

    def _may_stage(self, state: WorkerState) -> bool:
        # One batch ahead keeps the device busy. With two in the engine, one of these is ahead
        # already: to hold more rows would keep them from other devices, and from whom they suit.
        ahead = state.in_phase(*AHEAD) or len(state.in_phase(*IN_ENGINE)) > 1
        return not ahead and self._source.available(self)

    def _has_room(self, state: WorkerState) -> bool:
        return len(state.in_phase(*IN_ENGINE)) < self.engine.at_once

    def _staged(self, state: WorkerState, job: Job, key: BatchKey) -> StagedBatch | None:
        """The batch, ready to run; None if it failed, or the worker did meanwhile."""
        begin = time.monotonic()
        try:
            staged = self.engine.stage(key.model, [s.pixels for s in job.slices], key.options)
        except EngineFailed as error:
            job.enter("running")  # so that its rows fail with the worker: they may be why
            self.fail(state, "exception", str(error))
            return None
        except Exception as error:
            fail_all(job.slices, error)
            return None
        self._observer.staged(key, time.monotonic() - begin)
        return StagedBatch(key, tuple(job.slices), staged)

    def _wait_to_run(self, state: WorkerState, job: Job) -> bool:
        """Wait until the engine takes the batch; False if it was taken back meanwhile."""
        with self._source.lock:
            job.enter("staged")
            # Checks go first: a device that always has a batch ahead would never come to them.
            self._may_run.wait_for(
                lambda: not state.holds(job) or (self._has_room(state) and not self._checks)
            )
            if not state.holds(job):
                return False
            job.enter("running")
            self._source.wake()  # with this one gone, another thread may stage the next
            return True

    def _end(self, state: WorkerState) -> None:
        with self._source.lock:
            state.end()
            self._may_run.notify_all()
            self._source.wake()
            self._source.settled.notify_all()

    def _wake_all(self) -> None:
        for condition in (self._wanted, self._may_run, self._source.settled):
            condition.notify_all()

    # what goes through the engine

    def _run(self, state: WorkerState, batch: StagedBatch) -> None:
        try:
            self._execution.run(state, batch)
        except EngineFailed as error:
            self.fail(state, "exception", str(error))

    def _succeeded(self, rows: int, seconds: float) -> None:
        self.failures = 0
        self._source.delivered(rows, seconds)

    def _checked(self, state: WorkerState, model: str, report: CheckReport) -> None:
        with self._source.lock:
            if state.over:  # too late: another state is at work, perhaps with the model loaded anew
                return
            self._observer.checked(model, report.ok)
            self.failed_checks.pop(model, None)
            if not report.ok:
                reason = self.failed_checks[model] = f"self-check failed: {report.problem}"
                _LOG.error("model failed its check", extra={"model": model, "reason": reason})
            self._source.wake()

    def _answer_check(self, state: WorkerState, model: str, future: Future[CheckReport]) -> None:
        if future.set_running_or_notify_cancel():
            self._check_now(state, model, future)
        self._end(state)

    def _check_now(self, state: WorkerState, model: str, future: Future[CheckReport]) -> None:
        try:
            settle(future, self._execution.compare(state, model))
        except KeyError:  # unloaded meanwhile
            fail(future, _failure(f"{model} is not loaded"))
        except Exception as error:
            reason = f"{type(error).__name__} on the golden sample: {error}"
            fail(future, _failure(reason))
            self.fail(state, "check", reason)


def _failure(reason: str) -> WorkerFailed:
    return WorkerFailed(f"the worker failed ({reason}) and is loading anew: retry", retry_after=1)
