"""Traces through OpenTelemetry, sent by OTLP over HTTP in a thread of the SDK.

The SDK reads the rest of the standard OTEL_* variables: sampler, headers, service name, timeouts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from starlette.types import Scope

from vim_embed import __version__
from vim_embed.batching.request import Embedded

_UNNAMED = "unknown_service"
_SERVER_ERROR = 500


class OtelSpan:
    """A request's span, with the attributes of the HTTP semantic conventions."""

    def __init__(self, span: Span, method: str) -> None:
        self._span = span
        self._method = method

    def answered(self, route: str, status: int, code: str) -> None:
        self._span.update_name(f"{self._method} {route}")
        self._span.set_attribute("http.route", route)
        self._span.set_attribute("http.response.status_code", status)
        if code:
            self._span.set_attribute("error.type", code)
        if status >= _SERVER_ERROR:
            self._span.set_status(StatusCode.ERROR, code)


class OtelTraces:
    """Sends spans to the endpoint of the environment."""

    def __init__(self) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("vim_embed", __version__)

    @contextmanager
    def request(self, scope: Scope, request_id: str, path: str) -> Iterator[OtelSpan]:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        with self._tracer.start_as_current_span(
            scope["method"],
            context=propagate.extract(headers),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": scope["method"],
                "url.path": path,
                "url.scheme": scope["scheme"],
                "vim_embed.request_id": request_id,
            },
        ) as span:
            trace_id = trace.format_trace_id(span.get_span_context().trace_id)
            structlog.contextvars.bind_contextvars(trace_id=trace_id)
            yield OtelSpan(span, scope["method"])

    def embedded(
        self, model: str, rows: int, begin: float, submitted: float, done: Embedded
    ) -> None:
        """The forward's span begins with the first batch and is as long as all of them."""
        taken = submitted + done.queue_seconds
        self._part("read", begin, submitted, model, rows)
        self._part("queue", submitted, taken, model, rows)
        self._part("forward", taken, taken + done.forward_seconds, model, rows)

    def stop(self) -> None:
        self._provider.shutdown()

    def _part(self, name: str, begin: float, end: float, model: str, rows: int) -> None:
        epoch = time.time_ns() - time.monotonic_ns()
        attributes: dict[str, str | int] = {"vim_embed.model": model, "vim_embed.rows": rows}
        start = epoch + int(begin * 1e9)
        span = self._tracer.start_span(name, start_time=start, attributes=attributes)
        span.end(epoch + int(end * 1e9))


def _resource() -> Resource:
    """The environment's resource; named vim-embed unless it names itself."""
    found = Resource.create({"service.version": __version__})
    if str(found.attributes["service.name"]).startswith(_UNNAMED):
        return found.merge(Resource({"service.name": "vim-embed"}))
    return found
