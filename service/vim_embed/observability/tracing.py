"""Traces of requests: off unless OTEL_EXPORTER_OTLP_ENDPOINT (or its _TRACES_ form) is set.

opentelemetry itself, from the extra `[otel]`, is imported only then. docs/metrics.md names the
spans.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from starlette.types import Scope

from vim_embed.batching.request import Embedded

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class RequestSpan(Protocol):
    """The span of one request."""

    def answered(self, route: str, status: int, code: str) -> None:
        """What it came to; `code` is an error's, or empty."""


class Traces(Protocol):
    """Where spans go."""

    def request(
        self, scope: Scope, request_id: str, path: str
    ) -> AbstractContextManager[RequestSpan]:
        """The span around a request, below the caller's `traceparent`. path: without secrets."""
        ...

    def embedded(
        self, model: str, rows: int, begin: float, submitted: float, done: Embedded
    ) -> None:
        """Spans of the current request's parts. begin, submitted: in `time.monotonic()`."""

    def stop(self) -> None:
        """Send what waits."""


class _Unseen:
    def answered(self, route: str, status: int, code: str) -> None:
        return None


class NoTraces:
    """Forgets everything."""

    @contextmanager
    def request(self, scope: Scope, request_id: str, path: str) -> Iterator[RequestSpan]:
        yield _Unseen()

    def embedded(
        self, model: str, rows: int, begin: float, submitted: float, done: Embedded
    ) -> None:
        return None

    def stop(self) -> None:
        return None


def traces_of_environment() -> Traces:
    """What the standard OTEL_* variables ask for. Raises ValueError that names the fix."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    asked = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if disabled or asked is None:
        return NoTraces()
    try:
        from vim_embed.observability.tracing_otel import OtelTraces
    except ImportError as error:
        raise ValueError(
            f"{asked} is set, but OpenTelemetry is not installed ({error}): "
            "pip install 'vim-embed[otel]', or unset it"
        ) from error
    return OtelTraces()
