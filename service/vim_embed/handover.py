"""What an HTTP process tells the model process of a request's body, in one internal header.

Where it lies in the process's arena, or what reading it failed with. Only the internal socket
takes this header; HTTP processes never pass one on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from vim_embed.arena import Arena
from vim_embed.errors import ERRORS, InternalError, ServiceError
from vim_embed.routes.body import HANDED_OVER

HEADER = "x-vim-embed-handover"
_BY_CODE = {error.code: error for error in ERRORS}


def place_header(arena: int, offset: int, size: int) -> str:
    """The header of a body that lies in an arena."""
    return json.dumps([arena, offset, size])


def error_header(error: ServiceError) -> str:
    """The header of a body that could not be read."""
    return json.dumps([error.code, error.message, error.retry_after])


class HandedOver:
    """Puts what the header says into the request's state, for `read_body`."""

    def __init__(self, app: ASGIApp, arenas: Sequence[Arena]) -> None:
        self.app = app
        self.arenas = arenas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                if name == HEADER.encode():
                    scope.setdefault("state", {})[HANDED_OVER] = self._read(value)
        await self.app(scope, receive, send)

    def _read(self, value: bytes) -> memoryview | ServiceError:
        first, second, third = json.loads(value)
        if isinstance(first, str):
            kind: type[ServiceError] = _BY_CODE.get(first, InternalError)
            return kind(second, retry_after=third)
        body: memoryview = self.arenas[first].view(second, third)
        return body
