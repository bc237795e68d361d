"""One running service: engine, batcher, metrics and state, from start to drain.

What the routes need and nothing of HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict

from vim_embed import __version__
from vim_embed.batcher import Batcher
from vim_embed.engine import Engine, ModelStatus
from vim_embed.errors import NotReady, UnknownModel
from vim_embed.metrics import Metrics
from vim_embed.models.info import ModelInfo
from vim_embed.settings import Settings

_LOADING_PATIENCE = 5.0  # seconds that a stopping service gives a model to finish loading


class Service:
    """Loads models in the background, answers what is ready, drains on request."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = Metrics(lambda: self.batcher.waiting_rows)
        self.batcher = Batcher(
            engine,
            queue_rows=settings.queue_rows,
            queue_bytes=settings.queue_bytes,
            observer=self.metrics,
        )
        self.draining = False
        self._loading: threading.Thread | None = None

    def start(self, on_loaded: Callable[[bool], None] | None = None) -> None:
        """Start the batcher and load the models in a thread; then `on_loaded(any are ready)`."""

        def load() -> None:
            self.engine.load()
            if on_loaded is not None:
                on_loaded(any(m.state == "ready" for m in self.engine.status().values()))

        self.batcher.start()
        self._loading = threading.Thread(target=load, name="vim-embed-load", daemon=True)
        self._loading.start()

    def begin_drain(self) -> None:
        """Answer 503 to new work from now on; what is in flight goes on."""
        self.draining = True
        self.batcher.stop_accepting()

    def stop(self) -> bool:
        """Finish what is in flight within the drain timeout. False if something was left."""
        self.begin_drain()
        empty = self.batcher.drain(self.settings.drain_timeout)
        if self._loading is not None:
            self._loading.join(timeout=_LOADING_PATIENCE)
        return empty

    @property
    def loading(self) -> bool:
        """Whether the loading thread is still at work."""
        return self._loading is not None and self._loading.is_alive()

    @property
    def default_model(self) -> str:
        """The model of a request that names none."""
        return next(iter(self.engine.status()))

    def find(self, name: str | None) -> ModelStatus:
        """A configured model by name or alias. Raises UnknownModel."""
        models = self.engine.status()
        if name is None:
            return models[self.default_model]
        for status in models.values():
            if name == status.name or name in status.aliases:
                return status
        raise UnknownModel(f"no model {name!r} is loaded here: use one of {', '.join(models)}")

    def ready_model(self, name: str | None) -> ModelInfo:
        """A model that can answer now. Raises UnknownModel or NotReady."""
        status = self.find(name)
        if status.info is None:
            why = status.reason or ""
            if status.state == "loading":
                why = f"it is still loading ({why or 'queued'}); retry shortly"
            raise NotReady(f"model {status.name!r} is not ready: {why}", retry_after=2)
        return status.info

    def check_ready(self) -> dict[str, str]:
        """State by model, if the service can answer. Raises NotReady with the reasons."""
        models = self.engine.status()
        states = {name: status.state for name, status in models.items()}
        reasons = {name: s.reason or s.state for name, s in models.items() if s.state != "ready"}
        problem = None
        if self.draining:
            problem = "the service is shutting down"
        elif not self.batcher.alive:
            problem = "the worker threads are not running"
        elif "ready" not in states.values():
            problem = "no model is ready: " + "; ".join(f"{k}: {v}" for k, v in reasons.items())
        if problem:
            raise NotReady(problem, detail={"models": reasons}, retry_after=2)
        return dict(states)

    def status(self) -> dict[str, object]:
        """What `GET /status` answers; see docs/page.md."""
        try:
            self.check_ready()
            reason = None
        except NotReady as error:
            reason = error.message
        return {
            "version": __version__,
            "ready": reason is None,
            "reason": reason,
            "default": self.default_model,
            "models": [self.describe(status) for status in self.engine.status().values()],
            "queue": {
                "waiting_rows": self.batcher.waiting_rows,
                "capacity_rows": self.settings.queue_rows,
            },
            **self.metrics.activity.summary(),
        }

    def describe(self, status: ModelStatus) -> dict[str, object]:
        """A model's entry in `/models`."""
        entry: dict[str, object] = {
            "name": status.name,
            "aliases": list(status.aliases),
            "state": status.state,
            "reason": status.reason,
        }
        if status.info is None:
            return entry
        info = status.info
        shape = (3, info.preprocessing.image_size, info.preprocessing.image_size)
        return {
            **asdict(info),
            **entry,
            "preprocessing": {**asdict(info.preprocessing), "digest": info.preprocessing.digest},
            "limits": {
                "max_rows": self.settings.max_rows,
                "max_body_bytes": self.settings.max_body_bytes,
                "batch_rows": self.engine.batch_rows(status.name, shape),
            },
        }
