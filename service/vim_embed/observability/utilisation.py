"""How near the service comes to its models' bare speed, while it runs.

Of the time in which some request was queued or computed, the share in which the devices ran
forwards: rows/s delivered over rows/s of the bare forward at the same batches. What is missing to
1 went to reading, checking, staging and answering. In a closed loop of few clients that includes
the clients' own time between two requests only where another request is under way.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable


class Utilisation:
    """The ratio over the last `seconds`. From any thread."""

    def __init__(
        self, devices: int, *, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._devices = devices
        self._window = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._open = 0
        self._since = 0.0
        self._working = 0.0
        self._forward = 0.0
        self._marks: deque[tuple[float, float, float]] = deque([(clock(), 0.0, 0.0)])

    def entered(self) -> None:
        """A request is queued."""
        with self._lock:
            if self._open == 0:
                self._since = self._clock()
            self._open += 1

    def left(self) -> None:
        """A request is answered, or has failed."""
        with self._lock:
            self._open -= 1
            if self._open == 0:
                self._working += self._clock() - self._since

    def forward(self, seconds: float) -> None:
        """A forward ended that took so long."""
        with self._lock:
            self._forward += seconds
            self._mark()

    @property
    def working_seconds(self) -> float:
        """In all, with some request queued or computed."""
        with self._lock:
            return self._worked()

    @property
    def value(self) -> float:
        """0 to 1; NaN where there was no work lately."""
        with self._lock:
            self._mark()
            _, worked, forward = self._marks[0]
            spent = self._worked() - worked
            room = spent * self._devices
            return (self._forward - forward) / room if room > 0 else math.nan

    def _worked(self) -> float:
        return self._working + (self._clock() - self._since if self._open else 0.0)

    def _mark(self) -> None:
        now = self._clock()
        self._marks.append((now, self._worked(), self._forward))
        while len(self._marks) > 1 and now - self._marks[1][0] >= self._window:
            self._marks.popleft()
