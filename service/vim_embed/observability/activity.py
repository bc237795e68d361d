"""What the service did lately, for `GET /status`: rates of the last minute and the last errors.

A few hundred numbers in memory, whatever the load. Counters for monitoring are in metrics.py.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

WINDOW = 60  # seconds
RECENT = 10  # seconds over which the current rate is taken
_LATENCIES = 2048
_ERRORS = 20


@dataclass
class Failure:
    """A refusal or failure, and how often the same one came."""

    code: str
    status: int
    message: str
    route: str
    request_id: str
    time: str
    count: int = 1


@dataclass
class _Second:
    """The batches of one second of the clock."""

    second: int
    rows: int = 0
    batches: int = 0


class Activity:
    """Fixed-size records of the last minute. Safe to call from any thread.

    clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin = clock()
        self._lock = threading.Lock()
        self._seconds: deque[_Second] = deque(maxlen=WINDOW + 1)
        self._latencies: deque[tuple[float, float]] = deque(maxlen=_LATENCIES)
        self._failures: deque[Failure] = deque(maxlen=_ERRORS)

    def batch(self, rows: int) -> None:
        """A batch of `rows` came out of the engine."""
        now = int(self._clock())
        with self._lock:
            if not self._seconds or self._seconds[-1].second != now:
                self._seconds.append(_Second(now))
            self._seconds[-1].rows += rows
            self._seconds[-1].batches += 1

    def answered(self, seconds: float) -> None:
        """Embeddings were sent `seconds` after their request came."""
        with self._lock:
            self._latencies.append((self._clock(), seconds))

    def failed(self, code: str, status: int, message: str, route: str, request_id: str) -> None:
        """A request failed. Equal failures are kept once, with a count and the last request's id.

        message: without secrets (see `without_secrets`).
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        failure = Failure(code, status, message, route, request_id, now)
        with self._lock:
            for known in self._failures:
                if (known.code, known.message, known.route) == (code, message, route):
                    self._failures.remove(known)
                    failure.count += known.count
                    break
            self._failures.append(failure)

    def summary(self) -> dict[str, object]:
        """`uptime_seconds`, `throughput`, `batches`, `latency` and `errors` of `GET /status`."""
        now = self._clock()
        with self._lock:
            seconds = [s for s in self._seconds if s.second > int(now) - WINDOW - 1]
            latencies = [taken for at, taken in self._latencies if at > now - WINDOW]
            failures = [asdict(failure) for failure in reversed(self._failures)]
        rows, batches = sum(s.rows for s in seconds), sum(s.batches for s in seconds)
        history = self._history(seconds, int(now))
        span = max(1, min(RECENT, int(now - self._begin)))
        return {
            "uptime_seconds": round(now - self._begin, 1),
            "window_seconds": WINDOW,
            "throughput": {
                "rows_per_second": round(sum(history[-span:]) / span, 2),
                "rows_each_second": history,
            },
            "batches": {
                "count": batches,
                "mean_rows": _rounded(rows / batches if batches else None),
            },
            "latency": {
                "count": len(latencies),
                "p50_ms": _milliseconds(quantile(latencies, 0.5)),
                "p99_ms": _milliseconds(quantile(latencies, 0.99)),
            },
            "errors": failures,
        }

    def _history(self, seconds: Sequence[_Second], now: int) -> list[int]:
        """Rows of each of the last whole seconds, the oldest first; the running one is left out."""
        rows = {s.second: s.rows for s in seconds}
        return [rows.get(second, 0) for second in range(now - WINDOW, now)]


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of the values do not exceed; None of no values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _milliseconds(seconds: float | None) -> float | None:
    return _rounded(None if seconds is None else 1000 * seconds)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
