"""One model on one share of a device: our engine and queue, called through Ray.

Rows of concurrent calls are batched in here, as the stand-alone service does it. Refusals and
failures are returned as values: raised, Ray would log and wrap each of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from vim_embed.batching.request import Embedded, EmbedRequest
from vim_embed.cluster.messages import Call, Facts
from vim_embed.cluster.metrics import RayMetrics
from vim_embed.engines.interface import Engine
from vim_embed.errors import ServiceError
from vim_embed.observability.logs import configure_logging
from vim_embed.serving.process_tuning import spin_briefly, tune_memory
from vim_embed.serving.service import build_service
from vim_embed.settings import Settings
from vim_embed.types.model_info import CheckReport
from vim_embed.types.pixels import PixelArray

MakeEngines = Callable[[Settings], Engine | Sequence[Engine]]


class Replica:
    """A Ray Serve deployment; its methods are called by the ingress (cluster/ingress.py)."""

    def __init__(self, settings: Settings, make_engines: MakeEngines) -> None:
        """Blocks until the model is loaded. Raises RuntimeError with the reason if it cannot be."""
        spin_briefly()
        tune_memory(settings.device)
        configure_logging(settings.log_level, settings.log_format)
        self._service = build_service(settings, make_engines(settings))
        self._metrics: RayMetrics | None = None
        self._stopped = False
        self._service.start()
        self._service.wait_loaded()
        status = self._service.find(None)
        if status.state != "ready":
            self._service.stop()
            raise RuntimeError(f"model {status.name!r} could not be loaded: {status.reason}")

    async def embed(self, pixels: PixelArray, call: Call) -> Embedded | ServiceError:
        """Embed checked rows (n, 3, H, W); the answer names the model that gave it."""
        structlog.contextvars.bind_contextvars(request_id=call.request_id)
        deadline = None if call.seconds is None else time.monotonic() + call.seconds
        try:
            info = self._service.ready_model(None)
            queued = self._service.queue.submit(
                EmbedRequest(
                    info.name,
                    pixels,
                    call.options,
                    deadline=deadline,
                    client=call.client,
                    request_id=call.request_id,
                )
            )
            done = await asyncio.wrap_future(queued.future)  # cancelled with this call
        except ServiceError as error:
            return error
        return replace(done, info=info)

    async def facts(self) -> Facts:
        """What the ingress shows of the model."""
        engine, status = self._service.models, self._service.find(None)
        if status.info is None:
            return Facts(status, 0)
        size = status.info.preprocessing.image_size
        return Facts(
            status=status,
            batch_rows=engine.batch_rows(status.name, (3, size, size)),
            layers={
                name: engine.layer_names(status.name, name) for name in status.info.granularities
            },
            kinds=dict(engine.layer_kinds(status.name)),
        )

    async def check(self) -> list[CheckReport] | ServiceError:
        """Compare the model's golden sample now."""
        try:
            return await self._service.check(self._service.default_model)
        except ServiceError as error:
            return error

    async def check_health(self) -> None:
        """Called by Ray, which replaces a replica where this raises."""
        if self._metrics is None:
            self._metrics = RayMetrics(self._service.metrics.registry)
        self._metrics.publish()
        self._service.check_ready()
        lost = [k for k, state in self._service.queue.devices.items() if state == "lost"]
        if lost:  # the others would go on, but a new replica gets all of its devices back
            raise RuntimeError(f"{', '.join(lost)} is lost to this replica")

    def __del__(self) -> None:
        """Called by Ray once what is in flight has ended, and by Python."""
        if not getattr(self, "_stopped", True):
            self._stopped = True
            self._service.stop()
