"""Models that nobody asks for give their memory back, and are loaded again at the next request.

A request holds its model with `using` from before its rows are queued until they are answered. A
model that is held does not rest; one that rests is loaded by the first request, and the others that
come meanwhile wait for the same load.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Protocol

from vim_embed.engines.interface import ModelRegistry, ModelStatus
from vim_embed.errors import DeadlineExceeded, NotReady
from vim_embed.serving.model_control import ModelControl

_LOG = logging.getLogger(__name__)
_LOOKS = 20  # at the models within the seconds after which one rests
_LONGEST_LOOK = 1.0  # seconds between two of them, at most
_RETRY_AFTER = 5  # seconds, where a model could not be loaded again


class IdleObserver(Protocol):
    """Hears of models that rest and come back."""

    def rested(self, model: str) -> None: ...

    def loaded_again(self, model: str, seconds: float) -> None: ...


class IdleModels:
    """Frees a model after `after` seconds without a request for it; 0: never."""

    def __init__(
        self,
        models: ModelRegistry,
        control: ModelControl,
        after: float,
        observer: IdleObserver,
    ) -> None:
        self._models = models
        self._control = control
        self._after = after
        self._observer = observer
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()
        self._left: dict[str, float] = {}  # when the last one left
        self._resting: set[str] = set()  # or just about to
        self._failed: dict[str, str] = {}  # why they could not be loaded again
        self._loads: dict[str, Future[str]] = {}  # under way: each gives why it failed, or ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="vim-embed-idle", daemon=True)

    def start(self) -> None:
        if self._after:
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    @asynccontextmanager
    async def using(self, model: str, deadline: float) -> AsyncIterator[float]:
        """Hold the model, which is loaded first if it rests. Gives the seconds that this took.

        deadline: in `time.monotonic()`. Raises DeadlineExceeded, while the load goes on, or
        NotReady with the reason where the model cannot be loaded.
        """
        if not self._after:
            yield 0.0
            return
        begin = time.monotonic()
        load = self._enter(model)
        try:
            yield 0.0 if load is None else await self._loaded(model, load, begin, deadline)
        finally:
            self._leave(model)

    @property
    def failed(self) -> dict[str, str]:
        """By model that rests, why it could not be loaded again."""
        with self._lock:
            return dict(self._failed)

    def unused(self, status: Mapping[str, ModelStatus]) -> list[str]:
        """The models that nobody asked for long enough."""
        now = time.monotonic()
        with self._lock:
            ready = [name for name, each in status.items() if each.state == "ready"]
            for name in ready:
                self._left.setdefault(name, now)
            return [n for n in ready if not self._users[n] and now - self._left[n] >= self._after]

    def _repeat(self) -> None:
        while not self._stopping.wait(min(self._after / _LOOKS, _LONGEST_LOOK)):
            for name in self.unused(self._models.status()):
                self._rest(name)

    def _rest(self, name: str) -> None:
        reason = f"nobody asked for it in {self._after:g} s: the next request loads it"
        if self._control.rest(name, reason, claim=lambda: self._claim(name)):
            _LOG.info("model rests", extra={"model": name, "reason": reason})
            self._observer.rested(name)

    def _claim(self, name: str) -> bool:
        """Take the model away from those who come from now on, unless somebody holds it."""
        with self._lock:
            if self._users[name] or time.monotonic() - self._left[name] < self._after:
                return False
            self._resting.add(name)
            return True

    def _enter(self, name: str) -> Future[str] | None:
        """One more user of the model; the load that it has to wait for, if it rests."""
        with self._lock:
            self._users[name] += 1
            if name not in self._resting:
                return None
            if name not in self._loads:
                self._loads[name] = Future()
                threading.Thread(
                    target=self._load, args=(name,), name="vim-embed-wake", daemon=True
                ).start()
            return self._loads[name]

    def _leave(self, name: str) -> None:
        with self._lock:
            self._users[name] -= 1
            self._left[name] = time.monotonic()

    async def _loaded(self, name: str, load: Future[str], begin: float, deadline: float) -> float:
        waiting = asyncio.wrap_future(load)
        await asyncio.wait({waiting}, timeout=max(0.0, deadline - time.monotonic()))
        if not waiting.done():
            raise DeadlineExceeded(f"model {name!r} rested and is still being loaded: retry later")
        if reason := waiting.result():
            raise NotReady(f"model {name!r} is not ready: {reason}", retry_after=_RETRY_AFTER)
        return time.monotonic() - begin

    def _load(self, name: str) -> None:
        begin = time.monotonic()
        reason = ""
        try:
            self._control.load(name)
        except Exception as error:  # else those who wait would never hear of it
            reason = str(error)
            self._control.rest(name, f"{reason}; the next request tries again", failed=True)
        seconds = time.monotonic() - begin
        with self._lock:
            if reason:
                self._failed[name] = reason
            else:
                self._resting.discard(name)
                self._failed.pop(name, None)
            self._left[name] = time.monotonic()
            load = self._loads.pop(name)
        if not reason:
            _LOG.info("model is back", extra={"model": name, "seconds": round(seconds, 3)})
            self._observer.loaded_again(name, seconds)
        load.set_result(reason)
