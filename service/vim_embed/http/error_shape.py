"""The shape of errors, for whoever answers one: the application, a connection, an HTTP process.

Imports nothing but the standard library and `errors`: HTTP processes use it too.
"""

from __future__ import annotations

import http
import json
import uuid

from vim_embed.errors import ServiceError

V2 = "/v2"


def error_body(error: ServiceError, path: str, request_id: str) -> dict[str, object]:
    """An answer's JSON: the service's own shape, under /v2 the Open Inference Protocol's."""
    if f"{path.partition('?')[0]}/".startswith(f"{V2}/"):
        return {"error": error.message}
    return error.body(request_id)


def error_headers(error: ServiceError) -> dict[str, str]:
    """The headers that an error brings with it."""
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return headers


def raw_answer(error: ServiceError, path: str) -> bytes:
    """A whole answer that ends its connection, for a request that reached no application."""
    request_id = uuid.uuid4().hex
    content = json.dumps(error_body(error, path, request_id)).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        "x-request-id": request_id,
        "connection": "close",
        **{name.lower(): value for name, value in error_headers(error).items()},
    }
    lines = [f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content
