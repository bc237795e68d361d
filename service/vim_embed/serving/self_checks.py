"""Checks an idle service from time to time: every model compares its golden sample."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Protocol

from vim_embed.errors import ServiceError
from vim_embed.types.model_info import CheckReport

_LOG = logging.getLogger(__name__)
_PATIENCE = 600.0  # seconds for one comparison; the workers' own watch is stricter


class Checked(Protocol):
    """What can be idle, and checked."""

    @property
    def waiting_rows(self) -> int: ...

    def check(self, model: str) -> list[Future[CheckReport]]: ...


class IdleChecks:
    """A thread that checks every `interval` seconds, if nothing waits then."""

    def __init__(self, queue: Checked, names: Callable[[], Iterable[str]], interval: float) -> None:
        """names: of the models that are loaded."""
        self._queue = queue
        self._names = names
        self._interval = interval
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="vim-embed-check", daemon=True)

    def start(self) -> None:
        if self._interval:
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def _repeat(self) -> None:
        while not self._stopping.wait(self._interval):
            for name in self._names():
                if self._queue.waiting_rows == 0:
                    self._check(name)

    def _check(self, name: str) -> None:
        for future in self._queue.check(name):
            with suppress(ServiceError, TimeoutError):  # the worker logged it and restarts
                report = future.result(_PATIENCE)
                _LOG.debug("self-check", extra={"model": name, "error": report.error})
