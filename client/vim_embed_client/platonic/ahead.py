"""Calls that go on while their caller prepares the next: one after another, in a thread."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, NamedTuple

_Jobs = SimpleQueue["_Job | None"]


class _Job(NamedTuple):
    call: Callable[[], Any]
    future: Future[Any]


class Ahead:
    """Runs calls in the order in which they were submitted, never two at once.

    So a service sees what it would see of a caller that waits for each answer, and the numbers are
    the same to the bit. most: calls that may be submitted and not done; a further one waits.

    After a call that failed, those behind it are not run. The failure is raised by the next
    `submit`, once, and by the call's own future; a caller that goes on starts afresh.
    """

    def __init__(self, most: int) -> None:
        self._jobs: _Jobs = SimpleQueue()
        self._state = _State(most)
        thread = threading.Thread(
            target=_work, args=(self._jobs, self._state), name="vim-embed ahead", daemon=True
        )
        thread.start()
        weakref.finalize(self, self._jobs.put, None)

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Have `call` run; wait while too many are under way. Raises an earlier call's failure."""
        self._state.free.acquire()
        try:
            self.check()
        except BaseException:
            self._state.free.release()
            raise
        job = _Job(call, Future())
        self._jobs.put(job)
        return job.future

    def check(self) -> None:
        """Raise what an earlier call failed with, unless that was raised already."""
        failure = self._state.take_failure()
        if failure is not None:
            raise failure


class _State:
    """What the thread and its owner share."""

    def __init__(self, most: int) -> None:
        self.free = threading.Semaphore(most)
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = error

    @property
    def failure(self) -> BaseException | None:
        return self._failure

    def take_failure(self) -> BaseException | None:
        with self._lock:
            failure, self._failure = self._failure, None
            return failure


def _work(jobs: _Jobs, state: _State) -> None:
    """Run jobs until there is a None. Holds the queue alone, so that its owner can be collected."""
    while (job := jobs.get()) is not None:
        failure = state.failure
        try:
            if failure is not None:
                raise failure
            job.future.set_result(job.call())
        except BaseException as error:
            state.fail(error)
            job.future.set_exception(error)
        state.free.release()
        del job  # and its pixels, before the next one is waited for
