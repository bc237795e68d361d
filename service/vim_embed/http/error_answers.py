"""One shape of errors for every route, and the handlers that give it."""

from __future__ import annotations

import traceback

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from vim_embed.errors import (
    InternalError,
    InvalidInput,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    ServiceError,
)
from vim_embed.http.error_shape import error_body, error_headers
from vim_embed.http.methods import allow
from vim_embed.http.paths import ANONYMOUS
from vim_embed.observability.redaction import without_secrets

_BY_STATUS: dict[int, type[ServiceError]] = {
    400: MalformedRequest,
    404: NotFound,
    405: MethodNotAllowed,
}


def error_response(error: ServiceError, scope: Scope) -> JSONResponse:
    state = scope["state"]
    state["error_code"], state["error_message"] = error.code, error.message
    state["error_reason"] = error.reason or error.code
    headers = error_headers(error)
    if error.status == MethodNotAllowed.status:
        headers["Allow"] = allow(scope)
    if error.status >= 500:
        error = _for_outsiders(error, anonymous=ANONYMOUS in state)
    body = error_body(error, scope["path"], state["request_id"])
    return JSONResponse(body, status_code=error.status, headers=headers)


def _for_outsiders(error: ServiceError, *, anonymous: bool) -> ServiceError:
    """A failure without tokens; without reasons where whoever asks showed no key."""
    if anonymous:
        return type(error)(f"{error.code.replace('_', ' ')}: send an API key to read why")
    text = without_secrets(error.message, length=len(error.message))
    return type(error)(text, detail=error.detail)


async def on_service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    traceback.clear_frames(error.__traceback__)  # they and the future that failed hold each other
    return error_response(error, request.scope)


async def on_invalid_parameters(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = "; ".join(f"{p['loc'][-1]}: {p['msg']}" for p in error.errors())
    return error_response(InvalidInput(f"invalid parameters ({problems})"), request.scope)


async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = _BY_STATUS.get(error.status_code, InternalError)
    method, path = request.method, request.url.path
    message = {
        NotFound: f"no route {path}: {_instead(path)}",
        MethodNotAllowed: f"{path} does not take {method}: see /docs",
    }.get(kind, str(error.detail))
    return error_response(kind(message), request.scope)


def _instead(path: str) -> str:
    """No route ends with a slash; a redirect would lead to the host that the caller named."""
    return f"did you mean {path.rstrip('/')}?" if path.endswith("/") else "see /docs"
