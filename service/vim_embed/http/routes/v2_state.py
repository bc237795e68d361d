"""`/v2` without inference: health, metadata, configuration and statistics; see docs/v2.md."""

from __future__ import annotations

from fastapi import APIRouter, Request

from vim_embed import __version__
from vim_embed.errors import UnknownModel
from vim_embed.http.formats.answers import provenance
from vim_embed.http.formats.v2_wire import INPUT
from vim_embed.http.openapi.schemas import v2_failures
from vim_embed.serving.service import Service
from vim_embed.types.model_info import EMBEDDING, EmbedOptions, ModelInfo

PREFIX = "/v2"
VERSION = "1"  # of every model: a model with other weights is another model
EXTENSIONS = ["binary_tensor_data", "model_configuration", "parameters", "statistics"]
MODEL = "/models/{model:path}"
VERSIONED = MODEL + "/versions/{version}"

router = APIRouter(prefix=PREFIX, tags=["Open Inference Protocol"], responses=v2_failures())


def service_of(request: Request) -> Service:
    """The running service."""
    service: Service = request.app.state.service
    return service


def find_model(request: Request, model: str, version: str) -> ModelInfo:
    """A model that can answer, by name or Hub id. Raises UnknownModel or NotReady."""
    info = service_of(request).ready_model(model)
    if version != VERSION:
        raise UnknownModel(f"model {info.name!r} has no version {version!r}: it has {VERSION!r}")
    return info


@router.get("", summary="Name, version and extensions")
async def server_metadata() -> dict[str, object]:
    return {"name": "vim-embed", "version": __version__, "extensions": EXTENSIONS}


@router.get("/health/live", summary="The process answers")
async def live() -> dict[str, bool]:
    return {"live": True}


@router.get("/health/ready", summary="At least one model is loaded and can answer")
async def ready(request: Request) -> dict[str, bool]:
    service_of(request).check_ready()
    return {"ready": True}


# The order matters: a model's name may hold a slash, so the first match must be the longest.
@router.get(MODEL + "/ready", summary="The model can answer")
@router.get(VERSIONED + "/ready", summary="This version of the model can answer")
async def model_ready(request: Request, model: str, version: str = VERSION) -> dict[str, object]:
    info = find_model(request, model, version)
    service_of(request).check_ready()
    return {"name": info.name, "ready": True}


@router.get(MODEL + "/config", summary="The model as Triton's configuration has it")
@router.get(VERSIONED + "/config", summary="This version as Triton's configuration has it")
async def config(request: Request, model: str, version: str = VERSION) -> dict[str, object]:
    info = find_model(request, model, version)
    side = info.preprocessing.image_size
    origin = provenance(info, EmbedOptions(exact=service_of(request).settings.exact))
    return {
        "name": info.name,
        "platform": "vim-embed",
        "backend": info.backend,
        "max_batch_size": service_of(request).settings.max_rows,
        "input": [{"name": INPUT, "data_type": "TYPE_FP32", "dims": [info.channels, side, side]}],
        "output": [
            {"name": name, "data_type": "TYPE_FP32", "dims": [info.dim]}
            for name in _outputs(request, info)
        ],
        "parameters": {key: {"string_value": value} for key, value in origin.items()},
    }


@router.get("/models/stats", summary="Statistics of every model that is ready")
async def all_statistics(request: Request) -> dict[str, object]:
    service = service_of(request)
    ready = [name for name, status in service.models.status().items() if status.info is not None]
    return {"model_stats": [_statistics(service, name) for name in ready]}


@router.get(MODEL + "/stats", summary="Statistics of a model")
@router.get(VERSIONED + "/stats", summary="Statistics of this version of a model")
async def statistics(request: Request, model: str, version: str = VERSION) -> dict[str, object]:
    info = find_model(request, model, version)
    return {"model_stats": [_statistics(service_of(request), info.name)]}


@router.get(MODEL, summary="The model's inputs and outputs")
@router.get(VERSIONED, summary="This version's inputs and outputs")
async def model_metadata(request: Request, model: str, version: str = VERSION) -> dict[str, object]:
    info = find_model(request, model, version)
    side = info.preprocessing.image_size
    return {
        "name": info.name,
        "versions": [VERSION],
        "platform": "vim-embed",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, info.channels, side, side]}],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, info.dim]}
            for name in _outputs(request, info)
        ],
    }


def _outputs(request: Request, info: ModelInfo) -> list[str]:
    """The outputs that need no `layers` parameter and are all of the model's width."""
    return [EMBEDDING, *service_of(request).models.layer_names(info.name, "blocks")]


def _statistics(service: Service, model: str) -> dict[str, object]:
    """Triton's statistics of a model; times in nanoseconds, summed over requests."""
    seen = service.metrics.totals(model)

    def spent(count: float, seconds: float) -> dict[str, int]:
        return {"count": int(count), "ns": int(seconds * 1e9)}

    return {
        "name": model,
        "version": VERSION,
        "inference_count": int(seen.rows),
        "execution_count": int(seen.batches),
        "inference_stats": {
            "success": spent(seen.requests, seen.request_seconds),
            "fail": spent(seen.failures, 0),
            "queue": spent(seen.requests, seen.queue_seconds),
            "compute_input": spent(seen.batches, seen.stage_seconds),
            "compute_infer": spent(seen.requests, seen.compute_seconds),
            "compute_output": spent(seen.requests, 0),
            "cache_hit": spent(0, 0),
            "cache_miss": spent(0, 0),
        },
        "batch_stats": [],
    }
