"""Structured logs: console lines on a terminal, JSON lines elsewhere, request id in each."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor


def _drop_colours(_logger: object, _method: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)  # uvicorn repeats its message with terminal codes
    return event


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    _drop_colours,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def current_request() -> str:
    """The id of the request that is being answered here, or ""."""
    return str(structlog.contextvars.get_contextvars().get("request_id", ""))


def configure_logging(level: str, form: str) -> None:
    """Send the process's log to standard error. form: "auto", "console" or "json"."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
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
