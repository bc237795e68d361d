"""The service as the ingress of a Ray cluster sees it: models and their rows are elsewhere.

Routes use it like any Service. Which replica gets a request, and where replicas are, is Ray's
business: each model is one handle.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)

from vim_embed.batching.request import Embedded, EmbedRequest
from vim_embed.cluster.messages import Call, Facts
from vim_embed.engines.interface import ModelStatus
from vim_embed.errors import Draining, NotReady, QueueFull, ServiceError, WorkerFailed
from vim_embed.observability.metrics import Metrics
from vim_embed.serving.service import Service
from vim_embed.settings import Settings
from vim_embed.types.model_info import CheckReport

_LOG = logging.getLogger(__name__)
_LOST = (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    ReplicaUnavailableError,
    WorkerCrashedError,
)
_PERIOD = 2.0  # seconds between two looks at a model
_PATIENCE = 10.0  # seconds for one look
_RETRY_AFTER = 1  # seconds: who refuses here does not know how fast the replicas are
_SILENCE = 30.0  # seconds without a sign of a model, after which it counts as failed


class RemoteModels:
    """Which models there are, as their replicas last described them; a `ModelRegistry`."""

    def __init__(self, names: Mapping[str, tuple[str, ...]], handles: Mapping[str, Any]) -> None:
        """names: with their aliases, in the order of the settings. handles: Ray's, by name."""
        self._handles = handles
        self._facts = {
            name: Facts(ModelStatus(name, aliases, "loading", "no replica yet"), 0)
            for name, aliases in names.items()
        }
        self._heard = dict.fromkeys(names, 0.0)

    async def watch(self) -> None:
        """Keep the descriptions up to date until cancelled: replicas come, go and change."""
        await asyncio.gather(*(self._watch(name) for name in self._facts))

    def heard(self, name: str) -> None:
        """Note that a replica of the model answered."""
        self._heard[name] = time.monotonic()

    def load(self) -> None:
        """Replicas load their models themselves."""

    def known_name(self, name: str) -> str:
        if name not in self._facts:
            raise ValueError(f"no model {name!r}: use one of {', '.join(self._facts)}")
        return name

    def load_model(self, name: str) -> None:
        raise _fixed()

    def unload(self, name: str) -> None:
        raise _fixed()

    def rest(self, name: str, reason: str) -> None:
        raise _fixed()

    def status(self) -> Mapping[str, ModelStatus]:
        return {name: self._judged(name) for name in self._facts}

    def memory(self) -> Mapping[tuple[str, str], int]:
        return {}  # the replicas tell of theirs

    def layer_names(self, model: str, granularity: str) -> list[str]:
        return self._facts[model].layers[granularity]

    def layer_kinds(self, model: str) -> Mapping[str, str]:
        return self._facts[model].kinds

    def batch_rows(self, model: str, shape: tuple[int, ...]) -> int:
        return self._facts[model].batch_rows

    async def _watch(self, name: str) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self._look(name)
            await asyncio.sleep(_PERIOD)

    async def _look(self, name: str) -> None:
        try:
            facts: Facts = await self._handles[name].facts.remote()
        except DeploymentUnavailableError as error:
            status = replace(self._facts[name].status, state="failed", reason=error.message)
            self._facts[name] = Facts(replace(status, info=None), 0)
        except Exception as error:
            _LOG.debug("a model does not answer", extra={"model": name, "error": repr(error)})
        else:
            self._facts[name] = facts
            self.heard(name)

    def _judged(self, name: str) -> ModelStatus:
        status = self._facts[name].status
        silent = time.monotonic() - self._heard[name]
        if status.state != "ready" or silent < _SILENCE:
            return status
        return replace(status, state="failed", reason=f"no replica has answered for {silent:.0f} s")


