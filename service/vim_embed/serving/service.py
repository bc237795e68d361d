"""One running service: models, queue, metrics and state, from start to drain.

What the routes need and nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from vim_embed import __version__
from vim_embed.batching.interface import RowQueue
from vim_embed.batching.queue import BatchQueue
from vim_embed.batching.supervisor import RestartPolicy
from vim_embed.engines.device_group import EngineGroup
from vim_embed.engines.interface import Engine, ModelRegistry, ModelStatus
from vim_embed.errors import NotReady, UnknownModel
from vim_embed.observability.metrics import Metrics
from vim_embed.observability.tracing import traces_of_environment
from vim_embed.serving.idle import IdleModels
from vim_embed.serving.model_control import ModelControl
from vim_embed.serving.process_tuning import Trimming
from vim_embed.serving.self_checks import IdleChecks
from vim_embed.settings import Settings
from vim_embed.types.model_info import CheckReport, ModelInfo

_LOADING_PATIENCE = 5.0  # seconds that a stopping service gives a model to finish loading


class Service:
    """Loads models in the background, answers what is ready, drains on request.

    It is made of four parts that know nothing of each other's making: models and queue may be
    those of this process (`build_service`) or stand for others elsewhere (cluster/ingress.py).
    """

    def __init__(
        self, settings: Settings, models: ModelRegistry, queue: RowQueue, metrics: Metrics
    ) -> None:
        self.settings = settings
        self.models = models
        self.queue = queue
        self.metrics = metrics
        self.control = ModelControl(
            models, queue, max_models=settings.max_models, patience=settings.request_timeout
        )
        self.idle = IdleModels(models, self.control, settings.idle_unload, metrics)
        self.traces = traces_of_environment()
        self.draining = False
        self.trimming = Trimming(lambda: metrics.utilisation.working_seconds)
        self._checks = IdleChecks(queue, self._ready_names, settings.check_interval)
        self.on_drain: Callable[[], None] = lambda: None  # ends what would not be embedded any more
        self._loading: threading.Thread | None = None
        metrics.watch(queue, self.statuses, models.memory, self.degraded, settings.devices_expected)

    def start(self, on_loaded: Callable[[bool], None] | None = None) -> None:
        """Start the queue and load the models in a thread; then `on_loaded(any are ready)`."""

        def load() -> None:
            self.models.load()
            if on_loaded is not None:
                on_loaded(any(m.state == "ready" for m in self.models.status().values()))

        self.metrics.expect(self.models.status(), self.queue.devices)
        self.trimming.start()
        self.queue.start()
        self._loading = threading.Thread(target=load, name="vim-embed-load", daemon=True)
        self._loading.start()
        self._checks.start()
        self.idle.start()

    def wait_loaded(self) -> None:
        """Block until every model is loaded or has failed."""
        if self._loading is not None:
            self._loading.join()

    def begin_drain(self) -> None:
        """Answer 503 to new work from now on; what is in flight goes on."""
        self.draining = True
        self.queue.stop_accepting()
        self.on_drain()

    def stop(self) -> bool:
        """Finish what is in flight within the drain timeout. False if something was left."""
        self.begin_drain()
        self._checks.stop()
        self.idle.stop()
        self.trimming.stop()
        empty = self.queue.drain(self.settings.drain_timeout)
        if self._loading is not None:
            self._loading.join(timeout=_LOADING_PATIENCE)
        return empty

    @property
    def default_model(self) -> str:
        """The model of a request that names none."""
        return next(iter(self.models.status()))

    def statuses(self) -> dict[str, ModelStatus]:
        """Every model by name; one that no worker may run counts as failed."""
        return {name: self._judged(status) for name, status in self.models.status().items()}

    def find(self, name: str | None) -> ModelStatus:
        """A configured model by name or alias. Raises UnknownModel."""
        models = self.models.status()
        if name is None:
            return self._judged(models[self.default_model])
        for status in models.values():
            if name == status.name or name in status.aliases:
                return self._judged(status)
        raise UnknownModel(f"no model {name!r} is loaded here: use one of {', '.join(models)}")

    def ready_model(self, name: str | None) -> ModelInfo:
        """A model that can answer, though it may have to be loaded again before (serving/idle.py).

        Raises UnknownModel or NotReady.
        """
        status = self.find(name)
        if not status.answers or status.info is None:
            why = status.reason or ""
            if status.state == "loading":
                why = f"it is still loading ({why or 'queued'}); retry shortly"
            raise NotReady(f"model {status.name!r} is not ready: {why}", retry_after=2)
        self.control.use(status.name)
        return status.info

    async def check(self, name: str) -> list[CheckReport]:
        """Let each device compare its golden sample. Raises NotReady or WorkerFailed."""
        status = self.find(name)
        probes = self.queue.check(status.name)
        if not probes:
            raise NotReady(f"model {status.name!r} is not loaded: {status.reason or status.state}")
        return [await asyncio.wrap_future(probe) for probe in probes]

    def degraded(self) -> dict[str, str]:
        """By device, why the service gives less than its settings ask for; empty if it does not.

        Fewer devices than are expected, a device that is lost or begins anew, a forward that takes
        long and may be hanging, a model that only some devices have; under a model's name, why none
        has it.
        """
        found: dict[str, list[str]] = {
            name: [f"it could not be loaded again: {reason}"]
            for name, reason in self.idle.failed.items()
        }
        expected, there = self.settings.devices_expected, len(self.queue.devices)
        if there < expected:
            found["devices"] = [f"{expected} are expected, {there} were found at the start"]
        for status in self.statuses().values():
            if status.state == "failed":
                found.setdefault(status.name, []).append(status.reason or "failed")
            elif status.state == "ready":
                for device, reason in self.queue.degraded(status.name).items():
                    found.setdefault(device, []).append(reason)
        found = {device: [reason] for device, reason in self.queue.problems.items()} | found
        return {what: "; ".join(dict.fromkeys(reasons)) for what, reasons in found.items()}

    def check_ready(self) -> dict[str, str]:
        """State by model, if the service can answer. Raises NotReady with the reasons."""
        models = self.statuses()
        states = {name: status.state for name, status in models.items()}
        reasons = {name: s.reason or s.state for name, s in models.items() if not s.answers}
        problem = None
        if self.draining:
            problem = "the service is shutting down"
        elif not self.queue.up:
            broken = self.queue.problems or {"worker": "its threads are not running"}
            problem = "no worker: " + "; ".join(f"{k}: {v}" for k, v in broken.items())
        elif not any(status.answers for status in models.values()):
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
            "devices": self.queue.devices,
            "degraded": self.degraded(),
            "models": [self.describe(status) for status in self.statuses().values()],
            "queue": {
                "waiting_rows": self.queue.waiting_rows,
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
            "pinned": status.name in self.control.pinned,
            "degraded": self.queue.degraded(status.name) if status.state == "ready" else {},
        }
        if status.info is None:
            return entry
        info = status.info
        known = asdict(info)
        del known["layer_numbers"]  # the service's own, for what an answer takes
        shape = (3, info.preprocessing.image_size, info.preprocessing.image_size)
        return {
            **known,
            **entry,
            "preprocessing": info.preprocessing.as_entry(),
            "certificate": _certificate(info),
            "limits": {
                "max_rows": self.settings.max_rows,
                "max_body_bytes": self.settings.max_body_bytes,
                "batch_rows": self.models.batch_rows(status.name, shape),
            },
        }

    def _ready_names(self) -> list[str]:
        return [name for name, status in self.models.status().items() if status.state == "ready"]

    def _judged(self, status: ModelStatus) -> ModelStatus:
        if status.state != "ready":
            return status
        if status.name in self.control.leaving:
            return replace(status, state="unloaded", reason="it is being unloaded", info=None)
        reason = self.queue.why_unavailable(status.name)
        return status if reason is None else replace(status, state="failed", reason=reason)


def _certificate(info: ModelInfo) -> dict[str, object] | None:
    if info.certificate is None:
        return None
    pooling = info.certificate.kept[0].pooling
    return {"statement": info.certificate.statement(pooling), **asdict(info.certificate)}


def build_service(
    settings: Settings,
    engines: Engine | Sequence[Engine],
    *,
    on_lost: Callable[[], None] = lambda: None,
) -> Service:
    """The ordinary service: models and queue of this process.

    engines: one for each device. on_lost: called when no worker is left.
    """
    members = list(engines) if isinstance(engines, Sequence) else [engines]
    metrics = Metrics(devices=len(members))
    queue = BatchQueue(
        members,
        queue_rows=settings.queue_rows,
        queue_bytes=settings.queue_bytes,
        client_share=settings.client_share,
        observer=metrics,
        policy=RestartPolicy(settings.forward_timeout, settings.worker_restarts),
        on_lost=on_lost,
    )
    models = members[0] if len(members) == 1 else EngineGroup(members)
    return Service(settings, models, queue, metrics)
