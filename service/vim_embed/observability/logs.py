"""Structured logs: console lines on a terminal, JSON lines elsewhere, request id in each."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor


def _drop_colours(_logger: object, _method: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)  # uvicorn repeats its message with terminal codes
    return event


def _time(form: str) -> Processor:
    return structlog.processors.TimeStamper(fmt=form, utc=True)


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    _drop_colours,
]


def current_request() -> str:
    """The id of the request that is being answered here, or ""."""
    return str(structlog.contextvars.get_contextvars().get("request_id", ""))


def _console() -> Processor:
    """Lines for a person; tracebacks without the values of variables, which may be secrets."""
    return structlog.dev.ConsoleRenderer(
        pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )


def configure_logging(level: str, form: str) -> None:
    """Send the process's log to standard error. form: "auto", "console" or "json"."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    last: list[Processor] = (
        [_time("%H:%M:%S"), _console()]
        if console
        else [
            _time("iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "filelock", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
