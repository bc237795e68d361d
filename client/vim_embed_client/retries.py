"""How long to wait before an attempt is repeated."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from vim_embed_client.errors import (
    DeadlineExceededError,
    DrainingError,
    NotReadyError,
    ServerUnreachableError,
    StatusError,
    TimedOutError,
    VimEmbedError,
    deadline_expired,
)
from vim_embed_client.options import Options

MAX_BACKOFF_S = 8.0
MAX_RETRY_AFTER_S = 60.0
# What a service that stops, starts and loads gives: `retry_for` is for these. Not a connection that
# broke or a worker that failed: the request itself may be why.
RESTARTING = (ServerUnreachableError, NotReadyError, DrainingError)


def retry_delay(
    error: VimEmbedError, *, attempt: int, options: Options, elapsed: float = 0.0
) -> float | None:
    """Seconds to wait before another attempt, or None where there must be none.

    attempt: how many were already made, less one. elapsed: seconds since the first of them failed;
    a service that restarts is waited for up to `retry_for`, however many attempts that takes.
    A Retry-After is honoured up to MAX_RETRY_AFTER_S and lengthened a little, so that refused
    clients do not return together.
    """
    if not error.retryable or isinstance(error, options.give_up_on):
        return None
    restarts = isinstance(error, RESTARTING) and options.max_retries > 0
    waits = restarts and elapsed < options.retry_for
    if attempt >= options.max_retries and not waits:
        return None
    asked = _retry_after(error)
    if asked is not None:
        return min(asked, MAX_RETRY_AFTER_S) * random.uniform(1.0, 1.1)
    return min(options.backoff * 2.0 ** min(attempt, 30), MAX_BACKOFF_S) * random.uniform(0.5, 1.0)


def caller_deadline(error: VimEmbedError, left: float | None, options: Options) -> VimEmbedError:
    """DeadlineExpiredError where `error` says that the time is up and the caller's deadline passed.

    left: seconds until that deadline, negative after it; None without one. The service and httpx
    are told of it, so that all notice its end at once, and whichever speaks first: the caller has
    one error to catch.
    """
    if left is not None and left <= 0 and isinstance(error, (DeadlineExceededError, TimedOutError)):
        return deadline_expired(options.deadline)
    return error


def _retry_after(error: VimEmbedError) -> float | None:
    value = error.retry_after if isinstance(error, StatusError) else None
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
