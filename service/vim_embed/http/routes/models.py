"""`/models`, `/health` and `/metrics`: what is loaded and how it does."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.openapi.models import Example
from starlette.responses import Response

from vim_embed.errors import InvalidInput, NotReady, UnknownModel
from vim_embed.http.openapi import examples
from vim_embed.http.openapi.schemas import (
    LayersAnswer,
    LiveAnswer,
    ModelEntry,
    ModelName,
    ModelsAnswer,
    ReadyAnswer,
    answers,
    json_answer,
)
from vim_embed.serving.service import Service
from vim_embed.types.model_info import GRANULARITIES

router = APIRouter()
_Granularity = Annotated[
    str,
    Query(
        description="blocks, residual, leaves or all",
        openapi_examples={
            "vim_tiny": Example(value="blocks"),
            "invalid_input": Example(value="atoms"),
        },
    ),
]
_LAYERS = {
    "model": "vim-tiny",
    "granularity": "blocks",
    "layers": ["layers.0", "last_hidden_state"],
    "kinds": {"layers.0": "Block"},
}


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.get(
    "/models",
    summary="The configured models and their state",
    response_model=None,
    responses=answers(
        json_answer(ModelsAnswer, models={"models": [examples.MODEL], "default": "vim-tiny"})
    ),
)
async def models(request: Request) -> dict[str, object]:
    service = _service(request)
    entries = [service.describe(status) for status in service.statuses().values()]
    return {"models": entries, "default": service.default_model}


@router.get(
    "/models/{name:path}/layers",
    summary="The layers that `layers=` gives, in order",
    response_model=None,
    responses=answers(
        json_answer(LayersAnswer, vim_tiny=_LAYERS), UnknownModel, InvalidInput, NotReady
    ),
)
async def layers(
    request: Request, name: ModelName, granularity: _Granularity = "blocks"
) -> dict[str, object]:
    service = _service(request)
    if granularity not in GRANULARITIES:
        raise InvalidInput(
            f"unknown granularity {granularity!r}: use one of {', '.join(GRANULARITIES)}"
        )
    info = service.ready_model(name)
    names = service.models.layer_names(info.name, granularity)
    every = service.models.layer_kinds(info.name)
    kinds = {layer: every[layer] for layer in names if layer in every}
    return {"model": info.name, "granularity": granularity, "layers": names, "kinds": kinds}


@router.get(
    "/models/{name:path}",
    summary="One model",
    response_model=None,
    responses=answers(json_answer(ModelEntry, vim_tiny=examples.MODEL), UnknownModel, InvalidInput),
)
async def model(request: Request, name: ModelName) -> dict[str, object]:
    service = _service(request)
    return service.describe(service.find(name))


@router.get(
    "/health/live",
    summary="The process answers",
    response_model=None,
    responses=answers(json_answer(LiveAnswer, live={"status": "live"}), open_to_all=True),
)
async def live() -> dict[str, str]:
    return {"status": "live"}


@router.get(
    "/health/ready",
    summary="At least one model is loaded and can answer",
    response_model=None,
    responses=answers(
        json_answer(ReadyAnswer, ready=examples.READY),
        NotReady,
        open_to_all=True,
    ),
)
async def ready(request: Request) -> dict[str, object]:
    service = _service(request)
    states = service.check_ready()
    return {"status": "ready", "models": states, "degraded": service.degraded()}


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses=answers({"content": {"text/plain": {"schema": {"type": "string"}}}}),
)
async def metrics(request: Request) -> Response:
    return Response(
        _service(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
    )
