"""`/models`, `/health` and `/metrics`: what is loaded and how it does."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from vim_embed.errors import InvalidInput
from vim_embed.models.info import GRANULARITIES
from vim_embed.service import Service

router = APIRouter()


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.get("/models", summary="The configured models and their state")
async def models(request: Request) -> dict[str, object]:
    service = _service(request)
    entries = [service.describe(status) for status in service.statuses().values()]
    return {"models": entries, "default": service.default_model}


@router.get("/models/{name:path}/layers", summary="The layers that `layers=` gives, in order")
async def layers(
    request: Request, name: str, granularity: Annotated[str, Query()] = "blocks"
) -> dict[str, object]:
    service = _service(request)
    if granularity not in GRANULARITIES:
        raise InvalidInput(
            f"unknown granularity {granularity!r}: use one of {', '.join(GRANULARITIES)}"
        )
    info = service.ready_model(name)
    names = service.engine.layer_names(info.name, granularity)
    every = service.engine.layer_kinds(info.name)
    kinds = {layer: every[layer] for layer in names if layer in every}
    return {"model": info.name, "granularity": granularity, "layers": names, "kinds": kinds}


@router.get("/models/{name:path}", summary="One model")
async def model(request: Request, name: str) -> dict[str, object]:
    service = _service(request)
    return service.describe(service.find(name))


@router.get("/health/live", summary="The process answers")
async def live() -> dict[str, str]:
    return {"status": "live"}


@router.get("/health/ready", summary="At least one model is loaded and can answer")
async def ready(request: Request) -> dict[str, object]:
    return {"status": "ready", "models": _service(request).check_ready()}


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    return Response(
        _service(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
    )
