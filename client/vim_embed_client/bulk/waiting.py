"""For what a run waits, so that whoever shows its progress can say it while nothing finishes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta


class Waiting:
    """Told from the threads of a run, and read from any other."""

    def __init__(self, stage: str = "the service") -> None:
        self._stage = stage
        self._lock = threading.Lock()
        self._sent: dict[object, tuple[float, int]] = {}

    def stage(self, what: str) -> None:
        """For what the run waits while no request is under way."""
        self._stage = what

    @contextmanager
    def request(self, rows: int) -> Iterator[None]:
        """A request of so many rows is under way within."""
        mark = object()
        with self._lock:
            self._sent[mark] = time.monotonic(), rows
        try:
            yield
        finally:
            with self._lock:
                del self._sent[mark]

    def __str__(self) -> str:
        """`the service: 4 requests of 256 rows are under way, the first for 0:02:05`."""
        with self._lock:
            sent = list(self._sent.values())
        if not sent:
            return self._stage
        since = timedelta(seconds=round(time.monotonic() - min(at for at, _ in sent)))
        requests = "1 request" if len(sent) == 1 else f"{len(sent)} requests"
        verb = "is" if len(sent) == 1 else "are"
        rows = sum(rows for _, rows in sent)
        many = "1 row" if rows == 1 else f"{rows:,} rows"
        return f"the service: {requests} of {many} {verb} under way, the first for {since}"
