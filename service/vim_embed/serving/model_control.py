"""Models that come and go while the service runs: load, unload, pin. Blocking; knows no HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from vim_embed.engines.interface import ModelRegistry
from vim_embed.errors import Conflict, NotReady, UnknownModel
from vim_embed.serving.process_tuning import trim

_POLL = 0.02  # seconds between two looks whether a model's rows are done


class Busy(Protocol):
    """Who knows whether a model's rows are under way."""

    def busy_with(self, model: str) -> bool: ...


class ModelControl:
    """Loads and unloads one model at a time; the others go on answering."""

    def __init__(
        self, models: ModelRegistry, queue: Busy, *, max_models: int, patience: float
    ) -> None:
        """max_models: loaded at once, 0 for any number. patience: seconds an unload waits."""
        self.pinned: set[str] = set()
        self.leaving: set[str] = set()
        self._models = models
        self._queue = queue
        self._max_models = max_models
        self._patience = patience
        self._used: dict[str, float] = {}
        self._one_at_a_time = threading.Lock()

    def use(self, name: str) -> None:
        """Note that a request wants the model: the least recently used goes first."""
        self._used[name] = time.monotonic()

    def known_name(self, name: str) -> str:
        """The name of a configured or catalogued model, or of its alias. Raises UnknownModel."""
        try:
            return self._models.known_name(name)
        except ValueError as error:
            raise UnknownModel(str(error)) from error

    def load(self, name: str) -> None:
        """Load a model by its known name. Raises Conflict or NotReady."""
        with self._one_at_a_time:
            if self._state(name) == "ready":
                return
            self._make_room(name)
            self._models.load_model(name)
            status = self._models.status()[name]
            if status.state != "ready":
                raise NotReady(f"model {name!r} could not be loaded: {status.reason}")
            self.use(name)

    def unload(self, name: str) -> None:
        """Refuse new rows of the model, wait for the others, and give its memory back.

        Raises Conflict for a pinned model, NotReady if its rows are not done in time.
        """
        with self._one_at_a_time:
            self._unload(name)

    def rest(
        self,
        name: str,
        reason: str,
        *,
        claim: Callable[[], bool] = lambda: True,
        failed: bool = False,
    ) -> bool:
        """Give the memory of a model back that nobody uses; whether that was done.

        claim: asked last, when no other model is loaded or unloaded. failed: the model could not
        be loaded again, and rests on.
        """
        with self._one_at_a_time:
            if self._state(name) != ("failed" if failed else "ready"):
                return False
            if not failed and (self._queue.busy_with(name) or name in self.pinned or not claim()):
                return False
            self._models.rest(name, reason)
        trim()
        return True

    def pin(self, name: str, on: bool = True) -> None:
        """Keep a model from being unloaded, or no longer."""
        (self.pinned.add if on else self.pinned.discard)(name)

    def _state(self, name: str) -> str | None:
        status = self._models.status().get(name)
        return status.state if status is not None else None

    def _make_room(self, name: str) -> None:
        while self._max_models:
            status = self._models.status()
            kept = ("ready", "idle")  # an idle model keeps its place: it comes back by itself
            ready = [n for n, s in status.items() if s.state in kept and n != name]
            if len(ready) < self._max_models:
                return
            free = [n for n in ready if n not in self.pinned]
            if not free:
                raise Conflict(
                    f"{self._max_models} models are loaded and pinned: unpin one before {name!r}"
                )
            self._unload(min(free, key=lambda n: self._used.get(n, 0.0)))

    def _unload(self, name: str) -> None:
        if name in self.pinned:
            raise Conflict(f"model {name!r} is pinned: unpin it first")
        if self._state(name) in (None, "unloaded"):
            return
        self.leaving.add(name)
        try:
            self._wait(lambda: not self._queue.busy_with(name), name)
            self._models.unload(name)
        finally:
            self.leaving.discard(name)
        trim()

    def _wait(self, done: Callable[[], bool], name: str) -> None:
        end = time.monotonic() + self._patience
        while not done():
            if time.monotonic() > end:
                raise NotReady(f"rows of model {name!r} are still in the queue: try again later")
            time.sleep(_POLL)
