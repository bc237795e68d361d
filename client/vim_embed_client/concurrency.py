"""Several requests in flight from synchronous code: a few daemon threads under one scope.

Not concurrent.futures: its threads are joined when the interpreter exits, so one silent request
would hold up Ctrl-C for as long as its timeout.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Generic, Self, TypeVar

import httpx

from vim_embed_client.errors import DeadlineExpiredError, deadline_expired

T = TypeVar("T")
R = TypeVar("R")

# How long a call that failed waits for its other requests, so that none is left half connected.
_LINGER_S = 0.5
_WAKES_S = 1.0


class Cancelled(BaseException):
    """Ends a worker whose result nobody waits for any more."""


class Scope:
    """What the requests of one call share: a deadline, and whether they are still wanted."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._ends = None if deadline is None else time.monotonic() + deadline
        self._cancelled = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._cancelled.set()
        until = time.monotonic() + _LINGER_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def start(self, target: Callable[[], None]) -> None:
        """Run `target` in a thread of this scope."""
        thread = threading.Thread(target=target, name="vim-embed-request", daemon=True)
        self._threads.append(thread)
        thread.start()

    def remaining(self) -> float | None:
        """Seconds left, or None without a deadline. Raises DeadlineExpiredError at its end."""
        left = self.left()
        if left is not None and left <= 0:
            raise self.expired()
        return left

    def left(self) -> float | None:
        """Seconds until the deadline, negative after it; None without one."""
        return None if self._ends is None else self._ends - time.monotonic()

    def expired(self) -> DeadlineExpiredError:
        return deadline_expired(self._deadline)

    def check(self) -> None:
        """Raise where the work is no longer wanted."""
        if self._cancelled.is_set():
            raise Cancelled
        self.remaining()

    def sleep(self, seconds: float) -> None:
        """Wait, but not beyond the deadline, and wake up when cancelled."""
        left = self.remaining()
        self._cancelled.wait(seconds if left is None else min(seconds, left))
        self.check()

    def limit(self, timeout: httpx.Timeout) -> httpx.Timeout:
        """`timeout` with each of its parts cut to the time left."""
        left = self.remaining()
        if left is None:
            return timeout
        parts = timeout.as_dict()
        return httpx.Timeout(**{k: left if v is None else min(v, left) for k, v in parts.items()})


class GuardedStream(httpx.SyncByteStream):
    """A body that stops being sent when its scope ends."""

    def __init__(self, stream: httpx.SyncByteStream, scope: Scope) -> None:
        self._stream = stream
        self._scope = scope

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._scope.check()
            yield chunk


class _Source(Generic[T]):
    """An iterable that several threads draw from."""

    def __init__(self, items: Iterable[T]) -> None:
        self._iterator = iter(items)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._lock:
            return next(self._iterator)


def run_each(
    work: Callable[[T], R], items: Iterable[T], *, workers: int, scope: Scope
) -> Iterator[tuple[T, R]]:
    """Yield (item, work(item)) as they come, with at most `workers` at once.

    The first failure is raised; what has not begun then never does, once `scope` is left.
    Items are drawn one at a time, when a worker is free.
    """
    source = _Source(items)
    outcomes: queue.SimpleQueue[tuple[T, R] | BaseException | None] = queue.SimpleQueue()

    def loop() -> None:
        try:
            for item in source:
                scope.check()
                outcomes.put((item, work(item)))
            outcomes.put(None)
        except BaseException as error:
            outcomes.put(error)

    for _ in range(workers):
        scope.start(loop)
    while workers:
        outcome = _next(outcomes, scope)
        if outcome is None:
            workers -= 1
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            yield outcome


def _next(outcomes: queue.SimpleQueue[R], scope: Scope) -> R:
    """The next outcome. Raises DeadlineExpiredError at the scope's end.

    Wakes up each second: a Ctrl-C that comes just before a wait begins does not end that wait.
    """
    while True:
        left = scope.remaining()
        with suppress(queue.Empty):
            return outcomes.get(timeout=_WAKES_S if left is None else min(left, _WAKES_S))