class RemoteQueue:
    """Passes rows on to the replicas of their model; a `RowQueue`.

    Rows wait in the replicas' queues, which refuse by themselves. Here only bytes are bounded.
    `submit` is called in the event loop.
    """

    def __init__(
        self, models: RemoteModels, handles: Mapping[str, Any], *, queue_bytes: int
    ) -> None:
        self._models = models
        self._handles = handles
        self._queue_bytes = queue_bytes
        self._accepting = True
        self._open: dict[asyncio.Task[None], EmbedRequest] = {}
        self._end_watch: Callable[[], object] = lambda: None

    up = True

    @property
    def problems(self) -> dict[str, str]:
        return {}

    def degraded(self, model: str) -> dict[str, str]:
        return {}  # Ray replaces a replica that is not whole

    @property
    def devices(self) -> dict[str, str]:
        return {}  # the replicas tell of theirs

    @property
    def waiting_rows(self) -> int:
        return sum(request.rows for request in list(self._open.values()))

    @property
    def waiting_bytes(self) -> int:
        return sum(request.pixels.nbytes for request in list(self._open.values()))

    @property
    def retry_after(self) -> int:
        return _RETRY_AFTER

    def start(self) -> None:
        """Watch the models, which Ray runs; called in the event loop."""
        loop = asyncio.get_running_loop()
        watch = loop.create_task(self._models.watch())
        self._end_watch = lambda: loop.call_soon_threadsafe(watch.cancel)

    def submit(self, request: EmbedRequest) -> EmbedRequest:
        """Send rows on. Raises QueueFull or Draining at once; never waits."""
        if not self._accepting:
            raise Draining("the service is shutting down: retry against another, or later")
        held = self.waiting_bytes
        if held and held + request.pixels.nbytes > self._queue_bytes:
            raise QueueFull(
                f"{held / 1e6:.0f} MB are on their way already: retry after the time in "
                "Retry-After",
                retry_after=_RETRY_AFTER,
            )
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._forward(request))
        self._open[task] = request
        task.add_done_callback(self._open.pop)
        request.future.add_done_callback(
            lambda future: loop.call_soon_threadsafe(task.cancel) if future.cancelled() else None
        )
        return request

    def check(self, model: str) -> list[Future[CheckReport]]:
        """Let one replica of the model compare its golden sample; called in the event loop."""
        future: Future[CheckReport] = Future()
        task = asyncio.get_running_loop().create_task(self._check(model, future))
        future.add_done_callback(lambda _: task)  # keeps the task from being collected
        return [future]

    def why_unavailable(self, model: str) -> str | None:
        return None  # RemoteModels judges

    def busy_with(self, model: str) -> bool:
        return any(request.model == model for request in list(self._open.values()))

    def stop_accepting(self) -> None:
        self._accepting = False

    def drain(self, timeout: float) -> bool:
        """Wait for what is on its way; not in the event loop."""
        self.stop_accepting()
        left = wait([t.future for t in list(self._open.values())], timeout).not_done
        self._end_watch()
        return not left

    async def _forward(self, request: EmbedRequest) -> None:
        model = request.model
        call = Call(request.options, _seconds(request), request.client, request.request_id)
        response = self._handles[model].embed.remote(request.pixels, call)
        try:
            reply: Embedded | ServiceError = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:
            request.fail(translated(error, model))
            return
        self._models.heard(model)
        if isinstance(reply, ServiceError):
            request.fail(reply)
        elif not request.future.done():
            request.future.set_result(reply)

    async def _check(self, model: str, future: Future[CheckReport]) -> None:
        try:
            reply: Sequence[CheckReport] | ServiceError = await self._handles[model].check.remote()
        except Exception as error:
            reply = translated(error, model)
        if isinstance(reply, ServiceError):
            future.set_exception(reply)
        else:
            future.set_result(reply[0])


def cluster_service(
    settings: Settings,
    names: Mapping[str, tuple[str, ...]],
    handles: Mapping[str, Any],
) -> Service:
    """A Service whose models run in the replicas behind `handles`; started in the event loop.

    names: of the models, with their aliases. handles: Ray's, by name. Replicas load and check
    their own models, so that nothing is left of these to do here.
    """
    settings = settings.model_copy(update={"check_interval": 0.0})
    models = RemoteModels(names, handles)
    queue = RemoteQueue(models, handles, queue_bytes=settings.queue_bytes)
    return Service(settings, models, queue, Metrics(devices=0))


def translated(error: Exception, model: str) -> ServiceError:
    """What Ray raised, in the service's own terms; every such request may be sent again."""
    if isinstance(error, BackPressureError):
        return QueueFull(f"too many requests wait for model {model!r}: retry", retry_after=1)
    if isinstance(error, DeploymentUnavailableError):
        return NotReady(f"model {model!r} is not ready: {error.message}", retry_after=2)
    if isinstance(error, _LOST):
        _LOG.warning("a replica was lost", extra={"model": model, "error": repr(error)})
        return WorkerFailed(f"the replica of model {model!r} was lost: retry", retry_after=1)
    _LOG.error("a call failed", exc_info=error, extra={"ray": isinstance(error, RayError)})
    return WorkerFailed(f"the call of model {model!r} failed ({type(error).__name__}): retry")


def _seconds(request: EmbedRequest) -> float | None:
    return None if request.deadline is None else max(0.0, request.deadline - time.monotonic())


def _fixed() -> ServiceError:
    return NotReady("the models of a cluster are fixed: deploy it with others")
