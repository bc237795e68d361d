"""What an HTTP process tells the model process of a request, in one internal header.

When it began, and where its body lies in the process's arena, or what reading it failed with.
Only the internal socket takes this header; HTTP processes never pass one on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from vim_embed.errors import ERRORS, InternalError, ServiceError
from vim_embed.http.body.arena import Arena
from vim_embed.http.body.reading import HANDED_OVER
from vim_embed.http.deadline import BEGUN

HEADER = "x-vim-embed-handover"
_BY_CODE = {error.code: error for error in ERRORS}


def place_header(begun: float, arena: int, offset: int, size: int) -> str:
    """The header of a body that lies in an arena. begun: in `time.monotonic()`."""
    return json.dumps([begun, arena, offset, size])


def error_header(begun: float, error: ServiceError) -> str:
    """The header of a body that could not be read."""
    return json.dumps([begun, error.code, error.message, error.retry_after])


class HandedOver:
    """Puts what the header says into the request's state, for `read_body`."""

    def __init__(self, app: ASGIApp, arenas: Sequence[Arena]) -> None:
        self.app = app
        self.arenas = arenas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                if name == HEADER.encode():
                    begun, *body = json.loads(value)
                    scope.setdefault("state", {}).update(
                        {BEGUN: begun, HANDED_OVER: self._read(*body)}
                    )
        await self.app(scope, receive, send)

    def _read(self, first: Any, second: Any, third: Any) -> memoryview | ServiceError:
        if isinstance(first, str):
            kind: type[ServiceError] = _BY_CODE.get(first, InternalError)
            return kind(second, retry_after=third)
        body: memoryview = self.arenas[first].view(second, third)
        return body
