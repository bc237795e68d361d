"""Routes of whoever runs the service: check a model, load, unload and pin models, inject faults.

Checking is always there; the others only where a setting enables them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from vim_embed.engines.fault_injection import Fault, Faults, Kind
from vim_embed.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    MalformedRequest,
    NotReady,
    UnknownModel,
    WorkerFailed,
)
from vim_embed.http.auth import Keys, bearer, listed
from vim_embed.http.openapi import examples
from vim_embed.http.openapi.schemas import CheckAnswer, ModelName, answers, json_answer
from vim_embed.serving.service import Service
from vim_embed.settings import Settings


class FaultBody(BaseModel):
    """A fault for the next forwards."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    forwards: int = Field(1, ge=1, le=1000)
    seconds: float = Field(0.0, ge=0, le=600, description="how long a hang lasts")


def router(settings: Settings, faults: Faults | None) -> APIRouter:
    """The routes that the settings enable."""
    routes = APIRouter()
    routes.post(
        "/models/{name:path}/check",
        summary="Compare a model with its golden sample",
        response_model=None,
        responses=answers(
            json_answer(CheckAnswer, vim_tiny=examples.CHECK),
            UnknownModel,
            InvalidInput,
            NotReady,
            WorkerFailed,
        ),
    )(check)
    guarded = [Depends(_only(Keys(listed(settings.admin_keys), None)))]
    if settings.model_control:
        routes.include_router(_model_routes(), dependencies=guarded)
    if faults is not None:
        routes.include_router(_fault_routes(faults), dependencies=guarded)
    return routes


async def check(request: Request, name: ModelName) -> dict[str, object]:
    """Embed the model's golden sample now, on each device, between two batches."""
    service = _service(request)
    reports = await service.check(name)
    status = service.find(name)
    return {
        "model": status.name,
        "ok": all(report.ok for report in reports),
        "state": status.state,
        "reason": status.reason,
        "reports": [
            {"error": r.error, "tolerance": r.tolerance, "same_bytes": r.same_bytes, "ok": r.ok}
            for r in reports
        ],
    }


def _model_routes() -> APIRouter:
    routes = APIRouter(
        responses=answers({}, Forbidden, UnknownModel, Conflict, InvalidInput, NotReady)
    )

    @routes.post("/models/{name:path}/load", summary="Load a model; the others go on answering")
    async def load(request: Request, name: str) -> dict[str, object]:
        service = _service(request)
        known = service.control.known_name(name)
        await asyncio.to_thread(service.control.load, known)
        return service.describe(service.find(known))

    @routes.post(
        "/models/{name:path}/unload", summary="Finish a model's rows, give back its memory"
    )
    async def unload(request: Request, name: str) -> dict[str, object]:
        service = _service(request)
        known = service.find(name).name
        await asyncio.to_thread(service.control.unload, known)
        return service.describe(service.find(known))

    @routes.post("/models/{name:path}/pin", summary="Keep a model from being unloaded")
    async def pin(request: Request, name: str) -> dict[str, object]:
        return _pin(_service(request), name, True)

    @routes.post("/models/{name:path}/unpin", summary="Let a model be unloaded again")
    async def unpin(request: Request, name: str) -> dict[str, object]:
        return _pin(_service(request), name, False)

    return routes


def _fault_routes(faults: Faults) -> APIRouter:
    routes = APIRouter(responses=answers({}, Forbidden, MalformedRequest, InvalidInput))

    @routes.post("/faults", summary="Make the next forwards fail (tests only)")
    async def arm(body: FaultBody) -> dict[str, object]:
        faults.arm(Fault(body.kind, body.forwards, body.seconds))
        return {"armed": faults.armed, "met": faults.met}

    @routes.get("/faults", summary="Faults that are armed, and those that were met")
    async def armed() -> dict[str, object]:
        return {"armed": faults.armed, "met": faults.met}

    return routes


def _only(admins: Keys) -> Callable[[Request], None]:
    """A dependency that lets admins alone in, where there are any."""

    def allowed(request: Request) -> None:
        if admins and not admins.allow(bearer(request.headers.getlist("authorization"))):
            raise Forbidden("this needs one of the service's admin keys")

    return allowed


def _pin(service: Service, name: str, on: bool) -> dict[str, object]:
    status = service.find(name)
    service.control.pin(status.name, on)
    return service.describe(status)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
