"""The service on a Ray cluster: `serve run vim_embed.cluster:app`.

One deployment takes HTTP requests with the routes of app.py; one deployment a model holds engine
and queue. Scheduling, discovery, balancing, scaling and rolling updates are Ray Serve's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vim_embed.cluster.ingress import cluster_service
from vim_embed.cluster.metrics import RayMetrics
from vim_embed.cluster.replica import MakeEngines, Replica
from vim_embed.cluster.settings import ClusterSettings
from vim_embed.engines.build import build_engines
from vim_embed.http.app import create_app
from vim_embed.http.auth import accepted_keys, require_keys
from vim_embed.observability.logs import configure_logging
from vim_embed.settings import Settings
from vim_embed.weights.catalogue import CatalogueEntry, parse_model

_RAY = "ray_"
_INGRESS = "ingress"


def app(args: dict[str, Any]) -> serve.Application:
    """What `serve run vim_embed.cluster:app` and a config file's `import_path` name.

    args: settings that go before the environment's: `models=vim-tiny`, `ray_gpus=1`.
    Raises ValueError that names the fix.
    """
    ours = {key: value for key, value in args.items() if not key.startswith(_RAY)}
    rays = {key.removeprefix(_RAY): value for key, value in args.items() if key.startswith(_RAY)}
    return application(Settings(**ours), ClusterSettings(**rays))


def application(
    settings: Settings, cluster: ClusterSettings, make_engines: MakeEngines | None = None
) -> serve.Application:
    """Ingress and models, bound for `serve.run`. make_engines: called in each replica.

    Raises ValueError that names the fix.
    """
    _check(settings, cluster)
    make_engines = make_engines or build_engines
    models = {
        entry.name: _deployment(
            Replica,
            entry.name,
            settings,
            cluster,
            ray_actor_options={"num_cpus": cluster.cpus, "num_gpus": cluster.gpus},
            max_ongoing_requests=cluster.max_requests,
            max_queued_requests=cluster.waiting_requests,
            **_scale(cluster),
        ).bind(_of_one(settings, argument, cluster), make_engines)
        for argument, entry in _entries(settings).items()
    }
    names = {entry.name: entry.aliases for entry in _entries(settings).values()}
    ingress = _deployment(
        serve.ingress()(Ingress),
        _INGRESS,
        settings,
        cluster,
        ray_actor_options={"num_cpus": cluster.ingress_cpus},
        max_ongoing_requests=len(models) * cluster.max_requests * cluster.max_replicas,
        num_replicas=cluster.ingress_replicas,
    )
    return ingress.bind(settings, names, models)


class Ingress:
    """Takes HTTP requests: the application of app.py over models that are elsewhere."""

    def __init__(
        self,
        settings: Settings,
        names: Mapping[str, tuple[str, ...]],
        handles: Mapping[str, Any],
    ) -> None:
        configure_logging(settings.log_level, settings.log_format)
        self._service = cluster_service(settings, names, handles)
        self._metrics: RayMetrics | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray when the replica starts."""
        app = create_app(self._service.settings, service=self._service)
        app.add_middleware(WithoutRequestId)
        return app

    async def check_health(self) -> None:
        """Called by Ray. Models have checks of their own, so only metrics are handed over."""
        if self._metrics is None:
            self._metrics = RayMetrics(self._service.metrics.registry)
        self._metrics.publish()


class WithoutRequestId:
    """Leaves `X-Request-ID` of answers to Ray's proxy, which adds it and had it from the caller."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["X-Request-ID"]
            await send(message)

        await self.app(scope, receive, send_without)


def _deployment(
    what: type, name: str, settings: Settings, cluster: ClusterSettings, **options: Any
) -> Any:
    return serve.deployment(
        what,
        name=name,
        health_check_period_s=cluster.health_period,
        logging_config={"enable_access_log": False},  # app.py writes one
        graceful_shutdown_timeout_s=settings.drain_timeout,
        **options,
    )


def _scale(cluster: ClusterSettings) -> dict[str, Any]:
    if cluster.min_replicas == cluster.max_replicas:
        return {"num_replicas": cluster.max_replicas}
    limits = {
        "min_replicas": cluster.min_replicas,
        "max_replicas": cluster.max_replicas,
        "target_ongoing_requests": cluster.target_requests,
        "upscale_delay_s": cluster.upscale_delay,
        "downscale_delay_s": cluster.downscale_delay,
    }
    return {"autoscaling_config": limits}


def _of_one(settings: Settings, argument: str, cluster: ClusterSettings) -> Settings:
    """The settings of one model's replica."""
    device = settings.device if cluster.gpus else "cpu"
    return settings.model_copy(update={"models": (argument,), "device": device})


def _entries(settings: Settings) -> dict[str, CatalogueEntry]:
    """By `--model` argument; a path of one need only exist where its replicas run."""
    entries = {}
    for argument in settings.models:
        name, separator, _ = argument.partition("=")
        entries[argument] = CatalogueEntry(name=name) if separator else parse_model(argument)
    return entries


def _check(settings: Settings, cluster: ClusterSettings) -> None:
    require_keys(accepted_keys(settings), settings.published_host or settings.host)
    names = [entry.name for entry in _entries(settings).values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"model {', '.join(twice)} is given twice: give each its own name")
    if _INGRESS in names:
        raise ValueError(f"a model cannot be named {_INGRESS!r} on a cluster: give it another name")
    if settings.model_control or settings.fault_injection:
        raise ValueError(
            "model_control and fault_injection work on a single service only: on a cluster, "
            "change the list of models and deploy again"
        )
    for name in ("idle_unload", "devices_expected"):
        if getattr(settings, name):
            raise ValueError(f"{name} works on a single service only: leave it out on a cluster")
    if settings.device == "cpu" and cluster.gpus:
        raise ValueError(
            f"device is cpu, but each replica reserves {cluster.gpus:g} GPUs: set "
            "VIM_EMBED_DEVICE=auto, or VIM_EMBED_RAY_GPUS=0"
        )
    several = cluster.gpus > 1 and settings.device == "all"
    if cluster.gpus and settings.device not in ("auto", "cpu", "cuda") and not several:
        raise ValueError(
            f"device is {settings.device}, but Ray chooses a replica's GPUs: set "
            "VIM_EMBED_DEVICE=auto, or to `all` where VIM_EMBED_RAY_GPUS is over 1"
        )
    if cluster.gpus == 0 and settings.device not in ("auto", "cpu"):
        raise ValueError(
            f"device is {settings.device}, but replicas reserve no GPU: set VIM_EMBED_RAY_GPUS "
            "to 1, or to a fraction of one"
        )
